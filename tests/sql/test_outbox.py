"""Publishing within a transaction of the caller's: the message exists if that commits."""

from __future__ import annotations

import sqlite3

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.orm import Session

from kombulite import Connection, Consumer, Exchange, Producer, Queue, exceptions


@pytest.fixture
def orders(database):
    """A connection with a queue bound to an exchange, and a producer to that."""
    connection = database.connect()
    shop = Exchange("shop", "topic")
    queue = Queue("orders", shop, routing_key="order.*")(connection)
    queue.declare()
    return queue, Producer(connection, shop, routing_key="order.new", auto_declare=False)


def driver(database):
    if database.url.startswith("sqlite"):
        return sqlite3.connect(database.url.removeprefix("sqlite://"))
    return psycopg.connect(database.url)


def session(database):
    path = database.url.removeprefix("sqlite://")
    url = (
        f"sqlite:///{path}" if path != database.url else database.url.replace("postgresql://", "postgresql+psycopg://")
    )
    return Session(sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool))


@pytest.mark.parametrize("open_transaction", [driver, session])
def test_message_exists_if_the_transaction_commits(database, orders, open_transaction):
    queue, producer = orders
    for commits in (False, True):
        transaction = open_transaction(database)
        producer.publish({"id": commits}, via=transaction, headers={"a": 1})
        assert queue.get() is None
        if commits:
            transaction.commit()
        else:
            transaction.rollback()
        transaction.close()
    message = queue.get()
    assert (message.payload, message.headers["a"]) == ({"id": True}, 1)
    message.ack()
    assert queue.get() is None


def test_commit_wakes_the_consumer(database, orders):
    _, producer = orders
    receiver = database.connect()
    got = []
    with (
        Consumer(receiver, [Queue("orders", no_declare=True)], on_message=got.append, auto_declare=False),
        driver(database) as transaction,
    ):
        producer.publish(1, via=transaction)
        with pytest.raises(TimeoutError):
            receiver.drain_events(timeout=0.1)
        looks = []
        claim = receiver.transport._claims.claim
        receiver.transport._claims.claim = lambda *args: (looks.append(1), claim(*args))[1]
        transaction.commit()
        receiver.drain_events(timeout=30)
        assert [message.payload for message in got] == [1]
        assert len(looks) <= 3, "it polled"


def test_what_the_transaction_cannot_do_is_told(database, orders):
    _, producer = orders
    with pytest.raises(TypeError, match="via must be a connection of"):
        producer.publish(1, via=object())
    with driver(database) as transaction:
        with pytest.raises(exceptions.NotFound, match="declare it before the transaction"):
            producer.publish(1, exchange=Exchange(""), routing_key="nowhere", via=transaction)
        with pytest.raises(exceptions.MessageReturned):
            producer.publish(1, routing_key="other", mandatory=True, via=transaction)


def test_other_brokers_say_that_they_have_no_transactions():
    with pytest.raises(exceptions.AMQPNotImplementedError, match="memory transport cannot publish via a transaction"):
        Connection("memory://").Producer().publish(1, routing_key="q", via=object())
