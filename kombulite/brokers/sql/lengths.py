"""Which queues are surely within their length limit, so that their messages need not be counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from kombulite.brokers.sql.database import Database
from kombulite.brokers.sql.topology import QueueRecord

__all__ = ["LengthBounds"]

MIN_COUNT = 1000  # messages: to count fewer costs no more than to look for the newest
NEAR_LIMIT = 0.9  # part of the limit from which on a queue that refuses messages is counted for each publish
OVER_LIMIT = 1.01  # part of it up to which one that drops them may be filled: a full one would be counted each time
MAX_OTHERS = 10_000  # messages that are claimed or delayed, of all queues: where there are more, nothing is bounded
MAX_QUEUES = 1000

#: Messages that do not wait, and may wait later without being new: how many, of all queues.
OTHERS = (
    "SELECT (SELECT count(*) FROM (SELECT 1 FROM {p}messages WHERE owner IS NOT NULL LIMIT ?) AS claimed)"
    " + (SELECT count(*) FROM (SELECT 1 FROM {p}messages WHERE due IS NOT NULL LIMIT ?) AS delayed)"
)


class Bound(NamedTuple):
    """How many messages of a queue there may be at most up to an id, the newest that waited when they were counted."""

    most: int
    newest: int


class LengthBounds:
    """What one connection knows of queues with a length limit.

    Ids rise, and those who publish to such a queue take turns. So no more messages wait than there were when they were
    counted, and ids have been given since. Messages that were committed late, by a transaction of the application's or
    as dead letters, may come on top, until the renewal of a lease counts anew. For them a queue that refuses messages
    is counted in the last tenth of its limit.

    Args:
        database: Where the queues are.
        newest: Returns the id of the newest message that waits in a queue, 0 for none.
    """

    def __init__(self, database: Database, newest: Callable[[QueueRecord], int]) -> None:
        self._database = database
        self._newest = newest
        self._bounds: dict[int, Bound] = {}  # by the queue's id

    def is_within(self, queue: QueueRecord, extra: int = 0) -> bool:
        """Return whether a queue surely is within its limit, with so many more messages in it."""
        bound = self._bounds.get(queue.id)
        if bound is None or queue.limits.max_length is None:
            return False
        most = bound.most + max(self._newest(queue) - bound.newest, 0) + extra
        return most <= _most_uncounted(queue)

    def note(self, queue: QueueRecord, count: int) -> None:
        """Note how many messages wait in a queue that is locked."""
        limits = queue.limits
        self._bounds.pop(queue.id, None)
        if limits.max_length is None or limits.max_length_bytes is not None:
            return
        if not MIN_COUNT <= count <= _most_uncounted(queue):
            return
        others = self._database.value(OTHERS, MAX_OTHERS, MAX_OTHERS)
        if others < MAX_OTHERS:
            if len(self._bounds) >= MAX_QUEUES:
                self._bounds.clear()
            self._bounds[queue.id] = Bound(count + others, self._newest(queue))

    def forget(self, queues: Iterable[QueueRecord]) -> None:
        """Have queues counted with the next look."""
        for queue in queues:
            self._bounds.pop(queue.id, None)

    def clear(self) -> None:
        """Forget all: another server may have other messages, and give the same ids."""
        self._bounds.clear()


def _most_uncounted(queue: QueueRecord) -> float:
    """Return how many messages a queue with a length limit may have, at most, without being counted."""
    limits = queue.limits
    return (limits.max_length or 0) * (NEAR_LIMIT if limits.reject_publish else OVER_LIMIT)
