"""kombulite in the place of kombu. Each case in a process of its own: it cannot be undone."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys

import pytest


def run(program):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_modules_are_the_same():
    output = run("""
import kombulite
kombulite.as_kombu()
kombulite.as_kombu()
import kombu, kombu.pools, kombu.utils.json, kombu.asynchronous.timer as timer
from kombu import Connection, connections, eventloop, pidbox, pools, producers, serialization
from kombu.transport import memory
from kombu.transport.native_delayed_delivery import level_name
import kombulite.asynchronous.timer, kombulite.pools, kombulite.transport.memory
assert kombu is kombulite
assert kombu.pools is pools is kombulite.pools
assert timer is kombulite.asynchronous.timer
assert memory is kombulite.transport.memory
assert Connection is kombulite.Connection
assert pools.__name__ == pools.__spec__.name == "kombulite.pools"
import importlib, sys
assert sys.modules["kombu.pools"] is sys.modules["kombulite.pools"]
importlib.reload(kombulite.utils.json)
with Connection("memory://") as connection:
    queue = connection.SimpleQueue("q")
    queue.put({"a": 1})
    print(queue.get(timeout=5).payload)
""")
    assert output == "{'a': 1}\n"


def test_versions_look_like_kombus():
    run("""
import kombulite
own = kombulite.__version__
kombulite.as_kombu()
import importlib.metadata, kombu
assert kombu.VERSION >= (5, 7, 0)
assert kombu.__version__ == "5.7.0+kombulite." + own
assert importlib.metadata.version("kombu") == kombu.__version__
assert importlib.metadata.version("kombulite") == own
assert importlib.metadata.distribution("kombu").metadata["Name"] == "kombu"
""")


def test_what_is_not_there_is_not_found():
    run("""
import kombulite
kombulite.as_kombu()
for name in ("kombu.no_such_module", "kombu.no.such"):
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        assert "kombu.no" in str(error)
    else:
        raise AssertionError(name)
import kombu
try:
    kombu.no_such_name
except AttributeError:
    pass
""")


def test_it_is_refused_once_genuine_kombu_is_imported():
    run("""
import kombu, kombulite
try:
    kombulite.as_kombu()
except RuntimeError as error:
    assert "imported already" in str(error) and kombu.__file__ in str(error)
else:
    raise AssertionError("not refused")
assert kombu is not kombulite
""")


def test_a_program_for_kombu_runs_as_it_is(tmp_path):
    (tmp_path / "program.py").write_text("""
from kombu import Connection, Exchange, Queue
from kombu.mixins import ConsumerMixin
from kombu.utils.functional import maybe_list
from kombu.exceptions import OperationalError

class Worker(ConsumerMixin):
    def __init__(self, connection):
        self.connection = connection
    def get_consumers(self, Consumer, channel):
        return [Consumer([Queue("q", Exchange("e"), routing_key="k")], callbacks=[self.work])]
    def work(self, body, message):
        print(body, maybe_list(body)[0])
        message.ack()
        self.should_stop = True
    def on_consume_ready(self, connection, channel, consumers, **kwargs):
        connection.Producer().publish({"n": 1}, exchange="e", routing_key="k")

Worker(Connection("memory://")).run()
""")
    output = run(f"""
import runpy, kombulite
kombulite.as_kombu()
runpy.run_path({str(tmp_path / "program.py")!r}, run_name="__main__")
""")
    assert output == "{'n': 1} {'n': 1}\n"


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_children_have_it_too_however_they_start(tmp_path, method):
    program = tmp_path / "program.py"
    program.write_text(f"""
import multiprocessing

def work(queue):
    import kombu
    queue.put(kombu.__name__)

if __name__ == "__main__":
    import kombulite
    kombulite.as_kombu()
    context = multiprocessing.get_context({method!r})
    queue = context.Queue()
    child = context.Process(target=work, args=(queue,))
    child.start()
    print(queue.get(timeout=50))
    child.join(50)
""")
    environment = {name: value for name, value in os.environ.items() if name != "KOMBULITE_AS_KOMBU"}
    result = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.stdout, result.returncode) == ("kombulite\n", 0), result.stderr
