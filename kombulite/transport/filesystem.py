"""The filesystem transport under kombu's name."""

from __future__ import annotations

from kombulite.brokers.filesystem import Transport

__all__ = ["Transport"]
