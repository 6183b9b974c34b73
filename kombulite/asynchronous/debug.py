"""What an event loop waits for, as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from kombulite.utils.eventio import ERR, READ, WRITE
from kombulite.utils.functional import reprcall

__all__ = ["callback_for", "repr_active", "repr_events", "repr_flag", "repr_readers", "repr_writers"]


class Watching(Protocol):
    """A hub, whose module imports this one: what it has for which descriptor."""

    readers: dict[int, Any]
    writers: dict[int, Any]
    consolidate: set[int]
    consolidate_callback: Any


def repr_flag(flag: int) -> str:
    """Return letters for event bits: R, W and ``!`` for an error.

    Args:
        flag: Event bits.
    """
    return "".join(letter for bit, letter in ((READ, "R"), (WRITE, "W"), (ERR, "!")) if flag & bit)


def _rcb(obj: Any) -> str:
    """Return a callback, with its arguments if it has some, as text."""
    if obj is None or isinstance(obj, str):
        return obj or "<missing>"
    callback, *args = obj if isinstance(obj, tuple) else (obj,)
    name: str = getattr(callback, "__name__", repr(callback))
    return reprcall(name, *args) if args else name


def _repr_table(table: Any, kind: str) -> list[str]:
    return [f"({fd}){_rcb(entry)}->{kind}" for fd, entry in table.items()]


def repr_readers(hub: Watching) -> list[str]:
    """Return a line for each descriptor that is read from.

    Args:
        hub: The hub.
    """
    return _repr_table(hub.readers, repr_flag(READ | ERR))


def repr_writers(hub: Watching) -> list[str]:
    """Return a line for each descriptor that is written to.

    Args:
        hub: The hub.
    """
    return _repr_table(hub.writers, repr_flag(WRITE))


def repr_active(hub: Watching) -> str:
    """Return all of them.

    Args:
        hub: The hub.
    """
    return ", ".join([*repr_readers(hub), *repr_writers(hub)])


def repr_events(hub: Watching, events: Iterable[tuple[int, int]]) -> str:
    """Return (descriptor, event bits) pairs with their callbacks.

    Args:
        hub: The hub.
        events: Pairs of descriptor and event bits.
    """
    return ", ".join(f"{_rcb(callback_for(hub, fd, flag, '(GONE)'))}({fd})->{repr_flag(flag)}" for fd, flag in events)


def callback_for(hub: Watching, fd: int, flag: int, *default: Any) -> Any:
    """Return what the hub has for an event at a descriptor: callback and arguments, or its one for several writers.

    Args:
        hub: The hub.
        fd: The descriptor.
        flag: Event bits: ``READ`` or ``WRITE``; for others the result is None.
        *default: Value that is returned if there is nothing.

    Raises:
        KeyError: There is nothing, and no default.
    """
    if not flag & (READ | WRITE):
        return None
    if flag & WRITE and not flag & READ and fd in hub.consolidate:
        return hub.consolidate_callback
    table = hub.readers if flag & READ else hub.writers
    return table.get(fd, *default) if default else table[fd]
