"""What URLs and transport options ask for, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kombulite import exceptions
from kombulite.brokers.base import QueueSpec, Settings
from kombulite.brokers.options import check_transport_options
from kombulite.utils.imports import symbol_by_name

#: Strategies of ``queue_order_strategy``.
ROUND_ROBIN, SORTED, PRIORITY = "round_robin", "sorted", "priority"


#: Options that are text, even where they look like numbers.
TEXTS = frozenset(["client_name", "master_name", "deadletter_queue", "hash_tag"])

#: Options whose None is not the default, as it is for all others: no timeout, no encoding.
NULLABLE = frozenset(["socket_timeout", "body_encoding"])


class Options(NamedTuple):
    """Transport options. Times are in seconds; options of other names are left to other transports.

    Attributes:
        sep: Separator in the members of a binding set.
        priority_steps: Priorities that have a list of their own; others use the next lower one.
        queue_order_strategy: Order in which queues are served: `round_robin`, `sorted`, `priority`, or a class.
        ack_emulation: If False, a message is gone when it is taken.
        unacked_key: Name of the hash of unacknowledged messages.
        unacked_index_key: Name of the index of unacknowledged messages.
        unacked_mutex_key: Name of the lock of the client that restores messages.
        unacked_mutex_expire: Seconds after which that lock expires, 10 at most.
        visibility_timeout: Seconds without a sign of its consumer after which a message returns to its queue.
        unacked_restore_limit: Largest number of messages to restore at a time, 10,000 at most.
        unacked_restore_interval: Seconds between two looks for messages to restore.
        unacked_restore_throttle: Factor of that interval.
        fanout_prefix: If True, pub/sub channels have the database in their names; or the prefix itself.
        fanout_patterns: If True, fanout bindings with a routing key are patterns.
        global_keyprefix: Prefix of all keys.
        hash_tag: Text before that prefix, such as `{shop}`: it puts all keys into one slot of a Redis Cluster.
        body_encoding: Encoding of bodies in the envelope: `base64`, `utf-8` for text bodies, or None.
        deadletter_queue: Queue of messages that no queue takes.
        polling_interval: Largest time between two looks if the server does not report changes; 1 second at most.
        socket_timeout: Seconds for the server to reply; None: no limit, as in kombu.
        socket_connect_timeout: Seconds to connect (default: `connect_timeout`).
        socket_keepalive: If False, TCP keepalive is off; it is on by default.
        socket_keepalive_options: TCP options by number.
        health_check_interval: Seconds of silence after which a connection is pinged.
        client_name: Name of the connection at the server.
        protocol: Version of RESP, 2 or 3 (default: 3, and 2 if the server refuses).
        master_name: Name of the master at Sentinel.
        min_other_sentinels: Sentinels that a sentinel must know to be believed.
        sentinel_kwargs: Arguments of the connections to sentinels, such as `username` and `password`.
        cluster: If True, the server is a node of a Redis Cluster.
        wait_replicas: Replicas that must have a message before a publish returns.
        sentinel_fanout_compat: If True, fanout also reaches Sentinel clients of kombu before 5.4.
    """

    sep: str = "\x06\x16"
    priority_steps: tuple[int, ...] = (0, 3, 6, 9)
    queue_order_strategy: Any = ROUND_ROBIN
    ack_emulation: bool = True
    unacked_key: str = "unacked"
    unacked_index_key: str = "unacked_index"
    unacked_mutex_key: str = "unacked_mutex"
    unacked_mutex_expire: float = 300
    visibility_timeout: float = 3600
    unacked_restore_limit: int | None = None
    unacked_restore_interval: float = 10
    unacked_restore_throttle: int = 10
    fanout_prefix: bool | str = True
    fanout_patterns: bool = True
    global_keyprefix: str = ""
    hash_tag: str = ""  # before the prefix: puts all keys into one slot of a cluster
    cluster: bool = False  # what makes a cluster of ``redis://``
    wait_replicas: int = 0  # those that have to have a message before a publish returns
    body_encoding: str | None = "base64"
    deadletter_queue: str | None = None
    polling_interval: float | None = None
    socket_timeout: float | None = 30
    socket_connect_timeout: float | None = None
    socket_keepalive: bool | None = None
    socket_keepalive_options: Mapping[Any, Any] | None = None
    health_check_interval: float = 25
    client_name: str | None = None
    protocol: int | None = None
    master_name: str | None = None
    min_other_sentinels: int = 0
    sentinel_kwargs: Mapping[str, Any] | None = None
    sentinel_fanout_compat: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Return the options among those given. Raises ValueError for one that cannot be."""
        check_transport_options(given, cls._fields)
        options = cls(
            **{
                name: _number(name, value)
                for name, value in given.items()
                if name in cls._fields and (value is not None or name in NULLABLE)
            }
        )
        for name in ("visibility_timeout", "socket_timeout", "socket_connect_timeout", "polling_interval"):
            value = getattr(options, name)
            if value is not None and not _is_positive(value):
                raise ValueError(f"{name} is a number of seconds above 0, not {value!r:.80}")
        replicas = options.wait_replicas
        if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 0:
            raise ValueError(f"wait_replicas is a number of replicas, not {replicas!r:.80}")
        if options.protocol not in (None, 2, 3):
            raise ValueError(f"protocol is 2 or 3 (RESP), not {options.protocol!r:.80}")
        if options.body_encoding not in (None, "base64", "utf-8"):
            raise ValueError(f"body_encoding is base64, utf-8 or None, not {options.body_encoding!r:.80}")
        # What kombu takes to mean the default.
        interval = options.unacked_restore_interval
        return options._replace(
            priority_steps=tuple(options.priority_steps),
            unacked_restore_interval=interval if _is_positive(interval) else 10,
            unacked_restore_throttle=options.unacked_restore_throttle or 1,
        )

    @property
    def restore_interval(self) -> float:
        """Seconds between two looks for leases that ran out."""
        return min(self.unacked_restore_interval * self.unacked_restore_throttle, self.visibility_timeout)


def _number(name: str, value: Any) -> Any:
    """Return a number as a number, also where a URL gave it as text."""
    if isinstance(value, str) and name not in TEXTS:
        try:
            return float(value) if "." in value else int(value)
        except ValueError:
            return value
    return value


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def database_of(virtual_host: str) -> int:
    """Return the number of the database that a virtual host stands for. Raises ValueError."""
    text = virtual_host.strip("/")
    if not text:
        return 0
    if not text.isdecimal():
        raise ValueError(f"a virtual host of Redis is the number of a database, 0 to limit - 1, not {virtual_host!r}")
    return int(text)


class OrderStrategy:
    """In which order queues are served: kombu's interface for ``queue_order_strategy`` (a class or its path)."""

    def __init__(self, strategy: Any) -> None:
        self.rotates = strategy == ROUND_ROBIN
        self.sorts = strategy == SORTED
        self.custom: Callable[[], Any] | None = None
        if strategy not in (ROUND_ROBIN, SORTED, PRIORITY):
            self.custom = symbol_by_name(strategy) if isinstance(strategy, str) else strategy


def credentials_of(settings: Settings) -> dict[str, Any]:
    """User and password, or what provides them, as redis-py's arguments. Raises ValueError."""
    provider = settings.credential_provider
    if provider is None:
        return {"username": settings.userid or None, "password": settings.password or None}
    from redis import CredentialProvider

    if not isinstance(provider, CredentialProvider):
        raise ValueError(f"a credential provider is a redis.CredentialProvider, not {type(provider).__name__}")
    return {"credential_provider": provider}


class Limits(NamedTuple):
    """What a queue's arguments ask for, in ms."""

    expires: int | None = None
    message_ttl: int | None = None

    @classmethod
    def of(cls, spec: QueueSpec) -> Limits:
        """Read and check the arguments of a queue. Raises PreconditionFailed."""
        arguments = spec.arguments or {}
        values = []
        for name, least in (("x-expires", 1), ("x-message-ttl", 0)):
            value = arguments.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise exceptions.PreconditionFailed(f"invalid arg '{name}' for queue '{spec.name}': {value!r:.80}")
            values.append(value)
        return cls(*values)
