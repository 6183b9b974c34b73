"""Retrying, values worked out late or once, and small helpers for values that may be lists."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from importlib import import_module
from itertools import count
from time import monotonic as time  # kombu's name; the wall clock may be set meanwhile
from time import sleep
from typing import Any, TypeVar

from kombulite.utils.encoding import safe_repr as _safe_repr
from kombulite.utils.locks import Lock

__all__ = [
    "ChannelPromise",
    "LRUCache",
    "accepts_argument",
    "dictfilter",
    "fxrange",
    "fxrangemax",
    "is_list",
    "lazy",
    "maybe_evaluate",
    "maybe_list",
    "memoize",
    "reprcall",
    "reprkwargs",
    "retry_intervals",
    "retry_over_time",
    "shufflecycle",
    "sleep_in_slices",
]

T = TypeVar("T")
KEYWORD_MARK = object()


# --- lists ------------------------------------------------------------------------------------------------------


def is_list(obj: object, scalars: tuple[type, ...] = (Mapping, str), iters: tuple[type, ...] = (Iterable,)) -> bool:
    """Return whether a value is a collection.

    Args:
        obj: The value.
        scalars: Classes whose instances are not collections here, though they can be iterated over.
        iters: Classes whose instances are collections.
    """
    return isinstance(obj, iters) and not isinstance(obj, scalars or ())


def maybe_list(obj: Any, scalars: tuple[type, ...] = (Mapping, str)) -> Any:
    """Return ``obj`` if it is None or a collection, else a list of it.

    Args:
        obj: The value.
        scalars: Classes whose instances are not collections here, though they can be iterated over.
    """
    return obj if obj is None or is_list(obj, scalars) else [obj]


def dictfilter(d: Mapping[Any, Any] | None = None, **kw: Any) -> dict[Any, Any]:
    """Return a dict without the items whose value is None.

    Args:
        d: The items; None: those of the keywords alone.
        **kw: Items that replace those of ``d``.
    """
    return {name: value for name, value in (kw if d is None else dict(d, **kw)).items() if value is not None}


# --- values worked out late, or once ----------------------------------------------------------------------------


class lazy:  # noqa: N801 - kombu's name
    """Value that is computed each time it is needed: ``fun(*args, **kwargs)``.

    Args:
        fun: Returns the value.
        *args: Positional arguments of ``fun``.
        **kwargs: Keyword arguments of ``fun``.
    """

    def __init__(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._fun = fun
        self._args = args
        self._kwargs = kwargs

    def __call__(self) -> Any:
        """Return the same as ``evaluate``."""
        return self.evaluate()

    def evaluate(self) -> Any:
        """Return the value, computed anew."""
        return self._fun(*self._args, **self._kwargs)

    def __str__(self) -> str:
        return str(self())

    def __repr__(self) -> str:
        return repr(self())

    def __eq__(self, other: object) -> bool:
        return bool(self() == other)

    __hash__ = None  # type: ignore[assignment] # equal to whatever it evaluates to

    def __deepcopy__(self, memo: dict[int, Any]) -> lazy:
        memo[id(self)] = self
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._fun,), {"_args": self._args, "_kwargs": self._kwargs}


def maybe_evaluate(value: Any) -> Any:
    """Return the value of a lazy value; any other value as it is.

    Args:
        value: The value.
    """
    return value.evaluate() if isinstance(value, lazy) else value


class LRUCache(UserDict[Any, Any]):
    """Dict that drops the items that were used longest ago. Threads may share it.

    Args:
        limit: Maximum number of items; None or 0: no limit.
    """

    data: OrderedDict[Any, Any]

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.mutex = Lock()
        self.data = OrderedDict()

    def __getitem__(self, key: Any) -> Any:
        with self.mutex:
            value = self.data[key]
            self.data.move_to_end(key)
            return value

    def __setitem__(self, key: Any, value: Any) -> None:
        with self.mutex:
            if self.limit and key not in self.data and len(self.data) >= self.limit:
                self.data.popitem(last=False)
            self.data[key] = value

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Add items, and drop the oldest if there are more than ``limit``.

        Args:
            *args: Arguments of ``dict.update``.
            **kwargs: Keywords of ``dict.update``.
        """
        with self.mutex:
            self.data.update(*args, **kwargs)
            while self.limit and len(self.data) > self.limit:
                self.data.popitem(last=False)

    def popitem(self, last: bool = True) -> tuple[Any, Any]:
        """Remove an item and return it.

        Args:
            last: If True, the item that was used last; if False, the one that was used longest ago.

        Raises:
            KeyError: The cache is empty.
        """
        with self.mutex:
            return self.data.popitem(last)

    # What is iterated over is a copy: the order changes with each look at an item.

    def __iter__(self) -> Iterator[Any]:
        with self.mutex:
            return iter(list(self.data))

    def keys(self) -> Any:
        """Return the keys, the oldest first."""
        with self.mutex:
            return self.data.copy().keys()

    def values(self) -> Any:
        """Return the values, the oldest first."""
        with self.mutex:
            return iter(list(self.data.values()))

    def items(self) -> Any:
        """Return pairs of key and value, the oldest first."""
        with self.mutex:
            return iter(list(self.data.items()))

    iterkeys, itervalues, iteritems = _iterate_keys, _iterate_values, _iterate_items = keys, values, items

    def incr(self, key: Any, delta: int = 1) -> int:
        """Add to a number, which is kept as text as memcached does, and return the sum.

        Args:
            key: The key of the number.
            delta: The number to add.

        Raises:
            KeyError: The cache has no such key.
            ValueError: The value is not a number.
        """
        with self.mutex:
            value = int(self.data.pop(key)) + delta
            self[key] = str(value)
            return value

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "mutex"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.mutex = Lock()


def memoize(
    maxsize: int | None = None, keyfun: Callable[..., Any] | None = None, Cache: type[LRUCache] = LRUCache
) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that keeps the results of a function by its arguments.

    The decorated function has ``hits``, ``misses``, ``clear()`` and ``original_func``.

    Args:
        maxsize: Maximum number of results, those that were used last; None: no limit.
        keyfun: Returns the key of a result, called with the tuple and the dict of arguments; None: both are the key.
        Cache: Class of the cache.
    """

    def decorate(fun: Callable[..., Any]) -> Any:
        mutex = Lock()
        cache = Cache(limit=maxsize)

        @wraps(fun)
        def memoized(*args: Any, **kwargs: Any) -> Any:
            key = keyfun(args, kwargs) if keyfun else (*args, KEYWORD_MARK, *sorted(kwargs.items()))
            try:
                with mutex:
                    value = cache[key]
                    memoized.hits += 1  # type: ignore[attr-defined]
            except KeyError:
                value = fun(*args, **kwargs)
                with mutex:
                    memoized.misses += 1  # type: ignore[attr-defined]
                    cache[key] = value
            return value

        def clear() -> None:
            cache.clear()
            memoized.hits = memoized.misses = 0  # type: ignore[attr-defined]

        memoized.hits = memoized.misses = 0  # type: ignore[attr-defined]
        memoized.clear = clear  # type: ignore[attr-defined]
        memoized.original_func = fun  # type: ignore[attr-defined]
        return memoized

    return decorate


# --- calls ------------------------------------------------------------------------------------------------------


def reprkwargs(kwargs: Mapping[str, Any], sep: str = ", ", fmt: str = "{0}={1}") -> str:
    """Return keyword arguments as they are written in a call.

    Args:
        kwargs: The arguments.
        sep: Text between two of them.
        fmt: Format of one: ``{0}`` is the name, ``{1}`` the value.
    """
    return sep.join(fmt.format(name, _safe_repr(value)) for name, value in kwargs.items())


def reprcall(name: str, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None, sep: str = ", ") -> str:
    """Return a call as it is written in a program.

    Args:
        name: Name of the function.
        args: Positional arguments.
        kwargs: Keyword arguments.
        sep: Text between two arguments.
    """
    parts = [*map(_safe_repr, args or ())]
    if kwargs:
        parts.append(reprkwargs(kwargs, sep))
    return f"{name}({sep.join(parts)})"


def accepts_argument(func: Callable[..., Any], argument_name: str) -> bool:
    """Return whether a function has an argument of that name.

    Args:
        func: The function.
        argument_name: The name.

    Raises:
        TypeError: ``func`` is not a function.
    """
    spec = _here().inspect.getfullargspec(func)
    return argument_name in spec.args or argument_name in spec.kwonlyargs


# --- retrying ---------------------------------------------------------------------------------------------------


def fxrange(
    start: float = 1.0, stop: float | None = None, step: float = 1.0, repeatlast: bool = False
) -> Iterator[float]:
    """Give ``start``, ``start + step``, … up to ``stop``.

    Args:
        start: First number.
        stop: Highest number; None or 0: there is none.
        step: Difference between two numbers.
        repeatlast: If True, the last number is given again without end.
    """
    current = start * 1.0
    while not stop or current <= stop:
        yield current
        current += step
    while repeatlast:
        yield current - step


def fxrangemax(start: float = 1.0, stop: float | None = None, step: float = 1.0, max: float = 100.0) -> Iterator[float]:
    """Give ``start``, ``start + step``, … up to ``stop``, which repeats until the sum of the intervals reaches ``max``.

    Args:
        start: First number.
        stop: Highest number; None or 0: there is none.
        step: Difference between two numbers.
        max: Sum of the numbers after the first at which no further one is given.
    """
    total, current = 0.0, start * 1.0
    while total < max:
        yield current
        current = min(current + step, stop) if stop else current + step
        total += current


def retry_intervals(start: float, step: float, maximum: float) -> Iterator[float]:
    """Return an iterator over the seconds to sleep between tries.

    Args:
        start: First interval, in seconds.
        step: Seconds by which each interval is longer than the one before.
        maximum: Longest interval, in seconds, which repeats without end.
    """
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
    """Call a function until it raises none of the given errors, and return its result.

    Raises what ``fun`` raised last if the retries or the time are used up.

    Args:
        fun: The function.
        catch: The error class, or a tuple of error classes, after which ``fun`` is called again.
        args: Positional arguments of ``fun``.
        kwargs: Keyword arguments of ``fun``.
        errback: Called after each failure with the error, the iterator of intervals and the number of retries so far;
            returns the seconds to sleep, of which ``interval_max`` are the limit. None: the next interval.
        max_retries: Maximum number of calls after the first; None: no limit, 0: none.
        interval_start: Seconds to sleep before the first retry.
        interval_step: Seconds by which each interval is longer than the one before.
        interval_max: Longest interval, in seconds.
        callback: Called without arguments before each second of sleep.
        timeout: Seconds after which no retry begins, except one at that time; None: no limit.
    """
    args, kwargs = tuple(args or ()), kwargs or {}
    intervals = retry_intervals(interval_start, interval_step, interval_max)
    deadline = None if timeout is None else time() + timeout
    for retries in count():
        try:
            return fun(*args, **kwargs)
        except catch as error:
            if max_retries is not None and retries >= max_retries:
                raise
            left = interval_max if deadline is None else deadline - time()
            if left <= 0 and deadline is not None:
                raise
            if callback is not None:
                callback()
            wanted = float(errback(error, intervals, retries) if errback is not None else next(intervals))
            sleep_in_slices(min(wanted, interval_max, left), callback)
    raise AssertionError("count() has no end")


def sleep_in_slices(seconds: float, callback: Callable[[], Any] | None = None) -> None:
    """Sleep, with a call of ``callback`` before each whole second.

    Args:
        seconds: Seconds to sleep; 0 or less: return at once.
        callback: Called without arguments.
    """
    if seconds <= 0:
        return
    whole = int(seconds)  # counted, not read from the clock: a program may have replaced ``sleep``
    for _ in range(whole):
        if callback is not None:
            callback()
        sleep(1.0)
    sleep(seconds - whole)


promise, maybe_promise = lazy, maybe_evaluate


class ChannelPromise:
    """Channel that is opened when the promise is first called.

    Args:
        contract: Opens the channel and returns it.
    """

    def __init__(self, contract: Callable[[], Any]) -> None:
        self.__contract__ = contract
        self.__value__: Any

    def __call__(self) -> Any:
        """Return the channel."""
        try:
            return self.__value__
        except AttributeError:
            self.__value__ = value = self.__contract__()
            return value

    def __repr__(self) -> str:
        try:
            return repr(self.__value__)
        except AttributeError:
            return f"<promise: {id(self.__contract__):#x}>"


def shufflecycle(it: Iterable[T]) -> Iterator[T]:
    """Give items of a collection without end, one of them at random each time.

    Args:
        it: The collection.
    """
    items, shuffle = list(it), _here().random.shuffle
    while True:
        shuffle(items)
        yield items[0]


def _here() -> Any:
    return import_module(__name__)


def __getattr__(name: str) -> Any:
    # Imported when they are needed: they cost more than all else here. A program may replace them in this module.
    if name in ("inspect", "random"):
        return import_module(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
