"""kombulite in the place of kombu: for programs and frameworks that import kombu, as they are."""

from __future__ import annotations

import logging.handlers  # noqa: F401 - Celery uses it without importing it, as kombu does
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import kombulite

__all__ = ["as_kombu"]

ALIAS = "kombu"
TARGET = "kombulite"

#: Set to "1" it has every Python process call ``as_kombu()`` as it starts; ``kombulite.pth`` looks for it.
VARIABLE = "KOMBULITE_AS_KOMBU"


def as_kombu() -> None:
    """Have ``import kombu``, and of any module below it, give kombulite's in this process from now on.

    They are the same modules: ``kombu.Connection is kombulite.Connection``. ``kombulite.__version__`` becomes that of
    kombu's API with kombulite's own behind a ``+``, and so does the version of the distribution ``kombu``. The Python
    processes that this one starts have it too, forked or not: they find KOMBULITE_AS_KOMBU=1 in their environment. Call
    it before anything imports kombu; calling it again does nothing.

    Raises:
        RuntimeError: Genuine kombu is imported already.
    """
    found = sys.modules.get(ALIAS)
    if found is kombulite:
        return
    if found is not None:
        raise RuntimeError(
            f"kombu was imported already, from {getattr(found, '__file__', None)}: "
            "call kombulite.as_kombu() before anything that imports kombu, "
            f"run Celery as `python -m kombulite celery`, or set {VARIABLE}=1"
        )
    api = ".".join(str(part) for part in kombulite.VERSION[:3])
    kombulite.__version__ = f"{api}+{TARGET}.{kombulite.__version__}"
    sys.modules[ALIAS] = kombulite
    sys.meta_path.insert(0, _Finder())
    # What a program does under its `__main__` guard does not happen in children that are spawned, nor in those of a
    # fork server, which is the default from 3.14 on.
    os.environ[VARIABLE] = "1"


class _Finder(DistributionFinder):
    """Finds ``kombu.x`` where ``kombulite.x`` is."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        head, _, rest = fullname.partition(".")
        if head != ALIAS or not rest:
            return None
        try:
            found = find_spec(f"{TARGET}.{rest}")
        except ModuleNotFoundError:
            found = None
        if found is None:
            return None  # then nobody has it: the path to look in is kombulite's
        return ModuleSpec(
            fullname, _Loader(f"{TARGET}.{rest}"), is_package=found.submodule_search_locations is not None
        )

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> Iterator[Distribution]:
        if context is not None and context.name == ALIAS:
            yield _Alias()


class _Loader(Loader):
    """Gives a module of kombulite as it is."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._spec: Any = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the alias's in its place


class _Alias(Distribution):
    """The distribution ``kombu``, for those who ask for its version."""

    def read_text(self, filename: str) -> str | None:
        if filename != "METADATA":
            return None
        return f"Metadata-Version: 2.1\nName: {ALIAS}\nVersion: {kombulite.__version__}\n"

    def locate_file(self, path: Any) -> Path:
        return Path(kombulite.__file__).parent / str(path)
