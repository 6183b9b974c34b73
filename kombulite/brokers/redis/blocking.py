"""Waiting in the server for lists, where it does not tell of their changes.

``BLMOVE list list RIGHT RIGHT`` moves the last element of a list to the place where it is: it blocks until there is
one, and takes nothing, so nothing is lost if the connection ends. A connection waits for one list at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from time import monotonic
from typing import Any

from hiredis import ReplyError

from kombulite._core import pack_command
from kombulite.brokers.redis.leases import logger
from kombulite.brokers.redis.options import Options
from kombulite.brokers.redis.plans import PostingStream

#: Connections that wait, at most; other lists are looked at now and then.
MAX_WAITING = 8
#: Seconds for which the server waits at a time, at most.
MAX_BLOCK = 10.0
#: Seconds until the next try when the server refused to wait: the user may have no right to it, or memory is full.
RETRY_INTERVAL = 60.0


class ListWaits:
    """The lists that a consumer waits for in the server.

    Args:
        options: The options of the transport.
        longest_poll: Seconds between two looks, at most, where the server does not let the user wait.
        consumed: Returns the queues that are consumed: there is no wait for lists of others any more.
        on_news: Called with the queue of a list that is not empty.
    """

    def __init__(
        self,
        options: Options,
        longest_poll: float,
        consumed: Callable[[], set[str]],
        on_news: Callable[[str], object],
    ) -> None:
        timeout = options.socket_timeout
        self._block = MAX_BLOCK if timeout is None else min(MAX_BLOCK, timeout / 3)
        self._client_name = options.client_name or "us"
        self._longest_poll = longest_poll
        self._consumed = consumed
        self._on_news = on_news
        self._count, self._max_count = 0, MAX_WAITING
        self._free: list[PostingStream] = []
        self._awaited: set[str] = set()
        self._wanted: dict[str, tuple[int, str]] = {}  # lists for which no connection is free -> (priority step, queue)
        self._refused_at = -inf
        self._has_warned = False

    @property
    def _is_refused(self) -> bool:
        """Whether the server has refused to wait, a short time ago."""
        return monotonic() - self._refused_at < RETRY_INTERVAL

    def missing(self, lists: int) -> int:
        """Return how many connections more are needed for so many lists."""
        return 0 if self._is_refused else min(lists, self._max_count) - self._count

    def cover(self, lists: int) -> bool:
        """Return whether the server wakes the consumer for each of so many lists."""
        return not (self._is_refused or self._wanted) and self._count >= lists

    def add(self, stream: PostingStream) -> None:
        """Wait over a connection too."""
        self._count += 1
        self._free.append(stream)
        self._go_on()

    def add_no_more(self, error: Exception) -> None:
        """Wait over the connections that there are: another one cannot be had. The other lists are looked at."""
        self._max_count = self._count
        self._warn(error)

    def want(self, key: str, step: int, queue: str) -> None:
        """Wait for a list. The lower its step, the sooner it gets a connection."""
        if key not in self._awaited:
            self._wanted[key] = step, queue
            self._go_on()

    def _go_on(self) -> None:
        if self._free and self._wanted:
            consumed = self._consumed()
            self._wanted = {key: each for key, each in self._wanted.items() if each[1] in consumed}
        while self._free and self._wanted and not self._is_refused:
            key = min(self._wanted, key=lambda each: self._wanted[each][0])
            step, queue = self._wanted.pop(key)
            stream = self._free.pop()
            self._awaited.add(key)
            on_reply = partial(self._on_reply, stream, key, step, queue)
            # May be repeated: it changes nothing.
            command = pack_command(("BLMOVE", key, key, "RIGHT", "RIGHT", f"{self._block:.3f}"))
            stream.post(command, 1, on_reply, may_repeat=True)

    def _on_reply(self, stream: PostingStream, key: str, step: int, queue: str, reply: Any) -> None:
        self._awaited.discard(key)
        self._free.append(stream)
        if isinstance(reply, ReplyError) and not str(reply).startswith("UNBLOCKED"):
            self._refused_at = monotonic()
            self._wanted.clear()
            self._warn(reply)
        elif reply is None or isinstance(reply, ReplyError):  # its time is over, or an operator has ended it
            self._wanted[key] = step, queue
            self._go_on()
        else:
            self._on_news(queue)
            self._go_on()

    def _warn(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            text = (
                "The server does not report changes to %s (%s): a message for an idle consumer waits up to %g seconds"
            )
            logger.warning(text, self._client_name, error, self._longest_poll)
