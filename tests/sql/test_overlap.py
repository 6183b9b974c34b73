"""``publish_many`` of a list on PostgreSQL: a part is stored while the next is encoded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import psycopg
import pytest

from kombulite import Connection, Producer, Queue, exceptions, serialization
from tests.interrupts import Interrupts, in_another_thread
from tests.servers import Unavailable, wait_until

PART = 3  # messages that are sent together
BODIES = list(range(2 * PART + 1))


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    monkeypatch.setattr("kombulite._client.outgoing.CHUNK", PART)


@pytest.fixture(params=["postgresql"])
def database(database):
    """PostgreSQL only: SQLite runs in the program's own thread."""
    return database


@pytest.fixture
def connection(database):
    connection = database.connect()
    Queue("orders")(connection).declare()
    return connection


@pytest.fixture
def other(database):
    return database.connect()


@pytest.fixture
def admin(database):
    with psycopg.connect(database.url, autocommit=True) as admin:
        yield admin


@pytest.fixture
def encoding() -> Iterator[dict[Any, Callable[[], object]]]:
    """What is done when a body is encoded, by the body, by the serializer ``watched``."""
    actions: dict[Any, Callable[[], object]] = {}

    def encode(body: Any) -> str:
        actions.get(body, lambda: None)()
        return json.dumps(body)

    serialization.register("watched", encode, json.loads, "application/x-watched", "utf-8")
    yield actions
    serialization.unregister("watched")


def publish(connection: Connection, bodies: Any = BODIES) -> int:
    return Producer(connection, routing_key="orders", serializer="watched").publish_many(bodies)


def stored(connection: Connection) -> list[Any]:
    """All that is in the queue, in its order."""
    queue = Queue("orders")(connection)
    return [json.loads(message.body) for message in iter(lambda: queue.get(no_ack=True), None)]


def is_under_way(connection: Connection) -> bool:
    return connection.transport._database._wire._pending is not None


@pytest.mark.parametrize("bodies", [BODIES, tuple(BODIES), range(len(BODIES))], ids=["list", "tuple", "range"])
def test_part_is_under_way_while_the_next_is_encoded(connection, encoding, bodies):
    seen = []
    encoding.update({body: lambda: seen.append(is_under_way(connection)) for body in BODIES})
    assert publish(connection, bodies) == len(BODIES)
    assert not is_under_way(connection)
    assert seen == [False] * PART + [True] * (len(BODIES) - PART)
    assert stored(connection) == BODIES


def test_nothing_is_under_way_while_code_of_the_application_runs(connection, encoding):
    def bodies():
        for body in BODIES:
            assert not is_under_way(connection)
            yield body

    assert publish(connection, bodies()) == len(BODIES)
    assert stored(connection) == BODIES


def test_connection_is_used_meanwhile(connection, encoding):
    queue, taken = Queue("orders")(connection), []
    encoding[PART + 1] = lambda: taken.append(json.loads(queue.get(no_ack=True).body))
    encoding[2 * PART] = lambda: queue.queue_declare(passive=True)
    assert publish(connection) == len(BODIES)
    assert taken == BODIES[:1]
    assert stored(connection) == BODIES[1:]


def test_topology_that_changes_meanwhile(connection, other, encoding):
    for name, body in {"first": 0, "second": PART, "third": 2 * PART}.items():
        encoding[body] = Queue(name)(other).declare
    assert publish(connection) == len(BODIES)
    assert stored(connection) == BODIES


def test_queue_that_is_deleted_meanwhile_is_not_put_into(connection, other, admin, database, encoding):
    """Each part goes where it has to go when it is stored, as with ``publish``: a queue is made for it."""
    prefix, delete = database.prefix, Queue("orders")(other).delete

    def delete_what_is_stored() -> None:
        """Else the part under way may be stored behind the deletion, until somebody clears that away."""
        wait_until(lambda: admin.execute(f"SELECT count(*) FROM {prefix}messages").fetchone() == (PART,), 20, "nothing")
        delete()

    encoding[PART], encoding[PART + 1] = delete_what_is_stored, delete
    assert publish(connection) == len(BODIES)
    orphans = f"SELECT id FROM {prefix}messages WHERE queue NOT IN (SELECT id FROM {prefix}queues)"
    assert admin.execute(orphans).fetchall() == []
    assert stored(connection) == BODIES[PART:]


def test_body_that_cannot_be_encoded_comes_behind_what_was_under_way(connection, encoding):
    def refuse() -> None:
        raise exceptions.EncodeError("none")

    encoding[PART + 1] = refuse
    with pytest.raises(exceptions.BatchPublishError) as caught:
        publish(connection)
    assert [index for index, _ in caught.value.refused] == [PART + 1]
    assert stored(connection) == BODIES[: PART + 1]


def test_error_amid_encoding_waits_for_what_was_under_way(connection, encoding):
    def stop() -> None:
        raise KeyboardInterrupt

    encoding[PART + 1] = stop
    with pytest.raises(KeyboardInterrupt):
        publish(connection)
    assert not is_under_way(connection)
    assert stored(connection) == BODIES[:PART]


def test_statement_that_the_server_refuses(connection, admin, database, encoding):
    admin.execute(f"ALTER TABLE {database.prefix}messages ADD CHECK (body <> '{PART + 1}')")
    with pytest.raises(exceptions.ChannelError, match="violates check constraint"):
        publish(connection, [*BODIES, *BODIES])
    assert connection.connected
    assert stored(connection) == BODIES[:PART]


def test_connection_that_is_lost_meanwhile(connection, other, admin, encoding):
    backend = connection.transport._database._wire.backend
    encoding[PART + 1] = lambda: admin.execute("SELECT pg_terminate_backend(%s, 20000)", (backend,))
    with pytest.raises(exceptions.RecoverableConnectionError):
        publish(connection)
    assert not connection.connected
    Producer(connection, routing_key="orders").publish(99, retry=True)
    assert stored(other) in ([*BODIES[:PART], 99], [99])  # it may have ended before it stored them


def test_connection_that_is_closed_meanwhile(connection, other, encoding):
    encoding[PART + 1] = connection.release
    with pytest.raises(exceptions.RecoverableConnectionError):
        publish(connection)
    assert stored(other) == BODIES[:PART]


def test_signals_lose_and_double_nothing(connection, other, encoding, tmp_path):
    try:
        interrupts = Interrupts(tmp_path)
    except Unavailable as error:
        pytest.skip(str(error))
    runs, done = [], []
    numbers = iter(range(1 << 30))

    def bodies() -> list[int]:
        runs.append([next(numbers) for _ in BODIES])
        return runs[-1]

    def publish_again() -> None:
        publish(connection, bodies())

    publish_again()
    for is_interrupted in interrupts.at_each(publish_again, 97):
        if not is_interrupted:
            done.append(runs[-1])
        in_another_thread(lambda: connection.ensure_connection() and publish(connection, bodies()))
        done.append(runs[-1])
    found = stored(other)
    assert set(chain(*done)) <= set(found)
    assert max(Counter(found).values()) == 1
    places = {body: place for place, body in enumerate(found)}
    for run in runs:  # whole parts, from the first on, in their order
        there = [body for body in run if body in places]
        assert there == run[: len(there)]
        assert len(there) in (0, PART, 2 * PART, len(run))
        assert [places[body] for body in there] == sorted(places[body] for body in there)
