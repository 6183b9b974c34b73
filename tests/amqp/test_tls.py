"""TLS: certificates and host names are checked, unless that is switched off; EXTERNAL logs in with a certificate."""

from __future__ import annotations

import asyncio
import ssl
from urllib.parse import quote

import pytest
import trustme

from kombulite import Connection, Consumer, Producer, Queue, aio, exceptions
from tests.aio.conftest import run
from tests.servers import RabbitMQServer, Unavailable, add_user, free_port

REFUSED = (ssl.SSLError, exceptions.ConnectionError, ConnectionError)


class TLSBroker:
    """A RabbitMQ with TLS, whose certificate is for ``localhost``, and the files to reach it with."""

    def __init__(self):
        self.port = free_port()
        self.server = RabbitMQServer(plugins=("rabbitmq_auth_mechanism_ssl",))
        folder = self.server.folder
        authority, stranger = trustme.CA(), trustme.CA()
        self.ca, self.other_ca = str(folder / "ca.pem"), str(folder / "other.pem")
        authority.cert_pem.write_to_path(self.ca)
        stranger.cert_pem.write_to_path(self.other_ca)
        certificate = authority.issue_cert("localhost")
        certificate.private_key_pem.write_to_path(str(folder / "server.key"))
        certificate.cert_chain_pems[0].write_to_path(str(folder / "server.pem"))
        client = authority.issue_cert("client.example", common_name="worker")
        self.key, self.certificate = str(folder / "client.key"), str(folder / "client.pem")
        client.private_key_pem.write_to_path(self.key)
        client.cert_chain_pems[0].write_to_path(self.certificate)
        self.server._options = {
            "listeners.ssl.1": f"127.0.0.1:{self.port}",
            "ssl_options.cacertfile": self.ca,
            "ssl_options.certfile": str(folder / "server.pem"),
            "ssl_options.keyfile": str(folder / "server.key"),
            "ssl_options.verify": "verify_peer",
            "ssl_options.fail_if_no_peer_cert": "false",
            "ssl_cert_login_from": "common_name",
            "auth_mechanisms.1": "PLAIN",
            "auth_mechanisms.2": "EXTERNAL",
        }

    def start(self):
        self.server.start()
        add_user(self.server, "worker", "not used", (".*", ".*", ".*"))


@pytest.fixture(scope="module")
def broker(request):
    try:
        broker = TLSBroker()
    except Unavailable:
        request.getfixturevalue("amqp_url")  # skips, and says so
        raise
    try:
        broker.start()
        yield broker
    finally:
        broker.server.close()


@pytest.fixture
def dial(broker):
    made = []

    def dial(tls=True, query="", host="localhost", **options):
        made.append(Connection(f"amqps://guest:guest@{host}:{broker.port}//{query}", ssl=tls, **options))
        return made[-1]

    yield dial
    for connection in made:
        connection.release()


def refused(connection, match=None):
    with pytest.raises(REFUSED, match=match):
        connection.ensure_connection(max_retries=0, timeout=5, reraise_as_library_errors=False)
    assert not connection.connected


def round_trip(connection, name, body="x"):
    queue = Queue(name("tls"), exclusive=True)
    received = []
    with Consumer(connection, queue, on_message=lambda message: (received.append(message.payload), message.ack())):
        Producer(connection).publish(body, routing_key=queue.name)
        while not received:
            connection.drain_events(timeout=30)
    assert received == [body]


def test_trusted_certificate_of_the_right_host(dial, broker, name):
    round_trip(dial({"ca_certs": broker.ca}), name)


def test_large_bodies(dial, broker, name):
    round_trip(dial({"ca_certs": broker.ca}), name, b"0123456789abcdef" * 500_000)


def test_unknown_authority_is_refused(dial, broker):
    refused(dial({"ca_certs": broker.other_ca}), "(?i)certificate")
    refused(dial(True), "(?i)certificate")


def test_wrong_host_is_refused(dial, broker):
    refused(dial({"ca_certs": broker.ca}, host="127.0.0.1"), "(?i)certificate")
    refused(dial({"ca_certs": broker.ca, "server_hostname": "elsewhere.example"}), "(?i)certificate")


def test_name_to_check_may_be_given(dial, broker):
    dial({"ca_certs": broker.ca, "server_hostname": "localhost"}, host="127.0.0.1").connect()


def test_none_stands_for_the_host_of_the_url(dial, broker):
    dial({"ca_certs": broker.ca, "server_hostname": None}).connect()
    refused(dial({"ca_certs": broker.ca, "server_hostname": None}, host="127.0.0.1"))


def test_checks_can_be_switched_off(dial, broker):
    dial({"cert_reqs": ssl.CERT_NONE}, host="127.0.0.1").connect()
    dial({"ca_certs": broker.ca, "check_hostname": False}, host="127.0.0.1").connect()


def test_without_a_host_name_check_the_authority_still_counts(dial, broker):
    refused(dial({"ca_certs": broker.other_ca, "check_hostname": False}))


def test_settings_in_the_url(dial, broker):
    ca = quote(broker.ca, safe="")
    dial(False, f"?ssl_ca_certs={ca}").connect()
    refused(dial(False, f"?ssl_ca_certs={ca}", host="127.0.0.1"))
    dial(False, f"?ssl_ca_certs={ca}&ssl_check_hostname=false", host="127.0.0.1").connect()
    dial(False, "?ssl_cert_reqs=none", host="127.0.0.1").connect()
    refused(dial(False, "?ssl_cert_reqs=required"))


def test_ssl_argument_of_a_plain_scheme(broker):
    with Connection(f"amqp://localhost:{broker.port}//", ssl={"ca_certs": broker.ca}) as connection:
        connection.connect()


def test_context(dial, broker):
    dial({"context": {"cafile": broker.ca}}).connect()
    refused(dial({"context": {"cafile": broker.ca}}, host="127.0.0.1"))


def test_settings_that_cannot_be_leave_nothing_open(dial, broker):
    with pytest.raises(TypeError):
        dial({"context": {"cafile": broker.ca}, "ca_certs": broker.ca}).connect()


def test_default_port():
    assert Connection("amqps://host//").host == "host:5671"
    assert Connection("amqp://host//", ssl=True).host == "host:5671"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions(dial, broker, name, version):
    connection = dial({"ca_certs": broker.ca, "tls_minimum_version": version, "tls_maximum_version": version})
    connection.connect()
    assert connection.transport._protocol.stream._sock.version() == version.name.replace("_", ".")
    round_trip(connection, name)


def test_external_login_with_a_certificate(dial, broker):
    connection = dial(
        {"ca_certs": broker.ca, "keyfile": broker.key, "certfile": broker.certificate}, login_method="EXTERNAL"
    )
    connection.connect()
    assert "worker" in broker.server.control("list_connections", "user")


def test_external_login_without_a_certificate(dial, broker):
    connection = dial({"ca_certs": broker.ca}, login_method="EXTERNAL")
    with pytest.raises((exceptions.AccessRefused, exceptions.ConnectionError)):
        connection.ensure_connection(max_retries=0, timeout=5, reraise_as_library_errors=False)


def test_tls_to_a_port_that_speaks_plain_amqp(broker):
    with Connection(f"amqps://localhost:{broker.server.port}//", ssl={"ca_certs": broker.ca}) as connection:
        refused(connection)


def test_plain_amqp_to_a_port_that_speaks_tls(broker):
    with Connection(f"amqp://localhost:{broker.port}//", connect_timeout=5) as connection:
        with pytest.raises((exceptions.ConnectionError, OSError)):
            connection.ensure_connection(max_retries=0, timeout=5, reraise_as_library_errors=False)


# --- on an event loop


def test_tasks_over_tls(broker, name):
    async def main():
        queue = Queue(name("tls"), exclusive=True, durable=False)
        tls = {"ca_certs": broker.ca}
        async with aio.connect(f"amqps://guest:guest@localhost:{broker.port}//", ssl=tls) as connection:
            await connection.declare(queue)
            producer = connection.producer(routing_key=queue.name)
            large = "0123456789abcdef" * 500_000
            await asyncio.gather(producer.publish(large), *(producer.publish(number) for number in range(500)))
            async with connection.consume(queue, prefetch=50, auto_declare=False) as messages:
                got = []
                while len(got) < 501:
                    message = await messages.next(30)
                    got.append(message.payload)
                    await message.ack()
            assert got == [large, *range(500)]

    run(main)


def test_tasks_check_certificates_too(broker):
    async def main():
        for host, tls in (("127.0.0.1", {"ca_certs": broker.ca}), ("localhost", {"ca_certs": broker.other_ca})):
            with pytest.raises(REFUSED):
                await aio.connect(f"amqps://guest:guest@{host}:{broker.port}//", ssl=tls).connect()

    run(main)


def test_tasks_may_log_in_with_a_certificate(broker):
    async def main():
        tls = {"ca_certs": broker.ca, "keyfile": broker.key, "certfile": broker.certificate}
        url = f"amqps://localhost:{broker.port}//"
        async with aio.connect(url, ssl=tls, login_method="EXTERNAL"):
            users = await asyncio.to_thread(broker.server.control, "list_connections", "user")
            assert "worker" in users

    run(main)
