"""The SQL brokers, beside kombu's SQLAlchemy transport, job queues and bare statements on the same database.

``pytest -c bench/pytest.ini bench/test_sql.py`` runs them all. ``KOMBULITE_BENCH_WAITING=10000000`` sets how many
messages wait where the cost of a claim is measured beside 1,000 waiting.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count, repeat
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import kombu
import psycopg
import pytest

import kombulite
from bench.duel import Side, duel
from bench.figure import Figure
from bench.workloads import SMALL, Place, consuming, publishing, publishing_many
from kombulite.brokers.sql.postgresql import COLUMNS
from tests.servers import PostgreSQLServer, Unavailable

MESSAGES = 200
ROUNDS = 7
BODY = b'{"id": 1, "name": "bare"}'
NAMES = count()
OPEN: list[Any] = []  # connections, until the test ends
WAITING = int(os.environ.get("KOMBULITE_BENCH_WAITING", "1000000"))


@pytest.fixture(autouse=True)
def connections(postgresql: PostgreSQLServer) -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().release()


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgreSQLServer]:
    try:
        server = PostgreSQLServer()
    except Unavailable as error:
        pytest.skip(str(error))
    with server:
        yield server


def open_place(library: Any, url: str, **options: Any) -> Place:
    connection = library.Connection(url, transport_options=options)
    OPEN.append(connection)
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


def test_postgresql_publish_many_beside_executemany_of_the_same_rows(benchmark, postgresql):
    """Into a table like ours: the same columns, indexes and values."""
    ours, _ = on_postgresql(postgresql)
    ours.producer.publish(SMALL)
    with psycopg.connect(postgresql.conninfo) as bare:
        bare.execute("CREATE TABLE same_rows (LIKE kombulite_messages INCLUDING ALL)")
        row = bare.execute(f"SELECT {COLUMNS} FROM kombulite_messages ORDER BY id DESC LIMIT 1").fetchone()
        bare.commit()
        places = ", ".join(["%s"] * len(row))

        def insert(n: int) -> None:
            bare.cursor().executemany(f"INSERT INTO same_rows ({COLUMNS}) VALUES ({places})", [row] * n)
            bare.commit()

        def empty(n: int) -> None:
            bare.execute("DELETE FROM same_rows")
            bare.commit()

        duel(benchmark, "PostgreSQL, publish_many", publishing_many(ours), Side(insert, empty), operations=2000,
             rounds=ROUNDS, at_least=3, rival="executemany of the same rows")  # fmt: skip


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


def test_sqlite_publish_many_beside_persist_queue(benchmark, tmp_path: Path):
    import persistqueue

    place = open_place(kombulite, f"sqlite:///{tmp_path}/ours.db")
    theirs = persistqueue.SQLiteAckQueue(str(tmp_path / "theirs"), multithreading=True)
    duel(benchmark, "SQLite, publish_many, durable", publishing_many(place), putting(theirs.put), operations=MESSAGES,
         rounds=ROUNDS, at_least=10, rival="persist-queue")  # fmt: skip


def test_sqlite_publish_many_beside_huey(benchmark, tmp_path: Path):
    from huey.storage import SqliteStorage

    place = open_place(kombulite, f"sqlite:///{tmp_path}/ours.db")
    theirs = SqliteStorage(filename=str(tmp_path / "theirs.db"), fsync=True)
    duel(benchmark, "SQLite, publish_many, durable", publishing_many(place), putting(theirs.enqueue),
         operations=MESSAGES, rounds=ROUNDS, at_least=10, rival="huey's SqliteStorage")  # fmt: skip


def test_sqlite_consume(benchmark, tmp_path: Path):
    from huey.storage import SqliteStorage

    place = open_place(kombulite, f"sqlite:///{tmp_path}/ours.db")
    storage = SqliteStorage(filename=str(tmp_path / "theirs.db"), fsync=True)

    def take(n: int) -> None:
        for _ in repeat(None, n):
            assert storage.dequeue() is not None

    def fill(n: int) -> None:
        storage.flush_queue()
        putting(storage.enqueue).run(n)

    duel(benchmark, "SQLite, consume + decode + ack, prefetch 100", consuming(place, 100), Side(take, fill),
         operations=MESSAGES, rounds=ROUNDS, at_least=5, rival="huey's SqliteStorage")  # fmt: skip


def putting(put: Any) -> Side:
    """Bodies into a queue of others, one by one."""

    def run(n: int) -> None:
        for _ in repeat(None, n):
            put(BODY)

    return Side(run)


def test_postgresql_consume_beside_pgqueuer(benchmark, postgresql):
    place, _ = on_postgresql(postgresql)
    with jobs_of_pgqueuer(postgresql.conninfo) as theirs:
        duel(benchmark, "PostgreSQL, consume + decode + ack, prefetch 100", consuming(place, 100), theirs,
             operations=1000, rounds=3, at_least=2, rival="pgqueuer, no-op jobs")  # fmt: skip


def test_postgresql_consume_beside_procrastinate(benchmark, postgresql):
    place, _ = on_postgresql(postgresql)
    with jobs_of_procrastinate(postgresql.conninfo) as theirs:
        duel(benchmark, "PostgreSQL, consume + decode + ack, prefetch 100", consuming(place, 100), theirs,
             operations=1000, rounds=3, at_least=2, rival="procrastinate, no-op jobs")  # fmt: skip


@contextmanager
def jobs_of_pgqueuer(conninfo: str) -> Iterator[Side]:
    """Completing jobs that do nothing, by a worker that takes a hundred at once."""
    from pgqueuer.db import PsycopgDriver
    from pgqueuer.qm import QueueManager
    from pgqueuer.queries import Queries
    from pgqueuer.types import QueueExecutionMode

    with asyncio.Runner() as runner:

        async def connect() -> Any:
            connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
            queries = Queries(PsycopgDriver(connection))
            await queries.install()
            return connection, queries

        connection, queries = runner.run(connect())

        async def work() -> None:
            manager = QueueManager(queries)

            @manager.entrypoint("job")
            async def job(_: Any) -> None:
                pass

            await manager.run(mode=QueueExecutionMode.drain, batch_size=100)

        yield Side(
            lambda n: runner.run(work()),
            lambda n: runner.run(queries.enqueue(["job"] * n, [BODY] * n, [0] * n)),
        )
        runner.run(connection.close())


@contextmanager
def jobs_of_procrastinate(conninfo: str) -> Iterator[Side]:
    """Completing jobs that do nothing, a hundred at the same time."""
    import procrastinate

    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=conninfo))

    @app.task(name="noop")
    async def noop(number: int) -> None:
        pass

    async def fill(n: int) -> None:
        await noop.batch_defer_async(*[{"number": number} for number in range(n)])

    async def work() -> None:
        await app.run_worker_async(
            wait=False, concurrency=100, delete_jobs="always", listen_notify=False, install_signal_handlers=False
        )

    with asyncio.Runner() as runner:
        runner.run(awaited(app.open_async()))
        runner.run(awaited(app.schema_manager.apply_schema_async()))
        yield Side(lambda n: runner.run(work()), lambda n: runner.run(fill(n)))
        runner.run(app.close_async())


async def awaited(awaitable: Any) -> Any:
    return await awaitable


# --- how much waits


def test_postgresql_claim_beside_many_waiting(benchmark, postgresql):
    def fill(table: str, queue: str, number: int) -> None:
        with psycopg.connect(postgresql.conninfo, autocommit=True) as admin:
            admin.execute(FILL.format(table=table, queue=queue) + f" FROM generate_series(1, {number})")
            admin.execute(f"VACUUM ANALYZE {table}messages")

    many = open_place(kombulite, postgresql.url, table_prefix="many_")
    few = open_place(kombulite, postgresql.url, table_prefix="few_")
    claims_beside_many_waiting(benchmark, "PostgreSQL", many, few, fill)


def test_sqlite_claim_beside_many_waiting(benchmark, tmp_path: Path):
    def fill(table: str, queue: str, number: int) -> None:
        with sqlite3.connect(tmp_path / f"{table}.db") as admin:
            series = f"WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {number})"
            into, values = FILL.format(table=table, queue=queue).split("SELECT", 1)
            admin.execute(f"{into} {series} SELECT {values} FROM s")

    many = open_place(kombulite, f"sqlite:///{tmp_path}/many_.db", table_prefix="many_")
    few = open_place(kombulite, f"sqlite:///{tmp_path}/few_.db", table_prefix="few_")
    claims_beside_many_waiting(benchmark, "SQLite", many, few, fill)


FILL = (
    "INSERT INTO {table}messages (queue, rank, exchange, routing_key, properties, body)"
    " SELECT (SELECT id FROM {table}queues WHERE name = '{queue}'), 0, '', '{queue}',"
    ' \'{{"content_type": "application/json", "content_encoding": "utf-8"}}\', \'1\''
)


def claims_beside_many_waiting(benchmark: Any, name: str, many: Place, few: Place, fill: Any) -> None:
    fill("many_", many.queue.name, WAITING)
    fill("few_", few.queue.name, 1000)
    duel(benchmark, f"{name}, consume + ack with {WAITING:,} waiting", keeping_level(many), keeping_level(few),
         operations=MESSAGES, rounds=31, at_most=1.3, rival="1,000 waiting")  # fmt: skip


def keeping_level(place: Place) -> Side:
    """Consuming as many messages as were added before."""
    queue = place.library.Queue(place.queue.name)

    def run(n: int) -> None:
        left = n

        def callback(message: Any) -> None:
            nonlocal left
            message.ack()
            left -= 1

        options = {"on_message": callback, "prefetch_count": 100, "auto_declare": False}
        with place.library.Consumer(place.producer.channel, queue, **options):
            while left > 0:
                place.connection.drain_events(timeout=5)

    return Side(run, lambda n: place.producer.publish_many(repeat(1, n), routing_key=place.queue.name))


# --- an idle consumer


@pytest.mark.parametrize("name", ["postgresql", "sqlite"])
def test_first_message_to_an_idle_consumer(benchmark, request, tmp_path: Path, name):
    server = request.getfixturevalue("postgresql") if name == "postgresql" else None
    url = server.url if server is not None else f"sqlite:///{tmp_path}/idle.db"
    place = open_place(kombulite, url)
    latencies: list[float] = []
    is_over = threading.Event()

    def consume() -> None:
        def callback(sent: float, message: Any) -> None:
            latencies.append(perf_counter() - sent)
            message.ack()

        with (
            kombulite.Connection(url) as connection,
            connection.Consumer(kombulite.Queue(place.queue.name), callbacks=[callback], prefetch_count=1),
        ):
            while not is_over.is_set():
                with suppress(TimeoutError):
                    connection.drain_events(timeout=0.5)

    thread = threading.Thread(target=consume)
    thread.start()

    def one() -> None:
        before = len(latencies)
        place.producer.publish(perf_counter())
        while len(latencies) == before:
            sleep(0.0005)

    benchmark.pedantic(one, setup=lambda: sleep(0.05), rounds=100)
    is_over.set()
    thread.join()
    Figure(f"{name}, first message to an idle consumer, against 3 ms", latencies, [0.003] * len(latencies),
           at_least=1, rival="3 ms").store(benchmark)  # fmt: skip
