"""Idle consumers of a SQLite file: they sleep until another process writes to it, or poll without a watch on it."""

from __future__ import annotations

import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Event

import pytest

from kombulite import Connection, Consumer, Producer, Queue

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs inotify")


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/messages.db"


@pytest.fixture
def other(url):
    """A connection whose commits wake no consumer of this process, as those of another process do not."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False)) as it:
        yield it


@pytest.fixture
def consuming(url, monkeypatch):
    """A consumer that waits in a thread, without looks of its own; gives its database, and what returns the bodies."""
    monkeypatch.setattr("kombulite.brokers.sql.transport.START_TIME", 0)
    with Connection(url, transport_options={"lease": 3600}) as connection, ThreadPoolExecutor(1) as thread:
        got = []
        with Consumer(connection, [Queue("q")], callbacks=[lambda body, message: (got.append(body), message.ack())]):
            database = connection.transport._database
            database.look_interval = 3600
            waiting = thread.submit(connection.drain_events, timeout=20)

            def result():
                waiting.result(30)
                return got

            yield database, result


def wait_until(is_so):
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_asleep(database):
    return database._watch.is_armed and database._is_settled


def publish(url, other, body):
    with Connection(url) as connection:
        Producer(connection).publish(body, routing_key="q", via=other)


def test_sleeps_until_another_process_writes(consuming, url, other, monkeypatch):
    database, result = consuming
    wait_until(lambda: is_asleep(database))
    looks, next_look = [], database.next_look
    monkeypatch.setattr(database, "next_look", lambda: (looks.append(1), next_look())[1])
    time.sleep(0.1)
    assert not looks, "it polled"
    publish(url, other, 1)
    assert result() == [1]


def test_goes_to_sleep_again_after_a_write_that_was_not_for_it(consuming, url, other):
    database, result = consuming
    other.execute("CREATE TABLE purchase (id INTEGER)")
    for number in range(3):
        wait_until(lambda: is_asleep(database))
        other.execute("INSERT INTO purchase VALUES (?)", [number])
    wait_until(lambda: is_asleep(database))
    publish(url, other, 1)
    assert result() == [1]


def test_looks_while_a_transaction_is_under_way_that_has_written_before_it_commits(consuming, url, other):
    database, result = consuming
    other.execute("PRAGMA cache_size = 10")  # pages: more are written before the commit
    other.execute("CREATE TABLE purchase (body BLOB)")
    wait_until(lambda: is_asleep(database))
    with Connection(url) as connection:
        producer = Producer(connection.channel())
        other.execute("BEGIN IMMEDIATE")
        producer.publish(1, routing_key="q", via=other)
        other.executemany("INSERT INTO purchase VALUES (zeroblob(4000))", [()] * 100)
        wait_until(lambda: database._watch.is_armed and not database._is_settled)
        other.execute("COMMIT")
        assert result() == [1]


def test_looks_where_there_is_no_watch(url, other, monkeypatch):
    def refuse(path):
        raise OSError("no inotify")

    monkeypatch.setattr("kombulite.brokers.sql.sqlite.FileWatch", refuse)
    with Connection(url) as connection:
        got = []
        with Consumer(connection, [Queue("q")], callbacks=[lambda body, message: (got.append(body), message.ack())]):
            connection.transport._database.look_interval = 3600
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.05)
            publish(url, other, 1)
            connection.drain_events(timeout=20)
        assert got == [1]


def test_looks_where_the_watch_ends(consuming, url, other):
    database, result = consuming
    wait_until(lambda: is_asleep(database))
    other.execute("CREATE TABLE purchase (id INTEGER)")
    database._watch._path = b"/nowhere"
    wait_until(lambda: database._watch is None)
    publish(url, other, 1)
    assert result() == [1]


def test_interruption_that_comes_just_before_the_wait_ends_it(url, monkeypatch):
    """A loop interrupts a wait for what its tasks ask, and the thread may still be in the statements before it."""
    monkeypatch.setattr("kombulite.brokers.sql.transport.START_TIME", 0)
    with Connection(url, transport_options={"lease": 3600}) as connection:
        connection.connect()
        transport, is_asked, waits = connection.transport, Event(), []
        transport._database.look_interval = 3600
        monkeypatch.setattr(transport._database, "listen", lambda: None)  # it would ring too
        Consumer(connection, [Queue("q")]).consume()
        ring, look, wait = transport._ring, transport._messages.seconds_to_next, transport._wait_for_news

        def interrupted_look():
            transport.interrupt()
            assert is_asked.wait(20)
            return look()

        def wait_for_news(seconds):
            news = transport._news
            wait(seconds)
            waits.append(transport._news > news)

        monkeypatch.setattr(transport, "_ring", lambda: (is_asked.set(), ring()))
        monkeypatch.setattr(transport._messages, "seconds_to_next", interrupted_look)
        monkeypatch.setattr(transport, "_wait_for_news", wait_for_news)
        monkeypatch.setattr(transport._database, "has_news", lambda: False)
        monkeypatch.setattr(transport._database, "next_look", lambda: None)
        assert transport.receive(20) == ()
        assert waits == [True], "it was not woken"
