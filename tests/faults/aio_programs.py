"""A producer and a consumer on an event loop, as a careful user of ``kombulite.aio`` writes them.

``python aio_programs.py LIBRARY produce|consume URL QUEUE OPTIONS``, as ``programs.py`` has it.
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

from kombulite import Queue, aio, exceptions

POLICY = {"max_retries": 20, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.5}
TIMEOUT = 10.0  # seconds for a publish, and for its confirm
TURN = 0.2  # seconds after which a consumer looks whether it shall end
ERRORS = (exceptions.AMQPError, exceptions.OperationalError, OSError, TimeoutError)


def note(number: int) -> None:
    """Write a number down; once this returns a SIGKILL does not take it back."""
    os.write(1, b"%d\n" % number)


def complain(what: object, error: Exception) -> None:
    print(what, repr(error), file=sys.stderr, flush=True)


async def produce(connection: aio.Connection, queue: Queue, options: dict[str, Any], stopped: asyncio.Event) -> None:
    producer = connection.producer(serializer="json")
    number = options["first"]
    while not stopped.is_set():
        try:
            await producer.publish(
                number, queue.name, declare=[queue], timeout=TIMEOUT, retry=True, retry_policy=POLICY
            )
        except ERRORS as error:
            complain(number, error)
        else:
            note(number)
        number += 1
        await asyncio.sleep(options["pause"])


async def consume(connection: aio.Connection, queue: Queue, options: dict[str, Any], stopped: asyncio.Event) -> None:
    messages = connection.consume(queue, prefetch=options["prefetch"])  # one: in a stream it goes on where it was
    while not stopped.is_set():
        try:
            async with messages:
                while not stopped.is_set():
                    message = await messages.next(timeout=TURN)
                    if message is not None:
                        note(message.decode())
                        await message.ack()
        except ERRORS as error:
            complain("consumer", error)
            await asyncio.sleep(0.1)


async def main(role: str, url: str, name: str, options: str) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    settings = json.loads(options)
    arguments: dict[str, Any] = {}
    if settings["queue_type"] != "classic":
        arguments["queue_arguments"] = {"x-queue-type": settings["queue_type"]}
    if settings["queue_type"] == "stream":
        arguments["consumer_arguments"] = {"x-stream-offset": "first"}
    connection = aio.connect(url, **settings["connection"])
    try:
        work = {"produce": produce, "consume": consume}[role]
        await work(connection, Queue(name, **arguments), settings, stopped)
    finally:
        await connection.close()


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1)  # says where it hangs
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    asyncio.run(main(*sys.argv[2:]))
