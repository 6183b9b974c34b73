"""The programs of docs/sql.md, run as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kombulite import Connection, Queue

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.mark.parametrize("name", ["outbox_django.py", "outbox_sqlalchemy.py"])
def test_refused_order_leaves_no_message(name):
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("refused\n{'purchase': 7} None\n", 0), done.stderr


def test_refused_request_leaves_no_message(monkeypatch):
    from fastapi.testclient import TestClient

    monkeypatch.syspath_prepend(EXAMPLES)
    import outbox_fastapi

    with TestClient(outbox_fastapi.app) as client:
        assert client.post("/orders/7").status_code == 200
        assert client.post("/orders/7").status_code == 409
    with Connection(f"sqlite:///{outbox_fastapi.PATH}") as connection:
        orders = Queue("orders")(connection)
        message = orders.get(no_ack=True)
        assert message is not None
        assert (message.payload, orders.get()) == ({"purchase": 7}, None)
