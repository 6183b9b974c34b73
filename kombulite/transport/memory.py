"""The embedded broker: queues in this process, with the semantics of a real one.

All connections of a process that name the same virtual host share one ``Broker``. One lock guards it; a consumer that
waits sleeps on a condition of that lock and is woken by the publish that has something for it. Nothing is done in the
background: messages and queues expire when somebody looks, and whoever waits looks in time.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import count
from threading import Condition, RLock
from time import monotonic, time
from typing import Any, NamedTuple
from uuid import uuid4

from kombulite import exceptions
from kombulite._core import Delivery, RoutingTable, UnknownExchange
from kombulite.transport.base import (
    Cancelled,
    Capabilities,
    Event,
    ExchangeSpec,
    Outcome,
    QueueInfo,
    QueueSpec,
    Returned,
    Settings,
)
from kombulite.transport.base import Transport as BaseTransport

MOST_CHANNELS = 65535
PREDECLARED = {"direct": "direct", "fanout": "fanout", "topic": "topic", "headers": "headers", "match": "headers"}


# --- queues -----------------------------------------------------------------------------------------------------


class Limits(NamedTuple):
    """What a queue's arguments ask for; times in seconds."""

    message_ttl: float | None
    expires: float | None
    max_length: int | None
    max_length_bytes: int | None
    max_priority: int
    reject_publish: bool
    dead_letter_exchange: str | None
    dead_letter_routing_key: str | None

    @classmethod
    def of(cls, spec: QueueSpec) -> Limits:
        """Read and check the arguments of a queue. Raises PreconditionFailed."""
        arguments = spec.arguments or {}

        def number(name: str, least: int = 0, most: int | None = None) -> Any:
            value = arguments.get(name)
            if value is None:
                return None
            if isinstance(value, bool) or not isinstance(value, int) or value < least or (most and value > most):
                raise exceptions.PreconditionFailed(f"invalid arg '{name}' for queue '{spec.name}': {value!r}")
            return value

        overflow = arguments.get("x-overflow", "drop-head")
        if overflow not in ("drop-head", "reject-publish", "reject-publish-dlx"):
            raise exceptions.PreconditionFailed(f"invalid arg 'x-overflow' for queue '{spec.name}': {overflow!r}")
        message_ttl, expires = number("x-message-ttl"), number("x-expires", least=1)
        return cls(
            message_ttl=None if message_ttl is None else message_ttl / 1000,
            expires=None if expires is None else expires / 1000,
            max_length=number("x-max-length"),
            max_length_bytes=number("x-max-length-bytes"),
            max_priority=number("x-max-priority", most=255) or 0,
            reject_publish=overflow != "drop-head",
            dead_letter_exchange=arguments.get("x-dead-letter-exchange"),
            dead_letter_routing_key=arguments.get("x-dead-letter-routing-key"),
        )


class Queue:
    """Messages that wait, one deque for each priority, in the order they came; requeued ones back in their place."""

    def __init__(self, spec: QueueSpec, owner: Transport | None, now: float) -> None:
        self.spec = spec
        self.limits = Limits.of(spec)
        self.owner = owner  # the connection of an exclusive queue
        self.levels: list[deque[Delivery]] = [deque() for _ in range(self.limits.max_priority + 1)]
        self.consumers: list[Consumer] = []
        self.idle: list[Consumer] = []  # consumers that found nothing here when they looked last
        self.size = 0  # bytes of the bodies, kept only where they are limited
        self.bounded = self.limits.max_length is not None or self.limits.max_length_bytes is not None
        self.used_at = now
        self._positions = count(1)
        self.may_expire = self.limits.message_ttl is not None

    def __len__(self) -> int:
        return sum(map(len, self.levels))

    def add(self, delivery: Delivery, now: float) -> None:
        """Append a new message."""
        delivery.position = next(self._positions)
        ttl = self.limits.message_ttl
        if delivery.properties.expiration is not None:
            own = expiration_of(delivery)
            ttl = own if ttl is None else min(ttl, own)
        if ttl is not None:
            delivery.expires_at = now + ttl
            self.may_expire = True
        self.level_of(delivery).append(delivery)
        self.size += len(delivery.body)

    def put_back(self, delivery: Delivery) -> None:
        """Put a message back into its place, as redelivered. Whoever had it keeps an object of their own."""
        again = delivery.copy()
        again.position, again.expires_at, again.redelivered = delivery.position, delivery.expires_at, True
        level = self.level_of(again)
        place = 0
        for waiting in level:
            if waiting.position > again.position:
                break
            place += 1
        level.insert(place, again)
        self.size += len(again.body)

    def pop(self) -> Delivery | None:
        """Take the next message, the highest priority first."""
        for level in reversed(self.levels):
            if level:
                delivery = level.popleft()
                self.size -= len(delivery.body)
                return delivery
        return None

    def level_of(self, delivery: Delivery) -> deque[Delivery]:
        if len(self.levels) == 1:
            return self.levels[0]
        priority = delivery.properties.priority
        return self.levels[min(max(int(priority or 0), 0), len(self.levels) - 1)]

    def is_over(self, extra_messages: int = 0, extra_bytes: int = 0) -> bool:
        """Whether the limits on length are passed, or would be."""
        limits = self.limits
        return (limits.max_length is not None and len(self) + extra_messages > limits.max_length) or (
            limits.max_length_bytes is not None and self.size + extra_bytes > limits.max_length_bytes
        )

    def pop_expired(self, now: float) -> list[Delivery]:
        """Take the messages whose time is over. Those behind one that lives on wait for it, as in RabbitMQ."""
        expired = []
        for level in self.levels:
            while level and 0 < level[0].expires_at <= now:
                expired.append(level.popleft())
                self.size -= len(expired[-1].body)
        return expired

    def next_deadline(self) -> float | None:
        """When something here expires next: the message at a head, or the unused queue itself."""
        deadlines = [level[0].expires_at for level in self.levels if level and level[0].expires_at]
        if self.limits.expires is not None and not self.consumers:
            deadlines.append(self.used_at + self.limits.expires)
        return min(deadlines, default=None)


def expiration_of(delivery: Delivery) -> float:
    """Seconds that a message may wait. Raises PreconditionFailed where its property is no number."""
    try:
        milliseconds = int(delivery.properties.expiration)
    except (TypeError, ValueError):
        milliseconds = -1
    if milliseconds < 0:
        raise exceptions.PreconditionFailed(f"invalid expiration {delivery.properties.expiration!r:.80}")
    return milliseconds / 1000


class Consumer:
    """A consumer of a queue. It is listed with its transport while the queue may have something for it."""

    __slots__ = ("channel", "exclusive", "listed", "no_ack", "queue", "tag")

    def __init__(self, tag: str, queue: Queue, channel: Channel, no_ack: bool, exclusive: bool) -> None:
        self.tag = tag
        self.queue = queue
        self.channel = channel
        self.no_ack = no_ack
        self.exclusive = exclusive
        self.listed = False


class Channel:
    """A channel: its consumers, and what was delivered on it and not settled yet."""

    __slots__ = ("active", "consumers", "next_tag", "number", "prefetch_count", "stalled", "transport", "unacked")

    def __init__(self, number: int, transport: Transport) -> None:
        self.number = number
        self.transport = transport
        self.consumers: dict[str, Consumer] = {}
        self.unacked: dict[int, tuple[Queue, Delivery]] = {}
        self.next_tag = 1
        self.prefetch_count = 0
        self.active = True
        self.stalled: list[Consumer] = []  # consumers that wait for an ack, not for a message

    def has_credit(self) -> bool:
        return self.active and (not self.prefetch_count or len(self.unacked) < self.prefetch_count)


# --- dead letters -----------------------------------------------------------------------------------------------


def dead_letter(queue: Queue, delivery: Delivery, reason: str) -> Delivery | None:
    """The message as it goes to the queue's dead letter exchange, or None where it went in a circle.

    Header ``x-death`` as RabbitMQ writes it: a table for each (queue, reason), the newest first.
    """
    headers = dict(delivery.properties.headers or {})
    deaths = [dict(death) for death in headers.get("x-death", ())]
    if reason != "rejected" and any(death["queue"] == queue.spec.name for death in deaths):
        if not any(death["reason"] == "rejected" for death in deaths):
            return None
    death: dict[str, Any] = {
        "count": 0,
        "reason": reason,
        "queue": queue.spec.name,
        "time": int(time()),
        "exchange": delivery.exchange,
        "routing-keys": [delivery.routing_key],
    }
    if reason == "expired" and delivery.properties.expiration is not None:
        death["original-expiration"] = delivery.properties.expiration
    for known in deaths:
        if known["queue"] == queue.spec.name and known["reason"] == reason:
            deaths.remove(known)
            death = known
            break
    death["count"] += 1
    headers["x-death"] = [death, *deaths]
    headers.setdefault("x-first-death-exchange", delivery.exchange)
    headers.setdefault("x-first-death-queue", queue.spec.name)
    headers.setdefault("x-first-death-reason", reason)
    return Delivery(
        queue.limits.dead_letter_exchange,
        delivery.routing_key if queue.limits.dead_letter_routing_key is None else queue.limits.dead_letter_routing_key,
        delivery.properties.replace(headers=headers, expiration=None),
        delivery.body,
    )


# --- the broker -------------------------------------------------------------------------------------------------


class Broker:
    """One virtual host. All methods want its lock held, which a garbage collection may take once more: so nothing
    here iterates over what closing a connection changes."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.table = RoutingTable()
        self.exchanges: dict[str, ExchangeSpec] = {}
        self.queues: dict[str, Queue] = {}
        self.expiring: set[Queue] = set()
        self._dead: deque[tuple[Queue, Delivery, str]] = deque()
        self._burying = False
        for name, kind in PREDECLARED.items():
            self.declare_exchange(ExchangeSpec(f"amq.{name}", kind))

    # --- exchanges and queues

    def declare_exchange(self, spec: ExchangeSpec) -> None:
        known = self.exchanges.get(spec.name)
        if known is not None:
            if known._replace(arguments=known.arguments or {}) != spec._replace(arguments=spec.arguments or {}):
                raise exceptions.NotEquivalentError(
                    f"exchange '{spec.name}' is declared as {describe(known)}, not as {describe(spec)}"
                )
            return
        try:
            self.table.declare(spec.name, spec.type, (spec.arguments or {}).get("alternate-exchange"))
        except ValueError as error:
            raise exceptions.InvalidCommand(str(error)) from error
        self.exchanges[spec.name] = spec

    def delete_exchange(self, name: str, if_unused: bool) -> None:
        if name.startswith("amq.") or not name:
            raise exceptions.AccessRefused(f"exchange '{name}' is the broker's own")
        if name not in self.exchanges:
            return
        if if_unused and self.table.bindings(name):
            raise exceptions.PreconditionFailed(f"exchange '{name}' is in use")
        del self.exchanges[name]
        for binding in self.table.delete(name):
            if binding.source != name:
                self.drop_unused_exchange(binding.source)

    def drop_unused_exchange(self, name: str) -> None:
        """An auto-delete exchange goes with its last binding."""
        spec = self.exchanges.get(name)
        if spec is not None and spec.auto_delete and not self.table.bindings(name):
            self.delete_exchange(name, if_unused=False)

    def queue(self, name: str, user: Transport) -> Queue:
        """A queue by name, for a connection that may use it. Raises NotFound, ResourceLocked."""
        if self.expiring:
            self.expire(monotonic())
        queue = self.queues.get(name)
        if queue is None:
            raise exceptions.NotFound(f"no queue '{name}' in vhost '{user.settings.virtual_host}'")
        if queue.owner is not None and queue.owner is not user:
            raise exceptions.ResourceLocked(f"queue '{name}' is exclusive to another connection")
        return queue

    def declare_queue(self, spec: QueueSpec, user: Transport) -> Queue:
        if spec.name not in self.queues:
            now = monotonic()
            queue = Queue(spec, user if spec.exclusive else None, now)
            self.queues[spec.name] = queue
            if queue.limits.expires is not None:
                self.expiring.add(queue)
            return queue
        queue = self.queue(spec.name, user)
        if queue.spec._replace(arguments=queue.spec.arguments or {}) != spec._replace(arguments=spec.arguments or {}):
            raise exceptions.NotEquivalentError(
                f"queue '{spec.name}' is declared as {describe(queue.spec)}, not as {describe(spec)}"
            )
        queue.used_at = monotonic()
        return queue

    def delete_queue(self, queue: Queue) -> int:
        """Delete a queue: its bindings and messages go, its consumers are cancelled."""
        del self.queues[queue.spec.name]
        self.expiring.discard(queue)
        for consumer in list(queue.consumers):
            transport = consumer.channel.transport
            transport.remove_consumer(consumer)
            transport.notify(Cancelled(consumer.channel.number, consumer.tag))
        for binding in self.table.delete_queue(queue.spec.name):
            self.drop_unused_exchange(binding.source)
        return len(queue)

    # --- messages

    def route(self, delivery: Delivery) -> list[Queue]:
        """The queues that a message goes to. Raises NotFound for an unknown exchange."""
        queues = self.queues
        if delivery.exchange == "":
            found = queues.get(delivery.routing_key)
            return [] if found is None else [found]
        try:
            names = self.table.route(delivery.exchange, delivery.routing_key, delivery.properties.headers)
        except UnknownExchange:
            raise exceptions.NotFound(f"no exchange '{delivery.exchange}'") from None
        return [queues[name] for name in names]

    def enqueue(self, queues: list[Queue], delivery: Delivery) -> None:
        """Put a message into queues, each with a copy of its own."""
        first = True
        for queue in queues:
            if queue.may_expire or delivery.properties.expiration is not None:
                queue.add(delivery if first else delivery.copy(), monotonic())
                self.expiring.add(queue)
            else:
                queue.add(delivery if first else delivery.copy(), 0.0)
            first = False
            if queue.bounded:
                self.shorten(queue)
            if queue.idle:
                self.offer(queue)

    def check(self, queues: list[Queue], delivery: Delivery) -> None:
        """Refuse a publish. Raises MessageNacked if a queue is full, PreconditionFailed for a bad expiration."""
        if delivery.properties.expiration is not None:
            expiration_of(delivery)
        for queue in queues:
            if queue.limits.reject_publish and queue.is_over(1, len(delivery.body)):
                raise exceptions.MessageNacked(f"queue '{queue.spec.name}' is full")

    def shorten(self, queue: Queue) -> None:
        """Drop messages at the head of a queue that is over its limits."""
        while queue.is_over():
            dropped = queue.pop()
            if dropped is None:
                return
            self.bury(queue, dropped, "maxlen")

    def bury(self, queue: Queue, delivery: Delivery, reason: str) -> None:
        """Send a message to the queue's dead letter exchange, if it has one. A dead letter is never refused."""
        if queue.limits.dead_letter_exchange is None:
            return
        self._dead.append((queue, delivery, reason))
        if self._burying:
            return  # one death causes another: the loop below, further up the stack, gets to it
        self._burying = True
        try:
            while self._dead:
                dead = dead_letter(*self._dead.popleft())
                if dead is not None and (not dead.exchange or dead.exchange in self.exchanges):
                    self.enqueue(self.route(dead), dead)
        finally:
            self._burying = False

    def put_back(self, queue: Queue, delivery: Delivery) -> None:
        """Return a message that was delivered to its queue, if that is still there."""
        if self.queues.get(queue.spec.name) is not queue:
            return
        queue.put_back(delivery)
        if queue.idle:
            self.offer(queue)

    def offer(self, queue: Queue) -> None:
        """Wake one consumer that sleeps; those awake look by themselves."""
        for consumer in queue.idle:
            transport = consumer.channel.transport
            if transport.waiting and (consumer.no_ack or consumer.channel.has_credit()):
                queue.idle.remove(consumer)
                transport.list_consumer(consumer)
                return

    def expire(self, now: float) -> None:
        """Remove messages and queues whose time is over."""
        for queue in list(self.expiring):
            if self.queues.get(queue.spec.name) is not queue:
                self.expiring.discard(queue)
                continue
            self.expire_messages(queue, now)
            deadline = queue.next_deadline()
            if deadline is not None and deadline <= now:
                self.delete_queue(queue)
            elif deadline is None and queue.limits.expires is None:
                self.expiring.discard(queue)

    def expire_messages(self, queue: Queue, now: float) -> None:
        for delivery in queue.pop_expired(now):
            self.bury(queue, delivery, "expired")

    def next_deadline(self) -> float | None:
        """When something expires next."""
        deadlines = [queue.next_deadline() for queue in self.expiring]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)


def describe(spec: ExchangeSpec | QueueSpec) -> dict[str, Any]:
    return {name: value for name, value in spec._asdict().items() if name != "name"}


_brokers: dict[str, Broker] = {}
_brokers_lock = RLock()


def broker_of(virtual_host: str) -> Broker:
    """The broker of a virtual host, made when it is first asked for."""
    with _brokers_lock:
        if virtual_host not in _brokers:
            _brokers[virtual_host] = Broker()
        return _brokers[virtual_host]


def _lock_all() -> None:
    _brokers_lock.acquire()
    for broker in _brokers.values():
        broker.lock.acquire()


def _unlock_all() -> None:
    for broker in _brokers.values():
        broker.lock.release()
    _brokers_lock.release()


if hasattr(os, "register_at_fork"):
    # A child starts with whole brokers, none of which another thread was just changing.
    os.register_at_fork(before=_lock_all, after_in_parent=_unlock_all, after_in_child=_unlock_all)


# --- the transport ----------------------------------------------------------------------------------------------


class Transport(BaseTransport):
    """A connection to the embedded broker of its virtual host. May be shared between threads."""

    driver_type = "memory"
    driver_name = "memory"
    capabilities = Capabilities()

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._broker = broker_of(settings.virtual_host)
        self._lock = self._broker.lock
        self._wake = Condition(self._lock)
        self._channels: dict[int, Channel] = {}
        self._ready: deque[Consumer] = deque()
        self._events: deque[Event] = deque()
        self._connected = False
        self.waiting = 0  # threads that sleep in receive

    def connect(self) -> None:
        self._connected = True

    def close(self) -> None:
        with self._lock:
            for number in list(self._channels):
                self.close_channel(number)
            for queue in list(self._broker.queues.values()):
                if queue.owner is self:
                    self._broker.delete_queue(queue)
            self._connected = False
            self._events.clear()
            self._wake.notify_all()

    @property
    def connected(self) -> bool:
        return self._connected

    # --- channels

    def open_channel(self) -> int:
        with self._lock:
            if not self._connected:
                raise exceptions.RecoverableConnectionError("connection already closed")
            number = next((n for n in range(1, MOST_CHANNELS + 1) if n not in self._channels), None)
            if number is None:
                raise exceptions.ResourceError(f"all {MOST_CHANNELS} channels of this connection are open")
            self._channels[number] = Channel(number, self)
            return number

    def close_channel(self, channel: int) -> None:
        with self._lock:
            state = self._channels.pop(channel, None)
            if state is not None:
                for consumer in list(state.consumers.values()):
                    self._end_consumer(consumer)
                self._put_back_all(state)

    def _channel(self, number: int) -> Channel:
        try:
            return self._channels[number]
        except KeyError:
            raise exceptions.RecoverableConnectionError("channel already closed") from None

    def qos(self, channel: int, prefetch_size: int, prefetch_count: int, apply_global: bool) -> None:
        with self._lock:
            state = self._channel(channel)
            state.prefetch_count = prefetch_count
            self._relist(state)

    def flow(self, channel: int, active: bool) -> None:
        with self._lock:
            state = self._channel(channel)
            state.active = active
            self._relist(state)

    # --- exchanges, queues, bindings

    def declare_exchange(self, channel: int, spec: ExchangeSpec, passive: bool) -> None:
        with self._lock:
            self._channel(channel)
            if not passive:
                self._broker.declare_exchange(spec)
            elif spec.name not in self._broker.table:
                raise exceptions.NotFound(f"no exchange '{spec.name}' in vhost '{self.settings.virtual_host}'")

    def delete_exchange(self, channel: int, name: str, if_unused: bool) -> None:
        with self._lock:
            self._channel(channel)
            self._broker.delete_exchange(name, if_unused)

    def declare_queue(self, channel: int, spec: QueueSpec, passive: bool) -> QueueInfo:
        with self._lock:
            self._channel(channel)
            if passive:
                queue = self._broker.queue(spec.name, self)
                queue.used_at = monotonic()
            else:
                queue = self._broker.declare_queue(spec._replace(name=spec.name or f"amq.gen-{uuid4()}"), self)
            return QueueInfo(queue.spec.name, len(queue), len(queue.consumers))

    def delete_queue(self, channel: int, name: str, if_unused: bool, if_empty: bool) -> int:
        with self._lock:
            self._channel(channel)
            if name not in self._broker.queues:
                return 0
            queue = self._broker.queue(name, self)
            if if_unused and queue.consumers:
                raise exceptions.PreconditionFailed(f"queue '{name}' is in use")
            if if_empty and len(queue):
                raise exceptions.PreconditionFailed(f"queue '{name}' is not empty")
            return self._broker.delete_queue(queue)

    def purge(self, channel: int, queue: str) -> int:
        with self._lock:
            self._channel(channel)
            found = self._broker.queue(queue, self)
            purged = len(found)
            for level in found.levels:
                level.clear()
            found.size = 0
            return purged

    def bind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> None:
        with self._lock:
            self._channel(channel)
            self._check_ends(source, destination, to_exchange)
            try:
                self._broker.table.bind(source, destination, routing_key, arguments, to_exchange)
            except ValueError as error:
                raise exceptions.PreconditionFailed(str(error)) from error

    def unbind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> None:
        with self._lock:
            self._channel(channel)
            self._check_ends(source, destination, to_exchange)
            self._broker.table.unbind(source, destination, routing_key, arguments, to_exchange)
            self._broker.drop_unused_exchange(source)

    def _check_ends(self, source: str, destination: str, to_exchange: bool) -> None:
        if not source or (to_exchange and not destination):
            raise exceptions.AccessRefused("nothing can be bound to or from the default exchange")
        if not to_exchange:
            self._broker.queue(destination, self)
        for exchange in (source, destination) if to_exchange else (source,):
            if exchange not in self._broker.exchanges:
                raise exceptions.NotFound(f"no exchange '{exchange}' in vhost '{self.settings.virtual_host}'")

    # --- publishing

    def publish(self, channel: int, delivery: Delivery, mandatory: bool = False, timeout: float | None = None) -> None:
        broker = self._broker
        with self._lock:
            if channel not in self._channels:
                raise exceptions.RecoverableConnectionError("channel already closed")
            queues = broker.route(delivery)
            broker.check(queues, delivery)
            if queues:
                broker.enqueue(queues, delivery)
            elif mandatory:
                self.notify(Returned(channel, 312, "NO_ROUTE", delivery))
            elif delivery.exchange == "":
                # Declaring is optional here, as it is with kombu: what goes to a queue's name is kept for it.
                broker.enqueue([broker.declare_queue(QueueSpec(delivery.routing_key), self)], delivery)
            else:
                self.unroutable += 1

    def publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> list[tuple[int, Exception]]:
        with self._lock:
            return super().publish_many(channel, deliveries, mandatory, timeout)

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
            found = self._broker.queue(queue, self)
            consumer_tag = consumer_tag or f"ctag-{uuid4()}"
            if consumer_tag in state.consumers:
                raise exceptions.NotAllowed(f"consumer tag '{consumer_tag}' is in use")
            if (exclusive and found.consumers) or any(consumer.exclusive for consumer in found.consumers):
                raise exceptions.AccessRefused(f"queue '{queue}' has an exclusive consumer, or consumers already")
            consumer = Consumer(consumer_tag, found, state, no_ack, exclusive)
            state.consumers[consumer_tag] = consumer
            found.consumers.append(consumer)
            self.list_consumer(consumer)
            return consumer_tag

    def cancel(self, channel: int, consumer_tag: str) -> None:
        with self._lock:
            consumer = self._channel(channel).consumers.get(consumer_tag)
            if consumer is not None:
                self._end_consumer(consumer)

    def _end_consumer(self, consumer: Consumer) -> None:
        queue = consumer.queue
        self.remove_consumer(consumer)
        queue.used_at = monotonic()
        if not queue.consumers and queue.spec.auto_delete and self._broker.queues.get(queue.spec.name) is queue:
            # Its other messages are about to be put back, which is for nothing then; as with any broker.
            self._broker.delete_queue(queue)
        elif queue.idle and len(queue):
            self._broker.offer(queue)

    def remove_consumer(self, consumer: Consumer) -> None:
        """Forget a consumer wherever it is listed."""
        consumer.channel.consumers.pop(consumer.tag, None)
        for listing in (consumer.queue.consumers, consumer.queue.idle, consumer.channel.stalled, self._ready):
            if consumer in listing:
                listing.remove(consumer)  # type: ignore[attr-defined]

    def list_consumer(self, consumer: Consumer) -> None:
        """Remember that a consumer's queue may have something for it, and wake whoever waits."""
        consumer.listed = True
        self._ready.append(consumer)
        self._rouse()

    def notify(self, event: Event) -> None:
        """Let the next ``receive`` report an event."""
        self._events.append(event)
        self._rouse()

    def _rouse(self) -> None:
        if self.waiting:
            self._wake.notify()

    def _relist(self, state: Channel) -> None:
        """Let consumers that were stopped by the prefetch limit look again."""
        if state.stalled and state.has_credit():
            stalled, state.stalled = state.stalled, []
            for consumer in stalled:
                self.list_consumer(consumer)

    def get(self, channel: int, queue: str, no_ack: bool) -> Delivery | None:
        with self._lock:
            state = self._channel(channel)
            found = self._broker.queue(queue, self)
            found.used_at = monotonic()
            delivery = found.pop()
            if delivery is None:
                return None
            self._hand_over(state, found, delivery, no_ack)
            delivery.message_count = len(found)
            return delivery

    def _hand_over(self, state: Channel, queue: Queue, delivery: Delivery, no_ack: bool) -> None:
        tag = state.next_tag
        state.next_tag = tag + 1
        delivery.channel = state.number
        delivery.delivery_tag = tag
        if not no_ack:
            state.unacked[tag] = (queue, delivery)

    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> None:
        with self._lock:
            state = self._channel(channel)
            if multiple:
                tags = [tag for tag in state.unacked if tag <= delivery_tag or delivery_tag == 0]
                settled = [state.unacked.pop(tag) for tag in tags]
            else:
                try:
                    settled = [state.unacked.pop(delivery_tag)]
                except KeyError:
                    raise exceptions.PreconditionFailed(f"unknown delivery tag {delivery_tag!r}") from None
            if outcome is not Outcome.ACK:
                for queue, delivery in reversed(settled) if outcome is Outcome.REQUEUE else settled:
                    if outcome is Outcome.REQUEUE:
                        self._broker.put_back(queue, delivery)
                    else:
                        self._broker.bury(queue, delivery, "rejected")
            if state.stalled:
                self._relist(state)

    def recover(self, channel: int) -> None:
        with self._lock:
            state = self._channel(channel)
            self._put_back_all(state)
            self._relist(state)

    def _put_back_all(self, state: Channel) -> None:
        unacked, state.unacked = state.unacked, {}
        for queue, delivery in reversed(unacked.values()):  # the last first: each then goes to the very front
            self._broker.put_back(queue, delivery)

    def receive(self, timeout: float | None) -> Sequence[Event]:
        with self._lock:
            event = self._next_event()
            if event is not None:
                return (event,)
            deadline = None if timeout is None else monotonic() + timeout
            while True:
                self._look_around()
                event = self._next_event()
                if event is not None:
                    return (event,)
                if not self._connected:
                    raise exceptions.RecoverableConnectionError("connection already closed")
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    return ()
                if left is None and not any(state.consumers for state in self._channels.values()):
                    raise exceptions.OperationalError("waiting without a timeout, and there is no consumer to wait for")
                self._sleep(left)

    def _next_event(self) -> Event | None:
        """A notice, or the next message for one of the listed consumers, which take turns."""
        if self._events:
            return self._events.popleft()
        ready = self._ready
        while ready:
            consumer = ready.popleft()
            state = consumer.channel
            if not consumer.no_ack and not state.has_credit():
                consumer.listed = False
                state.stalled.append(consumer)
                self._broker.offer(consumer.queue)
                continue
            queue = consumer.queue
            if queue.may_expire:
                self._broker.expire_messages(queue, monotonic())
            delivery = queue.pop()
            if delivery is None:
                consumer.listed = False
                if consumer in queue.consumers:
                    queue.idle.append(consumer)
                continue
            ready.append(consumer)
            delivery.consumer_tag = consumer.tag
            self._hand_over(state, queue, delivery, consumer.no_ack)
            return delivery
        return None

    def _look_around(self) -> None:
        """List the consumers that have something to do and were not woken for it; let expire what is due."""
        if self._broker.expiring:
            self._broker.expire(monotonic())
        for state in list(self._channels.values()):
            for consumer in list(state.consumers.values()):
                if not consumer.listed and len(consumer.queue) and consumer in consumer.queue.idle:
                    consumer.queue.idle.remove(consumer)
                    self.list_consumer(consumer)

    def _sleep(self, seconds: float | None) -> None:
        expiry = self._broker.next_deadline() if self._broker.expiring else None
        if expiry is not None:
            until_expiry = max(expiry - monotonic(), 0)
            seconds = until_expiry if seconds is None else min(seconds, until_expiry)
        self.waiting += 1
        try:
            self._wake.wait(seconds)
        except BaseException:
            # Interrupted: what it was woken for is offered to others.
            for consumer in list(self._ready):
                self._broker.offer(consumer.queue)
            raise
        finally:
            self.waiting -= 1
