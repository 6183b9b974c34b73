"""URL schemes and the transports behind them.

Other packages add transports through entry points of the group ``kombulite.transports``: the scheme as the name, a
subclass of ``kombulite.brokers.base.Transport`` as the object.
"""

from __future__ import annotations

import sys
from typing import Any

from kombulite.brokers.base import Transport
from kombulite.transport import TRANSPORT_ALIASES, closest_name, get_transport_cls, is_patched, is_replaced
from kombulite.utils.imports import symbol_by_name
from kombulite.utils.records import NamedTuple

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
    clustered: str | None = None  # the scheme that the option ``cluster`` stands for
    names_file: bool = False  # its URL has a path, and no server
    query_option: str | None = None  # the transport option that has the parameters of a URL which are not kombu's


AMQP = Scheme("kombulite.brokers.amqp:Transport", 5672, "guest", "guest", "PLAIN", tls_port=5671)
CLUSTER = Scheme("kombulite.brokers.redis.cluster:Transport", 6379)

SCHEMES = {
    "memory": Scheme("kombulite.brokers.memory:Transport"),
    "filesystem": Scheme("kombulite.brokers.filesystem:Transport"),
    "amqp": AMQP,
    "pyamqp": AMQP,
    "amqps": AMQP._replace(ssl=True),
    "redis": Scheme("kombulite.brokers.redis:Transport", 6379, clustered="rediscluster"),
    "rediss": Scheme("kombulite.brokers.redis:Transport", 6379, ssl=True, clustered="redisscluster"),
    "rediscluster": CLUSTER,
    "redisscluster": CLUSTER._replace(ssl=True),
    "valkeycluster": CLUSTER,
    "valkeyscluster": CLUSTER._replace(ssl=True),
    "sentinel": Scheme("kombulite.brokers.redis:Transport", 26379),
    "sqlite": Scheme("kombulite.brokers.sql:SQLiteTransport", names_file=True),
    "postgresql": Scheme("kombulite.brokers.sql:PostgreSQLTransport", 5432, query_option="connect_args"),
}


def native_scheme(name: str) -> Scheme | None:
    """Return the facts of a scheme that one of kombulite's own transports serves, or one of an entry point; or None.

    A program that registers another transport under the name (``TRANSPORT_ALIASES``) wins.
    """
    found = SCHEMES.get(name)
    if found is not None:
        return None if is_replaced(name) else found
    return None if name in TRANSPORT_ALIASES else _entry_points().get(name)


def check_url_transport(name: str) -> str:
    """Return the name of a transport that a URL has given, unless it is a path.

    Raises:
        ValueError: The name is a path: a URL must not choose what is imported.
    """
    if "." in name or ":" in name:
        raise ValueError(f"Invalid transport scheme: {name!r}")
    return name


def check_scheme(name: str) -> Scheme | None:
    """Return the facts of a scheme; None if its transport is written for kombu's interface.

    Raises:
        KeyError: There is no such transport; the message names the closest one.
        ValueError: The name is a path: a URL must not choose what is imported.
    """
    found = native_scheme(check_url_transport(name))
    if found is None and name not in TRANSPORT_ALIASES:
        known = list(dict.fromkeys([*SCHEMES, *TRANSPORT_ALIASES, *_entry_points()]))
        close = closest_name(name, known)
        hint = f"Did you mean {close}?" if close else f"There are: {', '.join(known)}."
        raise KeyError(f"No such transport: {name}.  {hint}")
    return found


def _entry_points() -> dict[str, Scheme]:
    from importlib.metadata import entry_points

    return {found.name: Scheme(found.value) for found in entry_points(group=ENTRY_POINT_GROUP)}


def resolve_transport(transport: Any) -> Any:
    """Return the class behind a scheme, a dotted path (``module:Class``) or a class.

    A subclass of ``kombulite.brokers.base.Transport`` is one of kombulite's own interface; the others are kombu's. A
    class stands for itself: whoever names ``kombu.transport.redis.Transport``, or a class derived from it, wants it.
    """
    if not isinstance(transport, str):
        return transport
    native = native_scheme(transport) if "." not in transport and ":" not in transport else None
    found = _load(native.target) if native is not None else get_transport_cls(transport)
    # The path of the class that kombu's users know stands for one of ours, unless a program has changed its module.
    module = sys.modules.get(getattr(found, "__module__", ""))
    target = None if is_patched(module) else getattr(found, "__dict__", {}).get("native")
    return found if target is None else _load(target)


def _load(target: Any) -> Any:
    try:
        return symbol_by_name(target)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(error.name or "")
        if extra is None:
            raise
        text = f"{target} needs the package {error.name}, which is not installed: pip install 'kombulite[{extra}]'"
        raise ModuleNotFoundError(text, name=error.name) from error


#: Packages that a transport needs, and the extra of kombulite's that brings them.
EXTRAS = {"redis": "redis", "hiredis": "redis"}


def is_native(cls: Any) -> bool:
    """Return whether a transport's class is of kombulite's own interface."""
    return isinstance(cls, type) and issubclass(cls, Transport)
