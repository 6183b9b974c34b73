"""A messaging library: a compiled core behind the API that kombu's users know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombulite.connection import BrokerConnection, Connection
from kombulite.entity import Exchange, Queue, binding
from kombulite.message import Message
from kombulite.messaging import Consumer, Producer
from kombulite.serialization import disable_insecure_serializers, enable_insecure_serializers
from kombulite.utils.records import NamedTuple
from kombulite.utils.url import parse_url
from kombulite.utils.uuid import uuid

if TYPE_CHECKING:
    from kombulite._client.queue_kinds import Quorum, Stream
    from kombulite.aliasing import as_kombu
    from kombulite.common import eventloop
    from kombulite.pools import connections, producers


class version_info_t(NamedTuple):  # noqa: N801 - kombu's name
    """A version in parts."""

    major: int
    minor: int
    micro: int
    releaselevel: str
    serial: str


__version__ = "0.1.0"

#: The version of kombu's API that this is: what programs compare with what they need of kombu.
VERSION = version_info = version_info_t(5, 7, 0, "", "")

__all__ = [
    "VERSION",
    "BrokerConnection",
    "Connection",
    "Consumer",
    "Exchange",
    "Message",
    "Producer",
    "Queue",
    "Quorum",
    "Stream",
    "as_kombu",
    "binding",
    "connections",
    "disable_insecure_serializers",
    "enable_insecure_serializers",
    "eventloop",
    "parse_url",
    "producers",
    "uuid",
    "version_info",
]

#: Names that few need at the start, and the modules that they come from.
_LATE = {
    "Quorum": "kombulite._client.queue_kinds",
    "Stream": "kombulite._client.queue_kinds",
    "as_kombu": "kombulite.aliasing",
    "connections": "kombulite.pools",
    "eventloop": "kombulite.common",
    "producers": "kombulite.pools",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    if name in ("pools", "serialization", "pidbox"):  # kombu's users reach these without importing them
        return import_module(f"kombulite.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_LATE]
