"""What holds for all connections of this process: hooks, those who watch for connections, and what a fork does."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from kombulite._client.interfaces import Connection, Hook

_connections: WeakSet[Connection] = WeakSet()
_hooks: list[Hook] = []
_watchers: list[Callable[[Any], object]] = []


def _living() -> list[Connection]:
    """Return the connections that there are."""
    while True:
        try:
            return list(_connections)
        except RuntimeError:  # another thread has made one meanwhile
            continue


def register(connection: Connection) -> None:
    """Note a new connection.

    Args:
        connection: The connection.
    """
    _connections.add(connection)
    for hook in _hooks:
        connection.add_hook(hook)
    for watcher in _watchers:
        watcher(connection)


def watch_connections(watcher: Callable[[Any], object]) -> None:
    """Call a function with each connection of this process: the existing ones now, later ones when they are created.

    Args:
        watcher: Called with the connection.
    """
    _watchers.append(watcher)
    for connection in _living():
        watcher(connection)


def add_hook(hook: Hook) -> None:
    """Install a hook on all connections of this process, existing and later ones.

    Args:
        hook: The hook.
    """
    _hooks.append(hook)
    for connection in _living():
        connection.add_hook(hook)


def remove_hook(hook: Hook) -> None:
    """Remove a hook from all connections of this process.

    Args:
        hook: The hook.
    """
    if hook in _hooks:
        _hooks.remove(hook)
    for connection in _living():
        connection.remove_hook(hook)


def _leave_to_parent() -> None:
    """In a forked child: connections are closed here, and go on in the parent."""
    for connection in _living():
        connection.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
