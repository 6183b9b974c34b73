"""A connection to a broker on an event loop.

The class is wider than others: it has a verb for each thing that a program asks of a broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kombulite._client.address import DEFAULT_SETTINGS, Address
from kombulite._client.counters import Counters
from kombulite._client.dead_letters import dead_letter_rule
from kombulite._client.declarations import binding_step, declaring, require_kind
from kombulite._client.hooks import Hook, Hooks
from kombulite._client.lifecycle import State
from kombulite._client.process import register
from kombulite._client.retry import Retrier, RetryPolicy
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
    """Make a connection for ``async with``, or for ``await connection.connect()``. Nothing is opened before.

    The arguments are those of the synchronous ``Connection``.
    """
    unknown = settings.keys() - DEFAULT_SETTINGS.keys()
    if unknown:
        raise TypeError(f"connect() got an unexpected keyword argument {min(unknown)!r}")
    return Connection(hostname, alternates, failover_strategy, transport_options, {**DEFAULT_SETTINGS, **settings})


class Connection(Address):
    """A connection to a broker on one event loop, for any number of tasks. Made by ``connect``.

    It opens when it is used, and again after it was lost. Another loop, or a thread without one, gets a RuntimeError.
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
        """Make a connection of the same settings and hooks as a synchronous one has."""
        info = connection.info()
        info.pop("insist")
        made = connect(**{**info, "transport_options": dict(info["transport_options"])})
        for hook in connection.hooks or ():
            made.add_hook(hook)
        return made

    # --- beginning and end

    async def connect(self, timeout: float | None = None) -> Connection:
        """Connect now. Raises what connecting ended with, TimeoutError."""
        await self.session.ensure(self.session.waits.deadline(timeout))
        return self

    async def close(self) -> None:
        """Close the connection: consumers end, messages not settled go back. It opens again when it is used again."""
        await self.session.close()

    async def __aenter__(self) -> Connection:
        return await self.connect()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def update_secret(self, secret: str, reason: str = "", timeout: float | None = None) -> None:
        """Give the broker a new secret for the connection that is open, as before an OAuth 2 token expires (RabbitMQ).

        The arguments and errors are those of the synchronous ``update_secret``.
        """
        deadline = self.session.waits.deadline(timeout)
        transport = await self.session.ensure(deadline)
        await self.session.waits.wait(transport.update_secret(secret, reason), deadline, "update_secret")

    @property
    def connected(self) -> bool:
        """Whether the connection is open."""
        return self.session.is_open

    @property
    def state(self) -> State:
        """Where the connection stands."""
        return self.session.state()

    async def states(self) -> AsyncIterator[State]:
        """Give the state now, and each that follows."""
        queue: asyncio.Queue[State] = asyncio.Queue()
        queue.put_nowait(self.state)
        self.session.watchers.append(queue.put_nowait)
        try:
            while True:
                yield await queue.get()
        finally:
            self.session.watchers.remove(queue.put_nowait)

    def after_fork(self) -> None:
        """Forget, in a forked child, the connection that is the parent's."""
        self.session.abandon()

    def __repr__(self) -> str:
        return f"<aio.Connection: {self.as_uri()} {self.session.life.state.value}>"

    # --- exchanges and queues

    async def declare(self, entity: Exchange | Queue, timeout: float | None = None) -> str:
        """Declare an exchange, or a queue with its exchange and bindings. Returns its name.

        Raises NotFound (passive), NotEquivalentError, ResourceLocked, TimeoutError.
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
        """Declare an entity unless that was done on this connection; returns whether it was done now."""
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
        """Bind a queue, or an exchange, to an exchange. Raises NotFound."""
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
        """Take a binding away."""
        step = binding_step(exchange, destination, routing_key, arguments)
        await self.session.ask("unbind", *step.arguments, deadline=self.session.waits.deadline(None))
        self.session.topology.unbound(Binding(*step.arguments))

    async def delete(self, entity: Exchange | Queue, if_unused: bool = False, if_empty: bool = False) -> int:
        """Delete an exchange, or a queue; returns the messages gone with it. Raises PreconditionFailed."""
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
        """Remove the messages that wait in a queue; returns how many. Raises NotFound."""
        purged: int = await self.session.ask("purge", _name(queue), deadline=self.session.waits.deadline(None))
        return purged

    async def status(self, queue: Queue | str) -> QueueInfo:
        """Return a queue's name, and how many messages and consumers it has. Raises NotFound."""
        spec, deadline = QueueSpec(_name(queue)), self.session.waits.deadline(None)
        info: QueueInfo = await self.session.ask("declare_queue", spec, True, deadline=deadline)
        return info

    async def list_queues(self) -> Sequence[QueueStatus]:
        """Return all queues. Raises AMQPNotImplementedError where a broker cannot list them."""
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
        """Make a producer with these defaults for ``publish``.

        Args:
            exchange: The exchange, or the name of one that exists: of a name alone nothing is declared.
            confirm: Whether a publish waits until the broker has the message, where brokers say so (AMQP).
            auto_declare: Whether the exchange is declared before the first publish.
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
        """Consume from queues, within ``async with``.

        Args:
            queues: One or several; names stand for queues as they are declared by default.
            prefetch: Messages that are out and not settled, at the most; from 1 on.
            no_ack: Whether a message counts as acknowledged when the application gets it.
            accept: Content types or serializers that may be decoded (None: all that are not disabled).
            max_deliveries: With ``dead_letter``: a message that was delivered so many times and came back goes there.
            exclusive: Whether no other consumer may have the queues.
            auto_declare: Whether the queues are declared first.
            offsets: A place where the offsets of streams are kept for the next start of the program, such as
                ``kombulite.contrib.stream_offsets.OffsetFile``. It is used in a thread.
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
        """Fetch the next message of a queue, or None. One that comes after a cancellation goes back."""
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
        body: Any,
        routing_key: str,
        *,
        exchange: Exchange | str = "",
        timeout: float | None = None,
        accept: Iterable[str] | None = None,
        **arguments: Any,
    ) -> Message:
        """Publish a request, and return the reply to it.

        The answering side calls ``reply``, or publishes to ``message.properties["reply_to"]`` with the request's
        ``correlation_id``.

        Args:
            timeout: Seconds for all of it (None: the connection's default, 30).
            arguments: Others of ``Producer.publish``.

        Raises:
            MessageReturned: No queue takes the request.
            TimeoutError: No reply came in time.
            RecoverableConnectionError: The connection was lost, and a reply with it (RabbitMQ); the request may have
                been handled.
        """
        accepted, deadline = prepare_accept_content(accept), self.session.waits.deadline(timeout)
        message = await self._caller.call(body, routing_key, exchange, deadline, arguments)
        message.accept = accepted
        return message

    async def reply(self, request: Message, body: Any, *, mandatory: bool = False, **arguments: Any) -> None:
        """Publish the reply to a request of ``call``.

        Args:
            mandatory: Whether MessageReturned is raised where the requester is known to be gone.
            arguments: Others of ``Producer.publish``.
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
        """Handle the messages of queues until ``stop`` is set, a signal comes, or the task is cancelled.

        Args:
            handler: Called with each message, which is acknowledged when it returns.
            concurrency: How many are handled at a time, at the most.
            key: What messages with an order among them have in common: those of one key are handled one after another.
            on_error: What becomes of a message whose handler raises: see ``Message.process``.
            signals: Numbers of signals that end it, such as ``signal.SIGTERM``; in the main thread only.
            grace: Seconds for the handlers to end by themselves; those that have not are cancelled, and requeue.
            arguments: Others of ``consume``.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {concurrency}")
        arguments.setdefault("prefetch", 2 * concurrency if key else concurrency)
        server = Server(handler, concurrency, key, on_error, grace)
        async with self.consume(queues, **arguments) as messages:
            await server.run(messages, stop, signals)

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until the broker has answered all that was published before."""
        await self.session.window.flush(self.session.waits.deadline(timeout))

    async def insured(self, fun: Callable[[], Awaitable[None]], policy: RetryPolicy) -> None:
        """Call ``fun``, and again after a failure, as a policy says. Raises OperationalError at the end of it."""
        retrier = Retrier(policy)
        while True:
            try:
                await fun()
                return
            except Exception as error:
                _, pause = retrier.failed(error, self.get_transport_cls())
                retrier.report(error, pause)
            await asyncio.sleep(pause)

    # --- what is seen of it

    def get_transport_cls(self) -> type[Transport]:
        """Return the class of the synchronous transport."""
        return self.session.transport_class

    @property
    def hooks(self) -> Hooks | None:
        """What is around its publishing and consuming, if anything."""
        return self.session.hooks

    @property
    def counters(self) -> Counters:
        """What went through it since it was made, whenever it was lost or closed in between."""
        return self.session.counters

    def add_hook(self, hook: Hook) -> None:
        """Have a hook around what is published, and around ``process`` and ``serve``, from now on. Once is enough."""
        if self.session.add_hook(hook, self):
            hook.installed(self)

    def remove_hook(self, hook: Hook) -> None:
        """Take a hook away, if it is there."""
        self.session.remove_hook(hook, self)


def _name(queue: Queue | str) -> str:
    return queue if isinstance(queue, str) else queue.name
