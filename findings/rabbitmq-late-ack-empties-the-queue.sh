#!/bin/sh
# A consumer that kept a message for longer than the consumer timeout is cancelled by RabbitMQ 4.3 (basic.cancel). If it
# then acknowledges the message, the broker begins to deliver to it again, under the tag that it has cancelled. A client
# that has dropped the consumer rejects each of these deliveries with requeue, as clients do with what they have no
# consumer for. Each reject counts as a failure, so within a moment all messages of the queue have failed 20 times, the
# default limit, and are dropped: one late ack, and ten messages are gone, nine of which no program has ever seen.
# Predicted: after basic.cancel nothing is delivered to that tag (the method means that in the specification of
# RabbitMQ's consumer cancel notification), and 10 messages stay, as the timeout has returned the late one too.
# What helps: a basic.cancel of the client's own for that tag before the ack.
# Run by hand, as root on Debian: needs debootstrap, some minutes, and 500 MB. The broker runs in name spaces of its
# own.
# Seen with RabbitMQ 4.3.6 and amqp 5.3.1 (Debian unstable) on 2026-11-28:
#   late ack: seen 1, ready after the broker's cancel 10, 2 s after the ack 0
#   cancel, then late ack: seen 1, ready after the broker's cancel 10, 2 s after the ack 10
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
packages=rabbitmq-server,python3-amqp,iproute2
unshare --mount debootstrap --variant=minbase --include=$packages sid "$work/tree" >"$work/log"
echo 127.0.0.1 localhost >"$work/tree/etc/hosts"
cat >"$work/tree/run.py" <<'PY'
import logging
import socket
import time

import amqp

logging.disable()


def connect():
    for _ in range(300):
        try:
            connection = amqp.Connection("127.0.0.1", heartbeat=0)
            connection.connect()
            return connection
        except OSError:
            time.sleep(0.2)
    raise TimeoutError


connection, other = connect(), connect().channel()


def listen(seconds):
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            connection.drain_events(timeout=left)
        except socket.timeout:
            pass


for name, is_answered in (("late ack", False), ("cancel, then late ack", True)):
    channel = connection.channel()
    arguments = {"x-queue-type": "quorum", "x-consumer-timeout": 500}
    channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)
    for number in range(10):
        channel.basic_publish(amqp.Message(str(number)), routing_key=name)
    seen, cancelled = [], []
    channel.basic_qos(0, 1, False)
    channel.basic_consume(name, consumer_tag=name, callback=seen.append, on_cancel=cancelled.append)
    while not cancelled:
        listen(0.1)
    before = other.queue_declare(name, passive=True).message_count
    if is_answered:
        channel.basic_cancel(name)
    channel.basic_ack(seen[0].delivery_tag)
    listen(2)
    left = other.queue_declare(name, passive=True).message_count
    print(f"{name}: seen {len(seen)}, ready after the broker's cancel {before}, 2 s after the ack {left}")
PY
dpkg-query --admindir "$work/tree/var/lib/dpkg" -W rabbitmq-server python3-amqp
unshare --mount --pid --net --fork --kill-child chroot "$work/tree" sh -c '
mount -t proc proc /proc
ip link set lo up
RABBITMQ_NODENAME=rabbit@localhost HOME=/root /usr/lib/rabbitmq/bin/rabbitmq-server >/broker 2>&1 &
timeout 300 python3 /run.py' | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
