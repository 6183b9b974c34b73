#!/bin/sh
# Valkey 9 has numbered databases in a cluster. redis-cli, which reshards a Valkey cluster well as long as database 0 is
# the only one, moves the keys of database 0 alone. The slot's new owner learns of it before the old one, and the old
# one drops what it holds of a slot that another node owns: all keys of the other databases are gone. Depending on who
# is faster redis-cli reports success, or ends with the old owner's refusal ("still hold keys"), which sounds as if they
# were still there. A check of the cluster finds all well. valkey-cli moves all databases.
# Predicted: if redis-cli knows nothing of other databases, it fails and the keys stay where they are. Valkey's
# documentation of numbered databases in a cluster names no tool that must not be used.
# Run by hand, as root on Debian: needs debootstrap, some minutes, and 300 MB. The brokers run in name spaces of their
# own.
# Seen with Valkey 9.1.2, redis-cli 8.0.6 and redis-py 6.4.0 (Debian unstable; redis-cli 7.0.15 does the same) on
# 2026-11-28:
#   redis-cli: keys in database 0: 100, then old owner 0, new owner 100
#   redis-cli: keys in database 1: 100, then old owner 0, new owner 0
#   redis-cli: check: All nodes agree about slots configuration. All 16384 slots covered.
#   valkey-cli: keys in database 0: 100, then old owner 0, new owner 100
#   valkey-cli: keys in database 1: 100, then old owner 0, new owner 100
#   valkey-cli: check: All nodes agree about slots configuration. All 16384 slots covered.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
packages=valkey-server,valkey-tools,redis-tools,python3-redis,iproute2
unshare --mount debootstrap --variant=minbase --include=$packages sid "$work/tree" >"$work/log"
cat >"$work/tree/run.py" <<'PY'
import os
import re
import subprocess
import sys
import time

import redis
from redis.crc import key_slot

TAG = next(f"{{{number}}}" for number in range(10**6) if key_slot(b"%d" % number) == 0)


def until(condition):
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    raise SystemExit("waited in vain")


def is_up(port):
    try:
        return redis.Redis(port=port).ping()
    except redis.ConnectionError:
        return False


def start(port):
    folder = f"/node{port}"
    os.mkdir(folder)
    options = ["--cluster-enabled", "yes", "--cluster-databases", "2", "--save", ""]
    command = ["valkey-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    until(lambda: is_up(port))
    return process


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def count(port, database):
    return redis.Redis(port=port, db=database).dbsize()


for old, new, program in ((7001, 7002, "redis-cli"), (7003, 7004, "valkey-cli")):
    nodes = [start(old), start(new)]
    owner, other = redis.Redis(port=old), redis.Redis(port=new)
    owner.execute_command("CLUSTER ADDSLOTSRANGE", 0, 8191)
    other.execute_command("CLUSTER ADDSLOTSRANGE", 8192, 16383)
    other.execute_command("CLUSTER SET-CONFIG-EPOCH", 2)
    owner.execute_command("CLUSTER MEET", "127.0.0.1", new)
    for node in (owner, other):
        until(lambda: node.cluster("INFO")["cluster_state"] == "ok" and len(node.cluster("NODES")) == 2)
    for database in (0, 1):
        with redis.Redis(port=old, db=database).pipeline(transaction=False) as pipeline:
            for number in range(100):
                pipeline.set(f"{TAG}:{number}", "order")
            pipeline.execute()
    before = [count(old, database) for database in (0, 1)]
    ids = [redis.Redis(port=port, decode_responses=True).execute_command("CLUSTER MYID") for port in (old, new)]
    code, text = run(
        *(program, "--cluster", "reshard", f"127.0.0.1:{old}", "--cluster-from", ids[0], "--cluster-to", ids[1]),
        *("--cluster-slots", "1", "--cluster-yes"),
    )
    print(program, "reported success" if code == 0 else text.splitlines()[-1], file=sys.stderr)
    time.sleep(5)  # what the nodes tell each other
    for database in (0, 1):
        after = f"old owner {count(old, database)}, new owner {count(new, database)}"
        print(f"{program}: keys in database {database}: {before[database]}, then {after}")
    code, text = run(program, "--cluster", "check", f"127.0.0.1:{old}")
    print(f"{program}: check: {' '.join(re.findall(r'OK. (All [ -~]*)', text))}")
    for node in nodes:
        node.kill()
PY
dpkg-query --admindir "$work/tree/var/lib/dpkg" -W valkey-server redis-tools python3-redis
unshare --mount --pid --net --fork --kill-child chroot "$work/tree" sh -c '
mount -t proc proc /proc
ip link set lo up
timeout 300 python3 /run.py' | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
