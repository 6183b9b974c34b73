#!/bin/sh
# A shovel of RabbitMQ 4.3 with ack-mode on-confirm that consumes over AMQP 1.0 throws away what its destination
# refuses: while the destination queue is full (overflow reject-publish), the shovel rejects each refused message at the
# source, which drops it, or dead-letters it if it can. So one full queue empties the source, without an error, and
# nothing comes once there is room. A shovel that consumes over AMQP 0-9-1 gives the messages back and tries again.
# A shovel that publishes over AMQP 1.0 to a full quorum queue loses nothing, but stops: it takes the outcome for that
# of an unknown message, holds what it consumed as unacknowledged, and moves nothing until it is deleted or restarted.
# With AMQP 1.0 on both sides it was now one, now the other, in several runs.
# Predicted: refused messages stay in the source, or go back to it, and are moved once there is room, whatever the
# protocol. The documentation has on-confirm acknowledge at the source what the destination has confirmed, and lose no
# message in failures of the network or a broker; it names no difference of protocols for messages that are refused
# (dynamic shovels).
# What helps: AMQP 0-9-1 on both sides; a dead letter exchange for the source of an AMQP 1.0 shovel.
# Run by hand, as root on Debian: needs debootstrap, some minutes, and 500 MB. The broker runs in name spaces of its
# own.
# Seen with RabbitMQ 4.3.6 and pika 1.4.4 (Debian unstable) on 2026-11-30:
#   0-9-1 to 0-9-1, full classic queue: 10 to move; with room again: arrived 10; shovel deleted: left in the source 0
#   1.0 to 0-9-1, full classic queue: 10 to move; with room again: arrived 0; shovel deleted: left in the source 0
#   0-9-1 to 1.0, full quorum queue: 10 to move; with room again: arrived 0; shovel deleted: left in the source 10
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
packages=rabbitmq-server,python3-pika,iproute2
unshare --mount debootstrap --variant=minbase --include=$packages sid "$work/tree" >"$work/log"
echo 127.0.0.1 localhost >"$work/tree/etc/hosts"
echo '[rabbitmq_shovel].' >"$work/tree/etc/rabbitmq/enabled_plugins"
echo cookie >"$work/tree/srv/.erlang.cookie"
chmod 400 "$work/tree/srv/.erlang.cookie"
cat >"$work/tree/run.py" <<'PY'
import json
import subprocess
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
URI = "amqp://guest:guest@127.0.0.1:5672"


def declare(name, kind, **arguments):
    channel.queue_delete(name)
    channel.queue_declare(name, durable=True, arguments={"x-queue-type": kind, **arguments})


def control(*command):
    subprocess.run(["/usr/lib/rabbitmq/bin/rabbitmqctl", "-q", *command], check=True, stdout=subprocess.DEVNULL)


def end(side, protocol, name):
    """Return one end of a shovel."""
    queue = {"queue": name} if protocol == "amqp091" else {"address": f"/queues/{name}"}
    return {f"{side}-{key}": value for key, value in {"protocol": protocol, "uri": URI, **queue}.items()}


def drain(name):
    """Take all that is in the queue, or comes within 5 s of the last, and return the bodies."""
    bodies, quiet = [], time.monotonic() + 5
    while time.monotonic() < quiet:
        method, _, body = channel.basic_get(name, auto_ack=True)
        if method:
            bodies.append(body)
            quiet = time.monotonic() + 5
        else:
            time.sleep(0.02)
    return bodies


NAMES = {"amqp091": "0-9-1", "amqp10": "1.0"}
for number, (source, destination, kind) in enumerate(
    (
        ("amqp091", "amqp091", "classic"),
        ("amqp10", "amqp091", "classic"),
        ("amqp091", "amqp10", "quorum"),
    )
):
    declare("source", "quorum")
    declare("destination", kind, **{"x-max-length": 3, "x-overflow": "reject-publish"})
    try:
        while True:
            channel.basic_publish("", "destination", b"fills")
    except pika.exceptions.NackError:
        pass
    for _ in range(10):
        channel.basic_publish("", "source", b"order")
    ends = {**end("src", source, "source"), **end("dest", destination, "destination")}
    control("set_parameter", "shovel", f"shovel{number}", json.dumps({**ends, "ack-mode": "on-confirm"}))
    while channel.queue_declare("source", passive=True).method.message_count:
        time.sleep(0.05)  # until the shovel has consumed them
    time.sleep(10)
    arrived = drain("destination").count(b"order")
    control("clear_parameter", "shovel", f"shovel{number}")
    print(
        f"{NAMES[source]} to {NAMES[destination]}, full {kind} queue: 10 to move; with room again: arrived {arrived}; "
        f"shovel deleted: left in the source {len(drain('source'))}",
        flush=True,
    )
PY
dpkg-query --admindir "$work/tree/var/lib/dpkg" -W rabbitmq-server python3-pika
unshare --mount --pid --net --fork --kill-child chroot "$work/tree" sh -c '
mount -t proc proc /proc
ip link set lo up
export HOME=/srv RABBITMQ_NODENAME=rabbit@localhost
/usr/lib/rabbitmq/bin/rabbitmq-server >/broker 2>&1 &
timeout 900 python3 /run.py' | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
