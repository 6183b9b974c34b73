"""A publish over AMQP as one step of the core, and what it leaves to others."""

from __future__ import annotations

import threading
from math import inf
from types import SimpleNamespace

import pytest

from kombulite._core import Delivery, FrameEncoder, FramePublish, FrameWriter, Properties
from kombulite.utils.locks import Lock

NUMBER = 3


class Interrupt(BaseException):
    """What a signal handler raises."""


class Parts:
    """What a step looks at, with nothing in its way."""

    def __init__(self):
        self.sent, self.others, self.failures = [], [], []
        self.taken = None  # bytes that the kernel takes, None for all
        self.transport = SimpleNamespace(look_at=inf)
        self.protocol = SimpleNamespace(blocked=None)
        self.channel = SimpleNamespace(closing=False, confirms=None)
        self.stream = SimpleNamespace(
            failure=None, answers=[], held=None, corked=True, heartbeat=SimpleNamespace(writes=0)
        )
        self.stream.write_failed, self.stream.finish_write = self.fail, self.finish
        self.lock, self.encoder, self.exchanges = Lock(), FrameEncoder(), {"news"}
        self.writer = FrameWriter(self.send, None, (BlockingIOError,))
        self.step = FramePublish(
            lambda *arguments: self.others.append(arguments), lambda: 0.0, self.transport, self.protocol,
            self.channel, self.stream, self.lock, self.encoder, self.writer, self.exchanges,
        )  # fmt: skip

    def send(self, data, flags=0):
        assert self.lock.depth() == 1
        if isinstance(self.taken, BaseException):
            raise self.taken
        self.sent.append(bytes(data)[: self.taken])
        return len(self.sent[-1])

    def fail(self, error):
        self.failures.append(error)
        raise ConnectionError from error

    def finish(self, timeout):
        assert self.lock.depth() == 1
        self.taken, self.timeout = None, timeout
        self.writer.write_rest()


@pytest.fixture
def parts():
    return Parts()


def message(exchange="news", **properties):
    return Delivery(exchange, "sport", Properties(**properties), b"hello")


def test_frames_are_written_at_once(parts):
    for mandatory in (False, True):
        parts.step.publish(NUMBER, message(), mandatory)
    assert parts.sent == [FrameEncoder().publish(NUMBER, message(), mandatory) for mandatory in (False, True)]
    assert not parts.others
    assert not parts.stream.corked
    assert parts.stream.heartbeat.writes == 2


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("transport", "look_at", -1.0),
        ("protocol", "blocked", "low on memory"),
        ("channel", "closing", True),
        ("channel", "confirms", object()),
        ("stream", "failure", ConnectionError()),
        ("stream", "answers", [(b"", None)]),
    ],
)
def test_what_stands_in_the_way_is_left_to_others(parts, part, name, value):
    setattr(getattr(parts, part), name, value)
    delivery = message()
    parts.step.publish(NUMBER, delivery, True, 5.0, 7.0)
    assert parts.others == [(NUMBER, delivery, True, 5.0, 7.0)]
    assert not parts.sent
    assert not parts.lock.depth()


@pytest.mark.parametrize("delivery", [message("unknown"), message(correlation_id="x" * 300)])
def test_what_others_have_to_say_of_a_message_is_left_to_them(parts, delivery):
    parts.step.publish(NUMBER, delivery)
    assert parts.others == [(NUMBER, delivery, False, None, None)]
    assert not parts.sent


def test_a_thread_that_writes_is_waited_for_by_others(parts):
    is_taken, is_over = threading.Event(), threading.Event()

    def write():
        with parts.lock:
            is_taken.set()
            is_over.wait(60)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert is_taken.wait(60)
        parts.step.publish(NUMBER, message())
    finally:
        is_over.set()
        thread.join()
    assert len(parts.others) == 1
    assert not parts.sent


def test_what_the_kernel_does_not_take_is_finished_in_the_same_turn(parts):
    parts.taken = 10
    parts.step.publish(NUMBER, message(), timeout=5.0)
    assert b"".join(parts.sent) == FrameEncoder().publish(NUMBER, message())
    assert parts.timeout == 5.0
    assert not parts.others


def test_a_connection_that_ends_amid_a_message_is_reported(parts):
    def finish(timeout):
        parts.taken = error
        parts.writer.write_rest()

    parts.taken, error = 10, BrokenPipeError()
    parts.stream.finish_write = finish
    with pytest.raises(ConnectionError):
        parts.step.publish(NUMBER, message())
    assert parts.failures == [error]
    assert not parts.lock.depth()


def test_what_was_left_over_before_goes_first(parts):
    parts.taken = 10
    parts.stream.finish_write = lambda timeout: None
    parts.step.publish(NUMBER, message())
    parts.step.publish(NUMBER, message())
    assert len(parts.sent) == len(parts.others) == 1


@pytest.mark.parametrize("error", [BrokenPipeError(), Interrupt()])
def test_a_write_that_fails_is_reported_and_not_tried_again(parts, error):
    parts.taken = error
    with pytest.raises(ConnectionError):
        parts.step.publish(NUMBER, message())
    assert parts.failures == [error]
    assert not parts.others
    assert not parts.lock.depth()


@pytest.mark.parametrize("position", range(6, 10))
def test_parts_of_the_core_are_those(parts, position):
    arguments = [
        print, float, None, None, None, None, parts.lock, parts.encoder, parts.writer, parts.exchanges,
    ]  # fmt: skip
    for wrong in (None, object()):
        with pytest.raises(TypeError):
            FramePublish(*arguments[:position], wrong, *arguments[position + 1 :])


def test_no_message_is_a_type_error(parts):
    for wrong in (None, "hello"):
        with pytest.raises(TypeError):
            parts.step.publish(NUMBER, wrong)
    assert not parts.sent
