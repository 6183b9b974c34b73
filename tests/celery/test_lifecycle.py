"""Workers that idle, stop, are killed, lose their broker: nothing is lost, nothing spins, nothing hangs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.celery.fleet import LIBRARIES, Fleet, cpu_seconds, settle, wakeups
from tests.servers import RabbitMQServer, RedisServer

BOTH_BROKERS = pytest.mark.parametrize("fleet", ["redis", "amqp"], indirect=True)
BOTH_LIBRARIES = pytest.mark.parametrize(
    "library",
    [pytest.param(library, marks=() if library == "kombulite" else pytest.mark.soak) for library in LIBRARIES],
)

SEND = """
from shop import late, named
for i in range({count}):
    late.apply_async(({seconds}, named("done"), i), ignore_result=True)
"""
#: Waits until all were done, and tells how many began more than once.
COLLECT = """
import time
from shop import named, notes
deadline = time.monotonic() + 50
while len(done := set(notes().lrange(named("done"), 0, -1))) < {count}:
    assert time.monotonic() < deadline, sorted(set(range({count})) - set(map(int, done)))
    time.sleep(0.05)
print(notes().llen(named("done.begun")) - {count})
"""


@pytest.mark.soak
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells what a process does")
@pytest.mark.parametrize("pool", ["solo", "prefork"])
@BOTH_LIBRARIES
@BOTH_BROKERS
def test_idle_worker_sleeps(fleet, library, pool):
    worker = fleet.worker(library, pool, "--without-gossip", "--without-mingle")
    fleet.run(library, "from shop import add; assert add.delay(1, 2).get(timeout=20) == 3")
    settle(1)
    cpu, slept = cpu_seconds(worker.pid), wakeups(worker.pid)
    settle(5)
    # Celery's own timers wake it about twice a second, genuine kombu's polling of Redis once more.
    assert wakeups(worker.pid) - slept < 60
    assert cpu_seconds(worker.pid) - cpu < 0.15


@pytest.mark.parametrize("pool", ["prefork", pytest.param("solo", marks=pytest.mark.soak)])
@BOTH_LIBRARIES
@BOTH_BROKERS
def test_warm_shutdown_finishes_what_has_begun_and_leaves_the_rest(fleet, library, pool):
    worker = fleet.worker(library, pool)
    fleet.run(library, SEND.format(count=20, seconds=0.3))
    fleet.wait_for_log(worker, "received", 2)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert int(fleet.run(library, "from shop import *; print(notes().llen(named('done')))")) < 20
    fleet.worker(library, pool, name="heir")
    assert int(fleet.run(library, COLLECT.format(count=20))) == 0  # none was begun twice


@pytest.mark.soak
@BOTH_LIBRARIES
@BOTH_BROKERS
def test_cold_shutdown_leaves_all_to_others(fleet, library):
    worker = fleet.worker(library)
    fleet.run(library, SEND.format(count=10, seconds=1))
    fleet.wait_for_log(worker, "received", 2)
    worker.signal(signal.SIGQUIT)
    worker.wait()
    fleet.worker(library, name="heir")
    fleet.run(library, COLLECT.format(count=10))


@BOTH_BROKERS
@BOTH_LIBRARIES
def test_killed_worker_leaves_all_to_others(fleet, library):
    if library == "kombu" and fleet.broker.startswith("redis"):
        pytest.skip("genuine kombu looks for leases that have ended only when it starts")
    fleet.environment["SHOP_LEASE"] = "3"  # seconds, with Redis; RabbitMQ knows at once
    worker = fleet.worker(library)
    fleet.run(library, SEND.format(count=30, seconds=0.1))
    fleet.wait_for_log(worker, "received", 8)
    worker.kill()
    fleet.worker(library, name="heir")
    fleet.run(library, COLLECT.format(count=30))


@pytest.mark.soak
@BOTH_LIBRARIES
@BOTH_BROKERS
def test_hangup_starts_the_worker_anew(fleet, library):
    worker = fleet.worker(library)
    if library == "kombu":
        pytest.skip("`python -m celery` cannot do that")
    worker.signal(signal.SIGHUP)
    fleet.wait_for_log(worker, " ready.", 2)
    assert "shop.add" in fleet.run(library, "from shop import app; print(app.control.inspect(timeout=2).registered())")


@pytest.mark.soak
@BOTH_LIBRARIES
@pytest.mark.parametrize("make", [RabbitMQServer, lambda: RedisServer(appendonly="yes")], ids=["amqp", "redis"])
def test_broker_that_restarts_under_load(make_fleet: Callable[..., Fleet], start_server: Any, make, library, request):
    if library == "kombu" and make is not RabbitMQServer:
        pytest.skip("genuine kombu's worker does not come back to its tasks in time")
    server = start_server(make)
    fleet = make_fleet(request.node.callspec.id.split("-")[0], server.url)
    worker = fleet.worker(library)
    fleet.run(library, SEND.format(count=200, seconds=0.02))
    fleet.wait_for_log(worker, "received", 20)
    server.restart()
    fleet.run(library, COLLECT.format(count=200))
    # It is a worker as before: told what to do, and given more.
    fleet.run(library, "from shop import *; assert len(app.control.inspect(timeout=20, limit=1).ping()) == 1")
    fleet.run(library, "from shop import *; assert add.delay(1, 2).get(timeout=20) == 3")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


@pytest.mark.soak
@pytest.mark.parametrize("own_process", [True, False], ids=["beat", "worker -B"])
@BOTH_LIBRARIES
@BOTH_BROKERS
def test_beat(fleet, library, own_process):
    if own_process:
        fleet.worker(library)
        fleet.celery(library, "beat", "-s", str(fleet.folder / "schedule"))
    else:
        fleet.worker(library, "prefork", "-B", "-s", str(fleet.folder / "schedule"))
    program = """
import time
from shop import named, notes
deadline = time.monotonic() + 30
while notes().llen(named("beat")) < 3:
    assert time.monotonic() < deadline
    time.sleep(0.1)
"""
    fleet.run(library, program)


@pytest.mark.soak
@BOTH_LIBRARIES
@BOTH_BROKERS
def test_events_dump(fleet, library):
    fleet.worker(library, "prefork", "-E")
    dump = fleet.celery(library, "events", "--dump")
    fleet.wait_for_log(dump, "heartbeat")
    fleet.run(library, "from shop import add; add.delay(1, 2).get(timeout=20)")
    fleet.wait_for_log(dump, "task succeeded")


@pytest.mark.soak
@BOTH_LIBRARIES
@BOTH_BROKERS
def test_command_line(fleet, library):
    worker = fleet.worker(library)
    for arguments, wanted in (
        (("status",), "1 node online"),
        (("inspect", "ping"), "pong"),
        (("inspect", "active_queues"), fleet.named("other")),
        (("call", "shop.add", "-a", "[1, 2]"), "-"),
        (("control", "rate_limit", "shop.add", "100/m"), "new rate limit set"),
    ):
        command = fleet.celery(library, *arguments)
        assert command.wait() == 0, command.log.read_text()
        assert wanted in command.log.read_text()
    fleet.celery(library, "control", "shutdown").wait()
    assert worker.wait() == 0


@pytest.mark.soak
@BOTH_LIBRARIES
def test_quorum_queues_with_native_delayed_delivery(make_fleet: Callable[..., Fleet], library):
    fleet = make_fleet("amqp", queues="quorum")
    fleet.worker(library)
    program = """
import time
from shop import add, named, where
assert add.delay(1, 2).get(timeout=20) == 3
start = time.monotonic()
assert add.apply_async((2, 2), countdown=2).get(timeout=30) == 4
assert time.monotonic() - start >= 1.9
assert where.apply_async(countdown=1).get(timeout=30)["host"]
"""
    fleet.run(library, program)
    fleet.close()
