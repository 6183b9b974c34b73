"""Acks of several queues that one node of a cluster is sent together: what it refuses or loses is sent again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hiredis import ReplyError

from kombulite import Connection, exceptions
from kombulite._core import JSON, EnvelopeReader, LeasedMessages, pack_command
from kombulite.brokers.redis.cluster.nodes import Nodes
from kombulite.brokers.redis.cluster.posts import Ack, AckBatch
from kombulite.brokers.redis.cluster.slots import slot_of
from kombulite.brokers.redis.cluster.units import split
from kombulite.brokers.redis.cluster.waiter import ClusterWaiter
from kombulite.brokers.redis.replies import Lost

ASKED = ("127.0.0.1", 7000)
MOVED = ReplyError("MOVED 1 127.0.0.1:7001")


@pytest.fixture
def nodes() -> Nodes:
    """The connections to the nodes of a cluster that is not reached."""
    transport: Any = Connection("rediscluster://").transport
    found: Nodes = transport._stream
    return found


@pytest.fixture
def settled() -> list[Any]:
    """What the queues of the acks were told of their replies."""
    return []


def batch_of(nodes: Nodes, settled: list[Any], *queues: str) -> AckBatch:
    acks: list[Ack] = []
    for queue in queues:
        index, table = f"{{{queue}}}:unacked_index", f"{{{queue}}}:unacked"
        data = pack_command(("ZREM", index, "tag")) + pack_command(("HDEL", table, "tag"))
        acks.append((slot_of(index), data, settled.append))
    return AckBatch(acks, ASKED, nodes._post_of)


def sent_again(nodes: Nodes) -> list[bytes]:
    return [command for post in nodes._refused for command in post.refused().commands]


def take(batch: AckBatch, *replies: Any) -> None:
    for reply in replies[:-1]:
        batch.collect(reply)
    for reply in replies[-1:]:
        batch(reply)


def test_what_was_done_leaves_nothing_to_send(nodes, settled):
    batch = batch_of(nodes, settled, "a", "b")
    assert batch.replies == len(split(batch.packed)) == 4
    take(batch, 1, 1, 0, 0)
    assert not batch.unanswered
    batch.lost()
    assert not nodes._refused
    assert not any(isinstance(reply, ReplyError) for reply in settled)


@pytest.mark.parametrize("replies", [(1, MOVED), (MOVED, MOVED), (MOVED, 1)], ids=["second", "both", "first"])
def test_only_the_queue_that_was_refused_is_sent_again(nodes, settled, replies):
    batch = batch_of(nodes, settled, "a", "b", "c")
    take(batch, 1, 1, *replies, 1, 1)
    assert sent_again(nodes) == split(batch._acks[1][1])
    assert nodes.cluster.slots.owners[slot_of("{b}")] == ("127.0.0.1", 7001)
    assert not any(isinstance(reply, ReplyError) for reply in settled)


def test_two_queues_that_were_refused_one_after_the_other_are_sent_again_each(nodes, settled):
    batch = batch_of(nodes, settled, "a", "b", "c")
    take(batch, MOVED, MOVED, MOVED, MOVED, 1, 1)
    assert sent_again(nodes) == split(batch._acks[0][1]) + split(batch._acks[1][1])


@pytest.mark.parametrize("place", [0, 1])
def test_an_error_that_is_the_queues_own_is_told_and_nothing_is_sent_again(nodes, settled, place):
    error = ReplyError("WRONGTYPE Operation against a key holding the wrong kind of value")
    batch = batch_of(nodes, settled, "a", "b")
    replies: list[Any] = [1, 1]
    replies[place] = error
    take(batch, *replies, 1, 1)
    assert not nodes._refused
    assert [reply for reply in settled if isinstance(reply, ReplyError)] == [error]


@pytest.mark.parametrize("count", range(7))
def test_what_has_no_reply_when_the_connection_is_lost_is_sent_again_once(nodes, settled, count):
    batch = batch_of(nodes, settled, "a", "b", "c")
    take(batch, *[1] * count)
    missing = [command for _, data, _ in batch._acks[count // 2 :] for command in split(data)]
    batch.lost()
    batch.lost()
    assert sent_again(nodes) == missing
    assert [data for _, data, _ in nodes.unanswered] == missing
    assert not any(isinstance(reply, Lost) for reply in settled)


def test_a_connection_that_is_lost_between_two_replies_of_a_queue_loses_no_refusal(nodes, settled):
    batch = batch_of(nodes, settled, "a", "b")
    take(batch, MOVED)
    batch.lost()
    assert sent_again(nodes) == split(batch.packed)


class Stream:
    """The connection to a node that takes what it is sent, and is lost then where ``fails``."""

    address = ASKED
    is_open = True

    def __init__(self, fails: bool) -> None:
        self._fails = fails
        self.posted: list[Any] = []

    def is_alive(self) -> bool:
        return True

    def post_batch(self, batch: AckBatch) -> None:
        if self._fails:
            raise exceptions.RecoverableConnectionError("lost")
        self.posted.append((batch, batch.packed, batch.replies))

    @property
    def unanswered(self) -> list[Any]:
        return self.posted


@pytest.mark.parametrize("fails", [False, True])
def test_the_next_connection_gets_the_acks_of_each_queue(nodes, settled, fails, monkeypatch):
    stream: Any = Stream(fails)
    monkeypatch.setattr(nodes, "_lose", lambda stream, error: None)
    nodes.streams[ASKED] = stream
    nodes.cluster.slots.owners = [ASKED] * 16384
    batch = batch_of(nodes, settled, "a", "b")
    nodes.post_acks(batch._acks)
    if not fails:
        assert [(data, replies) for _, data, replies in stream.posted] == [(batch.packed, 4)]
        stream.posted[0][0](1)
        stream.posted[0][0](1)
    # With what gets their replies: where the first node has failed, that is the post which it is sent again with.
    expected = [(data, 1, fails) for data in split(batch.packed)[0 if fails else 2 :]]
    assert [(data, replies, get != settled.append) for get, data, replies in nodes.unanswered] == expected


@pytest.mark.parametrize(
    ("has_ready", "is_claiming", "is_sent"),
    [(True, False, False), (False, True, False), (True, True, False), (False, False, True)],
)
def test_held_acks_wait_while_messages_are_at_hand_or_on_their_way(nodes, has_ready, is_claiming, is_sent):
    sent: list[float | None] = []
    receiver: Any = SimpleNamespace(
        has_ready=lambda: has_ready,
        is_claiming=is_claiming,
        events=(),
        messages=LeasedMessages(EnvelopeReader(JSON()), None),
    )
    router: Any = SimpleNamespace(catch_up=lambda: iter(()))
    nodes.before_send = sent.append
    waiter = ClusterWaiter(nodes, receiver, router, {})
    try:
        waiter._poll()
    finally:
        waiter.close()
    assert bool(sent) is is_sent
