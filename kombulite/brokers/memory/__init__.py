"""The embedded transport: queues in this process, with the semantics of a real broker.

All connections of a process that name the same virtual host share one ``Broker``. One lock guards it; a consumer that
waits sleeps on a condition of that lock and is woken by the publish that has something for it. Nothing is done in the
background: messages and queues expire when somebody looks, and whoever waits looks in time.

Longer and wider than other modules: the verbs of a broker are as many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from math import inf
from threading import TIMEOUT_MAX
from time import monotonic
from typing import Any

from kombulite import exceptions
from kombulite._core import AckStep, ConsumerRing, Delivery, FastPath, PublishPath, PublishStep
from kombulite.brokers.base import (
    Capabilities,
    Event,
    ExchangeSpec,
    Outcome,
    QueueInfo,
    QueueSpec,
    QueueStatus,
    Settings,
)
from kombulite.brokers.base import Transport as BaseTransport
from kombulite.brokers.channels import unknown_tag
from kombulite.brokers.memory import clock
from kombulite.brokers.memory.broker import Channel, Consumer, Queue, broker_of
from kombulite.brokers.options import check_transport_options
from kombulite.utils.locks import Condition
from kombulite.utils.uuid import uuid

MOST_CHANNELS = 65535

ACK, REQUEUE = Outcome.ACK, Outcome.REQUEUE  # as globals: looking a member up costs more than all else in settle


class Transport(BaseTransport):
    """A connection to the embedded broker of its virtual host. May be shared between threads."""

    driver_type = "memory"
    driver_name = "memory"
    capabilities = Capabilities()
    async_transport = "kombulite.brokers.memory.aio:AsyncTransport"
    survives_fork = True  # it is a copy of all, the broker too

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        check_transport_options(settings.options, ())
        self._broker = broker_of(settings.virtual_host)
        self._lock = self._broker.lock
        self._wake = Condition(self._lock)
        self._channels: dict[int, Channel] = {}
        # A number comes again only after all others: what is still under way for a closed channel finds nobody.
        self._numbers = cycle(range(1, MOST_CHANNELS + 1))
        self._expiring = self._broker.expiring
        self._rota = ConsumerRing()
        self._events: deque[Event] = deque()
        self.poll_ready: Callable[[], Delivery | None] = _nothing
        self._publish_path: PublishPath | None = None
        self._connected = False
        self.waiting = 0  # threads that sleep in receive
        self.alarm = inf  # when those that wait look by themselves, by clock.now()

    def connect(self) -> None:
        self._connected = True
        with self._lock:
            self._broker.connections.add(self)
        # The common case takes no lock: claiming is atomic.
        self.poll_ready = FastPath(self._rota, self._events, self._expiring, self._tidy_rota).next
        broker = self._broker
        self._publish_path = PublishPath(
            self._lock,
            broker.table,
            broker.queues,
            self._channels,
            self._expiring,
            broker.offer,
            self._publish_slowly,
        )

    def close(self) -> None:
        with self._lock:
            for number in list(self._channels):
                self.close_channel(number)
            for queue in list(self._broker.queues.values()):
                if queue.owner is self:
                    self._broker.delete_queue(queue)
            self._connected = False
            self.poll_ready = _nothing  # the fast path leads back here, and so does the path
            self._publish_path = None
            self._events.clear()
            self._wake.notify_all()

    @property
    def connected(self) -> bool:
        return self._connected

    # --- channels

    def open_channel(self, above: int = 0) -> int:
        with self._lock:
            if not self._connected:
                raise exceptions.RecoverableConnectionError("connection already closed")
            if len(self._channels) >= MOST_CHANNELS:
                raise exceptions.ResourceError(f"all {MOST_CHANNELS} channels of this connection are open")
            number = next(number for number in self._numbers if number not in self._channels)
            self._channels[number] = Channel(number, self, above)
            return number

    def highest_tag(self, channel: int) -> int:
        state = self._channels.get(channel)
        return 0 if state is None else state.ledger.highest_tag

    def close_channel(self, channel: int) -> None:
        with self._lock:
            state = self._channels.pop(channel, None)
            if state is not None:
                for event in [event for event in self._events if event.channel == channel]:
                    self._events.remove(event)
                for consumer in list(state.consumers.values()):
                    self._end_consumer(consumer)
                self._put_back_all(state.ledger.close())

    def _channel(self, number: int) -> Channel:
        try:
            return self._channels[number]
        except KeyError:
            raise exceptions.RecoverableConnectionError("channel already closed") from None

    def qos(self, channel: int, prefetch_size: int, prefetch_count: int, apply_global: bool) -> None:
        with self._lock:
            state = self._channel(channel)
            state.ledger.prefetch_count = prefetch_count
            self._relist(state)
            self._wake.notify_all()  # consumers that found nothing before are not on any list

    def flow(self, channel: int, active: bool) -> None:
        with self._lock:
            state = self._channel(channel)
            state.ledger.active = active
            self._relist(state)
            self._wake.notify_all()

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
                queue.used_at = clock.now()
            else:
                queue = self._broker.declare_queue(spec._replace(name=spec.name or f"amq.gen-{uuid()}"), self)
            return QueueInfo(queue.spec.name, len(queue.messages), len(queue.consumers))

    def delete_queue(self, channel: int, name: str, if_unused: bool, if_empty: bool) -> int:
        with self._lock:
            self._channel(channel)
            try:
                queue = self._broker.queue(name, self)
            except exceptions.NotFound:
                return 0
            if if_unused and queue.consumers:
                raise exceptions.PreconditionFailed(f"queue '{name}' is in use")
            if if_empty and len(queue.messages):
                raise exceptions.PreconditionFailed(f"queue '{name}' is not empty")
            return self._broker.delete_queue(queue)

    def list_queues(self, channel: int) -> list[QueueStatus]:
        with self._lock:
            self._channel(channel)
            queues = [each for each in self._broker.queues.values() if each.owner in (None, self)]
            return [QueueStatus(each.spec.name, len(each.messages), len(each.consumers)) for each in queues]

    def purge(self, channel: int, queue: str) -> int:
        with self._lock:
            self._channel(channel)
            return self._broker.queue(queue, self).messages.clear()

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
            target = self._ends(source, destination, to_exchange)
            try:
                self._broker.table.bind(source, target, routing_key, arguments, to_exchange)
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
            target = self._ends(source, destination, to_exchange)
            if self._broker.table.unbind(source, target, routing_key, arguments, to_exchange):
                self._broker.drop_unused_exchange(source)

    def _ends(self, source: str, destination: str, to_exchange: bool) -> Queue | str:
        """Check both ends of a binding; returns the destination as the routing table knows it."""
        if not source or (to_exchange and not destination):
            raise exceptions.AccessRefused("nothing can be bound to or from the default exchange")
        target = destination if to_exchange else self._broker.queue(destination, self)
        for exchange in (source, destination) if to_exchange else (source,):
            if exchange not in self._broker.exchanges:
                raise exceptions.NotFound(f"no exchange '{exchange}' in vhost '{self.settings.virtual_host}'")
        return target

    # --- publishing

    def publish(
        self,
        channel: int,
        delivery: Delivery,
        mandatory: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        path = self._publish_path
        if path is None:
            raise exceptions.RecoverableConnectionError("connection already closed")
        path.publish(channel, delivery, mandatory)

    def _publish_slowly(self, channel: int, delivery: Delivery, mandatory: bool) -> None:
        """Publish a message that is not for one plain queue. The broker's lock is held."""
        broker = self._broker
        if channel not in self._channels:
            raise exceptions.RecoverableConnectionError("channel already closed")
        if broker.expiring:
            broker.expire(clock.now())
        queues = broker.route(delivery)
        if queues:
            broker.accept(queues, delivery)
        elif mandatory:
            raise exceptions.MessageReturned.no_route()
        elif delivery.exchange == "":
            # Declaring is optional here, as it is with kombu: what goes to a queue's name is kept for it.
            broker.accept((broker.declare_queue(QueueSpec(delivery.routing_key), self),), delivery)
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
            consumer_tag = consumer_tag or f"ctag-{uuid()}"
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
        self._wake.notify_all()  # whoever waits for this consumer only has to know
        queue.used_at = clock.now()
        if not queue.consumers and queue.spec.auto_delete and self._broker.queues.get(queue.spec.name) is queue:
            # Its other messages are about to be put back, which is for nothing then; as with any broker.
            self._broker.delete_queue(queue)
        elif queue.idle and len(queue.messages):
            self._broker.offer(queue)

    def remove_consumer(self, consumer: Consumer) -> None:
        """Forget a consumer wherever it is listed."""
        self._rota.remove(consumer)
        consumer.channel.consumers.pop(consumer.tag, None)
        for listing in (consumer.queue.consumers, consumer.queue.idle, consumer.ledger.stalled):
            if consumer in listing:
                listing.remove(consumer)

    def list_consumer(self, consumer: Consumer) -> None:
        """Note that a consumer's queue may have something for it, and wake whoever waits."""
        # In this order: where a signal handler's exception comes between, it can be done again.
        self._rota.add(consumer)
        self._rouse()
        if consumer in consumer.queue.idle:
            consumer.queue.idle.remove(consumer)

    def stall_consumer(self, consumer: Consumer) -> None:
        """Have a consumer that found nothing before look again when its channel has credit."""
        consumer.ledger.stalled.append(consumer)
        consumer.queue.idle.remove(consumer)
        self._relist(consumer.channel)  # an ack may have come meanwhile: it takes no lock

    def notify(self, event: Event) -> None:
        """Let the next ``receive`` report an event."""
        self._events.append(event)
        self._rouse()

    def _rouse(self) -> None:
        if self.waiting:
            self._wake.notify()

    def _relist(self, state: Channel) -> None:
        """Let consumers that were stopped by the prefetch limit look again."""
        stalled = state.ledger.stalled
        for consumer in [each for each in stalled if each.may_claim()]:
            stalled.remove(consumer)
            self.list_consumer(consumer)

    def get(self, channel: int, queue: str, no_ack: bool) -> Delivery | None:
        with self._lock:
            state = self._channel(channel)
            found = self._broker.queue(queue, self)
            found.used_at = clock.now()
            delivery: Delivery | None = found.messages.pop()
            if delivery is not None:
                state.ledger.hand_over(delivery, found.messages, channel, None, no_ack)
                delivery.message_count = len(found.messages)
                if self._broker.expiring:
                    self._broker.set_alarms(found)  # for what is at its head now
            return delivery

    def fast_publish(self, channel: int) -> PublishStep | None:
        return self._publish_path if type(self).publish is Transport.publish else None

    def fast_ack(self, channel: int) -> AckStep:
        return self._channel(channel).ledger

    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> None:
        try:
            state = self._channels[channel]
        except KeyError:
            raise exceptions.RecoverableConnectionError("channel already closed") from None
        try:
            settled = state.ledger.settle_up_to(delivery_tag) if multiple else state.ledger.settle(delivery_tag)
        except KeyError:
            raise unknown_tag(delivery_tag, state.tag_offset) from None
        if multiple and not settled and delivery_tag:
            raise unknown_tag(delivery_tag, state.tag_offset)
        if outcome is not ACK:
            self._return_or_bury(settled if isinstance(settled, list) else [settled], outcome)
        if state.ledger.stalled:
            with self._lock:
                self._relist(state)

    def settle_many(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome) -> None:
        state = self._channel(channel)
        try:
            settled = state.ledger.settle_all(delivery_tags)
        except KeyError as error:
            raise unknown_tag(error.args[0], state.tag_offset) from None
        if outcome is not ACK:
            self._return_or_bury(settled, outcome)
        if state.ledger.stalled:
            with self._lock:
                self._relist(state)

    def _return_or_bury(self, settled: list[Delivery], outcome: Outcome) -> None:
        with self._lock:
            if outcome is REQUEUE:
                self._put_back_all(settled)
            else:
                for delivery in settled:
                    self._broker.reject(delivery)

    def recover(self, channel: int) -> None:
        with self._lock:
            state = self._channel(channel)
            self._put_back_all(state.ledger.settle_up_to(0))
            self._relist(state)

    def _put_back_all(self, settled: list[Delivery]) -> None:
        for delivery in reversed(settled):  # the last first: each then goes to the very front
            self._broker.put_back(delivery)

    def receive(self, timeout: float | None) -> Sequence[Event]:
        delivery: Delivery | None = self.poll_ready()
        if delivery is not None:
            return (delivery,)
        with self._lock:
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
        """Return a notice, or the next message for one of the listed consumers."""
        if self._events:
            return self._events.popleft()
        delivery: Delivery | None = self._rota.next(clock.now() if self._broker.expiring else 0.0)
        self._tidy_rota()
        if delivery is not None and self._broker.expiring:
            consumer = self._channels[delivery.channel].consumers[delivery.consumer_tag]
            self._broker.set_alarms(consumer.queue)  # for what is at its head now
        return delivery

    # --- on an event loop

    def wake_with(self, wake: Callable[[], object]) -> None:
        """Have ``wake()`` called, by whatever thread, when there may be an event and the last ``poll`` found none."""
        with self._lock:
            self._wake = LoopWake(self, wake)  # type: ignore[assignment]
            self.waiting = 1

    def poll(self) -> Event | None:
        """Return the next event, or None."""
        delivery: Delivery | None = self.poll_ready()
        if delivery is not None:
            return delivery
        with self._lock:
            self._look_around()
            event = self._next_event()
            self.waiting = int(event is None and self._connected)
            return event

    def reset_alarm(self) -> None:
        """Look again: something expires sooner than was known."""
        self._wake.notify_all()

    def next_expiry(self) -> float | None:
        """Return when something expires next, by ``clock.now()``: the loop looks by then."""
        with self._lock:
            expiry = self._broker.next_deadline() if self._broker.expiring else None
            self.alarm = inf if expiry is None else expiry
            return expiry

    def _tidy_rota(self) -> None:
        """Do what is due for those that left the rota without a message."""
        with self._lock:
            emptied, stalled, expired = self._rota.take_left()
            for consumer in emptied:
                consumer.queue.idle.append(consumer)
            for consumer in stalled:
                consumer.ledger.stalled.append(consumer)
                self._broker.offer(consumer.queue)  # what it cannot take, another may
                self._relist(consumer.channel)  # an ack may have come meanwhile: it takes no lock
            for messages, late in expired:
                self._broker.bury(self._broker.queue_of[messages], late, "expired")

    def _look_around(self) -> None:
        """Let expire what is due, and list the consumers that were not woken for what there is."""
        if self._broker.expiring:
            self._broker.expire(clock.now())
        for state in self._channels.values():
            for consumer in state.consumers.values():
                if consumer.listed or consumer in state.ledger.stalled:
                    continue
                if len(consumer.messages):
                    self.list_consumer(consumer)
                elif consumer not in consumer.queue.idle:
                    consumer.queue.idle.append(consumer)  # a signal handler's exception had come before

    def _sleep(self, seconds: float | None) -> None:
        expiry = self._broker.next_deadline() if self._broker.expiring else None
        alarm = inf if expiry is None else expiry
        self.alarm = max(self.alarm, alarm) if self.waiting else alarm  # of several threads the last one's
        if expiry is not None:
            until_expiry = max(expiry - clock.now(), 0)
            seconds = until_expiry if seconds is None else min(seconds, until_expiry)
        if seconds is not None:
            seconds = min(seconds, TIMEOUT_MAX)
        self.waiting += 1
        try:
            self._wake.wait(seconds)
        except BaseException:
            # Interrupted: what it was woken for is offered to others.
            for consumer in self._rota:
                self._broker.offer(consumer.queue)
            raise
        finally:
            self.waiting -= 1


class LoopWake:
    """Stands for the condition that threads sleep on, where an event loop waits instead."""

    def __init__(self, transport: Transport, wake: Callable[[], object]) -> None:
        self._transport = transport
        self._call = wake

    def notify(self) -> None:
        """Wake the loop, once until it has polled again."""
        if self._transport.waiting:
            self._transport.waiting = 0
            self._call()

    notify_all = notify


def _nothing() -> None:
    """Return an empty sequence, for a connection that is closed."""
