"""Limits of queues on PostgreSQL, whatever plan its planner chooses."""

from __future__ import annotations

from uuid import uuid4

import pytest

from kombulite import Connection, Producer, Queue

#: Settings that lead the planner to one join or another. In the last a sub-select runs again for each row.
PLANS = {
    "hash": "enable_nestloop enable_mergejoin",
    "merge": "enable_hashjoin enable_nestloop",
    "loop": "enable_hashjoin enable_mergejoin",
    "again and again": "enable_hashjoin enable_hashagg enable_material enable_sort",
}


@pytest.mark.parametrize("plan", PLANS)
def test_a_full_queue_drops_its_excess_and_no_more(postgresql_url, plan):
    settings = " ".join(f"-c {name}=off" for name in PLANS[plan].split())
    options = {"table_prefix": f"p{uuid4().hex[:10]}_", "connect_args": {"options": settings}}
    with Connection(postgresql_url, transport_options=options) as connection:
        queue = Queue("short", max_length=3)(connection.default_channel)
        queue.declare()
        Producer(connection).publish_many(range(5), routing_key="short")
        assert [queue.get(no_ack=True).payload for _ in range(3)] == [2, 3, 4]
        assert queue.get() is None
