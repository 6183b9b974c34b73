"""What is under way on an event loop: futures of answers and confirms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from time import monotonic
from typing import Any

from kombulite._core import Delivery
from kombulite.brokers.aio import Pending, refuse, resolve
from kombulite.brokers.amqp.channel import Request
from kombulite.brokers.amqp.confirms import Unconfirmed
from kombulite.brokers.amqp.methods import Signature


class PendingRequest(Request):
    """A request whose answer is a future; ``result`` makes it of what the broker answers."""

    __slots__ = ("name", "pending", "result", "sent_at")

    def __init__(
        self,
        name: str,
        replies: tuple[Signature, ...],
        pending: Pending[Any],
        result: Callable[[Any], Any],
    ) -> None:
        super().__init__(replies)
        self.name = name
        self.pending = pending
        self.result = result
        self.sent_at = monotonic()

    def succeed(self, answer: Any) -> None:
        """Set the result, which is made also if the task that asked was cancelled."""
        try:
            result = self.result(answer)
        except Exception as error:
            refuse(self.pending, error)
            raise
        resolve(self.pending, result)

    def fail(self, error: Exception) -> None:
        """Set the error."""
        refuse(self.pending, copy(error))


class PendingConfirm(Unconfirmed):
    """A message that was published, and the future of its confirm."""

    __slots__ = ("pending",)

    def __init__(self, delivery: Delivery, mandatory: bool, pending: Pending[None]) -> None:
        super().__init__(delivery, mandatory)
        self.pending: Pending[None] | None = pending

    def settle(self, error: Exception | None) -> None:
        """Note the outcome."""
        pending, error = self.pending, self.error or error
        if pending is None:
            return
        if error is not None:
            refuse(pending, copy(error))
        elif not pending.done():
            pending.set_result(None)

    @property
    def is_given_up(self) -> bool:
        """Whether the task that waited was cancelled, or its time is over."""
        return self.pending is not None and self.pending.done()

    def let_go(self) -> None:
        """Keep no body, nor the error of the wait, whose frames have it too."""
        super().let_go()
        self.pending = None


class PendingBatch:
    """Messages that were published together, and the future of what was refused of them: (index, error)."""

    def __init__(self, pending: Pending[list[tuple[int, Exception]]], mandatory: bool) -> None:
        self.pending = pending
        self.mandatory = mandatory
        self.messages: list[BatchConfirm] = []
        self._left = 1  # to be settled; one of them stands for the messages that are still to be added

    def add(self, deliveries: Sequence[Delivery]) -> list[BatchConfirm]:
        """Return what to count for messages that are about to be sent."""
        added = [BatchConfirm(delivery, self) for delivery in deliveries]
        self.messages += added
        self._left += len(added)
        return added

    def finish(self) -> None:
        """Note that one is settled, or all are added. Set the result if that was the last."""
        self._left -= 1
        if not self._left:
            outcome = [(number, each.error) for number, each in enumerate(self.messages) if each.error is not None]
            resolve(self.pending, outcome)


class BatchConfirm(Unconfirmed):
    """One of the messages that were published together."""

    __slots__ = ("batch",)

    def __init__(self, delivery: Delivery, batch: PendingBatch) -> None:
        super().__init__(delivery, batch.mandatory)
        self.batch = batch

    def settle(self, error: Exception | None) -> None:
        """Note the outcome."""
        if not self.done:
            super().settle(error)
            self.batch.finish()
