#!/bin/sh
# A consumer of RabbitMQ's AMQP 1.0 client for Python does not come back when its connection is lost, and its recovery,
# which is on by default, takes messages from other workers. On the new connection it attaches each consumer more than
# once, by links of one name, for which RabbitMQ 4.3 ends the connection ("link name already attached"), so the client
# waits twice as long and tries again. But it leaves open what was refused: RabbitMQ goes on counting two consumers of
# each attempt, and gives them messages, 20 here. Nobody handles those, and no other worker got them until the process
# was killed. run() neither returns nor raises meanwhile, so nothing restarts the process: a connection that is closed
# by an operator, or a node that restarts, stops all such workers, while the broker shows more consumers than before.
# Predicted: the worker handles messages again after some seconds, as one consumer, or run() raises. The documentation
# of the client (RecoveryConfiguration, example of a reconnection) has it reconnect, in up to five attempts.
# What helps: RecoveryConfiguration(active_recovery=False), and a new connection or process when run() ends.
# Run by hand, as root on Debian: needs debootstrap, PyPI, some minutes, and 500 MB. The broker runs in name spaces of
# its own.
# Seen with RabbitMQ 4.3.6 (Debian unstable), rabbitmq-amqp-python-client 1.0.1 and pika 1.4.4 on 2026-11-30:
#   connected: handled 3 of 3, consumers 1
#   recovery tried: consumers 2, published 100, handled 0, by another worker 80, run() ended False
#   recovery tried: consumers 4, published 100, handled 0, by another worker 80, run() ended False
#   process killed: by another worker 40
#   connected: handled 3 of 3, consumers 1
#   recovery switched off: consumers 0, run() ended True
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unshare --mount debootstrap --variant=minbase --include=rabbitmq-server,iproute2 sid "$work/tree" >"$work/log"
echo 127.0.0.1 localhost >"$work/tree/etc/hosts"
echo cookie >"$work/tree/srv/.erlang.cookie"
chmod 400 "$work/tree/srv/.erlang.cookie"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install rabbitmq-amqp-python-client==1.0.1 pika==1.4.4
cat >"$work/worker.py" <<'PY'
import sys

from rabbitmq_amqp_python_client import AddressHelper, AMQPMessagingHandler, Environment, RecoveryConfiguration


class Handler(AMQPMessagingHandler):
    def on_amqp_message(self, event):
        self.delivery_context.accept(event)
        print("handled", flush=True)


options = {"recovery_configuration": RecoveryConfiguration(active_recovery=False)} if "off" in sys.argv else {}
connection = Environment("amqp://guest:guest@127.0.0.1:5672/", **options).connection()
connection.dial()
connection.consumer(AddressHelper.queue_address("orders"), message_handler=Handler()).run()
PY
cat >"$work/run.py" <<'PY'
import pathlib
import subprocess
import sys
import time

import pika

work = pathlib.Path(sys.argv[1])
CONTROL = ["chroot", f"{work}/tree", "env", "HOME=/srv", "RABBITMQ_NODENAME=rabbit@localhost"]
CONTROL += ["/usr/lib/rabbitmq/bin/rabbitmqctl", "-q"]


def connect():
    for _ in range(300):
        try:
            connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", heartbeat=0))
            channel = connection.channel()
            channel.confirm_delivery()
            return connection, channel
        except pika.exceptions.AMQPError:
            time.sleep(0.2)


def publish(count):
    for _ in range(count):
        channel.basic_publish("", "orders", b"order")


def count():
    return channel.queue_declare("orders", passive=True).method


def handled():
    return (work / "handled").read_text().count("handled")


def drain():
    """Consume, as a sound worker, until nothing comes for 5 s, and return how many came."""
    number = 0
    for method, _, _ in channel.consume("orders", inactivity_timeout=5):
        if method is None:
            break
        channel.basic_ack(method.delivery_tag)
        number += 1
    channel.cancel()
    return number


def run(*options):
    """Start a worker, close its connection, and return it."""
    global connection, channel
    connection, channel = connect()
    channel.queue_declare("orders", durable=True, arguments={"x-queue-type": "quorum"})
    with (work / "handled").open("w") as out, (work / "errors").open("w") as errors:
        worker = subprocess.Popen([sys.executable, work / "worker.py", *options], stdout=out, stderr=errors)
    publish(3)
    while handled() < 3:
        time.sleep(0.1)
    print(f"connected: handled {handled()} of 3, consumers {count().consumer_count}", flush=True)
    subprocess.run([*CONTROL, "close_all_user_connections", "guest", "maintenance"], check=True)
    connection, channel = connect()
    return worker


worker = run()
for consumers in (2, 4):
    while count().consumer_count != consumers:
        time.sleep(0.1)
    time.sleep(2)
    publish(100)
    time.sleep(2)
    ours, others = handled() - 3, drain()
    print(
        f"recovery tried: consumers {consumers}, published 100, handled {ours}, by another worker {others},"
        f" run() ended {worker.poll() is not None}",
        flush=True,
    )
worker.kill()
print(f"process killed: by another worker {drain()}", flush=True)
worker = run("off")
time.sleep(5)
print(f"recovery switched off: consumers {count().consumer_count}, run() ended {worker.poll() is not None}")
worker.kill()
PY
dpkg-query --admindir "$work/tree/var/lib/dpkg" -W rabbitmq-server
unshare --mount --pid --net --fork --kill-child sh -c '
mount -t proc proc "$0/tree/proc"
chroot "$0/tree" ip link set lo up
chroot "$0/tree" env RABBITMQ_NODENAME=rabbit@localhost HOME=/srv /usr/lib/rabbitmq/bin/rabbitmq-server >"$0/broker" 2>&1 &
timeout 300 "$0/venv/bin/python" "$0/run.py" "$0"' "$work" | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
