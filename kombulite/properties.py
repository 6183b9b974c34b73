"""What a publisher says of a message: its properties, and the names that go with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kombulite import exceptions
from kombulite._core import Properties, copy_tree

#: Properties that ``publish`` takes as keywords beside its own arguments.
KEYWORD_PROPERTIES = frozenset(
    [
        "delivery_mode",
        "correlation_id",
        "reply_to",
        "expiration",
        "message_id",
        "timestamp",
        "type",
        "user_id",
        "app_id",
        "cluster_id",
    ]
)
LONGEST_SHORT_STRING = 255  # bytes, AMQP 0-9-1 section 4.2.5.3
# Names of at most this many characters need no look at their length in UTF-8.
SURELY_SHORT = LONGEST_SHORT_STRING // 4


def check_short(text: str, what: str) -> None:
    """AMQP sends names and keys as short strings; no transport takes longer ones."""
    if len(text) > SURELY_SHORT:
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > LONGEST_SHORT_STRING:
            raise exceptions.PreconditionFailed(f"a {what} has at most {LONGEST_SHORT_STRING} bytes, not {size}")


def make_properties(
    content_type: str | None,
    content_encoding: str | None,
    headers: Mapping[str, Any] | None,
    priority: int | None,
    properties: Mapping[str, Any],
) -> Properties:
    """The properties of a message to publish; what AMQP does not know goes to ``extra``."""
    extra: dict[str, Any] | None = None
    if not KEYWORD_PROPERTIES.issuperset(properties):
        extra = {name: value for name, value in properties.items() if name not in KEYWORD_PROPERTIES}
        properties = {name: value for name, value in properties.items() if name in KEYWORD_PROPERTIES}
    return Properties(
        content_type=content_type,
        content_encoding=content_encoding,
        headers=copy_tree(headers if type(headers) is dict else dict(headers)) if headers else None,
        priority=priority,
        extra=extra,
        **properties,
    )
