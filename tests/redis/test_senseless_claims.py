"""Replies that are no claim's, and numbers that are none: an error of the connection, and nothing is lost."""

from __future__ import annotations

from hashlib import sha1
from typing import Any
from unittest.mock import Mock

import pytest

from kombulite import Connection, Queue, exceptions
from kombulite.brokers.redis import claims
from kombulite.brokers.redis.claims import Claim, Consumer
from kombulite.brokers.redis.cluster.claims import ClusterClaimQueue
from kombulite.brokers.redis.cluster.listening import ListeningNodes
from kombulite.brokers.redis.cluster.slots import SlotMap
from kombulite.brokers.redis.leases import Tags
from kombulite.brokers.redis.options import OrderStrategy
from kombulite.brokers.redis.plans import number_of
from kombulite.brokers.redis.replies import ReplyQueue
from kombulite.brokers.redis.scripts import Script

SENSELESS: list[Any] = [
    5,
    [1],
    [1, 5],
    [1, [5]],
    [1, [None]],
    [1, [[b"{}"]]],
    [1, b"{}"],
    [1, []],
    [0, [b"{}"]],
    [-1, [b"{}"]],
    [99, [b"{}"]],
    [float("inf"), [b"{}"]],
]
INFINITY = float("inf")


def protocol_of_a_cluster() -> Any:
    transport: Any = Connection("rediscluster://").transport
    return transport._protocol


@pytest.mark.parametrize("reply", SENSELESS, ids=str)
def test_what_a_claim_may_have_taken_is_put_back_if_its_reply_makes_no_sense(reply):
    queue = ClusterClaimQueue(False, OrderStrategy("round_robin"), True)
    queue.add(Consumer("tag", "q", False, False))
    part = Claim(protocol_of_a_cluster().keys.of("q"), Tags(60.0), ["q"], 5, True)
    queue.claimed([(part, reply)])
    assert queue.lost == [part]
    assert not queue.ready


@pytest.mark.parametrize(
    "source", ["return 5", "return {1, {5}}", "return {1, {{'{}'}}}", "return {1, {}}", "return {0, {'{}'}}"]
)
def test_get_takes_no_senseless_reply_for_a_message(ours, name, monkeypatch, source):
    channel = ours().channel()
    Queue(name)(channel).declare()
    script = Script("claim")
    script.source, script.sha = source, sha1(source.encode()).hexdigest()
    assert channel.basic_get(name) is None
    with monkeypatch.context() as patched:
        patched.setattr(claims, "CLAIM", script)
        with pytest.raises(exceptions.RecoverableConnectionError, match="makes no sense"):
            channel.basic_get(name)


@pytest.mark.parametrize(
    "slots", [[[0, INFINITY, [b"h", 1]]], [[INFINITY, 1, [b"h", 1]]], [[0, 1, [b"h", INFINITY]]]], ids=str
)
def test_slots_without_end_are_no_slots(slots):
    with pytest.raises(exceptions.RecoverableConnectionError, match="make no sense"):
        SlotMap().update(slots, ("127.0.0.1", 1))


def test_slots_that_are_too_many_are_no_slots():
    node, slots = [b"h", 1], SlotMap()
    too_many_nodes = [0, 0, *([b"h", 1 + number] for number in range(16385))]
    for reply in ([[0, 16383, node], [0, 0, node]], [[0, -1, node]] * 16385, [too_many_nodes]):
        with pytest.raises(exceptions.RecoverableConnectionError, match="make no sense"):
            slots.update(reply, ("127.0.0.1", 1))
    assert not slots.nodes


@pytest.mark.parametrize("reply", [None, b"1", [1], INFINITY], ids=str)
def test_a_number_of_replicas_that_is_none_is_an_error_of_the_connection(reply):
    transport: Any = Connection("rediscluster://").transport
    nodes = transport._stream
    nodes.note_written()
    stream = Mock(address=("h", 1))
    stream.exchange.return_value = [reply]
    nodes._written.streams.add(stream)
    with pytest.raises(exceptions.RecoverableConnectionError, match="makes no sense"):
        nodes.wait_for_replicas(1, 1.0)


@pytest.mark.parametrize("reply", [None, b"1", [1], INFINITY], ids=str)
def test_a_number_of_subscribers_that_is_none_is_an_error_of_the_connection(reply):
    with pytest.raises(exceptions.RecoverableConnectionError, match="makes no sense"):
        number_of(reply)


@pytest.mark.parametrize(
    "push",
    [
        b">3\r\n$12\r\nsunsubscribe\r\n_\r\n:0\r\n",
        b">3\r\n$12\r\nsunsubscribe\r\n:7\r\n:0\r\n",
        b">2\r\n$8\r\nsmessage\r\n$1\r\nc\r\n",
        b">1\r\n$10\r\nssubscribe\r\n",
        b">0\r\n",
    ],
    ids=["no channel", "a number", "no message", "without a command", "nothing"],
)
def test_a_push_that_makes_no_sense_is_an_error_of_the_connection(push):
    transport: Any = Connection("rediscluster://").transport
    listening = ListeningNodes(transport._cluster, print, print, print, print, False)
    replies = ReplyQueue(3, lambda message: listening._take_push(Mock(answer_posted=lambda reply: [].pop()), message))
    replies.feed(push)
    with pytest.raises(exceptions.RecoverableConnectionError, match="makes no sense"):
        replies.take(0, [])
