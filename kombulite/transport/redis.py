"""The redis transport under kombu's name."""

from __future__ import annotations

from kombulite.brokers.redis import Transport, get_redis_error_classes

__all__ = ["Transport", "get_redis_error_classes"]
