"""Celery's processes, on either library: started for the tests, and ended with them."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from tests.servers import tail, wait_until

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LIBRARIES = ("kombu", "kombulite")
TIMEOUT = 60.0  # seconds, for whatever is waited for
#: Seconds for a scenario. The 200 tasks of one, with results in a database, took 56 at a load of 24 on two cores.
SCENARIO_TIMEOUT = 100.0


class Process:
    """A command of Celery's, or another program, with kombu from one of the libraries."""

    def __init__(self, library: str, environment: dict[str, str], log: Path, *command: str, **options: Any) -> None:
        self.log = log
        environment = {**os.environ, **environment, "PYTHONPATH": f"{HERE}{os.pathsep}{ROOT}"}
        environment.pop("KOMBULITE_AS_KOMBU", None)
        if library == "kombulite":
            environment["KOMBULITE_AS_KOMBU"] = "1"
        with log.open("ab") as out:
            self.process: subprocess.Popen[str] = subprocess.Popen(
                [sys.executable, *command],
                env=environment,
                cwd=log.parent,
                text=True,
                start_new_session=True,
                **{"stdout": out, "stderr": out, "stdin": subprocess.DEVNULL, **options},
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: int) -> None:
        """Send a signal to the process, not to its children."""
        self.process.send_signal(number)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Its exit status. Raises with its log if it does not end."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end; its log ends:\n{tail(self.log)}") from None

    def kill(self) -> None:
        """End it and its children without a warning."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Client(Process):
    """A producer: runs scenarios, one after the other."""

    def __init__(self, library: str, environment: dict[str, str], log: Path, facts: dict[str, Any]) -> None:
        command = ("-m", "tests.celery.client", json.dumps(facts))
        pipe = subprocess.PIPE
        super().__init__(library, environment, log, *command, stdin=pipe, stdout=pipe)
        self._replies: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._replies.put(line)
        self._replies.put("")

    def run(self, scenario: str, timeout: float = SCENARIO_TIMEOUT) -> str | None:
        """Run a scenario; returns what went wrong."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{scenario}\n")
        self.process.stdin.flush()
        try:
            line = self._replies.get(timeout=timeout)
        except queue.Empty:
            return f"{scenario} takes too long; the log ends:\n{tail(self.log)}"
        reply: str | None = json.loads(line) if line else f"the client ended:\n{tail(self.log)}"
        return reply


class Fleet:
    """Workers and producers on one broker, under names of their own."""

    def __init__(self, folder: Path, broker: str, backend: str, notes: str, queues: str = "classic") -> None:
        self.folder = folder
        self.space = f"shop{uuid.uuid4().hex[:8]}"
        self.broker = broker
        self.environment = {
            "SHOP_SPACE": self.space,
            "SHOP_BROKER": broker,
            "SHOP_BACKEND": backend,
            "SHOP_NOTES": notes,
            "SHOP_QUEUES": queues,
            "C_FORCE_ROOT": "1",  # it accepts pickle, which root may not otherwise
        }
        self._processes: list[Process] = []

    def named(self, name: str) -> str:
        return f"{self.space}.{name}"

    def celery(self, library: str, *arguments: str, **options: Any) -> Process:
        """Run a command of Celery's."""
        command = ("-m", "kombulite", "celery") if library == "kombulite" else ("-m", "celery")
        log = self.folder / f"{arguments[0]}-{len(self._processes)}.log"
        process = Process(library, self.environment, log, *command, "-A", "shop", *arguments, **options)
        self._processes.append(process)
        return process

    def worker(
        self, library: str, pool: str = "prefork", *arguments: str, name: str = "w", ready: bool = True
    ) -> Process:
        """Start a worker with two places, and wait until it consumes."""
        concurrency = () if pool == "solo" or "-c" in arguments else ("-c", "2")
        worker = self.celery(
            library, "worker", "-P", pool, "-l", "INFO", "-n", f"{name}@{self.space}", *concurrency, *arguments
        )
        if ready:
            self.wait_for_log(worker, " ready.")
        return worker

    def wait_for_log(self, process: Process, text: str, times: int = 1) -> None:
        """Wait until a process has logged something so many times."""

        def has_it() -> bool:
            assert process.process.poll() is None, f"it ended:\n{tail(process.log)}"
            return process.log.read_text(errors="replace").count(text) >= times

        wait_until(has_it, TIMEOUT, f"no {text!r} in the log, which ends:\n{{}}", process.log)

    def client(self, library: str, **facts: Any) -> Client:
        """Start a producer. ``facts``: what its scenarios are told."""
        log = self.folder / f"client-{len(self._processes)}.log"
        client = Client(library, self.environment, log, {"pool": "prefork", "library": library, **facts})
        self._processes.append(client)
        return client

    def run(self, library: str, program: str, timeout: float = TIMEOUT) -> str:
        """Run a program with the application at hand; returns what it prints."""
        process = self.start(library, program, stdout=subprocess.PIPE)
        try:
            output, _ = process.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the program takes too long:\n{tail(process.log)}") from None
        assert process.process.returncode == 0, tail(process.log)
        return output

    def start(self, library: str, program: str, **options: Any) -> Process:
        """Start a program with the application at hand."""
        log = self.folder / f"program-{len(self._processes)}.log"
        process = Process(library, self.environment, log, "-c", program, **options)
        self._processes.append(process)
        return process

    def noted(self, name: str) -> int:
        """How many notes tasks took under a name."""
        import redis

        with redis.Redis.from_url(self.environment["SHOP_NOTES"]) as client:
            return int(client.llen(self.named(name)))

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"--- {process.log.name}\n{tail(process.log)}" for process in self._processes)

    def close(self) -> None:
        for process in self._processes:
            process.kill()


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has taken (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wakeups(pid: int) -> int:
    """How often a process went to sleep (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches"):
            return int(line.split()[1])
    raise AssertionError


def settle(seconds: float) -> None:
    """Let time pass in which nothing shall happen."""
    time.sleep(seconds)
