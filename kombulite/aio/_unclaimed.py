"""Requests for messages without acks whose callers have gone: what they bring is for the next callers."""

from __future__ import annotations

import asyncio
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")


def result_of(task: asyncio.Task[T | None]) -> T | None:
    """Return what a task that is done has brought, or None: nothing, or it failed."""
    return None if task.cancelled() or task.exception() is not None else task.result()


class UnclaimedGets(Generic[T]):
    """Requests whose callers have gone, by queue, in the order in which they were made.

    There are never more than callers that waited at the same time: each takes one of these before it asks the broker.
    """

    def __init__(self) -> None:
        self._gets: dict[str, list[tuple[int, asyncio.Task[T | None]]]] = {}
        self._numbers = count()

    def number(self) -> int:
        """Return the number of a new request: its place among the others."""
        return next(self._numbers)

    def add(self, queue: str, number: int, task: asyncio.Task[T | None]) -> None:
        """Keep a request, unless it brings nothing."""
        heappush(self._gets.setdefault(queue, []), (number, task))
        task.add_done_callback(partial(self._done, queue, number))

    def take(self, queue: str) -> tuple[int, asyncio.Task[T | None]] | None:
        """Return the first request for messages of a queue, and its number."""
        loop = asyncio.get_running_loop()
        while gets := self._gets.get(queue):
            number, task = heappop(gets)
            if not gets:
                del self._gets[queue]
            if task.done() or task.get_loop() is loop:  # else it never ends: its loop was closed
                return number, task
        return None

    def _done(self, queue: str, number: int, task: asyncio.Task[T | None]) -> None:
        """Forget a request that has brought nothing."""
        gets = self._gets.get(queue, [])
        if result_of(task) is None and (number, task) in gets:
            gets.remove((number, task))
            heapify(gets)
            if not gets:
                del self._gets[queue]
