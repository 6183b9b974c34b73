"""The filesystem transport as others subclass it: kombu's, from an installed kombu distribution.

The URL ``filesystem://`` means kombulite's own (``kombulite.brokers.filesystem``). The classes for subclasses are
loaded when one of them is asked for. Without a kombu distribution ``Transport`` is kombulite's own.
"""

from __future__ import annotations

from typing import Any

from kombulite.transport import note_contents
from kombulite.transport.distribution import execute

_is_loaded = False


def __getattr__(name: str) -> Any:
    global _is_loaded  # noqa: PLW0603
    if not _is_loaded and name not in ("__path__", "__all__", "__wrapped__"):
        _is_loaded = True
        namespace = globals()
        if execute("transport.filesystem", namespace):
            namespace["Transport"].native = "kombulite.brokers.filesystem:Transport"
            note_contents(__name__)
        else:
            from kombulite.brokers.filesystem import Transport

            namespace["Transport"] = Transport
        if name in namespace:
            return namespace[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
