"""What the filesystem transport promises beyond the contract: crashes, unreadable files, other processes."""

from __future__ import annotations

import errno
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from kombulite import Connection, Exchange, Queue, exceptions
from kombulite.brokers.filesystem import folders as store


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "data").mkdir()
    return {
        "data_folder_in": str(tmp_path / "data"),
        "data_folder_out": str(tmp_path / "data"),
        "control_folder": str(tmp_path / "control"),
    }


@pytest.fixture
def connect(folders):
    opened = []

    def connect(**more):
        opened.append(Connection("filesystem://", transport_options={**folders, **more}))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.release()


def files(tmp_path, suffix=""):
    return sorted(path.name for path in (tmp_path / "data").iterdir() if path.name.endswith(suffix))


def start(folders, program, says=True):
    """A process that runs a program with a connection; it has begun when it says so."""
    code = f"""
import os, sys, time
from kombulite import Connection, Exchange, Queue
connection = Connection("filesystem://", transport_options={folders!r})
{program}
print("ready", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert not says or process.stdout.readline() == "ready\n"
    return process


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.stdout.close()


def test_messages_of_a_crashed_consumer_come_back_in_their_places(folders, connect):
    producer = connect().Producer()
    for i in range(5):
        producer.publish(i, routing_key="q")
    process = start(folders, "taken = [Queue('q')(connection).get() for _ in range(3)]; taken[1].ack()")
    queue = Queue("q")(connect())
    first = queue.get()
    assert first.payload == 3, "a living process keeps what it claimed"
    first.requeue()
    kill(process)
    time.sleep(1.1)  # it was seen alive a moment ago, and is believed for a second
    messages = [queue.get() for _ in range(4)]
    assert [message.payload for message in messages] == [0, 2, 3, 4]
    assert [message.delivery_info["redelivered"] for message in messages] == [True, True, True, False]
    assert queue.get() is None


def test_waiting_consumer_gets_what_a_crashed_one_had(folders, connect):
    connect().Producer().publish("precious", routing_key="q")
    process = start(folders, "taken = Queue('q')(connection).get()")
    connection, got = connect(), []
    with connection.Consumer(Queue("q"), callbacks=[lambda body, message: got.append(body) or message.ack()]):
        kill(process)
        connection.drain_events(timeout=30)
    assert got == ["precious"]


def test_exclusive_queue_of_a_crashed_process_is_gone(folders, connect):
    process = start(folders, "Queue('own', exclusive=True)(connection).declare()")
    channel = connect().channel()
    with pytest.raises(exceptions.ResourceLocked):
        Queue("own")(channel).queue_declare(passive=True)
    kill(process)
    time.sleep(1.1)
    with pytest.raises(exceptions.NotFound):
        Queue("own")(channel).queue_declare(passive=True)
    Queue("own", exclusive=True)(channel).declare()


def test_auto_delete_queue_stays_as_long_as_another_process_consumes(folders, connect):
    queue = Queue("auto", Exchange("e", "fanout"), auto_delete=True)
    process = start(
        folders, "c = connection.Consumer(Queue('auto', Exchange('e', 'fanout'), auto_delete=True)); c.consume()"
    )
    connection = connect()
    with connection.Consumer(queue):
        assert queue(connection).queue_declare(passive=True).consumer_count == 2
    assert queue(connection).queue_declare(passive=True).consumer_count == 1
    kill(process)
    time.sleep(1.1)
    with connection.Consumer(queue):
        pass
    with pytest.raises(exceptions.NotFound):
        queue(connection).queue_declare(passive=True)


def test_child_does_not_stand_for_its_dead_parent(folders, connect):
    connect().Producer().publish(1, routing_key="q")
    process = start(
        folders,
        """
taken = Queue("q")(connection).get()
child = os.fork()
if child == 0:
    time.sleep(60)
print(child, flush=True)""",
        says=False,
    )
    child = int(process.stdout.readline())
    try:
        kill(process)
        time.sleep(0.1)
        message = Queue("q")(connect()).get()
        assert message.payload == 1
        assert message.delivery_info["redelivered"]
    finally:
        os.kill(child, signal.SIGKILL)


def test_message_is_there_until_it_is_acknowledged(connect, tmp_path):
    connection = connect()
    connection.Producer().publish(1, routing_key="q")
    message = Queue("q")(connection).get()
    assert len(files(tmp_path, ".claimed")) == 1
    message.ack()
    assert files(tmp_path, ".claimed") == files(tmp_path, ".msg") == []


def test_message_that_cannot_be_opened_waits_again(connect, monkeypatch):
    connect().Producer().publish("precious", routing_key="q")
    queue, opened = Queue("q")(connect()), store._opened

    def fail(path, *arguments):
        if path.name.endswith(store.CLAIMED):
            raise OSError(errno.EMFILE, "too many open files")
        return opened(path, *arguments)

    monkeypatch.setattr(store, "_opened", fail)
    with pytest.raises(OSError, match="too many open files"):
        queue.get()
    monkeypatch.undo()
    message = queue.get()
    assert (message.payload, message.delivery_count) == ("precious", 0)


def test_text_that_calls_itself_binary_reaches_the_dead_letters(connect, tmp_path):
    sent = {
        "body": "grüße",
        "content-encoding": "binary",
        "content-type": "application/data",
        "headers": {},
        "properties": {"delivery_info": {"exchange": "", "routing_key": "q"}, "delivery_tag": "tag"},
    }
    (tmp_path / "data" / "1_1-r3.q.msg").write_text(json.dumps(sent))
    connection, seen = connect(), []
    with connection.Consumer(Queue("q"), on_message=seen.append, max_deliveries=3, dead_letter="dead"):
        connection.drain_events(timeout=30)
    assert seen == []
    assert Queue("dead")(connection).get().body == "grüße".encode()
    assert Queue("q")(connection).get() is None


def test_acknowledged_messages_may_be_kept(connect, tmp_path):
    connection = connect(store_processed=True, processed_folder=str(tmp_path / "processed"))
    connection.Producer().publish(1, routing_key="q")
    (name,) = files(tmp_path)
    Queue("q")(connection).get().ack()
    assert os.listdir(tmp_path / "processed") == [name]
    assert files(tmp_path, ".claimed") == files(tmp_path, ".msg") == []


def test_unreadable_message_is_set_aside(connect, tmp_path, caplog):
    connection = connect()
    bad = tmp_path / "data" / "1_bad.q.msg"
    bad.write_bytes(b'{"no": "envelope"}')
    os.utime(bad, (1, 1))
    connection.Producer().publish("good", routing_key="q")
    assert Queue("q")(connection).get(no_ack=True).payload == "good"
    assert files(tmp_path, "unreadable") == ["1_bad.q.msg.unreadable"]
    assert "cannot be read" in caplog.text


def test_half_a_message_is_set_aside_when_nobody_writes_it_any_more(connect, tmp_path):
    bad = tmp_path / "data" / "1_bad.q.msg"
    bad.write_bytes(b'{"body": "')
    queue = Queue("q")(connect())
    assert queue.get() is None
    os.utime(bad, (1, 1))
    time.sleep(0.1)
    assert queue.get() is None
    assert files(tmp_path, "unreadable") == ["1_bad.q.msg.unreadable"]


@pytest.mark.parametrize("fsync", [True, False])
def test_a_publish_waits_for_the_disk(connect, monkeypatch, fsync):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    connect(fsync=fsync).Producer().publish(1, routing_key="q")
    assert bool(synced) is fsync


def test_nothing_is_left_of_a_publish_that_failed(connect, tmp_path, monkeypatch):
    connection = connect()
    producer = connection.Producer()
    producer.publish(1, routing_key="q")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        producer.publish(2, routing_key="q")
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("name", ["a/b", "nul\0", "q" * 200])
def test_queue_names_that_are_no_file_names_are_refused(connect, name):
    connection = connect()
    with pytest.raises(exceptions.PreconditionFailed):
        connection.Producer().publish(1, routing_key=name)
    with pytest.raises(exceptions.PreconditionFailed):
        Queue(name)(connection.channel()).declare()


def test_queue_names_may_hold_dots_and_signs(connect):
    connection = connect()
    for name in ("celery@host.celery.pidbox", "a b", "ü", "%2F", "x.msg", "q.claimed"):
        queue = Queue(name)(connection)
        queue.declare()
        connection.Producer().publish(name, routing_key=name)
        assert queue.get(no_ack=True).payload == name
        assert name in [status.queue for status in connection.transport.list_queues(queue.channel.channel_id)]


def test_closing_leaves_no_trace_of_the_connection(connect, tmp_path):
    connection = connect()
    assert Queue("q")(connection).declare()
    assert Queue("q")(connection).get() is None
    assert len(files(tmp_path, ".live")) == 1
    connection.release()
    assert files(tmp_path) == []
    assert sorted(path.name for path in (tmp_path / "control").iterdir()) == [".lock", "q.queue.json"]


def test_claims_are_safe_from_those_who_have_another_control_folder(folders, connect, tmp_path):
    connect().Producer().publish("mine", routing_key="q")
    message = Queue("q")(connect()).get()
    other = connect(control_folder=str(tmp_path / "another"))
    other.Producer().publish("next", routing_key="q")
    assert Queue("q")(other).get(no_ack=True).payload == "next"
    message.ack()


def test_publisher_needs_no_folder_to_read_from(connect, tmp_path):
    connection = connect(data_folder_in=str(tmp_path / "missing"))
    connection.Producer().publish(1, routing_key="q")
    assert len(files(tmp_path, ".msg")) == 1
    with pytest.raises(exceptions.ChannelError):
        Queue("q")(connection).get()


def test_half_written_files_of_a_crash_go_after_an_hour(connect, tmp_path):
    old, new = tmp_path / "data" / ".old.tmp", tmp_path / "data" / ".new.tmp"
    old.touch()
    new.touch()
    os.utime(old, (1, 1))
    connect().connect()
    assert files(tmp_path, ".tmp") == [".new.tmp"]


def test_traces_of_the_dead_go_when_somebody_comes(folders, connect, tmp_path):
    kill(start(folders, "Queue('q')(connection).declare()"))
    assert len(files(tmp_path, ".live")) == 1
    connect().connect()
    assert files(tmp_path, ".live") == []


def test_connection_that_is_dropped_gives_its_messages_back(connect):
    connect().Producer().publish(1, routing_key="q")
    dropped = Connection("filesystem://", transport_options=connect().transport_options)
    taken = Queue("q")(dropped).get()
    del dropped, taken
    gc.collect()
    assert Queue("q")(connect()).get().payload == 1


def test_child_leaves_its_parents_connection_alone(folders, connect, tmp_path):
    connect().Producer().publish(1, routing_key="q")
    process = start(
        folders,
        """
Queue("own", exclusive=True)(connection).declare()
taken = Queue("q")(connection).get()
child = os.fork()
if child == 0:
    connection.collect()
    with connection:
        Queue("other")(connection).declare()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
taken.ack()
Queue("own")(connection).queue_declare(passive=True)""",
    )
    assert files(tmp_path, ".claimed") == files(tmp_path, ".msg") == []
    kill(process)


# --- what others may have put into the folders


def sparse(path):
    with open(path, "wb") as file:
        file.truncate(1 << 40)


PLANTED = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a link to a device": lambda path: os.symlink("/dev/zero", path),
    "a link to a file": lambda path: os.symlink("/etc/passwd", path),
    "a file of a terabyte": sparse,
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_what_is_no_message_is_set_aside(connect, tmp_path, plant):
    plant(tmp_path / "data" / "1_planted.q.msg")
    os.utime(tmp_path / "data" / "1_planted.q.msg", (1, 1), follow_symlinks=False)
    connection = connect()
    connection.Producer().publish("good", routing_key="q")
    queue = Queue("q")(connection)
    first = queue.get(no_ack=True) or queue.get(no_ack=True)
    assert first.payload == "good"
    while "1_planted.q.msg.unreadable" not in files(tmp_path):
        assert queue.get() is None


@pytest.mark.timeout(30)
@pytest.mark.parametrize("plant", [*PLANTED.values(), lambda path: path.write_text('{"q": 1}')], ids=[*PLANTED, "JSON"])
def test_what_shows_no_life_stops_nobody(connect, tmp_path, plant):
    plant(tmp_path / "data" / "planted.live")
    (tmp_path / "data" / "1_lost.q.msg.planted.claimed").write_bytes(b"{}")
    connection = connect()
    queue = Queue("q", auto_delete=True)(connection)
    queue.declare()
    queue.consume()
    connection.Producer().publish("good", routing_key="other")
    assert Queue("other")(connection).get(no_ack=True).payload == "good"


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["q.queue.json", "e.exchange", "e.exchange.json"])
@pytest.mark.parametrize("target", ["file", "nothing", "pipe"])
def test_catalogue_writes_through_no_link(connect, tmp_path, name, target):
    victim = tmp_path / "victim"
    if target == "file":
        victim.write_text("precious")
    (tmp_path / "control").mkdir()
    if target == "pipe":
        os.mkfifo(tmp_path / "control" / name)
    else:
        os.symlink(victim, tmp_path / "control" / name)
    with pytest.raises(exceptions.ChannelError, match="no regular file"):
        Queue("q", Exchange("e"), "k")(connect()).declare()
    assert victim.read_text() == "precious" if target == "file" else not victim.exists()


def test_lock_is_no_link(connect, tmp_path):
    (tmp_path / "control").mkdir()
    os.symlink(tmp_path / "victim", tmp_path / "control" / ".lock")
    with pytest.raises(OSError, match="symbolic links"):
        Queue("q")(connect()).declare()
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("record", ["", "nonsense", "[]", "5", "[" * 100_000])
@pytest.mark.parametrize("name", ["q.queue.json", "e.exchange.json"])
def test_broken_record(connect, tmp_path, name, record):
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / name).write_text(record)
    queue = Queue("q", Exchange("e"), "k")(connect())
    if not record:  # somebody died before writing it
        queue.declare()
        return
    with pytest.raises(exceptions.ChannelError, match="record of"):
        queue.declare()


@pytest.mark.parametrize("bindings", ["nonsense", "{}", "[1]", '[["k", "", 5]]', '[["k", ""]]'])
def test_broken_bindings(connect, tmp_path, bindings):
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "e.exchange").write_text(bindings)
    with pytest.raises(exceptions.ChannelError, match="bindings"):
        connect().Producer().publish(1, exchange="e", routing_key="k")


def test_bindings_lead_out_of_no_folder(connect, tmp_path):
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "e.exchange").write_text('[["k", "", "x/../../../escaped"]]')
    with pytest.raises(exceptions.PreconditionFailed, match="cannot be called"):
        connect().Producer().publish(1, exchange="e", routing_key="k")
    assert not list(tmp_path.glob("*escaped*"))


def test_files_are_named_in_order_if_a_millisecond_ends_meanwhile(connect, tmp_path, monkeypatch):
    """kombu takes files in order of their names."""
    readings = itertools.count(10**12, 300_000)  # ns
    monkeypatch.setattr(store, "monotonic", lambda: next(readings) / 1e9)
    monkeypatch.setattr(store, "monotonic_ns", lambda: next(readings), raising=False)
    producer = connect(fsync=False).Producer()
    for number in range(20):
        producer.publish(None, routing_key="q", headers={"number": number})
    files = sorted((tmp_path / "data").glob("*.msg"))
    assert [json.loads(file.read_bytes())["headers"]["number"] for file in files] == list(range(20))
