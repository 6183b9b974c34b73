"""Masters that are killed while programs publish and consume: what was confirmed is consumed, and all programs go on.

Replication is asynchronous: a master that dies may have acknowledged what no replica has yet (one message of 14,405 in
one of the soaks of 20 kills, on a machine with other work). So publishes wait for the replica (``wait_replicas``).
Run on Redis 8 and Valkey 9, and everywhere in the soak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import redis

from tests.conftest import missing
from tests.faults.stage import SETTINGS, Program, Stage
from tests.redis.test_connecting import Sentinel
from tests.servers import RedisServer, Unavailable, version, wait_until

#: Milliseconds of silence until a sentinel takes a master for dead: so long that none does so on a busy machine, and
#: promotes a replica that does not have what the living master acknowledges meanwhile.
DOWN_AFTER = 4000
FAILOVER_TIMEOUT = 60.0  # seconds until another master is known, and until the old one has caught up as a replica
MASTER = "it"


class Replicated:
    """A master, its replica, and three sentinels. Which of the servers is what the sentinels say, once they agree."""

    def __init__(self, start_server: Callable[..., Any]) -> None:
        durable = {"appendonly": "yes", "repl_diskless_sync_delay": 0}
        self.master: RedisServer = start_server(lambda: RedisServer(**durable))
        replicaof = f"127.0.0.1 {self.master.port}"
        self._servers = [self.master, start_server(lambda: RedisServer(**durable, replicaof=replicaof))]
        self.sentinels = [start_server(lambda: Sentinel(self.master, DOWN_AFTER)) for _ in range(3)]
        self.wait_until_whole()

    @property
    def url(self) -> str:
        return ";".join(f"sentinel://127.0.0.1:{sentinel.port}/0" for sentinel in self.sentinels)

    def kill_master(self) -> None:
        """Kill it, wait until the replica has its place, and start it as the replica of that one.

        Sentinel makes it one too, after some ten seconds in which it is a master of old.
        """
        killed = self.master
        (heir,) = (server for server in self._servers if server is not killed)
        killed.kill()
        wait_until(lambda: set(self._named()) == {heir.port}, FAILOVER_TIMEOUT, "the replica is not promoted")
        killed.options["replicaof"] = f"127.0.0.1 {heir.port}"
        killed.start()
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Wait until there is a master that all sentinels name, and a replica that has what it has."""
        wait_until(self._is_whole, FAILOVER_TIMEOUT, "there is no master with a replica")
        self.master = next(server for server in self._servers if server.port == self._named()[0])

    def _named(self) -> list[int]:
        """Return the port of the master that each sentinel names."""
        ask = partial(self._ask, question=lambda client: client.sentinel_get_master_addr_by_name(MASTER)[1])
        return [ask(sentinel) for sentinel in self.sentinels]

    def _is_whole(self) -> bool:
        ports = set(self._named())
        if len(ports) != 1:
            return False
        (replica,) = (server for server in self._servers if server.port not in ports)
        replication = self._ask(replica, lambda client: client.info("replication"))
        is_replicating = replication.get("master_port") in ports and replication.get("master_link_status") == "up"
        return is_replicating and all(self._ask(sentinel, is_calm) for sentinel in self.sentinels)

    def _ask(self, server: RedisServer, question: Callable[[redis.Redis], Any]) -> Any:
        with redis.Redis(port=server.port) as client:
            return question(client)


def is_calm(sentinel: redis.Redis) -> bool:
    """Return whether a sentinel knows the two others, and a replica that it could promote."""
    replicas = sentinel.sentinel_slaves(MASTER)
    is_up = [each["is_slave"] and not (each["is_sdown"] or each["is_odown"]) for each in replicas]
    return is_up == [True] and sentinel.sentinel_master(MASTER)["num-other-sentinels"] == 2


class SentinelStage(Stage):
    """Programs that know the sentinels."""

    def __init__(self, servers: Replicated, library: str) -> None:
        super().__init__(servers.master, [library])
        self._replicated = servers

    def _start(self, role: str, url: str, **options: Any) -> Program:
        return super()._start(role, self._replicated.url, **options)

    def _connection(self) -> dict[str, Any]:
        options = {**SETTINGS[RedisServer]["transport_options"], "master_name": MASTER, "wait_replicas": 1}
        return {"transport_options": options}

    def fail_over(self) -> None:
        """Kill the master, and go on with the other one."""
        self._replicated.kill_master()
        self.server = self._replicated.master


@pytest.fixture(params=["kombulite", "kombulite.aio"])
def stage(request: pytest.FixtureRequest, start_server: Callable[..., Any]) -> Iterator[SentinelStage]:
    try:
        with SentinelStage(Replicated(start_server), request.param) as stage:
            for _ in range(2):
                stage.produce()
                stage.consume()
            assert stage.goes_on(), stage.logs()
            yield stage
    except Unavailable as error:
        missing(request, str(error))


@pytest.fixture
def is_newest() -> None:
    if int(version("redis-server").split(".")[0]) < 8:
        pytest.skip("once on Redis 8 and Valkey 9; 20 times in the soak")


def kill_masters(stage: SentinelStage, times: int, record_property: Callable[[str, object], None]) -> None:
    for _ in range(times):
        stage.fail_over()
        assert stage.goes_on(), stage.logs()
    outcome = stage.outcome()
    for name, number in outcome._asdict().items():
        record_property(name, number)
    assert outcome.is_good, f"{outcome}\n{stage.logs()}"


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("is_newest")
def test_master_killed(stage: SentinelStage, record_property: Callable[[str, object], None]) -> None:
    kill_masters(stage, 1, record_property)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_master_killed_20_times(stage: SentinelStage, record_property: Callable[[str, object], None]) -> None:
    kill_masters(stage, 20, record_property)
