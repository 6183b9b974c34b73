"""The server's queue of notifications: a session that does not read fills it, and it stays full when that is gone."""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg

from kombulite import Connection, Queue

LARGEST = 7900  # bytes of a notification, or so
SEGMENT = 32  # pages of 8 kB: what one file of the queue holds


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_lease_that_is_renewed_frees_what_a_session_held_back_that_is_gone(own_postgresql):
    files = own_postgresql.folder / "data" / "pg_notify"
    with Connection(own_postgresql.url) as connection:
        Queue("orders")(connection.channel()).declare()  # the tables are there, so nothing is notified later on
    with psycopg.connect(own_postgresql.conninfo, autocommit=True) as notifier:
        with psycopg.connect(own_postgresql.conninfo, autocommit=True) as deaf:
            deaf.execute("LISTEN elsewhere")
            number = deaf.info.backend_pid
            notifier.execute(
                "SELECT pg_notify('elsewhere', lpad(i::text, %s, 'x')) FROM generate_series(1, 5000) AS i", (LARGEST,)
            )
        gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = %s"
        wait_for(lambda: notifier.execute(gone, (number,)).fetchone() == (True,))
        held_back = len(list(files.iterdir()))
        with Connection(own_postgresql.url, transport_options={"lease": 1}) as renewing:
            renewing.connect()
            wait_for(lambda: len(list(files.iterdir())) < held_back // 2)
        assert held_back > 5000 // SEGMENT
