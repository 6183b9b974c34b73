"""A connection to a broker on an event loop.

The class is wider than others: it has a verb for each thing that a program asks of a broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from kombulite._client.address import DEFAULT_SETTINGS, Address
from kombulite._client.counters import Counters
from kombulite._client.dead_letters import dead_letter_rule
from kombulite._client.declarations import binding_step, declaring, require_kind
from kombulite._client.hooks import Hook, Hooks
from kombulite._client.lifecycle import State
from kombulite._client.process import register
from kombulite._client.retry import NextTry, Retrier, RetryPolicy
from kombulite._client.streams import OffsetStore
from kombulite._client.topology import Binding
from kombulite._core import declaration_key
from kombulite.aio._calls import Caller
from kombulite.aio._messages import Message, Messages, OnError
from kombulite.aio._producer import Producer
from kombulite.aio._serving import Server
from kombulite.aio._session import AsyncSession
from kombulite.brokers.base import QueueInfo, QueueSpec, QueueStatus, Transport
from kombulite.entity import Exchange, Queue
from kombulite.serialization import prepare_accept_content

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from kombulite._client.address import ConnectionSettings

Queues = Queue | str | Iterable[Queue | str]


def connect(
    hostname: str | Iterable[str] | None = "localhost",
    *,
    alternates: Iterable[str] | None = None,
    failover_strategy: str | Callable[[Iterable[str]], Iterator[str]] = "round-robin",
    transport_options: Mapping[str, Any] | None = None,
    **settings: Unpack[ConnectionSettings],
) -> Connection:
    """Return a connection for ``async with``, or for ``await connection.connect()``. It does no I/O.

    Args:
        hostname: A URL, a list of URLs or one string with ``;`` between them (failover), or a host name.
        alternates: Further URLs for failover.
        failover_strategy: ``"round-robin"``, ``"shuffle"``, or a callable that makes an endless iterator over the
            URLs.
        transport_options: Options of the transport.
        **settings: Other arguments of the synchronous ``Connection``: userid, password, virtual_host, port, ssl,
            ...

    Example:
        ```py
        async with aio.connect("amqp://guest:guest@localhost//") as connection:
            await connection.producer().publish({"n": 1}, routing_key="numbers")
        ```
    """
    unknown = settings.keys() - DEFAULT_SETTINGS.keys()
    if unknown:
        raise TypeError(f"connect() got an unexpected keyword argument {min(unknown)!r}")
    return Connection(hostname, alternates, failover_strategy, transport_options, {**DEFAULT_SETTINGS, **settings})


class Connection(Address):
    """Connection to a broker on one event loop, for any number of tasks. Returned by ``connect``.

    It opens when it is used, and again after it was lost. Using it on another loop, or in a thread without one, raises
    RuntimeError.
    """

    def __init__(
        self,
        hostname: str | Iterable[str] | None,
        alternates: Iterable[str] | None,
        failover_strategy: str | Callable[[Iterable[str]], Iterator[str]],
        transport_options: Mapping[str, Any] | None,
        given: dict[str, Any],
    ) -> None:
        super().__init__(hostname, alternates, failover_strategy, transport_options, given)
        self.session = AsyncSession(self)
        self._caller = Caller(self, self.session)
        register(self)

    @classmethod
    def of(cls, connection: Any) -> Connection:
        """Return a connection of this class with the settings and hooks of a synchronous connection.

        Args:
            connection: The synchronous connection.
        """
        info = connection.info()
        info.pop("insist")
        address = info.pop("hostname"), info.pop("alternates"), info.pop("failover_strategy")
        made = cls(*address, dict(info.pop("transport_options")), {**DEFAULT_SETTINGS, **info})
        for hook in connection.hooks or ():
            made.add_hook(hook)
        return made

    # --- beginning and end

    async def connect(self, timeout: float | None = None) -> Connection:
        """Connect now, in one attempt for each URL, and return the connection.

        Args:
            timeout: Seconds for all of it (None: the connection's default, 30); an attempt has ``connect_timeout``.

        Raises:
            ConnectionError: Connecting failed.
            TimeoutError: The broker did not answer in time.
        """
        await self.session.ensure(self.session.waits.deadline(timeout))
        return self

    async def close(self) -> None:
        """Close the connection. Consumers end, and unsettled messages return to their queues.

        It opens again when it is used again.
        """
        await self.session.close()

    async def __aenter__(self) -> Connection:
        try:
            return await self.connect()
        except BaseException:
            await self.close()  # the task that connects for all goes on else
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def update_secret(self, secret: str, reason: str = "", timeout: float | None = None) -> None:
        """Give the broker a new secret for the open connection, as before an OAuth 2 token expires (RabbitMQ).

        Args:
            secret: The new token, or the new password.
            reason: Text for the broker's log.
            timeout: Seconds.

        Raises:
            AccessRefused: The broker does not accept the secret, and closes the connection.
            AMQPNotImplementedError: The transport has no such feature.
        """
        deadline = self.session.waits.deadline(timeout)
        transport = await self.session.ensure(deadline)
        await self.session.waits.wait(transport.update_secret(secret, reason), deadline, "update_secret")

    @property
    def connected(self) -> bool:
        """True if the connection is open."""
        return self.session.is_open

    @property
    def state(self) -> State:
        """The state of the connection."""
        return self.session.state()

    async def states(self) -> AsyncIterator[State]:
        """Yield the state now, and each later state."""
        queue: asyncio.Queue[State] = asyncio.Queue()
        queue.put_nowait(self.state)
        self.session.watchers.append(queue.put_nowait)
        try:
            while True:
                yield await queue.get()
        finally:
            self.session.watchers.remove(queue.put_nowait)

    def after_fork(self) -> None:
        """Forget the parent's connection, in a forked child."""
        self.session.abandon()
        self._caller = Caller(self, self.session)  # replies come to the parent's queue

    def __repr__(self) -> str:
        return f"<aio.Connection: {self.as_uri()} {self.session.life.state.value}>"

    # --- exchanges and queues

    async def declare(self, entity: Exchange | Queue, timeout: float | None = None) -> str:
        """Declare an exchange, or a queue with its exchange and bindings. Return its name.

        Args:
            entity: Exchange or queue.
            timeout: Seconds (None: the connection's default, 30).

        Raises:
            NotFound: It is ``passive`` and does not exist.
            NotEquivalentError: It exists with other settings.
            ResourceLocked: It is an exclusive queue of another connection.
            TimeoutError: The broker did not answer in time.
        """
        deadline, session = self.session.waits.deadline(timeout), self.session
        if isinstance(entity, Queue) and entity.kind is not None:
            require_kind(entity.kind, session.transport_class)
        for step in declaring(entity):
            step.answer = await session.ask(step.verb, *step.arguments, deadline=deadline)
            session.topology.note(step)
            if step.verb == "declare_exchange":
                session.exchanges.add(step.arguments[0].name)
        return entity.name

    async def maybe_declare(self, entity: Exchange | Queue) -> bool:
        """Declare an entity, unless this connection has declared it already. Return True if it was declared now.

        Args:
            entity: Exchange or queue.
        """
        await self.session.ensure(self.session.waits.deadline(None))
        key = declaration_key(entity) if entity.can_cache_declaration else None
        declared = self.session.declared
        if key is not None and key in declared:
            return False
        await self.declare(entity)
        if key is not None:
            declared.add(key)
        return True

    async def bind(
        self,
        destination: Queue | Exchange,
        exchange: Exchange | str,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Bind a queue, or an exchange, to an exchange.

        Args:
            destination: The queue or exchange that receives.
            exchange: The exchange, or its name.
            routing_key: Routing key.
            arguments: Arguments of the binding.

        Raises:
            NotFound: The queue or exchange does not exist.
        """
        step = binding_step(exchange, destination, routing_key, arguments)
        await self.session.ask(step.verb, *step.arguments, deadline=self.session.waits.deadline(None))
        self.session.topology.note(step)

    async def unbind(
        self,
        destination: Queue | Exchange,
        exchange: Exchange | str,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Remove a binding.

        Args:
            destination: The queue or exchange that receives.
            exchange: The exchange, or its name.
            routing_key: Routing key.
            arguments: Arguments of the binding.
        """
        step = binding_step(exchange, destination, routing_key, arguments)
        await self.session.ask("unbind", *step.arguments, deadline=self.session.waits.deadline(None))
        self.session.topology.unbound(Binding(*step.arguments))

    async def delete(self, entity: Exchange | Queue, if_unused: bool = False, if_empty: bool = False) -> int:
        """Delete an exchange or a queue. Return the number of messages that were deleted with it.

        Args:
            entity: Exchange or queue.
            if_unused: Delete only if nothing uses it.
            if_empty: Delete only if no message waits in it.

        Raises:
            PreconditionFailed: It is in use, or not empty.
        """
        session, name = self.session, entity.name
        deadline = session.waits.deadline(None)
        deleted = 0
        if isinstance(entity, Exchange):
            await session.ask("delete_exchange", name, if_unused, deadline=deadline)
            session.topology.deleted_exchange(name)
        else:
            deleted = await session.ask("delete_queue", name, if_unused, if_empty, deadline=deadline)
            session.topology.deleted_queue(name)
        session.forget_declarations()
        return deleted

    async def purge(self, queue: Queue | str) -> int:
        """Remove the waiting messages of a queue. Return their number.

        Args:
            queue: The queue, or its name.

        Raises:
            NotFound: The queue or exchange does not exist.
        """
        purged: int = await self.session.ask("purge", _name(queue), deadline=self.session.waits.deadline(None))
        return purged

    async def status(self, queue: Queue | str) -> QueueInfo:
        """Return the name of a queue, and its numbers of messages and consumers.

        Args:
            queue: The queue, or its name.

        Raises:
            NotFound: The queue or exchange does not exist.
        """
        spec, deadline = QueueSpec(_name(queue)), self.session.waits.deadline(None)
        info: QueueInfo = await self.session.ask("declare_queue", spec, True, deadline=deadline)
        return info

    async def list_queues(self) -> Sequence[QueueStatus]:
        """Return all queues.

        Raises:
            AMQPNotImplementedError: The broker cannot list them.
        """
        found: Sequence[QueueStatus] = await self.session.ask("list_queues", deadline=self.session.waits.deadline(None))
        return found

    # --- messages

    def producer(
        self,
        exchange: Exchange | str | None = None,
        routing_key: str = "",
        *,
        serializer: str | None = None,
        compression: str | None = None,
        confirm: bool = True,
        auto_declare: bool = True,
    ) -> Producer:
        """Return a producer.

        Args:
            exchange: Default exchange of ``publish``. If it is a name, the exchange must exist, and is not
                declared.
            routing_key: Default routing key.
            serializer: Default serializer.
            compression: Default compression method.
            confirm: If True, a publish waits for the broker's confirm (AMQP); if False, a mandatory one still does, on
                a channel of its own.
            auto_declare: If True, the exchange is declared before the first publish.
        """
        return Producer(self, exchange, routing_key, serializer, compression, confirm, auto_declare)

    def consume(
        self,
        queues: Queues,
        *,
        prefetch: int = 100,
        no_ack: bool = False,
        accept: Iterable[str] | None = None,
        max_deliveries: int | None = None,
        dead_letter: Queue | Exchange | str | None = None,
        exclusive: bool = False,
        auto_declare: bool = True,
        offsets: OffsetStore | None = None,
    ) -> Messages:
        """Consume from queues, inside ``async with``.

        Args:
            queues: A queue, or several; a name stands for a queue with default settings.
            prefetch: Largest number of unsettled messages, from 1.
            no_ack: If True, a message counts as acknowledged when the application gets it.
            accept: Serializer names or content types that may be decoded (None: all that are not disabled).
            max_deliveries: With ``dead_letter``: a message that was delivered so often and came back is
                dead-lettered.
            dead_letter: A queue, its name, or an exchange for those messages.
            exclusive: If True, no other consumer may have the queues.
            auto_declare: If True, the queues are declared first.
            offsets: The place where offsets of streams are kept for the next start of the program, such as
                ``kombulite.contrib.stream_offsets.OffsetFile``. It is used in a thread.

        Example:
            ```py
            async with connection.consume("jobs", prefetch=100) as messages:
                async for message in messages:
                    async with message.process():
                        print(message.payload)
            ```
        """
        given = [queues] if isinstance(queues, (Queue, str)) else list(queues)
        found = [Queue(each) if isinstance(each, str) else each for each in given]
        rule = dead_letter_rule(max_deliveries, dead_letter)
        accepted = prepare_accept_content(accept)
        return Messages(self, self.session, found, prefetch, no_ack, accepted, rule, exclusive, auto_declare, offsets)

    async def get(
        self,
        queue: Queue | str,
        no_ack: bool = False,
        accept: Iterable[str] | None = None,
        timeout: float | None = None,
    ) -> Message | None:
        """Return the next message of a queue, or None. One that arrives after a cancellation returns to the queue.

        With ``no_ack`` the broker has forgotten such a message. The connection keeps it, and the next ``get()`` of that
        queue with ``no_ack`` returns it.

        Args:
            queue: The queue, or its name.
            no_ack: If True, a message counts as acknowledged when the broker sends it.
            accept: Serializer names or content types that may be decoded (None: all that are not disabled).
            timeout: Seconds (None: the connection's default, 30).
        """
        accepted, name = prepare_accept_content(accept), _name(queue)
        found = await self.session.get(name, no_ack, self.session.waits.deadline(timeout))
        if found is None:
            return None
        delivery, channel = found
        message = Message.from_delivery(delivery, channel)
        message.queue, message.accept, message.no_ack = name, accepted, no_ack
        self.session.tally.count_consumed(delivery)
        if self.hooks is not None:
            self.hooks.get(message, name)
        return message

    async def call(
        self,
        body: object,
        routing_key: str,
        *,
        exchange: Exchange | str = "",
        timeout: float | None = None,
        accept: Iterable[str] | None = None,
        **arguments: Any,
    ) -> Message:
        """Publish a request, and return the reply.

        The answering side calls ``reply``, or publishes to ``message.properties["reply_to"]`` with the request's
        ``correlation_id``.

        Args:
            body: The body of the request.
            routing_key: Routing key.
            exchange: Exchange of the request, or its name (default: the default exchange).
            timeout: Seconds for all of it (None: the connection's default, 30).
            accept: Serializer names or content types that may be decoded (None: all that are not disabled).
            **arguments: Keywords of ``Producer.publish``.

        Raises:
            MessageReturned: No queue took the request.
            TimeoutError: No reply arrived in time.
            RecoverableConnectionError: The connection was lost, and a reply with it (RabbitMQ). The request may
                have been handled.
        """
        accepted, deadline = prepare_accept_content(accept), self.session.waits.deadline(timeout)
        message = await self._caller.call(body, routing_key, exchange, deadline, arguments)
        message.accept = accepted
        return message

    async def reply(self, request: Message, body: object, *, mandatory: bool = False, **arguments: Any) -> None:
        """Publish the reply to a request of ``call``.

        Args:
            request: The request.
            body: The body of the reply.
            mandatory: If True, MessageReturned is raised if the requester is known to be gone.
            **arguments: Keywords of ``Producer.publish``.
        """
        await self._caller.reply(request, body, mandatory, arguments)

    async def serve(
        self,
        queues: Queues,
        handler: Callable[[Message], Awaitable[object]],
        *,
        concurrency: int = 10,
        key: Callable[[Message], Any] | None = None,
        on_error: OnError = "requeue",
        stop: asyncio.Event | None = None,
        signals: Sequence[int] = (),
        grace: float = 30.0,
        **arguments: Any,
    ) -> None:
        """Handle the messages of queues until ``stop`` is set, a signal arrives, or the task is cancelled.

        Args:
            queues: A queue, or several, or their names.
            handler: Called with each message, which is acknowledged when the handler returns.
            concurrency: Largest number of messages that are handled at a time.
            key: Function from a message to its key: messages of one key are handled one after another, in order.
            on_error: Outcome of a message whose handler raises: see ``Message.process``.
            stop: Event that ends it.
            signals: Numbers of signals that end it, such as ``signal.SIGTERM``; in the main thread only. A signal ends
                all ``serve`` calls of the loop that name it.
            grace: Seconds for running handlers to end after ``stop`` or a signal; later ones are cancelled, and their
                messages requeued. If the task is cancelled, so are its handlers, at once.
            **arguments: Keywords of ``consume``.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {concurrency}")
        arguments.setdefault("prefetch", 2 * concurrency if key else concurrency)
        server = Server(handler, concurrency, key, on_error, grace)
        async with self.consume(queues, **arguments) as messages:
            await server.run(messages, stop, signals)

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until the broker has answered everything that was published before.

        Args:
            timeout: Seconds (None: the connection's default, 30).
        """
        await self.session.window.flush(self.session.waits.deadline(timeout))

    async def insured(self, fun: Callable[[], Awaitable[None]], policy: RetryPolicy, deadline: float) -> None:
        """Call a function, and retry after a failure.

        Args:
            fun: The coroutine function.
            policy: The policy of the retries.
            deadline: Latest begin of an attempt, on the monotonic clock; after it the error is raised.

        Raises:
            OperationalError: The attempts are used up.
        """
        retrier, is_lost = Retrier(policy), False
        while True:
            try:
                if is_lost and policy.on_revive is not None:
                    await self.session.ensure(deadline)
                    policy.on_revive(self)
                await fun()
                return
            except Exception as error:
                following, pause = retrier.failed(error, self.get_transport_cls())
                is_lost = following is NextTry.WHEN_CONNECTED
                if monotonic() + pause >= deadline:
                    raise
                retrier.report(error, pause)
            await asyncio.sleep(pause)

    # --- what is seen of it

    def get_transport_cls(self) -> type[Transport]:
        """Return the class of the synchronous transport."""
        return self._transport_class

    @property
    def _transport_class(self) -> type[Transport]:
        return self.session.transport_class

    @property
    def hooks(self) -> Hooks | None:
        """The hooks around publishing and consuming, or None."""
        return self.session.hooks

    @property
    def counters(self) -> Counters:
        """Counts of messages and reconnects since the connection was created; closing does not reset them."""
        return self.session.counters

    def add_hook(self, hook: Hook) -> None:
        """Install a hook around publishing, ``process`` and ``serve``. Repeating has no effect.

        Args:
            hook: The hook.
        """
        if self.session.add_hook(hook, self):
            hook.installed(self)

    def remove_hook(self, hook: Hook) -> None:
        """Remove a hook, if it is installed.

        Args:
            hook: The hook.
        """
        self.session.remove_hook(hook, self)


def _name(queue: Queue | str) -> str:
    return queue if isinstance(queue, str) else queue.name
