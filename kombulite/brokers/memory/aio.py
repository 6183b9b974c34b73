"""Connections to the embedded broker on an event loop: its verbs never wait, and a publish wakes the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import get_ident
from typing import Any, TypeVar

from kombulite._core import AckStep, Delivery
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
        self._publish: Callable[[int, Delivery, bool], object] = self.sync.publish  # which knows that it is not open
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._alarm: asyncio.TimerHandle | None = None
        self._taken = 0  # messages since the loop had its turn
        self._turn: Pending[None] | None = None

    async def connect(self) -> None:
        """Open the connection."""
        self.sync.connect()
        if (step := self.sync.fast_publish(0)) is not None:
            self._publish = step.publish
        self.sync.wake_with(self._wake)

    async def close(self) -> None:
        """Close the connection."""
        self.abort()

    def abort(self) -> None:
        """Close the connection: there is nobody to leave it to."""
        self.sync.close()
        self._publish = self.sync.publish
        if self._alarm is not None:
            self._alarm.cancel()

    def perform(self, verb: Callable[..., T], *arguments: Any) -> Pending[T]:
        """Call a verb now."""
        pending: Pending[T] = self._loop.create_future()
        pending.set_result(verb(*arguments))
        return pending

    def publish(self, channel: int, delivery: Delivery, mandatory: bool = False) -> None:
        """Put a message into its queues."""
        self._publish(channel, delivery, mandatory)
        self._taken += 1

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
        if self._taken < BURST:
            return None
        if self._turn is None:
            self._turn = self._loop.create_future()
            self._loop.call_soon(self._end_turn, self._turn)
        return self._turn

    def _end_turn(self, turn: Pending[None]) -> None:
        self._turn, self._taken = None, 0
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
        sync, on_event = self.sync, self.on_event
        for _ in range(BURST):
            event: Event | None = sync.poll_ready()
            if event is None and (event := sync.poll()) is None:
                if sync.connected:
                    self._set_alarm()
                return
            on_event(event)
        self._loop.call_soon(self._receive)

    def _set_alarm(self) -> None:
        """Look again when something expires: dead letters arrive in time where a consumer waits for them."""
        deadline = self.sync.next_expiry()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if deadline is not None:
            self._alarm = self._loop.call_later(max(deadline - clock.now(), 0), self._receive)
