"""Waiting for nodes that are slow or cannot be reached."""

from __future__ import annotations

from collections.abc import Callable

from kombulite.utils.locks import Condition, Lock

#: Seconds between two calls of what a thread does meanwhile.
STEP = 0.01


class Pauses:
    """A condition over the lock of all nodes. ``meanwhile()``: is called again and again while a thread waits."""

    def __init__(self, lock: Lock, meanwhile: Callable[[], object] | None = None) -> None:
        self.lock = lock
        self._condition = Condition(lock)
        self._meanwhile = meanwhile

    def wait(self, seconds: float) -> None:
        """Leave the lock to other threads, until ``notify_all`` or for so many seconds."""
        while self._meanwhile is not None:
            self._meanwhile()
            if seconds <= STEP:
                break
            if self._condition.wait(STEP):
                return
            seconds -= STEP
        self._condition.wait(seconds)

    def notify_all(self) -> None:
        """Have all threads go on that wait."""
        self._condition.notify_all()
