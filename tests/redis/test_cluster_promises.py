"""What a connection to a Redis Cluster promises while a node refuses, is silent, or has no master for a slot."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from itertools import islice
from types import SimpleNamespace

import pytest
from hiredis import ReplyError

from kombulite import Connection, Exchange, Queue
from kombulite._core import pack_command
from kombulite.brokers.redis.claims import Consumer
from kombulite.brokers.redis.cluster.claims import ClusterClaimQueue
from kombulite.brokers.redis.cluster.gather import gather
from kombulite.brokers.redis.cluster.handover import ClusterHandover
from kombulite.brokers.redis.cluster.keys import ClusterKeys, tag_of
from kombulite.brokers.redis.cluster.known import MAX_REFRESH_INTERVAL, MIN_REFRESH_INTERVAL
from kombulite.brokers.redis.cluster.listening import ListeningNodes
from kombulite.brokers.redis.cluster.nodes import Nodes
from kombulite.brokers.redis.cluster.slots import SlotMap, slot_of
from kombulite.brokers.redis.cluster.units import ASKING, CACHING, EXEC, MULTI, Unit
from kombulite.brokers.redis.held_acks import MIN_FOLLOWING
from kombulite.brokers.redis.leases import Tags
from kombulite.brokers.redis.options import ROUND_ROBIN, Options, OrderStrategy
from kombulite.brokers.redis.plans import LOST
from kombulite.brokers.redis.plans import Exchange as Sent
from kombulite.exceptions import BatchPublishError, MessageNacked, RecoverableConnectionError
from tests.proxy import Cut, Direction, Proxy
from tests.redis.conftest import drain
from tests.redis.test_cluster import LAYOUTS, OWN, connect, move, receive, slot_in
from tests.servers import wait_until

PATIENCE = 20.0  # seconds


def names_on_all(cluster, base):
    """A queue's name for each master."""
    found = {}
    for number in range(1000):
        found.setdefault(cluster.master_of(slot_of(tag_of(f"{base}{number}"))).port, f"{base}{number}")
        if len(found) == len(cluster.masters):
            break
    return [found[node.port] for node in cluster.masters]


def length(cluster, queue):
    return cluster.master_of(slot_of(tag_of(queue))).ask("LLEN", f"{tag_of(queue)}{queue}")


@contextmanager
def on_its_way(cluster, slot, *only):
    """Have a slot on its way to another node, with all its keys there, or ``only`` some."""
    source = cluster.master_of(slot)
    target = next(node for node in cluster.masters if node is not source)
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id)
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.node_id)
    migrate = "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS"
    if only:
        source.ask(*migrate, *only)
    try:
        while not only and (found := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100)):
            source.ask(*migrate, *found)
        yield target
    finally:
        while found := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.ask(*migrate, *found)
        cluster.finish_move(slot, target)


# --- one slot, and the others


@contextmanager
def without_a_master(cluster, slot):
    """Take a slot away from the cluster, which serves the others."""
    master = cluster.master_of(slot)
    for node in cluster.masters:
        node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    for node in cluster.masters:
        node.ask("CLUSTER", "DELSLOTS", slot)

    def is_served(node):
        return any(first <= slot <= last for first, last, *_ in node.ask("CLUSTER", "SLOTS"))

    try:
        yield lambda: master.ask("CLUSTER", "ADDSLOTS", slot)
    finally:
        if not is_served(master):
            master.ask("CLUSTER", "ADDSLOTS", slot)
        cluster.wait_for(is_served, "the slot is not known to be served")
        for node in cluster.masters:
            node.ask("CONFIG", "SET", "cluster-require-full-coverage", "yes")
        cluster.wait_until_ok()


def test_a_slot_without_a_master_keeps_the_others_waiting_for_nothing(cluster):
    down, up = names_on_all(cluster, "apart")[:2]
    with connect(cluster, OWN) as connection:
        producer, other = connection.Producer(), connection.Producer(connection.channel())
        producer.publish(0, routing_key=down, declare=[Queue(down), Queue(up)])
        nodes = connection.transport._stream
        waiting = threading.Thread(target=producer.publish, args=(1,), kwargs={"routing_key": down, "timeout": 60})
        with without_a_master(cluster, slot_of(tag_of(down))) as give_back:
            waiting.start()
            wait_until(lambda: nodes.cluster.is_stale, PATIENCE, "the publish does not wait")
            other.publish(2, routing_key=up)
            assert length(cluster, up) == 1
            assert waiting.is_alive()
            give_back()
            waiting.join(60)
        assert not waiting.is_alive()
        assert receive(connection, Queue(down), 2) == [0, 1]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class SlowNode:
    """A stand-in for a stream: each answer takes a second, and is that it is too soon."""

    address = ("127.0.0.1", 1)
    is_open = True

    def __init__(self, clock):
        self.clock = clock
        self.timeouts = []

    is_waiting = False

    def exchange(self, commands, replies, timeout):
        self.timeouts.append(timeout)
        self.clock.now += 1
        return [ReplyError("TRYAGAIN")] * replies

    def post(self, data, replies, on_reply, more=False, may_repeat=False, timeout=None):
        self.timeouts.append(timeout)
        self.clock.now += 1
        for _ in range(replies):
            on_reply(1)

    def wait_for_replies(self, timeout):
        self.timeouts.append(timeout)

    def poll(self):
        pass

    def is_alive(self):
        return True

    def cap_timeout(self, seconds):
        pass

    def call(self, *command, timeout):
        self.timeouts.append(timeout)
        self.clock.now += 1
        return [[0, 16383, [self.address[0].encode(), self.address[1], b"id"]]]


PUSH = pack_command(("LPUSH", "{q}:q", "x"))


@pytest.fixture
def slow(monkeypatch):
    """A connection to a cluster of one node, which is slow, and that node."""
    transport, clock = Connection("rediscluster://").transport, Clock()
    clock.now = 1.0
    for module in ("nodes", "gather", "known"):
        monkeypatch.setattr(f"kombulite.brokers.redis.cluster.{module}.monotonic", clock)
    nodes, node = transport._stream, SlowNode(clock)
    nodes.streams[node.address] = node
    nodes.cluster.slots.owners[:] = [node.address] * len(nodes.cluster.slots.owners)
    return transport, nodes, node


def test_all_tries_of_a_command_share_one_deadline(slow):
    _, nodes, node = slow
    (reply,) = nodes.exchange([PUSH], 3)
    assert str(reply) == "TRYAGAIN"
    assert node.timeouts == [3, 2, 1]


def test_all_requests_of_a_plan_share_one_deadline(slow, monkeypatch):
    _, nodes, node = slow

    def exchange(commands, replies, timeout):
        node.timeouts.append(timeout)
        node.clock.now += 1
        return [1] * replies

    def push_for_ever():
        while True:
            yield Sent([PUSH], 1)

    monkeypatch.setattr(node, "exchange", exchange)
    with pytest.raises(RecoverableConnectionError, match="did not answer in time"):
        nodes.perform(push_for_ever(), 3)
    assert node.timeouts == [3, 2, 1]
    assert nodes.streams, "a node that was not asked is not lost"


def test_the_slots_are_read_less_often_where_nothing_changes(slow, monkeypatch):
    _, nodes, node = slow
    cluster, pauses, reply = nodes.cluster, [], node.call(timeout=1.0)
    monkeypatch.setattr(node, "call", lambda *command, timeout: reply)
    cluster.slots.owners[0] = None
    for _ in range(8):
        cluster.read(node, 1.0)
        before = node.clock.now
        while not cluster.may_read:
            node.clock.now += 0.001
        pauses.append(node.clock.now - before)
    assert pauses[0] == pytest.approx(MIN_REFRESH_INTERVAL, abs=0.002)
    assert pauses[1] > 1.5 * pauses[0]
    assert pauses[-1] == pytest.approx(MAX_REFRESH_INTERVAL, abs=0.002)
    cluster.moved(0, ("127.0.0.1", 2))
    assert cluster.may_read
    cluster.read(node, 1.0)
    node.clock.now += MIN_REFRESH_INTERVAL + 0.001
    assert cluster.may_read


def test_what_precedes_a_command_takes_of_its_time(slow):
    _, nodes, node = slow
    nodes.post_once(slot_of("{q}:q"), PUSH, lambda reply: None, later=True)
    nodes.cluster.is_stale = True
    nodes.exchange([PUSH], 5)
    assert node.timeouts == [1, 4, 3, 2, 1], "the slots, what was refused before, and three tries"


def test_a_publish_takes_news_within_its_timeout(slow):
    transport, nodes, node = slow
    nodes.cluster.is_stale = True
    transport._take_news("exchange", 0.5)
    assert node.timeouts == [0.5]


def test_a_command_that_is_not_waited_for_is_sent_within_the_cap(slow):
    _, nodes, node = slow
    nodes.cap_timeout(2)
    nodes.post_once(slot_of("{q}:q"), PUSH, lambda reply: None)
    assert node.timeouts == [2]


def test_what_goes_to_several_nodes_is_sent_within_the_deadline(slow):
    _, _, node = slow
    other = SlowNode(node.clock)
    gather({node: [PUSH], other: [PUSH]}, node.clock.now + 4, lambda stream, replies: None, print)
    assert (node.timeouts, other.timeouts) == ([4, 2], [3, 2])


def test_a_node_that_another_thread_finds_lost_has_not_replied(slow):
    _, nodes, node = slow
    other, lost = SlowNode(node.clock), []
    other.address = "127.0.0.1", 2
    other.post = lambda *arguments, **options: None
    nodes.streams[other.address] = other
    nodes.cluster.slots.owners[slot_of("{a}:a")] = other.address
    nodes._lose = lambda stream, error: lost.append(stream)
    with pytest.raises(RecoverableConnectionError):
        nodes.exchange([PUSH, pack_command(("LPUSH", "{a}:a", "x"))], 5)
    assert lost == [other]


def test_a_node_whose_connection_is_lost_announces_slots_again(slow):
    _, nodes, node = slow
    listening = ListeningNodes(nodes.cluster, print, print, print, print, False)
    listening.streams[node.address] = node
    replies = {}
    node.post = lambda data, count, on_reply, *others: replies.update({data: on_reply})
    exists, subscribe = pack_command(("EXISTS", "{q}:q")), pack_command(("SSUBSCRIBE", "{q}:q"))
    for _ in range(2):
        listening.post(exists, 1, print)
        replies.pop(subscribe).lost()
    listening.subscribe("{q}:/0.topic")
    channel = pack_command(("SSUBSCRIBE", "{q}:/0.topic"))
    replies.pop(channel).lost()
    listening.poll()
    replies.pop(channel)(ReplyError("NOPERM no permissions to access a channel"))
    listening.poll()
    listening.post(exists, 1, print)
    replies.pop(subscribe)(ReplyError("NOPERM no permissions to access a channel"))
    listening.subscribe_again(node)
    listening.post(exists, 1, print)
    assert subscribe not in replies, "it was refused"


def test_a_node_that_was_being_opened_when_a_signal_came_is_opened_again(monkeypatch):
    """In the thread that needs it, because no other can be started."""
    nodes, outcomes = Connection("rediscluster://").transport._stream, [KeyboardInterrupt(), OSError("down")]

    def connect(address):
        raise outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]  # it may try more than once

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr("kombulite.brokers.redis.cluster.openings.DOWN_PAUSE", 0.0)
    nodes._openings._connect = connect
    with pytest.raises(KeyboardInterrupt):
        nodes.connect()
    with pytest.raises(RecoverableConnectionError, match="down"):
        nodes.connect()


def test_a_node_that_cannot_be_reached_keeps_no_command_from_the_others(slow, monkeypatch):
    _, nodes, node = slow
    tried, partial = [], []

    def open_late(address, timeout):
        tried.append(timeout)
        node.clock.now += timeout
        raise RecoverableConnectionError("cannot be reached")

    def publish():
        yield Sent([pack_command(("LPUSH", f"{{{name}}}:{name}", "x")) for name in "abq"], 3, partial)

    monkeypatch.setattr(nodes, "_open", open_late)
    monkeypatch.setattr(node, "exchange", lambda commands, replies, timeout: [1] * replies)
    for name in "ab":
        nodes.cluster.slots.owners[slot_of(f"{{{name}}}:{name}")] = ("127.0.0.1", 2)
    with pytest.raises(RecoverableConnectionError):
        nodes.perform(publish(), 0.125)
    assert tried == [0.0625], "half of the time, and once"
    assert partial == [LOST, LOST, 1]


def test_what_a_silent_node_does_not_take_ends_a_publish_in_its_time(cluster):
    with connect(cluster, OWN, socket_timeout=120) as connection:
        producer, _ = bound_on_all(cluster, connection, "huge")
        node = cluster.masters[0]
        late = threading.Timer(3 * PATIENCE, node.resume)  # before the limit of the connection
        node.pause()
        late.start()
        try:
            with pytest.raises((RecoverableConnectionError, OSError)):
                producer.publish(b"x" * (12 << 20), routing_key="key", timeout=1)
            assert late.is_alive()
        finally:
            late.cancel()
            node.resume()
            cluster.wait_until_ok()


# --- a node that cannot be reached


@pytest.fixture
def cut(cluster):
    """Cuts the network between clients and the first master: what is sent there gets lost, and nobody says so."""
    master = cluster.masters[0]
    with Proxy(master.port) as network:
        master.ask("CONFIG", "SET", "cluster-announce-port", network.port)
        cluster.wait_for(lambda node: network.port in cluster.serving(node), "the network is not announced")
        try:
            yield network
        finally:
            master.ask("CONFIG", "SET", "cluster-announce-port", 0)
            cluster.wait_for(lambda node: network.port not in cluster.serving(node), "the network is announced still")


def silence(network):
    network.deaf = True
    network.silence()


def heal(network):
    network.deaf = False
    network.reset()


def test_a_silent_node_keeps_no_ack_waiting_that_others_were_to_follow(cluster, cut):
    """Though the thread that is to send it looks after the leases of that node, and the callback goes on."""
    away, here = names_on_all(cluster, "chores")[:2]
    left = []
    with connect(cluster, OWN, socket_timeout=6 * PATIENCE, unacked_restore_interval=1) as connection:
        Queue(away)(connection.channel()).declare()
        connection.Producer().publish_many(range(2 * MIN_FOLLOWING), routing_key=here, declare=[Queue(here)])

        def streams_of_chores():
            chores = list(connection.transport._maintainer._streams)
            return [found for nodes in chores if (found := nodes.streams.get(("127.0.0.1", cut.port))) is not None]

        def are_waiting():
            return any(stream.is_waiting for stream in streams_of_chores())

        def settle(message):
            if not left:
                wait_until(streams_of_chores, PATIENCE, "the chores are not connected to the node")
                silence(cut)
                wait_until(are_waiting, PATIENCE, "the chores do not wait for the node")
                message.ack()
                wait_until(lambda: leased(cluster, here) < 2 * MIN_FOLLOWING, PATIENCE, "the ack waits")
                left.append(message)

        queues = [Queue(away), Queue(here)]
        try:
            with connection.Consumer(queues, on_message=settle, prefetch_count=4 * MIN_FOLLOWING):
                drain(connection, lambda: left, timeout=3 * PATIENCE)
        finally:
            heal(cut)


def leased(cluster, queue):
    return cluster.master_of(slot_of(tag_of(queue))).ask("HLEN", f"{tag_of(queue)}unacked")


@pytest.mark.parametrize("prefetch_count", [1, 100])
def test_a_silent_node_keeps_no_message_of_the_others_waiting(cluster, cut, prefetch_count):
    """Neither before it is noticed, nor while no connection to it can be opened."""
    away, here = names_on_all(cluster, "silent")[:2]
    received = []

    def note(message):
        received.append(message.payload)
        message.ack()

    with (
        connect(cluster, OWN, socket_timeout=1, health_check_interval=0.5) as consumer,
        connect(cluster, OWN) as publisher,
    ):
        producer = publisher.Producer()
        producer.publish(0, routing_key=here, declare=[Queue(away), Queue(here)])
        with consumer.Consumer([Queue(away), Queue(here)], on_message=note, prefetch_count=prefetch_count):
            drain(consumer, lambda: received)
            silence(cut)
            lost = consumer.transport._stream.streams["127.0.0.1", cut.port]
            number = 0
            while lost.is_open or number < 20:
                number += 1
                producer.publish(number, routing_key=here)
                drain(consumer, lambda: received[-1] == number)  # noqa: B023
            assert consumer.connected
            heal(cut)
            producer.publish("back", routing_key=away)
            drain(consumer, lambda: received[-1] == "back")
        assert received[:-1] == list(range(number + 1))


def test_a_silent_node_keeps_no_thread_of_the_same_connection_waiting(cluster, cut):
    away, here = names_on_all(cluster, "shared")[:2]
    with connect(cluster, OWN, socket_timeout=60) as connection:
        for name in (away, here):
            connection.Producer().publish(0, routing_key=name, declare=[Queue(name)])
        silence(cut)
        failures = []

        def publish():
            try:
                connection.Producer(connection.channel()).publish(1, routing_key=away, timeout=PATIENCE)
            except (RecoverableConnectionError, OSError) as error:
                failures.append(error)

        waiting = threading.Thread(target=publish)
        waiting.start()
        stream = connection.transport._stream.streams["127.0.0.1", cut.port]
        wait_until(lambda: stream.is_waiting, PATIENCE, "the publish does not wait")
        for number in range(1, 4):
            connection.Producer().publish(number, routing_key=here, timeout=PATIENCE)
        assert length(cluster, here) == 4
        assert waiting.is_alive()
        heal(cut)
        waiting.join(PATIENCE)
        assert len(failures) == 1


def test_a_claim_whose_reply_was_lost_comes_back_and_no_connection_with_it(cluster, cut):
    away, here = names_on_all(cluster, "taken")[:2]
    received = []
    with connect(cluster, OWN) as consumer, connect(cluster, OWN) as publisher:
        publisher.Producer().publish("first", routing_key=away, declare=[Queue(away), Queue(here)])
        with consumer.Consumer([Queue(away), Queue(here)], on_message=received.append):
            drain(consumer, lambda: received)
            received[0].ack()
            consumer.drain(0.01)
            lost = consumer.transport._stream.streams["127.0.0.1", cut.port]
            cut.cut = Cut(Direction.REPLY, 1, b"EVALSHA")
            publisher.Producer().publish("second", routing_key=away)
            drain(consumer, lambda: not lost.is_open)
            cut.cut = None
            drain(consumer, lambda: len(received) == 2)
            received[1].ack()
        assert [message.payload for message in received] == ["first", "second"]
        assert consumer.counters.reconnects == 0
        assert length(cluster, away) == 0


def test_what_a_get_may_have_taken_comes_back(cluster, cut):
    away = names_on_all(cluster, "got")[0]
    with connect(cluster, OWN) as connection:
        connection.Producer().publish("x", routing_key=away, declare=[Queue(away)])
        channel = connection.channel()
        assert channel.basic_get(away).requeue() is None
        cut.cut = Cut(Direction.REPLY, 1, b"EVALSHA")
        with pytest.raises((RecoverableConnectionError, OSError)):
            channel.basic_get(away)
        cut.cut, found = None, []
        wait_until(lambda: found.append(channel.basic_get(away)) or found[-1], PATIENCE, "it does not come back")
        found[-1].ack()


# --- a slot on its way


def test_each_command_that_is_sent_ahead_of_its_slot_says_so():
    first, second = pack_command(("ZREM", "{q}:index", "tag")), pack_command(("HDEL", "{q}:unacked", "tag"))

    def sent(*commands):
        unit = Unit(1, list(commands))
        unit.take([ReplyError("ASK 1 127.0.0.1:1")] * len(commands))
        packed = unit.packed
        unit.take(["OK" if each == ASKING else number for number, each in enumerate(packed)])
        assert "OK" not in unit.replies
        assert len(unit.replies) == len(commands)
        return packed

    assert sent(first, second) == [ASKING, first, ASKING, second]
    assert sent(MULTI, first, EXEC) == [ASKING, MULTI, first, EXEC]
    assert sent(CACHING, first) == [CACHING, ASKING, first]


@LAYOUTS
def test_a_message_is_acknowledged_while_its_slot_is_on_its_way(cluster, layout):
    with connect(cluster, layout) as connection:
        connection.Producer().publish("x", routing_key="way", declare=[Queue("way")])
        channel = connection.channel()
        message = channel.basic_get("way")
        with on_its_way(cluster, slot_in(layout, "way")) as target:
            message.ack()
            connection.drain(0.01)

            def is_acknowledged():
                connection.drain(0.01)
                return not [key for key in target.ask("KEYS", "*") if "unacked" in key]

            wait_until(is_acknowledged, PATIENCE, "the message is not acknowledged before the slot has moved")
        assert channel.basic_get("way") is None


@LAYOUTS
@pytest.mark.parametrize("count", [1, 2 * MIN_FOLLOWING])
def test_an_ack_that_a_node_refuses_for_the_moment_is_made_again(cluster, layout, count):
    def leases():
        return [key for node in cluster.masters for key in node.ask("KEYS", "*") if "unacked" in key]

    def require_replicas(number):
        for node in cluster.masters:
            node.ask("CONFIG", "SET", "min-replicas-to-write", number)

    def are_made():
        with suppress(MessageNacked, TimeoutError):  # the refusals of several nodes come one after the other
            connection.drain_events(timeout=0.01)
        return not leases()

    names, got = names_on_all(cluster, "refused"), []
    with connect(cluster, layout) as connection:
        channel = connection.channel()
        for name in names:
            connection.Producer().publish_many(range(count), routing_key=name, declare=[Queue(name)])
        with connection.Consumer([Queue(name) for name in names], channel=channel, on_message=got.append):
            drain(connection, lambda: len(got) == count * len(names))
            require_replicas(1)
            try:
                for message in got:
                    message.ack()
                with pytest.raises(MessageNacked, match="NOREPLICAS"):
                    drain(connection, lambda: False)
            finally:
                require_replicas(0)
            wait_until(are_made, PATIENCE, "the acks are not made")
        assert all(channel.basic_get(name) is None for name in names)


# --- a publish in parts


def bound_on_all(cluster, connection, base):
    names = names_on_all(cluster, base)
    exchange = Exchange(base, "direct")
    producer = connection.Producer(exchange=exchange)
    queues = [Queue(name, exchange, routing_key="key") for name in names]
    producer.publish(0, routing_key="key", declare=queues)
    return producer, [names[0], *sorted(names[1:])]


def test_a_publish_says_which_queues_have_it_and_retry_brings_it_to_the_others(cluster):
    with connect(cluster, OWN) as connection:
        producer, (full, *others) = bound_on_all(cluster, connection, "parts")
        node, errors = cluster.masters[0], []
        node.ask("CONFIG", "SET", "maxmemory", 1)

        def note(error, pause):
            errors.append(str(error))
            node.ask("CONFIG", "SET", "maxmemory", 0)

        try:
            with pytest.raises(MessageNacked, match=rf"refused for {full}; taken by {others[0]}, {others[1]}$"):
                producer.publish(1, routing_key="key")
            producer.publish(
                2, routing_key="key", retry=True, retry_policy={"errback": note, "max_retries": 3, "interval_start": 0}
            )
        finally:
            node.ask("CONFIG", "SET", "maxmemory", 0)
        assert len(errors) == 1
        assert receive(connection, Queue(full), 2) == [0, 2]
        for name in others:
            assert receive(connection, Queue(name), 3) == [0, 1, 2]
            assert length(cluster, name) == 0


def test_a_retry_does_not_double_a_message_whose_only_queue_left_has_it(cluster):
    with connect(cluster, OWN) as connection:
        producer, names = bound_on_all(cluster, connection, "only")
        node, errors = cluster.masters[0], []
        node.ask("CONFIG", "SET", "maxmemory", 1)

        def unbind(error, pause):
            errors.append(str(error))
            node.ask("CONFIG", "SET", "maxmemory", 0)
            for name in (names[0], names[2]):
                connection.default_channel.queue_unbind(name, "only", "key")
            producer.publish(2, routing_key="key")  # it reads the bindings, so that the retry need not

        try:
            policy = {"errback": unbind, "max_retries": 3, "interval_start": 0}
            producer.publish(1, routing_key="key", retry=True, retry_policy=policy)
        finally:
            node.ask("CONFIG", "SET", "maxmemory", 0)
        assert len(errors) == 1
        assert [length(cluster, name) for name in names] == [1, 3, 2]
        assert receive(connection, Queue(names[1]), 3) == [0, 1, 2]


@pytest.mark.parametrize("in_a_batch", [False, True])
def test_what_nodes_have_taken_is_not_sent_to_them_again_after_another_was_lost(cluster, in_a_batch):
    with connect(cluster, OWN, socket_timeout=0.5) as connection:
        producer, (silent, *others) = bound_on_all(cluster, connection, "lost")
        node, errors = cluster.masters[0], []
        node.pause()

        def note(error, pause=0.0):
            errors.append(str(error))
            node.resume()
            cluster.wait_until_ok()

        policy = {"errback": note, "max_retries": 10}
        try:
            if in_a_batch:
                with producer.batch() as batch:
                    for number in (1, 2, 3):
                        producer.publish(number, routing_key="key")
                    with pytest.raises((RecoverableConnectionError, OSError)):
                        batch.flush()
                    note("lost")
                    connection.ensure(producer, batch.flush, **policy)()
            else:
                producer.publish(1, routing_key="key", retry=True, retry_policy=policy)
        finally:
            node.resume()
            cluster.wait_until_ok()
        sent = [0, 1, 2, 3] if in_a_batch else [0, 1]
        assert errors
        if not in_a_batch:
            assert f"taken by {', '.join(others)}" in errors[0]
        for name in others:
            assert length(cluster, name) == len(sent)
            assert receive(connection, Queue(name), len(sent)) == sent
        assert length(cluster, silent) >= len(sent), "what the lost node had taken is not known"


def test_a_publish_after_one_that_failed_goes_to_all_queues(cluster):
    with connect(cluster, OWN) as connection:
        producer, (full, *others) = bound_on_all(cluster, connection, "again")
        node = cluster.masters[0]
        node.ask("CONFIG", "SET", "maxmemory", 1)
        try:
            with pytest.raises(MessageNacked):
                producer.publish(1, routing_key="key")
        finally:
            node.ask("CONFIG", "SET", "maxmemory", 0)
        producer.publish(1, routing_key="key")
        assert [length(cluster, name) for name in (full, *others)] == [2, 3, 3]


def test_a_batch_names_the_queues_that_refuse_and_those_that_take(cluster):
    with connect(cluster, OWN) as connection:
        producer, (full, *others) = bound_on_all(cluster, connection, "batched")
        node = cluster.masters[0]
        node.ask("CONFIG", "SET", "maxmemory", 1)
        try:
            with pytest.raises(BatchPublishError) as caught:
                producer.publish_many([1, 2], routing_key="key")
        finally:
            node.ask("CONFIG", "SET", "maxmemory", 0)
        assert [index for index, _ in caught.value.refused] == [0, 1]
        assert f"refused for {full}; taken by {', '.join(others)}" in str(caught.value.refused[1][1])
        assert [length(cluster, name) for name in (full, *others)] == [1, 3, 3]


# --- chores


def test_a_key_of_the_wrong_type_keeps_no_other_queue_from_its_chores(cluster):
    spoilt, sound = names_on_all(cluster, "spoilt")[:2]
    sound_node, index = cluster.master_of(slot_of(tag_of(sound))), f"{tag_of(sound)}unacked_index"
    cluster.master_of(slot_of(tag_of(spoilt))).ask("SET", f"{tag_of(spoilt)}unacked_index", "spoilt")
    options = {"unacked_restore_interval": 0.05, "unacked_restore_throttle": 1}
    with connect(cluster, OWN) as other, connect(cluster, OWN, **options) as connection:
        other.Producer().publish("kept", routing_key=sound, declare=[Queue(sound)])
        message = other.default_channel.basic_get(sound)
        sound_node.ask("ZADD", index, "XX", 1, message.delivery_tag)  # it ran out long ago
        received = []
        with connection.Consumer([Queue(spoilt), Queue(sound)], no_ack=True, on_message=received.append):
            while not received:
                connection.drain_events(timeout=PATIENCE)
        assert received[0].payload == "kept"


def renewed_at(cluster, queue):
    """When the one lease of a queue was renewed last, by its node's clock."""
    _, score = cluster.master_of(slot_of(tag_of(queue))).ask(
        "ZRANGE", f"{tag_of(queue)}unacked_index", 0, 0, "WITHSCORES"
    )
    return float(score)


def wait_for_renewal(cluster, queue):
    before = renewed_at(cluster, queue)
    wait_until(lambda: renewed_at(cluster, queue) > before, PATIENCE, "the lease is not renewed")


def test_a_slot_without_a_master_keeps_no_lease_of_another_from_being_renewed(cluster):
    down, up = sorted(names_on_all(cluster, "renewed")[:2])
    with connect(cluster, OWN, visibility_timeout=3) as connection:
        for name in (down, up):
            connection.Producer().publish("x", routing_key=name, declare=[Queue(name)])
        messages = [connection.default_channel.basic_get(name) for name in (down, up)]
        with without_a_master(cluster, slot_of(tag_of(down))):
            wait_for_renewal(cluster, up)
            wait_for_renewal(cluster, up)
        for message in messages:
            message.ack()


def test_a_slot_without_a_master_keeps_no_message_of_another_from_coming_back(cluster):
    down, up = names_on_all(cluster, "restored")[:2]
    index = f"{tag_of(up)}unacked_index"
    options = {"unacked_restore_interval": 0.05, "unacked_restore_throttle": 1, "visibility_timeout": 3}
    with connect(cluster, OWN) as other, connect(cluster, OWN, **options) as connection:
        for name in (down, up):
            other.Producer().publish(name, routing_key=name, declare=[Queue(name)])
        left = other.default_channel.basic_get(up)
        received = []
        with connection.Consumer([Queue(down), Queue(up)], on_message=received.append):
            while not received:  # what is kept of a queue that is not served, is to be renewed first
                connection.drain_events(timeout=PATIENCE)
            with without_a_master(cluster, slot_of(tag_of(down))):
                cluster.master_of(slot_of(tag_of(up))).ask("ZADD", index, "XX", 1, left.delivery_tag)
                while len(received) < 2:
                    connection.drain_events(timeout=PATIENCE)
                assert received[1].payload == up
            for message in received:
                message.ack()


def test_a_slot_without_a_master_keeps_no_queue_of_another_from_being_kept(cluster):
    down, up = names_on_all(cluster, "kept")[:2]
    queues = [Queue(name, expires=6) for name in (down, up)]
    with connect(cluster, OWN) as connection:
        with connection.Consumer(queues, on_message=lambda message: None):
            node, record = cluster.master_of(slot_of(tag_of(up))), connection.transport._protocol.keys.record(up)
            with without_a_master(cluster, slot_of(tag_of(down))):
                for _ in range(2):
                    wait_until(lambda: node.ask("PTTL", record) < 5000, PATIENCE, "it does not expire at all")
                    wait_until(lambda: node.ask("PTTL", record) > 5000, PATIENCE, "the queue expires")


# --- claims


def names_on_one(cluster, base, count):
    """Names of queues that are in different slots of the first master."""
    names = (f"{base}{number}" for number in range(1000))
    mine = (name for name in names if cluster.master_of(slot_of(tag_of(name))) is cluster.masters[0])
    return list(islice(mine, count))


def test_the_queues_of_a_node_are_asked_in_one_step(cluster, monkeypatch):
    names = [f"asked{number}" for number in range(30)]
    with connect(cluster, OWN) as connection:
        producer, received, claims = connection.Producer(), [], []
        with producer.batch():
            for number in range(300):
                producer.publish(number, routing_key=names[number % 30])

        def counted(post):
            return lambda *arguments, **options: (claims.append(post), post(*arguments, **options))

        for verb in ("post_once", "post_to_master"):
            monkeypatch.setattr(Nodes, verb, counted(getattr(Nodes, verb)))
        with connection.Consumer([Queue(name) for name in names], on_message=received.append, prefetch_count=300):
            while len(received) < 300:
                connection.drain_events(timeout=PATIENCE)
        assert 3 <= len(claims) < 30, "at least one for each node, and fewer than one for each queue"
        for place in range(30):
            mine = [message.payload for message in received if message.payload % 30 == place]
            assert mine == list(range(place, 300, 30))


@pytest.mark.parametrize("refusal", ["ERR Script attempted to access a non local key", "NOSCRIPT No matching script"])
def test_a_node_that_refuses_late_is_asked_by_the_next_claim(refusal):
    """Its share of the credit may be taken by the others, which were asked meanwhile."""
    claims, posted = ClusterClaimQueue(False, OrderStrategy(ROUND_ROBIN), True), []
    nodes = SimpleNamespace(
        cluster=SimpleNamespace(timeout=1.0, slots=SlotMap()),
        takes_scripts=True,
        note_refused_script=lambda: None,
        post_to_master=lambda slot, data, on_reply: posted.append(on_reply),
        post_once=lambda slot, data, on_reply, later=False: posted.append(on_reply),
    )
    for name in "ab":
        claims.add(Consumer(f"consumer of {name}", name, False, False))
    claims.claim(nodes, ClusterKeys(Options(), "0"), Tags(60.0), 10, claims.claimed, False)
    (on_reply,) = posted
    claims.claiming.late_at = 0.0
    claims.set_aside()
    assert not claims.dirty_queues
    on_reply(ReplyError(refusal))
    assert len(posted) == 1
    assert claims.dirty_queues == {"a", "b"}
    assert not claims.under_way


@pytest.mark.parametrize("prefetch_count", [1, 100])
def test_a_slot_that_is_on_its_way_keeps_no_other_queue_waiting(cluster, prefetch_count):
    stuck, *others = [*names_on_one(cluster, "stuck", 3), *names_on_all(cluster, "free")[1:]]
    with connect(cluster, OWN) as connection:
        producer = connection.Producer()
        for name in (stuck, *others):
            producer.publish_many([name, name], routing_key=name)
        # One that was taken leaves keys that stay behind: what needs them all is told to try again.
        taken = connection.channel().basic_get(stuck)
        received = []

        def note(message):
            received.append(message.payload)
            message.ack()

        queues = [Queue(name) for name in (stuck, *others)]
        with connection.Consumer(queues, on_message=note, prefetch_count=prefetch_count):
            with on_its_way(cluster, slot_of(tag_of(stuck)), f"{tag_of(stuck)}{stuck}"):
                while len(received) < 2 * len(others):
                    connection.drain_events(timeout=PATIENCE)
                assert sorted(received) == sorted([*others, *others])
            taken.requeue()
            while len(received) < 2 * len(others) + 2:
                connection.drain_events(timeout=PATIENCE)
        assert received[-2:] == [stuck, stuck]


# --- connecting


def test_nodes_that_are_lost_while_a_connection_begins_are_connected_to_again(cluster, monkeypatch):
    begin = ClusterHandover.begin

    def lose(self, user):
        yield from begin(self, user)
        for stream in transport._stream.streams.values():
            stream.drop()

    with connect(cluster, OWN) as connection:
        transport = connection.transport
        monkeypatch.setattr(ClusterHandover, "begin", lose)
        connection.connect()
        monkeypatch.undo()
        assert transport is connection.transport
        connection.Producer().publish("x", routing_key="begun", declare=[Queue("begun")])
        assert receive(connection, Queue("begun"), 1) == ["x"]


@LAYOUTS
def test_an_ack_that_its_node_refuses_is_made_before_the_connection_closes(cluster, layout):
    """It is posted, and the node says MOVED: nobody else of this process comes to send it where the slot is now."""
    queue = Queue("closing")
    with connect(cluster, layout) as connection:
        connection.Producer().publish("once", routing_key="closing", declare=[queue])
        message = queue(connection).get()
        slot = slot_in(layout, "closing")
        move(cluster, slot)
        message.ack()
    prefix = "{shop}" if layout else "{closing}:"
    assert cluster.master_of(slot).ask("HLEN", f"{prefix}unacked") == 0
