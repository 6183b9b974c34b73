"""The tables of the SQL brokers: one versioned schema for SQLite and PostgreSQL, readable with plain SQL.

All times are seconds since 1970 by the database server's clock. A message waits if it has no ``owner`` and is not
``due`` at a later time; an owner is a connection with a lease (``alive_until``). A queue's messages are claimed in the
order of ``rank`` (the priority, negated) and ``id``. ``topology`` counts the changes of exchanges, queues and bindings,
so that a publisher notices that what it has cached is stale.
"""

from __future__ import annotations

VERSION = 3

#: What a column type is called: (SQLite, PostgreSQL).
TYPES = {
    "serial": ("INTEGER PRIMARY KEY AUTOINCREMENT", "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"),
    # Messages have no primary key on PostgreSQL: it would cost a fifth of each publish.
    "message": ("INTEGER PRIMARY KEY AUTOINCREMENT", "BIGINT GENERATED ALWAYS AS IDENTITY"),
    "blob": ("BLOB", "BYTEA"),
    "time": ("REAL", "DOUBLE PRECISION"),
}

STATEMENTS = (
    "CREATE TABLE {p}meta (version INTEGER NOT NULL, topology BIGINT NOT NULL)",
    "CREATE TABLE {p}connections (id {serial}, alive_until {time} NOT NULL, lease {time} NOT NULL)",
    "CREATE TABLE {p}exchanges (name TEXT PRIMARY KEY, type TEXT NOT NULL, durable BOOLEAN NOT NULL,"
    " auto_delete BOOLEAN NOT NULL, arguments TEXT NOT NULL)",
    "CREATE TABLE {p}queues (id {serial}, name TEXT NOT NULL UNIQUE, durable BOOLEAN NOT NULL,"
    " exclusive BOOLEAN NOT NULL, auto_delete BOOLEAN NOT NULL, arguments TEXT NOT NULL, owner BIGINT, expires {time})",
    "CREATE TABLE {p}bindings (source TEXT NOT NULL, destination TEXT NOT NULL, to_exchange BOOLEAN NOT NULL,"
    " routing_key TEXT NOT NULL, arguments TEXT NOT NULL,"
    " PRIMARY KEY (source, destination, to_exchange, routing_key, arguments))",
    "CREATE TABLE {p}consumers (connection BIGINT NOT NULL, channel INTEGER NOT NULL, tag TEXT NOT NULL,"
    " queue BIGINT NOT NULL, exclusive BOOLEAN NOT NULL, PRIMARY KEY (connection, channel, tag))",
    "CREATE INDEX {i}consumers_queue ON {p}consumers (queue)",
    "CREATE TABLE {p}messages (id {message}, queue BIGINT NOT NULL, rank INTEGER NOT NULL, due {time}, expires {time},"
    " owner BIGINT, deliveries INTEGER NOT NULL DEFAULT 0, exchange TEXT NOT NULL, routing_key TEXT NOT NULL,"
    " properties TEXT NOT NULL, body {blob} NOT NULL)",
    "CREATE INDEX {i}messages_waiting ON {p}messages (queue, rank, id) WHERE owner IS NULL AND due IS NULL",
    "CREATE INDEX {i}messages_owned ON {p}messages (owner, queue) WHERE owner IS NOT NULL",
    "CREATE INDEX {i}messages_due ON {p}messages (due) WHERE due IS NOT NULL",
    "CREATE INDEX {i}messages_expires ON {p}messages (expires) WHERE expires IS NOT NULL",
    "INSERT INTO {p}meta (version, topology) VALUES (" + str(VERSION) + ", 1)",
)


#: Without it, logical replication that has all tables would refuse updates of those without a primary key: claims and
#: acks, and whatever is declared.
REPLICATED_WHOLE = (
    "ALTER TABLE {p}messages REPLICA IDENTITY FULL",
    "ALTER TABLE {p}meta REPLICA IDENTITY FULL",
)

#: What makes tables of a version those of the next: on (SQLite, PostgreSQL).
MIGRATIONS: dict[int, tuple[tuple[str, ...], tuple[str, ...]]] = {
    2: ((), ("ALTER TABLE {p}messages DROP CONSTRAINT {i}messages_pkey", *REPLICATED_WHOLE)),
}

DEFAULT_PREFIX = "kombulite_"
MAX_NAME = 63  # bytes of a name on PostgreSQL, which cuts off what is above
MAX_PREFIX = MAX_NAME - len("connections_id_seq")


def check_prefix(name: str) -> str:
    """Return a prefix, which is put into statements as it is. Raises ValueError for what is no plain name."""
    if not name.replace("_", "a").isalnum() or not name.isascii() or name[0].isdigit():
        raise ValueError(
            f"table_prefix must consist of ASCII letters, digits and '_', and begin with no digit, got {name!r:.80}"
        )
    if len(name) > MAX_PREFIX:
        raise ValueError(f"table_prefix must have at most {MAX_PREFIX} characters, got {len(name)}")
    return name


def quoted_schema(name: str) -> str:
    """Return a schema's name as it is put into statements. Raises ValueError for what is none."""
    if not name or not all(each.isalnum() or each in "_-$. " for each in name):
        raise ValueError(f"schema must consist of letters, digits, '_', '-', '$', '.' and spaces, got {name!r:.80}")
    if "$$" in name:
        raise ValueError(f"schema must not have '$$', which ends a block of PL/pgSQL, got {name!r:.80}")
    if len(name.encode()) > MAX_NAME:
        raise ValueError(f"schema must have at most {MAX_NAME} bytes, got {len(name.encode())}")
    return f'"{name}"'


def schema_statements(
    database: str, table_prefix: str = DEFAULT_PREFIX, schema: str | None = None, since: int | None = None
) -> list[str]:
    """Return the statements that create the broker's tables, or upgrade them, as for a migration.

    Args:
        database: ``postgresql`` or ``sqlite``.
        table_prefix: What the names of tables and indexes begin with, as the transport option.
        schema: Where they are on PostgreSQL, created if it is missing; None: the first of the search path.
        since: Version of the tables that are there and to be upgraded; None: there are none.

    Raises:
        ValueError: One of them cannot be.
    """
    if database not in ("postgresql", "sqlite"):
        raise ValueError(f"database must be 'postgresql' or 'sqlite', got {database!r:.80}")
    prefix = check_prefix(table_prefix)
    is_postgresql = database == "postgresql"
    types = {name: both[is_postgresql] for name, both in TYPES.items()}
    qualified = f"{quoted_schema(schema)}.{prefix}" if schema else prefix
    if since is None:
        statements = [*STATEMENTS, *REPLICATED_WHOLE] if is_postgresql else [*STATEMENTS]
    elif since not in MIGRATIONS:
        raise ValueError(f"since must be one of {', '.join(map(str, MIGRATIONS))}, got {since!r:.80}")
    else:
        statements = [each for version in range(since, VERSION) for each in MIGRATIONS[version][is_postgresql]]
        statements.append(f"UPDATE {{p}}meta SET version = {VERSION}")
    made = [statement.format(p=qualified, i=prefix, **types) for statement in statements]
    if schema and is_postgresql and since is None:
        name = quoted_schema(schema)
        missing = f"to_regnamespace('{name}') IS NULL"
        made.insert(0, f"DO $$ BEGIN IF {missing} THEN CREATE SCHEMA {name}; END IF; END $$")
    return made
