"""kombulite on an event loop: connections whose verbs are awaited, many tasks on each.

See docs/asyncio.md. The names are those of the synchronous library, and the entities are the same objects.
"""

from kombulite.aio._connection import Connection, connect
from kombulite.aio._messages import Message, MessageBatch, Messages
from kombulite.aio._producer import Batch, Producer

__all__ = ["Batch", "Connection", "Message", "MessageBatch", "Messages", "Producer", "connect"]

for _name in __all__:
    globals()[_name].__module__ = __name__  # where the names are public, whatever module defines them
