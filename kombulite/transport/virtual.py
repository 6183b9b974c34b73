"""The virtual transport under kombu's name."""

from __future__ import annotations

from kombulite.brokers.virtual import Transport

__all__ = ["Transport"]
