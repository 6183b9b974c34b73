"""The benchmarks: ``python -m bench`` (duels beside kombu and others), ``lab`` (these and the curves), ``plot``."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import duels, pages
from bench.about import about
from bench.figure import Figure
from bench.lab import running
from bench.lab.brokers import Brokers
from bench.lab.curves import experiments
from bench.lab.needs import needs, runs
from bench.plots import draw
from bench.results import Curve, Need, Results
from bench.tables import markdown_of, table_of_curve, table_of_figures, table_of_needs
from tests.servers import Unavailable

OUT = Path(__file__).parents[1] / "build" / "bench"


def console() -> Console:
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 140)


@contextmanager
def shown_progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True, redirect_stdout=False) as progress:
        yield progress


def show(out: Console, results: Results) -> None:
    """Print what was found."""
    out.print("\n".join(results.about))
    if results.figures:
        out.print(table_of_figures(results.figures))
        out.print("Medians of alternating rounds; the ratio is the median of the ratios of neighbouring rounds.")
    for curve in results.curves:
        table = table_of_curve(curve)
        table.title = curve.title
        out.print(table)
    if results.needs:
        out.print(table_of_needs(results))
    for what, left_out in (("skipped", results.skipped), ("FAILED", results.failed)):
        for name, reason in left_out:
            out.print(f"{what}: {name}: {reason}", soft_wrap=True)
    if results.figures:
        out.print(verdict(results.figures), soft_wrap=True)


def verdict(figures: list[Figure]) -> str:
    """Which marks were missed."""
    missed = [figure.work for figure in figures if figure.reached is False]
    return f"{len(missed)} marks missed: {'; '.join(missed)}" if missed else "All marks reached."


@click.group(invoke_without_command=True)
@click.option("-k", "expression", default="", help="Only the duels that match, as for pytest.")
@click.option("--json", "report_path", type=click.Path(path_type=Path), help="Write pytest-benchmark's report there.")
@click.option("--results", "results_path", type=click.Path(path_type=Path), help="Write what is shown there, as JSON.")
@click.pass_context
def main(context: click.Context, expression: str, report_path: Path | None, results_path: Path | None) -> None:
    """Run the duels: the same work in alternating rounds, beside kombu and others."""
    if context.invoked_subcommand is not None:
        return
    with shown_progress() as progress:
        try:
            report, watch = duels.run(expression, progress)
        except duels.NoDuels as error:
            raise click.ClickException(str(error)) from None
    if report_path is not None:
        report_path.write_text(json.dumps(report), encoding="utf-8")
    results = Results(about(), duels.figures_of(report), skipped=watch.skipped, failed=watch.failed)
    if results_path is not None:
        results_path.write_text(results.to_json(), encoding="utf-8")
    show(console(), results)
    context.exit(1 if results.failed else 0)


@main.command()
@click.argument("names", nargs=-1)
@click.option("--full", is_flag=True, help="All values, rounds and settings, and Celery; else under 10 minutes.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds of each curve.")
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="The folder to write to.")
def lab(names: tuple[str, ...], full: bool, rounds: int | None, out: Path) -> None:
    """Run the duels and the curves, or only the curves NAMES; write JSON, Markdown, and plots.

    ``needs`` among NAMES, or --full: what each client needs for a message, under strace and callgrind. With NAMES the
    other results that the folder holds are kept.
    """
    start = time.monotonic()
    chosen = [each for each in experiments(full, settings=full or bool(names)) if not names or each.name in names]
    if unknown := set(names) - {each.name for each in chosen} - {"needs"}:
        known = ", ".join(each.name for each in experiments(full, settings=True)) + ", needs"
        raise click.BadParameter(f"{', '.join(sorted(unknown))}; there are: {known}")
    if rounds is not None:
        chosen = [replace(each, rounds=rounds) for each in chosen]
    path = out / "results.json"
    out.mkdir(parents=True, exist_ok=True)
    results = Results.from_json(path.read_text(encoding="utf-8")) if names and path.exists() else Results()
    results.about = about()
    for left_out in (results.skipped, results.failed):
        left_out[:] = [(name, reason) for name, reason in left_out if name.partition(",")[0] not in names]
    with shown_progress() as progress:
        if not names:
            try:
                report, watch = duels.run("" if full else "not test_celery", progress, quick=not full)
            except duels.NoDuels as error:
                raise click.ClickException(str(error)) from None
            results.figures = duels.figures_of(report)
            results.skipped, results.failed = watch.skipped, watch.failed
            path.write_text(results.to_json(), encoding="utf-8")
        for curve in curves_of(chosen, results, progress):
            results.replace(curve)
            path.write_text(results.to_json(), encoding="utf-8")  # what is there, is there
        if "needs" in names or (full and not names):
            results.needs = []
            for need in needs_of(results, progress):
                results.needs.append(need)
                path.write_text(results.to_json(), encoding="utf-8")
    if not names:
        results.about.append(f"the whole run took {(time.monotonic() - start) / 60:.0f} minutes")
        path.write_text(results.to_json(), encoding="utf-8")
    report_on(results, out)
    show(console(), results)
    click.echo(f"Results, report and plots: {click.format_filename(out)}")
    sys.exit(1 if results.failed else 0)


def curves_of(chosen: list[running.Experiment], results: Results, progress: Progress) -> Iterator[Curve]:
    """Run experiments one after the other; what cannot be run, or fails, is noted in the results."""
    bar = progress.add_task("curves", total=sum(len(each.runs) * each.rounds for each in chosen))
    with Brokers() as brokers:
        for each in chosen:
            try:
                yield running.run(
                    each, brokers, results, lambda text: progress.update(bar, advance=1, description=text)
                )
            except Unavailable as error:
                results.skipped.append((each.name, str(error)))


def needs_of(results: Results, progress: Progress) -> Iterator[Need]:
    """Measure what clients need for a message; what cannot be, or fails, is noted in the results."""
    bar = progress.add_task("needs", total=len(runs()))
    with Brokers() as brokers:
        try:
            yield from needs(brokers, results, lambda text: progress.update(bar, advance=1, description=text))
        except Unavailable as error:
            results.skipped.append(("needs", str(error)))


def report_on(results: Results, out: Path) -> None:
    """Write the report and the plots."""
    draw(results, out / "plots")
    (out / "results.md").write_text(markdown_of(results, "plots"), encoding="utf-8")


@main.command("pages")
def write_pages() -> None:
    """Write the figures of the docs, and their plots, from the results in bench/data."""
    texts = {page: page.read_text(encoding="utf-8") for page in pages.PAGES}
    for page, text in texts.items():
        page.write_text(pages.with_figures(text), encoding="utf-8")
    wanted = set().union(*map(pages.plots_of, texts.values()))
    results = pages.results_of("full")
    with TemporaryDirectory() as folder:
        for plot in draw(results, Path(folder)):
            if plot.stem in wanted:
                shutil.copy(plot, pages.PLOTS)


@main.command()
@click.argument("results", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The folder to write to; else that of RESULTS.")
def plot(results: Path, out: Path | None) -> None:
    """Make the report and the plots again from the file RESULTS (results.json)."""
    report_on(Results.from_json(results.read_text(encoding="utf-8")), out or results.parent)


if __name__ == "__main__":
    main(prog_name="python -m bench")
