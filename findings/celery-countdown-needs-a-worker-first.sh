#!/bin/sh
# A Celery task for a quorum queue that is published with a countdown is lost if no worker of that queue has started
# yet. Celery delays such tasks in RabbitMQ (native delayed delivery), by exchanges that only a worker declares, and by
# bindings that only a worker of the queue adds. Without a first worker apply_async() returns as if all were well, and
# the next publish on the connection, of any task, raises the NotFound. If workers of other queues have been there,
# there is no error at all: the task waits out its countdown, and is then dropped, because its queue is not bound. So
# what a new version of a producer publishes for a new queue before the workers are rolled out is kept if it has no
# countdown, and lost if it has one.
# Predicted: both wait in the queue, which the producer declares, until a worker comes; as with classic queues. The
# documentation has native delayed delivery enabled where quorum queues are found, and sets no order between producers
# and workers (using RabbitMQ).
# What helps: start a worker of each queue once before the producers.
# Run by hand, as root on Debian: needs debootstrap, PyPI, some minutes, and 500 MB. The broker runs in name spaces of
# its own.
# Seen with RabbitMQ 4.3.6 (Debian unstable), Celery 5.7.0 and kombu 5.7.0 on 2026-11-30:
#   classic: no worker yet: plain sent, countdown sent, plain sent; then ran: countdown, plain, plain
#   quorum: no worker yet: plain sent, countdown sent, plain NotFound; then ran: plain
#   quorum: new queue, no worker of it yet: plain sent, countdown sent, plain sent; then ran: plain, plain
#   quorum: worker of it was there: plain sent, countdown sent, plain sent; then ran: countdown, plain, plain
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unshare --mount debootstrap --variant=minbase --include=rabbitmq-server,iproute2 sid "$work/tree" >"$work/log"
echo 127.0.0.1 localhost >"$work/tree/etc/hosts"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install celery==5.7.0 kombu==5.7.0 amqp==5.4.2
cat >"$work/jobs.py" <<'PY'
import os
import pathlib

from celery import Celery, signals
from kombu import Exchange, Queue

folder, kind = pathlib.Path(__file__).parent, os.environ["KIND"]
app = Celery("jobs", broker="amqp://guest:guest@127.0.0.1//")
exchange = Exchange(f"{kind}-tasks", "topic")
app.conf.update(
    task_queues=[
        Queue(f"{kind}-{name}", exchange, routing_key=f"{kind}-{name}", queue_arguments={"x-queue-type": kind})
        for name in os.environ["QUEUES"].split()
    ],
    task_ignore_result=True,
    worker_enable_remote_control=False,
)


@signals.worker_ready.connect
def note(**_):
    (folder / "ready").touch()


@app.task
def work(stage, name):
    with (folder / f"{kind}-{stage}").open("a") as ran:
        ran.write(f"{name}\n")
PY
cat >"$work/run.py" <<'PY'
import contextlib
import os
import pathlib
import subprocess
import sys
import time

folder, kind = pathlib.Path(sys.argv[1]), sys.argv[2]
os.environ |= {"KIND": kind, "QUEUES": "orders invoices"}
import jobs
from amqp.exceptions import AMQPError
from kombu.exceptions import OperationalError

line = [f"{folder}/venv/bin/celery", "-A", "jobs", "worker", "-P", "solo", "--without-gossip", "--without-mingle"]


@contextlib.contextmanager
def worker(*queues):
    """Run a worker whose program knows these queues, until the end of the block."""
    with (folder / "worker").open("ab") as log:
        its = os.environ | {"QUEUES": " ".join(queues)}
        process = subprocess.Popen(line, cwd=folder, env=its, stdout=log, stderr=log)
    try:
        while not (folder / "ready").exists():
            time.sleep(0.2)
        (folder / "ready").unlink()
        time.sleep(5)  # for what is in its queues
        yield
    finally:
        process.terminate()
        process.wait()


def publish(stage, queue):
    """Publish a task, one with a countdown, and another one, and return what came of it."""
    outcomes = []
    for name, countdown in (("plain", None), ("countdown", 1), ("plain", None)):
        try:
            jobs.work.apply_async((stage, name), countdown=countdown, queue=f"{kind}-{queue}", retry=False)
            outcomes.append(f"{name} sent")
        except AMQPError as error:
            outcomes.append(f"{name} {type(error).__name__}")
        time.sleep(1)
    time.sleep(3)
    return ", ".join(outcomes)


def ran(stage):
    return ", ".join(sorted((folder / f"{kind}-{stage}").read_text().split()))


for _ in range(300):
    try:
        with jobs.app.connection_for_write(connect_timeout=2) as connection:
            connection.connect()
        break
    except (OSError, OperationalError):
        time.sleep(0.2)
published = publish("first", "orders")
with worker("orders"):
    print(f"{kind}: no worker yet: {published}; then ran: {ran('first')}", flush=True)
if kind == "quorum":
    published = publish("new", "invoices")
    with worker("orders", "invoices"):
        print(f"{kind}: new queue, no worker of it yet: {published}; then ran: {ran('new')}", flush=True)
    published = publish("known", "invoices")
    with worker("orders", "invoices"):
        print(f"{kind}: worker of it was there: {published}; then ran: {ran('known')}", flush=True)
PY
dpkg-query --admindir "$work/tree/var/lib/dpkg" -W rabbitmq-server
unshare --mount --pid --net --fork --kill-child sh -c '
mount -t proc proc "$0/tree/proc"
chroot "$0/tree" ip link set lo up
chroot "$0/tree" env RABBITMQ_NODENAME=rabbit@localhost HOME=/srv /usr/lib/rabbitmq/bin/rabbitmq-server >"$0/broker" 2>&1 &
for kind in classic quorum; do
    HOME="$0" timeout 900 "$0/venv/bin/python" "$0/run.py" "$0" $kind
done' "$work" | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
