"""Names looked up at run time."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from kombulite.exceptions import reraise

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

    Args:
        name: The object's path, or an alias.
        aliases: Paths by alias.
        imp: Imports a module, as ``importlib.import_module`` does.
        package: The package of a relative path, and the module of a path without a separator.
        sep: Separator of the module and the name, where there is no colon.
        default: Value that is returned if the import fails.
        **kwargs: Further keywords of ``imp``.

    Raises:
        ImportError: There is no such module.
        AttributeError: There is no such name in it.
        ValueError: The path cannot be one.
    """
    if not isinstance(name, str):
        return name
    name = (aliases or {}).get(name) or name
    module_name, _, attribute = name.rpartition(":" if ":" in name else sep)
    try:
        try:
            module = (imp or importlib.import_module)(module_name or package or attribute, package=package, **kwargs)
        except ValueError as error:
            reraise(ValueError, ValueError(f"Couldn't import {name!r}: {error}"), error.__traceback__)
        return getattr(module, attribute) if module_name and attribute else module
    except (ImportError, AttributeError):
        if default is None:
            raise
        return default
