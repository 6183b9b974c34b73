"""What a connection has claimed: messages ahead of its consumers, acks that wait for company."""

from __future__ import annotations

from collections import deque

from kombulite.brokers.sql.messages import Messages, Token
from kombulite.brokers.sql.topology import QueueRecord

__all__ = ["MAX_CLAIMED_AHEAD", "Claims"]

MAX_CLAIMED_AHEAD = 100  # messages
MAX_UNFLUSHED_ACKS = 100


class Claims:
    """The claims of one connection.

    ``acks``: acknowledged and not deleted yet; ``returns``: to be put back; ``unfailed``: so, and not to be counted.
    """

    def __init__(self, messages: Messages) -> None:
        self._messages = messages
        self._ahead: dict[int, deque[Token]] = {}  # claimed and not delivered yet, by queue
        self.acks: list[Token] = []
        self.returns: list[Token] = []
        self.unfailed: list[Token] = []

    def next(self, record: QueueRecord) -> Token | None:
        """Return the next message that is claimed already, or None."""
        ahead = self._ahead.get(record.id)
        return ahead.popleft() if ahead else None

    def claim(self, record: QueueRecord, credit: int) -> Token | None:
        """Claim the next messages of a queue, as many as the consumer may take now; returns the first."""
        claimed = self._messages.claim(record, min(credit or MAX_CLAIMED_AHEAD, MAX_CLAIMED_AHEAD))
        if not claimed:
            return None
        ahead = self._ahead[record.id] = deque(claimed)
        return ahead.popleft()

    @property
    def is_flush_due(self) -> bool:
        """Whether acks should wait no longer: they are many, or nothing else is at hand."""
        return bool(self.acks) and (len(self.acks) >= MAX_UNFLUSHED_ACKS or not any(self._ahead.values()))

    def write(self) -> None:
        """Delete what is acknowledged, and put back what is to be: one statement where nothing is."""
        if self.acks:
            self._messages.delete(self.acks)
        if self.returns:
            self._messages.put_back(self.returns)
        if self.unfailed:
            self._messages.put_back(self.unfailed, counts=False)

    def written(self) -> None:
        """Note that what ``write`` did is committed."""
        self.acks.clear()
        self.returns.clear()
        self.unfailed.clear()

    def return_unseen(self, record: QueueRecord) -> None:
        """Have what no consumer of a queue has seen put back with the next ``write``."""
        self.unfailed += self._ahead.pop(record.id, ())

    def forget_queue(self, record: QueueRecord) -> None:
        """Forget what was claimed of a queue that is gone."""
        self._ahead.pop(record.id, None)

    def clear(self) -> None:
        """Forget all: the connection is lost."""
        self._ahead.clear()
        self.written()
