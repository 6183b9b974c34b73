#!/bin/sh
# A worker that uses pika and ends in good order breaks the order of a queue of RabbitMQ with a single active consumer,
# and one that is killed does not. pika cancels each consumer before it closes a channel or a connection. RabbitMQ makes
# the next consumer the active one at the cancel, and delivers to it what is ready, while what the old one holds is
# still unacknowledged; that comes back at the close that follows, behind a full prefetch of newer messages. So each
# deployment that stops the worker of a backlog changes the order, in classic and quorum queues, with a prefetch of 1
# too, and nothing tells of it. py-amqp, which kombu and Celery use, closes without a cancel, and keeps the order.
# Predicted: the new consumer gets the oldest message first, whether the old one was closed or killed. RabbitMQ's
# documentation has a single active consumer for messages that must be processed in the order in which they arrive, and
# the next consumer take over when the active one is cancelled or dies (consumers). pika's has close() end the channel
# or connection, and names no cancel that the broker sees; its issue 1208, open since 2019, asks to leave that out.
# What helps: nothing in pika's API; end the process without close(), so that the broker sees a lost connection. A new
# consumer of a higher priority, for which a quorum queue waits until the old one holds nothing, does not help.
# Run by hand, as root on Debian: needs debootstrap, PyPI, some minutes, and 500 MB. The broker runs in name spaces of
# its own.
# Seen with RabbitMQ 4.3.6 and pika 1.4.4 (Debian unstable) and amqp 5.4.2 on 2026-11-30:
#   classic: pika, prefetch 1, closed: then 1 first, not in order
#   classic: pika, prefetch 4, closed: then 4 first, not in order
#   classic: pika, prefetch 4, killed: then 0 first, in order
#   classic: amqp, prefetch 4, closed: then 0 first, in order
#   quorum: pika, prefetch 1, closed: then 1 first, not in order
#   quorum: pika, prefetch 4, closed: then 4 first, not in order
#   quorum: pika, prefetch 4, killed: then 0 first, in order
#   quorum: amqp, prefetch 4, closed: then 0 first, in order
#   quorum: pika, prefetch 4, closed, replaced by priority: then 4 first, not in order
#   quorum: pika, prefetch 4, killed, replaced by priority: then 0 first, in order
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
packages=rabbitmq-server,python3-pika,iproute2
unshare --mount debootstrap --variant=minbase --include=$packages sid "$work/tree" >"$work/log"
echo 127.0.0.1 localhost >"$work/tree/etc/hosts"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install --target "$work/tree/client" amqp==5.4.2 vine==5.1.0
cat >"$work/tree/old_pika.py" <<'PY'
import select
import sys

import pika

connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1"))
channel = connection.channel()
channel.basic_qos(prefetch_count=int(sys.argv[1]))
channel.basic_consume("orders", lambda *delivery: None)
while not select.select([sys.stdin], [], [], 0)[0]:
    connection.process_data_events(0.1)
connection.close()
PY
cat >"$work/tree/old_amqp.py" <<'PY'
import contextlib
import select
import sys

import amqp

connection = amqp.Connection("127.0.0.1")
connection.connect()
channel = connection.channel()
channel.basic_qos(0, int(sys.argv[1]), False)
channel.basic_consume("orders", callback=lambda message: None)
while not select.select([sys.stdin], [], [], 0)[0]:
    with contextlib.suppress(TimeoutError):
        connection.drain_events(0.1)
channel.close()
connection.close()
PY
cat >"$work/tree/run.py" <<'PY'
import subprocess
import sys
import time

import pika


def connect():
    for _ in range(300):
        try:
            return pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", heartbeat=0))
        except pika.exceptions.AMQPError:
            time.sleep(0.2)


def run(kind, client, prefetch, end, priority=0):
    handled = []

    def handle(channel, method, properties, body):
        handled.append(int(body))
        channel.basic_ack(method.delivery_tag)

    def consume():
        channel = new.channel()
        channel.basic_qos(prefetch_count=prefetch)
        channel.basic_consume("orders", handle, arguments={"x-priority": priority})
        new.process_data_events(2)

    connection, new = connect(), connect()
    channel = connection.channel()
    channel.confirm_delivery()
    arguments = {"x-queue-type": kind, "x-single-active-consumer": True}
    channel.queue_declare("orders", durable=True, arguments=arguments)
    old = subprocess.Popen([sys.executable, f"/old_{client}.py", str(prefetch)], stdin=subprocess.PIPE)
    while not channel.queue_declare("orders", passive=True).method.consumer_count:
        time.sleep(0.1)
    if not priority:
        consume()
    for number in range(10):
        channel.basic_publish("", "orders", b"%d" % number)
    while channel.queue_declare("orders", passive=True).method.message_count > 10 - prefetch:
        time.sleep(0.1)  # until the old consumer has what it may hold
    if priority:
        consume()
    assert not handled
    if end == "killed":
        old.kill()
    else:
        old.stdin.close()
    while len(handled) < 10:
        new.process_data_events(0.1)
    old.wait()
    came = ", replaced by priority" if priority else ""
    order = "in order" if handled == sorted(handled) else "not in order"
    print(f"{kind}: {client}, prefetch {prefetch}, {end}{came}: then {handled[0]} first, {order}", flush=True)
    channel.queue_delete("orders")
    new.close()
    connection.close()


for kind in ("classic", "quorum"):
    run(kind, "pika", 1, "closed")
    run(kind, "pika", 4, "closed")
    run(kind, "pika", 4, "killed")
    run(kind, "amqp", 4, "closed")
run("quorum", "pika", 4, "closed", priority=1)
run("quorum", "pika", 4, "killed", priority=1)
PY
dpkg-query --admindir "$work/tree/var/lib/dpkg" -W rabbitmq-server python3-pika
unshare --mount --pid --net --fork --kill-child chroot "$work/tree" sh -c '
mount -t proc proc /proc
ip link set lo up
RABBITMQ_NODENAME=rabbit@localhost HOME=/srv /usr/lib/rabbitmq/bin/rabbitmq-server >/broker 2>&1 &
PYTHONPATH=/client timeout 300 python3 /run.py' | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
