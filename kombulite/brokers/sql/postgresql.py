"""PostgreSQL, by psycopg 3."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg

from kombulite import exceptions
from kombulite.brokers.base import Settings
from kombulite.brokers.options import as_number
from kombulite.brokers.sql.arrays import BYTEA, array
from kombulite.brokers.sql.database import LOOK_INTERVAL, Database, Head, Row, Segment
from kombulite.brokers.sql.outbox import Statement
from kombulite.brokers.sql.schema import MAX_NAME
from kombulite.brokers.sql.wire import ServerError, Wire
from kombulite.log import get_logger

__all__ = ["PostgreSQL"]

logger = get_logger(__name__)

#: Key of the advisory lock that is held while the tables are created.
SCHEMA_LOCK = 0x6B6F6D62756C69
#: What statements are written for, whatever the operator has set: in stricter levels they would fail one another.
ISOLATION = "ISOLATION LEVEL READ COMMITTED"
#: The same for statements outside of a transaction. A connection waits idly for as long as there is nothing to do; the
#: setting that ends those came with PostgreSQL 14. Each statement has an index that finds its rows: until the tables
#: have been analyzed, and where most messages are of one queue, the planner would read a million rows for one instead.
SETTINGS = (
    "SELECT set_config(name, value, false) FROM pg_settings JOIN (VALUES"
    " ('default_transaction_isolation', 'read committed'), ('idle_session_timeout', '0'), ('enable_seqscan', 'off'),"
    " ('jit', 'off')) AS ours (name, value) USING (name)"
)
POOLED_LOOK_INTERVAL = 0.5  # seconds between looks where nothing wakes a consumer
SOCKET_TIMEOUT = 30.0  # seconds

#: SQLSTATE classes and codes after which trying again may do: serialization failure, deadlock, timeouts.
TRANSIENT = frozenset(["40001", "40P01", "55P03", "57014"])
NO_PRIVILEGE = "42501"
#: Those of a server that has no room: disk full, out of memory, too many connections.
NO_RESOURCES = "53"
#: That of a standby, or of a primary that has become one: another server may take writes.
READ_ONLY = "25006"
#: Those of tables and indexes that are corrupted.
CORRUPT = frozenset(["XX001", "XX002"])
#: What a server says that refuses a user, the database, or a setting, and what libpq says of an authentication that it
#: may not take; a server that speaks another language is asked again and again.
LOGIN_REFUSED = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|pg_hba\.conf rejects connection"
    r"|role .* (does not exist|is not permitted to log in)"
    r"|authentication method requirement .* failed|channel binding required"
)
NOT_ALLOWED = re.compile(
    r"database .* does not exist|permission denied for database|unrecognized configuration parameter"
    r"|invalid value for parameter"
)
#: What libpq says of a parameter before it asks any server.
WRONG_PARAMETER = re.compile(
    r"connection is bad: .*(invalid .*value|invalid port number|weak sslmode|definition of service .* not found"
    r"|min_protocol_version. is greater)"
)

COLUMNS = "queue, rank, due, expires, exchange, routing_key, properties, body"

# A consumer may start between this and the commit: a transaction of the application's may take long.
INSERT_AND_WAKE = (
    "WITH put AS (INSERT INTO {p}messages (" + COLUMNS + ") VALUES (?, ?, ?, {now} + ?, ?, ?, ?, ?) RETURNING 1)"
    " SELECT pg_notify(?, '') FROM put"
)

SCHEMA_OF_TABLE = (
    "SELECT quote_ident(nspname) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
    " WHERE pg_class.oid = to_regclass(?)"
)

# What messages have in common travels once, and the whole transaction is one round trip. That takes the server less
# than a COPY of a thousand, which has it receive each column of each row, and makes room for a thousand rows each time.
# The clock is a sub-select: the time would be computed anew for each row.
INSERT_UNLESS_CHANGED = (
    "INSERT INTO {p}messages (" + COLUMNS + ") SELECT ?, ?, ?, (SELECT {now} + ?), ?, ?, ?, unnest(?::bytea[])"
    " FROM {p}meta WHERE topology = ? AND 0 <= (SELECT count(pg_notify(?, '')) WHERE ?::boolean"
    " OR EXISTS (SELECT 1 FROM {p}consumers WHERE queue = ?))"
)

COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TRAILER = b"\xff\xff"
COPY_PIECE = 1 << 15  # bytes that are made before they are sent: the server stores them while the next are made
COPY_NULL = b"\xff\xff\xff\xff"
_field_count = struct.pack("!h", 8)
_size = struct.Struct("!i").pack
_long_field = struct.Struct("!iq").pack
_int_field = struct.Struct("!ii").pack
_double_field = struct.Struct("!id").pack


class PostgreSQL(Database):
    """A connection to a server.

    Transport options: ``schema``: where the tables are (by default the search path's first); ``socket_timeout``:
    seconds for the server to answer a statement; ``connect_args``: further parameters of libpq, such as ``sslmode`` and
    ``target_session_attrs``.
    """

    now = "(extract(epoch from clock_timestamp())::double precision)"
    skip = "FOR UPDATE SKIP LOCKED"
    lock = "FOR UPDATE"
    place = "ctid"
    found = (
        "ctid = ANY(ARRAY(SELECT place FROM found))"  # IN makes the planner read the whole table for what might be many
    )
    is_postgresql = True
    is_apart = True

    def __init__(self, settings: Settings, prefix: str) -> None:
        super().__init__(prefix, settings.options.get("schema"))
        self._settings = settings
        timeout = settings.options.get("socket_timeout")
        self._timeout = SOCKET_TIMEOUT if timeout is None else as_number("socket_timeout", timeout)
        if self._timeout <= 0:
            raise ValueError(f"socket_timeout must be above 0 seconds, got {self._timeout:g}")
        self._wire: Wire | None = None
        #: Whether a pooler gives the transactions of this connection to several connections to the server.
        self.is_pooled = False
        self._insert_and_wake: str | None = None
        self.channel = f"{prefix}{self._schema or ''}".encode()[:MAX_NAME].decode(errors="ignore")

    def _connect(self) -> Wire:
        settings, pause = self._settings, max(int(self._timeout / 4), 1)
        parameters: dict[str, Any] = {
            "host": settings.hostname,
            "port": settings.port,
            "user": settings.userid,
            "password": settings.password,
            "dbname": settings.virtual_host.strip("/") or None,
            "client_encoding": "UTF8",
            # For the connection that only listens: a statement ends by its own deadline.
            "keepalives_idle": pause,
            "keepalives_interval": pause,
            "keepalives_count": 3,
            **(settings.options.get("connect_args") or {}),
        }
        if settings.connect_timeout is not None:
            parameters.setdefault("connect_timeout", max(int(settings.connect_timeout), 1))
        try:
            return Wire(psycopg.connect(autocommit=True, **parameters), self._timeout)
        except psycopg.Error as error:
            raise _refused(error) from None  # its text and its frames may hold the password

    def open(self) -> None:
        """Connect to the server."""
        self._wire, self._insert_and_wake = self._connect(), None
        backend = self.value("SELECT pg_backend_pid()")
        self.is_pooled = backend != self._wire.backend
        self.look_interval = POOLED_LOOK_INTERVAL if self.is_pooled else LOOK_INTERVAL
        if not self.is_pooled:
            self.rows(SETTINGS)
            self._wire.prepares = True
        else:
            logger.warning(
                "There is a pooler before PostgreSQL: nothing can be listened to behind one that pools transactions,"
                " so consumers poll"
            )

    def close(self) -> None:
        """Disconnect."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    @property
    def is_idle(self) -> bool:
        """Whether no transaction is open and no statement is under way."""
        return not self._depth and (self._wire is None or self._wire.is_idle)

    def recover(self) -> None:
        """Roll back what was interrupted; an answer that is still to come would be taken for the next one's."""
        self._depth = 0
        if self._wire is not None and self._wire.is_busy:
            self.close()
        else:
            self.roll_back()

    @property
    def is_lost(self) -> bool:
        """Whether the connection to the server is gone."""
        return self._wire is None or self._wire.is_closed

    def listen(self) -> Wire | None:
        """Return a connection of its own that receives the notifications, or None if there can be none."""
        if self.is_pooled:
            return None
        listener = self._connect()
        try:
            listener.run(SETTINGS)
            listener.command(f'LISTEN "{self.channel}"')
        except ServerError as error:
            listener.close()
            raise _translated(str(error), error.sqlstate, is_lost=False) from error
        return listener

    def prepare(self, statement: str) -> str:
        """Return the statement with numbered placeholders."""
        first, *others = statement.split("?")
        return first + "".join(f"${number}{text}" for number, text in enumerate(others, 1))

    def _open_wire(self) -> Wire:
        if self._wire is None:
            raise exceptions.RecoverableConnectionError("connection already closed")
        return self._wire

    def fetch(self, statement: str, values: Sequence[Any]) -> list[Row]:
        """Run a statement and return its rows."""
        try:
            return self._open_wire().run(statement, values)
        except ServerError as error:
            raise self._failure(error) from error

    def _command(self, statement: str) -> bytes:
        try:
            return self._open_wire().command(statement)
        except ServerError as error:
            raise self._failure(error) from error

    def _failure(self, error: ServerError, wire: Wire | None = None) -> Exception:
        """Return an error of ours for one of the server's, on the connection that is open or on one before it."""
        if error.sqlstate == READ_ONLY or error.sqlstate in CORRUPT:
            self.close()  # the next connection may find a server that takes writes, or one whose files are whole
        return _translated(str(error), error.sqlstate, self.is_lost if wire is None else wire.is_closed)

    def insert_messages(self, segments: Sequence[Segment]) -> None:
        """Insert messages by COPY, which takes a fraction of what an INSERT for each takes."""
        now = self.value("SELECT {now}") if any(head[3] is not None for head, _ in segments) else 0.0
        try:
            self._open_wire().copy(
                self.filled("COPY {p}messages (" + COLUMNS + ") FROM STDIN (FORMAT binary)"), _copied(segments, now)
            )
        except ServerError as error:
            raise self._failure(error) from error

    def insert_unless_changed(self, segment: Segment, topology: int, wakes_all: bool) -> bool:
        """Insert messages and wake their consumers in one statement; not if the topology has changed."""
        try:
            return self._open_wire().execute(*self._insert(segment, topology, wakes_all)) > 0
        except ServerError as error:
            raise self._failure(error) from error

    def begin_insert_unless_changed(self, segment: Segment, topology: int, wakes_all: bool) -> Callable[[], bool]:
        """Send the statement that does so; returns what waits for its end."""
        wire = self._open_wire()
        try:
            pending = wire.send(*self._insert(segment, topology, wakes_all))
        except ServerError as error:
            raise self._failure(error, wire) from error

        def wait() -> bool:
            try:
                return pending.changed_rows() > 0
            except ServerError as error:
                raise self._failure(error, wire) from error

        return wait

    def _insert(self, segment: Segment, topology: int, wakes_all: bool) -> Statement:
        head, bodies = segment
        values = (*head, array(BYTEA, bodies), topology, self.channel, wakes_all, head[0])
        return self.prepared(INSERT_UNLESS_CHANGED), values

    def outbox_statement(self, head: Head, body: bytes) -> Statement:
        """Return what inserts a message and wakes its consumers at commit.

        It names the schema of the tables: the search path of the caller's connection may be another.
        """
        statement = self._insert_and_wake
        if statement is None:
            place = self.prefix
            if not self._schema:
                place = f"{self.value(SCHEMA_OF_TABLE, f'{self.prefix}messages')}.{place}"
            statement = self._insert_and_wake = self.filled(INSERT_AND_WAKE.replace("{p}", place))
        return statement, (*head, body, self.channel)

    def begin(self) -> None:
        """Start a transaction."""
        self._command(f"BEGIN {ISOLATION}")

    def commit(self) -> None:
        """Commit it. Raises ChannelError if a statement in it has failed: the server says so by its answer alone."""
        if self._command("COMMIT") == b"ROLLBACK":
            raise exceptions.ChannelError("PostgreSQL: a statement had failed, so the transaction was rolled back")

    def roll_back(self) -> None:
        """Roll it back; not if a signal handler interrupted a statement, which ``recover`` ends with the connection."""
        if self._wire is not None and not self._wire.is_closed and not self._wire.is_busy:
            self._command("ROLLBACK")

    def notify(self, queues: Sequence[int], wakes_all: bool = False) -> None:
        """Notify the listeners at commit, of queues with consumers only: a NOTIFY takes a lock of the whole cluster."""
        if wakes_all or not queues:
            self.rows("SELECT pg_notify(?, '')", self.channel)
        else:
            self.rows(
                "SELECT pg_notify(?, '') WHERE EXISTS (SELECT 1 FROM {p}consumers WHERE queue = ANY(?))",
                self.channel,
                list(queues),
            )

    def free_notifications(self) -> None:
        """Have the server move on the tail of its queue, which only those that add to it do: to a full one nobody can.

        It stays full after the session that did not read is gone. Seen with PostgreSQL 15 and 18.6.
        """
        self.rows("SELECT pg_notification_queue_usage()")

    def lock_schema(self) -> None:
        """Take an advisory lock until the transaction ends: CREATE TABLE IF NOT EXISTS of two sessions may collide."""
        self.rows("SELECT pg_advisory_xact_lock(?)", SCHEMA_LOCK)

    def has_tables(self) -> bool:
        """Return whether the tables are there."""
        return self.value("SELECT to_regclass(?) IS NOT NULL", f"{self.prefix}meta") is True


def _copied(segments: Sequence[Segment], now: float) -> Iterator[bytes]:
    """Generate messages in the binary format of COPY."""
    pieces, size = [COPY_HEADER], 0
    for head, bodies in segments:
        start = _copied_head(head, now)
        for body in bodies:
            pieces += (start, _size(len(body)), body)
            size += len(start) + len(body)
            if size > COPY_PIECE:
                yield b"".join(pieces)
                pieces, size = [], 0
    yield b"".join((*pieces, COPY_TRAILER))


def _copied_head(head: Head, now: float) -> bytes:
    """Return what a message begins with in that format."""
    queue, rank, due, ttl, exchange, routing_key, properties = head
    texts = (exchange.encode(), routing_key.encode(), properties.encode())
    return b"".join(
        (
            _field_count,
            _long_field(8, queue),
            _int_field(4, rank),
            COPY_NULL if due is None else _double_field(8, due),
            COPY_NULL if ttl is None else _double_field(8, now + ttl),
            *(_size(len(text)) + text for text in texts),
        )
    )


def _refused(error: psycopg.Error) -> Exception:
    """Return why there is no connection. libpq gives no code for that, so it is the server's words that tell."""
    text = f"PostgreSQL: {error}".strip()
    if isinstance(error, psycopg.ProgrammingError) or WRONG_PARAMETER.search(text):
        return ValueError(text)
    if LOGIN_REFUSED.search(text):
        return exceptions.LoginRefused(text)
    if NOT_ALLOWED.search(text):
        return exceptions.NotAllowed(text)
    lost = exceptions.RecoverableConnectionError
    if isinstance(error, psycopg.errors.ConnectionTimeout):
        return exceptions.combined(lost, TimeoutError)(text)
    return exceptions.combined(lost, ConnectionRefusedError)(text) if "refused" in text else lost(text)


def _translated(text: str, sqlstate: str | None, is_lost: bool) -> Exception:
    text, code = f"PostgreSQL: {text}".strip(), sqlstate or ""
    if code.startswith("28") or code == NO_PRIVILEGE:
        return exceptions.AccessRefused(text)
    if code in CORRUPT:
        return exceptions.InternalError(text)
    if is_lost or code.startswith(("08", "57P")):
        return exceptions.RecoverableConnectionError(text)
    if code in TRANSIENT:
        return exceptions.RecoverableChannelError(text)
    if code.startswith(NO_RESOURCES):
        return exceptions.ResourceError(text)
    return exceptions.ChannelError(text)
