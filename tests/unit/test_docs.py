"""The examples of the README and the docs, run: blocks of Python as programs, those with prompts as doctests."""

from __future__ import annotations

import doctest
import logging
import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest

from kombulite import pools
from kombulite.brokers import SCHEMES
from kombulite.brokers.memory import broker

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What a reader copies: a program, the name of its file if others need it, and what it prints.
PROGRAM = re.compile(
    r'^```python(?: title="([^"\n]+)")?\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?', re.MULTILINE | re.DOTALL
)

TUTORIALS = [ROOT / "docs/quickstart.md", *sorted((ROOT / "docs/tutorials").glob("*.md"))]
EXAMPLES = [page for page in PAGES if page not in TUTORIALS and BLOCK.search(page.read_text())]


@pytest.mark.usefixtures("tables_stay")
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


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_each_program_of_a_tutorial_runs_by_itself_and_prints_what_the_page_says(
    page, tmp_path, monkeypatch, capsys, caplog
):
    monkeypatch.chdir(tmp_path)
    programs = PROGRAM.findall(page.read_text())
    assert programs
    for name, code, output in programs:
        if name:
            Path(name).write_text(code)
            continue
        monkeypatch.setattr(broker, "_brokers", {})
        exec(compile(code, str(page), "exec"), {"__name__": "__main__"})
        assert capsys.readouterr() == (output, "")
        # Without a handler Python writes these to the terminal.
        assert [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING] == []
    pools.reset()


@pytest.mark.parametrize("choice", ["not restart", pytest.param("restart", marks=pytest.mark.soak)])
def test_tests_of_the_tutorial_pass(choice, tmp_path):
    for name, code, _ in PROGRAM.findall((ROOT / "docs/tutorials/testing.md").read_text()):
        if name:
            (tmp_path / name).write_text(code)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", choice]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200)
    assert run.returncode == 0, run.stdout
    assert "skipped" not in run.stdout


def test_extras_of_the_readme_are_those_of_the_project():
    extras = metadata("kombulite").get_all("Provides-Extra")
    listed = re.search(r"the others\s+are (`.+?`)\.", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert set(re.findall(r"`(\w+)`", listed)) == set(extras) - {"bench", "docs", "test", "dev"}


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
