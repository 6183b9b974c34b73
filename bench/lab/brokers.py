"""The private brokers of the lab, and what a task finds there."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle, islice
from types import TracebackType
from typing import Any

import psutil
from redis import Redis

import kombulite
from bench.lab.processes import processor_time
from bench.lab.task import EXCHANGE, KEY, Task
from tests.servers import RabbitMQServer, RedisServer, Server

FILLING = 60.0  # seconds that a broker may take until messages wait in its queues
OF_ENVELOPES = ("kombulite", "kombulite.aio", "kombu")  # clients whose messages have headers on Redis; others' are JSON
KINDS: dict[str, type[Server]] = {"redis": RedisServer, "amqp": RabbitMQServer}


class Brokers:
    """Brokers that start when they are first needed, and end with the block. Raises Unavailable for a missing one."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._servers: dict[str, Server] = {}
        self._connections: dict[str, Any] = {}
        self._queues: dict[str, list[Any]] = {}

    def __enter__(self) -> Brokers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def _server(self, transport: str) -> Server:
        if transport not in self._servers:
            server = self._stack.enter_context(KINDS[transport]())
            self._servers[transport] = server
            self._connections[transport] = self._stack.enter_context(kombulite.Connection(server.url))
        return self._servers[transport]

    def prepare(self, task: Task, processes: int = 1) -> Task:
        """Have the broker as so many processes with that task want it: fresh queues, bindings, waiting messages.

        Returns the task, with where the broker is. Raises TimeoutError if the messages do not arrive.
        """
        if task.transport not in KINDS:
            return task
        server = self._server(task.transport)
        connection = self._connections[task.transport]
        channel = connection.channel()
        for old in self._queues.pop(task.transport, ()):
            old(channel).delete()
        if task.transport == "amqp":
            channel.exchange_delete(EXCHANGE)
        exchange = kombulite.Exchange(EXCHANGE, task.kind, delivery_mode="transient")
        queues = [kombulite.Queue(name, exchange, KEY if not i else name) for i, name in enumerate(task.names)]
        if task.bindings > 1:
            queues.append(kombulite.Queue("other", exchange, "other"))
        self._queues[task.transport] = queues
        for queue in queues:
            queue(channel).declare()
        for i in range(task.bindings - 1):
            queues[-1](channel).bind_to(exchange, f"order.c{i}.x")
        if task.transport == "redis" and task.work == "consume" and task.client not in OF_ENVELOPES:
            with Redis.from_url(server.url) as client:
                client.rpush(task.names[0], *[json.dumps(task.body)] * (task.messages * processes))
        elif task.work == "consume":
            self._fill(replace(task, messages=task.messages * processes), channel, queues)
        channel.close()
        return replace(task, url=server.url)

    def _fill(self, task: Task, channel: Any, queues: list[Any]) -> None:
        producer = kombulite.Producer(channel, kombulite.Exchange("", delivery_mode="transient"))
        options = dict(task.publishing)
        if isinstance(task.body, bytes):
            options |= {"content_type": "application/data", "content_encoding": "binary"}
        with producer.batch():
            body = task.body
            for name in islice(cycle(task.names), task.messages):
                producer.publish(body, routing_key=name, **options)
        left, deadline = task.messages, time.monotonic() + FILLING
        while left:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{left} of {task.messages} messages did not arrive within {FILLING:g} s")
            time.sleep(0.02)
            left = task.messages - sum(queue(channel).queue_declare(passive=True).message_count for queue in queues)

    def cpu(self, transport: str) -> float:
        """Processor time that a broker took since it was started, in seconds; 0 for the one that is embedded."""
        server = self._servers.get(transport)
        if server is None or server.process is None:
            return 0.0
        first = psutil.Process(server.process.pid)
        return sum(processor_time(process.pid) for process in (first, *first.children(recursive=True)))
