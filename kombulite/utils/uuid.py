"""Unique identifiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def uuid(_uuid: Callable[[], Any] | None = None) -> str:
    """A random UUID (version 4) as text, or what ``_uuid`` makes."""
    from uuid import uuid4  # imports more than all else here

    return str((_uuid or uuid4)())
