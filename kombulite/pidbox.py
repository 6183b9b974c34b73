"""Mailboxes of processes: commands to all or some of them, and their replies.

Longer than other modules for kombu's many arguments: a third of it describes them.
"""

from __future__ import annotations

import socket
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from time import monotonic, time
from typing import Any

from kombulite._client.interfaces import Bindable
from kombulite.abstract import is_connection
from kombulite.clocks import LamportClock
from kombulite.common import maybe_declare, oid_from
from kombulite.entity import Exchange, Queue
from kombulite.exceptions import InconsistencyError, ResourceLocked
from kombulite.log import get_logger
from kombulite.matcher import match
from kombulite.message import Message
from kombulite.messaging import Consumer, Producer
from kombulite.utils.functional import maybe_evaluate, reprcall
from kombulite.utils.objects import cached_property
from kombulite.utils.uuid import uuid

__all__ = ["Mailbox", "Node"]

MessageConsumer = Consumer  # within a node the name is that of its method

REPLY_QUEUE_EXPIRES = 10.0  # seconds
MAX_UNCLAIMED = 1000  # tickets whose replies are kept until somebody claims them

#: A command is worth little when it is late.
RETRY_POLICY = {"max_retries": 3, "interval_start": 0, "interval_step": 0.5, "interval_max": 1}

W_PIDBOX_IN_USE = (
    "A node named {node.hostname} is already using this process mailbox: each command reaches one of the two only"
)

logger = get_logger(__name__)
debug, error = logger.debug, logger.error


class Node:
    """Process that takes commands.

    Args:
        hostname: Name of the node.
        state: First argument of each handler.
        channel: The channel.
        handlers: Handlers by command.
        mailbox: The mailbox.
    """

    hostname: Any = None
    state: Any = None
    channel: Any = None
    handlers: Any = None
    mailbox: Any = None

    def __init__(
        self,
        hostname: str,
        state: object = None,
        channel: Bindable | None = None,
        handlers: dict[str, Callable[..., Any]] | None = None,
        mailbox: Any = None,
    ) -> None:
        self.hostname = hostname
        self.state = state
        self.channel = channel
        self.handlers = {} if handlers is None else handlers
        self.mailbox = mailbox
        #: Takes over the time of a message.
        self.adjust_clock: Any = mailbox.clock.adjust

    def Consumer(
        self, channel: Bindable | None = None, no_ack: bool = True, accept: Iterable[str] | None = None, **options: Any
    ) -> MessageConsumer:
        """Return a consumer of the node's queue, not started.

        Args:
            channel: Channel to use (default: the node's).
            no_ack: If True, a message counts as acknowledged when the broker sends it.
            accept: Serializer names or content types that may be decoded (None: all that are not disabled).
            **options: Keywords of ``Consumer``.

        Raises:
            InconsistencyError: Another node of that name has the queue exclusively (``queue_exclusive``).
        """
        queue = self.mailbox.get_queue(self.hostname)

        def verify_alone(name: str, messages: int, consumers: int) -> None:
            if consumers:
                warnings.warn(
                    W_PIDBOX_IN_USE.format(node=self),
                    stacklevel=2,
                )

        queue.on_declared = verify_alone
        accept = self.mailbox.accept if accept is None else accept
        try:
            return Consumer(channel or self.channel, [queue], no_ack=no_ack, accept=accept, **options)
        except Exception as refusal:
            if getattr(refusal, "code", None) != ResourceLocked.code:
                raise
            raise InconsistencyError(W_PIDBOX_IN_USE.format(node=self)) from refusal

    def handler(self, fun: Callable[..., Any]) -> Callable[..., Any]:
        """Register a function as the handler of the command of its name: ``fun(state, **arguments)``. A decorator.

        Args:
            fun: The function.
        """
        self.handlers[fun.__name__] = fun
        return fun

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Log a command that cannot be decoded.

        Args:
            message: The message.
            exc: The error.
        """
        error("Cannot decode message: %r", exc, exc_info=True)

    def listen(
        self, channel: Bindable | None = None, callback: Callable[[Any, Message], Any] | None = None
    ) -> MessageConsumer:
        """Start to take commands, and return the consumer.

        Args:
            channel: Channel to use (default: the node's).
            callback: Called with (body, message) instead of ``handle_message``.
        """
        consumer = self.Consumer(
            channel=channel, callbacks=[callback or self.handle_message], on_decode_error=self.on_decode_error
        )
        consumer.consume()
        return consumer

    def dispatch(
        self,
        method: str,
        arguments: Mapping[str, Any] | None = None,
        reply_to: Mapping[str, str] | None = None,
        ticket: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the handler of a command, and reply if the command asks for it.

        Args:
            method: Name of the command.
            arguments: Arguments by name.
            reply_to: Address of the reply: exchange and routing key.
            ticket: Number of the call.
            **kwargs: Ignored.

        Returns:
            The result; ``{"error": repr}`` if the handler raised.
        """
        arguments = arguments or {}
        debug("pidbox received method %s [reply_to:%s ticket:%s]", reprcall(method, (), arguments), reply_to, ticket)
        handle = self.handle_call if reply_to else self.handle_cast
        try:
            reply = handle(method, arguments)
        except Exception as raised:
            error("pidbox command error: %r", raised, exc_info=True)
            reply = {"error": repr(raised)}
        if reply_to:
            self.reply(
                {self.hostname: reply},
                exchange=reply_to["exchange"],
                routing_key=reply_to["routing_key"],
                ticket=ticket,
            )
        return reply

    def handle(self, method: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Call the handler of a command.

        Args:
            method: Name of the command.
            arguments: Arguments by name.

        Raises:
            KeyError: There is no such command.
        """
        return self.handlers[method](self.state, **(arguments or {}))

    def handle_call(self, method: str, arguments: Mapping[str, Any]) -> Any:
        """Handle a command that wants a reply.

        Args:
            method: Name of the command.
            arguments: Arguments by name.
        """
        return self.handle(method, arguments)

    def handle_cast(self, method: str, arguments: Mapping[str, Any]) -> Any:
        """Handle a command that wants no reply.

        Args:
            method: Name of the command.
            arguments: Arguments by name.
        """
        return self.handle(method, arguments)

    def handle_message(self, body: Mapping[str, Any], message: Message | None = None) -> Any:
        """Dispatch a command if it is meant for this node.

        Args:
            body: The command.
            message: The message.
        """
        if message is not None:
            self.adjust_clock(message.headers.get("clock") or 0)
        destination, pattern, matcher = (body.get(name) for name in ("destination", "pattern", "matcher"))
        if destination:
            wanted = self.hostname in destination
        else:
            wanted = not (pattern and matcher) or match(self.hostname, pattern, matcher)
        return self.dispatch(**body) if wanted else None

    dispatch_from_message = handle_message

    def reply(self, data: object, exchange: str, routing_key: str, ticket: str | None, **kwargs: Any) -> None:
        """Send a reply.

        Args:
            data: The body.
            exchange: Exchange of the reply.
            routing_key: Routing key.
            ticket: Number of the call.
            **kwargs: Ignored; kept for compatibility.
        """
        self.mailbox._publish_reply(
            data, exchange, routing_key, ticket, channel=self.channel, serializer=self.mailbox.serializer
        )


class Mailbox:
    """Mailbox: commands to nodes in a namespace. ``mailbox(connection)`` returns one that can send.

    Args:
        namespace: Name of the namespace.
        type: ``"direct"``: commands for nodes by name; ``"fanout"``: for all nodes.
        connection: Connection to send with.
        clock: A ``LamportClock`` to share.
        accept: Content types of commands and replies (default: ``["json"]``).
        serializer: Serializer of commands and replies.
        producer_pool: Pool of producers, or a callable that returns one.
        queue_ttl: Seconds after which a waiting command expires.
        queue_expires: Seconds without a consumer after which a node's queue is deleted.
        queue_durable: If True, nodes' queues survive a restart of the broker.
        queue_exclusive: If True, a node's queue belongs to its connection.
        reply_queue_ttl: Seconds after which a waiting reply expires.
        reply_queue_expires: Seconds without a consumer after which a reply queue is deleted.

    Raises:
        ValueError: Queues cannot be both exclusive and durable.
    """

    node_cls = Node
    exchange_fmt = "%s.pidbox"
    reply_exchange_fmt = "reply.%s.pidbox"

    namespace: Any = None
    type: Any = "direct"
    connection: Any = None
    exchange: Any = None
    reply_exchange: Any = None

    #: Content types of replies and commands, and the serializer, where a subclass chooses.
    accept: Any = ["json"]  # noqa: RUF012 - as kombu's class has it
    serializer: Any = None

    _reply_queue: Queue | None = None

    #: Seconds that replies are waited for where no timeout is given.
    call_timeout = 10.0

    def __init__(
        self,
        namespace: str,
        type: str = "direct",
        connection: Any = None,
        clock: LamportClock | None = None,
        accept: Iterable[str] | None = None,
        serializer: str | None = None,
        producer_pool: Any = None,
        queue_ttl: float | None = None,
        queue_expires: float | None = None,
        queue_durable: bool = False,
        queue_exclusive: bool = True,
        reply_queue_ttl: float | None = None,
        reply_queue_expires: float | None = REPLY_QUEUE_EXPIRES,
    ) -> None:
        if queue_durable and queue_exclusive:
            raise ValueError(
                "queue_exclusive and queue_durable cannot both be True "
                "(exclusive queues are automatically deleted and cannot be durable)."
            )
        self.namespace = namespace
        self.type = type
        self.connection = connection
        self.clock = LamportClock() if clock is None else clock
        self.accept = list(self.accept or ()) if accept is None else accept
        self.serializer = self.serializer if serializer is None else serializer
        self.queue_ttl = queue_ttl
        self.queue_expires = queue_expires
        self.queue_durable = queue_durable
        self.queue_exclusive = queue_exclusive
        self.reply_queue_ttl = reply_queue_ttl
        self.reply_queue_expires = reply_queue_expires
        self.exchange = self._get_exchange(namespace, type)
        self.reply_exchange = self._get_reply_exchange(namespace)
        #: Replies to other calls of this process, by ticket.
        self.unclaimed: defaultdict[str, deque[Any]] = defaultdict(deque)
        self._producer_pool = producer_pool
        self._identity = object()  # shared with the copies that are bound to connections

    def __call__(self, connection: Any) -> Mailbox:
        """Return a copy that sends over a connection.

        Args:
            connection: The connection.
        """
        bound = copy(self)
        bound.connection = connection
        return bound

    def Node(
        self,
        hostname: str | None = None,
        state: object = None,
        channel: Bindable | None = None,
        handlers: dict[str, Callable[..., Any]] | None = None,
    ) -> Node:
        """Return a node of this mailbox.

        Args:
            hostname: Name of the node (default: the machine's).
            state: First argument of each handler.
            channel: The channel.
            handlers: Handlers by command.
        """
        return self.node_cls(hostname or socket.gethostname(), state, channel, handlers, mailbox=self)

    # --- commands

    def call(
        self,
        destination: Sequence[str],
        command: str,
        kwargs: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        callback: Callable[[Any], Any] | None = None,
        channel: Bindable | None = None,
    ) -> list[Any]:
        """Send a command to nodes by name, and return their replies: a list of ``{hostname: result}``.

        It waits until all nodes have replied.

        Args:
            destination: Names of the nodes.
            command: Name of the command.
            kwargs: Arguments by name.
            timeout: Seconds to wait after the last reply (None: ``call_timeout``).
            callback: Called with each reply.
            channel: Channel to use.
        """
        return self._broadcast(  # type: ignore[return-value]
            command, kwargs or {}, destination, reply=True, timeout=timeout, callback=callback, channel=channel
        )

    def cast(self, destination: Sequence[str], command: str, kwargs: Mapping[str, Any] | None = None) -> Any:
        """Send a command to nodes by name, without a reply.

        Args:
            destination: Names of the nodes.
            command: Name of the command.
            kwargs: Arguments by name.
        """
        return self._broadcast(command, kwargs or {}, destination, reply=False)

    def abcast(self, command: str, kwargs: Mapping[str, Any] | None = None) -> Any:
        """Send a command to all nodes, without a reply.

        Args:
            command: Name of the command.
            kwargs: Arguments by name.
        """
        return self._broadcast(command, kwargs or {}, reply=False)

    def multi_call(
        self,
        command: str,
        kwargs: Mapping[str, Any] | None = None,
        timeout: float | None = 1,
        limit: int | None = None,
        callback: Callable[[Any], Any] | None = None,
        channel: Bindable | None = None,
    ) -> list[Any]:
        """Send a command to all nodes, and return the replies.

        Args:
            command: Name of the command.
            kwargs: Arguments by name.
            timeout: Seconds to wait for each reply.
            limit: Largest number of replies (None: no limit).
            callback: Called with each reply.
            channel: Channel to use.
        """
        return self._broadcast(  # type: ignore[return-value]
            command, kwargs or {}, reply=True, timeout=timeout, limit=limit, callback=callback, channel=channel
        )

    # --- queues

    def get_queue(self, hostname: str) -> Queue:
        """Return the queue of a node.

        Args:
            hostname: Name of the node.
        """
        return Queue(
            f"{hostname}.{self.namespace}.pidbox",
            exchange=self.exchange,
            durable=self.queue_durable,
            exclusive=self.queue_exclusive,
            auto_delete=not self.queue_durable,
            expires=self.queue_expires,
            message_ttl=self.queue_ttl,
        )

    def get_reply_queue(self) -> Queue:
        """Return the queue for replies to this thread."""
        oid = self.oid
        return Queue(
            f"{oid}.{self.reply_exchange.name}",
            exchange=self.reply_exchange,
            routing_key=oid,
            durable=self.queue_durable,
            exclusive=self.queue_exclusive,
            auto_delete=not self.queue_durable,
            expires=self.reply_queue_expires,
            message_ttl=self.reply_queue_ttl,
        )

    @property
    def reply_queue(self) -> Queue:
        """The queue for replies to this thread, unless one was set for all of them."""
        return self._reply_queue or self.get_reply_queue()

    @reply_queue.setter
    def reply_queue(self, queue: Queue) -> None:
        self._reply_queue = queue

    @property
    def oid(self) -> str:
        """Identity of this thread, by which its replies are found."""
        return oid_from(self._identity)

    def _get_exchange(self, namespace: str, type: str) -> Exchange:
        return Exchange(self.exchange_fmt % namespace, type=type, durable=False, delivery_mode="transient")

    def _get_reply_exchange(self, namespace: str) -> Exchange:
        return Exchange(self.reply_exchange_fmt % namespace, type="direct", durable=False, delivery_mode="transient")

    # --- sending and collecting

    @cached_property
    def producer_pool(self) -> Any:
        """The pool of producers, or None. Deleting it looks it up again."""
        return maybe_evaluate(self._producer_pool)

    @contextmanager
    def producer_or_acquire(
        self, producer: Producer | None = None, channel: Bindable | None = None
    ) -> Iterator[Producer]:
        """Use a producer in the block: the given one, one of the pool, or a new one on the channel.

        Args:
            producer: A producer, or None.
            channel: The channel.
        """
        if producer:
            yield producer
        elif self.producer_pool:
            with self.producer_pool.acquire(block=True) as pooled:
                yield pooled
        else:
            yield Producer(channel, auto_declare=False)

    def _publish_reply(
        self,
        reply: Any,
        exchange: str,
        routing_key: str,
        ticket: str | None,
        channel: Bindable | None = None,
        producer: Producer | None = None,
        **opts: Any,
    ) -> None:
        target = Exchange(exchange, type="direct", delivery_mode="transient", durable=False)
        channel = channel or self.connection.default_channel
        # With an InconsistencyError the queue was deleted: whoever asked has gone.
        with self.producer_or_acquire(producer, channel) as sender, suppress(InconsistencyError):
            sender.publish(
                reply,
                exchange=target,
                routing_key=routing_key,
                declare=[target],
                headers={"ticket": ticket, "clock": self.clock.forward()},
                retry=True,
                retry_policy=RETRY_POLICY,
                **opts,
            )

    def _publish(
        self,
        type: str,
        arguments: Mapping[str, Any],
        destination: Sequence[str] | None = None,
        reply_ticket: str | None = None,
        channel: Bindable | None = None,
        timeout: float | None = None,
        serializer: str | None = None,
        producer: Producer | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> None:
        message: dict[str, Any] = {
            "method": type,
            "arguments": arguments,
            "destination": destination,
            "pattern": pattern,
            "matcher": matcher,
        }
        channel = channel or self.connection.default_channel
        if reply_ticket:
            maybe_declare(self.reply_queue, channel)
            reply_to = {"exchange": self.reply_exchange.name, "routing_key": self.oid}
            message.update(ticket=reply_ticket, reply_to=reply_to)
        with self.producer_or_acquire(producer, channel) as sender:
            sender.publish(
                message,
                exchange=self.exchange,
                declare=[self.exchange],
                headers={"clock": self.clock.forward(), "expires": time() + timeout if timeout else 0},
                serializer=serializer or self.serializer,
                retry=True,
                retry_policy=RETRY_POLICY,
            )

    def _broadcast(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        destination: Sequence[str] | None = None,
        reply: bool = False,
        timeout: float | None = 1,
        limit: int | None = None,
        callback: Callable[[Any], Any] | None = None,
        channel: Bindable | None = None,
        serializer: str | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> list[Any] | None:
        if destination is not None and not isinstance(destination, (list, tuple)):
            raise ValueError(f"destination must be a list/tuple not {type(destination)}")
        if not isinstance(pattern, str | None) or not isinstance(matcher, str | None):
            raise ValueError(f"pattern and matcher must be strings not {type(pattern)}, {type(matcher)}")
        ticket = uuid() if reply else None
        channel = channel or self.connection.default_channel
        self._publish(
            command,
            arguments or {},
            destination=destination,
            reply_ticket=ticket,
            channel=channel,
            timeout=timeout,
            serializer=serializer,
            pattern=pattern,
            matcher=matcher,
        )
        if ticket is None:
            return None
        if limit is None and destination:
            limit = len(destination)
        return self._collect(ticket, limit=limit, timeout=timeout, callback=callback, channel=channel)

    def _keep_unclaimed(self, ticket: Any, body: Any) -> None:
        """Keep a reply to another call; those to calls that have timed out, which nobody claims, go in time."""
        if isinstance(ticket, str | None):  # it is a peer's, who may write there what cannot be looked up
            self.unclaimed[ticket].append(body)  # type: ignore[index]
            for oldest in list(self.unclaimed)[:-MAX_UNCLAIMED]:
                self.unclaimed.pop(oldest, None)

    def _collect(
        self,
        ticket: str,
        limit: int | None = None,
        timeout: float | None = 1,
        callback: Callable[[Any], Any] | None = None,
        channel: Any = None,
        accept: Iterable[str] | None = None,
    ) -> list[Any]:
        channel = channel or self.connection.default_channel
        client = channel.connection.client
        connection = client if is_connection(client) else self.connection
        timeout = self.call_timeout if timeout is None else timeout
        queue = self.reply_queue
        responses: list[Any] = []
        deadline = monotonic() + timeout

        def on_reply(body: Any, message: Message) -> None:
            nonlocal deadline
            header = message.headers.get
            self.clock.adjust(header("clock") or 0)
            if (expires := header("expires")) and time() > expires:
                return
            owner = header("ticket", ticket)
            if owner != ticket:
                self._keep_unclaimed(owner, body)
                return
            deadline = monotonic() + timeout
            if callback is not None:
                callback(body)
            responses.append(body)

        responses.extend(self.unclaimed.pop(ticket, ()))
        accept = self.accept if accept is None else accept
        consumer = Consumer(channel, [queue], accept=accept, no_ack=True)
        consumer.register_callback(on_reply)
        try:
            with consumer:
                # When the time is over, what has arrived is still read; other consumers' messages come in here too.
                left = timeout
                found = -1
                while not limit or len(responses) < limit:
                    if left <= 0 and len(responses) == found:
                        break
                    found = len(responses)
                    left = deadline - monotonic()
                    try:
                        connection.drain_events(timeout=max(left, 0))
                    except TimeoutError:
                        break
                return responses
        finally:
            channel.after_reply_message_received(queue.name)
