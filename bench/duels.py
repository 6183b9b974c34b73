"""The duels run, by pytest-benchmark, and what is kept of its report."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from rich.progress import Progress, TaskID

from bench.figure import Figure


class Watch:
    """Plugin of pytest: shows how far the run is, and keeps what was skipped."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID = progress.add_task("collecting", total=None)
        self.skipped: list[tuple[str, str]] = []
        self.failed: list[tuple[str, str]] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._progress.update(self._task, total=len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._progress.update(self._task, description=nodeid.rpartition("/")[2])

    def pytest_runtest_logfinish(self) -> None:
        self._progress.advance(self._task)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        if report.skipped and isinstance(report.longrepr, tuple):
            self.skipped.append((name, report.longrepr[2].removeprefix("Skipped: ")))
        elif report.failed:
            self.failed.append((name, report.longreprtext.strip().rpartition("\n")[2]))


class NoDuels(Exception):
    """No duel could be run; the text is what pytest printed."""


def run(expression: str, progress: Progress, quick: bool = False) -> tuple[dict[str, Any], Watch]:
    """Run the duels that match; returns the report of pytest-benchmark, and what was skipped or failed.

    Raises NoDuels.
    """
    watch, output = Watch(progress), io.StringIO()
    with TemporaryDirectory() as folder:
        path = Path(folder, "report.json")
        arguments = [str(Path(__file__).parent), f"--benchmark-json={path}", "-k", expression]
        with redirect_stdout(output), redirect_stderr(output):
            code = pytest.main([*arguments, *(["--quick"] if quick else [])], plugins=[watch])
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or not path.exists():
            raise NoDuels(output.getvalue())
        return json.loads(path.read_text(encoding="utf-8")), watch


def figures_of(report: dict[str, Any]) -> list[Figure]:
    """The figures in a report of pytest-benchmark."""
    return [Figure(**found["extra_info"]["figure"]) for found in report["benchmarks"] if found["extra_info"]]
