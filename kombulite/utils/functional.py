"""Retrying, and small helpers for values that may be lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from time import monotonic, sleep
from typing import Any, TypeVar

T = TypeVar("T")


def is_list(value: Any, scalars: tuple[type, ...] = (dict, str, bytes), iters: type = Iterable) -> bool:
    """Whether a value is a collection, and not one of ``scalars``."""
    return isinstance(value, iters) and not isinstance(value, scalars)


def maybe_list(value: Any, scalars: tuple[type, ...] = (dict, str, bytes)) -> Any:
    """``value`` if it is None or a collection, else a list of it."""
    return value if value is None or is_list(value, scalars) else [value]


def fxrange(
    start: float = 1.0, stop: float | None = None, step: float = 1.0, repeatlast: bool = False
) -> Iterator[float]:
    """``start``, ``start + step``, … up to ``stop`` (None: without end); then ``stop`` for ever with ``repeatlast``."""
    current = start
    while stop is None or current <= stop:
        yield current
        current += step
    while repeatlast:
        yield current - step


def retry_intervals(start: float, step: float, maximum: float) -> Iterator[float]:
    """Seconds to sleep between tries: rising by ``step`` to ``maximum``, which repeats."""
    return (min(interval, maximum) for interval in fxrange(start, maximum + start, step, repeatlast=True))


def retry_over_time(
    fun: Callable[..., T],
    catch: tuple[type[BaseException], ...] | type[BaseException],
    args: Iterable[Any] | None = None,
    kwargs: dict[str, Any] | None = None,
    errback: Callable[[Any, Iterator[float], int], float] | None = None,
    max_retries: int | None = None,
    interval_start: float = 2,
    interval_step: float = 2,
    interval_max: float = 30,
    callback: Callable[[], Any] | None = None,
    timeout: float | None = None,
) -> T:
    """Call ``fun`` until it raises none of ``catch``.

    ``max_retries``: further calls after the first (None: no limit, 0: none); ``timeout``: seconds after which it
    gives up, with one last call at that time. ``errback(exception, intervals, retries)`` returns the seconds to sleep,
    ``interval_max`` at the most; ``callback()`` runs before each second slept. Raises what ``fun`` raised last.
    """
    args, kwargs = tuple(args or ()), kwargs or {}
    intervals = retry_intervals(interval_start, interval_step, interval_max)
    deadline = None if timeout is None else monotonic() + timeout
    for retries in count():
        try:
            return fun(*args, **kwargs)
        except catch as error:
            if max_retries is not None and retries >= max_retries:
                raise
            if deadline is not None and monotonic() >= deadline:
                raise
            if callback is not None:
                callback()
            wanted = float(errback(error, intervals, retries) if errback is not None else next(intervals))
            pause = min(wanted, interval_max)
            sleep_in_slices(pause if deadline is None else min(pause, deadline - monotonic()), callback)
    raise AssertionError("count() has no end")


def sleep_in_slices(seconds: float, callback: Callable[[], Any] | None = None) -> None:
    """Sleep, and call ``callback()`` before each second of it."""
    end = monotonic() + seconds
    while (left := end - monotonic()) > 0:
        if callback is not None:
            callback()
        sleep(min(left, 1.0))
