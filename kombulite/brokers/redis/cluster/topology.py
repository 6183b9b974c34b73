"""Exchanges, queues and bindings in the own layout: a step for each slot where a single server takes one for all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import groupby

from kombulite import exceptions
from kombulite.brokers.base import QueueSpec
from kombulite.brokers.redis.cluster.keys import ClusterKeys
from kombulite.brokers.redis.cluster.slots import slot_of
from kombulite.brokers.redis.cluster.together import together
from kombulite.brokers.redis.deadlines import Deadlines
from kombulite.brokers.redis.plans import Command, Plan, call, call_all, run, transact
from kombulite.brokers.redis.scripts import SWEEP
from kombulite.brokers.redis.topology import Topology


class ClusterDeadlines(Deadlines):
    """Entries of what ends when it is not used. What an entry names is deleted first: that may be done again."""

    _keys: ClusterKeys

    def _end_all(self, entries: Sequence[bytes], now: int) -> Plan[None]:
        yield from together({repr(entry): self._end(entry, now) for entry in entries})

    def _delete(self, entry: bytes, now: int, deleted: list[str], tables: list[str], member: str = "") -> Plan[None]:
        ends = yield from call("ZSCORE", self._keys.own_deadlines, entry)
        if ends is None or float(ends) > now:
            return  # its user has extended it
        if deleted:
            queue = json.loads(entry)[1]
            yield from unbind_all(self._keys, queue)
            yield from call("DEL", *deleted)
        if tables:
            exchange = json.loads(entry)[1]
            yield from call_all(*(("SREM", table, member) for table in tables))
            if (parsed := self._keys.parse_member(member.encode())) is not None:
                yield from call("SREM", self._keys.of(parsed.queue).bound, json.dumps([exchange, member]))
        yield from run(SWEEP, [self._keys.own_deadlines], entry, now, 0, "")


class ClusterTopology(Topology):
    """What one connection declared, and the verbs that change a cluster."""

    _keys: ClusterKeys

    def redeclare(self) -> Plan[None]:
        """Declare again all that this connection has declared, where nodes are reached."""
        self.is_doubtful = False
        plans = {f"exchange {spec.name}": self._note_exchange(spec) for spec in list(self._exchanges.values())}
        for name, spec in list(self.declared.queues.items()):
            plans[name] = self._redeclare_queue(spec)
        try:
            yield from together(plans, patience=0.0)
        except (exceptions.ConnectionError, OSError):  # when that node is reached
            self.is_doubtful = True

    def _redeclare_queue(self, spec: QueueSpec) -> Plan[None]:
        yield from self._refresh(spec, self.limits[spec.name])
        for (exchange, routing_key), kind in self.declared.bound(spec.name):
            yield from self._bind(exchange, spec.name, routing_key, kind)

    def _delete_lists(
        self, lists: Sequence[str], bindings: Sequence[tuple[str | bytes, str | bytes]], if_empty: bool
    ) -> Plan[int]:
        # Bindings first: what is routed here afterwards would stay for ever.
        if not if_empty:
            yield from call_all(*(("SREM", table, member) for table, member in bindings))
        count = yield from super()._delete_lists(lists, (), if_empty)
        if if_empty and count >= 0:
            yield from call_all(*(("SREM", table, member) for table, member in bindings))
        return count

    def _bindings_of(self, queue: str) -> Plan[list[tuple[str | bytes, str | bytes]]]:
        return (yield from bindings_of(self._keys, queue))

    def delete_queue(self, queue: str, if_empty: bool) -> Plan[int]:
        """Delete a queue and its bindings; returns the messages gone. Raises PreconditionFailed."""
        count = yield from super().delete_queue(queue, if_empty)
        yield from self._note(("DEL", self._keys.of(queue).bound))
        return count

    def extend(self, consumed: Iterable[str], rebind: bool) -> Plan[float | None]:
        """Do what a single server's does, queue beside queue."""
        queues = self.declared.used(consumed)
        pauses = yield from together({queue: self._extend(queue, rebind) for queue in queues})
        return min((pause for pause in pauses.values() if pause is not None), default=None)

    def _free(self, *commands: Command) -> Plan[list[object]]:
        replies: list[object] = []
        for _, mine in groupby(commands, lambda command: slot_of(command[1])):
            replies += yield from super()._free(*mine)
        return replies

    def _bind(self, exchange: str, queue: str, routing_key: str, kind: str) -> Plan[None]:
        keys, limits = self._keys, self.limits.get(queue)
        member = keys.member(kind, routing_key, queue)
        entry, life = self.declared.entry(exchange, queue, routing_key, kind), self.declared.binding_life(queue, kind)
        note = self.deadlines.forget(entry) if life is None else self.deadlines.extend(life, entry)
        # Before the binding: a process that is killed between the two leaves an entry, not a binding.
        yield from self._note(note, ("SADD", keys.of(queue).bound, json.dumps([exchange, member])))
        tables = [keys.bindings(exchange)]
        if limits is None or not limits.expires:
            tables.append(keys.permanent_bindings(exchange))
        yield from transact(self.has_transactions, *(("SADD", table, member) for table in tables))

    def unbind(self, exchange: str, queue: str, routing_key: str) -> Plan[None]:
        """Take a binding away, whoever made it. Raises NotFound, AccessRefused."""
        yield from super().unbind(exchange, queue, routing_key)
        members = {self._keys.member(kind, routing_key, queue) for kind in ("direct", "topic")}
        notes = [json.dumps([exchange, member]) for member in members]
        yield from self._note(("SREM", self._keys.of(queue).bound, *notes))


def bindings_of(keys: ClusterKeys, queue: str) -> Plan[list[tuple[str | bytes, str | bytes]]]:
    """Return (binding set, member) for each binding of a queue."""
    found: list[tuple[str | bytes, str | bytes]] = []
    for note in (yield from call("SMEMBERS", keys.of(queue).bound)):
        try:
            exchange, member = json.loads(note)
            found += [(keys.bindings(exchange), member), (keys.permanent_bindings(exchange), member)]
        except (ValueError, TypeError, AttributeError, RecursionError):
            continue  # not ours
    return found


def unbind_all(keys: ClusterKeys, queue: str) -> Plan[None]:
    """Take all bindings of a queue away."""
    bindings = yield from bindings_of(keys, queue)
    yield from call_all(*(("SREM", table, member) for table, member in bindings))
    yield from call("DEL", keys.of(queue).bound)
