"""What the arguments of ``publish`` mean, and the messages of a ``publish_many`` on their way out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypedDict

from kombulite import exceptions, serialization
from kombulite._core import BaseBatch, BaseMaker, Delivery, make_properties
from kombulite.compression import compress
from kombulite.entity import DELIVERY_MODES, Exchange, Queue, maybe_delivery_mode

if TYPE_CHECKING:
    from datetime import datetime

LONGEST_SHORT_STRING = 255  # bytes, AMQP 0-9-1 section 4.2.5.3

#: Messages that ``publish_many`` prepares before it hands them over.
CHUNK, CHUNK_BYTES = 1000, 4 << 20
#: Messages that may be refused before it gives up.
MAX_REFUSED = 10_000

encode = serialization.registry.encode

# Names of at most this many characters need no look at their length in UTF-8.
SURELY_SHORT = LONGEST_SHORT_STRING // 4


def check_short(text: str, what: str) -> None:
    """AMQP sends names and keys as short strings; no transport takes longer ones."""
    if len(text) > SURELY_SHORT:
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > LONGEST_SHORT_STRING:
            raise exceptions.PreconditionFailed(f"a {what} has at most {LONGEST_SHORT_STRING} bytes, not {size}")


def raise_refused(refused: list[tuple[int, Exception]], total: int) -> None:
    """Raise BatchPublishError, if messages were refused."""
    if refused:
        index, error = refused[0]
        raise exceptions.BatchPublishError(
            f"{len(refused)} of {total} messages were refused, number {index} first: {error}",
            refused=refused,
            published=total - len(refused),
        )


def as_it_is(body: object, content_encoding: str | None) -> tuple[str, bytes]:
    """Return the content encoding and the bytes of a body that no serializer has to touch."""
    if isinstance(body, str):
        content_encoding = content_encoding or "utf-8"
        try:
            return content_encoding, body.encode(content_encoding)
        except (LookupError, UnicodeError) as error:
            raise exceptions.encode_error(error) from error
    if isinstance(body, (bytes, bytearray, memoryview)):
        return content_encoding or "binary", bytes(body)
    raise exceptions.EncodeError(f"a body travels as text or bytes, not as {type(body).__name__}")


def _milliseconds(seconds: Any) -> str:
    """Return an expiration as it travels (AMQP 0-9-1: a short string; RabbitMQ: milliseconds)."""
    try:
        milliseconds = int(float(seconds) * 1000)
    except (TypeError, ValueError, OverflowError):
        milliseconds = -1
    if milliseconds < 0:
        raise ValueError(f"an expiration is a number of seconds from 0 on, not {seconds!r:.80}")
    return str(milliseconds)


def as_they_travel(properties: Mapping[str, Any], expiration: Any) -> dict[str, Any]:
    """Return the properties that ``publish`` was given, as text where it takes something else."""
    sent = dict(properties)
    if expiration is not None:
        sent["expiration"] = _milliseconds(expiration)
    if isinstance(sent.get("reply_to"), Queue):
        sent["reply_to"] = sent["reply_to"].name
    return sent


class Chunk:
    """The messages of a ``publish_many`` that are prepared and not sent yet, and how those before them fared."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.total = 0  # messages that were given so far
        self._size = 0
        self._refused: list[tuple[int, Exception]] = []
        self._is_broken = False

    @property
    def is_over(self) -> bool:
        """True if no more are to be sent: one could not be encoded, or too many were refused."""
        return self._is_broken or len(self._refused) >= MAX_REFUSED

    def add(self, make: Callable[[Any], Delivery], body: object) -> bool:
        """Prepare a message. One that cannot be encoded is the last. Returns whether it is time to send."""
        deliveries = self.deliveries
        try:
            delivery = make(body)
        except exceptions.EncodeError as error:
            self._refused.append((self.total, error))
            self._is_broken = True
        else:
            deliveries.append(delivery)
            self._size += delivery.body_size
        self.total += 1
        return len(deliveries) >= CHUNK or self._size >= CHUNK_BYTES or self._is_broken

    def take(self) -> tuple[int, list[Delivery]]:
        """Return the messages that are to be sent now, behind the index of the first."""
        deliveries, self.deliveries, self._size = self.deliveries, [], 0
        return self.total - len(deliveries) - self._is_broken, deliveries

    def note_refused(self, first: int, refused: list[tuple[int, Exception]]) -> None:
        """Note which of the messages behind this index were refused when they were sent."""
        self._refused += [(first + index, error) for index, error in refused]

    def raise_refused(self) -> None:
        """Raise BatchPublishError, if messages were refused."""
        raise_refused(sorted(self._refused, key=itemgetter(0)), self.total)


class DeliveryBatch(BaseBatch):
    """Messages that wait to be sent together, and how those before them fared."""

    def __init__(self, max_size: int, is_plain: bool = False) -> None:
        super().__init__(max_size, is_plain)
        self._refused: list[tuple[int, Exception]] = []  # of those that were sent since the last report
        self._sent = 0

    def note_sent(self, alike: list[Delivery], refused: list[tuple[int, Exception]]) -> None:
        """Note that the first messages were sent, except those that were refused.

        Args:
            alike: The messages.
            refused: Index and error of each that was refused.
        """
        self._refused += [(self._sent + index, error) for index, error in refused]
        self._sent += len(alike)
        self.drop_first(len(alike))

    def raise_refused(self) -> None:
        """Raise BatchPublishError, if messages were refused since the last report."""
        refused, total, self._refused, self._sent = self._refused, self._sent, [], 0
        raise_refused(refused, total)


class MessageArguments(TypedDict, total=False):
    """Arguments of ``publish`` about a message, AMQP's properties among them."""

    exchange: Any  #: an Exchange or its name, ``""`` for the default exchange
    delivery_mode: int | str | None  #: 1 or "transient", 2 or "persistent" (None: the exchange's)
    priority: int | None
    content_type: str | None  #: what the body is: it is sent as it is then
    content_encoding: str | None
    serializer: str | None  #: name of the serializer (None: the producer's)
    headers: Mapping[str, Any] | None
    compression: str | None  #: name of the compression (None: the producer's)
    expiration: float | None  #: seconds after which the broker drops it
    eta: float | str | datetime | None  #: when it may be delivered (PostgreSQL, SQLite): seconds since 1970, ISO text
    correlation_id: str | None
    reply_to: Any  #: a Queue or its name
    message_id: str | None
    timestamp: Any
    type: str | None
    user_id: str | None
    app_id: str | None
    cluster_id: str | None


class MessageMaker(BaseMaker):
    """The defaults of a producer, and the messages that it makes: the base of the producers of both facades."""

    exchange: Any = None
    routing_key = ""
    serializer: str | None = None
    compression: str | None = None

    def __init__(
        self,
        exchange: Exchange | str | None,
        routing_key: str | None,
        serializer: str | None,
        compression: str | None,
    ) -> None:
        super().__init__(serialization.registry)
        exchange = self.exchange if exchange is None else exchange
        self.exchange = Exchange(exchange or "") if exchange is None or isinstance(exchange, str) else exchange
        self.routing_key = routing_key or self.routing_key
        self.serializer = serializer or self.serializer
        self.compression = compression or self.compression

    def _mode_of(self, mode: str) -> int:
        return DELIVERY_MODES[mode]

    def _check_key(self, routing_key: str) -> None:
        check_short(routing_key, "routing key")

    def _make_other(
        self,
        name: str,
        routing_key: str,
        body: object,
        mode: int,
        priority: int | None,
        content_type: str | None,
        content_encoding: str | None,
        serializer: str | None,
        headers: Mapping[str, Any] | None,
        compression: str | None,
        expiration: float | None,
        properties: Mapping[str, Any],
    ) -> Delivery:
        if not content_type:
            content_type, content_encoding, body = encode(body, serializer)
        else:
            content_encoding, body = as_it_is(body, content_encoding)
        if not (compression or headers or properties or expiration is not None):
            shared = self._plain.properties(content_type, content_encoding, mode, priority)
            return Delivery(name, routing_key, shared, body)
        if compression:
            headers = dict(headers or {})
            body, headers["compression"] = compress(body, compression)
        if expiration is not None or isinstance(properties.get("reply_to"), Queue):
            properties = as_they_travel(properties, expiration)
        own = make_properties(content_type, content_encoding, headers, mode, priority, properties)
        return Delivery(name, routing_key, own, body)

    def make(
        self,
        body: object,
        routing_key: str | None = None,
        *,
        exchange: Exchange | str | None = None,
        delivery_mode: int | str | None = None,
        priority: int | None = 0,
        content_type: str | None = None,
        content_encoding: str | None = None,
        serializer: str | None = None,
        headers: Mapping[str, Any] | None = None,
        compression: str | None = None,
        expiration: float | None = None,
        **properties: Any,
    ) -> Delivery:
        """Return a message that is not published yet.

        Args:
            body: The body; a serializer encodes what is neither text nor bytes.
            routing_key: The routing key (None: the producer's).
            exchange: The exchange, or its name (None: the producer's).
            delivery_mode: 1 or "transient", 2 or "persistent" (None: the exchange's).
            priority: 0 to 255 (None: no priority).
            content_type: Content type of a body that is encoded already.
            content_encoding: Its content encoding.
            serializer: Name of the serializer (None: the producer's).
            headers: Headers of the message.
            compression: Name of the compression (None: the producer's).
            expiration: Seconds after which the message expires.
            **properties: Further properties of the message.
        """
        return self._make(
            exchange,
            routing_key,
            body,
            delivery_mode,
            priority,
            content_type,
            content_encoding,
            serializer,
            headers,
            compression,
            expiration,
            properties,
        )

    # --- private methods of kombu's producer that programs call

    def _delivery_details(self, exchange: Any, delivery_mode: int | str | None = None) -> tuple[Any, int]:
        """Return the name of an exchange, and the delivery mode of what is published there."""
        is_entity = isinstance(exchange, Exchange)
        mode = delivery_mode or (exchange if is_entity else self.exchange).delivery_mode
        return exchange.name if is_entity else exchange, maybe_delivery_mode(mode)
