"""Each bare ``Any`` in a public signature is in ``bare_any.txt``, under its reason.

A parameter or a result that may be given a type gets one instead: ``object`` if it is only passed on, a ``Mapping`` for
tables, a protocol for what is called. ``python -m tests.layering.test_bare_any`` lists those that have no reason yet.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import kombulite
from tests.layering.test_public_names import PINNED

TABLE = Path(__file__).with_name("bare_any.txt")
STUB = Path(kombulite.__file__).parent / "_core" / "__init__.pyi"
BARE = re.compile(r"(?:^|\| )Any(?:$| \|)")  # also in a union, which is as wide
CALLED = {"__init__", "__new__", "__call__"}
STARS = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def functions_of(cls):
    """Give the functions of a class that are written in Python."""
    for name, member in vars(cls).items():
        if name.startswith("_") and name not in CALLED:
            continue
        found = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        found = found.fget if isinstance(found, property) else found
        if inspect.isfunction(found):
            yield found


def hints_of(function):
    """Give each parameter with its annotation, and the result as ``return``."""
    for each in inspect.signature(function).parameters.values():
        yield f"{STARS.get(each.kind, '')}{each.name}", function.__annotations__.get(each.name)
    yield "return", function.__annotations__.get("return")


def stub_hints(name):
    """Give the same of a compiled class, from the core's stub."""
    for cls in ast.parse(STUB.read_text()).body:
        if isinstance(cls, ast.ClassDef) and cls.name == name:
            for each in cls.body:
                if isinstance(each, ast.FunctionDef) and (not each.name.startswith("_") or each.name in CALLED):
                    given = each.args
                    stars = [("*", given.vararg), ("**", given.kwarg)]
                    plain = [("", one) for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                    for star, one in [*plain, *(pair for pair in stars if pair[1])]:
                        yield each.name, f"{star}{one.arg}", one.annotation and ast.unparse(one.annotation)
                    yield each.name, "return", each.returns and ast.unparse(each.returns)


def signatures():
    """Give the hints of all public callables: where, name, annotation."""
    for line in PINNED.read_text().splitlines():
        module = importlib.import_module(line.split(":")[0])
        for value in (getattr(module, name) for name in module.__all__):
            classes = value.__mro__ if inspect.isclass(value) else ()
            for cls in classes:
                if cls.__module__.startswith("kombulite._core"):
                    for name, parameter, hint in stub_hints(cls.__name__):
                        yield f"kombulite._core.{cls.__name__}.{name}", parameter, hint
            ours = [cls for cls in classes if cls.__module__.startswith("kombulite")]
            functions = [each for cls in ours for each in functions_of(cls)]
            if inspect.isfunction(value):
                functions.append(value)
            for function in functions:
                if function.__module__.startswith("kombulite"):
                    for parameter, hint in hints_of(function):
                        yield f"{function.__module__}.{function.__qualname__}", parameter, hint


def bare():
    return {f"{where} {name}" for where, name, hint in signatures() if isinstance(hint, str) and BARE.search(hint)}


def reasons():
    """Return what the table has, by reason."""
    found, reason = {}, ""
    for line in TABLE.read_text().splitlines():
        if line.startswith("# "):
            reason = f"{reason} {line[2:]}".strip() if reason and not found.get(reason) else line[2:]
            found.setdefault(reason, [])
        elif line:
            found[reason].append(line)
    return found


def test_each_bare_any_has_a_reason():
    listed = [each for entries in reasons().values() for each in entries]
    assert len(listed) == len(set(listed)), "one reason is enough"
    assert bare() - set(listed) == set(), "no reason is given"
    assert set(listed) - bare() == set(), "these are gone: take them out"


def test_each_parameter_has_an_annotation():
    missing = {
        f"{where} {name}"
        for where, name, hint in signatures()
        if hint is None and name not in ("self", "cls") and not (name == "return" and where.endswith(".__init__"))
    }
    assert missing == set()


if __name__ == "__main__":
    print("\n".join(sorted(bare() - {each for entries in reasons().values() for each in entries})))
