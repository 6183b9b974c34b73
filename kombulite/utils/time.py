"""Units of time."""

from __future__ import annotations

__all__ = ["maybe_s_to_ms"]


def maybe_s_to_ms(v: float | None) -> int | None:
    """Return seconds as whole milliseconds.

    Args:
        v: Seconds, of which less than a millisecond is cut off; None is returned as it is.
    """
    return int(float(v) * 1000.0) if v is not None else v
