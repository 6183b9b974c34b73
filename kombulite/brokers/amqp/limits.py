"""Prefetch counts of running consumers, which RabbitMQ takes when a consumer starts and never changes."""

from __future__ import annotations

from math import inf


class PrefetchLimit:
    """The prefetch count of one consumer, and what it has to be started again with to have another.

    A consumer that is started again keeps what it holds, and the broker does not count that any more. So its successor
    is started with less, yet never with less than it had at first: all that it holds may wait for something.
    """

    def __init__(self, count: int, last_tag: int) -> None:
        self._first = self._count = count
        self._since = last_tag  # the last delivery tag of its channel when it was started

    def count_for(self, wanted: int, unsettled: int, last_tag: int, is_alone: bool) -> int | None:
        """Return the prefetch count of a successor that makes up for ``wanted``; None if none is needed.

        Args:
            wanted: Messages that the consumer may hold, 0 for no bound.
            unsettled: Deliveries of the channel that are not settled.
            last_tag: The last delivery tag of the channel.
            is_alone: Whether it has the channel for itself.
        """
        if not is_alone:
            unsettled = 0  # whose they are is not known
        before_start = max(0, unsettled - (last_tag - self._since))
        limit, count = wanted or inf, self._count or inf
        is_about_that = limit == count or count < limit * 2  # lowering it by less is not worth another consumer
        if limit <= count + before_start and is_about_that:
            return None
        if not wanted:
            return 0
        return max(wanted - unsettled, min(self._first or wanted, wanted))

    def succeed(self, count: int, last_tag: int) -> None:
        """Note that the consumer was started again."""
        self._count, self._since = count, last_tag
