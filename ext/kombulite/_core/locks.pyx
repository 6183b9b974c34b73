"""Locks that an exception from a signal handler never leaves taken.

CPython runs signal handlers between the instructions of Python code: behind a call, at a function's start, at the end
of a loop. Behind ``lock.acquire()``, and since 3.14 behind the ``__enter__`` of a ``with`` statement, a lock is taken
and nothing is there yet that would release it. Compiled code runs no handler, except while it waits for a lock; and an
exception that is raised there leaves the lock to others.

The locks that wait, and what tells threads from one another, are given by the facade: they are green ones for green
threads.
"""

cimport cython

#: What ``BaseLock.call`` returns where the lock was not to be had in time.
NOT_ACQUIRED = object()


cdef class BaseLock:
    """A lock that a thread may take several times. The base of the facade's ``Lock``, which adds ``__enter__``.

    ``factory()`` makes a lock that is taken once, ``ident()`` returns the number of the running thread;
    ``on_release()`` is called before the lock goes to others, and once more if it raises.
    """

    def __init__(self, factory, ident, on_release=None):
        lock = factory()
        self._factory = factory
        self._take = lock.acquire
        self._give = lock.release
        self._ident = ident
        self._on_release = on_release

    def acquire(self, bint blocking=True, timeout=-1):
        """Acquire the lock. Return whether this thread has it.

        Args:
            blocking: If True, wait for it.
            timeout: Seconds to wait (-1: no limit).
        """
        if not blocking:
            return self._acquire(0)
        return self._acquire(None if timeout == -1 else timeout)

    cdef bint _acquire(self, timeout) except -1:
        cdef unsigned long long me = self._ident()
        if self._owner == me:
            self._depth += 1
            return True
        if not (self._take() if timeout is None else self._take(True, timeout) if timeout > 0 else self._take(False)):
            return False
        self._owner = me
        self._depth = 1
        return True

    def release(self):
        """Undo one ``acquire``. Raises RuntimeError where the lock is not this thread's."""
        self._release()

    cdef int _release(self) except -1:
        if self._owner != <unsigned long long> self._ident():
            raise RuntimeError("cannot release un-acquired lock")
        if self._depth > 1:
            self._depth -= 1
            return 0
        try:
            if self._on_release is not None:
                try:
                    self._on_release()
                except BaseException:
                    self._on_release()
                    raise
        finally:
            self._depth = 0
            self._owner = 0
            self._give()
        return 0

    def __exit__(self, *exc_info):
        self._release()

    def depth(self):
        """Return how often this thread has taken the lock."""
        return self._depth if self._owner == <unsigned long long> self._ident() else 0

    def release_to(self, Py_ssize_t depth):
        """Release the lock until this thread has acquired it no more than so many times.

        Args:
            depth: How many times.
        """
        while self._owner == <unsigned long long> self._ident() and self._depth > depth:
            self._release()

    def call(self, timeout, function, *arguments):
        """Call a function while the lock is held. Return what it returns, NOT_ACQUIRED if another thread has the lock.

        Args:
            timeout: Seconds to wait for the lock (0: not at all, None: no limit).
            function: The function.
            *arguments: Its arguments.
        """
        if not self._acquire(timeout):
            return NOT_ACQUIRED
        try:
            return function(*arguments)
        finally:
            self._release()

    cdef Py_ssize_t _let_go(self) except -1:
        """Release the lock, which is this thread's, however often it was taken; returns how often that was."""
        cdef Py_ssize_t depth = self._depth
        self._depth = 0
        self._owner = 0
        self._give()
        return depth

    cdef int _take_back(self, Py_ssize_t depth) except -1:
        """Take the lock as often as before. What a signal handler raises meanwhile is raised when the lock is taken."""
        interrupt = None
        while True:
            try:
                self._take()
                break
            except BaseException as error:
                interrupt = error
        self._owner = self._ident()
        self._depth = depth
        if interrupt is not None:
            raise interrupt
        return 0


@cython.final
cdef class Condition:
    """Threads that wait for a change of what ``lock`` guards. All methods want the lock held, and raise RuntimeError.

    An interrupted wait leaves nothing behind: a notification that had reached it goes on to another thread.
    """

    cdef readonly BaseLock lock
    cdef list _waiters

    def __cinit__(self, BaseLock lock not None):
        self.lock = lock
        self._waiters = []

    def wait(self, timeout=None):
        """Release the lock, wait to be notified, and take the lock again. Returns whether there was a notification.

        Args:
            timeout: Seconds to wait; None: no limit.
        """
        cdef Py_ssize_t depth
        cdef bint is_notified = False
        if not self.lock.depth():
            raise RuntimeError("cannot wait on un-acquired lock")
        waiter = self.lock._factory()
        acquire = waiter.acquire
        acquire()
        self._waiters.append(waiter)
        depth = self.lock._let_go()
        try:
            is_notified = acquire() if timeout is None else acquire(True, timeout) if timeout > 0 else acquire(False)
        except BaseException:
            self._come_back(waiter, depth, True)
            raise
        self._come_back(waiter, depth, False)
        return is_notified

    cdef int _come_back(self, waiter, Py_ssize_t depth, bint is_interrupted) except -1:
        try:
            self.lock._take_back(depth)
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif is_interrupted:
                self._notify(1)
        return 0

    def notify(self, Py_ssize_t number=1):
        """Wake threads that wait, those first that wait longest.

        Args:
            number: Number of threads to wake.
        """
        self._notify(number)

    def notify_all(self):
        """Wake all threads that wait."""
        self._notify(len(self._waiters))

    cdef int _notify(self, Py_ssize_t number) except -1:
        if not self.lock.depth():
            raise RuntimeError("cannot notify on un-acquired lock")
        for waiter in self._waiters[:number]:
            self._waiters.remove(waiter)
            waiter.release()
        return 0
