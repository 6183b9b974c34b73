"""What a message needs: system calls, bytes on the wire, instructions.

Each client does the work with few messages and with more, under strace and under callgrind; what lies between the two,
for one message, is free of its start and of its end.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from threading import Timer

from bench.amqp_rivals import Missing, c_client_command
from bench.lab.brokers import Brokers
from bench.lab.curves import CLIENTS, WORKLOADS, workload
from bench.lab.running import ROOT
from bench.lab.task import Task
from bench.results import Need, Results

FEW, MORE = 500, 1500
PATIENCE = 300.0  # seconds that a client may take under valgrind
DONE = re.compile(r"^\d+ +(?:<\.\.\. )?(\w+)(?: resumed>|\().* = (-?\d+)", re.MULTILINE)
OF_SOCKETS = {"sendto", "sendmsg", "writev", "recvfrom", "recvmsg", "readv"}


def runs() -> list[tuple[str, str, Task]]:
    """What is measured: publishing and consuming, over a broker, of each client that can."""
    found = [(work, client, workload(work, client)) for work in WORKLOADS for client in CLIENTS]
    return [
        (work, client, task)
        for work, client, task in found
        if task is not None and task.transport != "memory" and task.work != "round trip"
    ]


def needs(brokers: Brokers, results: Results, advance: Callable[[str], None]) -> Iterator[Need]:
    """Measure all ``runs``; ``advance`` is told after each. What cannot be run or fails is noted in the results.

    Counts depend little on who else is at work, so both brokers are worked on at the same time. Raises Unavailable for
    a missing broker.
    """
    if missing := [tool for tool in ("strace", "valgrind") if which(tool) is None]:
        results.skipped.append(("needs", f"not installed: {', '.join(missing)}"))
        return
    with ExitStack() as stack:
        threads: dict[str, ThreadPoolExecutor] = {}  # one for each broker
        begun = []
        for work, client, task in runs():
            if task.transport not in threads:
                threads[task.transport] = stack.enter_context(ThreadPoolExecutor(1))
            begun.append((work, client, threads[task.transport].submit(measure, task, brokers)))
        for work, client, future in begun:
            try:
                yield Need(work, client, *future.result())
            except Missing as error:
                results.skipped.append((f"needs, {work}, {client}", str(error)))
            except (subprocess.SubprocessError, TimeoutError) as error:
                results.failed.append((f"needs, {work}, {client}", type(error).__name__))
            advance(f"needs: {work} {client}")


def measure(task: Task, brokers: Brokers) -> list[float]:
    """System calls, bytes on the wire, and instructions of a client for one message."""
    few, more = (count(replace(task, messages=n), brokers) for n in (FEW, MORE))
    return [(b - a) / (MORE - FEW) for a, b in zip(few, more, strict=True)]


def count(task: Task, brokers: Brokers) -> tuple[int, int, int]:
    """System calls, bytes on the wire, and instructions of a client with a task."""
    with TemporaryDirectory() as folder:
        out = Path(folder, "out")
        do(["strace", "-f", "-qq", "-o", str(out)], brokers.prepare(task))
        calls, wire = counted(out.read_text(encoding="utf-8", errors="replace"))
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
        if task.client == "C client":
            do(command, brokers.prepare(task))
        else:  # its start has far more instructions than its work
            do([*command, "--instr-atstart=no"], brokers.prepare(task), begin_to_count)
        summary = re.search(r"^summary: (\d+)", out.read_text(encoding="utf-8"), re.MULTILINE)
        return calls, wire, int(summary[1]) if summary else 0


def counted(trace: str) -> tuple[int, int]:
    """System calls that returned, and bytes that went through sockets, in what strace wrote."""
    calls = DONE.findall(trace)
    return len(calls), sum(max(0, int(result)) for name, result in calls if name in OF_SOCKETS)


def begin_to_count(pid: int) -> None:
    """Have callgrind count from now on."""
    subprocess.run(["callgrind_control", "-i", "on", str(pid)], capture_output=True, check=True, timeout=PATIENCE)


def do(under: Sequence[str], task: Task, when_ready: Callable[[int], None] = lambda pid: None) -> None:
    """Let a client do a task under a tool. Raises a subprocess.SubprocessError where it fails, or Missing."""
    if task.client == "C client":
        command, lines = c_client_command(task.url, task.names[0]), f"{task.work} {task.messages}\nsync\n"
    else:
        command, lines = [sys.executable, "-m", "bench.lab.child", task.to_json()], "go\n\n"
    with subprocess.Popen(
        [*under, *command], cwd=ROOT, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        deadline = Timer(PATIENCE, os.killpg, (process.pid, signal.SIGKILL))
        deadline.start()
        try:
            if task.client != "C client" and process.stdout is not None and process.stdout.readline():
                when_ready(process.pid)
            process.communicate(lines)
        finally:
            deadline.cancel()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
