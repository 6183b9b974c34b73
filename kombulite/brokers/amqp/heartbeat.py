"""When a heartbeat is due, and when the broker has missed too many (section 4.2.7). Without a clock of its own."""

from __future__ import annotations


class Heartbeat:
    """The heartbeats of one connection. Whatever is sent or received counts as a heartbeat.

    ``interval``: seconds that were negotiated, 0 for none. ``writes`` and ``reads`` are counted up by the stream.
    """

    def __init__(self) -> None:
        self.interval = 0.0
        self.writes = self.reads = 0
        self.sent_at = self.received_at = 0.0  # times of the monotonic clock, as of the last look
        self._writes_seen = self._reads_seen = -1

    def look(self, now: float) -> None:
        """Note when the last writes and reads were."""
        if self.writes != self._writes_seen:
            self._writes_seen, self.sent_at = self.writes, now
        if self.reads != self._reads_seen:
            self._reads_seen, self.received_at = self.reads, now

    def is_due(self, now: float, rate: float = 2) -> bool:
        """Return whether a heartbeat is due, of which ``rate`` are sent in an interval."""
        return now > self.sent_at + self.interval / (rate if rate > 0 else 2)

    def note_sent(self, now: float) -> None:
        """Note that a heartbeat was sent, or cannot be."""
        self._writes_seen, self.sent_at = self.writes, now

    def is_missed(self, now: float) -> bool:
        """Return whether the broker has missed two heartbeats."""
        return now > self.received_at + 2 * self.interval

    def is_late(self, now: float) -> bool:
        """Return whether the broker has missed one heartbeat, and nothing came since the last look."""
        return bool(self.interval) and self.reads == self._reads_seen and now > self.received_at + self.interval

    def next_look(self) -> float:
        """Return the seconds after which to look again."""
        return self.interval / 4
