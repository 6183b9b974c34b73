"""Transport options and connection keywords beside kombu: None is the default wherever kombu can work with it."""

from __future__ import annotations

import gc
import importlib
import inspect
import uuid

import amqp
import kombu
import kombu.transport.redis
import pytest

from tests.oracle.test_programs_against_kombu import outcome

CONNECT_RETRIES = ["max_retries", "interval_start", "interval_step", "interval_max", "errback", "callback"]
OPTIONS = {
    "redis_url": [
        *kombu.transport.redis.Channel.from_transport_options,
        "socket_timeout",
        "deadletter_queue",
        "polling_interval",
        *CONNECT_RETRIES,
    ],
    "amqp_url": [
        *(name for name in inspect.signature(amqp.Connection).parameters if name != "kwargs"),
        "polling_interval",
        *CONNECT_RETRIES,
    ],
    "filesystem://": ["polling_interval", "store_processed", "deadletter_queue", *CONNECT_RETRIES],
    "memory://": ["polling_interval", "deadletter_queue", *CONNECT_RETRIES],
}
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

KEYWORDS = [name for name in inspect.signature(kombu.Connection).parameters if name not in ("hostname", "kwargs")]


@pytest.fixture
def url(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("data_in", "data_out"):
        (tmp_path / folder).mkdir()
    yield request.param if "://" in request.param else request.getfixturevalue(request.param)
    gc.collect()  # kombu leaves the socket of a connection that it could not open to the garbage collector


def work(library, url, **arguments):
    """Publish, get and consume, with a connection of these arguments."""
    lib = importlib.import_module(library)
    name = f"options-{uuid.uuid4().hex}"
    if url == "filesystem://":
        options = arguments.get("transport_options") or {}
        arguments["transport_options"] = {"data_folder_in": "data_in", "data_folder_out": "data_in", **options}
    with lib.Connection(url, **arguments) as connection:
        queue = lib.Queue(name, lib.Exchange(name), name)(connection)
        queue.declare()
        bodies = []

        def receive(body, message):
            bodies.append(body)
            message.ack()

        producer = lib.Producer(connection, queue.exchange, name)
        producer.publish("a")
        queue.get().ack()
        with lib.Consumer(connection, [queue], callbacks=[receive]):
            producer.publish("b")
            connection.drain_events(timeout=10)
        queue.delete()
    return bodies


@pytest.mark.parametrize(
    ("url", "option"), [(url, option) for url, options in OPTIONS.items() for option in options], indirect=["url"]
)
def test_an_option_that_is_none(url, option):
    options = {option: None}
    if outcome(lambda: work("kombu", url, transport_options=options)) == ["b"]:
        assert work("kombulite", url, transport_options=options) == ["b"]


@pytest.mark.parametrize("keyword", KEYWORDS)
@pytest.mark.parametrize("url", OPTIONS, indirect=True)
def test_a_keyword_that_is_none(url, keyword):
    keywords = {keyword: None}
    if outcome(lambda: work("kombu", url, **keywords)) == ["b"]:
        assert work("kombulite", url, **keywords) == ["b"]
