"""A producer and a consumer as a careful user of kombu's API writes them, on the library that is named.

``python programs.py LIBRARY produce|consume URL QUEUE OPTIONS``; the options are JSON: ``connection`` (arguments of
``Connection``), ``first`` (a producer's first number), ``pause`` (seconds between messages), ``prefetch``,
``queue_type`` (one of RabbitMQ's: classic, quorum, or stream, which is read from its first message). They write the
numbers that were confirmed, or consumed, to standard output, each as a line of its own and before anything else
happens. SIGTERM asks them to end.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import logging
import os
import signal
import sys
import time
from threading import Event
from typing import Any

POLICY = {"max_retries": 20, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.5}
TIMEOUT = 10.0  # seconds for a publish, and for its confirm

stopped = Event()


def note(number: int) -> None:
    """Write a number down; once this returns a SIGKILL does not take it back."""
    os.write(1, b"%d\n" % number)


def produce(library: Any, connection: Any, queue: Any, options: dict[str, Any]) -> None:
    operational_error = importlib.import_module(f"{library.__name__}.exceptions").OperationalError
    with connection:
        producer = connection.Producer(serializer="json")
        number = options["first"]
        while not stopped.is_set():
            try:
                producer.publish(
                    number,
                    routing_key=queue.name,
                    declare=[queue],
                    retry=True,
                    retry_policy=POLICY,
                    timeout=TIMEOUT,
                    confirm_timeout=TIMEOUT,
                )
            except (*connection.connection_errors, *connection.channel_errors, operational_error) as error:
                print(number, repr(error), file=sys.stderr, flush=True)
            else:
                note(number)
            number += 1
            time.sleep(options["pause"])


def consume(library: Any, connection: Any, queue: Any, options: dict[str, Any]) -> None:
    mixins = importlib.import_module(f"{library.__name__}.mixins")

    class Taker(mixins.ConsumerMixin):
        connect_max_retries = None

        def __init__(self) -> None:
            self.connection = connection

        @property
        def should_stop(self) -> bool:
            return stopped.is_set()

        def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
            return [consumer(queues=[queue], on_message=self.take, prefetch_count=options["prefetch"])]

        def take(self, message: Any) -> None:
            note(message.decode())
            message.ack()

    Taker().run()


def main(name: str, role: str, url: str, queue: str, options: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    faulthandler.register(signal.SIGUSR1)  # says where it hangs
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    library = importlib.import_module(name)
    settings = json.loads(options)
    work = {"produce": produce, "consume": consume}[role]
    arguments: dict[str, Any] = {}
    if settings["queue_type"] != "classic":
        arguments["queue_arguments"] = {"x-queue-type": settings["queue_type"]}
    if settings["queue_type"] == "stream":
        arguments["consumer_arguments"] = {"x-stream-offset": "first"}
    work(library, library.Connection(url, **settings["connection"]), library.Queue(queue, **arguments), settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
