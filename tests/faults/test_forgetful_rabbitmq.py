"""A RabbitMQ that comes back without what it had: whatever a program does next, it consumes, or it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kombulite import Connection, Consumer, Exchange, Producer, Queue, exceptions, uuid
from kombulite._client.lifecycle import State
from tests.servers import RabbitMQServer, evaluate, wait_for_connections, wait_until

#: Connections first: that of a consumer whose queue is deleted is told so, and stays. They end when they have been
#: told, and not after the 30 seconds that RabbitMQ waits for their answer.
FORGET = (
    'Readers = rabbit_networking:connections(), rabbit_networking:close_connections(Readers, "test"), '
    "lists:foreach(fun(Reader) -> exit(Reader, kill) end, Readers), Wait = fun Again() -> "
    "case rabbit_networking:connections() of [] -> ok; _ -> timer:sleep(20), Again() end end, Wait(), "
    'rabbit_vhost:delete(<<"forgetful">>, <<"test">>), '
)
CREATE = (
    'rabbit_vhost:add(<<"forgetful">>, <<"test">>), rabbit_auth_backend_internal:set_permissions('
    '<<"guest">>, <<"forgetful">>, <<".*">>, <<".*">>, <<".*">>, <<"test">>).'
)
AT_ONCE = {"max_retries": 2, "interval_start": 0, "interval_step": 0}
LOST = (exceptions.RecoverableConnectionError, OSError)


@pytest.fixture
def url(own_rabbitmq: RabbitMQServer) -> str:
    """A virtual host of the test's own."""
    evaluate(own_rabbitmq, CREATE)
    return f"{own_rabbitmq.url.rstrip('/')}/forgetful"


class Program:
    """A consumer of a queue that is bound to an exchange, and one way of going on with it."""

    def __init__(self, url: str, go_on: Callable[[Program], Any]) -> None:
        self.queue = Queue(uuid(), Exchange(uuid()), "k")
        self.got: list[Any] = []
        self.go_on = go_on
        self.connection = Connection(url)
        self.simple: Any = None
        if go_on is put:
            self.simple = self.connection.SimpleQueue(self.queue)
            assert self.simple.qsize() == 0
        self.consumer = Consumer(self.connection.channel(), self.queue, callbacks=[self.take], no_ack=True)
        self.consumer.consume()

    def take(self, body: Any, message: Any) -> None:
        self.got.append(body)

    def drain(self, timeout: float = 1) -> None:
        try:
            self.connection.drain_events(timeout=timeout)
        except TimeoutError:
            pass


def drain(program: Program) -> None:
    program.drain()


def ensure(program: Program) -> None:
    program.connection.ensure_connection(**AT_ONCE)
    program.drain(0.1)


def consume(program: Program) -> None:
    program.consumer.consume()
    program.drain(0.1)


def declare(program: Program) -> None:
    program.queue(program.connection).declare()
    program.drain(0.1)


def publish(program: Program) -> None:
    Producer(program.connection).publish("x", "elsewhere", retry=True, retry_policy=AT_ONCE)
    program.drain(0.1)


def put(program: Program) -> None:
    program.simple.put("x")
    program.drain(0.1)


def begin_anew(program: Program) -> None:
    """Let go of the connection, as a program does that makes all anew."""
    program.connection.release()
    program.consumer = Consumer(program.connection.channel(), program.queue, callbacks=[program.take], no_ack=True)
    program.consumer.consume()


def publish_to(url: str, queue: Queue) -> None:
    """Publish as a process does that declares nothing. Raises what says that nothing is bound."""
    with Connection(url) as connection:
        producer = Producer(connection, queue.exchange, "k", auto_declare=False)
        producer.publish("heard", mandatory=True)


def test_connected_means_consuming_or_it_is_raised(own_rabbitmq, url):
    programs = [Program(url, go_on) for go_on in (drain, ensure, consume, declare, publish, put, begin_anew)]
    wait_for_connections(own_rabbitmq)
    evaluate(own_rabbitmq, FORGET + CREATE)
    for program in programs:
        with program.connection:
            refusals = 0
            for _ in range(6):
                try:
                    program.go_on(program)
                except exceptions.NotFound:
                    refusals += 1
                except LOST:
                    continue
            assert bool(refusals) is (program.go_on is not begin_anew), program.go_on.__name__
            if refusals:
                assert refusals >= 4, program.go_on.__name__  # it is said each time
                assert program.connection.state is State.LOST, program.go_on.__name__
            else:
                publish_to(url, program.queue)
                wait_until(lambda: program.drain() or program.got, 20, program.go_on.__name__)  # noqa: B023
