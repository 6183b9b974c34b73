"""A process that produces: runs the scenarios whose names it reads, and answers with what went wrong, if anything."""

import json
import sys
import traceback
from types import SimpleNamespace

from tests.celery import scenarios

facts = SimpleNamespace(**json.loads(sys.argv[1]))
replies, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    try:
        getattr(scenarios, line.strip())(facts)
        reply = None
    except BaseException:
        reply = traceback.format_exc()
    print(json.dumps(reply), file=replies, flush=True)
