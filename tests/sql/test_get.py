"""``get``: what fails around it takes no message, and an empty one writes nothing."""

from __future__ import annotations

import pytest

from kombulite import Connection, Consumer, Producer, Queue, exceptions
from tests.sql.conftest import LockedDatabase

EXPIRES = 600  # seconds


@pytest.fixture
def connection(database) -> Connection:
    return database.connect()


@pytest.fixture
def queue(connection):
    queue = Queue("replies", expires=EXPIRES)(connection)
    queue.declare()
    return queue


@pytest.fixture
def expires(connection, queue):
    """Return what reads when the queue expires, moved back by some seconds first."""

    def read(moved=0):
        rows = LockedDatabase(connection.transport).rows
        rows("UPDATE {p}queues SET expires = expires - ?", moved)
        return rows("SELECT expires FROM {p}queues")[0][0]

    return read


@pytest.mark.parametrize("no_ack", [False, True])
def test_message_stays_where_its_queue_cannot_be_noted_as_used(connection, queue, expires, monkeypatch, no_ack):
    expires(EXPIRES / 2)
    Producer(connection).publish(1, routing_key="replies")
    database = connection.transport._database
    rows = database.rows

    def refuse(statement, *values):
        if statement.startswith("UPDATE {p}queues SET expires"):
            raise exceptions.RecoverableChannelError("canceling statement due to lock timeout")
        return rows(statement, *values)

    with monkeypatch.context() as patch:
        patch.setattr(database, "rows", refuse)
        with pytest.raises(exceptions.RecoverableChannelError):
            queue.get(no_ack=no_ack)
    assert queue.get(no_ack=True).payload == 1


@pytest.mark.parametrize("no_ack", [False, True])
def test_message_is_there_although_the_others_could_not_be_counted(connection, queue, monkeypatch, no_ack):
    def refuse(*_):
        raise exceptions.RecoverableChannelError("canceling statement due to statement timeout")

    Producer(connection).publish(1, routing_key="replies")
    monkeypatch.setattr(connection.transport._messages, "size", refuse)
    message = queue.get(no_ack=no_ack)
    assert message.payload == 1
    if not no_ack:
        message.ack()
    assert queue.get() is None


def test_queue_that_is_looked_at_again_and_again_is_not_written_to_each_time(queue, expires):
    before = expires()
    assert queue.get() is None
    assert expires() == before
    before = expires(EXPIRES / 2)
    assert queue.get() is None
    assert expires() > before + EXPIRES / 4


def test_queue_that_has_consumers_expires_at_no_time(connection, queue, expires):
    with Consumer(connection, [queue]):
        queue.get()
        assert expires() is None
    queue.get()
    assert expires() is not None
