"""The ways to have Celery run on kombulite."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

IDLE = {name: value for name, value in os.environ.items() if name != "KOMBULITE_AS_KOMBU"}
TELL = "import kombu; print(kombu.__version__.partition('+')[2].partition('.')[0] or 'kombu')"


def run(*command, environment=(), folder=None):
    return subprocess.run(
        [sys.executable, *command],
        env={**IDLE, **dict(environment)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("value", ["1", "0", "", None])
def test_environment_variable(value):
    environment = {} if value is None else {"KOMBULITE_AS_KOMBU": value}
    result = run("-c", TELL, environment=environment)
    assert (result.stdout, result.stderr) == ("kombulite\n" if value == "1" else "kombu\n", "")


def test_the_hook_imports_nothing_unless_it_is_asked_to():
    assert run("-c", "import sys; print('kombulite' in sys.modules)").stdout == "False\n"


def test_command_passes_everything_on():
    result = run("-m", "kombulite", "celery", "--version")
    assert (result.returncode, result.stdout.split()[0]) == (0, "5.7.0")
    result = run("-m", "kombulite", "celery", "report")
    assert "kombu:5.7.0+kombulite" in result.stdout
    result = run("-m", "kombulite", "celery", "no-such-command")
    assert result.returncode == 2
    assert "no-such-command" in result.stderr


def test_command_says_what_is_missing():
    program = "import sys; sys.modules['celery'] = None; sys.argv[1:] = ['celery']; import kombulite.cli as c; c.main()"
    result = run("-c", program)
    assert result.returncode == 2
    assert "pip install celery" in result.stderr


def test_processes_that_celery_starts_inherit_it(tmp_path):
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {TELL!r}], check=True)"
    (tmp_path / "child.py").write_text(program)
    result = run("-m", "kombulite", "celery", "-A", "child", "report", folder=tmp_path)
    assert "kombulite\n" in result.stdout


def test_application_module_switches_it_on(tmp_path):
    (tmp_path / "proj.py").write_text(
        "import kombulite\nkombulite.as_kombu()\nfrom celery import Celery\napp = Celery('proj', broker='memory://')\n"
    )
    program = "from proj import app; print(type(app.connection()).__module__)"
    assert run("-c", program, folder=tmp_path).stdout == "kombulite.connection\n"
    assert run("-m", "kombulite", "celery", "-A", "proj", "report", folder=tmp_path).returncode == 0
    late = run("-m", "celery", "-A", "proj", "report", folder=tmp_path)  # genuine kombu is imported before
    assert late.returncode != 0
    assert "python -m kombulite celery" in late.stderr
