"""The event loop: timers, ready calls and descriptors, in one thread.

The class is as wide as kombu's, whose methods Celery calls one by one.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, MutableSet
from contextlib import suppress
from queue import Empty
from threading import get_ident
from time import sleep
from types import GeneratorType
from typing import Any

from vine import Thenable, promise  # type: ignore[import-untyped]  # comes with py-amqp

from kombulite.asynchronous import debug
from kombulite.asynchronous.timer import Entry, Timer
from kombulite.log import get_logger
from kombulite.utils.compat import HasFileno, fileno
from kombulite.utils.eventio import ERR, POLLERS, READ, WRITE, poll
from kombulite.utils.locks import Lock
from kombulite.utils.objects import cached_property

__all__ = ["Hub", "Stop", "get_event_loop", "set_event_loop"]

logger = get_logger(__name__)

W_UNKNOWN_EVENT = "Received unknown event %r for fd %r"

_current_loop: Hub | None = None


class Stop(BaseException):
    """Raised to leave the loop."""


class ReadyCalls(MutableSet[Any]):
    """Set of the calls that are due, in the order in which they were asked for."""

    def __init__(self, calls: Any = ()) -> None:
        self._calls: dict[Any, None] = dict.fromkeys(calls)

    def add(self, call: Any) -> None:
        """Put a call behind the others, unless it is among them.

        Args:
            call: The call.
        """
        self._calls.setdefault(call)

    def discard(self, call: Any) -> None:
        """Take a call out, if it is there.

        Args:
            call: The call.
        """
        self._calls.pop(call, None)

    def __contains__(self, call: object) -> bool:
        return call in self._calls

    def __iter__(self) -> Iterator[Any]:
        return iter(self._calls)

    def __len__(self) -> int:
        return len(self._calls)

    def __repr__(self) -> str:
        return repr(set(self))


class _Waker:
    """A pair of sockets that wakes the poller, from another thread."""

    def __init__(self) -> None:
        self.reader, self.writer = socket.socketpair()
        for end in (self.reader, self.writer):
            end.setblocking(False)
        self.pid = os.getpid()

    def fileno(self) -> int:
        return self.reader.fileno()

    def wake(self) -> None:
        with suppress(OSError):  # it is full, which is enough to wake, or closed with its hub
            self.writer.send(b"\0")

    def drain(self) -> None:
        with suppress(OSError):
            self.reader.recv(65536)

    def close(self) -> None:
        self.reader.close()
        self.writer.close()


def get_event_loop() -> Hub | None:
    """Return the loop of this process, if one was set."""
    return _current_loop


def set_event_loop(loop: Hub | None) -> Hub | None:
    """Set the loop of this process, and return it.

    Args:
        loop: The loop, or None.
    """
    global _current_loop  # noqa: PLW0603 - it is the process's
    _current_loop = loop
    return loop


class Hub:
    """An event loop. Belongs to one thread; only ``call_soon`` and ``stop`` may be called from others.

    ``timer``: when what is to be called. ``on_tick``: called at each turn; ``on_close``: called with the hub when it is
    closed. ``readers`` and ``writers``: (callback, arguments) by descriptor; a generator may stand for a callback, and
    is advanced. ``propagate_errors``: exceptions of timed calls that leave the loop; others are logged. Descriptors in
    ``consolidate`` have no callback: those that can be written are given to ``consolidate_callback`` as a list.

    Args:
        timer: The timer of the loop (None: a new one).
    """

    READ, WRITE, ERR = READ, WRITE, ERR
    on_close: Any = None

    def __init__(self, timer: Timer | None = None) -> None:
        self.timer = Timer() if timer is None else timer
        self.readers: dict[int, Any] = {}
        self.writers: dict[int, Any] = {}
        self.on_tick: set[Callable[[], Any]] = set()
        self.on_close = set()
        self.consolidate: set[int] = set()
        self.consolidate_callback: Callable[[list[int]], Any] | None = None
        self.propagate_errors: tuple[type[BaseException], ...] = ()
        self._ready = ReadyCalls()
        self._ready_lock = Lock()
        self._loop: Iterator[None] | None = None
        self._running = False
        self._waker: _Waker | None = None  # a hub that never ran has none
        self._wake_pending = False
        self._loop_thread: int | None = None
        self._has_more_due = False  # timers, after a turn that has fired as many as it may
        self._create_poller()

    # --- descriptors

    @property
    def poller(self) -> Any:
        """The poller that waits for the descriptors; made anew after it was closed."""
        if not self._poller:
            self._create_poller()
        return self._poller

    @poller.setter
    def poller(self, poller: Any) -> None:
        self._poller = poller
        if self._waker is not None and poller is not None:
            poller.register(self._waker.fileno(), READ)

    def _create_poller(self) -> None:
        self.poller = poll()
        self._register_fd, self._unregister_fd = self._poller.register, self._poller.unregister

    def _close_poller(self) -> None:
        if self._poller is not None:
            self._poller.close()
            self._poller = self._register_fd = self._unregister_fd = None

    def _create_waker(self) -> _Waker:
        """Return a new waker, in the poller."""
        if self._waker is not None:  # a forked child's, which it shares with its parent
            self._unregister(self._waker.fileno())
            self._waker.close()
        self._waker, self._wake_pending = _Waker(), False
        self.poller.register(self._waker.fileno(), READ)
        return self._waker

    def _on_wakeup(self, waker: _Waker) -> None:
        waker.drain()  # first: a wakeup that comes in between must not be lost
        with self._ready_lock:
            self._wake_pending = False

    def add(
        self,
        fd: int | HasFileno,
        callback: Callable[..., Any] | Generator[Any, Any, Any] | None,
        flags: int,
        args: tuple[Any, ...] = (),
        consolidate: bool = False,
    ) -> None:
        """Call back when a descriptor (or a file) can be read (``READ`` in ``flags``), else written.

        Args:
            fd: The descriptor, or a file.
            callback: The function to call.
            flags: Event bits: ``READ``, ``WRITE``, ``ERR``.
            args: Its arguments.
            consolidate: If True, ``consolidate_callback`` gets all such descriptors at once.

        Raises:
            OSError: The system cannot wait for it.
            ValueError: It is closed, or no descriptor.
        """
        fd = fileno(fd)
        other = (WRITE if fd in self.writers else 0) if flags & READ else (READ | ERR if fd in self.readers else 0)
        try:
            self.poller.register(fd, flags | other)
        except (ValueError, OSError):
            self._remove_from_loop(fd)
            raise
        callbacks = self.readers if flags & READ else self.writers
        callbacks[fd] = None if consolidate else (callback, args)
        if consolidate:
            self.consolidate.add(fd)

    def add_reader(self, fds: Any, callback: Callable[..., object], *args: Any) -> None:
        """Call back when a descriptor can be read.

        Args:
            fds: The descriptor, or a file.
            callback: The function to call.
            *args: Its arguments.
        """
        self.add(fds, callback, READ | ERR, args)

    def add_writer(self, fds: Any, callback: Callable[..., object], *args: Any) -> None:
        """Call back when a descriptor can be written.

        Args:
            fds: The descriptor, or a file.
            callback: The function to call.
            *args: Its arguments.
        """
        self.add(fds, callback, WRITE, args)

    def remove(self, fd: int | HasFileno) -> None:
        """Forget a descriptor.

        Args:
            fd: The descriptor, or a file.
        """
        self._remove_from_loop(fileno(fd))

    def _remove_from_loop(self, fd: Any) -> None:
        try:
            self._unregister(fd)
        finally:
            self._discard(fd)

    def _discard(self, fd: Any) -> None:
        """Forget the callbacks of a descriptor, and leave the poller alone."""
        fd = fileno(fd)
        for listing in (self.readers, self.writers):
            listing.pop(fd, None)
        self.consolidate.discard(fd)

    def _unregister(self, fd: Any) -> None:
        """Have the poller forget a descriptor, which may be closed, and leave its callbacks alone."""
        with suppress(AttributeError, KeyError, OSError, ValueError):
            self.poller.unregister(fd)

    def remove_reader(self, fd: int | HasFileno) -> None:
        """Wait no longer for reading.

        Args:
            fd: The descriptor, or a file.
        """
        fd = fileno(fd)
        self._keep_other(fd, fd in self.writers, self.writers.get(fd), WRITE)

    def remove_writer(self, fd: int | HasFileno) -> None:
        """Wait no longer for writing.

        Args:
            fd: The descriptor, or a file.
        """
        fd = fileno(fd)
        self._keep_other(fd, fd in self.readers, self.readers.get(fd), READ | ERR)

    def _keep_other(self, fd: int, is_kept: bool, entry: Any, flags: int) -> None:
        """Forget a descriptor, except for one kind of events."""
        is_consolidated = flags == WRITE and fd in self.consolidate  # the writer alone
        self._remove_from_loop(fd)
        if is_kept:
            callback, args = entry or (None, ())
            with suppress(ValueError, OSError):  # it may be closed by now
                self.add(fd, callback, flags, args, **({"consolidate": True} if is_consolidated else {}))

    # --- calls

    def call_soon(self, callback: Callable[..., object], *args: Any) -> Any:
        """Call at the next turn; from any thread. Return vine's promise of it, which can be cancelled.

        Args:
            callback: The function to call.
            *args: Its arguments.
        """
        call = callback if isinstance(callback, Thenable) else promise(callback, args)
        with self._ready_lock:
            self._ready.add(call)
            # The thread that runs the loop looks before it sleeps, and is woken once for any number of calls.
            must_wake = not self._wake_pending and get_ident() != self._loop_thread
            self._wake_pending |= must_wake
        if must_wake and self._waker is not None:
            self._waker.wake()
        return call

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Entry:
        """Call in so many seconds.

        Args:
            delay: Seconds.
            callback: The function to call.
            *args: Its arguments.
        """
        return self.timer.call_after(delay, callback, args)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any) -> Entry | None:
        """Call at a time: of the monotonic clock, or a date.

        Args:
            when: Seconds of the monotonic clock, or a date.
            callback: The function to call.
            *args: Its arguments.
        """
        return self.timer.call_at(when, callback, args)

    def call_repeatedly(self, delay: float, callback: Callable[..., Any], *args: Any) -> Entry:
        """Call every so many seconds, until what it returns is cancelled.

        Args:
            delay: Seconds.
            callback: The function to call.
            *args: Its arguments.
        """
        return self.timer.call_repeatedly(delay, callback, args)

    def _pop_ready(self, put_off: Collection[Any] = ()) -> Any:
        """Return the calls that are due, which the hub then has no more, except those that are put off."""
        with self._ready_lock:
            ready, self._ready = self._ready, ReadyCalls()
            if put_off:
                self._ready = ReadyCalls(call for call in ready if call in put_off)
                ready -= self._ready
            return ready

    @cached_property
    def scheduler(self) -> Iterator[tuple[float | None, Entry | None]]:
        """The timer's entries as they come due."""
        return iter(self.timer)

    def fire_timers(
        self,
        min_delay: float = 1,
        max_delay: float = 10,
        max_timers: int = 10,
        propagate: tuple[type[BaseException], ...] = (),
    ) -> float:
        """Make the timed calls that are due. Return the seconds until the next is.

        Args:
            min_delay: Seconds that are returned at least.
            max_delay: Seconds that are returned at most.
            max_timers: Largest number of calls.
            propagate: Classes of exceptions that are raised; others are logged.
        """
        delay: float | None = None
        self._has_more_due = False
        for _ in range(max_timers if self.timer and self.timer._queue else 0):
            delay, entry = next(self.scheduler)
            if entry is None:
                break
            try:
                entry()
            except propagate:
                raise
            except Exception as error:
                if isinstance(error, (MemoryError, AssertionError)) or getattr(error, "errno", 0) == errno.ENOMEM:
                    raise
                logger.error("Error in timer: %r", error, exc_info=True)
        else:
            self._has_more_due = bool(self.timer and self.timer._queue)
        return min(delay or min_delay, max_delay)

    def on_callback_error(self, callback: object, exc: BaseException) -> None:
        """Log an error that a callback raised.

        Args:
            callback: The function that raised it.
            exc: The exception.
        """
        logger.error("Callback %r raised exception: %r", callback, exc, exc_info=True)

    # --- running

    def run_forever(self) -> None:
        """Run until ``stop``."""
        self._running = True
        try:
            while True:
                try:
                    self.run_once()
                except Stop:
                    return
        finally:
            self._running = False

    def run_once(self) -> None:
        """Run one turn: it may wait for events, 10 seconds at most."""
        try:
            next(self.loop)
        except StopIteration:
            self._loop = None
        except BaseException:
            self._loop = None  # a generator that raised is over
            raise

    def stop(self) -> None:
        """Leave the loop at the next turn; from any thread."""
        self.call_soon(_raise_stop_error)

    @property
    def loop(self) -> Iterator[None]:
        """The loop in course."""
        if self._loop is None:
            self._loop = self.create_loop()
        return self._loop

    def create_loop(self) -> Iterator[None]:
        """Return a generator that runs one turn at each step: calls that are due, timers, ticks, events."""
        while True:
            if self._waker is None or self._waker.pid != os.getpid():
                self._create_waker()
            self._loop_thread = get_ident()
            self._make_calls(self._pop_ready())
            put_off = set(self._ready)  # calls that the calls asked for are made in the next turn
            delay = self._fire_due_timers() if self.timer._queue else 1
            for tick in list(self.on_tick):
                tick()
            # What a tick asks for, such as an ack after the task, is done before the next event. Then a turn follows at
            # once: the tick may have set a timer, of which the delay knows nothing.
            asked = self._pop_ready(put_off)
            self._make_calls(asked)
            delay = 0 if asked or self._ready else delay
            if self.readers or self.writers or isinstance(self.poller, POLLERS):
                try:
                    events = self.poller.poll(delay)
                except ValueError:  # the poller was closed
                    return
                self._dispatch(events)
            else:
                sleep(min(delay, 0.1))
            yield

    def _make_calls(self, calls: Any) -> None:
        due = list(calls)
        try:
            while due:
                call = due.pop(0)
                if call:
                    call()
        finally:
            if due:  # one raised, and the others are due still
                with self._ready_lock:
                    self._ready = ReadyCalls([*due, *self._ready])

    def _fire_due_timers(self) -> float:
        self._has_more_due = False  # a program may have replaced the method that tells
        delay = self.fire_timers(propagate=self.propagate_errors)
        return 0 if self._has_more_due else delay

    def _dispatch(self, found: Any) -> None:
        writable = []
        for fd, events in found or ():
            if self._waker is not None and fd == self._waker.fileno():
                self._on_wakeup(self._waker)
            elif fd in self.consolidate and self.writers.get(fd) is None:
                writable.append(fd)
            elif not events & (READ | WRITE):
                self._call_for_failure(fd, events)
            elif events & READ and fd not in self.readers:
                self.remove_reader(fd)
            elif not events & READ and fd not in self.writers:
                self.remove_writer(fd)
            else:
                for event, callbacks in ((READ, self.readers), (WRITE, self.writers)):
                    if events & event and fd in callbacks:
                        self._call(fd, callbacks)
        if writable and self.consolidate_callback is not None:
            self.consolidate_callback(writable)

    def _call_for_failure(self, fd: int, events: int) -> None:
        if not events & ERR:
            logger.info(W_UNKNOWN_EVENT, events, fd)
        callbacks = self.readers if fd in self.readers else self.writers
        if fd in callbacks:
            self._call(fd, callbacks)
        else:
            self.remove(fd)

    def _call(self, fd: int, callbacks: dict[int, Any]) -> None:
        callback, args = callbacks[fd]
        if not isinstance(callback, GeneratorType):
            with suppress(Empty):
                callback(*args)
            return
        try:
            next(callback)
        except StopIteration:
            if callbacks.get(fd, (None,))[0] is callback:
                (self.remove_reader if callbacks is self.readers else self.remove_writer)(fd)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            self.remove(fd)
        except Exception:
            self.remove(fd)
            raise

    # --- lifetime

    def reset(self) -> None:
        """Start anew without descriptors, after calling ``on_close`` and making the calls that are due.

        The timer stays, and so does the process's loop.
        """
        self._close()
        self._create_poller()

    def close(self, *args: object) -> None:
        """Forget all descriptors, call ``on_close``, and make the calls that are due, such as acks of Celery's tasks.

        If this is the process's loop, the process has none afterwards. A closed hub that is used again opens again.
        Errors of the calls go to ``on_callback_error``.

        Args:
            *args: Ignored.
        """
        self._close()
        if self._waker is not None:
            self._waker.close()
            self._waker = None
        if get_event_loop() is self:
            set_event_loop(None)

    def _close(self) -> None:
        for listing in (self.readers, self.writers):
            for fd in listing:
                self._unregister(fd)
            listing.clear()
        self.consolidate.clear()
        self._loop = None
        self._close_poller()
        for callback in list(self.on_close):
            self._call_last(callback, self)
        for call in self._pop_ready():
            self._call_last(call)

    def _call_last(self, callback: Callable[..., Any], *args: Any) -> None:
        """Make a call that nothing comes after: what it raises must not keep the others from being made."""
        try:
            callback(*args)
        except Stop:
            pass  # the loop has stopped
        except Exception as error:
            self.on_callback_error(callback, error)

    def repr_active(self) -> str:
        """Return what it waits for, as text."""
        return debug.repr_active(self)

    def repr_events(self, events: Iterable[tuple[int, int]] | None) -> str:
        """Return events that a poller returned, as text.

        Args:
            events: Pairs of descriptor and event bits.
        """
        return debug.repr_events(self, events or [])

    def __repr__(self) -> str:
        return f"<Hub@{id(self):#x}: R:{len(self.readers)} W:{len(self.writers)}>"


def _raise_stop_error() -> None:
    raise Stop
