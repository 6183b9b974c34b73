"""Locks for threads that may be interrupted: an exception from a signal handler leaves none of them taken.

``with lock:`` over a lock of ``threading`` is not safe from that on CPython 3.14, ``with condition:`` nowhere: the
handler may run when the lock is taken, and the block that would release it has not begun.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from kombulite._core import NOT_ACQUIRED, BaseLock, Condition

__all__ = ["NOT_ACQUIRED", "Condition", "Lock"]


class Lock(BaseLock):
    """Lock that a thread may take several times.

    Use the lock by ``with``, or by ``call`` where taking it may fail or is part of a hot path. Not by ``acquire`` and
    ``try``: between the two a signal handler may run.

    Args:
        on_release: Called without arguments before the lock is released, and again if a signal handler interrupts it.
    """

    def __init__(self, on_release: Callable[[], object] | None = None) -> None:
        # Looked up here, not imported: gevent and eventlet put their own in the place of these.
        super().__init__(threading.Lock, threading.get_ident, on_release)

    def __enter__(self) -> None:
        # In Python, because the interpreter runs handlers behind a call of a compiled function, and not behind the
        # return of a Python function. `__exit__` is compiled, because it does run them where a Python function starts.
        depth = self.depth()
        try:
            self.acquire()
        except BaseException:
            self.release_to(depth)
            raise
