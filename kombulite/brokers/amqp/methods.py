"""Methods of AMQP 0-9-1 for everything except messages: numbers, arguments, replies.

Source: section 1.5 of the specification, and RabbitMQ's extensions.

Arguments are described with py-amqp's letters: ``b`` bit, ``o`` octet, ``B`` short, ``l`` long, ``L`` longlong, ``s``
short string, ``S`` long string, ``F`` table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from amqp.serialization import dumps, loads

from kombulite import exceptions
from kombulite._core import NotEncodable

Signature = tuple[int, int]  # class id, method id
#: Frames that are written together; a large body that is not copied is among buffers one after the other.
Frames: TypeAlias = bytes | list[bytes | memoryview]


class Method(NamedTuple):
    """A method to send, and the one that answers it."""

    name: str
    signature: Signature
    arguments: str
    reply: Signature
    reply_arguments: str = ""

    def encode(self, *arguments: Any) -> bytes:
        """Return the arguments as bytes. Raises EncodeError."""
        return encode(self.name, self.arguments, arguments)

    def decode(self, arguments: bytes) -> list[Any]:
        """Return the arguments of the reply."""
        return decode(self.reply_arguments, arguments)


def encode(name: str, format: str, arguments: Sequence[Any]) -> bytes:
    """Return the arguments of a method as bytes. Raises EncodeError."""
    try:
        return bytes(dumps(format, arguments)) if format else b""
    except Exception as error:  # py-amqp raises whatever the failed conversion does
        raise exceptions.EncodeError(f"{name}: {error}") from error


def not_encodable(error: NotEncodable) -> Exception:
    """Return the EncodeError for a message that AMQP has no form for, of the class of its cause too."""
    return exceptions.encode_error(error.__cause__ if isinstance(error.__cause__, Exception) else error)


def decode(format: str, arguments: bytes) -> list[Any]:
    """Return arguments from their bytes. Raises FrameSyntaxError."""
    if not format:
        return []
    try:
        values: list[Any] = loads(format, arguments, 0)[0]
    except Exception as error:  # py-amqp checks no bounds
        raise exceptions.FrameSyntaxError(f"malformed arguments: {error}") from error
    return values


CONNECTION_UPDATE_SECRET = Method("Connection.update-secret", (10, 70), "Ss", (10, 71))
CONNECTION_CLOSE = Method("Connection.close", (10, 50), "BsBB", (10, 51))
CHANNEL_OPEN = Method("Channel.open", (20, 10), "s", (20, 11))
CHANNEL_FLOW = Method("Channel.flow", (20, 20), "b", (20, 21))
CHANNEL_CLOSE = Method("Channel.close", (20, 40), "BsBB", (20, 41))
EXCHANGE_DECLARE = Method("Exchange.declare", (40, 10), "BssbbbbbF", (40, 11))
EXCHANGE_DELETE = Method("Exchange.delete", (40, 20), "Bsbb", (40, 21))
EXCHANGE_BIND = Method("Exchange.bind", (40, 30), "BsssbF", (40, 31))
EXCHANGE_UNBIND = Method("Exchange.unbind", (40, 40), "BsssbF", (40, 51))
QUEUE_DECLARE = Method("Queue.declare", (50, 10), "BsbbbbbF", (50, 11), "sll")
QUEUE_BIND = Method("Queue.bind", (50, 20), "BsssbF", (50, 21))
QUEUE_PURGE = Method("Queue.purge", (50, 30), "Bsb", (50, 31), "l")
QUEUE_DELETE = Method("Queue.delete", (50, 40), "Bsbbb", (50, 41), "l")
QUEUE_UNBIND = Method("Queue.unbind", (50, 50), "BsssF", (50, 51))
BASIC_QOS = Method("Basic.qos", (60, 10), "lBb", (60, 11))
BASIC_CONSUME = Method("Basic.consume", (60, 20), "BssbbbbF", (60, 21), "s")
BASIC_CANCEL = Method("Basic.cancel", (60, 30), "sb", (60, 31), "s")
BASIC_CANCEL_OK = Method("Basic.cancel-ok", (60, 31), "s", (60, 31))
BASIC_RECOVER = Method("Basic.recover", (60, 110), "b", (60, 111))
CONFIRM_SELECT = Method("Confirm.select", (85, 10), "b", (85, 11))

# What the broker says of its own accord.
CLOSE_ARGUMENTS = "BsBB"  # reply code, reply text, class id, method id
CONNECTION_START: Signature = (10, 10)
CONNECTION_SECURE: Signature = (10, 20)
CONNECTION_TUNE: Signature = (10, 30)
CONNECTION_OPEN_OK: Signature = (10, 41)
CONNECTION_BLOCKED: Signature = (10, 60)
CONNECTION_UNBLOCKED: Signature = (10, 61)
BASIC_PUBLISH: Signature = (60, 40)
BASIC_GET_EMPTY: Signature = (60, 72)
