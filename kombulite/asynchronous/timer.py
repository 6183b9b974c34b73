"""Calls at times to come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone, tzinfo
from functools import total_ordering, wraps
from heapq import heappop, heappush
from itertools import count
from time import monotonic
from time import time as _time
from typing import Any, NamedTuple
from weakref import proxy

from kombulite.log import get_logger

IS_PYPY = hasattr(sys, "pypy_version_info")

__all__ = ["Entry", "Timer", "to_timestamp"]

DEFAULT_MAX_INTERVAL = 2.0  # seconds
EPOCH = datetime.fromtimestamp(0, timezone.utc)

logger = get_logger(__name__)


class scheduled(NamedTuple):  # noqa: N801 - kombu's name
    """An entry in a timer's queue."""

    eta: float
    priority: int
    entry: Entry


def to_timestamp(
    d: datetime | float, default_timezone: tzinfo = timezone.utc, time: Callable[[], float] = monotonic
) -> float:
    """Return a date as seconds of the monotonic clock, 0 at the least; what is a number already as it is.

    Args:
        d: A date, or a number.
        default_timezone: Time zone of dates without one.
        time: Function that returns the time now.
    """
    if not isinstance(d, datetime):
        return d
    if d.tzinfo is None:
        d = d.replace(tzinfo=default_timezone)
    return max((d - EPOCH).total_seconds() - _time() + time(), 0)


@total_ordering
class Entry:
    """A call: ``fun(*args, **kwargs)``. ``canceled``: it will not be made.

    Args:
        fun: The function to call.
        args: Its arguments.
        kwargs: Its keywords.
    """

    __slots__ = ("__weakref__", "_last_run", "args", "canceled", "fun", "kwargs", "number", "tref")

    def __init__(
        self, fun: Callable[..., Any], args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.fun = fun
        self.args = args or []
        self.kwargs = kwargs or {}
        self.tref = proxy(self)
        self._last_run: float | None = None
        self.canceled = False
        self.number = next(_numbers)

    def __call__(self) -> Any:
        """Make the call."""
        return self.fun(*self.args, **self.kwargs)

    def cancel(self) -> None:
        """See that it is not made."""
        self.canceled = True

    @property
    def cancelled(self) -> bool:
        """Another spelling of ``canceled``."""
        return self.canceled

    @cancelled.setter
    def cancelled(self, value: bool) -> None:
        self.canceled = value

    def __lt__(self, other: Entry) -> bool:
        return self.number < other.number  # of two for the same time the first comes first

    def __repr__(self) -> str:
        name = getattr(self.fun, "__name__", repr(self.fun))
        return f"<TimerEntry: {name}(*{self.args!r}, **{self.kwargs!r})"  # without the last bracket, as with kombu


_numbers = count()
_Entry = Entry  # inside the timer the name is that of its attribute


class Timer:
    """A schedule of calls. Times are seconds of the monotonic clock, or dates.

    Iterating over it gives pairs, without end: the seconds to wait, and the entry that is due; one of them is None.
    ``max_interval``: the longest wait that it gives; ``on_error(exception)``: gets what a call raises.

    Args:
        max_interval: The longest wait that the timer gives, in seconds (None: its default).
        on_error: Called with each exception that a call raises (None: they are logged).
        **kwargs: Ignored.
    """

    Entry: type[_Entry] = _Entry
    on_error: Callable[[BaseException], Any] | None = None

    def __init__(
        self,
        max_interval: float | None = None,
        on_error: Callable[[BaseException], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.max_interval = float(max_interval or DEFAULT_MAX_INTERVAL)
        self.on_error = on_error or self.on_error
        self._queue: list[scheduled] = []

    def __enter__(self) -> Timer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def call_at(
        self,
        eta: datetime | float | None,
        fun: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> _Entry | None:
        """Call at a time. Return what ``enter_at`` returns.

        Args:
            eta: Seconds of the monotonic clock, or a date (None: now).
            fun: The function to call.
            args: Its arguments.
            kwargs: Its keywords.
            priority: Of calls that are due at the same time, the one of the lower number is made first.
        """
        return self.enter_at(self.Entry(fun, args, kwargs), eta, priority)

    def call_after(
        self,
        secs: float,
        fun: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> _Entry:
        """Call in so many seconds. Return the entry.

        Args:
            secs: Seconds.
            fun: The function to call.
            args: Its arguments.
            kwargs: Its keywords.
            priority: Of calls that are due at the same time, the one of the lower number is made first.
        """
        return self.enter_after(secs, self.Entry(fun, args, kwargs), priority)

    def call_repeatedly(
        self,
        secs: float,
        fun: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> _Entry:
        """Call every so many seconds, until the entry is cancelled. Return the entry.

        Args:
            secs: Seconds.
            fun: The function to call.
            args: Its arguments.
            kwargs: Its keywords.
            priority: Of calls that are due at the same time, the one of the lower number is made first.
        """
        entry = self.Entry(fun, args, kwargs)

        @wraps(fun)
        def again(*args: Any, **kwargs: Any) -> Any:
            now, last = monotonic(), entry._last_run
            try:
                if last is not None and now - last < secs:  # it was called by hand
                    return None
                entry._last_run = now
                return fun(*args, **kwargs)
            finally:
                if not entry.canceled:
                    last = entry._last_run
                    self.enter_after(secs if last is None else secs - (now - last), entry, priority)

        entry.fun = again
        return self.enter_after(secs, entry, priority)

    def enter_at(
        self,
        entry: _Entry,
        eta: datetime | float | None = None,
        priority: int = 0,
        time: Callable[[], float] = monotonic,
    ) -> _Entry | None:
        """Enter an entry for a time. Return it; None for a date out of range, if there is ``on_error``.

        Args:
            entry: The entry.
            eta: Seconds of the monotonic clock, or a date (None: now).
            priority: Of calls that are due at the same time, the one of the lower number is made first.
            time: Function that returns the time now.
        """
        try:
            due = time() if eta is None else to_timestamp(eta)
        except Exception as error:
            if not self.handle_error(error):
                raise
            return None
        return self._enter(due, priority, entry)

    def enter_after(
        self, secs: float, entry: _Entry, priority: int = 0, time: Callable[[], float] = monotonic
    ) -> _Entry:
        """Enter an entry for in so many seconds.

        Args:
            secs: Seconds.
            entry: The entry.
            priority: Of calls that are due at the same time, the one of the lower number is made first.
            time: Function that returns the time now.
        """
        self.enter_at(entry, time() + float(secs), priority)
        return entry

    def _enter(
        self, eta: float, priority: int, entry: _Entry, push: Callable[[list[scheduled], Any], None] = heappush
    ) -> _Entry:
        push(self._queue, scheduled(eta, priority, entry))
        return entry

    def apply_entry(self, entry: _Entry) -> None:
        """Make a call; what it raises goes to ``handle_error``.

        Args:
            entry: The entry.
        """
        try:
            entry()
        except Exception as error:
            if not self.handle_error(error):
                logger.error("Error in timer: %r", error, exc_info=True)

    def handle_error(self, exc_info: BaseException) -> bool | None:
        """Call ``on_error`` with an exception. Return True if there is one, else None.

        Args:
            exc_info: The exception.
        """
        if self.on_error is None:
            return None
        self.on_error(exc_info)
        return True

    def stop(self) -> None:
        """Nothing here; a timer that has a thread ends it."""

    def __iter__(self, nowfun: Callable[[], float] = monotonic) -> Iterator[tuple[float | None, _Entry | None]]:
        while True:
            if not self._queue:
                yield None, None
                continue
            wait = self._queue[0].eta - nowfun()
            if wait > 0:
                yield min(wait, self.max_interval), None
                continue
            entry = heappop(self._queue).entry
            if not entry.canceled:
                yield None, entry

    def clear(self) -> None:
        """Forget all entries."""
        self._queue[:] = []

    def cancel(self, tref: Any) -> None:
        """Cancel an entry.

        Args:
            tref: The entry.
        """
        tref.cancel()

    def __len__(self) -> int:
        return len(self._queue)

    def __bool__(self) -> bool:
        return True

    @property
    def queue(self) -> list[scheduled]:
        """The entries, in order."""
        return sorted(self._queue)

    @property
    def schedule(self) -> Timer:
        """The timer itself."""
        return self
