"""Sending and receiving: the names that kombu's users import from here."""

from kombulite.consumer import Consumer
from kombulite.entity import Exchange, Queue
from kombulite.message import Message
from kombulite.producer import Batch, Producer

#: Messages that a batch holds unless it is told otherwise.
DEFAULT_BATCH_SIZE = 1000

__all__ = ["Batch", "Consumer", "Exchange", "Message", "Producer", "Queue"]
