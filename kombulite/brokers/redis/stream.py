"""One connection to a Redis server: commands out, replies and pushes in.

redis-py opens it (TLS, authentication, RESP3, Sentinel); after that commands are packed by the core and replies parsed
by hiredis, straight on its socket.

The class is wider than others: reading, writing and replacing the socket share its state.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from logging import getLogger
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector
from socket import AF_UNIX, IPPROTO_TCP, MSG_PEEK, SHUT_RDWR
from time import monotonic
from typing import Any, NoReturn, TypeVar

from hiredis import ReplyError

from kombulite._core import pack_command
from kombulite.brokers.redis.errors import ServerClosed, connection_lost, reply_error, socket_error
from kombulite.brokers.redis.plans import REPLY_TIMEOUT, Plan, Wait, gathered, perform, wait_for_replicas
from kombulite.brokers.redis.reauth import PendingLogins
from kombulite.brokers.redis.replies import OnReply, Posted, ReplyQueue
from kombulite.utils.compat import register_after_fork
from kombulite.utils.eventio import selector_of
from kombulite.utils.locks import NOT_ACQUIRED, Lock

logger = getLogger("kombulite.brokers.redis")

TCP_CORK: int | None = getattr(socket, "TCP_CORK", None)
READ_SIZE = 1 << 16  # bytes
MAX_READS = 64  # in one look at what has arrived: a server may talk faster than we listen

#: Replies to posted commands that may be outstanding before we stop to read them.
MAX_POSTED = 5000

#: Seconds without use after which a connection that the server closes was closed for that: what a server or a proxy
#: does to idle clients, in whole seconds. One that ends sooner is lost.
IDLE = 1.0
#: Seconds between two PINGs at least, where the server closes connections sooner than it is asked.
MIN_PING_INTERVAL = 0.5
#: Seconds that the server has to answer the PING that precedes a command after a long pause.
PING_TIMEOUT = 5.0

#: Seconds that there are for each step, at least: what the socket has room for is sent at once.
MIN_TIMEOUT = 0.001

PING = pack_command(("PING",))

T = TypeVar("T")


def what_is_left(timeout: float | None, begun_at: float) -> float | None:
    """Return the seconds that are left for a step of a call. ``begun_at``: when the call began (monotonic clock)."""
    return max(timeout - (monotonic() - begun_at), MIN_TIMEOUT) if timeout else timeout


class Stream:
    """A connection to a server. May be shared between threads: a command and its reply are one step.

    ``on_push(message)`` gets what the server sends unasked (RESP3), within whichever call reads it. Calls raise what
    ``errors`` makes of error replies; RecoverableConnectionError if the connection breaks, which ends it:
    nobody knows what became of the commands under way.

    If the server closes an idle connection, nothing is lost: with ``renew`` it is opened anew before the next command.
    ``renew(stream)`` calls ``attach``, and makes ready what a new connection needs; it raises what keeps it from that.
    ``ping_interval``: seconds without use after which the server is asked for a sign of life (0: never).
    """

    def __init__(
        self, connection: Any, protocol: int, timeout: float | None, on_push: OnReply, ping_interval: float = 0
    ) -> None:
        self.lock = Lock()
        self.ping_interval = ping_interval
        self.renew: Callable[[Stream], None] | None = None
        self._timeout = timeout
        self._written = threading.local()  # ``connections``: those over which this thread has sent
        self._notes_written = False
        self._converses = (
            False  # whether a command waits for its reply, or is being sent, or the server is connected to
        )
        self._queue = ReplyQueue(protocol, on_push)
        #: Makes the errors of error replies, and is told which of them end the connection.
        self.errors = self._queue.errors
        self._posted = self._queue.posted
        self._again: deque[Posted] = deque()  # posted commands that are to be sent over the connection being opened
        self._logins = PendingLogins()
        self._waiting_since = 0.0  # when the last bytes came, or the first command was posted
        self._pinged_at = 0.0  # by keep_alive
        self._pid = os.getpid()
        self._is_parents = False  # in a forked child
        register_after_fork(self, Stream._leave_to_parent)
        #: Sends what waits for the next command, if something does, until a deadline (monotonic clock; None: no haste).
        self.before_send: Callable[[float | None], object] | None = None
        #: Host and port of the server.
        self.address = ("", 0)
        self.is_open = True
        self.attach(connection, protocol)

    def attach(self, connection: Any, protocol: int) -> None:
        """Go on with this connection of redis-py's, which owns the socket. Raises if it is not wanted any more."""
        self.protocol = protocol
        self._connection = connection
        self._sock = connection._sock
        self._is_tls = isinstance(self._sock, ssl.SSLSocket)
        self._sock.setblocking(False)
        self._may_cork = TCP_CORK is not None and self._sock.family != AF_UNIX
        self._is_corked = False
        self._readable = selector_of(self._sock, EVENT_READ)
        self._writable = selector_of(self._sock, EVENT_WRITE)
        self._queue.restart(protocol)
        self._end_reason = "the server closed the connection"
        self.used_at = monotonic()
        self._converses = False
        if not self.is_open:  # another thread, or a signal handler, has dropped it meanwhile
            self._close()
            self.check()

    def fileno(self) -> int:
        """Return the descriptor of its socket."""
        return int(self._sock.fileno())

    # --- commands

    def call(self, *command: Any, timeout: float | None = None) -> Any:
        """Send a command and return the reply."""
        return self.ask(pack_command(command), timeout)

    def ask(self, data: bytes, timeout: float | None = None) -> Any:
        """Send a packed command and return the reply."""
        (reply,) = self._converse((data,), 1, timeout)
        if reply.__class__ is ReplyError:
            raise reply_error(str(reply))
        return reply

    def perform(self, plan: Plan[T], timeout: float | None = None) -> T:
        """Do all that a plan asks for within so many seconds, and return its result."""
        return perform(plan, self._fulfil, monotonic() + timeout if timeout else None)

    def note_written(self) -> None:
        """Note from now on over which connections this thread sends: after a rest there may be another one."""
        self._notes_written = True
        self._written.connections = set()

    def wait_for_replicas(self, count: int, timeout: float | None) -> None:
        """Wait until so many replicas have what was sent since ``note_written``, within so many seconds.

        Raises MessageNacked; RecoverableConnectionError if it is another connection now, maybe to another master.
        """
        self.perform(wait_for_replicas(count, timeout or self._timeout or REPLY_TIMEOUT), timeout)
        if len(self._written.connections) > 1:
            raise connection_lost("the connection was opened anew before it was known that replicas have the message")

    def _fulfil(self, request: Any, deadline: float | None) -> list[Any] | None:
        timeout = None if deadline is None else max(deadline - monotonic(), MIN_TIMEOUT)
        if request is Wait.REPLIES:
            self.wait_for_replies(timeout)
        elif request is Wait.NEWS:
            self.poll(timeout)
        else:
            return self.exchange(request.commands, request.replies, timeout)
        return None

    def exchange(self, commands: Iterable[bytes], replies: int, timeout: float | None = None) -> list[Any]:
        """Send packed commands and return their replies, error replies (hiredis.ReplyError) among them.

        They are taken one by one: while the server works on the first, the next may still have to be made.
        """
        return self._converse(gathered(commands), replies, timeout)

    def _converse(self, pieces: Iterable[bytes], replies: int, timeout: float | None) -> list[Any]:
        self.check()  # before the lock: in a forked child somebody else may hold it
        deadline = monotonic() + timeout if timeout else None
        found: list[Any] = self._free(self.lock.call(timeout or None, self._ask, pieces, replies, deadline))
        return found

    def _ask(self, pieces: Iterable[bytes], replies: int, deadline: float | None) -> list[Any]:
        self._begin(deadline)
        if self._notes_written and (connections := getattr(self._written, "connections", None)) is not None:
            connections.add(self._connection)
        self._converses = True
        try:
            for data in pieces:
                self._send(data, deadline)
            if self._is_corked:
                self._cork(False)
            return self._read(replies, deadline)
        except BaseException:
            self.drop()  # what was sent cannot be taken back
            raise
        finally:
            self._converses = False

    def _begin(self, deadline: float | None) -> None:
        """Make ready for a command."""
        if self._converses:
            self._refuse()
        if monotonic() - self.used_at > IDLE:
            self._look(deadline)
        if self.before_send is not None:
            self.before_send(deadline)

    def post(
        self,
        data: bytes,
        replies: int,
        on_reply: OnReply,
        more: bool = False,
        may_repeat: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Send packed commands now. Their replies come later, each to ``on_reply``: a ReplyError if it is one.

        ``more``: others will follow very soon, and may share a packet with these. ``may_repeat``: the commands do no
        harm when they are sent again, over another connection, after this one ended before it had the replies.
        ``timeout``: seconds to send them, if the server is slow to take them.
        """
        self.check()
        deadline = monotonic() + timeout if timeout else None
        with self.lock:
            self._begin(deadline)
            if len(self._posted) >= MAX_POSTED:
                self.wait_for_replies(timeout)
            if more and not self._is_corked and self._may_cork:
                self._cork(True)
            try:
                self._post(data, replies, on_reply, data if may_repeat else None, deadline)
                if self._is_corked and not more:
                    self._cork(False)
            except BaseException:
                self.drop()  # or the reply would be taken for another command's
                raise

    def _post(
        self,
        data: bytes,
        replies: int,
        on_reply: OnReply,
        again: bytes | None,
        deadline: float | None = None,
        on_earlier: OnReply | None = None,
    ) -> None:
        self._send(data, deadline)
        if not self._posted:
            self._waiting_since = self.used_at
        self._queue.expect(replies, on_reply, again, on_earlier)

    def answer_posted(self, message: Any) -> None:
        """Take what the server has just pushed for the reply to the first posted command that has none."""
        self._posted.popleft()[0](message)

    def wait_for_replies(self, timeout: float | None = None) -> None:
        """Wait for the replies to all posted commands."""
        self.check()
        deadline = monotonic() + timeout if timeout else None
        with self.lock:
            if self._converses:
                self._refuse()
            if self.before_send is not None:
                self.before_send(deadline)
            if self._posted:
                try:
                    self._read(0, deadline, posted=True)
                except BaseException:
                    self.drop()
                    raise

    def cap_timeout(self, seconds: float) -> None:
        """From now on no reply is waited for longer."""
        self._timeout = seconds if self._timeout is None else min(self._timeout, seconds)

    @property
    def is_waiting(self) -> bool:
        """Whether posted commands have no reply yet."""
        return bool(self._posted)

    @property
    def is_suspect(self) -> bool:
        """Whether half of the time is gone that the server has for the reply to a posted command."""
        if not (self._posted and self._timeout and monotonic() - self._waiting_since > self._timeout / 2):
            return False
        return not (self.is_open and self._readable.select(0))  # the reply may be here, not read yet

    @property
    def unanswered(self) -> list[Posted]:
        """The posted commands that have not all of their replies, and may be sent again."""
        return [*self._again, *self._queue.unanswered]

    def poll(self, timeout: float | None = None) -> None:
        """Read what has arrived, without waiting. Raises one if posted commands wait too long for a reply.

        ``timeout``: seconds for what waits to be sent, and for other threads to be done.
        """
        if self._is_parents or not self.is_open:  # before the lock: in a forked child somebody else may hold it
            self.check()
        if timeout:
            self._free(self.lock.call(timeout, self._poll, monotonic() + timeout))
        else:
            self.lock.call(None, self._poll, None)

    def _poll(self, deadline: float | None) -> None:
        if self._converses:
            self._refuse()
        if self.before_send is not None:
            self.before_send(deadline)
        if self._is_corked:
            self._cork(False)
        if not (self._posted or self._is_tls or self._readable.select(0)):
            return
        idle = monotonic() - self.used_at
        try:
            self._receive_all()
        except BaseException as error:
            self._renew(error, idle)
        if self._posted and self._timeout and monotonic() - self._waiting_since > self._timeout:
            self.drop()
            raise socket_error(TimeoutError("the server did not answer in time"))

    def _receive_all(self) -> None:
        """Take what has arrived."""
        try:
            for _ in range(MAX_READS):
                if not self._receive():
                    break
        finally:
            self._queue.take(0, [])  # also what came before the end

    # --- idleness

    def _look(self, deadline: float | None) -> None:
        """See whether the connection is still there, before something is sent over it that must not be sent twice."""
        if self.renew is None:
            return
        idle = monotonic() - self.used_at
        try:
            if self._readable.select(0):
                self._receive_all()
            if self.ping_interval and idle > self.ping_interval and not self._posted:
                answer_by = monotonic() + min(PING_TIMEOUT, self._timeout or PING_TIMEOUT)
                self._send(PING, answer_by)
                self._read(1, answer_by if deadline is None else min(answer_by, deadline))
        except BaseException as error:
            self._renew(error, idle if deadline is None or monotonic() < deadline else 0.0)

    def _renew(self, error: BaseException, idle: float) -> None:
        """Open the connection anew, if the server closed it for being idle so many seconds; else raise the error.

        Meanwhile it counts as open: other threads wait for the lock.
        """
        may_renew = isinstance(error, (ServerClosed, OSError)) and idle > IDLE and self._queue.may_repeat
        if self.renew is None or not may_renew:
            self.drop()
            raise error
        self._again.extend(self._queue.unanswered)
        self._posted.clear()
        self._converses = True  # a command of a signal handler is refused
        try:
            self._close()
            self.renew(self)
            while self._again:
                on_reply, again, replies = self._again[0]
                self.post(again or b"", replies, on_reply, may_repeat=True)
                self._again.popleft()
        except BaseException as failure:  # what was not sent again is left to the connection that takes over
            self.drop()
            if isinstance(failure, Exception):
                raise connection_lost(f"{error}, and cannot be reached anew: {failure}") from failure
            raise
        finally:
            self._converses = False
        logger.info("The server closed a connection that had been idle for %.1f s; it is open again", idle)
        if self.ping_interval:
            self.ping_interval = min(self.ping_interval, max(idle / 2, MIN_PING_INTERVAL))

    def keep_alive(self) -> float | None:
        """Send a PING if one is due. May be called from any thread: the reply is left to the next that reads.

        Returns the seconds until the next is due, None for never.
        """
        if not self.ping_interval:
            return None
        left = max(self.used_at, self._pinged_at) + self.ping_interval - monotonic()
        if left > 0:
            return left
        if self.lock.acquire(blocking=False):  # else it is in use
            try:
                if self._post_aside(PING, _ignore):
                    self._pinged_at = monotonic()
            finally:
                self.lock.release()
        return self.ping_interval

    def authenticate(self, command: bytes) -> None:
        """Send a packed ``AUTH``, from any thread, when no other uses the connection. That is not waited for.

        It is not sent again over another connection: that logs in by itself, and may be another user's.
        """
        if self.is_open and not self._is_parents:  # before the lock: in a forked child somebody else may hold it
            self._logins.add(command, self.lock, self._log_in)

    def _log_in(self) -> bool:
        """Send the ``AUTH`` that waits. Returns False if it has to wait."""
        if self.is_open and (self._converses or not self._writable.select(0)):
            return False
        self._logins.send(self._post_aside)
        return True

    def _post_aside(self, command: bytes, on_reply: OnReply) -> bool:
        """Send a command that is no use of the connection. Returns False if it has ended, is in use, or blocked.

        It is left to the next use to find that it has ended: that may open it anew.
        """
        if not self.is_open or self._converses or len(self._posted) >= MAX_POSTED or self._has_ended():
            return False
        if not self._writable.select(0):
            return False
        used_at = self.used_at
        try:
            self._post(command, 1, on_reply, b"")
        except BaseException:
            self.drop()
            raise
        self.used_at = used_at
        return True

    def _has_ended(self) -> bool:
        """Whether the end of the connection has come next, as far as that can be seen without reading."""
        try:
            return not self._is_tls and bool(self._readable.select(0)) and not self._sock.recv(1, MSG_PEEK)
        except OSError:
            return True

    # --- the socket

    def check(self) -> None:
        """Raise RecoverableConnectionError if the connection is closed, or the parent's of this process."""
        if not self.is_open:
            raise connection_lost("connection already closed")
        if self._is_parents:
            raise connection_lost("this connection belongs to the parent process")

    def _leave_to_parent(self) -> None:
        self._is_parents = True

    def _free(self, found: Any) -> Any:
        """Return what a call with the lock held has returned. Raises if the lock was not to be had in time."""
        if found is NOT_ACQUIRED:
            raise connection_lost("timed out: another thread uses the connection, and the server is slow")
        return found

    def _refuse(self) -> NoReturn:
        # The lock lets this thread in: a signal handler interrupted it, and would get the reply to the other's command.
        raise connection_lost("this thread was interrupted in the middle of another command")

    def _cork(self, corked: bool) -> None:
        """Whether the kernel may collect small packets (Linux: TCP_CORK): for 200 ms, or until the process ends."""
        self._is_corked = corked
        self._sock.setsockopt(IPPROTO_TCP, TCP_CORK, corked)

    def _wait(self, selector: BaseSelector, deadline: float | None) -> None:
        """Wait until the socket may be read or written."""
        left = None if deadline is None else deadline - monotonic()
        if left is not None and left <= 0:
            raise socket_error(TimeoutError("the server did not answer in time"))
        selector.select(left)

    def _patience(self, deadline: float | None) -> float | None:
        """Return the deadline of a wait: the one that was given, or what the connection's timeout leaves."""
        return deadline if deadline is not None or self._timeout is None else self.used_at + self._timeout

    # These leave it to their callers to drop what has failed: another connection may be opened in its place.

    def _send(self, data: bytes, deadline: float | None) -> None:
        if not self.is_open:
            self.check()  # it was closed while we waited for the lock
        self.used_at = monotonic()
        try:
            sent = self._sock.send(data) if data else 0
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            sent = 0
        except OSError as error:
            raise socket_error(error) from error
        if sent < len(data):
            self._send_rest(memoryview(data)[sent:], self._patience(deadline))

    def _send_rest(self, data: memoryview, deadline: float | None) -> None:
        """Send what the socket's buffer had no room for."""
        while data:
            try:
                data = data[self._sock.send(data) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._wait(self._writable, deadline)
            except ssl.SSLWantReadError:
                self._wait(self._readable, deadline)
            except OSError as error:
                raise socket_error(error) from error

    def _read(self, count: int, deadline: float | None, posted: bool = False) -> list[Any]:
        """Return the next replies. Replies to posted commands are passed to their receivers first."""
        replies: list[Any] = []
        deadline = self._patience(deadline)
        while len(replies) < count or (posted and self._posted):
            self._wait(self._readable, deadline)
            self._receive()
            self._queue.take(count, replies)
        return replies

    def _receive(self) -> bool:
        """Read more bytes if there are any; whether there may be still more."""
        try:
            data = self._sock.recv(READ_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError as error:
            raise socket_error(error) from error
        if not data:
            raise ServerClosed(self._end_reason)
        self._queue.feed(data)
        self._waiting_since = self.used_at = monotonic()
        return self._is_tls or len(data) == READ_SIZE

    # --- its end

    def leave(self, reason: str) -> None:
        """End the connection, from any thread: whoever uses it, or waits for a reply, finds it closed."""
        self._end_reason = reason
        with suppress(OSError):
            socket.socket.shutdown(self._sock, SHUT_RDWR)  # not TLS's, which another thread may be using

    def drop(self) -> None:
        """Close the socket. May be repeated, also in a forked child: the parent's connection goes on."""
        self.is_open = False  # first: see `attach`
        self._close()

    def _close(self) -> None:
        if self._pid == os.getpid():
            with suppress(OSError):
                self._sock.shutdown(SHUT_RDWR)
        self._sock.close()
        self._connection._sock = None


def _ignore(reply: Any) -> None:
    """Do nothing with the reply to a PING."""
