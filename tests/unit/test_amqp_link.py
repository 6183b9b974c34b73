"""The byte stream between us and a broker: both ends are here."""

from __future__ import annotations

import socket
import ssl
import threading
import time

import pytest

from kombulite import exceptions
from kombulite._core import HEARTBEAT_FRAME, FrameEncoder
from kombulite.brokers.amqp.link import Link

ENCODER = FrameEncoder()


def frame(number):
    """A method frame, as the broker would send it."""
    return ENCODER.method(0, 10, number, b"")


@pytest.fixture
def ends():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    theirs.settimeout(30)
    link = Link(ours, 5.0)
    link.events = events = []
    link.handle = lambda event: events.append(event.signature[1])
    yield link, theirs
    link.close()
    theirs.close()


@pytest.fixture
def link(ends):
    return ends[0]


@pytest.fixture
def theirs(ends):
    return ends[1]


def read_all(sock, size):
    data = bytearray()
    while len(data) < size:
        part = sock.recv(65536)
        assert part
        data += part
    return bytes(data)


def soon(seconds=0.1):
    return time.monotonic() + seconds


# --- writing


def test_what_is_sent_arrives(link, theirs):
    link.send(b"one")
    link.send(b"two", more=True)
    link.uncork()
    assert read_all(theirs, 6) == b"onetwo"


def test_large_writes_wait_for_the_reader(link, theirs):
    data = bytes(range(256)) * 10_000
    got = []
    reader = threading.Thread(target=lambda: got.append(read_all(theirs, len(data))))
    reader.start()
    link.send(data, 30)
    reader.join(30)
    assert got == [data]


def test_a_write_that_times_out_is_finished_by_the_next(link, theirs):
    first, second = b"a" * 1_000_000, b"b" * 1000
    with pytest.raises(exceptions.RecoverableConnectionError, match="timed out"):
        link.send(first, 0.05)
    with pytest.raises(exceptions.RecoverableConnectionError, match="timed out"):
        link.send(b"never", 0.05)
    assert link.failure is None
    got = []
    reader = threading.Thread(target=lambda: got.append(read_all(theirs, len(first) + len(second))))
    reader.start()
    link.send(second, 30)
    reader.join(30)
    assert got == [first + second]


def test_turns_are_counted_with_what_is_written(link, theirs):
    counted = []
    link.send(b"1", on_turn=lambda: counted.append(1))
    with pytest.raises(exceptions.RecoverableConnectionError):
        link.send(b"2" * 1_000_000, 0.05, on_turn=lambda: counted.append(2))
    with pytest.raises(exceptions.RecoverableConnectionError):
        link.send(b"3", 0.05, on_turn=lambda: counted.append(3))
    assert counted == [1, 2]


def test_a_turn_that_is_refused_writes_nothing(link, theirs):
    def refuse():
        raise exceptions.NotFound("gone")

    with pytest.raises(exceptions.NotFound):
        link.send(b"never", on_turn=refuse)
    link.send(b"next")
    assert read_all(theirs, 4) == b"next"


def test_threads_write_whole_frames(link, theirs):
    frames = [bytes([65 + number]) * 5000 for number in range(8)]
    got = []
    reader = threading.Thread(target=lambda: got.append(read_all(theirs, 8 * 20 * 5000)))
    reader.start()
    writers = [threading.Thread(target=lambda data=data: [link.send(data, 30) for _ in range(20)]) for data in frames]
    for writer in writers:
        writer.start()
    for thread in (*writers, reader):
        thread.join(30)
    (data,) = got
    pieces = [data[at : at + 5000] for at in range(0, len(data), 5000)]
    assert sorted(pieces) == sorted(frames * 20)


def test_a_writer_does_not_wait_for_ever_for_another(link):
    with link.writing:
        errors = []

        def send():
            try:
                link.send(b"x", 0.05)
            except exceptions.RecoverableConnectionError as error:
                errors.append(str(error))

        thread = threading.Thread(target=send)
        thread.start()
        thread.join(30)
    assert "another thread is writing" in errors[0]


def test_write_to_nobody(link, theirs):
    theirs.close()
    with pytest.raises(OSError, match=r"."):
        for _ in range(100):
            link.send(b"x" * 1000)
    assert link.failure is not None
    with pytest.raises(OSError, match=r"."):
        link.send(b"x")


def test_the_broker_may_have_said_why_before_it_went(link, theirs):
    link.handle = lambda event: link.fail(exceptions.ConnectionForced("going down"))
    theirs.sendall(frame(50))
    theirs.close()
    with pytest.raises(exceptions.ConnectionForced, match="going down"):
        for _ in range(100):
            link.send(b"x" * 1000)


# --- reading


def test_wait_handles_what_comes_until_it_is_done(link, theirs):
    theirs.sendall(frame(1) + frame(2) + frame(3))
    assert link.wait(lambda: 2 in link.events, soon(30))
    assert link.events == [1, 2]
    link.look()
    assert link.events == [1, 2, 3]


def test_wait_ends_by_its_deadline(link):
    assert link.wait(lambda: False, soon(0.05)) is False
    assert link.wait(lambda: False, soon(-1)) is False


def test_what_is_there_counts_though_the_deadline_has_passed(link, theirs):
    theirs.sendall(frame(1))
    assert link.wait(lambda: link.events, soon(-1)) is True


def test_look_does_not_wait(link, theirs):
    link.look()
    theirs.sendall(frame(1)[:5])
    link.look()
    assert link.events == []
    theirs.sendall(frame(1)[5:])
    link.look()
    assert link.events == [1]


def test_end_of_the_stream(link, theirs):
    theirs.sendall(frame(1))
    theirs.close()
    with pytest.raises(exceptions.RecoverableConnectionError, match="without a word"):
        link.wait(lambda: False, soon(30))
    assert link.events == [1]


def test_garbage_fails_the_link_for_all(link, theirs):
    theirs.sendall(b"HTTP/1.1 400 Bad Request")
    with pytest.raises(exceptions.FrameError):
        link.wait(lambda: False, soon(30))
    for use in (lambda: link.send(b"x"), link.check, lambda: link.wait(lambda: False, None)):
        with pytest.raises(exceptions.FrameError) as caught:
            use()
        assert caught.value is not link.failure  # each gets its own


def test_an_event_that_makes_no_sense_fails_the_link(link, theirs):
    def handle(event):
        raise exceptions.UnexpectedFrame("nobody asked")

    link.handle = handle
    theirs.sendall(frame(1))
    with pytest.raises(exceptions.UnexpectedFrame):
        link.look()
    with pytest.raises(exceptions.UnexpectedFrame):
        link.check()


def test_the_first_failure_counts(link):
    link.fail(exceptions.ConnectionForced("first"))
    link.fail(exceptions.InternalError("second"))
    with pytest.raises(exceptions.ConnectionForced):
        link.check()
    with pytest.raises(exceptions.ConnectionForced):
        link.give_up(exceptions.InternalError("third"))


def test_fail_wakes_those_that_wait_for_the_reader(link):
    with link.reading:
        errors = []

        def wait():
            try:
                link.wait(lambda: False, None)
            except exceptions.ConnectionForced as error:
                errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        while not link.waiters:
            time.sleep(0.01)
        time.sleep(0.05)
        link.fail(exceptions.ConnectionForced("down"))
        thread.join(30)
    assert len(errors) == 1


def test_close_wakes_the_reader(link):
    errors = []

    def wait():
        try:
            link.wait(lambda: False, None)
        except exceptions.RecoverableConnectionError as error:
            errors.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    link.close()
    thread.join(30)
    assert errors == ["connection already closed"]
    link.close()


def test_a_reader_whose_event_another_has_handled_does_not_wait(link):
    """Between its look and its turn to read the event came: it must not wait for the next one."""
    looks = []

    def done():
        looks.append(1)
        return len(looks) > 1

    waiting = threading.Thread(target=lambda: link.wait(done, None), daemon=True)
    waiting.start()
    waiting.join(30)
    assert not waiting.is_alive()


def test_the_role_passes_on(link, theirs):
    """Two threads wait; the one that reads is done first, and the other reads on."""
    done = []

    def wait(number):
        assert link.wait(lambda: number in link.events, soon(30))
        done.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    theirs.sendall(frame(1))
    time.sleep(0.1)
    theirs.sendall(frame(2))
    for thread in threads:
        thread.join(30)
    assert sorted(done) == [1, 2]


# --- TLS


class Encrypted(ssl.SSLSocket):
    """A socket as TLS has it, with a peer that does not read as long as it is ``stuck``."""

    def __init__(self, sock):
        self._plain = sock
        self._busy = 0
        self.stuck = True
        self.was_shared = False  # used by two threads at the same time, which TLS does not allow
        self.fileno, self.setblocking, self.close = sock.fileno, sock.setblocking, sock.close

    def _use(self, call, *arguments):
        self._busy += 1
        self.was_shared = self.was_shared or self._busy > 1
        time.sleep(0.001)
        try:
            return call(*arguments)
        finally:
            self._busy -= 1

    def _refuse(self, data, flags=0):
        raise ssl.SSLWantWriteError

    def send(self, data, flags=0):
        return self._use(self._refuse if self.stuck else self._plain.send, data)

    def recv_into(self, buffer, size):
        return self._use(self._plain.recv_into, buffer, size)

    def pending(self):
        return 0


def test_tls_is_read_while_a_writer_waits():
    ours, far = socket.socketpair()
    encrypted = Encrypted(ours)
    link = Link(encrypted, 30.0)
    link.handle = (events := []).append
    writer = threading.Thread(target=link.send, args=(frame(1),))
    writer.start()
    while not link._unsent:
        time.sleep(0.001)
    far.sendall(frame(2))
    assert link.wait(lambda: events, soon(20))
    assert writer.is_alive()
    encrypted.stuck = False
    writer.join(30)
    assert far.recv(100) == frame(1)
    assert not encrypted.was_shared
    link._abandon()
    far.close()


# --- heartbeats


def test_heartbeat_is_sent_when_one_is_due(link, theirs):
    link.heartbeat = 10.0
    link.beat()
    link.beat()
    link._sent_at -= 6
    link.beat()
    link._sent_at -= 6
    assert not link.wait(lambda: False, soon(0.01))
    theirs.settimeout(0.2)
    data = theirs.recv(1000)
    assert data == HEARTBEAT_FRAME * (len(data) // 8)
    assert len(data) // 8 >= 2


def test_heartbeat_does_not_wait_for_a_writer(link):
    link.heartbeat = 10.0
    link._sent_at = -100.0
    holding, release = threading.Event(), threading.Event()

    def hold():
        with link.writing:
            holding.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait(30)
    assert not link.wait(lambda: False, soon(0.05))
    assert holder.is_alive()
    release.set()
    holder.join(30)


def test_heartbeat_does_not_wait_for_a_peer_that_does_not_read(link):
    with pytest.raises(exceptions.RecoverableConnectionError):
        link.send(b"x" * 1_000_000, 0.05)
    link.heartbeat = 10.0
    link._sent_at = -100.0
    link.beat()
    assert link.failure is None


def test_silence_ends_the_link(link, theirs):
    link.heartbeat = 10.0
    link.beat()
    link._received_at -= 21
    theirs.sendall(frame(1))
    link.beat()  # something is there to be read
    link.look()
    link.beat()
    link._received_at -= 21
    with pytest.raises(exceptions.ConnectionForced, match="heartbeats missed"):
        link.beat()
