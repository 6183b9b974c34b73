"""The Redis transport as others subclass it: kombu's, from an installed kombu distribution, over kombulite's bases.

The URL ``redis://`` means kombulite's own Redis transport (``kombulite.brokers.redis``). The classes for subclasses and
mocks (``Channel``, ``MultiChannelPoller``, ``PrefixedStrictRedis``, ...) are loaded when one of them is asked for.
Without a kombu distribution ``Transport`` is kombulite's own.
"""

from __future__ import annotations

from typing import Any

from kombulite.transport import note_contents
from kombulite.transport.distribution import execute

_is_loaded = False


def get_redis_error_classes() -> Any:
    """Return what redis-py raises: ``connection_errors`` and ``channel_errors``."""
    from kombulite.brokers.redis.errors import get_redis_error_classes

    return get_redis_error_classes()


def __getattr__(name: str) -> Any:
    global _is_loaded  # noqa: PLW0603
    if not _is_loaded and not name.startswith("__"):
        _is_loaded = True
        namespace = globals()
        if execute("transport.redis", namespace):
            for cls in (namespace["Transport"], namespace["SentinelTransport"]):
                cls.native = "kombulite.brokers.redis:Transport"
            note_contents(__name__)
        else:
            from kombulite.brokers.redis import Transport

            namespace["Transport"] = namespace["SentinelTransport"] = Transport
        if name in namespace:
            return namespace[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
