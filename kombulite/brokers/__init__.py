"""URL schemes and the transports behind them.

Other packages add transports through entry points of the group ``kombulite.transports``: the scheme as the name, a
subclass of ``kombulite.brokers.base.Transport`` as the object.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, NamedTuple

from kombulite.brokers.base import Transport
from kombulite.utils.imports import symbol_by_name

ENTRY_POINT_GROUP = "kombulite.transports"


class Scheme(NamedTuple):
    """What a URL of a scheme means: its transport (``module:Class``), and what a URL that leaves it out stands for."""

    target: str
    port: int | None = None
    userid: str | None = None
    password: str | None = None
    login_method: str | None = None
    ssl: bool = False
    tls_port: int | None = None  # where TLS has another


AMQP = Scheme("kombulite.brokers.amqp:Transport", 5672, "guest", "guest", "PLAIN", tls_port=5671)

SCHEMES = {
    "memory": Scheme("kombulite.brokers.memory:Transport"),
    "filesystem": Scheme("kombulite.brokers.filesystem:Transport"),
    "amqp": AMQP,
    "pyamqp": AMQP,
    "amqps": AMQP._replace(ssl=True),
    "redis": Scheme("kombulite.brokers.redis:Transport", 6379),
    "rediss": Scheme("kombulite.brokers.redis:Transport", 6379, ssl=True),
    "sentinel": Scheme("kombulite.brokers.redis:Transport", 26379),
    "sqlite": Scheme("kombulite.brokers.sql:SQLiteTransport"),
    "postgresql": Scheme("kombulite.brokers.sql:PostgreSQLTransport", 5432),
}


def scheme_of(name: str) -> Scheme:
    """The facts of a scheme. Raises KeyError (with the closest name) or ValueError for one that cannot be."""
    if "." in name or ":" in name:
        raise ValueError(f"Invalid transport scheme: {name!r}")
    found = SCHEMES.get(name) or _entry_points().get(name)
    if found is None:
        close = get_close_matches(name, [*SCHEMES, *_entry_points()], n=1)
        hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join([*SCHEMES, *_entry_points()])}."
        raise KeyError(f"No such transport: {name}. {hint}")
    return found


def _entry_points() -> dict[str, Scheme]:
    from importlib.metadata import entry_points

    return {found.name: Scheme(found.value) for found in entry_points(group=ENTRY_POINT_GROUP)}


def resolve_transport(transport: Any) -> type[Transport]:
    """The class behind a scheme, a dotted path (``module:Class``) or a class."""
    if isinstance(transport, str):
        if "." not in transport and ":" not in transport:
            transport = scheme_of(transport).target
        transport = symbol_by_name(transport)
    resolved: type[Transport] = transport
    return resolved
