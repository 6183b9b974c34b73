"""Pools that a whole process shares: of connections, and of producers, each by the connection that they are like."""

from __future__ import annotations

import os
from contextlib import suppress
from contextvars import ContextVar
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from kombulite.connection import Connection
from kombulite.messaging import Producer
from kombulite.resource import ConnectionPool, Resource, evaluated
from kombulite.utils.collections import EqualityDict, eqhash
from kombulite.utils.compat import register_after_fork
from kombulite.utils.functional import lazy

__all__ = [
    "PoolGroup",
    "ProducerPool",
    "connections",
    "get_limit",
    "producers",
    "register_group",
    "reset",
    "set_limit",
]

#: Stands for the limit that ``set_limit`` sets.
use_global_limit: Any = object()

G = TypeVar("G", bound="PoolGroup")

#: How long a producer that goes out waits for its connection: arguments of ``acquire``.
_waiting: ContextVar[dict[str, Any]] = ContextVar("_waiting", default={"block": True})  # noqa: B039 - never changed

_limit = [10]
_groups: list[PoolGroup] = []


class ProducerPool(Resource[Producer]):
    """Pool of producers. Each has a connection from a pool of connections while it is in use.

    ``Producer`` may be set to another class.

    Args:
        connections: Pool of connections.
        *args: Arguments of ``Resource``.
        **kwargs: Keywords of ``Resource``.

    Keyword Args:
        Producer (type[kombulite.Producer]): Class of the producers.
    """

    Producer: Any = Producer
    close_after_fork = True

    def __init__(self, connections: ConnectionPool[Connection], *args: Any, **kwargs: Any) -> None:
        self.connections = connections
        self.Producer = kwargs.pop("Producer", None) or self.Producer
        super().__init__(*args, **kwargs)

    def new(self) -> Any:
        """Return a function that makes a producer."""
        return lazy(self.create_producer)

    def create_producer(self) -> Producer:
        """Return a producer with a connection of the pool."""
        connection = self._acquire_connection()
        try:
            return self.Producer(connection)
        except BaseException:
            connection.release()
            raise

    def _acquire_connection(self) -> Any:
        return self.connections.acquire(**_waiting.get())

    def prepare(self, p: Any) -> Producer:
        """Give a producer a connection, if it has none.

        Args:
            p: The producer.
        """
        p = evaluated(p)
        if p._channel is None:
            connection = self._acquire_connection()
            try:
                p.revive(connection)
            except BaseException:
                connection.release()
                raise
        return p

    def prepare_in_time(self, resource: Any, block: bool, deadline: float | None) -> Producer:
        """Give a producer a connection, within the time that is left.

        Args:
            resource: The producer.
            block: If True, waiting is allowed.
            deadline: End of the wait, by the monotonic clock (None: no limit).
        """
        left = None if deadline is None else max(deadline - monotonic(), 0)
        before = _waiting.set({"block": block, "timeout": left})
        try:
            return self.prepare(resource)
        finally:
            _waiting.reset(before)

    def release(self, resource: Any) -> None:
        """Take a producer back. Its connection returns to the pool of connections.

        Args:
            resource: The producer.
        """
        connection = getattr(resource, "__connection__", None)
        if connection is not None:
            connection.release()
        resource.channel = None
        if isinstance(resource, Producer):  # a stand-in keeps it, as kombu's producers do
            resource.__connection__ = None
        super().release(resource)

    def close_resource(self, resource: Any) -> None:
        """Release a producer's connection, if it has one.

        Args:
            resource: The producer.
        """
        connection = getattr(resource, "__connection__", None)
        if connection is not None:
            connection.discard()
        resource.revive(None)


class PoolGroup(EqualityDict):
    """Pools by what they are like: ``group[connection]`` makes the pool when it is first asked for.

    Args:
        limit: Limit of each pool (None or 0: no limit).
        close_after_fork: If True, a forked child starts with empty pools.
    """

    def __init__(self, limit: int | None = None, close_after_fork: bool = True) -> None:
        self.limit = limit
        self.close_after_fork = close_after_fork
        if self.close_after_fork and register_after_fork is not None:
            register_after_fork(self, _after_fork_cleanup_group)

    def create(self, resource: Any, limit: int | None) -> Resource[Any]:
        """Return a new pool.

        Args:
            resource: The connection.
            limit: Largest number of resources (None or 0: no limit).
        """
        raise NotImplementedError("PoolGroups must define ``create``")

    def __missing__(self, resource: Any) -> Resource[Any]:
        pool = self.create(resource, get_limit() if self.limit is use_global_limit else self.limit)
        # Of threads that ask at the same time one has its pool kept, and the others get that.
        kept: Resource[Any] = self.setdefault(eqhash(resource), pool)
        return kept


def _after_fork_cleanup_group(group: PoolGroup) -> None:
    group.clear()


class Connections(PoolGroup):
    """Pools of connections, by connection."""

    if TYPE_CHECKING:

        def __getitem__(self, resource: Connection) -> ConnectionPool[Connection]: ...

    def create(self, resource: Connection, limit: int | None) -> ConnectionPool[Connection]:
        """Return a pool of connections like a given one.

        Args:
            resource: The connection.
            limit: Largest number of resources (None or 0: no limit).
        """
        return resource.Pool(limit=limit)


class Producers(PoolGroup):
    """Pools of producers, by connection; their connections come from ``connections``."""

    if TYPE_CHECKING:

        def __getitem__(self, resource: Connection) -> ProducerPool: ...

    def create(self, resource: Connection, limit: int | None) -> ProducerPool:
        """Return a pool of producers on connections like a given one.

        Args:
            resource: The connection.
            limit: Largest number of resources (None or 0: no limit).
        """
        return ProducerPool(connections[resource], limit=limit)


def register_group(group: G) -> G:
    """Add a group to those that ``set_limit`` and ``reset`` act on, and return it.

    Args:
        group: The group.
    """
    _groups.append(group)
    return group


#: ``connections[connection]``: the pool of connections like that one.
connections = register_group(Connections(limit=use_global_limit))
#: ``producers[connection]``: the pool of producers on such connections.
producers = register_group(Producers(limit=use_global_limit))


def get_limit() -> int:
    """Return the limit of each pool of these groups; 0 for no limit."""
    return _limit[0]


def set_limit(limit: int | None, force: bool = False, reset_after: bool = False, ignore_errors: bool = False) -> int:
    """Set the limit of each pool, existing ones too, and return it.

    Args:
        limit: Largest number of resources (None or 0: no limit).
        force: If True, resources in use are closed.
        reset_after: If True, all resources are closed.
        ignore_errors: If True, resources in use do not matter.

    Raises:
        RuntimeError: The limit is lowered while resources are in use.
    """
    if isinstance(limit, bool):
        raise TypeError("limit must be an int, not bool")
    limit = limit or 0
    if limit != _limit[0]:
        _limit[0] = limit
        for pool in _all_pools():
            pool.resize(limit, force=force, reset=reset_after, ignore_errors=ignore_errors)
    return limit


def reset(*args: object, **kwargs: object) -> None:
    """Close all pools with all resources, and forget the pools. Errors of closing are ignored.

    Args:
        *args: Ignored.
        **kwargs: Ignored.
    """
    for pool in _all_pools():
        with suppress(Exception):
            pool.force_close_all()
    for group in _groups:
        group.clear()


def _all_pools() -> list[Resource[Any]]:
    # Producers first: their connections go back before those are closed.
    return [pool for group in reversed(_groups) for pool in list(group.values())]


#: Whether the environment asks for it. It has no effect.
disable_limit_protection = os.environ.get("KOMBU_DISABLE_LIMIT_PROTECTION")
