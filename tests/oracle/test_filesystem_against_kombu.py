"""kombu and kombulite over the same folders, each way."""

from __future__ import annotations

import datetime
import os
import time

import kombu
import pytest

import kombulite

LIBRARIES = {"kombu": kombu, "kombulite": kombulite}
EACH_WAY = pytest.mark.parametrize(("sender", "receiver"), [("kombu", "kombulite"), ("kombulite", "kombu")])

BODIES = [
    {"id": 7, "nested": {"list": [1, 2.5, None, True, "text"]}},
    "plain text with ü",
    b"raw \x00\xff bytes",
    [],
    {"at": datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)},
]


@pytest.fixture
def connect(tmp_path):
    (tmp_path / "data").mkdir()
    options = {
        "data_folder_in": str(tmp_path / "data"),
        "data_folder_out": str(tmp_path / "data"),
        "control_folder": str(tmp_path / "control"),
    }
    opened = []

    def connect(name, **more):
        opened.append(LIBRARIES[name].Connection("filesystem://", transport_options={**options, **more}))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.release()


def all_of(queue, **options):
    found = []
    while (message := queue.get(**options)) is not None:
        found.append(message)
    return found


def slowly():
    """kombu's names tell the order of messages by the millisecond."""
    time.sleep(0.002)


@EACH_WAY
def test_bodies_and_properties(connect, sender, receiver):
    producer = connect(sender).Producer()
    for body in BODIES:
        producer.publish(body, routing_key="q", headers={"h": [1]}, correlation_id="c", priority=3, expiration=60)
        slowly()
    producer.publish({"z": "x" * 100}, routing_key="q", compression="zlib")
    queue = LIBRARIES[receiver].Queue("q")(connect(receiver))
    messages = all_of(queue)
    assert [message.payload for message in messages] == [*BODIES, {"z": "x" * 100}]
    first = messages[0]
    assert first.headers == {"h": [1]}
    assert first.properties["correlation_id"] == "c"
    assert first.properties["priority"] == 3
    assert first.properties["expiration"] == "60000"
    assert first.delivery_info["routing_key"] == "q"
    for message in messages:
        message.ack()
    assert queue.get() is None


@EACH_WAY
@pytest.mark.parametrize("binder", ["kombu", "kombulite"])
def test_bindings_are_read_each_way(connect, sender, receiver, binder):
    def entities(lib):
        topic = lib.Exchange("topic", "topic")
        fanout, direct = lib.Exchange("fanout", "fanout"), lib.Exchange("direct")
        return [
            lib.Queue("t1", topic, routing_key="a.*.c"),
            lib.Queue("t2", topic, routing_key="#.x-y"),
            lib.Queue("f1", fanout),
            lib.Queue("f2", fanout),
            lib.Queue("d1", direct, routing_key="k"),
        ]

    for queue in entities(LIBRARIES[binder]):
        queue(connect(binder)).declare()
    connection = connect(sender)
    producer = connection.Producer()
    for queue in entities(LIBRARIES[sender]):
        queue(connection).declare()
    for exchange, key in [
        ("topic", "a.b.c"),
        ("topic", "b.x-y"),
        ("topic", "a.c"),
        ("fanout", ""),
        ("direct", "k"),
        ("direct", "no"),
    ]:
        producer.publish(f"{exchange} {key}", exchange=exchange, routing_key=key)
    connection = connect(receiver)
    found = {
        queue.name: [message.payload for message in all_of(queue(connection), no_ack=True)]
        for queue in entities(LIBRARIES[receiver])
    }
    assert found == {
        "t1": ["topic a.b.c"],
        "t2": ["topic b.x-y"],
        "f1": ["fanout "],
        "f2": ["fanout "],
        "d1": ["direct k"],
    }


@pytest.mark.parametrize("receiver", LIBRARIES)
def test_order_of_what_both_send_is_kept(connect, receiver):
    producers = [connect(name).Producer() for name in LIBRARIES]
    for i in range(20):
        producers[i % 2].publish(i, routing_key="q")
        slowly()
    queue = LIBRARIES[receiver].Queue("q")(connect(receiver))
    assert [message.payload for message in all_of(queue, no_ack=True)] == list(range(20))


def test_kombu_gets_what_kombulite_sent_at_once_in_order(connect):
    connect("kombulite", fsync=False).Producer().publish_many(range(50), routing_key="q")
    queue = kombu.Queue("q")(connect("kombu"))
    assert [message.payload for message in all_of(queue, no_ack=True)] == list(range(50))


def test_kombu_leaves_claims_and_what_is_being_written_alone(connect, tmp_path):
    producer = connect("kombulite").Producer()
    for i in range(3):
        producer.publish(i, routing_key="q")
    ours = kombulite.Queue("q")(connect("kombulite"))
    claimed = ours.get()
    (tmp_path / "data" / ".unnamed.tmp").write_bytes(b"{")
    theirs = kombu.Queue("q")(connect("kombu"))
    assert [message.payload for message in all_of(theirs, no_ack=True)] == [1, 2]
    claimed.requeue()
    assert [message.payload for message in all_of(theirs, no_ack=True)] == [0]


def test_kombulite_waits_for_what_kombu_is_still_writing(connect, tmp_path):
    connect("kombu").Producer().publish({"whole": True}, routing_key="q")
    (file,) = (tmp_path / "data").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:20])
    queue = kombulite.Queue("q")(connect("kombulite"))
    assert queue.get() is None
    file.write_bytes(whole)
    assert queue.get().payload == {"whole": True}


def test_kombulite_wakes_for_what_kombu_sends(connect):
    connection = connect("kombulite")
    got = []
    queue = kombulite.Queue("q", kombulite.Exchange("e"), routing_key="k")
    with connection.Consumer(queue, callbacks=[lambda body, message: got.append(body) or message.ack()]):
        producer = connect("kombu").Producer()
        producer.publish({"n": 1}, exchange="e", routing_key="k")
        connection.drain_events(timeout=10)
    assert got == [{"n": 1}]


@pytest.mark.parametrize("name", ["bad/name", "..", "con", "aux.txt", "white space"])
def test_exchange_names_that_are_no_file_names_are_refused_by_both(connect, name):
    for lib in LIBRARIES.values():
        connection = connect(lib.__name__)
        queue = lib.Queue("q", lib.Exchange(name, "topic"), routing_key="k")
        with pytest.raises(lib.exceptions.ChannelError):
            queue(connection).declare()


def test_missing_folder_is_a_channel_error_in_both(connect, tmp_path):
    os.rmdir(tmp_path / "data")
    for lib in LIBRARIES.values():
        connection = connect(lib.__name__)
        with pytest.raises(lib.exceptions.ChannelError):
            connection.Producer().publish(1, routing_key="q")
