"""The compiled core, and the one door to it.

Imports nothing of the facade: it loads without it.
"""

from kombulite._core.envelope import EnvelopeTemplate, MalformedEnvelope, TagSequence, decode_envelope
from kombulite._core.message import Delivery, Properties
from kombulite._core.priority import PriorityNaming
from kombulite._core.routing import Binding, RoutingTable, UnknownExchange
from kombulite._core.serialization import JSON, InvalidValue, UnknownType

__all__ = [
    "JSON",
    "Binding",
    "Delivery",
    "EnvelopeTemplate",
    "InvalidValue",
    "MalformedEnvelope",
    "PriorityNaming",
    "Properties",
    "RoutingTable",
    "TagSequence",
    "UnknownExchange",
    "UnknownType",
    "decode_envelope",
]
