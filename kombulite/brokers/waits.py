"""Waiting on an event loop: many waits with deadlines and one timer, and work that several tasks wait for.

Many tasks share a connection. What several of them need (the connection itself, a channel) is done by one task, which
they wait for: a task that is cancelled takes nothing away from the others, and nothing stays half done.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from contextlib import suppress
from functools import partial
from math import inf
from time import monotonic
from typing import Any, TypeVar

from kombulite import exceptions
from kombulite._core import BaseWaits
from kombulite.brokers.aio import Pending, closed, refuse, resolve

T = TypeVar("T")

GOING_ON = 512  # tasks that go on at once when there is room to write again


class Waits(BaseWaits):
    """Who waits for what, and until when. All of it belongs to one loop.

    Args:
        timeout: Seconds that a wait lasts by default.
        is_idle: Returns whether nothing is open: then a loop that is closed leaves it to the next one.
        blocked: Returns why the broker takes no messages, or None.
    """

    def __init__(
        self, timeout: float, is_idle: Callable[[], bool], blocked: Callable[[], str | None] = lambda: None
    ) -> None:
        self.timeout = timeout
        self._blocked = blocked
        self._is_idle = is_idle
        self.is_closing = False
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}
        self._waits: dict[Pending[Any], tuple[float, str]] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = inf

    def check_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop. Raises RuntimeError in another one, or in a thread without one."""
        loop: asyncio.AbstractEventLoop | None = self._loop
        if loop is not None and self.is_here():
            return loop
        running = asyncio.get_running_loop()
        if running is not loop:
            if loop is not None and not (loop.is_closed() and self._is_idle()):
                raise RuntimeError("the connection belongs to another event loop; make one for each loop")
            self.abandon()
        self.adopt(running)
        return running

    def deadline(self, timeout: float | None) -> float:
        """Return when a wait of so many seconds (None: the connection's default) ends."""
        return monotonic() + (self.timeout if timeout is None else timeout)

    async def wait(self, pending: Pending[T], deadline: float, what: str) -> T:
        """Wait for a pending answer that is the caller's alone. Raises TimeoutError."""
        if not pending.done():
            self._waits[pending] = deadline, what
            if deadline < self._alarm_at:
                self._set_alarm(deadline)
            try:
                return await pending
            finally:
                self._waits.pop(pending, None)  # a forked child has forgotten it
        return pending.result()

    async def within(self, work: Awaitable[T], deadline: float, what: str) -> T:
        """Wait for work that is not the broker's, but a thread's or a database's. Cancels it at the end of the time.

        Raises TimeoutError.
        """
        try:
            return await asyncio.wait_for(work, max(deadline - monotonic(), 0))
        except asyncio.TimeoutError as error:  # not the built-in one before Python 3.11
            raise TimeoutError(f"{what}: it did not end in time") from error

    async def answer(self, pending: Pending[T]) -> T:
        """Wait for an answer, as long as the connection's default is."""
        return await self.wait(pending, self.deadline(None), "request")

    def _set_alarm(self, deadline: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = asyncio.get_running_loop().call_later(max(deadline - monotonic(), 0), self._expire)

    def _expire(self) -> None:
        """End the waits whose time is over."""
        self._alarm, self._alarm_at = None, inf
        now, following = monotonic(), inf
        for pending, (deadline, what) in list(self._waits.items()):
            if deadline <= now:
                refuse(pending, self.timed_out(what))
            else:
                following = min(following, deadline)
        if following < inf:
            self._set_alarm(following)

    def timed_out(self, what: str) -> Exception:
        """Return the error for a wait whose time is over."""
        reason = self._blocked()
        if reason is not None:
            return exceptions.Blocked(f"{what}: the broker does not take messages: {reason}")
        return TimeoutError(f"{what}: the broker did not answer in time")

    async def once(self, key: Hashable, make: Callable[[], Coroutine[Any, Any, T]], deadline: float, what: str) -> T:
        """Wait for what a task does for all who ask for it with the same key."""
        return await self.result(self.task(key, make), deadline, what)

    def task(self, key: Hashable, make: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """Return the task of a key, which ends with the connection. It is made if there is none."""
        loop = self.check_loop()
        task = self._tasks.get(key)
        if task is None:
            if self.is_closing:
                raise closed()
            task = loop.create_task(make())
            self.keep(key, task)
        return task

    async def result(self, task: asyncio.Task[T], deadline: float, what: str) -> T:
        """Wait for the result of a task, which goes on if the caller is cancelled or the time is over."""
        waiter: Pending[T] = self.check_loop().create_future()
        if task.done():
            _pass_on(waiter, task)
        else:
            task.add_done_callback(partial(_pass_on, waiter))
        return await self.wait(waiter, deadline, what)

    def keep(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        """Have a task end with the connection."""
        self._tasks[key] = task
        task.add_done_callback(partial(self._done, key))

    def _done(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled():
            task.exception()  # it is told to those who wait, or nobody

    def is_busy(self, key: Hashable) -> bool:
        """Return whether there is a task of that key."""
        return key in self._tasks

    async def end_tasks(self, timeout: float) -> None:
        """Cancel all tasks, and wait for their end."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)

    def end_waits(self) -> None:
        """Have all waits end: the connection is closed."""
        for pending in list(self._waits):
            refuse(pending, closed())

    def disarm(self) -> None:
        """Stop the timer."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm, self._alarm_at = None, inf

    def abandon(self) -> None:
        """Forget all that belongs to a loop that is closed, or to the parent of a forked child."""
        self.adopt(None)
        self._alarm, self._alarm_at = None, inf
        self._tasks, self._waits = {}, {}


class WaitQueue:
    """Tasks that wait for something to change, and are woken in their order."""

    def __init__(self) -> None:
        #: Futures of the tasks that wait; those that are cancelled may still be among them.
        self.waiters: deque[Pending[None]] = deque()

    def wake(self) -> bool:
        """Wake the first that still waits; returns whether there was one."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return True
        return False

    def wake_all(self) -> None:
        """Wake all."""
        while self.wake():
            pass

    def refuse_all(self, error: Exception) -> None:
        """Have all waits raise an error."""
        while self.waiters:
            refuse(self.waiters.popleft(), error)

    async def wait(self, deadline: float | None = None) -> bool:
        """Wait to be woken; returns False if that did not happen by the deadline.

        A task that is cancelled when it has been woken leaves that to the next one.
        """
        loop = asyncio.get_running_loop()
        waiter: Pending[None] = loop.create_future()
        self.waiters.append(waiter)
        timer = None if deadline is None else loop.call_later(max(deadline - monotonic(), 0), _time_out, waiter)
        try:
            await waiter
        except TimeoutError:
            self._remove(waiter)
            return False
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                self.wake()
            else:
                self._remove(waiter)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return True

    def _remove(self, waiter: Pending[None]) -> None:
        with suppress(ValueError):  # ``wake`` has passed over it
            self.waiters.remove(waiter)


def _time_out(waiter: Pending[None]) -> None:
    refuse(waiter, TimeoutError())


class Window:
    """What was sent and is not answered yet, and who waits for room to send more.

    Args:
        size: How many messages may be under way.
    """

    def __init__(self, size: int, waits: Waits) -> None:
        self.size = size
        self.sent: set[Pending[Any]] = set()
        self._waits = waits
        self._turns = WaitQueue()
        self._for_room = WaitQueue()
        self._room: Pending[None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether a message has to wait for its turn."""
        return len(self.sent) >= self.size

    async def wait_for_answer(self, pending: Pending[T], deadline: float, what: str) -> T:
        """Wait for the answer to something that was sent."""
        self.sent.add(pending)
        try:
            return await self._waits.wait(pending, deadline, what)
        finally:
            self.sent.discard(pending)
            self._turns.wake()

    async def turn(self, deadline: float) -> None:
        """Wait for room. A turn that comes too late for its task is the next one's."""
        if not await self._turns.wait(deadline):
            raise self._waits.timed_out("publish")

    def offer_turn(self) -> None:
        """Give a turn that was not used, or did not take any room, to the next task that waits for one."""
        self.pass_room_on()
        if not self.is_full:
            self._turns.wake()

    async def room(self, pending: Pending[None], deadline: float) -> None:
        """Wait until more may be written. Not all that wait go on at once: most would find no room, and wait again."""
        if pending is not self._room:
            self._room = pending
            pending.add_done_callback(self._share_room)
        if not await self._for_room.wait(deadline):
            raise self._waits.timed_out("publish")

    def _share_room(self, pending: Pending[None]) -> None:
        self._room = None
        for _ in range(GOING_ON):
            if not self._for_room.wake():
                break

    def pass_room_on(self) -> None:
        """Let the next task go on that waits for room: this one has written, or will not."""
        self._for_room.wake()

    async def flush(self, deadline: float) -> None:
        """Wait until all that was sent before is answered."""
        for pending in list(self.sent):
            await self._share(pending, deadline)

    async def _share(self, pending: Pending[Any], deadline: float) -> None:
        """Wait for what others wait for too."""
        waiter: Pending[None] = asyncio.get_running_loop().create_future()
        pending.add_done_callback(lambda _: resolve(waiter))
        await self._waits.wait(waiter, deadline, "publish")

    def lose(self, error: Exception) -> None:
        """Have all that is under way fail, and all turns come: they go on with the next connection."""
        for pending in list(self.sent):
            refuse(pending, error)
        self._turns.wake_all()
        self._for_room.wake_all()

    def close(self) -> None:
        """Have nobody wait for room any more."""
        self._turns.refuse_all(closed())
        self._for_room.refuse_all(closed())


def _pass_on(waiter: Pending[Any], task: asyncio.Task[Any]) -> None:
    if task.cancelled():
        refuse(waiter, closed())
    elif (error := task.exception()) is not None:
        refuse(waiter, error)
    else:
        resolve(waiter, task.result())
