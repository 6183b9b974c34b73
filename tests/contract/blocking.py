"""Asynchronous transports under the contract suite: a thin synchronous transport that has an event loop in a thread."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from time import monotonic
from typing import Any, ClassVar

from kombulite import exceptions
from kombulite._core import Delivery
from kombulite.brokers import amqp, filesystem, memory, redis, sql
from kombulite.brokers.aio import AsyncTransport
from kombulite.brokers.base import Cancelled, ChannelClosed, Returned
from kombulite.brokers.base import Transport as BaseTransport
from kombulite.brokers.threaded import ThreadedTransport, async_transport

PATIENCE = 30.0  # seconds for any verb
PATIENCE_FOR_ALL = 100.0  # seconds for opening all the channels that there can be
AT_ONCE = 500  # channels that are opened in one go


class BlockingTransport(BaseTransport):
    """Has an asynchronous transport do everything, and waits for it."""

    sync_class: ClassVar[type[BaseTransport]]

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.confirms = bool(settings.options.get("confirm_publish")) or self.sync_class is not amqp.Transport
        self._loop: asyncio.AbstractEventLoop | None = None
        self._made: AsyncTransport | None = None
        self._events: deque[Any] = deque()
        self._changed = threading.Condition()
        self._lost: Exception | None = None
        self._consumers: dict[tuple[int, str], bool] = {}

    def make(self, settings: Any, on_event: Any, on_lost: Any) -> AsyncTransport:
        return async_transport(self.sync_class, settings, on_event, on_lost)

    # --- the loop

    def _in_loop(self, call: Any, *arguments: Any, timeout: float = PATIENCE) -> Any:
        loop = self._loop
        if loop is None or loop.is_closed():
            raise exceptions.RecoverableConnectionError("connection already closed")

        async def perform() -> Any:
            pending = call(*arguments)
            return None if pending is None else await pending

        if threading.current_thread() is self._thread:
            raise AssertionError("called by the loop")
        performed = asyncio.run_coroutine_threadsafe(perform(), loop)
        try:
            return performed.result(timeout)
        finally:
            performed.cancel()  # after a timeout it would be left running

    def _ask(self, verb: str, *arguments: Any, timeout: float | None = None) -> Any:
        if self._lost is not None:
            raise exceptions.RecoverableConnectionError(str(self._lost)) from self._lost
        if self._made is None:
            raise exceptions.RecoverableConnectionError("connection already closed")
        return self._in_loop(getattr(self._made, verb), *arguments, timeout=PATIENCE if timeout is None else timeout)

    def connect(self) -> None:
        self._pid = os.getpid()
        loop = self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, daemon=True)
        self._thread.start()

        async def connect() -> None:
            self._made = self.make(self.settings, self._on_event, self._on_lost)
            await self._made.connect()

        try:
            self._in_loop(connect)
        except BaseException:
            self._stop()
            raise

    def _on_event(self, event: Any) -> None:
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def _on_lost(self, error: Exception) -> None:
        with self._changed:
            self._lost = error
            self._changed.notify_all()

    def close(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            self._in_loop(made.close)
            self._stop()

    def collect(self) -> None:
        made, self._made = self._made, None
        if made is not None and os.getpid() == self._pid:  # a forked child has no thread that runs the loop
            self._in_loop(made.abort)
            self._stop()

    def _stop(self) -> None:
        loop, self._loop = self._loop, None
        assert loop is not None
        asyncio.run_coroutine_threadsafe(_settle_down(), loop).result(PATIENCE)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
        loop.close()
        with self._changed:
            self._changed.notify_all()

    @property
    def connected(self) -> bool:
        return self._made is not None and self._lost is None and self._made.connected

    def open_channels(self, count: int) -> None:
        """Open so many channels, without a turn to the loop and back for each, nor to a transport's thread and back."""
        made = self._made
        assert made is not None

        async def open_one() -> None:
            await made.open_channel()

        async def open_all() -> None:
            for first in range(0, count, AT_ONCE):
                await asyncio.gather(*(open_one() for _ in range(first, min(first + AT_ONCE, count))))

        self._in_loop(open_all, timeout=PATIENCE_FOR_ALL)

    # --- verbs that are more than their answer

    def publish(self, channel, delivery, mandatory=False, timeout=None, confirm_timeout=None):
        self._ask("publish", channel, delivery, mandatory, timeout=timeout)

    def publish_many(self, channel, deliveries, mandatory=False, timeout=None):
        return self._ask("publish_many", channel, deliveries, mandatory, timeout=timeout)

    def consume(self, channel, queue, consumer_tag, no_ack, exclusive, arguments):
        tag = self._ask("consume", channel, queue, consumer_tag, no_ack, exclusive, arguments)
        self._consumers[channel, tag] = no_ack
        return tag

    def cancel(self, channel, consumer_tag):
        left = list(self._ask("cancel", channel, consumer_tag) or ())
        no_ack = self._consumers.pop((channel, consumer_tag), False)
        with self._changed:
            mine = [
                e for e in self._events if e.channel == channel and getattr(e, "consumer_tag", None) == consumer_tag
            ]
            for event in mine:
                self._events.remove(event)
        if no_ack:
            return [*mine, *left]
        for event in reversed(mine):
            self.settle(channel, event.delivery_tag, base_requeue)
        return left

    def close_channel(self, channel):
        self._consumers = {key: value for key, value in self._consumers.items() if key[0] != channel}
        if self.connected:
            self._ask("close_channel", channel)
        with self._changed:
            self._events = deque(event for event in self._events if event.channel != channel)
            self._changed.notify_all()

    def recover(self, channel):
        self._ask("recover", channel)
        with self._changed:
            # What waits and went back: it comes again, as redelivered. The event loop may have taken that already.
            self._events = deque(
                event
                for event in self._events
                if event.channel != channel
                or type(event) is not Delivery
                or event.redelivered
                or self._consumers.get((channel, event.consumer_tag))
            )

    def take_returned(self, channel):
        with self._changed:
            found = [event for event in self._events if type(event) is Returned and event.channel == channel]
            for event in found:
                self._events.remove(event)
        return found

    def highest_tag(self, channel):
        return self._made.highest_tag(channel) if self._made is not None else 0

    def channel_is_open(self, channel):
        return self._made is not None and self._made.channel_is_open(channel)

    def receive(self, timeout):
        deadline = None if timeout is None else monotonic() + timeout
        with self._changed:
            while True:
                if self._events:
                    event = self._events.popleft()
                    if isinstance(event, (Cancelled, ChannelClosed)):
                        gone = getattr(event, "consumer_tag", None)
                        self._consumers = {k: v for k, v in self._consumers.items() if k[1] != gone}
                    return (event,)
                if self._lost is not None or self._made is None:
                    raise exceptions.RecoverableConnectionError(str(self._lost or "connection already closed"))
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    return ()
                if left is None and not self._consumers:
                    raise exceptions.OperationalError("waiting without a timeout, and there is no consumer to wait for")
                self._changed.wait(left)


def _verb(name: str) -> Any:
    def verb(self: BlockingTransport, *arguments: Any) -> Any:
        return self._ask(name, *arguments)

    return verb


for _name in (
    "open_channel",
    "qos",
    "flow",
    "confirm",
    "declare_exchange",
    "delete_exchange",
    "declare_queue",
    "delete_queue",
    "purge",
    "list_queues",
    "bind",
    "unbind",
    "get",
    "settle",
    "settle_many",
):
    setattr(BlockingTransport, _name, _verb(_name))


async def _settle_down() -> None:
    """Let what is scheduled run, and see that no task is left."""
    for _ in range(3):
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"left running: {left}"


def blocking(cls: type[BaseTransport], threaded: bool = False) -> type[BlockingTransport]:
    """A synchronous transport over the asynchronous kind of another."""

    class Blocking(BlockingTransport):
        sync_class = cls
        driver_type = cls.driver_type
        driver_name = cls.driver_name
        capabilities = cls.capabilities._replace(asynchronous=False, heartbeats=False)

        def make(self, settings, on_event, on_lost):
            if threaded:
                return ThreadedTransport(cls(settings), on_event, on_lost)
            return super().make(settings, on_event, on_lost)

    return Blocking


base_requeue = memory.REQUEUE
AMQPTransport = blocking(amqp.Transport)
MemoryTransport = blocking(memory.Transport)
ThreadedMemoryTransport = blocking(memory.Transport, threaded=True)
FilesystemTransport = blocking(filesystem.Transport, threaded=True)
RedisTransport = blocking(redis.Transport)
ThreadedRedisTransport = blocking(redis.Transport, threaded=True)
SQLiteTransport = blocking(sql.SQLiteTransport, threaded=True)
PostgreSQLTransport = blocking(sql.PostgreSQLTransport, threaded=True)
