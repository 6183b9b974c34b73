"""What differs between environments."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial, wraps
from io import UnsupportedOperation
from typing import Any
from weakref import ref

__all__ = [
    "coro",
    "detect_environment",
    "entrypoints",
    "fileno",
    "get_gevent_concurrent_error",
    "maybe_fileno",
    "nested",
    "register_after_fork",
]

FILENO_ERRORS = (AttributeError, ValueError, UnsupportedOperation)


def register_after_fork(obj: Any, func: Callable[[Any], Any]) -> None:
    """Have ``func(obj)`` called in children that are forked from now on, as long as ``obj`` is there."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=partial(_call_if_alive, ref(obj), func))


def _call_if_alive(reference: ref[Any], func: Callable[[Any], Any]) -> None:
    obj = reference()
    if obj is not None:
        func(obj)


def _detect_environment() -> str:
    # A patched socket is what tells that a library of green threads is at work.
    socket = getattr(sys.modules.get("socket"), "socket", None)
    patcher = sys.modules.get("eventlet.patcher")
    if patcher is not None and patcher.is_monkey_patched("socket"):
        return "eventlet"
    if "gevent" in sys.modules and getattr(socket, "__module__", "").startswith("gevent"):
        return "gevent"
    return "default"


@cache
def detect_environment() -> str:
    """``default``, or ``gevent`` or ``eventlet`` where they have patched the socket module. Found out once."""
    return _detect_environment()


@contextmanager
def nested(*managers: Any) -> Iterator[list[Any]]:
    """Enter several context managers; gives the list of what they gave."""
    with ExitStack() as stack:
        yield [stack.enter_context(manager) for manager in managers]


def fileno(f: Any) -> int:
    """Return the descriptor of a file, or the number itself. Raises AttributeError or ValueError for none."""
    if f is None:
        raise ValueError("there is no descriptor of None")
    return f if isinstance(f, int) else f.fileno()


def maybe_fileno(f: Any) -> int | None:
    """Return the descriptor of a file, or None."""
    try:
        return fileno(f)
    except FILENO_ERRORS:
        return None


def coro(gen: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose generators stand at their first ``yield`` when they are returned. A decorator."""

    @wraps(gen)
    def started(*args: Any, **kwargs: Any) -> Any:
        generator = gen(*args, **kwargs)
        next(generator)
        return generator

    return started


def entrypoints(namespace: str) -> Iterator[tuple[Any, Any]]:
    """Give (entry point, loaded object) for the entry points of a group."""
    from importlib.metadata import entry_points

    return ((each, each.load()) for each in entry_points(group=namespace))


def get_gevent_concurrent_error() -> Any:
    """Return gevent's error for two that wait for one socket, or None if gevent is not imported."""
    return getattr(sys.modules.get("gevent.exceptions"), "ConcurrentObjectUseError", None)
