"""A role that row level security holds for: PostgreSQL refuses it ``COPY FROM``, which docs/sql.md says."""

from __future__ import annotations

from uuid import uuid4

import psycopg
import pytest

from kombulite import Connection, Exchange, Queue, exceptions

QUEUE = Queue("one")
FANOUT = Exchange("all", "fanout")


@pytest.fixture
def producer(postgresql_url):
    """Publishes as such a role."""
    role = f"r{uuid4().hex[:10]}"
    options = {"table_prefix": f"{role}_"}
    with Connection(postgresql_url, transport_options=options) as owner:
        for queue in QUEUE, Queue("two", FANOUT), Queue("three", FANOUT):
            queue(owner).declare()
    with psycopg.connect(postgresql_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN")
        named = "SELECT tablename FROM pg_tables WHERE starts_with(tablename, %s)"
        for (table,) in admin.execute(named, [f"{role}_"]).fetchall():
            admin.execute(f"GRANT ALL ON {table} TO {role}")
        admin.execute(f"ALTER TABLE {role}_messages ENABLE ROW LEVEL SECURITY")
        admin.execute(f"CREATE POLICY any_row ON {role}_messages USING (true) WITH CHECK (true)")
        with Connection(postgresql_url.replace("kombulite@", f"{role}@"), transport_options=options) as connection:
            yield connection.Producer()
        admin.execute(f"DROP OWNED BY {role}")
        admin.execute(f"DROP ROLE {role}")


def test_messages_that_are_alike_go_to_one_queue(producer):
    producer.publish(0, routing_key="one")
    assert producer.publish_many([1, 2], routing_key="one") == 2
    bound = QUEUE(producer.connection)
    assert [bound.get(no_ack=True).payload for _ in range(3)] == [0, 1, 2]


def test_what_needs_copy_is_refused(producer):
    with pytest.raises(exceptions.ChannelError, match="COPY FROM not supported with row-level security"):
        producer.publish(0, exchange="all", routing_key="")
    with pytest.raises(exceptions.ChannelError, match="COPY FROM not supported with row-level security"):
        producer.publish_many([1, 2], routing_key="one", expiration=60)
    assert QUEUE(producer.connection).get() is None
