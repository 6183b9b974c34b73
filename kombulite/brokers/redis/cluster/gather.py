"""Commands to several nodes at once, and all their replies before one deadline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from kombulite import exceptions
from kombulite.brokers.redis.cluster.stream import NodeStream
from kombulite.brokers.redis.errors import connection_lost

#: Seconds for a reply where the deadline has passed between two steps: 0 would mean the default.
MIN_TIMEOUT = 0.001
#: Seconds that a try has at least: one with less would take a node that answers for one that is lost.
MIN_TRY = 0.05


def left_until(deadline: float) -> float:
    """Return the seconds until a deadline, as a timeout."""
    return max(deadline - monotonic(), MIN_TIMEOUT)


def gather(
    sent: Mapping[NodeStream, list[bytes]],
    deadline: float,
    take: Callable[[NodeStream, list[Any]], object],
    lose: Callable[[NodeStream, Exception], object],
) -> None:
    """Send commands to nodes, all at once; what each replies goes to ``take``. Raises when all are over.

    ``lose(stream, error)`` is called for each whose connection was lost.
    """
    replies: dict[NodeStream, list[Any]] = {}
    failure: Exception | None = None
    if len(sent) == 1:
        ((stream, commands),) = sent.items()
        try:
            take(stream, stream.exchange(commands, len(commands), left_until(deadline)))
        except (exceptions.ConnectionError, OSError) as error:
            lose(stream, error)
            raise
        return
    for stream, commands in sent.items():
        mine: list[Any] = []
        try:
            stream.post(b"".join(commands), len(commands), mine.append, timeout=left_until(deadline))
            replies[stream] = mine
        except (exceptions.ConnectionError, OSError) as error:
            lose(stream, error)
            failure = failure or error  # the others' replies count all the same
    for stream, mine in replies.items():
        try:
            stream.wait_for_replies(left_until(deadline))
            if len(mine) < len(sent[stream]):
                raise connection_lost("the connection to the node was lost")  # another thread has noticed
            take(stream, mine)
        except (exceptions.ConnectionError, OSError) as error:
            lose(stream, error)
            failure = failure or error
    if failure is not None:
        raise failure
