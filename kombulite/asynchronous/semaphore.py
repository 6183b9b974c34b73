"""Bounds for what happens in one thread: nothing here waits, and nothing is locked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["DummyLock", "LaxBoundedSemaphore"]


class LaxBoundedSemaphore:
    """At most ``value`` at a time: who comes when there is no room is called back when there is.

    Releasing more often than acquiring does no harm: ``value`` never passes ``initial_value``.

    Args:
        value: Largest number at a time.
    """

    def __init__(self, value: int) -> None:
        self.initial_value = self.value = value
        self._waiting: deque[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = deque()
        self._add_waiter, self._pop_waiter = self._waiting.append, self._waiting.popleft

    def acquire(self, callback: Callable[..., Any], *partial_args: Any, **partial_kwargs: Any) -> bool:
        """Call ``callback`` now if there is room, else later. Return whether it was called.

        Args:
            callback: The function to call.
            *partial_args: Its arguments.
            **partial_kwargs: Its keywords.
        """
        if self.value <= 0:
            self._add_waiter((callback, partial_args, partial_kwargs))
            return False
        self.value -= 1
        callback(*partial_args, **partial_kwargs)
        return True

    def release(self) -> None:
        """Make room; who waits longest is called."""
        if self._waiting:
            callback, args, kwargs = self._pop_waiter()
            callback(*args, **kwargs)
        else:
            self.value = min(self.value + 1, self.initial_value)

    def grow(self, n: int = 1) -> None:
        """Raise the bound; who waits is called.

        Args:
            n: By how much.
        """
        for _ in range(n):
            self.initial_value += 1
            self.release()

    def shrink(self, n: int = 1) -> None:
        """Lower the bound.

        Args:
            n: By how much.
        """
        self.initial_value = max(self.initial_value - n, 0)
        self.value = max(self.value - n, 0)

    def clear(self) -> None:
        """Forget who waits, and who is in."""
        self._waiting.clear()
        self.value = self.initial_value

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {id(self):#x} value:{self.value} waiting:{len(self._waiting)}>"


class DummyLock:
    """In place of a lock where there is but one thread."""

    def __enter__(self) -> DummyLock:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass
