"""The transport over a store: whatever can keep bytes by queue is a broker with it.

A third party implements ``Store`` and names it in a subclass of this ``Transport``, which does what AMQP asks for:
channels, consumers, prefetch, delivery tags, acknowledgements, routing by direct, topic and fanout exchanges, returned
messages. Messages travel in kombu's JSON envelope. ``docs/writing-a-transport.md`` walks through an example.

The class is as wide as the interface: its 20 verbs, and what they share.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from kombulite import exceptions
from kombulite._core import Delivery, EnvelopeReader, EnvelopeTemplate, MalformedEnvelope, TagSequence
from kombulite.brokers.base import Capabilities, ExchangeSpec, Outcome, QueueInfo, QueueSpec, QueueStatus, Settings
from kombulite.brokers.channels import ChannelTransport, Consumer, Taken
from kombulite.brokers.options import as_number
from kombulite.brokers.store import Catalogue, Claim, Store
from kombulite.log import get_logger
from kombulite.utils.json_codec import codec
from kombulite.utils.uuid import uuid

__all__ = ["Claim", "Store", "Transport"]

FIRST_PAUSE = 0.005  # seconds
DEFAULT_POLLING_INTERVAL = 0.1  # seconds

logger = get_logger(__name__)


class Transport(ChannelTransport):
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
        self.polling_interval = as_number(
            "polling_interval", DEFAULT_POLLING_INTERVAL if interval is None else interval
        )
        self._store = self.Store(settings, uuid())
        self._catalogue = Catalogue(self._store, self.capabilities.exchange_types)
        self._tags = TagSequence()
        self._envelopes = EnvelopeReader(codec)
        self._template: tuple[Any, EnvelopeTemplate | None] = (None, None)  # of the last message, and what it is for
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
            return QueueInfo(spec.name, self._store.size(spec.name), self.consumer_count(spec.name))

    def list_queues(self, channel: int) -> list[QueueStatus]:
        with self._lock:
            self._channel(channel)
            names = sorted(self._store.names("queue"))
            store = self._store
            return [
                QueueStatus(name, store.size(name), self.consumer_count(name), store.claimed(name)) for name in names
            ]

    def delete_queue(self, channel: int, name: str, if_unused: bool, if_empty: bool) -> int:
        with self._lock, self._store.lock():
            self._channel(channel)
            try:
                self._catalogue.queue(name)
            except exceptions.NotFound:
                return 0
            if if_unused and self.consumer_count(name):
                raise exceptions.PreconditionFailed(f"queue '{name}' is in use")
            if if_empty and self._store.size(name):
                raise exceptions.PreconditionFailed(f"queue '{name}' is not empty")
            self.cancel_consumers(name)
            self._report_consumers()
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
            try:
                template = EnvelopeTemplate(codec, *key)
            except exceptions.UNWRITABLE as error:
                raise exceptions.encode_error(error) from error
            self._template = key, template
        return template.encode(delivery.body, self._tags.next())

    # --- consuming

    def check_queue(self, queue: str) -> None:
        self._catalogue.queue(queue)

    def consumed_elsewhere(self, queue: str) -> int:
        return self._store.consumed_elsewhere(queue)

    def consumer_started(self, consumer: Consumer) -> None:
        self._report_consumers()

    def consumer_ended(self, consumer: Consumer) -> None:
        self._report_consumers()
        with self._store.lock():
            if self._catalogue.is_auto_delete(consumer.queue) and not self.consumer_count(consumer.queue):
                self._catalogue.delete_queue(consumer.queue)

    def _report_consumers(self) -> None:
        self._store.on_consumers_changed([consumer.queue for consumer in self._turns])

    def get(self, channel: int, queue: str, no_ack: bool) -> Delivery | None:
        with self._lock:
            delivery = super().get(channel, queue, no_ack)
            if delivery is not None:
                delivery.message_count = self._store.size(queue)
            return delivery

    def take(self, queue: str, credit: int) -> Taken | None:
        while (claim := self._store.claim(queue)) is not None:
            try:
                delivery = self._envelopes.read(queue, claim.data)
            except MalformedEnvelope as error:
                logger.error("A message in queue %s cannot be read: %s", queue, error)
                self._store.set_aside(claim.token)
                continue
            delivery.delivery_count = claim.delivery_count
            delivery.redelivered = claim.delivery_count > 0
            return Taken(delivery, claim.token)
        return None

    def settle_taken(self, tokens: Sequence[Any], outcome: Outcome) -> None:
        settle = self._store.put_back if outcome is Outcome.REQUEUE else self._store.finish
        for token in tokens:
            settle(token)

    def wait_for_messages(self, seconds: float | None, attempt: int) -> None:
        pause = min(FIRST_PAUSE * 2 ** min(attempt, 30), self.polling_interval)
        self._wake.wait(pause if seconds is None else min(pause, seconds))
