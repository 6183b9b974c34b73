"""The topology of a connection: what it declares again after it was lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kombulite.brokers.base import ExchangeSpec, QueueSpec, Transport


class Binding(NamedTuple):
    """A binding as declared."""

    source: str
    destination: str
    routing_key: str
    arguments: Mapping[str, Any] | None
    to_exchange: bool


class Topology:
    """What was declared on a connection and may be gone with it: exclusive, auto-delete, or not durable.

    A queue that the broker named has another name after ``restore``; ``renamed`` tells.
    """

    def __init__(self) -> None:
        self._exchanges: dict[str, ExchangeSpec] = {}
        self._queues: dict[str, QueueSpec] = {}
        self._named_by_broker: set[str] = set()
        self._bindings: list[Binding] = []
        self.renamed: dict[str, str] = {}

    def declared_exchange(self, spec: ExchangeSpec) -> None:
        """Note an exchange, if it has to be declared again."""
        if spec.auto_delete or not spec.durable:
            self._exchanges[spec.name] = spec

    def declared_queue(self, spec: QueueSpec, name: str) -> None:
        """Note a queue under the name that it has now, if it has to be declared again."""
        if spec.exclusive or spec.auto_delete or not spec.durable or not spec.name:
            self._queues[name] = spec._replace(name=name)
            if not spec.name:
                self._named_by_broker.add(name)

    def bound(self, binding: Binding) -> None:
        """Note a binding of something that is noted."""
        ends = self._exchanges.keys() | ({} if binding.to_exchange else self._queues.keys())
        if (binding.source in self._exchanges or binding.destination in ends) and binding not in self._bindings:
            self._bindings.append(binding)

    def unbound(self, binding: Binding) -> None:
        """Forget a binding."""
        if binding in self._bindings:
            self._bindings.remove(binding)

    def deleted_exchange(self, name: str) -> None:
        """Forget an exchange and its bindings."""
        self._exchanges.pop(name, None)
        self._bindings = [
            each
            for each in self._bindings
            if each.source != name and not (each.to_exchange and each.destination == name)
        ]

    def deleted_queue(self, name: str) -> None:
        """Forget a queue and its bindings."""
        self._queues.pop(name, None)
        self._bindings = [each for each in self._bindings if each.to_exchange or each.destination != name]

    def last_consumer_gone(self, queue: str) -> None:
        """An auto-delete queue is gone with its last consumer."""
        spec = self._queues.get(queue)
        if spec is not None and spec.auto_delete:
            self.deleted_queue(queue)

    def __bool__(self) -> bool:
        return bool(self._exchanges or self._queues or self._bindings)

    def restore(self, transport: Transport, channel: int) -> None:
        """Declare all of it again."""
        for exchange in self._exchanges.values():
            transport.declare_exchange(channel, exchange, False)
        for name, spec in list(self._queues.items()):
            if name in self._named_by_broker:
                self._take_new_name(name, transport.declare_queue(channel, spec._replace(name=""), False).queue)
            else:
                transport.declare_queue(channel, spec, False)
        for source, destination, routing_key, arguments, to_exchange in self._bindings:
            transport.bind(channel, source, destination, routing_key, arguments, to_exchange)

    def _take_new_name(self, before: str, now: str) -> None:
        for name, known in self.renamed.items():
            if known == before:  # the restore before did not come to its end
                self.renamed[name] = now
        self.renamed[before] = now
        self._queues[now] = self._queues.pop(before)._replace(name=now)
        self._named_by_broker.discard(before)
        self._named_by_broker.add(now)
        self._bindings = [
            each if each.to_exchange or each.destination != before else each._replace(destination=now)
            for each in self._bindings
        ]


def restore_topology(transport: Transport, topology: Topology) -> None:
    """Declare again what may be gone, on a channel of its own."""
    if topology:
        number = transport.open_channel()
        topology.restore(transport, number)
        transport.close_channel(number)
