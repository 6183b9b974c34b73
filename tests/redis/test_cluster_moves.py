"""`kombulite move` to a Redis Cluster and between its layouts, killed at random and run again: nothing is lost."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter

import pytest

from kombulite import Connection, Queue
from tests.redis.test_cluster import OWN, TAGGED

MESSAGES, KILLS = 3000, 6
LEASE = "visibility_timeout=2"  # seconds


def take_all(url, layout, name, wanted):
    """Consume until all that is wanted has come, also what a killed process had taken; returns how often each came."""
    found = Counter()

    def note(message):
        found[message.payload] += 1
        message.ack()

    options = {**layout, "visibility_timeout": 2}
    deadline = time.monotonic() + 60
    with Connection(url, transport_options=options) as connection:
        with connection.Consumer(Queue(name), on_message=note, prefetch_count=100):
            while not wanted(found) and time.monotonic() < deadline:
                connection.drain(0.5)
    return found


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["from a single server", "from one layout to the other", "back again"])
def test_a_move_that_is_killed_and_run_again_loses_nothing(cluster, redis_url, record_property, way):
    name = f"moved-{way.replace(' ', '-')}"
    source, target = {
        "from a single server": ((redis_url, {}), (cluster.url, OWN)),
        "from one layout to the other": ((cluster.url, OWN), (cluster.url, TAGGED)),
        "back again": ((cluster.url, TAGGED), (cluster.url, OWN)),
    }[way]
    with Connection(source[0], transport_options=source[1]) as connection:
        connection.Producer().publish_many(range(MESSAGES), routing_key=name, declare=[Queue(name)])
    command = [sys.executable, "-m", "kombulite", "move", name, name, "--declare", "-b", source[0], "-o", LEASE]
    for key, value in source[1].items():
        command += ["-o", f"{key}={value}"]
    command += ["--to-broker", target[0]]
    for key, value in target[1].items():
        command += ["--to-transport-option", f"{key}={value}"]

    def length(place):
        with Connection(place[0], transport_options=place[1]) as connection:
            return Queue(name)(connection).queue_declare().message_count

    killed = 0
    for _ in range(KILLS):
        before = length(target)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while process.poll() is None and length(target) == before:
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.05))
            killed += process.poll() is None
        finally:
            process.kill()
            process.wait(20)
    subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
    there = length(target)  # what nothing else adds to, or takes from
    moved = take_all(*target, name, lambda found: sum(found.values()) >= there)
    left = take_all(*source, name, lambda found: moved.keys() | found.keys() >= set(range(MESSAGES)))
    record_property("killed", killed)
    record_property("twice", sum((moved + left).values()) - MESSAGES)
    assert killed, "no process was killed at its work"
    assert moved.keys() | left.keys() == set(range(MESSAGES))
