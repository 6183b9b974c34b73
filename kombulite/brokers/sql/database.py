"""What the SQL brokers ask of a database: statements, transactions, errors of ours. One connection to it.

Statements are written once for all databases: ``?`` for a parameter, ``{p}`` before the name of a table, ``{now}`` for
the server's time in seconds since 1970, ``{skip}`` behind a SELECT that locks its rows and skips those others locked,
``{lock}`` behind one that waits for them, ``{place}`` for the column that says where a row is, ``{found}`` for the
condition that a row is at one of the ``place``s of the table ``found``, which may have few rows or many.

The class is wider than others: it has all in which the databases differ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from kombulite import exceptions
from kombulite.brokers.sql import schema
from kombulite.brokers.sql.outbox import Statement
from kombulite.brokers.sql.schema import check_prefix, quoted_schema

__all__ = ["Database", "Head", "Segment"]

LOOK_INTERVAL = 5.0

Row = tuple[Any, ...]

#: The columns of a message that is inserted, but for its body: queue, rank, due, seconds until it expires, exchange,
#: routing key, properties.
Head = tuple[int, int, float | None, float | None, str, str, str]


class Segment(NamedTuple):
    """Messages that differ by their bodies alone, in their order."""

    head: Head
    bodies: Sequence[bytes]


class Database(ABC):
    """A connection to a database. Used by one thread at a time."""

    #: What ``{now}``, ``{skip}``, ``{lock}``, ``{place}`` and ``{found}`` stand for.
    now: str
    skip: str
    lock: str
    place: str
    found: str
    is_postgresql: bool
    #: Whether another process runs the statements, so that this one can do something else meanwhile.
    is_apart = False

    #: Seconds between two looks that need no wake.
    look_interval = LOOK_INTERVAL

    def __init__(self, prefix: str, schema_name: str | None = None) -> None:
        self._bare_prefix = check_prefix(prefix)
        self._schema = schema_name
        self.prefix = f"{quoted_schema(schema_name)}.{prefix}" if schema_name else prefix
        self._statements: dict[str, str] = {}
        self._depth = 0

    # --- what a database implements

    @abstractmethod
    def open(self) -> None:
        """Connect. Raises RecoverableConnectionError, AccessRefused."""

    @abstractmethod
    def close(self) -> None:
        """Disconnect. May be repeated."""

    @abstractmethod
    def prepare(self, statement: str) -> str:
        """Return the statement in the database's own dialect."""

    @abstractmethod
    def fetch(self, statement: str, values: Sequence[Any]) -> list[Row]:
        """Run a prepared statement and return its rows. Raises this library's errors."""

    @abstractmethod
    def insert_messages(self, segments: Sequence[Segment]) -> None:
        """Insert messages, within a transaction."""

    @abstractmethod
    def insert_unless_changed(self, segment: Segment, topology: int, wakes_all: bool) -> bool:
        """Insert messages in a transaction of their own and wake their consumers; not if the topology has changed.

        Returns whether they are inserted. ``topology``: its version as the caller knows it; ``wakes_all``: as
        ``notify``.
        """

    def begin_insert_unless_changed(self, segment: Segment, topology: int, wakes_all: bool) -> Callable[[], bool]:
        """Begin what ``insert_unless_changed`` does; returns what waits for its end, and returns what that returns.

        Whatever else is run on this connection is run behind it.
        """
        is_inserted = self.insert_unless_changed(segment, topology, wakes_all)
        return lambda: is_inserted

    @abstractmethod
    def outbox_statement(self, head: Head, body: bytes) -> Statement:
        """Return what inserts a message and wakes its consumers when the transaction commits that runs it."""

    @abstractmethod
    def begin(self) -> None:
        """Start a transaction that will write."""

    @abstractmethod
    def commit(self) -> None:
        """Commit it."""

    @abstractmethod
    def roll_back(self) -> None:
        """Roll it back; a connection that is lost has done so."""

    @abstractmethod
    def notify(self, queues: Sequence[int], wakes_all: bool = False) -> None:
        """Wake the consumers of these queues when the transaction commits; of the topology's changes, if empty.

        ``wakes_all``: wake the others too, because what was put into the queues may be a dead letter soon.
        """

    def free_notifications(self) -> None:  # noqa: B027 - where there is nothing to do
        """Free the room of notifications that all have read, where the database does not do that by itself."""

    def listen(self) -> Any:
        """Return a connection of its own that the database wakes (``fileno``, ``take_notifications``, ``close``)."""
        return None

    def has_news(self) -> bool:
        """Return whether another connection has committed something since the last call."""
        return False

    def next_look(self) -> float | None:
        """Return the seconds until ``has_news`` is to be asked again; None where the database wakes a connection."""
        return None

    @property
    @abstractmethod
    def is_idle(self) -> bool:
        """Whether no transaction is open and no statement is under way."""

    @abstractmethod
    def recover(self) -> None:
        """End a transaction whose end a signal handler prevented; a statement under way ends the connection."""

    @property
    @abstractmethod
    def is_lost(self) -> bool:
        """Whether the connection to the database is gone."""

    # --- what is the same for all

    def rows(self, statement: str, *values: Any) -> list[Row]:
        """Run a statement and return its rows."""
        return self.fetch(self.prepared(statement), values)

    def prepared(self, statement: str) -> str:
        """Return a statement as ``fetch`` takes it, prepared when it is asked for first."""
        prepared = self._statements.get(statement)
        if prepared is None:
            prepared = self._statements[statement] = self.prepare(self.filled(statement))
        return prepared

    def value(self, statement: str, *values: Any) -> Any:
        """Run a statement and return the first column of its first row, None if there is none."""
        rows = self.rows(statement, *values)
        return rows[0][0] if rows else None

    def check_text(self, text: str) -> None:
        """Raise PreconditionFailed for text that the database does not store."""
        if self.is_postgresql and "\0" in text:
            raise exceptions.PreconditionFailed(f"PostgreSQL stores no text with NUL: {text!r:.80}")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise exceptions.PreconditionFailed(f"text must be valid Unicode, got {text!a:.80}") from None

    def filled(self, statement: str) -> str:
        """Return a statement with its placeholders filled in."""
        statement = statement.replace("{p}", self.prefix).replace("{now}", self.now).replace("{found}", self.found)
        return statement.replace("{skip}", self.skip).replace("{lock}", self.lock).replace("{place}", self.place)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run what is inside as one transaction. May be nested; the outermost one commits."""
        if self._depth:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
            return
        self.begin()
        self._depth = 1
        try:
            yield
        except BaseException:
            self._depth = 0
            self.roll_back()
            raise
        self._depth = 0
        try:
            self.commit()
        except BaseException:
            self.roll_back()
            raise

    def create_tables(self, upgrades: bool = False) -> None:
        """Create the tables unless they are there. ``upgrades``: bring those of an earlier version up to date."""
        with self.transaction():
            self.lock_schema()
            are_there = self.has_tables()
            since = self.value("SELECT version FROM {p}meta") if are_there and upgrades else None
            if not are_there or since in schema.MIGRATIONS:
                name = "postgresql" if self.is_postgresql else "sqlite"
                for statement in schema.schema_statements(name, self._bare_prefix, self._schema, since):
                    self.rows(statement)

    def check_tables(self) -> None:
        """Raise OperationalError for tables that are missing or of another version."""
        if not self.has_tables():
            raise exceptions.OperationalError(
                f"there are no tables {self.prefix}*: create them by 'kombulite sql init' or with create_tables=True"
            )
        version = self.value("SELECT version FROM {p}meta")
        if version in schema.MIGRATIONS:
            raise exceptions.OperationalError(
                f"the tables {self.prefix}* are of version {version}: end what uses them, then run 'kombulite sql init'"
            )
        if version != schema.VERSION:
            raise exceptions.OperationalError(
                f"the tables {self.prefix}* are of version {version}, this kombulite needs version {schema.VERSION}"
            )

    @abstractmethod
    def lock_schema(self) -> None:
        """Keep others from creating the tables at the same time, until the transaction ends."""

    @abstractmethod
    def has_tables(self) -> bool:
        """Return whether the tables are there."""
