"""Waiting for many descriptors: one class for each of the system's interfaces, by kombu's names.

``poll()`` returns an object of the best one. All take descriptors, and give pairs of descriptor and event bits.
"""

from __future__ import annotations

import errno
import math
import os
import select
import selectors
import sys
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from numbers import Integral
from typing import Any

from kombulite.utils.compat import detect_environment, fileno

__all__ = ["ERR", "READ", "SELECT_BAD_FD", "WRITE", "poll"]

#: Events, as ``select.poll`` numbers them.
READ = POLL_READ = 0x001
WRITE = POLL_WRITE = 0x004
ERR = POLL_ERR = 0x008 | 0x010

#: What waiting for a descriptor that is closed fails with.
SELECT_BAD_FD = {errno.EBADF}

# --- the system's interfaces, None where it lacks them. The classes look them up here when they are used.

_selectf, _selecterr = select.select, select.error
xpoll, epoll = getattr(select, "poll", None), getattr(select, "epoll", None)
kqueue, kevent = getattr(select, "kqueue", None), getattr(select, "kevent", None)

POLLIN, POLLOUT, POLLERR, POLLHUP, POLLNVAL = 0x001, 0x004, 0x008, 0x010, 0x020

# From BSD's <sys/event.h>.
KQ_FILTER_READ, KQ_FILTER_WRITE, KQ_FILTER_AIO, KQ_FILTER_VNODE = -1, -2, -3, -4
KQ_FILTER_PROC, KQ_FILTER_SIGNAL, KQ_FILTER_TIMER = -5, -6, -7
KQ_EV_ADD, KQ_EV_DELETE, KQ_EV_ENABLE, KQ_EV_CLEAR, KQ_EV_ERROR, KQ_EV_EOF = 1, 2, 4, 32, 0x4000, 0x8000
KQ_NOTE_DELETE, KQ_NOTE_WRITE, KQ_NOTE_EXTEND, KQ_NOTE_ATTRIB = 1, 2, 4, 8
KQ_NOTE_LINK, KQ_NOTE_RENAME, KQ_NOTE_REVOKE, KQ_NOTE_LOWAT = 16, 32, 64, 1


def _number(error: BaseException) -> int | None:
    return getattr(error, "errno", None)


def _unless_interrupted(wait: Callable[..., Any], *args: Any) -> Any:
    """Return what a wait returns, or None if a signal ended it."""
    try:
        return wait(*args)
    except Exception as error:
        if _number(error) == errno.EINTR:
            return None
        raise


@contextmanager
def _closed_ones_ignored() -> Any:
    try:
        yield
    except OSError as error:
        if _number(error) not in SELECT_BAD_FD:
            raise


def _merged(found: Iterable[tuple[Any, int]]) -> list[tuple[int, int]]:
    """Return one pair for each descriptor, with all of its events."""
    events: dict[int, int] = {}
    for file, event in found:
        fd: Any = file if isinstance(file, Integral) else file.fileno()
        events[fd] = events.get(fd, 0) | event
    return list(events.items())


class _epoll:  # noqa: N801 - kombu's name
    """Linux's. In a forked child it starts without descriptors."""

    def __init__(self) -> None:
        self._epoll = epoll()  # type: ignore[misc]
        self._process = os.getpid()

    @property
    def _own(self) -> Any:
        # A forked child shares its parent's: what one of them forgets there, the other does not hear of any more.
        if self._process != os.getpid():
            self._epoll.close()
            _epoll.__init__(self)
        return self._epoll

    def register(self, fd: Any, events: int) -> Any:
        """Wait for events at a descriptor, instead of those waited for there before. Returns it.

        Raises ValueError, OSError.
        """
        try:
            self._own.register(fd, events)
        except Exception as error:
            if _number(error) != errno.EEXIST:
                raise
            self._epoll.modify(fd, events)
        return fd

    def unregister(self, fd: Any) -> None:
        """Wait for it no longer; one that is not known is left alone."""
        try:
            self._own.unregister(fd)
        except (ValueError, KeyError, TypeError):
            pass
        except OSError as error:
            if _number(error) not in (errno.ENOENT, errno.EPERM):
                raise

    def poll(self, timeout: float | None) -> Any:
        """Return pairs of descriptor and events, after ``timeout`` seconds (None: when there are some) at the latest.

        Returns None if a signal ended the wait.
        """
        return _unless_interrupted(self._own.poll, -1 if timeout is None else timeout)

    def close(self) -> None:
        """Close it."""
        self._epoll.close()


class _kqueue:  # noqa: N801 - kombu's name
    """BSD's. ``on_file_change`` is called with the events of watched files."""

    w_fflags = KQ_NOTE_WRITE | KQ_NOTE_EXTEND | KQ_NOTE_ATTRIB | KQ_NOTE_DELETE

    def __init__(self) -> None:
        self._kqueue = kqueue()  # type: ignore[misc]
        self._kcontrol = self._kqueue.control
        self._active: dict[Any, int] = {}
        self.on_file_change: Callable[[list[Any]], Any] | None = None

    def register(self, fd: Any, events: int) -> Any:
        """Wait for events at a descriptor. Returns it."""
        self._control(fd, events, KQ_EV_ADD)
        self._active[fd] = events
        return fd

    def unregister(self, fd: Any) -> None:
        """Wait for it no longer; one that is not known is left alone."""
        events = self._active.pop(fd, 0)
        with suppress(OSError):
            self._control(fd, events, KQ_EV_DELETE)

    def watch_file(self, fd: Any) -> None:
        """Have ``on_file_change`` called when a file changes."""
        flags = KQ_EV_ADD | KQ_EV_ENABLE | KQ_EV_CLEAR
        self._apply(fd, filter=KQ_FILTER_VNODE, flags=flags, fflags=self.w_fflags)

    def unwatch_file(self, fd: Any) -> None:
        """Watch a file no longer."""
        self._apply(fd, filter=KQ_FILTER_VNODE, flags=KQ_EV_DELETE, fflags=self.w_fflags)

    def _apply(self, fd: Any, **options: int) -> None:
        self._kcontrol([kevent(fd, **options)], 0)  # type: ignore[misc]

    def _control(self, fd: Any, events: int, flags: int) -> None:
        filters = [KQ_FILTER_WRITE] if events & WRITE else []
        if events and (events & READ or not filters):
            filters.append(KQ_FILTER_READ)
        for each in filters:
            with suppress(ValueError):
                self._apply(fd, filter=each, flags=flags)

    def poll(self, timeout: float | None) -> Any:
        """Return pairs of descriptor and events, or None if a signal ended the wait."""
        found = _unless_interrupted(self._kcontrol, None, 1000, timeout)
        if found is None:
            return None
        events, changes = [], []
        for each in found:
            if each.filter == KQ_FILTER_READ:
                events.append((each.ident, READ))
            elif each.filter == KQ_FILTER_WRITE:
                events.append((each.ident, ERR if each.flags & KQ_EV_EOF else WRITE))
            elif each.filter == KQ_EV_ERROR:
                events.append((each.ident, ERR))
            elif each.filter == KQ_FILTER_VNODE:
                changes.append(each)
                if each.fflags & KQ_NOTE_DELETE:
                    self.unregister(each.ident)
        if changes and self.on_file_change is not None:
            self.on_file_change(changes)
        return _merged(events)

    def close(self) -> None:
        """Close it."""
        self._kqueue.close()


class _poll:  # noqa: N801 - kombu's name
    """The one of POSIX."""

    #: Our bits, and the system's that ask for them.
    WANTED = ((READ, POLLIN), (WRITE, POLLOUT), (ERR, POLLERR))

    #: The system's bits, and ours that tell of them.
    FOUND = ((POLLIN, READ), (POLLOUT, WRITE), (POLLERR | POLLNVAL | POLLHUP, ERR))

    def __init__(self) -> None:
        self._poller: Any = xpoll()  # type: ignore[misc]
        self._quick_poll, self._quick_register = self._poller.poll, self._poller.register
        self._quick_unregister = self._poller.unregister

    def register(self, fd: Any, events: int) -> Any:
        """Wait for events at a descriptor, or a file. Returns the descriptor."""
        fd = fileno(fd)
        self._quick_register(fd, sum(theirs for ours, theirs in self.WANTED if events & ours))
        return fd

    def unregister(self, fd: Any) -> Any:
        """Wait for it no longer. A file that was closed goes with the next wait. Returns the descriptor."""
        with _closed_ones_ignored():
            fd = fileno(fd)
            self._quick_unregister(fd)
        return fd

    def poll(self, timeout: float | None, round: Callable[[float], int] = math.ceil) -> Any:
        """Return pairs of descriptor and events, or None if a signal ended the wait."""
        found = _unless_interrupted(self._quick_poll, round(max(timeout or 0, 0) * 1000))
        if found is None:
            return None
        return _merged((fd, sum(ours for theirs, ours in self.FOUND if event & theirs)) for fd, event in found)

    def close(self) -> None:
        """Forget all descriptors."""
        self._poller = None


class _select:  # noqa: N801 - kombu's name
    """The one that every system has, and libraries of green threads replace."""

    def __init__(self) -> None:
        self._all = self._rfd, self._wfd, self._efd = set[int](), set[int](), set[int]()

    def register(self, fd: Any, events: int) -> Any:
        """Wait for events at a descriptor, or a file. Returns the descriptor."""
        fd = fileno(fd)
        for bit, descriptors in zip((READ, WRITE, ERR), self._all, strict=True):
            if events & bit:
                descriptors.add(fd)
        return fd

    def unregister(self, fd: Any) -> None:
        """Wait for it no longer; one that is not known, or was closed, is left alone."""
        with _closed_ones_ignored():
            fd = fileno(fd)
            for descriptors in self._all:
                descriptors.discard(fd)

    def _remove_bad(self) -> Any:
        for fd in set().union(*self._all):
            try:
                _selectf([fd], [], [], 0)
            except OSError as error:
                if _number(error) in SELECT_BAD_FD:
                    self.unregister(fd)

    def poll(self, timeout: float | None) -> Any:
        """Return pairs of descriptor and events, or None if a signal or a closed descriptor ended the wait."""
        try:
            found = _unless_interrupted(_selectf, *self._all, timeout)
        except OSError as error:
            if _number(error) not in SELECT_BAD_FD:
                raise
            return self._remove_bad()
        if found is None:
            return None
        return _merged((fd, bit) for bit, ready in zip((READ, WRITE, ERR), found, strict=True) for fd in ready)

    def close(self) -> None:
        """Forget all descriptors."""
        for descriptors in self._all:
            descriptors.clear()


POLLERS = (_epoll, _kqueue, _poll, _select)


def _get_poller() -> Any:
    """Return the class for this system."""
    if detect_environment() != "default":  # green threads
        return _select
    if epoll is not None:
        return _epoll
    if kqueue is not None and "netbsd" in sys.platform:
        return _kqueue
    return _select if xpoll is None else _poll


def poll(*args: Any, **kwargs: Any) -> Any:
    """Return a new object to wait with, of the best class that the system has.

    Args:
        *args: Arguments of the class, of which the system's classes take none.
        **kwargs: Keyword arguments of the class, likewise.
    """
    return _get_poller()(*args, **kwargs)


def selector_of(file: Any, events: int) -> selectors.BaseSelector:
    """Return a selector of one socket.

    Args:
        file: The socket, or its descriptor.
        events: ``selectors.EVENT_READ``, ``selectors.EVENT_WRITE`` or both.
    """
    # Neither of the two keeps a descriptor, which a forked child would share. Green threads may leave only the second.
    selector = selectors.PollSelector() if hasattr(selectors, "PollSelector") else selectors.SelectSelector()
    selector.register(file, events)
    return selector
