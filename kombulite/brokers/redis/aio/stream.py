"""One connection to a Redis server on an event loop: commands out, replies and pushes in.

redis-py has opened it; after that its socket is read and written when the loop says that it may be. What is posted in
one turn of the loop leaves in one write. Nothing waits here: a reply goes to what was posted with its command.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from socket import SHUT_RDWR
from time import monotonic
from typing import Any, TypeVar

from hiredis import ReplyError

from kombulite._core import pack_command
from kombulite.brokers.aio import Pending, refuse, resolve
from kombulite.brokers.redis.errors import connection_lost, reply_error, socket_error
from kombulite.brokers.redis.plans import Plan, Wait
from kombulite.brokers.redis.reauth import note_reply
from kombulite.brokers.redis.replies import OnReply, Posted, ReplyQueue

T = TypeVar("T")

READ_SIZE = 1 << 16  # bytes
MAX_JOINED = 1 << 18  # bytes that are joined for one write
MAX_READS = 64  # before the loop has its turn: a server may talk faster than we listen
HIGH_WATER = 1 << 20  # bytes that wait to be sent, beyond which publishers are asked to wait

PING = pack_command(("PING",))


class Answer:
    """What the replies to one or more commands go to, where a future stands for all of them."""

    __slots__ = ("_left", "pending")

    def __init__(self, pending: Pending[Any], replies: int = 1) -> None:
        self.pending = pending
        self._left = replies

    def __call__(self, reply: Any) -> None:
        """Take the next reply."""
        self._left -= 1
        if reply.__class__ is ReplyError:
            self.fail(reply_error(str(reply)))
        elif not self._left:
            resolve(self.pending)

    def fail(self, error: Exception) -> None:
        """Take the end of the connection in the place of a reply."""
        refuse(self.pending, error)


class Performance:
    """A plan on its way over a stream. ``pending`` is done with its result, also when nobody waits for it."""

    __slots__ = ("_count", "_plan", "_replies", "_stream", "pending")

    def __init__(self, stream: AsyncStream, plan: Plan[Any], pending: Pending[Any]) -> None:
        self._stream = stream
        self._plan = plan
        self._replies: list[Any] = []
        self._count = 0
        self.pending = pending

    def go(self, resume: Callable[[Any], Any], value: Any) -> None:
        """Go on to the next request that has to be waited for, or to the end."""
        try:
            while True:
                request = resume(value)
                try:
                    value = self._ask(request)
                except Exception as error:  # the connection is closed, or a command cannot be packed
                    resume, value = self._plan.throw, error
                    continue
                if value is None:
                    return
                resume = self._plan.send
        except StopIteration as end:
            resolve(self.pending, end.value)
        except Exception as error:
            refuse(self.pending, error)

    def _ask(self, request: Any) -> Any:
        """Send what is asked for; returns what there is already, or None."""
        stream = self._stream
        if request is Wait.NEWS:
            return ()  # it has been read as it came
        if isinstance(request, asyncio.Future):
            request.add_done_callback(self._on_done)
            return None
        if request is Wait.REPLIES:
            if not stream.is_waiting:
                return ()
            self._count = 1
            stream.post(PING, 1, self)  # its reply comes after all others
            return None
        if not request.replies:
            return []
        self._count, self._replies = request.replies, []
        stream.post_all(request.commands, request.replies, self)
        return None

    def _on_done(self, found: asyncio.Future[Any]) -> None:
        if found.cancelled():
            self.go(self._plan.throw, connection_lost("connection already closed"))
        elif (error := found.exception()) is not None:
            self.go(self._plan.throw, error)
        else:
            self.go(self._plan.send, found.result())

    def __call__(self, reply: Any) -> None:
        """Take the next reply."""
        self._replies.append(reply)
        self._count -= 1
        if not self._count:
            replies, self._replies = self._replies, []
            self.go(self._plan.send, replies)

    def fail(self, error: Exception) -> None:
        """Take the end of the connection in the place of a reply."""
        if self._count:
            self._count = 0
            self.go(self._plan.throw, error)


class SendBuffer:
    """What waits to be sent."""

    def __init__(self) -> None:
        self.size = 0  #: bytes
        self._pieces: deque[bytes | memoryview] = deque()

    def add(self, data: bytes) -> None:
        """Add data at the end."""
        self._pieces.append(data)
        self.size += len(data)

    def take(self) -> bytes | memoryview:
        """Take what is sent in one call: what is small is joined, what is large is not copied."""
        pieces = self._pieces
        taken = [pieces.popleft()]
        size = len(taken[0])
        while pieces and size + len(pieces[0]) <= MAX_JOINED:
            taken.append(pieces.popleft())
            size += len(taken[-1])
        self.size -= size
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def put_back(self, rest: memoryview) -> None:
        """Put back at the beginning what could not be sent."""
        self._pieces.appendleft(rest)
        self.size += len(rest)


class AsyncStream:
    """A connection to a server, of one event loop.

    ``on_push(message)`` gets what the server sends unasked. ``on_received()`` is called after something came,
    ``on_lost(error)`` at the end of the connection, unless ``drop`` was called.
    """

    lock = nullcontext()  # there are no other threads to keep out

    def __init__(
        self,
        connection: Any,
        protocol: int,
        timeout: float | None,
        on_push: OnReply,
        on_received: Callable[[], object],
        on_lost: Callable[[AsyncStream, Exception], object],
    ) -> None:
        self.protocol = protocol
        self.is_open = True
        self.used_at = monotonic()
        self.before_flush: Callable[[], object] | None = None  #: called before what was posted is sent
        self.address = ("", 0)  #: host and port of the server
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._sock: socket.socket = connection._sock
        self._sock.setblocking(False)
        self._is_tls = isinstance(self._sock, ssl.SSLSocket)
        self._timeout = timeout
        self._on_received = on_received
        self._on_lost = on_lost
        self._end_reason = "the server closed the connection"
        self._queue = ReplyQueue(protocol, on_push)
        #: Makes the errors of error replies, and is told which of them end the connection.
        self.errors = self._queue.errors
        self._posted = self._queue.posted
        self._waiting_since = 0.0  # when the last bytes came, or the first command was posted
        self._alarm: asyncio.TimerHandle | None = None
        self._outgoing = SendBuffer()
        self._will_flush = self._awaits_room = False
        self._room: Pending[None] | None = None
        self._loop.add_reader(self._sock, self._on_readable)

    # --- commands

    def post(self, data: bytes, replies: int, on_reply: OnReply, more: bool = False, may_repeat: bool = False) -> None:
        """Send packed commands at the end of this turn of the loop; each reply goes to ``on_reply``.

        If that has a method ``fail``, it is called with the error when the connection ends before.
        ``may_repeat``: the commands do no harm when they are sent again, over another connection.
        """
        self._check()
        self._expect(replies, on_reply, data if may_repeat else None)
        self._append(data)

    def post_all(self, commands: Iterable[bytes], replies: int, on_reply: OnReply) -> None:
        """Send several packed commands as ``post`` sends one."""
        self._check()
        packed = list(commands)  # before anything is sent: packing may fail
        self._expect(replies, on_reply, None)
        for data in packed:
            self._append(data)

    def _expect(self, replies: int, on_reply: OnReply, repeatable: bytes | None) -> None:
        if not self._posted:
            self._waiting_since = monotonic()
            if self._alarm is None and self._timeout is not None:
                self._alarm = self._loop.call_later(self._timeout, self._on_silence)
        self._queue.expect(replies, on_reply, repeatable)

    def perform(self, plan: Plan[T]) -> Pending[T]:
        """Do what a plan asks for; gives its result. It goes on to its end also if that is cancelled."""
        pending: Pending[T] = self._loop.create_future()
        Performance(self, plan, pending).go(plan.send, None)
        return pending

    def flush_soon(self) -> None:
        """Have ``before_flush`` called, and what was posted sent, at the end of this turn of the loop."""
        if not self._will_flush:
            self._will_flush = True
            self._loop.call_soon(self._flush)

    def cap_timeout(self, seconds: float) -> None:
        """From now on wait no longer than that for a reply."""
        self._timeout = seconds if self._timeout is None else min(self._timeout, seconds)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._posted:
            self._alarm = self._loop.call_later(self._timeout, self._on_silence)

    def writable(self) -> Pending[None] | None:
        """Return what is done when more may be sent; None where that is so now."""
        if self._outgoing.size < HIGH_WATER:
            return None
        if self._room is None or self._room.done():
            self._room = self._loop.create_future()
        return self._room

    @property
    def is_waiting(self) -> bool:
        """Whether posted commands have no reply yet."""
        return bool(self._posted)

    @property
    def is_suspect(self) -> bool:
        """Whether half of the time is gone that the server has for a reply."""
        return bool(self._posted and self._timeout and monotonic() - self._waiting_since > self._timeout / 2)

    @property
    def unanswered(self) -> list[Posted]:
        """The posted commands that have not all of their replies, and may be sent again."""
        return self._queue.unanswered

    # --- the socket

    def _check(self) -> None:
        if not self.is_open:
            raise connection_lost("connection already closed")

    def _append(self, data: bytes) -> None:
        self._outgoing.add(data)
        self.flush_soon()

    def _flush(self) -> None:
        self._will_flush = False
        if not self.is_open:
            return
        if self.before_flush is not None:
            self.before_flush()
            self._will_flush = False  # what that has posted goes now
        if self._outgoing.size and not self._awaits_room:
            self._write()

    def _write(self) -> None:
        """Send as much as the socket takes."""
        outgoing = self._outgoing
        self.used_at = monotonic()
        while outgoing.size:
            data = outgoing.take()
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                sent = 0
            except OSError as error:
                self._lose(error)
                return
            if sent < len(data):
                outgoing.put_back(memoryview(data)[sent:])
                break
        if bool(outgoing.size) is not self._awaits_room:
            self._awaits_room = bool(outgoing.size)
            if self._awaits_room:
                self._loop.add_writer(self._sock, self._write)
            else:
                self._loop.remove_writer(self._sock)
        if self._room is not None and outgoing.size < HIGH_WATER // 2:
            resolve(self._room)

    def _on_readable(self) -> None:
        if not self.is_open:
            return
        try:
            for _ in range(MAX_READS):
                if not self._receive():
                    break
            else:
                self._loop.call_soon(self._on_readable)
            self._queue.take(0, [])
        except Exception as error:  # whatever it is, replies would be taken for those of others
            if self.is_open:
                with suppress(Exception):  # what came before the end counts
                    self._queue.take(0, [])
                self._lose(error)
            return
        if self.is_open:
            self._on_received()

    def _receive(self) -> bool:
        """Read more bytes if there are any; whether there may be still more."""
        try:
            data = self._sock.recv(READ_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        if not data:
            raise connection_lost(self._end_reason)
        self._queue.feed(data)
        self._waiting_since = self.used_at = monotonic()
        return self._is_tls or len(data) == READ_SIZE

    def _on_silence(self) -> None:
        """End the connection if the server has been silent for too long."""
        self._alarm = None
        self._on_readable()  # where the loop was blocked, replies may have come that it has not seen yet
        if not self._posted or self._timeout is None:
            return
        left = self._waiting_since + self._timeout - monotonic()
        if left > 0:
            self._alarm = self._loop.call_later(left, self._on_silence)
        else:
            self._lose(TimeoutError("the server did not answer in time"))

    # --- its end

    def leave(self, reason: str) -> None:
        """End the connection, from any thread: what waits for a reply finds it closed."""
        self._end_reason = reason
        with suppress(OSError):
            socket.socket.shutdown(self._sock, SHUT_RDWR)  # not TLS's, which the loop may be using

    def authenticate(self, command: bytes) -> None:
        """Send a packed ``AUTH``, from any thread."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._authenticate, command)

    def _authenticate(self, command: bytes) -> None:
        if self.is_open:
            self._expect(1, note_reply, b"")  # another connection logs in by itself, and may be another user's
            self._append(command)

    def _lose(self, error: Exception) -> None:
        self.close()
        if isinstance(error, OSError):
            error = socket_error(error)
        self._on_lost(self, error)
        self.fail(error)

    def drop(self, error: Exception) -> None:
        """Close the connection; what waits for a reply gets the error."""
        self.close()
        self.fail(error)

    def close(self) -> None:
        """Close the socket. May be repeated."""
        if not self.is_open:
            return
        self.is_open = False
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        if self._alarm is not None:
            self._alarm.cancel()
        with suppress(OSError):
            self._sock.shutdown(SHUT_RDWR)
        self._sock.close()
        self._connection._sock = None

    def fail(self, error: Exception) -> None:
        """Give the error to all that waits for a reply."""
        posted = [on_reply for on_reply, _, _ in self._posted]
        self._posted.clear()
        for on_reply in posted:
            fail = getattr(on_reply, "fail", None)
            if fail is not None:
                fail(error)
        if self._room is not None:
            resolve(self._room)
