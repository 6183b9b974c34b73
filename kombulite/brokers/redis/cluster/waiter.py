"""Waiting for events of all nodes, in the thread that receives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from kombulite.brokers.redis.claims import RedisChannel
from kombulite.brokers.redis.cluster.nodes import Nodes
from kombulite.brokers.redis.receiver import Receiver
from kombulite.brokers.redis.router import Router
from kombulite.brokers.redis.stream import Stream
from kombulite.brokers.redis.waiter import Waiter


class ClusterWaiter(Waiter):
    """Has a receiver's connections read, and waits for them: those for commands, and those that listen, if any."""

    def __init__(self, nodes: Nodes, receiver: Receiver, router: Router, channels: dict[int, RedisChannel]) -> None:
        self._nodes = nodes
        self.listening: Nodes | None = None
        stream: Any = nodes
        super().__init__(stream, receiver, router, channels)

    def _begin(self, stream: Any) -> None:
        for each in list(self._nodes.streams.values()):
            if each.is_open:
                self.add(each)

    def add(self, stream: Stream) -> None:
        """Read a connection too, and wait for it."""
        descriptor = stream.fileno()
        for other in [each for each, its in list(self._descriptors.items()) if its == descriptor]:
            self.forget(other)  # it is closed, and not known to be lost yet
        super().add(stream)

    def forget(self, stream: Stream) -> None:
        """Wait for a connection no more that was closed."""
        descriptor = self._descriptors.pop(stream, None)
        if descriptor is not None:
            with suppress(KeyError, ValueError, OSError):  # the system may have forgotten it when it was closed
                self._awaited.unregister(descriptor)
            if self._has_twins:
                os.close(descriptor)
        if stream in self._others:
            self._others.remove(stream)

    def _poll(self) -> None:
        nodes, listening = self._nodes, self.listening
        nodes.keep_alive()
        nodes.read()
        # Acks wait for those of the messages that are at hand, or on their way: of all queues that were served.
        if not (self._receiver.has_ready() or self._receiver.is_claiming):
            nodes.begin()
        nodes.perform(self._router.catch_up())
        if listening is not None:
            listening.keep_alive()
            listening.poll()
            self._receiver.check()
            self._receiver.look_if_due()

    def _is_awaiting_replies(self) -> bool:
        return self._nodes.is_waiting or (self.listening is not None and self.listening.is_waiting)

    def _pauses(self) -> Iterator[float]:
        for nodes in (self._nodes, self.listening):
            pause = None if nodes is None else nodes.next_flush
            if pause is not None:
                yield pause
        if self._is_awaiting_replies():
            yield 1.0
        if self.listening is None:
            return
        look = self._receiver.next_look
        if look is not None:
            yield look
        for nodes in (self._nodes, self.listening):
            for stream in list(nodes.streams.values()):
                if stream.ping_interval:
                    yield stream.ping_interval
