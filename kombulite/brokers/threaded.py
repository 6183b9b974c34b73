"""Any synchronous transport on an event loop: one thread has the transport, and does what the loop asks of it in order.

Publishes that wait for their turn together travel together (``publish_many``), and acknowledgements too
(``settle_many``): so tasks that publish at the same time share round trips, as on a native transport.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from logging import getLogger
from threading import Thread
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from kombulite import exceptions
from kombulite._core import Delivery
from kombulite.brokers.aio import AsyncTransport, DelegatingTransport, OnEvent, OnLost, Pending, closed, refuse, resolve
from kombulite.brokers.base import Event, Outcome, Settings, Transport
from kombulite.utils.imports import symbol_by_name

logger = getLogger("kombulite.aio")

T = TypeVar("T")

SHORTEST_LOOK, LONGEST_LOOK = 0.002, 0.05  # seconds between looks for messages, where no descriptor tells of them
LONGEST_RECEIVE = 60.0  # seconds of a wait that a call interrupts
BURST = 256  # events, or messages to publish, that are taken in one go
ACK_ONE = (Outcome.ACK, False)  # the arguments of a settle behind its tag, for a plain ack
CLOSE_TIMEOUT = 10.0  # seconds for the transport to end what it is at, and to close
UNPUBLISHED_MAX = 5000  # messages that wait for the thread, before publishers are asked to wait


def _ignore(error: Exception) -> None:
    """Stands for an ``on_lost`` that is set before the transport connects."""


class Call(NamedTuple):
    """What the loop asks of the thread."""

    pending: Pending[Any]
    verb: Callable[..., Any]
    arguments: tuple[Any, ...]


Outcomes = list[tuple[Pending[Any], Any, BaseException | None]]


class ThreadedTransport(DelegatingTransport):
    """A synchronous transport that one thread runs for an event loop."""

    def __init__(self, sync: Transport, on_event: OnEvent, on_lost: OnLost) -> None:
        super().__init__(sync, on_event, on_lost)
        self._loop = asyncio.get_running_loop()
        self._calls: deque[Call] = deque()
        self._consumers = 0
        self._is_asleep = self._is_receiving = False
        self._is_ending = False
        self._thread: Thread | None = None
        self._wake_out, self._wake_in = -1, -1
        self._ended: Pending[None] = self._loop.create_future()
        self._writable: Pending[None] | None = None

    # --- on the loop

    async def connect(self) -> None:
        """Start the thread, which opens the connection."""
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_in, False)
        self._thread = Thread(target=self._run, name="kombulite-aio", daemon=True)
        connected = self.perform(self.sync.connect)
        self._thread.start()
        try:
            await connected
        except BaseException:
            self.abort()
            raise

    async def close(self) -> None:
        """Have the thread close the connection, and wait for its end."""
        if self._thread is not None and not self._is_ending:
            with suppress(Exception):  # it is gone either way
                self._ask(self.sync.close)
        self.abort()
        if self._thread is not None:
            done, _ = await asyncio.wait([self._ended], timeout=CLOSE_TIMEOUT)
            if done:
                self._thread.join()
            else:
                logger.warning("the thread of a connection has not ended in %g s: %r", CLOSE_TIMEOUT, self.settings)

    def abort(self) -> None:
        """Have the thread end."""
        self._is_ending = True
        self._wake()

    def writable(self) -> Pending[None] | None:
        """Return a Pending that is set when the thread has caught up."""
        if len(self._calls) < UNPUBLISHED_MAX:
            return None
        if self._writable is None or self._writable.done():
            self._writable = self._loop.create_future()
        return self._writable

    def perform(self, verb: Callable[..., T], *arguments: Any) -> Pending[T]:
        """Have the thread call a verb."""
        if self._is_ending:
            raise closed()
        return self._ask(verb, *arguments)

    def publish(self, channel: int, delivery: Delivery, mandatory: bool = False) -> Pending[None]:
        """Have the thread publish a message, together with those that wait beside it."""
        return self.perform(self.sync.publish, channel, delivery, mandatory)

    def _ask(self, verb: Callable[..., Any], *arguments: Any) -> Pending[Any]:
        pending: Pending[Any] = self._loop.create_future()
        self._calls.append(Call(pending, verb, arguments))
        if self._is_asleep:
            self._wake()
        return pending

    def _wake(self) -> None:
        self._is_asleep = False
        if self._is_receiving:
            self.sync.interrupt()
            return
        with suppress(OSError):  # the pipe is full, or the thread has ended
            os.write(self._wake_in, b"\0")

    def _take(self, outcomes: Outcomes, events: Sequence[Event]) -> None:
        """Hand over what the thread has done and received."""
        for pending, result, error in outcomes:
            if error is None:
                resolve(pending, result)
            else:
                refuse(pending, error)
        for event in events:
            self.on_event(event)
        if self._writable is not None and len(self._calls) < UNPUBLISHED_MAX // 2:
            resolve(self._writable)

    def _end(self, error: Exception | None) -> None:
        """Take leave of the thread, of whose life this is the last act."""
        was_ending, self._is_ending = self._is_ending, True
        while self._calls:
            refuse(self._calls.popleft().pending, error or closed())
        if self._writable is not None:
            resolve(self._writable)
        for descriptor in (self._wake_out, self._wake_in):
            with suppress(OSError):
                os.close(descriptor)
        self._wake_out = self._wake_in = -1
        resolve(self._ended)
        if not was_ending:
            self.on_lost(error or closed())

    # --- in the thread

    def _run(self) -> None:
        error: Exception | None = None
        try:
            self._work()
        except Exception as raised:
            error = raised
        try:
            self.sync.collect()
        except Exception as raised:
            logger.warning("a connection could not be dropped: %r", raised)
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._end, error)

    def _work(self) -> None:
        """Do what is asked, and look for messages, until the end."""
        pause = SHORTEST_LOOK
        while True:
            outcomes = self._call_all()
            try:
                events = self._receive() if self._consumers and self.sync.connected else []
            except Exception:
                self._loop.call_soon_threadsafe(self._take, outcomes, ())  # those were done before it ended
                raise
            if outcomes or events:
                self._loop.call_soon_threadsafe(self._take, outcomes, events)
                outcomes, events = [], []  # an error's frames keep what they refer to, and so the messages held
                pause = SHORTEST_LOOK
                continue
            if self._is_ending:
                if not self._calls:
                    return
                continue
            if self._consumers and self.sync.can_interrupt and self.sync.connected:
                self._wait_in_receive()
                continue
            self._sleep(pause)
            pause = min(pause * 2, LONGEST_LOOK)

    def _wait_in_receive(self) -> None:
        """Wait for messages as the transport does, until it has some or is interrupted by a call."""
        self._is_receiving = True  # first: a call that finds the thread asleep has to know how to wake it
        self._is_asleep = True
        found = () if self._calls or self._is_ending else self.sync.receive(LONGEST_RECEIVE)
        self._is_asleep = self._is_receiving = False
        if found:
            self._loop.call_soon_threadsafe(self._take, [], found)

    def _sleep(self, pause: float) -> None:
        """Wait for a call, for the descriptor of the transport, or until it is time to look again."""
        self._is_asleep = True
        if self._calls or self._is_ending:
            self._is_asleep = False
            return
        descriptors, timeout = [self._wake_out], None
        if self._consumers:
            descriptor = self.sync.fileno()
            timeout = pause if descriptor is None else self.sync.look_interval
            if descriptor is not None:
                descriptors.append(descriptor)
        elif self.sync.heartbeat_interval:
            timeout = self.sync.heartbeat_interval / 4
        readable, _, _ = select.select(descriptors, [], [], timeout)
        self._is_asleep = False
        if self._wake_out in readable:
            os.read(self._wake_out, 4096)
        if self.sync.heartbeat_interval:
            self.sync.heartbeat_check()

    def _receive(self) -> list[Event]:
        """Take what has come. Raises what the connection ended with."""
        events: list[Event] = []
        until = monotonic() + LONGEST_LOOK
        while len(events) < BURST and monotonic() < until:
            try:
                found = self.sync.receive(0)
            except Exception:
                if events:  # what came before it ended counts
                    self._loop.call_soon_threadsafe(self._take, [], events)
                events, found = [], ()  # see above
                raise
            if not found:
                break
            events += found
        return events

    def _call_all(self) -> Outcomes:
        """Make the calls that wait. Raises what the connection ended with, once all are answered."""
        outcomes: Outcomes = []
        try:
            while self._calls and len(outcomes) < BURST:
                call = self._calls.popleft()
                if call.pending.cancelled():
                    continue  # before its turn
                if call.verb == self.sync.publish and self._calls:
                    self._publish_together(call, outcomes)
                elif call.verb == self.sync.settle and call.arguments[2:] == ACK_ONE and self._calls:
                    self._ack_together(call, outcomes)
                else:
                    self._call(call, outcomes)
        except Exception:
            self._loop.call_soon_threadsafe(self._take, outcomes, ())
            raise
        return outcomes

    def _call(self, call: Call, outcomes: Outcomes) -> None:
        try:
            result = call.verb(*call.arguments)
        except Exception as error:
            outcomes.append((call.pending, None, error))
            if not self.sync.connected:
                raise
        else:
            outcomes.append((call.pending, result, None))
            if call.verb == self.sync.consume:
                self._consumers += 1

    def _ack_together(self, first: Call, outcomes: Outcomes) -> None:
        """Acknowledge the message of a call and those of like calls right behind it."""
        channel = first.arguments[0]
        together = [first]
        while self._calls and len(together) < BURST:
            call = self._calls[0]
            if call.verb != self.sync.settle or call.arguments[0] != channel or call.arguments[2:] != ACK_ONE:
                break
            self._calls.popleft()
            if not call.pending.cancelled():
                together.append(call)
        tags = list(dict.fromkeys(call.arguments[1] for call in together))
        try:
            if len(tags) < len(together):
                raise exceptions.PreconditionFailed("a delivery tag came twice")
            self.sync.settle_many(channel, tags, Outcome.ACK)
        except exceptions.PreconditionFailed:
            for call in together:  # to tell which of them
                self._call(call, outcomes)
        except Exception as error:
            outcomes += [(call.pending, None, error) for call in together]
            if not self.sync.connected:
                raise
        else:
            outcomes += [(call.pending, None, None) for call in together]

    def _publish_together(self, first: Call, outcomes: Outcomes) -> None:
        """Publish the message of a call and those of like calls right behind it."""
        channel, _, mandatory = first.arguments
        together = [first]
        while self._calls and len(together) < BURST:
            call = self._calls[0]
            if call.verb != self.sync.publish or call.arguments[0] != channel or call.arguments[2] != mandatory:
                break
            self._calls.popleft()
            if not call.pending.cancelled():
                together.append(call)
        deliveries = [call.arguments[1] for call in together]
        try:
            refused = dict(self.sync.publish_many(channel, deliveries, mandatory))
        except Exception as error:
            outcomes += [(call.pending, None, error) for call in together]
            if not self.sync.connected:
                raise
        else:
            outcomes += [(call.pending, None, refused.get(index)) for index, call in enumerate(together)]


def async_transport(
    cls: type[Transport], settings: Settings, on_event: OnEvent, on_lost: OnLost = _ignore
) -> AsyncTransport:
    """Make the connection on the running event loop for a transport: its own kind, or one that a thread runs."""
    if cls.async_transport is not None:
        native: type[AsyncTransport] = symbol_by_name(cls.async_transport)
        return native(settings, on_event, on_lost)
    return ThreadedTransport(cls(settings), on_event, on_lost)
