"""Opening connections: where the server is, and what is agreed with it (redis-py does the handshake)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from redis import exceptions as driver
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.retry import Retry
from redis.sentinel import Sentinel

from kombulite import exceptions
from kombulite.brokers.base import Settings
from kombulite.brokers.redis.errors import driver_error
from kombulite.brokers.redis.link import Link, OnReply
from kombulite.brokers.redis.options import Options, credentials_of, database_of

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
        options = self._options
        return Link(self._open(), self.protocol, options.socket_timeout, on_push, options.health_check_interval)

    def reopen(self, link: Link) -> None:
        """Open the connection of a link anew, which the server has closed. Raises ConnectionError or OSError."""
        link.attach(self._open(), self.protocol)

    def _open(self) -> AbstractConnection:
        if self._is_sentinel:
            self._arguments["host"], self._arguments["port"] = self._discover()
        connection, error = self._connect()
        if isinstance(error, driver.ResponseError) and self._options.protocol is None and _knows_no_resp3(error):
            self.protocol = 2
            connection, error = self._connect()
        if error is not None:
            # Not from it: where the server quotes what it was sent, its words have the password.
            raise _connect_error(error)
        assert connection is not None
        return connection

    def _connect(self) -> tuple[AbstractConnection | None, driver.RedisError | None]:
        """A connection, or why there is none."""
        connection = None
        try:
            connection = self._kind(protocol=self.protocol, **self._arguments)
            connection.connect()  # type: ignore[no-untyped-call]
        except driver.RedisError as error:
            return None, error
        except TypeError as error:
            raise ValueError(f"settings that redis-py does not take: {error}") from error
        except (AttributeError, LookupError, UnicodeError) as error:  # it does not check what it is told
            assert connection is not None
            connection.disconnect()  # type: ignore[no-untyped-call]
            return None, driver.InvalidResponse(f"the server does not speak Redis: {error}")
        return connection, None

    def _discover(self) -> tuple[str, int]:
        """Where the sentinels say the master is."""
        timeout = self._arguments["socket_connect_timeout"]
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            self._sentinels,
            min_other_sentinels=self._options.min_other_sentinels,
            sentinel_kwargs={
                "socket_timeout": timeout,
                "socket_connect_timeout": timeout,
                "retry": Retry(NoBackoff(), 0),  # there are others; by default it would ask a dead one ten times
                **(self._options.sentinel_kwargs or {}),
            },
        )
        try:
            host, port = sentinel.discover_master(self._options.master_name)  # type: ignore[no-untyped-call]
            return host, port
        except driver.RedisError as error:
            failure = driver_error(error, _unquoted(error))
        finally:
            for each in sentinel.sentinels:
                each.close()
        raise failure


def _connect_error(error: driver.RedisError) -> Exception:
    """What keeps us from connecting is of the connection, whatever the server calls it."""
    mapped = driver_error(error, _unquoted(error))
    if isinstance(mapped, (exceptions.ConnectionError, OSError)):
        return mapped
    return exceptions.NotAllowed(_unquoted(error))


def _unquoted(error: driver.RedisError) -> str:
    """Its words without the arguments of a command that the server does not know, such as a password."""
    return str(error).partition(", with args")[0]


def _knows_no_resp3(error: driver.ResponseError) -> bool:
    return "NOPROTO" in str(error) or "unknown command" in str(error)


def _sentinel_addresses(urls: tuple[str, ...]) -> list[tuple[str, int]]:
    """The other sentinels among the alternate URLs."""
    parts = [urlsplit(url) for url in urls[1:] if url.startswith("sentinel://")]
    return [(part.hostname or "localhost", part.port or DEFAULT_SENTINEL_PORT) for part in parts]
