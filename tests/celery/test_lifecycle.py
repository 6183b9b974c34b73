"""Workers that idle, stop, are killed, lose their broker: nothing is lost, nothing spins, nothing hangs."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.celery.fleet import LIBRARIES, TIMEOUT, Fleet, cpu_seconds, settle, wakeups
from tests.servers import RabbitMQServer, RedisServer, free_port, version, wait_until

BOTH_BROKERS = pytest.mark.parametrize("fleet", ["redis", "amqp"], indirect=True)
BOTH_LIBRARIES = pytest.mark.parametrize(
    "library",
    [pytest.param(library, marks=() if library == "kombulite" else pytest.mark.soak) for library in LIBRARIES],
)

#: kombu's own transports, from its distribution, with kombulite beneath them.
KOMBUS_OWN = [pytest.param(broker, marks=pytest.mark.soak) for broker in ("sqla", "sqs")]

SEND = """
from shop import late, named
for i in range({count}):
    late.apply_async(({seconds}, named("done"), i), ignore_result=True)
"""
#: The same with tasks that end when the gate is open.
SEND_GATED = """
from shop import gated, named
for i in range({count}):
    gated.apply_async((named("done"), i), ignore_result=True)
"""
OPEN_GATE = 'from shop import named, notes; notes().set(named("done.gate"), 1)'
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
#: Tells how many messages wait in the queue.
WAITING = """
from shop import app, named
with app.connection() as connection:
    print(connection.default_channel.queue_declare(named("celery"), passive=True).message_count)
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
@pytest.mark.parametrize("fleet", ["redis", "amqp", *KOMBUS_OWN], indirect=True)
def test_warm_shutdown_finishes_what_has_begun_and_leaves_the_rest(fleet, library, pool):
    worker = fleet.worker(library, pool)
    fleet.run(library, SEND_GATED.format(count=12))  # more than the eight that it may hold
    wait_until(lambda: fleet.noted("done.begun"), TIMEOUT, "no task begins; the log ends:\n{}", worker.log)
    worker.signal(signal.SIGTERM)
    fleet.wait_for_log(worker, "Warm shutdown")
    fleet.run(library, OPEN_GATE)
    assert worker.wait() == 0
    assert 0 < fleet.noted("done") < 12
    fleet.worker(library, pool, name="heir")
    assert int(fleet.run(library, COLLECT.format(count=12))) == 0  # none was begun twice


@pytest.mark.parametrize("fleet", [KOMBUS_OWN[0], "sqs"], indirect=True)
def test_a_worker_on_a_transport_of_kombus_works_and_ends(fleet):
    worker = fleet.worker("kombulite")
    program = "from shop import add, flaky, named, late\n" + (
        "late.apply_async((0, named('done'), 1), ignore_result=True)\n"
        "results = [add.delay(1, 2), flaky.delay(1), add.apply_async((3, 4), countdown=0.5)]\n"
        "print([result.get(timeout=40, interval=0.02) for result in results])"
    )
    assert fleet.run("kombulite", program).strip() == "[3, 1, 7]"
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert fleet.noted("done") == 1


@pytest.mark.parametrize("queues", ["classic", "quorum"])
def test_tasks_for_later_do_not_keep_a_worker_from_others(make_fleet, queues):
    fleet = make_fleet("amqp", queues=queues)
    fleet.worker("kombulite")
    # Each takes one of the messages that the worker may hold, which Celery makes up for.
    later = "from shop import add\nfor i in range({}): add.apply_async((i, i), countdown={})\n"
    fleet.run("kombulite", later.format(12, 600) + "assert add.delay(2, 3).get(timeout=30) == 5")
    fleet.run("kombulite", later.format(20, 600) + "assert add.apply_async((2, 3), countdown=1).get(timeout=30) == 5")


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


@pytest.mark.parametrize("fleet", ["redis", "amqp", KOMBUS_OWN[1]], indirect=True)
@BOTH_LIBRARIES
def test_killed_worker_leaves_all_to_others(fleet, library):
    if library == "kombu" and fleet.broker.startswith("redis"):
        pytest.skip("genuine kombu looks for leases that have ended only when it starts")
    fleet.environment["SHOP_LEASE"] = "3"  # seconds, with Redis and SQS; RabbitMQ knows at once
    worker = fleet.worker(library)
    fleet.run(library, SEND.format(count=30, seconds=0.1))
    fleet.wait_for_log(worker, "received", 8)
    worker.kill()
    fleet.worker(library, name="heir")
    fleet.run(library, COLLECT.format(count=30))


@pytest.mark.soak
@BOTH_LIBRARIES
@pytest.mark.parametrize("fleet", ["sqla"], indirect=True)
def test_killed_worker_takes_only_what_it_had_read_from_tables(fleet, library):
    worker = fleet.worker(library)
    fleet.run(library, SEND.format(count=30, seconds=0.1))
    fleet.wait_for_log(worker, "received", 3)
    worker.kill()
    left = int(fleet.run(library, WAITING))
    heir = fleet.worker(library, name="heir")
    fleet.wait_for_log(heir, " succeeded in ", left)
    assert heir.log.read_text().count(" received") == left < 30
    assert left <= fleet.noted("done") <= 30


@pytest.mark.soak
@BOTH_LIBRARIES
@BOTH_BROKERS
def test_hangup_starts_the_worker_anew(fleet, library):
    if library == "kombu":
        pytest.skip("`python -m celery` cannot do that")
    worker = fleet.worker(library)
    fleet.run(library, SEND.format(count=12, seconds=0.4))
    fleet.wait_for_log(worker, "received", 2)
    worker.signal(signal.SIGHUP)
    fleet.wait_for_log(worker, " ready.", 2)
    assert int(fleet.run(library, COLLECT.format(count=12))) == 0  # none was begun twice
    assert "shop.add" in fleet.run(library, "from shop import app; print(app.control.inspect(timeout=2).registered())")


@pytest.mark.parametrize("command", ["multi", pytest.param("detach", marks=pytest.mark.soak)])
@BOTH_LIBRARIES
@pytest.mark.parametrize("fleet", ["redis", pytest.param("amqp", marks=pytest.mark.soak)], indirect=True)
def test_worker_in_the_background(fleet, library, command):
    pid, log = fleet.folder / "one.pid", fleet.folder / "one.log"
    files = (f"--pidfile={pid}", f"--logfile={log}")
    # `multi` hands the application on only if it stands behind it.
    start = ("multi", "start", "one", "-A", "shop") if command == "multi" else ("worker", "--detach")
    starter = fleet.celery(library, *start, *files, "-P", "solo", "-l", "INFO")
    assert starter.wait() == 0, starter.log.read_text()
    try:
        names = fleet.run(library, "from shop import modules; print(*dict(modules.delay().get(timeout=40).values()))")
        assert {name.partition(".")[0] for name in names.split()} == {library}
        if command == "multi":
            stopper = fleet.celery(library, "multi", "stopwait", "one", *files)
            assert stopper.wait() == 0, stopper.log.read_text()
        else:
            fleet.celery(library, "control", "shutdown").wait()
        wait_until(lambda: not pid.exists(), TIMEOUT, "it does not end; its log ends:\n{}", log)
    finally:
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGKILL)


@BOTH_LIBRARIES
@pytest.mark.parametrize(("limit", "seconds"), [(1, 6), pytest.param(4, 12, marks=pytest.mark.soak)])
def test_task_that_takes_longer_than_redis_keeps_idle_connections_is_done_once(
    make_fleet, start_server, library, limit, seconds
):
    server = start_server(lambda: RedisServer(timeout=limit))
    fleet = make_fleet("redis", server.url)
    # Celery's heartbeats and gossip go over connections of their own, which are not idle.
    worker = fleet.worker(library, "prefork", "-c", "1", "--without-gossip", "--without-mingle", "--without-heartbeat")
    fleet.run(library, SEND.format(count=1, seconds=seconds))
    fleet.wait_for_log(worker, "succeeded")
    assert int(fleet.run(library, COLLECT.format(count=1))) == 0  # it was not begun again
    fleet.run(library, "from shop import add; assert add.delay(1, 2).get(timeout=20) == 3")
    assert "onnection to broker lost" not in worker.log.read_text()
    assert fleet.noted("done.begun") == 1


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
@BOTH_BROKERS
def test_priorities_decide_the_order(fleet, library):
    fill = """
from shop import named, note
for priority in (5, 1, 9, 3, 7):
    note.apply_async((named("order"), priority), queue=named("urgent"), priority=priority, ignore_result=True)
"""
    fleet.run(library, fill)
    fleet.worker(library, "solo", "-Q", fleet.named("urgent"))
    collect = """
import time
from shop import named, notes
deadline = time.monotonic() + 50
while len(found := notes().lrange(named("order"), 0, -1)) < 5:
    assert time.monotonic() < deadline, found
    time.sleep(0.05)
print(*found)
"""
    served = ["1", "3", "5", "7", "9"] if fleet.broker.startswith("redis") else ["9", "7", "5", "3", "1"]
    assert fleet.run(library, collect).split() == served


@pytest.mark.soak
@BOTH_LIBRARIES
@BOTH_BROKERS
def test_flower(fleet, library):
    pytest.importorskip("flower")
    fleet.environment["FLOWER_UNAUTHENTICATED_API"] = "true"
    worker = fleet.worker(library, "prefork", "-E")
    port = free_port()
    flower = fleet.celery(library, "flower", "--address=127.0.0.1", f"--port={port}")

    def ask(path: str) -> Any:
        try:
            with urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=30) as reply:
                return json.load(reply)
        except OSError:
            assert flower.process.poll() is None, fleet.logs()
            return {}

    name = f"w@{fleet.space}"
    queues: set[str] = set()

    def knows_the_queues() -> bool:
        found = ask("workers?refresh=true").get(name) or {}
        queues.update(queue["name"] for queue in found.get("active_queues") or ())
        return bool(queues)

    wait_until(knows_the_queues, TIMEOUT, "Flower does not see the worker; its log ends:\n{}", flower.log)
    assert {fleet.named("celery"), fleet.named("other")} <= queues

    def sees_a_task() -> bool:
        # Its receiver may not listen yet when it first answers: what it missed it does not see.
        fleet.run(library, "from shop import add; add.delay(1, 2).get(timeout=20)")
        return any((task["state"], task["result"]) == ("SUCCESS", "3") for task in ask("tasks").values())

    wait_until(sees_a_task, TIMEOUT, "Flower does not see the tasks; its log ends:\n{}", flower.log)
    with urlopen(f"http://127.0.0.1:{port}/workers", timeout=30) as page:
        assert name in page.read().decode()
    request = Request(f"http://127.0.0.1:{port}/api/worker/shutdown/{name}", method="POST", data=b"")
    with urlopen(request, timeout=30) as reply:
        assert reply.status == 200
    assert worker.wait() == 0


@pytest.mark.soak
@BOTH_LIBRARIES
def test_quorum_queues_with_native_delayed_delivery(make_fleet: Callable[..., Fleet], library):
    fleet = make_fleet("amqp", queues="quorum")
    worker = fleet.worker(library)
    program = """
from shop import add, where
assert add.delay(1, 2).get(timeout=20) == 3
assert add.apply_async((2, 2), countdown=1).get(timeout=30) == 4
assert where.delay().get(timeout=30)["host"]
"""
    fleet.run(library, program)
    # Where the exchange is no direct one the broker keeps a task until it is time: nobody needs to be there.
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    program = """
import time
from shop import app, named, note
def waiting(name):
    return channel.queue_declare(name, passive=True).message_count
def delayed():
    return sum(waiting(f"celery_delayed_{level}") for level in range(28))
with app.connection_for_write() as connection:
    channel = connection.channel()
    note.apply_async((named("late"), 1), queue=named("sport"), countdown=600, ignore_result=True)
    deadline = time.monotonic() + 30
    while delayed() < 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert waiting(named("sport")) == 0
    note.apply_async((named("late"), 2), queue=named("sport"), countdown=2, ignore_result=True)
    while waiting(named("sport")) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert delayed() == 1
    for level in range(28):
        channel.queue_purge(f"celery_delayed_{level}")  # the broker's, and so the next test's too
"""
    fleet.run(library, program)
    fleet.worker(library, name="heir")
    wait_until(lambda: fleet.noted("late") == 1, TIMEOUT, "{}", worker.log)
    fleet.close()


@pytest.mark.usefixtures("amqp_url")  # which is skipped where there is no RabbitMQ
def test_operator_refuses_transient_queues(make_fleet, start_server):
    if int(version("rabbitmqctl").split(".")[0]) < 4:
        pytest.skip("RabbitMQ 3 refuses no queue for being transient")
    server = start_server(lambda: RabbitMQServer({"deprecated_features.permit.transient_nonexcl_queues": "false"}))
    fleet = make_fleet("amqp-rpc", broker=server.url)
    fleet.worker("kombulite", "prefork", "-E")
    client = fleet.client("kombulite")
    for scenario in ("delay_and_errors", "broadcast", "remote_control", "events"):
        assert client.run(scenario) is None, fleet.logs()
