"""What a run looks like: a live view on a terminal, plain lines elsewhere, and the closing table."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from kombulite.cli.ledger import Percentiles
from kombulite.cli.load import Plan, Report, Sample

NOTHING = "-"
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
LONGEST_SILENCE = 60.0  # seconds between plain lines; the first come faster


def printable(text: str) -> str:
    """Text from others as it may be shown on a terminal, which takes control characters for orders."""
    return text.translate(CONTROLS)


class Display(Protocol):
    """Shows a run while it is on."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def show(self, sample: Sample) -> None:
        """Show how the run stands."""


def display_for(plan: Plan, broker: str, console: Console) -> Display:
    """Return the display that suits the console."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveDisplay(plan, broker, console)
    return PlainDisplay(plan, broker, console)


class SilentDisplay:
    """Shows nothing."""

    def __enter__(self) -> SilentDisplay:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def show(self, sample: Sample) -> None:
        """Nothing."""


class PlainDisplay:
    """A line now and then, for logs and pipes: after 1, 2, 4, … seconds, and at least once a minute."""

    def __init__(self, plan: Plan, broker: str, console: Console) -> None:
        self._plan = plan
        self._console = console
        self._next, self._interval = 1.0, 1.0
        self._print(f"{broker}: {_size(plan)}, {_crew(plan)}")

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def show(self, sample: Sample) -> None:
        """Print a line, if one is due."""
        if sample.elapsed < self._next:
            return
        self._print(
            f"{sample.elapsed:.0f} s: {sample.consumed:,} consumed ({_percent(self._plan, sample):.0f} %), "
            f"{sample.publish_rate:,.0f}/s published, {sample.consume_rate:,.0f}/s consumed, "
            f"depth {sample.depth:,}, latency {_latency(sample.latency)}"
        )
        self._next = sample.elapsed + self._interval
        self._interval = min(self._interval * 2, LONGEST_SILENCE)

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveDisplay:
    """A progress bar and the figures of the moment, redrawn in place."""

    def __init__(self, plan: Plan, broker: str, console: Console) -> None:
        self._plan = plan
        self._title = Text.assemble((broker, "bold"), f"  {_crew(plan)}", overflow="ellipsis", no_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(None),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._task: TaskID = self._progress.add_task(_size(plan), total=100)
        self._live = Live(self._progress, console=console, auto_refresh=False)

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def show(self, sample: Sample) -> None:
        """Redraw."""
        self._progress.update(
            self._task,
            completed=_percent(self._plan, sample),
            description=f"{sample.consumed:,} of {_size(self._plan)}",
        )
        figures = Table.grid(padding=(0, 3))
        figures.add_row("published", f"{sample.publish_rate:,.0f}/s", "queue depth", f"{sample.depth:,}")
        figures.add_row("consumed", f"{sample.consume_rate:,.0f}/s", "latency", _latency(sample.latency))
        self._live.update(Group(self._title, self._progress, figures), refresh=True)


def closing_table(report: Report) -> Table:
    """Return the figures of a run that is over."""
    table = Table(title="kombulite run", show_header=False, title_justify="left")
    table.add_column("figure", no_wrap=True)
    table.add_column("value", justify="right", overflow="fold")
    latency = report.latency
    rows: list[tuple[str, str]] = [
        ("broker", report.broker),
        ("published", f"{report.published:,}"),
        ("consumed", f"{report.consumed:,}"),
        ("seconds", f"{report.seconds:.2f}"),
        ("published/s", f"{report.publish_rate:,.0f}"),
        ("consumed/s", f"{report.consume_rate:,.0f}"),
        ("peak depth", f"{report.peak_depth:,}"),
        ("latency p50", _milliseconds(latency.p50 if latency else None)),
        ("latency p99", _milliseconds(latency.p99 if latency else None)),
        ("latency p99.9", _milliseconds(latency.p999 if latency else None)),
        ("CPU per message", f"{report.cpu * 1e6:.1f} µs"),
        ("of it this program's own", f"{report.own_cpu * 1e6:.1f} µs"),
    ]
    for name, value in rows:
        table.add_row(name, Text(value))
    for name, count in (("lost", report.lost), ("duplicates", report.duplicates)):
        table.add_row(name, Text(f"{count:,}", style="bold red" if count else "green"))
    return table


def closing_json(report: Report) -> str:
    """Return the figures of a run that is over, for programs."""
    latency = report.latency
    figures: dict[str, Any] = {
        "broker": report.broker,
        "published": report.published,
        "consumed": report.consumed,
        "duplicates": report.duplicates,
        "lost": report.lost,
        "seconds": round(report.seconds, 6),
        "published_per_second": round(report.publish_rate, 1),
        "consumed_per_second": round(report.consume_rate, 1),
        "peak_depth": report.peak_depth,
        "latency_ms": {
            "p50": round(latency.p50 * 1e3, 3),
            "p99": round(latency.p99 * 1e3, 3),
            "p99.9": round(latency.p999 * 1e3, 3),
        }
        if latency
        else None,
        "cpu_us_per_message": round(report.cpu * 1e6, 2),
        "own_cpu_us_per_message": round(report.own_cpu * 1e6, 2),
        "error": report.error,
    }
    return json.dumps(figures, indent=2)


def _size(plan: Plan) -> str:
    sizes = []
    if plan.messages is not None:
        sizes.append(f"{plan.messages:,} messages")
    if plan.seconds is not None:
        sizes.append(f"{plan.seconds:g} s")
    return " or ".join(sizes)


def _crew(plan: Plan) -> str:
    return f"{_count(plan.producers, 'producer')}, {_count(plan.consumers, 'consumer')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _percent(plan: Plan, sample: Sample) -> float:
    """How much of the run is done, by the bound that it is closest to."""
    shares = [0.0]
    if plan.messages is not None:
        shares.append(sample.consumed / plan.messages)
    if plan.seconds is not None:
        shares.append(sample.elapsed / plan.seconds)
    return min(100 * max(shares), 100)


def _milliseconds(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{seconds * 1e3:.2f} ms"


def _latency(latency: Percentiles | None) -> str:
    if latency is None:
        return NOTHING
    p50, p99, p999 = (each * 1e3 for each in latency)
    return f"p50 {p50:.2f}, p99 {p99:.2f}, p99.9 {p999:.2f} ms"
