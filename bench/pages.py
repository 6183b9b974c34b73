"""The figures of the docs: tables and plots that are written from the results in ``bench/data``.

A page has two comments, between which a table is put: ``<!-- figures: FILE WHAT -->``, ``<!-- end of figures -->``.
FILE is the name of a file in ``bench/data`` without its ending; WHAT is the name of a curve, ``about``, ``needs``,
or ``duels`` and a regular expression that the work of a duel begins with.
"""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median

from rich import box

from bench.figure import Figure
from bench.results import Results
from bench.tables import amount, as_markdown, mark, ratio, table_of_curve, table_of_needs

ROOT = Path(__file__).parents[1]
DATA = ROOT / "bench" / "data"
PAGES = [ROOT / "docs" / "performance.md", ROOT / "docs" / "comparison.md"]
PLOTS = ROOT / "docs" / "img"
BLOCK = re.compile(r"(<!-- figures: (\S+) (\w[\w-]*) ?([^\n]*?) -->\n).*?(<!-- end of figures -->)", re.DOTALL)
PLOT = re.compile(r"\(img/([\w-]+)\.svg\)")


def results_of(name: str) -> Results:
    """The results in a file of the data folder."""
    return Results.from_json((DATA / f"{name}.json").read_text(encoding="utf-8"))


def with_figures(page: str) -> str:
    """The text of a page, with its tables as the data give them. Raises KeyError for figures that are not there."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{table(found[2], found[3], found[4])}\n{found[5]}", page)


def table(file: str, what: str, works: str) -> str:
    """One table in Markdown."""
    results = results_of(file)
    if what == "about":
        return "".join(f"- {line}\n" for line in results.about)
    if what == "duels":
        return duels([figure for figure in results.figures if re.match(works, figure.work)])
    if what == "needs":
        return as_markdown(table_of_needs(results, box.MARKDOWN))
    found = {curve.name: curve for curve in results.curves}[what]
    return f"{found.title}, by {found.parameter}:\n\n" + as_markdown(table_of_curve(found, box.MARKDOWN))


def duels(figures: list[Figure]) -> str:
    """A table of duels."""
    rows = ["| work | beside | theirs | kombulite | ratio | mark |", "|---|---|---|---|---|---|"]
    for figure in figures:
        theirs = amount(median(figure.theirs), figure.unit) if figure.theirs else "-"
        ours = amount(median(figure.ours), figure.unit)
        reached = ratio(figure.ratio, figure) + (", missed" if figure.reached is False else "")
        rows.append(f"| {figure.work} | {figure.rival} | {theirs} | {ours} | {reached} | {mark(figure)} |")
    return "\n".join(rows) + "\n"


def plots_of(page: str) -> set[str]:
    """The names of the plots that a page shows."""
    return set(PLOT.findall(page))
