"""The asynchronous facade, on every kind of connection that it has: native ones, and transports that a thread runs."""

from __future__ import annotations

import asyncio
import gc
import threading
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from queue import Empty
from typing import Any, ClassVar

import pytest

from kombulite import aio
from kombulite.brokers.memory import Transport as MemoryTransport
from kombulite.transport import virtual


class ThreadedMemory(MemoryTransport):
    """The embedded broker as one whose transport knows nothing of event loops."""

    async_transport = None


class KombuStyle(virtual.Transport):
    """A transport as others write them, against kombu's interface."""

    class Channel(virtual.Channel):
        queues: ClassVar[dict[str, deque[Any]]] = {}

        def _queue(self, name: str) -> deque[Any]:
            return self.queues.setdefault(name, deque())

        def _has_queue(self, queue: str, **kwargs: Any) -> bool:
            return queue in self.queues

        def _new_queue(self, queue: str, **kwargs: Any) -> None:
            self._queue(queue)

        def _get(self, queue: str, timeout: float | None = None) -> Any:
            try:
                return self._queue(queue).popleft()
            except IndexError:
                raise Empty from None

        def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
            self._queue(queue).append(message)

        def _size(self, queue: str) -> int:
            return len(self._queue(queue))

        def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
            self.queues.pop(queue, None)

        def _purge(self, queue: str) -> int:
            size = len(self._queue(queue))
            self._queue(queue).clear()
            return size

    polling_interval = 0.01
    global_state = virtual.BrokerState()
    driver_type = driver_name = "others"


#: Further transports that a thread runs; the soak has them.
SOAKED = [pytest.param(kind, marks=pytest.mark.soak) for kind in ("cluster", "postgresql", "filesystem")]
KINDS = ["memory", "memory-thread", "kombu-style", "redis", "amqp", "sqlite", *SOAKED]


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
    if kind == "kombu-style":
        return Place(kind, "localhost", {"transport": KombuStyle})
    if kind == "memory-thread":
        return Place(kind, "localhost", {"transport": ThreadedMemory})
    if kind == "sqlite":
        return Place(kind, f"sqlite:///{request.getfixturevalue('tmp_path')}/messages.db", {})
    if kind == "filesystem":
        return Place(kind, "filesystem://", {"transport_options": request.getfixturevalue("folders")})
    return Place(kind, request.getfixturevalue(f"{kind}_url"), {})


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Any]:
    """Options of the filesystem transport."""
    shared = tmp_path / "messages"
    shared.mkdir()
    control = str(tmp_path / "control")
    return {"data_folder_in": str(shared), "data_folder_out": str(shared), "control_folder": control, "fsync": False}


@pytest.fixture
def memory() -> Place:
    """The embedded broker."""
    return Place("memory", "memory://", {})


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
    left = [each for each in set(threading.enumerate()) - threads if each.name == "kombulite-aio"]
    assert left == []
    return result


async def soon(wanted: Callable[[], Awaitable[object]], timeout: float = 20) -> None:
    """Wait until something holds."""
    deadline = asyncio.get_running_loop().time() + timeout
    while not await wanted():
        assert asyncio.get_running_loop().time() < deadline, "it never held"
        await asyncio.sleep(0.01)
