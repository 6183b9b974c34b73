"""Run the benchmarks and print one table of ratios: ``python -m bench [-k EXPRESSION] [--json FILE]``."""

from __future__ import annotations

import argparse
import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.figure import Figure

LIBRARIES = ("kombulite", "kombu", "pytest-benchmark")


class Watch:
    """Plugin of pytest: shows how far the run is, and keeps what was skipped."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("collecting", total=None)
        self.skipped: list[tuple[str, str]] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._progress.update(self._task, total=len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._progress.update(self._task, description=nodeid.rpartition("/")[2])

    def pytest_runtest_logfinish(self) -> None:
        self._progress.advance(self._task)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            self.skipped.append((report.nodeid.rpartition("::")[2], report.longrepr[2].removeprefix("Skipped: ")))


def run(report: Path, expression: str, progress: Progress) -> tuple[int, str, Watch]:
    """Run the benchmarks into a report of pytest-benchmark; returns the exit code, what pytest printed, the watch."""
    watch, output = Watch(progress), io.StringIO()
    arguments = [str(Path(__file__).parent), f"--benchmark-json={report}", "-k", expression]
    with redirect_stdout(output), redirect_stderr(output):
        code = pytest.main(arguments, plugins=[watch])
    return int(code), output.getvalue(), watch


# --- the table ----------------------------------------------------------------------------------------------------


def amount(values: list[float], unit: str) -> str:
    """The median of what was measured, in a unit that fits."""
    if not values:
        return "-"
    value = sorted(values)[len(values) // 2]
    if unit == "B":
        return f"{value:,.0f} B"
    for limit, factor, name in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "µs"), (1, 1e3, "ms")):
        if value < limit:
            return f"{value * factor:.3g} {name}" if value * factor < 1000 else f"{value * factor:.0f} {name}"
    return f"{value:.3g} s"


def ratio(value: float | None, figure: Figure) -> str:
    if value is None:
        return "-"
    digits = 2 if figure.is_part or value < 1 else 1 if value < 100 else 0
    return f"{value:.{digits}f}" + ("" if figure.is_part else "x")


def mark(figure: Figure) -> str:
    if figure.at_least is not None:
        return f"≥ {figure.at_least:g}x"
    return "" if figure.at_most is None else f"≤ {figure.at_most:g}"


def table_of(figures: list[Figure]) -> Table:
    table = Table(header_style="bold")
    table.add_column("work")
    table.add_column("rival")
    for heading in ("rival's", "kombulite", "ratio", "middle half", "mark"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("result", no_wrap=True)
    marked = [figure for figure in figures if figure.reached is not None]
    for group in (marked, [figure for figure in figures if figure.reached is None]):
        for figure in group:
            table.add_row(
                figure.work,
                figure.rival,
                amount(figure.theirs, figure.unit),
                amount(figure.ours, figure.unit),
                f"[bold]{ratio(figure.ratio, figure)}[/]",
                " to ".join(ratio(value, figure) for value in figure.spread or ()),
                mark(figure),
                {True: "[green]reached[/]", False: "[bold red]missed[/]", None: ""}[figure.reached],
            )
        table.add_section()
    return table


def head(report: dict[str, Any]) -> str:
    """What the figures depend on: machine, versions, commit. No path and no name of a host."""
    machine, commit = report["machine_info"], report["commit_info"]
    cpu = machine["cpu"]
    lines = [
        f"{cpu.get('brand_raw', machine['machine'])}, {cpu.get('count', '?')} cores, {machine['system']}",
        f"{machine['python_implementation']} {machine['python_version']}, "
        + ", ".join(f"{library} {version(library)}" for library in LIBRARIES),
    ]
    if commit.get("id") and commit["id"] != "unversioned":
        lines.append(f"commit {commit['id'][:12]}{' with changes' if commit.get('dirty') else ''}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks beside genuine kombu.")
    parser.add_argument("-k", dest="expression", default="", help="only the benchmarks that match, as for pytest")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report of pytest-benchmark there")
    options = parser.parse_args()
    out = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 140)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with TemporaryDirectory() as folder:
        path = Path(folder, "report.json")
        with Progress(*columns, console=Console(file=sys.stderr), transient=True, redirect_stdout=False) as progress:
            code, printed, watch = run(path, options.expression, progress)
        if code != pytest.ExitCode.OK:
            print(printed, file=sys.stderr)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    if not text:
        return code or 1
    if options.json is not None:
        options.json.write_text(text, encoding="utf-8")
    report = json.loads(text)
    figures = [Figure(**found["extra_info"]["figure"]) for found in report["benchmarks"] if found["extra_info"]]
    out.print(head(report))
    out.print(table_of(figures))
    out.print("Medians of alternating rounds; the ratio is the median of the ratios of neighbouring rounds.")
    for name, reason in watch.skipped:
        out.print(f"skipped: {name}: {reason}", soft_wrap=True)
    missed = [figure.work for figure in figures if figure.reached is False]
    out.print(f"{len(missed)} marks missed: {'; '.join(missed)}" if missed else "All marks reached.", soft_wrap=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
