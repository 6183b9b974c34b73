"""A node of a cluster whose packets to and from the other nodes are lost, while clients reach all nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.conftest import check, started
from tests.cluster.network import ProxiedCluster


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    yield from started(request, ProxiedCluster)


@pytest.mark.timeout(600)
# Not on streams: see test_cluster.py on a leader that is isolated.
@pytest.mark.parametrize("queue_type", ["quorum"])
def test_leader_parted(cluster, stage, record_property):
    leader = cluster.leader(stage.queue)
    cluster.part(leader)
    majority = [node for node in cluster.nodes if node is not leader]
    reached = [stage.start_at(role, majority) for role in ("produce", "consume")]
    assert stage.wait_for_progress(*reached), stage.logs()
    cluster.unite()
    check(stage, record_property)
