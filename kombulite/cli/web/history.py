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
        self._times: deque[float] = deque(maxlen=MAX_READINGS)
        self._readings: deque[Sequence[BrokerReading]] = deque(maxlen=MAX_READINGS)

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            self.add(await asyncio.to_thread(self._monitor.read), time())
            await asyncio.sleep(self._interval)

    def add(self, readings: Sequence[BrokerReading], when: float) -> None:
        """Keep a reading, taken at a time in seconds since 1970."""
        self._times.append(when)
        self._readings.append(readings)

    def as_dict(self) -> dict[str, Any]:
        """Return the last reading of each broker, with what was ready in each queue before, for JSON."""
        if not self._readings:
            return {"times": [], "brokers": []}
        past = [
            [{queue.queue: queue.ready for queue in broker.queues} for broker in readings]
            for readings in self._readings
        ]
        return {
            "times": list(self._times),
            "brokers": [
                {
                    "broker": broker.broker,
                    "error": broker.error,
                    "queues": [
                        {**queue._asdict(), "history": [each[number].get(queue.queue) for each in past]}
                        for queue in broker.queues
                    ],
                }
                for number, broker in enumerate(self._readings[-1])
            ],
        }

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return the gauges of the last reading, and ``kombulite_broker_up`` of each broker."""
        last = self._readings[-1] if self._readings else ()
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
