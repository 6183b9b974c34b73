"""The topology of a connection: what it declares again after it was lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kombulite.brokers.base import ExchangeSpec, QueueSpec, Transport
from kombulite.utils.records import NamedTuple


class Step:
    """A verb of a transport with its arguments behind the channel; whoever performs it sets the answer."""

    __slots__ = ("answer", "arguments", "verb")

    def __init__(self, verb: str, *arguments: Any) -> None:
        self.verb = verb
        self.arguments = arguments
        self.answer: Any = None


class Binding(NamedTuple):
    """A binding as declared."""

    source: str
    destination: str
    routing_key: str
    arguments: Mapping[str, Any] | None
    to_exchange: bool

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from others; the order of arguments does not."""
        arguments = tuple(sorted((name, repr(value)) for name, value in (self.arguments or {}).items()))
        return self.source, self.destination, self.routing_key, self.to_exchange, arguments


class Topology:
    """What was declared on a connection.

    A broker keeps durable entities, so after a loss only the others are declared again: those that are exclusive,
    auto-delete, not durable, or that expire. A broker that may forget durable ones too
    (``Capabilities.keeps_durable``), or another broker, needs all of them.

    A queue that the broker named has another name after ``restore``; ``renamed`` tells.
    """

    def __init__(self) -> None:
        self._exchanges: dict[str, ExchangeSpec] = {}
        self._queues: dict[str, QueueSpec] = {}
        self._named_by_broker: set[str] = set()
        self._bindings: dict[tuple[Any, ...], Binding] = {}
        self.renamed: dict[str, str] = {}
        #: The address of the broker that has all of it, None as long as there is none.
        self.place: Any = None

    def declared_exchange(self, spec: ExchangeSpec) -> None:
        """Note an exchange."""
        self._exchanges[spec.name] = spec

    def declared_queue(self, spec: QueueSpec, name: str) -> None:
        """Note a queue under the name that it has now."""
        self._queues[name] = spec._replace(name=name)
        if not spec.name:
            self._named_by_broker.add(name)

    def bound(self, binding: Binding) -> None:
        """Note a binding."""
        self._bindings[binding.key] = binding

    def unbound(self, binding: Binding) -> None:
        """Forget a binding."""
        self._bindings.pop(binding.key, None)

    def deleted_exchange(self, name: str) -> None:
        """Forget an exchange and its bindings."""
        self._exchanges.pop(name, None)
        self._bindings = {
            key: each
            for key, each in self._bindings.items()
            if each.source != name and not (each.to_exchange and each.destination == name)
        }

    def deleted_queue(self, name: str) -> None:
        """Forget a queue and its bindings."""
        self._queues.pop(name, None)
        self._named_by_broker.discard(name)
        self._bindings = {
            key: each for key, each in self._bindings.items() if each.to_exchange or each.destination != name
        }

    def last_consumer_gone(self, queue: str) -> None:
        """Note that an auto-delete queue was deleted with its last consumer."""
        spec = self._queues.get(queue)
        if spec is not None and spec.auto_delete:
            self.deleted_queue(queue)

    def note(self, step: Step) -> None:
        """Note a step that was performed, if it declares or binds something."""
        if step.verb == "declare_queue" and not step.arguments[1]:
            self.declared_queue(step.arguments[0], step.answer.queue)
        elif step.verb == "declare_exchange" and not step.arguments[1]:
            self.declared_exchange(step.arguments[0])
        elif step.verb == "bind":
            self.bound(Binding(*step.arguments))

    def needs_restoring(self, everything: bool) -> bool:
        """Whether something has to be declared again: ``everything``, or what may be gone with a connection."""
        if everything:
            return bool(self._exchanges or self._queues or self._bindings)
        return any(map(_may_be_gone, self._exchanges.values())) or any(map(self._may_queue_be_gone, self._queues))

    def _may_queue_be_gone(self, name: str) -> bool:
        spec = self._queues[name]
        expires = "x-expires" in (spec.arguments or {})
        return spec.exclusive or expires or name in self._named_by_broker or _may_be_gone(spec)

    def restoring(self, everything: bool) -> Iterator[Step]:
        """Declare again what may be gone with a connection, or ``everything``."""
        exchanges = [spec for spec in self._exchanges.values() if everything or _may_be_gone(spec)]
        for exchange in exchanges:
            yield Step("declare_exchange", exchange, False)
        queues = [name for name in self._queues if everything or self._may_queue_be_gone(name)]
        restored = set()
        for name in queues:
            spec, is_named_by_broker = self._queues[name], name in self._named_by_broker
            step = Step("declare_queue", spec._replace(name="") if is_named_by_broker else spec, False)
            yield step
            if is_named_by_broker:
                self._take_new_name(name, step.answer.queue)
            restored.add(step.answer.queue)
        sources = {spec.name for spec in exchanges}
        for binding in list(self._bindings.values()):
            destinations = sources if binding.to_exchange else restored
            if everything or binding.source in sources or binding.destination in destinations:
                yield Step("bind", *binding)

    def _take_new_name(self, before: str, now: str) -> None:
        for name, known in self.renamed.items():
            if known == before:  # the restore before did not come to its end
                self.renamed[name] = now
        self.renamed[before] = now
        self._queues[now] = self._queues.pop(before)._replace(name=now)
        self._named_by_broker.discard(before)
        self._named_by_broker.add(now)
        bindings = [
            each if each.to_exchange or each.destination != before else each._replace(destination=now)
            for each in self._bindings.values()
        ]
        self._bindings = {each.key: each for each in bindings}


def _may_be_gone(spec: ExchangeSpec | QueueSpec) -> bool:
    return spec.auto_delete or not spec.durable


def restore_topology(transport: Transport, topology: Topology, everything: bool) -> None:
    """Declare again what may be gone with a connection, or ``everything``, on a channel of its own."""
    if topology.needs_restoring(everything):
        number = transport.open_channel()
        for step in topology.restoring(everything):
            step.answer = getattr(transport, step.verb)(number, *step.arguments)
        transport.close_channel(number)
