"""Messages that are sent together: what ``Producer.batch()`` is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kombulite._client.outgoing import Chunk, DeliveryBatch
from kombulite._core import Delivery

if TYPE_CHECKING:
    from kombulite._client.hooks import Hooks

Refused = list[tuple[int, Exception]]
SendMany = Callable[[list[Delivery], bool], Refused]


class Batch(DeliveryBatch):
    """Messages that wait to be sent together. Returned by ``Producer.batch()``."""

    def __init__(self, send_many: SendMany, max_size: int) -> None:
        super().__init__(max_size, is_plain=type(self) is Batch)
        self._send_many = send_many

    def add(self, delivery: Delivery, mandatory: bool) -> None:
        """Add a message.

        A full batch, because an earlier attempt to send it failed, is sent first. While that fails the batch does not
        grow: the error is raised, and the message is not added.

        Args:
            delivery: The message.
            mandatory: If True, the broker returns the message if no queue takes it.
        """
        try:
            if self.is_full:
                self.flush()
        finally:
            if not self.is_full:
                self.append(delivery, mandatory)

    def flush(self) -> None:
        """Send the waiting messages.

        An error of the connection is raised as it is. The messages that were being sent continue to wait, although the
        broker may have some of them; messages that were refused before are reported by the next flush.

        Raises:
            BatchPublishError: Some messages were refused; ``refused`` names them by their index.
        """
        while alike := self.first_alike():
            self.note_sent(alike, self._send_many(alike, self.is_mandatory))
        self.raise_refused()

    def discard(self) -> None:
        """Drop what was not sent."""

    def close(self) -> None:
        """Do nothing: nothing is open."""


class HookedBatch(Batch):
    """Batch that passes each added message to the hooks of its connection."""

    def __init__(self, send_many: SendMany, max_size: int, hooks: Hooks) -> None:
        super().__init__(send_many, max_size)
        self._hooks = hooks

    def add(self, delivery: Delivery, mandatory: bool) -> None:
        """Add a message, with the headers that the hooks add.

        Args:
            delivery: The message.
            mandatory: If True, the broker returns the message if no queue takes it.
        """
        super().add(self._hooks.collect(delivery, mandatory), mandatory)


class ChunkSender:
    """Sends the chunks of a ``publish_many``. The broker may store one while the producer prepares the next.

    A context: what is under way is awaited at its end, also after an error.

    Args:
        producer: The producer that sends.
        chunk: What it prepares.
        mandatory: If True, the broker returns a message if no queue takes it.
        timeout: Seconds for each chunk.
    """

    def __init__(self, producer: Any, chunk: Chunk, mandatory: bool, timeout: float | None) -> None:
        self._producer = producer
        self._chunk = chunk
        self._arguments = mandatory, timeout
        self._under_way: tuple[int, Callable[[], Refused]] | None = None  # the first message's index; what waits

    def send(self, overlaps: bool = False) -> None:
        """Send what is prepared, behind what was sent before.

        Args:
            overlaps: If True, the broker may store it while the next messages are prepared.
        """
        self._wait()
        first, deliveries = self._chunk.take()
        if not deliveries:
            return
        wait = self._producer.begin_many(deliveries, *self._arguments) if overlaps else None
        if wait is not None:
            self._under_way = first, wait
        else:
            self._chunk.note_refused(first, self._producer.send_many(deliveries, *self._arguments))

    def _wait(self) -> None:
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            first, wait = under_way
            self._chunk.note_refused(first, wait())

    def __enter__(self) -> ChunkSender:
        return self

    def __exit__(self, *exception: object) -> None:
        self._wait()


class SessionBatch:
    """A batch of a channel of others, which keeps it (``create_publish_batch``); without that, it sends at once."""

    is_full = False

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        #: What the channel keeps; None before the first message, and where messages are sent at once.
        self.session: Any = None
        self.immediate = False
        self.aborted = False

    def publish(self, channel: Any, message: Any, **options: Any) -> Any:
        """Publish a message of the channel's ``prepare_message``. Return the result of the channel, or of its session.

        Args:
            channel: The channel.
            message: The message.
            **options: Keywords of the channel's ``basic_publish``.

        Raises:
            RuntimeError: The batch was aborted, or began on another channel.
        """
        if self.aborted:
            raise RuntimeError("Cannot publish through an aborted batch")
        session = self._get_session(channel)
        return channel.basic_publish(message, **options) if session is None else session.publish(message, **options)

    def _get_session(self, channel: Any) -> Any:
        """Return what a channel keeps the batch in; None if it has no such thing, and messages are sent at once."""
        if self.session is None and not self.immediate:
            create = getattr(channel, "create_publish_batch", None)
            if create is None or not getattr(channel, "supports_batch_publish", True):
                self.immediate = True
            else:
                self.session = create(max_size=self.max_size)
        elif self.session is not None and self.session.channel is not channel:
            raise RuntimeError("Producer channel changed while a publish batch was active")
        return self.session

    def flush(self) -> None:
        """Send what waits."""
        if self.aborted:
            raise RuntimeError("Cannot flush an aborted batch")
        if self.session is not None:
            self.session.flush()

    def discard(self) -> None:
        """Drop what was not sent. No more can be published."""
        if not self.aborted:
            self.aborted = True
            if self.session is not None:
                self.session.discard()

    abort = discard

    def close(self) -> None:
        """Close what the channel keeps."""
        if self.session is not None:
            self.session.close()


class BatchContext:
    """Context of ``Producer.batch()``: messages that the producer publishes inside are collected."""

    def __init__(self, producer: Any, max_size: int) -> None:
        if isinstance(max_size, bool) or not isinstance(max_size, int) or max_size < 1:
            raise ValueError(f"max_size must be a positive integer, got {max_size!r}")
        self.producer = producer
        self.max_size = max_size
        #: The batch, which contexts within one another share.
        self.state: Any = None
        self.is_outermost = False
        self.entered = False
        self.active = False

    def __enter__(self) -> Batch:
        if self.entered:
            raise RuntimeError("Publish batch context cannot be re-entered")
        self.entered = self.active = True
        self.state, self.is_outermost = self.producer._enter_batch(self.max_size)
        batch: Batch = self.state  # a SessionBatch has as much of it as programs use
        return batch

    def __exit__(self, kind: type[BaseException] | None, error: Any, traceback: object) -> None:
        self.active = False
        batch = self.state
        if self.is_outermost:
            self.producer._leave_batch()
        try:
            if kind is not None:
                batch.discard()
            elif self.is_outermost:
                batch.flush()
        finally:
            if self.is_outermost:
                batch.close()

    def flush(self) -> None:
        """Send what was collected.

        Raises:
            RuntimeError: It is called outside of the context.
            BatchPublishError: Some messages were refused; ``refused`` names them by their index.
        """
        if not self.active:
            raise RuntimeError("Publish batch context is not active")
        self.state.flush()
