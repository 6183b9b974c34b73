"""Public names: each public module's ``__all__`` is pinned in ``public_names.txt``, one module a line.

A name that is added or taken away changes that file, in the same commit. ``python -m tests.layering.test_public_names``
writes it anew.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import kombulite

PACKAGE = Path(kombulite.__file__).parent
PINNED = Path(__file__).with_name("public_names.txt")

#: Internal, or without names of their own: modules that get kombu's when one of them is asked for.
INTERNAL = {
    "__main__",
    "brokers",
    "cli",
    "contrib",
    "run",
    "transport.adapter",
    "transport.distribution",
    "transport.foreign",
}
DYNAMIC = {"transport.redis", "transport.filesystem"}


def public_modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        name = ".".join(parts)
        is_inside = any(name.startswith(f"{each}.") for each in INTERNAL - {"contrib"})
        if not (name in INTERNAL | DYNAMIC or is_inside or any(part.startswith("_") for part in parts)):
            yield f"kombulite.{name}" if name else "kombulite"
    yield "kombulite_pytest"


def line(module):
    return f"{module}: {' '.join(sorted(importlib.import_module(module).__all__))}"


@pytest.mark.parametrize("module", list(public_modules()))
def test_all_is_pinned(module):
    assert line(module) in PINNED.read_text().splitlines()


def test_no_pinned_module_is_gone():
    assert [each.split(":")[0] for each in PINNED.read_text().splitlines()] == list(public_modules())


@pytest.mark.parametrize("module", list(public_modules()))
def test_exported_names_are_there_and_say_where_they_are_public(module):
    found = importlib.import_module(module)
    for name in found.__all__:
        value = getattr(found, name)
        if isinstance(value, type) and value.__module__.startswith("kombulite."):
            home = value.__module__.split(".")
            assert not any(part.startswith("_") for part in home) or home[1] == "_core", f"{name}: {value.__module__}"


if __name__ == "__main__":
    PINNED.write_text("".join(f"{line(module)}\n" for module in public_modules()))
