"""The connection to one node of a cluster: while the node is slow to reply, other threads use those of other nodes."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic
from typing import Any

from kombulite.brokers.redis.cluster.pauses import Pauses
from kombulite.brokers.redis.cluster.posts import AckBatch
from kombulite.brokers.redis.errors import ServerClosed, connection_lost, socket_error
from kombulite.brokers.redis.replies import Posted
from kombulite.brokers.redis.stream import IDLE, PING, PING_TIMEOUT, Stream

#: Seconds without a byte of a reply after which the lock of all nodes is left to other threads, and those between two
#: looks for the reply from then on.
SLOW, SLOW_LOOK = 0.1, 0.01


class NodeStream(Stream):
    """A connection to a node. Its lock is that of the connections to all nodes, with which it waits while one is slow.

    All replies go where posted commands have theirs: so any thread may read them.
    """

    pauses: Pauses | None = None  #: over the lock; None while one thread alone uses the connection

    def _converse(self, pieces: Iterable[bytes], replies: int, timeout: float | None) -> list[Any]:
        self.check()
        found: list[Any] = self.lock.call(None, self._ask, pieces, replies, timeout or self._timeout)
        return found

    def _ask(self, pieces: Iterable[bytes], replies: int, timeout: float | None) -> list[Any]:
        """Do what the base's does. The time begins when the lock is there: others have waited for nodes of theirs."""
        if self._converses:
            self._refuse()
        mine: list[Any] = []
        self._converses = True
        try:
            deadline = None if timeout is None else monotonic() + timeout
            for data in pieces:
                self._send(data, deadline)
            if self._is_corked:
                self._cork(False)
            if not self._posted:
                self._waiting_since = self.used_at
            self._queue.expect(replies, mine.append)
        except BaseException:
            self.drop()  # what was sent cannot be taken back
            raise
        finally:
            self._converses = False
        self._wait_for(mine, replies, None if timeout is None else self.used_at + timeout, self.used_at)
        return mine

    def reply_to(self, data: bytes, timeout: float) -> Any:
        """Send a packed command, and return its reply, which may be an error reply."""
        if self._is_parents or not self.is_open:
            self.check()
        return self.lock.call(None, self._ask, (data,), 1, timeout)[0]

    def _wait_for(self, mine: list[Any] | None, count: int, deadline: float | None, now: float) -> None:
        """Read replies until so many are in a list, or (None) all that were posted are here. Raises at the deadline.

        The lock is held by the caller. ``now``: the time (monotonic clock).
        """
        quiet_since = self.used_at
        try:
            while self._posted if mine is None else len(mine) < count:
                if not self.is_open:
                    raise connection_lost(self._end_reason)  # another thread found it lost
                left = SLOW if deadline is None or deadline - now > SLOW else deadline - now
                if left <= 0:
                    raise socket_error(TimeoutError("the server did not answer in time"))
                if self.pauses is None or now - quiet_since < SLOW:
                    self._readable.select(left)
                else:
                    self.pauses.wait(min(left, SLOW_LOOK))
                now = monotonic()
                if self.is_open:
                    before = self.used_at
                    has_more = self._receive()
                    self._queue.take(0, [])
                    if has_more:
                        self._receive_all()
                    if self.used_at != before:
                        quiet_since = self.used_at
        except BaseException:
            self.drop()
            raise

    def wait_for_replies(self, timeout: float | None = None) -> None:
        """Wait for the replies to all posted commands."""
        timeout = timeout or self._timeout
        self.check()
        with self.lock:
            now = monotonic()
            self._wait_for(None, 0, None if timeout is None else now + timeout, now)

    def post_batch(self, batch: AckBatch) -> None:
        """Send acks, at once."""
        self.check()
        with self.lock:
            if self._converses:
                self._refuse()
            try:
                data = batch.packed
                self._post(data, batch.replies, batch, data, on_earlier=batch.collect)
            except BaseException:
                self.drop()
                raise

    def look(self, seconds: float) -> None:
        """Wait for the reply to a posted command, if there is one, at most so many seconds."""
        with self.lock:
            if self._posted:
                self._readable.select(seconds)
                self.poll()

    @property
    def posted(self) -> list[Posted]:
        """What was posted and has no reply."""
        return list(self._posted)

    @property
    def may_repeat(self) -> bool:
        """Whether all that was posted and has no reply may be sent again, or need not."""
        return self._queue.may_repeat

    def take_posted(self) -> list[Posted]:
        """Return ``posted``, and forget it."""
        posted = self.posted
        self._posted.clear()
        return posted

    def is_alive(self) -> bool:
        """Whether the connection has not ended while it was idle. After a long pause the server is asked."""
        idle = monotonic() - self.used_at
        if not self.is_open or idle <= IDLE:
            return self.is_open
        if self._is_parents:  # before the lock, and before what the parent is to read
            self.check()
        with self.lock:
            try:
                if self._readable.select(0):
                    self._receive_all()
                if self.ping_interval and idle > self.ping_interval and not self._posted:
                    self._converse((PING,), 1, min(PING_TIMEOUT, self._timeout or PING_TIMEOUT))
            except (ServerClosed, OSError):
                self.drop()
        return self.is_open
