"""The SQL brokers, beside kombu's SQLAlchemy transport and bare statements on the same database."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import count, repeat
from pathlib import Path
from typing import Any

import kombu
import psycopg
import pytest

import kombulite
from bench.duel import Side, duel
from bench.workloads import Place, consuming, publishing, publishing_many
from tests.servers import PostgreSQLServer, Unavailable

MESSAGES = 200
ROUNDS = 7
BODY = b'{"id": 1, "name": "bare"}'
NAMES = count()


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgreSQLServer]:
    try:
        server = PostgreSQLServer()
    except Unavailable as error:
        pytest.skip(str(error))
    with server:
        yield server


def open_place(library: Any, url: str) -> Place:
    connection = library.Connection(url)
    channel = connection.channel()
    name = f"bench{next(NAMES)}"
    queue = library.Queue(name)(channel)
    queue.declare()
    return Place(library, connection, queue, library.Producer(channel, routing_key=name))


def on_postgresql(server: PostgreSQLServer) -> tuple[Place, Place]:
    theirs = server.url.replace("postgresql://", "sqla+postgresql+psycopg://")
    return open_place(kombulite, server.url), open_place(kombu, theirs)


def inserting(connection: Any, statement: str, at_once: int) -> Side:
    """Bare inserts, each with its commit, or many in one."""

    def run(n: int) -> None:
        if at_once == 1:
            for _ in repeat(None, n):
                connection.execute(statement, (BODY,))
                connection.commit()
        else:
            connection.cursor().executemany(statement, [(BODY,)] * n)
            connection.commit()

    return Side(run)


def test_postgresql_publish(benchmark, postgresql):
    ours, theirs = on_postgresql(postgresql)
    duel(benchmark, "PostgreSQL, publish", publishing(ours), publishing(theirs), operations=MESSAGES, rounds=ROUNDS,
         at_least=3, rival="kombu's SQLAlchemy")  # fmt: skip


def test_postgresql_publish_many(benchmark, postgresql):
    ours, theirs = on_postgresql(postgresql)
    duel(benchmark, "PostgreSQL, publish_many", publishing_many(ours), publishing(theirs), operations=MESSAGES,
         rounds=ROUNDS, at_least=20, rival="kombu's SQLAlchemy")  # fmt: skip


def test_postgresql_publish_many_beside_executemany(benchmark, postgresql):
    ours, _ = on_postgresql(postgresql)
    with psycopg.connect(postgresql.conninfo) as bare:
        bare.execute("CREATE TABLE bare (id bigserial primary key, body bytea)")
        bare.commit()
        duel(benchmark, "PostgreSQL, publish_many", publishing_many(ours),
             inserting(bare, "INSERT INTO bare (body) VALUES (%s)", 0), operations=2000, rounds=ROUNDS, at_least=3,
             rival="executemany of psycopg")  # fmt: skip


def test_postgresql_consume(benchmark, postgresql):
    ours, theirs = on_postgresql(postgresql)
    duel(benchmark, "PostgreSQL, consume + decode + ack, prefetch 100", consuming(ours, 100), consuming(theirs, 100),
         operations=MESSAGES, rounds=ROUNDS, at_least=20, rival="kombu's SQLAlchemy")  # fmt: skip


def test_sqlite_publish(benchmark, tmp_path: Path):
    place = open_place(kombulite, f"sqlite:///{tmp_path}/ours.db")
    bare = sqlite3.connect(tmp_path / "bare.db")
    bare.execute("PRAGMA journal_mode = WAL")
    bare.execute("PRAGMA synchronous = FULL")
    bare.execute("CREATE TABLE bare (id integer primary key autoincrement, body blob)")
    duel(benchmark, "SQLite, publish, durable", publishing(place),
         inserting(bare, "INSERT INTO bare (body) VALUES (?)", 1), operations=MESSAGES, rounds=ROUNDS, at_least=0.8,
         rival="a bare INSERT and COMMIT")  # fmt: skip
