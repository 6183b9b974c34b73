#!/bin/sh
# A message that RabbitMQ 4.3 dead-letters takes its count of failed deliveries with it, and a quorum queue that it
# comes to goes on counting against its own limit. So a message that failed 21 times (a limit of 20 is the default) is
# dropped by a dead letter queue of the same limit when the first consumer there gives it back, or is killed: one
# restart of its consumer empties the queue that was to keep what failed. The first delivery from it is marked as
# redelivered. From a classic queue, whose count no header shows, it is the same.
# Predicted: each queue counts its own deliveries, so 21 in either. The documentation names the headers that
# dead-lettering changes, and no count (dead letter exchanges, effects on messages; quorum queues, poison message
# handling).
# What helps: x-delivery-limit -1 for the dead letter queue, a classic queue, or a stream.
# Run by hand, as root on Debian: needs debootstrap, some minutes, and 500 MB. The broker runs in name spaces of its
# own.
# Seen with RabbitMQ 4.3.6 and pika 1.4.4 (Debian unstable) on 2026-11-28:
#   quorum to quorum: 21 deliveries; then dead: redelivered True, count 21, 1 deliveries, lost
#   classic to quorum: 21 deliveries; then dead: redelivered True, count 21, 1 deliveries, lost
#   quorum to quorum without limit: 21 deliveries; then dead: redelivered True, count 21, 30 deliveries, kept
#   quorum to classic: 21 deliveries; then dead: redelivered True, count None, 30 deliveries, kept
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


def get(name):
    """Return what comes within two seconds, if anything does."""
    for _ in range(100):
        method, properties, _ = channel.basic_get(name)
        if method:
            return method, properties.headers or {}
        time.sleep(0.02)
    return None


def fail(name, times):
    """Give back as failed what comes, and return the first delivery and how many there were."""
    first = None
    for number in range(times):
        found = get(name)
        if not found:
            return first, number
        first = first or found
        channel.basic_reject(found[0].delivery_tag, requeue=True)
    return first, times


for kind, target, options in (
    ("quorum", "quorum", {}),
    ("classic", "quorum", {}),
    ("quorum", "quorum", {"delivery_limit": -1}),
    ("quorum", "classic", {}),
):
    name = f"{kind} to {target}{' without limit' if options else ''}"
    declare("dead " + name, target, **options)
    declare(name, kind, dead_letter_exchange="", dead_letter_routing_key="dead " + name)
    channel.basic_publish("", name, b"order")
    _, deliveries = fail(name, 20)
    method, _ = get(name)
    channel.basic_reject(method.delivery_tag, requeue=kind == "quorum")  # a classic queue has no limit
    (method, headers), dead = fail("dead " + name, 30)
    print(
        f"{name}: {deliveries + 1} deliveries; then dead: redelivered {method.redelivered}, "
        f"count {headers.get('x-delivery-count')}, {dead} deliveries, {'kept' if get('dead ' + name) else 'lost'}"
    )
PY
dpkg-query --admindir "$work/tree/var/lib/dpkg" -W rabbitmq-server python3-pika
unshare --mount --pid --net --fork --kill-child chroot "$work/tree" sh -c '
mount -t proc proc /proc
ip link set lo up
RABBITMQ_NODENAME=rabbit@localhost HOME=/root /usr/lib/rabbitmq/bin/rabbitmq-server >/broker 2>&1 &
timeout 300 python3 /run.py' | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
