"""Nothing that a caller gives the compiled core ends the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_no_argument_and_no_attribute_crashes_the_core():
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, "-m", "tests.arguments"]
    ended = subprocess.run(command, check=False, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0, f"{lines[-1]}\n{ended.stderr[-4000:]}"
    assert lines[-1] == "done"
