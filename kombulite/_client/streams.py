"""Positions in streams (RabbitMQ): where the consumers of a channel go on when they come back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from threading import Lock
from time import monotonic
from typing import Any, Protocol

OFFSET = "x-stream-offset"
SAVE_INTERVAL = 1.0  # seconds between two saves of a consumer's offsets


class StreamPosition:
    """Position of one consumer in a stream.

    It goes on behind the last message up to which all are acknowledged: like those of a queue, messages that were
    handed over and not acknowledged come again.
    """

    def __init__(self) -> None:
        self._following: int | None = None  # the offset behind the last message that was handed over
        self._unacked: dict[int, int] = {}  # delivery tag -> offset, in order
        self._is_stream = True
        self._lock = Lock()

    def start(self, offset: int) -> None:
        """Begin at an offset."""
        self._following = offset

    def receive(self, delivery_tag: int, offset: int, no_ack: bool, redelivered: bool) -> None:
        """Note a message that is handed over."""
        with self._lock:
            if redelivered or (self._following is not None and offset < self._following):
                self._is_stream = False  # a queue with copies of a stream's messages
            self._following = offset + 1
            if not no_ack:
                self._unacked[delivery_tag] = offset

    def settle(self, delivery_tags: Iterable[int], multiple: bool) -> None:
        """Note that messages are settled; with ``multiple`` all up to each tag, and for 0 all."""
        with self._lock:
            for tag in delivery_tags:
                if multiple:
                    self._unacked = {each: offset for each, offset in self._unacked.items() if 0 < tag < each}
                else:
                    self._unacked.pop(tag, None)

    @property
    def offset(self) -> int | None:
        """The offset to go on at; None where no message has come."""
        with self._lock:
            if not self._is_stream:
                return None
            return next(iter(self._unacked.values()), self._following)


class StreamPositions:
    """The positions of a channel's consumers, by consumer tag, and of those that are to go on, by stream."""

    def __init__(self) -> None:
        self._by_tag: dict[str, StreamPosition] = {}
        #: Where the next consumer of a stream starts, by stream.
        self.to_go_on: dict[str, int] = {}

    def receive(
        self, consumer_tag: str, delivery_tag: int, offset: int, no_ack: bool = False, redelivered: bool = False
    ) -> None:
        """Note a message that is handed over to a consumer."""
        position = self._by_tag.get(consumer_tag)
        if position is None:
            position = self._by_tag[consumer_tag] = StreamPosition()
        position.receive(delivery_tag, offset, no_ack, redelivered)

    def settle(self, delivery_tags: Iterable[int], multiple: bool = False) -> None:
        """Note that messages are settled."""
        for position in list(self._by_tag.values()):
            position.settle(delivery_tags, multiple)

    def go_on(self, stream: str, offset: int) -> None:
        """Have the next consumer of a stream start at an offset, whatever its arguments say."""
        self.to_go_on[stream] = offset

    def offset_of(self, consumer_tag: str) -> int | None:
        """Return the offset at which a consumer would go on; None where it has had no message of a stream."""
        position = self._by_tag.get(consumer_tag)
        return None if position is None else position.offset

    def offsets_of(self, queues: Mapping[str, str]) -> dict[str, int]:
        """Return the offsets at which consumers, of which these are the queues by tag, would go on."""
        found = {queue: self.offset_of(tag) for tag, queue in queues.items()}
        return {queue: offset for queue, offset in found.items() if offset is not None}

    def starting(self, stream: str, arguments: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Return the arguments for a new consumer of a stream."""
        offset = self.to_go_on.pop(stream, None)
        return arguments if offset is None else {**(arguments or {}), OFFSET: offset}

    def resuming(self, consumer_tag: str, arguments: Mapping[str, Any] | None, started: float) -> Any:
        """Return the arguments for a consumer that comes back with its connection.

        One that wanted the next messages and has had none goes on at the time when it was started: ``started``, in
        seconds since the epoch.
        """
        position = self._by_tag.pop(consumer_tag, None)  # the tags are another connection's
        offset: Any = None if position is None else position.offset
        if offset is None and (arguments or {}).get(OFFSET) == "next":
            offset = _timestamp(started)
        if offset is None:
            return arguments
        if isinstance(offset, int):
            self._by_tag[consumer_tag] = resumed = StreamPosition()
            resumed.start(offset)
        return {**(arguments or {}), OFFSET: offset}


def _timestamp(seconds: float) -> Any:
    """Return a time as AMQP's timestamps have it: a ``datetime`` of UTC, without a zone."""
    from datetime import datetime, timezone  # for this alone

    return datetime.fromtimestamp(seconds, timezone.utc).replace(tzinfo=None)


class OffsetStore(Protocol):
    """A place where a consumer keeps its offsets."""

    def load(self) -> Mapping[str, int]:
        """Return the offsets to go on at, by stream."""

    def save(self, offsets: Mapping[str, int]) -> None:
        """Keep offsets."""


def checked_offsets(offsets: Any) -> dict[str, int]:
    """Return offsets by stream as they were read.

    Args:
        offsets: The offsets.

    Raises:
        ValueError: They are something else.
    """
    if not isinstance(offsets, dict) or not all(type(each) is int and each >= 0 for each in offsets.values()):
        raise ValueError(f"offsets are numbers from 0 on by stream, not {offsets!r:.80}")
    return offsets


class OffsetKeeper:
    """Saves the offsets of a consumer: every second at most, and when it ends."""

    def __init__(self, store: OffsetStore) -> None:
        self._store = store
        self._offsets = dict(store.load())
        self._saved = dict(self._offsets)
        self._due = monotonic() + SAVE_INTERVAL
        self._lock = Lock()

    @property
    def offsets(self) -> Mapping[str, int]:
        """The offsets to go on at, by stream."""
        return self._offsets

    def update(self, offsets: Mapping[str, int], at_once: bool = False) -> None:
        """Note how far the consumer is, and save that if it is time."""
        with self._lock:
            self._offsets.update(offsets)
            if (at_once or self.is_due()) and self._offsets != self._saved:
                self._store.save(self._offsets)
                self._saved = dict(self._offsets)
            if self.is_due():
                self._due = monotonic() + SAVE_INTERVAL

    def is_due(self) -> bool:
        """Return whether it is time to save."""
        return monotonic() >= self._due
