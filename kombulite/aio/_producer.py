"""Sending messages: one at a time, in batches, in streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from kombulite._client.outgoing import Chunk, DeliveryBatch, MessageArguments, MessageMaker
from kombulite._client.retry import RetryPolicy
from kombulite._core import BaseAsyncProducer, Delivery
from kombulite.aio._session import compiled
from kombulite.entity import Exchange

if TYPE_CHECKING:
    from typing_extensions import Unpack


#: What a program's class may have of its own, and publishing has to ask for then.
STEPS = ("make", "exchange", "routing_key", "serializer", "compression")


class Producer(BaseAsyncProducer, MessageMaker):
    """Producer: publishes messages. Returned by ``Connection.producer``; tasks may share it.

    A publish returns when the broker has confirmed the message, unless ``confirm`` is False and it is not mandatory.
    """

    def __init__(
        self,
        connection: Any,
        exchange: Exchange | str | None,
        routing_key: str,
        serializer: str | None,
        compression: str | None,
        confirm: bool,
        auto_declare: bool,
    ) -> None:
        MessageMaker.__init__(self, exchange, routing_key, serializer, compression)
        self.connection = connection
        self.confirm = confirm
        self.role = "confirmed" if confirm else "plain"  # of the channel that it publishes on
        self.auto_declare = auto_declare and isinstance(exchange, Exchange)
        self._session = connection.session
        self._in_steps = any(getattr(type(self), name) is not getattr(Producer, name) for name in STEPS)

    @compiled(BaseAsyncProducer._publish)
    def publish(  # type: ignore[empty-body]
        self,
        body: object,
        routing_key: str | None = None,
        *,
        mandatory: bool = False,
        immediate: bool = False,
        declare: Iterable[Any] | None = None,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
        retry: bool = False,
        retry_policy: Mapping[str, Any] | None = None,
        via: object = None,
        **arguments: Unpack[MessageArguments],
    ) -> Coroutine[Any, Any, None]:
        """Publish a message. If it is cancelled before its turn, the message is not sent.

        Args:
            body: The body: what the serializer can encode, or text or bytes with a ``content_type``.
            routing_key: Routing key (None: the producer's).
            mandatory: If True, the broker returns the message if no queue takes it. Its confirm is waited for in any
                case.
            immediate: Ignored, as current brokers do.
            declare: Entities to declare first.
            timeout: Seconds for all of it (None: the connection's default, 30).
            confirm_timeout: Further seconds, for the broker's confirm; alone, seconds for all of it.
            retry: If True, reconnect and try again after a failure.
            retry_policy: Keywords of ``Connection.ensure``: max_retries, interval_start, interval_step,
                interval_max, errback, on_revive (called with this connection), retry_errors.
            via: A transaction of the caller's on the database that is the broker (SQL brokers only): an
                asynchronous session or connection of SQLAlchemy, a connection of psycopg, asyncpg or aiosqlite, or
                a synchronous one. The message exists if that transaction commits, and not before.
            **arguments: Keywords of the synchronous ``publish`` for the message: exchange, serializer, compression,
                headers, priority, delivery_mode, expiration, content_type, content_encoding, correlation_id, reply_to,
                eta, and AMQP's other properties.

        Raises:
            MessageReturned: It was mandatory, and no queue took it.
            MessageNacked: The broker refused it.
            NotFound: The exchange does not exist.
            EncodeError: The body cannot be encoded.
            TimeoutError: The broker did not answer in time; it may have the message.
            Blocked: The broker takes no messages, because it is short of memory or disk (RabbitMQ).
            RecoverableConnectionError: The connection was lost; the broker may have the message.
        """

    async def _publish_slowly(
        self,
        sent: Any,
        delivery: Delivery,
        mandatory: bool,
        declare: Iterable[Any] | None = None,
        timeout: float | None = None,
        retry: bool = False,
        retry_policy: Mapping[str, Any] | None = None,
        via: Any = None,
    ) -> None:
        session = self._session
        deadline = session.waits.deadline(timeout)
        if sent is not False and await session.wait_for_answer(sent, delivery, self.role, deadline):
            return
        if via is not None:
            await self._declare(declare)
            hooks = self._session.hooks
            if hooks is not None:
                delivery = hooks.collect(delivery, mandatory)
            await session.publish_via(via, delivery, mandatory, deadline)
            return
        if not retry:
            await self._publish_once(delivery, mandatory, declare, deadline)
            return
        policy, publish_once = RetryPolicy(**(retry_policy or {})), self._publish_once
        await self.connection.insured(lambda: publish_once(delivery, mandatory, declare, deadline), policy, deadline)

    async def _publish_once(
        self, delivery: Delivery, mandatory: bool, declare: Iterable[Any] | None, deadline: float
    ) -> None:
        session = self._session
        role = "confirmed" if mandatory and not self.confirm else self.role  # a return is told from a confirm alone
        if self._declared is not session.declared or declare:
            await self._declare(declare)
        hooks = self._session.hooks
        if hooks is None:
            await session.publish(delivery, mandatory, role, deadline)
            return
        with ExitStack() as stack:
            for outgoing, around in hooks.publishing(delivery, mandatory):
                stack.enter_context(around)
                delivery = outgoing.delivery()
            await session.publish(delivery, mandatory, role, deadline)

    async def _declare(self, entities: Iterable[Any] | None = None) -> None:
        session, connection = self._session, self.connection
        if self.auto_declare and self.exchange.name:
            await connection.maybe_declare(self.exchange)
        for entity in entities or ():
            await connection.maybe_declare(entity)
        is_settled = self.exchange.can_cache_declaration or not self.auto_declare
        self._declared = session.declared if is_settled else None

    async def publish_many(
        self,
        bodies: Iterable[Any] | AsyncIterable[Any],
        routing_key: str | None = None,
        *,
        mandatory: bool = False,
        declare: Iterable[Any] | None = None,
        timeout: float | None = None,
        **arguments: Unpack[MessageArguments],
    ) -> int:
        """Publish many bodies of an iterable, or an asynchronous one. Return the number that the broker took.

        ``bodies`` may be endless: they are sent a thousand, or some megabytes, at a time.

        Args:
            bodies: The bodies.
            routing_key: Routing key (None: the producer's).
            mandatory: If True, the broker returns the message if no queue takes it.
            declare: Entities to declare first.
            timeout: Seconds for each of the parts that are sent together.
            **arguments: Keywords of the synchronous ``publish`` for the messages: exchange, serializer, compression,
                headers, priority, delivery_mode, expiration, content_type, content_encoding, correlation_id, reply_to,
                eta, and AMQP's other properties.

        Raises:
            BatchPublishError: Some messages were refused; ``refused`` names them by their index.
        """

        def make(body: Any) -> Delivery:
            return self.make(body, routing_key, **arguments)

        await self._declare(declare)
        chunk = Chunk()
        source = bodies if isinstance(bodies, AsyncIterable) else _asynchronous(bodies)
        async for body in source:
            if chunk.add(make, body):
                await self._send(chunk, mandatory, timeout)
                if chunk.is_over:
                    break
        await self._send(chunk, mandatory, timeout)
        chunk.raise_refused()
        return chunk.total

    async def _send(self, chunk: Chunk, mandatory: bool, timeout: float | None) -> None:
        if chunk.deliveries:
            first, deliveries = chunk.take()
            chunk.note_refused(first, await self.send_many(deliveries, mandatory, timeout))

    async def send_many(
        self, deliveries: list[Delivery], mandatory: bool, timeout: float | None = None
    ) -> list[tuple[int, Exception]]:
        """Publish messages that are encoded already. Return those that were refused, as (index, exception).

        Args:
            deliveries: The messages.
            mandatory: If True, the broker returns the message if no queue takes it.
            timeout: Seconds for all of them.
        """
        session, hooks = self._session, self._session.hooks
        deadline, confirm = session.waits.deadline(timeout), self.confirm or mandatory
        if hooks is None:
            refused: list[tuple[int, Exception]] = await session.publish_many(deliveries, mandatory, confirm, deadline)
            return refused
        with ExitStack() as stack:
            for many, around in hooks.publishing_many(deliveries, mandatory):
                stack.enter_context(around)
                deliveries = [outgoing.delivery() for outgoing in many]
            refused = await session.publish_many(deliveries, mandatory, confirm, deadline)
            for index, error in refused:
                many[index].error = error
        return refused

    @asynccontextmanager
    async def batch(self, max_size: int = 1000) -> AsyncIterator[Batch]:
        """Collect messages, and send them together: at ``max_size``, on ``flush()``, and at the end of the block.

        ``await batch.publish(...)`` adds a message. An exception inside the block discards the messages that were not
        sent yet.

        Args:
            max_size: Messages to send together.

        Raises:
            BatchPublishError: Some messages were refused; ``refused`` names them by their index.
        """
        batch = Batch(self, max_size)
        yield batch
        await batch.flush()


class Batch(DeliveryBatch):
    """Messages that wait to be sent together. Returned by ``Producer.batch()``; tasks may share it."""

    def __init__(self, producer: Producer, max_size: int) -> None:
        super().__init__(max_size)
        self._producer = producer
        self._sending = asyncio.Lock()  # what waits is noted as sent by the task that sends it

    async def publish(
        self,
        body: object,
        routing_key: str | None = None,
        *,
        mandatory: bool = False,
        declare: Iterable[Any] | None = None,
        **arguments: Unpack[MessageArguments],
    ) -> None:
        """Add a message, as ``Producer.publish`` would send it; a full batch is sent.

        Args:
            body: The body.
            routing_key: Routing key (None: the producer's).
            mandatory: If True, the broker returns the message if no queue takes it.
            declare: Entities to declare first.
            **arguments: Keywords of the synchronous ``publish`` for the message: exchange, serializer, compression,
                headers, priority, delivery_mode, expiration, content_type, content_encoding, correlation_id, reply_to,
                eta, and AMQP's other properties.
        """
        producer = self._producer
        delivery = producer.make(body, routing_key, **arguments)
        if declare:
            await producer._declare(declare)
        hooks = producer.connection.hooks
        self.append(delivery if hooks is None else hooks.collect(delivery, mandatory), mandatory)
        if self.is_full:
            await self.flush()

    async def flush(self) -> None:
        """Send the waiting messages. After an error of the connection they continue to wait.

        Raises:
            BatchPublishError: Some messages were refused; ``refused`` names them by their index.
        """
        async with self._sending:
            while alike := self.first_alike():
                await self._producer._declare()
                self.note_sent(alike, await self._producer.send_many(alike, self.is_mandatory))
            self.raise_refused()


async def _asynchronous(bodies: Iterable[Any]) -> AsyncIterator[Any]:
    for body in bodies:
        yield body
