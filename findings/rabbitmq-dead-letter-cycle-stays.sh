#!/bin/sh
# A quorum queue of RabbitMQ 4.3 that dead-letters at least once keeps for ever what it would dead-letter in a cycle:
# the message is no longer ready, is counted by no passive declaration, and is never delivered; but it counts for the
# length limit. A retry queue whose messages expire into itself so fills up unseen, and refuses all that is published.
# Purging, which says how many there were, frees it. With at-most-once the message is dropped.
# Predicted: dropped in both. The documentation says that a cycle without a rejection is detected and the message
# dropped (dead letter exchanges, dead-letter cycle), and makes no exception.
# Run by hand, as root on Debian: needs debootstrap, some minutes, and 500 MB. The broker runs in name spaces of its
# own.
# Seen with RabbitMQ 4.3.6 and pika 1.4.4 (Debian unstable) on 2026-11-28:
#   at-most-once: confirmed of 10: 10, ready: 0, purged: 0
#   at-least-once: confirmed of 10: 4, ready: 0, purged: 4
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


def ready(name):
    return channel.queue_declare(name, passive=True).method.message_count


for strategy in ("at-most-once", "at-least-once"):
    declare(
        strategy,
        "quorum",
        dead_letter_exchange="",
        dead_letter_strategy=strategy,
        overflow="reject-publish",
        message_ttl=500,
        max_length=3,
    )
    confirmed = 0
    for _ in range(10):
        try:
            channel.basic_publish("", strategy, b"order")
            confirmed += 1
        except pika.exceptions.NackError:
            pass
        time.sleep(1)  # it expires
    time.sleep(5)
    purged = ready(strategy), channel.queue_purge(strategy).method.message_count
    print(f"{strategy}: confirmed of 10: {confirmed}, ready: {purged[0]}, purged: {purged[1]}")
PY
dpkg-query --admindir "$work/tree/var/lib/dpkg" -W rabbitmq-server python3-pika
unshare --mount --pid --net --fork --kill-child chroot "$work/tree" sh -c '
mount -t proc proc /proc
ip link set lo up
RABBITMQ_NODENAME=rabbit@localhost HOME=/root /usr/lib/rabbitmq/bin/rabbitmq-server >/broker 2>&1 &
timeout 300 python3 /run.py' | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
