"""What an event loop waits for, as text."""

from __future__ import annotations

from typing import Any

from kombulite.utils.eventio import ERR, READ, WRITE
from kombulite.utils.functional import reprcall

__all__ = ["callback_for", "repr_active", "repr_events", "repr_flag", "repr_readers", "repr_writers"]


def repr_flag(flag: int) -> str:
    """Return letters for event bits: R, W and ``!`` for an error."""
    return "".join(letter for bit, letter in ((READ, "R"), (WRITE, "W"), (ERR, "!")) if flag & bit)


def _repr_readers(table: Any, kind: str) -> list[str]:
    return [f"({fd}){_name(entry)}->{kind}" for fd, entry in table.items()]


def _name(entry: Any) -> str:
    callback, args = entry
    return reprcall(getattr(callback, "__name__", repr(callback)), args)


def repr_readers(hub: Any) -> list[str]:
    """Return a line for each descriptor that is read from."""
    return _repr_readers(hub.readers, repr_flag(READ | ERR))


def repr_writers(hub: Any) -> list[str]:
    """Return a line for each descriptor that is written to."""
    return _repr_readers(hub.writers, repr_flag(WRITE))


def repr_active(hub: Any) -> str:
    """Return all of them."""
    return ", ".join([*repr_readers(hub), *repr_writers(hub)])


def repr_events(hub: Any, events: Any) -> str:
    """Return (descriptor, event bits) pairs with their callbacks."""
    return ", ".join(f"{_callback_name(hub, fd, flag)}({fd})->{repr_flag(flag)}" for fd, flag in events or ())


def _callback_name(hub: Any, fd: int, flag: int) -> str:
    callback = callback_for(hub, fd, flag, "(GONE)")
    return callback if isinstance(callback, str) else getattr(callback, "__name__", repr(callback))


def callback_for(hub: Any, fd: int, flag: int, *default: Any) -> Any:
    """Return the callback for an event at a descriptor, or the default. Raises KeyError without one."""
    for bit, table in ((READ, hub.readers), (WRITE, hub.writers), (ERR, hub.readers)):
        if flag & bit and fd in table:
            return table[fd][0]
    if default:
        return default[0]
    raise KeyError(fd)
