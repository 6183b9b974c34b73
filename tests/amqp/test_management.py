"""``kombulite top`` on a RabbitMQ with its management plugin."""

from __future__ import annotations

import os
import time

import pytest

from kombulite import Connection, Queue
from kombulite.cli.monitor import ManagementSource, SourceError, StatusSource, source_of
from tests.servers import RabbitMQServer, Unavailable, free_port


@pytest.fixture(scope="module")
def managed():
    port = free_port()
    options = {"management.tcp.port": port, "management.tcp.ip": "127.0.0.1"}
    try:
        server = RabbitMQServer(options, plugins=("rabbitmq_management",))
    except Unavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with server:
        server.management_url = f"http://127.0.0.1:{port}"
        yield server


def read_until(source, wanted):
    """Read until something holds: the plugin's figures are some seconds behind."""
    deadline = time.monotonic() + 60
    while True:
        queues = {each.queue: each for each in source.read()}
        if wanted(queues) or time.monotonic() > deadline:
            return queues
        time.sleep(0.2)


def test_management_api_tells_rates_and_memory(managed):
    with Connection(managed.url) as connection:
        connection.Producer().publish_many(range(5), routing_key="orders", declare=[Queue("orders")])
        Queue("orders")(connection).get()  # stays unacknowledged
        source = source_of(managed.url, {}, management=managed.management_url)
        assert isinstance(source, ManagementSource)
        queues = read_until(source, lambda found: found.get("orders") and found["orders"].unacked == 1)
        assert (queues["orders"].ready, queues["orders"].unacked) == (4, 1)
        queues = read_until(source, lambda found: found["orders"].published is not None)
        assert queues["orders"].memory > 0


def test_wrong_password_of_the_api_is_an_error(managed):
    url = managed.url.replace("guest:guest", "guest:wrong")
    with pytest.raises(SourceError, match="401"):
        source_of(url, {}, management=managed.management_url)


def test_without_the_plugin_named_queues_are_read(amqp_url):
    with Connection(amqp_url) as connection:
        queue = Queue("monitored", durable=False, auto_delete=True)(connection)
        queue.declare()
        source = source_of(amqp_url, {}, names=["monitored", "missing"])
        assert isinstance(source, StatusSource)
        assert [(each.queue, each.ready) for each in source.read()] == [("monitored", 0)]
        source.close()
        queue.delete()
    unlisted = StatusSource(amqp_url, {})
    with pytest.raises(SourceError, match="name them"):
        unlisted.read()
    unlisted.close()
