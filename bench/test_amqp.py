"""RabbitMQ: a broker of our own, kombu beside us, and other clients for orientation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any, NamedTuple

import kombu
import pytest

import kombulite
from bench import amqp_rivals
from bench.duel import Side, duel
from bench.workloads import SMALL, Place, consuming, consuming_in_batches, publishing, publishing_in_batch
from tests.servers import RabbitMQServer, Unavailable

MESSAGES = 10_000
ROUNDS = 11


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    try:
        server = RabbitMQServer()
    except Unavailable as error:
        pytest.skip(str(error))
    with server:
        yield server.url


class Broker(NamedTuple):
    """The broker as the benchmarks use it: one exchange, and a durable queue for all."""

    url: str
    admin: Any  # a queue of a connection that is not measured

    def place(self, library: Any, delivery_mode: str = "transient", **options: Any) -> Place:
        """What a library publishes to and consumes from."""
        connection = library.Connection(self.url, transport_options=options)
        channel = connection.channel()
        exchange = library.Exchange(amqp_rivals.EXCHANGE, delivery_mode=delivery_mode)
        queue = library.Queue("bench", exchange, amqp_rivals.KEY)(channel)
        return Place(library, connection, queue, library.Producer(channel, exchange, amqp_rivals.KEY))

    def rest(self) -> None:
        """Wait until the broker has done what it was given, so that it does not disturb the next."""
        before = -1
        while (count := self.admin.queue_declare(passive=True).message_count) != before:
            before = count
            time.sleep(0.05)

    def empty(self, n: int = 0) -> None:
        self.rest()
        self.admin.purge()

    def fill(self, n: int) -> None:
        """Have ``n`` messages wait."""
        self.empty()
        kombulite.Producer(self.admin.channel).publish_many(
            repeat(SMALL, n), exchange=amqp_rivals.EXCHANGE, routing_key=amqp_rivals.KEY, delivery_mode=1
        )
        while self.admin.queue_declare(passive=True).message_count < n:
            time.sleep(0.01)
        self.rest()


@pytest.fixture(scope="module")
def broker(url: str) -> Iterator[Broker]:
    with kombulite.Connection(url) as connection:
        queue = kombulite.Queue("bench", kombulite.Exchange(amqp_rivals.EXCHANGE), amqp_rivals.KEY)(connection)
        queue.declare()
        yield Broker(url, queue)


@pytest.fixture
def duel_on(benchmark: Any, broker: Broker) -> Callable[..., None]:
    """``duel`` with the broker at rest before each round."""

    def fight(work: str, ours: Side, theirs: Side, prepare: Any = None, **options: Any) -> None:
        prepare = prepare or broker.empty
        options = {"operations": MESSAGES, "rounds": ROUNDS, **options}
        duel(benchmark, work, Side(ours.run, prepare), Side(theirs.run, prepare), **options)

    return fight


# --- publishing ---------------------------------------------------------------------------------------------------


def test_publish(duel_on: Any, broker: Broker) -> None:
    sides = [publishing(broker.place(library)) for library in (kombulite, kombu)]
    duel_on("amqp publish, small dict, transient", *sides, at_least=8)


@pytest.mark.parametrize("rival", ["pika", "amqpstorm", "aio_pika", "py_amqp"])
def test_publish_beside_others(duel_on: Any, broker: Broker, rival: str) -> None:
    pytest.importorskip(rival if rival != "py_amqp" else "amqp")
    with getattr(amqp_rivals, f"{rival}_publishing")(broker.url) as theirs:
        duel_on("amqp publish, small dict", publishing(broker.place(kombulite)), theirs, rival=rival.replace("_", "-"))


def test_publish_beside_raw_socket(duel_on: Any, broker: Broker) -> None:
    with amqp_rivals.raw_publishing(broker.url) as theirs:
        ours = publishing(broker.place(kombulite))
        duel_on("amqp publish, share of the limit", ours, theirs, rival="raw socket, frames encoded before")


def test_publish_beside_c_client(duel_on: Any, broker: Broker) -> None:
    with amqp_rivals.c_client(broker.url, "publish", "bench") as theirs:
        duel_on("amqp publish", publishing(broker.place(kombulite)), theirs, rival="C client, body encoded before")


@pytest.mark.benchmark(timer=time.process_time)
def test_publish_cpu(duel_on: Any, broker: Broker) -> None:
    sides = [publishing(broker.place(library)) for library in (kombulite, kombu)]
    duel_on("amqp publish, CPU time of the client", *sides, at_least=8, timer=time.process_time)


@pytest.mark.parametrize("mode", ["persistent", "transient"])
def test_publish_confirmed(duel_on: Any, broker: Broker, mode: str) -> None:
    sides = [publishing(broker.place(library, mode, confirm_publish=True)) for library in (kombulite, kombu)]
    duel_on(f"amqp confirmed publish, one at a time, {mode}", *sides, operations=500, at_least=1.3)


@pytest.mark.parametrize("mode", ["persistent", "transient"])
def test_publish_confirmed_in_batch(duel_on: Any, broker: Broker, mode: str) -> None:
    ours = publishing_in_batch(broker.place(kombulite, mode, confirm_publish=True))
    theirs = publishing(broker.place(kombu, mode, confirm_publish=True))
    work = f"amqp confirmed publish in batch(), {mode}, beside one at a time"
    duel_on(work, ours, theirs, operations=2000, rounds=7, at_least=12)


def publishing_many_at_last(place: Place) -> Side:
    """Publish small messages with one call, without confirms, until the channel has taken all."""
    channel = place.producer.channel

    def run(n: int) -> None:
        place.producer.publish_many(repeat(SMALL, n))
        channel.flow(True)

    return Side(run)


def test_what_confirms_cost(duel_on: Any, broker: Broker) -> None:
    ours = publishing_in_batch(broker.place(kombulite, confirm_publish=True))
    theirs = publishing_many_at_last(broker.place(kombulite))
    work = "amqp confirmed publish in batch(), transient, beside one without confirms"
    duel_on(work, ours, theirs, rival="publish_many", at_least=0.85)


def test_what_confirms_cost_the_broker(duel_on: Any, broker: Broker) -> None:
    rivals = amqp_rivals.raw_publishing_many
    with rivals(broker.url, True) as confirmed, rivals(broker.url, False) as unconfirmed:
        work = "the same for a raw socket, frames encoded before: the broker's part"
        duel_on(work, confirmed, unconfirmed, rival="raw socket without confirms")


def test_publish_confirmed_in_batch_beside_raw_socket(duel_on: Any, broker: Broker) -> None:
    with amqp_rivals.raw_publishing_many(broker.url, True) as theirs:
        ours = publishing_in_batch(broker.place(kombulite, confirm_publish=True))
        work = "amqp confirmed publish in batch(), transient, share of the limit"
        duel_on(work, ours, theirs, rival="raw socket with confirms")


# --- consuming ----------------------------------------------------------------------------------------------------


def test_consume(duel_on: Any, broker: Broker) -> None:
    sides = [consuming(broker.place(library)) for library in (kombulite, kombu)]
    duel_on("amqp consume + decode + ack, prefetch 1000", *sides, prepare=broker.fill, at_least=4)


def test_consume_beside_c_client(duel_on: Any, broker: Broker) -> None:
    with amqp_rivals.c_client(broker.url, "consume", "bench") as theirs:
        ours = consuming(broker.place(kombulite))
        duel_on(
            "amqp consume + ack, prefetch 1000", ours, theirs, prepare=broker.fill, rival="C client, body not decoded"
        )


@pytest.mark.parametrize("library", [kombulite, kombu], ids=["one by one", "kombu"])
def test_consume_in_batches(duel_on: Any, broker: Broker, library: Any) -> None:
    sides = consuming_in_batches(broker.place(kombulite)), consuming(broker.place(library))
    rival = "one by one" if library is kombulite else "kombu"
    duel_on("amqp on_batch of 100, decode + ack", *sides, prepare=broker.fill, rival=rival)


def test_consume_no_ack(duel_on: Any, broker: Broker) -> None:
    sides = [consuming(broker.place(library), no_ack=True) for library in (kombulite, kombu)]
    duel_on("amqp consume + decode, no_ack", *sides, prepare=broker.fill, at_least=2.5)


@pytest.mark.benchmark(timer=time.process_time)
def test_consume_no_ack_cpu(duel_on: Any, broker: Broker) -> None:
    sides = [consuming(broker.place(library), no_ack=True) for library in (kombulite, kombu)]
    work = "amqp consume + decode, no_ack, CPU time of the client"
    duel_on(work, *sides, prepare=broker.fill, at_least=5, timer=time.process_time)
