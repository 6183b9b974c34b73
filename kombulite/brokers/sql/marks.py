"""Where the next claim of a queue begins to look on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from typing import NamedTuple

from kombulite.brokers.sql.database import Row
from kombulite.brokers.sql.topology import QueueRecord

__all__ = ["Marks"]

#: Before the first message of every queue: its rank and its id.
START = -(1 << 31), 0
LOOKS_BETWEEN = 20  # a look from the start takes at most one part in so many of the time
MAX_PAUSE = 30.0  # seconds between two of them, also if one took long because the server hung


class Mark(NamedTuple):
    """The last message that was claimed of a queue, and until when (of the monotonic clock) to look behind it."""

    rank: int
    id: int
    until: float


class Marks:
    """The marks of one connection.

    While a long transaction of another client holds vacuum back, a look from the start of a queue passes over all that
    was consumed since. So a claim looks behind the one before. Messages that come back to their places, or are
    committed late, are found by the next look from the start.
    """

    def __init__(self) -> None:
        self._by_queue: dict[int, Mark] = {}

    def claim(self, queue: QueueRecord, look: Callable[[int, int], list[Row]]) -> list[Row]:
        """Return the messages that are claimed by ``look(rank, id)``, which takes those behind that place."""
        mark = self._by_queue.pop(queue.id, None)
        began = monotonic()
        if mark is not None and began <= mark.until:
            rows = look(mark.rank, mark.id)
            if rows:
                self._set(queue, rows, mark.until)
                return rows
            began = monotonic()
        rows = look(*START)
        now = monotonic()
        if rows and queue.limits.max_priority == 0:  # else a message may come before all others at any time
            self._set(queue, rows, now + min(LOOKS_BETWEEN * (now - began), MAX_PAUSE))
        return rows

    def _set(self, queue: QueueRecord, rows: list[Row], until: float) -> None:
        number, rank = max((row[0], row[1]) for row in rows)
        self._by_queue[queue.id] = Mark(rank, number, until)

    def forget(self, queues: Iterable[int]) -> None:
        """Look from the start of these queues (their ids) next: messages come back to them."""
        for number in queues:
            self._by_queue.pop(number, None)
