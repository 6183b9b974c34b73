"""Mistakes at the command line, and a world that does not help: one line that says why, a status, no traceback."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
from contextlib import suppress

import pytest
from click.testing import CliRunner

from kombulite import Connection, Queue
from kombulite.cli.commands import kombulite

NOWHERE = "amqp://127.0.0.1:1"

#: What is typed, the exit status, and what is said.
MISTAKES = [
    (f"ping -b {NOWHERE}", 1, "cannot connect to amqp://guest:**@127.0.0.1:1//: "),
    ("ping -b sqlite:///", 2, "must name a file"),
    ("ping -b sqlite:///missing/q.db", 1, "cannot open"),
    ("ping -b sqlite:///q.db -o lease=long", 2, "lease must be a number, got 'long'"),
    ("ping -b sqlite:///q.db -o lease=0.0.1", 2, "lease must be a number, got '0.0.1'"),
    ("ping -b sqlite:///q.db -o table_prefx=a", 2, "did you mean 'table_prefix'"),
    (f"ping -b {NOWHERE} -o read_timeout=long", 2, "read_timeout must be a number, got 'long'"),
    (f"ping -b {NOWHERE} -o write_timeout=[]x", 2, "write_timeout must be a number, got '[]x'"),
    ("ping -b postgresql://127.0.0.1:1/x -o socket_timeout=long", 2, "socket_timeout must be a number, got 'long'"),
    ("ping -b redis://127.0.0.1:1/x", 2, "a virtual host of Redis is the number of a database"),
    ("ping -b sentinel://127.0.0.1:1", 2, "master_name"),
    ("queues -b sqlite:///q.db missing", 1, "there is no queue missing"),
    ("consume -b sqlite:///q.db missing", 1, "no queue 'missing'"),
    ("tail -b sqlite:///q.db missing", 1, "no queue 'missing'"),
    ("purge -b sqlite:///q.db missing --yes", 1, "no queue 'missing'"),
    ("purge -b sqlite:///q.db missing", 2, "there is no terminal to ask on: say --yes"),
    ("move -b sqlite:///q.db missing other", 1, "no queue 'missing'"),
    ("move -b sqlite:///q.db missing missing", 2, "the same queue"),
    ("move -b sqlite:///q.db q q --to-broker nothing://", 2, "No such transport: nothing"),
    (f"move -b sqlite:///q.db q q --to-broker {NOWHERE}", 1, "cannot connect to amqp://guest:**@127.0.0.1:1//: "),
    ("publish -b sqlite:///q.db -q missing hello", 1, "1 taken by no queue: --declare creates it"),
    ("publish -b sqlite:///q.db --exchange missing -k k hello", 1, "no exchange 'missing'"),
    ("publish -b sqlite:///q.db -q q --declare --expiration 1e300 hello", 1, "invalid expiration"),
    ("relay sqlite:///q.db sqlite:///p.db missing --timeout 0", 1, "no queue 'missing'"),
    ("relay sqlite:///q.db sqlite:///q.db q --timeout 0", 2, "the same broker"),
    ("relay sqlite:///q.db sqlite:///p.db q -o lease=long", 2, "lease must be a number"),
    ("top sqlite:///q.db --count 1 -o lease=long", 2, "lease must be a number"),
    ("top sqlite:///missing/q.db --count 1", 1, "cannot open"),
    (f"top {NOWHERE} --count 1", 1, "cannot be read"),
    ("web sqlite:///q.db -o lease=long", 2, "lease must be a number"),
    (f"web {NOWHERE} --management nothing", 1, "management must be an http:// or https:// URL"),
    ("sql init -b memory://", 2, "must be sqlite:// or postgresql://"),
    ("sql init -b sqlite:///missing/q.db", 1, "cannot open"),
    (f"run --broker {NOWHERE} --messages 1", 1, "Connection refused"),
    ("run --broker nothing://", 2, "No such transport: nothing"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("line", "status", "text"), MISTAKES, ids=[line for line, _, _ in MISTAKES])
def test_a_mistake_is_named_without_a_traceback(line, status, text):
    done = CliRunner().invoke(kombulite, line.split())
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code == status, done.output
    assert text in done.output


@pytest.mark.parametrize(
    ("command", "broker"),
    [
        ("move -b sqlite:///q.db missing x --to-broker sqlite:///p.db", "q.db"),
        ("move -b sqlite:///q.db there missing --to-broker sqlite:///p.db", "p.db"),
        ("relay sqlite:///q.db sqlite:///p.db missing", "q.db"),
    ],
)
def test_an_error_of_two_brokers_names_the_one_that_it_is_from(command, broker):
    with Connection("sqlite:///q.db") as connection:
        Queue("there")(connection).declare()
    done = CliRunner().invoke(kombulite, command.split())
    expected = f"Error: sqlite:///{broker}: no queue 'missing' in vhost '{broker}'"
    assert expected in done.output.splitlines()
    assert done.exit_code == 1


def start(*arguments, **options):
    command = [sys.executable, "-m", "kombulite", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


def test_ctrl_c_ends_a_command_that_waits_for_a_broker(interruptible):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = start("ping", "-b", f"amqp://127.0.0.1:{silent.getsockname()[1]}", stdout=subprocess.DEVNULL)
        with silent.accept()[0]:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")


def interrupted(process):
    """Press Ctrl-C until a process ends: CPython misses one that comes between the prompt and its wait for a key."""
    for _ in range(12):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return process.wait(10)
    return None


def test_ctrl_c_at_a_question_removes_nothing(interruptible):
    with Connection("sqlite:///q.db") as connection:
        connection.Producer().publish(1, routing_key="q", declare=[Queue("q")])
    terminal, inner = pty.openpty()
    try:
        with start("purge", "-b", "sqlite:///q.db", "q", stdin=inner, stdout=inner) as process:
            try:
                assert process.stderr.read(10) == "Remove all"  # the question has come
                assert interrupted(process) == 130
            finally:
                process.kill()
    finally:
        os.close(inner)
        os.close(terminal)
    with Connection("sqlite:///q.db") as connection:
        assert Queue("q")(connection).purge() == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="other systems have no such file")
@pytest.mark.parametrize("command", ["queues", "consume"])
def test_an_output_that_is_full_is_said_and_takes_no_message(command):
    with Connection("sqlite:///q.db") as connection:
        connection.Producer().publish(1, routing_key="q", declare=[Queue("q")])
    with open("/dev/full", "w") as full:
        process = start(command, "-b", "sqlite:///q.db", "q", stdout=full)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "No space left on device" in errors
    assert "Traceback" not in errors
    with Connection("sqlite:///q.db") as connection:
        assert Queue("q")(connection).purge() == 1


def test_lines_that_are_no_text_are_said():
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    process = start("publish", "-b", "sqlite:///q.db", "-q", "q", "--declare", stdin=subprocess.PIPE, env=environment)
    process.stdin.buffer.write(b"\xff\n")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("Error: the input must be utf-8: ")
