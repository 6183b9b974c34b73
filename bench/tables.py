"""Tables of what a run found: for a terminal, and the same as Markdown."""

from __future__ import annotations

import io
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table

from bench.figure import Figure
from bench.results import PERCENTILES, Curve, Point, Results

WIDTH = 400  # columns, so that no line of a Markdown table is broken


def amount(value: float | None, unit: str) -> str:
    """A value in a unit that fits."""
    if value is None:
        return "-"
    if unit == "B":
        return f"{value:,.0f} B"
    for limit, factor, name in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "µs"), (1, 1e3, "ms")):
        if value < limit:
            return f"{value * factor:.3g} {name}" if value * factor < 1000 else f"{value * factor:.0f} {name}"
    return f"{value:.3g} s"


def ratio(value: float | None, figure: Figure) -> str:
    """A ratio as the figure means it."""
    if value is None:
        return "-"
    digits = 2 if figure.is_part or value < 1 else 1 if value < 100 else 0
    return f"{value:.{digits}f}" + ("" if figure.is_part else "x")


def mark(figure: Figure) -> str:
    """What the ratio has to reach."""
    if figure.at_least is not None:
        return f"≥ {figure.at_least:g}x"
    return "" if figure.at_most is None else f"≤ {figure.at_most:g}"


def table_of_figures(figures: list[Figure], style: box.Box = box.HEAVY_HEAD) -> Table:
    """The duels: those with a mark first."""
    table = Table(header_style="bold", box=style)
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
                amount(median(figure.theirs) if figure.theirs else None, figure.unit),
                amount(median(figure.ours), figure.unit),
                f"[bold]{ratio(figure.ratio, figure)}[/]",
                " to ".join(ratio(value, figure) for value in figure.spread or ()),
                mark(figure),
                {True: "[green]reached[/]", False: "[bold red]missed[/]", None: ""}[figure.reached],
            )
        if style is not box.MARKDOWN:
            table.add_section()
    return table


def table_of_curve(curve: Curve, style: box.Box = box.HEAVY_HEAD) -> Table:
    """The points of a curve, one row each."""
    table = Table(header_style="bold", box=style)
    table.add_column(curve.parameter)
    table.add_column("client")
    for heading, _ in COLUMNS[curve.view]:
        table.add_column(heading, justify="right")
    for value in curve.values:
        for rival in curve.rivals:
            if (point := curve.at(value, rival)) is not None:
                shown = value if isinstance(value, str) else f"{value:,g}"
                table.add_row(shown, rival, *(cell(point) for _, cell in COLUMNS[curve.view]))
    return table


def _cost(point: Point) -> str:
    return amount(point.client_seconds, "s")


COMMON = [
    ("messages a second", lambda point: f"{point.rate:,.0f}"),
    ("client's CPU for a message", _cost),
    ("broker's CPU for a message", lambda point: amount(median(point.broker), "s") if any(point.broker) else "-"),
    ("most memory of a client", lambda point: f"{max(point.peak) / 1e6:.0f} MB"),
]
COLUMNS = {
    "lines": COMMON,
    "bars": COMMON,
    "cores": [
        *COMMON[:3],
        ("cores of the clients", lambda point: f"{point.client_cores:.2f}"),
        ("cores of the broker", lambda point: f"{point.broker_cores:.2f}"),
    ],
    "latency": [
        ("messages a second that came", COMMON[0][1]),
        *(
            (f"p{percent:g}", lambda point, i=i: amount(point.percentiles[i], "s"))
            for i, percent in enumerate(PERCENTILES)
        ),
        ("clients' CPU for a message", _cost),
    ],
}


def table_of_needs(results: Results, style: box.Box = box.HEAVY_HEAD) -> Table:
    """What each client needs for a message; processor time and memory are those of the curve ``workloads``."""
    table = Table(header_style="bold", box=style)
    table.add_column("work")
    table.add_column("client")
    for heading in ("client's CPU", "most memory", "system calls", "bytes on the wire", "instructions"):
        table.add_column(heading, justify="right")
    points = {(p.value, p.rival): p for curve in results.curves if curve.name == "workloads" for p in curve.points}
    for need in results.needs:
        point = points.get((need.work, need.client))
        table.add_row(
            need.work,
            need.client,
            _cost(point) if point else "-",
            f"{max(point.peak) / 1e6:.0f} MB" if point else "-",
            f"{need.system_calls:.2f}",
            f"{need.wire:,.0f}",
            f"{need.instructions:,.0f}",
        )
    return table


def as_markdown(table: Table) -> str:
    """A table in Markdown."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    lines = (line.rstrip() for line in console.file.getvalue().splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def markdown_of(results: Results, plots: str | None = None) -> str:
    """The report of a run; ``plots``: the folder of the plots, as it is named from the report."""
    parts = ["# Benchmarks\n", "\n".join(f"- {line}" for line in results.about) + "\n"]
    if results.figures:
        parts.append("## Duels\n")
        parts.append(
            "Medians of alternating rounds; the ratio is the median of the ratios of neighbouring rounds. A ratio\n"
            "with an x says how many times faster kombulite is, one without what part of the rival's it takes.\n"
        )
        if plots:
            parts.append(f"![Times as fast as kombu]({plots}/beside-kombu.svg)\n")
        parts.append(as_markdown(table_of_figures(results.figures, box.MARKDOWN)))
    for curve in results.curves:
        parts.append(f"## {curve.title}, by {curve.parameter}\n")
        if plots:
            parts.append(f"![{curve.title}]({plots}/{curve.name}.svg)\n")
        parts.append(as_markdown(table_of_curve(curve, box.MARKDOWN)))
    if results.needs:
        parts.append("## What a client needs for a message\n")
        parts.append(as_markdown(table_of_needs(results, box.MARKDOWN)))
    for heading, left_out in (("Skipped", results.skipped), ("Failed", results.failed)):
        if left_out:
            parts.append(f"## {heading}\n")
            parts.append("\n".join(f"- {name}: {reason}" for name, reason in left_out) + "\n")
    return "\n".join(parts)
