"""Acks of messages that were claimed together leave as one command, in time, and are not lost with the connection."""

from __future__ import annotations

import os
from math import inf
from typing import Any

import pytest

from kombulite import Consumer, Producer, Queue, exceptions
from kombulite.brokers.redis import held_acks, maintainer
from tests.redis.conftest import drain
from tests.servers import wait_until

MESSAGES = 2 * held_acks.MIN_FOLLOWING


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let acks wait for those that follow, however slow this machine is."""
    monkeypatch.setattr(maintainer, "FLUSH_DELAY", 600.0)


def fill(connection: Any, name: str) -> None:
    Queue(name)(connection.channel()).declare()
    Producer(connection.channel()).publish_many(range(MESSAGES), routing_key=name)


def consume(connection: Any, name: str, count: int, callback: Any = None, got: list[int] | None = None) -> Consumer:
    """Consume so many messages and acknowledge each; then call back with the last."""
    got = [] if got is None else got

    def handle(body: Any, message: Any) -> None:
        message.ack()
        got.append(body)
        if len(got) == count and callback is not None:
            callback(message)

    consumer = Consumer(connection.channel(), Queue(name), callbacks=[handle], prefetch_count=MESSAGES)
    consumer.consume()
    drain(connection, lambda: len(got) >= count)
    return consumer


def are_settled(client: Any) -> None:
    wait_until(lambda: not client.hlen("unacked") and not client.zcard("unacked_index"), 20, "they are leased still")


@pytest.mark.usefixtures("patient")
def test_acks_of_messages_that_were_claimed_together_are_few_commands(ours, client, name):
    fill(ours(), name)
    connection = ours()
    client.config_resetstat()
    consumer = consume(connection, name, MESSAGES)
    are_settled(client)
    calls = client.info("commandstats")
    assert calls["cmdstat_zrem"]["calls"] < MESSAGES / 4
    consumer.cancel()


def test_an_ack_leaves_in_time_while_a_callback_goes_on(ours, client, name):
    fill(ours(), name)
    left: list[int] = []

    def wait(message: Any) -> None:
        wait_until(lambda: client.hlen("unacked") == MESSAGES - 2, 20, "the acks wait still")
        left.append(client.llen(name))

    consumer = consume(ours(), name, 2, wait)
    assert left == [0]
    consumer.cancel()


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("step", ["publish", "get", "collect", "close", "exit"])
def test_acks_that_wait_leave_before_what_is_sent_next(ours, client, name, step):
    fill(ours(), name)
    connection = ours()
    consumer = consume(connection, name, 2)
    assert client.hlen("unacked") == MESSAGES  # they wait
    if step == "publish":
        Producer(consumer.channel).publish("x", routing_key=f"{name}.other")
    elif step == "get":
        assert consumer.channel.basic_get(f"{name}.other") is None
    elif step == "collect":
        connection.collect()
    elif step == "close":
        connection.close()
    else:
        held_acks._flush_all()
    if step == "close":
        are_settled(client)
        assert client.llen(name) == MESSAGES - 2
    else:
        wait_until(lambda: client.hlen("unacked") == MESSAGES - 2, 20, "they wait still")


@pytest.mark.usefixtures("patient")
def test_acks_that_wait_when_the_connection_is_lost_are_made_over_the_next(ours, client, name):
    fill(ours(), name)
    connection = ours(unacked_restore_interval=1, unacked_restore_throttle=1)
    got: list[int] = []
    consume(connection, name, 2, got=got)
    client.client_kill_filter(_type="normal", skipme=True)
    client.client_kill_filter(_type="pubsub", skipme=True)
    with pytest.raises((exceptions.RecoverableConnectionError, OSError)):
        while True:
            connection.drain_events(timeout=0.1)
    connection.ensure_connection()
    drain(connection, lambda: len(set(got)) == MESSAGES, step=0.1)
    assert got.count(0) == got.count(1) == 1
    connection.close()
    are_settled(client)


@pytest.mark.usefixtures("patient")
def test_a_forked_child_holds_no_ack_of_its_parent(ours, client, name):
    fill(ours(), name)
    outcomes: list[int] = []

    def fork(message: Any) -> None:
        step = message.channel.connection.transport._acks
        state = next(iter(message.channel.connection.transport._channels.values()))
        child = os.fork()
        if not child:
            code = 1
            try:
                step.hold(state, [state.leased.ready[0]])
            except exceptions.RecoverableConnectionError:
                code = 0
            finally:
                os._exit(code)
        outcomes.append(os.waitpid(child, 0)[1])

    consumer = consume(ours(), name, 1, fork)
    assert outcomes == [0]
    consumer.cancel()


def test_nothing_is_asked_of_the_thread_where_no_ack_waits(ours, client, name):
    Producer(ours().channel()).publish("x", routing_key=name)
    connection = ours()
    consumer = consume(connection, name, 1)
    are_settled(client)
    assert connection.transport._maintainer._flush_at == inf
    consumer.cancel()
