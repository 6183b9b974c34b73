"""Tasks run: a process for each client, rivals in turn, round after round."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Timer
from types import TracebackType
from typing import Any

from bench.amqp_rivals import Missing, c_client_command
from bench.lab.brokers import Brokers
from bench.lab.processes import peak_memory, processor_time
from bench.lab.task import Task
from bench.results import Curve, Point, Results, View

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds that a client may take


@dataclass(frozen=True)
class Experiment:
    """A parameter, its values, the rivals, and their task at each; None where one cannot do it.

    ``processes``: how many do the task side by side. A task with a rate has a second process that consumes.
    """

    name: str
    title: str
    parameter: str
    view: View
    values: tuple[float | str, ...]
    rivals: tuple[str, ...]
    task: Callable[[Any, str], Task | None]
    rounds: int = 3
    processes: Callable[[Any], int] = lambda value: 1

    @property
    def runs(self) -> list[tuple[float | str, str, Task]]:
        """What has to be run in each round."""
        pairs = [(value, rival) for value in self.values for rival in self.rivals]
        return [(value, rival, task) for value, rival in pairs if (task := self.task(value, rival)) is not None]


class ClientFailed(Exception):
    """A client's process ended before its work was done."""


class Client:
    """A client's process: ready when the block begins; ``go`` lets it work; it ends with the block."""

    def __init__(self, task: Task) -> None:
        self.is_c = task.client == "C client"
        command = [sys.executable, "-m", "bench.lab.child", task.to_json()]
        if self.is_c:
            command = c_client_command(task.url, task.names[0])
        self._task = task
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._deadline = Timer(PATIENCE, self._process.kill)  # what hangs ends, and then nothing can be read from it
        self._deadline.start()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ClientFailed(f"{self._task.client} ended before its work was done: {self._task.work}")
        return line.strip()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def expect(self, word: str) -> None:
        """Wait for a word from it."""
        if (line := self._read()) != word:
            raise ClientFailed(f"a client says {line!r} and not {word!r}")

    def go(self) -> None:
        """Let it work."""
        if self.is_c:
            self._before = processor_time(self._process.pid)
            self._write(f"{self._task.work} {self._task.messages}")
            self._write("sync")
        else:
            self._write("go")

    def finish(self) -> dict[str, Any]:
        """Wait until its work is done; returns what it found."""
        if not self.is_c:
            return dict(json.loads(self._read()))
        self.expect("done")
        self.expect("done")
        return {"cpu": processor_time(self._process.pid) - self._before}

    def peak(self) -> int:
        """The most that it had resident so far, in bytes."""
        return peak_memory(self._process.pid)

    def __enter__(self) -> Client:
        try:
            if not self.is_c:
                self.expect("ready")
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._deadline.cancel()
        if kind is not None:
            self._process.kill()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()


def run(experiment: Experiment, brokers: Brokers, results: Results, advance: Callable[[str], None]) -> Curve:
    """Run it and return the curve; ``advance`` is told after each client.

    Clients that are not there or fail are noted in the results. Raises Unavailable for a missing broker.
    """
    points = {(value, rival): Point(value, rival) for value, rival, _ in experiment.runs}
    missing: dict[str, str] = {}
    failed: dict[str, str] = {}
    for number in range(experiment.rounds):
        for value, rival, task in experiment.runs if number % 2 == 0 else experiment.runs[::-1]:
            try:
                measure(task, points[value, rival], experiment.processes(value), brokers)
            except Missing as error:
                missing[f"{experiment.name}, {value}, {rival}"] = str(error)
            except ClientFailed as error:
                failed[f"{experiment.name}, {value}, {rival}"] = str(error)
            advance(f"{experiment.name}: {value} {rival}")
    results.skipped += missing.items()
    results.failed += failed.items()
    kept = [point for point in points.values() if point.seconds]
    return Curve(experiment.name, experiment.title, experiment.parameter, experiment.view, kept)


def measure(task: Task, point: Point, processes: int, brokers: Brokers) -> None:
    """One round of a point."""
    task = brokers.prepare(task, processes)
    if task.rate:
        latencies(task, point, brokers)
        return
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(task)) for _ in range(processes)]
        broker, start = brokers.cpu(task.transport), time.perf_counter()
        for client in clients:
            client.go()
        found = [client.finish() for client in clients]
        seconds, broker = time.perf_counter() - start, brokers.cpu(task.transport) - broker
        total = task.messages * processes
        note(point, total, seconds, sum(each["cpu"] for each in found), broker, clients)


def latencies(task: Task, point: Point, brokers: Brokers) -> None:
    """One round of a point of latencies: one client publishes, another consumes."""
    with Client(replace(task, work="consume and note latencies")) as consumer, Client(task) as producer:
        consumer.go()
        consumer.expect("consuming")
        broker, start = brokers.cpu(task.transport), time.perf_counter()
        producer.go()
        sent, received = producer.finish(), consumer.finish()
        seconds, broker = time.perf_counter() - start, brokers.cpu(task.transport) - broker
        point.latencies.append(received["latencies"])
        note(point, received["received"], seconds, sent["cpu"] + received["cpu"], broker, [consumer, producer])


def note(point: Point, messages: int, seconds: float, cpu: float, broker: float, clients: list[Client]) -> None:
    """Add a round to a point."""
    point.seconds.append(seconds / messages)
    point.cpu.append(cpu / messages)
    point.broker.append(broker / messages)
    point.peak.append(max(client.peak() for client in clients))
