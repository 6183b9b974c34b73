"""Metrics for Prometheus (extra ``prometheus``).

CountersCollector()              # exposes the counters of all connections; costs nothing until somebody scrapes
add_hook(TimingHook())           # how long publishing and callbacks take, and how they end
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from weakref import ref

from prometheus_client import REGISTRY, CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from kombulite._client.counters import Counters
from kombulite._core import CounterBlock
from kombulite.connection import Connection, watch_connections
from kombulite.hooks import Hook, Outgoing
from kombulite.message import Message
from kombulite.utils.locks import Lock

__all__ = ["CountersCollector", "TimingHook"]

#: What each of the counters is, as the scraper is told.
HELP = {
    "published": "Messages handed to the broker",
    "confirmed": "Messages that the broker said it has",
    "returned": "Mandatory messages that came back",
    "consumed": "Messages handed to the application",
    "redelivered": "Messages handed to the application that may have been delivered before",
    "acked": "Acknowledgements",
    "rejected": "Messages rejected by their consumers",
    "requeued": "Messages put back into their queues",
    "reconnects": "Times that a connection came back after it was lost",
    "bytes_sent": "Bytes in the bodies of published messages",
    "bytes_received": "Bytes in the bodies of consumed messages",
}

Labels = tuple[str, str]  # transport, broker
ZERO = Counters(*[0] * len(Counters._fields))


class CountersCollector(Collector):
    """Collector of the counters of all connections of the process, existing and later ones.

    Counters of one broker are added up, and stay when its connections are closed. Labels are ``transport`` and
    ``broker``: host, port and virtual host where the connection is, or will be, when the collector first sees it.

    Args:
        registry: Registry to add the collector to (None: it is not added).
    """

    def __init__(self, registry: CollectorRegistry | None = REGISTRY) -> None:
        self._lock = Lock()
        self._watched: list[tuple[ref[Connection], CounterBlock, Labels]] = []
        self._gone: dict[Labels, Counters] = {}  # of connections that were collected
        self._pid = os.getpid()
        watch_connections(self._watch)
        if registry is not None:
            registry.register(self)

    def _watch(self, connection: Connection) -> None:
        try:
            kind = connection._transport_class.driver_type
        except Exception:  # it cannot be loaded: whoever connects is told
            kind = str(connection.transport_cls)
        labels = (kind, _broker_of(connection))
        with self._lock:
            self._totals()  # forgets those that are gone
            self._watched.append((ref(connection), connection.session.tally, labels))

    def _totals(self) -> dict[Labels, Counters]:
        if self._pid != os.getpid():  # a forked child counts anew
            self._pid, self._gone = os.getpid(), {}
        watched, self._watched = self._watched, []
        totals: dict[Labels, Counters] = {}
        for connection, tally, labels in watched:
            is_gone = connection() is None  # asked before its numbers are read: then they are the last
            counters = Counters(*tally.values())
            if is_gone:
                self._gone[labels] = _sum(self._gone.get(labels, ZERO), counters)
            else:
                self._watched.append((connection, tally, labels))
                totals[labels] = _sum(totals.get(labels, ZERO), counters)
        for labels, counters in self._gone.items():
            totals[labels] = _sum(totals.get(labels, ZERO), counters)
        return totals

    def describe(self) -> Iterator[CounterMetricFamily]:
        """Return the metrics without numbers."""
        for name in Counters._fields:
            yield CounterMetricFamily(f"kombulite_{name}", HELP[name], labels=("transport", "broker"))

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Return the metrics as they are now."""
        with self._lock:
            totals = self._totals()
        for family, name in zip(self.describe(), Counters._fields, strict=True):
            for labels, counters in totals.items():
                family.add_metric(labels, getattr(counters, name))
            yield family


def _sum(one: Counters, other: Counters) -> Counters:
    return Counters(*map(sum, zip(one, other, strict=True)))


def _broker_of(connection: Connection) -> str:
    port = f":{connection.port}" if connection.port else ""
    return f"{connection.hostname or 'localhost'}{port}/{(connection.virtual_host or '').lstrip('/')}"


class TimingHook(Hook):
    """Hook with the histograms ``kombulite_publish_seconds`` and ``kombulite_consume_seconds``.

    Labels are ``transport`` and ``outcome``. The outcome of a publish is ``ok`` or the name of the error's class;
    messages that are sent together count as one. The outcome of a callback is ``ack``, ``rejected``, ``requeued``,
    ``received`` for a message that is not settled yet, or the name of the error's class.

    Args:
        registry: Registry to add the histograms to.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        labels = ("transport", "outcome")
        self._publish = Histogram("kombulite_publish_seconds", "Publishing", labels, registry=registry)
        self._consume = Histogram("kombulite_consume_seconds", "Decoding and callbacks", labels, registry=registry)

    @contextmanager
    def publish(self, outgoing: Outgoing) -> Iterator[None]:
        """Time the publishing of one message.

        Args:
            outgoing: The message.
        """
        with self._timed(self._publish, outgoing.connection) as outcome:
            yield
            outcome.append("ok")

    @contextmanager
    def publish_many(self, outgoing: Sequence[Outgoing]) -> Iterator[None]:
        """Time the sending of messages.

        Args:
            outgoing: The messages.
        """
        with self._timed(self._publish, outgoing[0].connection) as outcome:
            yield
            refused = [type(each.error).__name__ for each in outgoing if each.error is not None]
            outcome.append(refused[0] if refused else "ok")

    @contextmanager
    def consume(self, message: Message, queue: str) -> Iterator[None]:
        """Time a callback.

        Args:
            message: The message.
            queue: Name of the queue.
        """
        with self._timed(self._consume, message.channel.connection) as outcome:
            yield
            outcome.append(message.state.lower())

    @contextmanager
    def _timed(self, histogram: Histogram, connection: Connection) -> Iterator[list[str]]:
        outcome: list[str] = []
        start = perf_counter()
        try:
            yield outcome
        except BaseException as error:
            outcome.append(type(error).__name__)
            raise
        finally:
            transport = connection._transport_class.driver_type
            histogram.labels(transport, outcome[0]).observe(perf_counter() - start)
