"""Connections that are cut after every byte of a conversation with PostgreSQL, from the login to the last ack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate, repeat
from random import randint
from time import monotonic
from uuid import uuid4

import pytest

from kombulite import Connection, Consumer, Producer, Queue, exceptions
from tests.proxy import Cut, Direction, Proxy

MAX_BYTES = 20_000  # more than a conversation takes


class Ledger:
    """What was published, and what became of it."""

    def __init__(self) -> None:
        self.accepted: set[str] = set()
        self.unknown: set[str] = set()  # the connection was lost before the answer
        self.acknowledged: set[str] = set()


@pytest.fixture(params=[pytest.param(1, id="every byte", marks=pytest.mark.soak), pytest.param(2500, id="some bytes")])
def lengths(request: pytest.FixtureRequest) -> Iterator[int]:
    """After how many bytes to cut; not more than so many are passed over."""
    return accumulate(randint(1, step) for step in repeat(request.param))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("direction", Direction, ids=lambda direction: direction.value)
def test_nothing_is_lost_by_a_cut(postgresql_url, lengths, direction):
    options = {"table_prefix": f"c{uuid4().hex[:8]}_", "lease": 1}
    ledger, length, is_cut = Ledger(), 0, True
    with Connection(postgresql_url, transport_options=options) as other, Proxy(other.port) as proxy:
        Queue("orders")(other).declare()
        while is_cut:
            length = next(lengths)
            assert length < MAX_BYTES
            proxy.cut = Cut(direction, length)
            is_cut = not converse(Connection(proxy.url(postgresql_url), transport_options=options), length, ledger)
        left = rest(other)
    assert len(left) == len(set(left)), "a message is there twice"
    # One that was acknowledged comes again where its ack was collected with others, and the lease ran out before.
    assert set(left) <= ledger.accepted | ledger.unknown | ledger.acknowledged
    assert ledger.accepted <= ledger.acknowledged | set(left)
    assert ledger.acknowledged


def converse(connection: Connection, number: int, ledger: Ledger) -> bool:
    """Publish, consume and acknowledge over a connection; returns whether it was not cut."""

    def publish(names: list[str]) -> None:
        ledger.unknown.update(names)
        if len(names) == 1:
            producer.publish(names[0])
        else:
            producer.publish_many(names)
        ledger.unknown.difference_update(names)
        ledger.accepted.update(names)

    acknowledging: list[str] = []

    def take(body: str, message: object) -> None:
        acknowledging.append(body)
        message.ack()

    try:
        connection.connect()
        producer = Producer(connection, routing_key="orders")
        Queue("orders")(connection).declare()
        publish([f"single {number}"])
        publish([f"first {number}", f"second {number}"])
        with Consumer(connection, [Queue("orders")], callbacks=[take], prefetch_count=2):
            while len(acknowledging) < 3:
                connection.drain_events(timeout=20)
        connection.release()
    except (exceptions.ConnectionError, exceptions.OperationalError):
        with suppress(exceptions.AMQPError):
            connection.release()
        # An ack is committed when it returns, or it was collected with others and may come again.
        ledger.unknown.update(acknowledging)
        ledger.accepted.difference_update(acknowledging)
        return False
    ledger.acknowledged.update(acknowledging)
    return True


def rest(connection: Connection) -> list[str]:
    """Return what is in the queue, also what a lost connection had claimed."""
    found: list[str] = []
    deadline = monotonic() + 30
    with Consumer(connection, [Queue("orders")], callbacks=[lambda body, message: (found.append(body), message.ack())]):
        while any(status.message_count or status.unacked for status in connection.transport.list_queues(1)):
            assert monotonic() < deadline, "not all comes back"
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
    return found
