"""Users without a right: what does not need it works, what does says so. ACL, and commands that were renamed.

What needs which right is read from docs/redis.md: each operation there is tried without each command there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from kombulite import Connection, Consumer, Exchange, Producer, Queue, aio, exceptions
from tests.aio.conftest import run, soon
from tests.conftest import started
from tests.redis.conftest import drain
from tests.servers import RedisServer

PAGE = (Path(__file__).parents[2] / "docs" / "redis.md").read_text()


def rows(heading: str) -> dict[str, frozenset[str]]:
    """Return a table of the page: its first column, and the commands that are named in the second or the first."""
    lines = PAGE[PAGE.index(f"| {heading} |") :].split("\n\n", 1)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: frozenset(re.findall(r"`([A-Z]+)`", second or first)) for first, second in cells}


NEEDED = rows("to")
FALLBACKS = frozenset().union(*(re.findall(r"`([A-Z]+)`", line) for line in rows("without")))
COMMANDS = sorted(FALLBACKS.union(*NEEDED.values()))


class Trial:
    """An operation tried by a user that may lack a right; ``admin`` lacks none."""

    def __init__(self, url: str, admin: Connection, raw: redis.Redis, name: str) -> None:
        self.connection = Connection(url)
        self.admin = admin
        self.raw = raw
        self.name = name
        self.queue = Queue(name, Exchange(name), "k")
        self.queue(admin).declare()
        Producer(admin).publish_many([1, 2], routing_key=name)

    def length(self) -> int:
        return int(self.raw.llen(self.name))

    def get(self, **options: Any) -> Any:
        message = self.queue(self.connection).get(**options)
        assert message.payload == 1
        return message

    def settled(self) -> None:
        """Have the answers to acks read, and raised."""
        for _ in range(2):  # they come during the first
            Exchange(self.name)(self.connection).declare()
        assert not self.raw.exists("unacked", "unacked_index")

    def consume(self, **options: Any) -> None:
        got: list[Any] = []

        def callback(body: Any, message: Any) -> None:
            got.append(body)
            if not message.no_ack:
                message.ack()

        with Consumer(self.connection.channel(), Queue(self.name), callbacks=[callback], auto_declare=False, **options):
            drain(self.connection, lambda: len(got) == 2)
            assert self.length() == 0
            Producer(self.admin).publish(3, routing_key=self.name)
            drain(self.connection, lambda: len(got) == 3, step=0.1)


def publish(trial: Trial) -> None:
    Producer(trial.connection).publish(3, routing_key=trial.name)
    assert trial.length() == 3


def publish_to_an_exchange(trial: Trial) -> None:
    Producer(trial.connection).publish(3, "k", exchange=trial.name)
    assert trial.length() == 3


def publish_to_several(trial: Trial) -> None:
    Queue(f"{trial.name}.2", trial.queue.exchange, "k")(trial.admin).declare()
    Producer(trial.connection).publish(3, "k", exchange=trial.name)
    assert trial.length() + trial.raw.llen(f"{trial.name}.2") == 4


def publish_fanout(trial: Trial) -> None:
    Exchange(f"{trial.name}.f", "fanout")(trial.admin).declare()
    with trial.raw.pubsub() as listener:
        listener.subscribe(f"/0.{trial.name}.f")
        assert listener.get_message(timeout=20)["type"] == "subscribe"
        Producer(trial.connection).publish(3, exchange=f"{trial.name}.f")
        assert listener.get_message(timeout=20)["type"] == "message"


def declare(trial: Trial, **options: Any) -> None:
    other = f"{trial.name}.new"
    Queue(other, Exchange(other), "k", **options)(trial.connection).declare()
    Producer(trial.admin).publish(3, "k", exchange=other)
    assert trial.raw.llen(other) == 1


def assert_it(trial: Trial) -> None:
    assert trial.queue(trial.connection).queue_declare(passive=True).message_count == 2
    trial.raw.delete(trial.name)
    trial.settled()


def consume_fanout(trial: Trial) -> None:
    got: list[Any] = []
    queue = Queue(f"{trial.name}.q", Exchange(f"{trial.name}.f", "fanout"), auto_delete=True)
    with Consumer(trial.connection.channel(), queue, callbacks=[lambda body, _: got.append(body)], no_ack=True):
        Producer(trial.admin).publish(3, exchange=queue.exchange)
        drain(trial.connection, lambda: got)


def settle(trial: Trial) -> None:
    """Ack and reject messages: taken by a user that had the right to that."""
    right = right_of(trial)
    trial.raw.execute_command("ACL", "SETUSER", right, "+@all")
    first, second = trial.get(), trial.queue(trial.connection).get()
    trial.raw.execute_command("ACL", "SETUSER", right, f"-{right}")
    first.ack()
    second.reject()
    trial.settled()


def requeue(trial: Trial) -> None:
    right = right_of(trial)
    trial.raw.execute_command("ACL", "SETUSER", right, "+@all")
    message = trial.get()
    trial.raw.execute_command("ACL", "SETUSER", right, f"-{right}")
    try:
        message.requeue()
    finally:
        assert trial.length() + trial.raw.hlen("unacked") == 2  # it is kept in any case
    assert trial.length() == 2


def right_of(trial: Trial) -> str:
    return str(trial.connection.userid)


def unbind(trial: Trial) -> None:
    trial.queue(trial.connection).unbind_from(trial.name, "k")
    assert not trial.raw.exists(f"_kombu.binding.{trial.name}")


def purge(trial: Trial) -> None:
    assert trial.queue(trial.connection).purge() == 2
    assert trial.length() == 0


def delete(trial: Trial) -> None:
    queue = trial.queue(trial.connection)
    if {"LLEN", "SADD"}.isdisjoint({right_of(trial)}):
        queue.declare()  # then the bindings are known also where they cannot be looked for
    assert queue.delete() == 2
    assert not trial.raw.exists(trial.name, f"_kombu.binding.{trial.name}")


def delete_exchange(trial: Trial) -> None:
    trial.queue.exchange(trial.connection).delete()
    assert not trial.raw.exists(f"_kombu.binding.{trial.name}")


OPERATIONS: dict[str, list[Callable[[Trial], Any]]] = {
    "connect": [lambda trial: trial.connection.connect()],
    "publish to a queue": [publish],
    "publish to an exchange": [publish_to_an_exchange],
    "publish to several queues": [publish_to_several],
    "publish to a fanout exchange that another connection declared": [publish_fanout],
    "declare": [declare, lambda trial: declare(trial, auto_delete=True), lambda trial: declare(trial, exclusive=True)],
    "declare with `expires`": [lambda trial: declare(trial, expires=60)],
    "assert": [assert_it],
    "get or consume with `no_ack`": [lambda trial: trial.get(no_ack=True), lambda trial: trial.consume(no_ack=True)],
    "get or consume": [lambda trial: trial.get(), lambda trial: trial.consume()],
    "ack, reject": [settle],
    "requeue": [requeue],
    "declare and consume fanout": [consume_fanout],
    "purge": [purge],
    "delete a queue": [delete],
    "delete an exchange": [delete_exchange],
    "unbind": [unbind],
}
ALLOWED = NEEDED | {"connect": frozenset()}  # to database 0


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> RedisServer:
    return started(request, RedisServer)


@pytest.fixture
def raw(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port) as client:
        yield client


@pytest.fixture
def admin(server: RedisServer) -> Iterator[Connection]:
    with Connection(server.url) as connection:
        yield connection


def attempt(server: RedisServer, admin: Connection, raw: redis.Redis, user: str, operation: Any, name: str) -> Any:
    """Return what an operation raises: AccessRefused, or nothing."""
    raw.flushall()
    trial = Trial(f"redis://{user}:pw@127.0.0.1:{server.port}/0", admin, raw, name)
    try:
        operation(trial)
    except exceptions.AccessRefused as error:
        return error
    finally:
        trial.connection.release()
    return None


@pytest.mark.parametrize("right", COMMANDS)
def test_what_does_not_need_a_right_works_without_and_what_does_says_so(server, admin, raw, name, right):
    raw.execute_command("ACL", "SETUSER", right, "reset", "on", ">pw", "+@all", f"-{right}", "~*", "&*")
    raw.script_flush()
    for row, operations in OPERATIONS.items():
        for operation in operations:
            error = attempt(server, admin, raw, right, operation, name)
            needs = right in ALLOWED[row]
            assert (error is not None) is needs, f"{row}: {error}"
            assert not needs or right in str(error).upper(), f"{row}: {error}"


def test_the_page_names_all_commands_that_are_sent(server, admin, raw, name):
    assert list(OPERATIONS) == list(NEEDED)
    raw.execute_command("ACL", "SETUSER", "all", "reset", "on", ">pw", "+@all", "~*", "&*")
    raw.config_resetstat()
    for operations in OPERATIONS.values():
        for operation in operations:
            if operation not in (settle, requeue):
                assert attempt(server, admin, raw, "all", operation, name) is None
    sent = {re.split(r"[_|]", key.upper())[1] for key in raw.info("commandstats")}
    assert sent - set(COMMANDS) == {"ACL", "CONFIG", "FLUSHALL", "AUTH", "SUBSCRIBE", "INFO"} & (sent - set(COMMANDS))


@pytest.mark.parametrize("rights", [("evalsha", "eval"), ("eval", "script")])
def test_get_without_any_way_to_run_a_script_says_so_and_takes_nothing(server, admin, raw, name, rights):
    raw.execute_command("ACL", "SETUSER", "scripts", "reset", "on", ">pw", "+@all", *(f"-{right}" for right in rights))
    raw.execute_command("ACL", "SETUSER", "scripts", "~*", "&*")
    raw.script_flush()
    error = attempt(server, admin, raw, "scripts", lambda trial: trial.get(), name)
    assert "eval" in str(error)
    assert raw.llen(name) == 2


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("right", ["hset", "zadd"])
def test_who_can_neither_note_nor_put_back_a_message_takes_none(server, admin, raw, name, right, is_async):
    raw.flushall()
    rights = [f"-{right}", "-rpush"]
    raw.execute_command("ACL", "SETUSER", "noter", "reset", "on", ">pw", "+@all", *rights, "~*", "&*")
    Producer(admin).publish_many([1, 2], routing_key=name)
    url = f"redis://noter:pw@127.0.0.1:{server.port}/0"

    async def main() -> None:
        async with aio.connect(url) as connection:
            with pytest.raises(exceptions.AccessRefused, match=f"(?i){right}"):
                async with connection.consume(Queue(name)) as messages:
                    await messages.next(20)
            with pytest.raises(exceptions.AccessRefused, match=f"(?i){right}"):
                await connection.get(Queue(name))

    if is_async:
        run(main)
    else:
        with Connection(url) as connection:
            for _ in range(2):
                with pytest.raises(exceptions.AccessRefused, match=f"(?i){right}"):
                    Queue(name)(connection).get()
            with pytest.raises(exceptions.AccessRefused, match=f"(?i){right}"):
                Consumer(connection.channel(), Queue(name), auto_declare=False).consume()
    assert raw.llen(name) == 2
    assert not raw.exists("unacked", "unacked_index")


def test_rights_to_note_messages_are_asked_for_once_by_get(server, admin, raw, name):
    queue = Queue(name)(admin)
    queue.get()
    raw.config_resetstat()
    for _ in range(5):
        queue.get()
        queue.get(no_ack=True)
    stats = raw.info("commandstats")
    assert stats.get("cmdstat_hset", stats.get("cmdstat_zadd")) is None
    assert stats["cmdstat_evalsha"]["calls"] == 10


@pytest.mark.parametrize("right", ["hset", "zadd"])
def test_message_stays_in_its_list_that_can_neither_be_noted_nor_put_back(server, admin, raw, name, right):
    """The rights are taken away while a consumer is at work: nothing is taken then that cannot be noted."""
    raw.flushall()
    raw.execute_command("ACL", "SETUSER", "noter", "reset", "on", ">pw", "+@all", "~*", "&*")
    Producer(admin).publish(1, routing_key=name)
    with Connection(f"redis://noter:pw@127.0.0.1:{server.port}/0") as connection:
        queue = Queue(name)(connection)
        queue.get().ack()  # from now on it is known that it may
        Producer(admin).publish(2, routing_key=name)
        raw.execute_command("ACL", "SETUSER", "noter", f"-{right}", "-rpush")
        with pytest.raises(exceptions.AccessRefused, match=f"(?i){right}"):
            queue.get()
        assert raw.llen(name) == 1
        assert not raw.exists("unacked", "unacked_index")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("rights", ["~{name}* ~unacked* ~_kombu.* +@all", "~* +@all -hset -lpush"])
def test_element_that_is_no_message_is_kept_where_there_may_be_no_dead_letters(server, raw, name, rights, is_async):
    raw.flushall()
    rules = rights.format(name=name).split()
    raw.execute_command("ACL", "SETUSER", "undead", "reset", "on", ">pw", "&*", *rules)
    garbage = b"\xff no message"
    raw.rpush(name, garbage)
    url = f"redis://undead:pw@127.0.0.1:{server.port}/0"
    options = {"visibility_timeout": 0.1, "unacked_restore_interval": 0.1, "unacked_restore_throttle": 1}

    def count() -> int:
        return int(raw.hlen("unacked") + raw.llen(name))

    async def main() -> None:
        async with aio.connect(url, transport_options=options) as connection:
            assert await connection.get(Queue(name), no_ack=True) is None

            async def is_kept() -> bool:
                return count() == 1

            await soon(is_kept)

    if is_async:
        run(main)
    else:
        with Connection(url, transport_options=options) as connection:
            with Consumer(connection.channel(), Queue(name), auto_declare=False, on_message=print, no_ack=True):
                with pytest.raises(exceptions.AccessRefused, match=r"(?i)dead|lpush|no permissions"):
                    connection.drain_events(timeout=20)
    assert count() == 1
    with Connection(server.url, transport_options=options) as connection:
        with Consumer(connection.channel(), Queue(name), on_message=print):
            drain(connection, lambda: raw.lrange(f"_kombulite.dead.{name}", 0, -1) == [garbage], step=0.1)
    assert count() == 0


def test_a_consumer_goes_on_when_scripts_are_forgotten(server, admin, raw, name):
    raw.execute_command("ACL", "SETUSER", "evalsha", "reset", "on", ">pw", "+@all", "-evalsha", "~*", "&*")
    for user in ("default", "evalsha"):
        url = server.url if user == "default" else f"redis://{user}:pw@127.0.0.1:{server.port}/0"
        got: list[Any] = []
        with Connection(url) as connection:
            with Consumer(connection.channel(), Queue(name), callbacks=[lambda body, _: got.append(body)], no_ack=True):  # noqa: B023
                for number in range(3):
                    raw.script_flush()
                    Producer(admin).publish(number, routing_key=name)
                    drain(connection, lambda: len(got) == number + 1)  # noqa: B023


def test_select_is_needed_for_another_database(server, raw):
    raw.execute_command("ACL", "SETUSER", "select", "reset", "on", ">pw", "+@all", "-select", "~*", "&*")
    with Connection(f"redis://select:pw@127.0.0.1:{server.port}/1") as connection:
        with pytest.raises(exceptions.NotAllowed, match="select"):
            connection.connect()


@pytest.mark.parametrize("right", ["psubscribe", "rpop", "hdel"])
def test_an_event_loop_is_told_of_a_missing_right(server, raw, name, right):
    raw.execute_command("ACL", "SETUSER", right, "reset", "on", ">pw", "+@all", f"-{right}", "~*", "&*")
    raw.lpush(name, "it")

    async def main() -> None:
        async with aio.connect(f"redis://{right}:pw@127.0.0.1:{server.port}") as connection:
            exchange = Exchange(f"{name}.f", "fanout") if right == "psubscribe" else None
            queue = Queue(name, exchange) if exchange else Queue(name)
            with pytest.raises(exceptions.AccessRefused, match=f"(?i){right}"):
                async with connection.consume(queue) as messages:
                    await messages.next(20)
            await connection.producer().publish(1, name)

    run(main)
    # A consumer may have found before it was refused that "it" is no message.
    assert raw.llen(name) + raw.llen(f"_kombulite.dead.{name}") == 2
    raw.delete(name)


def test_leftover_that_cannot_be_brought_back_keeps_no_connection_away(server, admin, raw, name):
    """What a connection has left goes back over the next one of the process: it may lack the right to that."""
    raw.execute_command("ACL", "SETUSER", "left", "reset", "on", ">pw", "+@all", "~*", "&*")
    url = f"redis://left:pw@127.0.0.1:{server.port}/0"
    Producer(admin).publish(1, routing_key=name)
    with Connection(url) as connection:
        message = Queue(name)(connection).get()
        raw.execute_command("ACL", "SETUSER", "left", "-rpush")
        connection.collect()  # it is lost
        del message
        with Connection(url) as other:
            Producer(other).publish(2, routing_key=name)
            raw.execute_command("ACL", "SETUSER", "left", "+rpush")
            got: list[Any] = []
            with Consumer(other.channel(), Queue(name), callbacks=[lambda body, _: got.append(body)], no_ack=True):
                drain(other, lambda: sorted(got) == [1, 2], step=0.2)


def test_message_of_another_type_is_put_back_nowhere_but_kept(server, admin, raw, name):
    raw.flushall()
    Producer(admin).publish(1, routing_key=name)
    message = Queue(name)(admin).get()
    raw.set(name, "no list")
    with pytest.raises(exceptions.PreconditionFailed, match="WRONGTYPE"):
        message.requeue()
    raw.delete(name)
    message.requeue()
    assert Queue(name)(admin).get(no_ack=True).payload == 1


def test_message_is_not_lost_where_lengths_cannot_be_read(server, admin, raw, name):
    Producer(admin).publish(1, routing_key=name)
    raw.set(f"{name}\x06\x163", "no list")
    assert Queue(name)(admin).get(no_ack=True).payload == 1


class Renaming(RedisServer):
    """A server whose operator has taken commands away."""

    def __init__(self, *renamed: str) -> None:
        super().__init__()
        self.renamed = renamed

    def command(self) -> list[str]:
        arguments = super().command()
        with (self.folder / "redis.conf").open("a") as config:
            config.writelines(f'rename-command {name} ""\n' for name in self.renamed)
        return arguments


@pytest.mark.parametrize("renamed", [("EXEC",), ("EXEC", "DISCARD"), ("MULTI",)])
def test_no_transaction_is_begun_that_cannot_be_ended(start_server, name, renamed):
    """What follows MULTI on its connection would be acknowledged as QUEUED, and never be done."""
    server = start_server(lambda: Renaming(*renamed))
    exchange = Exchange(name)
    queues = [Queue(f"{name}.1", exchange, "k"), Queue(f"{name}.2", exchange, "k", expires=60)]

    async def main() -> None:
        async with aio.connect(server.url) as connection:
            for queue in queues:
                await connection.declare(queue)
            producer = connection.producer(exchange)
            await producer.publish(1, "k")
            await connection.producer().publish(2, f"{name}.1")

    run(main)
    with Connection(server.url) as connection, redis.Redis(port=server.port) as client:
        for queue in queues:
            queue(connection).declare()
        producer = Producer(connection)
        producer.publish(3, "k", exchange=exchange)
        producer.publish_many([4, 5], "k", exchange=exchange)
        producer.publish_many([6, 7], f"{name}.2")
        assert [client.llen(queue.name) for queue in queues] == [5, 6]
        assert [queue(connection).purge() for queue in queues] == [5, 6]


def test_what_was_renamed_is_not_needed_either(start_server, name):
    server = start_server(lambda: Renaming(
        "TIME", "SCAN", "EVAL", "EVALSHA", "MULTI", "CLIENT", "EXISTS", "HSET", "SET", "ZRANGE", "HELLO", "INFO",
        "ROLE", "BLMOVE", "RPOP",
    ))  # fmt: skip
    with Connection(server.url) as connection:
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
        with pytest.raises(exceptions.AccessRefused, match=r"(?i)unknown"):
            queue.get()
        assert queue.purge() == 1
        queue.delete(if_empty=True)
