"""A process of the fault tests: it publishes or consumes numbers, and writes down each one that is done."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from kombulite import Connection, Queue


def main() -> None:
    role, url, options, log, first, count = sys.argv[1:]
    settings = json.loads(options)
    queue = Queue("numbers", durable=True)
    with Connection(url, transport_options=settings) as connection, Path(log).open("a", buffering=1) as done:
        if role == "publish":
            producer = connection.Producer()
            for number in range(int(first), int(first) + int(count)):
                producer.publish(number, routing_key="numbers", declare=[queue], retry=True)
                done.write(f"{number}\n")
            return

        def on_message(body, message):
            done.write(f"{body}\n")
            if role == "consume":  # or "hold"
                message.ack()

        with connection.Consumer([queue], callbacks=[on_message], prefetch_count=10):
            while True:
                try:
                    connection.drain_events(timeout=float(first))
                except TimeoutError:
                    if int(count):
                        return
                except connection.recoverable_connection_errors:
                    connection.ensure_connection(max_retries=20, interval_start=0.1, interval_step=0.1)


if __name__ == "__main__":
    main()
