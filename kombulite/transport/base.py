"""What transports are made of, under kombu's name."""

from __future__ import annotations

from kombulite.brokers.base import Implements, Management, Transport

__all__ = ["Implements", "Management", "Transport"]
