"""What the manual says of errors and features is what the code has."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.contract.conftest import BROKERS

ROOT = Path(__file__).parent.parent.parent
HEADING = re.compile(r"^### (`+) ?(.+?) ?\1$", re.MULTILINE)
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
ERRORS = [text for _, text in HEADING.findall(PAGE)]


@cache
def raised_texts():
    """The texts of all errors that the package raises, with ``…`` for what differs, and what is called with them."""
    found = {}
    for path in (ROOT / "kombulite").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                for each in node.args:
                    if isinstance(each, (ast.JoinedStr, ast.Constant)):
                        found.setdefault(template(each), set()).add(called)
    return found


def template(node):
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)


@pytest.mark.parametrize("text", ERRORS)
def test_error_of_the_manual_exists(text):
    assert text in raised_texts()


#: Errors that are made by a function, in a variable, or of a subclass.
MADE_ELSEWHERE = {"NoMaster", "connection_lost", "error"}


@pytest.mark.parametrize("text", ERRORS)
def test_error_of_the_manual_is_of_the_class_that_it_names(text):
    named = re.search(rf"^### `+ ?{re.escape(text)} ?`+\n\n\*(\w+)", PAGE, re.MULTILINE)[1]
    assert {named, *MADE_ELSEWHERE} & raised_texts()[text]


def test_each_entry_of_the_manual_has_a_cause_and_a_cure():
    entries = re.split(r"^### ", PAGE.partition("## Without an error")[0], flags=re.MULTILINE)[1:]
    assert len(entries) == len(ERRORS)
    assert [entry for entry in entries if not re.search(r"\n\n\*\w+.*\*.+\n(?:.+\n)*\n\*\*Cure:\*\* .", entry)] == []


def test_manual_has_forty_errors():
    assert len(set(ERRORS)) >= 40


# --- loggers and environment variables ------------------------------------------------------------------------------


def calls(*names):
    """Yield (module, first argument) of all calls of functions of these names in the package."""
    for path in (ROOT / "kombulite").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args:
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
                if called in names:
                    yield module, node.args[0]


def test_each_logger_is_in_the_table():
    named = set()
    for module, argument in calls("getLogger", "get_logger", "log"):
        if isinstance(argument, ast.Constant) and str(argument.value).startswith(("kombulite.", "kombu.")):
            named.add(argument.value)
        elif getattr(argument, "id", None) == "__name__":
            named.add(module)
    table = (ROOT / "docs/guide/observability.md").read_text().partition("## Log records")[2].partition("\n## ")[0]
    listed = {name for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for name in re.findall("`(.+?)`", row)}
    assert {"kombulite.connection", "kombulite.consumer", "kombulite.brokers.sql.session"} <= named
    assert {name for name in named if not any(f"{name}.".startswith(f"{each}.") for each in listed)} == set()
    assert {each for each in listed if not any(f"{name}.".startswith(f"{each}.") for name in named)} == set()


def test_each_environment_variable_is_in_the_reference():
    read = set()
    for path in (ROOT / "kombulite").rglob("*.py"):
        read.update(re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"", path.read_text()))
        read.update(re.findall(r"envvar=\"(\w+)\"", path.read_text()))
    listed = set(re.findall(r"`([A-Z_]+)`", (ROOT / "docs/api/command-line.md").read_text()))
    assert {"KOMBULITE_BROKER", "PICKLE_PROTOCOL"} <= read
    assert read - {"PATH"} - listed == set()


# --- what each transport can do -------------------------------------------------------------------------------------

COLUMNS = {
    "memory": "memory",
    "RabbitMQ": "amqp-confirms",
    "Redis": "redis",
    "PostgreSQL": "postgresql",
    "SQLite": "sqlite",
    "filesystem": "filesystem",
}

#: A row of the table, and what the contract suite calls it.
FEATURES = {
    "direct, topic, fanout exchanges": None,
    "headers exchanges": "headers",
    "bindings between exchanges": "exchange bindings",
    "alternate exchanges": "alternates",
    "priorities of a queue with `max_priority`": "priorities",
    "time to live of messages": "expiration",
    "length limits": "lengths",
    "dead letters": "dead letters",
    "queues that expire": "queue expiry",
    "auto-delete queues": "auto-delete",
    "exclusive queues": "exclusive queues",
    "fanout messages wait for a consumer that is away": "stored fanout",
    "a prefetch limit for a whole channel": "channel prefetch",
}


def feature_table():
    rows = [["", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    for name, feature in FEATURES.items():
        rows.append([name, *("-" if feature in BROKERS[kind].lacks else "✓" for kind in COLUMNS.values())])
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def test_table_of_features_is_that_of_the_contract_suite():
    """If this fails, put what ``feature_table()`` returns into docs/guarantees.md."""
    assert feature_table() in (ROOT / "docs/guarantees.md").read_text()


def test_each_feature_that_a_transport_lacks_is_in_the_table():
    # Those are explained below the table.
    inner = {"expiry in place", "places in the queue", "queue registry", "flow", "written headers"}
    lacked = set().union(*(BROKERS[kind].lacks for kind in COLUMNS.values()))
    assert lacked - inner <= set(FEATURES.values())
