"""Waiting on an event loop: what ends it, and what is left of it."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from kombulite.brokers.base import Settings
from kombulite.brokers.memory import Transport as MemoryTransport
from kombulite.brokers.threaded import ThreadedTransport
from kombulite.brokers.waits import WaitQueue, Waits


def test_a_queue_keeps_nothing_of_waits_that_are_over():
    async def main() -> None:
        queue = WaitQueue()
        for _ in range(5):
            assert not await queue.wait(monotonic())
        cancelled = asyncio.create_task(queue.wait())
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert not queue.waiters

    asyncio.run(main())


def test_a_wait_that_is_cancelled_as_it_is_woken_leaves_that_to_the_next():
    async def main() -> None:
        queue = WaitQueue()
        first, second = [asyncio.create_task(queue.wait()) for _ in range(2)]
        await asyncio.sleep(0)
        assert queue.wake()
        first.cancel()
        assert await asyncio.wait_for(second, 20)

    asyncio.run(main())


def test_waits_have_their_deadline_on_the_next_loop_too():
    waits = Waits(timeout=3600, is_idle=lambda: True)

    async def wait(timeout: float | None, is_answered: bool) -> None:
        pending = waits.check_loop().create_future()
        if is_answered:
            asyncio.get_running_loop().call_soon(pending.set_result, None)
        await waits.wait(pending, waits.deadline(timeout), "question")

    asyncio.run(wait(0.05, True))  # its alarm is set still when its loop ends
    with pytest.raises(TimeoutError, match="question"):
        asyncio.run(asyncio.wait_for(wait(0.1, False), 20))


class InterruptedTransport(MemoryTransport):
    """A transport that notes whether its wait was interrupted."""

    was_interrupted = False

    def interrupt(self) -> None:
        self.was_interrupted = True

    def receive(self, timeout: float | None) -> tuple[()]:
        return ()


class LateTransport(ThreadedTransport):
    """A thread that is woken just as it falls asleep, by a call that it has answered before."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "_is_asleep" and value:
            self._wake()


def test_a_thread_that_is_about_to_receive_is_woken():
    async def main() -> None:
        sync = InterruptedTransport(Settings())
        LateTransport(sync, print, print)._wait_in_receive()
        assert sync.was_interrupted

    asyncio.run(main())
