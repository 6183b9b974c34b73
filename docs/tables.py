"""Tables and diagrams of the manual that are made from the code, and the changelog, as a hook of MkDocs.

A page has a comment in their place: ``<!-- options: kombulite.brokers.amqp.connector -->``,
``<!-- picture: lifecycle -->``, ``<!-- file: CHANGELOG.md -->``.
"""

from __future__ import annotations

import inspect
import math
import re
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

from kombulite._client.lifecycle import NEXT, State
from kombulite.brokers.base import Outcome

ROOT = Path(__file__).parents[1]
COMMENT = re.compile(r"^<!-- (options|picture|file): (\S+) -->$", re.MULTILINE)
ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n        .*)*)", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables, diagrams and files into a page."""
    return COMMENT.sub(lambda found: MAKERS[found[1]](found[2]), markdown)


def file(name: str) -> str:
    """Return the text of a file of the project, with links for a page at the top of the manual."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


def options_of(module: str) -> dict[str, tuple[str, str]]:
    """Return the transport options that a module defines: default and meaning, by name."""
    home = import_module(module)
    if hasattr(home, "OPTIONS"):
        return {name: tuple(option) for name, option in home.OPTIONS.items()}
    described = dict(ATTRIBUTE.findall(inspect.cleandoc(home.Options.__doc__).partition("Attributes:\n")[2]))
    defaults = home.Options._field_defaults
    return {
        name: ("" if defaults[name] is None else f"`{defaults[name]!r}`", " ".join(described[name].split()))
        for name in home.Options._fields
    }


def options_table(module: str) -> str:
    """Return a table of transport options."""
    rows = [f"| `{name}` | {default} | {meaning} |" for name, (default, meaning) in options_of(module).items()]
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *rows])


def lifecycle() -> str:
    """Return a picture of the states of a connection and the ways between them, as SVG."""
    states = list(State)
    places = {}
    for number, state in enumerate(states):
        angle = 2 * math.pi * number / len(states) - math.pi / 2
        places[state.value] = (round(320 + 240 * math.cos(angle)), round(180 + 130 * math.sin(angle)))
    ways = [
        (state.value, other.value, "")
        for state, following in NEXT.items()
        for other in sorted(following, key=states.index)
    ]
    return picture("States of a connection", (640, 360), places, ways)


SETTLED = {Outcome.ACK: "deleted", Outcome.REJECT: "dead letter", Outcome.REQUEUE: "waits", Outcome.RETURN: "waits"}
"""Where each outcome takes a message."""


def message() -> str:
    """Return a picture of where a message is, and what takes it on, as SVG."""
    places = {
        "published": (65, 60),
        "waits": (240, 60),
        "unacked": (485, 60),
        "deleted": (625, 160),
        "dead letter": (240, 240),
    }
    ways = [
        ("published", "waits", "routed"),
        ("waits", "unacked", "delivered"),
        ("waits", "dead letter", "expired, too many"),
    ]
    outcomes: dict[str, list[str]] = {}
    for outcome, place in SETTLED.items():
        outcomes.setdefault(place, []).append(outcome.value)
    ways += [("unacked", place, " or ".join(names)) for place, names in outcomes.items()]
    return picture("Where a message is", (700, 280), places, ways)


def processes() -> str:
    """Return a picture of threads, a forked child and an event loop around connections, as SVG."""
    places = {
        "thread": (65, 30),
        "another": (65, 130),
        "Connection": (280, 80),
        "its threads": (280, 175),
        "broker": (590, 170),
        "forked child": (520, 30),
        "event loop": (65, 260),
        "aio.Connection": (280, 260),
    }
    ways = [
        ("thread", "Connection", "publishes, settles"),
        ("another", "Connection", "reads for all"),
        ("Connection", "broker", "one socket"),
        ("its threads", "Connection", "signs of life"),
        ("Connection", "forked child", "is closed there"),
        ("forked child", "broker", "opens its own"),
        ("event loop", "aio.Connection", "all its tasks"),
        ("aio.Connection", "broker", "one socket"),
    ]
    return picture("Threads, forks and loops", (660, 300), places, ways)


PICTURES = {"lifecycle": lifecycle, "message": message, "processes": processes}


HALO = 'stroke="var(--md-default-bg-color, white)" stroke-width="5" paint-order="stroke"'


def picture(
    title: str, size: tuple[int, int], places: dict[str, tuple[int, int]], ways: list[tuple[str, str, str]]
) -> str:
    """Return boxes and arrows as SVG.

    Args:
        title: What it shows.
        size: Width and height, in pixels.
        places: Middle of each box, by the text in it.
        ways: The arrows: from, to, and the text on it.
    """
    lines, labels = [], []
    for name, other, label in ways:
        (x1, y1), (x2, y2) = places[name], places[other]
        length = math.hypot(x2 - x1, y2 - y1)
        along = ((x2 - x1) / length, (y2 - y1) / length)
        aside = (-7 * along[1], 7 * along[0])  # there and back do not lie on each other
        start = (x1 + 56 * along[0] + aside[0], y1 + 24 * along[1] + aside[1])
        end = (x2 - 62 * along[0] + aside[0], y2 - 26 * along[1] + aside[1])
        ends = f'x1="{start[0]:.0f}" y1="{start[1]:.0f}" x2="{end[0]:.0f}" y2="{end[1]:.0f}"'
        tip = f"<title>{escape(name)} to {escape(other)}</title>"
        lines.append(f'<line {ends} stroke="currentColor" marker-end="url(#arrow)">{tip}</line>')
        if label:
            x, y = (start[0] + end[0]) / 2 + aside[0], (start[1] + end[1]) / 2 + (14 if aside[1] > 0 else -6)
            labels.append(
                f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="middle" font-size="12" fill="currentColor" {HALO}>'
                f"{escape(label)}</text>"
            )
    boxes = [
        f'<rect x="{x - 58}" y="{y - 17}" width="116" height="34" rx="6" fill="none" stroke="currentColor"/>'
        f'<text x="{x}" y="{y + 5}" text-anchor="middle" font-size="14" fill="currentColor">{escape(name)}</text>'
        for name, (x, y) in places.items()
    ]
    arrow = (
        '<marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 10 5 0 10z" fill="currentColor"/></marker>'
    )
    width, height = size
    return (
        f'<div class="picture"><svg viewBox="0 0 {width} {height}" role="img" style="width:{width}px">'
        f"<title>{escape(title)}</title><defs>{arrow}</defs>{''.join(lines + labels + boxes)}</svg></div>"
    )


MAKERS = {"options": options_table, "picture": lambda name: PICTURES[name](), "file": file}
