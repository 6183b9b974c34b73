"""SQLite: one file is the broker, for all processes of a machine."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from random import uniform
from time import monotonic, sleep
from typing import Any
from weakref import WeakSet

from kombulite import exceptions
from kombulite.brokers.base import Settings
from kombulite.brokers.sql.database import Database, Head, Row, Segment
from kombulite.brokers.sql.outbox import Statement
from kombulite.brokers.sql.watch import FileWatch
from kombulite.log import get_logger
from kombulite.utils.locks import Lock

__all__ = ["SQLite"]

logger = get_logger(__name__)

BUSY_TIMEOUT = 30.0  # seconds to wait for another process's transaction
BUSY_PAUSE = 0.0005, 0.003  # seconds between two tries, by chance
TICK = 0.009  # seconds between two looks at what other processes have committed
QUIET = 0.1  # seconds without a write before the watch is armed again, and looks end
SYNCHRONOUS = ("OFF", "NORMAL", "FULL", "EXTRA")

#: Errors of SQLite after which trying again may do, by the beginning of its text.
TRANSIENT = ("database is locked", "database table is locked", "database schema is locked")
FULL = ("database or disk is full", "disk I/O error", "attempt to write a readonly database")
CORRUPT = ("file is not a database", "database disk image is malformed", "malformed database schema")

INSERT_UNLESS_CHANGED = (
    "INSERT INTO {p}messages (queue, rank, due, expires, exchange, routing_key, properties, body)"
    " SELECT ?, ?, ?, {now} + ?, ?, ?, ?, ? FROM {p}meta WHERE topology = ?"
)

INSERT = (
    "INSERT INTO {p}messages (queue, rank, due, expires, exchange, routing_key, properties, body)"
    " VALUES (?, ?, ?, {now} + ?, ?, ?, ?, ?)"
)

_open: dict[str, WeakSet[SQLite]] = {}  # the connections of this process, by file
_open_lock = Lock()
_fork_lock = Lock()  # of the thread that forks
_held_for_fork: list[Lock] = []
FORK_TIMEOUT = 10.0  # seconds for other threads to end what they do with their files before a fork


class SQLite(Database):
    """A connection to a file. Transport option ``synchronous``: what a commit waits for (FULL)."""

    now = "((julianday('now') - 2440587.5) * 86400.0)"
    skip = lock = ""  # a transaction has the whole file
    place = "id"
    found = "id IN (SELECT place FROM found)"
    is_postgresql = False

    def __init__(self, settings: Settings, prefix: str) -> None:
        super().__init__(prefix)
        name = settings.virtual_host
        if name in ("", "/", ":memory:"):
            raise ValueError("a sqlite:// URL must name a file: sqlite:///events.db")
        self.path = os.path.abspath(name)  # the process may change its directory, as daemons do
        self._synchronous = str(settings.options.get("synchronous") or "FULL").upper()
        if self._synchronous not in SYNCHRONOUS:
            raise ValueError(f"synchronous must be one of {', '.join(SYNCHRONOUS)}, got {self._synchronous!r:.80}")
        self._connection: sqlite3.Connection | None = None
        self._version = 0
        self._insert, self._insert_unless_changed = self.filled(INSERT), self.filled(INSERT_UNLESS_CHANGED)
        self._watch: FileWatch | None = None
        self._can_watch = True
        self._is_settled = False  # whether all that was written before the watch was armed is seen
        self.user_lock: Lock | None = None  # whose holder uses this connection
        self.ring: Any = None  # called when a connection of this process has committed something

    def open(self) -> None:
        """Open the file, creating it if needed."""
        self._watch = None  # a forked child has its parent's
        try:
            self._connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
            self._use_wal(self._connection)
            self._connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        except sqlite3.Error as error:
            self.close()
            kind: type[Exception] = exceptions.RecoverableConnectionError
            if isinstance(error, sqlite3.NotSupportedError):
                kind = exceptions.OperationalError
            elif _is_corrupt(error):
                kind = exceptions.InternalError
            raise kind(f"cannot open {self.path}: {error}") from error
        with _open_lock:
            _open.setdefault(self.path, WeakSet()).add(self)

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Have readers go on while one writes. The change needs the file alone, and does not wait for it by itself."""
        deadline = monotonic() + BUSY_TIMEOUT
        while True:
            try:
                (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
                if mode != "wal":
                    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError:
                if monotonic() > deadline:
                    raise
                sleep(0.01)
            else:
                break
        if mode != "wal":
            raise sqlite3.NotSupportedError(f"it cannot have a write-ahead log, its journal_mode is {mode!r}")

    def close(self) -> None:
        """Close the file."""
        connection, self._connection = self._connection, None
        self._watch = None
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
        return self._run(statement, values).fetchall()

    def _run(self, statement: str, values: Sequence[Any]) -> sqlite3.Cursor:
        """Run a statement, when no other process writes.

        SQLite's own wait looks again after up to 100 ms. Of eight processes that write all the time, one came to its
        turn after seconds then, and its lease ran out.
        """
        deadline = None
        while True:
            try:
                return self._cursor().execute(statement, values)
            except sqlite3.Error as error:
                if not str(error).startswith(TRANSIENT):
                    raise self._failure(error) from error
                now = monotonic()
                if deadline is None:
                    deadline = now + BUSY_TIMEOUT
                elif now > deadline:
                    raise self._failure(error) from error
            sleep(uniform(*BUSY_PAUSE))  # noqa: S311 - no secret

    def _failure(self, error: sqlite3.Error) -> Exception:
        if _is_corrupt(error):
            self.close()  # what it would write might destroy more
        return _translated(error)

    def insert_messages(self, segments: Sequence[Segment]) -> None:
        """Insert messages, within a transaction."""
        try:
            self._cursor().executemany(self._insert, ((*head, body) for head, bodies in segments for body in bodies))
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def insert_unless_changed(self, segment: Segment, topology: int, wakes_all: bool) -> bool:
        """Insert messages in a transaction of their own; not if the topology has changed."""
        head, bodies = segment
        if len(bodies) > 1:
            with self.transaction():
                if self.value("SELECT topology FROM {p}meta") != topology:
                    return False
                self.insert_messages([segment])
                self._is_news = True
        elif not self._run(self._insert_unless_changed, (*head, bodies[0], topology)).rowcount:
            return False
        else:
            self._wake_all()
        return True

    def outbox_statement(self, head: Head, body: bytes) -> Statement:
        """Return what inserts a message; its commit is seen as that of another process is."""
        return self._insert, (*head, body)

    def begin(self) -> None:
        """Take the file's write lock."""
        self.fetch("BEGIN IMMEDIATE", ())
        self._is_news = False

    def commit(self) -> None:
        """Commit, and wake the connections of this process."""
        self.fetch("COMMIT", ())
        if self._is_news:
            self._wake_all()

    def _wake_all(self) -> None:
        """Wake the connections of this process, this one too: another thread may wait on it."""
        with _open_lock:
            connections = list(_open.get(self.path, ()))
        for each in connections:
            if each.ring is not None:
                each.ring()

    def roll_back(self) -> None:
        """Roll back, unless the failure did."""
        if self._connection is not None and self._connection.in_transaction:
            self.fetch("ROLLBACK", ())

    def notify(self, queues: Sequence[int], wakes_all: bool = False) -> None:
        """Note that the commit is news for other connections; other processes see it by ``data_version``."""
        self._is_news = True

    def has_news(self) -> bool:
        """Return whether another connection has committed something since the last call."""
        try:  # not by ``fetch``: this runs a hundred times a second
            (version,) = self._cursor().execute("PRAGMA data_version").fetchone()
        except sqlite3.Error as error:
            raise self._failure(error) from error
        is_new, self._version = version != self._version, version
        return bool(is_new)

    def listen(self) -> FileWatch | None:
        """Return a watch on what is written to the file, or None if there can be none."""
        if self._can_watch:
            try:
                self._watch, self._is_settled = FileWatch(os.path.realpath(self.path) + "-wal"), False
            except OSError as error:
                self._can_watch = False
                logger.debug("%s cannot be watched, and is looked at all the time: %s", self.path, error)
        return self._watch

    def next_look(self) -> float | None:
        """Return the seconds until the next look; None if the watch will report what is written from now on.

        A transaction is written before it can be seen. So the watch counts once it is armed and the write lock was free
        after that: then what comes later will be reported, and one more look finds what came before.
        """
        watch = self._watch
        if watch is None or watch.reported_at < 0:  # a write of this connection has not been reported
            return TICK
        if watch.is_armed and self._is_settled:
            return None
        if monotonic() - watch.reported_at < QUIET:
            return TICK
        try:
            if not watch.is_armed:
                self._is_settled = False
                watch.arm()
            connection = self._cursor()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            if not str(error).startswith(TRANSIENT):
                raise self._failure(error) from error
            return TICK
        except OSError as error:
            logger.debug("%s cannot be watched any more, and is looked at all the time: %s", self.path, error)
            self._watch, self._can_watch = None, False
            return TICK
        self._is_settled = True
        return 0

    def lock_schema(self) -> None:
        """Nothing: the transaction has the file's write lock."""

    def has_tables(self) -> bool:
        """Return whether the tables are there."""
        return self.value("SELECT 1 FROM sqlite_master WHERE name = ?", f"{self.prefix}meta") is not None


def _is_corrupt(error: sqlite3.Error) -> bool:
    return str(error).startswith(CORRUPT)


def _translated(error: sqlite3.Error) -> Exception:
    text = f"SQLite: {error}"
    if _is_corrupt(error):
        return exceptions.InternalError(text)
    if str(error).startswith(TRANSIENT):
        return exceptions.RecoverableChannelError(text)
    if str(error).startswith(FULL):
        return exceptions.ResourceError(text)
    if isinstance(error, (sqlite3.DatabaseError, sqlite3.InterfaceError)) and "closed" in str(error):
        return exceptions.RecoverableConnectionError(text)
    return exceptions.ChannelError(text)


def _wait_for_statements() -> None:
    """Let the other threads end their statements before a fork.

    SQLite keeps what a process has locked of a file in memory. A child that was forked in the middle of a transaction
    inherits that, and takes the file for busy ever after, also over a connection of its own.
    """
    _fork_lock.acquire()
    deadline = monotonic() + FORK_TIMEOUT
    with _open_lock:
        locks = [each.user_lock for connections in _open.values() for each in connections if each.user_lock is not None]
    for lock in (*locks, _open_lock):
        if lock.acquire(timeout=max(deadline - monotonic(), 0)):
            _held_for_fork.append(lock)


def _go_on_after_fork() -> None:
    while _held_for_fork:
        _held_for_fork.pop().release()
    _fork_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_wait_for_statements, after_in_parent=_go_on_after_fork, after_in_child=_go_on_after_fork
    )
