"""The examples of the README and the docs, run: blocks of Python as programs, those with prompts as doctests."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from kombulite import pools
from kombulite.brokers import SCHEMES
from kombulite.brokers.memory import broker

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

EXAMPLES = [page for page in PAGES if BLOCK.search(page.read_text())]


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(broker, "_brokers", {})  # each page has a broker of its own
    names = {"__name__": "__main__"}
    for kind, code in BLOCK.findall(page.read_text()):
        if kind == "python":
            exec(compile(code, str(page), "exec"), names)
        else:
            test = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), 0)
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            assert runner.run(test, clear_globs=False).failed == 0
    pools.reset()


def test_each_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        assert f" {page.relative_to(ROOT / 'docs')}" in navigation


TRANSPORT_PAGES = ("memory", "filesystem", "amqp", "redis", "redis-cluster", "sql")
TEMPLATE = ["Start it", "URL and options", "What is promised", "Limits", "Versions run"]


@pytest.mark.parametrize("name", TRANSPORT_PAGES)
def test_each_transport_page_has_the_parts_of_the_template(name):
    headings = re.findall(r"^## (.+)$", (ROOT / "docs" / f"{name}.md").read_text(), re.MULTILINE)
    assert [heading for heading in headings if heading in TEMPLATE] == TEMPLATE


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_url_of_ours_is_on_a_transport_page(scheme):
    pages = [(ROOT / "docs" / f"{name}.md").read_text() for name in TRANSPORT_PAGES]
    assert any(f"`{scheme}:" in page for page in pages)
