"""What a publisher gives, as it travels: plain messages, and properties of one message alone."""

from __future__ import annotations

from typing import Any

import pytest

from kombulite._core import KEYWORD_PROPERTIES, PlainMessages, make_properties
from kombulite.exceptions import EncodeError, SerializerNotInstalled
from kombulite.serialization import SerializerRegistry, registry


@pytest.fixture
def plain() -> PlainMessages:
    return PlainMessages(registry)


def test_a_message_is_what_it_was_made_of(plain: PlainMessages) -> None:
    message = plain.make("place", "key", {"a": 1}, "json", 2, 0)
    assert (message.exchange, message.routing_key, message.body) == ("place", "key", b'{"a": 1}')
    assert message.properties.as_dict() == {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "delivery_mode": 2,
        "priority": 0,
    }


def test_those_alike_share_their_properties_and_no_others(plain: PlainMessages) -> None:
    kinds = [("json", 2, 0), ("json", 1, 0), ("json", 2, 5), ("pickle", 2, 0), ("json", 2, None)]
    first = [plain.make("", "q", [1], serializer, mode, priority).properties for serializer, mode, priority in kinds]
    again = [plain.make("", "k", [2], serializer, mode, priority).properties for serializer, mode, priority in kinds]
    assert all(one is other for one, other in zip(first, again, strict=True))
    assert len({id(each) for each in first}) == len(kinds)
    assert [(each.delivery_mode, each.priority) for each in first] == [(mode, priority) for _, mode, priority in kinds]


@pytest.mark.parametrize("body", [bytearray(b"abc"), memoryview(b"abc"), "abc", b"abc"])
def test_what_an_encoder_gives_travels_as_bytes(body: Any) -> None:
    codecs = SerializerRegistry()
    codecs.register("same", lambda value: value, None, "application/x-same")
    sent = PlainMessages(codecs).make("", "q", body, "same", 2, 0).body
    assert type(sent) is bytes
    assert sent == b"abc"


@pytest.mark.parametrize("body", [{"no": "bytes"}, "\ud800", None])
def test_what_cannot_travel_is_an_encode_error(body: Any) -> None:
    codecs = SerializerRegistry()
    codecs.register("same", lambda value: value, None, "application/x-same")
    with pytest.raises(EncodeError):
        PlainMessages(codecs).make("", "q", body, "same", 2, 0)


def test_an_unknown_serializer(plain: PlainMessages) -> None:
    with pytest.raises(SerializerNotInstalled):
        plain.make("", "q", [1], "no such serializer", 2, 0)


def test_every_property_that_has_a_name_is_taken_by_it() -> None:
    given = {name: f"the {name}" for name in KEYWORD_PROPERTIES} | {"shape": "round", "headers": "no argument"}
    made = make_properties("text/plain", "utf-8", None, 1, 5, given)
    assert {name: getattr(made, name) for name in KEYWORD_PROPERTIES} == {n: given[n] for n in KEYWORD_PROPERTIES}
    assert (made.content_type, made.content_encoding, made.priority) == ("text/plain", "utf-8", 5)
    assert made.headers is None
    assert made.extra == {"shape": "round", "headers": "no argument"}
    alone = make_properties(None, None, {}, 1, 0, {})
    assert (alone.delivery_mode, alone.headers, alone.extra) == (1, None, None)


def test_headers_are_as_they_were_when_they_were_given() -> None:
    headers: dict[str, Any] = {"list": [1, {"deep": 1}], "dict": {"a": 1}}
    made = make_properties(None, None, headers, 2, 0, {})
    headers["list"][1]["deep"] = headers["dict"]["a"] = headers["new"] = 2
    assert made.headers == {"list": [1, {"deep": 1}], "dict": {"a": 1}}
