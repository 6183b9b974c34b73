"""What a program puts in the place of ``channel.qos.can_consume`` is asked before each message that is taken."""

from __future__ import annotations

import pytest

from kombulite import Consumer, Queue
from tests.redis.conftest import drain


@pytest.mark.parametrize("no_ack", [False, True])
def test_a_function_says_whether_another_message_is_taken(ours, client, name, no_ack):
    connection, got = ours(), []
    channel = connection.channel()
    queue = Queue(name)
    allowed = 2
    original = channel.qos.can_consume
    assert original()
    channel.qos.can_consume = lambda: len(got) < allowed and original()
    with Consumer(channel, queue, on_message=got.append, no_ack=no_ack, prefetch_count=10):
        producer = connection.Producer()
        for number in range(5):
            producer.publish(number, routing_key=name, declare=[queue])
        drain(connection, lambda: len(got) == 2)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.3)
        assert client.llen(name) == 3
        allowed = 4
        drain(connection, lambda: len(got) == 4)
        assert client.llen(name) == 1
    assert [message.payload for message in got] == [0, 1, 2, 3]


def test_prefetch_counts_are_read_and_set(ours):
    channel = ours().channel()
    channel.basic_qos(0, 7, False)
    assert channel.qos.prefetch_count == 7
    channel.qos.prefetch_count = 3
    assert channel.prefetch_limit == 3
