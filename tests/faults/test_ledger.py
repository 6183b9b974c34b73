"""Programs at work while processes, connections and brokers fail: what was confirmed is consumed, and nothing hangs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest

from kombulite import Connection, Queue
from tests.conftest import missing
from tests.faults.inflict import FAULTS, at_random, kill_broker
from tests.faults.stage import Stage
from tests.servers import RedisServer, Server, Unavailable

SECONDS = float(os.environ.get("SOAK_SECONDS", "300"))  # how long anything may happen
MEMORY_KEPT = 4 << 20  # bytes that a program may have more at the end: buffers that have grown

FACADES = ["kombulite", "kombulite.aio"]
#: What happens in `make test`, beside a broker that is killed twice.
SHORT = {"kill_consumers": 5, "kill_producers": 1, "reset": 1, "finish": 1}


@pytest.fixture(params=["own_rabbitmq", "own_redis"])
def server(request: pytest.FixtureRequest) -> Server:
    return request.getfixturevalue(request.param)


@pytest.fixture
def start_stage(server: Server, request: pytest.FixtureRequest) -> Callable[..., Stage]:
    """A stage with so many producers and consumers at work: of the synchronous facade, and of that of event loops."""

    def start(libraries: Sequence[str], programs: int = 2, own_clock: bool = False, **options: Any) -> Stage:
        try:
            stage = Stage(server, libraries, own_clock)
        except Unavailable as error:
            missing(request, str(error))
        request.addfinalizer(stage.close)
        for _ in range(programs):
            stage.produce(**options)
            stage.consume()
        assert stage.goes_on(), stage.logs()
        return stage

    return start


@pytest.fixture
def check(record_property: Callable[[str, object], None]) -> Callable[[Stage], None]:
    """Ends all, and sees that nothing was lost and nothing hung. What it counted is in the report (``--junitxml``)."""

    def check(stage: Stage) -> None:
        outcome = stage.outcome()
        for name, number in outcome._asdict().items():
            record_property(name, number)
        assert outcome.is_good, f"{outcome}\n{stage.logs()}"

    return check


@pytest.mark.timeout(400)  # 30 s on an idle machine, where one at a load of 15 needs 143
def test_one_thing_and_another(start_stage, check, monkeypatch):
    stage = start_stage(FACADES, programs=2)
    with ThreadPoolExecutor(1) as beside:
        broker = beside.submit(kill_broker, stage, 2, Random())
        for name, times in SHORT.items():
            FAULTS[name].inflict(stage, times, Random())
        broker.result()
    monkeypatch.setattr("tests.faults.inflict.AWAY", 1)
    FAULTS["block_broker"].inflict(stage, 1, Random())
    assert stage.goes_on(), stage.logs()
    check(stage)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("library", FACADES)
@pytest.mark.parametrize("name", FAULTS)
def test_many_times(start_stage, check, name, library):
    fault = FAULTS[name]
    stage = start_stage([library], own_clock=fault.moves_clock)
    fault.inflict(stage, fault.many, Random())
    assert stage.goes_on(), stage.logs()
    check(stage)


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 1200)
@pytest.mark.parametrize("library", FACADES)
def test_anything_for_long(start_stage, check, record_property, library):
    """Eight producers and eight consumers that live through it all, and hold no more at the end than early on."""
    stage = start_stage([library], programs=8, pause=0.02)
    survivors = stage.programs()
    random = Random()
    assert at_random(stage, SECONDS / 3, random), stage.logs()
    early = [(program.descriptors(), program.memory()) for program in survivors]
    assert at_random(stage, 2 * SECONDS / 3, random), stage.logs()
    time.sleep(5)  # for the last connections to be what they shall be
    descriptors = max(program.descriptors() - before for program, (before, _) in zip(survivors, early))
    memory = max(program.memory() - before for program, (_, before) in zip(survivors, early))
    record_property("more descriptors", descriptors)
    record_property("more memory", memory)
    assert descriptors <= 2
    assert memory < MEMORY_KEPT
    check(stage)


# --- the oracle itself


def test_what_is_lost_is_seen(start_server, monkeypatch):
    monkeypatch.setattr("tests.faults.stage.SETTLE", 1)
    server = start_server(RedisServer)
    with Stage(server, ["kombulite"]) as stage, Connection(server.url) as connection:
        stage.wait_for_progress(stage.produce())
        Queue(stage.queue)(connection).purge()
        stage.wait_for_progress(*stage.producers)
        stage.consume()
        outcome = stage.outcome()
    assert outcome.lost
    assert outcome.confirmed == outcome.consumed + outcome.lost
    assert not outcome.is_good


def test_what_stands_still_or_dies_is_seen(start_server, monkeypatch):
    with Stage(start_server(RedisServer), ["kombulite"]) as stage:
        stage.wait_for_progress(stage.produce(), stopped := stage.consume())
        for name in ("SETTLE", "PATIENCE"):
            monkeypatch.setattr(f"tests.faults.stage.{name}", 1)
        stopped.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, stopped.pid, os.WSTOPPED)  # it may have been writing
        assert not stage.goes_on()
        died = stage.produce()
        died.process.kill()
        died.process.wait()
        outcome = stage.outcome()
    assert outcome.hung
    assert outcome.died == 1
    assert not outcome.is_good
