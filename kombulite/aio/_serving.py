"""Handling messages: so many at a time, in order where that is asked for, to a clean end."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from logging import getLogger
from typing import Any

from kombulite.aio._messages import Message, Messages, OnError

logger = getLogger("kombulite.aio")


class Server:
    """Workers that handle messages. With a ``key``, one worker handles all of a key that are there."""

    def __init__(
        self,
        handler: Callable[[Message], Awaitable[object]],
        concurrency: int,
        key: Callable[[Message], Any] | None,
        on_error: OnError,
        grace: float,
    ) -> None:
        self._handler = handler
        self._concurrency = concurrency
        self._key = key
        self._on_error = on_error
        self._grace = grace
        self._following: dict[Any, deque[Message]] = {}  # by key: what waits for the message that is being handled
        self._is_ending = False

    async def run(self, messages: Messages, stop: asyncio.Event | None, signals: Sequence[int]) -> None:
        """Handle messages until the end. Raises what consuming ended with, if it was not asked to end."""
        stop = asyncio.Event() if stop is None else stop
        work = self._work if self._key is None else self._work_in_order
        workers = [asyncio.create_task(work(messages)) for _ in range(self._concurrency)]
        stopped = asyncio.create_task(stop.wait())
        try:
            with _ending_on(signals, stop):
                await asyncio.wait([stopped, *workers], return_when=asyncio.FIRST_COMPLETED)
            self._is_ending = True
            if stopped.done():
                await messages.stop()
                await asyncio.wait(workers, timeout=self._grace)
        finally:
            unfinished = [each for each in (stopped, *workers) if not each.done()]
            for each in unfinished:
                each.cancel()
            if unfinished:
                await asyncio.wait(unfinished)
            await self._give_back()
        for each in workers:
            if not each.cancelled() and (error := each.exception()) is not None:
                raise error

    async def _work(self, messages: Messages) -> None:
        async for message in messages:
            await self._handle(message)

    async def _work_in_order(self, messages: Messages) -> None:
        assert self._key is not None
        async for message in messages:
            try:
                key = self._key(message)
            except Exception:
                logger.exception("the function key failed for a message of queue %r: it is rejected", message.queue)
                await message.reject()
                continue
            if key in self._following:
                self._following[key].append(message)
                continue
            waiting = self._following[key] = deque([message])
            while waiting and not (self._is_ending and waiting[0] is not message):
                await self._handle(waiting.popleft())
            if not waiting:
                del self._following[key]

    async def _handle(self, message: Message) -> None:
        try:
            async with message.process(self._on_error):
                await self._handler(message)
        except Exception:
            logger.exception("a message of queue %r could not be handled", message.queue)

    async def _give_back(self) -> None:
        """Requeue what waits for its turn."""
        for waiting in self._following.values():
            for message in waiting:
                if message.channel.is_open and not message.acknowledged:
                    await message.requeue(failed=False)
        self._following.clear()


@contextmanager
def _ending_on(signals: Sequence[int], stop: asyncio.Event) -> Iterator[None]:
    """Set ``stop`` when one of the signals comes; put the handlers from before back."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in signals}
    try:
        for number in before:
            loop.add_signal_handler(number, stop.set)
        yield
    finally:
        for number, handler in before.items():
            if loop.remove_signal_handler(number):
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
