#!/bin/sh
# If a message of a quorum queue of RabbitMQ 4.3 is kept for longer than the consumer timeout, the broker cancels the
# consumer and no longer closes the channel. pika takes that for the end of its work: start_consuming() and consume()
# end without an error, as if the program had asked for it. pika does not answer the cancel, so the broker keeps the
# consumer, and the late ack starts it again: the message that was timed out, and each new one, goes to a consumer that
# the client no longer has, and no other worker gets it until that timed out too. A program that does anything else on
# the connection may then lose it by a KeyError of the consumer's tag.
# Predicted: start_consuming() raises, or consumes on; what was timed out is ready for other workers. RabbitMQ 4.2 and
# older ones close the channel with PRECONDITION_FAILED, which pika raises.
# What helps: leave the connection when the loop ends. With RabbitMQ 4.3 aio-pika 10.2.1 fails otherwise: after connect()
# its iterator waits for ever, and after connect_robust() it consumes with the same tag, for which the broker closes the
# connection (530).
# Run by hand, as root on Debian: needs debootstrap, some minutes, and 500 MB. The broker runs in name spaces of its
# own.
# Seen with RabbitMQ 4.3.6 and pika 1.4.4 (Debian unstable) on 2026-11-28:
#   start_consuming: ended without an error, handled 1; then ready 0, consumers 1; connection closed: ready 2, consumers 0
#   consume: ended without an error, handled 1; then ready 0, consumers 1; connection closed: ready 2, consumers 0
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
packages=rabbitmq-server,python3-pika,iproute2
unshare --mount debootstrap --variant=minbase --include=$packages sid "$work/tree" >"$work/log"
echo 127.0.0.1 localhost >"$work/tree/etc/hosts"
cat >"$work/tree/run.py" <<'PY'
import contextlib
import time

import pika

for _ in range(300):
    try:
        other = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", heartbeat=0))
        break
    except pika.exceptions.AMQPError:
        time.sleep(0.2)
channel = other.channel()


def work(its_channel, method, handled):
    """Handle a message, the first for longer than the consumer timeout, and acknowledge it."""
    handled.append(method.delivery_tag)
    if len(handled) == 1:
        time.sleep(12)
    its_channel.basic_ack(method.delivery_tag)


def start_consuming(its_channel, name, handled):
    its_channel.basic_consume(name, lambda its_channel, method, *_: work(its_channel, method, handled))
    its_channel.start_consuming()


def consume(its_channel, name, handled):
    for method, _, _ in its_channel.consume(name):
        work(its_channel, method, handled)


def count(name):
    found = channel.queue_declare(name, passive=True).method
    return f"ready {found.message_count}, consumers {found.consumer_count}"


for loop in (start_consuming, consume):
    name = loop.__name__
    channel.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum", "x-consumer-timeout": 8000})
    channel.basic_publish("", name, b"one")
    connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", heartbeat=0))
    its_channel = connection.channel()
    its_channel.basic_qos(prefetch_count=10)
    handled = []
    try:
        loop(its_channel, name, handled)
        ended = "ended without an error"
    except pika.exceptions.AMQPError as error:
        ended = type(error).__name__
    channel.basic_publish("", name, b"two")
    time.sleep(3)
    then = count(name)
    with contextlib.suppress(pika.exceptions.AMQPError):
        connection.close()
    time.sleep(3)
    print(f"{name}: {ended}, handled {len(handled)}; then {then}; connection closed: {count(name)}")
PY
dpkg-query --admindir "$work/tree/var/lib/dpkg" -W rabbitmq-server python3-pika
unshare --mount --pid --net --fork --kill-child chroot "$work/tree" sh -c '
mount -t proc proc /proc
ip link set lo up
RABBITMQ_NODENAME=rabbit@localhost HOME=/root /usr/lib/rabbitmq/bin/rabbitmq-server >/broker 2>&1 &
timeout 300 python3 /run.py' | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
