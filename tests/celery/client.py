"""A process that produces: runs the scenarios whose names it reads, and answers with what went wrong, if anything.

Where the broker is in its memory, so is the worker.
"""

import json
import sys
import traceback
from contextlib import nullcontext
from types import SimpleNamespace

from celery.contrib.testing.worker import start_worker
from shop import BROKER, SPACE, app

from tests.celery import scenarios


def worker(pool):
    options = {"perform_ping_check": False, "without_heartbeat": False, "task_events": True, "shutdown_timeout": 60}
    return start_worker(app, 2, pool, hostname=f"w@{SPACE}", **options)


facts = SimpleNamespace(**json.loads(sys.argv[1]))
replies, sys.stdout = sys.stdout, sys.stderr
with worker(facts.pool) if BROKER.startswith("memory") else nullcontext():
    for line in sys.stdin:
        try:
            getattr(scenarios, line.strip())(facts)
            reply = None
        except BaseException:
            reply = traceback.format_exc()
        print(json.dumps(reply), file=replies, flush=True)
