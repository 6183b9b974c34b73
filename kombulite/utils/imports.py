"""Names looked up at run time."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

__all__ = ["symbol_by_name"]


def symbol_by_name(
    name: Any,
    aliases: Mapping[str, str] | None = None,
    imp: Any = None,
    package: str | None = None,
    sep: str = ".",
    default: Any = None,
    **kwargs: Any,
) -> Any:
    """Return the object of ``module:name`` or ``module.name``; a value that is no string is returned as it is.

    ``aliases`` maps short names; ``default`` is returned where the import fails. Raises ImportError, AttributeError.
    """
    if not isinstance(name, str):
        return name
    name = (aliases or {}).get(name, name)
    module_name, separator, attribute = name.rpartition(":" if ":" in name else sep)
    try:
        module = (imp or import_module)(module_name or attribute, package=package, **kwargs)
        return getattr(module, attribute) if separator and attribute else module
    except (ImportError, AttributeError):
        if default is None:
            raise
        return default
