"""All errors, in one tree.

The module is longer than others because AMQP alone has twenty classes.

    Exception
    ├── KombuError
    │   ├── OperationalError                what a driver's connection errors become where kombu promises one
    │   ├── BatchPublishError               a batch was sent in part, or its outcome is not known
    │   ├── SerializationError
    │   │   ├── EncodeError
    │   │   └── DecodeError
    │   │       └── InflateError            compressed data that is broken, or larger than allowed
    │   ├── NotBoundError                   an entity is used without a channel
    │   ├── MessageStateError               a message is acknowledged twice
    │   ├── LimitExceeded
    │   │   ├── ConnectionLimitExceeded
    │   │   └── ChannelLimitExceeded
    │   ├── VersionMismatch
    │   └── SerializerNotInstalled
    │       └── ContentDisallowed
    ├── BrokerError                     what a broker refuses, whatever it speaks
    │   ├── AMQPError                           a reply code of AMQP 0-9-1 (section 1.1), whatever the broker
    │   │   ├── ConnectionError
    │   │   │   ├── RecoverableConnectionError
    │   │   │   │   ├── ConnectionForced        320
    │   │   │   │   ├── ResourceError           506
    │   │   │   │   ├── ConsumerCancelled
    │   │   │   │   └── Blocked
    │   │   │   ├── IrrecoverableConnectionError
    │   │   │   │   ├── InvalidPath             402
    │   │   │   │   ├── FrameError              501
    │   │   │   │   ├── FrameSyntaxError        502
    │   │   │   │   ├── InvalidCommand          503
    │   │   │   │   ├── ChannelNotOpen          504
    │   │   │   │   ├── UnexpectedFrame         505
    │   │   │   │   ├── NotAllowed              530
    │   │   │   │   │   └── LoginRefused        403: it is an AccessRefused too
    │   │   │   │   ├── AMQPNotImplementedError 540
    │   │   │   │   └── InternalError           541
    │   │   │   └── InconsistencyError          the broker lost what it had accepted
    │   │   └── ChannelError
    │   │       ├── RecoverableChannelError
    │   │       │   ├── ContentTooLarge         311
    │   │       │   ├── NoConsumers             313
    │   │       │   └── ResourceLocked          405
    │   │       ├── IrrecoverableChannelError
    │   │       │   ├── AccessRefused           403
    │   │       │   ├── NotFound                404
    │   │       │   └── PreconditionFailed      406
    │   │       │       └── NotEquivalentError  an entity is declared again, differently
    │   │       └── MessageReturned             312: nothing took a message that was published as mandatory
    │   └── MessageNacked                       the broker refused a publish
    ├── HttpError
    └── OSError
        └── TimeoutError                    the built-in one, which is also ``socket.timeout``
"""

from __future__ import annotations

import builtins
from types import TracebackType
from typing import Any, NoReturn, TypeVar

__all__ = [
    "AMQPError",
    "AMQPNotImplementedError",
    "AccessRefused",
    "BatchPublishError",
    "Blocked",
    "BrokerError",
    "ChannelError",
    "ChannelLimitExceeded",
    "ChannelNotOpen",
    "ConnectionError",
    "ConnectionForced",
    "ConnectionLimitExceeded",
    "ConsumerCancelled",
    "ContentDisallowed",
    "ContentTooLarge",
    "DecodeError",
    "EncodeError",
    "FrameError",
    "FrameSyntaxError",
    "HttpError",
    "InconsistencyError",
    "InflateError",
    "InternalError",
    "InvalidCommand",
    "InvalidPath",
    "IrrecoverableChannelError",
    "IrrecoverableConnectionError",
    "KombuError",
    "LimitExceeded",
    "LoginRefused",
    "MessageNacked",
    "MessageReturned",
    "MessageStateError",
    "NoConsumers",
    "NotAllowed",
    "NotBoundError",
    "NotEquivalentError",
    "NotFound",
    "OperationalError",
    "PreconditionFailed",
    "RecoverableChannelError",
    "RecoverableConnectionError",
    "ResourceError",
    "ResourceLocked",
    "SerializationError",
    "SerializerNotInstalled",
    "TimeoutError",
    "UnexpectedFrame",
    "VersionMismatch",
    "reraise",
]

TimeoutError = builtins.TimeoutError
BaseExceptionType = TypeVar("BaseExceptionType", bound=BaseException)


def reraise(tp: type[BaseExceptionType], value: BaseExceptionType, tb: TracebackType | None = None) -> NoReturn:
    """Raise an exception with a traceback.

    Args:
        tp: Class of the exception.
        value: The exception.
        tb: The traceback.
    """
    if value.__traceback__ is not tb:
        raise value.with_traceback(tb)
    raise value


class KombuError(Exception):
    """Base class of the library's own errors."""


class OperationalError(KombuError):
    """The broker cannot be reached, or the connection to it was lost."""


class BatchPublishError(KombuError):
    """Some messages of a batch were refused.

    Args:
        message: Text of the error.
        refused: The refused messages, as (index in the batch, exception); empty if the outcome is not known.
        published: Number of messages that the broker took.
    """

    def __init__(self, message: str, refused: list[tuple[int, Exception]] | None = None, published: int = 0) -> None:
        super().__init__(message)
        self.refused = refused or []
        self.published = published


class SerializationError(KombuError):
    """A body cannot be encoded or decoded."""


class EncodeError(SerializationError):
    """A body, a header or a property cannot be encoded.

    If it is a header or a property, or text that its ``content_encoding`` lacks, the error is of the built-in class too
    that kombu raises: TypeError, ValueError, UnicodeEncodeError, LookupError.
    """


class DecodeError(SerializationError):
    """A body cannot be decoded."""


class InflateError(DecodeError):
    """Compressed data is broken, or decompresses to more than is allowed."""


class NotBoundError(KombuError):
    """A channel is needed, and the entity has none."""


class MessageStateError(KombuError):
    """The message was acknowledged, rejected or requeued before."""


class LimitExceeded(KombuError):
    """All resources of a pool are in use."""


class ConnectionLimitExceeded(LimitExceeded):
    """All connections of a pool are in use."""


class ChannelLimitExceeded(LimitExceeded):
    """All channels of a pool are in use."""


class VersionMismatch(KombuError):
    """A library has a version that cannot be used."""


class SerializerNotInstalled(KombuError):
    """No serializer of that name or content type is registered."""


class ContentDisallowed(SerializerNotInstalled):
    """The content type is not one that the consumer accepts."""


def _method_names() -> dict[Any, str]:
    """Return the names of AMQP's methods by class and method number, as py-amqp writes them."""
    names = {(60, 72): "Basic.get_empty"}
    sent = {40: "publish", 50: "return", 60: "deliver", 80: "ack", 90: "reject", 100: "recover_async", 120: "nack"}
    for class_id, class_name, answered, alone in (
        (10, "Connection", {10: "start", 20: "secure", 30: "tune", 40: "open", 50: "close"}, {}),
        (20, "Channel", {10: "open", 20: "flow", 40: "close"}, {}),
        (30, "Access", {10: "request"}, {}),
        (40, "Exchange", {10: "declare", 20: "delete", 30: "bind", 40: "unbind"}, {}),
        (50, "Queue", {10: "declare", 20: "bind", 30: "purge", 40: "delete", 50: "unbind"}, {}),
        (60, "Basic", {10: "qos", 20: "consume", 30: "cancel", 70: "get", 110: "recover"}, sent),
        (85, "Confirm", {10: "select"}, {}),
        (90, "Tx", {10: "select", 20: "commit", 30: "rollback"}, {}),
    ):
        for method_id, name in answered.items():
            names[class_id, method_id] = f"{class_name}.{name}"
            names[class_id, method_id + 1] = f"{class_name}.{name}_ok"
        names.update({(class_id, method_id): f"{class_name}.{name}" for method_id, name in alone.items()})
    return names


#: 0-9-1, section 1.5, and what RabbitMQ adds.
METHOD_NAMES = _method_names()


class BrokerError(Exception):
    """A broker refuses something, or cannot be reached."""


class AMQPError(BrokerError):
    """Error with a reply code of AMQP 0-9-1.

    Args:
        reply_text: The broker's text.
        method_sig: Class and method number of the method that was refused.
        method_name: Name of that method.
        reply_code: The reply code.
    """

    code = 0

    def __init__(
        self,
        reply_text: str | None = None,
        method_sig: tuple[int, int] | None = None,
        method_name: str | None = None,
        reply_code: int | None = None,
    ) -> None:
        self.message = reply_text
        self.reply_code = reply_code or self.code
        self.reply_text = reply_text
        self.method_sig = method_sig
        self.method_name = method_name or (METHOD_NAMES.get(method_sig, "") if method_sig else "")
        # Not the next class's: that may be the driver's, which takes other arguments.
        Exception.__init__(self, reply_code, reply_text, method_sig, self.method_name)

    @property
    def method(self) -> Any:
        """``method_name``, or the numbers of a method whose name is not known; None without a method."""
        return self.method_name or self.method_sig

    def __str__(self) -> str:
        if self.method:
            return f"{self.method}: ({self.reply_code}) {self.reply_text}"
        return self.reply_text or f"<{type(self).__name__}: unknown error>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reply_text, self.method_sig, self.method_name, self.reply_code)


class ConnectionError(AMQPError):
    """The connection is closed, or has to be."""


class RecoverableConnectionError(ConnectionError):
    """The connection failed; a new connection may succeed."""


class ConnectionForced(RecoverableConnectionError):
    """The broker's operator closed the connection, or its heartbeats are missing."""

    code = 320


class ResourceError(RecoverableConnectionError):
    """The broker, or the numbers for channels, are exhausted."""

    code = 506


class ConsumerCancelled(RecoverableConnectionError):
    """The broker cancelled a consumer; its queue was deleted, for example."""


class Blocked(RecoverableConnectionError):
    """The broker takes no messages for now."""


class IrrecoverableConnectionError(ConnectionError):
    """A new connection would fail the same way."""


class InvalidPath(IrrecoverableConnectionError):
    """The virtual host cannot be used."""

    code = 402


class FrameError(IrrecoverableConnectionError):
    """A frame cannot be decoded."""

    code = 501


class FrameSyntaxError(IrrecoverableConnectionError):
    """A frame holds values that are not allowed."""

    code = 502


class InvalidCommand(IrrecoverableConnectionError):
    """A method out of sequence."""

    code = 503


class ChannelNotOpen(IrrecoverableConnectionError):
    """A method for a channel that is not open."""

    code = 504


class UnexpectedFrame(IrrecoverableConnectionError):
    """A frame out of sequence."""

    code = 505


class NotAllowed(IrrecoverableConnectionError):
    """The broker refuses a request, whatever the user's permissions."""

    code = 530


class AMQPNotImplementedError(IrrecoverableConnectionError):
    """The broker has no such feature."""

    code = 540


class InternalError(IrrecoverableConnectionError):
    """The broker failed."""

    code = 541


class InconsistencyError(ConnectionError):
    """The broker's answer contradicts what it accepted before."""


class ChannelError(AMQPError):
    """The channel's last operation failed."""


class RecoverableChannelError(ChannelError):
    """The request failed; a new attempt may succeed."""


class ContentTooLarge(RecoverableChannelError):
    """The broker does not take a message of that size now."""

    code = 311


class NoConsumers(RecoverableChannelError):
    """No consumer is ready for an immediate message."""

    code = 313


class ResourceLocked(RecoverableChannelError):
    """An exclusive queue of another connection."""

    code = 405


class IrrecoverableChannelError(ChannelError):
    """Trying again would fail the same way."""


class AccessRefused(IrrecoverableChannelError):
    """The user has no permission for the request."""

    code = 403


class NotFound(IrrecoverableChannelError):
    """The queue or exchange does not exist."""

    code = 404


class LoginRefused(NotAllowed, AccessRefused):
    """The broker refuses the user name or the password."""


class PreconditionFailed(IrrecoverableChannelError):
    """The request contradicts the state of its queue, exchange or message."""

    code = 406


class NotEquivalentError(PreconditionFailed):
    """A queue or exchange is declared again with other settings."""


class MessageReturned(ChannelError):
    """No queue took a message that was published as mandatory."""

    code = 312

    @classmethod
    def no_route(cls) -> MessageReturned:
        """Return the error for brokers that give no text of their own."""
        return cls("NO_ROUTE", (60, 50), "Basic.return", cls.code)


class MessageNacked(BrokerError):
    """The broker refused a message."""


#: Our errors of AMQP and py-amqp's of the same names, once py-amqp is imported.
DRIVER_CLASSES: dict[type[Exception], type[Exception]] = {}


def adopt(driver: Any) -> None:
    """Make our errors of AMQP subclasses of py-amqp's too, so that ``except amqp.exceptions.NotFound`` catches them.

    Called once py-amqp's errors are imported, by whoever does that: importing kombulite needs them for nothing.
    """
    ours = [cls for cls in globals().values() if isinstance(cls, type) and issubclass(cls, (AMQPError, MessageNacked))]
    for cls in sorted(ours, key=lambda cls: len(cls.__mro__)):
        theirs = getattr(driver, cls.__name__, None)
        if theirs is not None and theirs not in cls.__mro__:
            DRIVER_CLASSES[cls] = theirs
            cls.__bases__ = (*cls.__bases__, theirs)


def with_driver_classes(errors: tuple[type[BaseException], ...]) -> tuple[type[BaseException], ...]:
    """Return error classes, and those of py-amqp that mean the same: programs may raise them into us."""
    if not DRIVER_CLASSES:
        return errors
    return (*errors, *(DRIVER_CLASSES[cls] for cls in errors if cls in DRIVER_CLASSES))


_combined: dict[tuple[type[Exception], ...], type[Exception]] = {}


def combined(*classes: type[Exception]) -> type[Exception]:
    """Return a class of all these errors, so that programs may catch any; it is made, and shown, as the first."""
    found = _combined.get(classes)
    if found is None:
        given = [part for cls in classes for part in vars(cls).get("parts", (cls,))]
        first = given[0]
        # A class must not have a base twice, nor before one of that base's subclasses.
        parts = tuple(
            part
            for number, part in enumerate(given)
            if part not in given[:number] and not any(issubclass(other, part) for other in given if other is not part)
        )
        # Who unpickles it may not have the drivers.
        portable = tuple(
            cls for cls in parts if cls.__module__ in (__name__, builtins.__name__) or issubclass(cls, OSError)
        )

        def arguments(error: Any) -> tuple[Any, ...]:
            if isinstance(error, AMQPError):
                return error.reply_text, error.method_sig, error.method_name, error.reply_code
            args: tuple[Any, ...] = error.args
            return args

        def reduce(error: Any) -> tuple[Any, ...]:
            return make_combined, (portable, arguments(error))

        def copy(error: Any) -> Any:
            another = type(error)(*arguments(error))
            if isinstance(error, OSError):
                another.errno, another.strerror = error.errno, error.strerror
            return another

        facts = {"__module__": first.__module__, "__doc__": first.__doc__, "__repr__": Exception.__repr__}
        facts |= {"__reduce__": reduce, "__copy__": copy, "parts": parts}
        found = _combined[classes] = type(first.__name__, parts, facts)
    return found


def make_combined(classes: tuple[type[Exception], ...], arguments: tuple[Any, ...]) -> Exception:
    """Return an error of all these classes."""
    return (classes[0] if len(classes) == 1 else combined(*classes))(*arguments)


def socket_error(error: OSError, *others: type[Exception]) -> Exception:
    """Return an error of a socket as the error of a connection that is lost, or cannot be had.

    It is a RecoverableConnectionError, is of the class of ``error`` too, and of the ``others``.
    """
    if isinstance(error, RecoverableConnectionError):
        return error
    lost: Any = combined(RecoverableConnectionError, type(error), *others)(str(error))
    lost.errno, lost.strerror = error.errno, error.strerror
    return lost  # type: ignore[no-any-return]


#: What encoders raise for a value that they cannot write, the special ones first.
UNWRITABLE: tuple[type[Exception], ...] = (
    TypeError,
    UnicodeEncodeError,
    ValueError,
    LookupError,
    OverflowError,
    RecursionError,
)


def encode_error(error: Exception) -> Exception:
    """Return what an encoder raised as an EncodeError.

    It is of the built-in class too, which kombu raises: programs that were written for kombu catch that.
    """
    kind = next((cls for cls in UNWRITABLE if isinstance(error, cls)), None)
    if kind is None:
        return EncodeError(str(error))
    if isinstance(error, UnicodeEncodeError):
        arguments: tuple[Any, ...] = error.encoding, error.object, error.start, error.end, error.reason
        return combined(EncodeError, kind)(*arguments)
    return combined(EncodeError, kind)(str(error))


def error_for_code(
    code: int, text: str, method_sig: tuple[int, int], method_name: str, default: type[AMQPError]
) -> AMQPError:
    """Return the error that an AMQP reply code stands for, ``default`` for an unknown one."""

    def of_code(cls: type[AMQPError]) -> type[AMQPError] | None:
        if vars(cls).get("code") == code:
            return cls
        return next(filter(None, map(of_code, cls.__subclasses__())), None)

    return (of_code(AMQPError) or default)(text, method_sig, method_name, code)


class HttpError(Exception):
    """An HTTP request failed.

    Args:
        code: The status.
        message: Text of the error.
        response: The response.
    """

    def __init__(self, code: int, message: str | None = None, response: object = None) -> None:
        super().__init__(code, message, response)
        self.code = code
        self.message = message
        self.response = response

    def __str__(self) -> str:
        return f"HTTP {self.code}: {self.message}"
