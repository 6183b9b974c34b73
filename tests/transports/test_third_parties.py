"""Packages that were written for kombu, each in a process where kombulite stands in kombu's place."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid

import pytest

#: A round: what is published is consumed, requeued, and settled one at a time.
ROUND = """
import sys, time
from kombu import Connection, Exchange, Queue
{imports}
name = sys.argv[2]
queue = Queue(name, Exchange(name), routing_key="k")
with {connect} as connection:
    producer = connection.Producer(exchange=queue.exchange, routing_key="k")
    for number in range(3):
        producer.publish({{"n": number}}, declare=[queue], retry=True)
    got, requeued = [], []

    def receive(body, message):
        if body["n"] == 1 and not requeued:
            requeued.append(body)
            message.requeue()
        else:
            got.append(body["n"])
            message.ack()

    with connection.Consumer(queue, callbacks=[receive]):
        while len(got) < 3:
            connection.drain_events(timeout=20)
    assert sorted(got) == [0, 1, 2], got
    bound = queue(connection.channel())
    producer.publish({{"n": 9}})
    # A broker may serve a get on one channel before a publish on another.
    ends = time.monotonic() + 20
    while (message := bound.get()) is None and time.monotonic() < ends:
        time.sleep(0.01)
    assert message.payload == {{"n": 9}}
    message.reject()
    assert bound.get() is None
    simple = connection.SimpleQueue(name + "s")
    simple.put("x")
    message = simple.get(timeout=20)
    assert message.payload == "x"
    message.ack()
print(Connection.__module__, type(connection.transport).__module__)
"""


def run(program, *arguments):
    environment = {**os.environ, "KOMBULITE_AS_KOMBU": "1"}
    command = [sys.executable, "-W", "ignore", "-c", program, *arguments, f"q{uuid.uuid4().hex[:12]}"]
    done = subprocess.run(command, check=False, timeout=100, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_kombu_pgmq(pgmq):
    pytest.importorskip("kombu_pgmq")
    # A requeued message comes again when its lease has ended.
    options = {"check_extension": False, "polling_interval": 0.05, "visibility_timeout": 1}
    program = ROUND.format(imports="import kombu_pgmq", connect=f"Connection(sys.argv[1], transport_options={options})")
    url = pgmq.replace("postgresql://kombulite@", "pgmq://kombulite:unused@")
    assert run(program, url) == ["kombulite.connection", "kombu_pgmq.transport"]


def test_kombu_pyamqp_threadsafe(amqp_url):
    pytest.importorskip("kombu_pyamqp_threadsafe")
    program = ROUND.format(
        imports="from kombu_pyamqp_threadsafe import KombuConnection", connect="KombuConnection(sys.argv[1])"
    )
    assert run(program, amqp_url) == ["kombulite.connection", "kombu_pyamqp_threadsafe"]


def test_threads_share_a_connection_of_kombu_pyamqp_threadsafe(amqp_url):
    pytest.importorskip("kombu_pyamqp_threadsafe")
    program = """
import sys
from concurrent.futures import ThreadPoolExecutor
from kombu import Queue
from kombu_pyamqp_threadsafe import KombuConnection

with KombuConnection(sys.argv[1]) as connection:
    queue = Queue(sys.argv[2])
    queue(connection.default_channel).declare()

    def publish(number):
        with connection.default_channel_pool.acquire() as channel:
            connection.Producer(channel).publish(number, routing_key=queue.name)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(publish, range(40)))
    got = []
    with connection.Consumer(queue, callbacks=[lambda body, message: (got.append(body), message.ack())]):
        while len(got) < 40:
            connection.drain_events(timeout=20)
    assert sorted(got) == list(range(40)), got
"""
    run(program, amqp_url)
