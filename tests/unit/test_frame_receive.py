"""Receiving over AMQP as one step: what it hands over, and all that it leaves to the transport."""

from __future__ import annotations

import threading
from collections import deque
from types import SimpleNamespace

import pytest

from kombulite._core import FrameDecoder, FrameReceive, ProtocolError
from kombulite.utils.locks import Lock
from tests.unit.test_frames import frame, get_ok, header, message, method

FIRST, NEXT = message(b"first", tag=1), message(b"next", tag=2)
GOT = get_ok() + header(0)


class Parts:
    """The parts of a connection, and the step over them."""

    def __init__(self, data=b"") -> None:
        self.given_up = []
        self.woken = 0
        self.dispatched = []
        self.stream = SimpleNamespace(failure=None, waiters=0, wake=self._wake, give_up_decoding=self.given_up.append)
        self.lock = Lock()
        self.decoder = FrameDecoder()
        self.decoder.open(1)
        self.decoder.receive_data(data)
        self.events = deque()
        self.step = FrameReceive(self.stream, self.lock, self.decoder, self.events, self._dispatch)

    def _wake(self) -> None:
        assert not self.lock.depth()
        self.woken += 1

    def _dispatch(self, event) -> None:
        assert self.lock.depth() == 1
        self.dispatched.append(event)


def bodies(parts):
    return [each.body for each in iter(parts.step.next, None)]


def test_it_gives_the_messages_that_are_here_in_whole():
    parts = Parts(FIRST + NEXT + FIRST[:-1])
    assert bodies(parts) == [b"first", b"next"]
    assert not parts.lock.depth()
    parts.decoder.receive_data(FIRST[-1:])
    assert bodies(parts) == [b"first"]
    assert (parts.woken, parts.dispatched, parts.given_up) == (0, [], [])


def test_threads_that_wait_for_the_reader_are_woken():
    parts = Parts(FIRST)
    parts.stream.waiters = 1
    assert bodies(parts) == [b"first"]
    assert parts.woken == 2


def test_other_events_are_handled_by_the_reader():
    parts = Parts(method(1, 60, 31) + GOT + NEXT)
    assert parts.step.next() is None
    assert parts.step.next() is None
    assert len(parts.dispatched) == 2
    assert parts.dispatched[1].consumer_tag is None
    assert bodies(parts) == [b"next"]


@pytest.mark.parametrize(
    "hinder",
    [
        lambda parts: parts.events.append("something"),
        lambda parts: setattr(parts.stream, "failure", OSError("lost")),
    ],
)
def test_what_comes_first_is_left_to_the_transport(hinder):
    parts = Parts(FIRST)
    hinder(parts)
    assert parts.step.next() is None
    assert parts.decoder.next_event().body == b"first"
    assert not parts.lock.depth()


def test_it_waits_for_no_other_reader():
    parts = Parts(FIRST)
    parts.lock.acquire()
    found = []
    thread = threading.Thread(target=lambda: found.append(parts.step.next()))
    thread.start()
    thread.join()
    assert found == [None]
    parts.lock.release()
    assert bodies(parts) == [b"first"]


def test_what_cannot_be_decoded_ends_the_stream():
    parts = Parts(frame(9, 1, b""))
    parts.stream.waiters = 1
    with pytest.raises(ProtocolError) as raised:
        parts.step.next()
    assert parts.given_up == [raised.value]
    assert (parts.woken, parts.lock.depth()) == (1, 0)


def test_an_error_of_who_handles_leaves_the_lock():
    parts = Parts(GOT)
    step = FrameReceive(parts.stream, parts.lock, parts.decoder, parts.events, lambda event: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step.next()
    assert not parts.lock.depth()


@pytest.mark.parametrize("position", [1, 2])
def test_parts_of_the_core_are_those(position):
    parts = Parts()
    arguments = [parts.stream, parts.lock, parts.decoder, parts.events, print]
    for wrong in (None, object()):
        with pytest.raises(TypeError):
            FrameReceive(*arguments[:position], wrong, *arguments[position + 1 :])
