"""The asynchronous facade, on every kind of connection that it has: native ones, and transports that a thread runs."""

from __future__ import annotations

import asyncio
import gc
import threading
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from kombulite import aio
from kombulite.brokers.memory import Transport as MemoryTransport


class ThreadedMemory(MemoryTransport):
    """The embedded broker as one whose transport knows nothing of event loops."""

    async_transport = None


KINDS = ["memory", "memory-thread", "redis", "amqp"]


class Place:
    """A broker under test, and names that nobody else uses."""

    def __init__(self, kind: str, url: str, options: dict[str, Any]) -> None:
        self.kind, self.url, self.options = kind, url, options
        self._suffix = uuid.uuid4().hex[:12]

    def connect(self, **options: Any) -> aio.Connection:
        return aio.connect(self.url, **{**self.options, **options})

    def name(self, base: str) -> str:
        return f"{base}.{self._suffix}"


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Place:
    kind = request.param
    if kind == "memory":
        return Place(kind, "memory://", {})
    if kind == "memory-thread":
        return Place(kind, "localhost", {"transport": ThreadedMemory})
    return Place(kind, request.getfixturevalue(f"{kind}_url"), {})


def run(main: Callable[[], Coroutine[Any, Any, Any]], timeout: float = 60, debug: bool = True) -> Any:
    """Run in asyncio's debug mode; afterwards no task, no thread and no unheard error is left."""
    complaints: list[dict[str, Any]] = []
    threads = set(threading.enumerate())

    async def guarded() -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        result = await asyncio.wait_for(main(), timeout)
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"left running: {left}"
        return result

    result = asyncio.run(guarded(), debug=debug)
    gc.collect()
    assert complaints == []
    left = [each for each in set(threading.enumerate()) - threads if each.name == "kombulite aio"]
    assert left == []
    return result


async def soon(wanted: Callable[[], Awaitable[object]], timeout: float = 10) -> None:
    """Wait until something holds."""
    deadline = asyncio.get_running_loop().time() + timeout
    while not await wanted():
        assert asyncio.get_running_loop().time() < deadline, "it never held"
        await asyncio.sleep(0.01)
