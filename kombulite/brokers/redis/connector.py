"""Opening connections: where the server is, and what is agreed with it (redis-py does the handshake)."""

from __future__ import annotations

import re
from collections.abc import Callable
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from redis import Redis
from redis import exceptions as driver
from redis.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection

from kombulite import exceptions
from kombulite.brokers.base import Settings
from kombulite.brokers.options import check_driver_options, check_tls_settings
from kombulite.brokers.redis.errors import connect_error, unquoted
from kombulite.brokers.redis.options import Options, credentials_of, database_of
from kombulite.brokers.redis.reauth import follow
from kombulite.brokers.redis.replies import OnReply
from kombulite.brokers.redis.sentinels import NoMaster, Sentinels, WatchedStream, retry_until, watch_of
from kombulite.brokers.redis.stream import Stream

DEFAULT_SENTINEL_PORT = 26379
#: Bytes of the buffer that redis-py reads into. It reads the answers to the login alone, and keeps its buffer, of 32 kB
#: by default, which was half of what an idle connection had.
LOGIN_READ_SIZE = 1024
#: Seconds between two tries to find the new master.
FAILOVER_PAUSE = 0.2
#: The first braces, which are a tag unless they are empty (Redis Cluster specification, "Hash tags").
FIRST_BRACES = re.compile(r"[^{]*\{([^}]*)\}")
NO_CLUSTER = (
    "the server is a node of a Redis Cluster, where a queue and its leases would be on different nodes: "
    "use rediscluster:// (or the transport option cluster=True), or put all keys into one slot, such as "
    "global_keyprefix='{kombulite}:', and name its node"
)


def has_one_slot(options: Options) -> bool:
    """Return whether the prefix of all keys puts them into one slot of a cluster."""
    found = FIRST_BRACES.match(options.hash_tag + options.global_keyprefix)
    return found is not None and bool(found[1])


def hides_tags(options: Options) -> bool:
    """Return whether the prefix of all keys has empty braces, behind which a cluster takes nothing for a tag."""
    found = FIRST_BRACES.match(options.hash_tag + options.global_keyprefix)
    return found is not None and not found[1]


class Connector:
    """Opens streams to one database. Raises ValueError for settings that cannot be."""

    stream_class: type[Stream] = Stream

    def __init__(self, settings: Settings, options: Options) -> None:
        self._options = options
        self._sentinels: Sentinels | None = None
        self.protocol = options.protocol or 3
        self._has_one_slot = has_one_slot(options)
        self.address = settings.hostname or "localhost", settings.port or 6379
        self._arguments: dict[str, Any] = {
            "db": database_of(settings.virtual_host),
            "socket_timeout": options.socket_connect_timeout or settings.connect_timeout,
            "socket_connect_timeout": options.socket_connect_timeout or settings.connect_timeout,
            "client_name": options.client_name,
            "socket_read_size": LOGIN_READ_SIZE,
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
                tls = settings.ssl if isinstance(settings.ssl, dict) else {}
                check_tls_settings(tls)
                self._arguments.update(tls)
        if settings.scheme == "sentinel":
            if not options.master_name:
                raise ValueError("a sentinel URL needs the transport option master_name")
            check_driver_options(options.sentinel_kwargs or {}, Redis.__init__, "sentinel_kwargs")
            first = self.address[0], settings.port or DEFAULT_SENTINEL_PORT
            self._sentinels = Sentinels(
                list(dict.fromkeys([first, *_sentinel_addresses(settings.alternates)])),
                options.master_name,
                options.min_other_sentinels,
                self._arguments["socket_connect_timeout"],
                options.sentinel_kwargs or {},
            )

    @property
    def identity(self) -> tuple[Any, ...]:
        """What tells one database from another, for this process."""
        place = self.address if self._sentinels is None else frozenset(self._sentinels.addresses)
        return (
            place,
            self._options.master_name,
            self._arguments["db"],
            self._options.hash_tag,
            self._options.global_keyprefix,
        )

    def open(self, on_push: OnReply) -> Stream:
        """Open a connection. Raises ConnectionError or OSError.

        A server that does not know RESP3 is spoken to in RESP2.
        """
        options = self._options
        connection = self.connect()
        interval = options.health_check_interval
        stream = self.stream_class(connection, self.protocol, options.socket_timeout, on_push, interval)
        self.watch(stream)
        return stream

    def reopen(self, stream: Stream) -> None:
        """Open the connection of a stream anew, which the server has closed. Raises ConnectionError or OSError."""
        stream.attach(self.connect(), self.protocol)
        self.watch(stream)

    def watch(self, stream: WatchedStream) -> None:
        """End the connection when its server is no master any more; log in again with each new credentials."""
        follow(self._arguments.get("credential_provider"), stream)
        stream.address = self._arguments.get("host", ""), self._arguments.get("port", 0)
        if self._sentinels is not None:
            watch_of(self._sentinels).add(stream)

    def connect(self) -> AbstractConnection:
        """Return a connection of redis-py's; ``protocol`` says which RESP it speaks. Raises as ``open`` does."""
        if self._sentinels is None:
            return self._open_once()
        sentinels = self._sentinels
        # While a new master is being chosen there is none. It is there sooner than the caller would try again.
        deadline = monotonic() + (self._arguments["socket_connect_timeout"] or 0)
        connection: AbstractConnection = retry_until(lambda: self._open_master(sentinels), deadline, FAILOVER_PAUSE)
        return connection

    def _open_master(self, sentinels: Sentinels) -> AbstractConnection:
        """Connect to whom the sentinels name. Raises NoMaster if that is none, or is not to be reached."""
        address = self._arguments["host"], self._arguments["port"] = watch_of(sentinels).correct(sentinels.find())
        try:
            connection = self._open_once()
        except (exceptions.RecoverableConnectionError, OSError) as error:
            raise NoMaster(f"the master at {address[0]}:{address[1]} cannot be reached: {error}") from error
        if _is_replica(connection):
            connection.disconnect()  # type: ignore[no-untyped-call]
            raise NoMaster(f"the server at {address[0]}:{address[1]} is not the master yet")
        return connection

    def _open_once(self) -> AbstractConnection:
        connection, error = self._connect()
        if isinstance(error, driver.ResponseError) and self._options.protocol is None and _knows_no_resp3(error):
            self.protocol = 2
            connection, error = self._connect()
        if error is not None:
            # Not from it: where the server quotes what it was sent, its words have the password.
            raise connect_error(error, unquoted(error))
        assert connection is not None
        try:
            self.check_mode(connection)
        except BaseException:
            connection.disconnect()  # type: ignore[no-untyped-call]
            raise
        return connection

    def check_mode(self, connection: AbstractConnection) -> None:
        """Refuse a node of a cluster, unless all keys are in one slot. Raises NotAllowed."""
        if not self._has_one_slot and is_in_cluster(connection):
            raise exceptions.NotAllowed(NO_CLUSTER)

    def _connect(self) -> tuple[AbstractConnection | None, driver.RedisError | None]:
        """Return a connection, or why there is none."""
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


def _is_replica(connection: AbstractConnection) -> bool:
    """Whether the server is a replica, where it says."""
    greeting = getattr(connection, "handshake_metadata", None)
    if isinstance(greeting, dict):
        return greeting.get(b"role", greeting.get("role")) in (b"replica", "replica")
    try:  # RESP2
        connection.send_command("ROLE")  # type: ignore[no-untyped-call]
        return connection.read_response()[0] in (b"slave", "slave")
    except driver.ResponseError:
        return False  # its user may not ask


def is_in_cluster(connection: AbstractConnection) -> bool:
    """Whether the server is a node of a Redis Cluster, where it says."""
    greeting = getattr(connection, "handshake_metadata", None)
    if isinstance(greeting, dict):
        return greeting.get(b"mode", greeting.get("mode")) in (b"cluster", "cluster")
    try:  # RESP2
        connection.send_command("INFO", "cluster")  # type: ignore[no-untyped-call]
        return b"cluster_enabled:1" in bytes(connection.read_response(disable_decoding=True))
    except driver.ResponseError:
        return False  # its user may not ask


def _knows_no_resp3(error: driver.ResponseError) -> bool:
    return "NOPROTO" in str(error) or "unknown command" in str(error)


def _sentinel_addresses(urls: tuple[str, ...]) -> list[tuple[str, int]]:
    """Return the sentinels among all URLs: one fails over to the next, and none is to be forgotten."""
    parts = [urlsplit(url) for url in urls if url.startswith("sentinel://")]
    return [(part.hostname or "localhost", part.port or DEFAULT_SENTINEL_PORT) for part in parts]
