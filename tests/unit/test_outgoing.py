"""What a publisher gives, as it travels: plain messages, and properties of one message alone."""

from __future__ import annotations

from typing import Any

import pytest

from kombulite._core import KEYWORD_PROPERTIES, BaseBatch, Delivery, PlainMessages, Properties, make_properties
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


# --- batches


def test_messages_that_are_all_mandatory_or_all_not_leave_together():
    batch = BaseBatch(10)
    made = [Delivery("", str(number), Properties(), b"") for number in range(5)]
    for delivery, mandatory in zip(made, [True, True, False, False, True], strict=True):
        batch.append(delivery, mandatory)
    found = []
    while alike := batch.first_alike():
        found.append((batch.is_mandatory, alike))
        batch.drop_first(len(alike))
    assert found == [(True, made[:2]), (False, made[2:4]), (True, made[4:])]
    assert len(batch) == 0
    with pytest.raises(IndexError):
        batch.is_mandatory  # noqa: B018 - it is asked for to see it raise


def test_a_batch_is_full_with_its_last_message_and_has_room_again():
    batch = BaseBatch(2)
    for _ in range(2):
        assert not batch.is_full
        batch.append(Delivery("", "", Properties(), b""), False)
    assert batch.is_full
    batch.drop_first(1)
    assert not batch.is_full


@pytest.mark.parametrize("wrong", [0, -1])
def test_a_batch_has_room_for_a_message(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        BaseBatch(wrong)


def test_what_is_taken_out_of_a_batch_is_not_less_than_nothing():
    batch = BaseBatch(1)
    batch.append(Delivery("", "", Properties(), b""), False)
    with pytest.raises(ValueError, match="at least 0"):
        batch.drop_first(-1)
    batch.drop_first(5)
    assert batch.first_alike() == []
