"""Waiting for events, in the thread that receives."""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable, Iterator
from contextlib import suppress
from socket import socketpair
from threading import get_ident
from time import monotonic, sleep

from kombulite import exceptions
from kombulite._core import Delivery, LeaseReceive
from kombulite.brokers.base import Event
from kombulite.brokers.redis.claims import RedisChannel
from kombulite.brokers.redis.errors import connection_lost
from kombulite.brokers.redis.receiver import Receiver
from kombulite.brokers.redis.router import Router
from kombulite.brokers.redis.stream import Stream
from kombulite.utils.compat import detect_environment
from kombulite.utils.locks import NOT_ACQUIRED, Lock

#: Messages that are handed over between two looks for news, on other channels too.
LISTEN_EVERY = 32


class Waiter:
    """Has a receiver's connections read, and waits for them. ``stream`` is the one for commands."""

    def __init__(self, stream: Stream, receiver: Receiver, router: Router, channels: dict[int, RedisChannel]) -> None:
        self._stream = stream
        self._receiver = receiver
        self._router = router
        self._channels = channels
        self._others: list[Stream] = []  # those that listen and watch, if any
        self._receiving = Lock()  # a signal handler may come back to it
        self._thread: int | None = None  # the thread that receives
        self._is_over = self._is_closed = False
        self._pid = os.getpid()
        # They end the sleep of the thread that receives. No pipe: eventlet would wait for each write, and let two green
        # threads not wait at once; and who comes too late writes to what is closed, not to what has its number since.
        self._waker_out, self._waker_in = socketpair()
        self._waker_out.setblocking(False)
        self._waker_in.setblocking(False)
        self._awaited = selectors.DefaultSelector()  # the connections, and the waker
        self._descriptors: dict[Stream, int] = {}  # by which it waits for them
        self._awaited.register(self._waker_out, selectors.EVENT_READ)
        self._has_twins = detect_environment() == "eventlet"
        self._begin(stream)
        self.is_sleeping = False
        receiver.wake = self.wake
        self._step = LeaseReceive(receiver.messages, self._receiving, receiver.events, LISTEN_EVERY)
        #: The common case of receiving: the channel that was served last has more.
        self.poll_ready = self._step.next

    def close(self) -> None:
        """Let go of what is the system's. The thread that receives, if there is one, ends with an error."""
        self._step.channel = None
        if os.getpid() != self._pid:
            self._close_descriptors()  # a thread that held our lock is the parent's, and so is all else
            return
        self._is_closed = True
        self.wake()
        if self._thread == get_ident():
            self._is_over = True  # it was interrupted by who closes: a signal handler, say
            return
        with self._receiving:
            self._let_go()

    def _let_go(self) -> None:
        self._awaited.close()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        self._waker_out.close()
        self._waker_in.close()
        if self._has_twins:
            for twin in self._descriptors.values():
                os.close(twin)
        self._descriptors.clear()

    # --- what it waits for

    def _begin(self, stream: Stream) -> None:
        """Wait for the connection for commands."""
        self._await(stream)

    def add(self, stream: Stream) -> None:
        """Read a connection too, and wait for it."""
        self._others.append(stream)
        self._await(stream)

    def _await(self, stream: Stream) -> None:
        # eventlet lets no two green threads wait for one descriptor: another may wait for the reply to a command there.
        descriptor = self._descriptors[stream] = os.dup(stream.fileno()) if self._has_twins else stream.fileno()
        self._awaited.register(descriptor, selectors.EVENT_READ)

    def renewed(self, stream: Stream) -> None:
        """Wait for a connection that was opened anew."""
        descriptor = self._descriptors.pop(stream)
        with suppress(KeyError, ValueError, OSError):  # the system may have forgotten it when it was closed
            self._awaited.unregister(descriptor)
        if self._has_twins:
            os.close(descriptor)
        self._await(stream)

    def fileno(self) -> int | None:
        """Return a descriptor that is readable when one of ours is, where there is such: for event loops."""
        fileno: Callable[[], int] | None = getattr(self._awaited, "fileno", None)
        return None if fileno is None else fileno()

    def wake(self) -> None:
        """Let the thread that waits in ``receive`` look again: something changed here."""
        if self.is_sleeping:
            with suppress(OSError):  # full, or closed
                self._waker_in.send(b"!")

    # --- events

    def receive(self, timeout: float | None) -> tuple[Event, ...]:
        """Return the next event, waited for so many seconds (None: until there is one); empty if there was none.

        Raises OperationalError where no event can ever come.
        """
        delivery = self.poll_ready()
        if delivery is not None:
            return (delivery,)
        deadline = None if timeout is None else monotonic() + timeout
        events = self._receiving.call(timeout, self._receive, deadline)
        return () if events is NOT_ACQUIRED else events

    def _receive(self, deadline: float | None) -> tuple[Event, ...]:
        try:
            self._thread = get_ident()
            has_polled = False
            while True:
                event = self._next_event(has_polled)
                if event is not None:
                    return (event,)
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    return ()
                if left is None and not any(state.consumers for state in list(self._channels.values())):
                    raise exceptions.OperationalError("waiting without a timeout, and there is no consumer to wait for")
                self._wait(deadline)
                has_polled = True
        finally:
            self._thread = None
            if self._is_over:
                self._is_over = False
                self._let_go()

    def _next_event(self, has_polled: bool) -> Event | None:
        """Return the next event, if there is one. ``has_polled``: whether what has arrived was taken just now."""
        receiver, step = self._receiver, self._step
        if receiver.events:
            return receiver.events.popleft()
        step.looks += 1
        channels = list(self._channels.values())
        if not has_polled and (step.looks % LISTEN_EVERY == 0 or not any(state.has_ready() for state in channels)):
            self._poll()
        for i in range(len(channels)):
            state = channels[(step.looks + i) % len(channels)]
            delivery = self._serve(state)
            if delivery is not None:
                step.channel = state
                return delivery
        step.channel = None
        return None

    def _serve(self, state: RedisChannel) -> Delivery | None:
        if state.error is not None:
            error, state.error = state.error, None
            raise error
        self._receiver.claim(state)
        return self._receiver.next_delivery(state)

    def _poll(self) -> None:
        """Take what has arrived on all connections."""
        # A server that has vanished tells nothing. In an event loop, where nobody waits here, each turn asks.
        self._stream.keep_alive()
        self._stream.poll()
        self._stream.perform(self._router.catch_up())
        if self._others:
            for stream in self._others:
                stream.keep_alive()
                stream.poll()
            self._receiver.check()
            self._receiver.look_if_due()

    # --- waiting

    def _wait(self, deadline: float | None) -> None:
        """Sleep until there may be something new, or until a deadline (monotonic clock; None: however long)."""
        receiver = self._receiver
        has_rested = False
        self.is_sleeping = True
        try:
            if self._is_closed:  # who closed it before that has woken nobody
                raise connection_lost("connection already closed")
            if not receiver.has_something():
                seconds = None if deadline is None else max(deadline - monotonic(), 0.0)
                for pause in self._pauses():
                    seconds = pause if seconds is None else min(seconds, pause)
                found = [key.fileobj for key, _ in self._awaited.select(seconds)]
                self.is_sleeping = False
                if self._waker_out in found:
                    with suppress(BlockingIOError):
                        self._waker_out.recv(4096)
                elif found and receiver.is_outrun and not self._is_awaiting_replies():
                    # Before it reads: news wakes all that wait, and those who read it hold up the first one.
                    self._rest(deadline)
                    has_rested = True
                self._poll()
        finally:
            self.is_sleeping = False
        if not has_rested and receiver.has_something() and not receiver.has_ready():
            self._rest(deadline)

    def _rest(self, deadline: float | None) -> None:
        """Leave some time to others, or for more to come, until a deadline at most."""
        pause = self._receiver.pause()
        if deadline is not None:
            pause = min(pause, deadline - monotonic())
        if pause > 0:
            sleep(pause)

    def _is_awaiting_replies(self) -> bool:
        """Whether the server has been asked something, and has not answered."""
        return self._stream.is_waiting or any(stream.is_waiting for stream in self._others)

    def _pauses(self) -> Iterator[float]:
        """Seconds until something else is due."""
        if not self._others:
            return
        look = self._receiver.next_look
        if look is not None:
            yield look
        for stream in (self._stream, *self._others):
            if stream.ping_interval:
                yield stream.ping_interval
        if self._is_awaiting_replies():
            yield 1.0
