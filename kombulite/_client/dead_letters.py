"""Poison messages: those that are delivered again and again because each consumer fails; and where they go instead."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from kombulite._client.interfaces import Message
from kombulite._core import Delivery, encode_text, make_properties
from kombulite.entity import Exchange, Queue
from kombulite.utils.logs import log

#: Headers that a broker adds to say how a message came from one queue or stream. A copy in another must not have them.
DELIVERY_HEADERS = frozenset(["x-acquired-count", "x-delivery-count", "x-stream-offset"])
MAX_DOUBTFUL = 1000  # messages whose count is looked at a second time


class Verdict(Enum):
    """What becomes of a message that has come."""

    RECEIVE = "receive"
    COUNT_AGAIN = "count again"
    DEAD_LETTER = "dead letter"


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

    def judge(self, message: Message) -> Verdict:
        """Say what to do with a message.

        RabbitMQ 4.3 counts failed deliveries apart (``x-delivery-count``): what consumers have given back, because they
        ended or were started again, is not held against a message. In a dead-lettered one that count goes on from the
        queue before, so that of all deliveries is the bound. It leaves even that of the queue before in such a message
        until its second delivery. A count that may be that one is not believed before the message was given back once,
        and counted on.
        """
        count = message.delivery_count
        if count < self.max_deliveries:
            return Verdict.RECEIVE
        headers = message.headers
        if "x-acquired-count" in headers:
            failed = headers.get("x-delivery-count", 0)
            if isinstance(failed, int) and failed < self.max_deliveries:
                return Verdict.RECEIVE
        if "x-death" not in headers or "x-acquired-count" not in headers:
            return Verdict.DEAD_LETTER
        key = (message.properties.get("message_id"), message.properties.get("correlation_id"), hash(message.body))
        before = self._doubtful.pop(key, None)
        if before is not None:
            return Verdict.DEAD_LETTER if count > before else Verdict.RECEIVE
        while len(self._doubtful) >= MAX_DOUBTFUL:
            del self._doubtful[next(iter(self._doubtful))]
        self._doubtful[key] = count
        return Verdict.COUNT_AGAIN

    def letter(self, message: Message, queue: str) -> Delivery:
        """Return a message of that queue as it goes to the dead letters."""
        delivery = delivery_of(message)
        headers = {**without_delivery_headers(delivery.properties.headers), **self._headers(message, queue)}
        # Its time to live is over, and a broker checks that the user is the one who publishes.
        properties = delivery.properties.replace(headers=headers, expiration=None, user_id=None)
        destination, body = self.destination, delivery.body
        if isinstance(body, str):
            body = encode_text(body, properties.content_encoding)
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

    def _headers(self, message: Message, queue: str) -> dict[str, Any]:
        """Return the headers that say why it is there."""
        info = message.delivery_info
        return {
            "x-poison-reason": "max-deliveries",
            "x-poison-deliveries": message.delivery_count,
            "x-poison-queue": queue,
            "x-poison-exchange": info["exchange"],
            "x-poison-routing-key": info["routing_key"],
        }


def without_delivery_headers(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the headers for a copy of a message."""
    return {name: value for name, value in (headers or {}).items() if name not in DELIVERY_HEADERS}


def dead_letter_rule(max_deliveries: int | None, dead_letter: Queue | Exchange | str | None) -> DeadLetterRule | None:
    """Return the rule of a consumer with these arguments. Raises ValueError for one without the other."""
    if max_deliveries is None and dead_letter is None:
        return None
    if max_deliveries is None or dead_letter is None:
        raise ValueError("max_deliveries and dead_letter go together")
    return DeadLetterRule(max_deliveries, dead_letter)


#: What the envelope of a virtual transport keeps among the properties.
ENVELOPE_PROPERTIES = frozenset(
    ["delivery_info", "delivery_tag", "body_encoding", "delivery_count", "application_headers"]
)


def delivery_of(message: Any) -> Delivery:
    """Return a received message as one that can be published."""
    found = message.delivery
    if found is not None:
        return found  # type: ignore[no-any-return]
    properties = {name: value for name, value in message.properties.items() if name not in ENVELOPE_PROPERTIES}
    priority = properties.pop("priority", None)
    made = make_properties(
        message.content_type,
        message.content_encoding,
        {name: value for name, value in message.headers.items() if name != "compression"},
        properties.pop("delivery_mode", None),
        priority,
        {name: value for name, value in properties.items() if name not in ("content_type", "content_encoding")},
    )
    info = message.delivery_info
    return Delivery(info.get("exchange") or "", info.get("routing_key") or "", made, message.body)
