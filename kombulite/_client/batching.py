"""Messages many at a time: what a consumer with ``on_batch`` gathers, and what its callback gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any

from kombulite import exceptions
from kombulite._core import GATHERED
from kombulite.brokers.base import Outcome
from kombulite.message import Message
from kombulite.utils.locks import Lock

#: What becomes of a message, as its ``state`` tells.
STATES = {
    Outcome.ACK: "ACK",
    Outcome.REJECT: "REJECTED",
    Outcome.REQUEUE: "REQUEUED",
    Outcome.RETURN: "REQUEUED",
}


class MessageBatch(list[Message]):
    """Received messages of one channel: a list. Settling leaves out those that are settled already."""

    @property
    def payloads(self) -> list[Any]:
        """The decoded bodies."""
        return [message.payload for message in self]

    def unsettled(self) -> tuple[list[Message], list[Any]]:
        """Return the messages that are not settled, and the delivery tags of those that have to be.

        Raises:
            MessageStateError: These have no channel.
        """
        messages = [message for message in self if not message.acknowledged]
        tags = [message.delivery_tag for message in messages if not message.no_ack]
        if tags and messages[0].channel is None:
            raise exceptions.MessageStateError("the messages have no channel, and cannot be settled")
        return messages, tags

    def ack(self) -> None:
        """Acknowledge all, at once where the transport can.

        Raises:
            PreconditionFailed: The channel does not know one of them.
            RecoverableConnectionError: The channel is closed, or its connection lost; the messages are redelivered.
        """
        self._settle(Outcome.ACK)

    def reject(self, requeue: bool = False) -> None:
        """Reject all: to the dead letter exchanges of their queues.

        Args:
            requeue: If True, the messages return to their queues instead.
        """
        self._settle(Outcome.REQUEUE if requeue else Outcome.REJECT)

    def requeue(self, failed: bool = True) -> None:
        """Put all back into their queues.

        Args:
            failed: If True, this counts as a failed delivery, as for ``Message.requeue``.
        """
        self._settle(Outcome.REQUEUE if failed else Outcome.RETURN)

    def _settle(self, outcome: Outcome) -> None:
        messages, outstanding = self.unsettled()
        if outstanding:
            channel: Any = messages[0].channel
            channel.settle_many(outstanding, outcome)
        for message in messages:
            message._state = STATES[outcome]


def return_unseen(messages: Iterable[Message]) -> None:
    """Put messages of one channel, which the application has not seen, back into their queues.

    Those that need no ack stay; a stream keeps its messages anyway.
    """
    batch = MessageBatch(each for each in messages if not each.no_ack and each.stream_offset is None)
    with suppress(exceptions.RecoverableConnectionError):  # they went back with the channel
        batch.requeue(failed=False)


class BatchCollector:
    """The messages that a consumer has for its next batch.

    ``on_batch(messages)`` is called with at most ``size`` of them, when there are as many (or as many as the prefetch
    limit lets be out), or when the first has waited for ``timeout`` seconds. Threads may share it: each batch is one
    thread's.
    """

    def __init__(self, on_batch: Callable[[MessageBatch], Any], size: int, timeout: float) -> None:
        if size < 1:
            raise ValueError(f"a batch has at least one message, not {size}")
        if not timeout >= 0:
            raise ValueError(f"a batch waits for a number of seconds from 0 on, not {timeout}")
        self.on_batch = on_batch
        self.deadline = inf  # when what is there goes, on the monotonic clock; infinite where there is nothing
        self._size = size
        self._timeout = timeout
        self._lock = Lock()
        self._messages = MessageBatch()
        self._full = size
        self._generation = 0  # which of the channel's connections the messages came on

    def add(self, message: Message) -> object:
        """Keep a message (returns GATHERED), or hand the batch over that it completes."""
        with self._lock:
            if not self._messages or message.channel.generation != self._generation:
                self._begin(message.channel)
            messages = self._messages
            messages.append(message)
            if len(messages) < self._full:
                return GATHERED
            self._take()
        self._run(messages)
        return None

    def _run(self, batch: MessageBatch) -> None:
        try:
            self.on_batch(batch)
        except Exception:
            for message in batch:
                message.channel.note_failure(message)
            raise

    def _begin(self, channel: Any) -> None:
        self._drop_lost()
        if not self._messages:
            self._generation = channel.generation
            self._full = min(self._size, channel.prefetch_limit or self._size)
            self.deadline = monotonic() + self._timeout
            channel.turn_loop_in(self._timeout)

    def hand_over(self) -> bool:
        """Hand over what there is. Returns whether there was anything that is not lost with its connection."""
        with self._lock:
            self._drop_lost()
            batch = self._take()
        if batch:
            self._run(batch)
        return bool(batch)

    def give_back(self, consumer_tags: set[str]) -> None:
        """Put the messages of consumers that end back into their queues. Those that need no ack are handed over."""
        with self._lock:
            self._drop_lost()
            deadline, batch = self.deadline, self._take()
            ended, kept = MessageBatch(), MessageBatch()
            for message in batch:
                (ended if message.delivery_info["consumer_tag"] in consumer_tags else kept).append(message)
            if kept:
                self.deadline, self._messages = deadline, kept
        return_unseen(ended)
        unreturnable = MessageBatch(each for each in ended if each.no_ack)
        if unreturnable:
            self.on_batch(unreturnable)

    def lose(self) -> None:
        """Drop what was gathered, because the connection is lost."""
        with self._lock:
            self._drop_lost()

    def _drop_lost(self) -> None:
        """Drop messages of a lost connection or channel: those that need an acknowledgement are redelivered."""
        channel = self._messages[0].channel if self._messages else None
        if channel is not None and (channel.generation != self._generation or not channel.is_open):
            self._generation = channel.generation
            self._messages = MessageBatch(each for each in self._messages if each.no_ack)
            if not self._messages:
                self.deadline = inf

    def _take(self) -> MessageBatch:
        taken, self._messages = self._messages, MessageBatch()
        self.deadline = inf
        return taken
