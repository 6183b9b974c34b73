"""Helpers under the import paths that kombu's users know."""

from kombulite.utils.compat import fileno, maybe_fileno, nested, register_after_fork
from kombulite.utils.functional import fxrange, fxrangemax, maybe_list, reprcall, reprkwargs, retry_over_time
from kombulite.utils.imports import symbol_by_name
from kombulite.utils.objects import cached_property
from kombulite.utils.uuid import uuid

__all__ = [
    "cached_property",
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
