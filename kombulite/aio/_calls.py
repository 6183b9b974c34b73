"""Requests and their replies: publishing a message, and waiting for the one that answers it."""

from __future__ import annotations

import asyncio
from logging import getLogger
from time import monotonic
from typing import Any

from kombulite import exceptions
from kombulite._core import Delivery
from kombulite.aio._messages import Message, Messages
from kombulite.aio._producer import Producer
from kombulite.aio._session import AsyncSession, Channel
from kombulite.brokers.aio import Pending, refuse, resolve
from kombulite.brokers.base import Event
from kombulite.entity import Queue
from kombulite.utils.uuid import uuid

logger = getLogger("kombulite.aio")

DIRECT_REPLY_TO = "amq.rabbitmq.reply-to."  # how the addresses of requesters without a queue begin
EXPIRES = 3600.0  # seconds after which a broker may delete a reply queue that nobody uses


class Caller:
    """The calls of one connection.

    Their replies come to one queue; or, where the broker passes replies on without a queue (direct reply-to), to the
    channel that their requests were published on. What comes to a queue outlives a lost connection; what would have
    come to a channel is lost with it.
    """

    def __init__(self, connection: Any, session: AsyncSession) -> None:
        self._connection = connection
        self._session = session
        self._producer = Producer(connection, "", "", None, None, True, False)
        self._direct_producer = Producer(connection, "", "", None, None, True, False)
        self._direct_producer.role = "calls"
        self._waiting: dict[str, Pending[Message]] = {}
        self._publishing: set[str] = set()  # of these, the requests whose publish goes on, maybe on the next channel
        self._channel: Channel | None = None
        self._queue: Queue | None = None
        session.preparing["calls"] = self._receive_directly

    async def call(
        self, body: Any, routing_key: str, exchange: Any, deadline: float, arguments: dict[str, Any]
    ) -> Message:
        """Publish a request, and wait for its reply."""
        session = self._session
        direct = (await session.ensure(deadline)).reply_address
        if direct is not None:
            producer, reply_to = self._direct_producer, direct
        else:
            if self._queue is None:
                await session.waits.once("reply queue", self._open, deadline, "declare a reply queue")
            assert self._queue is not None
            producer, reply_to = self._producer, self._queue.name
        correlation_id = arguments.pop("correlation_id", None) or uuid()
        if correlation_id in self._waiting:
            raise ValueError(f"correlation_id must be of one call at a time, got {correlation_id!r} again")
        reply: Pending[Message] = session.waits.check_loop().create_future()
        self._waiting[correlation_id] = reply
        self._publishing.add(correlation_id)
        try:
            await producer.publish(
                body,
                routing_key,
                exchange=exchange,
                mandatory=True,
                correlation_id=correlation_id,
                reply_to=reply_to,
                timeout=max(deadline - monotonic(), 0),
                **arguments,
            )
            self._publishing.discard(correlation_id)
            if not self._receives(reply_to):  # it was lost as the request was confirmed
                refuse(reply, exceptions.RecoverableConnectionError("no more replies come: their way is closed"))
            return await session.waits.wait(reply, deadline, "call")
        finally:
            del self._waiting[correlation_id]
            self._publishing.discard(correlation_id)

    async def reply(self, request: Message, body: Any, mandatory: bool, arguments: dict[str, Any]) -> None:
        """Publish the reply to a request."""
        reply_to = request.properties["reply_to"]
        if mandatory and reply_to.startswith(DIRECT_REPLY_TO):
            # RabbitMQ 3 returns such a message though it arrives, RabbitMQ 4 none; a passive declaration tells.
            mandatory = False
            try:
                await self._connection.status(reply_to)
            except exceptions.NotFound:
                raise exceptions.MessageReturned.no_route() from None
        await self._producer.publish(
            body,
            reply_to,
            exchange="",
            mandatory=mandatory,
            correlation_id=request.properties.get("correlation_id"),
            **arguments,
        )

    def _take(self, message: Message) -> None:
        waiting = self._waiting.get(message.properties.get("correlation_id", ""))
        if waiting is None:
            logger.info("a reply came after its call had ended")
        else:
            resolve(waiting, message)

    def _receives(self, reply_to: str) -> bool:
        if self._queue is not None and self._queue.name == reply_to:
            return True
        return self._channel is not None and self._channel.is_open

    def _refuse_all(self, reason: object) -> None:
        for correlation_id, waiting in self._waiting.items():
            if correlation_id not in self._publishing:
                refuse(waiting, exceptions.RecoverableConnectionError(f"no more replies come: {reason}"))

    # --- to a channel

    async def _receive_directly(self, channel: Channel) -> None:
        """Have replies come to a channel, on which requests are published then."""
        session, transport = self._session, channel.transport
        await session.waits.answer(transport.confirm(channel.number))

        def receive(event: Event) -> None:
            if isinstance(event, Delivery):
                message = Message.from_delivery(event, channel)
                message.no_ack = True
                session.tally.count_consumed(event)
                self._take(message)

        self._channel, channel.on_event, channel.on_closed = channel, receive, self._refuse_all
        address = transport.reply_address or ""
        await session.waits.answer(transport.consume(channel.number, address, "replies", True, False, None))

    # --- to a queue

    async def _open(self) -> None:
        queue = Queue(f"reply.{uuid()}", expires=EXPIRES)  # durable: others the operator may refuse
        messages = self._connection.consume(queue, no_ack=True, prefetch=1000)
        await messages.__aenter__()
        self._queue = queue
        session = self._session
        task = session.waits.check_loop().create_task(self._receive(messages, queue))
        session.waits.keep("replies", task)

    async def _receive(self, messages: Messages, queue: Queue) -> None:
        try:
            async for message in messages:
                self._take(message)
        except asyncio.CancelledError:
            await self._close(messages, queue)
            raise
        except Exception as error:
            self._refuse_all(error)
            await self._close(messages, queue)

    async def _close(self, messages: Messages, queue: Queue) -> None:
        self._queue = None
        try:
            await messages.__aexit__(None, None, None)
            if self._session.is_open:
                await self._connection.delete(queue)
        except Exception as error:
            logger.info("the reply queue %s is left to expire: %s", queue.name, error)
