#!/bin/sh
# A transaction of AMQP (tx.select) that publishes to a full quorum queue of RabbitMQ 4.3 (overflow reject-publish) is
# committed: tx.commit-ok, no error, no return, and the message is in no queue. If the transaction moves a message, so
# publishes it and acknowledges where it came from, it is gone from both. Publisher confirms on the same queue are
# refused as they should be. With a classic queue the commit fails (406, partial tx completion), but the
# acknowledgement stays done.
# Predicted: the commit fails in both, and what the transaction acknowledged is delivered again. The documentation says
# that a queue with reject-publish drops what is published, and tells publishers with confirms; of transactions it has
# that they are not atomic, not that a commit may stand for nothing (queue length limit; broker semantics).
# What helps: publisher confirms, and acknowledging afterwards.
# Run by hand, as root on Debian: needs debootstrap, some minutes, and 500 MB. The broker runs in name spaces of its
# own.
# Seen with RabbitMQ 4.3.6 and pika 1.4.4 (Debian unstable) on 2026-11-29:
#   quorum: confirm: refused, commit: Tx.CommitOk, then source [], target ['old']
#   classic: confirm: refused, commit: 406 PRECONDITION_FAILED - partial tx completion, then source [], target ['old']
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
packages=rabbitmq-server,python3-pika,iproute2
unshare --mount debootstrap --variant=minbase --include=$packages sid "$work/tree" >"$work/log"
echo 127.0.0.1 localhost >"$work/tree/etc/hosts"
cat >"$work/tree/run.py" <<'PY'
import time

import pika


def connect():
    for _ in range(300):
        try:
            return pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", heartbeat=0))
        except pika.exceptions.AMQPError:
            time.sleep(0.2)


def declare(name, kind, **arguments):
    arguments = {"x-" + key.replace("_", "-"): value for key, value in arguments.items()}
    channel.queue_declare(name, durable=True, arguments={"x-queue-type": kind, **arguments})


def drain(name):
    """Return the bodies that are there, or come within three seconds."""
    bodies, end = [], time.monotonic() + 3
    while time.monotonic() < end:
        method, _, body = channel.basic_get(name, auto_ack=True)
        if method:
            bodies.append(body.decode())
        else:
            time.sleep(0.02)
    return bodies


channel = connect().channel()
channel.confirm_delivery()
for kind in ("quorum", "classic"):
    source, target = f"{kind}.source", f"{kind}.target"
    declare(source, kind)
    declare(target, kind, max_length=1, overflow="reject-publish")
    channel.basic_publish("", source, b"order")
    try:
        for _ in range(5):
            channel.basic_publish("", target, b"old")
            time.sleep(1)
        confirm = "confirmed"
    except pika.exceptions.NackError:
        confirm = "refused"
    connection = connect()
    moving = connection.channel()
    moving.tx_select()
    method = None
    while method is None:
        method, _, body = moving.basic_get(source)
    moving.basic_publish("", target, body)
    moving.basic_ack(method.delivery_tag)
    try:
        commit = moving.tx_commit().method.NAME
    except pika.exceptions.ChannelClosedByBroker as error:
        commit = f"{error.reply_code} {error.reply_text}"
    connection.close()
    left, arrived = drain(source), sorted(set(drain(target)))
    print(f"{kind}: confirm: {confirm}, commit: {commit}, then source {left}, target {arrived}")
PY
dpkg-query --admindir "$work/tree/var/lib/dpkg" -W rabbitmq-server python3-pika
unshare --mount --pid --net --fork --kill-child chroot "$work/tree" sh -c '
mount -t proc proc /proc
ip link set lo up
RABBITMQ_NODENAME=rabbit@localhost HOME=/root /usr/lib/rabbitmq/bin/rabbitmq-server >/broker 2>&1 &
timeout 300 python3 /run.py' | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
