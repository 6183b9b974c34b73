"""The broker behind ``memory://``: exchanges, queues and dead letters of one virtual host, as RabbitMQ has them."""

from __future__ import annotations

import os
from collections import deque
from typing import Any
from weakref import WeakSet

from kombulite import exceptions
from kombulite._core import (
    BaseQueue,
    ConsumerSlot,
    Delivery,
    MessageQueue,
    RoutingTable,
    UnackedDeliveries,
    UnknownExchange,
)
from kombulite.brokers.base import Cancelled, ExchangeSpec, QueueSpec
from kombulite.brokers.limits import Limits, dead_letter, describe, expiration_of
from kombulite.brokers.memory import clock
from kombulite.utils.locks import Lock

PREDECLARED = {"direct": "direct", "fanout": "fanout", "topic": "topic", "headers": "headers", "match": "headers"}


# --- queues -----------------------------------------------------------------------------------------------------


class Queue(BaseQueue):
    """A queue: its messages, its limits, and who consumes from it."""

    def __init__(self, spec: QueueSpec, owner: Any, now: float) -> None:
        self.limits = limits = Limits.of(spec)
        is_plain = limits.message_ttl is limits.max_length is limits.max_length_bytes is None
        super().__init__(MessageQueue(limits.max_priority), is_plain)
        self.spec = spec
        self.owner = owner  # the connection of an exclusive queue
        self.consumers: list[Consumer] = []
        self.used_at = now

    def is_over(self, extra_messages: int = 0, extra_bytes: int = 0) -> bool:
        """Whether the limits on length are passed, or would be."""
        limits, messages = self.limits, self.messages
        return (limits.max_length is not None and len(messages) + extra_messages > limits.max_length) or (
            limits.max_length_bytes is not None and messages.size + extra_bytes > limits.max_length_bytes
        )

    def expiry_of(self, delivery: Delivery, now: float) -> float:
        """When a message that comes now expires, 0 for never."""
        ttl = self.limits.message_ttl
        if delivery.properties.expiration is not None:
            own = expiration_of(delivery)
            ttl = min((each for each in (ttl, own) if each is not None), default=None)
        return 0 if ttl is None else now + ttl

    def next_deadline(self) -> float | None:
        """When something expires next: a message, or the unused queue itself."""
        deadline: float | None = self.messages.next_expiry()
        if self.limits.expires is not None and not self.consumers:
            unused = self.used_at + self.limits.expires
            deadline = unused if deadline is None else min(deadline, unused)
        return deadline


class Consumer(ConsumerSlot):
    """A consumer of a queue, on a channel."""

    def __init__(self, tag: str, queue: Queue, channel: Channel, no_ack: bool, exclusive: bool) -> None:
        super().__init__(queue.messages, channel.ledger, channel.number, tag, no_ack)
        self.queue = queue
        self.channel = channel
        self.exclusive = exclusive


class Channel:
    """A channel: its consumers, and what was delivered on it and not settled yet."""

    def __init__(self, number: int, transport: Any, tag_offset: int = 0) -> None:
        self.number = number
        self.transport = transport
        self.tag_offset = tag_offset
        self.ledger = UnackedDeliveries(tag_offset)
        self.consumers: dict[str, Consumer] = {}


# --- the broker -------------------------------------------------------------------------------------------------


class Broker:
    """One virtual host. All methods want its lock held.

    A garbage collection in their midst may close a connection that somebody dropped, in the same thread: so nothing
    here iterates over what closing changes, but over copies of it.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self.table = RoutingTable()
        self.exchanges: dict[str, ExchangeSpec] = {}
        self.queues: dict[str, Queue] = {}
        self.queue_of: dict[MessageQueue, Queue] = {}
        self.expiring: set[Queue] = set()
        self.connections: WeakSet[Any] = WeakSet()  # those that wait do so until what expires next
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
        alternate = (spec.arguments or {}).get("alternate-exchange")
        if alternate is not None and not isinstance(alternate, str):
            raise exceptions.PreconditionFailed(f"invalid arg 'alternate-exchange' for '{spec.name}': {alternate!r}")
        try:
            self.table.declare(spec.name, spec.type, alternate)
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
        """Delete an auto-delete exchange with its last binding."""
        spec = self.exchanges.get(name)
        if spec is not None and spec.auto_delete and not self.table.bindings(name):
            self.delete_exchange(name, if_unused=False)

    def queue(self, name: str, user: Any) -> Queue:
        """Return a queue by name, for a connection that may use it. Raises NotFound, ResourceLocked."""
        if self.expiring:
            self.expire(clock.now())
        queue = self.queues.get(name)
        if queue is None:
            raise exceptions.NotFound(f"no queue '{name}' in vhost '{user.settings.virtual_host}'")
        if queue.owner is not None and queue.owner is not user:
            raise exceptions.ResourceLocked(f"queue '{name}' is exclusive to another connection")
        return queue

    def declare_queue(self, spec: QueueSpec, user: Any) -> Queue:
        """Return a queue, made if it is not there."""
        if self.expiring:
            self.expire(clock.now())
        if spec.name not in self.queues:
            now = clock.now()
            queue = Queue(spec, user if spec.exclusive else None, now)
            self.queues[spec.name] = self.queue_of[queue.messages] = queue
            if queue.limits.expires is not None:
                self.expiring.add(queue)
            return queue
        queue = self.queue(spec.name, user)
        if queue.spec._replace(arguments=queue.spec.arguments or {}) != spec._replace(arguments=spec.arguments or {}):
            raise exceptions.NotEquivalentError(
                f"queue '{spec.name}' is declared as {describe(queue.spec)}, not as {describe(spec)}"
            )
        queue.used_at = clock.now()
        return queue

    def delete_queue(self, queue: Queue) -> int:
        """Delete a queue: its bindings and messages go, its consumers are cancelled."""
        if self.queue_of.pop(queue.messages, None) is None:
            return 0  # deleted meanwhile
        del self.queues[queue.spec.name]
        self.expiring.discard(queue)
        for consumer in list(queue.consumers):
            transport = consumer.channel.transport
            transport.remove_consumer(consumer)
            transport.notify(Cancelled(consumer.channel.number, consumer.tag))
        for binding in self.table.delete_queue(queue):
            self.drop_unused_exchange(binding.source)
        return len(queue.messages)

    # --- messages

    def route(self, delivery: Delivery) -> tuple[Queue, ...]:
        """Return the queues that a message goes to. Raises NotFound for an unknown exchange."""
        try:
            queues: tuple[Queue, ...] = self.table.route_message(delivery, self.queues)
        except UnknownExchange:
            raise self.no_exchange(delivery.exchange) from None
        return queues

    def no_exchange(self, name: str) -> exceptions.NotFound:
        """Return the error for an exchange that is not there."""
        return exceptions.NotFound(f"no exchange '{name}'")

    def accept(self, queues: tuple[Queue, ...], delivery: Delivery) -> None:
        """Take a publish. Raises MessageNacked if a queue is full, PreconditionFailed for a bad expiration."""
        if delivery.properties.expiration is not None:
            expiration_of(delivery)
        for queue in queues:
            if queue.messages.may_expire:
                self.expire_messages(queue, clock.now())
            if queue.limits.reject_publish and queue.is_over(1, delivery.body_size):
                raise exceptions.MessageNacked(f"queue '{queue.spec.name}' is full")
        self.enqueue(queues, delivery)

    def enqueue(self, queues: tuple[Queue, ...], delivery: Delivery) -> None:
        """Put a message into queues, each of which has a Delivery of its own."""
        for queue in queues:
            if not (queue.is_plain and queue.messages.add_unless_expiring(delivery)):
                self._enqueue_limited(queue, delivery)
            if queue.idle:
                self.offer(queue)

    def _enqueue_limited(self, queue: Queue, delivery: Delivery) -> None:
        now = clock.now()
        if queue.messages.may_expire:
            self.expire_messages(queue, now)
        queue.messages.add(delivery, queue.expiry_of(delivery, now))
        if queue.messages.may_expire:
            self.expiring.add(queue)
        while queue.is_over():
            dropped = queue.messages.pop()
            if dropped is None:
                break
            self.bury(queue, dropped, "maxlen")
        self.set_alarms(queue)

    def set_alarms(self, queue: Queue) -> None:
        """Wake the connections that would look only after the message at the head of a queue has expired."""
        deadline = queue.messages.next_expiry()
        if deadline is not None:
            for transport in list(self.connections):
                if transport.waiting and transport.alarm > deadline:
                    transport.reset_alarm()

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
                queue, dropped, why = self._dead.popleft()
                dead = dead_letter(queue.spec.name, queue.limits, dropped, why)
                if dead is not None and (not dead.exchange or dead.exchange in self.exchanges):
                    self.enqueue(self.route(dead), dead)
        finally:
            self._burying = False

    def put_back(self, delivery: Delivery) -> None:
        """Return a message that was delivered to its queue, if that is still there."""
        queue = self.queue_of.get(delivery.source)  # type: ignore[arg-type]
        if queue is not None:
            queue.messages.put_back(delivery)
            if delivery.expires_at:
                self.expiring.add(queue)
                self.set_alarms(queue)
            if queue.idle:
                self.offer(queue)

    def reject(self, delivery: Delivery) -> None:
        """Give up a message that was delivered."""
        queue = self.queue_of.get(delivery.source)  # type: ignore[arg-type]
        if queue is not None:
            self.bury(queue, delivery, "rejected")

    def offer(self, queue: Queue) -> None:
        """Wake one consumer that sleeps; those awake look by themselves, and those without credit after an ack."""
        stalled = []
        for consumer in queue.idle:
            transport = consumer.channel.transport
            if not transport.waiting:
                continue
            if consumer.may_claim():
                transport.list_consumer(consumer)
                break
            stalled.append(consumer)
        for consumer in stalled:
            consumer.channel.transport.stall_consumer(consumer)

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
            elif queue.limits.expires is None and not len(queue.messages):
                self.expiring.discard(queue)

    def expire_messages(self, queue: Queue, now: float) -> None:
        for delivery in queue.messages.pop_expired(now):
            self.bury(queue, delivery, "expired")

    def next_deadline(self) -> float | None:
        """When something expires next."""
        deadlines = [queue.next_deadline() for queue in list(self.expiring)]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)


_brokers: dict[str, Broker] = {}
_brokers_lock = Lock()


def broker_of(virtual_host: str) -> Broker:
    """Return the broker of a virtual host, made when it is first asked for."""
    with _brokers_lock:
        if virtual_host not in _brokers:
            _brokers[virtual_host] = Broker()
        return _brokers[virtual_host]


def drop_broker(virtual_host: str) -> None:
    """Forget the broker of a virtual host: the next connection to it finds an empty one."""
    with _brokers_lock:
        _brokers.pop(virtual_host, None)


def advance(seconds: float) -> None:
    """Let time pass for all brokers: what expires within ``seconds`` from now is expired when this returns.

    Raises:
        ValueError: ``seconds`` is negative.
    """
    clock.move(seconds)
    with _brokers_lock:
        brokers = list(_brokers.values())
    for broker in brokers:
        with broker.lock:
            broker.expire(clock.now())
            for transport in list(broker.connections):
                transport.reset_alarm()


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
