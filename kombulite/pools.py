"""Pools that a whole process shares: of connections, and of producers, each by the connection that they are like."""

from __future__ import annotations

import os
from contextlib import ExitStack
from time import monotonic
from typing import Any

from kombulite import messaging
from kombulite.connection import Connection
from kombulite.resource import ConnectionPool, Resource
from kombulite.utils.collections import EqualityDict, eqhash

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
use_global_limit = object()

_limit = 10
_groups: list[PoolGroup] = []


class ProducerPool(Resource):
    """Producers, each with a connection from a pool of connections while it is out.

    Further arguments are those of ``Resource``; ``Producer`` may be another class of producers.
    """

    Producer: type[messaging.Producer] = messaging.Producer
    close_after_fork = True

    def __init__(self, connections: ConnectionPool, *args: Any, **kwargs: Any) -> None:
        self.connections = connections
        self.Producer = kwargs.pop("Producer", None) or self.Producer
        super().__init__(*args, **kwargs)

    def new(self) -> messaging.Producer:
        """A producer without a connection."""
        return self.Producer(None)

    def create_producer(self) -> messaging.Producer:
        """Make a producer with a connection of the pool's."""
        return self.Producer(self._acquire_connection())

    def _acquire_connection(self) -> Any:
        return self.connections.acquire(block=True)

    def prepare(self, p: messaging.Producer) -> messaging.Producer:
        """Give it a connection."""
        if p.connection is None:
            p.revive(self._acquire_connection())
        return p

    def prepare_in_time(self, resource: messaging.Producer, block: bool, deadline: float | None) -> messaging.Producer:
        """Give it a connection, within what is left of the time."""
        left = None if deadline is None else max(deadline - monotonic(), 0)
        resource.revive(self.connections.acquire(block=block, timeout=left))
        return self.prepare(resource)

    def release_resource(self, resource: messaging.Producer) -> None:
        """Give its connection back."""
        if resource.connection is not None:
            resource.connection.release()
        resource.revive(None)

    def close_resource(self, resource: messaging.Producer) -> None:
        """Give its connection up, if it has one."""
        if resource.connection is not None:
            resource.connection.discard()
        resource.revive(None)


class PoolGroup(EqualityDict):
    """Pools by what they are like: ``group[connection]``, made when asked for first.

    ``limit``: of each pool, 0 or None for no bound.
    """

    def __init__(self, limit: Any = None, close_after_fork: bool = True) -> None:
        self.limit = limit
        self.close_after_fork = close_after_fork

    def create(self, resource: Any, limit: int | None) -> Resource:
        """Make a pool."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to make a pool")

    def __missing__(self, resource: Any) -> Resource:
        pool = self.create(resource, get_limit() if self.limit is use_global_limit else self.limit)
        # Of threads that ask at the same time one has its pool kept, and the others get that.
        kept: Resource = self.setdefault(eqhash(resource), pool)
        return kept


class Connections(PoolGroup):
    """Pools of connections."""

    def create(self, resource: Connection, limit: int | None) -> ConnectionPool:
        """A pool of connections like one."""
        return resource.Pool(limit=limit)


class Producers(PoolGroup):
    """Pools of producers; their connections come from ``connections``."""

    def create(self, resource: Connection, limit: int | None) -> ProducerPool:
        """A pool of producers on connections like one."""
        return ProducerPool(connections[resource], limit=limit)


def register_group(group: PoolGroup) -> PoolGroup:
    """Let ``set_limit`` and ``reset`` reach a group too. Returns the group."""
    _groups.append(group)
    return group


#: ``connections[connection]``: the pool of connections like that one.
connections = register_group(Connections(limit=use_global_limit))
#: ``producers[connection]``: the pool of producers on such connections.
producers = register_group(Producers(limit=use_global_limit))


def get_limit() -> int:
    """How many resources a pool of these groups has at most; 0 for no bound."""
    return _limit


def set_limit(limit: int | None, force: bool = False, reset_after: bool = False, ignore_errors: bool = False) -> int:
    """Set that limit, for the pools that there are too. Returns it. Raises RuntimeError as ``Resource.resize`` does."""
    global _limit  # noqa: PLW0603 - it is the process's
    if isinstance(limit, bool):
        raise TypeError("limit must be an int, not bool")
    limit = limit or 0
    if limit != _limit:
        _limit = limit
        for pool in _all_pools():
            pool.resize(limit, force=force, reset=reset_after, ignore_errors=ignore_errors)
    return limit


def reset(*args: Any, **kwargs: Any) -> None:
    """Close all pools, with all that is in them, and forget them."""
    with ExitStack() as stack:  # if closing one raises, the others are closed and all are forgotten all the same
        for group in _groups:
            stack.callback(group.clear)
        for pool in reversed(_all_pools()):
            stack.callback(pool.force_close_all)


def _all_pools() -> list[Resource]:
    # Producers first: their connections go back before those are closed.
    return [pool for group in reversed(_groups) for pool in list(group.values())]


#: Whether the environment asks for it. It has no effect.
disable_limit_protection = os.environ.get("KOMBU_DISABLE_LIMIT_PROTECTION")
