"""How often something may happen."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Any

__all__ = ["TokenBucket"]


class TokenBucket:
    """A token bucket: ``fill_rate`` tokens come in a second, at most ``capacity`` are kept.

    ``contents`` is a queue for what waits for a token.

    Args:
        fill_rate: Tokens per second.
        capacity: The most tokens that are kept, and how many there are at first.
    """

    capacity: float = 1
    fill_rate: float = None  # type: ignore[assignment]  # as the next, set when one is made
    timestamp: float = None  # type: ignore[assignment]

    def __init__(self, fill_rate: float, capacity: float = 1) -> None:
        self.capacity = float(capacity)
        self._tokens = self.capacity
        self.fill_rate = float(fill_rate)
        self.timestamp = monotonic()
        self.contents: deque[Any] = deque()

    def add(self, item: object) -> None:
        """Add an item that waits.

        Args:
            item: Any object; ``pop()`` returns the first one added.
        """
        self.contents.append(item)

    def pop(self) -> Any:
        """Return the item that waits longest.

        Raises:
            IndexError: No item waits.
        """
        return self.contents.popleft()

    def clear_pending(self) -> None:
        """Forget what waits."""
        self.contents.clear()

    def can_consume(self, tokens: float = 1) -> bool:
        """Take tokens, if there are that many.

        Args:
            tokens: Number of tokens to take.

        Returns:
            True if they were taken, False if there are fewer.
        """
        if tokens > self._get_tokens():
            return False
        self._tokens -= tokens
        return True

    def expected_time(self, tokens: float = 1) -> float:
        """Return the seconds until there are enough tokens, 0 if there are now.

        Args:
            tokens: Number of tokens needed.
        """
        available = self._get_tokens()
        return (max(tokens, available) - available) / self.fill_rate

    def _get_tokens(self) -> float:
        now = monotonic()
        if self._tokens < self.capacity:
            self._tokens = min(self.capacity, self._tokens + self.fill_rate * (now - self.timestamp))
        self.timestamp = now
        return self._tokens
