"""Waiting for many descriptors, over the standard library's selectors."""

from __future__ import annotations

import errno
import os
import select
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


class Poller:
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

    def register(self, fd: int, events: int) -> int:
        """Wait for events at a descriptor, instead of those waited for there before. Returns it.

        Raises ValueError, OSError.
        """
        wanted = (selectors.EVENT_READ if events & READ else 0) | (selectors.EVENT_WRITE if events & WRITE else 0)
        self.unregister(fd)  # not modified: the number may be another file's by now
        self._own.register(fd, wanted)
        return fd

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


def poll(*args: Any, **kwargs: Any) -> Poller:
    """Return a poller."""
    return Poller()


def selector_of(file: Any, events: int) -> selectors.BaseSelector:
    """Return a selector of one socket. ``events``: those of ``selectors``."""
    # Neither of the two keeps a descriptor, which a forked child would share. Green threads may leave only the second.
    selector = selectors.PollSelector() if hasattr(selectors, "PollSelector") else selectors.SelectSelector()
    selector.register(file, events)
    return selector


# --- names that kombu's users know: those of the system's interfaces, None where it lacks them

xpoll, epoll = getattr(select, "poll", None), getattr(select, "epoll", None)
kqueue, kevent = getattr(select, "kqueue", None), getattr(select, "kevent", None)

POLL_READ, POLL_WRITE, POLL_ERR = READ, WRITE, ERR
POLLIN, POLLOUT, POLLERR, POLLHUP, POLLNVAL = 0x001, 0x004, 0x008, 0x010, 0x020

# From BSD's <sys/event.h>.
KQ_FILTER_READ, KQ_FILTER_WRITE, KQ_FILTER_AIO, KQ_FILTER_VNODE = -1, -2, -3, -4
KQ_FILTER_PROC, KQ_FILTER_SIGNAL, KQ_FILTER_TIMER = -5, -6, -7
KQ_EV_ADD, KQ_EV_DELETE, KQ_EV_ENABLE, KQ_EV_CLEAR, KQ_EV_ERROR, KQ_EV_EOF = 1, 2, 4, 32, 0x4000, 0x8000
KQ_NOTE_DELETE, KQ_NOTE_WRITE, KQ_NOTE_EXTEND, KQ_NOTE_ATTRIB = 1, 2, 4, 8
KQ_NOTE_LINK, KQ_NOTE_RENAME, KQ_NOTE_REVOKE, KQ_NOTE_LOWAT = 16, 32, 64, 1
