"""The scripts in Lua: each file is loaded, and each script is run by some module."""

from __future__ import annotations

import ast
from importlib.resources import files
from pathlib import Path

import kombulite.brokers.redis as package
from kombulite.brokers.redis import scripts

SCRIPTS = {name: each for name, each in vars(scripts).items() if isinstance(each, scripts.Script)}


def test_each_file_is_a_script_and_each_script_a_file():
    there = {each.name for each in files(package).joinpath("lua").iterdir()}
    assert there == {f"{name}.lua" for script in SCRIPTS.values() for name in script.names}
    assert {name.lower() for name in SCRIPTS} == {"_".join(reversed(script.names)) for script in SCRIPTS.values()}


def test_each_script_is_used():
    used = {
        node.id
        for module in Path(package.__file__).parent.rglob("*.py")
        if module.name != "scripts.py"
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    assert SCRIPTS.keys() - used == set()


def test_each_script_says_what_it_does():
    for script in SCRIPTS.values():
        assert script.source.startswith("-- "), script.names
        assert len(script.sha) == 40
