"""Acknowledgements that wait for those of the messages that follow, to be sent as one."""

from __future__ import annotations

import atexit
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from time import monotonic
from weakref import WeakSet

from kombulite import exceptions
from kombulite._core import AckStep, Lease, LeaseAck
from kombulite.brokers.redis.claims import Acknowledgement, RedisChannel
from kombulite.brokers.redis.errors import connection_lost
from kombulite.brokers.redis.leases import ACK_REPLIES
from kombulite.brokers.redis.replies import Posted
from kombulite.brokers.redis.stream import MIN_TIMEOUT, Stream
from kombulite.brokers.redis.waiter import Waiter

#: Messages that must be ready for the first ack to wait: it wakes a thread, which costs as much as some ten acks.
MIN_FOLLOWING = 32
#: Acks that wait, at most.
MAX_HELD = 100

#: Acks, channel by channel.
Groups = list[tuple[RedisChannel, list[Lease]]]


class HeldAcks:
    """The acks of one connection that wait: for ``MAX_HELD``, for the next command, or for ``flush``.

    Args:
        stream: The connection for commands.
        pack: Returns the ``ACK_REPLIES`` commands that remove leases from the server's notes, b"" for none.
        on_hold: Called when the first ack waits, to have ``flush_if_free`` called soon; returns False if it cannot.
    """

    min_following, max_held = MIN_FOLLOWING, MAX_HELD

    def __init__(self, stream: Stream, pack: Callable[[Sequence[Lease]], bytes], on_hold: Callable[[], bool]) -> None:
        self._stream = stream
        self._pack = pack
        self._on_hold = on_hold
        self.is_over = False
        # Any thread appends to it, and then sets ``before_send``. ``flush`` unsets that, and takes them out, under the
        # connection's lock: each when it is sent, so that ``unanswered`` misses none. To send one twice does no harm.
        self._held: deque[tuple[RedisChannel, Lease]] = deque()
        _all.add(self)

    def hold(self, state: RedisChannel, leases: Sequence[Lease]) -> bool:
        """Hold acks if those of other messages are about to follow. Returns False if they have to be sent now."""
        held, ready = self._held, len(state.leased.ready)
        if not ready or (ready < self.min_following and not held):
            return False
        self._stream.check()
        if len(held) >= self.max_held:
            self.flush()
        for lease in leases:
            held.append((state, lease))
        self.joined()
        return True

    def joined(self) -> None:
        """Have the acks that wait sent soon, now that another one does. Raises if none may any more."""
        if self.is_over:  # another thread may have taken what waits before that
            raise connection_lost("connection already closed")
        stream = self._stream
        if stream.before_send is None:
            stream.before_send = self.flush
            if not self._on_hold():
                self.flush()

    def step(self, state: RedisChannel, channels: dict[int, RedisChannel], sleeper: Waiter) -> AckStep:
        """Return what does the same for one message of a channel, as one step. ``sleeper``: who may wait for credit."""
        return LeaseAck(state, channels, self._stream, self, self._held, self.min_following, self.max_held, sleeper)

    def flush(self, deadline: float | None = None) -> None:
        """Send the acks that wait, until a deadline (monotonic clock; None: no haste).

        If that fails, they wait on, for the connection that takes over.
        """
        stream = self._stream
        if not self._held and stream.before_send is None:
            return
        stream.check()  # before the lock: in a forked child somebody else may hold it
        with stream.lock:
            stream.before_send = None
            try:
                self._send(self._groups(), deadline)
            except BaseException:
                stream.before_send = self.flush
                raise

    def flush_if_free(self) -> bool:
        """Send the acks that wait, unless another thread uses the connection: then return False."""
        if not self._stream.lock.acquire(blocking=False):
            return False
        try:
            self.flush()
        finally:
            self._stream.lock.release()
        return True

    def end(self) -> list[Posted]:
        """Hold no more acks, for the connection is given up; returns those that wait, as ``unanswered`` does."""
        self.is_over = True
        return self.unanswered()

    def unanswered(self) -> list[Posted]:
        """Return the acks that wait, as commands that may be sent over another connection."""
        packed = [(state, self._pack(leases)) for state, leases in self._groups()]
        return [(Acknowledgement(state, data), data, ACK_REPLIES) for state, data in packed if data]

    def _send(self, groups: Groups, deadline: float | None) -> None:
        for state, leases in groups:
            if data := self._pack(leases):
                left = None if deadline is None else max(deadline - monotonic(), MIN_TIMEOUT)
                self._stream.post(data, ACK_REPLIES, Acknowledgement(state, data), may_repeat=True, timeout=left)
            self._note_sent(leases)

    def _groups(self) -> Groups:
        """Return what waits, channel by channel."""
        return [(state, [lease for _, lease in each]) for state, each in groupby(self._held.copy(), itemgetter(0))]

    def _note_sent(self, leases: Sequence[Lease]) -> None:
        held = self._held
        for lease in leases:
            if held and held[0][1] is lease:  # not if another thread has sent it, while this one waited
                held.popleft()


_all: WeakSet[HeldAcks] = WeakSet()


@atexit.register
def _flush_all() -> None:
    """Send the acks that wait in connections which the program has not closed."""
    for acks in list(_all):
        with suppress(exceptions.ConnectionError, OSError):
            acks.flush()
