"""Sending and receiving: the names that kombu's users import from here."""

from kombulite._sync.consumer import Consumer
from kombulite._sync.producer import Batch, Producer
from kombulite.entity import Exchange, Queue
from kombulite.message import Message

#: Messages that a batch holds unless it is told otherwise.
DEFAULT_BATCH_SIZE = 1000

__all__ = ["Batch", "Consumer", "Exchange", "Message", "Producer", "Queue"]

for _class in (Batch, Consumer, Producer):
    _class.__module__ = __name__  # where the names are public, whatever module defines them
