"""A transport over SQLite: one file is the broker, for all processes of a machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from time import time
from typing import Any

from kombulite.brokers import virtual
from kombulite.brokers.virtual import Claim, Store

SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order
    queue TEXT NOT NULL,
    data BLOB NOT NULL,
    owner TEXT,                            -- who has claimed it
    claimed_until REAL NOT NULL DEFAULT 0, -- seconds since 1970; later it is free again
    deliveries INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS waiting ON messages (queue, id);
CREATE TABLE IF NOT EXISTS catalogue (
    kind TEXT NOT NULL, name TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (kind, name)
);
"""

LEASE = 600  # seconds that a consumer has for a message, before it counts as dead


class SQLiteStore(Store):
    def open(self) -> None:
        path = self.settings.options.get("database", "messages.db")
        self._database = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        self._depth = 0
        self._execute("PRAGMA journal_mode = WAL")
        for statement in SCHEMA.split(";\n"):
            self._execute(statement)

    def close(self) -> None:
        self._database.close()

    def _execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, values)
        except sqlite3.Error as error:
            raise OSError(f"SQLite: {error}") from error

    # --- messages

    def put(self, queue: str, data: bytes) -> None:
        self._execute("INSERT INTO messages (queue, data) VALUES (?, ?)", queue, data)

    def claim(self, queue: str) -> Claim | None:
        now = time()
        found = self._execute(
            "UPDATE messages SET owner = ?, claimed_until = ?, deliveries = deliveries + 1 WHERE id = ("
            "SELECT id FROM messages WHERE queue = ? AND claimed_until < ? ORDER BY id LIMIT 1"
            ") RETURNING id, data, deliveries",
            self.identity,
            now + LEASE,
            queue,
            now,
        ).fetchall()
        return Claim(found[0][0], found[0][1], delivery_count=found[0][2] - 1) if found else None

    def finish(self, token: int) -> None:
        self._execute("DELETE FROM messages WHERE id = ? AND owner = ?", token, self.identity)

    def put_back(self, token: int) -> None:
        self._execute("UPDATE messages SET claimed_until = 0 WHERE id = ? AND owner = ?", token, self.identity)

    def size(self, queue: str) -> int:
        statement = "SELECT count(*) FROM messages WHERE queue = ? AND claimed_until < ?"
        return int(self._execute(statement, queue, time()).fetchone()[0])

    def clear(self, queue: str) -> int:
        return self._execute("DELETE FROM messages WHERE queue = ? AND claimed_until < ?", queue, time()).rowcount

    # --- the catalogue

    def read(self, kind: str, name: str) -> bytes | None:
        row = self._execute("SELECT data FROM catalogue WHERE kind = ? AND name = ?", kind, name).fetchone()
        return row[0] if row else None

    def write(self, kind: str, name: str, data: bytes) -> None:
        self._execute("INSERT OR REPLACE INTO catalogue (kind, name, data) VALUES (?, ?, ?)", kind, name, data)

    def remove(self, kind: str, name: str) -> None:
        self._execute("DELETE FROM catalogue WHERE kind = ? AND name = ?", kind, name)

    def names(self, kind: str) -> list[str]:
        return [name for (name,) in self._execute("SELECT name FROM catalogue WHERE kind = ?", kind).fetchall()]

    @contextmanager
    def lock(self) -> Iterator[None]:
        if self._depth == 0:
            self._execute("BEGIN IMMEDIATE")
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._execute("COMMIT")


class Transport(virtual.Transport):
    """A connection to the database file that the transport option ``database`` names (``messages.db``)."""

    driver_type = "sqlite"
    driver_name = "sqlite3"
    Store = SQLiteStore

    def driver_version(self) -> str:
        return sqlite3.sqlite_version
