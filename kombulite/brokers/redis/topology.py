"""Exchanges, queues and bindings as the database has them.

kombu stores bindings and messages only. What we know beyond that stands in keys of our own, which kombu ignores and
which may be missing: the type of an exchange, the settings of a queue.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hiredis import ReplyError

from kombulite import exceptions
from kombulite._core import pack_command
from kombulite.brokers.base import ExchangeSpec, QueueInfo, QueueSpec
from kombulite.brokers.redis.errors import reply_error
from kombulite.brokers.redis.keys import Keys, glob_escaped
from kombulite.brokers.redis.leases import logger
from kombulite.brokers.redis.link import Command, Link, pack_all
from kombulite.brokers.redis.options import Limits
from kombulite.brokers.redis.routes import Router
from kombulite.brokers.redis.scripts import BIND, BIND_EXPIRING, DELETE_QUEUE
from kombulite.utils.uuid import uuid

TYPES = frozenset(["direct", "topic", "fanout"])

#: There without being declared, as AMQP has them.
PREDECLARED = {"amq.direct": "direct", "amq.topic": "topic", "amq.fanout": "fanout"}

#: Keys that SCAN looks at in one step.
SCANNED = 1000

#: A binding of a queue that expires lives this long at least (ms), and twice as long as its queue.
LEAST_BINDING_LIFE = 3_600_000


class Topology:
    """What one connection declared, and the verbs that change the database."""

    def __init__(self, link: Link, keys: Keys, tracked: bool, check_interval: float, vhost: str) -> None:
        self._link = link
        self._keys = keys
        self._vhost = vhost
        self.types: dict[str, str] = dict(PREDECLARED)
        self._exchanges: dict[str, ExchangeSpec] = {}
        self._queues: dict[str, QueueSpec] = {}
        self.limits: dict[str, Limits] = {}
        self.router = Router(link, keys, self.types, tracked, check_interval, self.redeclare)
        self._bindings: dict[str, dict[tuple[str, str], str]] = {}  # queue -> (exchange, routing key) -> type

    # --- exchanges

    def declare_exchange(self, spec: ExchangeSpec) -> None:
        """Declare an exchange. Raises AMQPNotImplementedError for a type that Redis lacks, NotEquivalentError."""
        if spec.type not in TYPES:
            raise exceptions.AMQPNotImplementedError(
                f"exchange '{spec.name}': Redis has direct, topic and fanout exchanges, not {spec.type!r:.80}"
            )
        known = self._exchanges.get(spec.name)
        if known not in (None, spec) or self.types.get(spec.name) not in (None, spec.type):
            raise exceptions.NotEquivalentError(f"exchange '{spec.name}' is declared already, as {known}")
        self._exchanges[spec.name] = spec
        self.types[spec.name] = spec.type
        self.router.discard(spec.name)
        self._note(("HSET", self._keys.exchanges, spec.name, spec.type))

    def _note(self, command: Command) -> None:
        """Keep what we know beyond kombu, if the server lets us: it may be full, or the user's rights may end here."""
        (reply,) = self._link.exchange([pack_command(command)], 1)
        if isinstance(reply, ReplyError):
            logger.debug("%s was not noted: %s", command[0], reply)

    def check_exchange(self, name: str) -> str:
        """The type of an exchange. Raises NotFound."""
        kind = self.types.get(name) or self.router.routes(name).kind
        if kind is None:
            raise exceptions.NotFound(f"no exchange '{name}' in vhost '{self._vhost}'")
        return kind

    def delete_exchange(self, name: str, if_unused: bool) -> None:
        """Delete an exchange with its bindings; the queues stay. Raises PreconditionFailed if in use."""
        if if_unused:
            self.router.discard(name)
            if self.router.routes(name).has_bindings:
                raise exceptions.PreconditionFailed(f"exchange '{name}' is in use")
        keys = self._keys
        self._free(("DEL", keys.bindings(name), keys.permanent_bindings(name)), ("ZREM", keys.deadlines, name))
        self._note(("HDEL", keys.exchanges, name))
        self._exchanges.pop(name, None)
        if name not in PREDECLARED:
            self.types.pop(name, None)
        self.router.discard(name)
        for bound in list(self._bindings.values()):
            for binding in [binding for binding in bound if binding[0] == name]:
                del bound[binding]

    # --- queues

    def declare_queue(self, spec: QueueSpec) -> QueueInfo:
        """Declare a queue. Raises NotEquivalentError, PreconditionFailed."""
        spec = spec._replace(name=spec.name or f"amq.gen-{uuid()}")
        limits = Limits.of(spec)
        known = self._queues.get(spec.name)
        if known not in (None, spec):
            raise exceptions.NotEquivalentError(f"queue '{spec.name}' is declared already, as {known}")
        self._queues[spec.name] = spec
        self.limits[spec.name] = limits
        return QueueInfo(spec.name, self._refresh(spec, limits), 0)

    def _refresh(self, spec: QueueSpec, limits: Limits) -> int:
        """Note that a queue is declared, and in use; returns its length."""
        lists = self._keys.lists(spec.name)
        record: tuple[Any, ...] = ("SET", self._keys.record(spec.name), json.dumps(spec._asdict(), default=repr))
        commands: list[Command] = [("LLEN", key) for key in lists]
        if limits.expires:
            record += ("PX", limits.expires)
            commands += [("PEXPIRE", key, limits.expires) for key in lists]
        noted, *replies = self._link.exchange(pack_all([record, *commands]), 1 + len(commands))
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise reply_error(str(reply))
        if isinstance(noted, ReplyError):
            logger.debug("the declaration of queue %r was not noted: %s", spec.name, noted)
        return sum(replies[: len(lists)])

    def refresh_queue(self, queue: str) -> None:
        """A queue that expires when it is not used is used."""
        if queue in self._queues and self.limits[queue].expires:
            self._refresh(self._queues[queue], self.limits[queue])

    def assert_queue(self, queue: str) -> QueueInfo:
        """The length of a queue that is there: declared, bound, or not empty. Raises NotFound."""
        lists = [("LLEN", key) for key in self._keys.lists(queue)]
        record, *lengths = self._link.exchange(pack_all([("EXISTS", self._keys.record(queue)), *lists]), 1 + len(lists))
        for reply in lengths:
            if isinstance(reply, ReplyError):
                raise reply_error(str(reply))
        if record != 1 and not any(lengths) and next(self._bindings_of(queue), None) is None:
            raise exceptions.NotFound(f"no queue '{queue}' in vhost '{self._vhost}'")
        return QueueInfo(queue, sum(lengths), 0)

    def delete_queue(self, queue: str, if_empty: bool) -> int:
        """Delete a queue and its bindings, whoever made them; returns the messages gone. Raises PreconditionFailed."""
        keys = self._keys
        lists = keys.lists(queue)
        bindings = list(self._bindings_of(queue))
        count = self._link.run(
            DELETE_QUEUE,
            [*lists, *(table for table, _ in bindings)],
            len(lists),
            "1" if if_empty else "0",
            *(member for _, member in bindings),
        )
        if count < 0:
            raise exceptions.PreconditionFailed(f"queue '{queue}' is not empty")
        self._note(("DEL", keys.record(queue)))
        self._queues.pop(queue, None)
        self.limits.pop(queue, None)
        self._bindings.pop(queue, None)
        return int(count)

    def _bindings_of(self, queue: str) -> Iterator[tuple[bytes, bytes]]:
        """(binding set, member) for each binding of a queue: nothing else says where it is bound."""
        pattern = f"{glob_escaped(self._keys.prefix)}_kombu.binding*"
        cursor: Any = "0"
        while True:
            cursor, tables = self._link.call("SCAN", cursor, "MATCH", pattern, "COUNT", SCANNED, "TYPE", "set")
            for table in tables:
                for member in self._link.call("SMEMBERS", table):
                    parsed = self._keys.parse_member(member)
                    if parsed is not None and parsed.queue == queue:
                        yield table, member
            if int(cursor) == 0:
                return

    def purge(self, queue: str) -> int:
        """Remove the messages that wait in a queue; returns how many."""
        commands = [(name, key) for key in self._keys.lists(queue) for name in ("LLEN", "DEL")]
        return sum(self._free(*commands)[::2])

    def _free(self, *commands: Command) -> list[Any]:
        """Send commands that free memory, as one transaction, and return their replies.

        If memory is full, a server takes no transactions at all, whatever they do: then one after the other.
        """
        try:
            return self._link.transact(*commands)
        except exceptions.MessageNacked:
            return self._link.call_all(*commands)

    def exclusive_queues(self) -> list[str]:
        """Those that this connection declared for itself alone."""
        return [name for name, spec in self._queues.items() if spec.exclusive]

    # --- bindings

    def fanout_bindings(self, queue: str) -> list[tuple[str, str]]:
        """(exchange, routing key) of what this connection bound a queue to that stores nothing."""
        return [binding for binding, kind in self._bindings.get(queue, {}).items() if kind == "fanout"]

    def drop_fanout(self, queue: str) -> None:
        """Nobody consumes a queue any more: if it is auto-delete, what it heard of fanout exchanges ends with that."""
        if queue in self._queues and self._queues[queue].auto_delete:
            for exchange, routing_key in self.fanout_bindings(queue):
                self.unbind(exchange, queue, routing_key)

    def bind(self, exchange: str, queue: str, routing_key: str) -> None:
        """Bind a queue to an exchange. Raises NotFound, AccessRefused."""
        kind = self._check_source(exchange)
        self._bind(self._link, exchange, queue, routing_key, kind)
        self.router.discard(exchange)
        self._bindings.setdefault(queue, {})[exchange, routing_key] = kind

    def _bind(self, link: Link, exchange: str, queue: str, routing_key: str, kind: str) -> None:
        keys = self._keys
        member = keys.member(kind, routing_key, queue)
        limits = self.limits.get(queue)
        if limits is not None and limits.expires:
            life = max(2 * limits.expires, LEAST_BINDING_LIFE)
            link.run(BIND_EXPIRING, [keys.bindings(exchange), keys.deadlines], member, exchange, life)
            return
        tables = keys.bindings(exchange), keys.permanent_bindings(exchange)
        try:
            link.transact(*(("SADD", table, member) for table in tables))
        except exceptions.MessageNacked:  # memory is full: a consumer that frees some may need the binding
            link.run(BIND, tables, member)

    def refresh_bindings(self, link: Link) -> None:
        """Say of the queues that expire that they are still bound."""
        for queue, bound in list(self._bindings.items()):
            limits = self.limits.get(queue)
            if limits is not None and limits.expires:
                for (exchange, routing_key), kind in list(bound.items()):
                    self._bind(link, exchange, queue, routing_key, kind)

    def redeclare(self) -> None:
        """Declare again all that this connection has declared: the database was emptied."""
        for spec in list(self._exchanges.values()):
            self._note(("HSET", self._keys.exchanges, spec.name, spec.type))
        for name, queue in list(self._queues.items()):
            self._refresh(queue, self.limits[name])
        for name, bound in list(self._bindings.items()):
            for (exchange, routing_key), kind in list(bound.items()):
                self._bind(self._link, exchange, name, routing_key, kind)

    def unbind(self, exchange: str, queue: str, routing_key: str) -> None:
        """Take a binding away, whoever made it. Raises NotFound, AccessRefused."""
        self._check_source(exchange)
        keys = self._keys
        members = {keys.member(kind, routing_key, queue) for kind in ("direct", "topic")}
        self._free(("SREM", keys.bindings(exchange), *members), ("SREM", keys.permanent_bindings(exchange), *members))
        self.router.discard(exchange)
        self._bindings.get(queue, {}).pop((exchange, routing_key), None)

    def _check_source(self, exchange: str) -> str:
        if not exchange:
            raise exceptions.AccessRefused("nothing can be bound to the default exchange")
        return self.check_exchange(exchange)
