"""Plots of what a run found, as SVG and PNG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.figure import Figure
from bench.results import PERCENTILES, Curve, Results

#: The same client has the same colour in every plot (colours that the colour-blind can tell apart).
COLOURS = {
    "kombulite": "#0072B2",
    "kombu": "#D55E00",
    "py-amqp": "#E69F00",
    "pika": "#009E73",
    "amqpstorm": "#CC79A7",
    "aio-pika": "#56B4E9",
    "redis-py": "#F0E442",
    "kombulite.aio": "#003F66",
    "redis.asyncio": "#A89A00",
    "FastStream": "#7B3F00",
    "C client": "#555555",
}
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.hashsalt": "kombulite",  # the same data gives the same file
    "svg.fonttype": "none",
}


def short(value: float, _: Any = None) -> str:
    """A number as the axes show it: 1.5k, 2M."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float, _: Any = None) -> str:
    """Seconds in a unit that fits."""
    for factor, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= factor * 0.9999:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _lines(axes: Any, curve: Curve, of: Callable[[Any], float]) -> None:
    for rival in curve.rivals:
        points = curve.of(rival)
        xs, ys = [point.value for point in points], [of(point) for point in points]
        axes.plot(xs, ys, "o-", label=rival, color=COLOURS.get(rival), markersize=4)
    axes.set_xscale("log")
    axes.set_xticks(curve.values, [short(value) for value in curve.values if not isinstance(value, str)])
    axes.minorticks_off()
    axes.set_xlabel(curve.parameter)


def lines(curve: Curve) -> Canvas:
    """Throughput, and processor time of the client, over a number."""
    canvas = Canvas(figsize=(9, 3.4))
    rate, cpu = canvas.subplots(1, 2)
    canvas.suptitle(curve.title)
    _lines(rate, curve, lambda point: point.rate)
    _lines(cpu, curve, lambda point: point.client_seconds)
    for axes, label, form in ((rate, "messages a second", short), (cpu, "client's CPU for a message", duration)):
        axes.set_yscale("log")
        axes.set_ylabel(label)
        axes.yaxis.set_major_formatter(FuncFormatter(form))
        axes.legend()
    return canvas


def bars(curve: Curve) -> Canvas:
    """Throughput of every client at every work, and its processor time for a message."""
    pairs = [(value, rival) for value in curve.values for rival in curve.rivals if curve.at(value, rival)]
    canvas = Canvas(figsize=(10, 1.2 + 0.15 * (len(pairs) + len(curve.values))))
    row = canvas.subplots(1, 2, sharey=True)
    canvas.suptitle(curve.title)
    places = {pair: i + curve.values.index(pair[0]) for i, pair in enumerate(pairs)}  # a gap after each work
    for rival in curve.rivals:
        points = curve.of(rival)
        ys = [places[point.value, rival] for point in points]
        for axes, widths, form in (
            (row[0], [point.rate for point in points], short),
            (row[1], [point.client_seconds for point in points], duration),
        ):
            drawn = axes.barh(ys, widths, height=0.9, color=COLOURS.get(rival), label=rival)
            axes.bar_label(drawn, [form(width) for width in widths], padding=2, fontsize=7)
    middles = [median(place for pair, place in places.items() if pair[0] == value) for value in curve.values]
    row[0].set_yticks(middles, [str(value) for value in curve.values])
    row[0].invert_yaxis()
    for axes, label, form in ((row[0], "messages a second", short), (row[1], "client's CPU for a message", duration)):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(form))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(label)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.15, y=0.01)
    if len(curve.rivals) > 1:
        canvas.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(curve.rivals))
    return canvas


def latency(curve: Curve) -> Canvas:
    """Percentiles of the latency over the load that is offered."""
    canvas = Canvas(figsize=(9, 3.2))
    canvas.suptitle(curve.title)
    row = canvas.subplots(1, len(PERCENTILES), sharey=True)
    for i, (axes, percent) in enumerate(zip(row, PERCENTILES, strict=True)):
        _lines(axes, curve, lambda point, i=i: point.percentiles[i])
        axes.set_title(f"p{percent:g}")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(duration))
    row[0].legend()
    return canvas


def cores(curve: Curve) -> Canvas:
    """Throughput over the number of processes, and who kept the cores busy meanwhile."""
    canvas = Canvas(figsize=(9, 3.4))
    row = canvas.subplots(1, 1 + len(curve.rivals))
    canvas.suptitle(curve.title)
    _lines(row[0], curve, lambda point: point.rate)
    row[0].set_xscale("linear")
    row[0].set_ylim(0)
    row[0].set_ylabel("messages a second")
    row[0].yaxis.set_major_formatter(FuncFormatter(short))
    row[0].legend()
    top = max(point.client_cores + point.broker_cores for point in curve.points)
    for axes, rival in zip(row[1:], curve.rivals, strict=True):
        points = curve.of(rival)
        at = [short(float(point.value)) for point in points]
        broker, clients = [point.broker_cores for point in points], [point.client_cores for point in points]
        axes.bar(at, broker, label="broker", color="#999999")
        axes.bar(at, clients, bottom=broker, label="clients", color=COLOURS.get(rival))
        axes.set_ylim(0, top * 1.25)
        axes.set_title(f"cores busy: {rival}")
        axes.set_xlabel(curve.parameter)
        axes.legend()
    return canvas


VIEWS: dict[str, Callable[[Curve], Canvas]] = {"lines": lines, "bars": bars, "latency": latency, "cores": cores}


def ratios(figures: list[Figure]) -> Canvas | None:
    """How many times faster than kombu, for every duel with it that is about time."""
    found = []
    for figure in figures:
        if figure.rival == "kombu" and figure.unit == "s" and figure.ratio is not None:
            found.append((1 / figure.ratio if figure.is_part else figure.ratio, figure.work))
    found.sort(reverse=True)
    if not found:
        return None
    canvas = Canvas(figsize=(9, 0.8 + 0.2 * len(found)))
    axes = canvas.subplots()
    drawn = axes.barh([work for _, work in found], [ratio for ratio, _ in found], color=COLOURS["kombulite"])
    axes.bar_label(drawn, [f"{ratio:.3g}x" for ratio, _ in found], padding=2, fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color=COLOURS["kombu"])
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(FuncFormatter(short))
    axes.set_xlabel("times as fast as kombu")
    return canvas


def draw(results: Results, folder: Path) -> list[Path]:
    """Write all plots of a run into a folder, each as SVG and PNG; returns the SVGs."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):
        canvases = [(curve.name, VIEWS[curve.view](curve)) for curve in results.curves if curve.points]
        if (canvas := ratios(results.figures)) is not None:
            canvases.insert(0, ("beside-kombu", canvas))
        for name, canvas in canvases:
            path = folder / f"{name}.svg"
            canvas.savefig(path, metadata={"Date": None})
            canvas.savefig(path.with_suffix(".png"), dpi=120)
            written.append(path)
    return written
