"""Addresses, logins and what is negotiated when a connection is opened."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import select
import socket
import threading

import amqp
import pytest

from kombulite import Connection, Producer, Queue, aio, exceptions
from tests.aio.conftest import run
from tests.amqp import peer as p
from tests.servers import add_user, add_virtual_host, evaluate, wait_for_connections


@pytest.fixture(scope="module")
def accounts(own_broker):
    """A user with a difficult name who may use virtual hosts with difficult names, and one with few rights."""
    hosts = ("a/b", "ü %")
    for host in hosts:
        add_virtual_host(own_broker, host)
    add_user(own_broker, "us:er@ü", "p/a:s%s@", (".*", ".*", ".*"), ("/", *hosts))
    add_user(own_broker, "guarded", "secret", ("^mine", "^mine", ".*"))
    return own_broker


@pytest.fixture
def dial(own_broker):
    made = []

    def dial(rest="//", user="guest:guest@", host="127.0.0.1", scheme="amqp", **options):
        made.append(Connection(f"{scheme}://{user}{host}:{own_broker.port}{rest}", **options))
        return made[-1]

    yield dial
    for connection in made:
        connection.release()


def table(broker, *columns):
    """What the broker says of the connections, as text. Base64 is written alike by all that evaluate."""
    text = 'if is_binary(V) -> V; true -> unicode:characters_to_binary(io_lib:format("~tp", [V])) end'
    rows = f"rabbit_networking:connection_info_all([{', '.join(columns)}])"
    wait_for_connections(broker)
    encoded = f"rabbit_json:encode([maps:from_list([{{K, {text}}} || {{K, V}} <- Row]) || Row <- {rows}])"
    written = evaluate(broker, f"base64:encode_to_string({encoded}).")
    return json.loads(base64.b64decode(re.sub(r'["\s]', "", written)))


# --- addresses


@pytest.mark.parametrize(
    ("rest", "vhost"),
    [
        ("", "/"),
        ("/", "/"),
        ("//", "/"),
        ("/%2F", "/"),
        ("/%2f", "/"),
        ("/a%2Fb", "a/b"),
        ("/a/b", "a/b"),
        ("/%C3%BC%20%25", "ü %"),
    ],
)
def test_virtual_hosts(accounts, dial, rest, vhost):
    connection = dial(rest, user="us%3Aer%40%C3%BC:p%2Fa%3As%25s%40@")
    connection.connect()
    assert connection.virtual_host == vhost
    (row,) = [row for row in table(accounts, "vhost", "user") if row["user"] == "us:er@ü"]
    assert row["vhost"] == vhost
    assert "p/a" not in connection.as_uri()


@pytest.mark.parametrize("scheme", ["amqp", "pyamqp"])
def test_schemes(dial, scheme):
    assert dial(scheme=scheme).connect().connected


def test_defaults(own_broker):
    with Connection("localhost", port=own_broker.port) as connection:
        connection.connect()
        assert connection.as_uri() == f"amqp://guest:**@localhost:{own_broker.port}//"


def test_options_in_the_url(dial):
    connection = dial("//?heartbeat=7&connect_timeout=9&login_method=AMQPLAIN")
    connection.connect()
    assert connection.heartbeat == 7
    assert connection.transport._protocol.stream.heartbeat.interval == 7


def test_password_may_be_a_callable(own_broker):
    asked = []

    def password():
        asked.append(1)
        return "guest"

    with Connection("127.0.0.1", userid="guest", password=password, port=own_broker.port) as connection:
        connection.connect()
        connection.collect()
        connection.connect()
        assert len(asked) == 2


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6(peer):
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 on the loopback interface")
    listener.settimeout(30)

    def serve():
        sock, _ = listener.accept()
        session = p.Session(sock)
        session.handshake()
        session.farewell()
        sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with Connection(f"amqp://[::1]:{listener.getsockname()[1]}//", connect_timeout=30) as connection:
        connection.connect()
    thread.join(30)
    listener.close()


@pytest.mark.parametrize("form", ["separator", "list", "alternates"])
def test_failover(own_broker, form):
    dead, alive = "amqp://127.0.0.1:1//", own_broker.url
    arguments = {
        "separator": ((f"{dead};{alive}",), {}),
        "list": (([dead, alive],), {}),
        "alternates": ((dead,), {"alternates": [dead, alive]}),
    }[form]
    with Connection(*arguments[0], **arguments[1]) as connection:
        failures = []
        connection.ensure_connection(lambda error, interval: failures.append(error), max_retries=5, interval_start=0)
        assert connection.port == own_broker.port
        assert failures


@pytest.fixture
def black_hole():
    """An address that drops the packets of those who connect: nobody accepts, and the queue of the listener is full."""
    with socket.socket() as listener, contextlib.ExitStack() as held:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        while True:
            sock = held.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(address)
            if not select.select([], [sock], [], 0.5)[1]:
                yield address
                return


@pytest.fixture
def two_addresses(own_broker, black_hole, monkeypatch):
    """A host with two addresses, the first of which drops packets."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host, port, *args, **options):
        if host != "two.example":
            return resolve(host, port, *args, **options)
        stream = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*stream, black_hole), (*stream, ("127.0.0.1", own_broker.port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


#: Half of it is for the address that answers: little on a busy machine, so there are many tries.
SECONDS_FOR_BOTH, TRIES = 1, 20


def test_an_address_that_drops_packets_leaves_time_for_the_next(two_addresses):
    with Connection("amqp://guest:guest@two.example//", connect_timeout=SECONDS_FOR_BOTH) as connection:
        connection.ensure_connection(max_retries=TRIES, interval_start=0, interval_step=0)
        assert connection.connected


def test_an_address_that_drops_packets_leaves_time_for_the_next_on_an_event_loop(two_addresses):
    async def main():
        connection = aio.connect("amqp://guest:guest@two.example//", connect_timeout=SECONDS_FOR_BOTH)
        for _ in range(TRIES):
            with contextlib.suppress(TimeoutError):
                async with connection:
                    return True
        return False

    assert run(main)


def test_no_address_answers_in_time(black_hole):
    with Connection(f"amqp://127.0.0.1:{black_hole[1]}//", connect_timeout=0.3) as connection:
        with pytest.raises(TimeoutError):
            connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)


def test_no_address_answers_in_time_on_an_event_loop(black_hole):
    async def main():
        connection = aio.connect(f"amqp://127.0.0.1:{black_hole[1]}//", connect_timeout=0.3)
        with pytest.raises(TimeoutError):
            await connection.connect()
        await connection.close()

    run(main)


def test_nobody_listens():
    with Connection("amqp://127.0.0.1:1//") as connection:
        with pytest.raises(exceptions.OperationalError):
            connection.ensure_connection(max_retries=1, interval_start=0)


# --- logins


@pytest.mark.parametrize("method", ["PLAIN", "AMQPLAIN"])
def test_login_methods(accounts, dial, method):
    connection = dial(user="us%3Aer%40%C3%BC:p%2Fa%3As%25s%40@", login_method=method)
    connection.connect()
    (row,) = [row for row in table(accounts, "auth_mechanism", "user") if row["user"] == "us:er@ü"]
    assert row["auth_mechanism"] == method


def test_login_method_that_the_broker_has_not(dial):
    with pytest.raises(exceptions.ConnectionError, match="auth mechanism"):
        dial(login_method="EXTERNAL").connect()
    with pytest.raises(ValueError, match="login method"):
        dial(login_method="MAGIC").connect()


def test_wrong_password_is_not_tried_again(dial):
    connection = dial(user="guest:wrong@")
    tries = []
    with pytest.raises(exceptions.AccessRefused) as caught:
        connection.ensure_connection(lambda error, interval: tries.append(error), max_retries=None)
    assert tries == []
    assert caught.value.reply_code == 403
    assert "wrong" not in str(caught.value)
    with pytest.raises(exceptions.AccessRefused):
        Producer(connection).publish("x", routing_key="q", retry=True)


def test_wrong_virtual_host(dial):
    connection = dial("/missing")
    with pytest.raises(exceptions.NotAllowed) as caught:
        connection.ensure_connection(max_retries=None)
    assert caught.value.reply_code == 530


def test_rights(accounts, dial, name):
    """A forbidden exchange refuses the very publish; a forbidden declaration its caller."""
    with dial() as owner:
        owner.default_channel.exchange_declare(name("theirs"), "fanout", durable=False)
    connection = dial(user="guarded:secret@")
    with pytest.raises(exceptions.AccessRefused) as caught:
        Producer(connection).publish("x", exchange=name("theirs"))
    assert caught.value.method_sig == (60, 40)
    with pytest.raises(exceptions.AccessRefused):
        connection.channel().queue_declare(name("theirs"))
    connection.channel().queue_declare(name("mine"), exclusive=True)


# --- what is negotiated


def test_client_properties_seen_by_the_broker(own_broker, dial):
    connection = dial(
        transport_options={"connection_name": "orders", "client_properties": {"information": "of the test"}}
    )
    connection.connect()
    (row,) = [row for row in table(own_broker, "client_properties") if "orders" in str(row)]
    assert "kombulite" in str(row)
    assert "of the test" in str(row)


def test_client_properties_on_the_wire(peer):
    def script(session):
        session.handshake()
        sent.update(session.client_properties)
        session.farewell()

    sent = {}
    peer.play(script)
    with peer.connection(transport_options={"connection_name": "orders"}) as connection:
        connection.connect()
    assert sent["product"] == "kombulite"
    assert sent["product_version"]
    assert sent["connection_name"] == "orders"
    for capability in (
        "consumer_cancel_notify",
        "connection.blocked",
        "authentication_failure_close",
        "publisher_confirms",
        "basic.nack",
    ):
        assert sent["capabilities"][capability] is True


@pytest.mark.parametrize(
    ("theirs", "ours", "result"),
    [
        ((2047, 131072), {}, (2047, 131072)),
        ((2047, 131072), {"frame_max": 8192, "channel_max": 10}, (10, 8192)),
        ((5, 4096), {"frame_max": 8192, "channel_max": 10}, (5, 4096)),
        ((2047, 131072), {"frame_max": 4096}, (2047, 8192)),  # RabbitMQ 4 does not answer those who ask for less
        ((0, 0), {"frame_max": 8192, "channel_max": 10}, (10, 8192)),
        ((0, 0), {}, (65535, 131072)),
        ((2047, 131072), {"frame_max": 0, "channel_max": 0}, (2047, 131072)),
    ],
)
def test_limits(peer, theirs, ours, result):
    def script(session):
        session.handshake(*theirs)
        seen.append(tuple(session.tuned[:2]))
        session.farewell()

    seen = []
    peer.play(script)
    with peer.connection(transport_options=ours) as connection:
        connection.connect()
    assert seen == [result]


@pytest.mark.parametrize("end", ["silence", "hang up"])
def test_a_broker_that_does_not_answer_what_was_proposed(peer, end):
    def script(session):
        session.start()
        session.send(0, p.TUNE, "BlB", 10, 131072, 0)
        session.expect(p.TUNE_OK)
        session.expect(p.OPEN)
        session.silence() if end == "silence" else session.sock.close()

    peer.play(script, script)  # it is tried twice
    connection = peer.connection(connect_timeout=1, transport_options={"frame_max": 9000})
    kind = TimeoutError if end == "silence" else exceptions.RecoverableConnectionError
    with pytest.raises(kind, match="after frame_max=9000, channel_max=10 was proposed"):
        connection.connect()


def test_channels_end_at_the_limit(dial):
    connection = dial(transport_options={"channel_max": 3})
    channels = [connection.channel() for _ in range(3)]
    with pytest.raises(exceptions.ResourceError):
        connection.channel()
    channels[1].close()
    assert connection.channel().channel_id == channels[1].channel_id


@pytest.mark.parametrize(("theirs", "ours", "result"), [(60, 20, 20), (20, 60, 20), (0, 20, 20), (60, 0, 0)])
def test_heartbeat_interval(peer, theirs, ours, result):
    def script(session):
        session.handshake(heartbeat=theirs)
        seen.append(session.tuned[2])
        session.farewell()

    seen = []
    peer.play(script)
    with peer.connection(heartbeat=ours) as connection:
        connection.connect()
        assert connection.supports_heartbeats
    # RFC: 0 of the broker means that it wants none, but a client may.
    assert seen[0] in (result, 0) if theirs == 0 else seen == [result]


def test_sasl_objects(peer):
    class Own:
        mechanism = b"EXTERNAL"

        def start(self, connection):
            return b"token"

    def script(session):
        assert session.read(8) == p.HEADER
        session.send(0, p.START, "ooFSS", 0, 9, p.SERVER_PROPERTIES, "PLAIN EXTERNAL", "en_US")
        seen.extend(session.expect(p.START_OK).read("FsSs"))
        session.send(0, p.TUNE, "BlB", 10, 8192, 0)
        session.expect(p.TUNE_OK)
        session.expect(p.OPEN)
        session.send(0, p.OPEN_OK, "s", "")
        session.farewell()

    seen = []
    peer.play(script)
    with peer.connection(transport_options={"authentication": [Own()]}) as connection:
        connection.connect()
    assert seen[1:3] == ["EXTERNAL", "token"]


def test_socket_settings(dial):
    connection = dial(transport_options={"socket_settings": {socket.TCP_KEEPIDLE: 33}})
    sock = connection.connect()._protocol.stream._sock
    assert sock.getsockopt(socket.SOL_TCP, socket.TCP_KEEPIDLE) == 33
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.SOL_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_TCP, socket.TCP_USER_TIMEOUT) == 30_000


def test_callbacks_of_the_handshake(dial):
    called = []
    dial(transport_options={"on_open": lambda connection: called.append("open")}).connect()
    assert called == ["open"]


def test_what_the_transport_is(dial, broker_version):
    connection = dial()
    transport = connection.connect()
    assert transport.driver_type == "amqp"
    assert transport.driver_name == "py-amqp"
    assert transport.driver_version() == amqp.__version__
    assert transport.server_properties["product"] == "RabbitMQ"
    assert connection.qos_semantics_matches_spec is (broker_version >= (4,))
    assert connection.supports_exchange_type("headers")
    assert connection.is_evented
    assert transport.fileno() >= 0


@pytest.mark.parametrize(
    ("product", "version", "matches"),
    [
        ("RabbitMQ", "3.2.4", True),
        ("RabbitMQ", "3.3.0", False),
        ("RabbitMQ", "3.13.7", False),
        ("RabbitMQ", "4.0.1", True),
        ("RabbitMQ", "new", True),
        ("Other", "3.10.0", True),
    ],
)
def test_qos_semantics(dial, product, version, matches):
    connection = dial()
    connection.connect().server_properties.update(product=product, version=version)
    assert connection.qos_semantics_matches_spec is matches


def test_unknown_options_are_ignored(dial):
    dial(transport_options={"something": 1, "max_retries": 1}).connect()


def test_released_connection_is_gone_from_the_broker(own_broker, dial):
    connection = dial(transport_options={"connection_name": "short-lived"})
    Queue("short-lived", exclusive=True)(connection.default_channel).declare()
    assert "short-lived" in str(table(own_broker, "client_properties"))
    connection.release()
    assert "short-lived" not in str(table(own_broker, "client_properties"))
