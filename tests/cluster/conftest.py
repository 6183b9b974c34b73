"""What the tests of clusters share: programs that know all nodes, and what has to hold at their end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster.cluster import Cluster, Node
from tests.conftest import missing
from tests.faults.stage import Program, Stage
from tests.servers import Unavailable, keep_declarations, version


def started(request: pytest.FixtureRequest, make: type[Cluster]) -> Iterator[Cluster]:
    """Yield a cluster, of RabbitMQ 4."""
    try:
        is_old = int(version("rabbitmqctl").split(".")[0]) < 4
    except Unavailable as error:
        missing(request, str(error))
    if is_old:
        pytest.skip("clusters are tried with RabbitMQ 4")
    with make() as cluster:
        yield cluster


class ClusterStage(Stage):
    """Programs that know all nodes.

    A leader that is silent costs 20 s: heartbeats (5), a login at it (5), and a publish to a stream that has no leader
    yet, which gets no confirm by its timeout (10).
    """

    patience = 60.0

    def __init__(self, cluster: Cluster, library: str, queue_type: str) -> None:
        super().__init__(cluster.nodes[0], [library], queue_type=queue_type)
        self.reached = cluster.nodes

    def _address(self) -> str:
        return ";".join(node.url for node in self.reached)

    def start_at(self, role: str, nodes: list[Node]) -> Program:
        """Start a program that knows some of the nodes."""
        before, self.reached = self.reached, nodes
        try:
            return self.produce() if role == "produce" else self.consume()
        finally:
            self.reached = before


@pytest.fixture(params=["quorum", "stream"])
def queue_type(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=["kombulite", "kombulite.aio"])
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def stage(cluster: Cluster, library: str, queue_type: str) -> Iterator[ClusterStage]:
    with ClusterStage(cluster, library, queue_type) as stage:
        for _ in range(2):
            stage.produce()
            stage.consume()
        assert stage.goes_on(), stage.logs()
        for node in cluster.nodes:
            keep_declarations(node)
        yield stage
        for node in cluster.nodes:
            node.resume()
            if node.process is None:
                node.start()
        cluster.unite()


def check(stage: ClusterStage, record_property: Callable[[str, object], None]) -> None:
    assert stage.goes_on(), stage.logs()
    outcome = stage.outcome()
    for name, number in outcome._asdict().items():
        record_property(name, number)
    assert outcome.is_good, f"{outcome}\n{stage.logs()}"
