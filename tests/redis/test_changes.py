"""What an operator changes on a running server: a consumer gets what comes afterwards, or is told why not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from kombulite import Connection, Consumer, Exchange, Producer, Queue, aio, exceptions
from tests.aio.conftest import run
from tests.conftest import started
from tests.proxy import Proxy
from tests.redis.conftest import drain
from tests.servers import RedisServer, wait_until

OPTIONS = {"health_check_interval": 0.5}
POLICY = {"max_retries": 100, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> RedisServer:
    return started(request, lambda: RedisServer(save="3600 1", enable_debug_command="yes"))


@pytest.fixture
def raw(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port) as client:
        client.flushall()
        client.execute_command("ACL", "SETUSER", "user", "reset", "on", ">pw", "+@all", "~*", "&*")
        yield client


class Idle:
    """A consumer that waits, of a user whose rights may change."""

    def __init__(self, url: str, name: str, **options: Any) -> None:
        self.connection = Connection(url, transport_options={**OPTIONS, **options})
        self.got: list[Any] = []
        self.errors: list[Exception] = []
        exchange, fanout = Exchange(name), Exchange(f"{name}.f", "fanout")
        queues = [Queue(name, exchange, "k"), Queue(f"{name}.f", fanout, auto_delete=True)]
        self.consumer = Consumer(self.connection.channel(), queues, on_message=self._take)
        self.consumer.consume()
        with pytest.raises(TimeoutError):
            self.connection.drain_events(timeout=0.1)

    def _take(self, message: Any) -> None:
        self.got.append(message.payload)
        message.ack()

    def drain(self, wanted: Callable[[], object]) -> None:
        """Drain as a worker does: it keeps the errors, and goes on."""

        def is_there() -> bool:
            try:
                self.connection.drain_events(timeout=0.05)
            except TimeoutError:
                pass
            except (exceptions.ChannelError, exceptions.ConnectionError, exceptions.MessageNacked) as error:
                self.errors.append(error)
            return bool(wanted())

        wait_until(is_there, 20, "it did not happen in time")


@pytest.fixture
def idle(server: RedisServer, raw: redis.Redis, name: str, request: pytest.FixtureRequest) -> Iterator[Idle]:
    options = getattr(request, "param", {})
    consumer = Idle(f"redis://user:pw@127.0.0.1:{server.port}/0", name, **options)
    yield consumer
    consumer.connection.release()


def gets_all(server: RedisServer, idle: Idle, name: str) -> None:
    """Publish to both queues until the consumer has something of each."""
    with Connection(server.url) as connection:
        producer = Producer(connection)

        def has_both() -> bool:
            producer.publish("fanout", exchange=Exchange(f"{name}.f", "fanout"))
            return {"fanout", "after"} <= set(idle.got)

        producer.publish("after", "k", exchange=name)
        idle.drain(has_both)


@pytest.mark.parametrize(
    ("right", "error"),
    [
        ("-client", None),
        ("-exists", None),
        ("-evalsha", None),
        ("-psubscribe", None),
        ("-rpop", exceptions.AccessRefused),
        ("-hdel", exceptions.AccessRefused),
        ("resetkeys", exceptions.AccessRefused),
        ("resetchannels", exceptions.AccessRefused),  # the server ends the connection, and refuses to subscribe again
        ("resetpass", None),
    ],
)
def test_right_that_is_taken_from_a_connection(server, raw, idle, name, right, error):
    raw.execute_command("ACL", "SETUSER", "user", right)
    with Connection(server.url) as connection:
        Producer(connection).publish("during", "k", exchange=name)
    if error is None:
        idle.drain(lambda: "during" in idle.got)
    else:
        idle.drain(lambda: any(isinstance(each, error) for each in idle.errors))
    raw.execute_command("ACL", "SETUSER", "user", "+@all", "~*", "&*", ">pw")
    gets_all(server, idle, name)


@pytest.mark.parametrize("idle", [{"protocol": 2}, {"protocol": 3}], indirect=True, ids=["RESP2", "RESP3"])
@pytest.mark.parametrize("flags", ["t", "P"])
def test_one_connection_of_a_consumer_is_killed(server, raw, idle, name, flags):
    """The one on which lists are read, or the one that listens."""
    for client in raw.client_list():
        if client["user"] == "user" and flags in client["flags"]:
            raw.client_kill_filter(_id=client["id"])
    gets_all(server, idle, name)
    assert all(isinstance(each, exceptions.RecoverableConnectionError) for each in idle.errors)


@pytest.mark.parametrize("idle", [{"protocol": 2}, {"protocol": 3}], indirect=True, ids=["RESP2", "RESP3"])
@pytest.mark.parametrize("command", ["DEBUG RELOAD", "SCRIPT FLUSH", "CLIENT PAUSE 300 ALL", "CLIENT PAUSE 300 WRITE"])
def test_consumer_goes_on_without_an_error(server, raw, idle, name, command):
    raw.execute_command(*command.split())
    gets_all(server, idle, name)
    assert idle.errors == []


def test_waits_in_the_server_are_ended(server, raw, name):
    raw.execute_command("ACL", "SETUSER", "user", "-client")
    idle = Idle(f"redis://user:pw@127.0.0.1:{server.port}/0", name)
    with idle.connection:
        ended = [
            raw.client_unblock(client["id"], error=error)
            for client, error in zip((c for c in raw.client_list() if "b" in c["flags"]), [True, False] * 4)
        ]
        assert any(ended)
        idle.drain(lambda: not idle.connection.transport._protocol.receiver.waits._free)
        gets_all(server, idle, name)
    assert idle.errors == []


@contextmanager
def failing_disk(server: RedisServer, raw: redis.Redis) -> Iterator[None]:
    """The server cannot save its data; it refuses writes while it is told to."""
    path = server.folder / "dump.rdb"
    path.unlink(missing_ok=True)
    path.mkdir()
    raw.bgsave()
    wait_until(lambda: raw.info("persistence")["rdb_last_bgsave_status"] == "err", 20, "it can be saved")
    try:
        yield
    finally:
        path.rmdir()
        raw.bgsave()
        wait_until(lambda: raw.info("persistence")["rdb_last_bgsave_status"] == "ok", 20, "it cannot be saved")


@contextmanager
def nothing(server: RedisServer, raw: redis.Redis) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("fault", "setting", "refusing", "serving", "code"),
    [
        (failing_disk, "stop-writes-on-bgsave-error", "yes", "no", "MISCONF"),
        (nothing, "min-replicas-to-write", 1, 0, "NOREPLICAS"),
        (nothing, "maxmemory", 1, 0, "OOM"),
    ],
)
def test_server_that_refuses_writes(server, raw, idle, name, fault, setting, refusing, serving, code):
    with fault(server, raw), Connection(server.url) as connection:
        producer = Producer(connection)
        try:
            raw.config_set(setting, serving)
            producer.publish("during", "k", exchange=name)
            raw.config_set(setting, refusing)
            with pytest.raises(exceptions.MessageNacked, match=code):
                producer.publish("refused", "k", exchange=name)
            idle.drain(lambda: idle.errors or idle.got)  # if memory is full, claims pass
            assert bool(idle.errors) is (code != "OOM")
            assert all(isinstance(each, exceptions.MessageNacked) for each in idle.errors)
            with connection.clone() as other:
                other.connect()
            raw.config_set(setting, serving)
            gets_all(server, idle, name)
        finally:
            raw.config_set(setting, serving)
    assert "refused" not in idle.got
    assert idle.got.count("during") == 1


@contextmanager
def endless_script(server: RedisServer, raw: redis.Redis) -> Iterator[None]:
    """Keep the server busy, as soon as it says so."""
    raw.config_set("busy-reply-threshold", 1)

    def loop() -> None:
        with redis.Redis(port=server.port, socket_timeout=60) as client, pytest.raises(redis.ResponseError):
            client.eval("while true do end", 0)

    thread = threading.Thread(target=loop)
    thread.start()

    def is_busy() -> bool:
        try:
            raw.exists("x")
        except redis.ResponseError:
            return True
        return False

    wait_until(is_busy, 20, "the script does not begin")
    try:
        yield
    finally:
        raw.script_kill()
        thread.join()


def test_busy_server_is_not_taken_for_one_that_does_not_track(server, raw, idle, name):
    with Connection(server.url) as connection, Connection(server.url) as other:
        producer = Producer(other)
        producer.publish("before", "k", exchange=name)
        with endless_script(server, raw):
            with pytest.raises(exceptions.OperationalError, match="BUSY"):
                connection.ensure_connection(max_retries=1, interval_start=0)
            with pytest.raises(exceptions.RecoverableChannelError, match="BUSY"):
                producer.publish("during", "k", exchange=name)
            idle.drain(lambda: idle.errors)
        connection.connect()
        assert connection.transport._protocol.topology.router.is_tracked
        gets_all(server, idle, name)
    assert all(isinstance(each, exceptions.RecoverableChannelError) for each in idle.errors)


# --- a master that becomes a replica, as after FAILOVER, behind an address that leads to the new one


@pytest.fixture
def pair(start_server: Any) -> tuple[RedisServer, RedisServer]:
    """A master and its replica, in step."""
    master = start_server(lambda: RedisServer(repl_diskless_sync_delay=0))
    replica = start_server(lambda: RedisServer(replicaof=f"127.0.0.1 {master.port}"))
    with redis.Redis(port=replica.port) as client:
        wait_until(lambda: client.info("replication")["master_link_status"] == "up", 20, "no replication")
    return master, replica


def change_places(pair: tuple[RedisServer, RedisServer], proxy: Proxy, is_in_step: bool) -> None:
    old, new = pair
    with redis.Redis(port=old.port) as first, redis.Redis(port=new.port) as second:
        offset = first.info("replication")["master_repl_offset"]
        wait_until(lambda: second.info("replication")["slave_repl_offset"] >= offset, 20, "no replication")
        second.replicaof("NO", "ONE")
        proxy.target = new.port
        first.replicaof("127.0.0.1", new.port if is_in_step else 1)


@pytest.mark.parametrize("is_in_step", [True, False])
def test_connections_to_a_master_that_becomes_a_replica_end(pair, name, is_in_step):
    old, new = pair
    with Proxy(old.port) as proxy, Connection(proxy.url(old.url), transport_options=OPTIONS) as publishing:
        producer = Producer(publishing)
        producer.publish("held", routing_key=name)
        with Connection(proxy.url(old.url), transport_options=OPTIONS) as connection:
            held: list[Any] = []
            Consumer(connection.channel(), Queue(name), on_message=held.append).consume()
            drain(connection, lambda: held)
            change_places(pair, proxy, is_in_step)
            held[0].ack()
            with pytest.raises(exceptions.RecoverableConnectionError):
                producer.publish("refused", routing_key=name)
            producer.publish("more", routing_key=name)
            with pytest.raises(exceptions.RecoverableConnectionError, match="READONLY"):
                drain(connection, lambda: len(held) == 2)
            drain(connection, lambda: len(held) == 2)
            assert held[1].payload == "more"
            held[1].ack()
            with redis.Redis(port=new.port) as client:
                wait_until(lambda: not client.exists("unacked", name), 20, "an ack is lost")


def test_an_event_loop_leaves_a_master_that_becomes_a_replica(pair, name):
    old, new = pair

    async def main() -> None:
        with Proxy(old.port) as proxy:
            async with aio.connect(proxy.url(old.url), transport_options=OPTIONS) as connection:
                async with connection.consume(name) as messages:
                    await connection.producer().publish("first", name)
                    message = await messages.next(20)
                    change_places(pair, proxy, False)
                    with Connection(new.url) as other:
                        Producer(other).publish("heard", routing_key=name)
                    heard = await messages.next(20)
                    assert heard.payload == "heard"
                    await heard.ack()
                    await message.ack()

    with redis.Redis(port=new.port) as client:
        assert not client.exists("unacked", name)

    run(main, timeout=60)
