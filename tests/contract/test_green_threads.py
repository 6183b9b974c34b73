"""Programs whose threads are green, by gevent or eventlet: a wait holds up nobody else."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("a thread of its own")

PROGRAM = """
import json, sys, warnings
warnings.simplefilter("ignore")  # eventlet is past its best days
patch, spawn = {
    "gevent": ("from gevent.monkey import patch_all as patch", "from gevent import spawn"),
    "eventlet": ("from eventlet import monkey_patch as patch", "from eventlet import spawn"),
}[sys.argv[1]]
exec(patch)
patch()
exec(spawn)
import time
from kombulite import Connection, Producer, Queue

url, transport, options, name = json.loads(sys.argv[2])
got, turns = [], []

def others():
    for turn in range(10):
        time.sleep(0.02)
        turns.append(turn)
    Producer(other).publish("second", routing_key=name)

def connect():
    return Connection(url, transport=transport, transport_options=options)

# Waiting lets others work. Two, since eventlet lets no two green threads wait for one socket.
with connect() as connection, connect() as other:
    queue = Queue(name, auto_delete=True)
    with connection.Consumer(queue, callbacks=[lambda body, message: (got.append(body), message.ack())]):
        connection.Producer().publish("first", routing_key=name)
        connection.drain_events(timeout=20)
        spawn(others)
        connection.drain_events(timeout=20)
        try:
            connection.drain_events(timeout=0.1)
        except TimeoutError:
            got.append(len(turns))

# Tasks that are done side by side requeue and acknowledge at the same time, while the consumer waits for more.
back, settled, failed = set(), [], []

def work(message):
    time.sleep(0.1)
    try:
        if message.payload in back:
            message.ack()
            settled.append(message.payload)
        else:
            back.add(message.payload)
            message.requeue()
    except Exception as error:
        failed.append(repr(error))

with connect() as connection:
    queue = Queue(name + "s", auto_delete=True)
    with connection.Consumer(queue, callbacks=[lambda body, message: spawn(work, message)]):
        connection.Producer().publish_many(range(5), routing_key=queue.name)
        deadline = time.monotonic() + 20
        while len(settled) + len(failed) < 5 and time.monotonic() < deadline:
            try:
                connection.drain_events(timeout=1)
            except TimeoutError:
                pass
print(json.dumps([got, sorted(settled), failed]))
"""


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_waiting_lets_others_work_and_several_settle_at_once(broker, library):
    assert run(PROGRAM, broker, library) == [["first", "second", 10], [0, 1, 2, 3, 4], []]


def run(program, broker, library):
    """What the program prints."""
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")  # not imported here: eventlet warns of each fork that other tests do
    facts = json.dumps([broker.url, broker.transport, dict(broker.transport_options), broker.name("green")])
    done = subprocess.run(
        [sys.executable, "-c", program, library, facts],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return json.loads(done.stdout)
