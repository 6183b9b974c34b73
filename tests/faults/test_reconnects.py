"""Connections that are lost again and again leave nothing behind."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from typing import Any, NamedTuple

import pytest

from kombulite import Consumer, Producer, Queue, uuid
from tests.faults.stage import private_memory
from tests.servers import wait_until

AT_ONCE = {"max_retries": 5, "interval_start": 0, "interval_max": 0.2}
KEPT = 4 << 20  # bytes that a thousand may cost: the allocator settles slowly; what leaks a connection takes more


class Holdings(NamedTuple):
    """What this process holds."""

    descriptors: int
    threads: int
    blocks: int  # of Python's memory
    memory: int  # bytes

    @classmethod
    def now(cls) -> Holdings:
        gc.collect()
        descriptors = len(os.listdir("/proc/self/fd"))
        return cls(descriptors, threading.active_count(), sys.getallocatedblocks(), private_memory("self"))


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs the figures of Linux")
@pytest.mark.parametrize("times", [50, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_reconnects_leave_nothing_behind(proxy, connect, times, caplog):
    caplog.set_level(logging.CRITICAL, "kombulite")  # records are kept, with what they are about
    connection = connect(heartbeat=10)
    got: list[Any] = []
    queue = Queue(uuid(), auto_delete=True)
    exclusive = Queue(uuid(), exclusive=True)

    def take(message: Any) -> None:
        got[:] = [message.payload]
        message.ack()

    Consumer(connection, [queue, exclusive], on_message=take, prefetch_count=1).consume()
    producer = Producer(connection)

    def lose_and_find(number: int) -> None:
        proxy.reset()
        producer.publish(number, routing_key=queue.name, retry=True, retry_policy=AT_ONCE)
        while got != [number]:
            try:
                connection.drain_events(timeout=10)
            except connection.recoverable_connection_errors:
                if connection.connected:
                    raise  # it was a time out

    warm = max(20, times // 5)  # reconnects after which there is about all that there will be
    for number in range(warm):
        lose_and_find(number)

    def grown(numbers: range) -> Holdings:
        """What so many reconnects have left behind."""
        before, taken = Holdings.now(), proxy.taken
        for number in numbers:
            lose_and_find(number)
        assert proxy.taken - taken >= len(numbers)
        wait_until(lambda: Holdings.now()[:2] <= before[:2], 10, f"{before}, and now {Holdings.now()}")
        return Holdings(*(now - then for now, then in zip(Holdings.now(), before, strict=True)))

    # What else is in the process, as left by other tests, may grow too; what a reconnect leaves does so each time.
    spans = (grown(range(start, start + times)) for start in range(warm, warm + 3 * times, times))
    growth = next((each for each in spans if each.blocks < max(times, 500)), None)
    assert growth is not None, "an object for each"
    if times >= 1000:
        assert growth.memory < KEPT
