"""Requests and their replies: publishing a message, and waiting for the one that answers it."""

from __future__ import annotations

import asyncio
from logging import getLogger
from typing import Any

from kombulite.aio._messages import Message, Messages
from kombulite.aio._producer import Producer
from kombulite.aio._session import AsyncSession
from kombulite.brokers.aio import Pending, refuse, resolve
from kombulite.entity import Queue
from kombulite.exceptions import RecoverableConnectionError
from kombulite.utils.uuid import uuid

logger = getLogger("kombulite.aio")

EXPIRES = 3600.0  # seconds after which a broker may delete a reply queue that nobody uses


class Caller:
    """The calls of one connection, whose replies come to one queue."""

    def __init__(self, connection: Any, session: AsyncSession) -> None:
        self._connection = connection
        self._session = session
        self._waiting: dict[str, Pending[Message]] = {}
        self._queue: Queue | None = None

    async def call(
        self, producer: Producer, body: Any, routing_key: str, exchange: Any, deadline: float, arguments: dict[str, Any]
    ) -> Message:
        """Publish a request, and wait for its reply."""
        session = self._session
        if self._queue is None:
            await session.waits.once("reply queue", self._open, deadline, "declare a reply queue")
        assert self._queue is not None
        correlation_id = arguments.pop("correlation_id", None) or uuid()
        reply: Pending[Message] = session.waits.check_loop().create_future()
        self._waiting[correlation_id] = reply
        try:
            await producer.publish(
                body,
                routing_key,
                exchange=exchange,
                mandatory=True,
                correlation_id=correlation_id,
                reply_to=self._queue.name,
                **arguments,
            )
            return await session.waits.wait(reply, deadline, "call")
        finally:
            del self._waiting[correlation_id]

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
                waiting = self._waiting.get(message.properties.get("correlation_id", ""))
                if waiting is None:
                    logger.info("a reply came that nobody waits for any more")
                else:
                    resolve(waiting, message)
        except asyncio.CancelledError:
            await self._close(messages, queue)
            raise
        except Exception as error:
            for waiting in self._waiting.values():
                refuse(waiting, RecoverableConnectionError(f"no more replies come: {error}"))
            await self._close(messages, queue)

    async def _close(self, messages: Messages, queue: Queue) -> None:
        self._queue = None
        try:
            await messages.__aexit__(None, None, None)
            if self._session.is_open:
                await self._connection.delete(queue)
        except Exception as error:
            logger.info("the reply queue %s is left to expire: %s", queue.name, error)
