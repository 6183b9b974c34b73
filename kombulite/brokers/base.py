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
from typing import Any, ClassVar, NamedTuple
from weakref import ref

from kombulite import exceptions
from kombulite._core import Delivery

#: Seconds by which a turn of an event loop has to be due sooner than the one that was asked for, to be asked for anew.
MIN_GAIN = 0.01


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
    queue_kinds: bool = False  # has quorum queues and streams
    #: Whether durable exchanges, queues and bindings outlive a connection in any case. If not, all that a connection
    #: has declared is declared again when it was lost.
    keeps_durable: bool = True
    #: Whether the broker itself deletes queues that nobody uses any more: auto-delete, exclusive and expiring ones.
    deletes_unused: bool = True


class Implements(dict[str, Any]):
    """Capabilities under kombu's names: ``implements["heartbeats"]`` or ``implements.heartbeats``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class ExchangeSpec(NamedTuple):
    """An exchange as declared."""

    name: str
    type: str = "direct"
    durable: bool = True
    auto_delete: bool = False
    arguments: Mapping[str, Any] | None = None


def unknown_type(spec: ExchangeSpec, known: Iterable[str]) -> exceptions.AMQPError:
    """Return the error for an exchange of a type that a broker does not have."""
    error = exceptions.AMQPNotImplementedError if spec.type == "headers" else exceptions.InvalidCommand
    return error(f"exchange '{spec.name}': {spec.type!r:.80} is not one of {', '.join(sorted(known))}")


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


class QueueStatus(NamedTuple):
    """How a queue stands; ``unacked``: messages that are out and not settled, None where the broker does not tell."""

    queue: str
    message_count: int
    consumer_count: int
    unacked: int | None = None


class Outcome(Enum):
    """What becomes of a delivery. REQUEUE and RETURN put it back: after a failure, or without one."""

    ACK = "ack"
    REJECT = "reject"
    REQUEUE = "requeue"
    RETURN = "return"


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


class ChannelClosed(NamedTuple):
    """Event: the broker closed a channel, for something that went wrong on it."""

    channel: int
    error: exceptions.ChannelError


Event = Delivery | Returned | Cancelled | ChannelClosed


class Management:
    """Administers a broker, as far as its transport can."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def get_bindings(self) -> Any:
        """All bindings. Raises NotImplementedError where the transport cannot list them."""
        raise NotImplementedError(f"the {self.transport.driver_type} transport does not list bindings")


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
        """What ``Connection.transport`` is."""
        return self

    @property
    def public_connection(self) -> Any:
        """What ``Connection.connection`` is."""
        return self

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

    def update_secret(self, secret: str, reason: str = "") -> None:
        """Give the broker a new secret (a token, a password) for the connection that is open."""
        raise exceptions.AMQPNotImplementedError(f"the {self.driver_type} transport cannot update a secret")

    @property
    def connected(self) -> bool:
        """Whether the connection is open."""
        raise NotImplementedError

    def driver_version(self) -> str:
        """Version of the library that talks to the broker."""
        return "N/A"

    @property
    def heartbeat_interval(self) -> float:
        """Seconds between heartbeats, as agreed on with the broker; 0 for none."""
        return self.settings.heartbeat if self.capabilities.heartbeats else 0

    @property
    def is_suspect(self) -> bool:
        """Whether half of the time is gone after which a silent broker is given up."""
        return False

    def heartbeat_check(self, connection: Any = None, rate: float = 2) -> None:
        """Send a heartbeat if one is due, and raise if the broker's are missing."""

    def qos_semantics_matches_spec(self, connection: Any = None) -> bool:
        """Whether a prefetch count without ``apply_global`` bounds the channel (AMQP), not a consumer (RabbitMQ)."""
        return True

    def fileno(self) -> int | None:
        """The descriptor to wait on before ``receive(0)``, if there is one.

        An event loop calls ``receive(0)`` at each of its turns too, so that it may ask for what is to come.
        """
        return None

    @property
    def look_interval(self) -> float | None:
        """Seconds after which ``receive(0)`` is to be called again though the descriptor tells of nothing, if so."""
        return None

    # --- what programs ask about it, and event loops

    @property
    def client(self) -> Any:
        """The ``Connection`` that it was made for, if that is still there."""
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
        """What a URL that leaves it out stands for, by the names of ``Connection``'s parameters."""
        return {"port": self.default_port, "hostname": "localhost"}

    def establish_connection(self) -> Any:
        """Connect, if that was not done yet. Returns the transport."""
        if not self.connected:
            self.connect()
        return self

    def close_connection(self, connection: Any) -> None:
        """Close the connection."""
        self.close()

    def create_channel(self, connection: Any) -> Any:
        """Return a new channel of the ``Connection`` that it was made for."""
        return self.client.channel()

    def drain_events(self, connection: Any, **kwargs: Any) -> Any:
        """Wait for one event and run its callback, as the ``Connection`` does."""
        return self.client.drain_events(**kwargs)

    def verify_connection(self, connection: Any) -> bool:
        """Return whether the connection is open."""
        return self.connected

    def get_heartbeat_interval(self, connection: Any) -> float:
        """Return the seconds between heartbeats, 0 for none."""
        return self.heartbeat_interval

    @property
    def supports_heartbeats(self) -> bool:
        """Whether it has heartbeats."""
        return self.capabilities.heartbeats

    @property
    def supports_ev(self) -> bool:
        """Whether an event loop can wait for its events."""
        return self.capabilities.asynchronous

    @property
    def manager(self) -> Any:
        """What administers the broker."""
        return self.get_manager()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let a ``Hub`` run the callbacks of what arrives. Nothing where the transport is not asynchronous."""
        if self.capabilities.asynchronous:
            self.unregister_from_event_loop(connection, self.event_loop)
            tick = partial(self._on_tick, connection, loop)
            loop.on_tick.add(tick)
            loop.on_close.add(self._on_loop_closed)
            self._registered = (loop, tick, None)
            self._watch()

    @property
    def event_loop(self) -> Any:
        """The loop that it is registered with, or None."""
        return None if self._registered is None else self._registered[0]

    def unregister_from_event_loop(self, connection: Any, loop: Any) -> None:
        """Undo it."""
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
        """Run the callbacks of one event, if one has arrived, and have the loop turn again at once.

        One at a turn: what a callback asks the loop for, such as an ack after the task, is done before the next one.
        """
        client = self.client
        if client is None:
            return
        if client.drain(0):
            loop.call_soon(self._turn)

    #: Whether ``interrupt`` ends a wait, so that a thread may wait in ``receive`` and do what others ask of it.
    can_interrupt: ClassVar[bool] = False

    def interrupt(self) -> None:
        """Have a ``receive`` that waits in another thread, or the next one, return soon. Never waits itself."""

    def get_manager(self) -> Management:
        """What administers the broker."""
        return Management(self)

    def list_queues(self, channel: int) -> Sequence[QueueStatus]:
        """All queues. Raises AMQPNotImplementedError where a broker cannot list them."""
        raise exceptions.AMQPNotImplementedError(f"the {self.driver_type} transport cannot list its queues")

    # --- channels

    def open_channel(self, above: int = 0) -> int:
        """Open a channel and return its number, 1 to 65535. Raises ResourceError when none is left.

        It takes the place of one whose delivery tags went up to ``above``: its own are higher, if they are numbers.
        """
        raise NotImplementedError

    def close_channel(self, channel: int) -> None:
        """Close a channel: its consumers end, messages not settled go back to their queues."""
        raise NotImplementedError

    def highest_tag(self, channel: int) -> int:
        """The highest delivery tag of a channel, also when the connection is lost; 0 where tags are no numbers."""
        return 0

    def channel_is_open(self, channel: int) -> bool:
        """Whether a channel that was opened is open still: where brokers close them for an error."""
        return True

    def qos(self, channel: int, prefetch_size: int, prefetch_count: int, apply_global: bool) -> None:
        """Bound the messages that are delivered and not settled (0: no bound)."""
        raise NotImplementedError

    def gate(self, channel: int, may_take: Callable[[], Any] | None) -> None:
        """Ask ``may_take`` before each message that is taken from a queue; None to ask no more. Nothing by default."""

    def successor_count(self, channel: int, consumer_tag: str, prefetch_count: int, apply_global: bool) -> int | None:
        """Return what a running consumer has to be replaced with to get by with a prefetch count that was just set.

        None if it need not be: ``qos`` is for running consumers too, or it has about that.
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
        """Start a consumer in the place of another, with its messages in their order and a prefetch count of its own.

        What was delivered to the other one stays to be settled, and what is not received yet comes to the new one.
        """
        raise exceptions.AMQPNotImplementedError(f"the {self.driver_type} transport replaces no consumers")

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

    def publish(
        self,
        channel: int,
        delivery: Delivery,
        mandatory: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Hand a message to the broker, within ``timeout`` seconds. It may keep ``delivery``.

        Where the broker confirms what it takes, wait for that, at most ``confirm_timeout`` seconds (None: ``timeout``).
        A mandatory one that no queue takes comes back as a ``Returned`` event; or as MessageReturned, where it is known
        at once whether one does. Raises NotFound for an unknown exchange, MessageNacked where the broker refuses it.
        """
        raise NotImplementedError

    def confirm(self, channel: int) -> None:
        """Have each publish on a channel wait until the broker has the message. Nothing where they do anyway."""

    def publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> list[tuple[int, Exception]]:
        """Publish one or more in order; returns those refused, as (index, exception)."""
        refused: list[tuple[int, Exception]] = []
        for index, delivery in enumerate(deliveries):
            try:
                self.publish(channel, delivery, mandatory, timeout)
            except (exceptions.MessageNacked, exceptions.ChannelError) as error:
                refused.append((index, error))
        return refused

    def prepare_via(
        self, channel: int, via: Any, delivery: Delivery, mandatory: bool = False
    ) -> Callable[[], Coroutine[Any, Any, None] | None]:
        """Return what publishes within a transaction of the caller's, on the database that is the broker.

        It is called by the thread, or on the event loop, that has the transaction, and returns a coroutine where the
        caller's library is asynchronous.
        """
        raise exceptions.AMQPNotImplementedError(f"the {self.driver_type} transport cannot publish via a transaction")

    def take_returned(self, channel: int) -> Sequence[Returned]:
        """Take the messages that came back on a channel out of what ``receive`` would give."""
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
        """Start a consumer and return its tag, chosen here for ``""``. Raises NotFound, AccessRefused, NotAllowed."""
        raise NotImplementedError

    def cancel(self, channel: int, consumer_tag: str) -> Sequence[Delivery] | None:
        """End a consumer, if there is one. What was delivered to it stays to be settled.

        Returns what has come for it and cannot go back, since it needs no ack; None for nothing.
        """
        raise NotImplementedError

    def get(self, channel: int, queue: str, no_ack: bool) -> Delivery | None:
        """The next message of a queue, or None. Raises NotFound."""
        raise NotImplementedError

    def fast_ack(self, channel: int) -> Callable[[Any], bool] | None:
        """What acks one delivery of an open channel for less than ``settle`` takes; None if nothing does.

        It returns False where ``settle`` has to be asked: the tag is not outstanding, or there is more to do.
        """
        return None

    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> None:
        """Say what becomes of a delivery, and with ``multiple`` of all before it on the channel.

        Raises PreconditionFailed for a tag that is not outstanding.
        """
        raise NotImplementedError

    def settle_many(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome) -> None:
        """Say what becomes of some deliveries of a channel, and of no others; in one step where that can be.

        ``delivery_tags``: one or more, each of them once.
        Raises PreconditionFailed for a tag that is not outstanding.
        """
        for tag in delivery_tags:
            self.settle(channel, tag, outcome)

    def delivery_limit(self, arguments: Mapping[str, Any]) -> int | None:
        """Return the failed deliveries after which the broker drops a message of a queue with these arguments."""
        return None

    def note_failure(self, channel: int, delivery_tag: Any) -> None:
        """Note that a delivery has failed: if it is not settled, it counts as failed when the channel is closed."""

    def recover(self, channel: int) -> None:
        """Put all that is outstanding on the channel back into its queues."""
        raise NotImplementedError

    #: The next event if there is no need to wait for it, or None: where that costs less than ``receive``.
    poll_ready: Callable[[], Event | None] | None = None

    def receive(self, timeout: float | None) -> Sequence[Event]:
        """Wait for events, at most ``timeout`` seconds (None: until there is one); empty if there was none.

        Raises OperationalError where ``timeout`` is None and no event can ever come.
        """
        raise NotImplementedError
