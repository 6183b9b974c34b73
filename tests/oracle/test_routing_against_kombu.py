"""Direct and topic routing beside the memory transport of kombu, where kombu keeps to AMQP."""

from itertools import count

import kombu
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kombulite._core import RoutingTable

numbers = count()


@pytest.fixture(scope="module")
def channel():
    with kombu.Connection("memory://") as connection, connection.channel() as channel:
        yield channel


def both(channel, kind, bindings, keys):
    """What each of the keys reaches in kombu's table and in ours, as two lists of sets."""
    exchange = f"e{next(numbers)}"
    table = RoutingTable()
    table.declare(exchange, kind)
    channel.exchange_declare(exchange, type=kind)
    for queue, pattern in bindings:
        channel.queue_declare(queue)
        channel.queue_bind(queue, exchange, pattern)
        table.bind(exchange, queue, pattern)
    theirs = [set(channel._lookup(exchange, key)) for key in keys]
    return theirs, [set(table.route(exchange, key)) for key in keys]


word = st.text(st.characters(codec="utf-8", exclude_characters=".*#\n"), min_size=1, max_size=4)
words = st.sampled_from(["a", "b", "abc", "a-b", "$", "^a", "[a]", "a+", "\\w", "é"]) | word
keys = st.lists(words, min_size=1, max_size=4).map(".".join)
topics = st.just("#") | st.lists(words | st.just("*"), min_size=1, max_size=4).map(".".join)


def bindings_of(patterns):
    return st.lists(st.tuples(st.sampled_from(["q1", "q2", "q3", "q4"]), patterns), max_size=6)


@settings(deadline=None, max_examples=200)
@given(bindings_of(topics), st.lists(keys, min_size=1, max_size=4), st.data())
def test_topic(channel, bindings, keys, data):
    if bindings:
        for _, pattern in bindings:
            keys.append(".".join(word if word not in "*#" else data.draw(words) for word in pattern.split(".")))
    theirs, ours = both(channel, "topic", bindings, keys)
    assert ours == theirs


@settings(deadline=None, max_examples=200)
@given(bindings_of(keys), st.lists(keys, max_size=4))
def test_direct(channel, bindings, keys):
    keys += [pattern for _, pattern in bindings]
    assume(keys)
    theirs, ours = both(channel, "direct", bindings, keys)
    assert ours == theirs


def test_default_exchange(channel):
    channel.queue_declare("by-name")
    assert tuple(channel._lookup("", "by-name")) == RoutingTable().route("", "by-name")
