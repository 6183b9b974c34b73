"""Streams on an event loop: consumers that come back go on where they were, and offsets are kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kombulite import Connection, Queue, Stream, aio
from kombulite.contrib.stream_offsets import OffsetFile, OffsetQueue
from tests.aio.conftest import Place, run

MESSAGES = 20
TIMEOUT = 20.0  # seconds


@pytest.fixture
def stream() -> Queue:
    return Queue(Place("", "", {}).name("stream"), kind=Stream(offset="first"))


async def add(connection: aio.Connection, stream: Queue, first: int) -> None:
    await connection.producer().publish_many(range(first, first + MESSAGES), stream.name)


async def read(messages: aio.Messages, count: int, acks: bool = True) -> list[int]:
    found = []
    while len(found) < count:
        message = await messages.next(timeout=TIMEOUT)
        assert message is not None
        assert message.stream_offset is not None
        found.append(message.payload)
        if acks:
            await message.ack()
    return found


def test_a_consumer_that_comes_back_goes_on_behind_what_it_acknowledged(amqp_url, stream):
    async def main() -> None:
        async with aio.connect(amqp_url) as connection, aio.connect(amqp_url) as other:
            await connection.declare(stream)
            await add(other, stream, 0)
            async with connection.consume(stream, prefetch=10) as messages:
                assert await read(messages, 15) == list(range(15))
                assert messages.stream_offsets == {stream.name: 15}
                assert await read(messages, 3, acks=False) == [15, 16, 17]
                await add(other, stream, MESSAGES)
                connection.session.transport.abort()  # as if it was lost
                connection.session._lost(connection.session.transport, ConnectionResetError("the test cut it"))
                assert await read(messages, 25) == list(range(15, 40))
            await other.delete(stream)

    run(main)


def test_one_that_has_had_nothing_yet_gets_what_comes_meanwhile(amqp_url, stream):
    async def main() -> None:
        async with aio.connect(amqp_url) as connection, aio.connect(amqp_url) as other:
            later = Queue(stream.name, kind=Stream(offset="next"))
            await other.declare(stream)
            async with connection.consume(later, prefetch=10) as messages:
                connection.session.transport.abort()
                await add(other, stream, 0)
                connection.session._lost(connection.session.transport, ConnectionResetError("the test cut it"))
                assert await read(messages, MESSAGES) == list(range(MESSAGES))
            await other.delete(stream)

    run(main)


@pytest.mark.parametrize("kind", ["file", "queue"])
def test_offsets_are_kept_for_the_next_program(amqp_url, stream, tmp_path: Path, kind):
    place = f"{stream.name}.offsets"

    def store() -> OffsetFile | OffsetQueue:
        return OffsetFile(tmp_path / "offsets") if kind == "file" else OffsetQueue(Connection(amqp_url), place)

    async def main() -> None:
        for turn in range(3):
            async with aio.connect(amqp_url) as connection:
                await connection.declare(stream)
                await add(connection, stream, turn * MESSAGES)
                async with connection.consume(stream, prefetch=10, offsets=store()) as messages:
                    expected = range(turn * MESSAGES, (turn + 1) * MESSAGES)
                    assert await read(messages, MESSAGES) == list(expected)
        assert store().load() == {stream.name: 3 * MESSAGES}
        async with aio.connect(amqp_url) as connection:
            await connection.delete(stream)
            await connection.delete(Queue(place))

    run(main)


class StuckStore:
    """A store of offsets that does not return while it is stuck."""

    def __init__(self) -> None:
        self.is_free = threading.Event()
        self.is_free.set()
        self.saved: dict[str, int] = {}

    def load(self) -> Mapping[str, int]:
        self.is_free.wait(TIMEOUT)
        return {"stream": 1}

    def save(self, offsets: Mapping[str, int]) -> None:
        self.is_free.wait(TIMEOUT)
        self.saved = dict(offsets)


@pytest.fixture
def store() -> Iterator[StuckStore]:
    store = StuckStore()
    yield store
    store.is_free.set()


@pytest.mark.parametrize("verb", ["load", "save"])
def test_a_store_that_is_stuck_ends_each_wait_by_its_deadline(store, verb):
    name = Place("", "", {}).name("q")

    async def main() -> None:
        async with aio.connect("memory://") as connection:
            connection.session.waits.timeout = 0.3
            messages = connection.consume(name, offsets=store)
            if verb == "load":
                store.is_free.clear()
                with pytest.raises(TimeoutError, match="load offsets"):
                    await messages.__aenter__()
            else:
                await messages.__aenter__()
                messages._positions.receive(next(iter(messages._names)), 1, 7, no_ack=True)
                store.is_free.clear()
                with pytest.raises(TimeoutError, match="save offsets"):
                    await messages.__aexit__()
            store.is_free.set()

    run(main)
    assert store.saved == ({} if verb == "load" else {"stream": 1, name: 8})  # the thread has gone on
