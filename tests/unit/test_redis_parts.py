"""The parts of the Redis transport that need no server."""

from __future__ import annotations

import importlib
import inspect
import json

import pytest
from hiredis import Reader
from kombu.transport.virtual.exchange import TopicExchange
from redis import exceptions as driver

from kombulite import exceptions
from kombulite._core import Lease
from kombulite.brokers.base import QueueSpec, Settings
from kombulite.brokers.redis import Transport, get_redis_error_classes
from kombulite.brokers.redis.claims import MAX_ASKED, ClaimQueue, RedisChannel, in_turns
from kombulite.brokers.redis.errors import (
    BY_CLASS,
    ServerClosed,
    connection_lost,
    driver_error,
    reply_error,
    socket_error,
)
from kombulite.brokers.redis.fanout import Subscriptions
from kombulite.brokers.redis.keys import Keys, topic_pattern
from kombulite.brokers.redis.leases import Tags, mark_redelivered
from kombulite.brokers.redis.options import Limits, Options, OrderStrategy, database_of
from kombulite.brokers.redis.router import Routes

SEP = "\x06\x16"

# --- errors

DRIVER_ERRORS = [
    cls for _, cls in inspect.getmembers(driver, inspect.isclass)
    if issubclass(cls, driver.RedisError) and cls.__module__ == driver.__name__
]  # fmt: skip


@pytest.mark.parametrize("cls", DRIVER_ERRORS)
def test_each_error_of_the_driver_is_in_the_table(cls):
    """A new one has to be thought about."""
    assert cls.__name__ in BY_CLASS


@pytest.mark.parametrize(
    "error",
    [ServerClosed("why"), connection_lost("why"), reply_error("ERR why"), socket_error(TimeoutError("why"))],
)
def test_errors_show_what_they_say(error):
    """redis-py's own way to show an error needs what its constructor sets."""
    assert "why" in repr(error)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", exceptions.MessageNacked),
        ("READONLY You can't write against a read only replica.", exceptions.RecoverableConnectionError),
        ("LOADING Redis is loading the dataset in memory", exceptions.RecoverableConnectionError),
        ("NOPERM this user has no permissions", exceptions.AccessRefused),
        ("NOAUTH Authentication required.", exceptions.LoginRefused),
        ("WRONGTYPE Operation against a key", exceptions.PreconditionFailed),
        ("MOVED 3999 127.0.0.1:6381", exceptions.RecoverableConnectionError),
        ("CROSSSLOT Keys in request don't hash to the same slot", exceptions.AMQPNotImplementedError),
        ("ERR unknown command 'FOO'", exceptions.AccessRefused),
        ("ERR Unknown Redis command called from script script: 0a, on @user_script:1.", exceptions.AccessRefused),
        ("ERR ACL failure in script: User u has no permissions to run the 'hdel' command", exceptions.AccessRefused),
        ("EXECABORT Transaction discarded because of: NOPERM no permissions", exceptions.AccessRefused),
        ("EXECABORT Transaction discarded because of: OOM command not allowed", exceptions.MessageNacked),
        ("EXECABORT Transaction discarded because of previous errors.", exceptions.IrrecoverableChannelError),
        ("SURPRISE what is this", exceptions.IrrecoverableChannelError),
        ("", exceptions.IrrecoverableChannelError),
    ],
)
def test_error_replies(reply, error):
    assert type(reply_error(reply)).__bases__[0] is error
    assert reply in str(reply_error(reply))


@pytest.mark.parametrize(
    "reply",
    [
        "ERR Error running script (call to f_3260b2af): @user_script:8: WRONGTYPE Operation against a key",
        "ERR Error running script (call to f_3260b2af): @user_script:8: @user_script: 8: -WRONGTYPE Operation",
        "@user_script: 15: -WRONGTYPE Operation",
    ],
)
def test_errors_in_scripts_of_redis_6_are_what_they_are(reply):
    assert type(reply_error(reply)).__bases__[0] is exceptions.PreconditionFailed
    assert str(reply_error(reply)) == str(exceptions.PreconditionFailed(reply))


def test_errors_of_the_driver_do_not_leak():
    class Unheard(driver.ConnectionError):
        pass

    error = driver_error(Unheard("gone"))
    assert isinstance(error, exceptions.RecoverableConnectionError)
    assert "gone" in str(error)
    assert isinstance(driver_error(driver.TimeoutError("late")), TimeoutError)
    assert isinstance(driver_error(driver.ResponseError("NOPERM no")), exceptions.AccessRefused)


def test_error_classes_for_result_backends():
    connection_errors, channel_errors = get_redis_error_classes()
    assert driver.ConnectionError in connection_errors
    assert driver.ResponseError in channel_errors


# --- names


@pytest.mark.parametrize(
    "key", ["a", "a.b", "order.*.eu", "a.#", "#", "*", "spec-a", "a_b.c+d", "", "ü.*", "a..b", "a b"]
)
def test_patterns_are_those_of_kombu(key):
    assert topic_pattern(key) == TopicExchange(None).key_to_pattern(key)


def keys(**options):
    return Keys(Options.of(options), 3)


def test_members_of_binding_sets():
    names = keys()
    assert names.member("direct", "k", "q") == f"k{SEP}{SEP}q"
    assert names.member("topic", "a.*", "q") == rf"a.*{SEP}^a\.[^\.]+${SEP}q"
    assert names.parse_member(f"k{SEP}{SEP}q".encode()) == ("k", "", "q")
    for broken in (b"", b"k", b"\xff", f"a{SEP}b{SEP}c{SEP}d".encode()):
        assert names.parse_member(broken) is None


def test_leases_say_where_to_put_the_message_back():
    assert json.loads("[1" + keys().lease_ending('q"ü')) == [1, "", 'q"ü']


def test_fanout_channels():
    assert keys().topic("ex", "") == "/3.ex"
    assert keys().topic("ex", "k") == "/3.ex/k"
    assert keys(fanout_patterns=False).topic("ex", "k") == "/3.ex"
    assert keys(fanout_prefix=False, global_keyprefix="p:").topic("ex", "") == "p:ex"
    assert keys(fanout_prefix="/x{db}.").topic("ex", "") == "/x3.ex"
    assert keys().topic_patterns("e[x]", "") == (r"/3.e\[x\]", r"/3.e\[x\]/*")
    assert keys().topic_patterns("ex", "a.#") == ("/3.ex/a.*",)


class FakeLink:
    def __init__(self):
        self.sent = []

    def post(self, data, replies, on_reply, may_repeat=False):
        self.sent.append(data)


def test_subscriptions_change_by_what_is_new_and_what_is_over():
    link, subscriptions = FakeLink(), Subscriptions(keys(), False, lambda queues, error: None)
    subscriptions.update(link, {"q": [("ex", "k")]})
    subscriptions.update(link, {"q": [("ex", "k")], "r": [("ex", "k")]})
    assert subscriptions.queues(b"/3.ex/k", "ex", "tag") == ["q", "r"]
    assert subscriptions.queues(b"/3.ex/k", "other", "tag") == []
    subscriptions.update(link, {})
    assert [data.split()[2] for data in link.sent] == [b"PSUBSCRIBE", b"PUNSUBSCRIBE"]
    assert subscriptions.queues(b"/3.ex/k", "ex", "tag") == []


def test_message_that_comes_under_two_patterns_is_taken_once():
    link, subscriptions = FakeLink(), Subscriptions(keys(), True, lambda queues, error: None)
    subscriptions.update(link, {"q": [("ex", "")]})
    assert subscriptions.queues(b"/3.ex", "ex", "tag") == ["q"]
    assert subscriptions.queues(b"/{db}.ex", "ex", "tag") == []
    assert subscriptions.queues(b"/3.ex", "ex", "next") == ["q"]


# --- options


@pytest.mark.parametrize(
    "options",
    [{"visibility_timeout": 0}, {"visibility_timeout": "soon"}, {"socket_timeout": -1}, {"protocol": 4},
     {"body_encoding": "rot13"}, {"socket_timeout": True}],
)  # fmt: skip
def test_options_that_cannot_be(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Options.of(options)


def test_options_of_others_are_left_alone():
    options = Options.of({"max_retries": 3, "visibility_timeout": 60, "unacked_restore_interval": -1})
    assert (options.visibility_timeout, options.restore_interval) == (60, 60)


def test_database():
    assert [database_of(text) for text in ("", "/", "//", "0", "/7")] == [0, 0, 0, 0, 7]
    with pytest.raises(ValueError, match="database"):
        database_of("orders")


def test_limits_of_a_queue():
    assert Limits.of(QueueSpec("q", arguments={"x-expires": 5, "x-message-ttl": 0})) == (5, 0)
    for arguments in ({"x-expires": 0}, {"x-expires": "5"}, {"x-message-ttl": -1}, {"x-message-ttl": True}):
        with pytest.raises(exceptions.PreconditionFailed):
            Limits.of(QueueSpec("q", arguments=arguments))


def test_no_module_is_needed_before_a_redis_is():
    assert importlib.import_module("kombulite.brokers").SCHEMES["redis"].port == 6379
    assert "pw" not in repr(Transport(Settings(hostname="h", password="pw")).settings)


# --- leases


def test_tags_sort_as_they_were_made():
    tags = Tags(3600)
    first = tags.reserve(3)
    made = [tags.tag(first + i) for i in range(3)]
    assert made == sorted(made)
    assert made[0].startswith("kl3600.000-")
    assert tags.reserve(1) == first + 3
    assert Tags(3600).prefix != tags.prefix


def test_redelivered_flags():
    envelope = {"body": "", "headers": None, "properties": {"delivery_info": {"exchange": "e"}, "n": 2**70}, "x": 1.5}
    marked = json.loads(mark_redelivered(json.dumps(envelope).encode()))
    assert marked["headers"] == {"redelivered": True}
    info = {"exchange": "e", "redelivered": True, "delivery_count": 1}
    assert marked["properties"] == {"delivery_info": info, "n": 2**70}
    assert marked["x"] == 1.5
    again = json.loads(mark_redelivered(json.dumps(marked).encode()))
    assert again["properties"]["delivery_info"]["delivery_count"] == 2
    for element in (b"garbage", b"[]", b'"text"', b'{"properties": 5}', b"[" * 100_000):
        assert mark_redelivered(element) == element


# --- whose turn it is


def lease(queue, tag="t"):
    return Lease(tag, queue, queue, b"{}")


def test_queues_take_turns():
    lists = [[lease("a"), lease("a"), lease("a")], [lease("b")], [lease("c"), lease("c")]]
    assert [each.queue for each in in_turns(lists)] == list("abcaca")


@pytest.mark.parametrize(
    ("strategy", "queues"),
    [("round_robin", ["b", "c", "a"]), ("priority", ["c", "a", "b"]), ("sorted", ["a", "b", "c"])],
)
def test_order_of_queues(strategy, queues):
    claims = ClaimQueue(False, OrderStrategy(strategy), True)
    channel = RedisChannel(1, OrderStrategy(strategy), True)
    assert channel.credit(claims) == 0
    for queue in "cab":
        claims.add(type("Consumer", (), {"queue": queue})())
    claims._turn([lease("c"), lease("a")])
    assert list(claims.queues) == queues


class Wire:
    """What a claim is sent on: notes which queues it asks."""

    def post(self, data, replies, on_reply):
        reader = Reader()
        reader.feed(data)
        _, _, key_count, *words = [word.decode() for word in reader.gets()]
        lists, (_, count, _, number) = words[2 : int(key_count)], words[int(key_count) : int(key_count) + 4]
        self.asked, self.count = [each.split(SEP)[0] for each in lists[: int(number)]], int(count)


def test_a_claim_asks_queues_that_may_have_something_and_not_too_many():
    claims, wire = ClaimQueue(False, OrderStrategy("round_robin"), True), Wire()
    every = [f"q{i}" for i in range(MAX_ASKED + 50)]
    for queue in every:
        claims.add(type("Consumer", (), {"queue": queue})())

    def claim(*found):
        """Ask, and be answered with so many messages for the places found; returns which queues were asked."""
        claims.claim(wire, keys(), Tags(10.0), 100, print, False)
        reply = []
        for place, count in found:
            reply += [place, [b"{}"] * count]
        return wire.asked, claims.claimed(reply)

    first, rest = every[:MAX_ASKED], every[MAX_ASKED:]
    assert claim((1, 2), (3, 1)) == (first, (first, 3))  # it had room for more: they are empty
    assert claim((1, wire.count)) == (rest, ((), wire.count))  # it had not
    assert claims.dirty_queues == set(rest)
    claims.dirty_queues.add("q7")
    asked, (emptied, found) = claim()
    assert asked == emptied == ["q7", *rest[1:], rest[0]]  # who was served waits longest
    assert not found
    assert not claims.dirty_queues
    claims.dirty_queues.add("gone")
    claims.claim(wire, keys(), Tags(10.0), 100, print, False)
    assert claims.claiming is None
    assert not claims.dirty_queues


def test_queues_of_a_claim_that_was_refused_are_asked_again():
    claims = ClaimQueue(False, OrderStrategy("round_robin"), True)
    for queue in "ab":
        claims.add(type("Consumer", (), {"queue": queue})())
    claims.claim(Wire(), keys(), Tags(10.0), 100, print, False)
    assert not claims.dirty_queues
    claims.failed()
    assert claims.dirty_queues == {"a", "b"}
    assert claims.claiming is None


class Backwards:
    def update(self, queues):
        self.queues = queues

    def consume(self, count):
        return self.queues[::-1][:count]

    def rotate(self, last_used):
        self.last = last_used


def test_order_of_ones_own():
    for strategy in (Backwards, f"{__name__}.Backwards"):
        claims = ClaimQueue(False, OrderStrategy(strategy), True)
        for queue in "ab":
            claims.add(type("Consumer", (), {"queue": queue})())
        assert list(claims.queues) == ["b", "a"]


# --- routes


def test_type_is_inferred_from_patterns():
    names = keys()
    topic = Routes(names, "ex", None, {names.member("topic", "a.#", "q").encode()})
    assert (topic.kind, topic.route("a"), topic.route("a.b.c"), topic.route("b")) == ("topic", ("q",), ("q",), ())
    direct = Routes(names, "ex", None, {names.member("direct", "a.#", "q").encode()})
    assert (direct.kind, direct.route("a.#"), direct.route("a.b")) == ("direct", ("q",), ())
    assert Routes(names, "ex", None, set()).kind is None
