"""The transport over a store: whatever can keep bytes by queue is a broker with it.

A third party implements ``Store`` and names it in a subclass of this ``Transport``, which does what AMQP asks for:
channels, consumers, prefetch, delivery tags, acknowledgements, routing by direct, topic and fanout exchanges, returned
messages. Messages travel in kombu's JSON envelope. ``docs/writing-a-transport.md`` walks through an example.

The class is as wide as the interface: its 20 verbs, and what they share.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import cycle
from threading import Condition, RLock
from time import monotonic
from typing import Any, ClassVar, NamedTuple

from kombulite import exceptions
from kombulite._core import Delivery, EnvelopeTemplate, Ledger, MalformedEnvelope, TagSequence, decode_envelope
from kombulite.brokers import base
from kombulite.brokers.base import (
    Cancelled,
    Capabilities,
    Event,
    ExchangeSpec,
    Outcome,
    QueueInfo,
    QueueSpec,
    QueueStatus,
    Settings,
)
from kombulite.brokers.store import Catalogue, Claim, Store
from kombulite.log import get_logger
from kombulite.utils.json import codec
from kombulite.utils.uuid import uuid

__all__ = ["Claim", "Store", "Transport"]

MOST_CHANNELS = 65535
SHORTEST_POLL = 0.005  # seconds
DEFAULT_POLLING_INTERVAL = 0.1  # seconds

logger = get_logger(__name__)


class Consumer(NamedTuple):
    """A consumer of a queue, on a channel."""

    tag: str
    queue: str
    channel: Channel
    no_ack: bool
    exclusive: bool


class Channel:
    """A channel: its consumers, and what was delivered on it and not settled yet."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.ledger = Ledger()
        self.consumers: dict[str, Consumer] = {}
        self.tokens: dict[Any, Any] = {}  # of claims, by delivery tag


class Transport(base.Transport):
    """A connection to a store. May be shared between threads.

    Transport option ``polling_interval``: the longest time between two looks at the store, in seconds (0.1).
    """

    driver_type = "virtual"
    driver_name = "virtual"
    capabilities = Capabilities(exchange_types=frozenset(["direct", "topic", "fanout"]))
    survives_fork = True  # it knows by itself what is its parent's

    #: The class of the store.
    Store: ClassVar[type[Store]] = Store

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        interval = settings.options.get("polling_interval")
        self.polling_interval = DEFAULT_POLLING_INTERVAL if interval is None else float(interval)
        self._store = self.Store(settings, uuid())
        self._catalogue = Catalogue(self._store, self.capabilities.exchange_types)
        self._lock = RLock()
        self._wake = Condition(self._lock)
        self._channels: dict[int, Channel] = {}
        # A number comes again only after all others: what is still under way for a closed channel finds nobody.
        self._numbers = cycle(range(1, MOST_CHANNELS + 1))
        self._turns: deque[Consumer] = deque()
        self._events: deque[Event] = deque()
        self._tags = TagSequence()
        self._template: tuple[Any, EnvelopeTemplate | None] = (None, None)  # of the last message, and what it is for
        self._connected = False
        self._process = os.getpid()

    def connect(self) -> None:
        """Open the store."""
        self._store.open()
        self._process = os.getpid()
        self._connected = True

    def close(self) -> None:
        """Put back what is not settled, delete the queues of this connection, close the store."""
        if os.getpid() != self._process:
            self._connected = False  # a forked child's copy: all of that is its parent's
            return
        with self._lock:
            if not self._connected:
                return
            try:
                for number in list(self._channels):
                    self.close_channel(number)
                with self._store.lock():
                    for name in self._catalogue.own_queues():
                        self._catalogue.delete_queue(name)
            finally:
                self._connected = False
                self._events.clear()
                self._wake.notify_all()
                self._store.close()

    @property
    def connected(self) -> bool:
        """Whether the store is open."""
        return self._connected

    # --- channels

    def open_channel(self, above: int = 0) -> int:  # a store is there or not: its connection is never lost
        with self._lock:
            if not self._connected:
                raise exceptions.RecoverableConnectionError("connection already closed")
            if len(self._channels) >= MOST_CHANNELS:
                raise exceptions.ResourceError(f"all {MOST_CHANNELS} channels of this connection are open")
            number = next(number for number in self._numbers if number not in self._channels)
            self._channels[number] = Channel(number)
            return number

    def close_channel(self, channel: int) -> None:
        with self._lock:
            state = self._channels.pop(channel, None)
            if state is not None:
                self._events = deque(event for event in self._events if event.channel != channel)
                self._settle(state, state.ledger.close(), Outcome.REQUEUE)
                for consumer in list(state.consumers.values()):
                    self._end_consumer(consumer)

    def _channel(self, number: int) -> Channel:
        try:
            return self._channels[number]
        except KeyError:
            raise exceptions.RecoverableConnectionError("channel already closed") from None

    def qos(self, channel: int, prefetch_size: int, prefetch_count: int, apply_global: bool) -> None:
        with self._lock:
            self._channel(channel).ledger.prefetch_count = prefetch_count
            self._wake.notify_all()

    def flow(self, channel: int, active: bool) -> None:
        with self._lock:
            self._channel(channel).ledger.active = active
            self._wake.notify_all()

    # --- exchanges, queues, bindings

    def declare_exchange(self, channel: int, spec: ExchangeSpec, passive: bool) -> None:
        with self._lock, self._store.lock():
            self._channel(channel)
            if passive:
                self._catalogue.exchange_type(spec.name)
            else:
                self._catalogue.declare_exchange(spec)

    def delete_exchange(self, channel: int, name: str, if_unused: bool) -> None:
        with self._lock, self._store.lock():
            self._channel(channel)
            self._catalogue.delete_exchange(name, if_unused)

    def declare_queue(self, channel: int, spec: QueueSpec, passive: bool) -> QueueInfo:
        with self._lock, self._store.lock():
            self._channel(channel)
            spec = spec._replace(name=spec.name or f"amq.gen-{uuid()}")
            if passive:
                self._catalogue.queue(spec.name)
            else:
                self._catalogue.declare_queue(spec)
            return QueueInfo(spec.name, self._store.size(spec.name), self._consumer_count(spec.name))

    def list_queues(self, channel: int) -> list[QueueStatus]:
        with self._lock:
            self._channel(channel)
            names = sorted(self._store.names("queue"))
            store = self._store
            return [
                QueueStatus(name, store.size(name), self._consumer_count(name), store.claimed(name)) for name in names
            ]

    def delete_queue(self, channel: int, name: str, if_unused: bool, if_empty: bool) -> int:
        with self._lock, self._store.lock():
            self._channel(channel)
            try:
                self._catalogue.queue(name)
            except exceptions.NotFound:
                return 0
            if if_unused and self._consumer_count(name):
                raise exceptions.PreconditionFailed(f"queue '{name}' is in use")
            if if_empty and self._store.size(name):
                raise exceptions.PreconditionFailed(f"queue '{name}' is not empty")
            for consumer in self._consumers_of(name):
                self._forget_consumer(consumer)
                self._events.append(Cancelled(consumer.channel.number, consumer.tag))
            self._wake.notify_all()
            return self._catalogue.delete_queue(name)

    def purge(self, channel: int, queue: str) -> int:
        with self._lock:
            self._channel(channel)
            self._catalogue.queue(queue)
            return self._store.clear(queue)

    def bind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> None:
        with self._lock, self._store.lock():
            self._channel(channel)
            self._check_binding(source, to_exchange)
            self._catalogue.bind(source, destination, routing_key)

    def unbind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> None:
        with self._lock, self._store.lock():
            self._channel(channel)
            self._check_binding(source, to_exchange)
            self._catalogue.unbind(source, destination, routing_key)

    def _check_binding(self, source: str, to_exchange: bool) -> None:
        if not source:
            raise exceptions.AccessRefused("nothing can be bound to the default exchange")
        if to_exchange:
            raise exceptions.AMQPNotImplementedError(f"{self.driver_type} has no bindings between exchanges")

    # --- publishing

    def publish(
        self,
        channel: int,
        delivery: Delivery,
        mandatory: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        with self._lock:
            self._channel(channel)
            queues = self._catalogue.route(delivery)
            for queue in queues:
                self._store.put(queue, self._encode(delivery))
            if queues:
                self._wake.notify_all()
            elif mandatory:
                raise exceptions.MessageReturned.no_route()
            else:
                self.unroutable += 1

    def _encode(self, delivery: Delivery) -> bytes:
        key = delivery.exchange, delivery.routing_key, delivery.properties
        known, template = self._template
        if template is None or known != key:
            template = EnvelopeTemplate(codec, *key)
            self._template = key, template
        return template.encode(delivery.body, self._tags.next())

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
        with self._lock:
            state = self._channel(channel)
            self._catalogue.queue(queue)
            consumer_tag = consumer_tag or f"ctag-{uuid()}"
            if consumer_tag in state.consumers:
                raise exceptions.NotAllowed(f"consumer tag '{consumer_tag}' is in use")
            others = self._consumers_of(queue)
            if (exclusive and others) or any(other.exclusive for other in others):
                raise exceptions.AccessRefused(f"queue '{queue}' has an exclusive consumer, or consumers already")
            consumer = Consumer(consumer_tag, queue, state, no_ack, exclusive)
            state.consumers[consumer_tag] = consumer
            self._turns.append(consumer)
            self._tell_consumers()
            self._wake.notify_all()
            return consumer_tag

    def cancel(self, channel: int, consumer_tag: str) -> None:
        with self._lock:
            consumer = self._channel(channel).consumers.get(consumer_tag)
            if consumer is not None:
                self._end_consumer(consumer)

    def _consumers_of(self, queue: str) -> list[Consumer]:
        return [consumer for consumer in self._turns if consumer.queue == queue]

    def _consumer_count(self, queue: str) -> int:
        return len(self._consumers_of(queue)) + self._store.consumed_elsewhere(queue)

    def _forget_consumer(self, consumer: Consumer) -> None:
        consumer.channel.consumers.pop(consumer.tag, None)
        self._turns.remove(consumer)
        self._tell_consumers()

    def _tell_consumers(self) -> None:
        self._store.on_consumers_changed([consumer.queue for consumer in self._turns])

    def _end_consumer(self, consumer: Consumer) -> None:
        self._forget_consumer(consumer)
        self._wake.notify_all()  # whoever waits for this consumer only has to know
        with self._store.lock():
            if self._catalogue.is_auto_delete(consumer.queue) and not self._consumer_count(consumer.queue):
                self._catalogue.delete_queue(consumer.queue)

    def get(self, channel: int, queue: str, no_ack: bool) -> Delivery | None:
        with self._lock:
            state = self._channel(channel)
            self._catalogue.queue(queue)
            delivery = self._take(state, queue, None, no_ack)
            if delivery is not None:
                delivery.message_count = self._store.size(queue)
            return delivery

    def _take(self, state: Channel, queue: str, consumer_tag: str | None, no_ack: bool) -> Delivery | None:
        """The next readable message of a queue, as one that was delivered on a channel."""
        while (claim := self._store.claim(queue)) is not None:
            try:
                delivery = decode_envelope(codec, claim.data)
            except MalformedEnvelope as error:
                logger.error("A message in queue %s cannot be read: %s", queue, error)
                self._store.set_aside(claim.token)
                continue
            delivery.delivery_count = claim.delivery_count
            delivery.redelivered = claim.delivery_count > 0
            state.ledger.hand_over(delivery, None, state.number, consumer_tag, no_ack)
            if no_ack:
                self._store.finish(claim.token)
            else:
                state.tokens[delivery.delivery_tag] = claim.token
            return delivery
        return None

    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> None:
        with self._lock:
            state = self._channel(channel)
            try:
                settled = state.ledger.settle_up_to(delivery_tag) if multiple else [state.ledger.settle(delivery_tag)]
            except KeyError:
                settled = []
            if not settled and (delivery_tag or not multiple):
                raise exceptions.PreconditionFailed(f"unknown delivery tag {delivery_tag!r}")
            self._settle(state, settled, outcome)

    def settle_many(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome) -> None:
        with self._lock:
            state = self._channel(channel)
            try:
                settled = state.ledger.settle_all(delivery_tags)
            except KeyError as error:
                raise exceptions.PreconditionFailed(f"unknown delivery tag {error}") from None
            self._settle(state, settled, outcome)

    def recover(self, channel: int) -> None:
        with self._lock:
            state = self._channel(channel)
            self._settle(state, state.ledger.settle_up_to(0), Outcome.REQUEUE)

    def _settle(self, state: Channel, settled: list[Delivery], outcome: Outcome) -> None:
        end = self._store.put_back if outcome is Outcome.REQUEUE else self._store.finish
        for delivery in settled:
            end(state.tokens.pop(delivery.delivery_tag))
        self._wake.notify_all()

    def receive(self, timeout: float | None) -> Sequence[Event]:
        deadline = None if timeout is None else monotonic() + timeout
        pause = SHORTEST_POLL
        with self._lock:
            while True:
                event = self._next_event()
                if event is not None:
                    return (event,)
                if not self._connected:
                    raise exceptions.RecoverableConnectionError("connection already closed")
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    return ()
                if left is None and not self._turns:
                    raise exceptions.OperationalError("waiting without a timeout, and there is no consumer to wait for")
                self._wake.wait(pause if left is None else min(pause, left))
                pause = min(pause * 2, self.polling_interval)

    def _next_event(self) -> Event | None:
        """A notice, or the next message for one of the consumers, each in turn."""
        if self._events:
            return self._events.popleft()
        empty = set()
        for _ in range(len(self._turns)):
            consumer = self._turns[0]
            self._turns.rotate(-1)
            ledger = consumer.channel.ledger
            if consumer.queue in empty or not ledger.active or not (consumer.no_ack or ledger.has_credit()):
                continue
            delivery = self._take(consumer.channel, consumer.queue, consumer.tag, consumer.no_ack)
            if delivery is not None:
                return delivery
            empty.add(consumer.queue)
        return None
