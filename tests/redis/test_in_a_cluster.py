"""A node of a Redis Cluster under a ``redis://`` URL: refused, unless all keys are in one slot, which it has."""

from __future__ import annotations

import pytest
import redis

from kombulite import Connection, Queue
from kombulite.exceptions import NotAllowed
from tests.servers import RedisServer, free_port, wait_until


@pytest.fixture(scope="module")
def node():
    """A cluster of one node."""
    with RedisServer(cluster_enabled="yes", cluster_port=free_port()) as server:
        with redis.Redis(port=server.port) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait_until(lambda: client.cluster("INFO")["cluster_state"] == "ok", 20, "the cluster is not ready")
        yield server


@pytest.mark.parametrize("protocol", [2, 3])
def test_node_of_a_cluster_is_refused(node, protocol):
    with Connection(node.url, transport_options={"protocol": protocol}) as connection:
        with pytest.raises(NotAllowed, match=r"node of a Redis Cluster.*global_keyprefix"):
            connection.Producer().publish("lost", routing_key="orders")
    with redis.Redis(port=node.port) as client:
        assert client.dbsize() == 0


@pytest.mark.parametrize("protocol", [2, 3])
def test_keys_of_one_slot_may_be_there(node, protocol):
    options = {"protocol": protocol, "global_keyprefix": "{shop}:"}
    with Connection(node.url, transport_options=options) as connection:
        connection.Producer().publish("kept", routing_key="orders", declare=[Queue("orders")])
        received = []
        with connection.Consumer(Queue("orders"), on_message=lambda message: (received.append(message), message.ack())):
            connection.drain_events(timeout=20)
        assert [message.payload for message in received] == ["kept"]
