"""PostgreSQL, by psycopg 3."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from kombulite import exceptions
from kombulite.brokers.base import Settings
from kombulite.brokers.sql.database import Database, Message, Row

__all__ = ["PostgreSQL"]

#: Key of the advisory lock that is held while the tables are created.
SCHEMA_LOCK = 0x6B6F6D62756C69

#: SQLSTATE classes and codes after which trying again may do: serialization failure, deadlock, timeouts.
TRANSIENT = frozenset(["40001", "40P01", "55P03", "57014"])
#: Those of a server that has no room, or may not write now: disk full, out of memory, read-only.
NO_RESOURCES = ("53", "25006")


COLUMNS = "queue, rank, due, expires, exchange, routing_key, properties, body"

INSERT_UNLESS_CHANGED = (
    "WITH put AS (INSERT INTO {p}messages (" + COLUMNS + ") SELECT ?, ?, ?, {now} + ?, ?, ?, ?, ?"
    " FROM {p}meta WHERE topology = ? RETURNING 1),"
    " told AS (SELECT pg_notify(?, '') WHERE EXISTS (SELECT 1 FROM {p}consumers WHERE queue = ?))"
    " SELECT count(*) FROM put LEFT JOIN told ON true"
)


class PostgreSQL(Database):
    """A connection to a server.

    Transport options: ``schema``: where the tables are (by default the search path's first); ``connect_args``: further
    parameters of libpq, such as ``sslmode`` and ``target_session_attrs``.
    """

    now = "(extract(epoch from clock_timestamp())::double precision)"
    skip = "FOR UPDATE SKIP LOCKED"
    lock = "FOR UPDATE"
    is_postgresql = True

    def __init__(self, settings: Settings, prefix: str) -> None:
        super().__init__(prefix)
        self._settings = settings
        self._schema = settings.options.get("schema")
        if self._schema is not None and not (self._schema.replace("_", "a").isalnum() and self._schema.isascii()):
            raise ValueError(f"schema must consist of ASCII letters, digits and '_', got {self._schema!r:.80}")
        self._connection: psycopg.Connection[Any] | None = None
        self.channel = f"{prefix}{self._schema or ''}"[:63]

    def _connect(self) -> psycopg.Connection[Any]:
        settings, options = self._settings, dict(self._settings.options.get("connect_args") or {})
        if self._schema:
            options["options"] = f"-c search_path={self._schema} {options.get('options', '')}"
        if settings.connect_timeout is not None:
            options.setdefault("connect_timeout", max(int(settings.connect_timeout), 1))
        try:
            return psycopg.connect(
                host=settings.hostname,
                port=settings.port,
                user=settings.userid,
                password=settings.password,
                dbname=settings.virtual_host.strip("/") or None,
                autocommit=True,
                **options,
            )
        except psycopg.Error as error:
            raise _translated(error, is_lost=True) from None  # its text and its frames may hold the password

    def open(self) -> None:
        """Connect to the server."""
        self._connection = self._connect()

    def borrow(self, connection: Any) -> Database:
        """Return the tables over the caller's connection, which may have another search path."""
        if not isinstance(connection, psycopg.Connection):
            raise TypeError(f"via must be a connection of psycopg 3, got {type(connection).__name__}")
        borrowed = copy(self)
        borrowed._connection, borrowed._statements = connection, {}
        if self._schema:
            borrowed.prefix = f"{self._schema}.{self.prefix}"
        return borrowed

    def close(self) -> None:
        """Disconnect."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @property
    def is_idle(self) -> bool:
        """Whether no transaction is open and no statement is under way."""
        connection = self._connection
        return not self._depth and (connection is None or connection.info.transaction_status is TransactionStatus.IDLE)

    def recover(self) -> None:
        """Roll back what was interrupted; an answer that is still to come would be taken for the next one's."""
        self._depth = 0
        if self._connection is not None and self._connection.info.transaction_status is TransactionStatus.ACTIVE:
            self.close()
        else:
            self.roll_back()

    @property
    def is_lost(self) -> bool:
        """Whether the connection to the server is gone."""
        return self._connection is None or bool(self._connection.closed)

    def listen(self) -> psycopg.Connection[Any]:
        """Return a connection of its own that hears the notifications."""
        listener = self._connect()
        listener.execute(f'LISTEN "{self.channel}"')
        return listener

    def prepare(self, statement: str) -> str:
        """Return the statement with psycopg's placeholders."""
        return statement.replace("%", "%%").replace("?", "%s")

    def _open_connection(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            raise exceptions.RecoverableConnectionError("connection already closed")
        return self._connection

    def fetch(self, statement: str, values: Sequence[Any]) -> list[Row]:
        """Run a statement and return its rows."""
        try:
            cursor = self._open_connection().execute(statement, values or None, binary=True)
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise _translated(error, self.is_lost) from error

    def insert_messages(self, rows: Sequence[Message]) -> None:
        """Insert messages by COPY, which takes a fraction of what an INSERT for each takes."""
        now = self.value("SELECT {now}") if any(row[3] is not None for row in rows) else 0.0
        try:
            with (
                self._open_connection().cursor() as cursor,
                cursor.copy(self.filled("COPY {p}messages (" + COLUMNS + ") FROM STDIN")) as copied,
            ):
                for queue, rank, due, ttl, *rest in rows:
                    copied.write_row((queue, rank, due, None if ttl is None else now + ttl, *rest))
        except psycopg.Error as error:
            raise _translated(error, self.is_lost) from error

    def insert_unless_changed(self, row: Message, topology: int) -> bool:
        """Insert a message and wake its consumers in one statement; not if the topology has changed."""
        return bool(self.value(INSERT_UNLESS_CHANGED, *row, topology, self.channel, row[0]))

    def begin(self) -> None:
        """Start a transaction."""
        self.fetch("BEGIN", ())

    def commit(self) -> None:
        """Commit it."""
        self.fetch("COMMIT", ())

    def roll_back(self) -> None:
        """Roll it back."""
        if not self.is_lost:
            self.fetch("ROLLBACK", ())

    def notify(self, queues: Sequence[int]) -> None:
        """Notify the listeners at commit, of queues with consumers only: a NOTIFY takes a lock of the whole cluster."""
        if not queues:
            self.rows("SELECT pg_notify(?, '')", self.channel)
        else:
            self.rows(
                "SELECT pg_notify(?, '') WHERE EXISTS (SELECT 1 FROM {p}consumers WHERE queue = ANY(?))",
                self.channel,
                list(queues),
            )

    def lock_schema(self) -> None:
        """Take an advisory lock until the transaction ends: CREATE TABLE IF NOT EXISTS of two sessions may collide."""
        self.rows("SELECT pg_advisory_xact_lock(?)", SCHEMA_LOCK)

    def has_tables(self) -> bool:
        """Return whether the tables are there."""
        return self.value("SELECT to_regclass(?) IS NOT NULL", f"{self.prefix}meta") is True


def _translated(error: psycopg.Error, is_lost: bool) -> Exception:
    text, code = f"PostgreSQL: {error}".strip(), error.sqlstate or ""
    if code.startswith("28"):
        return exceptions.AccessRefused(text)
    if is_lost or code.startswith(("08", "57P")):
        return exceptions.RecoverableConnectionError(text)
    if code in TRANSIENT:
        return exceptions.RecoverableChannelError(text)
    if code.startswith(NO_RESOURCES):
        return exceptions.ResourceError(text)
    return exceptions.ChannelError(text)
