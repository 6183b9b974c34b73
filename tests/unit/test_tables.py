"""Tables and diagrams of the manual come from the code: each transport's options are on one page, and on no other."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from kombulite._client.lifecycle import NEXT
from kombulite.brokers.amqp.connector import OPTIONS as AMQP_OPTIONS
from kombulite.brokers.base import Outcome
from kombulite.brokers.filesystem.folders import OPTIONS as FOLDER_OPTIONS
from kombulite.brokers.redis.options import Options
from kombulite.brokers.sql.transport import OPTIONS as SQL_OPTIONS

DOCS = Path(__file__).parent.parent.parent / "docs"
KNOWN = {
    "amqp.md": set(AMQP_OPTIONS),
    "filesystem.md": set(FOLDER_OPTIONS),
    "redis.md": set(Options._fields),
    "sql.md": set(SQL_OPTIONS),
}


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", DOCS / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", KNOWN)
def test_a_page_shows_all_options_with_their_meaning(tables, page):
    text = (DOCS / page).read_text()
    shown = tables.on_page_markdown(text)
    rows = re.findall(r"^\| `(\w+)` \| .*? \| (.+) \|$", shown, re.MULTILINE)
    assert KNOWN[page] <= {name for name, meaning in rows if meaning.endswith((".", "below."))}
    assert not KNOWN[page] & set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))  # nothing is typed twice


def test_every_placeholder_is_replaced(tables):
    for page in DOCS.rglob("*.md"):
        assert not re.search("<!-- (options|picture)", tables.on_page_markdown(page.read_text())), page


def test_the_diagram_has_all_ways_between_states(tables):
    drawn = set(re.findall(r"<title>(\w+) to (\w+)</title>", tables.lifecycle()))
    assert drawn == {(state.value, other.value) for state, following in NEXT.items() for other in following}


def test_the_diagram_of_a_message_has_every_outcome(tables):
    shown = tables.message()
    assert set(tables.SETTLED) == set(Outcome)
    assert all(outcome.value in shown for outcome in Outcome)


def test_all_threads_that_are_started_are_listed():
    sources = "".join(path.read_text() for path in (DOCS.parent / "kombulite").rglob("*.py"))
    started = re.findall(r"\bThread\(target=\w+(?:\.\w+)*(?:, args=[^=]+?)?, name=\"([^\"]+)\"", sources)
    assert len(started) == sources.count(" Thread(target=")
    listed = re.findall(r"^\| `(kombulite-\S+)` \|", (DOCS / "reliability.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(started)
