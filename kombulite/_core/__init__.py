"""The compiled core, and the one door to it.

Imports nothing of the facade: it loads without it.
"""

from kombulite._core.aio import (
    BaseAsyncChannel,
    BaseAsyncMessage,
    BaseAsyncProducer,
    BaseAsyncSession,
    BaseMessages,
    BaseWaits,
    PacedPublish,
    pass_on,
)
from kombulite._core.channel import (
    GATHERED,
    AckStep,
    BaseChannel,
    BaseConsumer,
    BaseSession,
    BaseSubscription,
    PublishStep,
    is_channel_open,
)
from kombulite._core.codecs import Codecs
from kombulite._core.envelope import EnvelopeTemplate, MalformedEnvelope, TagSequence, decode_envelope
from kombulite._core.fieldtable import (
    MalformedFrame,
    MalformedValue,
    NotEncodable,
    ProtocolError,
    UnexpectedFrame,
    decode_table,
    encode_table,
)
from kombulite._core.frames import (
    HEARTBEAT_FRAME,
    LARGE_BODY,
    AckWatermark,
    ConfirmReceived,
    FrameDecoder,
    FrameEncoder,
    FrameWriter,
    HeldAcks,
    MethodReceived,
    ReturnReceived,
)
from kombulite._core.locks import NOT_ACQUIRED, BaseLock, Condition
from kombulite._core.message import (
    NOT_DECODED,
    BaseMessage,
    CounterBlock,
    Delivery,
    Properties,
    declaration_key,
    encode_text,
)
from kombulite._core.outgoing import (
    KEYWORD_PROPERTIES,
    BaseBatch,
    BaseMaker,
    BaseProducer,
    ForeignPublish,
    PlainMessages,
    make_properties,
)
from kombulite._core.priority import PriorityNaming
from kombulite._core.publishing import BaseQueue, PublishPath
from kombulite._core.queueing import ConsumerRing, ConsumerSlot, FastPath, MessageQueue, UnackedDeliveries
from kombulite._core.resp import ListPush, end_of_run, group_alike, pack_command
from kombulite._core.routing import Binding, RoutingTable, UnknownExchange
from kombulite._core.serialization import JSON, InvalidValue, UnknownType

__all__ = [
    "GATHERED",
    "HEARTBEAT_FRAME",
    "JSON",
    "KEYWORD_PROPERTIES",
    "LARGE_BODY",
    "NOT_ACQUIRED",
    "NOT_DECODED",
    "AckStep",
    "AckWatermark",
    "BaseAsyncChannel",
    "BaseAsyncMessage",
    "BaseAsyncProducer",
    "BaseAsyncSession",
    "BaseBatch",
    "BaseChannel",
    "BaseConsumer",
    "BaseLock",
    "BaseMaker",
    "BaseMessage",
    "BaseMessages",
    "BaseProducer",
    "BaseQueue",
    "BaseSession",
    "BaseSubscription",
    "BaseWaits",
    "Binding",
    "Codecs",
    "Condition",
    "ConfirmReceived",
    "ConsumerRing",
    "ConsumerSlot",
    "CounterBlock",
    "Delivery",
    "EnvelopeTemplate",
    "FastPath",
    "ForeignPublish",
    "FrameDecoder",
    "FrameEncoder",
    "FrameWriter",
    "HeldAcks",
    "InvalidValue",
    "ListPush",
    "MalformedEnvelope",
    "MalformedFrame",
    "MalformedValue",
    "MessageQueue",
    "MethodReceived",
    "NotEncodable",
    "PacedPublish",
    "PlainMessages",
    "PriorityNaming",
    "Properties",
    "ProtocolError",
    "PublishPath",
    "PublishStep",
    "ReturnReceived",
    "RoutingTable",
    "TagSequence",
    "UnackedDeliveries",
    "UnexpectedFrame",
    "UnknownExchange",
    "UnknownType",
    "declaration_key",
    "decode_envelope",
    "decode_table",
    "encode_table",
    "encode_text",
    "end_of_run",
    "group_alike",
    "is_channel_open",
    "make_properties",
    "pack_command",
    "pass_on",
]
