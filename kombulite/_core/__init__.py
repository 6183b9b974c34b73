"""The compiled core, and the one door to it.

Imports nothing of the facade: it loads without it.
"""

from kombulite._core.codecs import Codecs
from kombulite._core.envelope import EnvelopeTemplate, MalformedEnvelope, TagSequence, decode_envelope
from kombulite._core.message import NOT_DECODED, Delivery, Properties, Received, copy_tree
from kombulite._core.priority import PriorityNaming
from kombulite._core.queueing import Claimant, Ledger, MessageQueue, Rota
from kombulite._core.routing import Binding, RoutingTable, UnknownExchange
from kombulite._core.serialization import JSON, InvalidValue, UnknownType

__all__ = [
    "JSON",
    "NOT_DECODED",
    "Binding",
    "Claimant",
    "Codecs",
    "Delivery",
    "EnvelopeTemplate",
    "InvalidValue",
    "Ledger",
    "MalformedEnvelope",
    "MessageQueue",
    "PriorityNaming",
    "Properties",
    "Received",
    "Rota",
    "RoutingTable",
    "TagSequence",
    "UnknownExchange",
    "UnknownType",
    "copy_tree",
    "decode_envelope",
]
