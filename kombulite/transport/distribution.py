"""Modules that come from an installed kombu distribution: its transports, and the HTTP clients that some of them use.

Their source is compiled with ``kombu`` meaning ``kombulite`` in its imports, so that they stand on kombulite's base
classes. Nothing else of the distribution is loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from types import CodeType, ModuleType
from typing import Any

from kombulite.exceptions import adopt

#: What is taken from the distribution: modules, with their submodules; and what installs the packages that they need.
TAKEN = {
    "transport.SQS": "kombu[sqs]",
    "transport.SLMQ": "kombu[slmq]",
    "transport.sqlalchemy": "kombu[sqlalchemy]",
    "transport.pgmq": "kombu[pgmq]",
    "transport.mongodb": "kombu[mongodb]",
    "transport.confluentkafka": "kombu[confluentkafka]",
    "transport.zookeeper": "kombu[zookeeper]",
    "transport.consul": "kombu[consul]",
    "transport.etcd": "python-etcd",  # kombu has no extra for it
    "transport.azurestoragequeues": "kombu[azurestoragequeues]",
    "transport.azureservicebus": "kombu[azureservicebus]",
    "transport.gcpubsub": "kombu[gcpubsub]",
    "transport.pyro": "kombu[pyro]",
    "transport.qpid": "kombu[qpid]",
    "transport.librabbitmq": "kombu[librabbitmq]",
    "asynchronous.aws": "kombu[sqs]",
    "asynchronous.http": "kombu[sqs]",
}

ORIGIN, HERE = "kombu", "kombulite"

#: Where py-amqp has its errors.
DRIVER = "amqp.exceptions"


def locate(name: str) -> str | None:
    """Return the file of a distribution's module (``transport.SQS``), or None if it is not installed."""
    found = PathFinder.find_spec(ORIGIN)  # what stands on the disk, whoever answers to the name of kombu
    for folder in found.submodule_search_locations or () if found is not None else ():
        place = os.path.join(folder, *name.split("."))
        for file in (os.path.join(place, "__init__.py"), f"{place}.py"):
            if os.path.isfile(file):
                return file
    return None


@contextmanager
def named_requirement(module: str) -> Iterator[None]:
    """Say what to install, where one of these modules, or its transport, lacks a package."""
    try:
        yield
    except (ImportError, NameError) as error:  # the latter where a name of the package is used that was not imported
        head, _, name = module.partition(".")
        found = next((each for each in TAKEN if name == each or name.startswith(f"{each}.")), None)
        text = str(error)
        if isinstance(error, UnboundLocalError) or head != HERE or found is None or "pip install" in text:
            raise
        raise ModuleNotFoundError(f"{text}: pip install '{TAKEN[found]}'", name=error.name) from error


def _renamed(name: str) -> str:
    return HERE + name[len(ORIGIN) :] if name == ORIGIN or name.startswith(f"{ORIGIN}.") else name


def compile_renamed(path: str) -> CodeType:
    """Compile a module of the distribution so that its imports mean kombulite."""
    import ast  # slow to import, and few load such a module

    with open(path, "rb") as file:
        tree = ast.parse(file.read(), path)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            node.module = _renamed(node.module)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == ORIGIN:
                    alias.asname = alias.asname or ORIGIN
                alias.name = _renamed(alias.name)
    return compile(tree, path, "exec", dont_inherit=True)


class _Loader:
    """Loads a file of the distribution as a module of kombulite."""

    def __init__(self, path: str) -> None:
        self._path = path

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to the import system."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Run the module."""
        with named_requirement(module.__name__):
            exec(compile_renamed(self._path), vars(module))  # noqa: S102 - an installed module, as imported


class _Watched:
    """Loads py-amqp's errors, and has ours become theirs too."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to the loader."""
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run the module."""
        self._loader.exec_module(module)
        adopt(module)


def _watched(spec: ModuleSpec | None) -> ModuleSpec | None:
    if spec is not None and spec.loader is not None:
        spec.loader = _Watched(spec.loader)  # type: ignore[assignment]
    return spec


class Finder:
    """Finds ``kombulite.transport.SQS`` and the like in the distribution."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's spec. Raises ModuleNotFoundError that says what to install, if it is one of those."""
        if fullname == DRIVER:
            return _watched(PathFinder.find_spec(fullname, path))
        head, _, name = fullname.partition(".")
        if head != HERE or not any(name == each or name.startswith(f"{each}.") for each in TAKEN):
            return None
        file = locate(name)
        if file is None:
            if name in TAKEN:
                raise ModuleNotFoundError(
                    f"{fullname} is a module of kombu, and kombu is not installed: pip install kombu", name=fullname
                )
            return None
        folder, base = os.path.split(file)
        return spec_from_file_location(
            fullname,
            file,
            loader=_Loader(file),  # type: ignore[arg-type]
            submodule_search_locations=[folder] if base == "__init__.py" else None,
        )


def install() -> None:
    """Have these modules found. May be repeated."""
    # First, because the path finder would find submodules of such a package, and load them as they are.
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        if DRIVER in sys.modules:
            adopt(sys.modules[DRIVER])
        sys.meta_path.insert(0, Finder())


def execute(name: str, namespace: dict[str, Any]) -> bool:
    """Run a module of the distribution in the namespace of one of ours. Returns False if it is not installed."""
    file = locate(name)
    if file is None:
        return False
    exec(compile_renamed(file), namespace)  # noqa: S102 - an installed module, as imported
    return True
