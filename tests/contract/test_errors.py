"""One cause, one error: the table of docs/errors.md, row by row, on every transport that has the cause."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import redis

from kombulite import Connection, Consumer, Exchange, Producer, Queue, exceptions
from tests.conftest import started
from tests.contract.blocking import BlockingTransport
from tests.contract.conftest import Broker, Inbox, drain, soon
from tests.proxy import Cut, Direction, Proxy
from tests.servers import RabbitMQServer, RedisServer, add_user, free_port, version

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
PATIENCE = 20  # seconds
MIB = 1 << 20
STRANGER = "stranger"  # a user with no right to any queue


class Row(NamedTuple):
    """A line of the table: what is raised, of what kind it is, whether it is tried again, which transports have it."""

    cause: str
    error: str
    of: list[str]
    is_tried_again: bool
    transports: list[str]

    def is_of(self, kind: str) -> bool:
        return self.transports == ["all"] or kind in self.transports or kind.partition("-")[0] in self.transports


def rows() -> Iterator[Row]:
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 5 and cells[1].startswith("`"):
            cause, error, of, again, transports = cells
            names = transports.lower().split(", ")
            yield Row(cause, error.strip("`"), [] if of == "-" else of.split(", "), again == "yes", names)


TABLE: dict[str, Row] = {}
ON_RABBITMQ_4: dict[str, Row] = {}  # the second table of the page
for _row in rows():
    (ON_RABBITMQ_4 if _row.cause in TABLE else TABLE)[_row.cause] = _row


class Scene:
    """A broker, a connection to it, a queue, and a proxy before it where it is reached over a network."""

    def __init__(self, broker: Broker, request: pytest.FixtureRequest) -> None:
        self.broker = broker
        self.scheme = broker.url.partition("://")[0]
        self._request = request

    def connect(self, url: str | None = None, **options: Any) -> Connection:
        other = Broker(self.broker.kind, url or self.broker.url, self.broker.transport_options, self.broker.transport)
        self._request.addfinalizer(other.close)
        return other.connect(**options)

    @property
    def connection(self) -> Connection:
        if not hasattr(self, "_connection"):
            self._connection = self.connect()
        return self._connection

    @property
    def channel(self) -> Any:
        return self.connection.default_channel

    @property
    def queue(self) -> Queue:
        """A queue that is declared, and empty."""
        queue = Queue(self.broker.name("queue"))(self.channel)
        queue.declare()
        return queue

    def at(self, **parts: Any) -> str:
        """Return the broker's URL with another host, port, user, password or database."""
        split = urlsplit(self.broker.url)
        found = {"host": split.hostname, "port": split.port, "user": split.username, "password": split.password}
        found |= {"database": split.path[1:] or ("" if self.scheme == "amqp" else "0")} | parts
        login = f"{found['user'] or ''}:{found['password'] or ''}@" if found["user"] else ""
        return f"{self.scheme}://{login}{found['host']}:{found['port']}/{found['database']}"

    @contextmanager
    def through_proxy(self) -> Iterator[tuple[Connection, Proxy]]:
        with Proxy(urlsplit(self.broker.url).port or 0) as proxy:
            connection = self.connect(proxy.url(self.broker.url))
            try:
                yield connection, proxy
            finally:
                connection.collect()  # or its threads would try to connect anew


CAUSES: dict[str, Callable[[Scene], object]] = {}


def cause(name: str) -> Callable[[Callable[[Scene], object]], Callable[[Scene], object]]:
    def add(function: Callable[[Scene], object]) -> Callable[[Scene], object]:
        CAUSES[name] = function
        return function

    return add


# --- connecting


@cause("no server listens at the port")
def refused_port(scene: Scene) -> object:
    return scene.connect(scene.at(port=free_port())).connect()


@cause("the host has no address")
def unknown_host(scene: Scene) -> object:
    return scene.connect(scene.at(host="nowhere.invalid")).connect()


@cause("the server does not answer within `connect_timeout`")
def silent_host(scene: Scene) -> object:
    with scene.through_proxy() as (connection, proxy):
        proxy.deaf = True
        return connection.clone(connect_timeout=1).connect()


@cause("the server closes the connection while it is opened")
def closed_early(scene: Scene) -> object:
    with scene.through_proxy() as (connection, proxy):
        proxy.cut = Cut(Direction.REPLY, 1)
        return connection.connect()


@cause("wrong user or password")
def wrong_password(scene: Scene) -> object:
    user = "guest" if scene.scheme == "amqp" else "stranger"
    return scene.connect(scene.at(user=user, password="wrong")).connect()


@cause("unknown virtual host or database")
def missing_database(scene: Scene) -> object:
    return scene.connect(scene.at(database="9999" if scene.scheme == "redis" else "missing")).connect()


# --- a connection that is lost


@cause("the connection is lost while a consumer waits")
def lost_waiting(scene: Scene) -> object:
    with scene.through_proxy() as (connection, proxy):
        Inbox(connection, [Queue(scene.broker.name("waits"))])
        proxy.refuse()
        ender = threading.Timer(0.2, proxy.reset)
        ender.start()
        try:
            return drain(connection, lambda: False, PATIENCE)
        finally:
            ender.join()


@cause("the connection is lost in the middle of a publish")
def lost_publishing(scene: Scene) -> object:
    with scene.through_proxy() as (connection, proxy):
        queue = Queue(scene.broker.name("queue"))(connection)
        queue.declare()
        proxy.refuse()
        proxy.cut = Cut(Direction.REQUEST, 100_000)
        producer = Producer(connection)
        for _ in range(1000):
            producer.publish(b"x" * 10_000, routing_key=queue.name, content_type="application/data")
        return None


@cause("the connection is lost before a declaration")
def lost_declaring(scene: Scene) -> object:
    with scene.through_proxy() as (connection, proxy):
        channel = connection.channel()
        proxy.refuse()
        proxy.reset()
        return Queue(scene.broker.name("queue"))(channel).declare()


@cause("the connection is lost before an ack (raised by it, or by the next call)")
def lost_acking(scene: Scene) -> object:
    with scene.through_proxy() as (connection, proxy):
        message = fetched(scene, connection)
        proxy.refuse()
        proxy.reset()
        message.ack()
        while True:
            connection.drain_events(timeout=PATIENCE)


@cause("the server does not answer a declaration in time")
def silent_declaring(scene: Scene) -> object:
    with scene.through_proxy() as (patient, proxy):
        channel = patient.clone(transport_options={"read_timeout": 1, "socket_timeout": 1}).channel()
        proxy.refuse()
        proxy.silence()
        return Queue(scene.broker.name("queue"))(channel).declare()


@cause("the server does not say within `timeout` that it has a message")
def silent_publishing(scene: Scene) -> object:
    with scene.through_proxy() as (connection, proxy):
        producer = Producer(connection.channel())
        producer.publish("x", routing_key=scene.queue.name)
        proxy.refuse()
        proxy.silence()
        return producer.publish("x", routing_key=scene.queue.name, timeout=1)


@cause("an ack after the connection came back")
def late_ack(scene: Scene) -> object:
    message = fetched(scene, scene.connection)
    scene.connection.abandon(scene.connection.transport, "lost")
    scene.connection.ensure_connection()
    return message.ack()


@cause("a call on a channel that was closed")
def closed_channel(scene: Scene) -> object:
    channel = scene.connection.channel()
    channel.close()
    return Queue("any")(channel).declare()


# --- rights


def stranger(scene: Scene) -> Connection:
    """Return a connection of a user that may connect, and has no right to any queue."""
    scene._request.getfixturevalue(f"{scene.scheme}_stranger")
    return scene.connect(scene.at(user=STRANGER, password="pw"))


@cause("no right to declare a queue")
def forbidden_declare(scene: Scene) -> object:
    return Queue(scene.broker.name("forbidden"))(stranger(scene).channel()).declare()


@cause("no right to publish")
def forbidden_publish(scene: Scene) -> object:
    exchange = Exchange(scene.broker.name("forbidden"))(scene.channel)
    Queue(scene.broker.name("forbidden"), exchange)(scene.channel).declare()
    producer = Producer(stranger(scene).channel(), exchange)
    producer.publish("x")
    producer.publish("x")
    return producer.publish("x")


@cause("no right to consume")
def forbidden_consume(scene: Scene) -> object:
    queue = scene.queue
    connection = stranger(scene)
    return Consumer(connection.channel(), [queue], auto_declare=False).consume()


@cause("no right to get")
def forbidden_get(scene: Scene) -> object:
    return scene.queue(stranger(scene).channel()).get()


# --- messages


def fetched(scene: Scene, connection: Connection) -> Any:
    """Return a message that is not acknowledged."""
    queue = scene.queue
    Producer(scene.connection).publish("x", routing_key=queue.name)
    return soon(queue(connection.channel()).get)


@cause("a message is acknowledged twice")
def double_ack(scene: Scene) -> object:
    message = fetched(scene, scene.connection)
    message.ack()
    return message.ack()


@cause("an unknown delivery tag is acknowledged")
def unknown_tag(scene: Scene) -> object:
    return scene.channel.basic_ack(4711)


@cause("the body cannot be decoded")
def broken_body(scene: Scene) -> object:
    queue = scene.queue
    Producer(scene.channel).publish(
        b"{", routing_key=queue.name, content_type="application/json", content_encoding="utf-8"
    )
    return soon(queue.get).payload


@cause("the body is compressed, and broken")
def broken_compression(scene: Scene) -> object:
    queue = scene.queue
    headers = {"compression": "application/x-gzip"}
    Producer(scene.channel).publish(
        b"{", routing_key=queue.name, content_type="application/json", content_encoding="utf-8", headers=headers
    )
    return soon(queue.get).payload


@cause("the content type is not accepted")
def refused_content(scene: Scene) -> object:
    queue = scene.queue
    Producer(scene.channel).publish({}, routing_key=queue.name, serializer="pickle")
    return soon(queue.get).payload


@cause("the body cannot be encoded")
def not_encodable(scene: Scene) -> object:
    return Producer(scene.channel).publish(object(), routing_key="any")


@cause("the body is text that its `content_encoding` lacks")
def text_beyond_its_encoding(scene: Scene) -> object:
    return Producer(scene.channel).publish("é", "any", content_type="text/plain", content_encoding="ascii")


@cause("a header or property cannot be encoded")
def headers_not_encodable(scene: Scene) -> object:
    return Producer(scene.channel).publish("x", routing_key="any", headers={"h": object()})


@cause("the serializer is not known")
def unknown_serializer(scene: Scene) -> object:
    return Producer(scene.channel).publish("x", routing_key="any", serializer="none of that name")


@cause("no message within the timeout of `drain_events`")
def nothing_came(scene: Scene) -> object:
    Inbox(scene.connection, [scene.queue])
    return scene.connection.drain_events(timeout=0.1)


@cause("`drain_events` without a timeout, and without a consumer")
def endless_wait(scene: Scene) -> object:
    scene.connection.connect()
    return scene.connection.drain_events()


# --- publishing


@cause("a mandatory message that no queue takes")
def nobody_takes_it(scene: Scene) -> object:
    exchange = Exchange(scene.broker.name("exchange"))(scene.channel)
    exchange.declare()
    channel = scene.connection.channel()
    channel.confirm_select()
    return Producer(channel, exchange).publish("x", routing_key="nowhere", mandatory=True)


@cause("publishing to an unknown exchange")
def unknown_exchange(scene: Scene) -> object:
    return Producer(scene.channel).publish("x", "k", exchange=scene.broker.name("unknown"))


@cause("publishing to a queue that is full (`x-overflow: reject-publish`)")
def full_queue(scene: Scene) -> object:
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    queue = Queue(scene.broker.name("full"), queue_arguments=arguments)(scene.channel)
    queue.declare()
    channel = scene.connection.channel()
    channel.confirm_select()
    for _ in range(10):
        Producer(channel).publish("x", routing_key=queue.name)
    return None


@cause("the server has no memory left for a message")
def full_memory(scene: Scene) -> object:
    queue = scene.queue
    with redis.Redis.from_url(scene.broker.url) as admin:
        admin.config_set("maxmemory", 1)
        try:
            return Producer(scene.channel).publish("x", routing_key=queue.name)
        finally:
            admin.config_set("maxmemory", 0)


@cause("a message that is larger than the server takes")
def too_large(scene: Scene) -> object:
    queue = scene.queue
    channel = scene.connection.channel()
    channel.confirm_select()
    producer = Producer(channel)
    for _ in range(10):
        producer.publish(b"x" * 4 * MIB, routing_key=queue.name, content_type="application/data")
    return None


@cause("a routing key of more than 255 bytes")
def long_key(scene: Scene) -> object:
    return Producer(scene.channel).publish("x", routing_key="k" * 256)


# --- declaring and consuming


@cause("asserting an unknown queue (`passive=True`)")
def unknown_queue(scene: Scene) -> object:
    return scene.channel.queue_declare(scene.broker.name("unknown"), passive=True)


@cause("asserting an unknown exchange (`passive=True`)")
def unknown_passive_exchange(scene: Scene) -> object:
    return scene.channel.exchange_declare(scene.broker.name("unknown"), "direct", passive=True)


@cause("binding to an unknown exchange")
def unknown_source(scene: Scene) -> object:
    return scene.queue.bind_to(Exchange(scene.broker.name("unknown")), "k")


@cause("binding an unknown queue")
def unknown_destination(scene: Scene) -> object:
    exchange = Exchange(scene.broker.name("exchange"))(scene.channel)
    exchange.declare()
    return scene.channel.queue_bind(scene.broker.name("unknown"), exchange.name, "k")


@cause("consuming an unknown queue")
def unknown_consumed(scene: Scene) -> object:
    return scene.channel.basic_consume(scene.broker.name("unknown"), callback=print)


@cause("getting from an unknown queue")
def unknown_got(scene: Scene) -> object:
    return scene.channel.basic_get(scene.broker.name("unknown"))


@cause("purging an unknown queue")
def unknown_purged(scene: Scene) -> object:
    return scene.channel.queue_purge(scene.broker.name("unknown"))


@cause("declaring a queue again with other settings")
def other_queue(scene: Scene) -> object:
    name = scene.broker.name("settings")
    Queue(name, durable=True)(scene.channel).declare()
    return Queue(name, durable=False)(scene.channel).declare()


@cause("declaring an exchange again with another type")
def other_exchange(scene: Scene) -> object:
    name = scene.broker.name("settings")
    Exchange(name, "direct")(scene.channel).declare()
    return Exchange(name, "topic")(scene.channel).declare()


@cause("an unknown type of exchange")
def unknown_type(scene: Scene) -> object:
    return Exchange(scene.broker.name("strange"), "strange")(scene.channel).declare()


@cause("an exchange of type `headers` where there is none")
def no_headers(scene: Scene) -> object:
    return Exchange(scene.broker.name("headers"), "headers")(scene.channel).declare()


@cause("an argument of a queue that cannot be")
def bad_argument(scene: Scene) -> object:
    return Queue(scene.broker.name("bad"), queue_arguments={"x-expires": -1})(scene.channel).declare()


@cause("a queue that is exclusive to another connection")
def exclusive_queue(scene: Scene) -> object:
    name = scene.broker.name("exclusive")
    Queue(name, exclusive=True)(scene.channel).declare()
    return scene.connect().channel().queue_declare(name, passive=True)


@cause("a second consumer of a queue that has an exclusive one")
def exclusive_consumer(scene: Scene) -> object:
    queue = scene.queue
    scene.channel.basic_consume(queue.name, callback=print, exclusive=True)
    return scene.connection.channel().basic_consume(queue.name, callback=print)


@cause("a consumer tag that is in use on the channel")
def used_tag(scene: Scene) -> object:
    queue = scene.queue
    for _ in range(2):
        scene.channel.basic_consume(queue.name, consumer_tag="tag", callback=print)
    return None


@cause("deleting a queue that is consumed (`if_unused=True`)")
def used_queue(scene: Scene) -> object:
    queue = scene.queue
    scene.channel.basic_consume(queue.name, callback=print)
    return queue.delete(if_unused=True)


@cause("deleting a queue that is not empty (`if_empty=True`)")
def queue_with_messages(scene: Scene) -> object:
    queue = scene.queue
    Producer(scene.connection).publish("x", routing_key=queue.name)
    return queue.delete(if_empty=True)


@cause("the queue of a consumer is deleted by another connection")
def deleted_queue(scene: Scene) -> object:
    connection = scene.connect()
    Inbox(connection, [scene.queue])
    scene.queue.delete()
    return drain(connection, lambda: False, PATIENCE)


@cause("pausing the deliveries of a channel (`flow(False)`)")
def paused(scene: Scene) -> object:
    return scene.channel.flow(False)


@cause("an entity without a channel is used")
def no_channel(scene: Scene) -> object:
    return Queue("any").declare()


@cause("a pool has no more connections")
def empty_pool(scene: Scene) -> object:
    pool = scene.connection.Pool(1)
    pool.acquire()
    return pool.acquire(block=False)


@cause("no channel number is left")
def no_numbers(scene: Scene) -> object:
    transport = scene.connection.connect()
    if isinstance(transport, BlockingTransport):
        return transport.open_channels(65536)
    for _ in range(65536):
        transport.open_channel()
    return None


# --- the table


@pytest.fixture(scope="module")
def redis_url(request: pytest.FixtureRequest) -> str:
    return started(request, lambda: RedisServer(proto_max_bulk_len=2 * MIB)).url


@pytest.fixture(scope="module")
def amqp_server(request: pytest.FixtureRequest) -> RabbitMQServer:
    return started(request, lambda: RabbitMQServer({"max_message_size": 2 * MIB}))


@pytest.fixture(scope="module")
def amqp_url(amqp_server: RabbitMQServer) -> str:
    return amqp_server.url


@pytest.fixture(scope="module")
def redis_stranger(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as admin:
        admin.execute_command("ACL", "SETUSER", STRANGER, "on", ">pw", "+@all", "~nothing", "resetchannels")


@pytest.fixture(scope="module")
def amqp_stranger(amqp_server: RabbitMQServer) -> None:
    add_user(amqp_server, STRANGER, "pw", ("^$", "^$", "^$"))


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``connect()`` make its second attempt at once: the case asks for that attempt's error."""
    monkeypatch.setattr("kombulite.utils.functional.sleep_in_slices", lambda seconds, callback=None: None)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("name", CAUSES)
def test_the_table(broker: Broker, request: pytest.FixtureRequest, name: str) -> None:
    row = TABLE[name]
    if name in ON_RABBITMQ_4 and broker.kind.startswith("amqp") and not version("rabbitmqctl").startswith("3."):
        row = ON_RABBITMQ_4[name]
    if not row.is_of(broker.kind):
        pytest.skip("has no such cause")
    scene = Scene(broker, request)
    with pytest.raises(getattr(exceptions, row.error)) as caught:
        CAUSES[name](scene)
    connection, error = scene.connection, caught.value
    of = {"connection": connection.connection_errors, "channel": connection.channel_errors}
    assert [kind for kind, classes in of.items() if isinstance(error, classes)] == row.of
    again = (*connection.recoverable_connection_errors, *connection.recoverable_channel_errors)
    assert isinstance(error, again) is row.is_tried_again
    copied = pickle.loads(pickle.dumps(error))
    assert isinstance(copied, getattr(exceptions, row.error))
    assert str(copied) == str(error)


def test_each_row_has_a_cause() -> None:
    assert list(TABLE) == list(CAUSES)


#: Transports whose leases are the database's, so that any connection may settle them.
HOLDING = ("redis", "rediscluster", "sqlite", "postgresql")


def test_a_late_ack_is_taken_over_the_next_connection(broker: Broker, request: pytest.FixtureRequest) -> None:
    if broker.kind.partition("-")[0] not in HOLDING:
        pytest.skip("the broker takes back what a connection held that is lost")
    scene = Scene(broker, request)
    connection, queue = scene.connect(), Queue(broker.name("late"))
    inbox = Inbox(connection, [queue], ack=False)
    producer = Producer(scene.connect())
    producer.publish("x", routing_key=queue.name)
    drain(connection, lambda: len(inbox.messages) == 1, PATIENCE)
    connection.abandon(connection.transport, "lost")
    connection.ensure_connection()
    inbox.messages[0].ack()
    producer.publish("y", routing_key=queue.name)
    drain(connection, lambda: len(inbox.messages) == 2, PATIENCE)
    assert inbox.messages[1].payload == "y"
    inbox.messages[1].ack()
    with pytest.raises(exceptions.MessageStateError):
        inbox.messages[0].ack()
    assert soon(lambda: queue(connection.channel()).get() is None)


def test_a_late_ack_acknowledges_no_other_message(broker: Broker, request: pytest.FixtureRequest) -> None:
    if broker.kind.partition("-")[0] in HOLDING:
        pytest.skip("a late ack is taken over the next connection")
    scene = Scene(broker, request)
    connection, queue = scene.connect(transport_options={"lease": 1}), Queue(broker.name("late"))
    inbox = Inbox(connection, [queue], ack=False)
    Producer(scene.connect()).publish("x", routing_key=queue.name)
    drain(connection, lambda: len(inbox.messages) == 1, PATIENCE)
    connection.abandon(connection.transport, "lost")
    connection.ensure_connection()
    drain(connection, lambda: len(inbox.messages) == 2, PATIENCE)
    with pytest.raises(exceptions.RecoverableConnectionError):
        inbox.messages[0].ack()
    inbox.messages[1].ack()
    assert soon(lambda: queue(connection.channel()).get() is None)
