"""Helpers under the import paths that kombu's users know."""

from importlib import import_module
from typing import Any

from kombulite.utils.collections import EqualityDict
from kombulite.utils.compat import fileno, maybe_fileno, nested, register_after_fork
from kombulite.utils.functional import fxrange, fxrangemax, maybe_list, reprcall, reprkwargs, retry_over_time
from kombulite.utils.imports import symbol_by_name
from kombulite.utils.objects import cached_property
from kombulite.utils.uuid import uuid

__all__ = [
    "EqualityDict",
    "cached_property",
    "emergency_dump_state",
    "fileno",
    "fxrange",
    "fxrangemax",
    "maybe_fileno",
    "maybe_list",
    "nested",
    "register_after_fork",
    "reprcall",
    "reprkwargs",
    "retry_over_time",
    "symbol_by_name",
    "uuid",
]


def __getattr__(name: str) -> Any:
    if name == "json":  # programs reach it without importing it
        return import_module(f"{__name__}.{name}")
    if name != "emergency_dump_state":  # few need it, and it brings logging along
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kombulite.utils.div import emergency_dump_state

    return emergency_dump_state
