"""The byte stream between us and a broker: both ends are here."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import suppress

import pytest

from kombulite import exceptions
from kombulite._core import HEARTBEAT_FRAME, AckWatermark, FrameEncoder, FrameWriter, HeldAcks
from kombulite.brokers.amqp.heartbeat_thread import HeartbeatThread
from kombulite.brokers.amqp.stream import Stream

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
    stream = Stream(ours, 5.0)
    stream.events = events = []
    stream.handle = lambda event: events.append(event.signature[1])
    yield stream, theirs
    stream.close()
    theirs.close()


@pytest.fixture
def stream(ends):
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


def test_what_is_sent_arrives(stream, theirs):
    stream.send(b"one")
    stream.send(b"two", more=True)
    stream.uncork()
    assert read_all(theirs, 6) == b"onetwo"


def test_nothing_is_held_back_while_a_thread_reads(stream, theirs):
    flags, write = [], stream._send

    def note(data, more):
        flags.append(bool(more))
        return write(data, more)

    stream.writer = FrameWriter(note, None, (BlockingIOError,))
    stream.send(frame(1), more=True)
    reader = threading.Thread(target=stream.wait, args=(lambda: stream.events, soon(30)))
    reader.start()
    deadline = soon(20)
    while not stream.is_reading:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    stream.send(frame(2), more=True)
    assert read_all(theirs, 24) == frame(1) + frame(2)
    theirs.sendall(frame(3))
    reader.join(30)
    stream.send(frame(4), more=True)
    assert flags == [True, False, True]


def test_what_is_held_back_goes_if_a_thread_begins_to_read_meanwhile(stream):
    write = stream._send

    def begin_to_read(data, more):
        stream.is_reading = True
        return write(data, more)

    stream.writer = FrameWriter(begin_to_read, None, (BlockingIOError,))
    stream.send(frame(1), more=True)
    assert not stream.corked


def test_acks_that_found_the_buffer_full_go_when_the_broker_reads(stream, theirs):
    asked = []
    stream.hold_acks(lambda: asked.append(1))
    held = HeldAcks(lambda channel, tag: True, lambda: None, lambda: None)
    stream.held = held
    AckWatermark(held, 1, 0, set()).acknowledge(1)
    filler = 0
    with suppress(BlockingIOError):
        while True:
            filler += stream._sock.send(b"x" * 4096)
    stream.flush()
    assert not stream.is_flushed
    assert asked  # to be flushed again
    assert read_all(theirs, filler) == b"x" * filler
    deadline = soon(20)
    while not stream.is_flushed and time.monotonic() < deadline:
        stream.flush()
    assert read_all(theirs, len(ENCODER.ack(1, 1, False))) == ENCODER.ack(1, 1, False)


def test_an_answer_that_waits_for_a_thread_that_writes_goes_with_the_next_flush(stream, theirs):
    with stream.writing:
        reader = threading.Thread(target=stream.answer, args=(frame(1),))
        reader.start()
        reader.join(30)
        assert not reader.is_alive()
        assert not stream.is_flushed
    stream.flush()
    assert stream.is_flushed
    assert read_all(theirs, len(frame(1))) == frame(1)


def test_a_thread_that_did_not_start_is_started_by_the_next(stream, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    beats = HeartbeatThread()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        beats.flush_soon(stream)  # it is flushed at once
    beats.flush_soon(stream)
    assert beats._thread.is_alive()
    stream.fail(exceptions.RecoverableConnectionError("the end"))
    beats.remove(stream)


def test_large_writes_wait_for_the_reader(stream, theirs):
    data = bytes(range(256)) * 10_000
    got = []
    reader = threading.Thread(target=lambda: got.append(read_all(theirs, len(data))))
    reader.start()
    stream.send(data, 30)
    reader.join(30)
    assert got == [data]


def test_a_write_that_times_out_is_finished_by_the_next(stream, theirs):
    first, second = b"a" * 1_000_000, b"b" * 1000
    with pytest.raises(exceptions.RecoverableConnectionError, match="timed out"):
        stream.send(first, 0.05)
    with pytest.raises(exceptions.RecoverableConnectionError, match="timed out"):
        stream.send(b"never", 0.05)
    assert stream.failure is None
    got = []
    reader = threading.Thread(target=lambda: got.append(read_all(theirs, len(first) + len(second))))
    reader.start()
    stream.send(second, 30)
    reader.join(30)
    assert got == [first + second]


def test_turns_are_counted_with_what_is_written(stream, theirs):
    counted = []
    stream.send(b"1", on_turn=lambda: counted.append(1))
    with pytest.raises(exceptions.RecoverableConnectionError):
        stream.send(b"2" * 1_000_000, 0.05, on_turn=lambda: counted.append(2))
    with pytest.raises(exceptions.RecoverableConnectionError):
        stream.send(b"3", 0.05, on_turn=lambda: counted.append(3))
    assert counted == [1, 2]


def test_a_turn_that_is_refused_writes_nothing(stream, theirs):
    def refuse():
        raise exceptions.NotFound("gone")

    with pytest.raises(exceptions.NotFound):
        stream.send(b"never", on_turn=refuse)
    stream.send(b"next")
    assert read_all(theirs, 4) == b"next"


def test_threads_write_whole_frames(stream, theirs):
    frames = [bytes([65 + number]) * 5000 for number in range(8)]
    got = []
    reader = threading.Thread(target=lambda: got.append(read_all(theirs, 8 * 20 * 5000)))
    reader.start()
    writers = [threading.Thread(target=lambda data=data: [stream.send(data, 30) for _ in range(20)]) for data in frames]
    for writer in writers:
        writer.start()
    for thread in (*writers, reader):
        thread.join(30)
    (data,) = got
    pieces = [data[at : at + 5000] for at in range(0, len(data), 5000)]
    assert sorted(pieces) == sorted(frames * 20)


def test_a_writer_does_not_wait_for_ever_for_another(stream):
    with stream.writing:
        errors = []

        def send():
            try:
                stream.send(b"x", 0.05)
            except exceptions.RecoverableConnectionError as error:
                errors.append(str(error))

        thread = threading.Thread(target=send)
        thread.start()
        thread.join(30)
    assert "another thread is writing" in errors[0]


def test_write_to_nobody(stream, theirs):
    theirs.close()
    with pytest.raises(OSError, match=r"."):
        for _ in range(100):
            stream.send(b"x" * 1000)
    assert stream.failure is not None
    with pytest.raises(OSError, match=r"."):
        stream.send(b"x")


def test_the_broker_may_have_said_why_before_it_went(stream, theirs):
    stream.handle = lambda event: stream.fail(exceptions.ConnectionForced("going down"))
    theirs.sendall(frame(50))
    theirs.close()
    with pytest.raises(exceptions.ConnectionForced, match="going down"):
        for _ in range(100):
            stream.send(b"x" * 1000)


# --- reading


def test_wait_handles_what_comes_until_it_is_done(stream, theirs):
    theirs.sendall(frame(1) + frame(2) + frame(3))
    assert stream.wait(lambda: 2 in stream.events, soon(30))
    assert stream.events == [1, 2]
    stream.look()
    assert stream.events == [1, 2, 3]


def test_wait_ends_by_its_deadline(stream):
    assert stream.wait(lambda: False, soon(0.05)) is False
    assert stream.wait(lambda: False, soon(-1)) is False


def test_what_is_there_counts_though_the_deadline_has_passed(stream, theirs):
    theirs.sendall(frame(1))
    assert stream.wait(lambda: stream.events, soon(-1)) is True


def test_look_does_not_wait(stream, theirs):
    stream.look()
    theirs.sendall(frame(1)[:5])
    stream.look()
    assert stream.events == []
    theirs.sendall(frame(1)[5:])
    stream.look()
    assert stream.events == [1]


def test_end_of_the_stream(stream, theirs):
    theirs.sendall(frame(1))
    theirs.close()
    with pytest.raises(exceptions.RecoverableConnectionError, match="without a word"):
        stream.wait(lambda: False, soon(30))
    assert stream.events == [1]


def test_garbage_fails_the_link_for_all(stream, theirs):
    theirs.sendall(b"HTTP/1.1 400 Bad Request")
    with pytest.raises(exceptions.FrameError):
        stream.wait(lambda: False, soon(30))
    for use in (lambda: stream.send(b"x"), stream.check, lambda: stream.wait(lambda: False, None)):
        with pytest.raises(exceptions.FrameError) as caught:
            use()
        assert caught.value is not stream.failure  # each gets its own


def test_an_event_that_makes_no_sense_fails_the_link(stream, theirs):
    def handle(event):
        raise exceptions.UnexpectedFrame("nobody asked")

    stream.handle = handle
    theirs.sendall(frame(1))
    with pytest.raises(exceptions.UnexpectedFrame):
        stream.look()
    with pytest.raises(exceptions.UnexpectedFrame):
        stream.check()


def test_the_first_failure_counts(stream):
    stream.fail(exceptions.ConnectionForced("first"))
    stream.fail(exceptions.InternalError("second"))
    with pytest.raises(exceptions.ConnectionForced):
        stream.check()
    with pytest.raises(exceptions.ConnectionForced):
        stream.give_up(exceptions.InternalError("third"))


def test_fail_wakes_those_that_wait_for_the_reader(stream):
    with stream.reading:
        errors = []

        def wait():
            try:
                stream.wait(lambda: False, None)
            except exceptions.ConnectionForced as error:
                errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        while not stream.waiters:
            time.sleep(0.01)
        time.sleep(0.05)
        stream.fail(exceptions.ConnectionForced("down"))
        thread.join(30)
    assert len(errors) == 1


def test_close_wakes_the_reader(stream):
    errors = []

    def wait():
        try:
            stream.wait(lambda: False, None)
        except exceptions.RecoverableConnectionError as error:
            errors.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    stream.close()
    thread.join(30)
    assert errors == ["connection already closed"]
    stream.close()


def test_a_reader_whose_event_another_has_handled_does_not_wait(stream):
    """Between its look and its turn to read the event came: it must not wait for the next one."""
    looks = []

    def done():
        looks.append(1)
        return len(looks) > 1

    waiting = threading.Thread(target=lambda: stream.wait(done, None), daemon=True)
    waiting.start()
    waiting.join(30)
    assert not waiting.is_alive()


def test_the_role_passes_on(stream, theirs):
    """Two threads wait; the one that reads is done first, and the other reads on."""
    done = []

    def wait(number):
        assert stream.wait(lambda: number in stream.events, soon(30))
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
    stream = Stream(encrypted, 30.0)
    stream.handle = (events := []).append
    writer = threading.Thread(target=stream.send, args=(frame(1),))
    writer.start()
    while not stream.writer.unsent:
        time.sleep(0.001)
    far.sendall(frame(2))
    assert stream.wait(lambda: events, soon(20))
    assert writer.is_alive()
    encrypted.stuck = False
    writer.join(30)
    assert far.recv(100) == frame(1)
    assert not encrypted.was_shared
    stream._abandon()
    far.close()


# --- heartbeats


def test_heartbeat_is_sent_when_one_is_due(stream, theirs):
    stream.heartbeat.interval = 10.0
    stream.beat()
    stream.beat()
    stream.heartbeat.sent_at -= 6
    stream.beat()
    stream.heartbeat.sent_at -= 6
    assert not stream.wait(lambda: False, soon(0.01))
    theirs.settimeout(0.2)
    data = theirs.recv(1000)
    assert data == HEARTBEAT_FRAME * (len(data) // 8)
    assert len(data) // 8 >= 2


def test_heartbeat_does_not_wait_for_a_writer(stream):
    stream.heartbeat.interval = 10.0
    stream.heartbeat.sent_at = -100.0
    holding, release = threading.Event(), threading.Event()

    def hold():
        with stream.writing:
            holding.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait(30)
    assert not stream.wait(lambda: False, soon(0.05))
    assert holder.is_alive()
    release.set()
    holder.join(30)


def test_heartbeat_does_not_wait_for_a_peer_that_does_not_read(stream):
    with pytest.raises(exceptions.RecoverableConnectionError):
        stream.send(b"x" * 1_000_000, 0.05)
    stream.heartbeat.interval = 10.0
    stream.heartbeat.sent_at = -100.0
    stream.beat()
    assert stream.failure is None


def test_silence_ends_the_link(stream, theirs):
    stream.heartbeat.interval = 10.0
    stream.beat()
    stream.heartbeat.received_at -= 21
    theirs.sendall(frame(1))
    stream.beat()  # something is there to be read
    stream.look()
    stream.beat()
    stream.heartbeat.received_at -= 21
    with pytest.raises(exceptions.ConnectionForced, match="heartbeats missed"):
        stream.beat()


def test_a_writer_sends_held_acks_and_frames_in_one_call_and_keeps_what_is_not_taken():
    held = HeldAcks(lambda channel, tag: True, lambda: None, lambda: None)
    watermark = AckWatermark(held, 1)
    encoder = FrameEncoder()
    assert watermark.acknowledge(1)
    assert watermark.acknowledge(2)
    sent: list[bytes] = []
    failures: list[Exception] = [BlockingIOError()]

    def send(data: bytes | memoryview, flags: int = 0) -> int:
        sent.append(bytes(data))
        if failures:
            raise failures.pop()
        return 5

    writer = FrameWriter(send, None, (BlockingIOError,))
    writer.write(b"frame", 0, held)
    assert sent == [encoder.ack(1, 2, True) + b"frame"]
    assert not held
    writer.write_rest()
    assert bytes(writer.unsent) == sent[0][5:]
    failures.append(ConnectionResetError())
    with pytest.raises(ConnectionResetError):
        writer.write_rest()
    assert bytes(writer.unsent) == sent[0][5:]


@pytest.mark.parametrize("room", [1, 3, 7, 100])
def test_a_writer_of_buffers_keeps_what_is_not_taken(room):
    held = HeldAcks(lambda channel, tag: True, lambda: None, lambda: None)
    assert AckWatermark(held, 1).acknowledge(1)
    acks = FrameEncoder().ack(1, 1)
    got = bytearray()
    blocked = [True]

    def sendmsg(buffers: list[bytes], ancillary: tuple[()], flags: int) -> int:
        if blocked:
            blocked.pop()
            raise BlockingIOError
        taken = b"".join(buffers)[:room]
        got.extend(taken)
        return len(taken)

    writer = FrameWriter(None, sendmsg, (BlockingIOError,))
    buffers = [b"head", memoryview(b"body"), b"", b"e"]
    writer.write(buffers, 0, held)
    assert not held
    assert not got
    while writer.unsent:
        writer.write_rest()
    assert bytes(got) == acks + b"headbodye"
    assert buffers == [b"head", memoryview(b"body"), b"", b"e"]


@pytest.mark.parametrize("data", [None, "text", bytearray(b"x"), memoryview(b"x"), (b"x",)])
def test_a_writer_refuses_what_is_no_frames(data):
    with pytest.raises(TypeError, match="frames are bytes or a list of buffers"):
        FrameWriter(None, None, (BlockingIOError,)).write(data, 0, None)
