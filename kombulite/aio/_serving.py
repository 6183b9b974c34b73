"""Handling messages: so many at a time, in order where that is asked for, to a clean end."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from logging import getLogger
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from kombulite import exceptions
from kombulite.aio._messages import Message, Messages, OnError

logger = getLogger("kombulite.aio")


class Stops(NamedTuple):
    """What a signal sets, and its handler from before."""

    events: list[asyncio.Event]
    before: Any


#: By loop and signal: a loop has one handler for a signal, and any number of servers that end by it.
_stops_of: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, Stops]] = WeakKeyDictionary()


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
            with ExitStack() as stack:
                for number in signals:
                    stack.enter_context(_ending_on(number, stop))
                await asyncio.wait([stopped, *workers], return_when=asyncio.FIRST_COMPLETED)
            self._is_ending = True
            if stopped.done():
                await messages.stop()
                await self._give_back()
                await asyncio.wait(workers, timeout=self._grace)
        finally:
            if not self._is_ending:  # it is cancelled
                self._is_ending = True
                messages.leave_to_the_end()
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
            while waiting and (waiting[0] is message or waiting[0].no_ack or not self._is_ending):
                following = waiting.popleft()
                if following.no_ack or following.channel.is_open:  # else it comes again
                    await self._handle(following)
            if not waiting:
                del self._following[key]

    async def _handle(self, message: Message) -> None:
        try:
            async with message.process(self._on_error):
                await self._handler(message)
        except Exception:
            logger.exception("a message of queue %r could not be handled", message.queue)

    async def _give_back(self) -> None:
        """Requeue what waits for its turn, unless it needs no ack: then it still gets its turn.

        The last first: where each goes to the front of its queue, they are in order again, before what came later,
        which went back before, and behind what is being handled, which may follow.
        """
        for waiting in list(self._following.values()):
            with suppress(exceptions.RecoverableConnectionError):  # they come again
                while waiting and not (waiting[-1].no_ack or waiting[-1].channel.is_ending):
                    await waiting.pop().requeue(failed=False)


@contextmanager
def _ending_on(number: int, stop: asyncio.Event) -> Iterator[None]:
    """Set ``stop`` when a signal comes. The last to end puts the handler back that was there before the first."""
    loop = asyncio.get_running_loop()
    stops = _stops_of.setdefault(loop, {})
    if number not in stops:
        added = Stops([], signal.getsignal(number))
        loop.add_signal_handler(number, _set_all, added.events)
        stops[number] = added
    events, before = stops[number]
    events.append(stop)
    try:
        yield
    finally:
        events.remove(stop)
        if not events:
            del stops[number]
            if loop.remove_signal_handler(number):
                signal.signal(number, before if before is not None else signal.SIG_DFL)


def _set_all(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        event.set()
