"""``kombulite top``, and the monitor behind it."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner
from rich.console import Console

from kombulite import Connection, Queue
from kombulite.cli import commands
from kombulite.cli.monitor import (
    BrokerReading,
    ManagementSource,
    Monitor,
    QueueReading,
    SourceError,
    StatusSource,
    source_of,
)
from kombulite.cli.top import View, _fitted, _live, _screen

pytest_plugins = ["kombulite_pytest"]


@pytest.fixture
def shop(kombulite_url):
    """A broker with two queues, of 3 and 1 messages."""
    with Connection(kombulite_url) as connection:
        producer = connection.Producer()
        producer.publish_many(range(3), routing_key="orders", declare=[Queue("orders")])
        producer.publish(1, routing_key="mail", declare=[Queue("mail")])
        yield connection


def top(*arguments):
    result = CliRunner().invoke(commands.kombulite, ["top", *arguments])
    return result.exit_code, result.output


def test_pipe_gets_a_table_for_each_reading(shop, kombulite_url):
    code, output = top(kombulite_url, "--count", "2", "--interval", "0.01")
    assert code == 0
    assert output.count("2 queues, 4 ready") == 2
    assert output.index("orders") < output.index("mail")  # by what is ready, the most first


def test_json_has_a_line_for_each_reading(shop, kombulite_url):
    code, output = top(kombulite_url, "--count", "2", "--interval", "0.01", "--json", "--filter", "o*")
    assert code == 0
    for line in output.splitlines():
        (broker,) = json.loads(line)["brokers"]
        assert broker["error"] is None
        assert [(queue["queue"], queue["ready"]) for queue in broker["queues"]] == [("orders", 3)]
    assert broker["queues"][0]["change"] == 0


def test_several_brokers_are_shown_and_one_that_fails_harms_no_other(shop, kombulite_url):
    code, output = top("amqp://127.0.0.1:1//", kombulite_url, "--count", "1", "--json")
    assert code == 0
    failed, read = json.loads(output)["brokers"]
    assert failed["error"]
    assert len(read["queues"]) == 2
    code, output = top("amqp://user:secret@127.0.0.1:1//", "--count", "1")
    assert code == 1
    assert "cannot be read" in output
    assert "secret" not in output


@pytest.mark.parametrize("arguments", [(), ("--sort", "colour", "memory://"), ("nonsense://",)])
def test_what_cannot_be_understood_is_refused(arguments, monkeypatch):
    monkeypatch.delenv("KOMBULITE_BROKER", raising=False)
    assert top(*arguments)[0] == 2


def test_monitor_works_out_how_queues_grow(shop, kombulite_url):
    now = [10.0]
    monitor = Monitor([StatusSource(kombulite_url, {})], clock=lambda: now[0])
    assert {each.change for each in monitor.read()[0].queues} == {None}
    shop.Producer().publish_many(range(10), routing_key="orders")
    Queue("new")(shop).declare()
    now[0] = 15.0
    assert {each.queue: each.change for each in monitor.read()[0].queues} == {"mail": 0, "new": None, "orders": 2}
    monitor.close()


class HangingSource:
    """A broker that does not answer until it may."""

    broker = "hanging://"

    def __init__(self):
        self.may_answer = threading.Event()
        self.asked = 0

    def read(self):
        self.asked += 1
        assert self.may_answer.wait(60)
        return [QueueReading("orders", 1, 0, 0)]

    def close(self):
        raise AssertionError("closing it would hang too")


def test_broker_that_hangs_keeps_no_other_waiting(shop, kombulite_url):
    hanging = HangingSource()
    monitor = Monitor([hanging, StatusSource(kombulite_url, {})], answer_timeout=0.05)
    while (readings := monitor.read())[1].error is not None:
        pass
    assert readings[0].error.startswith("no answer for ")
    assert hanging.asked == 1
    monitor.close()
    hanging.may_answer.set()
    while (readings := monitor.read())[0].error is not None:
        pass
    assert readings[0].queues == [QueueReading("orders", 1, 0, 0)]


def test_keys_are_heeded_while_a_broker_hangs(monkeypatch):
    is_reading, may_end, taken = threading.Event(), threading.Event(), []

    class HangingMonitor:
        def read(self):
            if taken:
                is_reading.set()
                assert may_end.wait(60)
            taken.append(1)
            return []

    @contextmanager
    def keyboard():
        yield lambda seconds: "q" if is_reading.is_set() else None

    monkeypatch.setattr("kombulite.cli.top._keyboard", keyboard)
    _live(HangingMonitor(), View(), 0, None, Console(file=io.StringIO()))
    may_end.set()


def test_view_sorts_filters_and_pauses():
    queues = [QueueReading("a", 1, None, 1), QueueReading("b", 2, 5, 1), QueueReading("c", 3, 2, 1)]
    view = View()
    assert [each.queue for each in view.select(queues)] == ["c", "b", "a"]
    view = view.press("s")
    assert view.sort == "unacked"
    assert [each.queue for each in view.select(queues)] == ["b", "c", "a"]
    assert [each.queue for each in view.press("r").select(queues)] == ["c", "b", "a"]
    assert [each.queue for each in View(pattern="[ab]").select(queues)] == ["b", "a"]
    assert view.press(" ").paused
    assert not view.press(" ").press(" ").paused
    assert view.press("x") == view


def test_keys_work_on_a_terminal(tmp_path):
    url = f"sqlite:///{tmp_path}/queue.db"
    with Connection(url) as connection:
        connection.Producer().publish_many(range(3), routing_key="orders", declare=[Queue("orders")])
    terminal, inner = pty.openpty()
    command = [sys.executable, "-m", "kombulite", "top", url, "--interval", "0.05"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "40"}
    process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment)
    os.close(inner)
    shown = b""

    def read_until(pattern):
        nonlocal shown
        while not re.search(pattern, shown):
            shown += os.read(terminal, 65536)
        shown = b""

    try:
        read_until(rb"orders")
        os.write(terminal, b" ")
        read_until(rb"paused \xc2\xb7")
        os.write(terminal, b"s")
        read_until(rb"unacked \xe2\x96\xbc")
        os.write(terminal, b"q")
        with pytest.raises(OSError, match="Input/output error"):  # the terminal is closed: it has ended
            while True:
                os.read(terminal, 65536)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


READING = QueueReading("", 1, 2, 3, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)


@pytest.mark.parametrize("name_length", [9, 60])
@pytest.mark.parametrize("brokers", [1, 5])
@pytest.mark.parametrize(("width", "height"), [(200, 50), (80, 24), (40, 12), (26, 9), (80, 4)])
def test_names_counts_and_keys_are_there_on_a_terminal_of_any_size(width, height, brokers, name_length):
    queues = [READING._replace(queue=f"orders-{number}".ljust(name_length, "x")) for number in range(10, 50)]
    readings = [BrokerReading("sqlite:///queue.db", queues, None)] * brokers
    console = Console(width=width, height=height, file=io.StringIO())
    console.print(_fitted(readings, View(), console.size))
    lines = console.file.getvalue().splitlines()
    shown = min(max((height - 1) // brokers - 6, 0), 40)  # of each broker
    assert len(lines) <= height
    assert sum(line.startswith("sqlite:") for line in lines) == min(brokers, height - 1)
    assert sum("orders-" in line for line in lines) == shown * brokers
    assert lines.count(f"{40 - shown} queues more") == (brokers if 0 < shown < 40 else 0)
    if shown:
        assert "ready ▼" in lines[2]
        assert all(name in lines[2] for name in QueueReading._fields) is (width == 200)
    assert lines[-1].startswith("q quit")


def test_lines_that_one_broker_does_not_need_are_for_the_others():
    queues = [READING._replace(queue=f"orders-{number}") for number in range(10, 30)]
    failed, few, many = (
        BrokerReading("a", [], "gone"),
        BrokerReading("b", queues[:2], None),
        BrokerReading("c", queues, None),
    )
    console = Console(width=80, height=24, file=io.StringIO())
    console.print(_fitted([many, failed, few], View(paused=True), console.size))
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= 24
    assert "gone" in lines
    assert (
        sum("orders-" in line for line in lines) == 7 + 2
    )  # 24 less the keys, 3 headings, 1 error, 7 for b, 5 around c
    assert lines[-1].startswith("paused · q quit")


def test_heading_says_how_the_broker_is_however_long_its_name():
    console = Console(width=40, height=10, file=io.StringIO())
    console.print(_fitted([BrokerReading("postgresql://" + "x" * 60, [READING], None)], View(), console.size))
    assert console.file.getvalue().splitlines()[0].endswith("…  1 queue, 1 ready")


def test_what_is_too_long_is_cut_on_a_terminal_and_whole_in_the_end():
    name, error = "orders-" + "x" * 60, "no route " * 20
    readings = [BrokerReading("a", [READING._replace(queue=name)], None), BrokerReading("b", [], error)]
    console = Console(width=60, height=20, file=io.StringIO())
    console.print(_fitted(readings, View(), console.size))
    assert console.file.getvalue().count("…") >= 2
    assert name.count("x") > console.file.getvalue().count("x")
    console = Console(width=60, height=20, file=io.StringIO())
    console.print(_screen(readings, View(), 60))
    assert console.file.getvalue().count("x") == name.count("x")
    assert console.file.getvalue().count("route") == 20


# --- the management API ---------------------------------------------------------------------------------------------

ANSWER = [
    {
        "name": "orders",
        "messages_ready": 7,
        "messages_unacknowledged": 2,
        "consumers": 1,
        "memory": 2048,
        "messages_ready_details": {"rate": -0.5},
        "message_stats": {"publish_details": {"rate": 3.5}, "deliver_get_details": {"rate": 4.0}},
    },
    {"name": "empty"},
]


@pytest.fixture
def api():
    """A server that answers as RabbitMQ's management plugin does; or with what a test puts into ``content``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked = (self.path, self.headers["Authorization"])
            self.send_response(server.status)
            if server.location is not None and self.path != "/elsewhere":
                self.send_header("Location", server.location)
            self.end_headers()
            self.wfile.write(server.content)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.status, server.content, server.location = 200, json.dumps(ANSWER).encode(), None
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_management_api_is_read(api):
    url = f"http://127.0.0.1:{api.server_port}"
    source = source_of("amqp://user:secret@127.0.0.1:1/shop", {}, management=url)
    orders, empty = source.read()
    assert orders == QueueReading("orders", 7, 2, 1, -0.5, 3.5, 4.0, None, None, 2048)
    assert empty == QueueReading("empty", 0, 0, 0)
    assert api.asked == ("/api/queues/shop", "Basic dXNlcjpzZWNyZXQ=")
    assert "secret" not in source.broker


def test_management_api_that_redirects_does_not_send_the_password_there(api):
    api.status, api.location = 302, f"http://localhost:{api.server_port}/elsewhere"
    with pytest.raises(SourceError):  # the other place sends its visitors on too, without a place
        ManagementSource("amqp://", f"http://127.0.0.1:{api.server_port}", "/", "guest", "secret").read()
    assert api.asked == ("/elsewhere", None)


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (401, b"{}"),
        (200, b"no json"),
        (200, b"{}x"),
        (200, b"[1]"),
        (200, b'[{"messages": 1}]'),
        (200, b"null"),
        (200, b'[{"name": 1}]'),
        (200, b'[{"name": "a", "memory": [1]}]'),
        (200, b'[{"name": "a", "consumers": Infinity}]'),
        (200, b"[" * 100_000),
    ],
)
def test_rubbish_from_the_management_api_is_an_error(api, status, content):
    api.status, api.content = status, content
    with pytest.raises(SourceError, match="management API"):
        ManagementSource("amqp://", f"http://127.0.0.1:{api.server_port}", "/", "guest", "guest").read()


def test_server_that_does_not_speak_http_is_no_management_api():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            client, _ = server.accept()
            with client:
                client.recv(65536)
                client.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(SourceError, match="management API"):
            ManagementSource("amqp://", f"http://127.0.0.1:{server.getsockname()[1]}", "/", "guest", "guest").read()
        thread.join(20)


@pytest.mark.parametrize("url", ["localhost:15672", "file:///etc", ""])
def test_management_must_be_a_url_of_http(url):
    with pytest.raises(SourceError, match="management must be an http:// or https:// URL"):
        ManagementSource("amqp://", url, "/", "guest", "guest")
