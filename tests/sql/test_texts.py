"""Text that a database does not store, and rows that this library has not written."""

from __future__ import annotations

import time
from contextlib import closing

import pytest

from kombulite import Connection, Exchange, Producer, Queue, exceptions
from tests.sql.test_outbox import driver

SURROGATE = "a\ud800"


@pytest.mark.parametrize(
    "use",
    [
        lambda connection: Queue(SURROGATE)(connection).declare(),
        lambda connection: Exchange(SURROGATE)(connection).declare(),
        lambda connection: Producer(connection).publish(1, routing_key=SURROGATE),
        lambda connection: Queue("q", Exchange("amq.topic"), routing_key=SURROGATE)(connection).declare(),
        lambda connection: connection.Consumer([Queue("q")], tag_prefix=SURROGATE).consume(),
    ],
    ids=["queue", "exchange", "publish", "bind", "consumer"],
)
def test_half_a_character_is_refused_where_it_would_be_stored(database, use):
    connection = database.connect()
    with pytest.raises(exceptions.PreconditionFailed, match=r"must be valid Unicode, got 'a\\ud800"):
        use(connection)
    queue = Queue("after")(connection)
    queue.declare()
    Producer(connection).publish("the connection goes on", routing_key="after")
    assert queue.get(no_ack=True).payload == "the connection goes on"


@pytest.mark.parametrize("name", ["x-dead-letter-routing-key", "x-dead-letter-exchange"])
def test_dead_letters_that_could_not_be_stored_are_refused_at_the_declaration(database, name):
    """One of them would end each pass over what has expired: no connection could declare a queue any more."""
    connection = database.connect()
    Queue("dead", Exchange("dlx", "fanout"))(connection).declare()
    texts = [SURROGATE] if database.url.startswith("sqlite") else [SURROGATE, "a\0"]
    for text in texts:
        arguments = {"x-message-ttl": 1, "x-dead-letter-exchange": "dlx", name: text}
        with pytest.raises(exceptions.PreconditionFailed):
            Queue("source", queue_arguments=arguments)(connection).declare()
    Producer(connection).publish(1, routing_key="source")
    time.sleep(0.01)
    Queue("another")(database.connect()).declare()


@pytest.mark.parametrize("properties", ["{broken", "[]", '{"headers": 1}', "1", "[" * 100_000])
def test_message_whose_properties_cannot_be_read_does_not_keep_the_others(database, caplog, properties):
    connection = database.connect()
    queue = Queue("orders")(connection)
    queue.declare()
    Producer(connection).publish_many([1, 2, 3], routing_key="orders")
    with closing(driver(database)) as other:
        place = "%s" if "postgresql" in database.url else "?"
        other.execute(f"UPDATE {database.prefix}messages SET properties = {place} WHERE body = {place}",
                      (properties, b"2"))  # fmt: skip
        other.commit()
    got = []
    with connection.Consumer([queue], on_message=lambda message: (got.append(bytes(message.body)), message.ack())):
        while len(got) < 3:
            connection.drain_events(timeout=30)
    assert got == [b"1", b"2", b"3"]
    assert "is delivered without its properties, which cannot be read" in caplog.text


@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
def test_time_to_live_that_no_clock_has_is_refused(tmp_path, scheme):
    url = "memory://" if scheme == "memory" else f"sqlite:///{tmp_path}/x.db"
    for name in ("x-message-ttl", "x-expires"):
        with Connection(url) as connection, pytest.raises(exceptions.PreconditionFailed, match=f"invalid arg '{name}'"):
            Queue("long", queue_arguments={name: 10**400})(connection).declare()
    with Connection(url) as connection:
        Queue("orders")(connection).declare()
        with pytest.raises(exceptions.PreconditionFailed, match="invalid expiration"):
            Producer(connection).publish(1, routing_key="orders", expiration=1e300)
