"""The pytest plugin, as a test suite that uses kombulite has it."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from kombulite import Connection, Exchange, Queue, aio
from kombulite.contrib.servers import RabbitMQServer, Server
from kombulite.exceptions import MessageReturned

pytest_plugins = ["pytester", "kombulite_pytest"]
DEAD_LETTERS = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "late"}


def test_each_test_has_a_broker_of_its_own(kombulite_url, kombulite_connection):
    Queue("q")(kombulite_connection).declare()
    with Connection(kombulite_url) as other:
        assert Queue("q")(other).queue_declare(passive=True).message_count == 0


def test_broker_is_empty_again_for_the_next_test(kombulite_connection):
    channel = kombulite_connection.default_channel
    assert kombulite_connection.transport.list_queues(channel.channel_id) == []


def test_published_messages_are_recorded(kombulite_connection, kombulite_published):
    producer = kombulite_connection.Producer(serializer="json")
    shop = {"exchange": "shop", "declare": [Exchange("shop")]}
    producer.publish({"id": 1}, "new", headers={"a": "b"}, compression="zlib", **shop)
    producer.publish_many([{"id": 2}, {"id": 3}], routing_key="old", **shop)
    with pytest.raises(MessageReturned):
        producer.publish({"id": 4}, "nowhere", mandatory=True, **shop)
    first = kombulite_published[0]
    assert (first.exchange, first.routing_key, first.body) == ("shop", "new", {"id": 1})
    assert first.headers["a"] == "b"
    assert first.properties["content_type"] == "application/json"
    assert [message.body["id"] for message in kombulite_published] == [1, 2, 3]


@pytest.mark.parametrize(
    ("body", "properties"),
    [
        (b"{", {"content_type": "application/json", "content_encoding": "utf-8"}),
        (b"x", {"content_type": "text/plain", "content_encoding": "utf-8", "headers": {"compression": "unknown"}}),
    ],
)
def test_message_that_cannot_be_decoded_is_recorded_as_it_was_sent(
    kombulite_connection, kombulite_published, body, properties
):
    queue = Queue("q")
    kombulite_connection.Producer().publish(body, routing_key="q", declare=[queue], **properties)
    assert [message.body for message in kombulite_published] == [body]
    assert queue(kombulite_connection).queue_declare(passive=True).message_count == 1


def test_messages_published_on_a_loop_are_recorded(kombulite_url, kombulite_published):
    async def main():
        async with aio.connect(kombulite_url) as connection:
            await connection.producer().publish("x", "q", declare=[Queue("q")])

    asyncio.run(main())
    assert [message.body for message in kombulite_published] == ["x"]


def test_clock_lets_messages_and_queues_expire(kombulite_connection, kombulite_clock):
    producer = kombulite_connection.Producer()
    late, waiting = Queue("late"), Queue("waiting", message_ttl=3600, queue_arguments=DEAD_LETTERS)
    producer.publish("soon", routing_key="waiting", declare=[late, waiting, Queue("unused", expires=60)])
    assert late(kombulite_connection).get() is None
    with pytest.raises(ValueError, match="seconds must be at least 0, got -1"):
        kombulite_clock.advance(-1)
    kombulite_clock.advance(3601)
    assert late(kombulite_connection).get(no_ack=True).payload == "soon"
    queues = kombulite_connection.transport.list_queues(kombulite_connection.default_channel.channel_id)
    assert {status.queue for status in queues} == {"late", "waiting"}


def test_clock_wakes_a_consumer_on_a_loop(kombulite_url, kombulite_clock):
    async def main():
        async with aio.connect(kombulite_url) as connection:
            late, waiting = Queue("late"), Queue("waiting", message_ttl=3600, queue_arguments=DEAD_LETTERS)
            await connection.producer().publish("soon", "waiting", declare=[late, waiting])
            async with connection.consume(late) as messages:
                assert await messages.next(timeout=0.01) is None
                kombulite_clock.advance(3601)
                message = await messages.next(timeout=20)
                await message.ack()
                return message.payload

    assert asyncio.run(main()) == "soon"


def test_plugin_imports_kombulite_at_the_first_use_only():
    code = "import sys, kombulite_pytest; print([name for name in sys.modules if name.split('.')[0] == 'kombulite'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_server_that_is_not_installed_is_named_in_the_summary(pytester, monkeypatch, kind):
    monkeypatch.setenv("KOMBULITE_TEST_PROGRAMS", str(pytester.path))
    pytester.makepyfile(f"def test_one(kombulite_{kind}): raise AssertionError\ndef test_other(): pass")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(f"kombulite: skipped the tests that need a server: {kind}-server is not in *")


def test_private_redis_serves_and_may_be_restarted(kombulite_redis):
    for _ in range(2):
        with Connection(kombulite_redis.url) as connection:
            connection.Producer().publish("x", routing_key="q", declare=[Queue("q")])
            assert Queue("q")(connection).get(no_ack=True).payload == "x"
        kombulite_redis.restart()


def test_server_that_does_not_answer_leaves_nothing(monkeypatch):
    class Silent(Server):
        program = "sleep"

        def command(self):
            return [self._path, "60"]

        def is_ready(self):
            return False

    monkeypatch.delenv("KOMBULITE_TEST_PROGRAMS", raising=False)
    monkeypatch.setattr("kombulite.contrib.servers.START_TIMEOUT", 0.1)
    server = Silent()
    with pytest.raises(TimeoutError, match="sleep does not answer"), server:
        pass
    assert server.process is None
    assert not server.folder.exists()


def test_rabbitmq_without_erlang_says_why_it_does_not_start(tmp_path, monkeypatch):
    script = tmp_path / "rabbitmq-server"
    script.write_text("#!/bin/sh\necho erl: not found; exit 127\n")
    script.chmod(0o755)
    monkeypatch.setenv("KOMBULITE_TEST_PROGRAMS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    server = RabbitMQServer()
    with pytest.raises(RuntimeError, match="ended with 127:\nerl: not found"), server:
        pass
    assert not server.folder.exists()


def test_installing_kombulite_installs_the_plugin(pytester):
    pytester.makepyfile("def test_fixture(kombulite_connection): kombulite_connection.connect()")
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
