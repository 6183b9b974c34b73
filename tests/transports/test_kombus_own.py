"""kombu's own transports, from an installed kombu, over kombulite: databases, moto's SQS, librdkafka's mock cluster."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import uuid
from functools import partial
from types import SimpleNamespace

import pytest

from kombulite import Connection, Exchange, Queue
from kombulite.transport.distribution import named_requirement
from tests.conftest import missing, started
from tests.transports.servers import EtcdServer, ZooKeeperServer

#: kombu's models use a loader that SQLAlchemy 2.1 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader")

WAIT = 10  # seconds, the longest that a message may take


@pytest.fixture(scope="module")
def mock_cluster():
    kafka = pytest.importorskip("confluent_kafka")
    owner = kafka.Producer({"bootstrap.servers": "unused", "test.mock.num.brokers": 1})
    broker = next(iter(owner.list_topics(timeout=WAIT).brokers.values()))
    yield f"{broker.host}:{broker.port}"
    del owner


@pytest.fixture(scope="module")
def etcd(request):
    pytest.importorskip("etcd")
    return started(request, EtcdServer).url


@pytest.fixture(scope="module")
def zookeeper(request):
    if importlib.util.find_spec("kazoo") is None:
        missing(request, "kazoo is not installed", by_hand=True)
    return started(request, ZooKeeperServer).url


@pytest.fixture(scope="module")
def mongodb():
    """A MongoDB in the memory of this process, without what it does not have: collections of bounded size."""
    mongomock = pytest.importorskip("mongomock")
    module = pytest.importorskip("kombulite.transport.mongodb")
    store = mongomock.store.ServerStore()
    make = mongomock.Database.create_collection
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MongoClient", partial(mongomock.MongoClient, _store=store))
        patch.setattr(mongomock.Database, "create_collection", lambda self, name, **options: make(self, name))
        yield "mongodb://127.0.0.1/messages"


def settings(kind, request, tmp_path):
    """The URL and the transport options of a kind."""
    if kind == "sqlite":
        pytest.importorskip("sqlalchemy")  # which gets all transport options, and refuses those that it does not know
        return f"sqla+sqlite:///{tmp_path}/messages.sqlite", {}
    if kind == "postgresql":
        pytest.importorskip("sqlalchemy")
        url = request.getfixturevalue("postgresql_url")
        return "sqla+" + url.replace("postgresql://", "postgresql+psycopg://"), {}
    quick = {"polling_interval": 0.05, "wait_time_seconds": 0}
    if kind == "sqs":
        host, port = request.getfixturevalue("moto")
        options = {**quick, "region": "eu-west-1", "is_secure": False, "supports_fanout": True}  # by SNS
        return f"sqs://key:secret@{host}:{port}/", options
    if kind == "pgmq":
        return request.getfixturevalue("pgmq").replace("postgresql:", "pgmq:"), {**quick, "init_extension": False}
    if kind == "kafka":
        address = request.getfixturevalue("mock_cluster")
        return f"confluentkafka://{address}/", {"wait_time_seconds": 5, "kafka_common_config": {}}
    return request.getfixturevalue(kind), quick


KINDS = ("sqlite", "postgresql", "sqs", "kafka", "etcd", "pgmq", "mongodb")

#: What a transport cannot do by its design.
LACKS = {
    "requeue": {"kafka"},  # a partition is read in order, and what was read is not put back
    "close": {"kafka", "pgmq"},  # leases of half an hour, that closing does not end
    "fanout": {"sqlite", "postgresql", "kafka", "etcd", "zookeeper"},
    "get": {"kafka"},  # a group takes seconds to give a new consumer its partition
}


@pytest.fixture(params=[*KINDS, pytest.param("zookeeper", marks=pytest.mark.soak)])  # it wants Java
def bench(request, tmp_path):
    need = request.node.get_closest_marker("needs")
    if need is not None and request.param in LACKS[need.args[0]]:
        pytest.skip("lost by its design")
    url, options = settings(request.param, request, tmp_path)
    name = f"q{uuid.uuid4().hex[:12]}"
    queue = Queue(name, Exchange(name), routing_key=name)
    connect = partial(Connection, url, transport_options=options)
    with connect() as connection:
        yield SimpleNamespace(connection=connection, queue=queue, name=name, kind=request.param, connect=connect)


def consume(bench, number, callback=lambda message: message.ack(), **kwargs):
    got = []

    def receive(body, message):
        got.append(body)
        callback(message)

    with bench.connection.Consumer(bench.queue, callbacks=[receive], **kwargs):
        while len(got) < number:
            bench.connection.drain_events(timeout=WAIT)
    return got


def test_messages_are_published_consumed_and_acknowledged(bench):
    producer = bench.connection.Producer(exchange=bench.queue.exchange, routing_key=bench.name)
    for n in range(3):
        producer.publish({"n": n}, declare=[bench.queue], retry=True, headers={"h": n})
    got = consume(bench, 3)
    assert sorted(body["n"] for body in got) == [0, 1, 2]


@pytest.mark.needs("requeue")
def test_requeued_messages_come_again(bench):
    bench.connection.Producer(exchange=bench.queue.exchange, routing_key=bench.name).publish("x", declare=[bench.queue])
    seen = []

    def requeue_once(message):
        seen.append(message)
        message.requeue() if len(seen) == 1 else message.ack()

    assert consume(bench, 2, requeue_once) == ["x", "x"]


def test_simple_queues_work(bench):
    simple = bench.connection.SimpleQueue(bench.name)
    simple.put({"a": 1}, compression="zlib")
    message = simple.get(timeout=WAIT)
    assert message.payload == {"a": 1}
    message.ack()


def test_batches_are_published_and_consumed(bench):
    producer = bench.connection.Producer(exchange=bench.queue.exchange, routing_key=bench.name)
    producer.maybe_declare(bench.queue)
    with producer.batch():
        for n in range(4):
            producer.publish(n)
    batches = []
    with bench.connection.Consumer(bench.queue, on_batch=batches.append, batch_size=4, batch_timeout=5):
        while sum(map(len, batches)) < 4:
            bench.connection.drain_events(timeout=WAIT)
            for batch in batches:
                if not batch[0].acknowledged:
                    batch.ack()
    assert sorted(message.payload for batch in batches for message in batch) == [0, 1, 2, 3]


@pytest.mark.needs("get")
def test_queues_say_how_long_they_are_and_give_a_message_at_a_time(bench):
    queue = bench.queue(bench.connection.default_channel)
    queue.declare()
    producer = bench.connection.Producer(exchange=bench.queue.exchange, routing_key=bench.name)
    producer.publish("x")
    producer.publish("y")
    assert queue.queue_declare(passive=True).message_count == 2
    first = queue.get()
    first.ack()
    assert {first.payload, queue.get(no_ack=True).payload} == {"x", "y"}
    assert queue.get() is None


@pytest.mark.needs("get")
def test_rejected_messages_are_gone(bench):
    queue = bench.queue(bench.connection.default_channel)
    queue.declare()
    bench.connection.Producer(exchange=bench.queue.exchange, routing_key=bench.name).publish("x")
    queue.get().reject()
    assert queue.get() is None


@pytest.mark.needs("close")
def test_what_a_closed_channel_held_comes_back(bench):
    bench.connection.Producer(exchange=bench.queue.exchange, routing_key=bench.name).publish("x", declare=[bench.queue])
    channel = bench.connection.channel()
    assert bench.queue(channel).get().payload == "x"
    channel.close()
    assert consume(bench, 1) == ["x"]


@pytest.mark.needs("get")
def test_an_error_of_a_callback_takes_no_other_message_with_it(bench):
    producer = bench.connection.Producer(exchange=bench.queue.exchange, routing_key=bench.name)
    for n in range(3):
        producer.publish(n, declare=[bench.queue])
    got = []

    def fail_at_first(body, message):
        got.append(body)
        message.ack()
        if len(got) == 1:
            raise KeyError("of the callback")

    with bench.connection.Consumer(bench.queue, callbacks=[fail_at_first], prefetch_count=3):
        with pytest.raises(KeyError, match="of the callback"):
            bench.connection.drain_events(timeout=WAIT)
        while len(got) < 3:
            bench.connection.drain_events(timeout=WAIT)
    assert sorted(got) == [0, 1, 2]


@pytest.mark.needs("fanout")
def test_each_queue_of_a_fanout_exchange_gets_a_copy(bench):
    news = Exchange(f"n{bench.name}", "fanout")
    queues = [Queue(f"{bench.name}{letter}", news) for letter in "ab"]
    got = []
    with bench.connect() as other:
        consumers = [
            connection.Consumer(queue, callbacks=[lambda body, message: (got.append(body), message.ack())])
            for connection, queue in zip((bench.connection, other), queues, strict=True)
        ]
        for consumer in consumers:
            consumer.consume()
        bench.connection.Producer(exchange=news).publish("news", declare=[news])
        bench.connection.drain_events(timeout=WAIT)
        other.drain_events(timeout=WAIT)
    assert got == ["news", "news"]


def test_passwords_are_not_shown():
    assert "secret" not in Connection("sqla+postgresql://user:secret@nowhere/db").as_uri()


def test_nothing_else_of_kombu_gets_into_the_process():
    program = (
        "import sys, kombulite.transport.sqlalchemy, kombulite.transport.SQS, kombulite.transport.confluentkafka\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'kombu']\n"
    )
    for module in ("sqlalchemy", "boto3", "confluent_kafka"):
        pytest.importorskip(module)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_without_kombu_the_error_says_what_to_install(tmp_path):
    program = (
        "import sys\n"
        "import kombulite.transport.distribution as d\n"
        "d.locate = lambda name: None\n"
        "try:\n"
        "    kombulite.Connection('sqla+sqlite://').transport\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import kombulite\n" + program],
        check=True,
        timeout=60,
        capture_output=True,
        env=os.environ,
    )
    assert b"pip install kombu" in done.stdout


def test_without_its_driver_a_transport_says_what_to_install():
    urls = {
        "azureservicebus": "azureservicebus://policy:key@namespace",
        "azurestoragequeues": "azurestoragequeues://key@http://localhost/account",
        "confluentkafka": "kafka://localhost:1/",
        "consul": "consul://localhost:1/",
        "gcpubsub": "gcpubsub://projects/p",
        "mongodb": "mongodb://localhost:1/db",
        "pgmq": "pgmq://localhost:1/db",
        "python-etcd": "etcd://localhost:1/",
        "qpid": "qpid://localhost:1/",
        "sqlalchemy": "sqla+sqlite://",
        "zookeeper": "zookeeper://localhost:1/",
    }
    program = f"""
import sys, warnings
warnings.simplefilter("ignore")
drivers = "azure confluent_kafka consul google pymongo pgmq etcd qpid sqlalchemy kazoo"
sys.modules.update(dict.fromkeys(drivers.split()))
import kombulite
for name, url in {urls!r}.items():
    try:
        kombulite.Connection(url).transport
    except (ImportError, RuntimeError) as error:
        assert "pip install" in str(error) and name in str(error), error
    else:
        raise AssertionError(name)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("error", "becomes"), [(NameError, ModuleNotFoundError), (UnboundLocalError, UnboundLocalError)]
)
def test_a_mistake_with_a_local_name_is_no_lack_of_a_package(error, becomes):
    with pytest.raises(becomes) as caught, named_requirement("kombulite.transport.SQS"):
        raise error("cannot access 'client'")
    assert type(caught.value) is becomes
    assert ("pip install" in str(caught.value)) is (becomes is not error)
