"""Celery's embedded workers, as test suites use them: several in one process, one after the other."""

from __future__ import annotations

import json

import pytest

PROGRAM = """
import gc, json, os, threading
from celery.contrib.testing.tasks import ping
from celery.contrib.testing.worker import start_worker
from shop import add, app

app.conf.result_backend = "cache+memory://"
app.conf.worker_hijack_root_logger = False
results, held = [], []
for turn in range(2):
    with start_worker(app, pool="solo", perform_ping_check=False, loglevel="ERROR"):
        results.append(add.apply_async((turn, 1), countdown=0.2).get(timeout=30))
    app.pool.force_close_all(close_pool=False)
    gc.collect()
    held.append(len(os.listdir("/proc/self/fd")))
print(json.dumps([results, held]))
"""


@pytest.mark.parametrize("fleet", ["redis", "amqp"], indirect=True)
def test_embedded_workers_one_after_the_other_run_countdown_tasks(fleet):
    results, held = json.loads(fleet.run("kombulite", PROGRAM).splitlines()[-1])
    assert results == [1, 2]
    assert held[1] <= held[0], "descriptors are left open"
