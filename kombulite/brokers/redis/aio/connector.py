"""Opening connections for an event loop, in threads: it is redis-py that asks sentinels, and greets the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any

from kombulite.brokers.aio import Pending, refuse
from kombulite.brokers.base import Settings
from kombulite.brokers.redis.aio.stream import AsyncStream
from kombulite.brokers.redis.connector import Connector
from kombulite.brokers.redis.options import Options
from kombulite.brokers.redis.replies import OnReply


class AsyncConnector:
    """Opens streams to one database. Raises ValueError for settings that cannot be."""

    def __init__(self, settings: Settings, options: Options) -> None:
        self._loop = asyncio.get_running_loop()
        self._connector = Connector(settings, options)
        self._timeout = options.socket_timeout

    @property
    def identity(self) -> tuple[Any, ...]:
        """What tells one database from another, for this process."""
        return self._connector.identity

    async def open(
        self,
        on_push: OnReply,
        on_received: Callable[[], object],
        on_lost: Callable[[AsyncStream, Exception], object],
    ) -> AsyncStream:
        """Open a connection. Raises ConnectionError or OSError. If it is cancelled, the connection is closed."""
        opened: Pending[Any] = self._loop.create_future()
        Thread(target=self._connect, args=(opened,), name="kombulite-redis-connect", daemon=True).start()
        connection, connector = await opened, self._connector
        stream = AsyncStream(connection, connector.protocol, self._timeout, on_push, on_received, on_lost)
        connector.watch(stream)
        return stream

    def _connect(self, opened: Pending[Any]) -> None:
        connection: Any = None
        try:
            connection = self._connector.connect()
            done = partial(_hand_over, opened, connection)
        except Exception as error:
            done = partial(refuse, opened, error)
        try:
            self._loop.call_soon_threadsafe(done)
        except RuntimeError:  # the loop is closed
            if connection is not None:
                connection.disconnect()


def _hand_over(opened: Pending[Any], connection: Any) -> None:
    if opened.cancelled():
        connection.disconnect()
    else:
        opened.set_result(connection)
