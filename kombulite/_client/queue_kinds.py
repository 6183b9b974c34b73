"""Kinds of RabbitMQ's queues other than the classic one, as values for ``Queue(kind=...)``.

Each knows its options by name, checks them, and says which arguments the broker reads. Brokers that have no such queues
refuse what would change how a program behaves: see ``refusal``. Imported when one is used: data classes need a fifth of
the time that the import of all else takes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Literal

from kombulite._client.queue_kind import QueueKind, require

__all__ = ["QueueKind", "Quorum", "Stream"]

RETRY_KINDS = ("all", "failed", "returned")
OFFSET_NAMES = ("first", "last", "next")
FILTER_BYTES = range(16, 256)  # sizes that RabbitMQ takes
MAX_SEGMENT_BYTES = 3_000_000_000


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class Quorum(QueueKind):
    """A quorum queue: replicated, durable, with a limit to deliveries. ``Queue("orders", kind=Quorum())``.

    Args:
        delivery_limit: Failed deliveries, 0 or more, after which the broker drops or dead-letters the message; -1 for
            no limit. None leaves it to the broker: 20 on RabbitMQ 4, no limit on RabbitMQ 3.
        consumer_timeout: Seconds that a client may keep a message before the broker takes it back (RabbitMQ 4.3). The
            broker cancels the consumer that it was delivered to; if it came by ``get()``, it closes the channel.
        retry_delay: Seconds ``(min, max)`` before a message that came back is delivered again: min times the count of
            deliveries, at most max (RabbitMQ 4.3).
        retry_for: Which messages are delayed: ``"failed"`` (reject, a lost consumer), ``"returned"`` (nack, recover,
            which is also how a consumer that ends in order gives back what it was sent) or ``"all"``.
        single_active_consumer: If True, the broker delivers to one consumer at a time; the others wait to take over.

    Raises:
        ValueError: An option has a value that makes no sense; the message names both.

    RabbitMQ versions that do not know an option ignore it.
    """

    delivery_limit: int | None = None
    consumer_timeout: float | None = None
    retry_delay: tuple[float, float] | None = None
    retry_for: Literal["all", "failed", "returned"] = "failed"
    single_active_consumer: bool = False

    def __post_init__(self) -> None:
        limit, timeout, delay = self.delivery_limit, self.consumer_timeout, self.retry_delay
        if limit is not None:
            require(_is_integer(limit) and limit >= -1, "delivery_limit", "an integer of at least -1", limit)
        if timeout is not None:
            # The broker counts in milliseconds.
            require(_is_number(timeout) and timeout >= 0.001, "consumer_timeout", "at least 0.001 seconds", timeout)
        if delay is not None:
            is_pair = isinstance(delay, tuple) and len(delay) == 2 and all(map(_is_number, delay))
            is_valid = is_pair and 0.001 <= delay[0] <= delay[1]
            require(is_valid, "retry_delay", "a pair of seconds (min, max) with 0.001 <= min <= max", delay)
        require(self.retry_for in RETRY_KINDS, "retry_for", f"one of {', '.join(RETRY_KINDS)}", self.retry_for)
        if delay is None:
            require(self.retry_for == "failed", "retry_for", "left out without retry_delay", self.retry_for)

    def queue_arguments(self) -> dict[str, Any]:
        """Return the arguments of a declaration under the broker's names."""
        arguments: dict[str, Any] = {"x-queue-type": "quorum"}
        if self.delivery_limit is not None:
            arguments["x-delivery-limit"] = self.delivery_limit
        if self.consumer_timeout is not None:
            arguments["x-consumer-timeout"] = _milliseconds(self.consumer_timeout)
        if self.retry_delay is not None:
            shortest, longest = map(_milliseconds, self.retry_delay)
            arguments["x-delayed-retry-type"] = self.retry_for
            arguments["x-delayed-retry-min"] = shortest
            arguments["x-delayed-retry-max"] = longest
        if self.single_active_consumer:
            arguments["x-single-active-consumer"] = True
        return arguments

    def refusal(self) -> str | None:
        """Return what a broker without quorum queues cannot do: the options that were chosen."""
        chosen = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in chosen)
        return f"Quorum({options})" if options else None


@dataclass(frozen=True, kw_only=True)
class Stream(QueueKind):
    """A stream: messages stay after they are read. ``Queue("log", kind=Stream(offset="first"))``.

    A consumer needs a ``prefetch_count`` and acknowledges.

    Args:
        offset: Start of a consumer: ``"first"``, ``"last"`` (the last chunk), ``"next"`` (what comes from now on;
            the broker's default), a number (the ``x-stream-offset`` of a message), a ``datetime``, or a ``timedelta``
            back from now.
        filters: Values of the header ``x-stream-filter-value`` that a consumer is interested in (RabbitMQ 3.13). The
            broker leaves out whole chunks that have none of them, so a consumer looks at the header as well.
        match_unfiltered: If True, ``filters`` lets messages without that header pass.
        max_age: Seconds, at least 1, that messages stay; the broker removes whole segments.
        segment_bytes: Size of a segment's file, in bytes.
        filter_bytes: Size of the filter of a chunk, 16 to 255 bytes.

    Raises:
        ValueError: An option has a value that the broker would refuse; the message names both.
    """

    offset: Literal["first", "last", "next"] | int | datetime | timedelta | None = None
    filters: tuple[str, ...] = ()
    match_unfiltered: bool = False
    max_age: int | None = None
    segment_bytes: int | None = None
    filter_bytes: int | None = None

    is_stream = True

    def __post_init__(self) -> None:
        offset, age, segment, size = self.offset, self.max_age, self.segment_bytes, self.filter_bytes
        if isinstance(offset, timedelta):
            require(offset >= timedelta(seconds=1), "offset", "at least a second back", offset)
        elif offset is not None and not isinstance(offset, datetime):
            is_valid = offset >= 0 if _is_integer(offset) else offset in OFFSET_NAMES  # type: ignore[operator]
            require(is_valid, "offset", "first, last, next, a number from 0, a datetime or a timedelta", offset)
        is_valid = isinstance(self.filters, tuple) and all(isinstance(each, str) and each for each in self.filters)
        require(is_valid, "filters", "a tuple of strings that are not empty", self.filters)
        require(bool(self.filters) or not self.match_unfiltered, "match_unfiltered", "False without filters", True)
        if age is not None:
            require(_is_integer(age) and age >= 1, "max_age", "an integer of at least 1 second", age)
        if segment is not None:
            is_valid = _is_integer(segment) and 1 <= segment <= MAX_SEGMENT_BYTES
            require(is_valid, "segment_bytes", f"an integer from 1 to {MAX_SEGMENT_BYTES}", segment)
        if size is not None:
            require(_is_integer(size) and size in FILTER_BYTES, "filter_bytes", "an integer from 16 to 255", size)

    def queue_arguments(self) -> dict[str, Any]:
        """Return the arguments of a declaration under the broker's names."""
        arguments: dict[str, Any] = {"x-queue-type": "stream"}
        if self.max_age is not None:
            arguments["x-max-age"] = f"{self.max_age}s"
        if self.segment_bytes is not None:
            arguments["x-stream-max-segment-size-bytes"] = self.segment_bytes
        if self.filter_bytes is not None:
            arguments["x-stream-filter-size-bytes"] = self.filter_bytes
        return arguments

    def consumer_arguments(self) -> dict[str, Any]:
        """Return the arguments of a consumer under the broker's names."""
        arguments: dict[str, Any] = {}
        if isinstance(self.offset, timedelta):
            arguments["x-stream-offset"] = f"{int(self.offset.total_seconds())}s"
        elif self.offset is not None:
            arguments["x-stream-offset"] = self.offset
        if self.filters:
            arguments["x-stream-filter"] = list(self.filters)
        if self.match_unfiltered:
            arguments["x-stream-match-unfiltered"] = True
        return arguments

    def check(self, queue: Any) -> None:
        """Raise ValueError if the queue has an attribute that the broker refuses for a stream.

        Args:
            queue: The queue.
        """
        super().check(queue)
        for name in ("expires", "message_ttl", "max_length"):
            require(getattr(queue, name) is None, name, "None for a queue of kind Stream", getattr(queue, name))
        require(not queue.no_ack, "no_ack", "False for a queue of kind Stream", queue.no_ack)

    def refusal(self) -> str | None:
        """Return what a broker without streams cannot do: all of it."""
        return "Stream"


Quorum.__module__ = Stream.__module__ = "kombulite"  # where the names are public
