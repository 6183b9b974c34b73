"""What one connection has declared, and which of it ends when it is not used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kombulite.brokers.base import QueueSpec
from kombulite.brokers.redis.deadlines import EXCLUSIVE_LIFE, Deadlines, is_shared, life_of
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.options import Limits
from kombulite.brokers.redis.plans import Command


class Declared:
    """Queues with their limits and bindings, as declared on one connection."""

    def __init__(self, keys: Keys, deadlines: Deadlines) -> None:
        self._keys = keys
        self._deadlines = deadlines
        self.queues: dict[str, QueueSpec] = {}
        self.limits: dict[str, Limits] = {}
        self.bindings: dict[str, dict[tuple[str, str], str]] = {}  # queue -> (exchange, routing key) -> type

    def ends(self, queue: str) -> bool:
        """Whether a queue, or its record, ends unless it is kept in use."""
        spec, limits = self.queues.get(queue), self.limits.get(queue)
        return spec is not None and limits is not None and (spec.auto_delete or life_of(spec, limits) is not None)

    def is_ours(self, queue: str) -> bool:
        """Whether nobody else uses a queue, as that for the replies to one process."""
        spec, limits = self.queues.get(queue), self.limits.get(queue)
        return spec is not None and limits is not None and not is_shared(spec) and life_of(spec, limits) is not None

    def used(self, consumed: Iterable[str]) -> set[str]:
        """Return the queues that are in use: those that are consumed, and exclusive ones."""
        return {name for name, spec in list(self.queues.items()) if spec.exclusive}.union(consumed)

    def bound(self, queue: str) -> list[tuple[tuple[str, str], str]]:
        """Return the bindings of a queue: ((exchange, routing key), type of the exchange)."""
        return list(self.bindings.get(queue, {}).items())

    def bindings_of(self, queue: str) -> Iterator[tuple[str, str]]:
        """(binding set, member) for each binding that this connection has made."""
        for (exchange, routing_key), kind in self.bound(queue):
            member = self._keys.member(kind, routing_key, queue)
            yield self._keys.bindings(exchange), member
            yield self._keys.permanent_bindings(exchange), member

    def binding_life(self, queue: str, kind: str) -> int | None:
        """Milliseconds that a binding outlives its last use; None for one that stays."""
        spec, limits = self.queues.get(queue), self.limits.get(queue)
        if spec is None or limits is None:
            return None
        life = life_of(spec, limits)
        # A binding to a fanout exchange is a note, no route: a process that was killed does not need it any more.
        return EXCLUSIVE_LIFE if life is None and kind == "fanout" and spec.auto_delete else life

    def entry(self, exchange: str, queue: str, routing_key: str, kind: str) -> str:
        """Return the entry of a binding that ends."""
        spec, limits = self.queues.get(queue), self.limits.get(queue)
        member = self._keys.member(kind, routing_key, queue)
        if spec is not None and limits is not None and limits.expires and is_shared(spec) and kind != "fanout":
            return self._deadlines.expiring_binding(exchange, member, queue, limits.expires)
        return self._deadlines.binding(exchange, member)

    def mark(self, spec: QueueSpec, limits: Limits) -> Command:
        """Return the marker of a queue that is deleted with its messages.

        The lists of a shared queue expire by themselves.
        """
        entry, life = self._deadlines.queue(spec.name), life_of(spec, limits)
        if life is None or is_shared(spec):
            return self._deadlines.forget(entry)
        return self._deadlines.extend(life, entry)
