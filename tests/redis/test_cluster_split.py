"""A minority of nodes that a split cuts off, with clients on its side and on the other. In the soak.

Each node has an address of its own for what it sends, and is reached by a proxy only, by clients and by other nodes:
so the network may be cut between any two.
"""

from __future__ import annotations

import pytest

from kombulite import Connection, Queue
from kombulite.exceptions import ChannelError, MessageNacked
from tests.proxy import Proxy
from tests.redis.test_cluster import OWN, TAGGED, slot_in
from tests.servers import RedisCluster, wait_until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
LAYOUTS = pytest.mark.parametrize("layout", [OWN, TAGGED], ids=["own", "tagged"])
CLIENTS = "127.0.0.1"
PATIENCE = 60.0  # seconds


class SplitCluster(RedisCluster):
    """A cluster of three masters with a replica each, whose nodes can be parted."""

    def __init__(self):
        super().__init__(masters=3, replicas=3, appendonly="yes")
        self.sources = {}
        self.doors = {}
        for place, node in enumerate(self.nodes):
            self.sources[node] = node.options["bind-source-addr"] = f"127.0.1.{place + 1}"
            node.options["protected-mode"] = "no"
            node.options["cluster-announce-ip"] = "127.0.0.1"  # else others learn of it by what it sends from

    def start(self):
        super().start()
        for node in self.nodes:
            clients, bus = self.doors[node] = Proxy(node.port), Proxy(node.bus_port)
            node.ask("CONFIG", "SET", "cluster-announce-port", clients.port)
            node.ask("CONFIG", "SET", "cluster-announce-bus-port", bus.port)
        ports = {clients.port for clients, _ in self.doors.values()}
        self.wait_for(lambda node: self.serving(node) <= ports, "the proxies are not announced")

    def part(self, alone, clients_too):
        """Cut a node off from the others, and from clients or (if not ``clients_too``) these from the others."""
        for node, doors in self.doors.items():
            others = {self.sources[each] for each in self.nodes if (each is alone) != (node is alone)}
            cut_off = others | ({CLIENTS} if (node is alone) == clients_too else set())
            for door in doors:
                door.part(cut_off)

    def unite(self):
        for doors in self.doors.values():
            for door in doors:
                door.part(())
                door.reset()

    def close(self):
        for doors in self.doors.values():
            for door in doors:
                door.close()
        super().close()


@pytest.fixture
def cluster():
    with SplitCluster() as cluster:
        yield cluster


def owner_of(cluster, slot, asked):
    """The node that has a slot, as another one says."""
    for first, last, master, *_ in asked.ask("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return next(node for node in cluster.nodes if node.node_id == master[2])
    return None


def write_through_a_split(cluster, layout, is_majority, **options):
    """Publish before, during and after a split; returns what was accepted and what is there at its end."""
    slot = slot_in(layout, "split")
    alone = owner_of(cluster, slot, cluster.nodes[0])
    other = next(node for node in cluster.masters if node is not alone)
    url = f"rediscluster://127.0.0.1:{cluster.doors[other if is_majority else alone][0].port}"
    accepted, errors = [], []
    with Connection(url, transport_options={**layout, "socket_timeout": 1, **options}) as connection:
        producer = connection.Producer()
        producer.publish(-1, routing_key="split", declare=[Queue("split")])
        cluster.part(alone, clients_too=is_majority)
        number = 0

        def publish():
            nonlocal number
            number += 1
            try:
                producer.publish(number, routing_key="split", timeout=1, retry=False)
            except (*connection.connection_errors, ChannelError, MessageNacked) as error:
                errors.append(error)
            else:
                accepted.append(number)

        def is_replaced():
            publish()
            return owner_of(cluster, slot, other) is not alone

        wait_until(is_replaced, PATIENCE, "no other master")
        wait_until(lambda: publish() or errors or is_majority, PATIENCE, "the minority goes on")
        cluster.unite()

        def goes_on():
            before = len(accepted)
            publish()
            return len(accepted) > before

        cluster.wait_until_ok()
        wait_until(lambda: alone.ask("ROLE")[0] == "slave", PATIENCE, "the old master does not give up")
        wait_until(goes_on, PATIENCE, "no publish any more")
    found = set()
    with Connection(url, transport_options=layout) as connection:
        channel = connection.channel()
        while (message := channel.basic_get("split", no_ack=True)) is not None:
            found.add(message.payload)
    return accepted, found


@LAYOUTS
def test_clients_of_the_majority_lose_nothing(cluster, layout):
    accepted, found = write_through_a_split(cluster, layout, is_majority=True)
    assert set(accepted) <= found
    assert -1 in found


@LAYOUTS
def test_clients_of_the_minority_lose_nothing_if_they_wait_for_a_replica(cluster, layout):
    accepted, found = write_through_a_split(cluster, layout, is_majority=False, wait_replicas=1)
    assert set(accepted) <= found


@LAYOUTS
def test_what_a_minority_takes_without_a_replica_is_lost_and_no_more(cluster, layout, record_property):
    """Until it notices, by its node timeout: what was accepted before and after is there."""
    accepted, found = write_through_a_split(cluster, layout, is_majority=False)
    lost = sorted(set(accepted) - found)
    record_property("lost", f"{len(lost)} of {len(accepted)}")
    assert lost == accepted[: len(lost)]
    assert -1 in found
