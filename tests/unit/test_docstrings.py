"""The public callables, and those of the API reference, which is made from docstrings, describe all parameters."""

from __future__ import annotations

import ast
import inspect
import re
import types
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

from kombulite import serialization

PAGES = sorted((Path(__file__).parent.parent.parent / "docs" / "api").glob("*.md"))
PUBLIC_NAMES = Path(__file__).parent.parent / "layering" / "public_names.txt"
SECTION = re.compile(r"^(?:Args|Keyword Args|Attributes):\n((?:[ ]{4}.*\n?|\n(?=[ ]{4}))+)", re.MULTILINE)
ARGS = re.compile(r"^Args:\n((?:[ ]{4}.*\n?|\n(?=[ ]{4}))+)", re.MULTILINE)
MADE_HERE = re.compile(r"Returned by|^ *Attributes:", re.MULTILINE)  # classes that programs make no objects of
NAME = re.compile(r"^    \*{0,2}(\w+)(?: \(.*\))?:", re.MULTILINE)


def resolve(path):
    """Return the object of a dotted path: a module, or something in one."""
    try:
        return import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(import_module(module), name)


def is_function(member):
    """Whether it is called as a function is: compiled, bound and wrapped ones too, but no instance of a class."""
    return inspect.isfunction(inspect.unwrap(member)) or (callable(member) and inspect.isroutine(member))


def functions_of(cls):
    for name, member in vars(cls).items():
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if is_function(function) and (name == "__call__" or not name.startswith("_")):
            yield f"{cls.__qualname__}.{name}", function


def home_of(member):
    """Return the module of a class or a function; that of the class of a compiled method, or of an instance."""
    if inspect.isclass(member) or is_function(member):
        return getattr(member, "__module__", None) or type(getattr(member, "__self__", None)).__module__
    return type(member).__module__


def documented(target):
    """Give the classes and functions that the reference shows for one entry of a page, and methods of instances."""
    if inspect.ismodule(target):
        names = getattr(target, "__all__", [name for name in vars(target) if not name.startswith("_")])
        members = [getattr(target, name) for name in names]
        declared, homes = hasattr(target, "__all__"), (target.__name__, f"{target.__name__}.")
        targets = [each for each in members if home_of(each).startswith("kombulite" if declared else homes)]
    else:
        targets = [target]
    for each in targets:
        if inspect.isclass(each):
            yield each.__qualname__, each
            yield from functions_of(each)
        elif is_function(each):
            yield each.__qualname__, each
        else:
            for cls in type(each).__mro__:
                if cls.__module__.startswith("kombulite"):
                    yield from functions_of(cls)


def parameters_of(member):
    if inspect.isclass(member) and issubclass(member, tuple) and hasattr(member, "_fields"):
        return set(member._fields)
    if type(member).__module__.startswith("_pytest."):
        return set()  # a fixture, whose parameters are fixtures
    if not inspect.isclass(member):
        names = list(inspect.signature(member).parameters.values())
        names = names[1:] if isinstance(member, types.ClassMethodDescriptorType) else names
    elif "__init__" not in vars(member) or MADE_HERE.search(member.__doc__ or ""):
        return set()  # it is inherited, or not for programs to call
    else:
        names = list(inspect.signature(member.__init__).parameters.values())[1:]
        names = [each for each in names if each.kind is not each.VAR_KEYWORD]  # described by name
    return {each.name for each in names if each.name not in ("self", "cls") and not each.name.startswith("_")}


EXAMPLE = re.compile(r"^(?:Examples?|Usage):\n((?:[ ]{4}.*\n?|\n(?=[ ]{4}))+)", re.MULTILINE)
FENCED = re.compile(r"```py\n(.+?)\n```\s*", re.DOTALL)  # else the site shows it as flowing text


def examples_of(member):
    """Return the code of the examples in a docstring, None for one that is not fenced."""
    found = [inspect.cleandoc(section) for section in EXAMPLE.findall(inspect.cleandoc(member.__doc__ or ""))]
    return [code[1] if (code := FENCED.fullmatch(section)) else None for section in found]


def undescribed(member):
    """Return the parameters that a docstring leaves out."""
    text = inspect.getdoc(member) or ""
    return parameters_of(member) - {name for section in SECTION.findall(text) for name in NAME.findall(section)}


ENTRIES = {path: page.stem for page in PAGES for path in re.findall(r"^::: (kombulite\.\S+)", page.read_text(), re.M)}
#: The public modules: what is not in one of them is internal (docs/architecture.md).
PUBLIC = [line.split(":")[0] for line in PUBLIC_NAMES.read_text().splitlines()]


@pytest.mark.parametrize("path", dict.fromkeys([*ENTRIES, *PUBLIC]))
def test_every_parameter_is_described(path):
    members = dict(documented(resolve(path)))
    assert {name: left for name, member in members.items() if (left := undescribed(member))} == {}


def test_every_public_callable_is_described_with_its_parameters():
    """Counts them, those too that a public class inherits from an internal one."""
    found = {}
    for path in dict.fromkeys([*ENTRIES, *PUBLIC]):
        for _, member in documented(resolve(path)):
            found[id(member)] = member
            for base in member.__mro__[1:] if inspect.isclass(member) else ():
                if base.__module__.startswith("kombulite"):
                    found |= {id(each): each for _, each in functions_of(base)}
    assert len(found) > 900
    assert sum(len(parameters_of(member)) for member in found.values()) > 1500
    assert [member for member in found.values() if not inspect.getdoc(member)] == []
    assert {member: left for member in found.values() if (left := undescribed(member))} == {}


#: Style: a docstring and a description begin with a verb or a noun, and errors have a section of their own.
CLAUSE = re.compile(r"(?:What|Whether|Who|Whoever|How|Where|When|Why)\b")
DESCRIPTION = re.compile(r"^    \*{0,2}\w+(?: \(.*\))?: (.*)", re.MULTILINE)


def clauses(text):
    """Return what a docstring says in another form."""
    said = [
        text.partition("\n")[0],
        *(each for section in SECTION.findall(text) for each in DESCRIPTION.findall(section)),
    ]
    return [each for each in said if CLAUSE.match(each)] + re.findall(r"\bRaises [A-Z]\w+", text)


@pytest.mark.parametrize("path", dict.fromkeys([*ENTRIES, *PUBLIC]))
def test_docstrings_begin_with_a_verb_or_a_noun_and_have_a_section_of_errors(path):
    members = dict(documented(resolve(path)))
    assert {name: found for name, each in members.items() if (found := clauses(inspect.getdoc(each) or ""))} == {}


def test_a_clause_is_seen():
    def publish():
        """Whether it was sent. Raises OSError.

        Args:
            body: What is sent.
            retry: If True, try again.
        """

    assert clauses(inspect.getdoc(publish)) == [
        "Whether it was sent. Raises OSError.",
        "What is sent.",
        "Raises OSError",
    ]


def test_every_example_is_a_block_of_code():
    shown = {}
    for path in dict.fromkeys([*ENTRIES, *PUBLIC]):
        for name, member in documented(resolve(path)):
            for code in examples_of(member):
                assert code is not None, name
                compile(code, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                shown[name] = code
    assert {"Connection", "Queue", "Consumer", "Producer", "Producer.batch", "connect"} <= shown.keys()


def test_an_example_that_is_no_block_of_code_is_seen():
    def publish():
        """Publish.

        Example:
            publish()
        """

    assert examples_of(publish) == [None]


class Sender:
    """What sends."""

    def __call__(self, body):
        """Send."""

    def send(self, body):
        """Send."""

    @classmethod
    @cache
    def make(cls, name):
        """Make one."""


class Sent(NamedTuple):
    """A body that was sent."""

    body: bytes


def test_no_kind_of_callable_is_missed():
    module = types.ModuleType("kombulite.sending")
    module.__all__ = ["Sender", "Sent", "send", "sender", "dumps"]
    module.Sender, module.Sent, module.sender, module.send = Sender, Sent, Sender(), Sender().send
    module.dumps = serialization.dumps  # a bound method of a compiled class
    for each in (Sender, Sent):
        each.__module__ = Sender.send.__module__ = "kombulite.sending"
    found = dict(documented(module))
    assert {name for name, member in found.items() if undescribed(member)} == {
        *("Sender.__call__", "Sender.send", "Sender.make", "Sent"),
    }
    assert serialization.dumps in found.values()


def test_what_is_left_out_is_seen():
    def publish(body, timeout):
        """Publish.

        Args:
            body: The body.
        """

    assert undescribed(publish) == {"timeout"}


def test_the_reference_has_what_programs_start_with():
    shown = {
        name for path in ("kombulite.connection.Connection", "kombulite.aio") for name, _ in documented(resolve(path))
    }
    assert {"Connection", "Connection.drain_events", "Producer.publish", "Messages.next"} <= shown
    assert {"kombulite.messaging.Producer", "kombulite.entity.Queue", "kombulite.brokers.base"} <= ENTRIES.keys()


@pytest.mark.parametrize("path", ENTRIES)
def test_what_goes_into_keywords_is_not_shown_as_required(path):
    for name, member in documented(resolve(path)):
        text = inspect.cleandoc(member.__doc__ or "")
        described = {name for section in re.findall(ARGS, text) for name in NAME.findall(section)}
        function = member.__init__ if inspect.isclass(member) else member
        assert described <= inspect.signature(function).parameters.keys(), name
