"""A message that was received: its content, and what becomes of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NoReturn

from kombulite import serialization
from kombulite._client.interfaces import Channel
from kombulite._core import NOT_DECODED, BaseMessage
from kombulite.compression import decompress
from kombulite.exceptions import DecodeError, MessageStateError, reraise  # noqa: F401 - by kombu's name
from kombulite.utils.functional import dictfilter

if TYPE_CHECKING:
    from logging import Logger

__all__ = ["Message"]

loads = serialization.loads


class Message(BaseMessage):
    """Received message.

    ``headers``, ``properties`` and ``delivery_info`` are dicts of its own; ``payload`` is decoded when it is first
    read.

    Args:
        body: Body, bytes or text, decompressed.
        delivery_tag: Number of the delivery on its channel.
        content_type: Content type of the body.
        content_encoding: Encoding of the body.
        delivery_info: Facts on the delivery: exchange, routing_key, redelivered, ...
        properties: Properties by name.
        headers: Headers by name.
        postencode: Encoding for a body that is text.
        accept: Content types that may be decoded (None: all that are not disabled).
        channel: Channel that it was delivered on.
        kwargs: Ignored, as kombu's transports pass more.

    Attributes:
        errors: Failures before decoding, as exc_info tuples.
    """

    MessageStateError = MessageStateError
    loads: Callable[..., Any] = staticmethod(loads)
    _own_loads = loads

    def __init__(
        self,
        body: object = None,
        delivery_tag: object = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        delivery_info: dict[str, Any] | None = None,
        properties: dict[str, Any] | None = None,
        headers: dict[str, Any] | None = None,
        postencode: str | None = None,
        accept: set[str | None] | None = None,
        channel: Channel | None = None,
        **kwargs: Any,
    ) -> None:
        self.channel = channel
        self.delivery_tag = delivery_tag
        self.content_type = content_type
        self.content_encoding = content_encoding
        self.delivery_info = {} if delivery_info is None else delivery_info
        self.headers = {} if headers is None else headers
        self.properties = {} if properties is None else properties
        self.accept = accept
        self.body = body
        compression = self.headers.get("compression")
        if compression is not None:
            self.inflate(compression)
        if postencode and isinstance(self.body, str):
            try:
                self.body = self.body.encode(postencode)
            except Exception:
                self.errors.append(sys.exc_info())

    def inflate(self, compression: str) -> None:
        """Decompress the body; an error is noted in ``errors``.

        Args:
            compression: Content type of the compression method.
        """
        try:
            self.body = decompress(self.body, compression)
        except Exception:
            self.errors.append(sys.exc_info())

    def expect_sections(self) -> None:
        """Have the body decoded as AMQP 1.0 has it."""
        self.loads = _loads_sections

    def note_error(self, error: Exception) -> None:
        """Note in ``errors`` that the transport could not read all of the message.

        Args:
            error: The error.
        """
        self.errors.append((DecodeError, DecodeError(str(error)), None))

    def _reraise_error(self, callback: Any = None) -> None:
        """Raise the first of ``errors``, or hand it to ``callback(message, exception)``."""
        error = self.errors[0][1]
        if callback is None:
            raise error
        callback(self, error)

    @property
    def state(self) -> str:
        """RECEIVED, ACK, REJECTED or REQUEUED."""
        return self._state

    # --- content

    @property
    def _decoded_cache(self) -> Any:
        """The decoded body, or None if it was not decoded yet."""
        return None if self._decoded is NOT_DECODED else self._decoded

    @_decoded_cache.setter
    def _decoded_cache(self, value: Any) -> None:
        self._decoded = NOT_DECODED if value is None else value

    def refuse(self, state: str) -> NoReturn:
        """Raise MessageStateError for a message that cannot change its state.

        Args:
            state: The state that was asked for.
        """
        if self.channel is None:
            raise self.MessageStateError("This message does not have a receiving channel")
        raise self.MessageStateError(f"Message already acknowledged with state: {self._state}")

    def ack_log_error(self, logger: Logger, errors: tuple[type[BaseException], ...], multiple: bool = False) -> None:
        """Acknowledge the message, and log given errors instead of raising them.

        Args:
            logger: The logger.
            errors: Error classes to log.
            multiple: If True, this applies to all earlier messages of the channel too.
        """
        try:
            self.ack(multiple=multiple)
        except BrokenPipeError as error:
            logger.critical("Couldn't ack %r, reason:%r", self.delivery_tag, error, exc_info=True)
            raise
        except errors as error:
            logger.critical("Couldn't ack %r, reason:%r", self.delivery_tag, error, exc_info=True)

    def reject_log_error(self, logger: Logger, errors: tuple[type[BaseException], ...], requeue: bool = False) -> None:
        """Reject the message, and log given errors instead of raising them.

        Args:
            logger: The logger.
            errors: Error classes to log.
            requeue: If True, the message goes back to its queue; else to the dead letter exchange of the queue, if
                it has one.
        """
        try:
            self.reject(requeue=requeue)
        except errors as error:
            logger.critical("Couldn't reject %r, reason: %r", self.delivery_tag, error, exc_info=True)

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the channel, which does not travel.
        return _restore, (
            type(self),
            self.body,
            self.delivery_tag,
            self.content_type,
            self.content_encoding,
            self.delivery_info,
            self.properties,
            self.headers,
            self._state,
        )

    def __repr__(self) -> str:
        details = dictfilter(
            state=self._state,
            content_type=self.content_type,
            delivery_tag=self.delivery_tag,
            body_length=len(self.body) if self.body is not None else None,
            properties=dictfilter({name: self.properties.get(name) for name in ("correlation_id", "type")}),
            delivery_info=dictfilter({name: self.delivery_info.get(name) for name in ("exchange", "routing_key")}),
        )
        return f"<{type(self).__name__} object at {id(self):#x} with details {details!r}>"


def _loads_sections(
    body: Any, content_type: str | None, content_encoding: str | None, accept: Collection[str | None] | None
) -> Any:
    """Decode a body in the encoding of AMQP 1.0, of which only data has a content type. Raises DecodeError."""
    from kombulite.utils.amqp10 import read_body  # few programs get one

    try:
        is_data, value = read_body(body)
    except ValueError as error:
        raise DecodeError(f"cannot decode a body in the encoding of AMQP 1.0: {error}") from error
    return serialization.loads(value, content_type, content_encoding, accept=accept) if is_data else value


def _restore(
    cls: type[Message],
    body: Any,
    delivery_tag: Any,
    content_type: str | None,
    content_encoding: str | None,
    delivery_info: dict[str, Any],
    properties: dict[str, Any],
    headers: dict[str, Any],
    state: str,
) -> Message:
    self = cls.__new__(cls)
    self.body = body
    self.delivery_tag = delivery_tag
    self.content_type = content_type
    self.content_encoding = content_encoding
    self.delivery_info = delivery_info
    self.properties = properties
    self.headers = headers
    self._state = state
    if "application_headers" in properties and properties.get("type") == SECTIONS_TYPE:
        self.expect_sections()
    return self


#: The property ``type`` of a message whose body is in the encoding of AMQP 1.0.
SECTIONS_TYPE = "amqp-1.0"
#: States of a message that nothing can be done with any more.
ACK_STATES = {"ACK", "REJECTED", "REQUEUED"}
IS_PYPY = hasattr(sys, "pypy_version_info")
