"""A cluster that loses nodes under load: what was confirmed is consumed, and every consumer goes on.

Programs have the nodes' URLs as a failover list. A node that is paused keeps its connections and answers nobody, as
behind a network that drops everything; one that is isolated has lost the other nodes only, and its clients do not know.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.cluster import SIZE, Cluster, Node
from tests.cluster.conftest import check, started
from tests.faults.stage import Stage
from tests.servers import RabbitMQServer, evaluate, wait_until


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    yield from started(request, Cluster)


def kill_and_start(cluster: Cluster, stage: Stage, node: Node) -> None:
    node.kill()
    assert stage.goes_on(), stage.logs()
    node.start()
    wait_until(lambda: cluster.running() == SIZE, 120, "the node does not come back")


def drain(node: Node) -> None:
    """Put a node into maintenance, as ``rabbitmq-upgrade drain`` does: it leads no quorum queue, and has no clients."""
    assert evaluate(node, "rabbit_maintenance:drain().") == "ok"
    wait_until(lambda: evaluate(node, "rabbit_networking:local_connections().") == "[]", 60, "it keeps its clients")


@pytest.mark.parametrize(
    "times",
    [
        pytest.param(1, marks=pytest.mark.timeout(300)),
        pytest.param(20, marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
    ],
)
def test_leader_killed(cluster, stage, record_property, times):
    for _ in range(times):
        kill_and_start(cluster, stage, cluster.leader(stage.queue))
    check(stage, record_property)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_rolling_restart(cluster, stage, record_property):
    cluster.for_each_in_turn(RabbitMQServer.restart)
    check(stage, record_property)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_leader_silent(cluster, stage, record_property):
    leader = cluster.leader(stage.queue)
    leader.pause()
    assert stage.goes_on(), stage.logs()
    leader.resume()
    check(stage, record_property)


@pytest.mark.timeout(600)
# Not on streams: the coordinator of RabbitMQ drops the channels of a node that it cannot reach from those that it tells
# of a new leader, and does not add them again. Their consumers get nothing more, and no basic.cancel.
@pytest.mark.parametrize("queue_type", ["quorum"])
def test_leader_isolated(cluster, stage, record_property):
    leader = cluster.leader(stage.queue)
    cluster.isolate(leader)
    majority = [node for node in cluster.nodes if node is not leader]
    reached = [stage.start_at(role, majority) for role in ("produce", "consume")]
    assert stage.wait_for_progress(*reached), stage.logs()
    cluster.unite()
    check(stage, record_property)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_nodes_stopped_and_started_under_load(cluster, stage, record_property):
    for node in cluster.nodes:
        node.stop()
        assert stage.goes_on(), stage.logs()
        node.start()
    wait_until(cluster.is_whole, 120, "the nodes do not come back")
    check(stage, record_property)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_nodes_drained_for_maintenance(cluster, stage, record_property):
    for _ in range(SIZE):
        node = cluster.leader(stage.queue)
        drain(node)
        assert stage.goes_on(), stage.logs()
        node.restart()
        assert evaluate(node, "rabbit_maintenance:revive().") == "ok"
        wait_until(cluster.is_whole, 120, "the node does not come back")
    check(stage, record_property)
