"""The memory transport under kombu's name."""

from __future__ import annotations

from kombulite.brokers.memory import Transport

__all__ = ["Transport"]
