"""Waiting for many descriptors, over the standard library's selectors."""

from __future__ import annotations

import errno
import os
import selectors
from contextlib import suppress
from typing import Any

__all__ = ["ERR", "READ", "SELECT_BAD_FD", "WRITE", "poll"]

#: Events, as ``select.poll`` numbers them; an error or a hangup shows as what was waited for.
READ = 0x001
WRITE = 0x004
ERR = 0x008 | 0x010

#: What waiting for a descriptor that is closed fails with.
SELECT_BAD_FD = {errno.EBADF}


class _Poller:
    """Descriptors, and the events to wait for at each. In a forked child it starts with none."""

    def __init__(self) -> None:
        self._open()

    def _open(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._process = os.getpid()

    @property
    def _own(self) -> selectors.BaseSelector:
        # A forked child shares its parent's epoll: what one of them forgets there, the other does not hear of any more.
        if self._process != os.getpid():
            self._selector.close()
            self._open()
        return self._selector

    def register(self, fd: int, events: int) -> None:
        """Wait for events at a descriptor, instead of those waited for there before. Raises ValueError, OSError."""
        wanted = (selectors.EVENT_READ if events & READ else 0) | (selectors.EVENT_WRITE if events & WRITE else 0)
        self.unregister(fd)  # not modified: the number may be another file's by now
        self._own.register(fd, wanted)

    def unregister(self, fd: int) -> None:
        """Wait for it no longer; one that is not known is left alone."""
        with suppress(KeyError):
            self._own.unregister(fd)

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Pairs of descriptor and events, after ``timeout`` seconds (None: when there are some) at the latest."""
        found = []
        for key, events in self._own.select(timeout):
            seen = (READ if events & selectors.EVENT_READ else 0) | (WRITE if events & selectors.EVENT_WRITE else 0)
            found.append((key.fd, seen))
        return found

    def close(self) -> None:
        """Close it."""
        self._selector.close()


def poll(*args: Any, **kwargs: Any) -> _Poller:
    """A poller."""
    return _Poller()


def selector_of(file: Any, events: int) -> selectors.BaseSelector:
    """A selector of one socket. ``events``: those of ``selectors``."""
    # Neither of the two keeps a descriptor, which a forked child would share. Green threads may leave only the second.
    selector = selectors.PollSelector() if hasattr(selectors, "PollSelector") else selectors.SelectSelector()
    selector.register(file, events)
    return selector
