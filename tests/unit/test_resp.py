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
    end_of_run,
    group_alike,
    pack_command,
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
        end_of_run([wrong], 0, MUCH)
    with pytest.raises(TypeError):
        group_alike([message(), wrong])


@pytest.mark.parametrize("kind", [list, tuple])
def test_run_beyond_the_end(kind):
    with pytest.raises(IndexError):
        end_of_run(kind([message()]), 1, MUCH)


# --- runs


@pytest.mark.parametrize(
    "other",
    [
        message(exchange="other"),
        message(routing_key="other"),
        message(properties=Properties("text/plain", "utf-8", None, 2, 0)),  # equal, but who knows
    ],
)
def test_a_run_ends_where_messages_go_another_way_or_differ(other):
    deliveries = [message(), message(), other, other, message()]
    assert [end_of_run(deliveries, start, MUCH) for start in range(5)] == [2, 2, 4, 4, 5]


def test_a_run_ends_with_its_bytes():
    deliveries = [message(bytes(size)) for size in (1000, 1000, 1000, 9000, 10, 10)]
    stops, start = [], 0
    while start < len(deliveries):
        start = end_of_run(deliveries, start, 3000)
        stops.append(start)
    assert stops == [2, 3, 4, 6]


# --- groups


def test_messages_that_go_the_same_way_are_put_together_in_their_order():
    deliveries = [message(bytes([n]), routing_key="ab"[n % 2]) for n in range(5)]
    assert [(places, mine) for places, mine, _ in group_alike(deliveries)] == [
        ([0, 2, 4], deliveries[::2]),
        ([1, 3], deliveries[1::2]),
    ]
    assert group_alike([]) == []


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
    groups = group_alike([first, other, last])
    # Where the others have other properties, the last begins a group: their order is that of one queue.
    expected = [[0, 2], [1]] if other.properties is PROPERTIES else [[0], [1], [2]]
    assert [places for places, _, _ in groups] == expected


def test_exchanges_that_take_turns_have_a_group_each():
    deliveries = [message(exchange="ab"[n % 2]) for n in range(6)]
    assert [places for places, _, _ in group_alike(deliveries)] == [[0, 2, 4], [1, 3, 5]]


def test_the_bytes_of_a_group_are_those_of_its_messages():
    few, many = (group_alike([message(bytes(size)) for size in sizes])[0][2] for sizes in [(1, 2), (1, 2000)])
    assert many - few == 1998
