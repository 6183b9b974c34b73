"""Sending and receiving: the names that kombu's users import from here."""

from importlib import import_module
from typing import Any

from kombulite._sync.batches import Batch, BatchContext, SessionBatch
from kombulite._sync.consumer import Consumer
from kombulite._sync.producer import Producer
from kombulite.abstract import is_connection, maybe_channel
from kombulite.compression import compress
from kombulite.entity import Exchange, Queue, maybe_delivery_mode
from kombulite.exceptions import ContentDisallowed
from kombulite.message import Message
from kombulite.serialization import dumps, prepare_accept_content
from kombulite.utils.functional import ChannelPromise, maybe_list

#: Messages that a batch holds unless it is told otherwise.
DEFAULT_BATCH_SIZE = 1000

__all__ = ["Batch", "Consumer", "Exchange", "Message", "Producer", "Queue"]

#: Names that kombu's users import from here, though they stand elsewhere.
_OTHERS = (
    ChannelPromise,
    ContentDisallowed,
    compress,
    dumps,
    is_connection,
    maybe_channel,
    maybe_delivery_mode,
    maybe_list,
    prepare_accept_content,
)


_ProducerBatch, _ProducerBatchState = BatchContext, SessionBatch


#: Those that stand above, in modules that import this one.
_ABOVE = {"PooledConnection": "kombulite.connection", "maybe_declare": "kombulite.common"}


def __getattr__(name: str) -> Any:
    if name not in _ABOVE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ABOVE[name]), name)


for _class in (Batch, Consumer, Producer):
    _class.__module__ = __name__  # where the names are public, whatever module defines them
