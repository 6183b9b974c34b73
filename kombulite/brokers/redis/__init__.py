"""Redis, on kombu's keys and envelopes: a kombulite process and a kombu process share a database, in both directions.

A transport has two connections. One carries commands and their replies; the server tells on it which binding sets have
changed (client-side caching). The other, made for the first consumer, only listens: it carries fanout messages, and
the news that something was put into a list that was found empty. docs/redis.md says what is promised.

The class is as wide as the interface that it implements; what its verbs mean is in ``protocol.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from time import monotonic
from typing import Any, ClassVar, TypeVar

from kombulite import exceptions
from kombulite._core import AckStep, Delivery, Lease
from kombulite.brokers.base import (
    Capabilities,
    Event,
    ExchangeSpec,
    HeldDeliveries,
    Outcome,
    QueueInfo,
    QueueSpec,
    Settings,
)
from kombulite.brokers.base import Transport as BaseTransport
from kombulite.brokers.redis.claims import RedisChannel
from kombulite.brokers.redis.connector import Connector
from kombulite.brokers.redis.errors import REPLICA_CODES, connection_lost, get_redis_error_classes
from kombulite.brokers.redis.held_acks import HeldAcks
from kombulite.brokers.redis.maintainer import LeaseMaintainer
from kombulite.brokers.redis.options import Options
from kombulite.brokers.redis.plans import Plan
from kombulite.brokers.redis.protocol import RedisProtocol
from kombulite.brokers.redis.replies import OnReply, Posted
from kombulite.brokers.redis.stream import Stream, what_is_left
from kombulite.brokers.redis.waiter import Waiter

__all__ = ["Transport", "get_redis_error_classes"]

T = TypeVar("T")

CLOSE_TIMEOUT = 5.0  # seconds for a reply while the connection is closed
REQUEUE = Outcome.REQUEUE  # as a global: looking the member up costs as much as the call


class Transport(BaseTransport):
    """A connection to a Redis database. May be shared between threads, of which one at a time receives.

    Raises ValueError for settings that cannot be.
    """

    default_port = 6379
    driver_type = "redis"
    driver_name = "redis"
    async_transport: ClassVar[str | None] = "kombulite.brokers.redis.aio:AsyncTransport"
    capabilities = Capabilities(
        exchange_types=frozenset(["direct", "topic", "fanout"]),
        asynchronous=True,
        keeps_durable=False,
        deletes_unused=False,
    )

    _stream: Stream

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._options = options = Options.of(settings.options)
        self._connector = Connector(settings, options)
        self._protocol = RedisProtocol(settings, options, self._connector.identity, self._wake, self._keep)
        self._channels = self._protocol.channels
        self._streams: list[Stream] = []
        self._waiter: Waiter | None = None
        self._maintainer: LeaseMaintainer | None = None
        self._acks: HeldAcks | None = None
        self._pid = os.getpid()
        self._replicas = options.wait_replicas

    # --- the connection

    def connect(self) -> None:
        try:
            self._connect()
        except BaseException as error:
            self.collect()
            if isinstance(error, exceptions.ChannelError) and not isinstance(error, exceptions.ConnectionError):
                raise exceptions.NotAllowed(str(error)) from error
            raise

    def _connect(self) -> None:
        protocol = self._protocol
        stream = self._stream = self._open(self._on_push)
        tracked = stream.perform(protocol.greet(stream.protocol), self.settings.connect_timeout)
        stream.perform(protocol.begin(stream, tracked, stream.perform))
        self._acks = HeldAcks(stream, protocol.receiver.acknowledgement, self._flush_soon)
        self._waiter = Waiter(stream, protocol.receiver, protocol.topology.router, self._channels)
        self.poll_ready = self._waiter.poll_ready

    def _open(self, on_push: OnReply) -> Stream:
        stream = self._connector.open(on_push)
        self._streams.append(stream)
        stream.errors.ending = REPLICA_CODES
        stream.renew = self._renew
        return stream

    def _renew(self, stream: Stream) -> None:
        """Open a connection anew that the server closed because it was idle. Raises what keeps it from that."""
        protocol = self._protocol
        self._connector.reopen(stream)
        if stream is self._stream:
            tracked = stream.perform(protocol.greet(stream.protocol), self.settings.connect_timeout)
            stream.perform(protocol.renew(tracked))
        if self._waiter is not None:
            self._waiter.renewed(stream)
            receiver = protocol.receiver
            if stream is receiver.listener:
                self._track(stream)
                receiver.subscriptions.renew(stream)
                receiver.look_everywhere()
            elif stream is receiver.watcher:
                stream.perform(receiver.watch(stream))
                receiver.look_everywhere()
            self._waiter.wake()

    def _on_push(self, message: list[Any]) -> None:
        self._protocol.topology.router.on_push(message)

    def close(self) -> None:
        try:
            if self.connected and self._pid == os.getpid():
                for stream in self._streams:
                    stream.cap_timeout(CLOSE_TIMEOUT)
                self._perform_alone(self._protocol.end())
        finally:
            self.collect()

    def collect(self) -> None:
        if self._pid == os.getpid():
            if self._maintainer is not None:
                self._maintainer.stop()
            unanswered: list[Posted] = []
            if self._acks is not None:
                with suppress(exceptions.ConnectionError, OSError):  # it is lost
                    self._acks.flush_if_free()
                unanswered = self._acks.end()  # first: another thread may be about to post them
            if self._streams:
                unanswered += self._streams[0].unanswered
            self._protocol.abandon(unanswered)
        self._channels.clear()
        for stream in self._streams:
            stream.drop()
        waiter, self._waiter, self.poll_ready = self._waiter, None, None
        if waiter is not None:
            waiter.close()

    @property
    def connected(self) -> bool:
        return self._waiter is not None and all(stream.is_open for stream in self._streams)

    @property
    def is_suspect(self) -> bool:
        return any(stream.is_suspect for stream in list(self._streams))

    def driver_version(self) -> str:
        return version("redis")

    def fileno(self) -> int | None:
        return None if self._waiter is None else self._waiter.fileno()

    @property
    def look_interval(self) -> float | None:
        if self._waiter is None:
            return None
        receiver = self._protocol.receiver
        if receiver.listener is None:
            return None
        return min((due for due in (receiver.next_look, receiver.next_claim) if due is not None), default=None)

    @property
    def held(self) -> HeldDeliveries | None:
        return self._protocol.held

    def inherit(self, channel: int, held: HeldDeliveries, before: int) -> None:
        self._protocol.inherit(channel, held, before)

    def _perform(self, plan: Plan[T]) -> T:
        if self._waiter is None:
            raise connection_lost("connection already closed")
        return self._stream.perform(plan)

    def _perform_alone(self, plan: Plan[T]) -> T:
        """Perform a plan that is one step for other threads."""
        if self._waiter is None:
            raise connection_lost("connection already closed")
        self._stream.check()  # before the lock: in a forked child somebody else may hold it
        with self._stream.lock:
            return self._stream.perform(plan)

    # --- channels

    def open_channel(self, above: int = 0) -> int:  # our tags are no numbers
        if not self.connected:
            raise connection_lost("connection already closed")
        return self._protocol.open_channel()

    def close_channel(self, channel: int) -> None:
        if channel in self._channels:
            self._perform_alone(self._protocol.close_channel(channel))

    def qos(self, channel: int, prefetch_size: int, prefetch_count: int, apply_global: bool) -> None:
        self._protocol.channel(channel).prefetch_count = prefetch_count
        self._wake()

    def gate(self, channel: int, may_take: Callable[[], Any] | None) -> None:
        self._protocol.channel(channel).gate = may_take
        self._wake()

    def flow(self, channel: int, active: bool) -> None:
        self._protocol.channel(channel).active = active
        self._wake()

    # --- exchanges, queues, bindings

    def declare_exchange(self, channel: int, spec: ExchangeSpec, passive: bool) -> None:
        self._perform(self._protocol.declare_exchange(channel, spec, passive))

    def delete_exchange(self, channel: int, name: str, if_unused: bool) -> None:
        self._perform(self._protocol.delete_exchange(channel, name, if_unused))

    def declare_queue(self, channel: int, spec: QueueSpec, passive: bool) -> QueueInfo:
        return self._perform(self._protocol.declare_queue(channel, spec, passive))

    def delete_queue(self, channel: int, name: str, if_unused: bool, if_empty: bool) -> int:
        return self._perform_alone(self._protocol.delete_queue(channel, name, if_unused, if_empty))

    def purge(self, channel: int, queue: str) -> int:
        self._protocol.channel(channel)
        return self._perform(self._protocol.topology.purge(queue))

    def bind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> None:
        self._perform(self._protocol.bind(channel, source, destination, routing_key, to_exchange))
        self._wait_until_subscribed(channel)

    def unbind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> None:
        self._perform(self._protocol.unbind(channel, source, destination, routing_key, to_exchange))

    # --- publishing

    def publish(
        self,
        channel: int,
        delivery: Delivery,
        mandatory: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        if channel not in self._channels:
            raise connection_lost("channel already closed")
        stream, publisher, begun_at = self._stream, self._protocol.publisher, monotonic()
        left, replicas = timeout, self._replicas
        if replicas:
            stream.note_written()
        if delivery.exchange:
            self._take_news(delivery.exchange, timeout)
            left = what_is_left(timeout, begun_at)
        destination = publisher.single(delivery)
        if destination is None:
            has_reached = stream.perform(publisher.publish(delivery), left)
        else:
            publisher.push(stream, destination, delivery, left)
            has_reached = publisher.is_current(destination, delivery.exchange)
            if not has_reached:
                left = what_is_left(timeout, begun_at)
                has_reached = stream.perform(publisher.catch_up(delivery, destination), left) > 0
        if replicas:
            stream.wait_for_replicas(replicas, confirm_timeout or what_is_left(timeout, begun_at))
        if not has_reached:
            if mandatory:
                raise exceptions.MessageReturned.no_route()
            self.unroutable += 1

    def _take_news(self, exchange: str, timeout: float | None) -> None:
        """Take what the server has said so far of changes to an exchange's bindings."""
        self._stream.poll(timeout)

    def publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> list[tuple[int, Exception]]:
        stream, begun_at = self._stream, monotonic()
        if self._replicas:
            stream.note_written()
        plan = self._protocol.publish_many(channel, deliveries, mandatory)
        refused, unroutable = stream.perform(plan, timeout)
        if self._replicas:
            stream.wait_for_replicas(self._replicas, what_is_left(timeout, begun_at))
        self.unroutable += unroutable
        return refused

    # --- consuming

    def consume(
        self,
        channel: int,
        queue: str,
        consumer_tag: str,
        no_ack: bool,
        exclusive: bool,
        arguments: Mapping[str, Any] | None,
    ) -> str:
        self._protocol.channel(channel)
        self._check_rights(queue, no_ack)
        with self._stream.lock:
            if not self.connected:  # the system would give the descriptor of the broken connection to the new one
                raise connection_lost("connection already closed")
            self._listen()
            tag = self._protocol.start_consumer(channel, queue, consumer_tag, no_ack, exclusive)
            self._wait_in_server()
            try:
                self._wait_until_subscribed(channel)
            except exceptions.ChannelError:
                self._perform(self._protocol.cancel(channel, tag))
                raise
            return tag

    def _check_rights(self, queue: str, no_ack: bool) -> None:
        """Have a consumer refused at its start that may not take messages."""
        self._perform(self._protocol.check_rights(queue, no_ack))

    def _wait_until_subscribed(self, channel: int) -> None:
        """Wait until the server has subscribed to what was asked for. Raises its refusal."""
        receiver = self._protocol.receiver
        if receiver.subscriptions.unanswered:
            for stream in self._streams:
                if stream is receiver.listener:
                    stream.wait_for_replies()
            self._protocol.channel(channel)

    def _listen(self) -> None:
        """Open the connection that listens, for the first consumer."""
        receiver, waiter = self._protocol.receiver, self._waiter
        if receiver.listener is None and waiter is not None:
            listener = self._open(receiver.on_push)
            self._track(listener)
            waiter.add(listener)
            receiver.listener = listener

    def _track(self, listener: Stream) -> None:
        """Have the server tell of changes, if it does."""
        receiver = self._protocol.receiver
        if listener.perform(receiver.track(listener)):
            watcher = next((stream for stream in self._streams if stream is receiver.watcher), None)
            if watcher is None:
                watcher = self._open(receiver.on_push)
                assert self._waiter is not None
                self._waiter.add(watcher)
            watcher.perform(receiver.watch(watcher))

    def _wait_in_server(self) -> None:
        """Open the connections over which the server is waited for, where it does not tell of changes."""
        receiver = self._protocol.receiver
        assert self._waiter is not None
        while receiver.missing_waits > 0:
            try:
                stream = self._open(receiver.on_push)
            except (exceptions.ConnectionError, OSError) as error:  # such as one too many for the server
                receiver.waits.add_no_more(error)
                break
            self._waiter.add(stream)
            receiver.waits.add(stream)

    def _wake(self) -> None:
        if self._waiter is not None:
            self._waiter.wake()

    def _keep(self, queue: str | None) -> None:
        """See to it that leases are renewed, and that a queue stays that ends without use."""
        protocol = self._protocol
        if self._maintainer is None:
            self._maintainer = LeaseMaintainer(protocol, self._connector, self._stream, self._streams)
            try:
                self._maintainer.start()
            except RuntimeError:  # no thread can be started: the next consumer tries again
                self._maintainer = None
                raise
            protocol.bring_back_soon = self._maintainer.bring_back_now
        elif queue is not None and protocol.topology.declared.ends(queue):
            self._maintainer.extend_now()

    def _flush_soon(self) -> bool:
        """Have the acks sent that wait. Returns False if no thread does that."""
        if self._maintainer is None or self._acks is None:
            return False
        self._maintainer.flush_soon(self._acks.flush_if_free)
        return True

    def cancel(self, channel: int, consumer_tag: str) -> None:
        self._perform_alone(self._protocol.cancel(channel, consumer_tag))

    def get(self, channel: int, queue: str, no_ack: bool) -> Delivery | None:
        return self._perform(self._protocol.get(channel, queue, no_ack))

    def fast_ack(self, channel: int) -> AckStep | None:
        if self._acks is None or self._waiter is None:
            return None
        return self._acks.step(self._protocol.channel(channel), self._channels, self._waiter)

    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> None:
        state, leases = self._protocol.take(channel, delivery_tag, multiple)
        self._settle(state, leases, outcome)

    def settle_many(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome) -> None:
        state, leases = self._protocol.take_many(channel, delivery_tags)
        self._settle(state, leases, outcome)

    def _settle(self, state: RedisChannel, leases: Sequence[Lease], outcome: Outcome) -> None:
        if outcome is REQUEUE:
            self._perform(self._protocol.requeue(state, leases))
            return
        try:
            if self._acks is None or not self._acks.hold(state, leases):
                self._protocol.receiver.acknowledge(state, leases)
        except BaseException:
            state.keep(leases)  # the server does not know
            raise
        self._wake()

    def recover(self, channel: int) -> None:
        state, leases = self._protocol.take(channel, 0, True)
        self._perform(self._protocol.requeue(state, leases))

    def receive(self, timeout: float | None) -> Sequence[Event]:
        if self._waiter is None:
            raise connection_lost("connection already closed")
        return self._waiter.receive(timeout)
