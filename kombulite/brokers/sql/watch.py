"""A watch on a file that other processes write to: Linux's inotify, by the C library."""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import suppress
from math import inf
from time import monotonic

__all__ = ["FileWatch"]

IN_MODIFY = 0x2
IN_ONESHOT = 0x80000000
EVENT = struct.Struct("iIII")  # of a watch on a file: no name follows


class FileWatch:
    """A watch that reports the first write to a file after each call of ``arm``. Raises OSError where there is none.

    One thread arms it, another one waits for ``fileno`` and takes what is reported.

    Attributes:
        is_armed: Whether the next write will be reported.
        reported_at: When one was reported last (monotonic clock).
    """

    def __init__(self, path: str) -> None:
        try:
            library = ctypes.CDLL(None, use_errno=True)
            start, self._add = library.inotify_init1, library.inotify_add_watch
        except (AttributeError, TypeError) as error:  # Windows has no library of the process
            raise OSError(f"no inotify: {error}") from error
        self._path = os.fsencode(path)
        self.is_armed = False
        self.reported_at = -inf
        self._descriptor = int(start(os.O_NONBLOCK | os.O_CLOEXEC))
        self._check(self._descriptor)
        try:
            self.arm()
        except OSError:
            self.close()
            raise

    def _check(self, result: int) -> None:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def arm(self) -> None:
        """Report the next write."""
        self.is_armed = True  # before: it may be reported at once
        try:
            self._check(self._add(self._descriptor, self._path, ctypes.c_uint32(IN_MODIFY | IN_ONESHOT)))
        except OSError:
            self.is_armed = False
            raise

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._descriptor

    def take_notifications(self) -> int:
        """Return how many writes were reported since the last call."""
        data = b""
        with suppress(BlockingIOError):
            data = os.read(self._descriptor, 4096)
        count: int = sum(bool(mask & IN_MODIFY) for _, mask, _, _ in EVENT.iter_unpack(data))
        if count:
            self.reported_at, self.is_armed = monotonic(), False
        return count

    def close(self) -> None:
        """End the watch. May be repeated."""
        descriptor, self._descriptor = self._descriptor, -1
        self.is_armed = False
        if descriptor >= 0:
            os.close(descriptor)
