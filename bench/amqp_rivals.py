"""Other clients of RabbitMQ at the work of ``bench.workloads``, each as its users would write it."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from shutil import which
from typing import Any
from urllib.parse import urlsplit

import pytest

from bench.duel import Side
from bench.workloads import SMALL
from kombulite._core import Delivery, FrameDecoder, FrameEncoder, Properties

EXCHANGE, KEY = "bench", "order.created"
SOURCE = Path(__file__).with_name("librabbitmq.c")
PROGRAM = Path(__file__).parents[1] / "build" / "bench" / "librabbitmq"


@contextmanager
def pika_publishing(url: str) -> Iterator[Side]:
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(url.removesuffix("/") + "%2F"))
    channel = connection.channel()
    properties = pika.BasicProperties("application/json", "utf-8", delivery_mode=1, priority=0)

    def run(n: int) -> None:
        for _ in repeat(None, n):
            channel.basic_publish(EXCHANGE, KEY, json.dumps(SMALL), properties)

    yield Side(run)
    connection.close()


@contextmanager
def amqpstorm_publishing(url: str) -> Iterator[Side]:
    import amqpstorm

    connection = amqpstorm.Connection("127.0.0.1", "guest", "guest", port=urlsplit(url).port)
    channel = connection.channel()
    properties = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "delivery_mode": 1,
        "priority": 0,
    }

    def run(n: int) -> None:
        for _ in repeat(None, n):
            channel.basic.publish(json.dumps(SMALL), KEY, EXCHANGE, properties=properties)

    yield Side(run)
    connection.close()


@contextmanager
def aio_pika_publishing(url: str) -> Iterator[Side]:
    import aio_pika

    loop = asyncio.new_event_loop()

    async def open_exchange() -> tuple[Any, Any]:
        connection = await aio_pika.connect(url, loop=loop)
        channel = await connection.channel(publisher_confirms=False)
        return connection, await channel.get_exchange(EXCHANGE, ensure=False)

    connection, exchange = loop.run_until_complete(open_exchange())

    async def publish(n: int) -> None:
        for _ in repeat(None, n):
            message = aio_pika.Message(
                json.dumps(SMALL).encode(),
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
def py_amqp_publishing(url: str) -> Iterator[Side]:
    import amqp

    connection = amqp.Connection(f"127.0.0.1:{urlsplit(url).port}")
    connection.connect()
    channel = connection.channel()

    def run(n: int) -> None:
        for _ in repeat(None, n):
            message = amqp.Message(
                json.dumps(SMALL),
                content_type="application/json",
                content_encoding="utf-8",
                delivery_mode=1,
                priority=0,
            )
            channel.basic_publish(message, EXCHANGE, KEY)

    yield Side(run)
    connection.close()


def _send_and_read(sock: socket.socket, decoder: FrameDecoder, data: bytes, signature: tuple[int, int]) -> None:
    sock.sendall(data)
    while True:
        while (event := decoder.next_event()) is not None:
            if event.signature == signature:  # type: ignore[union-attr]
                return
        decoder.receive_data(sock.recv(65536))


@contextmanager
def raw_publishing(url: str) -> Iterator[Side]:
    """The limit: a socket, and the frames of one message encoded beforehand, one ``send`` for each."""
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
    frames = encoder.publish(1, Delivery(EXCHANGE, KEY, Properties("application/json", "utf-8", None, 1, 0), body))

    def run(n: int) -> None:
        send = sock.send
        for _ in repeat(None, n):
            if send(frames) != len(frames):
                raise AssertionError("sent in part")

    yield Side(run)
    sock.close()


@contextmanager
def c_client(url: str, work: str, queue: str, prepare: Any = lambda n: None) -> Iterator[Side]:
    """The RabbitMQ C client, in a process of its own. ``work``: ``publish`` or ``consume``."""
    compiler = which("cc") or which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    built = subprocess.run([compiler, "-O2", "-o", PROGRAM, SOURCE, "-lrabbitmq"], capture_output=True, check=False)
    if built.returncode:
        pytest.skip("the headers of the RabbitMQ C client (librabbitmq-dev) are not installed")
    command = [str(PROGRAM), str(urlsplit(url).port), EXCHANGE, KEY, queue, json.dumps(SMALL)]
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
