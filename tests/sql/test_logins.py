"""Servers that refuse a login, and parameters of libpq that are wrong: none of them is asked again and again."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from kombulite import Connection, Queue, exceptions
from tests.servers import PostgreSQLServer

needs_libpq_16 = pytest.mark.skipif(psycopg.pq.version() < 160000, reason="libpq has that parameter since 16")

RULES = """\
host all rejected 127.0.0.1/32 reject
host all secret 127.0.0.1/32 scram-sha-256
host all kombulite,"group" 127.0.0.1/32 trust
"""


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[PostgreSQLServer]:
    """One that has users whom it does not let in."""
    request.getfixturevalue("postgresql_url")  # skips where there is none
    server = PostgreSQLServer(fsync="off")
    (server.data / "pg_hba.conf").write_text(RULES)
    with server:
        with psycopg.connect(server.conninfo, autocommit=True) as admin:
            admin.execute("CREATE ROLE rejected LOGIN")
            admin.execute("CREATE ROLE secret LOGIN SUPERUSER PASSWORD 'right'")
            admin.execute('CREATE ROLE "group" NOLOGIN')
        yield server


@pytest.mark.parametrize(
    ("user", "parameters", "words"),
    [
        ("rejected", {}, "pg_hba.conf rejects connection"),
        ("group", {}, 'role "group" is not permitted to log in'),
        ("unknown", {}, "no pg_hba.conf entry"),
        ("secret:wrong", {}, "password authentication failed"),
        ("secret", {}, "no password supplied"),
        pytest.param(
            *("secret:right", {"require_auth": "none"}, "authentication method requirement"), marks=needs_libpq_16
        ),
        ("secret:right", {"channel_binding": "require"}, "channel binding required"),
    ],
)
def test_login_that_is_refused(server, user, parameters, words):
    url = server.url.replace("kombulite@", f"{user}@")
    with (
        Connection(url, transport_options={"connect_args": parameters}) as connection,
        pytest.raises(exceptions.LoginRefused, match=words),
    ):
        connection.ensure_connection()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"dbname": "absent"}, 'database "absent" does not exist'),
        ({"options": "-c nosuch=1"}, 'unrecognized configuration parameter "nosuch"'),
        ({"options": "-c work_mem=much"}, 'invalid value for parameter "work_mem"'),
    ],
)
def test_database_or_setting_that_is_refused(server, parameters, words):
    with (
        Connection(server.url, transport_options={"connect_args": parameters}) as connection,
        pytest.raises(exceptions.NotAllowed, match=words),
    ):
        connection.ensure_connection()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"nosuch": 1}, 'invalid connection option "nosuch"'),
        ({"sslmode": "often"}, 'invalid sslmode value: "often"'),
        ({"connect_timeout": "long"}, "bad value for connect_timeout: 'long'"),
        ({"keepalives": "often"}, 'invalid integer value "often" for connection option "keepalives"'),
        ({"port": 99999}, 'invalid port number: "99999"'),
        pytest.param({"sslmode": "disable", "sslrootcert": "system"}, 'weak sslmode "disable"', marks=needs_libpq_16),
        ({"service": "nosuch"}, 'definition of service "nosuch" not found'),
    ],
)
def test_parameter_that_is_wrong(server, parameters, words):
    with (
        Connection(server.url, transport_options={"connect_args": parameters}) as connection,
        pytest.raises(ValueError, match=words),
    ):
        connection.ensure_connection()


def test_user_with_the_right_password_is_let_in(server):
    with Connection(server.url.replace("kombulite@", "secret:right@")) as connection:
        assert Queue("orders")(connection).declare() == "orders"
