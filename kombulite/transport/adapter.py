"""Transports written for kombu's interface, under kombulite's facade.

``Connection`` uses kombulite's own transports directly, and every other class through ``AdaptedTransport``. Programs
see the transport's own objects: ``connection.channel()`` returns the channel that the transport made, and
``connection.transport`` is an instance of its class. What the facade needs of a channel (publishing with hooks and
counters, batches, consumers that come back with the connection) is kept beside it, in an ``AdaptedChannel``.

No callback of a program runs inside a transport's ``drain_events``: what arrives is queued there, and dispatched one
message at a time afterwards. So an exception of a callback neither passes for an empty queue nor drops the rest of a
batch that the transport has read.

Longer than other modules: channels, transports and messages of others are adapted together.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from threading import get_ident
from time import monotonic
from typing import Any

from kombulite import exceptions
from kombulite._client.lifecycle import State
from kombulite._client.session import ChannelSession
from kombulite._core import GATHERED, Delivery, ForeignPublish, Properties, declaration_key, is_channel_open
from kombulite._sync.channel import Channel, Subscription
from kombulite.abstract import Object
from kombulite.brokers import base
from kombulite.brokers.base import Capabilities, Outcome
from kombulite.message import Message
from kombulite.utils.records import NamedTuple

#: Where a channel of others keeps the facade's part.
ATTRIBUTE = "_kombulite_channel"

#: What became of a message, by its state.
OUTCOMES = {"ACK": Outcome.ACK, "REJECTED": Outcome.REJECT, "REQUEUED": Outcome.REQUEUE}

#: Seconds for which a connection that takes long to verify passes for verified.
VERIFIED_FOR = 2.0
SLOW_CHECK = 0.001  # seconds

NO_PROPERTIES = Properties()


class Arrived(NamedTuple):
    """Event: a message for a consumer of an adapted channel."""

    channel: int
    subscription: Subscription
    message: Any


class Drained(NamedTuple):
    """Event: the transport has dealt with something by itself."""

    channel: int = 0


DRAINED = (Drained(),)


class ChannelVerbs:
    """The verbs of ``brokers.base.Transport`` for one channel, in the forms that kombu calls a channel's methods."""

    confirms = False
    counts_failures = False
    held = None

    def __init__(self, raw: Any, on_error: Callable[[BaseException], None] | None = None) -> None:
        self.raw = raw
        self._step = ForeignPublish(raw, on_error)

    def publish(
        self,
        channel: int,
        delivery: Delivery,
        mandatory: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> Any:
        """Publish a message; returns what the transport returns."""
        return self._step.publish(channel, delivery, mandatory, timeout, confirm_timeout)

    def publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> list[tuple[int, Exception]]:
        """Publish some messages, together where the transport can; returns those refused, as (index, exception)."""
        refused: list[tuple[int, Exception]] = []
        for index, delivery in enumerate(deliveries):
            try:
                self.publish(channel, delivery, mandatory, timeout)
            except (exceptions.MessageNacked, exceptions.ChannelError) as error:
                refused.append((index, error))
        return refused

    def begin_publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> None:
        """Begin nothing: what is published is sent at once."""

    def qos(self, channel: int, prefetch_size: int, prefetch_count: int, apply_global: bool) -> None:
        """Bound the messages that are delivered and not settled."""
        self.raw.basic_qos(prefetch_size, prefetch_count, apply_global)

    def successor_count(self, channel: int, consumer_tag: str, prefetch_count: int, apply_global: bool) -> None:
        """Return None: no running consumer has to be replaced."""

    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> None:
        """Say what becomes of a delivery."""
        if outcome is Outcome.ACK:
            self.raw.basic_ack(delivery_tag, multiple=multiple)
        else:
            self.raw.basic_reject(delivery_tag, requeue=outcome is Outcome.REQUEUE)

    def settle_many(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome) -> None:
        """Say what becomes of some deliveries."""
        for tag in delivery_tags:
            self.settle(channel, tag, outcome)

    def confirm(self, channel: int) -> None:
        """Have publishes confirmed, where the channel can do that."""
        select = getattr(self.raw, "confirm_select", None)
        if select is not None:
            select()

    def take_returned(self, channel: int) -> Sequence[Any]:
        """Return nothing: the channel has its own events for returned messages."""
        return ()

    def fast_publish(self, channel: int) -> ForeignPublish:
        """Return what publishes in one compiled step."""
        return self._step

    def fast_ack(self, channel: int) -> None:
        """Return nothing: there is no faster way to acknowledge."""

    def highest_tag(self, channel: int) -> int:
        """Return 0: the tags need not be numbers."""
        return 0

    def delivery_limit(self, arguments: Mapping[str, Any]) -> None:
        """Return nothing: no limit of the broker's is known."""

    def note_failure(self, channel: int, delivery_tag: Any) -> None:
        """Do nothing: failed deliveries are counted in the messages."""

    def channel_is_open(self, channel: int) -> bool:
        """Return whether the channel is open."""
        return is_channel_open(self.raw)

    def close_channel(self, channel: int) -> None:
        """Close the channel."""
        self.raw.close()


def _delivery_of(body: Any) -> Delivery:
    """Return what counts a message whose body this is."""
    return Delivery("", "", NO_PROPERTIES, body if isinstance(body, (bytes, str)) else b"")


class AdaptedChannel(Channel):
    """The facade's part of a channel that a transport of others made. ``raw``: that channel."""

    def __init__(self, connection: Any, transport: AdaptedTransport | None, number: int, raw: Any) -> None:
        self.raw = raw
        self._adapted = transport
        #: Consumers of the facade, by tag.
        self.consumers: dict[str, Any] = {}
        super().__init__(connection, self._verbs(), number)  # type: ignore[arg-type]

    def _verbs(self) -> ChannelVerbs:
        return ChannelVerbs(self.raw, None if self._adapted is None else self._adapted.note_error)

    def __getattr__(self, name: str) -> Any:
        # A message of a batch has this for its channel, and its class may need more of the transport's.
        return getattr(self.raw, name)

    @property
    def public(self) -> Any:
        """The channel that programs see."""
        return self.raw

    @property
    def is_borrowed(self) -> bool:
        """Whether no ``Connection`` made it: it may stand in for a channel, as a mock does."""
        return self._adapted is None

    @property
    def is_hooked(self) -> bool:
        """Whether there are hooks around publishing."""
        return self._hooks is not None

    def publish_prepared(self, message: Any, body: Any, options: dict[str, Any]) -> Any:
        """Publish what the transport's ``prepare_message`` made of a body; returns what the transport returns."""
        delivery = _delivery_of(body)
        result = None
        try:
            result = self.raw.basic_publish(message, **options)
        except Exception as error:
            if self._adapted is not None:
                self._adapted.note_error(error)
            self.publish_raised(error, delivery)
        else:
            self._tally.count_published(delivery, False)
        return result

    def listen_for_returned(self, listener: Callable[..., Any]) -> None:
        """Call a listener for each message that comes back, by the channel's own events too."""
        super().listen_for_returned(listener)
        with suppress(AttributeError, KeyError, TypeError):  # it may have no such events
            self.raw.events["basic_return"].add(listener)

    # --- consuming

    def receiver(self, consumer: Any, consumer_tag: str, queue: str, no_ack: bool, receive: Callable[..., Any]) -> Any:
        """Register a consumer of the facade; returns the callback for the channel's ``basic_consume``."""
        subscription = Subscription(Message, self, self._tally, queue, no_ack, receive, None, False, None)
        self._observe(subscription)
        self._subscriptions[consumer_tag] = subscription
        self.consumers[consumer_tag] = consumer
        if self._adapted is not None:
            session = self.session
            for other in list(session.channels.values()):
                if isinstance(other, AdaptedChannel) and not other.is_open:
                    session.remove(other)
            session.add(self)  # what arrives for it is dispatched by its number
        return partial(self._arrive, subscription)

    def _arrive(self, subscription: Subscription, message: Any) -> None:
        event = Arrived(self.channel_id, subscription, message)
        if self._adapted is None or not self._adapted.take(event):
            self.handle(event)

    def handle(self, event: Any) -> bool:
        """Run the callback that a message is for. Returns whether it was kept for a batch."""
        if not isinstance(event, Arrived):
            return super().handle(event)
        message = event.message
        convert = getattr(self.raw, "message_to_python", None)
        if convert is not None:
            message = convert(message)
        self._count(message)
        return event.subscription.run(message) is GATHERED

    def _count(self, message: Any) -> None:
        delivery = _delivery_of(getattr(message, "body", None))
        count = getattr(message, "delivery_count", 0)
        delivery.redelivered = isinstance(count, int) and count > 0
        self._tally.count_consumed(delivery)

    def count_settled(self, state: str) -> None:
        """Count a message that the program acknowledged, rejected or requeued."""
        self.session.count(OUTCOMES[state])

    def forget(self, consumer_tag: str) -> None:
        """Forget a consumer that was cancelled."""
        self._subscriptions.pop(consumer_tag, None)
        self.consumers.pop(consumer_tag, None)

    @property
    def _event_loop(self) -> Any:
        return None if self._adapted is None else self._adapted.event_loop

    @property
    def qos(self) -> Any:
        """What the channel has for it."""
        return self.raw.qos

    def tell_renames(self, consumer_tag: str, on_renamed: Callable[[str, str], Any]) -> None:
        """Do nothing: queues keep their names here."""

    # --- a lost connection

    def reopen(self, transport: Any) -> None:
        """Go on with a new channel of the transport."""
        self._adapted = transport.adapted
        self.raw = self._adapted.create_channel()
        attach(self.raw, self)
        self._join(self._verbs())  # type: ignore[arg-type]
        self.generation += 1
        self.is_open = True

    def resume(self, renamed: Mapping[str, str]) -> None:
        """Set the limits, and let the consumers of the facade declare and consume again."""
        for a_global, (size, prefetch_count) in self._limits.items():
            self.raw.basic_qos(size, prefetch_count, a_global)
        consumers = list(dict.fromkeys(self.consumers.values()))
        self._subscriptions.clear()
        self.consumers.clear()
        for consumer in consumers:
            consumer.revive(self.raw)


def attach(raw: Any, channel: AdaptedChannel) -> None:
    """Note the facade's part of a channel in the channel, if it has a place for it."""
    own = getattr(raw, "__dict__", None)
    if own is not None:
        own[ATTRIBUTE] = channel


def facade_channel(channel: Any) -> Channel:
    """Return the facade's part of a channel: of one of others it is made when it is first asked for."""
    if isinstance(channel, Channel):
        return channel
    own = getattr(channel, "__dict__", None)
    known = None if own is None else own.get(ATTRIBUTE)
    if known is not None and known.raw is channel:
        found: AdaptedChannel = known
        return found
    client = getattr(getattr(channel, "connection", None), "client", None)
    transport = getattr(client, "_carrier", None)
    if isinstance(transport, AdaptedTransport):
        made = AdaptedChannel(client, transport, transport.open_channel(), channel)
    else:
        made = AdaptedChannel(BorrowedConnection(channel), None, 0, channel)
    attach(channel, made)
    return made


class BorrowedSession(ChannelSession):
    """The session of such a channel: its client remembers what was declared, and nothing comes in here."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        super().__init__(lambda: str(raw.connection.client.as_uri()))

    @property
    def declared(self) -> Any:
        """What the client has declared."""
        return self._raw.connection.client.declared_entities

    @declared.setter
    def declared(self, declared: set[Any]) -> None:
        """Leave it to the client."""

    def report_closed(self, channel: Any) -> None:
        """Do nothing: the client reports it."""


class BorrowedConnection:
    """What the facade needs of the connection of a channel that no ``Connection`` made, such as a mock."""

    hooks = None
    state = State.OPEN
    ensures_itself = True

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.session: ChannelSession = BorrowedSession(raw)

    @property
    def client(self) -> Any:
        """What the channel has for its client."""
        return self._raw.connection.client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw.connection.client, name)

    def maybe_declare(self, entity: Any, channel: Any = None, retry: bool = False, **retry_policy: Any) -> Any:
        """Declare an entity, unless the channel's client remembers that it was."""
        return maybe_declare(self._raw, entity, retry, retry_policy)

    def call_insured(self, obj: Any, policy: Any, fun: Callable[..., Any], *args: Any) -> Any:
        """Call a function as the client's ``ensure`` does."""
        return self.client.ensure(obj, fun, **policy._asdict())(*args)


def maybe_declare(raw: Any, entity: Any, retry: bool, retry_policy: Mapping[str, Any]) -> Any:
    """Declare an entity on a channel of others, unless its client remembers that it was. Returns whether it did.

    Raises RecoverableConnectionError if the channel has no connection any more, and neither has the entity's.
    """
    bound = entity if entity.is_bound else entity.bind(raw)
    if not retry:
        return _declare(entity, bound if isinstance(bound, Object) else entity, raw)  # as kombu calls a stand-in
    if raw.connection is not None and bound.channel.connection is None:  # it was declared before the connection's loss
        bound.revive(raw)
    if bound.channel.connection is None:
        raise exceptions.RecoverableConnectionError("channel disconnected")
    return bound.channel.connection.client.ensure(bound, partial(_declare, entity), **retry_policy)(bound, raw)


def _declare(given: Any, bound: Any, raw: Any) -> bool:
    if raw.connection is None:  # by a retry it may be bound anew
        raw = bound.channel
    if raw.connection is None:
        raise exceptions.RecoverableConnectionError("channel disconnected")
    declared = raw.connection.client.declared_entities if bound.can_cache_declaration else None
    # A stand-in for an entity has no attributes to compare, and kombu keeps hashes.
    key = declaration_key(bound) if isinstance(bound, Object) else hash(bound)
    if declared is not None and (key in declared or hash(bound) in declared):
        return False
    bound.declare(channel=raw)
    if not given.name:
        given.name = bound.name  # the broker's choice
    if declared is not None:
        declared.add(key)
    return True


class AdaptedTransport(base.Transport):
    """A transport of others, as the facade's ``Connection`` uses its own. ``raw``: that transport."""

    driver_type = "N/A"
    driver_name = "N/A"
    confirms = False

    def __init__(self, connection: Any, raw: Any) -> None:
        self._connection = connection
        self.raw = raw
        #: What ``establish_connection`` returned.
        self.link: Any = None
        self.drained: Any = None
        self._was_connected = self._is_lost = False
        self._verified_until = 0.0
        self._is_slow_to_verify = False
        self._numbers = count(1)
        self._arrivals: deque[Arrived] = deque()
        self._draining: int | None = None  # the thread that does
        self._process = os.getpid()
        self._keep_state()

    def _keep_state(self) -> None:
        """Go on with the exchanges and bindings that the connection knew before it was lost."""
        own = getattr(self.raw, "__dict__", {})
        state = own.get("state")
        if type(state).__name__ == "BrokerState" and not hasattr(type(self.raw), "global_state"):
            if self._connection.kept_state is None:
                self._connection.kept_state = state
            else:
                self.raw.state = self._connection.kept_state

    @property
    def is_unused(self) -> bool:
        """Whether it was not connected yet."""
        return self.link is None and not self._was_connected

    @property
    def adapted(self) -> AdaptedTransport:
        """This one: whatever stands around it."""
        return self

    @property
    def public(self) -> Any:
        """The transport that programs see."""
        return self.raw

    @property
    def public_connection(self) -> Any:
        """What programs see as ``connection.connection``."""
        return self.link

    # --- the connection

    def connect(self) -> None:
        """Open the connection."""
        self._was_connected = True
        self.link = self._connection._establish_connection()
        self._is_lost = False
        self._process = os.getpid()

    def close(self) -> None:
        """Close the connection."""
        link, self.link = self.link, None
        if link is not None:
            try:
                self.raw.close_connection(link)
            except (*self._connection.connection_errors, AttributeError, OSError):
                pass
        self.raw.client = None

    @property
    def closes_to_collect(self) -> bool:
        """Whether dropping the connection is the same as closing it: the transport knows no other way."""
        return os.getpid() == self._process and not hasattr(self.raw, "_collect")

    def collect(self) -> None:
        """Drop the connection, talking to the broker as little as the transport can."""
        link, self.link = self.link, None
        if os.getpid() == self._process and link is not None:
            collect = getattr(self.raw, "_collect", None)
            if collect is not None:
                collect(link)
            else:
                with suppress(Exception):  # a broken connection may fail in any way
                    self.raw.close_connection(link)
        self.raw.client = None

    @property
    def connected(self) -> bool:
        """Whether the connection is open, as far as the transport knows."""
        if self.link is None or self._is_lost:
            return False
        now = monotonic()
        if now < self._verified_until:
            return True
        is_verified = bool(self.raw.verify_connection(self.link))
        after = monotonic()
        was_slow, self._is_slow_to_verify = self._is_slow_to_verify, after - now > SLOW_CHECK
        if is_verified and was_slow and self._is_slow_to_verify:  # it asks the server; once may be chance
            self._verified_until = after + VERIFIED_FOR
        return is_verified

    def note_error(self, error: BaseException) -> None:
        """Note that the connection is lost, if the error says so."""
        if isinstance(error, self._connection.connection_errors) and not isinstance(error, exceptions.ChannelError):
            self._is_lost = True

    def driver_version(self) -> str:
        """Return the version of the library that talks to the broker."""
        version: str = self.raw.driver_version()
        return version

    @property
    def heartbeat_interval(self) -> float:
        """Seconds between heartbeats, 0 for none."""
        return self.raw.get_heartbeat_interval(self.link)  # type: ignore[no-any-return]

    def heartbeat_check(self, connection: Any = None, rate: float = 2) -> Any:
        """Send a heartbeat if one is due."""
        return self.raw.heartbeat_check(self.link, rate=rate)

    def qos_semantics_matches_spec(self, connection: Any = None) -> bool:
        """Return whether a prefetch count without ``apply_global`` bounds the channel."""
        return self.raw.qos_semantics_matches_spec(self.link)  # type: ignore[no-any-return]

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """What the transport says that it implements."""
        able = self.raw.implements
        get = able.get if isinstance(able, dict) else partial(getattr, able)
        types = get("exchange_type", ())
        return Capabilities(
            frozenset(types) if isinstance(types, Iterable) else frozenset(),
            get("heartbeats", False),
            get("asynchronous", False),
            get("batch_publish", False),
        )

    def get_manager(self, *args: Any, **kwargs: Any) -> Any:
        """Return what administers the broker."""
        return self.raw.get_manager(*args, **kwargs)

    # --- event loops

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let a hub run the callbacks of what arrives, as the transport does that."""
        self.raw.register_with_event_loop(self.link, loop)
        self._registered = (loop, None, None)

    def unregister_from_event_loop(self, connection: Any, loop: Any) -> None:
        """Undo it."""
        if self._registered is not None:
            hub, self._registered = self._registered[0], None
            if self.link is not None:
                self.raw.unregister_from_event_loop(self.link, hub)

    # --- channels and events

    def open_channel(self, tag_offset: int = 0) -> int:
        """Return a number for the facade's part of a channel."""
        return next(self._numbers)

    def create_channel(self, connection: Any = None) -> Any:
        """Return a new channel of the transport's."""
        return self.raw.create_channel(self.link)

    def take(self, event: Arrived) -> bool:
        """Keep a message that arrived while this thread drains. Returns False if it does not."""
        if self._draining != get_ident():
            return False
        self._arrivals.append(event)
        return True

    def poll_ready(self) -> Arrived | None:  # type: ignore[override]
        """Return the next message that has arrived, or None."""
        return self._arrivals.popleft() if self._arrivals else None

    def receive(self, timeout: float | None, **kwargs: Any) -> Sequence[Any]:
        """Have the transport wait for something; returns the next message, or a notice that something was done."""
        if self._arrivals:
            return (self._arrivals.popleft(),)
        if timeout is not None:
            kwargs["timeout"] = timeout
        before, self._draining = self._draining, get_ident()
        try:
            self.drained = self.raw.drain_events(self.link, **kwargs)
        except TimeoutError:
            self.drained = None
            if not self._arrivals:
                return ()
        except Exception as error:
            self.note_error(error)
            if not self._arrivals:
                raise
        finally:
            self._draining = before
        return (self._arrivals.popleft(),) if self._arrivals else DRAINED
