"""The interface of a broker connection on an event loop: the verbs of ``base.Transport``, none of which waits.

A verb changes the state of the connection, hands over what there is to send, and returns a ``Pending``: the future of
what the broker has to answer. An answer belongs to its question, also when nobody waits any more: a cancelled Pending
keeps its place, and its answer is dropped when it comes. The verbs of the hot paths (``publish``, ``settle``) return
None where there is nothing to wait for, so that nothing is made for that case: an operation object for each publish
took 24 % more instructions on AMQP, one more Python layer 50 % on memory.

What the broker says by itself goes to ``on_event``, and the end of the connection to ``on_lost``. Both are called by
the loop, never by a verb. All of it belongs to the thread of one loop.

Its classes are wider than others: the verbs of a broker are as many.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from kombulite import exceptions
from kombulite._core import AckStep, Delivery, PacedPublish
from kombulite.brokers.base import (
    Event,
    ExchangeSpec,
    HeldDeliveries,
    Outcome,
    QueueInfo,
    QueueSpec,
    QueueStatus,
    Settings,
    Transport,
)

T = TypeVar("T")
Pending = asyncio.Future
OnEvent = Callable[[Event], object]
OnLost = Callable[[Exception], object]


class AsyncTransport:
    """A connection to a broker on an event loop.

    Verbs raise what can be known at once, and set what the broker answers on their Pending; which errors, and what
    arguments mean, is said at the same names of ``base.Transport``.
    """

    #: Whether a message is the broker's when the Pending of its publish is done (or None).
    confirms = True

    def __init__(self, settings: Settings, on_event: OnEvent, on_lost: OnLost) -> None:
        self.settings = settings
        self.on_event = on_event
        self.on_lost = on_lost

    @property
    def held(self) -> HeldDeliveries | None:
        """What settles deliveries when their connection is lost; None where the broker takes them all back then."""
        return None

    def inherit(self, channel: int, held: HeldDeliveries, before: int) -> None:
        """Let a channel settle what another had whose connection was lost, and in whose place it is."""

    # --- the connection

    @abstractmethod
    async def connect(self) -> None:
        """Open the connection, within ``settings.connect_timeout`` seconds."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connection and its channels: messages not settled go back to their queues. May be repeated."""

    @abstractmethod
    def abort(self) -> None:
        """Drop the connection without a word to the broker."""

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether the connection is open."""

    @property
    def is_suspect(self) -> bool:
        """Whether half of the time is gone after which a silent broker is given up."""
        return False

    @property
    def blocked(self) -> str | None:
        """Why the broker takes no messages now, or None."""
        return None

    @property
    def counts_failures(self) -> bool:
        """Whether the broker tells ``Outcome.RETURN`` from ``Outcome.REQUEUE``."""
        return False

    def update_secret(self, secret: str, reason: str = "") -> Pending[None]:
        """Give the broker a new secret for the connection that is open."""
        name = type(self).__module__.split(".")[-2]
        raise exceptions.AMQPNotImplementedError(f"the {name} transport cannot update a secret")

    @property
    def reply_address(self) -> str | None:
        """The name whose consumer gets the replies to what its channel publishes with that name as ``reply_to``.

        None where the broker passes on no replies without a queue.
        """
        return None

    def writable(self) -> Pending[None] | None:
        """Return a Pending that is set when more may be sent; None if more may be sent now."""
        return None

    # --- channels

    @abstractmethod
    def open_channel(self, tag_offset: int = 0) -> Pending[int]:
        """Open a channel. Delivery tags that are numbers begin above ``tag_offset``."""

    @abstractmethod
    def close_channel(self, channel: int) -> Pending[None]:
        """Close a channel: its consumers end, messages not settled go back to their queues."""

    def highest_tag(self, channel: int) -> int:
        """Return the highest delivery tag of a channel; 0 where tags are no numbers."""
        return 0

    def channel_is_open(self, channel: int) -> bool:
        """Return whether a channel that was opened is open still."""
        return True

    @abstractmethod
    def qos(self, channel: int, prefetch_size: int, prefetch_count: int, apply_global: bool) -> Pending[None]:
        """Bound the messages that are delivered and not settled (0: no bound)."""

    @abstractmethod
    def flow(self, channel: int, active: bool) -> Pending[None]:
        """Pause the deliveries of a channel, or let them go on."""

    @abstractmethod
    def confirm(self, channel: int) -> Pending[None]:
        """Have the Pending of each publish on a channel done when the broker has the message."""

    # --- exchanges, queues, bindings

    @abstractmethod
    def declare_exchange(self, channel: int, spec: ExchangeSpec, passive: bool) -> Pending[None]:
        """Create an exchange, or assert it."""

    @abstractmethod
    def delete_exchange(self, channel: int, name: str, if_unused: bool) -> Pending[None]:
        """Delete an exchange with its bindings, if there is one."""

    @abstractmethod
    def declare_queue(self, channel: int, spec: QueueSpec, passive: bool) -> Pending[QueueInfo]:
        """Create a queue, or assert it."""

    @abstractmethod
    def delete_queue(self, channel: int, name: str, if_unused: bool, if_empty: bool) -> Pending[int]:
        """Delete a queue, if there is one; gives the messages gone with it."""

    @abstractmethod
    def purge(self, channel: int, queue: str) -> Pending[int]:
        """Remove the messages that wait in a queue; gives how many."""

    @abstractmethod
    def list_queues(self, channel: int) -> Pending[Sequence[QueueStatus]]:
        """List all queues."""

    @abstractmethod
    def bind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> Pending[None]:
        """Bind a queue, or with ``to_exchange`` an exchange, to an exchange."""

    @abstractmethod
    def unbind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> Pending[None]:
        """Take a binding away, if there is one."""

    # --- publishing

    @abstractmethod
    def publish(self, channel: int, delivery: Delivery, mandatory: bool = False) -> Pending[None] | None:
        """Hand a message to the broker."""

    @abstractmethod
    def publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False
    ) -> Pending[list[tuple[int, Exception]]]:
        """Publish one or more in order; gives those refused, as (index, exception)."""

    def fast_publish(self, channel: int) -> PacedPublish | None:
        """Return what publishes on a channel at once, as long as it has room; None if ``publish`` is to be called."""
        return None

    def prepare_via(
        self, channel: int, via: Any, delivery: Delivery, mandatory: bool = False
    ) -> Pending[Callable[[], Coroutine[Any, Any, None] | None]]:
        """Return what publishes within a transaction of the caller's."""
        name = type(self).__module__.split(".")[-2]
        raise exceptions.AMQPNotImplementedError(f"the {name} transport cannot publish via a transaction")

    # --- consuming

    @abstractmethod
    def consume(
        self,
        channel: int,
        queue: str,
        consumer_tag: str,
        no_ack: bool,
        exclusive: bool,
        arguments: Mapping[str, Any] | None,
    ) -> Pending[str]:
        """Start a consumer; gives its tag."""

    @abstractmethod
    def cancel(self, channel: int, consumer_tag: str) -> Pending[Sequence[Delivery] | None]:
        """End a consumer, if there is one; gives what has come for it and cannot go back."""

    @abstractmethod
    def get(self, channel: int, queue: str, no_ack: bool) -> Pending[Delivery | None]:
        """Take the next message of a queue."""

    @abstractmethod
    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> Pending[None] | None:
        """Say what becomes of a delivery, and with ``multiple`` of all before it on the channel."""

    def fast_ack(self, channel: int) -> AckStep | None:
        """Return what acknowledges one delivery at once, or None: see the synchronous transport."""
        return None

    @abstractmethod
    def settle_many(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome) -> Pending[None] | None:
        """Say what becomes of some deliveries of a channel, and of no others."""

    @abstractmethod
    def recover(self, channel: int) -> Pending[None]:
        """Put all that is outstanding on the channel back into its queues."""


class DelegatingTransport(AsyncTransport):
    """An asynchronous connection that has a synchronous one do its work: ``perform`` says how.

    ``sync``: the transport, which nobody else uses.
    """

    def __init__(self, sync: Transport, on_event: OnEvent, on_lost: OnLost) -> None:
        super().__init__(sync.settings, on_event, on_lost)
        self.sync = sync
        self.confirms = sync.confirms

    @abstractmethod
    def perform(self, verb: Callable[..., T], *arguments: Any) -> Pending[T]:
        """Have a verb of the synchronous transport called; gives what it returns or raises."""

    @property
    def connected(self) -> bool:
        """Whether the connection is open."""
        return self.sync.connected

    @property
    def held(self) -> HeldDeliveries | None:
        """What settles deliveries when their connection is lost."""
        return self.sync.held

    def inherit(self, channel: int, held: HeldDeliveries, before: int) -> None:  # noqa: D102
        self.sync.inherit(channel, held, before)

    @property
    def is_suspect(self) -> bool:
        """Whether half of the time is gone after which a silent broker is given up."""
        return self.sync.is_suspect

    @property
    def counts_failures(self) -> bool:
        """Whether the broker tells ``Outcome.RETURN`` from ``Outcome.REQUEUE``."""
        return self.sync.counts_failures

    def update_secret(self, secret: str, reason: str = "") -> Pending[None]:  # noqa: D102 - these: see AsyncTransport
        return self.perform(self.sync.update_secret, secret, reason)

    def open_channel(self, tag_offset: int = 0) -> Pending[int]:  # noqa: D102
        return self.perform(self.sync.open_channel, tag_offset)

    def close_channel(self, channel: int) -> Pending[None]:  # noqa: D102
        return self.perform(self.sync.close_channel, channel)

    def highest_tag(self, channel: int) -> int:  # noqa: D102
        return self.sync.highest_tag(channel)

    def channel_is_open(self, channel: int) -> bool:  # noqa: D102
        return self.sync.channel_is_open(channel)

    def qos(self, channel: int, prefetch_size: int, prefetch_count: int, apply_global: bool) -> Pending[None]:  # noqa: D102
        return self.perform(self.sync.qos, channel, prefetch_size, prefetch_count, apply_global)

    def flow(self, channel: int, active: bool) -> Pending[None]:  # noqa: D102
        return self.perform(self.sync.flow, channel, active)

    def confirm(self, channel: int) -> Pending[None]:  # noqa: D102
        return self.perform(self.sync.confirm, channel)

    def declare_exchange(self, channel: int, spec: ExchangeSpec, passive: bool) -> Pending[None]:  # noqa: D102
        return self.perform(self.sync.declare_exchange, channel, spec, passive)

    def delete_exchange(self, channel: int, name: str, if_unused: bool) -> Pending[None]:  # noqa: D102
        return self.perform(self.sync.delete_exchange, channel, name, if_unused)

    def declare_queue(self, channel: int, spec: QueueSpec, passive: bool) -> Pending[QueueInfo]:  # noqa: D102
        return self.perform(self.sync.declare_queue, channel, spec, passive)

    def delete_queue(self, channel: int, name: str, if_unused: bool, if_empty: bool) -> Pending[int]:  # noqa: D102
        return self.perform(self.sync.delete_queue, channel, name, if_unused, if_empty)

    def purge(self, channel: int, queue: str) -> Pending[int]:  # noqa: D102
        return self.perform(self.sync.purge, channel, queue)

    def list_queues(self, channel: int) -> Pending[Sequence[QueueStatus]]:  # noqa: D102
        return self.perform(self.sync.list_queues, channel)

    def bind(  # noqa: D102
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> Pending[None]:
        return self.perform(self.sync.bind, channel, source, destination, routing_key, arguments, to_exchange)

    def unbind(  # noqa: D102
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> Pending[None]:
        return self.perform(self.sync.unbind, channel, source, destination, routing_key, arguments, to_exchange)

    def publish_many(  # noqa: D102
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False
    ) -> Pending[list[tuple[int, Exception]]]:
        return self.perform(self.sync.publish_many, channel, deliveries, mandatory)

    def prepare_via(  # noqa: D102
        self, channel: int, via: Any, delivery: Delivery, mandatory: bool = False
    ) -> Pending[Callable[[], Coroutine[Any, Any, None] | None]]:
        return self.perform(self.sync.prepare_via, channel, via, delivery, mandatory)

    def consume(  # noqa: D102
        self,
        channel: int,
        queue: str,
        consumer_tag: str,
        no_ack: bool,
        exclusive: bool,
        arguments: Mapping[str, Any] | None,
    ) -> Pending[str]:
        return self.perform(self.sync.consume, channel, queue, consumer_tag, no_ack, exclusive, arguments)

    def cancel(self, channel: int, consumer_tag: str) -> Pending[Sequence[Delivery] | None]:  # noqa: D102
        return self.perform(self.sync.cancel, channel, consumer_tag)

    def get(self, channel: int, queue: str, no_ack: bool) -> Pending[Delivery | None]:  # noqa: D102
        return self.perform(self.sync.get, channel, queue, no_ack)

    def settle(  # noqa: D102
        self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False
    ) -> Pending[None] | None:
        return self.perform(self.sync.settle, channel, delivery_tag, outcome, multiple)

    def settle_many(  # noqa: D102
        self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome
    ) -> Pending[None] | None:
        return self.perform(self.sync.settle_many, channel, delivery_tags, outcome)

    def recover(self, channel: int) -> Pending[None]:  # noqa: D102
        return self.perform(self.sync.recover, channel)


def resolve(pending: Pending[Any], result: object = None) -> None:
    """Set a result, unless nobody waits for it any more."""
    if not pending.done():
        pending.set_result(result)


def refuse(pending: Pending[Any], error: BaseException) -> None:
    """Set an error, unless nobody waits for it any more."""
    if not pending.done():
        pending.set_exception(error)
        pending.exception()  # retrieved: who has been cancelled between this and its turn does not ask


def closed() -> exceptions.RecoverableConnectionError:
    """Return the error for a connection that is not open."""
    return exceptions.RecoverableConnectionError("connection already closed")
