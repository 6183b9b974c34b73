"""What a monitor read in the last minutes, and the metrics of its last reading."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from time import time
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from kombulite.cli.monitor import BrokerReading, Monitor, QueueReading

MAX_READINGS = 300  # of each queue
MAX_POINTS = 300_000  # of all queues together: the more there are, the shorter is the past of each

#: The columns that become gauges, and what each means.
GAUGES = {
    "ready": "Messages that wait",
    "unacked": "Messages that are delivered and not settled",
    "consumers": "Consumers",
    "published": "Messages that come in per second",
    "delivered": "Messages that go out per second",
    "redelivered": "Messages that go out again per second",
    "oldest": "Age of the message at the head in seconds",
    "memory": "Bytes that the broker keeps in memory",
}


class History(Collector):
    """Reads a monitor at an interval and keeps what it found; it is a Prometheus collector too."""

    def __init__(self, monitor: Monitor, interval: float) -> None:
        self._monitor = monitor
        self._interval = interval
        self._last: Sequence[BrokerReading] = ()
        self._times: deque[float] = deque()
        self._past: deque[list[dict[str, int]]] = deque()  # what was ready in each queue, by broker
        self._points = 0

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            reading = asyncio.ensure_future(asyncio.to_thread(self._monitor.read))
            try:
                self.add(await asyncio.shield(reading), time())
            except asyncio.CancelledError:
                await asyncio.wait([reading])  # the thread uses the monitor still, which is closed next
                raise
            await asyncio.sleep(self._interval)

    def add(self, readings: Sequence[BrokerReading], when: float) -> None:
        """Keep a reading, taken at a time in seconds since 1970."""
        self._last = readings
        self._times.append(when)
        self._past.append([{queue.queue: queue.ready for queue in broker.queues} for broker in readings])
        self._points += sum(map(len, self._past[-1]))
        while len(self._past) > 1 and (len(self._past) > MAX_READINGS or self._points > MAX_POINTS):
            self._times.popleft()
            self._points -= sum(map(len, self._past.popleft()))

    def as_dict(self) -> dict[str, Any]:
        """Return the last reading of each broker, with what was ready in each queue before, for JSON."""
        return {
            "times": list(self._times),
            "brokers": [
                {
                    "broker": broker.broker,
                    "error": broker.error,
                    "queues": [
                        {**queue._asdict(), "history": [each[number].get(queue.queue) for each in self._past]}
                        for queue in broker.queues
                    ],
                }
                for number, broker in enumerate(self._last)
            ],
        }

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return the gauges of the last reading, and ``kombulite_broker_up`` of each broker."""
        last = self._last
        up = GaugeMetricFamily("kombulite_broker_up", "Whether the broker can be read", labels=["broker"])
        for broker in last:
            up.add_metric([broker.broker], float(broker.error is None))
        yield up
        for name, meaning in GAUGES.items():
            gauge = GaugeMetricFamily(f"kombulite_queue_{name}", meaning, labels=["broker", "queue"])
            for broker in last:
                for queue in broker.queues:
                    _add(gauge, broker, queue, name)
            yield gauge


def _add(gauge: GaugeMetricFamily, broker: BrokerReading, queue: QueueReading, name: str) -> None:
    value = getattr(queue, name)
    if value is not None:
        gauge.add_metric([broker.broker, queue.queue], float(value))
