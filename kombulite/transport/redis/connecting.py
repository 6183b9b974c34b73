"""Opening connections: where the server is, and what is agreed with it (redis-py does the handshake)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from redis import exceptions as driver
from redis.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.sentinel import Sentinel

from kombulite import exceptions
from kombulite.transport.base import Settings
from kombulite.transport.redis.errors import driver_error, mapped_errors
from kombulite.transport.redis.link import Link, OnReply
from kombulite.transport.redis.options import Options, credentials_of, database_of

DEFAULT_SENTINEL_PORT = 26379


class Connector:
    """Opens links to one database. Raises ValueError for settings that cannot be."""

    def __init__(self, settings: Settings, options: Options) -> None:
        self._options = options
        self._is_sentinel = settings.scheme == "sentinel"
        self.protocol = options.protocol or 3
        self.address = settings.hostname or "localhost", settings.port or 6379
        self._arguments: dict[str, Any] = {
            "db": database_of(settings.virtual_host),
            "socket_timeout": options.socket_connect_timeout or settings.connect_timeout,
            "socket_connect_timeout": options.socket_connect_timeout or settings.connect_timeout,
            "client_name": options.client_name,
            **credentials_of(settings),
        }
        self._kind: Callable[..., AbstractConnection] = Connection
        if self.address[0].startswith("/"):
            self._kind = UnixDomainSocketConnection
            self._arguments["path"] = self.address[0]
        else:
            # A peer that vanished without a word shall be noticed.
            self._arguments["socket_keepalive"] = options.socket_keepalive is not False
            if options.socket_keepalive_options:
                self._arguments["socket_keepalive_options"] = options.socket_keepalive_options
            self._arguments |= {"host": self.address[0], "port": self.address[1]}
            if settings.ssl:
                self._kind = SSLConnection
                self._arguments.update(settings.ssl if isinstance(settings.ssl, dict) else {})
        if self._is_sentinel:
            if not options.master_name:
                raise ValueError("a sentinel URL needs the transport option master_name")
            self._sentinels = [self.address, *_sentinel_addresses(settings.alternates)]
            if settings.port is None:
                self._sentinels[0] = self.address[0], DEFAULT_SENTINEL_PORT

    @property
    def identity(self) -> tuple[Any, ...]:
        """What tells one database from another, for this process."""
        place = tuple(self._sentinels) if self._is_sentinel else self.address
        return place, self._options.master_name, self._arguments["db"], self._options.global_keyprefix

    def open(self, on_push: OnReply) -> Link:
        """Open a connection. Raises ConnectionError or OSError.

        A server that does not know RESP3 is spoken to in RESP2.
        """
        if self._is_sentinel:
            self._arguments["host"], self._arguments["port"] = self._discover()
        try:
            connection = self._connect()
        except driver.ResponseError as error:
            text = str(error)
            if self._options.protocol is not None or not ("NOPROTO" in text or "unknown command" in text):
                raise _connect_error(error) from error
            self.protocol = 2
            with mapped_errors():
                connection = self._connect()
        except driver.RedisError as error:
            raise _connect_error(error) from error
        except TypeError as error:
            raise ValueError(f"settings that redis-py does not take: {error}") from error
        return Link(connection, self.protocol, self._options.socket_timeout, on_push)

    def _connect(self) -> AbstractConnection:
        connection = self._kind(protocol=self.protocol, **self._arguments)
        connection.connect()  # type: ignore[no-untyped-call]
        return connection

    def _discover(self) -> tuple[str, int]:
        """Where the sentinels say the master is."""
        timeout = self._arguments["socket_connect_timeout"]
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            self._sentinels,
            min_other_sentinels=self._options.min_other_sentinels,
            sentinel_kwargs={
                "socket_timeout": timeout,
                "socket_connect_timeout": timeout,
                **(self._options.sentinel_kwargs or {}),
            },
        )
        try:
            with mapped_errors():
                host, port = sentinel.discover_master(self._options.master_name)  # type: ignore[no-untyped-call]
                return host, port
        finally:
            for each in sentinel.sentinels:
                each.close()


def _connect_error(error: driver.RedisError) -> Exception:
    """What keeps us from connecting is of the connection, whatever the server calls it."""
    mapped = driver_error(error)
    if isinstance(mapped, (exceptions.ConnectionError, OSError)):
        return mapped
    return exceptions.NotAllowed(str(error))


def _sentinel_addresses(urls: tuple[str, ...]) -> list[tuple[str, int]]:
    """The other sentinels among the alternate URLs."""
    parts = [urlsplit(url) for url in urls[1:] if url.startswith("sentinel://")]
    return [(part.hostname or "localhost", part.port or DEFAULT_SENTINEL_PORT) for part in parts]
