"""A message that was received: its content, and what becomes of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from kombulite import serialization
from kombulite._core import Delivery
from kombulite.compression import decompress
from kombulite.exceptions import MessageStateError
from kombulite.serialization import prepare_accept_content

if TYPE_CHECKING:
    from logging import Logger

    from kombulite.channel import Channel

ACK_STATES = frozenset(["ACK", "REJECTED", "REQUEUED"])
_NOT_DECODED: Any = object()


class Message:
    """A received message.

    ``body``: bytes (or text), decompressed; ``payload``: decoded on demand. ``headers``, ``properties`` and
    ``delivery_info`` are dicts of its own. ``accept``: the content types that may be decoded (None: all that are not
    disabled). ``errors``: what went wrong before decoding, as exc_info tuples.
    """

    MessageStateError = MessageStateError

    channel: Channel | None = None
    delivery_tag: Any = None
    content_type: str | None = None
    content_encoding: str | None = None
    body: Any = None
    accept: set[str | None] | None = None
    headers: dict[str, Any]
    properties: dict[str, Any]
    delivery_info: dict[str, Any]
    errors: list[Any]
    #: Nothing waits for an acknowledgement: the consumer said so.
    no_ack = False

    _state = "RECEIVED"
    _decoded_cache: Any = _NOT_DECODED
    _delivery: Delivery | None = None

    def __init__(
        self,
        body: Any = None,
        delivery_tag: Any = None,
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
            self._inflate(compression)
        if postencode and isinstance(self.body, str):
            try:
                self.body = self.body.encode(postencode)
            except Exception:
                self.errors.append(sys.exc_info())

    @classmethod
    def from_delivery(cls, delivery: Delivery, channel: Channel) -> Message:
        """The message that a transport handed over."""
        self = cls.__new__(cls)
        properties = delivery.properties
        self._delivery = delivery
        self.channel = channel
        self.delivery_tag = delivery.delivery_tag
        self.content_type = properties.content_type
        self.content_encoding = properties.content_encoding
        self.body = delivery.body
        if properties.headers is not None:
            compression = properties.headers.get("compression")
            if compression is not None:
                self._inflate(compression)
        return self

    def __getattr__(self, name: str) -> Any:
        # What most consumers never look at is made when it is first asked for.
        make = _LAZY.get(name)
        if make is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value = self.__dict__[name] = make(self._delivery)
        return value

    def _inflate(self, compression: str) -> None:
        try:
            self.body = decompress(self.body, compression)
        except Exception:
            self.errors.append(sys.exc_info())

    # --- content

    @property
    def payload(self) -> Any:
        """The decoded body. Raises DecodeError, ContentDisallowed."""
        cached = self._decoded_cache
        return self.decode() if cached is _NOT_DECODED else cached

    def decode(self) -> Any:
        """Decode the body, once. Raises DecodeError, ContentDisallowed."""
        if self._decoded_cache is _NOT_DECODED:
            self._decoded_cache = self._decode()
        return self._decoded_cache

    def _decode(self) -> Any:
        return serialization.loads(self.body, self.content_type, self.content_encoding, accept=self.accept)

    def accept_only(self, content_types: Iterable[str] | None) -> None:
        """Set ``accept`` from names or content types. Raises SerializerNotInstalled."""
        self.accept = prepare_accept_content(content_types)

    def raise_errors(self) -> None:
        """Raise the first of ``errors``, if there is one."""
        for _, error, traceback in self.__dict__.get("errors", ()):
            raise error.with_traceback(traceback)

    # --- what becomes of it

    @property
    def acknowledged(self) -> bool:
        """Whether it was acknowledged, rejected or requeued."""
        return self._state in ACK_STATES

    def ack(self, multiple: bool = False) -> None:
        """Acknowledge it: it is done with. ``multiple``: all before it on the channel too.

        Raises MessageStateError if that was done before.
        """
        channel = self._settling("ACK")
        if not self.no_ack:
            channel.basic_ack(self.delivery_tag, multiple)
        self._state = "ACK"

    def reject(self, requeue: bool = False) -> None:
        """Give it up, to the queue's dead letter exchange if it has one; or with ``requeue`` back to the queue."""
        channel = self._settling("REJECTED")
        if not self.no_ack:
            channel.basic_reject(self.delivery_tag, requeue=requeue)
        self._state = "REJECTED"

    def requeue(self) -> None:
        """Put it back into its queue."""
        channel = self._settling("REQUEUED")
        if not self.no_ack:
            channel.basic_reject(self.delivery_tag, requeue=True)
        self._state = "REQUEUED"

    def _settling(self, state: str) -> Channel:
        channel = self.channel
        if channel is None:
            raise MessageStateError("the message has no channel to be acknowledged on")
        if self._state != "RECEIVED":
            raise MessageStateError(f"the message is {self._state} already, and cannot become {state}")
        return channel

    def ack_log_error(self, logger: Logger, errors: tuple[type[BaseException], ...], multiple: bool = False) -> None:
        """Acknowledge it; log the given errors instead of raising them."""
        try:
            self.ack(multiple=multiple)
        except BrokenPipeError as error:
            logger.critical("Couldn't ack %r, reason:%r", self.delivery_tag, error, exc_info=True)
            raise
        except errors as error:
            logger.critical("Couldn't ack %r, reason:%r", self.delivery_tag, error, exc_info=True)

    def reject_log_error(self, logger: Logger, errors: tuple[type[BaseException], ...], requeue: bool = False) -> None:
        """Reject it; log the given errors instead of raising them."""
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
        details = {
            "state": self._state,
            "content_type": self.content_type,
            "delivery_tag": self.delivery_tag,
            "body_length": len(self.body) if self.body is not None else None,
            "properties": {"correlation_id": self.properties.get("correlation_id")},
            "delivery_info": self.delivery_info,
        }
        return f"<{type(self).__name__} object at {id(self):#x} with details {details!r}>"


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
    return self


def _headers_of(delivery: Delivery | None) -> dict[str, Any]:
    return {} if delivery is None else dict(delivery.properties.headers or {})


def _properties_of(delivery: Delivery | None) -> dict[str, Any]:
    if delivery is None:
        return {}
    properties = delivery.properties.as_dict()
    for name in ("headers", "content_type", "content_encoding"):
        properties.pop(name, None)
    return properties


def _delivery_info_of(delivery: Delivery | None) -> dict[str, Any]:
    if delivery is None:
        return {}
    info = {
        "delivery_tag": delivery.delivery_tag,
        "redelivered": bool(delivery.redelivered),
        "exchange": delivery.exchange,
        "routing_key": delivery.routing_key,
    }
    if delivery.consumer_tag is not None:
        info["consumer_tag"] = delivery.consumer_tag
    else:
        info["message_count"] = delivery.message_count
    return info


_LAZY: dict[str, Any] = {
    "headers": _headers_of,
    "properties": _properties_of,
    "delivery_info": _delivery_info_of,
    "errors": lambda delivery: [],
}
