"""The SQL brokers: durable queues in a database that is already there, PostgreSQL or a SQLite file.

A message is stored when ``publish`` returns. A consumer claims the next messages of a queue in one statement, as their
owner; the ack deletes them. An owner is a connection with a lease, dated by the server's clock and renewed by a thread:
when it runs out, whatever the connection had claimed is back in its place for others.

    SQLTransport   the verbs
    Session        a connection: its lease, its transactions, its end
    Claims         what is claimed ahead, acks that wait for company
    Topology       exchanges, queues, bindings, consumers: rows and a cache to route by
    Messages       put, claim, settle, expire
    Marks          where the next claim begins to look
    Database       statements and transactions on SQLite or PostgreSQL
    Wire           statements over libpq, with deadlines
    FileWatch      what tells a connection that other processes have written to a SQLite file
"""

from __future__ import annotations

import sqlite3
from importlib.metadata import version

from kombulite import exceptions
from kombulite.brokers.base import Settings
from kombulite.brokers.sql.database import Database
from kombulite.brokers.sql.schema import schema_statements
from kombulite.brokers.sql.sqlite import SQLite
from kombulite.brokers.sql.transport import SQLTransport

__all__ = ["PostgreSQLTransport", "SQLTransport", "SQLiteTransport", "schema_statements"]


class SQLiteTransport(SQLTransport):
    """A connection to a SQLite file: ``sqlite:///events.db``, ``sqlite:////absolute/path.db``.

    Transport option ``synchronous``: what a commit waits for, ``FULL`` (it survives a power failure) or ``NORMAL`` (it
    survives the process; the last commits may be gone after a power failure).
    """

    driver_type = "sqlite"
    driver_name = "sqlite3"
    _database: SQLite

    def open_database(self, settings: Settings, prefix: str) -> Database:
        """Return the file, not opened."""
        return SQLite(settings, prefix)

    def connect(self) -> None:
        """Open the file."""
        self._database.user_lock = self._lock
        super().connect()
        self._database.ring = self._ring_if_free

    def _ring_if_free(self) -> None:
        """Wake a waiting thread, if the lock is free: one that has it will see by ``has_news`` what was committed."""
        self._lock.call(0, self._note_news)

    def driver_version(self) -> str:
        """Return SQLite's version."""
        return sqlite3.sqlite_version


class PostgreSQLTransport(SQLTransport):
    """A connection to PostgreSQL: ``postgresql://user:password@host:5432/database``.

    Transport options: ``schema``: the schema of the tables; ``connect_args``: further parameters of libpq, such as
    ``sslmode`` or ``target_session_attrs``; ``socket_timeout``: seconds for the server to answer a statement (30).
    """

    driver_type = "postgresql"
    driver_name = "psycopg"

    def open_database(self, settings: Settings, prefix: str) -> Database:
        """Return the database, not connected. Raises OperationalError where psycopg is not installed."""
        try:
            from kombulite.brokers.sql.postgresql import PostgreSQL  # psycopg is an extra
        except ImportError as error:
            raise exceptions.OperationalError(
                f"postgresql:// needs psycopg 3: pip install 'kombulite[postgresql]' ({error})"
            ) from error
        return PostgreSQL(settings, prefix)

    def driver_version(self) -> str:
        """Return psycopg's version."""
        return version("psycopg")
