"""The interface of a transport: what the facade asks of a broker.

A transport owns its I/O and nothing else. One instance is one connection to a broker; its channels are numbers, its
messages are ``Delivery`` objects, and what the broker has to say comes out of ``receive`` as events. It never calls
back. Calls raise this library's errors only: a transport maps its driver's.

Subclass ``Transport`` and implement the methods that raise ``NotImplementedError`` here; the others have defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar, NamedTuple

from kombulite import exceptions
from kombulite._core import Delivery


class Settings(NamedTuple):
    """Where and how to connect; what a URL left out is None."""

    hostname: str | None = None
    port: int | None = None
    userid: str | None = None
    password: str | None = None
    virtual_host: str = "/"
    ssl: Any = False
    connect_timeout: float | None = 5
    heartbeat: float = 0
    login_method: str | None = None
    uri_prefix: str | None = None
    options: Mapping[str, Any] = {}
    scheme: str | None = None  # that of the URL, where one transport serves several
    alternates: tuple[str, ...] = ()  # all URLs of the connection, where there are several
    credential_provider: Any = None

    def __repr__(self) -> str:
        # Neither the password nor what options may hold of the kind.
        return f"<Settings {self.userid}@{self.hostname}:{self.port}/{self.virtual_host}>"


class Capabilities(NamedTuple):
    """What a transport can do."""

    exchange_types: frozenset[str] = frozenset(["direct", "topic", "fanout", "headers"])
    heartbeats: bool = False
    asynchronous: bool = False  # has a file descriptor that an event loop can wait for
    batch_publish: bool = True


class ExchangeSpec(NamedTuple):
    """An exchange as declared."""

    name: str
    type: str = "direct"
    durable: bool = True
    auto_delete: bool = False
    arguments: Mapping[str, Any] | None = None


class QueueSpec(NamedTuple):
    """A queue as declared; the broker chooses a name for ``""``. ``arguments``: under AMQP's names (``x-expires``)."""

    name: str = ""
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    arguments: Mapping[str, Any] | None = None


class QueueInfo(NamedTuple):
    """The answer to a queue's declaration: messages that wait, consumers that are there."""

    queue: str
    message_count: int
    consumer_count: int


class Outcome(Enum):
    """What becomes of a delivery."""

    ACK = "ack"
    REJECT = "reject"
    REQUEUE = "requeue"


class Returned(NamedTuple):
    """Event: a message published as mandatory on ``channel`` found no queue."""

    channel: int
    reply_code: int
    reply_text: str
    delivery: Delivery


class Cancelled(NamedTuple):
    """Event: the broker ended a consumer."""

    channel: int
    consumer_tag: str


Event = Delivery | Returned | Cancelled


class Transport:
    """A connection to a broker.

    Every method that talks to the broker raises ``exceptions.ConnectionError`` or OSError where the connection is at
    fault, ``exceptions.ChannelError`` where the request is. Channels are numbers, given out by ``open_channel``.
    """

    driver_type: ClassVar[str]  #: kind of broker: "amqp", "redis", "memory"
    driver_name: ClassVar[str]  #: library that talks to it
    capabilities: ClassVar[Capabilities] = Capabilities()

    connection_errors: ClassVar[tuple[type[BaseException], ...]] = (exceptions.ConnectionError, OSError)
    channel_errors: ClassVar[tuple[type[BaseException], ...]] = (exceptions.ChannelError,)
    recoverable_connection_errors: ClassVar[tuple[type[BaseException], ...]] = (
        exceptions.RecoverableConnectionError,
        exceptions.MessageNacked,
        OSError,
    )
    recoverable_channel_errors: ClassVar[tuple[type[BaseException], ...]] = (exceptions.RecoverableChannelError,)

    #: Messages that no queue took and that were not mandatory.
    unroutable = 0

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    # --- the connection

    def connect(self) -> None:
        """Open the connection, within ``settings.connect_timeout`` seconds."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the connection and its channels: messages not settled go back to their queues. May be repeated."""
        raise NotImplementedError

    def collect(self) -> None:
        """Drop the connection without a word to the broker, as after a fork or a failure."""
        self.close()

    @property
    def connected(self) -> bool:
        """Whether the connection is open."""
        raise NotImplementedError

    def driver_version(self) -> str:
        """Version of the library that talks to the broker."""
        return ""

    def heartbeat_check(self, rate: float = 2) -> None:
        """Send a heartbeat if one is due, and raise if the broker's are missing."""

    def qos_semantics_matches_spec(self) -> bool:
        """Whether a prefetch count without ``apply_global`` bounds the channel (AMQP), not a consumer (RabbitMQ)."""
        return True

    def fileno(self) -> int | None:
        """The descriptor to wait on before ``receive(0)``, if there is one."""
        return None

    # --- channels

    def open_channel(self) -> int:
        """Open a channel and return its number, 1 to 65535. Raises ResourceError when none is left."""
        raise NotImplementedError

    def close_channel(self, channel: int) -> None:
        """Close a channel: its consumers end, messages not settled go back to their queues."""
        raise NotImplementedError

    def qos(self, channel: int, prefetch_size: int, prefetch_count: int, apply_global: bool) -> None:
        """Bound the messages that are delivered and not settled (0: no bound)."""
        raise NotImplementedError

    def flow(self, channel: int, active: bool) -> None:
        """Pause the deliveries of a channel, or let them go on."""
        raise exceptions.AMQPNotImplementedError(f"the {self.driver_type} transport has no flow control")

    # --- exchanges, queues, bindings

    def declare_exchange(self, channel: int, spec: ExchangeSpec, passive: bool) -> None:
        """Create an exchange, or assert it. Raises NotFound (passive), NotEquivalentError."""
        raise NotImplementedError

    def delete_exchange(self, channel: int, name: str, if_unused: bool) -> None:
        """Delete an exchange with its bindings, if there is one. Raises PreconditionFailed if in use."""
        raise NotImplementedError

    def declare_queue(self, channel: int, spec: QueueSpec, passive: bool) -> QueueInfo:
        """Create a queue, or assert it. Raises NotFound (passive), NotEquivalentError, ResourceLocked."""
        raise NotImplementedError

    def delete_queue(self, channel: int, name: str, if_unused: bool, if_empty: bool) -> int:
        """Delete a queue, if there is one; returns the messages gone with it. Raises PreconditionFailed."""
        raise NotImplementedError

    def purge(self, channel: int, queue: str) -> int:
        """Remove the messages that wait in a queue; returns how many. Raises NotFound."""
        raise NotImplementedError

    def bind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> None:
        """Bind a queue, or with ``to_exchange`` an exchange, to an exchange. Raises NotFound, PreconditionFailed."""
        raise NotImplementedError

    def unbind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> None:
        """Take a binding away, if there is one."""
        raise NotImplementedError

    # --- publishing

    def publish(self, channel: int, delivery: Delivery, mandatory: bool = False, timeout: float | None = None) -> None:
        """Hand a message to the broker, within ``timeout`` seconds. It may keep ``delivery``.

        A mandatory one that no queue takes comes back as a ``Returned`` event. Raises NotFound for an unknown
        exchange, MessageNacked where the broker refuses it.
        """
        raise NotImplementedError

    def publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> list[tuple[int, Exception]]:
        """Publish in order; returns those refused, as (index, exception)."""
        refused: list[tuple[int, Exception]] = []
        for index, delivery in enumerate(deliveries):
            try:
                self.publish(channel, delivery, mandatory, timeout)
            except (exceptions.MessageNacked, exceptions.ChannelError) as error:
                refused.append((index, error))
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
        """Start a consumer and return its tag, chosen here for ``""``. Raises NotFound, AccessRefused, NotAllowed."""
        raise NotImplementedError

    def cancel(self, channel: int, consumer_tag: str) -> None:
        """End a consumer, if there is one. What was delivered to it stays to be settled."""
        raise NotImplementedError

    def get(self, channel: int, queue: str, no_ack: bool) -> Delivery | None:
        """The next message of a queue, or None. Raises NotFound."""
        raise NotImplementedError

    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> None:
        """Say what becomes of a delivery, and with ``multiple`` of all before it on the channel.

        Raises PreconditionFailed for a tag that is not outstanding.
        """
        raise NotImplementedError

    def recover(self, channel: int) -> None:
        """Put all that is outstanding on the channel back into its queues."""
        raise NotImplementedError

    def receive(self, timeout: float | None) -> Sequence[Event]:
        """Wait for events, at most ``timeout`` seconds (None: until there is one); empty if there was none.

        Raises OperationalError where ``timeout`` is None and no event can ever come.
        """
        raise NotImplementedError
