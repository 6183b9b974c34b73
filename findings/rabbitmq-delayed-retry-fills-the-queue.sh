#!/bin/sh
# In a quorum queue of RabbitMQ 4.3 with a length limit and delayed retries, messages that wait for their retry count
# for the limit, though they are not ready and no count shows them; but they cannot be dropped. So with drop-head (the
# default), once as many wait as the limit says, each new message is dropped as it comes, confirmed and all: a queue
# that looks empty takes nothing. One crash of a consumer that holds enough messages begins it. With reject-publish at
# least the publisher gets a nack.
# Predicted: new messages come through and, if any, the oldest are dropped. The documentation has ready messages alone
# count for the limit, and the oldest dropped (queue length limit).
# Run by hand, as root on Debian: needs debootstrap, some minutes, and 500 MB. The broker runs in name spaces of its
# own.
# Seen with RabbitMQ 4.3.6 and pika 1.4.4 (Debian unstable) on 2026-11-28:
#   drop-head: ready before: 0, confirmed of 10: 10, consumed: 0
#   drop-head: after the delay: [0, 1, 2]
#   reject-publish: ready before: 0, confirmed of 10: 1, consumed: 1
#   reject-publish: after the delay: [0, 1, 2]
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
packages=rabbitmq-server,python3-pika,iproute2
unshare --mount debootstrap --variant=minbase --include=$packages sid "$work/tree" >"$work/log"
echo 127.0.0.1 localhost >"$work/tree/etc/hosts"
cat >"$work/tree/run.py" <<'PY'
import time

import pika

for _ in range(300):
    try:
        connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", heartbeat=0))
        break
    except pika.exceptions.AMQPError:
        time.sleep(0.2)
channel = connection.channel()
channel.confirm_delivery()


def declare(name, kind, **arguments):
    arguments = {"x-" + key.replace("_", "-"): value for key, value in arguments.items()}
    channel.queue_declare(name, durable=True, arguments={"x-queue-type": kind, **arguments})


def count(name):
    return channel.queue_declare(name, passive=True).method.message_count


def drain(name):
    """Return the bodies that are there, or come within a second."""
    bodies, end = [], time.monotonic() + 1
    while time.monotonic() < end:
        method, _, body = channel.basic_get(name, auto_ack=True)
        if method:
            bodies.append(int(body))
        else:
            time.sleep(0.02)
    return bodies


for overflow in ("drop-head", "reject-publish"):
    declare(overflow, "quorum", max_length=3, overflow=overflow, delayed_retry_type="failed", delayed_retry_min=10000)
    for number in range(3):
        channel.basic_publish("", overflow, b"%d" % number)
    with pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", heartbeat=0)) as crashing:
        its_channel = crashing.channel()
        held = 0
        while held < 3:
            held += its_channel.basic_get(overflow)[0] is not None
    time.sleep(3)  # its messages are given back
    before, confirmed = count(overflow), 0
    for number in range(3, 13):
        try:
            channel.basic_publish("", overflow, b"%d" % number)
            confirmed += 1
        except pika.exceptions.NackError:
            pass
    print(f"{overflow}: ready before: {before}, confirmed of 10: {confirmed}, consumed: {len(drain(overflow))}")
    time.sleep(10)
    print(f"{overflow}: after the delay: {sorted(drain(overflow))}")
PY
dpkg-query --admindir "$work/tree/var/lib/dpkg" -W rabbitmq-server python3-pika
unshare --mount --pid --net --fork --kill-child chroot "$work/tree" sh -c '
mount -t proc proc /proc
ip link set lo up
RABBITMQ_NODENAME=rabbit@localhost HOME=/root /usr/lib/rabbitmq/bin/rabbitmq-server >/broker 2>&1 &
timeout 300 python3 /run.py' | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
