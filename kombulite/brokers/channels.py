"""The client's half of a broker that has no channels of its own.

Channel numbers, consumers, exclusive consumers, prefetch limits, unacknowledged deliveries, pending events and the wait
loop: once, for every transport over something that only stores messages. Such a transport subclasses
``ChannelTransport`` and says how a message is taken, how it is settled, and how to wait for the next one.

    receive ── pending event? ── else the consumers in turn ── take ──> delivery into the channel's ledger
       └────── nothing to be had: wait_for_messages, look again
    settle ── out of the ledger ── settle_taken (acknowledge, dead-letter or requeue what was taken)

The class is as wide as the interface that it implements, and as what it asks of its subclasses.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import cycle
from time import monotonic
from typing import Any, NamedTuple

from kombulite import exceptions
from kombulite._core import Delivery, UnackedDeliveries
from kombulite.brokers import base
from kombulite.brokers.base import Cancelled, Event, Outcome, Settings
from kombulite.utils.locks import Condition, Lock
from kombulite.utils.uuid import uuid

__all__ = ["Channel", "ChannelTransport", "Consumer", "Taken"]

MAX_CHANNELS = 65535


class Taken(NamedTuple):
    """A message that was taken out of its queue, and what the store knows it by."""

    delivery: Delivery
    token: Any


class Consumer(NamedTuple):
    """A consumer of a queue, on a channel."""

    tag: str
    queue: str
    channel: Channel
    no_ack: bool
    exclusive: bool


class Channel:
    """A channel: its consumers, and what was delivered on it and is not settled yet."""

    def __init__(self, number: int, tag_offset: int = 0) -> None:
        self.number = number
        self.tag_offset = tag_offset
        self.ledger = UnackedDeliveries(tag_offset)
        self.consumers: dict[str, Consumer] = {}
        self.tokens: dict[Any, Any] = {}  # what the store knows a delivery by, by delivery tag


def unknown_tag(tag: Any, tag_offset: int) -> exceptions.AMQPError:
    """Return why a delivery tag cannot be settled on a channel whose own tags begin above an offset."""
    if isinstance(tag, int) and 0 < tag <= tag_offset:
        return exceptions.RecoverableConnectionError("the message came on a connection that was lost")
    return exceptions.PreconditionFailed(f"unknown delivery tag {tag!r:.80}")


class ChannelTransport(base.Transport):
    """A connection to a store of messages, with channels and consumers of its own. Threads may share it.

    All methods that a subclass implements are called with ``_lock`` held.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._lock = Lock()
        self._wake = Condition(self._lock)
        self._channels: dict[int, Channel] = {}
        self._highest_tags: dict[int, int] = {}  # of channels that were lost with the connection
        # A number is used again only after all others, so that a late ack for a closed channel meets no other channel.
        self._numbers = cycle(range(1, MAX_CHANNELS + 1))
        self._turns: deque[Consumer] = deque()
        self._events: deque[Event] = deque()
        self._connected = False
        self._is_interrupted = False

    # --- what a subclass implements

    @abstractmethod
    def check_queue(self, queue: str) -> None:
        """Raise NotFound or ResourceLocked if this connection cannot use the queue."""

    @abstractmethod
    def take(self, queue: str, credit: int) -> Taken | None:
        """Take the next message of a queue, or return None if there is none.

        ``credit``: how many messages the consumer may take now (0: any number), for a store that takes several at once.
        """

    @abstractmethod
    def settle_taken(self, tokens: Sequence[Any], outcome: Outcome) -> None:
        """Acknowledge, reject or requeue messages that were taken, oldest first."""

    @abstractmethod
    def wait_for_messages(self, seconds: float | None, attempt: int) -> None:
        """Wait until a message may be there, for at most ``seconds`` (None: without limit of the caller's).

        ``attempt`` counts the waits of one ``receive`` from 0. To be interrupted by ``_wake``; the lock is released.
        """

    def consumed_elsewhere(self, queue: str) -> int:
        """Return how many consumers of a queue other connections have, as far as is known."""
        return 0

    def has_exclusive_elsewhere(self, queue: str) -> bool:
        """Return whether another connection has an exclusive consumer of a queue, as far as is known."""
        return False

    def consumer_started(self, consumer: Consumer) -> None:
        """Note that a consumer was added."""

    def consumer_ended(self, consumer: Consumer) -> None:
        """Note that a consumer is gone; a queue that goes with its last consumer is deleted here."""

    def held_settled(self) -> None:
        """Note that deliveries of a connection that was lost are settled."""

    def settle_held(self, channel: int, outcome: Outcome) -> None:
        """Settle all that a channel has from connections that were lost."""

    # --- channels

    @property
    def connected(self) -> bool:
        """Whether the connection is open."""
        return self._connected

    def _check_connected(self) -> None:
        if not self._connected:
            raise exceptions.RecoverableConnectionError("connection already closed")

    def open_channel(self, above: int = 0) -> int:
        """Open a channel and return its number, 1 to 65535. Raises ResourceError if none is left."""
        with self._lock:
            self._check_connected()
            if len(self._channels) >= MAX_CHANNELS:
                raise exceptions.ResourceError(f"all {MAX_CHANNELS} channels of this connection are open")
            number = next(number for number in self._numbers if number not in self._channels)
            self._channels[number] = Channel(number, above)
            return number

    def highest_tag(self, channel: int) -> int:
        """Return the highest delivery tag of a channel, also after the connection was lost."""
        state = self._channels.get(channel)
        return self._highest_tags.get(channel, 0) if state is None else state.ledger.highest_tag

    def _forget_channels(self) -> None:
        """Forget the channels of a connection that is lost, except their highest delivery tags."""
        self._highest_tags = {number: state.ledger.highest_tag for number, state in self._channels.items()}
        for state in self._channels.values():
            state.ledger.close()  # what the application has forgotten is to be freed now, not with the cycle
        self._channels.clear()

    def close_channel(self, channel: int) -> None:
        """Close a channel: its consumers end, its unacknowledged messages go back to their queues."""
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
        """Limit the messages that are delivered and not settled (0: no limit)."""
        with self._lock:
            self._channel(channel).ledger.prefetch_count = prefetch_count
            self._wake.notify_all()

    def flow(self, channel: int, active: bool) -> None:
        """Pause the deliveries of a channel, or resume them."""
        with self._lock:
            self._channel(channel).ledger.active = active
            self._wake.notify_all()

    # --- consumers

    def consume(
        self,
        channel: int,
        queue: str,
        consumer_tag: str,
        no_ack: bool,
        exclusive: bool,
        arguments: Mapping[str, Any] | None,
    ) -> str:
        """Start a consumer and return its tag. Raises NotFound, AccessRefused, NotAllowed."""
        with self._lock:
            state = self._channel(channel)
            self.check_queue(queue)
            consumer_tag = consumer_tag or f"ctag-{uuid()}"
            if consumer_tag in state.consumers:
                raise exceptions.NotAllowed(f"consumer tag '{consumer_tag}' is in use")
            others = self.consumers_of(queue)
            if (
                (exclusive and self.consumer_count(queue))
                or any(other.exclusive for other in others)
                or self.has_exclusive_elsewhere(queue)
            ):
                raise exceptions.AccessRefused(f"queue '{queue}' has an exclusive consumer, or consumers already")
            consumer = Consumer(consumer_tag, queue, state, no_ack, exclusive)
            state.consumers[consumer_tag] = consumer
            self._turns.append(consumer)
            self.consumer_started(consumer)
            self._wake.notify_all()
            return consumer_tag

    def cancel(self, channel: int, consumer_tag: str) -> Sequence[Delivery] | None:
        """End a consumer, if there is one. What was delivered to it stays to be settled."""
        with self._lock:
            consumer = self._channel(channel).consumers.get(consumer_tag)
            if consumer is not None:
                self._end_consumer(consumer)
        return None

    def consumers_of(self, queue: str) -> list[Consumer]:
        """Return the consumers of a queue on this connection."""
        return [consumer for consumer in self._turns if consumer.queue == queue]

    def consumer_count(self, queue: str) -> int:
        """Return how many consumers a queue has, as far as is known."""
        return len(self.consumers_of(queue)) + self.consumed_elsewhere(queue)

    def _forget_consumer(self, consumer: Consumer) -> None:
        consumer.channel.consumers.pop(consumer.tag, None)
        self._turns.remove(consumer)

    def _end_consumer(self, consumer: Consumer) -> None:
        self._forget_consumer(consumer)
        self._wake.notify_all()  # a thread that waits for this consumer only has to notice
        self.consumer_ended(consumer)

    def cancel_consumers(self, queue: str) -> None:
        """End the consumers of a queue that is deleted, and report each as cancelled."""
        for consumer in self.consumers_of(queue):
            self._forget_consumer(consumer)
            self._events.append(Cancelled(consumer.channel.number, consumer.tag))
        self._wake.notify_all()

    # --- messages

    def get(self, channel: int, queue: str, no_ack: bool) -> Delivery | None:
        """Return the next message of a queue, or None. Raises NotFound."""
        with self._lock:
            state = self._channel(channel)
            self.check_queue(queue)
            return self._deliver(state, queue, None, no_ack, 1)

    def _deliver(
        self, state: Channel, queue: str, consumer_tag: str | None, no_ack: bool, credit: int
    ) -> Delivery | None:
        taken = self.take(queue, credit)
        if taken is None:
            return None
        delivery = taken.delivery
        try:
            state.ledger.hand_over(delivery, None, state.number, consumer_tag, no_ack)
            if no_ack:
                self.settle_taken((taken.token,), Outcome.ACK)
            else:
                state.tokens[delivery.delivery_tag] = taken.token
        except BaseException:
            if not no_ack:  # a signal handler's: noted is the message with its token, or not at all
                with suppress(KeyError):
                    state.ledger.settle(delivery.delivery_tag)
                state.tokens.pop(delivery.delivery_tag, None)
                self.settle_taken((taken.token,), Outcome.REQUEUE)
            raise
        return delivery

    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> None:
        """Settle a delivery, and with ``multiple`` all before it. Raises PreconditionFailed for an unknown tag."""
        with self._lock:
            state = self._channel(channel)
            try:
                settled = state.ledger.settle_up_to(delivery_tag) if multiple else [state.ledger.settle(delivery_tag)]
            except KeyError:
                settled = []
            if not settled and (delivery_tag or not multiple):
                if self.held is not None and self.held.settle(channel, [delivery_tag], outcome, multiple):
                    self.held_settled()
                    return
                raise unknown_tag(delivery_tag, state.tag_offset)
            self._settle(state, settled, outcome)
            if multiple:  # after its own, which nothing would settle any more if that failed
                self.settle_held(channel, outcome)

    def settle_many(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome) -> None:
        """Settle some deliveries of a channel. Raises PreconditionFailed for an unknown tag."""
        with self._lock:
            state = self._channel(channel)
            try:
                settled = state.ledger.settle_all(delivery_tags)
            except KeyError as error:  # some may have come on a connection that was lost
                earlier = [tag for tag in delivery_tags if tag not in state.tokens]
                if self.held is None or not self.held.settle(channel, earlier, outcome):
                    raise unknown_tag(error.args[0], state.tag_offset) from None
                self.held_settled()
                settled = state.ledger.settle_all([tag for tag in delivery_tags if tag in state.tokens])
            self._settle(state, settled, outcome)

    def recover(self, channel: int) -> None:
        """Requeue all unacknowledged deliveries of a channel."""
        with self._lock:
            state = self._channel(channel)
            self.settle_held(channel, Outcome.REQUEUE)
            self._settle(state, state.ledger.settle_up_to(0), Outcome.REQUEUE)

    def _settle(self, state: Channel, settled: list[Delivery], outcome: Outcome) -> None:
        if settled:
            self.settle_taken([state.tokens.pop(delivery.delivery_tag) for delivery in settled], outcome)
            self._wake.notify_all()

    def receive(self, timeout: float | None) -> Sequence[Event]:
        """Wait for the next event, at most ``timeout`` seconds (None: until there is one)."""
        deadline = None if timeout is None else monotonic() + timeout
        attempt = 0
        with self._lock:
            while True:
                if self._is_interrupted:  # what is asked for comes before another look
                    self._is_interrupted = False
                    return ()
                event = self._next_event()
                if event is not None:
                    return (event,)
                self._check_connected()
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    return ()
                if left is None and not self._turns:
                    raise exceptions.OperationalError("waiting without a timeout, and there is no consumer to wait for")
                self.wait_for_messages(left, attempt)
                attempt += 1

    def _next_event(self) -> Event | None:
        """Return a pending event, or the next message for one of the consumers, each in turn."""
        if self._events:
            return self._events.popleft()
        empty = set()
        for _ in range(len(self._turns)):
            consumer = self._turns[0]
            self._turns.rotate(-1)
            ledger = consumer.channel.ledger
            if consumer.queue in empty or not ledger.active or not (consumer.no_ack or ledger.has_credit()):
                continue
            limit = 0 if consumer.no_ack else ledger.prefetch_count
            credit = limit - len(ledger) if limit else 0
            delivery = self._deliver(consumer.channel, consumer.queue, consumer.tag, consumer.no_ack, credit)
            if delivery is not None:
                return delivery
            empty.add(consumer.queue)
        return None
