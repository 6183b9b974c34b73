"""Tables and diagrams of the manual that are made from the code, as a hook of MkDocs.

A page has a comment in their place: ``<!-- options: kombulite.brokers.amqp.connector -->``, ``<!-- lifecycle -->``.
"""

from __future__ import annotations

import inspect
import math
import re
from html import escape
from importlib import import_module
from typing import Any

from kombulite._client.lifecycle import NEXT, State

COMMENT = re.compile(r"^<!-- (options|lifecycle)(?:: (\S+))? -->$", re.MULTILINE)
ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n        .*)*)", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables and diagrams into a page."""
    return COMMENT.sub(lambda found: options_table(found[2]) if found[1] == "options" else lifecycle(), markdown)


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
    width, height, states = 640, 360, list(State)
    places = {}
    for number, state in enumerate(states):
        angle = 2 * math.pi * number / len(states) - math.pi / 2
        places[state] = (width / 2 + 240 * math.cos(angle), height / 2 + 130 * math.sin(angle))
    lines = []
    for state, following in NEXT.items():
        for other in sorted(following, key=states.index):
            (x1, y1), (x2, y2) = places[state], places[other]
            length = math.hypot(x2 - x1, y2 - y1)
            along, across = ((x2 - x1) / length, (y2 - y1) / length), (-(y2 - y1) / length, (x2 - x1) / length)
            start = (x1 + 46 * along[0] + 7 * across[0], y1 + 24 * along[1] + 7 * across[1])
            end = (x2 - 58 * along[0] + 7 * across[0], y2 - 28 * along[1] + 7 * across[1])
            ends = f'x1="{start[0]:.0f}" y1="{start[1]:.0f}" x2="{end[0]:.0f}" y2="{end[1]:.0f}"'
            title = f"<title>{state.value} to {other.value}</title>"
            lines.append(f'<line {ends} stroke="currentColor" marker-end="url(#arrow)">{title}</line>')
    boxes = [
        f'<rect x="{x - 50:.0f}" y="{y - 17:.0f}" width="100" height="34" rx="6" fill="none" stroke="currentColor"/>'
        f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" fill="currentColor">{escape(state.value)}</text>'
        for state, (x, y) in places.items()
    ]
    arrow = (
        '<marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 10 5 0 10z" fill="currentColor"/></marker>'
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" style="max-width:{width}px;width:100%">'
        f"<title>States of a connection</title><defs>{arrow}</defs>{''.join(lines)}{''.join(boxes)}</svg>"
    )
