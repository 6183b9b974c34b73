"""SQLite: one file is the broker, for all processes of a machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from copy import copy
from time import monotonic, sleep
from typing import Any
from weakref import WeakSet

from kombulite import exceptions
from kombulite.brokers.base import Settings
from kombulite.brokers.sql.database import Database, Message, Row
from kombulite.utils.locks import Lock

__all__ = ["SQLite"]

BUSY_TIMEOUT = 30.0  # seconds to wait for another process's transaction
SYNCHRONOUS = ("OFF", "NORMAL", "FULL", "EXTRA")

#: Errors of SQLite after which trying again may do, by the beginning of its text.
TRANSIENT = ("database is locked", "database table is locked", "database schema is locked")
FULL = ("database or disk is full", "disk I/O error", "attempt to write a readonly database")

INSERT = (
    "INSERT INTO {p}messages (queue, rank, due, expires, exchange, routing_key, properties, body)"
    " VALUES (?, ?, ?, {now} + ?, ?, ?, ?, ?)"
)

_open: dict[str, WeakSet[SQLite]] = {}  # the connections of this process, by file
_open_lock = Lock()


class SQLite(Database):
    """A connection to a file. Transport option ``synchronous``: what a commit waits for (FULL)."""

    now = "((julianday('now') - 2440587.5) * 86400.0)"
    skip = lock = ""  # a transaction has the whole file
    is_postgresql = False

    def __init__(self, settings: Settings, prefix: str) -> None:
        super().__init__(prefix)
        self.path = settings.virtual_host
        if self.path in ("", "/"):
            raise ValueError("a sqlite:// URL must name a file: sqlite:///events.db")
        self._synchronous = str(settings.options.get("synchronous") or "FULL").upper()
        if self._synchronous not in SYNCHRONOUS:
            raise ValueError(f"synchronous must be one of {', '.join(SYNCHRONOUS)}, got {self._synchronous!r:.80}")
        self._connection: sqlite3.Connection | None = None
        self._version = 0
        self.ring: Any = None  # called when another connection of this process has committed something

    def open(self) -> None:
        """Open the file, creating it if needed."""
        try:
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
            )
            self._use_wal(self._connection)
            self._connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        except sqlite3.Error as error:
            self.close()
            raise exceptions.RecoverableConnectionError(f"cannot open {self.path}: {error}") from error
        with _open_lock:
            _open.setdefault(self.path, WeakSet()).add(self)

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Have readers go on while one writes. The change needs the file alone, and does not wait for it by itself."""
        deadline = monotonic() + BUSY_TIMEOUT
        while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            try:
                connection.execute("PRAGMA journal_mode = WAL").fetchall()
            except sqlite3.OperationalError:
                if monotonic() > deadline:
                    raise
                sleep(0.01)

    def borrow(self, connection: Any) -> Database:
        """Return the tables over the caller's connection."""
        if not isinstance(connection, sqlite3.Connection):
            raise TypeError(f"via must be a connection of sqlite3, got {type(connection).__name__}")
        borrowed = copy(self)
        borrowed._connection, borrowed.ring = connection, None
        return borrowed

    def close(self) -> None:
        """Close the file."""
        connection, self._connection = self._connection, None
        with _open_lock:
            _open.get(self.path, WeakSet()).discard(self)
        if connection is not None:
            connection.close()

    @property
    def is_idle(self) -> bool:
        """Whether no transaction is open."""
        return not self._depth and (self._connection is None or not self._connection.in_transaction)

    def recover(self) -> None:
        """Roll back what was interrupted."""
        self._depth = 0
        self.roll_back()

    @property
    def is_lost(self) -> bool:
        """Whether the file is closed."""
        return self._connection is None

    def prepare(self, statement: str) -> str:
        """Return the statement; it is in SQLite's dialect."""
        return statement

    def _cursor(self) -> sqlite3.Connection:
        if self._connection is None:
            raise exceptions.RecoverableConnectionError("connection already closed")
        return self._connection

    def fetch(self, statement: str, values: Sequence[Any]) -> list[Row]:
        """Run a statement and return its rows."""
        try:
            return self._cursor().execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise _translated(error) from error

    def insert_messages(self, rows: Sequence[Message]) -> None:
        """Insert messages, within a transaction."""
        try:
            self._cursor().executemany(self.filled(INSERT), rows)
        except sqlite3.Error as error:
            raise _translated(error) from error

    def insert_unless_changed(self, row: Message, topology: int) -> bool:
        """Insert a message in a transaction of its own; not if the topology has changed."""
        with self.transaction():
            if self.value("SELECT topology FROM {p}meta") != topology:
                return False
            self.insert_messages([row])
            self.notify([row[0]])
        return True

    def begin(self) -> None:
        """Take the file's write lock."""
        self.fetch("BEGIN IMMEDIATE", ())
        self._is_news = False

    def commit(self) -> None:
        """Commit, and wake the other connections of this process."""
        self.fetch("COMMIT", ())
        if self._is_news:
            with _open_lock:
                others = [each for each in _open.get(self.path, ()) if each is not self]
            for other in others:
                if other.ring is not None:
                    other.ring()

    def roll_back(self) -> None:
        """Roll back, unless the failure did."""
        if self._connection is not None and self._connection.in_transaction:
            self.fetch("ROLLBACK", ())

    def notify(self, queues: Sequence[int]) -> None:
        """Note that the commit is news for other connections; other processes see it by ``data_version``."""
        self._is_news = True

    def has_news(self) -> bool:
        """Return whether another connection has committed something since the last call."""
        version = self.fetch("PRAGMA data_version", ())[0][0]
        is_new, self._version = version != self._version, version
        return bool(is_new)

    def lock_schema(self) -> None:
        """Nothing: the transaction has the file's write lock."""

    def has_tables(self) -> bool:
        """Return whether the tables are there."""
        return self.value("SELECT 1 FROM sqlite_master WHERE name = ?", f"{self.prefix}meta") is not None


def _translated(error: sqlite3.Error) -> Exception:
    text = f"SQLite: {error}"
    if str(error).startswith(TRANSIENT):
        return exceptions.RecoverableChannelError(text)
    if str(error).startswith(FULL):
        return exceptions.ResourceError(text)
    if isinstance(error, (sqlite3.DatabaseError, sqlite3.InterfaceError)) and "closed" in str(error):
        return exceptions.RecoverableConnectionError(text)
    return exceptions.ChannelError(text)
