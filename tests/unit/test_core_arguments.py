"""Nothing that a caller gives the compiled core ends the process."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from kombulite import _core

#: Calls what a module has besides its classes, before anything else has been called.
FIRST_CALLS = """
import sys
from importlib import import_module
from inspect import isroutine
module = import_module(sys.argv[1])
for function in [each for each in vars(module).values() if isroutine(each) and each.__module__ == sys.argv[1]]:
    for count in range(5):
        for value in (None, 1, b"bytes", object()):
            print(function.__name__, count, repr(value), flush=True)
            try:
                function(*[value] * count)
            except Exception as error:
                print(type(error).__name__)
print("done")
"""


def test_no_argument_and_no_attribute_crashes_the_core():
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, "-m", "tests.arguments"]
    ended = subprocess.run(command, check=False, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0, f"{lines[-1]}\n{ended.stderr[-4000:]}"
    assert lines[-1] == "done"


@pytest.mark.parametrize("name", sorted(module.name for module in pkgutil.iter_modules(_core.__path__)))
def test_no_function_crashes_that_is_called_before_anything_else(name):
    """What is not exported is called too: what it relies on may not have been loaded yet."""
    command = [sys.executable, "-X", "faulthandler", "-c", FIRST_CALLS, f"kombulite._core.{name}"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, f"{ended.stdout[-200:]}\n{ended.stderr[-4000:]}"
    assert ended.stdout.endswith("done\n")
