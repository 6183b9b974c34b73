"""Sub-interpreters: one interpreter of a process has the compiled core, others get an ImportError, none crashes."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import pytest

BEGIN = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

def run_in_another(code):
    other = interpreters.create()
    try:
        found = interpreters.run_string(other, code)
        assert found is None, found
    finally:
        interpreters.destroy(other)

WORK = '''
from kombulite import Connection, Queue
with Connection("memory://") as connection:
    connection.Producer().publish({"id": 1}, routing_key="q", declare=[Queue("q")])
    assert Queue("q")(connection).get(no_ack=True).payload == {"id": 1}
'''

REFUSED = '''
try:
    import kombulite
except ImportError as error:
    assert "interpreter" in str(error), error
else:
    raise AssertionError("imported twice")
'''
"""


@pytest.mark.parametrize(
    "then",
    [
        "exec(WORK); run_in_another(REFUSED); exec(WORK)",
        # Only the first one: where interpreters have a lock each, it is refused too.
        "run_in_another(f'try:\\n    import kombulite\\nexcept ImportError:\\n    pass'); print('alive')",
        "exec(WORK); [run_in_another(REFUSED) for _ in range(5)]; exec(WORK)",
    ],
)
def test_a_second_interpreter_is_refused_and_nothing_crashes(then, tmp_path):
    # Elsewhere, because only the first interpreter looks in the current folder, where another build may be.
    done = subprocess.run(
        [sys.executable, "-c", dedent(BEGIN) + then],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
