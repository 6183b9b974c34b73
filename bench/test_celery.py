"""Celery on kombulite beside Celery on genuine kombu: each measurement is taken in processes of its own.

A large share is Celery's: ``apply_async`` with a producer that sends nothing says how much of enqueueing is, and a
worker that has the broker in its own process how much of a task is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from bench.figure import Figure
from tests.celery.fleet import LIBRARIES, Fleet, Process
from tests.servers import RabbitMQServer, RedisServer, Server, Unavailable

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells what a process took")

ROUNDS = 5
ENQUEUED = 2000
COMPLETED = 2000
IDLE = 15  # seconds

ENQUEUE = f"""
from time import perf_counter
from contextlib import nullcontext
from shop import add, app
options = dict(ignore_result=True, queue=app.conf.task_default_queue)
with app.producer_pool.acquire(block=True) as producer:
    if {{alone}}:
        producer.publish = lambda *args, **kwargs: None
        options["producer"] = producer
    if {{batch}}:
        options["producer"] = producer
    add.apply_async((1, 2), **options)
    start = perf_counter()
    with producer.batch() if {{batch}} else nullcontext():
        for _ in range({ENQUEUED}):
            add.apply_async((1, 2), **options)
    print((perf_counter() - start) / {ENQUEUED})
"""

FILL = f"""
from shop import add, named, note
note.apply_async((named("times"), "first"), ignore_result=True)
for _ in range({COMPLETED}):
    add.apply_async((1, 2), ignore_result=True)
note.apply_async((named("times"), "last"), ignore_result=True)
"""

FILL_AND_WORK = """
from shop import app
app.worker_main(["worker", "-P", "{pool}", "-c", "2", "-l", "INFO", "--without-gossip", "--without-mingle"])
"""


@pytest.fixture(scope="module", params=[RedisServer, RabbitMQServer], ids=["Redis", "RabbitMQ"])
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[str, Server, Server]]:
    try:
        with request.param() as broker, RedisServer() as backend:
            yield request.param.__name__.removesuffix("Server"), broker, backend
    except Unavailable as error:
        pytest.skip(str(error))


@contextmanager
def fleet_on(servers: tuple[str, Server, Server], folder: Path) -> Iterator[Fleet]:
    """A fleet with names, and a folder, that nobody used before: a log of another would say that a worker is ready."""
    _, broker, backend = servers
    with closing(Fleet(Path(mkdtemp(dir=folder)), broker.url, backend.url, backend.url)) as fleet:
        yield fleet


def duel(benchmark: Any, measure: Any, rounds: int = ROUNDS) -> dict[str, list[Any]]:
    """Measure both libraries in turn."""
    found: dict[str, list[Any]] = {library: [] for library in LIBRARIES}
    benchmark.pedantic(
        lambda: found["kombulite"].append(measure("kombulite")),
        setup=lambda: found["kombu"].append(measure("kombu")),
        rounds=rounds,
    )
    return found


@pytest.mark.parametrize("how", ["one at a time", "in a batch", "sending nothing: Celery's own share"])
def test_enqueue(benchmark: Any, servers: tuple[str, Server, Server], how: str, tmp_path: Path) -> None:
    program = ENQUEUE.format(alone="nothing" in how, batch="batch" in how)

    def measure(library: str) -> float:
        with fleet_on(servers, tmp_path) as fleet:
            return float(fleet.run(library, program))

    found = duel(benchmark, measure)
    mark = {"one at a time": 1.6, "in a batch": 2.2}.get(how) if servers[0] == "Redis" else None
    Figure(f"Celery, {servers[0]}: apply_async {how}", found["kombulite"], found["kombu"], at_least=mark).store(
        benchmark
    )


@pytest.mark.parametrize("pool", ["prefork", "solo"])
@pytest.mark.parametrize("figure", ["task completed", "CPU for a task"])
def test_complete(benchmark: Any, servers: tuple[str, Server, Server], pool: str, figure: str, tmp_path: Path) -> None:
    def measure(library: str) -> float:
        with fleet_on(servers, tmp_path) as fleet:
            fleet.run(library, FILL)
            worker = fleet.worker(library, pool, "--without-gossip", "--without-mingle", ready=False)
            return cost_of_a_task(worker, servers[2], fleet, figure)

    found = duel(benchmark, measure)
    mark = 1.5 if servers[0] == "Redis" and figure == "task completed" else None
    work = f"Celery, {servers[0]}: {figure}, {pool}"
    Figure(work, found["kombulite"], found["kombu"], at_least=mark).store(benchmark)


@pytest.mark.parametrize("pool", ["prefork", "solo"])
@pytest.mark.parametrize("figure", ["task completed", "CPU for a task"])
def test_complete_in_memory(benchmark: Any, pool: str, figure: str, tmp_path: Path) -> None:
    """What is left of a task where the broker costs next to nothing."""
    with ExitStack() as stack:
        try:
            backend = stack.enter_context(RedisServer())
        except Unavailable as error:
            pytest.skip(str(error))

        def measure(library: str) -> float:
            folder = Path(mkdtemp(dir=tmp_path))
            with closing(Fleet(folder, "memory://", backend.url, backend.url)) as fleet:
                worker = fleet.start(library, FILL + FILL_AND_WORK.format(pool=pool))
                return cost_of_a_task(worker, backend, fleet, figure)

        found = duel(benchmark, measure)
    work = f"Celery, memory: {figure}, {pool}: Celery's own share"
    Figure(work, found["kombulite"], found["kombu"]).store(benchmark)


@pytest.mark.parametrize("figure", ["CPU of an idle worker in a second", "memory of an idle worker"])
def test_idle(benchmark: Any, servers: tuple[str, Server, Server], figure: str, tmp_path: Path) -> None:
    def measure(library: str) -> float:
        with fleet_on(servers, tmp_path) as fleet:
            worker = fleet.worker(library, "prefork")
            if figure.startswith("memory"):
                return resident(worker.pid)
            time.sleep(2)
            before = cpu_of(worker)
            time.sleep(IDLE)
            return (cpu_of(worker) - before) / IDLE

    found = duel(benchmark, measure, rounds=3)
    unit = "B" if figure.startswith("memory") else "s"
    work = f"Celery, {servers[0]}: {figure}"
    Figure(work, found["kombulite"], found["kombu"], unit, at_most=1.05).store(benchmark)


# --- what processes took


def cost_of_a_task(worker: Process, backend: Server, fleet: Fleet, figure: str) -> float:
    """Seconds by the clock, or of the worker's processor time, from the first note to the second, for each task."""
    start, cpu = wait_for(backend, fleet, 1), cpu_of(worker)
    seconds = wait_for(backend, fleet, 2) - start
    return (seconds if figure == "task completed" else cpu_of(worker) - cpu) / COMPLETED


def wait_for(server: Server, fleet: Fleet, count: int) -> float:
    """Wait until so many notes are there; returns the time."""
    import redis

    with closing(redis.Redis.from_url(server.url)) as client:
        deadline = time.monotonic() + 120
        while client.llen(fleet.named("times")) < count:
            assert time.monotonic() < deadline, fleet.logs()
            time.sleep(0.002)
        return time.perf_counter()


def family(process: Process) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [process.pid, *map(int, children)]


def cpu_of(process: Process) -> float:
    """Processor time that a process and its children took, with all threads that they have, in seconds."""
    threads = [thread for pid in family(process) for thread in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def resident(pid: int) -> int:
    """Memory of a process, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError
