"""Processes and servers that are killed: whatever a publish accepted is consumed, counted by a ledger of files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kombulite import Connection, Consumer, Producer, Queue

WORKER = Path(__file__).with_name("worker.py")


class Fleet:
    """Processes of ``worker.py`` on one database."""

    def __init__(self, database, tmp_path, **options):
        self.database, self.folder = database, tmp_path
        self.options = json.dumps({"table_prefix": database.prefix, "lease": 1, **options})
        self.processes = []

    def start(self, role, name, first, count):
        log = self.folder / f"{role}.{name}"
        command = [sys.executable, str(WORKER), role, self.database.url, self.options, str(log), str(first), str(count)]
        process = subprocess.Popen(command)
        self.processes.append(process)
        return process

    def numbers(self, role):
        found = [line for log in self.folder.glob(f"{role}.*") for line in log.read_text().split("\n")[:-1]]
        return [int(line) for line in found]

    def close(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(20)


@pytest.fixture
def fleet(database, tmp_path):
    fleet = Fleet(database, tmp_path)
    yield fleet
    fleet.close()


def published(fleet, count):
    """Publish numbers with one process; returns when all are accepted."""
    assert fleet.start("publish", "all", 0, count).wait(120) == 0
    assert len(fleet.numbers("publish")) == count


def finish(fleet):
    """Consume what is left, the leases of the dead being over."""
    assert fleet.start("consume", "last", 3, 1).wait(120) == 0


@pytest.mark.parametrize("kills", [5, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_consumers_are_killed_and_nothing_is_lost(fleet, kills):
    count = kills * 60
    published(fleet, count)
    for turn in range(kills):
        if len(set(fleet.numbers("consume"))) > count - 100:
            break  # they took more than is waited for below: nothing may be left for another
        process = fleet.start("consume", turn, 60, 0)
        log = fleet.folder / f"consume.{turn}"
        deadline = time.monotonic() + 60
        while (not log.exists() or log.read_text().count("\n") < 25) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    finish(fleet)
    consumed = fleet.numbers("consume")
    assert set(consumed) == set(range(count))
    assert len(consumed) - count <= kills * 100, "more came twice than were out when a consumer was killed"


@pytest.mark.parametrize("kills", [5, pytest.param(500, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_publishers_are_killed_and_all_that_they_noted_is_there(fleet, kills):
    for turn in range(kills):
        process = fleet.start("publish", turn, turn * 100_000, 100_000)
        log = fleet.folder / f"publish.{turn}"
        deadline = time.monotonic() + 60
        while (not log.exists() or log.read_text().count("\n") < 10) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    finish(fleet)
    consumed = fleet.numbers("consume")
    assert set(fleet.numbers("publish")) <= set(consumed)
    assert len(consumed) == len(set(consumed))


def test_eight_processes_share_one_database(fleet):
    fleet.options = json.dumps({"table_prefix": fleet.database.prefix})  # nobody is killed: no lease runs out
    publishers = [fleet.start("publish", turn, turn * 1000, 100) for turn in range(4)]
    consumers = [fleet.start("consume", turn, 3, 1) for turn in range(4)]
    assert [process.wait(120) for process in publishers + consumers] == [0] * 8
    finish(fleet)
    assert sorted(fleet.numbers("consume")) == sorted(fleet.numbers("publish"))
    assert len(fleet.numbers("publish")) == 400


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_server_is_killed_under_load(own_postgresql, tmp_path, kills):
    class Database:
        url, prefix = own_postgresql.url, "k_"

    fleet = Fleet(Database, tmp_path)
    try:
        with Connection(own_postgresql.url, transport_options={"table_prefix": "k_"}) as connection:
            Queue("numbers")(connection).declare()
        publisher = fleet.start("publish", "all", 0, 400 * kills)
        consumer = fleet.start("consume", "all", 5, 0)
        for turn in range(kills):
            deadline = time.monotonic() + 60
            while len(fleet.numbers("publish")) < 200 * (turn + 1) and time.monotonic() < deadline:
                time.sleep(0.01)
            own_postgresql.kill()
            own_postgresql.start()
        assert publisher.wait(120) == 0
        consumer.kill()
        consumer.wait(20)
        finish(fleet)
        assert set(fleet.numbers("publish")) <= set(fleet.numbers("consume"))
    finally:
        fleet.close()


def test_messages_of_a_lost_connection_come_back_in_their_order_and_count(database):
    lost = database.connect(lease=0.5)
    queue = Queue("orders")(lost)
    queue.declare()
    producer = Producer(lost)
    for number in range(5):
        producer.publish(number, routing_key="orders")
    assert [queue.get().payload for _ in range(3)] == [0, 1, 2]
    lost.transport._session._maintainer.stop()  # as if the process was stopped: its lease is not renewed any more
    other = database.connect(lease=0.5)
    got = []
    with Consumer(other, [Queue("orders")], on_message=got.append):
        while len(got) < 5:
            other.drain_events(timeout=10)
    assert [message.payload for message in got[-3:]] == [0, 1, 2]
    assert [message.payload for message in got[:2]] == [3, 4]
    assert [message.delivery_info["redelivered"] for message in got] == [False, False, True, True, True]
    assert [message.delivery_count for message in got] == [0, 0, 1, 1, 1]


def test_connection_that_lost_its_lease_says_so_and_goes_on(database):
    connection = database.connect(lease=0.5)
    queue = Queue("orders")(connection)
    queue.declare()
    Producer(connection).publish(1, routing_key="orders")
    message = queue.get()
    connection.transport._session._maintainer.stop()
    other = database.connect(lease=0.5)
    again = None
    deadline = time.monotonic() + 20
    while again is None and time.monotonic() < deadline:
        again = Queue("orders")(other).get()
        time.sleep(0.05)
    message.ack()  # too late: it is the other's now
    assert Queue("orders")(other).queue_declare(passive=True).message_count == 0
    again.requeue()
    assert Queue("orders")(other).get().payload == 1
