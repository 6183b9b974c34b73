"""kombu's own transports, from an installed kombu, over kombulite: databases, moto's SQS, librdkafka's mock cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from types import SimpleNamespace

import pytest

from kombulite import Connection, Exchange, Queue

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


def settings(kind, request, tmp_path):
    """The URL and the transport options of a kind."""
    if kind == "sqlite":
        pytest.importorskip("sqlalchemy")  # which gets all transport options, and refuses those that it does not know
        return f"sqla+sqlite:///{tmp_path}/messages.sqlite", {}
    if kind == "postgresql":
        pytest.importorskip("sqlalchemy")
        url = request.getfixturevalue("postgresql_url")
        return "sqla+" + url.replace("postgresql://", "postgresql+psycopg://"), {}
    if kind == "sqs":
        host, port = request.getfixturevalue("moto")
        options = {"polling_interval": 0.05, "wait_time_seconds": 0, "region": "eu-west-1", "is_secure": False}
        return f"sqs://key:secret@{host}:{port}/", options
    address = request.getfixturevalue("mock_cluster")
    return f"confluentkafka://{address}/", {"wait_time_seconds": 5, "kafka_common_config": {}}


@pytest.fixture(params=["sqlite", "postgresql", "sqs", "kafka"])
def bench(request, tmp_path):
    url, options = settings(request.param, request, tmp_path)
    name = f"q{uuid.uuid4().hex[:12]}"
    queue = Queue(name, Exchange(name), routing_key=name)
    with Connection(url, transport_options=options) as connection:
        yield SimpleNamespace(connection=connection, queue=queue, name=name, kind=request.param, url=url)


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


def test_requeued_messages_come_again(bench):
    if bench.kind == "kafka":
        pytest.skip("a partition is read in order, and what was read is not put back: nothing is requeued there")
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
