"""Redis commands as they travel, judged by hiredis."""

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kombulite._core import (
    JSON,
    Delivery,
    EnvelopeTemplate,
    ListPush,
    Properties,
    TagSequence,
    decode_envelope,
    group_alike,
    pack_command,
    word_of,
)

codec = JSON()
PROPERTIES = Properties("text/plain", "utf-8", None, 2, 0)
MUCH = 1 << 40

words = st.text(st.characters(exclude_categories=["Cs"])) | st.binary() | st.integers() | st.floats()


def message(body=b"body", exchange="e", routing_key="k", properties=PROPERTIES):
    return Delivery(exchange, routing_key, properties, body)


def parsed(command):
    reader = hiredis.Reader()
    reader.feed(command)
    found = reader.gets()
    assert not reader.has_data()
    return found


# --- any command


@settings(deadline=None, max_examples=300)
@given(st.lists(words, max_size=12))
def test_commands_are_those_of_hiredis(words):
    assert pack_command(words) == hiredis.pack_command(tuple(words))


def test_words_of_any_size():
    for size in (0, 9, 10, 99, 100, 9999, 10_000, 1 << 20):
        assert parsed(pack_command(("SET", bytearray(size)))) == [b"SET", bytes(size)]


@pytest.mark.parametrize("word", [None, object(), ["LPUSH"]])
def test_word_of_no_known_kind(word):
    with pytest.raises(TypeError):
        pack_command(("PING", word))


# --- envelopes into a list


@settings(deadline=None, max_examples=200)
@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.binary(max_size=200) | st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=12),
    st.sampled_from(["base64", "utf-8", None]),
    st.sampled_from([b"", b', "published_at": 1', b', "a": null, "b": "c"']),
)
def test_envelopes_are_those_of_their_template(key, bodies, encoding, stamp):
    template = EnvelopeTemplate(codec, "e", "k", PROPERTIES, encoding)
    deliveries = [message(body) for body in bodies]
    command = ListPush(key).pack(template, TagSequence(), deliveries, stamp)
    name, where, *envelopes = parsed(command)
    tags = [decode_envelope(codec, envelope).delivery_tag for envelope in envelopes]
    assert (name, where) == (b"LPUSH", key.encode())
    assert envelopes == [template.encode(body, tag, stamp) for body, tag in zip(bodies, tags, strict=True)]
    assert len(set(tags)) == len(tags)


def test_tags_go_on_from_command_to_command():
    tags, template = TagSequence(), EnvelopeTemplate(codec, "e", "k", PROPERTIES)
    drawn = [tags.next()]
    for count in (1, 3, 300):
        envelopes = parsed(ListPush("q").pack(template, tags, [message()] * count))[2:]
        drawn += [decode_envelope(codec, envelope).delivery_tag for envelope in envelopes]
    drawn.append(tags.next())
    assert [tag[:24] for tag in drawn] == [drawn[0][:24]] * 306
    assert [int(tag[24:], 16) for tag in drawn] == list(range(306))


@pytest.mark.parametrize("wrong", [None, "text", 5])
def test_what_is_no_delivery_is_refused(wrong):
    with pytest.raises(TypeError):
        ListPush("q").pack(EnvelopeTemplate(codec, "e", "k", PROPERTIES), TagSequence(), [wrong])
    with pytest.raises(TypeError):
        group_alike([message(), wrong], MUCH)


# --- groups


def test_messages_that_go_the_same_way_are_put_together_in_their_order():
    deliveries = [message(bytes([n]), routing_key="ab"[n % 2]) for n in range(5)]
    assert [(places, mine) for places, mine in group_alike(deliveries, MUCH)] == [
        ([0, 2, 4], deliveries[::2]),
        ([1, 3], deliveries[1::2]),
    ]
    assert group_alike([], MUCH) == []


@pytest.mark.parametrize(
    "other",
    [
        message(exchange="other"),
        message(routing_key="other"),
        message(properties=Properties("text/plain", "utf-8", None, 2, 0)),  # equal, but who knows
    ],
)
def test_messages_that_go_another_way_or_differ_are_apart(other):
    first, last = message(), message()
    groups = group_alike([first, other, last], MUCH)
    # Where the others have other properties, the last begins a group: their order is that of one queue.
    expected = [[0, 2], [1]] if other.properties is PROPERTIES else [[0], [1], [2]]
    assert [places for places, _ in groups] == expected


def test_exchanges_that_take_turns_have_a_group_each():
    deliveries = [message(exchange="ab"[n % 2]) for n in range(6)]
    assert [places for places, _ in group_alike(deliveries, MUCH)] == [[0, 2, 4], [1, 3, 5]]


def test_a_group_ends_with_its_bytes():
    sizes = (1000, 1000, 1000, 9000, 10, 10)
    deliveries = [message(bytes(size), routing_key=key) for size in sizes for key in "ab"]
    groups = group_alike(deliveries, 3000)
    assert [places for places, mine in groups if mine[0].routing_key == "a"] == [[0, 2], [4], [6], [8, 10]]
    assert [places for places, mine in groups if mine[0].routing_key == "b"] == [[1, 3], [5], [7], [9, 11]]
    assert groups == sorted(groups, key=lambda group: group[0])


# --- words


@given(st.lists(words, min_size=1))
def test_each_word_of_a_command_is_found(given):
    command = pack_command(given)
    assert [word_of(command, place) for place in range(len(given))] == parsed(command)
    for place in (-1, len(given)):
        with pytest.raises(ValueError, match="without a word"):
            word_of(command, place)


@given(st.lists(words, min_size=1), st.data())
def test_a_command_that_breaks_off_has_no_last_word(given, data):
    command = pack_command(given)
    kept = data.draw(st.integers(0, len(command) - 3))  # the last line end is not looked at
    with pytest.raises(ValueError):
        word_of(command[:kept], len(given) - 1)


@pytest.mark.parametrize(
    "senseless",
    [b"", b"*", b"*1", b"*1\r\n", b"*\r\n$", b"*1\r\n$-1\r\n", b"*1\r\n$9999999999999999999999\r\nPING\r\n"],
)
def test_what_is_no_command_has_no_words(senseless):
    with pytest.raises(ValueError):
        word_of(senseless, 0)
