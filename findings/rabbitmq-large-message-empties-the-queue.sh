#!/bin/sh
# One message that is larger than the limit in bytes of a queue of RabbitMQ 4.3 (x-max-length-bytes, overflow drop-head,
# the default) empties the queue: from the head one message after the other is dropped until the queue fits, which it
# does only when the large one is gone too. All are confirmed. So a single publisher with one body too large throws away
# the backlog of all others, in quorum and classic queues alike.
# Predicted: the message that can never fit is refused or dropped, and the others stay, or at most as many go as it has
# bytes. The documentation has the oldest messages dropped to make room (queue length limit).
# What helps: reject-publish. A quorum queue takes one such message even then, if it was empty, and a classic queue
# none.
# Run by hand, as root on Debian: needs debootstrap, some minutes, and 500 MB. The broker runs in name spaces of its
# own.
# Seen with RabbitMQ 4.3.6 and pika 1.4.4 (Debian unstable) on 2026-11-28:
#   quorum: published 51, confirmed 51, left: 0, dead letters: 51
#   classic: published 51, confirmed 51, left: 0, dead letters: 51
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
    """Return how many messages there are, once that has not changed for two seconds."""
    number, since = -1, time.monotonic()
    while time.monotonic() < since + 2:
        now = channel.queue_declare(name, passive=True).method.message_count
        if now != number:
            number, since = now, time.monotonic()
        time.sleep(0.1)
    return number


for kind in ("quorum", "classic"):
    declare("dead " + kind, "classic")
    declare(kind, kind, max_length_bytes=1000, dead_letter_exchange="", dead_letter_routing_key="dead " + kind)
    published = [b"small"] * 50 + [b"x" * 1001]
    confirmed = 0
    for message in published:
        channel.basic_publish("", kind, message)  # it raises if the broker refuses
        confirmed += 1
    print(
        f"{kind}: published {len(published)}, confirmed {confirmed}, left: {count(kind)}, "
        f"dead letters: {count('dead ' + kind)}"
    )
PY
dpkg-query --admindir "$work/tree/var/lib/dpkg" -W rabbitmq-server python3-pika
unshare --mount --pid --net --fork --kill-child chroot "$work/tree" sh -c '
mount -t proc proc /proc
ip link set lo up
RABBITMQ_NODENAME=rabbit@localhost HOME=/root /usr/lib/rabbitmq/bin/rabbitmq-server >/broker 2>&1 &
timeout 300 python3 /run.py' | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
