"""The compiled core, and the one door to it.

Imports nothing of the facade: it loads without it. Its modules load when a name of theirs is first asked for: a program
without AMQP has no use for frames.
"""

from importlib import import_module

_NAMES = {
    "aio": (
        "BaseAsyncChannel",
        "BaseAsyncMessage",
        "BaseAsyncProducer",
        "BaseAsyncSession",
        "BaseMessages",
        "BaseWaits",
        "DeliveryQueue",
        "PacedPublish",
        "pass_on",
    ),
    "channel": (
        "GATHERED",
        "AckStep",
        "BaseChannel",
        "BaseConsumer",
        "BaseSession",
        "BaseSubscription",
        "PublishStep",
        "is_channel_open",
    ),
    "codecs": ("Codecs",),
    "envelope": ("EnvelopeTemplate", "MalformedEnvelope", "TagSequence", "decode_envelope"),
    "envelopes": ("EnvelopeReader",),
    "fieldtable": (
        "MalformedFrame",
        "MalformedValue",
        "NotEncodable",
        "ProtocolError",
        "UnexpectedFrame",
        "decode_table",
        "encode_table",
    ),
    "frames": (
        "HEARTBEAT_FRAME",
        "LARGE_BODY",
        "AckWatermark",
        "ConfirmReceived",
        "FrameDecoder",
        "FrameEncoder",
        "FramePublish",
        "FrameReceive",
        "FrameWriter",
        "HeldAcks",
        "MethodReceived",
        "ReturnReceived",
    ),
    "leases": ("BaseClaimQueue", "BaseLeaseChannel", "Lease", "LeaseAck", "LeaseReceive", "LeasedMessages"),
    "locks": ("NOT_ACQUIRED", "BaseLock", "Condition"),
    "message": (
        "NOT_DECODED",
        "BaseMessage",
        "CounterBlock",
        "Delivery",
        "Properties",
        "declaration_key",
        "encode_text",
    ),
    "outgoing": (
        "KEYWORD_PROPERTIES",
        "BaseBatch",
        "BaseMaker",
        "BaseProducer",
        "ForeignPublish",
        "PlainMessages",
        "make_properties",
    ),
    "plain": ("PlainValue", "plain_value"),
    "priority": ("PriorityNaming",),
    "publishing": ("BaseQueue", "PublishPath"),
    "queueing": ("ConsumerRing", "ConsumerSlot", "FastPath", "MessageQueue", "UnackedDeliveries"),
    "resp": ("ListPush", "group_alike", "pack_command", "word_of"),
    "routing": ("Binding", "RoutingTable", "UnknownExchange"),
    "serialization": ("JSON", "InvalidValue", "UnknownType"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = list(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value
