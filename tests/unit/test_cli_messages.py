"""The commands about messages and queues, over the filesystem transport: each command is a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from kombulite import Connection, Queue
from kombulite.cli import commands, messages
from kombulite.message import Message


@pytest.fixture
def options(tmp_path):
    (tmp_path / "data").mkdir()
    return {
        "data_folder_in": str(tmp_path / "data"),
        "data_folder_out": str(tmp_path / "data"),
        "control_folder": str(tmp_path / "control"),
    }


@pytest.fixture
def arguments(options):
    return [text for name, value in options.items() for text in ("-o", f"{name}={value}")]


@pytest.fixture
def kombulite(arguments):
    def run(command, *rest, broker="filesystem://", **more):
        line = [command, "--broker", broker, *arguments, *rest]
        return CliRunner().invoke(commands.kombulite, line, **more)

    return run


@pytest.fixture
def connection(options):
    with Connection("filesystem://", transport_options=options) as connection:
        yield connection


def test_publish_and_consume(kombulite, connection):
    result = kombulite("publish", "-q", "q", "--declare", '{"a": 1}', "text", "-H", "h=1", "--priority", "3")
    assert (result.exit_code, result.output) == (0, "2 published\n")
    first, second = (Queue("q")(connection).get() for _ in range(2))
    assert (first.payload, second.payload) == ({"a": 1}, "text")
    assert (first.headers, first.properties["priority"]) == ({"h": 1}, 3)
    first.requeue()
    second.requeue()
    result = kombulite("consume", "q", "--timeout", "0")
    assert (result.exit_code, result.output) == (0, 'q\t{"a": 1}\nq\ttext\n')
    assert Queue("q")(connection).get() is None


def test_publish_reads_lines_from_the_standard_input(kombulite, connection):
    result = kombulite("publish", "-q", "q", "--json", "--text", input="1\n2\n")
    assert result.exit_code == 0, (result.output, result.exception)
    assert json.loads(result.stdout) == {"published": 2, "unroutable": 0}
    assert [Queue("q")(connection).get().payload for _ in range(2)] == ["1", "2"]


def test_publish_to_an_exchange_tells_what_nobody_took(kombulite, connection):
    queue = Queue("q", "e", routing_key="k")(connection)
    queue.declare()
    assert kombulite("publish", "--exchange", "e", "-k", "k", "1").exit_code == 0
    result = kombulite("publish", "--exchange", "e", "-k", "nobody", "1", "2")
    assert result.exit_code == 1
    assert "2 taken by no queue" in result.output
    assert queue.get().payload == 1


def test_publish_wants_to_know_where_to(kombulite):
    assert kombulite("publish", "1").exit_code == 2
    assert kombulite("publish", "--exchange", "e", "--declare", "1").exit_code == 2
    assert kombulite("publish", "-q", "q", "-H", "no value", "1").exit_code == 2


def test_consume_as_json(kombulite, connection):
    producer = connection.Producer()
    producer.publish({"a": 1}, routing_key="q", headers={"h": 1}, correlation_id="c")
    producer.publish({"b": 1}, routing_key="q", serializer="pickle")
    result = kombulite("consume", "q", "--json", "--timeout", "0")
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["body"] == {"a": 1}
    assert first["headers"] == {"h": 1}
    assert first["properties"]["correlation_id"] == "c"
    assert (first["exchange"], first["routing_key"], first["redelivered"]) == ("", "q", False)
    assert "body" not in second
    assert "Refusing to deserialize untrusted content" in second["error"]


def test_consume_takes_no_more_than_it_is_told(kombulite, connection):
    connection.Producer().publish_many(range(5), routing_key="q")
    assert kombulite("consume", "q", "-n", "2").output == "q\t0\nq\t1\n"
    assert kombulite("tail", "q", "-n", "1").output == "q\t2\n"
    assert [Queue("q")(connection).get(no_ack=True).payload for _ in range(2)] == [3, 4]


def test_reader_that_goes_away_loses_nothing(arguments, connection):
    connection.Producer().publish_many(range(5), routing_key="q")
    line = [sys.executable, "-m", "kombulite", "consume", "--broker", "filesystem://", *arguments, "q", "--json"]
    read, write = os.pipe()
    process = subprocess.Popen(line, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    os.close(read)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 141
    assert errors == ""
    assert [Queue("q")(connection).get(no_ack=True).payload for _ in range(5)] == list(range(5))


def test_tail_ends_with_ctrl_c(arguments, connection, interruptible):
    connection.Producer().publish("first", routing_key="q")
    line = [sys.executable, "-m", "kombulite", "tail", "--broker", "filesystem://", *arguments, "q"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "q\tfirst\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")


def test_queues(kombulite, connection):
    connection.Producer().publish_many(range(3), routing_key="one", declare=[Queue("one"), Queue("two")])
    taken = Queue("one")(connection).get()
    result = kombulite("queues")
    rows = {cells[0]: cells[1:] for line in result.output.splitlines() if (cells := line.strip("│ ").split("│"))}
    table = {name.strip(): [cell.strip() for cell in cells] for name, cells in rows.items() if len(cells) == 3}
    assert table["one"] == ["2", "1", "0"]
    assert table["two"] == ["0", "0", "0"]
    taken.ack()
    found = json.loads(kombulite("queues", "--json", "one").stdout)
    assert found == [{"queue": "one", "message_count": 2, "consumer_count": 0, "unacked": 0}]
    result = kombulite("queues", "one", "no-such")
    assert result.exit_code == 1
    assert "no queue no-such" in result.output


def test_queues_of_a_broker_that_cannot_list_them(kombulite, connection, monkeypatch):
    from kombulite.brokers import base, virtual

    Queue("one")(connection).declare()
    monkeypatch.setattr(virtual.Transport, "list_queues", base.Transport.list_queues)
    assert kombulite("queues").exit_code == 2
    result = kombulite("queues", "--json", "one", "no-such")
    assert result.exit_code == 1
    assert json.loads(result.stdout)[0]["unacked"] is None


def test_purge_asks_first(kombulite, connection):
    connection.Producer().publish_many(range(3), routing_key="q", declare=[Queue("q")])
    assert kombulite("purge", "q", input="n\n").exit_code == 1
    assert kombulite("purge", "q", "--yes").output == "3 removed from q\n"
    assert json.loads(kombulite("purge", "q", "--yes", "--json").stdout) == {"q": 0}
    assert kombulite("purge", "no-such", "--yes").exit_code == 1


def test_move(kombulite, connection):
    producer = connection.Producer()
    producer.publish({"a": 1}, routing_key="from", headers={"h": 1}, correlation_id="c", compression="zlib")
    producer.publish({"b": 1}, routing_key="from", serializer="pickle", expiration=60, delivery_mode=1)
    assert kombulite("move", "from", "to").exit_code == 1  # there is no such queue
    assert kombulite("move", "from", "from").exit_code == 2
    assert json.loads(kombulite("move", "from", "to", "--declare", "--json").stdout) == {"moved": 2}
    first, second = (Queue("to")(connection).get(accept=["json", "pickle"]) for _ in range(2))
    assert (first.payload, first.properties["correlation_id"]) == ({"a": 1}, "c")
    assert first.headers == {"h": 1}
    assert (second.payload, second.properties["expiration"]) == ({"b": 1}, "60000")
    assert second.properties["delivery_mode"] == 1
    assert kombulite("consume", "from").exit_code == 1  # nobody declared it, and nothing is in it


def test_move_to_another_broker(kombulite, connection):
    connection.Producer().publish_many(range(5), routing_key="from")
    result = kombulite("move", "from", "to", "--to-broker", "memory://localhost/moved", "--declare", "-n", "3")
    assert "3 moved" in result.output
    with Connection("memory://localhost/moved") as other:
        assert [Queue("to")(other).get(no_ack=True).payload for _ in range(3)] == [0, 1, 2]
    assert Queue("from")(connection).get().payload == 3


def test_move_that_is_interrupted_loses_nothing(kombulite, connection, monkeypatch):
    connection.Producer().publish_many(range(5), routing_key="from", declare=[Queue("to")])
    acks = iter([None, None, KeyboardInterrupt()])

    def ack(self, multiple=False):
        if (interruption := next(acks)) is not None:
            raise interruption
        original(self, multiple)

    original = Message.ack
    monkeypatch.setattr(messages.Message, "ack", ack)
    result = kombulite("move", "from", "to")
    assert result.exit_code == 130
    assert "2 moved" in result.output
    monkeypatch.undo()
    left = [Queue("from")(connection).get(no_ack=True).payload for _ in range(3)]
    arrived = [Queue("to")(connection).get(no_ack=True).payload for _ in range(3)]
    assert (left, arrived) == ([2, 3, 4], [0, 1, 2])


def test_ping(kombulite):
    facts = json.loads(kombulite("ping", "--json").stdout)
    assert facts["driver"] == "filesystem"
    assert facts["milliseconds"] > 0
    assert "ms, filesystem" in kombulite("ping").output


def test_passwords_are_never_shown(kombulite, tmp_path, monkeypatch):
    from kombulite.brokers.filesystem import folders

    def fail(self):
        raise OSError("refused")

    monkeypatch.setattr(folders.FolderStore, "open", fail)
    for command, rest in [("ping", ()), ("queues", ()), ("consume", ("q",)), ("publish", ("-q", "q", "1"))]:
        result = kombulite(command, *rest, broker="filesystem://user:secret@host/")
        assert result.exit_code == 1
        assert "refused" in result.output
        assert "secret" not in result.output
    assert "secret" not in kombulite("ping", broker="nix://user:secret@host:port/").output


def test_broker_comes_from_the_environment(arguments):
    line = ["ping", *arguments]
    assert CliRunner().invoke(commands.kombulite, line, env={"KOMBULITE_BROKER": ""}).exit_code == 2
    assert CliRunner().invoke(commands.kombulite, line, env={"KOMBULITE_BROKER": "filesystem://"}).exit_code == 0


@pytest.mark.parametrize("body", ["\x1b]0;owned\x07", "\x9b31m", "\x7f\x00\r"])
def test_bodies_give_no_orders_to_the_terminal(kombulite, connection, body):
    for each in (body, {"key": body}):
        connection.Producer().publish(each, routing_key=f"q{body[:1]}".replace("\0", ""))
    result = kombulite("consume", f"q{body[:1]}", "--timeout", "0")
    assert result.exit_code == 0
    assert not {char for char in result.output if ord(char) < 32 or 127 <= ord(char) < 160} - set("\t\n")
    assert "\\x" in result.output


def test_queue_names_give_no_orders_to_the_terminal(kombulite, connection):
    for name in ("[red]", "a\x1b[2J"):
        Queue(name)(connection).declare()
    result = kombulite("queues")
    assert result.exit_code == 0
    assert "[red]" in result.output
    assert "a\\x1b[2J" in result.output
