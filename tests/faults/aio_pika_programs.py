"""The producer and the consumer of ``aio_programs.py`` on aio-pika, whose connections are the robust ones.

``python aio_pika_programs.py LIBRARY produce|consume URL QUEUE OPTIONS``, as ``programs.py`` has it.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import os
import signal
import sys
from typing import Any

import aio_pika

TRIES, PAUSE = 20, 0.5  # of a publish, and seconds between two
TIMEOUT = 10.0  # seconds for a publish and its confirm, and for a connection that is not there
ERRORS = (aio_pika.exceptions.AMQPError, OSError, RuntimeError, asyncio.TimeoutError, asyncio.InvalidStateError)


def note(number: int) -> None:
    """Write a number down; once this returns a SIGKILL does not take it back."""
    os.write(1, b"%d\n" % number)


def complain(what: object, error: Exception) -> None:
    print(what, repr(error), file=sys.stderr, flush=True)


async def declare(channel: Any, name: str, options: dict[str, Any]) -> Any:
    arguments = None if options["queue_type"] == "classic" else {"x-queue-type": options["queue_type"]}
    return await channel.declare_queue(name, durable=True, arguments=arguments, timeout=TIMEOUT)


async def publish(channel: Any, number: int, name: str) -> None:
    """Publish a number and wait for its confirm; try that again after a failure."""
    message = aio_pika.Message(json.dumps(number).encode(), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
    for left in reversed(range(TRIES)):
        try:
            sent = channel.default_exchange.publish(message, name, mandatory=False, timeout=TIMEOUT)
            await asyncio.wait_for(sent, TIMEOUT)
        except ERRORS:
            if not left:
                raise
            await asyncio.sleep(PAUSE)
        else:
            return


async def produce(connection: Any, name: str, options: dict[str, Any], stopped: asyncio.Event) -> None:
    channel = await connection.channel()
    await declare(channel, name, options)
    number = options["first"]
    while not stopped.is_set():
        try:
            await publish(channel, number, name)
        except ERRORS as error:
            complain(number, error)
        else:
            note(number)
        number += 1
        await asyncio.sleep(options["pause"])


async def consume(connection: Any, name: str, options: dict[str, Any], stopped: asyncio.Event) -> None:
    channel = await connection.channel()
    await channel.set_qos(options["prefetch"])
    queue = await declare(channel, name, options)

    async def take(message: Any) -> None:
        note(json.loads(message.body))
        try:
            await message.ack()
        except ERRORS as error:
            complain("ack", error)

    arguments = {"x-stream-offset": "first"} if options["queue_type"] == "stream" else None
    await queue.consume(take, arguments=arguments)
    await stopped.wait()


async def main(role: str, url: str, name: str, options: str) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    settings = json.loads(options)
    heartbeat = settings["connection"]["heartbeat"]
    while True:
        try:
            connection = await aio_pika.connect_robust(url, heartbeat=heartbeat, reconnect_interval=PAUSE)
            break
        except ERRORS as error:  # it was cut while it was opened
            complain("connection", error)
            await asyncio.sleep(PAUSE)
    work = {"produce": produce, "consume": consume}[role]
    try:
        await work(connection, name, settings, stopped)
    finally:
        await connection.close()


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1)  # says where it hangs
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    asyncio.run(main(*sys.argv[2:]))
