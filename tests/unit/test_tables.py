"""Tables and diagrams of the manual come from the code: each transport's options are on one page, and on no other."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from kombulite._client.lifecycle import NEXT
from kombulite.brokers.amqp.connector import OPTIONS as AMQP_OPTIONS
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
        assert not re.search("<!-- (options|lifecycle)", tables.on_page_markdown(page.read_text())), page


def test_the_diagram_has_all_ways_between_states(tables):
    drawn = set(re.findall(r"<title>(\w+) to (\w+)</title>", tables.lifecycle()))
    assert drawn == {(state.value, other.value) for state, following in NEXT.items() for other in following}
