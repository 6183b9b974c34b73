"""Processes and servers that are killed: whatever a publish accepted is consumed, counted by a ledger of files."""

from __future__ import annotations

import random
import signal
import time

import pytest

from kombulite import Connection, Consumer, Producer, Queue
from tests.faults.scenarios import fork_while_another_thread_publishes, needs_fork
from tests.sql.fleet import Fleet


@pytest.fixture
def fleet(database, tmp_path):
    fleet = Fleet(database, tmp_path)
    yield fleet
    fleet.close()


@pytest.mark.parametrize("kills", [5, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_consumers_are_killed_and_nothing_is_lost(fleet, kills):
    count = kills * 60
    fleet.publish(count)
    for turn in range(kills):
        if len(set(fleet.numbers("consume"))) > count - 100:
            break  # they took more than is waited for below: nothing may be left for another
        process = fleet.start("consume", turn, 60, 0)
        fleet.wait_for("consume", turn, 25)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    fleet.finish()
    consumed = fleet.numbers("consume")
    assert set(consumed) == set(range(count))
    assert len(consumed) - count <= kills * 100, "more came twice than were out when a consumer was killed"


@pytest.mark.parametrize("kills", [5, pytest.param(500, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_publishers_are_killed_and_all_that_they_noted_is_there(fleet, kills):
    for turn in range(kills):
        process = fleet.start("publish", turn, turn * 100_000, 100_000)
        fleet.wait_for("publish", turn, 10)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    fleet.finish()
    consumed = fleet.numbers("consume")
    assert set(fleet.numbers("publish")) <= set(consumed)
    assert len(consumed) == len(set(consumed))


def test_eight_processes_share_one_database(fleet):
    fleet.options = {"table_prefix": fleet.database.prefix}  # nobody is killed: no lease runs out
    publishers = [fleet.start("publish", turn, turn * 1000, 100) for turn in range(4)]
    consumers = [fleet.start("consume", turn, 3, 1) for turn in range(4)]
    assert [process.wait(120) for process in publishers + consumers] == [0] * 8
    fleet.finish()
    assert sorted(fleet.numbers("consume")) == sorted(fleet.numbers("publish"))
    assert len(fleet.numbers("publish")) == 400


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_one_of_eight_processes_is_killed_at_random_500_times(fleet):
    names = [("publish", turn) for turn in range(4)] + [("consume", turn) for turn in range(4)]
    processes, first = {}, 0
    for kill in range(500):
        for role, name in names:
            if (role, name) not in processes:
                arguments = (first, 100_000) if role == "publish" else (60, 0)
                processes[role, name] = fleet.start(role, name, *arguments)
                first += 100_000
        role, name = random.choice(names)
        done = len(fleet.numbers("publish"))
        fleet.wait_for("publish", "*", done + random.randint(1, 20))
        process = processes.pop((role, name))
        process.kill()
        process.wait(20)
        assert all(each.poll() is None for each in processes.values()), f"another process ended after kill {kill}"
    for process in processes.values():
        process.kill()
        process.wait(20)
    fleet.finish()
    assert set(fleet.numbers("publish")) <= set(fleet.numbers("consume"))


@needs_fork
def test_fork_while_another_thread_publishes(database):
    fork_while_another_thread_publishes(database.connect())


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
            fleet.wait_for("publish", "all", 200 * (turn + 1))
            own_postgresql.kill()
            own_postgresql.start()
        assert publisher.wait(120) == 0
        consumer.kill()
        consumer.wait(20)
        fleet.finish()
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


def test_messages_of_a_lost_connection_come_back_in_a_lease_though_the_clock_was_put_back(database):
    lost = database.connect(lease=0.5)
    queue = Queue("orders")(lost)
    queue.declare()
    Producer(lost).publish(1, routing_key="orders")
    assert queue.get().payload == 1
    session = lost.transport._session
    session._maintainer.stop()
    with session.use():  # as if the clock had been an hour ahead when it renewed its lease
        session.database.rows("UPDATE {p}connections SET alive_until = alive_until + 3600")
    other = database.connect(lease=0.5)
    with Consumer(other, [Queue("orders")], on_message=lambda message: message.ack()):
        other.drain_events(timeout=20)


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


def test_queue_expires_after_the_connection_of_its_last_consumer_was_lost(database):
    lost, other = database.connect(lease=0.5), database.connect(lease=0.5)
    queue = Queue("orders", expires=0.5)
    Consumer(lost.channel(), queue, on_message=lambda message: None).consume()
    lost.transport._session._maintainer.stop()
    other.connect()
    deadline = time.monotonic() + 20
    while names := [status.queue for status in other.transport.list_queues(other.default_channel.channel_id)]:
        assert names == ["orders"]
        assert time.monotonic() < deadline, "it never expires"
        time.sleep(0.05)


def test_delayed_messages_of_a_deleted_queue_are_deleted_when_they_are_due(database, monkeypatch):
    monkeypatch.setattr("kombulite.brokers.sql.topology.MAX_DELAYED_LOOKED_AT", 3)
    connection = database.connect()
    producer, session = Producer(connection), connection.transport._session
    for name, etas in (("other", [8e9]), ("gone", [8e9 + 1, 8e9 + 2, 9e9, 9e9])):
        for eta in etas:
            producer.publish(name, routing_key=name, eta=eta, declare=[Queue(name)])

    def rows(statement):
        with session.use():
            return session.database.rows(statement)

    Queue("gone")(connection).delete()
    assert sorted(rows("SELECT due FROM {p}messages")) == [(8e9,), (9e9,), (9e9,)], "of the first it deletes its own"
    rows("UPDATE {p}messages SET due = 1 WHERE due = 9e9")
    assert Queue("other")(connection).get() is None  # it looks at what is due
    session._renew()
    assert rows("SELECT due FROM {p}messages") == [(8e9,)]
