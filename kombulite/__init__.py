"""A messaging library: a compiled core behind the API that kombu's users know."""

from kombulite.connection import BrokerConnection, Connection
from kombulite.entity import Exchange, Queue, binding
from kombulite.message import Message
from kombulite.messaging import Consumer, Producer
from kombulite.serialization import disable_insecure_serializers, enable_insecure_serializers
from kombulite.utils.url import parse_url
from kombulite.utils.uuid import uuid

__version__ = "0.1.0"
VERSION = version_info = (0, 1, 0)

__all__ = [
    "VERSION",
    "BrokerConnection",
    "Connection",
    "Consumer",
    "Exchange",
    "Message",
    "Producer",
    "Queue",
    "binding",
    "disable_insecure_serializers",
    "enable_insecure_serializers",
    "parse_url",
    "uuid",
    "version_info",
]
