#!/bin/sh
# If a Celery task that came from a quorum queue is retried with a countdown of less than a second, it is not retried:
# Celery delays tasks of quorum queues in RabbitMQ (native delayed delivery), which takes whole seconds and refuses 0.
# The publish raises a ValueError, and the task fails at its first try, whatever max_retries says. With Celery 5.6.3 it
# is lost: rejected without requeue, its state PENDING for ever. In a producer apply_async() raises the ValueError for
# such a countdown, and for an eta that is so near.
# Predicted: the task runs again within a second or so, as from a classic queue, with the same program otherwise. The
# documentation has countdown as a float (Task.apply_async, Task.retry), and names what quorum queues cannot do, not
# this (using RabbitMQ, limitations).
# What helps: a countdown of 0, or of at least 1; an eta at least two seconds ahead.
# Run by hand, as root on Debian: needs debootstrap, PyPI, some minutes, and 500 MB. The broker runs in name spaces of
# its own.
# Seen with RabbitMQ 4.3.6 (Debian unstable), Celery 5.7.0 and kombu 5.7.0 on 2026-11-30:
#   classic: retried after 1 s: 3 tries, FAILURE by OSError
#   classic: retried after 0.5 s: 3 tries, FAILURE by OSError
#   classic: apply_async(countdown=0.5): sent, 1 tries
#   quorum: retried after 1 s: 3 tries, FAILURE by OSError
#   quorum: retried after 0.5 s: 1 tries, FAILURE by Reject
#   quorum: apply_async(countdown=0.5): ValueError, 0 tries
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unshare --mount debootstrap --variant=minbase --include=rabbitmq-server,iproute2 sid "$work/tree" >"$work/log"
echo 127.0.0.1 localhost >"$work/tree/etc/hosts"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install celery==5.7.0 kombu==5.7.0 amqp==5.4.2
mkdir "$work/results"
cat >"$work/jobs.py" <<'PY'
import os
import pathlib

from celery import Celery
from kombu import Exchange, Queue

folder, kind = pathlib.Path(__file__).parent, os.environ["KIND"]
app = Celery("jobs", broker="amqp://guest:guest@127.0.0.1//", backend=f"file://{folder}/results")
queue = Queue(kind, Exchange(f"{kind}-tasks", "topic"), routing_key=kind, queue_arguments={"x-queue-type": kind})
app.conf.update(
    task_queues=[queue],
    task_default_queue=kind,
    task_default_exchange=f"{kind}-tasks",
    task_default_exchange_type="topic",
    task_default_routing_key=kind,
    task_acks_late=True,
    worker_enable_remote_control=False,
)


def note(name):
    with (folder / name).open("a") as tries:
        tries.write(".")


@app.task(bind=True, max_retries=2)
def fail(self, name, delay):
    note(name)
    raise self.retry(exc=OSError(), countdown=delay)


@app.task
def work(name):
    note(name)
PY
cat >"$work/run.py" <<'PY'
import os
import pathlib
import subprocess
import sys
import time

folder, kind = pathlib.Path(sys.argv[1]), sys.argv[2]
os.environ["KIND"] = kind
import jobs


def tries(name):
    path = folder / name
    return len(path.read_text()) if path.exists() else 0


def publish(task, name, *rest, **options):
    return task.apply_async((f"{kind}-{name}", *rest), **options)


for _ in range(300):
    try:
        with jobs.app.connection_for_write(connect_timeout=2) as connection:
            connection.connect()
        break
    except OSError:
        time.sleep(0.2)
with (folder / f"{kind}-log").open("wb") as log:
    line = [f"{folder}/venv/bin/celery", "-A", "jobs", "worker", "-P", "solo", "--without-gossip", "--without-mingle"]
    worker = subprocess.Popen(line, cwd=folder, stdout=log, stderr=log)
try:
    publish(jobs.work, "ready")
    while not tries(f"{kind}-ready"):
        time.sleep(0.2)
    for delay in (1, 0.5):
        result = publish(jobs.fail, f"delay-{delay}", delay)
        time.sleep(15)
        made = tries(f"{kind}-delay-{delay}")
        failure = type(result.result).__name__
        print(f"{kind}: retried after {delay} s: {made} tries, {result.state} by {failure}", flush=True)
    try:
        publish(jobs.work, "countdown", countdown=0.5)
        sent = "sent"
    except ValueError:
        sent = "ValueError"
    time.sleep(5)
    print(f"{kind}: apply_async(countdown=0.5): {sent}, {tries(f'{kind}-countdown')} tries", flush=True)
finally:
    worker.kill()
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
