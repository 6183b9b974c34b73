"""Faults of a Redis Cluster under load: nothing is lost that the cluster has kept, no consumer is deaf, nothing hangs.

A master that is killed may take with it what it had acknowledged and not replicated yet. So where one is killed,
publishes wait for a replica (``wait_replicas``).
"""

from __future__ import annotations

import time

import pytest

from kombulite import Connection, Exchange, Queue
from tests.proxy import Proxy
from tests.redis.cluster_ledger import Work
from tests.redis.test_cluster import LAYOUTS, OWN, move, slot_in
from tests.servers import RedisCluster, RedisNode, wait_until


@pytest.fixture(scope="module")
def six():
    """A cluster of three masters, each with a replica, that keep what they have."""
    with RedisCluster(masters=3, replicas=3, appendonly="yes") as cluster:
        yield cluster


def is_quiet(work):
    """Whether everything that was accepted came, and once."""
    assert not work.missing, work.summary
    assert not [message for message, count in work.received.items() if count > 1], work.summary
    return not work.errors


def move_slots(cluster, layout, times, at_once=False):
    with Work(cluster, layout) as work:
        work.run(100)
        for number in range(times):
            move(cluster, slot_in(layout, f"ledger{number % 12}"), at_once)
            work.run(10)
        work.settle()
    assert is_quiet(work), work.summary


def kill_masters(cluster, layout, times):
    with Work(cluster, {**layout, "wait_replicas": 1}) as work:
        work.run(100)
        for number in range(times):
            master = cluster.master_of(slot_in(layout, f"ledger{number % 12}"))
            master.kill()
            cluster.wait_until_ok()
            master.start()
            cluster.wait_until_ok()
            work.run(100)
        work.settle()
    assert not work.missing, work.summary
    return work


def test_slots_that_move_lose_and_double_nothing(six, at_once):
    move_slots(six, OWN, 6, at_once)


def test_replicas_are_waited_for_on_each_node_that_has_the_message(six):
    """Also if one of them took it only when it was sent again."""
    exchange = Exchange("waits", "direct")
    places = {number: six.master_of(slot_in(OWN, f"waits{number}")) for number in range(30)}
    stays = next(number for number in places if places[number] is six.masters[0])
    moves = next(number for number in places if places[number] is six.masters[1])
    queues = [Queue(f"waits{number}", exchange, routing_key="key") for number in (stays, moves)]

    def waits(node):
        return int(node.ask("INFO", "commandstats").get("cmdstat_wait", {"calls": 0})["calls"])

    with Connection(six.url, transport_options={"wait_replicas": 1}) as connection:
        producer = connection.Producer(exchange=exchange)
        producer.publish(1, routing_key="key", declare=queues)
        move(six, slot_in(OWN, f"waits{moves}"))
        before = [waits(six.masters[0]), waits(six.masters[2])]
        producer.publish(2, routing_key="key")
        assert waits(six.masters[0]) > before[0]
        assert waits(six.masters[2]) > before[1]


def test_a_master_that_is_killed_is_replaced(six):
    kill_masters(six, OWN, 1)


# --- the same for longer


@pytest.mark.soak
@pytest.mark.timeout(1800)
@LAYOUTS
def test_a_hundred_slots_move(six, layout, at_once):
    move_slots(six, layout, 100, at_once)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@LAYOUTS
def test_twenty_masters_are_killed(six, layout):
    kill_masters(six, layout, 20)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@LAYOUTS
def test_replicas_take_over_in_good_order(six, layout):
    with Work(six, layout) as work:
        work.run(100)
        for number in range(10):
            master = six.master_of(slot_in(layout, f"ledger{number % 12}"))
            (replica, *_) = six.replicas_of(master)
            six.promote(replica)
            six.wait_until_ok()
            work.run(100)
        work.settle()
    assert not work.missing, work.summary


@pytest.mark.soak
@pytest.mark.timeout(1800)
@LAYOUTS
def test_all_nodes_are_restarted(six, layout):
    with Work(six, layout) as work:
        for _ in range(3):
            work.run(100)
            for node in six.nodes:
                node.stop()
            for node in six.nodes:
                node.start()
            six.wait_until_ok()
        work.run(100)
        work.settle()
    assert not work.missing, work.summary


def silenced_until_replaced(six, slot):
    """Stop the master of a slot until another has its place. Returns it."""
    master = six.master_of(slot)
    other = next(node for node in six.nodes if node is not master)
    master.pause()
    wait_until(lambda: master.port not in six.serving(other), 30, "no failover")
    return master


@pytest.mark.soak
@pytest.mark.timeout(1800)
@LAYOUTS
def test_a_master_falls_silent(six, layout):
    with Work(six, {**layout, "socket_timeout": 2, "wait_replicas": 1}) as work:
        for number in range(3):
            work.run(100)
            master = silenced_until_replaced(six, slot_in(layout, f"ledger{number}"))
            work.run(10)  # slowly: the new master has no replica that could say that it has a message
            master.resume()
            six.wait_until_ok()
        work.settle()
    assert not work.missing, work.summary


@pytest.mark.soak
@pytest.mark.timeout(1800)
@LAYOUTS
def test_what_is_lost_without_a_wait_was_accepted_by_a_master_that_had_been_replaced(six, layout):
    """One that was silent does what has come meanwhile, and says so, before it learns that it is a master no more."""
    awakenings = []
    with Work(six, {**layout, "socket_timeout": 20}, timeout=20) as work:
        for number in range(6):
            work.run(50)
            master = silenced_until_replaced(six, slot_in(layout, f"ledger{number}"))
            resumed_at = time.monotonic()
            master.resume()
            wait_until(lambda gone=master: gone.ask("ROLE")[0] != "master", 30, "it does not give up")
            awakenings.append((resumed_at, time.monotonic()))
            six.wait_until_ok()
        work.end_producers()
        wait_until(lambda: work.is_still(5.0), 60, "messages come still")
    for message in work.missing:
        began_at, ended_at = work.accepted[message]
        assert any(began_at <= last and ended_at >= first for first, last in awakenings), work.summary


@pytest.mark.soak
@pytest.mark.timeout(1800)
@LAYOUTS
def test_the_network_between_clients_and_one_node_is_cut(layout):
    """The cluster itself stays whole, and chooses no other master."""
    with RedisCluster(masters=3) as cluster:
        master = cluster.master_of(slot_in(layout, "ledger0"))
        with Proxy(master.port) as network:
            master.ask("CONFIG", "SET", "cluster-announce-port", network.port)
            cluster.wait_for(lambda node: network.port in cluster.serving(node), "the network is not announced")
            with Work(cluster, {**layout, "socket_timeout": 2}) as work:
                for _ in range(3):
                    work.run(100)
                    before = sum(work.errors.values())
                    network.deaf = True
                    network.silence()
                    wait_until(lambda before=before: sum(work.errors.values()) > before, 60, "nobody notices")
                    network.deaf = False
                    work.run(100)
                work.settle()
            assert not work.missing, work.summary


@pytest.mark.soak
@pytest.mark.timeout(1800)
@LAYOUTS
def test_a_node_joins_and_another_leaves(layout):
    with RedisCluster(masters=3) as cluster, Work(cluster, layout) as work:
        work.run(100)
        new = RedisNode()
        cluster.join(new)
        slots = {slot_in(layout, f"ledger{number}") for number in range(12)}
        for slot in slots:
            cluster.move_slot(slot, new)
        work.run(100)
        cluster.retire(cluster.masters[0], new)
        work.run(100)
        work.settle()
        assert not work.missing, work.summary


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_consumer_of_a_thousand_queues_hears_of_each(six):
    names = [f"many{number}" for number in range(1000)]
    with Connection(six.url) as consumer, Connection(six.url) as publisher:
        received = []
        with consumer.Consumer(
            [Queue(name) for name in names], no_ack=True, on_message=lambda message: received.append(message.payload)
        ):
            producer = publisher.Producer()
            for place in (0, 500, 999):
                consumer.drain(0.2)
                producer.publish(place, routing_key=names[place])
                while place not in received:
                    consumer.drain_events(timeout=20)
            producer.publish_many(range(1000), routing_key="many7")
            while len(received) < 1003:
                consumer.drain_events(timeout=20)
        listening = consumer.transport._protocol.receiver.listener
        assert len(listening.streams) == 3


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_hundred_idle_consumers_ask_for_nothing(six):
    connections = [Connection(six.url) for _ in range(100)]
    try:
        consumers = [
            connection.Consumer(Queue(f"idle{number}"), no_ack=True, on_message=lambda message: None)
            for number, connection in enumerate(connections)
        ]
        for connection, consumer in zip(connections, consumers, strict=True):
            consumer.consume()
            connection.drain(0.3)

        def calls():
            return sum(int(node.ask("INFO", "stats")["total_commands_processed"]) for node in six.nodes)

        before = calls()
        for connection in connections:
            connection.drain(0.02)
        assert calls() - before < 600, "less than three commands a consumer and node, most of them the nodes' own"
    finally:
        for connection in connections:
            connection.release()
