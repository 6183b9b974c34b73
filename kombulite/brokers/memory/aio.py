"""Connections to the embedded broker on an event loop: its verbs never wait, and a publish wakes the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import get_ident
from typing import Any, TypeVar

from kombulite._core import AckStep, Delivery, PacedPublish, pass_on
from kombulite.brokers.aio import DelegatingTransport, OnEvent, OnLost, Pending, resolve
from kombulite.brokers.base import Event, Outcome, Settings
from kombulite.brokers.memory import Transport, clock

T = TypeVar("T")

BURST = 512  # events that are handed over, or messages that are taken, before the loop has its turn


class AsyncTransport(DelegatingTransport):
    """A connection to the embedded broker of its virtual host, on an event loop."""

    sync: Transport

    def __init__(self, settings: Settings, on_event: OnEvent, on_lost: OnLost) -> None:
        super().__init__(Transport(settings), on_event, on_lost)
        self._step: PacedPublish | None = None
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._alarm: asyncio.TimerHandle | None = None
        self._turn: Pending[None] | None = None

    async def connect(self) -> None:
        """Open the connection."""
        self.sync.connect()
        step = self.sync.fast_publish(0)
        assert step is not None
        self._step = PacedPublish(step, BURST)
        self.sync.wake_with(self._wake)

    async def close(self) -> None:
        """Close the connection."""
        self.abort()

    def abort(self) -> None:
        """Close the connection: there is nobody to leave it to."""
        self.sync.close()
        self._step = None
        if self._alarm is not None:
            self._alarm.cancel()

    def perform(self, verb: Callable[..., T], *arguments: Any) -> Pending[T]:
        """Call a verb now."""
        pending: Pending[T] = self._loop.create_future()
        pending.set_result(verb(*arguments))
        return pending

    def publish(self, channel: int, delivery: Delivery, mandatory: bool = False) -> None:
        """Put a message into its queues."""
        step = self.sync if self._step is None else self._step  # the former knows that it is not open
        step.publish(channel, delivery, mandatory)

    def fast_publish(self, channel: int) -> PacedPublish | None:
        """Return what publishes at once, so many messages in a turn of the loop."""
        return self._step

    def publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False
    ) -> Pending[list[tuple[int, Exception]]]:
        """Put messages into their queues; the answer comes after a turn of the loop."""
        refused = self.sync.publish_many(channel, deliveries, mandatory)
        pending: Pending[list[tuple[int, Exception]]] = self._loop.create_future()
        self._loop.call_soon(resolve, pending, refused)
        return pending

    def writable(self) -> Pending[None] | None:
        """Return a Pending that is set after a turn of the loop; None if a publisher need not leave it one."""
        if self._step is None or self._step.room > 0:
            return None
        if self._turn is None:
            self._turn = self._loop.create_future()
            self._loop.call_soon(self._end_turn, self._turn)
        return self._turn

    def _end_turn(self, turn: Pending[None]) -> None:
        self._turn = None
        if self._step is not None:
            self._step.renew()
        resolve(turn)

    def fast_ack(self, channel: int) -> AckStep:
        """Return what acknowledges one delivery at once."""
        return self.sync.fast_ack(channel)

    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> None:
        """Say what becomes of a delivery."""
        self.sync.settle(channel, delivery_tag, outcome, multiple)

    # --- receiving

    def _wake(self) -> None:
        """Have the loop look for what has come. May be called by any thread."""
        if get_ident() == self._thread:
            self._loop.call_soon(self._receive)
        else:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._receive)

    def _receive(self) -> None:
        sync, left = self.sync, BURST
        while left:
            left -= pass_on(sync.poll_ready, self.on_event, left)
            if left:
                event: Event | None = sync.poll()
                if event is None:
                    if sync.connected:
                        self._set_alarm()
                    return
                self.on_event(event)
                left -= 1
        self._loop.call_soon(self._receive)

    def _set_alarm(self) -> None:
        """Look again when something expires: dead letters arrive in time where a consumer waits for them."""
        deadline = self.sync.next_expiry()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if deadline is not None:
            self._alarm = self._loop.call_later(max(deadline - clock.now(), 0), self._receive)
