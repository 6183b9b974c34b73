"""What docs/security.md promises that no other module tests."""

import logging
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from kombulite import Connection, pools
from kombulite.exceptions import OperationalError
from kombulite.utils.debug import log_calls

ROOT = Path(__file__).parents[2]
SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "url", ["os.system://", "os:system://h", "subprocess.Popen://h/", "kombulite.brokers.memory://"]
)
def test_a_url_names_no_class_to_import(url):
    with pytest.raises((KeyError, ValueError)):
        Connection(url)


@pytest.mark.parametrize("query", ["transport_cls=os.system", "queue_order_strategy=os.system", "on_open=os.system"])
def test_a_url_sets_only_what_it_may(query):
    with pytest.raises(ValueError, match="unknown option"):
        Connection(f"memory://h/?{query}")


@pytest.mark.parametrize("scheme", ["amqp", "amqps", "redis", "rediss"])
def test_a_refused_port_shows_no_password(scheme, caplog):
    """Neither in the error with all that led to it, nor in what is logged."""
    with caplog.at_level(logging.DEBUG):
        connection = Connection(f"{scheme}://user:{SECRET}@127.0.0.1:1//".removesuffix("/"), connect_timeout=1)
        with pytest.raises(OperationalError) as caught:
            connection.ensure_connection(max_retries=1, interval_start=0)
        connection.release()
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in caplog.text


def test_no_repr_shows_the_password():
    connection = Connection(f"memory://user:{SECRET}@h/v", transport_options={"sentinel_kwargs": {"password": SECRET}})
    pool = connection.Pool(1)
    with pool.acquire() as acquired:
        shown = [connection, acquired, connection.transport, connection.transport.settings, connection.channel(), pool]
        shown += [connection.Producer(), connection.clone(), pools.connections[connection]]
        for each in shown:
            assert SECRET not in repr(each)
            assert SECRET not in str(each)


def test_calls_that_are_logged_show_no_password(caplog):
    connection = Connection(f"memory://user:{SECRET}@h/v")
    connection.connect()
    with caplog.at_level(logging.DEBUG):
        log_calls(connection.transport, "test", "transport")
        connection.channel()
    assert "open_channel" in caplog.text
    assert SECRET not in caplog.text


def test_the_hook_of_kombulite_as_kombu_is_one_line_that_does_nothing_unless_asked():
    text = (ROOT / "kombulite.pth").read_text()
    assert text.count("\n") == 1
    program = "import sys; print('kombulite' in sys.modules)"
    for value, loaded in (("", "False"), ("0", "False"), ("true", "False")):
        environment = {**os.environ, "KOMBULITE_AS_KOMBU": value}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == loaded


def test_the_hook_takes_no_module_from_the_working_directory(tmp_path):
    (tmp_path / "kombulite.py").write_text("print('hijacked')")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; print('kombu' in sys.modules)"],
        cwd=tmp_path,
        env={**os.environ, "KOMBULITE_AS_KOMBU": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True\n"


def test_each_test_that_the_docs_name_is_there():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "security.md").read_text())
    assert len(named) > 20
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"
