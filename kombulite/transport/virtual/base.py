"""Channels and connections over a store that is no broker: lists, tables, files.

A subclass of ``Channel`` implements the store (``_get``, ``_put``, ``_size``, ``_purge``, ...), one of ``Transport``
names it. Longer than other modules: kombu's users find, subclass and patch all of these names here, and a channel has
as many verbs and hooks as kombu gives it.
"""

from __future__ import annotations

import base64
import os
import socket  # noqa: F401 - programs replace it here, as in kombu's module
import warnings
from array import array
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from inspect import signature
from itertools import count
from multiprocessing.util import Finalize
from queue import Empty
from threading import Event
from time import monotonic, sleep
from typing import IO, Any, ClassVar, NamedTuple
from weakref import ref

from amqp.protocol import queue_declare_ok_t

from kombulite import exceptions
from kombulite.exceptions import (
    ChannelError,
    DecodeError,
    MessageReturned,
    NotFound,
    OperationalError,
    RecoverableConnectionError,
    ResourceError,
)
from kombulite.log import get_logger
from kombulite.transport import base
from kombulite.transport.virtual.exchange import STANDARD_EXCHANGE_TYPES
from kombulite.utils.div import emergency_dump_state
from kombulite.utils.encoding import bytes_to_str, str_to_bytes
from kombulite.utils.scheduling import FairCycle
from kombulite.utils.uuid import uuid

__all__ = [
    "AbstractChannel",
    "Base64",
    "BrokerState",
    "Channel",
    "Empty",
    "Management",
    "Message",
    "NotEquivalentError",
    "QoS",
    "Transport",
    "UndeliverableWarning",
    "binding_key_t",
    "queue_binding_t",
]

ARRAY_TYPE_H = "H"

UNDELIVERABLE_FMT = (
    "Message could not be delivered: No queues bound to exchange {exchange!r} using binding key {routing_key!r}.\n"
)
NOT_EQUIVALENT_FMT = (
    "Cannot redeclare exchange {0!r} in vhost {1!r} with different type, durable, autodelete or arguments value."
)
W_NO_CONSUMERS = "Requeuing undeliverable message for queue %r: No consumers."
RESTORING_FMT = "Restoring {0!r} unacknowledged message(s)"
RESTORE_PANIC_FMT = "UNABLE TO RESTORE {0} MESSAGES: {1}"

MIN_PAUSE, MAX_PAUSE = 0.0005, 0.05  # seconds between passes where no polling interval is set
IDLE_PASS = 0.001  # seconds: a pass that took longer has waited in the store

logger = get_logger("kombu.transport.virtual.base")


class Base64:
    """Bytes as text."""

    def encode(self, s: str | bytes) -> str:
        """Return base64 of bytes, or of text in UTF-8.

        Args:
            s: The text or the bytes.
        """
        return bytes_to_str(base64.b64encode(str_to_bytes(s)))

    def decode(self, s: str | bytes) -> bytes:
        """Return the bytes of base64.

        Args:
            s: The text or the bytes.
        """
        return base64.b64decode(str_to_bytes(s))


class NotEquivalentError(exceptions.NotEquivalentError):
    """An exchange is declared again with other settings.

    Args:
        *args: The text, which is the one argument as in kombu; arguments of ``AMQPError`` behind it.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.args = args[:1]


class UndeliverableWarning(UserWarning):
    """A message found no queue and goes to the one of dead letters."""


class _UnknownExchange(NotFound, KeyError):
    """An exchange was not declared. As kombu raises it, a KeyError too."""

    __str__ = NotFound.__str__


class binding_key_t(NamedTuple):  # noqa: N801 - kombu's name
    """Key of a binding.

    Attributes:
        queue: Name of the queue.
        exchange: Name of the exchange.
        routing_key: The routing key.
    """

    queue: str
    exchange: str
    routing_key: str


class queue_binding_t(NamedTuple):  # noqa: N801 - kombu's name
    """A binding of a queue.

    Attributes:
        exchange: Name of the exchange.
        routing_key: The routing key.
        arguments: Arguments of the binding.
    """

    exchange: str
    routing_key: str
    arguments: Any


class BrokerState:
    """The exchanges and bindings that a connection, or a process, knows.

    Args:
        exchanges: Exchanges by name; None: none.
    """

    exchanges: Any = None
    bindings: Any = None
    queue_index: Any = None

    def __init__(self, exchanges: dict[str, Any] | None = None) -> None:
        self.exchanges = {} if exchanges is None else exchanges
        self.bindings = {}
        self.queue_index = defaultdict(set)

    def clear(self) -> None:
        """Forget all."""
        self.exchanges.clear()
        self.bindings.clear()
        self.queue_index.clear()

    def has_binding(self, queue: str, exchange: str, routing_key: str) -> bool:
        """Return whether there is such a binding.

        Args:
            queue: Name of the queue.
            exchange: Name of the exchange.
            routing_key: The routing key.
        """
        return (queue, exchange, routing_key) in self.bindings

    def binding_declare(self, queue: str, exchange: str, routing_key: str, arguments: Mapping[str, Any] | None) -> None:
        """Note a binding. If it is there already, its arguments stay.

        Args:
            queue: Name of the queue.
            exchange: Name of the exchange.
            routing_key: The routing key.
            arguments: Arguments of the binding.
        """
        key = binding_key_t(queue, exchange, routing_key)
        self.bindings.setdefault(key, arguments)
        self.queue_index[queue].add(key)

    def binding_delete(self, queue: str, exchange: str, routing_key: str) -> None:
        """Forget a binding, if there is one.

        Args:
            queue: Name of the queue.
            exchange: Name of the exchange.
            routing_key: The routing key.
        """
        key = binding_key_t(queue, exchange, routing_key)
        if key in self.bindings:
            del self.bindings[key]
            self.queue_index[queue].discard(key)

    def queue_bindings_delete(self, queue: str) -> None:
        """Forget all bindings of a queue.

        Args:
            queue: Name of the queue.
        """
        for key in self.queue_index.pop(queue, ()):
            self.bindings.pop(key, None)

    def queue_bindings(self, queue: str) -> Iterable[queue_binding_t]:
        """Give the bindings of a queue.

        Args:
            queue: Name of the queue.
        """
        keys = self.queue_index.get(queue, ())
        return (queue_binding_t(key.exchange, key.routing_key, self.bindings[key]) for key in keys)


class QoS:
    """The messages of a channel that were delivered and not settled, and how many there may be.

    Args:
        channel: The channel.
        prefetch_count: Maximum number of unacknowledged messages; 0: no limit.
    """

    prefetch_count = 0

    #: Whether they are put back when the channel is closed, or is dropped.
    restore_at_shutdown = True

    _delivered: Any = None
    _dirty: Any = None

    def __init__(self, channel: Channel, prefetch_count: int = 0) -> None:
        self.channel = channel
        self.prefetch_count = prefetch_count or 0
        self._delivered = OrderedDict()
        self._delivered.restored = False
        self._dirty = set()  # settled, perhaps by other threads, and not taken out of the other yet
        self._quick_ack = self._dirty.add
        self._quick_append = self._delivered.__setitem__
        self._process = os.getpid()
        # The interpreter's end restores too, but must not keep a channel that is dropped.
        self._on_collect = Finalize(self, _restore_at_exit, args=(ref(self),), exitpriority=1)

    def __del__(self) -> None:
        if getattr(self, "_delivered", None) and os.getpid() == getattr(self, "_process", None):
            try:
                self.restore_unacked_once()
            except Exception:
                logger.exception("cannot restore the messages of a channel that was dropped")

    def _unsettled(self) -> int:
        delivered, dirty = self._delivered, self._dirty
        return len(delivered) - sum(tag in delivered for tag in list(dirty)) if dirty else len(delivered)

    def can_consume(self) -> bool:
        """Return whether another message may be delivered."""
        return not self.prefetch_count or self._unsettled() < self.prefetch_count

    def can_consume_max_estimate(self) -> int | None:
        """Return how many messages may be delivered; None for no limit."""
        return max(self.prefetch_count - self._unsettled(), 0) if self.prefetch_count else None

    def append(self, message: Message, delivery_tag: object) -> None:
        """Note a delivery. Called by the thread that drains.

        Args:
            message: The message.
            delivery_tag: The delivery tag.
        """
        if self._dirty:
            self._flush()
        self._quick_append(delivery_tag, message)

    def get(self, delivery_tag: object) -> Any:
        """Return the message of a tag.

        Args:
            delivery_tag: The delivery tag.

        Raises:
            KeyError: The tag is unknown.
        """
        return self._delivered[delivery_tag]

    def _flush(self) -> None:
        while self._dirty:
            self._delivered.pop(self._dirty.pop(), None)

    def ack(self, delivery_tag: object) -> None:
        """Note that a message is settled. May be called by any thread.

        Args:
            delivery_tag: The delivery tag.
        """
        self._quick_ack(delivery_tag)
        self._wake()

    def reject(self, delivery_tag: object, requeue: bool = False) -> None:
        """Drop a message, or put it back.

        Args:
            delivery_tag: The delivery tag.
            requeue: If True, put it back into its queue.

        Raises:
            KeyError: The tag of a message to put back is unknown.
        """
        if requeue:
            self.channel._restore_at_beginning(self._delivered[delivery_tag])
        self._quick_ack(delivery_tag)
        self._wake()

    def _wake(self) -> None:
        settled = getattr(getattr(self.channel, "connection", None), "_settled", None)
        if isinstance(settled, Event) and not settled.is_set():
            settled.set()

    def restore_unacked(self) -> list[tuple[BaseException, Any]]:
        """Put all back that is not settled; returns those that could not be, as (error, message)."""
        self._flush()
        delivered, errors = self._delivered, []
        restore = self.channel._restore
        # Into a store that appends they go in their order; an own ``_restore`` gets them as kombu gives them.
        appends = getattr(restore, "__func__", None) is Channel._restore
        while delivered:
            try:
                tag, message = delivered.popitem(last=False) if appends else delivered.popitem()
            except (KeyError, TypeError):
                try:
                    tag, message = delivered.popitem()
                except KeyError:
                    break
            try:
                restore(message)
            except BaseException as error:
                if tag not in self._dirty:  # else another thread settled it meanwhile
                    errors.append((error, message))
        delivered.clear()
        return errors

    def restore_unacked_once(self, stderr: IO[str] | None = None) -> None:
        """Put back what is not settled, the first time that it is called. What cannot be put back goes to a file.

        Args:
            stderr: File for what is reported; None: the standard error.
        """
        self._on_collect.cancel()
        if os.getpid() != self._process:
            return  # a forked child's copy: they are its parent's
        self._flush()
        state = self._delivered
        if not self.restore_at_shutdown or not self.channel.do_restore or getattr(state, "restored", None):
            return
        try:
            if state:
                self._report(RESTORING_FMT.format(len(state)), stderr, logger.info)
                if unrestored := self.restore_unacked():
                    errors, messages = zip(*unrestored, strict=True)
                    self._report(RESTORE_PANIC_FMT.format(len(errors), errors), stderr, logger.error)
                    emergency_dump_state([message.serializable() for message in messages], stderr=stderr)
        finally:
            state.restored = True

    @staticmethod
    def _report(text: str, stderr: Any, log: Callable[[str], Any]) -> None:
        if stderr is None:
            log(text)
        else:
            print(text, file=stderr)

    def restore_visible(self, *args: object, **kwargs: object) -> None:
        """Put back what others have held for too long. For stores that lease messages.

        Args:
            *args: Arguments of the store.
            **kwargs: Keyword arguments of the store.
        """


def _restore_at_exit(qos: ref[QoS]) -> None:
    alive = qos()
    if alive is not None:
        alive.restore_unacked_once()


class Message(base.Message):
    """A message as the store keeps it: an envelope, a dict of ``body``, ``headers``, ``properties``, ...

    An envelope that cannot be read becomes a message with ``errors``, which the consumer gets: the store may have no
    other copy.

    Args:
        payload: The envelope.
        channel: The channel.
        **kwargs: Keyword arguments of ``kombulite.message.Message``.
    """

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        self._raw = payload
        self._source_queue: str | None = None
        properties = payload.get("properties") or {}
        body, problem = payload.get("body"), None
        if body:
            try:
                body = channel.decode_body(body, properties.get("body_encoding"))
            except Exception as error:
                problem = error
        super().__init__(
            body=body,
            channel=channel,
            delivery_tag=properties.get("delivery_tag") or uuid(),
            content_type=payload.get("content-type"),
            content_encoding=payload.get("content-encoding"),
            headers=payload.get("headers"),
            properties=properties,
            delivery_info=properties.get("delivery_info"),
            postencode="utf-8",
            **kwargs,
        )
        if problem is not None:
            self.note_error(DecodeError(f"cannot decode a body: {problem!r}"))

    def serializable(self) -> dict[str, Any]:
        """Return the envelope."""
        properties = self.properties
        if self.errors and isinstance(self._raw, dict):  # what could not be read goes back as it was
            return {**self._raw, "properties": properties}
        body, _ = self.channel.encode_body(self.body, properties.get("body_encoding"))
        headers = dict(self.headers)
        headers.pop("compression", None)
        return {
            "body": body,
            "properties": properties,
            "content-type": self.content_type,
            "content-encoding": self.content_encoding,
            "headers": headers,
        }

    @property
    def delivery_count(self) -> int:
        """Number of deliveries after which it came back; 0 for the first time."""
        count = self.properties.get("delivery_count")
        if isinstance(count, int):
            return count
        return int(bool(isinstance(self._raw, dict) and self._raw.get("redelivered")))


class AbstractChannel:
    """Methods that a subclass of ``Channel`` implements for its store."""

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        """Take the next envelope of a queue. Raises Empty."""
        raise NotImplementedError("Virtual channels must implement _get")

    def _put(self, queue: str, message: Any) -> Any:
        """Add an envelope to a queue."""
        raise NotImplementedError("Virtual channels must implement _put")

    def _purge(self, queue: str) -> int:
        """Remove all from a queue; returns how many."""
        raise NotImplementedError("Virtual channels must implement _purge")

    def _size(self, queue: str) -> int:
        """Return how many messages wait in a queue."""
        return 0

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        """Delete a queue. By default it is emptied."""
        self._purge(queue)

    def _new_queue(self, queue: str, **kwargs: Any) -> Any:
        """Create a queue, unless it is there. Nothing by default."""

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        """Return whether there is a queue."""
        return True

    def _poll(self, cycle: Any, callback: Callable[..., Any], timeout: float | None = None) -> Any:
        """Deliver one message of the active queues. Raises Empty."""
        return cycle.get(callback)

    def _get_and_deliver(self, queue: str, callback: Callable[[Any, str], Any]) -> None:
        message = self._get(queue)
        callback(message, queue)


class _Recipients:
    """The consumers of one queue on a connection, which get its messages in turn."""

    def __init__(self) -> None:
        self.consumers: list[tuple[Channel, str, Callable[[Any], Any]]] = []

    def add(self, channel: Channel, consumer_tag: str, callback: Callable[[Any], Any]) -> None:
        """Add a consumer."""
        self.consumers.append((channel, consumer_tag, callback))

    def remove(self, channel: Channel, consumer_tag: str) -> None:
        """Remove a consumer."""
        self.consumers = [each for each in self.consumers if each[:2] != (channel, consumer_tag)]

    def __call__(self, raw_message: Any) -> Any:
        consumers = self.consumers
        if len(consumers) == 1:
            return consumers[0][2](raw_message)
        chosen = next((each for each in consumers if each[0].qos.can_consume()), consumers[0])
        self.consumers = [*(each for each in consumers if each is not chosen), chosen]
        return chosen[2](raw_message)


class Channel(AbstractChannel, base.StdChannel):
    """A channel over a store.

    Args:
        connection: The ``Transport``.
        **kwargs: Ignored; kept for compatibility.
    """

    Message: Any = Message
    QoS: Any = QoS

    #: Whether messages that are not acknowledged are put back when the channel closes.
    do_restore = True
    exchange_types: Any = dict(STANDARD_EXCHANGE_TYPES)  # noqa: RUF012 - subclasses replace it

    #: Whether the store has fanout: then it is told of all bindings.
    supports_fanout: Any = False
    codecs: ClassVar[dict[str, Any]] = {"base64": Base64()}
    body_encoding: str | None = "base64"
    _delivery_tags = count(1)

    #: Where messages go that no queue is bound for.
    deadletter_queue: str | None = None

    #: Transport options that become attributes of the channel.
    from_transport_options: Any = ("body_encoding", "deadletter_queue")

    default_priority = 0
    min_priority = 0
    max_priority = 9

    def __init__(self, connection: Any, **kwargs: object) -> None:
        self.connection = connection
        self._consumers: set[str] = set()
        self._cycle: Any = None
        self._tag_to_queue: dict[str, str] = {}
        self._active_queues: list[str] = []
        self._qos: Any = None
        self.closed = False
        self.exchange_types = {name: cls(self) for name, cls in self.exchange_types.items()}
        self.channel_id = self._get_free_channel_id()
        options = connection.client.transport_options or {}
        for name in self.from_transport_options:
            if name in options:
                setattr(self, name, options[name])

    def _check_open(self) -> None:
        if self.closed:
            raise RecoverableConnectionError("channel already closed")

    # --- exchanges

    def exchange_declare(
        self,
        exchange: str | None = None,
        type: str = "direct",
        durable: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        nowait: bool = False,
        passive: bool = False,
    ) -> None:
        """Create an exchange, or with ``passive`` assert it.

        Args:
            exchange: Name of the exchange; None: that of RabbitMQ's exchange of the type (``amq.direct``).
            type: Name of the exchange's type.
            durable: Kept and compared; the store decides what survives.
            auto_delete: If True, it is deleted after its last use, where the transport does so.
            arguments: Arguments under the broker's names; None: none.
            nowait: Ignored: there is no answer to wait for.
            passive: If True, only check that it exists.

        Raises:
            ChannelError: With ``passive``: it does not exist.
            NotEquivalentError: It exists with other settings.
        """
        self._check_open()
        type = type or "direct"
        exchange = exchange or f"amq.{type}"
        exchanges = self.state.exchanges
        if passive:
            if exchange not in exchanges:
                raise self._not_found("exchange", exchange)
        elif exchange in exchanges:
            before = exchanges[exchange]
            if not self.typeof(exchange).equivalent(before, exchange, type, durable, auto_delete, arguments):
                raise NotEquivalentError(NOT_EQUIVALENT_FMT.format(exchange, self._virtual_host))
        else:
            exchanges[exchange] = {
                "type": type,
                "durable": durable,
                "auto_delete": auto_delete,
                "arguments": arguments or {},
                "table": [],
            }

    @property
    def _virtual_host(self) -> str:
        return self.connection.client.virtual_host or "/"

    def _not_found(self, kind: str, name: str) -> ChannelError:
        text = f"NOT_FOUND - no {kind} {name!r} in vhost {self._virtual_host!r}"
        return ChannelError(text, (50, 10), f"Channel.{kind}_declare", "404")  # type: ignore[arg-type]

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange, and those of its queues that are empty.

        Args:
            exchange: Name of the exchange.
            if_unused: Ignored; kept for compatibility.
            nowait: Ignored: there is no answer to wait for.

        Raises:
            KeyError: The exchange is unknown.
        """
        for _, _, queue in list(self.get_table(exchange)):
            self.queue_delete(queue, if_unused=True, if_empty=True)
        self.state.exchanges.pop(exchange, None)

    def exchange_bind(
        self,
        destination: str,
        source: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Raise NotImplementedError: exchanges are bound to queues only.

        Args:
            destination: The exchange that is bound.
            source: The exchange to bind to.
            routing_key: The routing key.
            nowait: Ignored: there is no answer to wait for.
            arguments: Arguments of the binding.
        """
        raise NotImplementedError("transport does not support exchange_bind")

    def exchange_unbind(
        self,
        destination: str,
        source: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Raise NotImplementedError: exchanges are bound to queues only.

        Args:
            destination: The exchange that is bound.
            source: The exchange to bind to.
            routing_key: The routing key.
            nowait: Ignored: there is no answer to wait for.
            arguments: Arguments of the binding.
        """
        raise NotImplementedError("transport does not support exchange_unbind")

    # --- queues

    def queue_declare(self, queue: str | None = None, passive: bool = False, **kwargs: object) -> Any:
        """Create a queue, or with ``passive`` assert it: (queue, message_count, consumer_count).

        Args:
            queue: Name of the queue; None: a new name.
            passive: If True, only check that it exists.
            **kwargs: Options of the queue, for the store.

        Raises:
            ChannelError: With ``passive``: it does not exist.
        """
        self._check_open()
        queue = queue or f"amq.gen-{uuid()}"
        if not passive:
            self._new_queue(queue, **kwargs)
        elif not self._is_there(queue, **kwargs):
            raise self._not_found("queue", queue)
        elif _is_inherited(self, "_has_queue"):
            self._new_queue(queue, **kwargs)  # nobody knows whether it is there, and asking must not fail for that
        return queue_declare_ok_t(queue, self._size(queue), 0)

    def _is_there(self, queue: str, **kwargs: Any) -> bool:
        try:
            signature(self._has_queue).bind(queue, **kwargs)
        except TypeError:  # kombu's ZooKeeper takes the name only
            return self._has_queue(queue)
        return self._has_queue(queue, **kwargs)

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: object) -> Any:
        """Delete a queue and its bindings.

        Args:
            queue: Name of the queue.
            if_unused: If True, keep it if it is in use.
            if_empty: If True, keep it if messages wait in it.
            **kwargs: Options of the store.
        """
        self._check_open()
        if if_empty and self._size(queue):
            return
        bindings = list(self.state.queue_bindings(queue))
        for exchange, routing_key, arguments in bindings:
            meta = self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments)
            self._delete(queue, exchange, *meta, **kwargs)
            table = (self.state.exchanges.get(exchange) or {}).get("table")
            if isinstance(table, list):  # else what is published goes on to the deleted queue
                table[:] = [entry for entry in table if entry[2] != queue]
        if not bindings and not if_unused:
            self._delete_unbound(queue, **kwargs)
        self.state.queue_bindings_delete(queue)

    def _delete_unbound(self, queue: str, **kwargs: Any) -> None:
        """Delete a queue of the default exchange, or one that another process has bound."""
        if _is_inherited(self, "_delete") and _is_inherited(self, "_purge"):
            return
        self._delete(queue, "", queue, None, queue, **kwargs)

    def after_reply_message_received(self, queue: str) -> None:
        """Delete a reply queue, unless it holds the replies to another call.

        Args:
            queue: Name of the queue.
        """
        if not self._size(queue):
            self.queue_delete(queue)

    def queue_bind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        """Bind a queue to an exchange.

        Args:
            queue: Name of the queue.
            exchange: Name of the exchange; None: ``amq.direct``.
            routing_key: The binding's key.
            arguments: Arguments of the binding.
            **kwargs: Ignored; kept for compatibility.

        Raises:
            NotFound: The exchange is unknown; the error is a KeyError too.
        """
        self._check_open()
        exchange = exchange or "amq.direct"
        state = self.state
        if state.has_binding(queue, exchange, routing_key):
            return
        if exchange not in state.exchanges:
            raise _UnknownExchange(f"NOT_FOUND - no exchange '{exchange}'", (50, 20), "Queue.bind", 404)
        table = state.exchanges[exchange].setdefault("table", [])
        state.binding_declare(queue, exchange, routing_key, arguments)
        meta = self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments)
        table.append(meta)
        if self.supports_fanout:
            self._queue_bind(exchange, *meta)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: Any, queue: str) -> Any:
        raise NotImplementedError("a channel with fanout must implement _queue_bind")

    def _put_fanout(self, exchange: str, message: Any, routing_key: str, **kwargs: Any) -> Any:
        raise NotImplementedError("a channel with fanout must implement _put_fanout")

    def queue_unbind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        """Take a binding away.

        Args:
            queue: Name of the queue.
            exchange: Name of the exchange; None: the default exchange.
            routing_key: The binding's key.
            arguments: Arguments of the binding.
            **kwargs: Ignored; kept for compatibility.
        """
        self._check_open()
        exchange = exchange or "amq.direct"
        self.state.binding_delete(queue, exchange, routing_key)
        try:
            table = self.get_table(exchange)
        except KeyError:
            return
        meta = self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments)
        table[:] = [entry for entry in table if entry != meta]

    def list_bindings(self) -> Iterator[tuple[str, str, str]]:
        """Give (queue, exchange, routing key) of all bindings."""
        return (
            (queue, exchange, key) for exchange in self.state.exchanges for key, _, queue in self.get_table(exchange)
        )

    def queue_purge(self, queue: str, **kwargs: object) -> Any:
        """Remove the messages that wait; returns how many.

        Args:
            queue: Name of the queue.
            **kwargs: Ignored; kept for compatibility.
        """
        self._check_open()
        return self._purge(queue)

    # --- publishing

    def _next_delivery_tag(self) -> str:
        return uuid()

    def basic_publish(self, message: Any, exchange: str, routing_key: str, **kwargs: Any) -> Any:
        """Publish a message of ``prepare_message``.

        Args:
            message: The message, as ``prepare_message`` made it.
            exchange: Name of the exchange.
            routing_key: The routing key.
            **kwargs: ``mandatory``, and options of the store.

        Raises:
            MessageReturned: It was mandatory, and no queue took it.
        """
        self._check_open()
        self._inplace_augment_message(message, exchange, routing_key)
        if not exchange:
            return self._put(routing_key, message, **kwargs)
        kind = self.typeof(exchange)
        if kwargs.get("mandatory") is True and not self._lookup(exchange, routing_key):
            raise MessageReturned.no_route()
        return kind.deliver(message, exchange, routing_key, **kwargs)

    def count_unroutable(self) -> None:
        """Count a message that found no queue."""
        self.connection.unroutable += 1

    def _inplace_augment_message(self, message: Any, exchange: str, routing_key: str) -> None:
        message["body"], encoding = self.encode_body(message["body"], self.body_encoding)
        properties = message["properties"]
        properties["body_encoding"] = encoding
        properties["delivery_tag"] = self._next_delivery_tag()
        properties["delivery_info"].update(exchange=exchange, routing_key=routing_key)

    def prepare_message(
        self,
        body: object,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: Mapping[str, Any] | None = None,
        properties: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the envelope of a message.

        Args:
            body: The body, encoded.
            priority: The priority, 0 to 9; None: 0.
            content_type: The content type.
            content_encoding: The content encoding.
            headers: The headers; None: none.
            properties: Further properties; None: none.
        """
        properties = properties or {}
        properties.setdefault("delivery_info", {})
        properties.setdefault("priority", priority or self.default_priority)
        return {
            "body": body,
            "content-encoding": content_encoding,
            "content-type": content_type,
            "headers": headers or {},
            "properties": properties,
        }

    # --- consuming

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Callable[[Any], Any], consumer_tag: str, **kwargs: object
    ) -> Any:
        """Start a consumer: ``callback(message)`` runs in ``drain_events``.

        Args:
            queue: Name of the queue.
            no_ack: If True, messages need no acknowledgement.
            callback: Called with each message.
            consumer_tag: The consumer's tag.
            **kwargs: Ignored; kept for compatibility.
        """
        self._check_open()
        self._tag_to_queue[consumer_tag] = queue
        self._active_queues.append(queue)

        def deliver(raw_message: Any) -> Any:
            return callback(self._received(raw_message, queue, no_ack))

        callbacks = self.connection._callbacks
        recipients = callbacks.get(queue)
        if not isinstance(recipients, _Recipients):
            recipients = callbacks[queue] = _Recipients()
        recipients.add(self, consumer_tag, deliver)
        self._consumers.add(consumer_tag)
        self._reset_cycle()

    def _received(self, raw_message: Any, queue: str, no_ack: bool) -> Any:
        """Return the message of an envelope that the store gave; it is noted as not acknowledged."""
        message = self.Message(raw_message, channel=self)
        own = getattr(message, "__dict__", None)
        if own is not None:
            own["_source_queue"] = queue
        if not no_ack:
            tag, qos = message.delivery_tag, self.qos
            is_known = isinstance(qos, QoS) and tag in qos._delivered and tag not in qos._dirty
            if is_known and type(self).basic_ack is Channel.basic_ack:
                message.delivery_tag = uuid()  # a copy of one that is out: each is settled by itself
            qos.append(message, message.delivery_tag)
        return message

    def basic_cancel(self, consumer_tag: str) -> Any:
        """End a consumer. Its messages stay to be acknowledged.

        Args:
            consumer_tag: The consumer's tag.
        """
        if consumer_tag in self._consumers:
            self._consumers.remove(consumer_tag)
            queue = self._tag_to_queue.pop(consumer_tag, None)
            if queue in self._active_queues:
                self._active_queues.remove(queue)
            self._reset_cycle()
            callbacks = self.connection._callbacks
            recipients = callbacks.get(queue)
            if isinstance(recipients, _Recipients):
                recipients.remove(self, consumer_tag)
            if not (isinstance(recipients, _Recipients) and recipients.consumers):
                callbacks.pop(queue, None)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: object) -> Any:
        """Return the next message of a queue, or None.

        Args:
            queue: Name of the queue.
            no_ack: If True, messages need no acknowledgement.
            **kwargs: Ignored; kept for compatibility.
        """
        self._check_open()
        try:
            raw_message = self._get(queue)
        except Empty:
            return None
        if no_ack and type(self).basic_ack is not Channel.basic_ack:
            # A store that leases its messages would deliver it again.
            message = self._received(raw_message, queue, False)
            self.basic_ack(message.delivery_tag)
            return message
        return self._received(raw_message, queue, no_ack)

    def basic_ack(self, delivery_tag: object, multiple: bool = False) -> Any:
        """Acknowledge a message, and with ``multiple`` all that were delivered before it.

        Args:
            delivery_tag: The delivery tag.
            multiple: If True, include all messages that were delivered before it.
        """
        qos = self.qos
        if multiple and isinstance(qos, QoS):
            for tag in list(qos._delivered):
                if tag == delivery_tag:
                    break
                qos.ack(tag)
        qos.ack(delivery_tag)

    def basic_recover(self, requeue: bool = False) -> Any:
        """Put all back that is not acknowledged.

        Args:
            requeue: If True, put them back into their queues; False is not supported.

        Raises:
            NotImplementedError: ``requeue`` is False.
        """
        if not requeue:
            raise NotImplementedError("Does not support recover(requeue=False)")
        return self.qos.restore_unacked()

    def basic_reject(self, delivery_tag: object, requeue: bool = False) -> Any:
        """Drop a message, or put it back into its queue.

        Args:
            delivery_tag: The delivery tag.
            requeue: If True, put it back into its queue.
        """
        self.qos.reject(delivery_tag, requeue=requeue)

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> Any:
        """Bound the messages that are delivered and not acknowledged (0: no bound).

        Args:
            prefetch_size: Ignored; kept for compatibility.
            prefetch_count: Maximum number of unacknowledged messages; 0: no limit.
            apply_global: Ignored: the limit is that of the channel.
        """
        self.qos.prefetch_count = prefetch_count

    def drain_events(self, timeout: float | None = None, callback: Callable[..., Any] | None = None) -> Any:
        """Deliver one message.

        Args:
            timeout: Seconds to wait, where the store waits.
            callback: Called with the message and the name of its queue.

        Raises:
            queue.Empty: There is none.
        """
        if not self._consumers or not self.qos.can_consume():
            raise Empty
        get_many = getattr(self, "_get_many", None)
        if get_many is not None:
            return get_many(self._active_queues, timeout=timeout)
        return self._poll(self.cycle, callback or self.connection._deliver, timeout=timeout)

    def message_to_python(self, raw_message: Any) -> Any:
        """Return the message of an envelope, or the message that it is.

        Args:
            raw_message: The message, as the transport received it.
        """
        if isinstance(raw_message, self.Message):
            return raw_message
        return self.Message(payload=raw_message, channel=self)

    def flow(self, active: bool = True) -> None:
        """Raise NotImplementedError: deliveries cannot be paused.

        Args:
            active: Ignored.
        """
        raise NotImplementedError("virtual channels do not support flow.")

    # --- routing

    def get_exchanges(self) -> list[str]:
        """Return the names of the exchanges."""
        return list(self.state.exchanges)

    def get_table(self, exchange: str) -> Any:
        """Return the bindings of an exchange: (routing key, pattern, queue).

        Args:
            exchange: Name of the exchange.

        Raises:
            KeyError: The exchange is unknown.
        """
        return self.state.exchanges[exchange]["table"]

    def typeof(self, exchange: str, default: str = "direct") -> Any:
        """Return the type of an exchange, an object.

        Args:
            exchange: Name of the exchange.
            default: Name of the type of an unknown exchange.
        """
        known = self.state.exchanges.get(exchange)
        return self.exchange_types[known["type"] if known else default]

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> Any:
        """Return the queues that a message goes to."""
        if default is None:
            default = self.deadletter_queue
        if not exchange:
            return [routing_key or default]
        try:
            found = self.typeof(exchange).lookup(self.get_table(exchange), exchange, routing_key, default)
        except KeyError:
            found = []
        if not found and default is not None:
            text = UNDELIVERABLE_FMT.format(exchange=exchange, routing_key=routing_key)
            warnings.warn(UndeliverableWarning(text), stacklevel=2)
            self._new_queue(default)
            found = [default]
        return found

    def _restore(self, message: Any) -> Any:
        """Put a message back: into the queue that it came from, or where it would be routed to."""
        info = message.delivery_info
        source = getattr(message, "__dict__", {}).get("_source_queue")
        envelope = message.serializable()
        envelope["redelivered"] = True
        if isinstance(message, Message):
            properties = envelope["properties"] = dict(envelope["properties"])
            properties["delivery_count"] = message.delivery_count + 1
            properties["delivery_info"] = {**info, "redelivered": True}
        queues = self._lookup(info["exchange"], info["routing_key"]) if source is None else [source]
        for queue in queues:
            self._put(queue, envelope)

    def _restore_at_beginning(self, message: Any) -> Any:
        return self._restore(message)

    def _get_message_priority(self, message: Any, reverse: bool = False) -> int:
        """Return the priority of an envelope, within the channel's bounds; ``reverse``: the highest is 0."""
        try:
            priority = max(min(int(message["properties"]["priority"]), self.max_priority), self.min_priority)
        except (TypeError, ValueError, KeyError):
            priority = self.default_priority
        return self.max_priority - priority if reverse else priority

    # --- bodies

    def _codec(self, encoding: str) -> Any:
        return self.codecs.get(encoding)

    def encode_body(self, body: Any, encoding: str | None = None) -> tuple[Any, str | None]:
        """Return a body as the store takes it, and the name of the encoding.

        Args:
            body: The body.
            encoding: Name of the encoding; None: none.
        """
        if encoding and encoding.lower() != "utf-8":
            return self._codec(encoding).encode(body), encoding
        return body, encoding

    def decode_body(self, body: Any, encoding: str | None = None) -> Any:
        """Return a body as it was published.

        Args:
            body: The body, as the store returned it.
            encoding: Name of the encoding; None: none.
        """
        if encoding and encoding.lower() != "utf-8":
            return self._codec(encoding).decode(body)
        return body

    # --- lifetime

    def close(self) -> None:
        """End the consumers; messages that are not acknowledged go back. May be repeated."""
        if not self.closed:
            for consumer in list(self._consumers):
                self.basic_cancel(consumer)
            try:
                if self._qos:
                    self._qos.restore_unacked_once()
            finally:
                self.closed = True
                if self._cycle is not None:
                    self._cycle.close()
                    self._cycle = None
                if self.connection is not None:
                    self.connection.close_channel(self)
        self.exchange_types = None

    def _reset_cycle(self) -> None:
        self._cycle = FairCycle(self._get_and_deliver, self._active_queues, Empty)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        self.close()

    @property
    def state(self) -> Any:
        """The exchanges and bindings that the connection knows.

        Raises:
            RecoverableConnectionError: The channel is closed.
        """
        if self.connection is None:
            self._check_open()
        return self.connection.state

    @property
    def qos(self) -> Any:
        """The messages that are delivered and not acknowledged."""
        if self._qos is None:
            self._qos = self.QoS(self)
        return self._qos

    @property
    def cycle(self) -> Any:
        """The turns of the queues that are consumed."""
        if self._cycle is None:
            self._reset_cycle()
        return self._cycle

    def _get_free_channel_id(self) -> int:
        connection = self.connection
        used = set(connection._used_channel_ids)
        for channel_id in range(1, connection.channel_max + 1):
            if channel_id not in used:
                connection._used_channel_ids.append(channel_id)
                return channel_id
        text = f"No free channel ids, current={len(connection.channels)}, channel_max={connection.channel_max}"
        raise ResourceError(text, (20, 10), "Channel.open")


def _is_inherited(channel: Channel, name: str) -> bool:
    """Return whether a hook is the one of the base."""
    return getattr(type(channel), name, None) is getattr(AbstractChannel, name) and name not in vars(channel)


class Management(base.Management):
    """Lists the bindings that a connection knows.

    Args:
        transport: The transport.
    """

    def __init__(self, transport: Any) -> None:
        super().__init__(transport)
        self.channel = transport.client.channel()

    def get_bindings(self) -> list[dict[str, str]]:
        """Return all bindings: dicts of ``destination``, ``source`` and ``routing_key``."""
        return [
            {"destination": queue, "source": exchange, "routing_key": key}
            for queue, exchange, key in self.channel.list_bindings()
        ]

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()


class Transport(base.Transport):
    """A connection to a store, and at the same time what its channels have for a connection.

    Args:
        client: The ``Connection``.
        **kwargs: Ignored; kept for compatibility.
    """

    Channel: Any = Channel
    Cycle: Any = FairCycle
    Management: Any = Management

    cycle: Any = None
    default_port: int | None = None
    channels: Any = None
    _callbacks: Any = None

    #: Seconds between two looks at a store that has nothing; None for a store that waits itself.
    polling_interval: float | None = 1.0
    channel_max = 65535

    #: Messages that found no queue.
    unroutable = 0

    implements: Any = base.Transport.implements.extend(
        asynchronous=False, exchange_type=frozenset(["direct", "topic"]), heartbeats=False
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        self.client = client
        self.state = BrokerState()
        self.channels = []
        self._avail_channels: list[Any] = []
        self._callbacks = {}
        self.cycle = self.Cycle(self._drain_channel, self.channels, Empty)
        interval = (client.transport_options or {}).get("polling_interval")
        if interval is not None:
            self.polling_interval = interval
        self._used_channel_ids = array(ARRAY_TYPE_H)
        self._settled = Event()  # a message was settled: a channel may have credit again

    def create_channel(self, connection: Any) -> Any:
        """Return a channel that is kept, or a new one.

        Args:
            connection: The result of ``establish_connection``.
        """
        if self._avail_channels:
            return self._avail_channels.pop()
        channel = self.Channel(connection)
        self.channels.append(channel)
        return channel

    def close_channel(self, channel: Channel) -> None:
        """Forget a channel.

        Args:
            channel: The channel.
        """
        try:
            with suppress(ValueError):
                self._used_channel_ids.remove(channel.channel_id)
            with suppress(ValueError):
                self.channels.remove(channel)
        finally:
            channel.connection = None

    def establish_connection(self) -> Any:
        """Open a channel, which shows whether the store is there, and keep it for the next ``create_channel``."""
        self._avail_channels.append(self.create_channel(self))
        return self

    def close_connection(self, connection: Any) -> None:
        """Close all channels.

        Args:
            connection: The result of ``establish_connection``.
        """
        self.cycle.close()
        for channels in (self._avail_channels, self.channels):
            while channels:
                channels.pop().close()

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:  # type: ignore[override]
        """Deliver one message, or one batch of the store.

        Args:
            connection: The result of ``establish_connection``.
            timeout: Seconds to wait; None: no limit.

        Raises:
            socket.timeout: Nothing came within ``timeout`` seconds (None: no limit).
            OperationalError: There is no timeout, and no consumer that a message could come for.
        """
        start = monotonic()
        interval = self.polling_interval
        if timeout and interval and interval > timeout:
            interval = timeout
        pause = MIN_PAUSE
        while True:
            before = monotonic()
            try:
                self.cycle.get(self._deliver, timeout=timeout)
            except Empty:
                now = monotonic()
                if timeout is not None and now - start >= timeout:
                    raise TimeoutError from None
                if timeout is None and not self._callbacks and self.channels and not self._consumes():
                    text = "waiting without a timeout, and there is no consumer to wait for"
                    raise OperationalError(text) from None
                self._settled.clear()
                if interval and self._is_short_of_credit():  # what is settled from here on wakes
                    self._settled.wait(interval)
                elif interval:
                    sleep(interval)
                elif now - before < IDLE_PASS:  # a store that does not wait: do not ask it all the time
                    self._settled.wait(pause)
                    pause = min(pause * 2, MAX_PAUSE)
            else:
                return

    def _consumes(self) -> bool:
        return any(getattr(channel, "_consumers", True) for channel in self.channels)

    def _is_short_of_credit(self) -> bool:
        return any(channel._consumers and not channel.qos.can_consume() for channel in self.channels)

    def _deliver(self, message: Any, queue: str) -> None:
        if not queue:
            raise KeyError(f"Received message without destination queue: {message}")
        callback = self._callbacks.get(queue)
        if callback is None:
            logger.warning(W_NO_CONSUMERS, queue)
            self._reject_inbound_message(message)
        else:
            callback(message)

    def _reject_inbound_message(self, raw_message: Any) -> None:
        for channel in self.channels:
            if channel:
                message = channel.Message(raw_message, channel=channel)
                channel.qos.append(message, message.delivery_tag)
                channel.basic_reject(message.delivery_tag, requeue=True)
                break

    def on_message_ready(self, channel: Channel, message: Any, queue: str) -> None:
        """Run the callback for a message.

        Args:
            channel: The channel.
            message: The message, as it was received.
            queue: Name of the queue.

        Raises:
            KeyError: The queue has no consumers.
        """
        if not queue or queue not in self._callbacks:
            raise KeyError(f"Message for queue {queue!r} without consumers: {message}")
        self._callbacks[queue](message)

    def _drain_channel(self, channel: Any, callback: Callable[..., Any], timeout: float | None = None) -> Any:
        return channel.drain_events(callback=callback, timeout=timeout)

    @property
    def default_connection_params(self) -> dict[str, Any]:
        """The port and host for a URL without them."""
        return {"port": self.default_port, "hostname": "localhost"}
