"""One program for kombu and for kombulite: what it sees must be the same.

A program is a function of a library (``lib``) that returns what it has seen, such as the calls that a mock got.
"""

from __future__ import annotations

import importlib
import re

import kombu
import pytest

import kombulite

#: What differs between two runs of one library too: addresses, and the library's name.
ADDRESS = re.compile(r"0x[0-9a-f]+|id='\d+'")


def of(lib, module):
    """The module of that name of a library."""
    return importlib.import_module(f"{lib.__name__}.{module}")


def outcome(function, *args, **kwargs):
    """What a function returns, or the name of the error that it raises."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return type(error).__name__


def os_error(number):
    """An error of the operating system's with that number."""
    error = OSError()
    error.errno = number
    return error


def programs(namespace):
    """The functions of a test module whose only argument is ``lib``."""
    functions = [each for each in namespace.values() if getattr(each, "__module__", None) == namespace["__name__"]]
    found = [each for each in functions if getattr(each, "__code__", None)]
    return [each for each in found if each.__code__.co_varnames[: each.__code__.co_argcount] == ("lib",)]


def side_by_side(namespace):
    """A test of each of the programs of a test module."""

    found = programs(namespace)
    assert found

    @pytest.mark.parametrize("program", found, ids=lambda program: program.__name__)
    def test_both_do_the_same(program):
        theirs, ours = (seen(program, lib) for lib in (kombu, kombulite))
        assert ours == theirs

    return test_both_do_the_same


def seen(program, lib):
    result = program(lib)
    lines = result if isinstance(result, list) else [result]
    return [ADDRESS.sub("0x", repr(each)).replace("kombulite", "kombu") for each in lines]
