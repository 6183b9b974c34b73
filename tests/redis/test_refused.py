"""Lists that refuse messages which come back: they keep their own messages waiting, and those of no other queue."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis
from hiredis import ReplyError

from kombulite import Consumer, Producer, Queue, exceptions
from kombulite._core import Lease, pack_command
from kombulite.brokers.base import Settings
from kombulite.brokers.redis.claims import Acknowledgement, Claim, RedisChannel
from kombulite.brokers.redis.handover import Handover
from kombulite.brokers.redis.held_acks import MIN_FOLLOWING
from kombulite.brokers.redis.leases import ACK_REPLIES, Tags, pack_acknowledgement, put_back, restore_overdue
from kombulite.brokers.redis.options import ROUND_ROBIN, Options, OrderStrategy
from kombulite.brokers.redis.protocol import RedisProtocol
from tests.redis.conftest import drain
from tests.servers import RedisServer, wait_until


def envelope(body: Any) -> dict[str, Any]:
    return {
        "body": json.dumps(body), "content-encoding": "utf-8", "content-type": "application/json", "headers": {},
        "properties": {"delivery_tag": "1", "delivery_info": {"exchange": "", "routing_key": ""}},
    }  # fmt: skip


def lease(client: Any, tag: str, exchange: str, routing_key: str, age: float) -> None:
    """Leave a lease as a consumer does that is killed."""
    client.hset("unacked", tag, json.dumps([envelope(tag), exchange, routing_key]))
    client.zadd("unacked_index", {tag: time.time() - age})


def restore(connection: Any, queues: Iterable[str] = ()) -> None:
    """Look once for leases that ran out. ``queues``: where kombu's messages go."""

    def route(exchange: str, routing_key: str) -> Any:
        yield from ()
        return queues

    transport = connected(connection)
    keys, options = transport._protocol.keys, Options.of({"visibility_timeout": 1})
    with suppress(exceptions.PreconditionFailed):
        transport._stream.perform(restore_overdue(keys, options, route))


def connected(connection: Any) -> Any:
    """Return the transport of a connection, open."""
    connection.connect()
    return connection.transport


def payloads(client: Any, name: str) -> list[Any]:
    """Return the bodies in a list, the next one first."""
    return [json.loads(json.loads(each)["body"]) for each in reversed(client.lrange(name, 0, -1))]


@pytest.mark.parametrize("bad_is_first", [True, False])
def test_lease_of_which_one_list_takes_no_copy_leaves_none_in_the_others(ours, client, name, bad_is_first):
    good, bad = f"{name}.good", f"{name}.bad"
    client.set(bad, "no list")
    client.lpush(good, json.dumps(envelope("waiting")))
    lease(client, "kombu", "an exchange", "k", 100)
    before = client.zscore("unacked_index", "kombu")
    for _ in range(3):
        restore(ours(), [bad, good] if bad_is_first else [good, bad])
        assert payloads(client, good) == ["waiting"]
        assert client.zscore("unacked_index", "kombu") == before
    client.delete(bad)
    restore(ours(), [good, bad])
    assert payloads(client, good) == ["kombu", "waiting"]
    assert payloads(client, bad) == ["kombu"]
    assert not client.exists("unacked", "unacked_index")


def test_list_that_takes_no_message_keeps_no_others_away(ours, client, name):
    client.set(f"{name}.bad", "no list")
    lease(client, "old", "", name, 300)
    lease(client, "bad", "", f"{name}.bad", 200)
    lease(client, "new", "", name, 100)
    restore(ours())
    assert payloads(client, name) == ["old", "new"]
    assert client.hkeys("unacked") == client.zrange("unacked_index", 0, -1) == [b"bad"]


@pytest.mark.parametrize("is_routed", [False, True])
def test_lease_that_cannot_be_read_keeps_no_others_away(ours, client, name, is_routed):
    """The dead letters refuse what leads nowhere, or the bindings of an exchange cannot be read."""
    client.set(f"_kombulite.dead.{name}.nowhere", "no list")
    lease(client, "old", "", name, 300)
    lease(client, "bad", "an exchange", f"{name}.nowhere", 200)
    lease(client, "new", "", name, 100)

    def route(exchange: str, routing_key: str) -> Any:
        yield from ()
        if is_routed:
            raise exceptions.PreconditionFailed("WRONGTYPE of its bindings")
        return ()

    transport = connected(ours())
    for _ in range(2):
        plan = restore_overdue(transport._protocol.keys, Options.of({"visibility_timeout": 1}), route)
        with pytest.raises(exceptions.PreconditionFailed, match="WRONGTYPE"):
            transport._stream.perform(plan)
        assert payloads(client, name) == ["old", "new"]
        assert client.hkeys("unacked") == client.zrange("unacked_index", 0, -1) == [b"bad"]


def test_refusal_of_a_list_is_reported(ours, client, name):
    client.set(name, "no list")
    lease(client, "bad", "", name, 200)
    transport = connected(ours())
    plan = restore_overdue(transport._protocol.keys, Options.of({"visibility_timeout": 1}), lambda *_: iter(()))
    with pytest.raises(exceptions.PreconditionFailed, match="WRONGTYPE"):
        transport._stream.perform(plan)
    assert not client.exists("unacked_mutex")


@pytest.mark.parametrize("right", ["hdel", "zrem", "hget"])
def test_message_is_put_back_only_where_its_lease_can_be_removed(ours, client, redis_url, name, right):
    client.execute_command("ACL", "SETUSER", "some", "reset", "on", ">pw", "+@all", f"-{right}", "-hset", "~*", "&*")
    lease(client, "kept", "", name, 100)
    transport = connected(ours(redis_url.replace("//", "//some:pw@")))
    message = Lease("kept", name, name, json.dumps(envelope("kept")).encode())
    with pytest.raises(exceptions.AccessRefused):
        transport._stream.perform(put_back(transport._protocol.keys, [message], True))
    assert client.llen(name) == 0
    assert client.hkeys("unacked") == client.zrange("unacked_index", 0, -1) == [b"kept"]


def test_lease_outlives_a_list_that_the_user_may_not_write(ours, client, redis_url, name):
    """A user without HSET could not put the lease back: it must not be removed before its list has the message."""
    client.execute_command("ACL", "SETUSER", "some", "reset", "on", ">pw", "+@all", "-rpush", "-hset", "~*", "&*")
    lease(client, "kept", "", name, 100)
    transport = connected(ours(redis_url.replace("//", "//some:pw@")))
    message = Lease("kept", name, name, json.dumps(envelope("kept")).encode())
    with pytest.raises(exceptions.AccessRefused, match=r"(?i)rpush"):
        transport._stream.perform(put_back(transport._protocol.keys, [message], True))
    assert client.hkeys("unacked") == client.zrange("unacked_index", 0, -1) == [b"kept"]


def test_messages_without_a_lease_are_put_back_once(ours, client, name):
    client.set(f"{name}.bad", "no list")
    messages = [
        Lease(str(n), queue, queue, json.dumps(envelope(n)).encode())
        for n, queue in enumerate([name, f"{name}.bad", name])
    ]
    transport = connected(ours())
    for _ in range(3):
        with pytest.raises(exceptions.PreconditionFailed, match="WRONGTYPE"):
            transport._stream.perform(put_back(transport._protocol.keys, messages, False))
        assert payloads(client, name) == [0, 2]
    client.delete(f"{name}.bad")
    transport._stream.perform(put_back(transport._protocol.keys, messages, False))
    assert payloads(client, name) == [0, 2]
    assert payloads(client, f"{name}.bad") == [1]


def test_what_a_consumer_has_taken_for_good_goes_back_once(ours, client, name):
    """The list of one priority refuses its messages: each further try puts back only what is not back yet."""
    connection = ours()
    Producer(connection).publish_many([1, 2], routing_key=name)
    Producer(connection).publish_many([3, 4], routing_key=name, priority=9)
    channel, got = connection.channel(), []
    Consumer(channel, Queue(name), on_message=got.append, no_ack=True).consume()
    drain(connection, lambda: got)
    client.set(name, "no list")
    transport = connection.transport
    for _ in range(3):
        with pytest.raises(exceptions.PreconditionFailed, match="WRONGTYPE"):
            transport.close_channel(channel.channel_id)
    client.delete(name)
    transport.close_channel(channel.channel_id)
    assert [message.payload for message in got] == [1]
    assert client.llen(name) + client.llen(f"{name}\x06\x169") == 3
    queue = Queue(name)(connection.channel())
    assert [queue.get(no_ack=True).payload for _ in range(3)] == [2, 3, 4]


def test_what_is_back_does_not_count_against_the_prefetch(ours, client, name):
    """The list of one message refuses it: the other one went back to its own, from where it comes again."""
    bad = Queue(f"{name}.bad")
    Producer(ours()).publish_many([1], routing_key=name)
    Producer(ours()).publish_many([2], routing_key=bad.name)
    connection = ours()
    channel, got = connection.channel(), []
    Consumer(channel, [Queue(name), bad], on_message=got.append, prefetch_count=2).consume()
    drain(connection, lambda: len(got) == 2)
    client.set(bad.name, "no list")
    for _ in range(2):
        with pytest.raises(exceptions.PreconditionFailed, match="WRONGTYPE"):
            channel.basic_recover(requeue=True)
    drain(connection, lambda: len(got) == 3)
    assert got[2].payload == 1
    client.delete(bad.name)
    channel.basic_recover(requeue=True)  # what could not be put back, and what came again
    drain(connection, lambda: len(got) == 5)
    assert sorted(message.payload for message in got[3:]) == [1, 2]


def left_of(client: Any, name: str, keys: Any, unanswered: list[Any], lease: bool = True) -> Handover:
    """Return what a lost connection leaves: a message that it had for good, a claim, and commands without a reply."""
    left = Handover(keys)
    state = RedisChannel(1, OrderStrategy(ROUND_ROBIN), True)
    state.unreturned.append(Lease("taken", name, name, json.dumps(envelope("taken")).encode()))
    state.fetching.append(Claim(keys, Tags(1), [name], 1, lease))
    left.abandon(left, [state], unanswered, are_noted=True, holds=False)
    return left


@pytest.mark.parametrize("right", ["hmget", "hdel"])
def test_what_cannot_be_brought_back_has_nothing_else_brought_back_twice(ours, client, redis_url, name, right):
    client.execute_command("ACL", "SETUSER", "some", "reset", "on", ">pw", "+@all", f"-{right}", "~*", "&*")
    transport = connected(ours(redis_url.replace("//", "//some:pw@")))
    keys = transport._protocol.keys
    left = left_of(client, name, keys, [(print, pack_command(("HDEL", keys.unacked, "")), 1)])
    for _ in range(3):
        with pytest.raises(exceptions.AccessRefused, match=f"(?i){right}"):
            transport._stream.perform(left.bring_back())
        assert payloads(client, name) == ["taken"]
        assert left.is_holding
    client.execute_command("ACL", "SETUSER", "some", f"+{right}")
    transport._stream.perform(left.bring_back())
    assert not left.is_holding
    assert payloads(client, name) == ["taken"]


@pytest.fixture
def unreplicated(start_server: Any) -> Iterator[redis.Redis]:
    """A server that takes no writes, until it is told to."""
    server = start_server(RedisServer)
    with redis.Redis(port=server.port) as client:
        client.config_set("min-replicas-to-write", 1)
        yield client


def url_of(client: redis.Redis) -> str:
    return f"redis://127.0.0.1:{client.connection_pool.connection_kwargs['port']}/0"


def test_acks_that_a_server_refuses_for_the_moment_are_made_later(ours, unreplicated, name):
    transport = connected(ours(url_of(unreplicated)))
    keys = transport._protocol.keys
    unreplicated.config_set("min-replicas-to-write", 0)
    lease(unreplicated, "acked", "", name, 0)
    unreplicated.config_set("min-replicas-to-write", 1)
    left = Handover(keys)
    left.abandon(left, [], [(print, pack_acknowledgement(keys, ["acked"]), ACK_REPLIES)], are_noted=True, holds=False)
    for _ in range(2):
        with pytest.raises(exceptions.MessageNacked, match="NOREPLICAS"):
            transport._stream.perform(left.bring_back())
    unreplicated.config_set("min-replicas-to-write", 0)
    transport._stream.perform(left.bring_back())
    assert not left.is_holding
    assert not unreplicated.exists("unacked", "unacked_index")


@pytest.mark.parametrize("count", [1, 2 * MIN_FOLLOWING])
def test_an_ack_that_the_server_refuses_for_the_moment_is_made_again(ours, unreplicated, name, count):
    unreplicated.config_set("min-replicas-to-write", 0)
    connection = ours(url_of(unreplicated))
    channel, got = connection.channel(), []
    Producer(channel).publish_many(range(count), routing_key=name, declare=[Queue(name)])
    with Consumer(channel, Queue(name), on_message=got.append, prefetch_count=count):
        drain(connection, lambda: len(got) == count)
        unreplicated.config_set("min-replicas-to-write", 1)
        for message in got:
            message.ack()
        with pytest.raises(exceptions.MessageNacked, match="NOREPLICAS"):
            drain(connection, lambda: False)
        unreplicated.config_set("min-replicas-to-write", 0)

        def are_made() -> bool:
            with suppress(TimeoutError, exceptions.MessageNacked):  # they may have been sent in several parts
                connection.drain_events(timeout=0.01)
            return not unreplicated.exists("unacked", "unacked_index")

        wait_until(are_made, 20, "the acks are not made")
    assert not unreplicated.exists(name)


def test_an_ack_that_is_refused_is_made_again_once_and_what_is_no_refusal_for_now_is_not():
    made_again: list[bytes] = []
    state = RedisChannel(1, OrderStrategy(ROUND_ROBIN), True)
    state.make_again = made_again.append
    for text in ("BUSY a script", "MISCONF the disk", "NOREPLICAS good ones", "WRONGTYPE", "NOPERM this user"):
        on_reply = Acknowledgement(state, text.encode())
        for reply in (ReplyError(text), 1, ReplyError(text)):
            on_reply(reply)
        assert text in str(state.error)
    assert made_again == [b"BUSY a script", b"MISCONF the disk", b"NOREPLICAS good ones"]


def test_nothing_is_kept_of_a_get_that_the_server_refuses_for_the_moment(ours, unreplicated, name):
    connection = ours(url_of(unreplicated))
    for _ in range(2):
        with pytest.raises(exceptions.MessageNacked, match="NOREPLICAS"):
            Queue(name)(connection.default_channel).get(no_ack=True)
    (state,) = connection.transport._channels.values()
    assert not state.fetching


def test_claim_without_leases_leaves_nothing_to_ask_for(ours, client, redis_url, name):
    client.execute_command("ACL", "SETUSER", "some", "reset", "on", ">pw", "+@all", "-hmget", "~*", "&*")
    transport = connected(ours(redis_url.replace("//", "//some:pw@")))
    left = left_of(client, name, transport._protocol.keys, [], lease=False)
    transport._stream.perform(left.bring_back())
    assert not left.is_holding
    assert payloads(client, name) == ["taken"]


def test_a_channel_whose_messages_are_refused_keeps_no_other_from_being_closed():
    def ignore(*arguments: Any) -> None:
        """Nobody waits."""

    protocol = RedisProtocol(Settings(), Options.of({}), ("a database of this test",), ignore, ignore)
    numbers = [protocol.open_channel() for _ in range(2)]
    for number in numbers:
        state = protocol.channels[number]
        state.outstanding[number] = Lease(f"tag-{number}", "q", "q", b"{}")
    plan = protocol.end()
    assert f"tag-{numbers[0]}".encode() in next(plan).commands[0]
    assert f"tag-{numbers[1]}".encode() in plan.send([[0, ReplyError("WRONGTYPE no list"), 0]]).commands[0]
    with pytest.raises(exceptions.PreconditionFailed):
        plan.send([[1]])
    assert list(protocol.channels) == numbers[:1]


def test_a_message_that_is_fetched_where_no_thread_can_be_started_goes_back(ours, client, name, monkeypatch):
    Producer(ours().channel()).publish("x", routing_key=name)
    connection = ours()
    connection.connect()

    def refuse(thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", refuse)
        with pytest.raises(RuntimeError):
            Queue(name)(connection.channel()).get()
    connection.close()
    assert client.llen(name) == 1


def test_connection_is_dropped_where_no_thread_can_be_started(ours, client, name, monkeypatch):
    """As when the interpreter ends: another connection is to look after what is held, and cannot start its thread."""
    one, other = connected(ours()), connected(ours())
    Producer(ours()).publish(1, routing_key=name)
    number = one.open_channel()
    delivery = one.get(number, name, False)

    def refuse(thread: Any) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", refuse)
        one.collect()
    assert not one.connected
    assert all(not stream.is_open for stream in one._streams)
    assert not other._protocol.attends
    other.consume(other.open_channel(), f"{name}.other", "", False, False, None)  # which looks after it, by a thread
    assert other._protocol.attends
    assert other._maintainer is not None
    assert delivery is not None
