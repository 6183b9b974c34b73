"""Fanout exchanges: publish and subscribe. Nothing is stored: who does not listen gets nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from hiredis import ReplyError

from kombulite._core import pack_command
from kombulite.brokers.redis.errors import reply_error
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.plans import PostingStream

#: Messages remembered of each queue to which one message can come twice.
REMEMBERED = 1000


class Subscriptions:
    """What the server was asked for, and for which queues.

    Args:
        keys: Of the connection.
        compatible: Whether to subscribe also to what old Sentinel clients publish.
        on_refused: Called with the queues of a subscription that the server refuses, and the error.
    """

    def __init__(self, keys: Keys, compatible: bool, on_refused: Callable[[Sequence[str], Exception], object]) -> None:
        self._keys = keys
        self._compatible = compatible
        self._on_refused = on_refused
        self.unanswered = 0  #: subscriptions that the server has not answered yet
        self._queues_of: dict[bytes, dict[str, str]] = {}  # pattern -> queue -> exchange
        self._seen: dict[str, deque[str]] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._queues_of)

    def update(self, stream: PostingStream, bindings: Mapping[str, Iterable[tuple[str, str]]]) -> None:
        """Subscribe to what queues are bound to, as (exchange, routing key), and to nothing else."""
        wanted: dict[bytes, dict[str, str]] = {}
        for queue, bound in bindings.items():
            patterns = [
                (pattern, exchange)
                for exchange, routing_key in bound
                for pattern in self._patterns(exchange, routing_key)
            ]
            for pattern, exchange in patterns:
                wanted.setdefault(pattern.encode(), {})[queue] = exchange
            if len(patterns) > 1:
                self._seen.setdefault(queue, deque(maxlen=REMEMBERED))
        new, old = wanted.keys() - self._queues_of.keys(), self._queues_of.keys() - wanted.keys()
        self._queues_of = wanted
        for queue in self._seen.keys() - bindings.keys():
            del self._seen[queue]
        self._post(stream, "PSUBSCRIBE", new)
        self._post(stream, "PUNSUBSCRIBE", old)

    def renew(self, stream: PostingStream) -> None:
        """Subscribe to the same over a connection that knows nothing of it yet."""
        self._post(stream, "PSUBSCRIBE", self._queues_of)

    def _post(self, stream: PostingStream, command: str, patterns: Iterable[bytes]) -> None:
        for pattern in sorted(patterns):  # one by one: each has its answer, or its error
            self.unanswered += 1
            stream.post(pack_command((command, pattern)), 1, partial(self._on_answer, pattern), may_repeat=True)

    def _on_answer(self, pattern: bytes, reply: Any) -> None:
        self.unanswered -= 1
        if isinstance(reply, ReplyError):
            self._on_refused(list(self._queues_of.pop(pattern, ())), reply_error(str(reply)))

    def _patterns(self, exchange: str, routing_key: str) -> tuple[str, ...]:
        patterns = self._keys.topic_patterns(exchange, routing_key)
        return (*patterns, self._keys.compatible_topic(exchange)) if self._compatible else patterns

    def queues(self, pattern: bytes, exchange: str, delivery_tag: str) -> list[str]:
        """Return the queues that a message goes to which came under a pattern, but not those that have it already."""
        found = []
        for queue, wanted in self._queues_of.get(pattern, {}).items():
            if wanted != exchange:
                continue  # an exchange named "a/b" and a key "b" of exchange "a" share a channel
            seen = self._seen.get(queue)
            if seen is not None:
                if delivery_tag in seen:
                    continue
                seen.append(delivery_tag)
            found.append(queue)
        return found
