"""What a connection goes through, and what it takes along when it is lost.

The states of a ``Connection``, each change a log record of the logger ``kombulite.connection``:

    CLOSED ──> CONNECTING ──> OPEN ──> LOST ──> CONNECTING ──> RESTORING ──> OPEN
                   │          │  ^      ^ │                        │
    CLOSED / LOST <┘          v  │      │ └──> CLOSED              └──> LOST / CLOSED
                             SUSPECT ───┘

A connection is SUSPECT when the broker owes a sign of life and half of the time is gone after which the connection is
given up: it works, or is about to be lost. It is LOST when it broke and its owner has not let it go (``release``,
``collect``). It is connected again by ``ensure_connection``, by ``drain_events``, or by whatever else needs it. Its
channels are then opened again, the same objects, with their prefetch limits and consumers, after what may be gone with
the connection was declared and bound again: what is exclusive, auto-delete or not durable. A connection that cannot be
restored as it was raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from kombulite.transport.base import ExchangeSpec, QueueSpec, Transport


class State(Enum):
    """Where a connection stands."""

    CLOSED = "closed"
    CONNECTING = "connecting"
    OPEN = "open"
    SUSPECT = "suspect"
    LOST = "lost"
    RESTORING = "restoring"


NEXT: dict[State, frozenset[State]] = {
    State.CLOSED: frozenset([State.CONNECTING]),
    State.CONNECTING: frozenset([State.OPEN, State.CLOSED, State.LOST, State.RESTORING]),
    State.OPEN: frozenset([State.SUSPECT, State.LOST, State.CLOSED]),
    State.SUSPECT: frozenset([State.OPEN, State.LOST, State.CLOSED]),
    State.LOST: frozenset([State.CONNECTING, State.CLOSED]),
    State.RESTORING: frozenset([State.OPEN, State.LOST, State.CLOSED]),
}


class Lifecycle:
    """The state of one connection."""

    def __init__(self, name: Callable[[], str]) -> None:
        self.state = State.CLOSED
        self._name = name

    def to(self, state: State, reason: object = None) -> None:
        """Change the state, and log it. To where it is already: nothing."""
        from logging import INFO, WARNING, getLogger  # slow to import, and whoever only imports us need not have it

        before = self.state
        if state is before:
            return
        if state not in NEXT[before]:
            raise AssertionError(f"a connection does not go from {before.value} to {state.value}")
        self.state = state
        logger, level = getLogger("kombulite.connection"), WARNING if state in (State.SUSPECT, State.LOST) else INFO
        if logger.isEnabledFor(level):
            name, because = self._name(), "" if reason is None else f" ({reason})"
            facts = {"connection": name, "before": before.value, "state": state.value, "reason": reason}
            logger.log(level, "%s: %s%s", name, state.value, because, extra=facts)


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
