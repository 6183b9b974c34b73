"""The clock by which messages and queues of the memory brokers expire. Tests may move it forward."""

from __future__ import annotations

from time import monotonic

_offset = 0.0  # seconds


def now() -> float:
    """Return the time in seconds, on the monotonic clock as far as nobody moved this one."""
    return monotonic() + _offset


def move(seconds: float) -> None:
    """Move the clock forward for all brokers of the process; ``broker.advance`` also lets expire what is due.

    Raises:
        ValueError: ``seconds`` is negative: the clock is monotonic.
    """
    global _offset  # noqa: PLW0603 - one clock for one process
    if seconds < 0:
        raise ValueError(f"seconds must be at least 0, got {seconds}")
    _offset += seconds
