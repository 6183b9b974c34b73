"""Masters that are killed while programs publish and consume: what was confirmed is consumed, and all programs go on.

Replication is asynchronous: a master that dies may have acknowledged what no replica has yet. The ledger counts that as
lost, so it is here to be seen: nothing of it has been so far. Run on Redis 8 and Valkey 9, and everywhere in the soak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from tests.conftest import missing
from tests.faults.stage import SETTINGS, Program, Stage
from tests.redis.test_connecting import Sentinel
from tests.servers import RedisServer, Unavailable, version, wait_until

FAILOVER_TIMEOUT = 60.0  # seconds until another master is known, and until the old one has caught up as a replica
MASTER = "it"


class Replicated:
    """A master, its replica, and three sentinels."""

    def __init__(self, start_server: Callable[..., Any]) -> None:
        durable = {"appendonly": "yes", "repl_diskless_sync_delay": 0}
        self.master: RedisServer = start_server(lambda: RedisServer(**durable))
        replicaof = f"127.0.0.1 {self.master.port}"
        self.replica: RedisServer = start_server(lambda: RedisServer(**durable, replicaof=replicaof))
        self.wait_for_replica()
        self.sentinels = [start_server(lambda: Sentinel(self.master)) for _ in range(3)]
        wait_until(self._is_watched, FAILOVER_TIMEOUT, "a sentinel does not know all")

    @property
    def url(self) -> str:
        return ";".join(f"sentinel://127.0.0.1:{sentinel.port}/0" for sentinel in self.sentinels)

    def kill_master(self) -> None:
        """Kill it, wait until the replica has its place, and start it as the replica of that one.

        Sentinel makes it one too, after some ten seconds in which it is a master of old.
        """
        self.master.kill()
        self.master, self.replica = self.replica, self.master
        wait_until(self._is_known, FAILOVER_TIMEOUT, "the replica does not become the master")
        self.replica.options["replicaof"] = f"127.0.0.1 {self.master.port}"
        self.replica.start()
        self.wait_for_replica()
        wait_until(self._is_watched, FAILOVER_TIMEOUT, "a sentinel does not know all")

    def wait_for_replica(self) -> None:
        """Wait until the replica has what the master has."""
        wait_until(self._is_replicating, FAILOVER_TIMEOUT, "no replication")

    def _is_replicating(self) -> bool:
        with redis.Redis(port=self.replica.port) as client:
            found = client.info("replication")
            return found.get("master_port") == self.master.port and found.get("master_link_status") == "up"

    def _ask(self, question: Callable[[redis.Redis], bool]) -> bool:
        for sentinel in self.sentinels:
            with redis.Redis(port=sentinel.port) as client:
                if not question(client):
                    return False
        return True

    def _is_known(self) -> bool:
        return self._ask(lambda client: client.sentinel_get_master_addr_by_name(MASTER)[1] == self.master.port)

    def _is_watched(self) -> bool:
        def is_whole(client: redis.Redis) -> bool:
            state = client.sentinel_master(MASTER)
            replicas = client.sentinel_slaves(MASTER)
            is_up = [each["is_slave"] and not (each["is_sdown"] or each["is_odown"]) for each in replicas]
            return state["num-other-sentinels"] == 2 and state["port"] == self.master.port and is_up == [True]

        return self._ask(is_whole)


class SentinelStage(Stage):
    """Programs that know the sentinels."""

    def __init__(self, servers: Replicated, library: str) -> None:
        super().__init__(servers.master, [library])
        self._servers = servers

    def _start(self, role: str, url: str, **options: Any) -> Program:
        return super()._start(role, self._servers.url, **options)

    def _connection(self) -> dict[str, Any]:
        return {"transport_options": {**SETTINGS[RedisServer]["transport_options"], "master_name": MASTER}}

    def fail_over(self) -> None:
        """Kill the master, and go on with the other one."""
        self._servers.kill_master()
        self.server = self._servers.master


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
