"""Celery's embedded workers, as test suites use them: several in one process, one after the other."""

from __future__ import annotations

import json

import pytest

PROGRAM = """
import gc, json, os, threading
from celery.contrib.testing.tasks import ping
from celery.contrib.testing.worker import start_worker
from shop import add, app

if POOL != "prefork":  # its children have a memory of their own
    app.conf.result_backend = "cache+memory://"
app.conf.worker_hijack_root_logger = False
results, held = [], []
for turn in range(2):
    with start_worker(app, pool=POOL, perform_ping_check=False, loglevel="ERROR", shutdown_timeout=60):
        results.append(add.apply_async((turn, 1), countdown=0.2).get(timeout=30))
    app.pool.force_close_all(close_pool=False)
    gc.collect()
    held.append(len(os.listdir("/proc/self/fd")))
print(json.dumps([results, held]))
"""


EACH_TIME = {("redis", "threads"), ("amqp", "solo")}
CASES = [(broker, pool) for broker in ("redis", "amqp", "memory") for pool in ("solo", "threads", "prefork")]
CASES.remove(("memory", "prefork"))  # a child has a memory of its own


@pytest.mark.parametrize(
    ("fleet", "pool"),
    [pytest.param(*case, marks=() if case in EACH_TIME else pytest.mark.soak) for case in CASES],
    indirect=["fleet"],
)
def test_embedded_workers_one_after_the_other_run_countdown_tasks(fleet, pool):
    program = PROGRAM.replace("POOL", repr(pool))
    results, held = json.loads(fleet.run("kombulite", program).splitlines()[-1])
    assert results == [1, 2]
    if pool != "prefork":  # billiard leaves the pipes of each pool
        assert held[1] <= held[0], "descriptors are left open"
