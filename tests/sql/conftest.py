"""The SQL brokers: what is theirs alone. The contract suite runs on both of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import django.conf
import django.db
import pytest

from kombulite import Connection
from tests.servers import PostgreSQLServer


class Database:
    """A database under test: connections to it, with tables of its own."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self.url = url
        self.prefix = f"t{uuid4().hex[:10]}_"
        self._stack = stack

    def connect(self, **options: Any) -> Connection:
        options = {"table_prefix": self.prefix, **options}
        return self._stack.enter_context(Connection(self.url, transport_options=options))


class LockedDatabase:
    """Statements on the connection of a transport, each with its lock.

    Without that, a thread of the transport's own which releases the lock takes a statement under way for one that a
    signal handler has interrupted, and closes the connection.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def rows(self, statement: str, *values: Any) -> Any:
        with self._transport._session.lock:
            return self._transport._database.rows(statement, *values)

    def value(self, statement: str, *values: Any) -> Any:
        with self._transport._session.lock:
            return self._transport._database.value(statement, *values)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/messages.db"
    else:
        url = request.getfixturevalue("postgresql_url")
    with ExitStack() as stack:
        yield Database(url, stack)


@pytest.fixture
def own_postgresql(request: pytest.FixtureRequest) -> Iterator[PostgreSQLServer]:
    """A PostgreSQL that the test may stop and kill."""
    request.getfixturevalue("postgresql_url")  # skips where there is none
    with PostgreSQLServer() as server:
        yield server


@pytest.fixture
def django_connection(database: Database) -> Iterator[Any]:
    """A connection of Django to the database."""
    if not django.conf.settings.configured:
        django.conf.settings.configure(LOGGING_CONFIG=None)
        django.setup()
    if database.url.startswith("sqlite"):
        place = {"ENGINE": "django.db.backends.sqlite3", "NAME": database.url.removeprefix("sqlite://")}
    else:
        parts = urlsplit(database.url)
        place = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": parts.path[1:],
            "USER": parts.username,
            "HOST": parts.hostname,
            "PORT": parts.port,
        }
    handler = django.db.utils.ConnectionHandler({"default": place})
    yield handler["default"]
    handler.close_all()


def sqlalchemy_url(database: Database, driver: str | None = None) -> str:
    """Return the URL of a database for SQLAlchemy."""
    scheme, rest = database.url.split("://")
    if scheme == "sqlite":
        return f"sqlite+{driver or 'pysqlite'}:///{rest}"
    return f"postgresql+{driver or 'psycopg'}://{rest}"
