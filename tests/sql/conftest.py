"""The SQL brokers: what is theirs alone. The contract suite runs on both of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

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
