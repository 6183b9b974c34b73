"""Poison messages: those that come back again and again, as whoever takes them fails or dies. Where they go instead."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from kombulite._core import Delivery
from kombulite.entity import Exchange, Queue
from kombulite.message import Message
from kombulite.transport.adapter import delivery_of, facade_channel
from kombulite.utils.logs import log

if TYPE_CHECKING:
    from kombulite.channel import Channel


#: Headers that a broker adds to say how a message came from one queue or stream. A copy in another must not have them.
DELIVERY_HEADERS = frozenset(["x-acquired-count", "x-delivery-count", "x-stream-offset"])
MAX_DOUBTFUL = 1000  # messages whose count is looked at a second time


class Verdict(Enum):
    """What becomes of a message that has come."""

    RECEIVE = "receive"
    COUNT_AGAIN = "count again"
    BURY = "bury"


class DeadLetterRule:
    """Messages that were delivered ``max_deliveries`` times go to ``dead_letter``: a queue, its name, or an exchange.

    It is declared when it is first needed. A queue gets them through the default exchange; an exchange with the routing
    key that they had. Raises ValueError for numbers below 1.
    """

    def __init__(self, max_deliveries: int, dead_letter: Queue | Exchange | str) -> None:
        if max_deliveries < 1:
            raise ValueError(f"a message is delivered once or more, not {max_deliveries} times")
        self.max_deliveries = max_deliveries
        self.destination = Queue(dead_letter) if isinstance(dead_letter, str) else dead_letter
        self._doubtful: dict[Any, int] = {}  # the count at which a message was given back, to see it counted on
        self._channel: Channel | None = None  # with confirms, and nothing else on it

    def judge(self, message: Message) -> Verdict:
        """Say what to do with a message.

        RabbitMQ 4.3 leaves the count of the queue before in a dead-lettered message until its second delivery. A count
        that may be that one is not believed before the message was given back once, and counted on.
        """
        count, headers = message.delivery_count, message.headers
        if count < self.max_deliveries:
            return Verdict.RECEIVE
        if "x-death" not in headers or "x-acquired-count" not in headers:
            return Verdict.BURY
        key = (message.properties.get("message_id"), message.properties.get("correlation_id"), hash(message.body))
        before = self._doubtful.pop(key, None)
        if before is not None:
            return Verdict.BURY if count > before else Verdict.RECEIVE
        while len(self._doubtful) >= MAX_DOUBTFUL:
            del self._doubtful[next(iter(self._doubtful))]
        self._doubtful[key] = count
        return Verdict.COUNT_AGAIN

    def bury(self, message: Message, queue: str) -> None:
        """Send a message of that queue to the dead letters, and acknowledge it once the broker has it there.

        Raises MessageReturned where nothing takes dead letters, MessageNacked, and errors of connection and channel.
        The message is not acknowledged then.
        """
        channel = self._confirming(facade_channel(message.channel))
        channel.publish(self.letter(message, queue), mandatory=True)
        message.ack()
        self.report(message, queue)

    def letter(self, message: Message, queue: str) -> Delivery:
        """Return a message of that queue as it goes to the dead letters."""
        delivery = delivery_of(message)
        headers = {**without_delivery_headers(delivery.properties.headers), **self._certificate(message, queue)}
        # Its time to live is over, and a broker checks that the user is the one who publishes.
        properties = delivery.properties.replace(headers=headers, expiration=None, user_id=None)
        destination, body = self.destination, delivery.body
        if isinstance(body, str):
            body = body.encode(properties.content_encoding or "utf-8")
        place = ("", destination.name) if isinstance(destination, Queue) else (destination.name, delivery.routing_key)
        return Delivery(*place, properties, body)

    def report(self, message: Message, queue: str) -> None:
        """Log that a message of that queue is with the dead letters."""
        log(
            "kombulite.consumer",
            "ERROR",
            "a message of queue %r was delivered %d times, and is in %r now (message id %r)",
            queue,
            message.delivery_count,
            self.destination.name,
            message.properties.get("message_id"),
            extra={"queue": queue, "dead_letter": self.destination.name, "deliveries": message.delivery_count},
        )

    def _certificate(self, message: Message, queue: str) -> dict[str, Any]:
        """Headers that say what it died of."""
        info = message.delivery_info
        return {
            "x-poison-reason": "max-deliveries",
            "x-poison-deliveries": message.delivery_count,
            "x-poison-queue": queue,
            "x-poison-exchange": info["exchange"],
            "x-poison-routing-key": info["routing_key"],
        }

    def _confirming(self, other: Channel) -> Channel:
        """A channel for dead letters, on the connection of another."""
        channel = self._channel
        if channel is None or not channel.is_open or channel.connection is not other.connection:
            channel = facade_channel(other.connection.client.channel())
            channel.confirm_select()
            self.destination(channel.public).declare()
            self._channel = channel
        return channel


def without_delivery_headers(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the headers for a copy of a message."""
    return {name: value for name, value in (headers or {}).items() if name not in DELIVERY_HEADERS}


def dead_letter_rule(max_deliveries: int | None, dead_letter: Queue | Exchange | str | None) -> DeadLetterRule | None:
    """The rule of a consumer with these arguments. Raises ValueError for one without the other."""
    if max_deliveries is None and dead_letter is None:
        return None
    if max_deliveries is None or dead_letter is None:
        raise ValueError("max_deliveries and dead_letter go together")
    return DeadLetterRule(max_deliveries, dead_letter)
