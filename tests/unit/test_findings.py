"""The programs in `findings/` have the form that CONTRIBUTING.md describes. They are run by hand."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

FINDINGS = sorted((Path(__file__).parent.parent.parent / "findings").glob("*.sh"))
SEEN = re.compile(r"Seen with .*?\d+\.\d+.*? on\s+20\d\d-\d\d-\d\d", re.DOTALL)


def test_there_are_findings():
    assert FINDINGS


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_a_finding_states_what_it_ran_and_fails_if_that_changes(path):
    text = path.read_text()
    head = re.match(r"#!/bin/sh\n((?:#.*\n)+)set -eu\n", text)
    assert head, "a comment, then set -eu"
    comment = re.sub(r"\n#\s*", "\n", head[1])
    assert "Run by hand" in comment
    assert SEEN.search(comment)
    assert "work=$(mktemp -d)" in text
    assert "trap 'rm -rf \"$work\"' EXIT" in text
    assert re.search(r"\bdiff (?:- )?\"\$work/", text.splitlines()[-1])
    assert "kombulite" not in text
    assert subprocess.run(["sh", "-n", str(path)], check=False).returncode == 0


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_a_finding_pins_its_packages_or_takes_the_newest_of_debian(path):
    text = path.read_text()
    installed = re.findall(r'pip" -q install (?:--target "\S+" )?(.+)', text)
    assert installed or "debootstrap" in text
    for line in installed:
        assert all("==" in package for package in line.split()), line
