"""Logical clocks: an order of events without a common time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from operator import itemgetter
from typing import Any

from kombulite.utils.locks import Lock

__all__ = ["LamportClock", "timetuple"]


class timetuple(tuple[Any, ...]):  # noqa: N801 - kombu's name
    """Time of an event: ``clock`` (logical), ``timestamp`` (seconds), ``id`` of the process; ``obj`` is the event.

    Ordered by the clocks if both have one, equal ones by id; else by the timestamps.
    """

    __slots__ = ()

    def __new__(cls, clock: int | None, timestamp: float, id: str, obj: Any = None) -> timetuple:
        """Return a time from its parts."""
        return super().__new__(cls, (clock, timestamp, id, obj))

    clock = property(itemgetter(0))
    timestamp = property(itemgetter(1))
    id = property(itemgetter(2))
    obj = property(itemgetter(3))

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self)

    def __lt__(self, other: tuple[Any, ...]) -> bool:
        clock, timestamp, ident = self[:3]
        try:
            other_clock, other_timestamp, other_ident = other[:3]
        except ValueError:  # it is too short
            return NotImplemented
        if clock and other_clock:
            return bool((clock, ident) < (other_clock, other_ident))
        return bool(timestamp < other_timestamp)

    def __gt__(self, other: tuple[Any, ...]) -> bool:
        return timetuple(*other) < self

    def __le__(self, other: tuple[Any, ...]) -> bool:
        return not self > other

    def __ge__(self, other: tuple[Any, ...]) -> bool:
        return not self < other

    def __repr__(self) -> str:
        return f"_lamport(clock={self.clock}, timestamp={self.timestamp}, id={self.id} {self.obj!r})"


class LamportClock:
    """Logical clock (Lamport, 1978): a number that grows with each event, and jumps past the numbers in messages.

    ``mutex`` guards ``value``; a program with a single thread may replace it by a context manager without effect.

    Args:
        initial_value: First value.
        Lock: Class of the lock.
    """

    value = 0

    def __init__(self, initial_value: int = 0, Lock: Callable[[], AbstractContextManager[Any]] = Lock) -> None:
        self.value = initial_value
        self.mutex = Lock()

    def adjust(self, other: int) -> int:
        """Advance the clock past that of a message, and return the new value.

        Args:
            other: Clock of the message.
        """
        with self.mutex:
            self.value = max(self.value, other) + 1
            return self.value

    def forward(self) -> int:
        """Count an event of this process, and return the new value."""
        with self.mutex:
            self.value += 1
            return self.value

    def sort_heap(self, h: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        """Return the first event in order. Of equal clocks it is the one with the lowest id.

        Args:
            h: Events, each (clock, id of the process, ...).

        Raises:
            IndexError: There are none.
        """
        clock = h[0][0]
        same = []
        for event in h:
            if event[0] != clock:
                break
            same.append(event)
        return min(same, key=itemgetter(1))

    def __str__(self) -> str:
        return str(self.value)

    def __repr__(self) -> str:
        return f"<LamportClock: {self.value}>"


#: How a ``timetuple`` is shown.
R_CLOCK = "_lamport(clock={0}, timestamp={1}, id={2} {3!r})"
