"""Nodes of a cluster that go, or do not know their names: what is kept of them, and where they are reached."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

from kombulite import Connection, exceptions
from kombulite.brokers.redis.cluster import known, openings
from kombulite.brokers.redis.cluster.openings import Openings
from kombulite.brokers.redis.cluster.pauses import Pauses
from kombulite.brokers.redis.cluster.slots import Refusal, refusal_of
from kombulite.utils.locks import Lock


@pytest.mark.parametrize("host", ["", "?"])
@pytest.mark.parametrize("code", ["MOVED", "ASK"])
def test_a_node_that_does_not_know_the_others_name_means_the_host_that_was_asked(code, host):
    assert refusal_of(f"{code} 3999 {host}:6381", ("10.0.0.1", 6379)) == Refusal(code, ("10.0.0.1", 6381))


def test_nothing_is_kept_of_nodes_that_are_gone():
    transport: Any = Connection("rediscluster://seed:7000").transport
    cluster = transport._cluster
    node = Mock(address=("seed", 7000))
    for port in range(7001, 7020):
        cluster.connector(("node", port))
        node.call.return_value = [[0, 16383, [b"node", port]]]
        cluster.read(node, 1.0)
    assert set(cluster._connectors) == {("seed", 7000), ("node", 7019)}


def test_nodes_that_only_refusals_name_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(known, "MAX_NODES", 10)
    transport: Any = Connection("rediscluster://seed:7000").transport
    for port in range(7001, 7050):
        transport._cluster.connector(("node", port))
    assert len(transport._cluster._connectors) <= 10


def test_of_many_clusters_those_that_were_read_last_are_remembered(monkeypatch):
    monkeypatch.setattr(known, "MAX_KNOWN", 3)
    monkeypatch.setattr(known, "_known", {})
    nodes = (("node", 1),)
    for seed in ("a", "b", "c", "a", "d"):
        known.remember(((seed, 1),), nodes)
    assert list(known._known) == [((seed, 1),) for seed in "cad"]


def test_tries_to_open_connections_are_not_kept(monkeypatch):
    now = [1000.0]

    def fail(address: Any) -> Any:
        raise exceptions.RecoverableConnectionError("it cannot be reached")

    monkeypatch.setattr(openings, "monotonic", lambda: now[0])
    lock = Lock()
    opening = Openings(Pauses(lock), fail, print)
    for port in range(20):
        with lock, pytest.raises(exceptions.RecoverableConnectionError):
            opening.open(("node", port), 20.0, True)
        now[0] += 1.0
    assert list(opening._tries) == [("node", 19)]
