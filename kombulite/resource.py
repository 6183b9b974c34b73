"""Pools: a bounded number of things, handed out and taken back; of connections and of channels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from queue import LifoQueue
from time import monotonic
from typing import Any, ClassVar, Generic, TypeVar, cast
from weakref import ref

from kombulite import exceptions
from kombulite.transport.adapter import facade_channel
from kombulite.utils.compat import register_after_fork
from kombulite.utils.functional import lazy
from kombulite.utils.locks import Condition, Lock

__all__ = ["ChannelPool", "ConnectionPool", "Resource"]

DEBUG = bool(os.environ.get("KOMBU_DEBUG_POOL"))

R = TypeVar("R")  # what a pool holds

#: What closing something broken may raise, and nobody has to know.
CLOSE_ERRORS = (exceptions.ConnectionError, exceptions.ChannelError, OSError)


class Resource(Generic[R]):
    """Pool of resources. Threads may share it.

    At most ``limit`` resources are in use or kept. The resource that was released last is acquired first. A subclass
    defines what the resources are: ``new`` makes one, ``prepare`` readies one that is acquired, ``close_resource``
    closes one. ``_resource`` is the queue of resources that can be acquired, in which ``lazy(self.new)`` stands for one
    that is not made yet; a subclass may fill it in ``setup``.

    Args:
        limit: Largest number of resources (None or 0: no limit, and no resource is kept).
        preload: Number of resources to make at once; the others are made when they are needed.
        close_after_fork: If True, a forked child starts with an empty pool and leaves the parent's resources alone.
    """

    LimitExceeded: ClassVar[type[exceptions.LimitExceeded]] = exceptions.LimitExceeded
    close_after_fork = False

    #: Seconds that ``acquire(block=True)`` waits where no timeout is given; None: for ever.
    block_timeout: float | None = 60.0

    def __init__(
        self, limit: int | None = None, preload: int | None = None, close_after_fork: bool | None = None
    ) -> None:
        self._limit = _checked(limit)
        self.preload = preload or 0
        self.close_after_fork = self.close_after_fork if close_after_fork is None else close_after_fork
        self._closed = False
        self._empty()
        if self.close_after_fork and register_after_fork is not None:
            register_after_fork(self, _after_fork_cleanup_resource)
        self.setup()

    def _empty(self) -> None:
        self._resource: Any = LifoQueue()
        self._dirty: set[Any] = set()  # those that are out
        self._out = 0  # with those that are just being made or taken back
        self._lock = Lock()  # garbage that is collected meanwhile may come back
        self._changed = Condition(self._lock)
        self._waiting = 0  # threads that wait for a change

    # --- what it is a pool of

    def new(self) -> R:
        """Return a new resource."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to make a resource")

    def setup(self) -> None:
        """Fill the queue with resources, and with placeholders for those that are not made yet."""
        if type(self) is Resource:
            raise NotImplementedError("subclass responsibility")
        with self._lock:
            available, room = self._resource.queue, self._limit - self._out
            available[:0] = [lazy(self.new) for _ in range(room - len(available))]
            unmade = [each for each in available[max(len(available) - self.preload, 0) :] if not is_made(each)]
        for each in unmade:
            self._preload(each)

    def _preload(self, place: Any) -> None:
        """Make the resource of a placeholder, unless another thread has taken that meanwhile."""
        with self._lock:
            available = self._resource.queue
            found = [index for index, each in enumerate(available) if each is place]  # to compare it would make it
            if not found:
                return
            del available[found[0]]
            self._out += 1
        try:
            resource = evaluated(place)
        except BaseException:
            self._vacate(place)
            raise
        if not self._vacate(resource):
            self._end(resource, self.close_resource)

    def prepare(self, resource: R | lazy) -> R:
        """Ready a resource that is acquired, which may not be made yet. Return it, or another in its place.

        Args:
            resource: The resource.
        """
        return cast(R, resource if is_made(resource) else evaluated(resource))

    def prepare_in_time(self, resource: R | lazy, block: bool, deadline: float | None) -> R:
        """Ready a resource that is acquired, and wait for it if that is necessary.

        Args:
            resource: The resource.
            block: If True, waiting is allowed.
            deadline: End of the wait, by the monotonic clock (None: no limit).
        """
        return self.prepare(resource)

    def close_resource(self, resource: Any) -> None:
        """Close a resource that is not needed any more.

        Args:
            resource: The resource.
        """
        resource.close()

    def release_resource(self, resource: R) -> None:
        """React to a released resource.

        Args:
            resource: The resource.
        """

    def collect_resource(self, resource: R) -> None:
        """Close a resource that another thread may still be using.

        Args:
            resource: The resource.
        """
        with suppress(AttributeError):  # a pool may be one of things that cannot be closed
            self.close_resource(resource)

    def _collect_free(self, resource: Any) -> None:
        """End a resource that nobody uses, at the end of the pool."""
        self.collect_resource(resource)

    # --- handing out and taking back

    def acquire(self, block: bool = False, timeout: float | None = None) -> R:
        """Return a resource. Its ``release()``, or the end of its ``with`` block, returns it to the pool.

        An exception in the block replaces the resource.

        Args:
            block: If True, wait for a resource that is in use.
            timeout: Seconds to wait (None: ``block_timeout``).

        Raises:
            LimitExceeded: All resources are in use.
            RuntimeError: The pool is closed.
        """
        timeout = self.block_timeout if timeout is None else timeout
        deadline = None if timeout is None else monotonic() + timeout
        kept = self._take(block, deadline)
        try:
            kept = kept() if isinstance(kept, Place) else kept
            resource: Any = self.prepare_in_time(kept, block, deadline)
        except BaseException:
            if not is_made(kept):
                self._vacate(kept)
            else:
                self._dirty.add(kept)
                self.release(kept)
            raise
        if resource is not kept or "release" not in vars(resource):
            pool, this = ref(self), ref(resource)  # a resource that is dropped goes at once, not with the garbage
            resource.release = partial(_give_back, pool, this)
            resource.discard = partial(_give_up, pool, this)
        with self._lock:
            self._dirty.add(resource)
        if DEBUG:
            _debug("acquired", resource)
        acquired: R = resource
        return acquired

    def _take(self, block: bool, deadline: float | None) -> Any:
        """Claim a place, with a resource that is kept, or what stands for a new one."""
        with self._lock:
            if self._closed or not self._has_room():
                self._await_room(block, deadline)
            if not self._resource.queue:
                self._add_when_empty()
            kept = self._resource.queue.pop()
            self._out += 1
            return kept

    def _has_room(self) -> bool:
        return bool(self._resource.queue) or not self._limit or self._out < self._limit

    def _add_when_empty(self) -> None:
        """Put what stands for a new resource into the queue. Raises LimitExceeded if there is no room."""
        if not self._has_room():
            raise self.LimitExceeded(self._limit)
        self._resource.queue.append(Place(self.new))

    def _await_room(self, block: bool, deadline: float | None) -> None:
        while True:
            if self._closed:
                raise RuntimeError("Acquire on closed pool")
            if self._has_room():
                return
            left = None if deadline is None else deadline - monotonic()
            if not block or (left is not None and left <= 0):
                raise self.LimitExceeded(self._limit)
            self._waiting += 1
            try:
                self._changed.wait(left)
            finally:
                self._waiting -= 1

    def _vacate(self, resource: Any = None) -> bool:
        """Give a place up; a resource is kept if there is room for it. Returns whether it is."""
        with self._lock:
            self._out -= 1
            available = self._resource.queue
            keep = resource is not None and not self._closed and len(available) + self._out < self._limit
            if keep:
                available.append(resource)
            if self._waiting:
                self._changed.notify()
            return keep

    def _is_back(self, resource: Any) -> bool:
        """Note that a resource is not out any more; whether it was."""
        with self._lock:
            is_out = resource in self._dirty
            self._dirty.discard(resource)
            return is_out

    def release(self, resource: R) -> None:
        """Take a resource back. A resource that is not in use is left alone.

        Args:
            resource: The resource.
        """
        if self._is_back(resource):
            if DEBUG:
                _debug("released", resource)
            try:
                self.release_resource(resource)
            except BaseException:
                self._vacate()
                raise
            if not self._vacate(resource):
                self._end(resource, self.close_resource)

    def replace(self, resource: R) -> None:
        """Close a resource that is in use; a new one may take its place.

        Args:
            resource: The resource.
        """
        if self._is_back(resource):
            if DEBUG:
                _debug("replaced", resource)
            try:
                self._end(resource, self.close_resource)
            finally:
                self._vacate()

    def _end(self, resource: Any, end: Any, *ignored: type[Exception]) -> None:
        with suppress(*CLOSE_ERRORS, *ignored):
            end(resource)

    # --- all of them

    def force_close_all(self, close_pool: bool = True) -> None:
        """Close all resources, including those in use.

        Args:
            close_pool: If True, the pool is closed too.
        """
        with self._lock:
            self._closed = self._closed or close_pool
            available = self._resource.queue
            free, available[:] = [each for each in available if is_made(each)], []
            dirty, self._dirty = self._dirty, set()
            self._out -= len(dirty)
            self._changed.notify_all()
        with ExitStack() as stack:  # if ending one raises, the others are ended all the same
            for resource in reversed(free):
                stack.callback(self._end, resource, self._collect_free, AttributeError)
            for resource in dirty:
                stack.callback(self._end, resource, self.collect_resource, AttributeError)

    def resize(self, limit: int | None, force: bool = False, ignore_errors: bool = False, reset: bool = False) -> None:
        """Change the limit.

        Args:
            limit: Largest number of resources (None or 0: no limit).
            force: If True, close all resources first.
            ignore_errors: If True, resources in use do not matter.
            reset: If True, close all resources first.

        Raises:
            RuntimeError: The limit is lowered while resources are in use.
        """
        limit = _checked(limit)
        if self._dirty and 0 < limit < self._limit and not ignore_errors:
            if not force:
                raise RuntimeError(f"Can't shrink pool when in use: was={self._limit} now={limit}")
            reset = True
        with self._lock:
            self._limit = limit
            self._changed.notify_all()
        if reset:
            with suppress(Exception):  # what a subclass raises
                self.force_close_all(close_pool=False)
        self._shrink_down()
        self.setup()

    def _shrink_down(self, collect: bool = True) -> None:
        """End what is over the limit, or only forget it."""
        with self._lock:
            room = max(self._limit - self._out, 0)
            surplus = self._resource.queue[room:]
            del self._resource.queue[room:]
        for resource in surplus:
            if collect and is_made(resource):
                self._end(resource, self._collect_free, AttributeError)

    @property
    def limit(self) -> int:
        """Largest number of resources; 0 for no limit. Setting it resizes the pool."""
        return self._limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        self.resize(limit)


class ConnectionPool(Resource[R]):
    """Pool of connections like a given one, which is not among them.

    Args:
        connection: The connection.
        limit: Largest number of resources (None or 0: no limit).
        **kwargs: Keywords of ``Resource``.
    """

    LimitExceeded = exceptions.ConnectionLimitExceeded
    close_after_fork = True

    def __init__(self, connection: Any, limit: int | None = None, **kwargs: Any) -> None:
        self.connection = connection
        super().__init__(limit, **kwargs)

    def new(self) -> R:
        """Return a connection that is not opened."""
        return cast(R, self.connection.clone_for(self))

    def prepare(self, resource: R | lazy) -> R:
        """Make a connection that is not made yet.

        Args:
            resource: The connection, or its placeholder.
        """
        connection = evaluated(resource)
        connection._debug("acquired")
        return cast(R, connection)

    def release_resource(self, resource: Any) -> None:
        """Log that a connection comes back, if that is asked for.

        Args:
            resource: The connection.
        """
        with suppress(AttributeError):  # kombu's pools take anything back
            resource._debug("released")

    def close_resource(self, resource: Any) -> None:
        """Close a connection that is not needed any more.

        Args:
            resource: The connection.
        """
        resource._close()

    def collect_resource(self, resource: Any, socket_timeout: float | None = 0.1) -> None:
        """Drop a connection that another thread may be waiting on.

        Args:
            resource: The connection.
            socket_timeout: Has no effect on kombulite's own transports.
        """
        if is_made(resource):
            resource.collect(socket_timeout)

    def _collect_free(self, resource: Any) -> None:
        """Close a connection that nobody uses."""
        self.close_resource(resource)

    @contextmanager
    def acquire_channel(self, block: bool = False) -> Iterator[tuple[Any, Any]]:
        """Acquire a connection and its default channel for the block.

        Args:
            block: If True, wait for a resource that is in use.
        """
        with cast(Any, self.acquire(block=block)) as connection:
            yield connection, connection.default_channel


class ChannelPool(Resource[Any]):
    """Pool of channels of one connection.

    Args:
        connection: The connection.
        limit: Largest number of resources (None or 0: no limit).
        **kwargs: Keywords of ``Resource``.
    """

    LimitExceeded = exceptions.ChannelLimitExceeded

    def __init__(self, connection: Any, limit: int | None = None, **kwargs: Any) -> None:
        self.connection = connection
        super().__init__(limit, **kwargs)

    def new(self) -> Any:
        """Return a new channel, connecting if needed."""
        return self.connection.channel()

    def prepare(self, resource: Any) -> Any:
        """Replace a channel that was closed in the pool, unless its connection restores it.

        Args:
            resource: The channel.
        """
        resource = evaluated(resource)
        if not facade_channel(resource).is_open:
            self.connection.ensure_connection()
        return resource if facade_channel(resource).is_open else self.new()


class Place(lazy):
    """Stands for a resource that is made before ``prepare``, which a subclass may have written for made ones only."""


def is_made(resource: Any) -> bool:
    """Return True if an item of a pool's queue is a resource, False if it is a placeholder."""
    return not isinstance(resource, lazy)


def evaluated(resource: Any) -> Any:
    """Return a resource, made now if it is a placeholder.

    Args:
        resource: The resource, or its placeholder.
    """
    made = resource() if callable(resource) else resource
    return made if is_made(made) else evaluated(made)


def _give_back(pool: ref[Resource[Any]], resource: ref[Any]) -> None:
    """Release a pooled resource: its ``release``."""
    home, this = pool(), resource()
    if home is not None:
        home.release(this)
    elif this is not None:
        this.close()


def _give_up(pool: ref[Resource[Any]], resource: ref[Any]) -> None:
    """Replace a pooled resource: its ``discard``."""
    home, this = pool(), resource()
    if home is not None:
        home.replace(this)
    elif this is not None:
        this.close()


def _checked(limit: int | None) -> int:
    if isinstance(limit, bool):
        raise TypeError("limit must be an int, not bool")
    return limit or 0


def _debug(what: str, resource: Any) -> None:
    from kombulite.log import get_logger  # for few, and logging costs as much as the rest of a pool's imports

    get_logger("kombulite.pool").debug("%s %r", what, resource, stack_info=True)


def _after_fork_cleanup_resource(resource: Resource[Any]) -> None:
    # A child only forgets: the connections, and the locks that another thread may have held, are its parent's.
    resource._empty()
