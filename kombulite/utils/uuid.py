"""Unique identifiers."""

from __future__ import annotations

from collections.abc import Callable
from os import urandom
from typing import Any

__all__ = ["uuid"]


def uuid(_uuid: Callable[[], Any] | None = None) -> str:
    """Return a random UUID (version 4) as text, or what ``_uuid`` makes."""
    if _uuid is not None:
        return str(_uuid())
    # Written here: the standard library's objects take four times as long, and its module long to import.
    random = urandom(16)
    digits = random.hex()
    variant = "89ab"[random[8] & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
