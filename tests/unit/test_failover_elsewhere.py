"""Failover to a broker that shares nothing with the one that was lost: durable entities are declared there too."""

from __future__ import annotations

import pytest

from kombulite import Connection, Consumer, Exchange, Producer, Queue


def urls(kind, folder):
    if kind == "memory":
        return [f"memory://localhost/{folder.name}-{each}" for each in ("a", "b")]
    return [f"sqlite:///{folder}/{each}.db" for each in ("a", "b")]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("exchange_type", ["direct", "topic", "fanout"])
def test_consumer_of_a_durable_queue_goes_on_at_the_other_broker(tmp_path, kind, exchange_type):
    first, second = urls(kind, tmp_path)
    exchange = Exchange("shop", exchange_type)
    queue = Queue("orders", exchange, routing_key="new")
    got = []
    with Connection([first, second]) as connection, Connection(second) as other:
        with Consumer(connection, [queue], callbacks=[lambda body, message: (got.append(body), message.ack())]):
            connection.abandon(connection.transport, "the first broker is gone")
            connection.ensure_connection(max_retries=1)
            assert connection.virtual_host == other.virtual_host
            Producer(other, exchange, "new", auto_declare=False).publish("there")
            connection.drain_events(timeout=10)
    assert got == ["there"]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_queue_that_was_deleted_is_not_declared_again_at_the_same_broker(tmp_path, kind):
    first, _ = urls(kind, tmp_path)
    with Connection(first) as connection, Connection(first) as other:
        Queue("orders")(connection).declare()
        other.default_channel.queue_delete("orders")
        connection.abandon(connection.transport, "lost")
        connection.ensure_connection(max_retries=1)
        with pytest.raises(connection.channel_errors):
            Queue("orders")(other).queue_declare(passive=True)
