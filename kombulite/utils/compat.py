"""What differs between environments."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import wraps
from importlib import import_module
from io import UnsupportedOperation
from itertools import count
from typing import Any, Protocol
from weakref import ref

from kombulite.exceptions import reraise  # noqa: F401 - kombu's users find it here
from kombulite.utils.logs import log

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

_environment: str | None = None

FILENO_ERRORS = (AttributeError, ValueError, UnsupportedOperation)


#: What children that are forked call, by number: (object, function).
_after_fork: dict[int, tuple[ref[Any], Callable[[Any], Any]]] = {}
_numbers = count()


def register_after_fork(obj: Any, func: Callable[[Any], Any]) -> None:
    """Have ``func(obj)`` called in children that are forked from now on, as long as ``obj`` exists.

    Args:
        obj: The object, which is kept by a weak reference.
        func: The function. An error that it raises is logged.
    """
    number = next(_numbers)
    _after_fork[number] = ref(obj, lambda _: _after_fork.pop(number, None)), func


def _begin_child() -> None:
    for reference, func in list(_after_fork.values()):
        obj = reference()
        if obj is not None:
            try:
                func(obj)
            except Exception as error:  # one that fails keeps none of the others away, as with Python's own
                log("kombulite.utils.compat", "ERROR", "ignored in a forked child: %r", error)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)


def _detect_environment() -> str:
    """Return which library of green threads has replaced the sockets, or ``default``."""
    socket: Any = sys.modules.get("socket")  # what nobody has imported nobody has replaced
    with suppress(ImportError):
        if socket and "eventlet" in sys.modules and import_module("eventlet.patcher").is_monkey_patched(socket):
            return "eventlet"
    with suppress(ImportError, AttributeError):
        if socket and "gevent" in sys.modules:
            from gevent import socket as green  # type: ignore[import-untyped]  # by name: of a stand-in too

            if green.socket is socket.socket:
                return "gevent"
    return "default"


def detect_environment() -> str:
    """Return ``gevent`` or ``eventlet`` if it has patched the socket module, else ``default``. Found out once."""
    global _environment  # noqa: PLW0603 - kombu's name for what was found out
    if _environment is None:
        _environment = _detect_environment()
    return _environment


@contextmanager
def nested(*managers: AbstractContextManager[Any]) -> Iterator[list[Any]]:
    """Enter several context managers, and give the list of their results.

    Args:
        *managers: The context managers, the outermost first.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(manager) for manager in managers]


class HasFileno(Protocol):
    """A file, a socket, or what passes for one."""

    def fileno(self) -> int:
        """Return its descriptor."""


def fileno(f: int | HasFileno | None) -> int:
    """Return the descriptor of a file.

    Args:
        f: The file, or its descriptor.

    Raises:
        ValueError: ``f`` is None, or the file is closed.
        AttributeError: ``f`` is not a file.
    """
    if f is None:
        raise ValueError("file descriptor is None")
    return f if isinstance(f, int) else f.fileno()


def maybe_fileno(f: Any) -> int | None:
    """Return the descriptor of a file, or None.

    Args:
        f: The file, or its descriptor; any other value has none.
    """
    try:
        return fileno(f)
    except FILENO_ERRORS:
        return None


def coro(gen: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose generators have run up to their first ``yield`` when it returns them.

    Args:
        gen: The generator function to decorate.
    """

    @wraps(gen)
    def started(*args: Any, **kwargs: Any) -> Any:
        generator = gen(*args, **kwargs)
        next(generator)
        return generator

    return started


def entrypoints(namespace: str) -> Iterator[tuple[Any, Any]]:
    """Give pairs of entry point and loaded object for the entry points of a group.

    Args:
        namespace: Name of the group.
    """
    found = import_module(__name__).importlib_metadata.entry_points(group=namespace)
    return ((each, each.load()) for each in found)


def get_gevent_concurrent_error() -> Any:
    """Return gevent's error for two that wait for one socket, or None if gevent is not imported."""
    if "gevent" not in sys.modules:
        return None
    return getattr(sys.modules.get("gevent.exceptions"), "ConcurrentObjectUseError", None)


def __getattr__(name: str) -> Any:
    if name == "importlib_metadata":  # it costs more than all else here
        return import_module("importlib.metadata")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
