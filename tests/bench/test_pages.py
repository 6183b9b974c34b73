"""The docs show what the data give, and nothing that the data do not have."""

from __future__ import annotations

import pytest

from bench import pages
from bench.plots import duration, short


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_figures_are_those_of_the_data(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- figures: ") == text.count("<!-- end of figures -->") > 0
    assert text == pages.with_figures(text)


def test_plots_show_the_data():
    curves = {curve.name: curve for curve in pages.results_of("full").curves}
    names = set().union(*(pages.plots_of(page.read_text(encoding="utf-8")) for page in pages.PAGES))
    for name in names:
        plot = (pages.PLOTS / f"{name}.svg").read_text(encoding="utf-8")
        assert curves[name].title in plot
    bars = (pages.PLOTS / "workloads.svg").read_text(encoding="utf-8")
    for point in curves["workloads"].points:
        assert f">{short(point.rate)}<" in bars
        assert f">{duration(point.client_seconds)}<" in bars


def test_a_page_that_asks_for_what_is_not_there_is_refused():
    with pytest.raises(KeyError, match="no-such-curve"):
        pages.with_figures("<!-- figures: full no-such-curve -->\n<!-- end of figures -->")


def test_data_name_no_path_and_no_failure():
    for path in pages.DATA.glob("*.json"):
        results = pages.results_of(path.stem)
        assert not results.failed
        assert "/" not in "".join(results.about)
