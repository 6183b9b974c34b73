"""What a fresh process pays: each measurement is taken in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.figure import Figure

ROOT = Path(__file__).parents[1]

#: Imports nothing else first: what a rival needs of the standard library is part of its figure. Packages that both can
#: do without, and kombu imports where they are installed, are made to look missing.
IMPORT = """
import sys
from time import perf_counter
sys.modules.update(dict.fromkeys(("backports", "brotli", "brotlicffi", "msgpack", "yaml")))
start = perf_counter()
from {library} import Connection, Producer, Consumer, Exchange, Queue
print(perf_counter() - start)
"""
HELD = "from bench.workloads import held_bytes; print(held_bytes({library!r}))"
RESIDENT = "from bench.workloads import resident_bytes; print(resident_bytes({library!r}))"


def in_child(program: str, library: str) -> float:
    """The number that a program prints in a new interpreter, which may keep its byte code as usual.

    Without ``site``: an editable install has it import much that a library would have to import itself.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-S", "-c", program.format(library=library)]
    return float(subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def duel_of_processes(
    benchmark: Any, work: str, program: str, *, rounds: int, unit: str, at_most: float | None = None
) -> None:
    """Run the program for both in turn, and store the figure. The times of pytest-benchmark are the processes'."""
    for library in ("kombu", "kombulite"):
        in_child(IMPORT, library)  # compiles the byte code
    ours: list[float] = []
    theirs: list[float] = []
    benchmark.pedantic(
        lambda: ours.append(in_child(program, "kombulite")),
        setup=lambda: theirs.append(in_child(program, "kombu")),
        rounds=rounds,
    )
    Figure(work, ours, theirs, unit, at_most=at_most).store(benchmark)


def test_import(benchmark: Any) -> None:
    work = "import Connection, Producer, Consumer, Exchange, Queue"
    duel_of_processes(benchmark, work, IMPORT, rounds=21, unit="s", at_most=0.5)


def test_held(benchmark: Any) -> None:
    duel_of_processes(benchmark, "memory held by a queued small message", HELD, rounds=3, unit="B", at_most=0.5)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_resident(benchmark: Any) -> None:
    duel_of_processes(benchmark, "the same, as resident memory of the process", RESIDENT, rounds=3, unit="B")
