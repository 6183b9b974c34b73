"""Failover to a broker that shares no state with the one that was lost, whatever the program waits for or publishes.

What the connection has declared is there again before it counts as connected: queues, exchanges, bindings of both, and
what arguments refer to. Each consumer gets what is published at the second broker.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from kombulite import Connection, Consumer, Exchange, Producer, Queue, Quorum, aio, binding, uuid
from kombulite.asynchronous import Hub
from kombulite.common import Broadcast
from kombulite.exceptions import ChannelError, RecoverableConnectionError
from kombulite.mixins import ConsumerMixin
from kombulite.pidbox import Mailbox
from kombulite.pools import producers
from kombulite.simple import SimpleQueue
from tests.proxy import Proxy
from tests.servers import RedisServer, evaluate, wait_until

KINDS = ("memory", "redis", "amqp", "sqlite", "postgresql")
#: Those that are tried each time: tests/unit/test_failover_elsewhere.py has a file of SQLite.
EACH_TIME = {"memory", "redis"}
AT_ONCE = {"max_retries": 20, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.2}
TIMEOUT = 20.0


#: Adds a virtual host, and gives guest all rights there.
ADD_SECOND = """
    rabbit_vhost:add(<<"second">>, <<"guest">>), All = <<".*">>,
    rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"second">>, All, All, All, <<"guest">>).
"""


def cases(ways: list[Any], kinds: set[str]) -> list[Any]:
    """All kinds of brokers and ways to go on: the first way at the kinds given, all others in the soak."""
    return [
        pytest.param(kind, way, marks=() if kind in kinds and way is ways[0] else pytest.mark.soak)
        for kind in KINDS
        for way in ways
    ]


class Pair:
    """Two brokers that share nothing: their URLs, and the end of the first."""

    def __init__(self, kind: str, first: str, second: str, proxy: Proxy | None = None) -> None:
        self.kind = kind
        self.first = first if proxy is None else proxy.url(first)
        self.second = second
        self._proxy = proxy
        self._connections: list[Connection] = []

    def connect(self, **options: Any) -> Connection:
        """A connection to the first, which goes over to the second."""
        connection = Connection([self.first, self.second], **options)
        self._connections.append(connection)
        return connection

    def end_first(self, *connections: Connection) -> None:
        """Lose the connections to the first broker, which takes no new ones. Without a network they are told so."""
        if self._proxy is not None:
            self._proxy.end()
        for connection in connections or self._connections if self._proxy is None else ():
            connection.abandon(connection._transport, "the first broker is gone")

    @property
    def has_network(self) -> bool:
        return self._proxy is not None

    def has_failed_over(self, connection: Any) -> bool:
        return bool(connection.settings().virtual_host == Connection(self.second).settings().virtual_host) and (
            self._proxy is None or connection.port != self._proxy.port
        )

    def close(self) -> None:
        for connection in self._connections:
            connection.release()


@pytest.fixture(scope="module")
def second_redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def second_virtual_host(mortal_rabbitmq: Any) -> str:
    evaluate(mortal_rabbitmq, ADD_SECOND.strip())
    return f"{mortal_rabbitmq.url[:-1]}second"


@pytest.fixture(scope="module")
def second_database(postgresql_url: str) -> str:
    with psycopg.connect(postgresql_url, autocommit=True) as client:
        client.execute("CREATE DATABASE second")
    return f"{postgresql_url.rpartition('/')[0]}/second"


@pytest.fixture(params=[pytest.param(each, marks=() if each in EACH_TIME else pytest.mark.soak) for each in KINDS])
def brokers(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Pair]:
    kind, proxy = request.param, None
    if kind == "memory":
        first, second = (f"memory://localhost/{uuid()}" for _ in range(2))
    elif kind == "sqlite":
        first, second = (f"sqlite:///{tmp_path}/{each}.db" for each in ("a", "b"))
    else:
        first, second = {
            "redis": ("redis_url", "second_redis"),
            "amqp": ("mortal_rabbitmq", "second_virtual_host"),
            "postgresql": ("postgresql_url", "second_database"),
        }[kind]
        first, second = (request.getfixturevalue(each) for each in (first, second))
        first, second = (getattr(each, "url", each) for each in (first, second))
        proxy = Proxy(urlsplit(first).port or 0)
    pair = Pair(kind, first, second, proxy)
    yield pair
    pair.close()
    if proxy is not None:
        proxy.close()


# --- what is declared

OPTIONS: dict[str, dict[str, Any]] = {
    "durable": {},
    "expiring": {"expires": 60},
    "auto-delete": {"auto_delete": True},
    "transient": {"durable": False, "auto_delete": True},
    "exclusive": {"exclusive": True},
    "prioritised": {"max_priority": 5},
}


class Entities:
    """Queues of all kinds, and how a message gets to each: exchange, routing key, headers, by a name."""

    def __init__(self, kind: str) -> None:
        self.queues: list[Queue] = []
        self.more: list[Any] = []  # what is not consumed
        self.chain: list[Exchange] = []  # two exchanges, the first bound to the second
        self.ways: dict[str, tuple[Any, str, dict[str, Any]]] = {}
        types = ("direct", "topic", "fanout") if kind == "redis" else ("direct", "topic", "fanout", "headers")
        for exchange_type in types:
            for transient in (False, True):
                exchange = Exchange(uuid(), exchange_type, durable=not transient, auto_delete=transient)
                for name, options in OPTIONS.items():
                    way = f"{exchange_type}.{name}.{transient}"
                    rules = {"way": way, "x-match": "all"} if exchange_type == "headers" else None
                    self._add(way, Queue(uuid(), exchange, way, binding_arguments=rules, **options), {"way": way})
        several = Exchange(uuid(), "topic"), Exchange(uuid(), "direct")
        self._add("bindings", Queue(uuid(), bindings=[binding(several[0], "a.*"), binding(several[1], "b")]))
        self.ways["bindings.topic"] = several[0], "a.x", {}
        self.ways["bindings.direct"] = several[1], "b", {}
        del self.ways["bindings"]
        if kind != "redis":
            self._add_what_redis_lacks()
        if kind == "amqp":
            self._add("quorum", Queue(uuid(), Exchange(uuid()), "quorum", kind=Quorum()))

    def _add(self, way: str, queue: Queue, headers: dict[str, Any] | None = None) -> None:
        self.queues.append(queue)
        self.ways[way] = queue.exchange, queue.routing_key, headers or {}

    def _add_what_redis_lacks(self) -> None:
        inner, outer = Exchange(uuid(), "topic"), Exchange(uuid(), "direct", auto_delete=True)
        self._add("chained", Queue(uuid(), inner, "chained"))
        self.chain += inner, outer
        self.ways["chained"] = outer, "chained", {}
        rest = Exchange(uuid(), "fanout")
        self._add("alternate", Queue(uuid(), rest))
        self.ways["alternate"] = Exchange(uuid(), "direct", arguments={"alternate-exchange": rest.name}), "no", {}
        dead = Exchange(uuid(), "direct")
        self._add("dead", Queue(uuid(), dead, "dead"))
        arguments = {"x-dead-letter-exchange": dead.name, "x-dead-letter-routing-key": "dead"}
        short = Queue(uuid(), queue_arguments=arguments, message_ttl=0)
        self.more += [short, self.ways["alternate"][0]]
        self.ways["dead"] = "", short.name, {}

    def steps(self) -> Iterator[tuple[Any, ...]]:
        """What is to be done before consuming, for both facades: declare these, bind those."""
        yield from (("declare", each) for each in self.more)
        yield from (("declare", each) for each in self.chain)
        if self.chain:
            yield ("bind", *self.chain, "chained")

    def declare(self, channel: Any) -> None:
        for step, entity, *rest in self.steps():
            if step == "declare":
                entity(channel).declare()
            else:
                entity(channel).bind_to(*rest)

    def publish(self, url: str) -> None:
        """Publish a message to each, whose body is its name, without declaring anything."""
        with Connection(url) as connection:
            producer = Producer(connection, serializer="json", auto_declare=False)
            for way, (exchange, key, headers) in self.ways.items():
                producer.publish(way, exchange=exchange, routing_key=key, headers=headers, mandatory=False)


def lose(connection: Connection) -> None:
    """Drain until the loss has been raised, if it has not been noted yet."""
    while connection.connected:
        with suppress(TimeoutError):
            try:
                connection.drain_events(timeout=1)
            except connection.recoverable_connection_errors:
                return


def drain(connection: Connection, wanted: Callable[[], Any]) -> None:
    for _ in range(1000):
        if wanted():
            return
        with suppress(TimeoutError):
            connection.drain_events(timeout=0.1 if connection.connected else TIMEOUT)
    raise AssertionError("it did not come")


def keep_draining(connection: Connection) -> None:
    for _ in range(20):
        try:
            connection.drain_events(timeout=0.1)
        except TimeoutError:
            return
        except connection.recoverable_connection_errors:
            continue
        return


def by_draining(connection: Connection, consumer: Consumer) -> None:
    keep_draining(connection)


def by_ensuring(connection: Connection, consumer: Consumer) -> None:
    connection.ensure_connection(interval_start=0, max_retries=20)


def by_consuming_again(connection: Connection, consumer: Consumer) -> None:
    connection.ensure_connection(interval_start=0, max_retries=20)
    consumer.declare()
    consumer.consume()


def by_reviving(connection: Connection, consumer: Consumer) -> None:
    consumer.revive(connection.default_channel)


def by_a_new_channel(connection: Connection, consumer: Consumer) -> None:
    consumer.revive(connection.channel())


def by_publishing(connection: Connection, consumer: Consumer) -> None:
    Producer(connection).publish("to nobody", routing_key=uuid(), retry=True, retry_policy=AT_ONCE)


def by_autoretry(connection: Connection, consumer: Consumer) -> None:
    connection.autoretry(lambda channel: channel.basic_qos(0, 0, False), **AT_ONCE)()


WAYS = [by_draining, by_ensuring, by_consuming_again, by_reviving, by_a_new_channel, by_publishing, by_autoretry]


@pytest.mark.parametrize(("brokers", "go_on"), cases(WAYS, {"memory", "redis", "amqp"}), indirect=["brokers"])
def test_consumers_of_all_kinds(brokers, go_on):
    entities, got = Entities(brokers.kind), set()

    def take(message: Any) -> None:
        got.add(message.payload)
        message.ack()

    connection = brokers.connect()
    entities.declare(connection.default_channel)
    consumer = Consumer(connection, entities.queues, on_message=take)
    consumer.consume()
    brokers.end_first()
    lose(connection)
    go_on(connection, consumer)
    drain(connection, lambda: connection.connected or keep_draining(connection))
    assert brokers.has_failed_over(connection)
    entities.publish(brokers.second)
    drain(connection, lambda: got >= set(entities.ways))


def test_event_loop(brokers):
    entities, got = Entities(brokers.kind), set()
    connection = brokers.connect()
    if not connection.is_evented:
        pytest.skip("an event loop has nothing to wait on")
    entities.declare(connection.default_channel)
    Consumer(connection, entities.queues, on_message=lambda message: got.add(message.payload), no_ack=True).consume()
    hub = Hub()
    connection.register_with_event_loop(hub)
    hub.call_repeatedly(0.05, lambda: None)
    brokers.end_first()
    with suppress(*connection.recoverable_connection_errors):
        while connection.connected:
            hub.run_once()
    connection.ensure_connection(interval_start=0, max_retries=20)
    entities.publish(brokers.second)
    for _ in range(1000):
        if got >= set(entities.ways):
            break
        hub.run_once()
    hub.close()
    assert got >= set(entities.ways)


def test_consumer_of_batches(brokers):
    connection, got = brokers.connect(), []
    queue = Queue(uuid(), Exchange(uuid(), "topic"), "a.*")

    def take(batch: Any) -> None:
        got.extend(message.payload for message in batch)
        batch.ack()

    Consumer(connection, [queue], on_batch=take, batch_size=2, batch_timeout=TIMEOUT).consume()
    brokers.end_first()
    lose(connection)
    keep_draining(connection)
    with Connection(brokers.second) as other:
        for number in range(2):
            Producer(other, queue.exchange, "a.b", auto_declare=False).publish(number)
    drain(connection, lambda: len(got) == 2)


@pytest.mark.soak
def test_mixin(brokers):
    if not brokers.has_network:
        pytest.skip("its first broker is there for the next connection")
    entities, got = Entities(brokers.kind), set()
    ready = threading.Semaphore(0)

    class Program(ConsumerMixin):
        connection = brokers.connect()

        def create_connection(self) -> Connection:
            self.current = super().create_connection()
            return self.current

        def get_consumers(self, Consumer: Any, channel: Any) -> list[Any]:
            entities.declare(channel)
            return [Consumer(entities.queues, on_message=lambda message: got.add(message.payload), no_ack=True)]

        def on_consume_ready(self, *arguments: Any, **options: Any) -> None:
            ready.release()

    program = Program()
    thread = threading.Thread(target=program.run)
    thread.start()
    try:
        assert ready.acquire(timeout=TIMEOUT)
        brokers.end_first(program.current)
        assert ready.acquire(timeout=TIMEOUT)
        wait_until(
            lambda: program.current.connected and brokers.has_failed_over(program.current), TIMEOUT, "it is away"
        )
        entities.publish(brokers.second)
        wait_until(lambda: got >= set(entities.ways), TIMEOUT, "it does not consume")
    finally:
        program.should_stop = True
        thread.join(TIMEOUT)


def test_simple_queue(brokers):
    connection = brokers.connect()
    name = uuid()
    waiting = SimpleQueue(connection, name)
    sending = SimpleQueue(brokers.connect(), name)
    sending.put("before")
    first = waiting.get(timeout=TIMEOUT)
    assert first.payload == "before"
    first.ack()
    brokers.end_first()
    lose(connection)
    sending.put("after", retry=True, retry_policy=AT_ONCE)
    got = None
    for _ in range(20):
        with suppress(waiting.Empty, *connection.recoverable_connection_errors):
            got = waiting.get(timeout=1)
            break
    assert got is not None
    assert got.payload == "after"
    got.ack()
    with pytest.raises(waiting.Empty):
        waiting.get_nowait()
    sending.put("more")
    assert waiting.get(timeout=TIMEOUT).payload == "more"


@pytest.mark.parametrize("is_pooled", [False, True])
def test_producer_that_declares(brokers, is_pooled):
    connection = brokers.connect()
    exchange = Exchange(uuid(), "topic")
    queue, late = Queue(uuid(), exchange, "a.*"), Queue(uuid(), exchange, "a.b")
    pool = producers[connection] if is_pooled else None

    @contextmanager
    def producer_of() -> Iterator[Producer]:
        if pool is None:
            yield Producer(connection, exchange)
        else:
            with pool.acquire(block=True) as producer:
                yield producer

    try:
        with producer_of() as producer:
            producer.publish("first", exchange=exchange, routing_key="a.b", declare=[queue])
            brokers.end_first(producer.connection)
        with producer_of() as producer:
            for declared in ([queue], None, [late, queue]):
                producer.publish(
                    "second", exchange=exchange, routing_key="a.b", declare=declared, retry=True, retry_policy=AT_ONCE
                )
            assert brokers.has_failed_over(producer.connection)
    finally:
        if pool is not None:
            pool.force_close_all()
    with Connection(brokers.second) as other:
        assert [queue(other).get(no_ack=True).payload for _ in range(3)] == ["second"] * 3
        assert late(other).get(no_ack=True).payload == "second"


def test_broadcast_and_mailbox(brokers):
    connection = brokers.connect()
    got, done = [], []
    mailbox = Mailbox(uuid(), type="fanout")
    node = mailbox(connection).Node("worker@here", state=None, channel=connection.default_channel)
    node.handlers["work"] = lambda state, **arguments: done.append(arguments) or "pong"
    node.listen()
    news = Broadcast(uuid())
    Consumer(connection, [news], callbacks=[lambda body, message: got.append(body)], no_ack=True).consume()
    brokers.end_first()
    lose(connection)
    keep_draining(connection)
    with Connection(brokers.second) as other:
        Producer(other, news.exchange, auto_declare=False).publish("news")
        drain(connection, lambda: got == ["news"])
        replies: list[Any] = []
        thread = threading.Thread(
            target=lambda: replies.extend(mailbox(other).call(["worker@here"], "work", {"n": 1}, timeout=TIMEOUT) or [])
        )
        thread.start()
        drain(connection, lambda: done == [{"n": 1}])
        thread.join(TIMEOUT)
        assert replies == [{"worker@here": "pong"}]


def test_mailbox_of_a_client_that_moves(brokers):
    """A client that has asked before asks at the second broker."""
    connection = brokers.connect()
    mailbox = Mailbox(uuid(), type="direct")
    answers = []
    for url in (brokers.first, brokers.second):
        with Connection(url) as other:
            node = mailbox(other).Node("w", channel=other.default_channel)
            node.handlers["ping"] = lambda state, url=url: url
            node.listen()
            stop = threading.Event()

            def serve(other: Connection = other, stop: threading.Event = stop) -> None:
                while not stop.is_set():
                    with suppress(TimeoutError):
                        other.drain_events(timeout=0.1)

            thread = threading.Thread(target=serve)
            thread.start()
            try:
                try:
                    answer = mailbox(connection).call(["w"], "ping", timeout=TIMEOUT)
                except connection.recoverable_connection_errors:  # the loss
                    answer = mailbox(connection).call(["w"], "ping", timeout=TIMEOUT)
                answers.append(answer)
            finally:
                stop.set()
                thread.join(TIMEOUT)
        if url == brokers.first:
            brokers.end_first(connection)
    assert answers == [[{"w": brokers.first}], [{"w": brokers.second}]]


def test_entities_that_another_has_declared(brokers):
    """Whoever only consumes cannot know what to declare: it is said, and not passed over."""
    queue = Queue(uuid())
    with Connection(brokers.first) as other:
        queue(other).declare()
    connection = brokers.connect()
    got: list[Any] = []
    Consumer(connection, [queue], auto_declare=False, on_message=got.append).consume()
    brokers.end_first(connection)
    lose(connection)
    if brokers.kind == "redis":  # a list that nobody declared may be consumed
        keep_draining(connection)
        with Connection(brokers.second) as other:
            Producer(other).publish("x", routing_key=queue.name)
        drain(connection, lambda: got)
        return
    errors: list[Exception] = []
    with suppress(*connection.recoverable_connection_errors, ChannelError):
        connection.ensure_connection(lambda error, interval: errors.append(error), max_retries=3, interval_start=0)
    assert queue.name in next(str(error) for error in errors if isinstance(error, ChannelError))


async def by_waiting(connection: Any) -> None:
    """The consumer alone brings the connection back."""


async def by_publishing_again(connection: Any) -> None:
    await until_it_is_back(lambda: connection.producer("").publish("to nobody", uuid()))


async def by_declaring(connection: Any) -> None:
    await until_it_is_back(lambda: connection.declare(Queue(uuid(), auto_delete=True)))


async def until_it_is_back(do: Callable[[], Any]) -> None:
    for _ in range(20):
        with suppress(RecoverableConnectionError):
            await do()
            break


ASYNC_WAYS = [by_waiting, by_publishing_again, by_declaring]


@pytest.mark.parametrize(("brokers", "go_on"), cases(ASYNC_WAYS, {"redis", "amqp"}), indirect=["brokers"])
def test_consumer_on_an_event_loop(brokers, go_on):
    entities, got = Entities(brokers.kind), set()

    async def program() -> None:
        async with aio.connect([brokers.first, brokers.second]) as connection:
            for step, entity, *rest in entities.steps():
                if step == "declare":
                    await connection.declare(entity)
                else:
                    await connection.bind(entity, *rest)
            async with connection.consume(entities.queues) as messages:
                brokers.end_first()
                if not brokers.has_network:
                    connection.take(brokers.second)
                    connection.session._lost(connection.session.transport, Exception("gone"))
                await go_on(connection)
                while not (connection.connected and brokers.has_failed_over(connection)):
                    await asyncio.sleep(0.01)
                await asyncio.get_running_loop().run_in_executor(None, entities.publish, brokers.second)
                while not got >= set(entities.ways):
                    message = await messages.next(timeout=TIMEOUT)
                    async with message.process():
                        got.add(message.payload)

    asyncio.run(asyncio.wait_for(program(), 2 * TIMEOUT))
