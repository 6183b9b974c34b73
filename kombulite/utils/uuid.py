"""Unique identifiers."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID, uuid4


def uuid(_uuid: Callable[[], UUID] = uuid4) -> str:
    """A random UUID (version 4) as text."""
    return str(_uuid())
