"""Names of transports, and the classes behind them, as kombu has them.

Programs register transports by changing ``TRANSPORT_ALIASES``. kombulite's own transports are used directly as long as
their entries are unchanged; every other class runs through ``kombulite.transport.adapter``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from kombulite.transport.distribution import install
from kombulite.utils.compat import _detect_environment
from kombulite.utils.imports import symbol_by_name

__all__ = ["TRANSPORT_ALIASES", "get_transport_cls", "resolve_transport", "supports_librabbitmq"]

#: The least similarity of a name that is proposed for an unknown one.
MIN_SIMILARITY = 0.6

TRANSPORT_ALIASES: dict[str, Any] = {
    "amqp": "kombulite.transport.pyamqp:Transport",
    "amqps": "kombulite.transport.pyamqp:SSLTransport",
    "pyamqp": "kombulite.transport.pyamqp:Transport",
    "librabbitmq": "kombulite.transport.librabbitmq:Transport",
    "confluentkafka": "kombulite.transport.confluentkafka:Transport",
    "kafka": "kombulite.transport.confluentkafka:Transport",
    "memory": "kombulite.transport.memory:Transport",
    "redis": "kombulite.transport.redis:Transport",
    "rediss": "kombulite.transport.redis:Transport",
    "sentinel": "kombulite.transport.redis:SentinelTransport",
    "SQS": "kombulite.transport.SQS:Transport",
    "sqs": "kombulite.transport.SQS:Transport",
    "mongodb": "kombulite.transport.mongodb:Transport",
    "zookeeper": "kombulite.transport.zookeeper:Transport",
    "sqlalchemy": "kombulite.transport.sqlalchemy:Transport",
    "sqla": "kombulite.transport.sqlalchemy:Transport",
    "SLMQ": "kombulite.transport.SLMQ.Transport",
    "slmq": "kombulite.transport.SLMQ.Transport",
    "filesystem": "kombulite.transport.filesystem:Transport",
    "qpid": "kombulite.transport.qpid:Transport",
    "consul": "kombulite.transport.consul:Transport",
    "etcd": "kombulite.transport.etcd:Transport",
    "azurestoragequeues": "kombulite.transport.azurestoragequeues:Transport",
    "azureservicebus": "kombulite.transport.azureservicebus:Transport",
    "pyro": "kombulite.transport.pyro:Transport",
    "gcpubsub": "kombulite.transport.gcpubsub:Transport",
    "pgmq": "kombulite.transport.pgmq:Transport",
}

_ORIGINAL_ALIASES = dict(TRANSPORT_ALIASES)

_transport_cache: dict[Any, Any] = {}


def supports_librabbitmq() -> bool | None:
    """Return True if librabbitmq can be imported and no library of green threads is at work, else None."""
    if _detect_environment() == "default":
        try:
            import librabbitmq  # type: ignore[import-not-found]  # noqa: F401
        except ImportError:
            return None
        return True
    return None


def is_replaced(alias: str) -> bool:
    """Return whether a program wants another transport under a name than kombulite's own.

    It has registered one, or has changed a class of the module that kombu has for it, as tests and patches do: what it
    has changed is then used, because kombulite's own transport would pass it by.

    Args:
        alias: The name, a key of ``TRANSPORT_ALIASES``.
    """
    target = TRANSPORT_ALIASES.get(alias)
    if target is not _ORIGINAL_ALIASES.get(alias):
        return True
    return target is not None and is_patched(sys.modules.get(target.partition(":")[0]))


#: Names of a module, and of each of its classes, with what they stand for: functions, classes, properties.
Snapshot = dict[Any, dict[str, Any]]

_snapshots: dict[str, Snapshot] = {}


def _contents(module: Any) -> Snapshot:
    """Return what a program may patch in a module: functions, classes, modules; and the methods of its own classes."""
    names = vars(module).items()
    contents: Snapshot = {None: {name: each for name, each in names if callable(each) or isinstance(each, ModuleType)}}
    for cls in contents[None].values():
        if isinstance(cls, type) and cls.__module__ == module.__name__:
            contents[cls] = {name: value for name, value in vars(cls).items() if hasattr(value, "__get__")}
    return contents


def note_contents(module: str) -> None:
    """Note what is in a module of kombu's interface, whose transport kombulite replaces by its own.

    Args:
        module: Name of the module, once it is loaded.
    """
    _snapshots[module] = _contents(sys.modules[module])


def is_patched(module: Any) -> bool:
    """Return whether a program has changed a function, a class or a method of such a module.

    Args:
        module: The module, or None.
    """
    snapshot = _snapshots.get(getattr(module, "__name__", ""))
    if snapshot is None:
        return False
    return any(
        found.get(name) is not value
        for owner, kept in snapshot.items()
        for found in (vars(module if owner is None else owner),)
        for name, value in kept.items()
    )


def closest_name(name: str, known: Any) -> str | None:
    """Return the most similar of the known names, or None if none is similar.

    Args:
        name: The name to compare with.
        known: The names.
    """
    from difflib import SequenceMatcher  # for an error message alone

    ratios = ((SequenceMatcher(None, name, each).ratio(), each) for each in known)
    return max((found for found in ratios if found[0] >= MIN_SIMILARITY), default=(0, None))[1]


def resolve_transport(transport: Any = None) -> Any:
    """Return the class behind an alias or a dotted path.

    Args:
        transport: An alias, or a path (``module:Class``); any value that is not text is returned as it is.

    Raises:
        KeyError: No transport has that name.
    """
    if not isinstance(transport, str):
        return transport
    if transport in TRANSPORT_ALIASES:
        target = TRANSPORT_ALIASES[transport]
        is_factory = callable(target) and not isinstance(target, type)
        return symbol_by_name(target() if is_factory else target)
    if "." in transport or ":" in transport:
        return symbol_by_name(transport)
    close = closest_name(transport, TRANSPORT_ALIASES)
    raise KeyError(f"No such transport: {transport}" + (f".  Did you mean {close}?" if close else ""))


def get_transport_cls(transport: Any = None) -> Any:
    """Return the same as ``resolve_transport``, kept from the first call for that argument.

    Args:
        transport: An alias, a path, or a class.

    Raises:
        KeyError: No transport has that name.
    """
    if transport not in _transport_cache:
        _transport_cache[transport] = resolve_transport(transport)
    return _transport_cache[transport]


install()
