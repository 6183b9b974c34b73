"""Exchanges, queues and bindings as the database has them.

kombu stores bindings and messages only. What we know beyond that stands in keys of our own, which kombu ignores and
which may be missing: the type of an exchange, the settings of a queue.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from hiredis import ReplyError

from kombulite import exceptions
from kombulite.brokers.base import ExchangeSpec, QueueInfo, QueueSpec, unknown_type
from kombulite.brokers.redis.deadlines import (
    LATE_LIFE,
    MIN_BINDING_LIFE,
    Deadlines,
    life_of,
)
from kombulite.brokers.redis.declared import Declared
from kombulite.brokers.redis.errors import reply_error
from kombulite.brokers.redis.keys import Keys, glob_escaped
from kombulite.brokers.redis.leases import logger
from kombulite.brokers.redis.options import Limits
from kombulite.brokers.redis.plans import Command, Plan, call, call_all, run, send, transact
from kombulite.brokers.redis.router import Router
from kombulite.brokers.redis.scripts import BIND, BIND_EXPIRING, DELETE_QUEUE
from kombulite.utils.uuid import uuid

TYPES = frozenset(["direct", "topic", "fanout"])

#: There without being declared, as AMQP has them.
PREDECLARED = {"amq.direct": "direct", "amq.topic": "topic", "amq.fanout": "fanout"}

#: Keys that SCAN looks at in one step.
SCANNED = 1000


class Topology:
    """What one connection declared, and the verbs that change the database."""

    #: Whether the server may lack what was declared, because a connection to it was lost.
    is_doubtful = False

    def __init__(self, keys: Keys, check_interval: float, vhost: str, deadlines: Deadlines) -> None:
        self._keys = keys
        self.deadlines = deadlines
        self._vhost = vhost
        self.types: dict[str, str] = dict(PREDECLARED)
        self._exchanges: dict[str, ExchangeSpec] = {}
        self.declared = Declared(keys, deadlines)
        self.limits = self.declared.limits
        self.has_transactions = True  # whether the server lets us end one (EXEC)
        self.router = Router(keys, self.types, check_interval, self.redeclare)

    # --- exchanges

    def declare_exchange(self, spec: ExchangeSpec) -> Plan[None]:
        """Declare an exchange. Raises NotEquivalentError, InvalidCommand, AMQPNotImplementedError."""
        if spec.type not in TYPES:
            raise unknown_type(spec, TYPES)
        known = self._exchanges.get(spec.name)
        if known not in (None, spec) or self.types.get(spec.name) not in (None, spec.type):
            raise exceptions.NotEquivalentError(f"exchange '{spec.name}' is declared already, as {known}")
        self._exchanges[spec.name] = spec
        self.types[spec.name] = spec.type
        self.router.discard(spec.name)
        yield from self._note_exchange(spec)

    def _note_exchange(self, spec: ExchangeSpec) -> Plan[None]:
        entry = self.deadlines.exchange(spec.name)
        change = self.deadlines.extend(MIN_BINDING_LIFE, entry) if spec.auto_delete else self.deadlines.forget(entry)
        yield from self._note(("HSET", self._keys.exchanges, spec.name, spec.type), change)

    def _note(self, *commands: Command) -> Plan[None]:
        """Keep what we know beyond kombu, if the server lets us: it may be full, or the user's rights may end here."""
        for reply in (yield from send(*commands)):
            if isinstance(reply, ReplyError):
                logger.debug("%s was not noted: %s", commands[0][0], reply)

    def check_exchange(self, name: str) -> Plan[str]:
        """Return the type of an exchange. Raises NotFound."""
        return self.types.get(name) or (yield from self.router.routes(name)).known_kind()

    def delete_exchange(self, name: str, if_unused: bool) -> Plan[None]:
        """Delete an exchange with its bindings; the queues stay. Raises PreconditionFailed if in use."""
        if if_unused:
            self.router.discard(name)
            if (yield from self.router.routes(name)).has_bindings:
                raise exceptions.PreconditionFailed(f"exchange '{name}' is in use")
        keys = self._keys
        yield from self._free(("DEL", keys.bindings(name), keys.permanent_bindings(name)))
        yield from self._note(("ZREM", keys.deadlines, name), ("HDEL", keys.exchanges, name))
        self._exchanges.pop(name, None)
        if name not in PREDECLARED:
            self.types.pop(name, None)
        self.router.discard(name)
        for bound in list(self.declared.bindings.values()):
            for binding in [binding for binding in bound if binding[0] == name]:
                del bound[binding]

    # --- queues

    def declare_queue(self, spec: QueueSpec) -> Plan[QueueInfo]:
        """Declare a queue. Raises NotEquivalentError, PreconditionFailed."""
        spec = spec._replace(name=spec.name or f"amq.gen-{uuid()}")
        limits = Limits.of(spec)
        known = self.declared.queues.get(spec.name)
        if known not in (None, spec):
            raise exceptions.NotEquivalentError(f"queue '{spec.name}' is declared already, as {known}")
        self.declared.queues[spec.name] = spec
        self.limits[spec.name] = limits
        return QueueInfo(spec.name, (yield from self._refresh(spec, limits)), 0)

    def _refresh(self, spec: QueueSpec, limits: Limits) -> Plan[int]:
        """Note that a queue is declared, and in use; returns its length."""
        lists = self._keys.lists(spec.name)
        record: tuple[Any, ...] = ("SET", self._keys.record(spec.name), json.dumps(spec._asdict(), default=repr))
        commands: list[Command] = [("LLEN", key) for key in lists]
        life = limits.expires or life_of(spec, limits) or (MIN_BINDING_LIFE if spec.auto_delete else None)
        if life:
            record += ("PX", life)
        if limits.expires:
            commands += [("PEXPIRE", key, limits.expires) for key in lists]
        notes = [record, self.declared.mark(spec, limits)]
        replies = yield from send(*notes, *commands)
        for reply in replies[len(notes) :]:
            if isinstance(reply, ReplyError):
                raise reply_error(str(reply))
        for reply in replies[: len(notes)]:
            if isinstance(reply, ReplyError):
                logger.debug("the declaration of queue %r was not noted: %s", spec.name, reply)
        return sum(replies[len(notes) :][: len(lists)])

    def refresh_queue(self, queue: str) -> Plan[None]:
        """Note that a queue, which expires unless it is used, is used."""
        if queue in self.declared.queues and self.limits[queue].expires:
            yield from self._refresh(self.declared.queues[queue], self.limits[queue])

    def assert_queue(self, queue: str) -> Plan[QueueInfo]:
        """Return the length of a queue that is there: declared, bound, or not empty. Raises NotFound."""
        lists = [("LLEN", key) for key in self._keys.lists(queue)]
        record, *lengths = yield from send(("EXISTS", self._keys.record(queue)), *lists)
        for reply in lengths:
            if isinstance(reply, ReplyError):
                raise reply_error(str(reply))
        if record != 1 and not any(lengths) and not (yield from self._bindings_of(queue)):
            raise exceptions.NotFound(f"no queue '{queue}' in vhost '{self._vhost}'")
        return QueueInfo(queue, sum(lengths), 0)

    def delete_queue(self, queue: str, if_empty: bool) -> Plan[int]:
        """Delete a queue and its bindings, whoever made them; returns the messages gone. Raises PreconditionFailed."""
        keys, is_ours = self._keys, self.declared.is_ours(queue)
        lists = keys.lists(queue)
        bindings: list[tuple[str | bytes, str | bytes]] = []
        bindings += self.declared.bindings_of(queue) if is_ours else (yield from self._bindings_of(queue))
        count = yield from self._delete_lists(lists, bindings, if_empty)
        if count < 0:
            raise exceptions.PreconditionFailed(f"queue '{queue}' is not empty")
        entries = [
            self.declared.entry(exchange, queue, key, kind) for (exchange, key), kind in self.declared.bound(queue)
        ]
        notes: list[Command] = [("DEL", keys.record(queue))]
        if entries:
            notes.append(self.deadlines.forget(*entries))
        if is_ours:
            # Publishers may not know yet that it is gone; nobody would ever take what they bring.
            notes.append(self.deadlines.end(LATE_LIFE, self.deadlines.queue(queue)))
        yield from self._note(*notes)
        self.declared.queues.pop(queue, None)
        self.limits.pop(queue, None)
        self.declared.bindings.pop(queue, None)
        return int(count)

    def _delete_lists(
        self, lists: Sequence[str], bindings: Sequence[tuple[str | bytes, str | bytes]], if_empty: bool
    ) -> Plan[int]:
        """Delete the lists and bindings of a queue; returns the messages gone, -1 for one that is not empty."""
        tables, members = [table for table, _ in bindings], [member for _, member in bindings]
        with suppress(exceptions.AccessRefused):
            flag = "1" if if_empty else "0"
            return int((yield from run(DELETE_QUEUE, [*lists, *tables], len(lists), flag, *members)))
        if if_empty and any((yield from call_all(*(("LLEN", key) for key in lists)))):
            return -1
        commands: list[Command] = [("LLEN", key) for key in lists]
        commands += [("DEL", *lists), *(("SREM", table, member) for table, member in bindings)]
        return sum((yield from self._free(*commands))[: len(lists)])

    def _bindings_of(self, queue: str) -> Plan[list[tuple[str | bytes, str | bytes]]]:
        """Return (binding set, member) for each binding of a queue: nothing else says where it is bound.

        A user without the right to look at all keys is left with what this connection has bound, as with kombu.
        """
        pattern = f"{glob_escaped(self._keys.prefix)}_kombu.binding*"
        found: list[tuple[str | bytes, str | bytes]] = []
        cursor: Any = "0"
        while True:
            try:
                cursor, tables = yield from call("SCAN", cursor, "MATCH", pattern, "COUNT", SCANNED, "TYPE", "set")
                members = yield from call_all(*(("SMEMBERS", table) for table in tables))
            except exceptions.AccessRefused:
                return [*found, *self.declared.bindings_of(queue)]
            for table, each in zip(tables, members, strict=True):
                for member in each:
                    parsed = self._keys.parse_member(member)
                    if parsed is not None and parsed.queue == queue:
                        found.append((table, member))
            if int(cursor) == 0:
                return found

    def purge(self, queue: str) -> Plan[int]:
        """Remove the messages that wait in a queue; returns how many."""
        commands = [(name, key) for key in self._keys.lists(queue) for name in ("LLEN", "DEL")]
        return sum((yield from self._free(*commands))[::2])

    def _free(self, *commands: Command) -> Plan[list[Any]]:
        """Send commands that free memory, as one transaction, and return their replies.

        If memory is full, a server takes no transactions at all, whatever they do: then one after the other.
        """
        try:
            return (yield from transact(self.has_transactions, *commands))
        except exceptions.MessageNacked:
            return (yield from call_all(*commands))

    def exclusive_queues(self) -> list[str]:
        """Those that this connection declared for itself alone."""
        return [name for name, spec in self.declared.queues.items() if spec.exclusive]

    # --- bindings

    def fanout_bindings(self, queue: str) -> list[tuple[str, str]]:
        """(exchange, routing key) of what this connection bound a queue to that stores nothing."""
        return [binding for binding, kind in self.declared.bindings.get(queue, {}).items() if kind == "fanout"]

    def drop_fanout(self, queue: str) -> Plan[None]:
        """Nobody consumes a queue any more: if it is auto-delete, what it heard of fanout exchanges ends with that."""
        if queue in self.declared.queues and self.declared.queues[queue].auto_delete:
            for exchange, routing_key in self.fanout_bindings(queue):
                yield from self.unbind(exchange, queue, routing_key)

    def bind(self, exchange: str, queue: str, routing_key: str) -> Plan[None]:
        """Bind a queue to an exchange. Raises NotFound, AccessRefused."""
        kind = yield from self._check_source(exchange)
        yield from self._bind(exchange, queue, routing_key, kind)
        self.router.discard(exchange)
        self.declared.bindings.setdefault(queue, {})[exchange, routing_key] = kind

    def _bind(self, exchange: str, queue: str, routing_key: str, kind: str) -> Plan[None]:
        keys, limits = self._keys, self.limits.get(queue)
        member = keys.member(kind, routing_key, queue)
        entry, life = self.declared.entry(exchange, queue, routing_key, kind), self.declared.binding_life(queue, kind)
        note = self.deadlines.forget(entry) if life is None else self.deadlines.extend(life, entry)
        # Before the binding: a process that is killed between the two leaves an entry, not a binding. The user may
        # have no right to our keys.
        notes = (note,)
        if limits is not None and limits.expires:
            kombus = max(2 * limits.expires, MIN_BINDING_LIFE)
            try:
                tables = keys.bindings(exchange), keys.deadlines
                yield from run(BIND_EXPIRING, tables, member, exchange, kombus, before=notes)
            except exceptions.AccessRefused:
                deadline = ("ZADD", keys.deadlines, "GT", self.deadlines.now_ms() + kombus, exchange)
                binding = "SADD", keys.bindings(exchange), member
                yield from transact(self.has_transactions, binding, deadline)
            return
        tables = keys.bindings(exchange), keys.permanent_bindings(exchange)
        try:
            bindings = [("SADD", table, member) for table in tables]
            yield from transact(self.has_transactions, *bindings, before=notes)
        except exceptions.MessageNacked:  # memory is full: a consumer that frees some may need the binding
            yield from run(BIND, tables, member)

    def extend(self, consumed: Iterable[str], rebind: bool) -> Plan[float | None]:
        """Say that queues are in use that are consumed, or exclusive; ``rebind``: their bindings may be gone.

        Returns the seconds until that is to be said again; None for never.
        """
        pauses = []
        for queue in self.declared.used(consumed):
            pauses.append((yield from self._extend(queue, rebind)))
        return min((pause for pause in pauses if pause is not None), default=None)

    def _extend(self, queue: str, rebind: bool) -> Plan[float | None]:
        spec, limits = self.declared.queues.get(queue), self.limits.get(queue)
        if spec is None or limits is None:
            return None  # it is not ours, or was deleted meanwhile
        bound = self.declared.bound(queue)
        lives = {
            self.declared.entry(exchange, queue, routing_key, kind): left
            for (exchange, routing_key), kind in bound
            if (left := self.declared.binding_life(queue, kind)) is not None
        }
        own_life = life_of(spec, limits)
        if not lives and own_life is None and not spec.auto_delete:
            return None
        if limits.expires:
            yield from call_all(*(("PEXPIRE", key, limits.expires) for key in self._keys.lists(queue)))
        life = limits.expires or own_life or MIN_BINDING_LIFE
        commands: list[Command] = [("PEXPIRE", self._keys.record(queue), life), self.declared.mark(spec, limits)]
        commands += [self.deadlines.extend(left, entry) for entry, left in lives.items()]
        yield from send(*commands)  # the user may have no right to our keys
        for (exchange, routing_key), kind in bound if rebind else ():
            yield from self._bind(exchange, queue, routing_key, kind)
        ends = [left for left in (*lives.values(), own_life) if left is not None]
        return (limits.expires or min(ends, default=MIN_BINDING_LIFE)) / 3000

    def redeclare(self) -> Plan[None]:
        """Declare again all that this connection has declared: the database was emptied."""
        self.is_doubtful = False
        for spec in list(self._exchanges.values()):
            yield from self._note_exchange(spec)
        for name, queue in list(self.declared.queues.items()):
            yield from self._refresh(queue, self.limits[name])
        for name in list(self.declared.bindings):
            for (exchange, routing_key), kind in self.declared.bound(name):
                yield from self._bind(exchange, name, routing_key, kind)

    def unbind(self, exchange: str, queue: str, routing_key: str) -> Plan[None]:
        """Take a binding away, whoever made it. Raises NotFound, AccessRefused."""
        yield from self._check_source(exchange)
        keys = self._keys
        members = {keys.member(kind, routing_key, queue) for kind in ("direct", "topic")}
        kind = self.declared.bindings.get(queue, {}).get((exchange, routing_key))
        if kind is not None:
            yield from self._note(self.deadlines.forget(self.declared.entry(exchange, queue, routing_key, kind)))
        yield from self._free(
            ("SREM", keys.bindings(exchange), *members), ("SREM", keys.permanent_bindings(exchange), *members)
        )
        self.router.discard(exchange)
        self.declared.bindings.get(queue, {}).pop((exchange, routing_key), None)

    def _check_source(self, exchange: str) -> Plan[str]:
        if not exchange:
            raise exceptions.AccessRefused("nothing can be bound to the default exchange")
        return (yield from self.check_exchange(exchange))
