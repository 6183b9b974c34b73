"""Connections that are cut after every byte of a conversation with PostgreSQL, from the login to the last ack."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from itertools import accumulate, repeat
from random import randint
from time import monotonic
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from kombulite import Connection, Consumer, Producer, Queue, aio, exceptions
from tests.proxy import Cut, Direction, Proxy

MAX_BYTES = 20_000  # more than a conversation takes
UNCUT = 1 << 30  # bytes
MAX_SILENCE = 60  # seconds until a message comes that is in the queue: a lease takes 1, and a statement 30 at most
MAX_REPORTED = 20  # messages
LOST = (exceptions.ConnectionError, exceptions.OperationalError, psycopg.OperationalError)


class Ledger:
    """What was published, and what became of it."""

    def __init__(self) -> None:
        self.accepted: set[str] = set()
        self.unknown: set[str] = set()  # the connection was lost before the answer
        self.acknowledged: set[str] = set()

    def accept(self, names: list[str]) -> None:
        self.unknown.difference_update(names)
        self.accepted.update(names)


@pytest.fixture(params=[pytest.param(1, id="every byte", marks=pytest.mark.soak), pytest.param(2500, id="some bytes")])
def lengths(request: pytest.FixtureRequest) -> Iterator[int]:
    """After how many bytes to cut; not more than so many are passed over."""
    return accumulate(randint(1, step) for step in repeat(request.param))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("direction", Direction, ids=lambda direction: direction.value)
def test_nothing_is_lost_by_a_cut(postgresql_url, lengths, direction, monkeypatch):
    monkeypatch.setattr("kombulite._client.outgoing.CHUNK", 2)  # one part is under way while the next is encoded
    options = {"table_prefix": f"c{uuid4().hex[:8]}_", "lease": 1}
    ledger, length, is_cut = Ledger(), 0, True
    with Connection(postgresql_url, transport_options=options) as other, Proxy(other.port) as proxy:
        Queue("orders")(other).declare()
        while is_cut:
            length = next(lengths)
            assert length < MAX_BYTES
            proxy.cut = Cut(direction, length)
            is_cut = not converse(proxy.url(postgresql_url), options, length, ledger)
    check(ledger, rest(postgresql_url, options, ledger))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("direction", Direction, ids=lambda direction: direction.value)
@pytest.mark.parametrize("before", [0, 1, 2], ids=["the connection", "the transaction of via", "the listener"])
def test_nothing_is_lost_by_a_cut_on_an_event_loop(postgresql_url, lengths, direction, before):
    """One of three connections is cut, those after it are not: the program goes on by itself to its end."""
    options = {"table_prefix": f"c{uuid4().hex[:8]}_", "lease": 1}
    ledger, taken = Ledger(), 0
    with Connection(postgresql_url, transport_options=options) as other, Proxy(other.port) as proxy:
        Queue("orders")(other).declare()
        for length in lengths:
            cut = Cut(direction, length)
            proxy.cuts, taken = iter([Cut(direction, UNCUT)] * before + [cut]), proxy.taken
            url = proxy.url(postgresql_url)
            asyncio.run(asyncio.wait_for(converse_on_loop(url, options, length, ledger), 60))
            if proxy.taken - taken == 3:  # nothing was opened anew: the cut was behind the end
                break
            assert length < MAX_BYTES
    check(ledger, rest(postgresql_url, options, ledger))


def test_call_that_was_done_before_the_connection_was_lost_is_answered(tmp_path):
    async def work() -> Any:
        async with aio.connect(f"sqlite:///{tmp_path}/messages.db") as connection:
            await connection.producer().publish(1, "orders", declare=[Queue("orders")])
            transport: Any = connection.session.transport

            def lose(timeout: float) -> None:
                transport.sync.collect()
                raise exceptions.RecoverableConnectionError("lost")

            transport.sync.receive = lose  # it looks for messages once the consumer has started
            async with AsyncExitStack() as stack:
                messages = await insist(lambda: stack.enter_async_context(connection.consume("orders")))
                return (await messages.next(timeout=20)).payload

    assert asyncio.run(work()) == 1


def check(ledger: Ledger, left: list[str]) -> None:
    assert len(left) == len(set(left)), "a message is there twice"
    # One that was acknowledged comes again where its ack was collected with others, and the lease ran out before.
    assert set(left) <= ledger.accepted | ledger.unknown | ledger.acknowledged
    assert ledger.accepted <= ledger.acknowledged | set(left)
    assert ledger.acknowledged


def converse(url: str, options: dict[str, Any], number: int, ledger: Ledger) -> bool:
    """Publish, consume and acknowledge over a connection; returns whether it was not cut."""
    connection = Connection(url, transport_options=options)

    def publish(names: list[str]) -> None:
        ledger.unknown.update(names)
        if len(names) == 1:
            producer.publish(names[0])
        else:
            producer.publish_many(names)
        ledger.accept(names)

    def publish_via(name: str) -> None:
        ledger.unknown.add(name)
        with psycopg.connect(url) as application:
            producer.publish(name, via=application)
        ledger.accept([name])

    acknowledging: list[str] = []

    def take(body: str, message: object) -> None:
        acknowledging.append(body)
        message.ack()

    try:
        connection.ensure_connection(max_retries=0)
        producer = Producer(connection, routing_key="orders")
        Queue("orders")(connection).declare()
        publish([f"single {number}"])
        publish([f"first {number}", f"second {number}", f"third {number}"])
        publish_via(f"via {number}")
        with Consumer(connection, [Queue("orders")], callbacks=[take], prefetch_count=2):
            while len(acknowledging) < 5:
                connection.drain_events(timeout=20)
        connection.release()
    except LOST:
        with suppress(exceptions.AMQPError):
            connection.release()
        # An ack is committed when it returns, or it was collected with others and may come again.
        ledger.unknown.update(acknowledging)
        ledger.accepted.difference_update(acknowledging)
        return False
    ledger.acknowledged.update(acknowledging)
    return True


async def converse_on_loop(url: str, options: dict[str, Any], number: int, ledger: Ledger) -> None:
    """Publish, consume and acknowledge, again where a connection was lost; returns when all came that was accepted."""
    names = [f"{kind} {number}" for kind in ("single", "first", "second", "third", "via")]
    single, *many, via = names
    connection = aio.connect(url, transport_options=options)
    async with AsyncExitStack() as stack:
        await insist(lambda: stack.enter_async_context(connection))
        producer = connection.producer(routing_key="orders")

        async def publish_via() -> None:
            async with await psycopg.AsyncConnection.connect(url) as application:
                await producer.publish(via, via=application)

        await insist(lambda: connection.declare(Queue("orders")))
        await insist(lambda: producer.publish(single, retry=True))
        await insist(lambda: producer.publish_many(many))
        await insist(publish_via)
        ledger.accept(names)
        messages = await insist(lambda: stack.enter_async_context(connection.consume("orders", prefetch=2)))
        while not ledger.acknowledged.issuperset(names):
            message = await messages.next(timeout=30)
            assert message is not None, "it does not come"
            ledger.acknowledged.add(message.payload)
            with suppress(exceptions.RecoverableConnectionError):
                await message.ack()


async def insist(call: Callable[[], Awaitable[Any]]) -> Any:
    """Do something again if a connection was lost."""
    for _ in range(3):  # what comes at once after the loss may be lost with it
        with suppress(*LOST):
            return await call()
    return await call()


def rest(url: str, options: dict[str, Any], ledger: Ledger) -> list[str]:
    """Return what is in the queue, also what a lost connection had claimed.

    It takes as long as messages come. No other connection is open: it would end this one's lease on a slow machine.
    """
    found: Counter[str] = Counter()
    prefix = options["table_prefix"]

    def take(body: str, message: Any) -> None:
        found[body] += 1
        message.ack()

    with (
        psycopg.connect(url, autocommit=True) as admin,
        Connection(url, transport_options=options) as connection,
        Consumer(connection, [Queue("orders")], callbacks=[take]),
    ):
        deadline = monotonic() + MAX_SILENCE
        while True:
            before = len(found)
            try:
                connection.drain_events(timeout=0.1)
            except TimeoutError:  # only now: to look takes the longer the more there is
                if admin.execute(f"SELECT 1 FROM {prefix}messages LIMIT 1").fetchone() is None:
                    return list(found.elements())
            if len(found) > before:
                deadline = monotonic() + MAX_SILENCE
            elif monotonic() > deadline:
                missing = ledger.accepted - ledger.acknowledged - found.keys()
                pytest.fail(f"{len(found)} came, then none for {MAX_SILENCE} s. {report(admin, prefix, missing)}")


def report(admin: psycopg.Connection, prefix: str, missing: set[str]) -> str:
    """Return which messages are missing, which are in the table, and whose they are."""
    rows = admin.execute(
        "SELECT message.id, convert_from(body, 'UTF8'), deliveries, due, owner,"
        f" alive_until - extract(epoch FROM clock_timestamp()) FROM {prefix}messages AS message"
        f" LEFT JOIN {prefix}connections AS connection ON connection.id = owner ORDER BY message.id"
    ).fetchall()
    lines = [
        f"{len(missing)} of those accepted are missing: {sorted(missing)[:MAX_REPORTED]}",
        f"{len(rows)} are in the table, {len(missing.intersection(row[1] for row in rows))} of the missing among them:",
    ]
    for number, body, deliveries, due, owner, seconds in rows[:MAX_REPORTED]:
        lease = "without a lease" if seconds is None else f"whose lease ends in {seconds:.1f} s"
        state = "waiting" if owner is None else f"owned by connection {owner} {lease}"
        lines.append(f"{body!r} (row {number}, delivered {deliveries} times, due {due}): {state}")
    return "\n".join(lines)
