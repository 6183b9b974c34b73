"""Exceptions from signal handlers amid transactions: they come out as they are, and others can be run after them."""

from __future__ import annotations

from itertools import count

import pytest

from kombulite import Producer, Queue
from tests.interrupts import Interrupts
from tests.servers import Unavailable


@pytest.fixture
def interrupts(tmp_path):
    try:
        return Interrupts(tmp_path)
    except Unavailable as error:
        pytest.skip(str(error))


def test_exception_amid_a_transaction_comes_out_of_it(database, interrupts):
    """Not the server's, for which it is an error to roll back what is under way."""
    connection = database.connect()
    producer, numbers = Producer(connection, routing_key="orders"), count()
    Queue("orders", max_length=5)(connection).declare()
    done = []

    def publish() -> None:  # it has a limit, so this is a transaction
        producer.publish(next(numbers))

    for is_interrupted in interrupts.at_each(publish, 11):
        connection.ensure_connection()  # not while it is interrupted: psycopg would leave its connection open
        if not is_interrupted:
            done.append(next(numbers) - 1)
    publish()
    queue = Queue("orders", max_length=5)(connection)
    found = [message.payload for message in iter(lambda: queue.get(no_ack=True), None)]
    assert len(found) == 5
    assert sorted(set(found)) == found
    assert set(done[-1:]) <= set(found)
