"""No call reads a table of many messages from end to end, whatever PostgreSQL's planner believes of it.

Rows are counted, as ``auto_explain`` reports them for each statement that the server ran; and SQLite's own plans.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from kombulite import Connection, Consumer, Exchange, Producer, Queue
from tests.sql.conftest import LockedDatabase

WAITING = int(os.environ.get("KOMBULITE_TEST_WAITING", "30000"))  # messages
CLAIMED = 3000  # messages
COUNTED = 100  # where ``get`` and ``declare`` stop to count, here
MAX_READ = 1000  # rows of one step of a plan

FILL = (
    "INSERT INTO {table} (queue, rank, due, owner, expires, exchange, routing_key, properties, body)"
    " SELECT {queue}, 0, {due}, {owner}, {expires}, '', 'many', '{{}}', '1' FROM {series}"
)
EXPLAINED = (
    "session_preload_libraries=auto_explain",
    "auto_explain.log_min_duration=0",
    "auto_explain.log_analyze=on",
    "auto_explain.log_timing=off",
    "auto_explain.log_format=json",
    "auto_explain.log_level=notice",
)

Execute = Callable[[str], Any]


def fill(execute: Execute, prefix: str, series: str, later: str) -> None:
    """Add messages in each of the states to the queue ``many``."""
    ((queue,),) = execute(f"SELECT id FROM {prefix}queues WHERE name = 'many'").fetchall()
    execute(f"INSERT INTO {prefix}connections (alive_until, lease) VALUES (9e9, 9e9)")
    ((owner,),) = execute(f"SELECT max(id) FROM {prefix}connections").fetchall()
    for due, holder, expires, some in (
        ("NULL", "NULL", "NULL", ""),
        (later, "NULL", later, ""),
        ("NULL", owner, later, f" LIMIT {CLAIMED}"),
    ):
        into = FILL.format(
            table=f"{prefix}messages", queue=queue, due=due, owner=holder, expires=expires, series=series
        )
        execute(into + some)


def use(connection: Connection, connect: Callable[[], Connection]) -> None:
    """Make all calls that are not about all messages, on a queue of many and on those beside it."""
    many = Queue("many")(connection)
    dead = Queue("dead", Exchange("dead", "fanout"), max_length=2)(connection)
    dead.declare()
    letters = {"x-dead-letter-exchange": "dead"}
    few = Queue("few", Exchange("all", "fanout"), queue_arguments=letters, max_length=6)(connection)
    few.declare()
    copy = Queue("copy", Exchange("all", "fanout"), expires=60)(connection)
    copy.declare()
    producer = Producer(connection)
    for name in ("many", "few", "copy"):
        producer.publish(1, routing_key=name)
        producer.publish_many(range(5), routing_key=name)
        producer.publish(1, routing_key=name, expiration=0, eta=-1)
    producer.publish(1, exchange="all")
    for queue in (many, few):
        queue.declare()
        queue.get(no_ack=True)
        queue.get().ack()
        queue.get().reject()
        queue.get().requeue()
        left = 2

        def take(message: Any) -> None:
            nonlocal left
            left -= 1
            message.ack()

        with Consumer(connection, [queue], on_message=take, prefetch_count=50):
            while left > 0:
                connection.drain_events(timeout=20)
    copy.purge()
    copy.delete()
    few.unbind_from("all")
    lost = connect()
    for name, arguments in (("auto", {"auto_delete": True}), ("own", {"exclusive": True})):
        queue = Queue(name, **arguments)
        Producer(lost, routing_key=name).publish(1, declare=[queue])
        Consumer(lost, [queue], on_message=lambda message: None).consume()
    Queue("few")(lost).get()
    session = connection.transport._session
    LockedDatabase(connection.transport).rows(
        "UPDATE {p}connections SET alive_until = 0 WHERE id = ?", lost.transport._topology.connection
    )
    session._renew()
    lost.transport.collect()
    few.delete()
    held = many.get()
    connection.transport.collect()
    connection.ensure_connection()
    held.ack()
    connection.release()


@contextmanager
def few_counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr("kombulite.brokers.sql.transport.MAX_COUNTED", COUNTED)
        yield


# --- PostgreSQL


def read_too_much(plan: dict[str, Any], table: str) -> Iterator[str]:
    """Generate the steps of a plan that read many rows, or all that there are in a table of which there may be many."""
    removed = sum(plan.get(f"Rows Removed by {by}", 0) for by in ("Filter", "Index Recheck", "Join Filter"))
    read = (plan.get("Actual Rows", 0) + removed) * plan.get("Actual Loops", 0)
    if read > MAX_READ or (plan["Node Type"] == "Seq Scan" and plan.get("Relation Name") == table):
        yield f"{plan['Node Type']} {plan.get('Index Name', '')}, {plan.get('Index Cond')}: {read} rows"
    for part in plan.get("Plans", ()):
        yield from read_too_much(part, table)


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("statistics", ["fresh", "none", "of an empty table", "of other messages"])
def test_calls_on_postgresql(postgresql_url, monkeypatch, statistics, mode):
    prefix = f"p{uuid4().hex[:10]}_"
    settings = " ".join(f"-c {each}" for each in (*EXPLAINED, f"plan_cache_mode={mode}"))
    options = {"table_prefix": prefix, "lease": 600}
    found: list[str] = []

    def note(diagnostic: psycopg.errors.Diagnostic) -> None:
        _, is_plan, text = (diagnostic.message_primary or "").partition("plan:")
        if is_plan:
            explained = json.loads(text)
            found.extend(f"{step}, {explained['Query Text']}" for step in read_too_much(explained["Plan"], table))

    connect_psycopg = psycopg.connect

    def connect(*arguments: Any, **parameters: Any) -> Any:
        connection = connect_psycopg(*arguments, **parameters)
        connection.add_notice_handler(note)
        return connection

    table = f"{prefix}messages"
    with connect_psycopg(postgresql_url, autocommit=True) as admin:
        with Connection(postgresql_url, transport_options=options) as first:
            Queue("many")(first).declare()
            for name in ("messages", "queues", "connections", "consumers"):
                admin.execute(f"ALTER TABLE {prefix}{name} SET (autovacuum_enabled = off)")
            if statistics == "of other messages":
                Producer(first).publish_many(range(2000), routing_key="other", declare=[Queue("other")], eta=9e9)
            if statistics.startswith("of"):
                admin.execute(f"VACUUM ANALYZE {table}")
        fill(admin.execute, prefix, f"generate_series(1, {WAITING})", "9e9 + random()")
        if statistics == "fresh":
            admin.execute(f"VACUUM ANALYZE {table}")
        options["connect_args"] = {"options": settings}
        with few_counted(monkeypatch), monkeypatch.context() as patch:
            patch.setattr(psycopg, "connect", connect)
            use(
                Connection(postgresql_url, transport_options=options),
                lambda: Connection(postgresql_url, transport_options=options),
            )
        assert admin.execute(f"SELECT count(*) > {WAITING} FROM {table} WHERE due IS NULL").fetchone() == (True,)
    assert not found, "\n".join(sorted(set(found)))


# --- SQLite


@pytest.mark.parametrize("is_analyzed", [False, True])
def test_calls_on_sqlite(tmp_path, monkeypatch, is_analyzed):
    path, statements = f"{tmp_path}/many.db", set[str]()
    options = {"table_prefix": "k_", "lease": 600}
    with Connection(f"sqlite:///{path}", transport_options=options) as first:
        Queue("many")(first).declare()
    with closing(sqlite3.connect(path, isolation_level=None)) as admin:
        numbers = f"WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {WAITING}) SELECT n FROM s"
        fill(admin.execute, "k_", f"({numbers})", "9e9 + abs(random() % 1000)")
        if is_analyzed:
            admin.execute("ANALYZE")
        connect_sqlite = sqlite3.connect

        def connect(*arguments: Any, **parameters: Any) -> Any:
            connection = connect_sqlite(*arguments, **parameters)
            connection.set_trace_callback(statements.add)
            return connection

        with few_counted(monkeypatch), monkeypatch.context() as patch:
            patch.setattr(sqlite3, "connect", connect)
            use(
                Connection(f"sqlite:///{path}", transport_options=options),
                lambda: Connection(f"sqlite:///{path}", transport_options=options),
            )
        scans = set()
        for statement in statements:
            if re.match(r"SELECT|WITH|INSERT|UPDATE|DELETE", statement):
                for *_, step in admin.execute(f"EXPLAIN QUERY PLAN {statement}"):
                    if re.match("SCAN (k_messages|m)", step):
                        scans.add(f"{step}, {statement}")
    assert not scans, "\n".join(sorted(scans))
