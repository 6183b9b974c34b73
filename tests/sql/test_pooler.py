"""PgBouncer before PostgreSQL: its clients share connections to the server, transaction by transaction."""

from __future__ import annotations

import psycopg
import pytest

from kombulite import Connection, Consumer, Producer, Queue
from tests.servers import PostgreSQLServer, Server


class Pooler(Server):
    """A PgBouncer with one connection to a server for all of its clients."""

    program = "pgbouncer"

    def __init__(self, server: PostgreSQLServer) -> None:
        super().__init__()
        self.user = server.owner.starter
        server.owner.own(self.folder)
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            "default_pool_size": 1,
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        place = f"* = host=127.0.0.1 port={server.port} user=kombulite"
        (self.folder / "settings").write_text("\n".join(["[databases]", place, "[pgbouncer]", *lines, ""]))

    def command(self) -> list[str]:
        return [self._path, str(self.folder / "settings")]

    def is_ready(self) -> bool:
        try:
            with psycopg.connect(self.url, connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False

    @property
    def url(self) -> str:
        return f"postgresql://kombulite@127.0.0.1:{self.port}/postgres"


@pytest.fixture
def pooled_url(own_postgresql, start_server):
    return start_server(lambda: Pooler(own_postgresql)).url


def test_clients_of_a_pooler_publish_and_consume(pooled_url):
    got = []
    with Connection(pooled_url) as first, Connection(pooled_url) as second:
        Queue("orders")(first).declare()
        with Consumer(second, [Queue("orders")], on_message=lambda message: (got.append(message), message.ack())):
            Producer(first).publish(1, routing_key="orders")
            second.drain_events(timeout=30)
    assert [message.payload for message in got] == [1]
