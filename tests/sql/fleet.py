"""Processes that publish and consume numbers on one database, and a ledger of files of what they have done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

WORKER = Path(__file__).with_name("worker.py")


class Fleet:
    """Processes of ``worker.py`` on one database. ``environment``: what they find in theirs besides."""

    def __init__(self, database, folder: Path, environment: Mapping[str, str] | None = None, **options):
        self.database, self.folder = database, folder
        self.options = {"table_prefix": database.prefix, "lease": 1, **options}
        self.processes: list[subprocess.Popen[bytes]] = []
        self._environment = {**os.environ, **(environment or {})}

    def start(self, role: str, name: object, first: int, count: int) -> subprocess.Popen[bytes]:
        log, options = self.folder / f"{role}.{name}", json.dumps(self.options)
        command = [sys.executable, str(WORKER), role, self.database.url, options, str(log), str(first), str(count)]
        process = subprocess.Popen(command, env=self._environment)
        self.processes.append(process)
        return process

    def numbers(self, role: str, name: object = "*") -> list[int]:
        """Return what the processes of a role have noted so far."""
        found = [line for log in self.folder.glob(f"{role}.{name}") for line in log.read_text().split("\n")[:-1]]
        return [int(line) for line in found]

    def wait_for(self, role: str, name: object, count: int) -> None:
        """Wait until a process has noted so many."""
        deadline = time.monotonic() + 60
        while len(self.numbers(role, name)) < count:
            assert time.monotonic() < deadline, f"{role}.{name} does not get to {count}"
            time.sleep(0.005)

    def publish(self, count: int) -> None:
        """Publish numbers with one process; returns when all are accepted."""
        assert self.start("publish", "all", 0, count).wait(600) == 0
        assert len(self.numbers("publish")) == count

    def finish(self) -> None:
        """Consume what is left, the leases of the killed being over."""
        assert self.start("consume", "last", 3, 1).wait(300) == 0

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(20)
