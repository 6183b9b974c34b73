"""Handing over what comes for consumers on an event loop, and asking for more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kombulite import exceptions
from kombulite.brokers.aio import OnEvent
from kombulite.brokers.base import ChannelClosed
from kombulite.brokers.redis.claims import RedisChannel
from kombulite.brokers.redis.leases import logger
from kombulite.brokers.redis.maintainer import RETRY_INTERVAL
from kombulite.brokers.redis.plans import Plan
from kombulite.brokers.redis.protocol import RedisProtocol


class Dispatcher:
    """Gives events to ``on_event`` as they come, and claims messages for which channels have room.

    ``perform_aside`` has a plan performed; ``on_failed(error)`` is called for what ends the connection.
    """

    def __init__(
        self,
        protocol: RedisProtocol,
        on_event: OnEvent,
        perform_aside: Callable[[Plan[Any]], object],
        on_failed: Callable[[Exception], object],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._on_event = on_event
        self._perform_aside = perform_aside
        self._on_failed = on_failed
        self._is_active = False
        self._is_woken = False
        self._has_news = False  # whether the server has told of changed lists since the last claims
        self._paced: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin: the receiver is there."""
        self._is_active = True

    def stop(self) -> None:
        """Hand over nothing any more."""
        self._is_active = False
        if self._paced is not None:
            self._paced.cancel()

    def wake(self) -> None:
        """Have the loop look for what there is to claim, or to hand over."""
        if not self._is_woken and self._is_active:
            self._is_woken = True
            self._loop.call_soon(self._on_woken)

    def _on_woken(self) -> None:
        self._is_woken = False
        self.dispatch()

    def on_news(self, message: list[Any]) -> None:
        """Take what the server says unasked on a connection that listens."""
        self._has_news = True
        self._protocol.receiver.on_push(message)

    def dispatch(self) -> None:
        """Hand over what has come, and ask for more."""
        if not self._is_active:
            return
        receiver, router = self._protocol.receiver, self._protocol.topology.router
        if router.was_emptied:
            self._perform_aside(router.catch_up())
        while receiver.events:
            self._on_event(receiver.events.popleft())
        for state in list(self._protocol.channels.values()):
            if state.error is not None:
                self._on_refused(state, state.error)
                continue
            while (delivery := receiver.next_delivery(state)) is not None:
                self._on_event(delivery)
        if self._is_active and self._paced is None:
            self._claim()

    def _claim(self) -> None:
        """Ask for what there is room for: at once, or after a pause in which more comes."""
        receiver = self._protocol.receiver
        if not receiver.has_something():
            return
        pause = receiver.pause()
        if not (pause and self._has_news):
            for state in list(self._protocol.channels.values()):
                if state.error is None:
                    receiver.claim(state)
        self._has_news = False
        if pause and receiver.has_something():
            self._pause(pause)

    def _pause(self, seconds: float) -> None:
        if self._paced is None:
            self._paced = self._loop.call_later(seconds, self._on_paced)

    def _on_paced(self) -> None:
        self._paced = None
        self._has_news = False  # it has paused for that
        self.dispatch()

    def _on_refused(self, state: RedisChannel, error: Exception) -> None:
        """Deal with the refusal of a claim."""
        if isinstance(error, (exceptions.MessageNacked, exceptions.RecoverableChannelError)):
            logger.warning("Messages cannot be claimed; next try in %g s: %s", RETRY_INTERVAL, error)
            state.error = None
            self._pause(RETRY_INTERVAL)
        elif isinstance(error, exceptions.ChannelError):
            state.error = None
            self._perform_aside(self._protocol.close_channel(state.number))
            self._on_event(ChannelClosed(state.number, error))
        else:
            self._on_failed(error)
