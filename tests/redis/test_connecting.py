"""Ways to reach a server: TLS, users, Sentinel, sockets, RESP2, a key prefix."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from time import monotonic

import kombu
import pytest
import redis
import trustme

from kombulite import Connection, Consumer, Exchange, Producer, Queue, aio, exceptions
from tests.aio.conftest import run
from tests.redis.conftest import drain
from tests.servers import RedisServer, free_port, wait_until


def works(connection, name):
    """A message goes through the server and back, to a waiting consumer too."""
    channel = connection.channel()
    queue = Queue(name, Exchange(name), "k")
    producer = Producer(channel, Exchange(name), "k")
    got = []
    with Consumer(channel, queue, callbacks=[lambda body, message: (got.append(body), message.ack())]):
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.05)
        producer.publish("hello")
        with producer.batch():
            producer.publish("batch")
        drain(connection, lambda: got == ["hello", "batch"])
    return True


# --- TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    return folder


class TLSServer(RedisServer):
    """Listens for TLS only, besides a port to ask whether it is there."""

    def __init__(self, folder) -> None:
        super().__init__()
        self.tls_port = free_port()
        self.options |= {
            "tls-port": self.tls_port,
            "tls-cert-file": folder / "cert.pem",
            "tls-key-file": folder / "key.pem",
            "tls-ca-cert-file": folder / "ca.pem",
            "tls-auth-clients": "no",
        }


@pytest.fixture
def tls(start_server, authority):
    return start_server(lambda: TLSServer(authority))


def test_tls_with_a_certificate_that_is_trusted(tls, authority, name):
    with Connection(f"rediss://127.0.0.1:{tls.tls_port}/0?ssl_ca_certs={authority}/ca.pem") as connection:
        assert works(connection, name)
    with Connection(f"redis://127.0.0.1:{tls.tls_port}", ssl={"ssl_ca_certs": f"{authority}/ca.pem"}) as connection:
        assert works(connection, f"{name}.2")


@pytest.mark.parametrize(("scheme", "ssl"), [("rediss", False), ("rediss", True), ("redis", True)])
def test_tls_that_is_asked_for_is_on_and_checks_the_server(tls, scheme, ssl):
    with Connection(f"{scheme}://127.0.0.1:{tls.tls_port}", ssl=ssl) as connection:
        with pytest.raises(exceptions.RecoverableConnectionError, match=r"(?i)certificate"):
            connection.transport.connect()
    with Connection(f"{scheme}://127.0.0.1:{tls.port}", ssl=ssl, connect_timeout=0.5) as connection:
        with pytest.raises((exceptions.ConnectionError, OSError)):
            connection.transport.connect()


def test_tls_without_checks_when_they_are_declined(tls, name):
    with Connection(f"rediss://127.0.0.1:{tls.tls_port}?ssl_cert_reqs=none&ssl_check_hostname=false") as connection:
        assert works(connection, name)


def test_an_event_loop_speaks_tls(tls, authority, name):
    large = "x" * 5_000_000  # more than a record of TLS, or a buffer of the socket

    async def main():
        url = f"rediss://127.0.0.1:{tls.tls_port}/0?ssl_ca_certs={authority}/ca.pem"
        async with aio.connect(url) as connection, connection.consume(name, prefetch=201) as messages:
            producer = connection.producer(routing_key=name)
            await asyncio.gather(*(producer.publish(number) for number in range(200)), producer.publish(large))
            got = [await messages.next(20) for _ in range(201)]
            assert {message.payload for message in got} == {large, *range(200)}
            for message in got:
                await message.ack()
        with pytest.raises(exceptions.RecoverableConnectionError, match=r"(?i)certificate"):
            await aio.connect(f"rediss://127.0.0.1:{tls.tls_port}").connect()

    run(main, debug=False)


# --- users


def test_user_with_the_rights_of_a_kombu_client(start_server, name):
    """The keys that only we know may be out of its reach."""
    server = start_server(RedisServer)
    with redis.Redis(port=server.port) as admin:
        admin.execute_command(
            "ACL", "SETUSER", "app", "on", ">pw", "+@all", "-@dangerous", f"~{name}*", "~_kombu.*", "~unacked*", "&*"
        )
        admin.execute_command("ACL", "SETUSER", "guest", "on", ">pw", "+@connection", "~*")
    with Connection(f"redis://app:pw@127.0.0.1:{server.port}") as connection:
        assert works(connection, name)
        with pytest.raises(exceptions.AccessRefused):
            Producer(connection.channel()).publish(1, routing_key="elsewhere")
    with Connection(f"redis://guest:pw@127.0.0.1:{server.port}") as connection:
        connection.connect()  # which needs no more
        with pytest.raises(exceptions.AccessRefused, match=r"(?i)permission"):
            Producer(connection.channel()).publish(1, routing_key=name)


class Credentials(redis.CredentialProvider):
    def get_credentials(self):
        return ("provided", "pw")


def test_credential_provider(start_server, name):
    server = start_server(RedisServer)
    with redis.Redis(port=server.port) as admin:
        admin.execute_command("ACL", "SETUSER", "provided", "on", ">pw", "allcommands", "allkeys", "allchannels")
        admin.execute_command("ACL", "SETUSER", "default", "off")
        url = f"redis://ignored:wrong@127.0.0.1:{server.port}"
        with Connection(url, credential_provider=Credentials()) as connection:
            assert works(connection, name)
        path = f"{Credentials.__module__}.Credentials"
        with Connection(f"{url}?credential_provider={path}") as connection:
            assert works(connection, f"{name}.2")
    with pytest.raises(ValueError, match="CredentialProvider"):
        Connection(url, credential_provider=object()).connect()


# --- Sentinel


class Sentinel(RedisServer):
    def __init__(self, master: RedisServer, down_after: int = 500, password: str = "", login: str = "") -> None:
        super().__init__()
        self.master = master
        self._login = f"requirepass {password}\n" if password else login
        self._down_after = down_after  # milliseconds of silence

    def command(self):
        path = self.folder / "sentinel.conf"
        path.write_text(
            f'bind 127.0.0.1\nport {self.port}\ndir "{self.folder}"\n'
            f"sentinel monitor it 127.0.0.1 {self.master.port} 1\n"
            f"sentinel down-after-milliseconds it {self._down_after}\nsentinel failover-timeout it 2000\n"
            f"{self._login}"
        )
        return [super().command()[0], str(path), "--sentinel"]


def test_sentinel_finds_the_master_and_the_next_one(start_server, name):
    master = start_server(RedisServer)
    replica = start_server(lambda: RedisServer(replicaof=f"127.0.0.1 {master.port}"))
    sentinel = start_server(lambda: Sentinel(master))
    dead = f"sentinel://127.0.0.1:1/0;sentinel://127.0.0.1:{sentinel.port}/0"
    options = {"master_name": "it"}
    got = []
    with Connection(dead, transport_options=options) as connection, connection.clone() as consuming:
        assert works(connection, name)
        assert connection.transport.connected
        queue = Queue(name, Exchange(name), "k")
        consumer = Consumer(consuming, [queue], callbacks=[lambda body, message: (got.append(body), message.ack())])
        consumer.consume()
        with redis.Redis(port=sentinel.port) as client, redis.Redis(port=replica.port) as second:
            wait_until(lambda: client.sentinel_slaves("it"), 15, "the sentinel sees no replica")
            wait_until(lambda: second.info("replication")["master_link_status"] == "up", 15, "no replication")
        master.kill()
        producer = Producer(connection, Exchange(name), "k")
        policy = {"max_retries": 100, "interval_start": 0.2, "interval_step": 0, "interval_max": 0.2}
        producer.publish("after", declare=[queue], retry=True, retry_policy=policy)
        assert connection.transport.connected
        deadline = monotonic() + 30
        while not got:
            assert monotonic() < deadline
            try:
                consuming.drain_events(timeout=1)
            except TimeoutError:
                continue
            except consuming.recoverable_connection_errors:
                consuming.ensure_connection(**policy)
    assert got == ["after"]
    with redis.Redis(port=replica.port) as second:
        assert second.info("replication")["role"] == "master"
        assert not second.exists(name, "unacked")
    with pytest.raises(ValueError, match="master_name"):
        Connection(dead).connect()


def test_a_sentinel_that_is_away_is_asked_once():
    """It is not for the driver to try again: that takes longer than connecting may, and there are others."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as away:

        def end_each():
            with suppress(OSError):
                while True:
                    away.accept()[0].close()
                    asked.append(1)

        thread = threading.Thread(target=end_each)
        thread.start()
        url = f"sentinel://127.0.0.1:{away.getsockname()[1]}/0"
        with Connection(url, transport_options={"master_name": "it"}) as connection:
            with pytest.raises(exceptions.OperationalError):
                connection.ensure_connection(max_retries=0)
        away.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert len(asked) == 1


def test_sentinels_of_which_some_refuse(start_server, name):
    """Each has its own users: a refusal is final after all have refused, and says so of each."""
    master = start_server(RedisServer)
    others = [start_server(lambda: Sentinel(master, password="0ther")) for _ in range(2)]
    ours = start_server(lambda: Sentinel(master, password="s3cret"))

    def url(*sentinels: Sentinel) -> str:
        return ";".join(f"sentinel://127.0.0.1:{each.port}/0" for each in sentinels)

    async def declare(given: str) -> None:
        async with aio.connect(given, transport_options=options) as connection:
            await connection.declare(Queue(name))

    options = {"master_name": "it", "sentinel_kwargs": {"password": "s3cret"}}
    with Connection(url(others[0], ours), transport_options=options) as connection:
        assert works(connection, name)
    run(lambda: declare(url(others[0], ours)))
    with Connection(url(*others), transport_options=options) as connection:
        with pytest.raises(exceptions.NotAllowed) as caught:  # without a limit, it would try for ever
            connection.ensure_connection(reraise_as_library_errors=False)
    with pytest.raises(exceptions.NotAllowed) as on_loop:
        run(lambda: declare(url(*others)))
    for error in (str(caught.value), str(on_loop.value)):
        assert all(str(each.port) in error for each in others)
        assert "s3cret" not in error
    ours.kill()  # it may come back, and serve us
    with Connection(url(others[0], ours), transport_options=options) as connection:
        with pytest.raises(exceptions.RecoverableConnectionError) as caught_later:
            connection.ensure_connection(max_retries=1, interval_start=0, reraise_as_library_errors=False)
    assert all(str(each.port) in str(caught_later.value) for each in (others[0], ours))


def test_a_user_who_may_not_ask_the_sentinel(start_server, name):
    """It is an error of the connection, as where the server refuses; one of a channel would be for nobody."""
    master = start_server(RedisServer)
    sentinel = start_server(lambda: Sentinel(master, login="user guest on >s3cret allchannels +ping +hello +client"))
    options = {"master_name": "it", "sentinel_kwargs": {"username": "guest", "password": "s3cret"}}
    with Connection(f"sentinel://127.0.0.1:{sentinel.port}/0", transport_options=options) as connection:
        with pytest.raises(exceptions.NotAllowed, match=r"NOPERM|permission") as caught:
            connection.ensure_connection(reraise_as_library_errors=False)
    assert isinstance(caught.value, connection.connection_errors)
    assert str(sentinel.port) in str(caught.value)


def test_one_of_several_users_is_known_to_the_master(start_server, name):
    master = start_server(lambda: RedisServer(requirepass="s3cret"))
    sentinel = start_server(lambda: Sentinel(master))
    urls = [f"sentinel://:{password}@127.0.0.1:{sentinel.port}/0" for password in ("0ther", "s3cret")]
    with Connection(urls, transport_options={"master_name": "it"}) as connection:
        connection.ensure_connection(max_retries=2)
        assert connection.password == "s3cret"


# --- the rest


def test_unix_socket(start_server, tmp_path, name):
    path = tmp_path / "redis.sock"
    start_server(lambda: RedisServer(unixsocket=path))
    url = f"redis+socket://{path}?virtual_host=3&socket_timeout=5"
    with Connection(url) as connection:
        assert works(connection, name)
        with redis.Redis(unix_socket_path=str(path), db=3) as client:
            assert client.exists(f"_kombu.binding.{name}")
        with Connection(connection.as_uri(include_password=True)) as again:
            assert works(again, f"{name}.2")


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_protocols(redis_url, name, protocol):
    with Connection(redis_url, transport_options={"protocol": protocol}) as connection:
        assert works(connection, name)
        got = []
        channel = connection.channel()
        queue = Queue(f"{name}.f", Exchange(f"{name}.f", "fanout"))
        with Consumer(channel, queue, callbacks=[lambda body, message: (got.append(body), message.ack())]):
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.1)
            Producer(channel, Exchange(f"{name}.f", "fanout")).publish_many(range(3))
            drain(connection, lambda: got == [0, 1, 2])


def test_key_prefix_is_everywhere(redis_url, name):
    """Each key and channel that appears while both libraries work has it, and they understand each other."""
    options = {"global_keyprefix": "pre:"}
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        with (
            Connection(redis_url, transport_options=options) as ours,
            kombu.Connection(redis_url, transport_options=options) as theirs,
        ):
            assert works(ours, name)
            producer = kombu.Producer(theirs.channel(), kombu.Exchange(name), "k")
            producer.publish(1)
            queue = Queue(name)(ours.channel())
            assert queue.queue_declare(passive=True).message_count == 1
            message = queue.get()
            assert client.exists("pre:unacked", "pre:unacked_index") == 2
            message.requeue()
            assert kombu.Queue(name)(theirs.channel()).get().payload == 1
            assert client.keys("*")
            assert [key for key in client.keys("*") if not key.startswith(b"pre:")] == []
            queue.delete()
            assert [key for key in client.keys("pre:*") if name.encode() in key] == []


@pytest.mark.parametrize(("path", "database"), [("", 0), ("/", 0), ("//", 0), ("/5", 5)])
def test_virtual_host_is_the_database(redis_url, name, path, database):
    base = redis_url.rpartition("/")[0]
    with Connection(base + path) as connection, redis.Redis.from_url(f"{base}/{database}") as client:
        Producer(connection.channel()).publish(1, routing_key=name)
        assert client.llen(name) == 1


def test_virtual_host_that_is_no_number(redis_url):
    with pytest.raises(ValueError, match="database"):
        Connection(f"{redis_url.rpartition('/')[0]}/orders").connect()


def test_port_that_nobody_listens_on():
    with pytest.raises(exceptions.OperationalError):
        Connection("redis://127.0.0.1:1").ensure_connection(max_retries=0)
