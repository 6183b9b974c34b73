"""RabbitMQ 4 whose operator refuses transient queues: what kombulite declares for itself does not need them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from kombulite import Connection, Exchange, Queue, aio
from kombulite.common import Broadcast
from kombulite.exceptions import InternalError
from kombulite.pidbox import Mailbox
from kombulite.simple import SimpleBuffer
from tests.conftest import missing
from tests.servers import RabbitMQServer, Unavailable, version

TIMEOUT = 20.0  # seconds
REFUSED = {"deprecated_features.permit.transient_nonexcl_queues": "false"}


@pytest.fixture(scope="module")
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    try:
        if int(version("rabbitmqctl").split(".")[0]) < 4:
            pytest.skip("RabbitMQ 3 refuses no queue for being transient")
    except Unavailable as error:
        missing(request, str(error))
    with RabbitMQServer(REFUSED) as server:
        yield server.url


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    with Connection(url) as connection:
        yield connection


def test_transient_queues_are_refused_there(connection):
    with pytest.raises(InternalError, match="transient_nonexcl_queues"):
        Queue("transient", durable=False)(connection.channel()).declare()


def test_remote_control(connection, url):
    mailbox = Mailbox("shop", connection=connection)
    with Connection(url) as theirs:
        node = mailbox.Node("till", state={}, channel=theirs.channel(), handlers={"ping": lambda state: "pong"})
        node.listen()
        replies: list[object] = []
        channel = connection.channel()
        reply_queue = mailbox.reply_queue(channel)
        with connection.Consumer(reply_queue, callbacks=[lambda body, message: replies.append(body)], no_ack=True):
            mailbox.multi_call("ping", timeout=0, channel=channel)
            theirs.drain_events(timeout=TIMEOUT)
            while not replies:
                connection.drain_events(timeout=TIMEOUT)
    assert replies == [{"till": "pong"}]


def test_buffers_and_broadcasts(connection):
    with SimpleBuffer(connection.channel(), "buffer") as buffer:
        buffer.put("x")
        assert buffer.get(timeout=TIMEOUT).payload == "x"
    everybody = Broadcast("everybody")(connection.channel())
    everybody.declare()
    connection.Producer().publish("y", exchange=Exchange("everybody", "fanout"))
    message = everybody.get()
    assert message is not None
    assert message.payload == "y"


def test_calls(url):
    async def main() -> object:
        async with aio.connect(url) as connection:
            await connection.declare(Queue("work"))

            async def serve() -> None:
                async with connection.consume(Queue("work")) as messages:
                    async for message in messages:
                        async with message.process():
                            await connection.reply(message, "done")

            server = asyncio.create_task(serve())
            try:
                return (await connection.call("do", "work", timeout=TIMEOUT)).payload
            finally:
                server.cancel()

    assert asyncio.run(asyncio.wait_for(main(), 2 * TIMEOUT)) == "done"
