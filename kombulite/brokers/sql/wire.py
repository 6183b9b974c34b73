"""Statements over libpq, each of which ends by a deadline.

psycopg opens the connection and names the errors. Its cursors wait for the server without limit, so statements are sent
and awaited here: without its adaptation of types too, of which the few that the tables have need nothing.
"""

from __future__ import annotations

import select
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import count
from time import monotonic
from typing import Any

import psycopg
from psycopg import pq

__all__ = ["Pending", "ServerError", "Wire"]

Row = tuple[Any, ...]

TEXT, BINARY = 0, 1  # formats of libpq
COPY_CHUNK = 65536  # bytes that are handed to libpq at once
READ, WRITE = select.POLLIN, select.POLLOUT


def _struct_loader(form: str) -> Callable[[bytes], Any]:
    unpack = struct.Struct(form).unpack
    return lambda value: unpack(value)[0]


#: What makes a value of the binary format of a type, by the type's OID; bytes stay as they are.
LOADERS: dict[int, Callable[[bytes], Any]] = {
    16: _struct_loader("?"),
    20: _struct_loader("!q"),
    21: _struct_loader("!h"),
    23: _struct_loader("!i"),
    25: bytes.decode,
    701: _struct_loader("!d"),
}

DONE = frozenset([pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COPY_IN])


class ServerError(OSError):
    """An error that the server reported, with its SQLSTATE (empty where the connection failed)."""

    def __init__(self, text: str, sqlstate: str = "") -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


class Pending:
    """A statement that was sent, and whose answer has not been read or is kept here: ``Wire.send`` makes it.

    The next statement on its connection reads the answer first.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._answer: Any = None
        self._error: ServerError | None = None

    def read(self, read: Callable[[], Any]) -> None:
        """Read the answer, and keep it, or the error that it is."""
        try:
            self._answer = read()
        except ServerError as error:
            self._error = error

    def changed_rows(self) -> int:
        """Wait for the answer; returns how many rows of a table the statement has changed. Raises as ``Wire.run``."""
        self._wire.read_pending(self)
        if self._error is not None:
            raise self._error
        if self._answer is None:  # closed, or a signal handler interrupted the wait: what is to come is not known
            self._wire.close()
            raise ServerError("the connection was closed before the server answered")
        return int(self._answer.command_tuples or 0)


class Wire:
    """A libpq connection that runs one statement at a time.

    Args:
        connection: A psycopg connection in autocommit mode, which nobody else uses.
        timeout: Seconds for the server to answer one statement. If it does not, the connection is closed.

    Attributes:
        prepares: Whether statements are prepared once; a pooler gives them to another client.
    """

    def __init__(self, connection: psycopg.Connection[Any], timeout: float) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._timeout = timeout
        self.prepares = False
        self._prepared: dict[str, bytes] = {}
        self._numbers = count()  # not how many are prepared: one may be that a signal handler kept from being noted
        self._pending: Pending | None = None

    # --- the connection

    def close(self) -> None:
        """Disconnect, without a wait for the server."""
        self._connection.close()

    @property
    def is_closed(self) -> bool:
        """Whether the connection is gone."""
        return self._pgconn.status != pq.ConnStatus.OK

    @property
    def is_idle(self) -> bool:
        """Whether no transaction is open and no statement is under way, but for one that is pending."""
        return (
            self.is_closed or self._pending is not None or self._pgconn.transaction_status == pq.TransactionStatus.IDLE
        )

    @property
    def is_busy(self) -> bool:
        """Whether a statement is under way that is not pending."""
        return self._pending is None and self._pgconn.transaction_status == pq.TransactionStatus.ACTIVE

    @property
    def backend(self) -> int:
        """The id of the server's process, as the other end gave it at login."""
        return int(self._pgconn.backend_pid)

    def fileno(self) -> int:
        """Return the descriptor to wait on for notifications."""
        return int(self._pgconn.socket)

    def take_notifications(self) -> int:
        """Return how many notifications have come since the last call. Raises ServerError for a lost connection."""
        try:
            self._pgconn.consume_input()
        except psycopg.Error as error:
            raise ServerError(str(error)) from error
        count = 0
        while self._pgconn.notifies() is not None:
            count += 1
        if self.is_closed:
            raise ServerError("the server closed the connection")
        return count

    # --- statements

    def run(self, statement: str, values: Sequence[Any] = ()) -> list[Row]:
        """Run a statement, whose parameters are ``$1`` and so on, and return its rows.

        Raises ServerError, also where the server has not answered in time.
        """
        result = self._answer(statement, values)
        return _rows(result) if result.ntuples else []

    def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Run a statement that has no rows; returns how many rows of a table it has changed. Raises as ``run``."""
        return int(self._answer(statement, values).command_tuples or 0)

    def send(self, statement: str, values: Sequence[Any]) -> Pending:
        """Send a statement that has no rows, outside of a transaction. Raises as ``run``, but not what it ends with."""
        deadline = self._send(statement, values)
        try:
            self._flush(deadline)
        except psycopg.Error as error:
            raise ServerError(str(error)) from error
        pending = self._pending = Pending(self)
        return pending

    def read_pending(self, pending: Pending | None = None) -> None:
        """Wait for the answer to the statement that is pending; to this one only, if one is given."""
        current = self._pending
        if current is None or (pending is not None and current is not pending):
            return
        self._pending = None  # if a signal handler interrupts this, it counts as a statement that was interrupted
        current.read(lambda: self._result(monotonic() + self._timeout))

    def _answer(self, statement: str, values: Sequence[Any]) -> Any:
        return self._result(self._send(statement, values))

    def _send(self, statement: str, values: Sequence[Any]) -> float:
        """Hand a statement to libpq; returns until when the server has time to answer it."""
        pgconn, deadline = self._open(), monotonic() + self._timeout
        dumped, formats = _dumped(values)
        try:
            if self.prepares:
                name = self._prepared.get(statement)
                if name is None:
                    name = b"kombulite_%d" % next(self._numbers)
                    pgconn.send_prepare(name, statement.encode())
                    self._result(deadline)
                    self._prepared[statement] = name
                pgconn.send_query_prepared(name, dumped, formats, BINARY)
            else:
                pgconn.send_query_params(statement.encode(), dumped, None, formats, BINARY)
        except psycopg.Error as error:
            raise ServerError(str(error)) from error
        return deadline

    def command(self, statement: str) -> bytes:
        """Run a statement without parameters and rows; returns what the server did. Raises ServerError."""
        pgconn = self._open()
        try:
            pgconn.send_query(statement.encode())
        except psycopg.Error as error:
            raise ServerError(str(error)) from error
        done: bytes | None = self._result(monotonic() + self._timeout).command_status
        return done or b""

    def copy(self, statement: str, data: Iterable[bytes]) -> None:
        """Run a COPY FROM STDIN with what it reads, in the pieces that it comes in. Raises ServerError."""
        pgconn = self._open()
        try:
            pgconn.send_query(statement.encode())
            self._result(monotonic() + self._timeout)
            for piece in data:
                for start in range(0, len(piece), COPY_CHUNK):
                    deadline = monotonic() + self._timeout
                    while not pgconn.put_copy_data(piece[start : start + COPY_CHUNK]):
                        self._flush(deadline)
                    self._flush(deadline)
            self._end_copy()
        except psycopg.Error as error:
            raise ServerError(str(error)) from error
        except UnicodeError:  # text of a message that has no UTF-8: nothing is copied, and the connection goes on
            with suppress(ServerError):
                self._end_copy(b"the text cannot be encoded")
            raise

    def _end_copy(self, refusal: bytes | None = None) -> None:
        deadline = monotonic() + self._timeout
        while not self._pgconn.put_copy_end(refusal):
            self._flush(deadline)
        self._result(deadline)

    def _open(self) -> Any:
        self.read_pending()
        if self.is_closed:
            raise ServerError("the connection is closed")
        return self._pgconn

    def _flush(self, deadline: float) -> None:
        pgconn = self._pgconn
        while pgconn.flush():
            if self._wait(READ | WRITE, deadline) & READ:
                pgconn.consume_input()  # a server that cannot write does not read

    def _result(self, deadline: float) -> Any:
        """Return the last result of a statement that was sent, which may be a COPY that has begun."""
        pgconn, last = self._pgconn, None
        try:
            self._flush(deadline)
            while True:
                while pgconn.is_busy():
                    self._wait(READ, deadline)
                    pgconn.consume_input()
                result = pgconn.get_result()
                if result is None:
                    break
                last = result
                if result.status == pq.ExecStatus.COPY_IN:
                    break
        except psycopg.Error as error:
            raise ServerError(str(error)) from error
        if last is None:
            raise ServerError("the server closed the connection")
        if last.status not in DONE:
            code = last.error_field(pq.DiagnosticField.SQLSTATE) or b""
            raise ServerError(last.error_message.decode("utf-8", "replace").strip(), code.decode("ascii", "replace"))
        return last

    def _wait(self, events: int, deadline: float) -> int:
        """Wait for the socket; returns what it is ready for. Closes the connection at the deadline."""
        left = deadline - monotonic()
        ready = _poll(self._pgconn.socket, events, left) if left > 0 else 0
        if not ready:
            self.close()
            raise ServerError(f"the server did not answer in {self._timeout:g} s")
        return ready


def _poll(descriptor: int, events: int, seconds: float) -> int:
    if not hasattr(select, "poll"):  # eventlet takes it away
        readable, writable, _ = select.select([descriptor], [descriptor] if events & WRITE else [], [], seconds)
        return (READ if readable else 0) | (WRITE if writable else 0)
    poll = select.poll()
    poll.register(descriptor, events)
    found = poll.poll(seconds * 1000)
    return found[0][1] | READ if found else 0  # an error is read


def _dumped(values: Sequence[Any]) -> tuple[list[bytes | None], list[int]]:
    """Return parameters as libpq takes them, and their formats."""
    dumped: list[bytes | None] = []
    formats = []
    for value in values:
        form = TEXT
        if value is None:
            dumped.append(None)
        elif isinstance(value, str):
            dumped.append(value.encode())
            form = BINARY  # in the other one NUL would be the end
        elif isinstance(value, bytes):
            dumped.append(value)
            form = BINARY
        elif isinstance(value, list):
            dumped.append(b"{%b}" % ",".join(map(str, value)).encode())
        else:
            dumped.append(str(value).encode())
        formats.append(form)
    return dumped, formats


def _rows(result: Any) -> list[Row]:
    loaders = [LOADERS.get(result.ftype(column)) for column in range(result.nfields)]
    columns = list(enumerate(loaders))
    get = result.get_value
    rows = []
    for row in range(result.ntuples):
        values = []
        for column, load in columns:
            value = get(row, column)
            values.append(value if load is None or value is None else load(value))
        rows.append(tuple(values))
    return rows
