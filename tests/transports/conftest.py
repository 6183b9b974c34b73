"""A database that several modules use."""

from __future__ import annotations

import psycopg
import pytest


@pytest.fixture(scope="session")
def pgmq(postgresql_url):
    """A database that has the SQL of pgmq, as its client brings it."""
    install = pytest.importorskip("pgmq.install")
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE pgmq")
    url = postgresql_url.rpartition("/")[0] + "/pgmq"
    install.install_pgmq_sql(install.get_embedded_install_sql(), dsn=url)
    return url
