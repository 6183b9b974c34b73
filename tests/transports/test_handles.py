"""Handles that programs use though kombu does not document them."""

from __future__ import annotations

import sys
from queue import Empty
from types import ModuleType
from unittest.mock import Mock

import pytest

from kombulite import Connection, exceptions
from kombulite.asynchronous import Hub
from kombulite.common import ignore_errors
from kombulite.pidbox import Mailbox


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


def test_a_mailbox_whose_exclusive_queue_is_taken_says_so():
    mailbox = Mailbox("taken", queue_exclusive=True)
    with Connection("memory://taken") as one, Connection("memory://taken") as other:
        mailbox(one).Node("host", channel=one.default_channel).listen()
        node = mailbox(other).Node("host", channel=other.default_channel)
        with pytest.raises(exceptions.InconsistencyError, match="host") as raised:
            node.listen()
        assert isinstance(raised.value.__cause__, exceptions.ResourceLocked)


def test_errors_of_green_threads_that_share_a_connection_are_ignored(monkeypatch):
    class ConcurrentObjectUseError(AssertionError):
        """As gevent has it."""

    gevent = ModuleType("gevent.exceptions")
    connection = Connection("memory://")
    with pytest.raises(ConcurrentObjectUseError):
        ignore_errors(connection, Mock(side_effect=ConcurrentObjectUseError))
    gevent.ConcurrentObjectUseError = ConcurrentObjectUseError
    monkeypatch.setitem(sys.modules, "gevent", ModuleType("gevent"))
    monkeypatch.setitem(sys.modules, "gevent.exceptions", gevent)
    ignore_errors(connection, Mock(side_effect=ConcurrentObjectUseError))
    with ignore_errors(connection):
        raise ConcurrentObjectUseError
    with pytest.raises(ZeroDivisionError):
        ignore_errors(connection, Mock(side_effect=ZeroDivisionError))


def test_a_transport_that_was_changed_before_connecting_is_connected():
    with Connection("memory://changed") as connection:
        transport = connection.transport
        assert connection.connection is transport
        assert connection.transport is transport
    with Connection("memory://changed") as connection:
        transport = connection.transport
        connection.virtual_host = "elsewhere"
        assert connection.connection is not transport
