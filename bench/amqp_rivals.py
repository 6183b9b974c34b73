"""Other clients of RabbitMQ at the work of ``bench.workloads``, each as its users would write it."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from shutil import which
from typing import Any
from urllib.parse import urlsplit

import pytest

from bench.duel import Side
from bench.workloads import SMALL
from kombulite._core import ConfirmReceived, Delivery, FrameDecoder, FrameEncoder, Properties

EXCHANGE, KEY = "bench", "order.created"
SILENCE = 30  # seconds that a broker may take for an answer
SOURCE = Path(__file__).with_name("librabbitmq.c")
PROGRAM = Path(__file__).parents[1] / "build" / "bench" / "librabbitmq"


def encoder_of(body: Any) -> Callable[[Any], Any]:
    """How a body is made ready to be sent: as JSON, unless it is bytes."""
    return bytes if isinstance(body, bytes) else json.dumps


# --- publishing ---------------------------------------------------------------------------------------------------


@contextmanager
def pika_publishing(url: str, body: Any = SMALL, confirmed: bool = False) -> Iterator[Side]:
    import pika

    encode = encoder_of(body)
    connection = pika.BlockingConnection(pika.URLParameters(url.removesuffix("/") + "%2F"))
    channel = connection.channel()
    if confirmed:
        channel.confirm_delivery()
    properties = pika.BasicProperties("application/json", "utf-8", delivery_mode=1, priority=0)

    def run(n: int) -> None:
        for _ in repeat(None, n):
            channel.basic_publish(EXCHANGE, KEY, encode(body), properties)

    yield Side(run)
    connection.close()


@contextmanager
def amqpstorm_publishing(url: str, body: Any = SMALL, confirmed: bool = False) -> Iterator[Side]:
    import amqpstorm

    encode = encoder_of(body)
    connection = amqpstorm.Connection("127.0.0.1", "guest", "guest", port=urlsplit(url).port)
    channel = connection.channel()
    if confirmed:
        channel.confirm_deliveries()
    properties = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "delivery_mode": 1,
        "priority": 0,
    }

    def run(n: int) -> None:
        for _ in repeat(None, n):
            channel.basic.publish(encode(body), KEY, EXCHANGE, properties=properties)

    yield Side(run)
    connection.close()


@contextmanager
def aio_pika_publishing(url: str, body: Any = SMALL, confirmed: bool = False) -> Iterator[Side]:
    import aio_pika

    encode = bytes if isinstance(body, bytes) else lambda body: json.dumps(body).encode()
    loop = asyncio.new_event_loop()

    async def open_exchange() -> tuple[Any, Any]:
        connection = await aio_pika.connect(url, loop=loop)
        channel = await connection.channel(publisher_confirms=confirmed)
        return connection, await channel.get_exchange(EXCHANGE, ensure=False)

    connection, exchange = loop.run_until_complete(open_exchange())

    async def publish(n: int) -> None:
        for _ in repeat(None, n):
            message = aio_pika.Message(
                encode(body),
                content_type="application/json",
                content_encoding="utf-8",
                delivery_mode=1,
                priority=0,
            )
            await exchange.publish(message, KEY)

    yield Side(lambda n: loop.run_until_complete(publish(n)))
    loop.run_until_complete(connection.close())
    loop.close()


@contextmanager
def py_amqp_publishing(url: str, body: Any = SMALL, confirmed: bool = False) -> Iterator[Side]:
    import amqp

    encode = encoder_of(body)
    connection = amqp.Connection(f"127.0.0.1:{urlsplit(url).port}", confirm_publish=confirmed)
    connection.connect()
    channel = connection.channel()

    def run(n: int) -> None:
        for _ in repeat(None, n):
            message = amqp.Message(
                encode(body),
                content_type="application/json",
                content_encoding="utf-8",
                delivery_mode=1,
                priority=0,
            )
            channel.basic_publish(message, EXCHANGE, KEY)

    yield Side(run)
    connection.close()


# --- consuming: decode and acknowledge, 1,000 under way ----------------------------------------------------------


def decoder_of(body: Any) -> Callable[[Any], Any]:
    """How a body is read that was sent like this one."""
    return bytes if isinstance(body, bytes) else json.loads


@contextmanager
def pika_consuming(url: str, queue: str, body: Any = SMALL) -> Iterator[Side]:
    import pika

    decode = decoder_of(body)
    connection = pika.BlockingConnection(pika.URLParameters(url.removesuffix("/") + "%2F"))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=1000)

    def run(n: int) -> None:
        left = n

        def callback(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            nonlocal left
            decode(body)
            channel.basic_ack(method.delivery_tag)
            left -= 1
            if not left:
                channel.stop_consuming()

        channel.basic_consume(queue, callback)
        channel.start_consuming()

    yield Side(run)
    connection.close()


@contextmanager
def amqpstorm_consuming(url: str, queue: str, body: Any = SMALL) -> Iterator[Side]:
    import amqpstorm

    decode = decoder_of(body)
    connection = amqpstorm.Connection("127.0.0.1", "guest", "guest", port=urlsplit(url).port)
    channel = connection.channel()
    channel.basic.qos(1000)

    def run(n: int) -> None:
        left = n

        def callback(message: Any) -> None:
            nonlocal left
            decode(message.body)
            message.ack()
            left -= 1
            if not left:
                channel.stop_consuming()

        channel.basic.consume(callback, queue)
        channel.start_consuming(auto_decode=False)

    yield Side(run)
    connection.close()


@contextmanager
def aio_pika_consuming(url: str, queue: str, body: Any = SMALL) -> Iterator[Side]:
    import aio_pika

    decode = decoder_of(body)
    loop = asyncio.new_event_loop()

    async def open_queue() -> tuple[Any, Any]:
        connection = await aio_pika.connect(url, loop=loop)
        channel = await connection.channel()
        await channel.set_qos(1000)
        return connection, await channel.get_queue(queue, ensure=False)

    connection, source = loop.run_until_complete(open_queue())

    async def consume(n: int) -> None:
        left, done = n, loop.create_future()

        async def callback(message: Any) -> None:
            nonlocal left
            decode(message.body)
            await message.ack()
            left -= 1
            if not left:
                done.set_result(None)

        await source.consume(callback)
        await done

    yield Side(lambda n: loop.run_until_complete(consume(n)))
    loop.run_until_complete(connection.close())
    loop.close()


@contextmanager
def py_amqp_consuming(url: str, queue: str, body: Any = SMALL) -> Iterator[Side]:
    import amqp

    decode = decoder_of(body)
    connection = amqp.Connection(f"127.0.0.1:{urlsplit(url).port}")
    connection.connect()
    channel = connection.channel()
    channel.basic_qos(0, 1000, False)

    def run(n: int) -> None:
        left = n

        def callback(message: Any) -> None:
            nonlocal left
            decode(message.body)
            channel.basic_ack(message.delivery_tag)
            left -= 1

        channel.basic_consume(queue, callback=callback)
        while left:
            connection.drain_events(timeout=5)

    yield Side(run)
    connection.close()


# --- limits -------------------------------------------------------------------------------------------------------


def _send_and_read(sock: socket.socket, decoder: FrameDecoder, data: bytes, signature: tuple[int, int]) -> None:
    sock.sendall(data)
    while True:
        while (event := decoder.next_event()) is not None:
            if event.signature == signature:  # type: ignore[union-attr]
                return
        decoder.receive_data(_received(sock))


def _received(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    if not data:
        raise AssertionError("the broker closed the connection")
    return data


@contextmanager
def raw_channel(url: str) -> Iterator[tuple[socket.socket, FrameDecoder, bytes]]:
    """A socket with channel 1 open, what reads its frames, and the frames of one message."""
    encoder, decoder = FrameEncoder(), FrameDecoder()
    sock = socket.create_connection(("127.0.0.1", urlsplit(url).port or 5672))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _send_and_read(sock, decoder, b"AMQP\x00\x00\x09\x01", (10, 10))
    start_ok = b"\0\0\0\0" + b"\x05PLAIN" + b"\0\0\0\x0c\0guest\0guest" + b"\x05en_US"
    _send_and_read(sock, decoder, encoder.method(0, 10, 11, start_ok), (10, 30))
    tune_ok = encoder.method(0, 10, 31, b"\x07\xff\x00\x02\x00\x00\x00\x00")
    _send_and_read(sock, decoder, tune_ok + encoder.method(0, 10, 40, b"\x01/\x00\x00"), (10, 41))
    _send_and_read(sock, decoder, encoder.method(1, 20, 10, b"\x00"), (20, 11))
    body = json.dumps(SMALL).encode()
    with sock:
        properties = Properties("application/json", "utf-8", None, 1, 0)
        yield sock, decoder, encoder.publish(1, Delivery(EXCHANGE, KEY, properties, body))


@contextmanager
def raw_publishing(url: str) -> Iterator[Side]:
    """The limit: a socket, and the frames of one message encoded beforehand, one ``send`` for each."""
    with raw_channel(url) as (sock, _, frames):

        def run(n: int) -> None:
            send = sock.send
            for _ in repeat(None, n):
                if send(frames) != len(frames):
                    raise AssertionError("sent in part")

        yield Side(run)


@contextmanager
def raw_publishing_many(url: str, confirmed: bool) -> Iterator[Side]:
    """The limit of batches: 1,000 messages encoded beforehand, all of them sent before the next 1,000.

    ``confirmed``: when they are confirmed; else when all are sent, and the channel has answered behind the last.
    """
    with raw_channel(url) as (sock, decoder, frames):
        sock.settimeout(SILENCE)
        if confirmed:
            _send_and_read(sock, decoder, FrameEncoder().method(1, 85, 10, b"\x00"), (85, 11))
        flow = FrameEncoder().method(1, 20, 20, b"\x01")
        sent = 0

        def send_confirmed(n: int) -> None:
            nonlocal sent
            for size in [1000] * (n // 1000) + [n % 1000]:
                waiting = set(range(sent + 1, sent + size + 1))
                sent += size
                sock.sendall(frames * size)
                while waiting:
                    while (event := decoder.next_event()) is not None:
                        assert isinstance(event, ConfirmReceived)
                        tag = event.delivery_tag
                        waiting -= {each for each in waiting if each <= tag} if event.multiple else {tag}
                    if waiting:
                        decoder.receive_data(_received(sock))

        def send_all(n: int) -> None:
            for size in [1000] * (n // 1000) + [n % 1000]:
                sock.sendall(frames * size)
            _send_and_read(sock, decoder, flow, (20, 21))

        yield Side(send_confirmed if confirmed else send_all)


class Missing(Exception):
    """The C client cannot be built."""


def c_client_command(url: str, queue: str) -> list[str]:
    """Build the RabbitMQ C client; returns how it is started. Raises Missing."""
    compiler = which("cc") or which("gcc")
    if compiler is None:
        raise Missing("no C compiler")
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    built = subprocess.run([compiler, "-O2", "-o", PROGRAM, SOURCE, "-lrabbitmq"], capture_output=True, check=False)
    if built.returncode:
        raise Missing("the headers of the RabbitMQ C client (librabbitmq-dev) are not installed")
    return [str(PROGRAM), str(urlsplit(url).port), EXCHANGE, KEY, queue, json.dumps(SMALL)]


@contextmanager
def c_client(url: str, work: str, queue: str, prepare: Any = lambda n: None) -> Iterator[Side]:
    """The RabbitMQ C client, in a process of its own. ``work``: ``publish`` or ``consume``."""
    try:
        command = c_client_command(url, queue)
    except Missing as error:
        pytest.skip(str(error))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:

        def run(n: int) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{work} {n}\n")
            process.stdin.flush()
            if process.stdout.readline() != "done\n":
                raise AssertionError("the C client failed")

        yield Side(run, prepare)
        assert process.stdin is not None
        process.stdin.close()
