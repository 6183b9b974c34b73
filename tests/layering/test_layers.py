"""The house: who may import whom, what is exported, what is mapped."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import amqp.exceptions
import pytest

import kombulite
from kombulite import _core, exceptions
from kombulite.brokers.amqp import Transport as AMQPTransport
from kombulite.brokers.amqp.errors import CODEC_ERRORS
from kombulite.brokers.base import Transport as BaseTransport
from kombulite.brokers.memory import Transport as MemoryTransport
from kombulite.brokers.redis import Transport as RedisTransport

PACKAGE = Path(kombulite.__file__).parent

#: Floors from the bottom up; a module imports from its own floor and those below.
FLOORS = [
    {"_core"},
    {"exceptions", "_client.interfaces", "utils", "log", "clocks", "matcher"},
    {"abstract", "entity", "message", "serialization", "compression", "_client.queue_kind", "_client.queue_kinds"},
    {"transport", "transport.distribution"},
    {"brokers", "transport.native_delayed_delivery"},
    {"brokers.memory", "brokers.filesystem", "brokers.amqp", "brokers.redis", "brokers.sql"},
    {"_client"},
    {"_sync", "transport.adapter", "messaging"},
    {"resource", "simple", "connection", "hooks", "aio"},
    {f"transport.{name}" for name in ("base", "virtual", "memory", "redis", "pyamqp", "filesystem", "foreign")},
    {"pools", "common", "mixins", "pidbox", "compat", "asynchronous", "aliasing", "contrib"},
    {"__init__"},
    {"cli", "run", "__main__"},
]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def floor_of(name: str) -> int:
    best = max(
        ((len(entry), floor) for floor, entries in enumerate(FLOORS) for entry in entries if _within(name, entry)),
        default=None,
    )
    assert best is not None, f"kombulite.{name} stands on no floor"
    return best[1]


def _within(name: str, entry: str) -> bool:
    return name == entry or name.startswith(f"{entry}.")


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a module imports: when it runs, or for type checkers only."""
    found = set()
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kombulite":
            inner = node.module.removeprefix("kombulite").lstrip(".")
            for alias in node.names:
                candidate = f"{inner}.{alias.name}".lstrip(".")
                as_module = PACKAGE.joinpath(*candidate.split("."))
                is_module = as_module.with_suffix(".py").exists() or as_module.is_dir()
                found.add(candidate if is_module else inner or "__init__")
        pending.extend(ast.iter_child_nodes(node))
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_downward(path):
    name = module_name(path)
    above = {other for other in imports_of(path) if floor_of(other) > floor_of(name)}
    assert not above


def test_nothing_imports_in_a_circle():
    graph = {module_name(path): imports_of(path) - {module_name(path)} for path in MODULES}
    circles = []
    while graph:
        leaves = {name for name, imported in graph.items() if not imported & graph.keys()}
        if not leaves:
            imported_by_others = set().union(*graph.values())
            tops = graph.keys() - imported_by_others
            if not tops:
                circles = sorted(graph)
                break
            leaves = tops
        graph = {name: imported for name, imported in graph.items() if name not in leaves}
    assert circles == []


def test_the_facades_do_not_import_each_other():
    synchronous = {"_sync", "connection", "messaging", "resource", "simple", "transport.adapter"}
    for path in MODULES:
        name, imported = module_name(path), imports_of(path)
        if _within(name, "aio"):
            assert not {each for each in imported for entry in synchronous if _within(each, entry)}, path
        elif not _within(name, "contrib") and not _within(name, "cli"):
            assert not {each for each in imported if _within(each, "aio")}, path


def test_interfaces_import_nothing_of_ours():
    assert imports_of(PACKAGE / "_client" / "interfaces.py") == set()


MAX_METHODS, MAX_LINES = 25, 500
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
REASON = re.compile(r"\b(longer|wider|as wide|is long|many methods)\b", re.IGNORECASE)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_what_is_large_says_why(path):
    """A class of over 25 methods, or a file of over 500 lines, has its reason at the top of its module."""
    source = path.read_text()
    tree = ast.parse(source)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    methods = [{each.name for each in cls.body if isinstance(each, FUNCTIONS)} for cls in classes]
    is_large = len(source.splitlines()) > MAX_LINES or any(len(names) > MAX_METHODS for names in methods)
    assert not is_large or REASON.search(ast.get_docstring(tree) or "")


@pytest.mark.parametrize("path", sorted((PACKAGE.parent / "ext").rglob("*.pyx")), ids=lambda path: path.stem)
def test_what_is_long_in_the_core_says_why(path):
    """The same for a compiled module."""
    source = path.read_text()
    head = source.removeprefix('"""').partition('"""')[0]
    assert len(source.splitlines()) <= MAX_LINES or REASON.search(head)


def test_no_transport_imports_another():
    transports = [path.parent.name for path in (PACKAGE / "brokers").glob("*/__init__.py")]
    for path in (PACKAGE / "brokers").rglob("*.py"):
        own = path.relative_to(PACKAGE / "brokers").parts[0].removesuffix(".py")
        others = {name for name in imports_of(path) for other in transports if name.startswith(f"brokers.{other}")}
        assert all(name.startswith(f"brokers.{own}") for name in others), path


def test_core_is_compiled_and_has_one_door():
    for path in (PACKAGE / "_core").glob("*.py"):
        assert path.name == "__init__.py", "the core has no module in Python"
    for path in MODULES:
        if "_core" in path.parts:
            continue
        source = path.read_text()
        assert "kombulite._core." not in source, f"{path} goes around the door"


def test_stub_and_core_agree():
    stub = ast.parse((PACKAGE / "_core" / "__init__.pyi").read_text())
    described = {node.name for node in stub.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    described |= {node.target.id for node in stub.body if isinstance(node, ast.AnnAssign)}
    core = sys.modules["kombulite._core"]
    assert described == set(core.__all__)
    for node in stub.body:
        if not isinstance(node, ast.ClassDef):
            continue
        cls = getattr(core, node.name)
        for member in node.body:
            if isinstance(member, ast.FunctionDef) and member.name != "__buffer__":  # without a name before Python 3.12
                assert hasattr(cls, member.name), f"{node.name}.{member.name} is in the stub only"
        public = {name for name in vars(cls) if not name.startswith("_")}
        inherited = {name for base in cls.__mro__[1:] for name in vars(base)}
        in_stub = {member.name for member in node.body if isinstance(member, ast.FunctionDef)}
        in_stub |= {member.target.id for member in node.body if isinstance(member, ast.AnnAssign)}
        assert public - inherited <= in_stub, f"{node.name}: {public - inherited - in_stub} is not in the stub"


def test_error_tree_is_drawn_as_it_is():
    drawing = exceptions.__doc__
    for name, cls in vars(exceptions).items():
        if inspect.isclass(cls) and issubclass(cls, Exception) and cls.__module__ == exceptions.__name__:
            assert f" {name}" in drawing, f"{name} is not drawn"
            code = vars(cls).get("code")
            if code:
                line = next(line for line in drawing.splitlines() if f" {name} " in line)
                assert str(code) in line


def test_transports_raise_what_they_promise():
    for cls in (BaseTransport, MemoryTransport, AMQPTransport, RedisTransport):
        assert set(cls.recoverable_channel_errors) <= {
            error for base in cls.channel_errors for error in [base, *all_subclasses(base)]
        }
        for error in (exceptions.ConnectionForced, exceptions.ResourceError, ConnectionResetError, TimeoutError):
            assert issubclass(error, cls.recoverable_connection_errors)
        for error in (exceptions.NotAllowed, exceptions.NotFound, KeyError):
            assert not issubclass(error, cls.recoverable_connection_errors)


def all_subclasses(cls):
    for sub in cls.__subclasses__():
        yield sub
        yield from all_subclasses(sub)


@pytest.mark.parametrize("transport", [MemoryTransport, AMQPTransport, RedisTransport])
def test_transports_implement_the_whole_interface(transport):
    unfinished = [
        name
        for name, method in inspect.getmembers(BaseTransport, inspect.isfunction)
        if "raise NotImplementedError" in inspect.getsource(method) and getattr(transport, name) is method
    ]
    assert unfinished == []


def test_every_error_of_the_driver_has_a_name_here():
    driver = {
        cls
        for cls in vars(amqp.exceptions).values()
        if inspect.isclass(cls) and issubclass(cls, Exception) and not issubclass(cls, Warning)
        if cls.__module__ == amqp.exceptions.__name__
    }
    assert driver
    for theirs in driver:
        ours = getattr(exceptions, theirs.__name__)
        assert getattr(theirs, "code", 0) == getattr(ours, "code", 0)


def test_every_error_of_the_codec_has_a_name_here():
    assert set(CODEC_ERRORS) == set(all_subclasses(_core.ProtocolError))
    for theirs, ours in CODEC_ERRORS.items():
        assert ours.code == theirs.reply_code


def test_import_is_light():
    """What is imported for few must not be paid by all."""
    heavy = [
        "msgspec",
        "uuid",
        "decimal",
        "datetime",
        "json",
        "urllib.parse",
        "ipaddress",
        "socket",
        "ssl",
        "random",
        "pickle",
        "bz2",
        "lzma",
        "logging",
        "rich",
        "click",
        "asyncio",
        "redis",
        "hiredis",
        "opentelemetry",
        "prometheus_client",
        "kombulite._client.hooks",
        "kombulite._core.aio",
        "kombulite._core.frames",
        "kombulite._core.resp",
        "kombulite._core.routing",
        "kombulite.aio",
        "kombulite.contrib",
    ]
    code = f"import sys, kombulite; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}"],
                            capture_output=True, text=True, timeout=60, check=True)  # fmt: skip
    assert result.stdout.strip() == "[]"


def test_project_names_no_machine():
    root = PACKAGE.parent
    read = 0
    for folder, folders, names in os.walk(root):
        # What is installed below (.venv, .nox) is many times the project, and is not gone through.
        folders[:] = [name for name in folders if not name.startswith(".") and name != "build"]
        for path in (Path(folder, name) for name in names):
            if path.name == "Makefile" or path.suffix in (".py", ".pyx", ".pxd", ".md", ".toml"):
                assert path.name.startswith(".") or str(root) not in path.read_text(), path
                read += 1
    assert read > 100
