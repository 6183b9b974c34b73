"""The interface of a transport: what the facade asks of a broker.

A transport owns its I/O and nothing else. One instance is one connection to a broker; its channels are numbers, its
messages are ``Delivery`` objects, and what the broker has to say comes out of ``receive`` as events. It never calls
back. Calls raise this library's errors only: a transport maps its driver's.

The interface is wide since the verbs of a broker are; in most transports few of them need more than a line.

Subclass ``Transport`` and implement the methods that raise ``NotImplementedError`` here; the others have defaults.

Longer and wider than other modules: the verbs of a broker are as many, and each says what it has to do.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from enum import Enum
from functools import partial
from time import monotonic
from typing import Any, ClassVar, Protocol
from weakref import ref

from kombulite import exceptions
from kombulite._core import AckStep, Delivery, PublishStep
from kombulite.utils.records import NamedTuple

#: Seconds by which a turn of an event loop has to be due sooner than the one that was asked for, to be asked for anew.
MIN_GAIN = 0.01


class Settings(NamedTuple):
    """Settings of a connection. A part that the URL leaves out is None.

    Attributes:
        hostname: Host, or path of a socket.
        port: TCP port.
        userid: User name.
        password: Password.
        virtual_host: Virtual host.
        ssl: True for TLS, or a dict of TLS settings.
        connect_timeout: Seconds for an attempt to connect (None: no limit).
        heartbeat: Seconds between heartbeats, 0 for none.
        login_method: SASL mechanism.
        uri_prefix: Prefix of the URL.
        options: The transport options.
        scheme: Scheme of the URL, where one transport serves several.
        alternates: All URLs of the connection, if there are several.
        credential_provider: Object that returns user name and password.
    """

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
    scheme: str | None = None
    alternates: tuple[str, ...] = ()
    credential_provider: Any = None

    def __repr__(self) -> str:
        # Neither the password nor what options may hold of the kind.
        return f"<Settings {self.userid}@{self.hostname}:{self.port}/{self.virtual_host}>"


class MessageIgnored(exceptions.RecoverableChannelError):
    """A message came behind the one that the broker has closed the channel for: it was not taken for certain."""


class Capabilities(NamedTuple):
    """Abilities of a transport.

    Attributes:
        exchange_types: Types of exchanges.
        heartbeats: True if it has heartbeats.
        asynchronous: True if it has a file descriptor that an event loop can wait for.
        batch_publish: True if it sends many messages together.
        queue_kinds: True if it has quorum queues and streams.
        keeps_durable: True if durable exchanges, queues and bindings outlive a connection in any case. If not, all that
            a connection has declared is declared again after it was lost.
        deletes_unused: True if the broker itself deletes queues without use: auto-delete, exclusive and expiring ones.
    """

    exchange_types: frozenset[str] = frozenset(["direct", "topic", "fanout", "headers"])
    heartbeats: bool = False
    asynchronous: bool = False
    batch_publish: bool = True
    queue_kinds: bool = False
    keeps_durable: bool = True
    deletes_unused: bool = True


class Implements(dict[str, Any]):
    """Capabilities under kombu's names: ``implements["heartbeats"]`` or ``implements.heartbeats``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class ExchangeSpec(NamedTuple):
    """An exchange as declared.

    Attributes:
        name: Its name.
        type: Its type.
        durable: If True, it survives a restart of the broker.
        auto_delete: If True, it is deleted with its last binding.
        arguments: Arguments under AMQP's names.
    """

    name: str
    type: str = "direct"
    durable: bool = True
    auto_delete: bool = False
    arguments: Mapping[str, Any] | None = None


def unknown_type(spec: ExchangeSpec, known: Iterable[str]) -> exceptions.AMQPError:
    """Return the error for an exchange type that the broker does not have.

    Args:
        spec: The exchange.
        known: Types that the broker has.
    """
    error = exceptions.AMQPNotImplementedError if spec.type == "headers" else exceptions.InvalidCommand
    return error(f"exchange '{spec.name}': {spec.type!r:.80} is not one of {', '.join(sorted(known))}")


class QueueSpec(NamedTuple):
    """A queue as declared.

    Attributes:
        name: Its name; for ``""`` the broker chooses one.
        durable: If True, it survives a restart of the broker.
        exclusive: If True, it belongs to its connection.
        auto_delete: If True, it is deleted with its last consumer.
        arguments: Arguments under AMQP's names, such as ``x-expires``.
    """

    name: str = ""
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    arguments: Mapping[str, Any] | None = None


class QueueInfo(NamedTuple):
    """Reply to a queue's declaration.

    Attributes:
        queue: Name of the queue.
        message_count: Number of waiting messages.
        consumer_count: Number of consumers.
    """

    queue: str
    message_count: int
    consumer_count: int


class QueueStatus(NamedTuple):
    """Numbers of a queue.

    Attributes:
        queue: Name of the queue.
        message_count: Number of waiting messages.
        consumer_count: Number of consumers.
        unacked: Number of messages in flight (None: the broker does not report it).
    """

    queue: str
    message_count: int
    consumer_count: int
    unacked: int | None = None


class Outcome(Enum):
    """Outcome of a delivery. REQUEUE and RETURN put it back: after a failure, or without one."""

    ACK = "ack"
    REJECT = "reject"
    REQUEUE = "requeue"
    RETURN = "return"


class HeldDeliveries(Protocol):
    """Deliveries of lost connections that the application still has, where other connections can settle them.

    Returned by ``Transport.held``.
    """

    def settle(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome, multiple: bool = False) -> bool:
        """Settle deliveries of a channel whose connection is lost.

        Args:
            channel: The number of the channel.
            delivery_tags: The tags of the deliveries.
            outcome: The outcome of all of them.
            multiple: If True, all before each of them on the channel are settled too.

        Returns:
            False if one of them is not held; then none is settled.
        """


class Returned(NamedTuple):
    """Event: a mandatory message found no queue.

    Attributes:
        channel: Number of the channel that it was published on.
        reply_code: The broker's reply code.
        reply_text: The broker's text.
        delivery: The message.
    """

    channel: int
    reply_code: int
    reply_text: str
    delivery: Delivery


class Cancelled(NamedTuple):
    """Event: the broker ended a consumer.

    Attributes:
        channel: Number of the channel.
        consumer_tag: Tag of the consumer.
    """

    channel: int
    consumer_tag: str


class ChannelClosed(NamedTuple):
    """Event: the broker closed a channel, for something that went wrong on it.

    Attributes:
        channel: Number of the channel.
        error: The reason.
    """

    channel: int
    error: exceptions.ChannelError


Event = Delivery | Returned | Cancelled | ChannelClosed


class Management:
    """Administration of a broker, as far as the transport has it.

    Args:
        transport: The transport.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def get_bindings(self) -> Any:
        """Return all bindings.

        Raises:
            NotImplementedError: The transport cannot list them.
        """
        raise NotImplementedError(f"the {self.transport.driver_type} transport does not list bindings")


class Transport:
    """Connection to a broker: the base of kombulite's own transports.

    Every method that talks to the broker raises ``exceptions.ConnectionError`` or OSError if the connection failed,
    ``exceptions.ChannelError`` if the request did. Channels are numbers, which ``open_channel`` returns.

    Args:
        settings: Settings of the connection.
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

    #: The ``brokers.aio.AsyncTransport`` for event loops (``module:Class``); without one a thread runs this transport.
    async_transport: ClassVar[str | None] = None

    #: Whether a forked child may go on with a connection of its parent's.
    survives_fork: ClassVar[bool] = False

    #: Whether ``publish`` returns only when the broker has said that it has the message.
    confirms = True

    #: Whether the broker may count failed deliveries: ``settle`` and ``settle_many`` get RETURN, else REQUEUE for it.
    counts_failures: ClassVar[bool] = False

    #: Messages that no queue took and that were not mandatory.
    unroutable = 0

    _client: ref[Any] | None = None
    _registered: tuple[Any, Any, int | None] | None = None  # with an event loop, by what, at which descriptor
    _timed_turn: Any = None  # of that loop, and when (monotonic clock)
    _turns_at = 0.0

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    # --- what a program sees

    #: What ``drain_events`` returns.
    drained: Any = None

    #: The transport of others that this one runs.
    adapted: Any = None

    @property
    def public(self) -> Any:
        """The object that programs see as ``Connection.transport``."""
        return self

    @property
    def public_connection(self) -> Any:
        """The object that programs see as ``Connection.connection``."""
        return self

    # --- the connection

    def connect(self) -> None:
        """Open the connection, within ``settings.connect_timeout`` seconds."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the connection and its channels. Unsettled messages return to their queues. It may be repeated."""
        raise NotImplementedError

    def collect(self) -> None:
        """Drop the connection without a message to the broker, as after a fork or a failure."""
        self.close()

    @property
    def held(self) -> HeldDeliveries | None:
        """Settles deliveries when their connection is lost; None if the broker takes them all back then."""
        return None

    def inherit(self, channel: int, held: HeldDeliveries, before: int) -> None:
        """Let a channel settle what another had whose connection was lost, and in whose place it is.

        Args:
            channel: The number of the channel.
            held: The deliveries of the other connection.
            before: The number that the other channel had.
        """

    def update_secret(self, secret: str, reason: str = "") -> None:
        """Give the broker a new secret for the open connection.

        Args:
            secret: The new token or password.
            reason: Text for the broker's log.
        """
        raise exceptions.AMQPNotImplementedError(f"the {self.driver_type} transport cannot update a secret")

    @property
    def connected(self) -> bool:
        """True if the connection is open."""
        raise NotImplementedError

    def driver_version(self) -> str:
        """Return the version of the library that talks to the broker."""
        return "N/A"

    @property
    def heartbeat_interval(self) -> float:
        """Seconds between heartbeats, as agreed with the broker; 0 for none."""
        return self.settings.heartbeat if self.capabilities.heartbeats else 0

    @property
    def is_suspect(self) -> bool:
        """True if the broker has been silent for half of the time after which the connection counts as lost."""
        return False

    def heartbeat_check(self, connection: Any = None, rate: float = 2) -> None:
        """Send a heartbeat if one is due.

        Args:
            connection: The transport itself; kombu passes it.
            rate: Checks for each heartbeat interval.

        Raises:
            ConnectionForced: The broker's heartbeats are missing.
        """

    def qos_semantics_matches_spec(self, connection: Any = None) -> bool:
        """Return True if a prefetch count without ``apply_global`` limits the channel, False if a consumer.

        Args:
            connection: The transport itself; kombu passes it.
        """
        return True

    def fileno(self) -> int | None:
        """Return the descriptor to wait on before ``receive(0)``, or None.

        An event loop calls ``receive(0)`` in each of its turns too, so that it may ask for what is to come.
        """
        return None

    @property
    def look_interval(self) -> float | None:
        """Seconds after which ``receive(0)`` is called again although the descriptor is not readable; None: never."""
        return None

    # --- what programs ask about it, and event loops

    @property
    def client(self) -> Any:
        """The ``Connection`` that it was made for, if that still exists."""
        return self._client() if self._client is not None else None

    @client.setter
    def client(self, connection: Any) -> None:
        self._client = ref(connection)

    @property
    def implements(self) -> Implements:
        """Its capabilities under kombu's names: asynchronous, batch_publish, exchange_type, heartbeats."""
        able = self.capabilities
        return Implements(
            asynchronous=able.asynchronous,
            batch_publish=able.batch_publish,
            exchange_type=able.exchange_types,
            heartbeats=able.heartbeats,
        )

    # --- the verbs of kombu's transports, for programs that call them: ``connection`` is this transport

    default_port: ClassVar[int | None] = None
    can_parse_url: ClassVar[bool] = False

    @property
    def default_connection_params(self) -> dict[str, Any]:
        """Defaults for parts of a URL, by the names of ``Connection``'s arguments."""
        return {"port": self.default_port, "hostname": "localhost"}

    def establish_connection(self) -> Any:
        """Connect if needed, and return the transport."""
        if not self.connected:
            self.connect()
        return self

    def close_connection(self, connection: Any) -> None:
        """Close the connection.

        Args:
            connection: The transport itself; kombu passes it.
        """
        self.close()

    def create_channel(self, connection: Any) -> Any:
        """Return a new channel of the ``Connection``.

        Args:
            connection: The transport itself; kombu passes it.
        """
        return self.client.channel()

    def drain_events(self, connection: Any, **kwargs: Any) -> Any:
        """Wait for one event and run its callback, as the ``Connection`` does.

        Args:
            connection: The transport itself; kombu passes it.
            **kwargs: ``timeout``: seconds.
        """
        return self.client.drain_events(**kwargs)

    def verify_connection(self, connection: Any) -> bool:
        """Return True if the connection is open.

        Args:
            connection: The transport itself; kombu passes it.
        """
        return self.connected

    def get_heartbeat_interval(self, connection: Any) -> float:
        """Return the seconds between heartbeats; 0 for none.

        Args:
            connection: The transport itself; kombu passes it.
        """
        return self.heartbeat_interval

    @property
    def supports_heartbeats(self) -> bool:
        """True if it has heartbeats."""
        return self.capabilities.heartbeats

    @property
    def supports_ev(self) -> bool:
        """True if an event loop can wait for its events."""
        return self.capabilities.asynchronous

    @property
    def manager(self) -> Any:
        """The object that administers the broker."""
        return self.get_manager()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let a ``Hub`` run the callbacks of arriving events. It has no effect if the transport is not asynchronous.

        Args:
            connection: The transport itself; kombu passes it.
            loop: The hub.
        """
        if self.capabilities.asynchronous:
            self.unregister_from_event_loop(connection, self.event_loop)
            tick = partial(self._on_tick, connection, loop)
            loop.on_tick.add(tick)
            loop.on_close.add(self._on_loop_closed)
            self._registered = (loop, tick, None)
            self._watch()

    @property
    def event_loop(self) -> Any:
        """The hub that it is registered with, or None."""
        return None if self._registered is None else self._registered[0]

    def unregister_from_event_loop(self, connection: Any, loop: Any) -> None:
        """Undo ``register_with_event_loop``.

        Args:
            connection: The transport itself; kombu passes it.
            loop: The hub, or None.
        """
        if self._registered is not None:
            hub, tick, fd = self._registered
            self._registered = None
            hub.on_tick.discard(tick)
            hub.on_close.discard(self._on_loop_closed)
            self._unwatch(hub, fd)
            if self._timed_turn is not None:
                self._timed_turn.cancel()
                self._timed_turn = None

    def _on_loop_closed(self, loop: Any) -> None:
        self.unregister_from_event_loop(self, loop)

    def _on_tick(self, connection: Any, loop: Any) -> None:
        # Something may have arrived while an answer to something else was read; and what is asked for may have made,
        # or changed, the descriptor to wait on.
        self.on_readable(connection, loop)
        self._watch()
        if self._registered is not None and (seconds := self.look_interval) is not None:
            self._turn_in(seconds, loop)

    def _watch(self) -> None:
        if self._registered is None:
            return
        hub, tick, known = self._registered
        fd = self.fileno()
        if fd != known:
            self._unwatch(hub, known)
            if fd is not None:
                hub.add_reader(fd, self._turn)
            self._registered = (hub, tick, fd)

    def _turn(self) -> None:
        """Nothing: the loop has turned, and will tick."""

    def _turn_in(self, seconds: float, loop: Any) -> None:
        """Have the loop turn in so many seconds: the tick that follows looks, and asks for the next time."""
        at = monotonic() + seconds
        if self._timed_turn is not None:
            if at > self._turns_at - MIN_GAIN:
                return
            self._timed_turn.cancel()
        self._timed_turn, self._turns_at = loop.call_later(seconds, self._on_timed_turn), at
        loop.call_soon(self._turn)  # a loop decides before the tick for how long it sleeps after it

    def _on_timed_turn(self) -> None:
        self._timed_turn = None

    def _unwatch(self, hub: Any, fd: int | None) -> None:
        if fd is not None and hub.readers.get(fd, (None, ()))[0] == self._turn:
            hub.remove_reader(fd)  # else the number is another connection's by now

    def on_readable(self, connection: Any, loop: Any) -> None:
        """Run the callbacks of one event, if one has arrived, and make the loop turn again at once.

        One event in each turn: work that a callback gives to the loop, such as an acknowledgement after the task, is
        done before the next event.

        Args:
            connection: The transport itself; kombu passes it.
            loop: The hub.
        """
        client = self.client
        if client is None:
            return
        if client.drain(0):
            loop.call_soon(self._turn)

    #: Whether ``interrupt`` ends a wait, so that a thread may wait in ``receive`` and do what others ask of it.
    can_interrupt: ClassVar[bool] = False

    def interrupt(self) -> None:
        """Make a ``receive`` that waits in another thread, or the next one, return soon. It never waits itself."""

    def get_manager(self) -> Management:
        """Return the object that administers the broker."""
        return Management(self)

    def nodes(self) -> Mapping[str, str]:
        """Return the nodes of a cluster that a client talks to, and what each has; empty for a server alone."""
        return {}

    def place_of(self, queue: str) -> str | None:
        """Return where in a cluster a queue is, in a few words; None for a server alone.

        Args:
            queue: Its name.
        """
        return None

    def list_queues(self, channel: int) -> Sequence[QueueStatus]:
        """Return all queues.

        Args:
            channel: Number of the channel.

        Raises:
            AMQPNotImplementedError: The broker cannot list them.
        """
        raise exceptions.AMQPNotImplementedError(f"the {self.driver_type} transport cannot list its queues")

    # --- channels

    def open_channel(self, above: int = 0) -> int:
        """Open a channel and return its number, 1 to 65535.

        Args:
            above: Highest delivery tag of the channel that it replaces. Tags of the new one are higher, if they are
                numbers.

        Raises:
            ResourceError: All numbers are in use.
        """
        raise NotImplementedError

    def close_channel(self, channel: int) -> None:
        """Close a channel. Its consumers end, and unsettled messages return to their queues.

        Args:
            channel: Number of the channel.
        """
        raise NotImplementedError

    def highest_tag(self, channel: int) -> int:
        """Return the highest delivery tag of a channel, even if the connection is lost; 0 if tags are no numbers.

        Args:
            channel: Number of the channel.
        """
        return 0

    def channel_is_open(self, channel: int) -> bool:
        """Return True if a channel is still open. Some brokers close channels after an error.

        Args:
            channel: Number of the channel.
        """
        return True

    def qos(self, channel: int, prefetch_size: int, prefetch_count: int, apply_global: bool) -> None:
        """Limit the messages in flight: delivered and not settled.

        Args:
            channel: Number of the channel.
            prefetch_size: Bytes in flight.
            prefetch_count: Largest number of messages; 0 for no limit.
            apply_global: If True, the limit is for all consumers of the channel together.
        """
        raise NotImplementedError

    def gate(self, channel: int, may_take: Callable[[], Any] | None) -> None:
        """Call a function before each message that is taken from a queue. By default this has no effect.

        Args:
            channel: Number of the channel.
            may_take: Returns True if a message may be taken (None: no function).
        """

    def successor_count(self, channel: int, consumer_tag: str, prefetch_count: int, apply_global: bool) -> int | None:
        """Return the prefetch count of the consumer that has to replace a running one after ``qos``.

        Args:
            channel: Number of the channel.
            consumer_tag: Tag of the running consumer.
            prefetch_count: The prefetch count that was set.
            apply_global: If True, the limit is for all consumers of the channel together.

        Returns:
            None if nothing has to be replaced: ``qos`` applies to running consumers, or this one has about that
            count.
        """
        return None

    def replace_consumer(
        self,
        channel: int,
        consumer_tag: str,
        successor: str,
        prefetch_count: int,
        queue: str,
        arguments: Mapping[str, Any] | None,
    ) -> None:
        """Start a consumer in place of another, with its messages in their order.

        Messages that were delivered to the old consumer remain to be settled; messages that were not received yet go to
        the new one.

        Args:
            channel: Number of the channel.
            consumer_tag: Tag of the old consumer.
            successor: Tag of the new consumer.
            prefetch_count: Prefetch count of the new consumer.
            queue: Name of the queue.
            arguments: The broker's own arguments of the new consumer.
        """
        raise exceptions.AMQPNotImplementedError(f"the {self.driver_type} transport replaces no consumers")

    def flow(self, channel: int, active: bool) -> None:
        """Pause or resume the deliveries of a channel.

        Args:
            channel: Number of the channel.
            active: False pauses, True resumes.
        """
        raise exceptions.AMQPNotImplementedError(f"the {self.driver_type} transport has no flow control")

    # --- exchanges, queues, bindings

    def declare_exchange(self, channel: int, spec: ExchangeSpec, passive: bool) -> None:
        """Create an exchange, or assert that it exists.

        Args:
            channel: Number of the channel.
            spec: The exchange.
            passive: If True, only assert that it exists; nothing is created or changed.

        Raises:
            NotFound: It is ``passive`` and does not exist.
            NotEquivalentError: It exists with other settings.
        """
        raise NotImplementedError

    def delete_exchange(self, channel: int, name: str, if_unused: bool) -> None:
        """Delete an exchange with its bindings, if it exists.

        Args:
            channel: Number of the channel.
            name: Name of the exchange.
            if_unused: Delete only if nothing is bound to it.

        Raises:
            PreconditionFailed: It is in use.
        """
        raise NotImplementedError

    def declare_queue(self, channel: int, spec: QueueSpec, passive: bool) -> QueueInfo:
        """Create a queue, or assert that it exists.

        Args:
            channel: Number of the channel.
            spec: The queue.
            passive: If True, only assert that it exists; nothing is created or changed.

        Raises:
            NotFound: It is ``passive`` and does not exist.
            NotEquivalentError: It exists with other settings.
            ResourceLocked: It is an exclusive queue of another connection.
        """
        raise NotImplementedError

    def delete_queue(self, channel: int, name: str, if_unused: bool, if_empty: bool) -> int:
        """Delete a queue, if it exists. Return the number of messages that were deleted with it.

        Args:
            channel: Number of the channel.
            name: Name of the queue.
            if_unused: Delete only if it has no consumer.
            if_empty: Delete only if no message waits in it.

        Raises:
            PreconditionFailed: It is in use, or not empty.
        """
        raise NotImplementedError

    def purge(self, channel: int, queue: str) -> int:
        """Remove the waiting messages of a queue. Return their number.

        Args:
            channel: Number of the channel.
            queue: Name of the queue.

        Raises:
            NotFound: The queue or exchange does not exist.
        """
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
        """Bind a queue or exchange to an exchange.

        Args:
            channel: Number of the channel.
            source: Name of the exchange that sends.
            destination: Name of the queue or exchange that receives.
            routing_key: Routing key.
            arguments: Arguments of the binding.
            to_exchange: True if the destination is an exchange.

        Raises:
            NotFound: The queue or exchange does not exist.
            PreconditionFailed: The condition does not hold, or the request contradicts the state of the entity.
        """
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
        """Remove a binding, if it exists.

        Args:
            channel: Number of the channel.
            source: Name of the exchange that sends.
            destination: Name of the queue or exchange that receives.
            routing_key: Routing key.
            arguments: Arguments of the binding.
            to_exchange: True if the destination is an exchange.
        """
        raise NotImplementedError

    # --- publishing

    def publish(
        self,
        channel: int,
        delivery: Delivery,
        mandatory: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Hand a message to the broker, and wait for its confirm where brokers confirm.

        A mandatory message that no queue takes comes back as a ``Returned`` event; as MessageReturned if the broker
        says so at once.

        Args:
            channel: Number of the channel.
            delivery: The message, which the transport may keep.
            mandatory: If True, the broker returns the message if no queue takes it.
            timeout: Seconds for the broker to take the message.
            confirm_timeout: Seconds for the broker to confirm it (None: ``timeout``).

        Raises:
            NotFound: The exchange does not exist.
            MessageNacked: The broker refused the message.
            MessageReturned: No queue took the message.
        """
        raise NotImplementedError

    def confirm(self, channel: int) -> None:
        """Make each publish on a channel wait for the broker's confirm. It has no effect where all publishes do.

        Args:
            channel: Number of the channel.
        """

    def publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> list[tuple[int, Exception]]:
        """Publish one or more messages in order. Return those that were refused, as (index, exception).

        Args:
            channel: Number of the channel.
            deliveries: The messages.
            mandatory: If True, the broker returns the message if no queue takes it.
            timeout: Seconds for all of them.
        """
        refused: list[tuple[int, Exception]] = []
        for index, delivery in enumerate(deliveries):
            try:
                self.publish(channel, delivery, mandatory, timeout)
            except (exceptions.MessageNacked, exceptions.ChannelError, exceptions.EncodeError) as error:
                refused.append((index, error))
        return refused

    def begin_publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> Callable[[], list[tuple[int, Exception]]] | None:
        """Send what ``publish_many`` sends, and let the broker store it while the client does something else.

        Return a function that waits until it is stored, and returns and raises what ``publish_many`` does: it has to
        be called soon, for some may have to be sent again. Return None, with nothing sent, where ``publish_many`` is
        as good.

        Args:
            channel: Number of the channel.
            deliveries: The messages, at least one.
            mandatory: If True, the broker returns the message if no queue takes it.
            timeout: Seconds for all of them.
        """
        return None

    def prepare_via(
        self, channel: int, via: Any, delivery: Delivery, mandatory: bool = False
    ) -> Callable[[], Coroutine[Any, Any, None] | None]:
        """Return a function that publishes within a transaction of the caller's, on the database that is the broker.

        The function is called by the thread, or on the event loop, of the transaction. It returns a coroutine if the
        caller's library is asynchronous.

        Args:
            channel: Number of the channel.
            via: The caller's connection or session.
            delivery: The message.
            mandatory: If True, the broker returns the message if no queue takes it.
        """
        raise exceptions.AMQPNotImplementedError(f"the {self.driver_type} transport cannot publish via a transaction")

    def take_returned(self, channel: int) -> Sequence[Returned]:
        """Remove the messages that came back on a channel from the events of ``receive``, and return them.

        Args:
            channel: Number of the channel.
        """
        return ()

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
        """Start a consumer, and return its tag.

        Args:
            channel: Number of the channel.
            queue: Name of the queue.
            consumer_tag: The tag; one is chosen for ``""``.
            no_ack: If True, a message counts as acknowledged when the broker sends it.
            exclusive: If True, no other consumer may have the queue.
            arguments: The broker's own arguments, by name.

        Raises:
            NotFound: The queue or exchange does not exist.
            AccessRefused: Another consumer has the queue exclusively.
            NotAllowed: The tag is in use.
        """
        raise NotImplementedError

    def cancel(self, channel: int, consumer_tag: str) -> Sequence[Delivery] | None:
        """Cancel a consumer, if it exists. Its delivered messages remain to be settled.

        Args:
            channel: Number of the channel.
            consumer_tag: Tag of the consumer.

        Returns:
            Messages that have arrived for it and cannot return, because they need no acknowledgement; None for
            none.
        """
        raise NotImplementedError

    def get(self, channel: int, queue: str, no_ack: bool) -> Delivery | None:
        """Return the next message of a queue, or None.

        Args:
            channel: Number of the channel.
            queue: Name of the queue.
            no_ack: If True, a message counts as acknowledged when the broker sends it.

        Raises:
            NotFound: The queue or exchange does not exist.
        """
        raise NotImplementedError

    def fast_publish(self, channel: int) -> PublishStep | None:
        """Return what publishes on an open channel in one compiled step, as ``publish`` does, or None.

        Args:
            channel: Number of the channel.
        """
        return None

    def fast_ack(self, channel: int) -> AckStep | None:
        """Return what acknowledges one delivery faster than ``settle``, or None.

        It leaves it to ``settle`` if the tag is not outstanding, or there is more to do.

        Args:
            channel: Number of the channel.
        """
        return None

    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> None:
        """Settle a delivery.

        Args:
            channel: Number of the channel.
            delivery_tag: Tag of the delivery.
            outcome: The outcome.
            multiple: If True, all earlier deliveries of the channel too.

        Raises:
            PreconditionFailed: The tag is not outstanding.
        """
        raise NotImplementedError

    def settle_many(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome) -> None:
        """Settle some deliveries of a channel, and no others, in one step if possible.

        Args:
            channel: Number of the channel.
            delivery_tags: One or more tags, each of them once.
            outcome: The outcome of all of them.

        Raises:
            PreconditionFailed: A tag is not outstanding.
        """
        for tag in delivery_tags:
            self.settle(channel, tag, outcome)

    def delivery_limit(self, arguments: Mapping[str, Any]) -> int | None:
        """Return the number of failed deliveries after which the broker drops a message of a queue, or None.

        Args:
            arguments: Arguments of the queue.
        """
        return None

    def note_failure(self, channel: int, delivery_tag: Any) -> None:
        """Note that a delivery failed: if it is unsettled when the channel is closed, it counts as failed.

        Args:
            channel: Number of the channel.
            delivery_tag: Tag of the delivery.
        """

    def recover(self, channel: int) -> None:
        """Return all outstanding messages of a channel to their queues.

        Args:
            channel: Number of the channel.
        """
        raise NotImplementedError

    #: The next event if there is no need to wait for it, or None: where that costs less than ``receive``.
    poll_ready: Callable[[], Event | None] | None = None

    def receive(self, timeout: float | None) -> Sequence[Event]:
        """Return the next events, or an empty sequence on timeout.

        Args:
            timeout: Seconds to wait (None: no limit).

        Raises:
            OperationalError: ``timeout`` is None, and no event can ever come.
        """
        raise NotImplementedError
