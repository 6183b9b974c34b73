"""Small things that many programs need: declare once, broadcast, drain, reply, move the prefetch count."""

from __future__ import annotations

import os
import socket  # noqa: F401 - programs replace it here, as in kombu's module
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import count
from typing import Any, ClassVar
from uuid import NAMESPACE_OID, uuid3, uuid4, uuid5

from kombulite._client.interfaces import Bindable
from kombulite._sync.consumer import Consumer
from kombulite.abstract import maybe_channel
from kombulite.connection import Connection
from kombulite.entity import Exchange, Queue, is_declared
from kombulite.exceptions import ChannelError, RecoverableConnectionError  # noqa: F401 - programs catch them
from kombulite.log import get_logger
from kombulite.message import Message
from kombulite.resource import Resource
from kombulite.serialization import registry as serializers
from kombulite.transport.adapter import facade_channel
from kombulite.utils.compat import get_gevent_concurrent_error
from kombulite.utils.locks import Lock
from kombulite.utils.uuid import uuid

__all__ = [
    "Broadcast",
    "QoS",
    "collect_replies",
    "drain_consumer",
    "eventloop",
    "generate_oid",
    "get_node_id",
    "ignore_errors",
    "insured",
    "itermessages",
    "maybe_declare",
    "oid_from",
    "send_reply",
    "uuid",
]

#: A prefetch count is a 16-bit number in AMQP (0-9-1, section 1.8.3.1: basic.qos).
PREFETCH_COUNT_MAX = 0xFFFF

logger = get_logger(__name__)


# --- identities -------------------------------------------------------------------------------------------------


_node_id: int | None = None


def get_node_id() -> int:
    """Return a number for this machine and this start of the process."""
    global _node_id  # noqa: PLW0603 - it is the process's
    if _node_id is None:
        _node_id = uuid4().int
    return _node_id


def generate_oid(node_id: int, process_id: int, thread_id: int, instance: object) -> str:
    """Return an identity of an object as text: a UUID, the same for the same arguments.

    Its version is 3, or 5 where the system forbids MD5.

    Args:
        node_id: Number of the machine.
        process_id: Number of the process.
        thread_id: Number of the thread.
        instance: The object.
    """
    name = f"{node_id:x}-{process_id:x}-{thread_id:x}-{id(instance):x}"
    try:
        return str(uuid3(NAMESPACE_OID, name))
    except ValueError:
        return str(uuid5(NAMESPACE_OID, name))


def oid_from(instance: object, threads: bool = True) -> str:
    """Return an identity of an object in this process.

    Args:
        instance: The object.
        threads: If True, it differs by thread.
    """
    return generate_oid(get_node_id(), os.getpid(), threading.get_ident() if threads else 0, instance)


# --- declaring --------------------------------------------------------------------------------------------------


class Broadcast(Queue):
    """Queue of its own for each consumer, bound to a fanout exchange: every consumer gets every message.

    Args:
        name: Name of the exchange, and the alias.
        queue: Name of the queue (default: ``bcast.<uuid>``).
        unique: If True, a UUID is appended to ``queue``.
        auto_delete: If True (default), the queue is deleted with its last consumer.
        exchange: The exchange, or its name.
        alias: A name that programs give it.
        **kwargs: Keywords of ``Queue``.
    """

    attrs: ClassVar[tuple[tuple[str, Any], ...]] = (*Queue.attrs, ("queue", None))

    def __init__(
        self,
        name: str | None = None,
        queue: str | None = None,
        unique: bool = False,
        auto_delete: bool = True,
        exchange: Exchange | str | None = None,
        alias: str | None = None,
        **kwargs: Any,
    ) -> None:
        if unique:
            queue = f"{queue or 'bcast'}.{uuid()}"
        self.queue = queue = queue or f"bcast.{uuid()}"
        kwargs["name"] = queue
        super().__init__(
            alias=alias or name,
            auto_delete=auto_delete,
            exchange=Exchange(name or "", type="fanout") if exchange is None else exchange,
            **kwargs,
        )


def maybe_declare(
    entity: Exchange | Queue, channel: Bindable | None = None, retry: bool = False, **retry_policy: Any
) -> bool:
    """Declare an entity, unless this connection has declared it already.

    Args:
        entity: Exchange or queue.
        channel: A channel or connection; needed for an entity that is not bound.
        retry: If True, reconnect and try again after a failure.
        **retry_policy: Keywords of ``Connection.ensure``.

    Returns:
        True if it was declared now.

    Raises:
        ChannelError: There is no channel.
        RecoverableConnectionError: The channel is closed.
    """
    if retry:
        return _imaybe_declare(entity, channel, **retry_policy)  # type: ignore[no-any-return]
    return _maybe_declare(entity, channel)  # type: ignore[no-any-return]


def _imaybe_declare(entity: Any, channel: Any, **retry_policy: Any) -> Any:
    channel = _channel_for(entity, channel)
    return facade_channel(channel).connection.maybe_declare(entity, channel, True, **retry_policy)


def _maybe_declare(entity: Any, channel: Any) -> Any:
    channel = _channel_for(entity, channel)
    return facade_channel(channel).connection.maybe_declare(entity, channel)


def _channel_for(entity: Any, channel: Any) -> Any:
    channel = maybe_channel(channel)
    return _ensure_channel_is_bound(entity, None).channel if channel is None else channel


def _ensure_channel_is_bound(entity: Any, channel: Any) -> Any:
    if entity.is_bound:
        return entity
    if not channel:
        raise ChannelError(f"Cannot bind channel {channel} to entity {entity}")
    return entity.bind(channel)


# --- draining ---------------------------------------------------------------------------------------------------


def eventloop(
    conn: Connection, limit: int | None = None, timeout: float | None = None, ignore_timeouts: bool = False
) -> Iterator[Any]:
    """Return a generator that drains events, and yields what ``drain_events`` returned.

    Args:
        conn: The connection.
        limit: Number of events (None: no limit).
        timeout: Seconds to wait for each.
        ignore_timeouts: If True, it continues after a timeout.

    Raises:
        TimeoutError: No event came in time (``socket.timeout``).
    """
    for _ in range(limit) if limit else count():
        try:
            yield conn.drain_events(timeout=timeout)
        except TimeoutError:
            if timeout and not ignore_timeouts:
                raise


def drain_consumer(
    consumer: Consumer,
    limit: int | None = 1,
    timeout: float | None = None,
    callbacks: Iterable[Callable[[Any, Message], Any]] | None = None,
) -> Iterator[tuple[Any, Message]]:
    """Return a generator of (body, message) that a consumer gets. It ends when no event comes in time.

    Args:
        consumer: The consumer.
        limit: Number of events (None: no limit).
        timeout: Seconds to wait for each.
        callbacks: Further callbacks of the consumer.
    """
    received: deque[tuple[Any, Message]] = deque()
    consumer.callbacks = [lambda body, message: received.append((body, message)), *(callbacks or ())]
    with consumer:
        for _ in eventloop(consumer.channel.connection.client, limit=limit, timeout=timeout, ignore_timeouts=True):
            if received:
                yield received.popleft()


def itermessages(
    conn: Connection,
    channel: Bindable | None,
    queue: Queue,
    limit: int | None = 1,
    timeout: float | None = None,
    callbacks: Iterable[Callable[[Any, Message], Any]] | None = None,
    **kwargs: Any,
) -> Iterator[tuple[Any, Message]]:
    """Return a generator of (body, message) from a queue, with a consumer of its own.

    Args:
        conn: The connection.
        channel: The channel.
        queue: The queue.
        limit: Number of events (None: no limit).
        timeout: Seconds to wait for each.
        callbacks: Further callbacks of the consumer.
        **kwargs: Keywords of ``Consumer``.
    """
    consumer = conn.Consumer(queues=[queue], channel=channel, **kwargs)
    return drain_consumer(consumer, limit=limit, timeout=timeout, callbacks=callbacks)


# --- replies ----------------------------------------------------------------------------------------------------


def send_reply(
    exchange: Exchange,
    req: Message,
    msg: object,
    producer: Any = None,
    retry: bool = False,
    retry_policy: Mapping[str, Any] | None = None,
    **props: Any,
) -> None:
    """Publish the reply to a request: to its ``reply_to``, with its correlation id and serializer.

    Args:
        exchange: The exchange.
        req: The request.
        msg: The body of the reply.
        producer: The producer.
        retry: If True, reconnect and try again after a failure.
        retry_policy: Keywords of ``Connection.ensure``: max_retries, interval_start, interval_step, interval_max,
            errback, on_revive, retry_errors.
        **props: Keywords of ``Producer.publish``.

    Raises:
        KeyError: The request asks for no reply, or its content type has no serializer.
    """
    return producer.publish(  # type: ignore[no-any-return]
        msg,
        exchange=exchange,
        retry=retry,
        retry_policy=retry_policy,
        **{
            "routing_key": req.properties["reply_to"],
            "correlation_id": req.properties.get("correlation_id"),
            "serializer": serializers.type_to_name[req.content_type],
            "content_encoding": req.content_encoding,
            **props,
        },
    )


def collect_replies(conn: Connection, channel: Any, queue: Queue, *args: Any, **kwargs: Any) -> Iterator[Any]:
    """Return a generator of the bodies that arrive in a reply queue.

    They count as acknowledged when sent; with ``no_ack=False`` each is acknowledged here.

    Args:
        conn: The connection.
        channel: The channel.
        queue: The reply queue.
        *args: Arguments of ``itermessages``.
        **kwargs: Keywords of ``itermessages``.
    """
    no_ack = kwargs.setdefault("no_ack", True)
    received = False
    try:
        for body, message in itermessages(conn, channel, queue, *args, **kwargs):
            if not no_ack:
                message.ack()
            received = True
            yield body
    finally:
        if received:
            channel.after_reply_message_received(queue.name)


# --- failures ---------------------------------------------------------------------------------------------------


@contextmanager
def _ignore_errors(conn: Any) -> Iterator[None]:
    try:
        yield
    except (*conn.connection_errors, *conn.channel_errors):
        pass
    except Exception as error:
        concurrent = get_gevent_concurrent_error()  # another green thread uses the connection still
        if concurrent is None or not isinstance(error, concurrent):
            raise


def ignore_errors(
    conn: Any, fun: Callable[..., Any] | None = None, *args: Any, **kwargs: Any
) -> Any | AbstractContextManager[None]:
    """Call a function and ignore errors of connection and channel. Without one, return a context manager for that.

    After an error that was ignored a context manager is returned too, as by kombu.

    Args:
        conn: The connection.
        fun: The function, or None.
        *args: Its positional arguments.
        **kwargs: Its keyword arguments.
    """
    if fun:
        with _ignore_errors(conn):
            return fun(*args, **kwargs)
    return _ignore_errors(conn)


def _ensure_errback(error: Any, interval: float) -> None:
    logger.error("Connection error: %r. Retry in %ss\n", error, interval, exc_info=True)


def insured(
    pool: Resource[Any],
    fun: Callable[..., Any],
    args: Iterable[Any],
    kwargs: Mapping[str, Any],
    errback: Callable[[Any, float], Any] | None = None,
    on_revive: Callable[[Any], Any] | None = None,
    **opts: Any,
) -> Any:
    """Call ``fun(*args, **kwargs, connection=..., channel=...)`` with a pool's connection, and reconnect as needed.

    Args:
        pool: Pool of connections.
        fun: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        errback: Called with (exception, interval in seconds) after each failure (default: it is logged).
        on_revive: Called with the new channel after a reconnect.
        **opts: Keywords of ``Connection.ensure``.
    """
    errback = errback or _ensure_errback
    with pool.acquire(block=True) as connection:
        connection.ensure_connection(errback=errback)
        revive = partial(revive_connection, connection, on_revive=on_revive)
        ensured = connection.autoretry(fun, connection.default_channel, errback=errback, on_revive=revive, **opts)
        result, _ = ensured(*args, **{**kwargs, "connection": connection})
        return result


# --- a prefetch count that moves --------------------------------------------------------------------------------


class QoS:
    """Prefetch count that threads may change, and that ``update`` sends to the broker.

    All methods may be called by any thread, except ``update`` and ``set``, which send.

    Args:
        callback: Called with ``prefetch_count=n`` to send it.
        initial_value: First value; 0 for no limit.
        max_prefetch: Largest value (None: no limit).
    """

    prev: int | None = None

    def __init__(self, callback: Callable[..., Any], initial_value: int, max_prefetch: int | None = None) -> None:
        self.callback = callback
        self._mutex: AbstractContextManager[Any] = Lock()
        self.value = initial_value or 0
        self.max_prefetch = max_prefetch

    def increment_eventually(self, n: int = 1) -> int:
        """Raise the value by the next ``update``, at most to ``max_prefetch``, and return it. No limit stays no limit.

        Args:
            n: By how much.
        """
        with self._mutex:
            if self.value:
                value = self.value + max(n, 0)
                self.value = value if self.max_prefetch is None else min(value, self.max_prefetch)
            return self.value

    def decrement_eventually(self, n: int = 1) -> int:
        """Lower the value by the next ``update``, to 1 at the least, and return it. No limit stays no limit.

        Args:
            n: By how much.
        """
        with self._mutex:
            if self.value:
                self.value = max(self.value - n, 1)
            return self.value

    def set(self, pcount: int) -> int:
        """Send a value, unless it was sent last. A value that AMQP cannot express is sent as no limit.

        Args:
            pcount: The value.
        """
        if pcount != self.prev:
            count = pcount
            if pcount > PREFETCH_COUNT_MAX:
                logger.warning("QoS: Disabled: prefetch_count exceeds %r", PREFETCH_COUNT_MAX)
                count = 0
            logger.debug("basic.qos: prefetch_count->%s", count)
            self.callback(prefetch_count=count)
            self.prev = pcount
        return pcount

    def update(self) -> int:
        """Send the value if it changed, and return it."""
        with self._mutex:
            return self.set(self.value)


def declaration_cached(entity: Any, channel: Any) -> bool:
    """Return True if a channel's connection has declared an entity already.

    Args:
        entity: Exchange or queue.
        channel: The channel.
    """
    declared = channel.connection.client.declared_entities
    return entity in declared or (isinstance(entity, Queue | Exchange) and is_declared(entity, declared))


def revive_connection(connection: Any, channel: Any, on_revive: Callable[[Any], Any] | None = None) -> None:
    """Call ``on_revive`` with the new channel after a reconnect.

    Args:
        connection: Ignored.
        channel: The new channel.
        on_revive: Called with the new channel after a reconnect.
    """
    if on_revive is not None:
        on_revive(channel)
