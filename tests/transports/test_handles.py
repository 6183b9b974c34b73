"""Handles that programs use though kombu does not document them."""

from __future__ import annotations

from queue import Empty
from unittest.mock import Mock

import pytest

from kombulite import Connection
from kombulite.asynchronous import Hub


def test_channels_of_memory_have_the_verbs_of_a_store():
    with Connection("memory://") as connection:
        channel = connection.channel()
        channel._new_queue("handles")
        channel._new_queue("handles")
        assert channel._size("handles") == 0
        channel._put("handles", channel.prepare_message("body"))
        assert channel._size("handles") == 1
        assert channel._get("handles").body == b"body"
        with pytest.raises(Empty):
            channel._get("handles")
        channel._put("handles", channel.prepare_message("body"))
        assert channel._purge("handles") == 1
        assert not channel.closed
        producer = channel.Producer(routing_key="handles")
        producer.publish("x")
        got = []
        with channel.Consumer(_queue("handles"), callbacks=[lambda body, message: got.append(body)], no_ack=True):
            connection.drain_events(timeout=5)
        assert got == ["x"]
        channel.close()
        assert channel.closed


def _queue(name):
    from kombulite import Queue

    return Queue(name, durable=False)


def test_error_tuples_of_a_connection_can_be_set():
    with Connection("memory://") as connection:
        connection.recoverable_connection_errors = (KeyError,)
        connection.channel_errors = (ValueError,)
        assert connection.recoverable_connection_errors == (KeyError,)
        assert Connection("memory://").channel_errors != (ValueError,)


def test_the_poller_of_a_hub_can_be_set():
    hub = Hub()
    poller = Mock()
    hub.poller = poller
    assert hub.poller is poller
    hub.poller = None
    assert hub.poller is not None
    hub.close()
