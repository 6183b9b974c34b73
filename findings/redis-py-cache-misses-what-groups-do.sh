#!/bin/sh
# The client-side cache of redis-py 8 keeps replies of XPENDING, but Redis invalidates a stream only when its entries
# change, not when a consumer group reads or acknowledges them. So a client with the cache goes on reporting the pending
# messages of its first call until a client adds an entry: 0 pending while a worker holds all, or 2 that were
# acknowledged long ago. A supervisor that alerts or claims by that number does the wrong thing on a quiet stream.
# xpending_range(), which would list the messages, raises with the cache.
# The cache leaks in two more ways: after SELECT on a connection it returns the value of the database before, and
# hgetall() returns the cached dict itself, so a caller that changes the dict changes what later calls return.
# Predicted: each reply is fresh, because redis-py caches a command only if Redis invalidates the keys that the reply
# depends on; the value of the selected database; a copy of the dict. The documentation has Redis send an invalidation
# when a key is modified (CLIENT TRACKING), and does not except consumer groups.
# What helps: a client without cache for streams, and one client for each database.
# Run by hand, as root on Debian: needs debootstrap, PyPI, some minutes, and 300 MB. The broker runs in name spaces of
# its own.
# Seen with Redis 8.0.6 (Debian unstable) and redis-py 8.1.0 on 2026-11-29:
#   2 entries: pending 0, on the server 0
#   worker read both: pending 0, on the server 2
#   entry added: pending 2, on the server 2
#   worker acknowledged both: pending 2, on the server 0
#   xpending_range: ValueError: Cannot create cache key.
#   SELECT 1: zero, on the server one
#   hgetall: changed by the caller, on the server as published
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unshare --mount debootstrap --variant=minbase --include=redis-server,python3,iproute2 sid "$work/tree" >"$work/log"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install --target "$work/tree/client" redis==8.1.0
cat >"$work/tree/run.py" <<'PY'
import time

import redis
from redis.cache import CacheConfig


def connect(**options):
    return redis.Redis(protocol=3, decode_responses=True, **options)


def compare(what):
    time.sleep(1)  # for an invalidation, if Redis sends one
    cached, real = (client.xpending("stream", "workers")["pending"] for client in (caching, plain))
    print(f"{what}: pending {cached}, on the server {real}")


plain = connect()
for _ in range(100):
    try:
        plain.ping()
        break
    except redis.ConnectionError:
        time.sleep(0.1)
caching = connect(cache_config=CacheConfig())
entries = [plain.xadd("stream", {"order": number}) for number in range(2)]
plain.xgroup_create("stream", "workers", "0")
compare("2 entries")
plain.xreadgroup("workers", "one", {"stream": ">"})
compare("worker read both")
plain.xadd("stream", {"order": 2})
compare("entry added")
plain.xack("stream", "workers", *entries)
compare("worker acknowledged both")
try:
    print("xpending_range:", caching.xpending_range("stream", "workers", "-", "+", 10))
except ValueError as error:
    print("xpending_range: ValueError:", error)
plain.set("key", "zero")
connect(db=1).set("key", "one")
single = connect(cache_config=CacheConfig(), single_connection_client=True)
single.get("key")
single.select(1)
print(f"SELECT 1: {single.get('key')}, on the server {connect(db=1).get('key')}")
plain.hset("hash", "state", "as published")
caching.hgetall("hash")["state"] = "changed by the caller"
cached, real = (client.hgetall("hash")["state"] for client in (caching, plain))
print(f"hgetall: {cached}, on the server {real}")
PY
dpkg-query --admindir "$work/tree/var/lib/dpkg" -W redis-server
unshare --mount --pid --net --fork --kill-child chroot "$work/tree" sh -c '
mount -t proc proc /proc
ip link set lo up
redis-server --save "" >/broker 2>&1 &
PYTHONPATH=/client timeout 120 python3 /run.py' | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
