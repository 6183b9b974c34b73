"""Opening connections to nodes, each in a thread of its own: a node that does not answer keeps no other one waiting."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from time import monotonic

from kombulite import exceptions
from kombulite.brokers.redis.cluster.pauses import Pauses
from kombulite.brokers.redis.cluster.slots import Address
from kombulite.brokers.redis.cluster.stream import NodeStream
from kombulite.brokers.redis.cluster.units import DOWN_PAUSE
from kombulite.brokers.redis.errors import connection_lost


class Opening:
    """A try to open a connection, under way or over. ``failure``: what it ended with, if there is no connection."""

    def __init__(self) -> None:
        self.is_over = False
        self.failure: Exception | None = None
        self.again_at = 0.0

    @property
    def counts(self) -> bool:
        """Whether there shall be no other try now."""
        return not self.is_over or monotonic() < self.again_at


class Openings:
    """The tries to open connections to nodes.

    Args:
        pauses: Is notified when one is over. Its lock is held by whoever calls a method.
        connect: Opens a connection: ``connect(address)``. Called without the lock.
        take: Takes the connection: ``take(stream)``. Called with the lock.
    """

    def __init__(
        self, pauses: Pauses, connect: Callable[[Address], NodeStream], take: Callable[[NodeStream], object]
    ) -> None:
        self._pauses = pauses
        self._connect = connect
        self._take = take
        self._tries: dict[Address, Opening] = {}

    def open(self, address: Address, timeout: float, waits: bool) -> None:
        """Have a connection opened, and wait until it is. Raises what keeps it away.

        Args:
            address: Where the node is.
            timeout: Seconds to wait.
            waits: Whether to wait also for a try that has begun before.
        """
        opening = self._tries.get(address)
        is_new = opening is None or not opening.counts
        if opening is None or is_new:
            self._tries = {other: each for other, each in self._tries.items() if each.counts}  # nodes come and go
            opening = self._tries[address] = Opening()
            try:
                Thread(target=self._work, args=(address, opening), name="kombulite-redis-open", daemon=True).start()
            except RuntimeError:  # no thread can be started: the interpreter ends, or there are too many
                self._work(address, opening)
        deadline = monotonic() + timeout
        while not opening.is_over and (waits or is_new) and (left := deadline - monotonic()) > 0:
            self._pauses.wait(left)
        if opening.failure is not None:
            raise _again(opening.failure)
        if not opening.is_over:
            raise connection_lost(f"the node at {address[0]}:{address[1]} does not answer in time")

    def _work(self, address: Address, opening: Opening) -> None:
        stream = None
        try:
            stream = self._connect(address)
        except Exception as error:
            opening.failure = error
        finally:  # also if a signal handler raises, where no thread could be started
            with self._pauses.lock:
                if stream is not None:
                    self._take(stream)
                    self._tries.pop(address, None)
                opening.again_at = monotonic() + DOWN_PAUSE
                opening.is_over = True
                self._pauses.notify_all()


def _again(error: Exception) -> Exception:
    """Return an error for another raise: programs add words to those of connections."""
    if not isinstance(error, (exceptions.RecoverableConnectionError, OSError)):
        return error
    again = connection_lost(str(error))
    again.__cause__ = error
    return again
