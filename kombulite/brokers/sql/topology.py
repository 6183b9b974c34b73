"""Exchanges, queues, bindings and consumers of a SQL broker: rows, and a cache of them to route by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from kombulite import exceptions
from kombulite._core import Delivery, RoutingTable, UnknownExchange
from kombulite.brokers.base import ExchangeSpec, QueueSpec
from kombulite.brokers.limits import Limits, describe
from kombulite.brokers.sql.database import Database

__all__ = ["WAITING", "QueueRecord", "Topology", "delete_messages"]

PREDECLARED = {"direct": "direct", "fanout": "fanout", "topic": "topic", "headers": "headers", "match": "headers"}

#: The states of a message, each with an index of its own: without one of them all messages of all queues are looked at.
WAITING = "owner IS NULL AND due IS NULL"
DELAYED = "due IS NOT NULL"
STATES = (WAITING, "owner IS NOT NULL", DELAYED)

#: Messages that one statement deletes at most: the server has to answer it in time.
DELETED_AT_ONCE = 50_000
MAX_ID = (1 << 63) - 1

DELETE = (
    "WITH found AS MATERIALIZED (SELECT {place} AS place FROM {p}messages WHERE queue = ? AND id + 0 <= ? AND %s"
    " LIMIT ? {skip}) DELETE FROM {p}messages WHERE {found} RETURNING 1"
)

#: The same of those that are delayed, which have an index by their time alone: of all queues' the first are looked at.
#: Those behind them are deleted when they are due, for then they are messages of a queue that is not there.
DELETE_DELAYED = (
    "WITH found AS MATERIALIZED (WITH found AS MATERIALIZED (SELECT {place} AS place FROM {p}messages"
    " WHERE due IS NOT NULL ORDER BY due LIMIT ?) SELECT {place} AS place FROM {p}messages"
    " WHERE queue + 0 = ? AND {found} AND due + 0 IS NOT NULL {skip}) DELETE FROM {p}messages WHERE {found} RETURNING 1"
)
MAX_DELAYED_LOOKED_AT = 1000

#: The ids of queues that have messages and are not there, by a step in an index for each queue.
FILLED_AND_DELETED = (
    "WITH RECURSIVE filled(queue) AS (SELECT CAST(0 AS BIGINT) UNION ALL SELECT (SELECT queue FROM {p}messages"
    " WHERE queue > filled.queue AND owner IS NULL AND due IS NULL ORDER BY queue LIMIT 1)"
    " FROM filled WHERE queue IS NOT NULL)"
    " SELECT queue FROM filled WHERE queue > 0 AND queue NOT IN (SELECT id FROM {p}queues)"
)


class QueueRecord(NamedTuple):
    """A queue as it stands in the database. An id is never given twice, so a record is never another queue's."""

    id: int
    spec: QueueSpec
    limits: Limits
    owner: int | None

    @property
    def is_plain(self) -> bool:
        """Whether a message is put into it without a look at the others."""
        return self.limits.max_length is None and self.limits.max_length_bytes is None


class Topology:
    """What was declared. Methods that change something run in a transaction of the caller's.

    ``connection``: the id of this connection, which owns its exclusive queues and its consumers.
    """

    def __init__(self, database: Database, virtual_host: str) -> None:
        self._database = database
        self._virtual_host = virtual_host
        self.connection = 0
        self.version = 0
        self.queues: dict[str, QueueRecord] = {}
        self._table = RoutingTable()
        #: Queues deleted here: a publisher that had not seen it yet may have put something into them since.
        self.deleted: list[int] = []

    # --- the cache

    def refresh(self) -> bool:
        """Read again what was declared, if it has changed since. Returns whether it has."""
        version = self._database.value("SELECT topology FROM {p}meta")
        if version is None:
            self._database.close()
            raise exceptions.InternalError(f"the table {self._database.prefix}meta is empty: create the tables anew")
        if version == self.version:
            return False
        rows = self._database.rows
        known = {record.id: record for record in self.queues.values()}
        self.queues = {}
        for number, name, durable, exclusive, auto_delete, arguments, owner in rows(
            "SELECT id, name, durable, exclusive, auto_delete, arguments, owner FROM {p}queues"
        ):
            record = known.get(number)
            if record is None:
                spec = QueueSpec(name, bool(durable), bool(exclusive), bool(auto_delete), json.loads(arguments))
                record = QueueRecord(number, spec, Limits.of(spec), owner)
            self.queues[name] = record
        table = RoutingTable()
        for name, kind in PREDECLARED.items():
            table.declare(f"amq.{name}", kind)
        for name, kind, arguments in rows("SELECT name, type, arguments FROM {p}exchanges"):
            table.declare(name, kind, json.loads(arguments).get("alternate-exchange"))
        for source, destination, to_exchange, routing_key, arguments in rows(
            "SELECT source, destination, to_exchange, routing_key, arguments FROM {p}bindings"
        ):
            if source in table and (destination in table if to_exchange else destination in self.queues):
                table.bind(source, destination, routing_key, json.loads(arguments), bool(to_exchange))
        self._table = table
        self.version = version
        return True

    def lock(self) -> None:
        """Keep other connections from changing the topology until the transaction ends, and see what they changed."""
        self._database.rows("SELECT topology FROM {p}meta {lock}")
        self.refresh()

    def _changed(self) -> None:
        self._database.rows("UPDATE {p}meta SET topology = topology + 1")
        self._database.notify(())
        self.refresh()

    def forget(self) -> None:
        """Read everything again at the next refresh: a transaction that changed it was rolled back."""
        self.version = 0

    # --- exchanges

    def check_exchange(self, name: str) -> None:
        """Raise NotFound for an exchange that is not there."""
        if name not in self._table:
            raise exceptions.NotFound(f"no exchange '{name}' in vhost '{self._virtual_host}'")

    def _exchange(self, name: str) -> ExchangeSpec | None:
        if name.startswith("amq.") and name[4:] in PREDECLARED:
            return ExchangeSpec(name, PREDECLARED[name[4:]], arguments={})
        rows = self._database.rows(
            "SELECT type, durable, auto_delete, arguments FROM {p}exchanges WHERE name = ?", name
        )
        if not rows:
            return None
        kind, durable, auto_delete, arguments = rows[0]
        return ExchangeSpec(name, kind, bool(durable), bool(auto_delete), json.loads(arguments))

    def declare_exchange(self, spec: ExchangeSpec) -> None:
        """Create an exchange. Raises NotEquivalentError, InvalidCommand, PreconditionFailed."""
        spec = spec._replace(arguments=_plain(spec.arguments))
        self._database.check_text(spec.name)
        self.lock()
        known = self._exchange(spec.name)
        if known is not None:
            if known != spec:
                raise exceptions.NotEquivalentError(
                    f"exchange '{spec.name}' is declared as {describe(known)}, not as {describe(spec)}"
                )
            return
        alternate = (spec.arguments or {}).get("alternate-exchange")
        if alternate is not None and not isinstance(alternate, str):
            raise exceptions.PreconditionFailed(f"invalid arg 'alternate-exchange' for '{spec.name}': {alternate!r}")
        try:
            RoutingTable().declare(spec.name, spec.type, alternate)
        except ValueError as error:
            raise exceptions.InvalidCommand(str(error)) from error
        self._database.rows(
            "INSERT INTO {p}exchanges (name, type, durable, auto_delete, arguments) VALUES (?, ?, ?, ?, ?)",
            spec.name, spec.type, spec.durable, spec.auto_delete, _dumps(spec.arguments),
        )  # fmt: skip
        self._changed()

    def delete_exchange(self, name: str, if_unused: bool) -> None:
        """Delete an exchange with its bindings. Raises AccessRefused, PreconditionFailed."""
        if name.startswith("amq.") or not name:
            raise exceptions.AccessRefused(f"exchange '{name}' is the broker's own")
        self.lock()
        if name not in self._table:
            return
        if if_unused and self._table.bindings(name):
            raise exceptions.PreconditionFailed(f"exchange '{name}' is in use")
        rows = self._database.rows
        sources = rows(
            "DELETE FROM {p}bindings WHERE source = ? OR (destination = ? AND to_exchange) RETURNING source", name, name
        )
        rows("DELETE FROM {p}exchanges WHERE name = ?", name)
        self._changed()
        self._drop_unused({source for (source,) in sources} - {name})

    def _drop_unused(self, exchanges: set[str]) -> None:
        """Delete the auto-delete exchanges among these whose last binding is gone."""
        for name in exchanges:
            spec = self._exchange(name)
            if spec is not None and spec.auto_delete and not self._table.bindings(name):
                self.delete_exchange(name, if_unused=False)

    # --- queues

    def queue(self, name: str) -> QueueRecord:
        """Return a queue that this connection may use. Raises NotFound, ResourceLocked."""
        record = self.queues.get(name)
        if record is None:
            raise exceptions.NotFound(f"no queue '{name}' in vhost '{self._virtual_host}'")
        if record.owner not in (None, self.connection):
            raise exceptions.ResourceLocked(f"queue '{name}' is exclusive to another connection")
        return record

    def declare_queue(self, spec: QueueSpec) -> QueueRecord:
        """Return a queue, created if it is not there. Raises NotEquivalentError, ResourceLocked, PreconditionFailed."""
        spec = spec._replace(arguments=_plain(spec.arguments))
        self._database.check_text(spec.name)
        if spec.name not in self.queues:
            self.lock()
        if spec.name in self.queues:
            record = self.queue(spec.name)
            if record.spec != spec:
                raise exceptions.NotEquivalentError(
                    f"queue '{spec.name}' is declared as {describe(record.spec)}, not as {describe(spec)}"
                )
            self.used(record)
            return record
        limits = Limits.of(spec)
        # A dead letter that could not be stored would end each pass over what has expired, for all connections.
        self._database.check_text(limits.dead_letter_exchange or "")
        self._database.check_text(limits.dead_letter_routing_key or "")
        owner = self.connection if spec.exclusive else None
        self._database.rows(
            "INSERT INTO {p}queues (name, durable, exclusive, auto_delete, arguments, owner, expires)"
            " VALUES (?, ?, ?, ?, ?, ?, {now} + ?)",
            spec.name, spec.durable, spec.exclusive, spec.auto_delete, _dumps(spec.arguments), owner, limits.expires,
        )  # fmt: skip
        self._changed()
        return self.queues[spec.name]

    def used(self, record: QueueRecord, is_polled: bool = False) -> None:
        """Put off the time at which an unused queue expires; while it has consumers it has none.

        ``is_polled``: only if it has none and that time moves by a tenth, because each write is a commit.
        """
        ttl = record.limits.expires
        if ttl is not None and is_polled:
            soon = "SELECT 1 FROM {p}queues WHERE id = ? AND expires < {now} + ?"
            if not self._database.rows(soon, record.id, 0.9 * ttl):
                return
        if ttl is not None:
            self._database.rows(
                "UPDATE {p}queues SET expires = CASE WHEN EXISTS"
                " (SELECT 1 FROM {p}consumers WHERE queue = {p}queues.id) THEN NULL ELSE {now} + ? END WHERE id = ?",
                ttl,
                record.id,
            )

    def delete_queue(self, record: QueueRecord) -> int:
        """Delete a queue with its bindings and consumers; returns how many waiting messages are gone with it."""
        self.lock()
        rows = self._database.rows
        waiting, *_ = [delete_messages(self._database, record.id, state) for state in STATES]
        rows("DELETE FROM {p}consumers WHERE queue = ?", record.id)
        rows("DELETE FROM {p}queues WHERE id = ?", record.id)
        sources = rows(
            "DELETE FROM {p}bindings WHERE destination = ? AND NOT to_exchange RETURNING source", record.spec.name
        )
        self.deleted.append(record.id)
        self._changed()
        self._drop_unused({source for (source,) in sources})
        return waiting

    def clear_deleted(self, by_all: bool = False) -> None:
        """Delete what was put into queues after they were deleted here; ``by_all``: by other connections too.

        That is what a publisher's or an application's transaction did that had not seen it.
        """
        if by_all:
            self.deleted += [number for (number,) in self._database.rows(FILLED_AND_DELETED)]
        rows = self._database.rows
        self.deleted = [
            number
            for number in self.deleted
            if not rows("SELECT 1 FROM {p}queues WHERE id = ?", number)  # else its deletion was rolled back
            and sum(delete_messages(self._database, number, state) for state in STATES) > 0  # there may be more
        ]

    # --- bindings

    def bind(self, source: str, destination: str, routing_key: str, arguments: Any, to_exchange: bool) -> None:
        """Bind a queue or an exchange to an exchange. Raises NotFound, ResourceLocked, PreconditionFailed."""
        self._database.check_text(routing_key)
        self.lock()
        self._check_ends(source, destination, to_exchange)
        arguments = _plain(arguments)
        trial = RoutingTable()
        trial.declare(source, self._exchange_type(source))
        try:
            trial.bind(source, destination, routing_key, arguments)
        except ValueError as error:
            raise exceptions.PreconditionFailed(str(error)) from error
        added = self._database.rows(
            "INSERT INTO {p}bindings (source, destination, to_exchange, routing_key, arguments)"
            " VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING 1",
            source, destination, to_exchange, routing_key, _dumps(arguments),
        )  # fmt: skip
        if added:
            self._changed()

    def unbind(self, source: str, destination: str, routing_key: str, arguments: Any, to_exchange: bool) -> None:
        """Remove a binding, if there is one. Raises NotFound, ResourceLocked."""
        self.lock()
        self._check_ends(source, destination, to_exchange)
        removed = self._database.rows(
            "DELETE FROM {p}bindings WHERE source = ? AND destination = ? AND to_exchange = ? AND routing_key = ?"
            " AND arguments = ? RETURNING 1",
            source, destination, to_exchange, routing_key, _dumps(_plain(arguments)),
        )  # fmt: skip
        if removed:
            self._changed()
            self._drop_unused({source})

    def _check_ends(self, source: str, destination: str, to_exchange: bool) -> None:
        if not source or (to_exchange and not destination):
            raise exceptions.AccessRefused("nothing can be bound to or from the default exchange")
        if to_exchange:
            self.check_exchange(destination)
        else:
            self.queue(destination)
        self.check_exchange(source)

    def _exchange_type(self, name: str) -> str:
        spec = self._exchange(name)
        return "direct" if spec is None else spec.type

    # --- routing

    def route(self, delivery: Delivery) -> list[QueueRecord]:
        """Return the queues that a message goes to. Raises NotFound for an unknown exchange."""
        try:
            if not delivery.exchange:
                names: Any = (delivery.routing_key,)
            else:
                names = self._table.route(delivery.exchange, delivery.routing_key, delivery.properties.headers)
        except UnknownExchange:
            raise exceptions.NotFound(f"no exchange '{delivery.exchange}' in vhost '{self._virtual_host}'") from None
        return [self.queues[name] for name in names if name in self.queues]

    # --- consumers

    def add_consumer(self, channel: int, tag: str, record: QueueRecord, exclusive: bool) -> None:
        """Note a consumer for the others. Raises PreconditionFailed for a tag that cannot be stored."""
        self._database.check_text(tag)
        self._database.rows(
            "INSERT INTO {p}consumers (connection, channel, tag, queue, exclusive) VALUES (?, ?, ?, ?, ?)",
            self.connection, channel, tag, record.id, exclusive,
        )  # fmt: skip
        self.used(record)

    def remove_consumer(self, channel: int, tag: str) -> None:
        """Forget a consumer."""
        self._database.rows(
            "DELETE FROM {p}consumers WHERE connection = ? AND channel = ? AND tag = ?", self.connection, channel, tag
        )

    def is_consumed(self, record: QueueRecord) -> bool:
        """Return whether a queue has consumers, of any connection."""
        return bool(self._database.rows("SELECT 1 FROM {p}consumers WHERE queue = ? LIMIT 1", record.id))

    def consumer_counts(self) -> dict[int, int]:
        """Return how many consumers queues have, by their ids."""
        return dict(self._database.rows("SELECT queue, count(*) FROM {p}consumers GROUP BY queue"))

    def consumers_elsewhere(self, record: QueueRecord) -> tuple[int, bool]:
        """Return how many consumers other connections have, and whether one of them is exclusive."""
        rows = self._database.rows(
            "SELECT exclusive FROM {p}consumers WHERE queue = ? AND connection <> ?", record.id, self.connection
        )
        return len(rows), any(exclusive for (exclusive,) in rows)


def delete_messages(database: Database, queue: int, state: str, newest: int = MAX_ID) -> int:
    """Delete messages of a queue in one of the STATES, at most DELETED_AT_ONCE; returns how many.

    ``queue``: its id; ``newest``: the id of the last message that may be deleted, unless they are delayed.

    A row that another transaction has locked changes its state just now, and stays. To wait for it would be against
    the order of locks: see ``Session``.
    """
    if state is DELAYED:
        return len(database.rows(DELETE_DELAYED, MAX_DELAYED_LOOKED_AT, queue))
    return len(database.rows(DELETE % state, queue, newest, DELETED_AT_ONCE))


def _plain(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return arguments as they come back from the database. Raises PreconditionFailed for what JSON lacks."""
    try:
        plain: dict[str, Any] = json.loads(_dumps(arguments))
    except (TypeError, ValueError, RecursionError) as error:
        raise exceptions.PreconditionFailed(f"arguments cannot be stored: {error}") from error
    return plain


def _dumps(arguments: Mapping[str, Any] | None) -> str:
    return json.dumps(dict(arguments or {}), sort_keys=True, allow_nan=False)
