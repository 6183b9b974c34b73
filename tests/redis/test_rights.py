"""Users without a right: what does not need it works, what does says so. ACL, and commands that were renamed."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from kombulite import Connection, Exchange, Producer, Queue, exceptions
from tests.conftest import started
from tests.servers import RedisServer

RIGHTS = ("time", "scan", "eval", "evalsha", "client", "subscribe", "hset", "exists", "hget", "set")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> RedisServer:
    return started(request, RedisServer)


@pytest.fixture(params=RIGHTS)
def without(request: pytest.FixtureRequest, server: RedisServer) -> Any:
    """A connection of a user that lacks one right."""
    right = request.param
    with redis.Redis(port=server.port) as admin:
        admin.execute_command("ACL", "SETUSER", right, "on", ">pw", "+@all", f"-{right}", "~*", "&*")
    with Connection(f"redis://{right}:pw@127.0.0.1:{server.port}") as connection:
        yield connection


def publish_declare_and_delete(connection: Connection, name: str) -> None:
    """What no user is refused that may write to lists and sets."""
    channel = connection.channel()
    producer = Producer(channel)
    producer.publish("default exchange", routing_key=name)
    for options in ({}, {"expires": 60}, {"auto_delete": True}):
        queue = Queue(f"{name}.q", Exchange(name), "k", **options)(channel)
        queue.declare()
        producer.publish("named exchange", "k", exchange=name)
        producer.publish_many(["many"], "k", exchange=name)
        assert queue.queue_declare(passive=True).message_count == 2
        assert queue.delete() == 2
        assert queue.exchange.delete() is None
    queue = Queue(name)(channel)
    queue.declare()
    with pytest.raises(exceptions.PreconditionFailed, match="not empty"):
        queue.delete(if_empty=True)
    assert queue.purge() == 1
    queue.delete(if_empty=True)


def test_what_does_not_need_a_right_works_without(without, server, name):
    publish_declare_and_delete(without, name)
    with redis.Redis(port=server.port) as admin:
        assert [key for key in admin.scan_iter() if name.encode() in key] == []


def test_what_was_renamed_is_not_needed_either(start_server, name):
    server = start_server(RedisServer)
    server.stop()
    command = server.command

    def renaming() -> list[str]:
        arguments = command()
        with (server.folder / "redis.conf").open("a") as config:
            config.writelines(f'rename-command {right.upper()} ""\n' for right in ("time", "scan", "eval", "evalsha"))
        return arguments

    server.command = renaming
    server.start()
    with Connection(server.url) as connection:
        publish_declare_and_delete(connection, name)


@pytest.mark.parametrize("right", ["evalsha", "time", "hset", "zadd", "rpop"])
def test_get_without_what_it_needs_says_so_and_takes_nothing(server, name, right):
    with redis.Redis(port=server.port) as admin:
        admin.execute_command("ACL", "SETUSER", right, "on", ">pw", "+@all", f"-{right}", "~*", "&*")
        admin.lpush(name, "it")
        with Connection(f"redis://{right}:pw@127.0.0.1:{server.port}") as connection:
            with pytest.raises(exceptions.AccessRefused, match=r"NOPERM|permission|can't run this|ACL failure"):
                Queue(name)(connection).get()
        assert admin.llen(name) == 1
