"""Streaming credentials of redis-py's: open connections log in again, and outlive the credentials before."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
import redis
from redis.auth.token import SimpleToken
from redis.credentials import StreamingCredentialProvider

from kombulite import Connection, Queue, aio
from kombulite._core import pack_command
from kombulite.brokers.redis.cluster.stream import NodeStream
from kombulite.brokers.redis.errors import ServerClosed
from kombulite.brokers.redis.reauth import _followers, follow
from tests.redis.test_aio import transport_of
from tests.redis.test_joined_acks import exit_code_of
from tests.servers import wait_until

TIMEOUT = 20.0


class Provider(StreamingCredentialProvider):
    """Gives one user, and streams another when it is told to. Like others, it keeps one callback only."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.callback: Callable[[Any], None] | None = None
        self.registered = 0

    def get_credentials(self) -> tuple[str, str]:
        return self.user, "secret"

    def on_next(self, callback: Callable[[Any], None]) -> None:
        self.callback = callback
        self.registered += 1

    def on_error(self, callback: Callable[[Exception], None]) -> None:
        """Nothing fails."""

    def is_streaming(self) -> bool:
        return True

    def change(self, user: str, secret: str = "secret") -> None:
        self.user = user
        assert self.callback is not None
        self.callback(SimpleToken(secret, 2**40, 0, {"oid": user}))


@pytest.fixture
def server(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        users = [f"user-{uuid4().hex}" for _ in range(2)]
        for user in users:
            client.acl_setuser(user, enabled=True, passwords="+secret", commands=["+@all"], keys="*", channels="*")
        yield client, users
        client.acl_deluser(*users)


def connections_of(client, user):
    return {each["id"] for each in client.client_list() if each["user"] == user}


def test_open_connections_log_in_again(server, redis_url):
    client, (old, new) = server
    provider, name = Provider(old), f"reauth-{uuid4().hex}"
    queue, got = Queue(name, expires=60), []
    with (
        Connection(redis_url, credential_provider=provider) as connection,
        Connection(redis_url, credential_provider=provider) as publisher,
        connection.Consumer([queue], callbacks=[lambda body, message: (got.append(body), message.ack())]),
    ):
        publisher.Producer().publish(1, routing_key=name, declare=[queue])
        connection.drain_events(timeout=TIMEOUT)
        before = connections_of(client, old)
        assert before
        assert provider.registered == 1
        provider.change(new)

        def are_all_new() -> bool:
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.01)
            return not connections_of(client, old)

        wait_until(are_all_new, TIMEOUT, "some are logged in as before")
        after = connections_of(client, new)
        assert after & before
        client.acl_deluser(old)  # which ends all connections of that user
        publisher.Producer().publish(2, routing_key=name)
        connection.drain_events(timeout=TIMEOUT)
        assert after <= connections_of(client, new)
        assert connection.counters.reconnects == publisher.counters.reconnects == 0
    assert got == [1, 2]


def test_an_event_loop_s_connections_log_in_again(server, redis_url):
    client, (old, new) = server
    provider, name = Provider(old), f"reauth-{uuid4().hex}"

    async def main():
        queue = Queue(name, expires=60)
        async with aio.connect(redis_url, credential_provider=provider) as connection:
            await connection.producer().publish(1, routing_key=name, declare=[queue])
            before = connections_of(client, old)
            assert before
            await asyncio.to_thread(provider.change, new)
            done = partial(wait_until, lambda: not connections_of(client, old), TIMEOUT, "some are logged in as before")
            await asyncio.to_thread(done)
            after = connections_of(client, new)
            assert after & before
            client.acl_deluser(old)
            message = await connection.get(queue)
            assert message.payload == 1
            await message.ack()
            assert after <= connections_of(client, new)
            assert connection.counters.reconnects == 0

    asyncio.run(main())


def test_refused_credentials_are_logged_and_the_connection_goes_on(server, redis_url, caplog):
    _, (old, _) = server
    provider = Provider(old)
    with Connection(redis_url, credential_provider=provider) as connection:
        queue = connection.SimpleQueue(f"reauth-{uuid4().hex}", queue_opts={"expires": 60})
        queue.put(1)
        provider.change(old, "wrong")
        assert queue.get(timeout=TIMEOUT).payload == 1
        assert "refuses the new credentials" in caplog.text
        assert connection.counters.reconnects == 0


AUTH = pack_command(("AUTH", "default", "x"))


def test_a_connection_that_the_server_has_closed_is_opened_anew_by_its_next_use(redis_url, client, name):
    with Connection(redis_url, transport_options={"health_check_interval": 0}) as connection:
        connection.default_channel.basic_get(name)
        stream = connection.transport._stream
        client.client_kill_filter(_id=stream.call("CLIENT", "ID"))
        wait_until(stream._has_ended, TIMEOUT, "the server does not close it")
        for _ in range(2):
            stream.authenticate(AUTH)
        stream.used_at -= 2
        connection.Producer().publish(1, routing_key=name)
        assert connection.counters.reconnects == 0


def test_what_a_lost_connection_did_not_answer_is_left_to_nobody(redis_url):
    with Connection(redis_url) as connection:
        connection.default_channel.basic_get("alive")
        stream = connection.transport._stream
        stream.authenticate(AUTH)
        assert stream.is_waiting
        assert stream.unanswered == []
        assert stream._queue.may_repeat  # it keeps no idle connection from being opened anew


def test_what_an_event_loop_s_lost_connection_did_not_answer_is_left_to_nobody(redis_url):
    async def main():
        async with aio.connect(redis_url) as connection:
            stream = transport_of(connection)._stream
            stream._authenticate(AUTH)
            assert stream.is_waiting
            assert stream.unanswered == []
            assert stream._queue.may_repeat

    asyncio.run(main())


def test_a_node_that_closes_an_idle_connection_with_acks_to_answer_loses_none(cluster):
    with Connection(cluster.url, transport_options={"hash_tag": "{shop}"}) as connection:
        connection.default_channel.basic_get("alive")
        nodes = connection.transport._stream
        stream = next(iter(nodes.streams.values()))
        assert isinstance(stream, NodeStream)
        stream._queue.expect(2, print, b"ZREM, HDEL")
        stream.used_at -= 2
        nodes._lose(stream, ServerClosed("it was idle"))
        assert nodes.is_open
        assert stream.address not in nodes.streams


def held(lock: Any, test: Callable[[], None]) -> None:
    """Do something while another thread holds a lock."""
    is_held, may_go = threading.Event(), threading.Event()

    def use() -> None:
        with lock:
            is_held.set()
            may_go.wait(60)

    thread = threading.Thread(target=use)
    thread.start()
    try:
        assert is_held.wait(TIMEOUT)
        test()
    finally:
        may_go.set()
        thread.join()


def test_a_connection_that_waits_for_a_silent_server_keeps_no_other_from_logging_in(server, redis_url):
    client, (old, new) = server
    provider = Provider(old)
    with (
        Connection(redis_url, credential_provider=provider) as busy,
        Connection(redis_url, credential_provider=provider) as idle,
    ):
        for connection in busy, idle:
            connection.default_channel.basic_get("alive")
        waiting = busy.transport._stream
        number = waiting.call("CLIENT", "ID")

        def change() -> None:
            thread = threading.Thread(target=provider.change, args=(new,), daemon=True)
            thread.start()
            thread.join(TIMEOUT)
            assert not thread.is_alive()
            wait_until(lambda: connections_of(client, new), TIMEOUT, "the other has not logged in")
            assert str(number) not in connections_of(client, new)

        held(waiting.lock, change)
        wait_until(lambda: str(number) in connections_of(client, new), TIMEOUT, "it has not logged in when it was free")
        assert busy.counters.reconnects == idle.counters.reconnects == 0


def test_a_forked_child_can_follow_a_provider(redis_url):
    provider = Provider("default")
    with Connection(redis_url) as connection:
        connection.default_channel.basic_get("alive")
        stream = connection.transport._stream
        held(_followers._lock, lambda: exits(lambda: follow(provider, stream)))


def exits(function: Callable[[], Any]) -> None:
    assert exit_code_of(function) == 0


def test_a_forked_child_does_not_log_in_over_its_parent_s_connection(redis_url):
    with Connection(redis_url) as connection:
        connection.default_channel.basic_get("alive")
        stream = connection.transport._stream
        held(stream.lock, lambda: exits(lambda: stream.authenticate(AUTH)))
