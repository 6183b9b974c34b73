"""The byte stream between threads and the broker.

**Writing.** One lock; each call of ``send`` writes all of its bytes before another one's. A send that times out halfway
leaves the rest for the next: frames are never torn. What the reader has to answer goes before the next frames; it waits
for no other thread, since a broker may read no more until it is read from.

**Reading.** One thread at a time has the reader's role. A thread that waits for something (a reply, a confirm, a
delivery) takes it if it is free, reads, and has each event handled, also those of other threads; these sleep until it
has done so, or gives the role up. So nothing is read twice, and one thread that waits reads for all.

The class has many methods, each short: they share the socket, the two locks and the role.
"""

from __future__ import annotations

import atexit
import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE
from time import monotonic
from typing import Any, NoReturn
from weakref import WeakSet

from kombulite import exceptions
from kombulite._core import HEARTBEAT_FRAME, FrameDecoder, FrameEncoder, FrameWriter, HeldAcks, ProtocolError
from kombulite.brokers.amqp.errors import codec_error
from kombulite.brokers.amqp.heartbeat import Heartbeat
from kombulite.brokers.amqp.methods import Frames
from kombulite.utils.eventio import selector_of
from kombulite.utils.locks import NOT_ACQUIRED, Condition, Lock

ROOM = 131072  # bytes to read at once

INTERRUPTED = exceptions.RecoverableConnectionError("a thread was interrupted while it was writing")

#: Seconds: a signal handler's exception may keep a thread that gives the reader's role up from waking the others.
MAX_SLEEP = 1.0

#: Seconds between two tries to write what the reader has to answer, while the broker does not read.
RETRY_INTERVAL = 0.1

#: Tells the kernel that more follows, so that small frames travel together. It waits 0.2 s at the most.
MORE: int = getattr(socket, "MSG_MORE", 0)


class Stream:
    """A connected socket, with the codec on it.

    ``write_timeout``: seconds that a ``send`` may take by default. ``handle(event)``, to be set, is called with what
    the decoder gives, by the thread that reads; ``heartbeat``: its interval is set when it was negotiated.
    """

    handle: Callable[[Any], None]

    def __init__(self, sock: Any, write_timeout: float) -> None:
        self.decoder = FrameDecoder()
        self.encoder = FrameEncoder()
        self.held: HeldAcks | None = None
        self.failure: Exception | None = None  # why the stream is of no use any more
        self.heartbeat = Heartbeat()
        self.writing = Lock()
        self.reading = Lock()  # the reader's role
        self.is_reading = False  # whether a thread reads, or waits for something to read
        self.waiters = 0  # threads that sleep until the reader has done something
        self._changed = Condition(Lock())
        self._write_timeout = write_timeout
        self._flush_soon: Callable[[], object] | None = None  # where acks may wait
        self.corked = False  # whether the kernel may hold frames back
        self.answers: deque[tuple[bytes, Callable[[], object] | None]] = deque()  # that wait to be written
        self._pid = os.getpid()
        self._take(sock)
        _streams.add(self)

    def _take(self, sock: Any) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._send: Callable[..., int] = sock.send
        self._recv_into: Callable[..., int] = sock.recv_into
        self._shutdown: Callable[[int], None] = sock.shutdown
        self._pending: Callable[[], int] | None = getattr(sock, "pending", None)  # bytes that TLS holds
        self._blocking_errors: tuple[type[OSError], ...] = (BlockingIOError,)
        self._more = MORE
        if self._pending is not None:
            import ssl  # it is loaded then

            self._blocking_errors += (ssl.SSLWantReadError, ssl.SSLWantWriteError)
            self._more = 0
            # The socket's below TLS, whose own would have a thread that reads take what is encrypted for plain.
            self._shutdown = super(ssl.SSLSocket, sock).shutdown  # type: ignore[misc]
            # TLS is not to be read and written at the same time. Neither waits with the lock held.
            lock = Lock()
            self._send, self._recv_into = _locked(lock, self._send), _locked(lock, self._recv_into)
        sendmsg = None if self._pending is not None else getattr(sock, "sendmsg", None)
        self.encoder.gathers = sendmsg is not None
        self.writer = FrameWriter(self._send, sendmsg, self._blocking_errors)
        self._readable = selector_of(self._sock, EVENT_READ)
        self._writable = selector_of(self._sock, EVENT_WRITE)

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        number: int = self._sock.fileno()
        return number

    def close(self) -> None:
        """Close the socket."""
        if os.getpid() != self._pid:
            self.disown()
            return
        if self.failure is None:
            with suppress(exceptions.ConnectionError):
                self.flush()
            self.fail(exceptions.RecoverableConnectionError("connection already closed"))
        # Or a thread that waits for the socket would wait on.
        with suppress(OSError):
            self._shutdown(socket.SHUT_RDWR)
        self._abandon()

    def disown(self) -> None:
        """In a forked child: the connection is the parent's. Close our copy of its descriptor, and say no word."""
        self.failure = exceptions.RecoverableConnectionError("the connection is the parent process's")
        if self.held is not None:
            self.held.close()
        self.writing, self.reading, self._changed = Lock(), Lock(), Condition(Lock())  # others may have held them
        self._abandon()

    def _abandon(self) -> None:
        _streams.discard(self)
        self._readable.close()
        self._writable.close()
        self._sock.close()
        self.wake()

    def fail(self, error: Exception) -> None:
        """Note that the stream is of no use any more. The first error counts."""
        if self.failure is None:
            self.failure = exceptions.socket_error(error) if isinstance(error, OSError) else error
        if self.held is not None:
            self.held.close()
        self.wake()

    def give_up(self, error: Exception) -> NoReturn:
        """Fail, and raise the error that counts."""
        self.fail(error)
        self._raise()

    def check(self) -> None:
        """Raise the error that the stream ended with, if it has."""
        if self.failure is not None:
            self._raise()

    def _raise(self) -> NoReturn:
        assert self.failure is not None
        raise copy(self.failure)  # each gets its own: tracebacks would pile up on a shared one

    # --- writing

    def send(
        self,
        data: Frames,
        timeout: float | None = None,
        more: bool = False,
        on_turn: Callable[[], object] | None = None,
    ) -> None:
        """Write frames, within ``timeout`` seconds.

        ``more``: they may wait for what is sent or read next. ``on_turn`` is called when it is their turn: from then on
        they will be sent, and nothing comes between. Raises RecoverableConnectionError after the timeout (frames whose
        turn it was may still be sent later), OSError.
        """
        wait = self._write_timeout if timeout is None else max(timeout, 0)
        if self.writing.call(wait, self._write, data, timeout, more, on_turn) is NOT_ACQUIRED:
            raise exceptions.RecoverableConnectionError("timed out: another thread is writing, and the broker is slow")

    def _write(self, data: Frames, timeout: float | None, more: bool, on_turn: Callable[[], object] | None) -> None:
        try:
            if self.failure is not None or self.writer.unsent or self.answers:
                self.check()
                self.finish_write(timeout)
                while self.answers:
                    self._write_answers()
                    self.finish_write(timeout)
            self._begin(data, more, on_turn)
            if self.writer.unsent:
                self.finish_write(timeout)
        except OSError as error:
            self._lose(error)

    def _begin(self, data: Frames, more: bool, on_turn: Callable[[], object] | None) -> None:
        """Write what the kernel takes at once, and keep the rest."""
        try:
            if on_turn is not None:
                on_turn()
            if self.is_reading:
                more = False  # the next read is under way, and may last
            self.writer.write(data, self._more if more else 0, self.held)
            self.corked = more
            self.heartbeat.writes += 1
            if more and self.is_reading:
                self.uncork()  # a thread began to read meanwhile, and may not have seen it
        except (OSError, exceptions.AMQPError):
            raise
        except BaseException:
            self.fail(INTERRUPTED)  # it is not known how much was sent
            raise

    def answer(self, data: bytes, on_turn: Callable[[], object] | None = None) -> None:
        """Write frames for the reader as soon as that can be done without waiting, before all that is sent later.

        If ``on_turn`` raises RecoverableConnectionError, the frames are dropped.
        """
        self.answers.append((data, on_turn))
        self.flush()

    def _write_answers(self) -> None:
        """Write the answers that wait, until the kernel takes no more."""
        while self.answers and not self.writer.unsent:
            data, on_turn = self.answers.popleft()
            with suppress(exceptions.RecoverableConnectionError):
                self._begin(data, False, on_turn)

    def farewell(self, data: bytes) -> None:
        """Send frames if that can be done at once, after the stream has failed."""
        with suppress(OSError):
            self._send(data)

    def write_failed(self, error: BaseException) -> NoReturn:
        """Raise what a failed write means, by the thread that has the turn to write."""
        if isinstance(error, OSError):
            self._lose(error)
        if not isinstance(error, exceptions.AMQPError):
            self.fail(INTERRUPTED)  # it is not known how much was sent
        raise error

    def finish_write(self, timeout: float | None) -> None:
        """Write what is left over of a send."""
        deadline = monotonic() + (self._write_timeout if timeout is None else timeout)
        while self.writer.unsent:
            left = deadline - monotonic()
            if left <= 0 or not self._select(self._writable, EVENT_WRITE, left):
                raise exceptions.RecoverableConnectionError("timed out: the broker does not read")
            self._send_rest()

    def _send_rest(self) -> None:
        """Write what the kernel takes at once of what is left over."""
        try:
            self.writer.write_rest()
        except OSError:
            raise
        except BaseException:
            self.fail(INTERRUPTED)  # it is not known how much was sent
            raise

    def hold_acks(self, on_hold: Callable[[], object]) -> None:
        """Let acks of deliveries that others follow wait for these, or for ``flush``. To be called once.

        Args:
            on_hold: Called when the first one waits; has ``flush`` called soon.
        """
        self.held = HeldAcks(self.decoder.is_followed, on_hold, partial(self.send, b"", None, True))
        self._flush_soon = on_hold

    def flush(self) -> None:
        """Send the acks and answers that wait, unless another thread writes, or the broker does not read."""
        if self.held or self.writer.unsent or self.answers:
            self.writing.call(0, self._flush)

    @property
    def is_flushed(self) -> bool:
        """Whether nothing waits to be sent."""
        return not self.held and not self.writer.unsent and not self.answers

    def _flush(self) -> None:
        if self.failure is not None or self.writing.depth() > 1:  # a signal handler that interrupted a write
            return
        try:
            if self.writer.unsent:
                self._send_rest()
            self._write_answers()
            if self.held and not self.writer.unsent:
                self._begin(b"", False, None)
        except OSError as error:
            self._lose(error)
        if self.writer.unsent and self._flush_soon is not None:
            self._flush_soon()

    def uncork(self) -> None:
        """Send the acks that wait, and have the kernel send what it holds back."""
        self.flush()
        if self.corked:
            self.corked = False
            if self._more:
                try:
                    self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                except OSError as error:
                    self._lose(error)

    # --- reading

    def next_event(self) -> Any:
        """Return the next event of what was read already, or None. For the thread that has the reader's role."""
        try:
            return self.decoder.next_event()
        except ProtocolError as error:
            self.give_up_decoding(error)

    def give_up_decoding(self, error: ProtocolError) -> NoReturn:
        """Fail, because what came cannot be decoded."""
        self.give_up(codec_error(error))

    def dispatch(self, event: Any) -> None:
        """Have an event handled. One that cannot be is the end of the stream. For the reader."""
        try:
            self.handle(event)
        except exceptions.ConnectionError as error:
            self.give_up(error)

    def wait(self, done: Callable[[], object], deadline: float | None) -> bool:
        """Read, or let another thread read, until ``done()``, or until the deadline (of the monotonic clock).

        Returns whether it is done. Raises what the stream ended with.
        """
        while not done():
            self.check()
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                self._step(done, 0)  # what is there counts
                return bool(done())
            self._step(done, left)
        return True

    def look(self) -> None:
        """Handle what is there to be read, without waiting."""
        self._step(_never, 0)

    def _step(self, done: Callable[[], object], timeout: float | None) -> None:
        try:
            read = self.reading.call(0, self._read_until, done, timeout)
        except BaseException:
            self.hand_on()
            raise
        if read is not NOT_ACQUIRED:
            self.hand_on()
        elif timeout is None or timeout > 0:
            self._await_reader(MAX_SLEEP if timeout is None else min(timeout, MAX_SLEEP))

    def _read_until(self, done: Callable[[], object], timeout: float | None) -> None:
        # If done() already, it is by the thread that had the role until now.
        if not done() and not self._decode(done) and self._read(timeout):
            self._decode(done)

    def hand_on(self) -> None:
        """Let others take the role that this thread has given up."""
        if self.waiters:
            self.wake()

    def _await_reader(self, seconds: float) -> None:
        """Sleep until the reader has done something, or gives the role up."""
        with self._changed.lock:
            self.waiters += 1  # before the look: a thread that gives the role up after it sees this
            try:
                if self.reading.call(0, _never) is NOT_ACQUIRED:
                    self._changed.wait(seconds)
            finally:
                self.waiters -= 1

    def wake(self) -> None:
        """Let all threads that wait look again."""
        with self._changed.lock:
            self._changed.notify_all()

    def _decode(self, done: Callable[[], object]) -> bool:
        """Handle events until ``done()``: what no thread waits for yet stays undecoded. Return whether any was."""
        found = False
        while (event := self.next_event()) is not None:
            found = True
            self.dispatch(event)
            if done():
                break
        return found

    def _read(self, timeout: float | None) -> bool:
        """Read what is there, or wait for it; returns whether there was anything."""
        self.is_reading = True  # before what is held back goes: a thread that writes from now on holds back nothing
        try:
            self.uncork()
            if self.heartbeat.interval:
                self.beat()
                beat = self.heartbeat.next_look()
                timeout = beat if timeout is None else min(timeout, beat)
            if self.answers or self.writer.unsent:
                timeout = RETRY_INTERVAL if timeout is None else min(timeout, RETRY_INTERVAL)
            if not self._has_data(timeout):
                return False
            try:
                size = self.decoder.read(self._recv_into, 0 if self._pending is None else ROOM)
            except self._blocking_errors:
                return False
            except OSError as error:
                self._lose(error)
            if not size:
                self._lose(exceptions.RecoverableConnectionError("the broker closed the connection without a word"))
            self.heartbeat.reads += 1
            return True
        finally:
            self.is_reading = False

    def _has_data(self, timeout: float | None) -> bool:
        if self._pending is not None and self._pending():
            return True
        return bool(self._select(self._readable, EVENT_READ, timeout))

    def _select(self, selector: Any, events: int, timeout: float | None) -> Any:
        try:
            return selector.select(timeout)
        except RuntimeError:  # a signal handler interrupted a wait of this thread, and waits: not with the same one
            with selector_of(self._sock, events) as another:
                return another.select(timeout)

    def _lose(self, error: Exception) -> NoReturn:
        """Fail, with the reason that the broker gave before the stream ended, if it did."""
        self.reading.call(0, self._read_last)
        self.give_up(error)

    def _read_last(self) -> None:
        with suppress(OSError, exceptions.ConnectionError):
            while self.failure is None and self.decoder.read(self._recv_into, ROOM):
                self._decode(_never)

    # --- heartbeats (section 4.2.7)

    def beat(self, rate: float = 2) -> None:
        """Send a heartbeat if one is due (``rate`` of them in an interval); fail if the broker missed two.

        Whatever is sent or received counts as a heartbeat.
        """
        heartbeat = self.heartbeat
        if not heartbeat.interval:
            return
        now = monotonic()
        heartbeat.look(now)
        if heartbeat.is_due(now, rate):
            self._send_heartbeat()
            heartbeat.note_sent(now)
        if heartbeat.is_missed(now) and not self._is_readable():
            self.give_up(exceptions.ConnectionForced("Too many heartbeats missed"))

    @property
    def is_suspect(self) -> bool:
        """Whether the broker has missed one heartbeat, and not two yet."""
        if self.failure is not None or not self.heartbeat.is_late(monotonic()):
            return False
        try:
            return not self._is_readable()
        except ValueError:
            return False  # another thread has closed it

    def _is_readable(self) -> bool:
        """Return whether there is something to read, for a thread that may not be the reader."""
        if self._pending is not None and self._pending():
            return True
        with selector_of(self._sock, EVENT_READ) as selector:
            return bool(selector.select(0))

    def _send_heartbeat(self) -> None:
        """Without waiting: what another thread is sending, or cannot send, does as well."""
        self.writing.call(0, self._write_heartbeat)

    def _write_heartbeat(self) -> None:
        try:
            if not self.writer.unsent:
                self.send(HEARTBEAT_FRAME, 0)
        except exceptions.RecoverableConnectionError:
            self.check()


def _never() -> bool:
    return False


def _locked(lock: Lock, call: Callable[..., int]) -> Callable[..., int]:
    return partial(lock.call, None, call)


_streams: WeakSet[Stream] = WeakSet()


def _disown_all() -> None:
    for stream in list(_streams):
        stream.disown()


@atexit.register
def _flush_all() -> None:
    """Send the acks that wait in connections which the program has not closed."""
    for stream in list(_streams):
        with suppress(exceptions.ConnectionError):
            stream.flush()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
