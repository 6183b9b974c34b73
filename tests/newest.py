"""Run the tests that need brokers on the newest ones, and on the newest Python: ``python -m tests.newest``.

``tests/newest_brokers.sh`` brings them into a folder; ``make newest`` does both. Prints one table.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.servers import version

ROOT = Path(__file__).resolve().parent.parent
BROKER_TESTS = ("contract", "aio", "amqp", "redis", "sql", "faults", "cluster", "celery")
REPORT_TIMEOUT = 3600  # seconds that the tests on one set of programs may take


class Run(NamedTuple):
    """One run of pytest: on what, by which Python, which folders of tests, and what it finds in its environment."""

    title: str
    python: Sequence[str]
    folders: Sequence[str]
    environment: Mapping[str, str]


class Row(NamedTuple):
    """What came out for a folder of tests."""

    title: str
    folder: str
    passed: int
    failed: int
    skipped: int


def runs_of(folder: Path) -> Iterator[Run]:
    """Yield a run for each set of programs in the folder."""
    here = [sys.executable]
    newest = folder / "rabbitmq"
    os.environ["KOMBULITE_TEST_PROGRAMS"] = str(newest)
    names = {"RabbitMQ": "rabbitmqctl", "Redis": "redis-server", "PostgreSQL": "postgres"}
    brokers = ", ".join(f"{name} {version(program)}" for name, program in names.items())
    yield Run(brokers, here, BROKER_TESTS, {"KOMBULITE_TEST_PROGRAMS": str(newest)})
    valkey = folder / "valkey"
    os.environ["KOMBULITE_TEST_PROGRAMS"] = str(valkey)
    title = f"Valkey {version('redis-server')}"
    yield Run(title, here, ("contract", "aio", "redis", "faults", "celery"), {"KOMBULITE_TEST_PROGRAMS": str(valkey)})
    del os.environ["KOMBULITE_TEST_PROGRAMS"]
    python = [str(folder / "run"), "/venv/bin/python"]
    question = "print(f'Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}')"
    command = [*python, "-c", f"import platform, sqlite3; {question}"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    yield Run(f"{found}, {brokers}", python, ("unit", "layering", "oracle", *BROKER_TESTS), {})


def rows_of(run: Run, report: Path, options: Sequence[str]) -> list[Row]:
    """Run the tests; returns a row for each folder, in which tests that did not start count as failed."""
    command = [*run.python, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}", *options, *(f"tests/{folder}" for folder in run.folders)]
    report.unlink(missing_ok=True)
    subprocess.run(command, cwd=ROOT, env={**os.environ, **run.environment}, timeout=REPORT_TIMEOUT, check=False)
    counts: Counter[tuple[str, str]] = Counter()
    if report.exists():
        for case in ET.parse(report).iter("testcase"):
            counts[_folder_of(case), _outcome_of(case)] += 1
    return [
        Row(run.title, folder, *(counts[folder, outcome] for outcome in ("passed", "failed", "skipped")))
        for folder in run.folders
    ]


def _folder_of(case: ET.Element) -> str:
    # A module that cannot be imported is named by `name` alone.
    return (case.get("classname") or case.get("name", "")).split(".")[1]


def _outcome_of(case: ET.Element) -> str:
    kinds = {child.tag for child in case}
    return "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"


def table_of(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown."""
    lines = ["| on | tests | passed | failed | skipped |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines)


def main() -> int:
    """Run all, print the table; returns 1 if a test failed, or none passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where tests/newest_brokers.sh has brought them")
    parser.add_argument("options", nargs="*", help="options for pytest, after --")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    rows: list[Row] = []
    for number, run in enumerate(runs_of(folder)):
        print(f"\n=== {run.title}", flush=True)
        # Below the repository, which the tree has too.
        rows += rows_of(run, ROOT / "build" / f"newest-{number}.xml", arguments.options)
    print(f"\n{table_of(rows)}")
    return int(any(row.failed or not row.passed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
