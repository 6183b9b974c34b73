"""Which of the messages that are not confirmed came back: the broker names none, so their content has to tell."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from typing import Any

import pytest
from amqp.serialization import dumps
from hypothesis import given
from hypothesis import strategies as st

from kombulite._core import ConfirmReceived, Delivery, FrameDecoder, FrameEncoder, Properties, ReturnReceived
from kombulite.brokers.amqp import protocol
from kombulite.brokers.amqp.aio.pending import PendingConfirm
from kombulite.brokers.amqp.confirms import Confirms, Unconfirmed
from kombulite.brokers.amqp.login import Login
from kombulite.brokers.amqp.protocol import AMQPProtocol
from kombulite.brokers.base import Cancelled, Returned


def decoded(frames: bytes) -> Any:
    """The event that frames of channel 1 make."""
    decoder = FrameDecoder()
    decoder.open(1)
    decoder.receive_data(frames)
    return decoder.next_event()


def given_back(delivery: Delivery) -> ReturnReceived:
    """What the broker says of a message that no queue takes."""
    published = FrameEncoder().publish(1, delivery)
    (size,) = struct.unpack(">L", published[3:7])
    arguments = bytes(dumps("Bsss", (312, "NO_ROUTE", delivery.exchange, delivery.routing_key)))
    event: ReturnReceived = decoded(FrameEncoder().method(1, 60, 50, arguments) + published[size + 8 :])
    return event


def confirmed(tag: int, multiple: bool) -> ConfirmReceived:
    event: ConfirmReceived = decoded(FrameEncoder().ack(1, tag, multiple))
    return event


class Watched(Unconfirmed):
    """A message that counts how often it is looked at."""

    looks = 0

    @property  # type: ignore[override]
    def mandatory(self) -> bool:
        Watched.looks += 1
        return True

    @mandatory.setter
    def mandatory(self, value: bool) -> None:
        pass


@pytest.mark.parametrize("are_alike", [False, True])
@pytest.mark.parametrize("step", [1, -1])
def test_each_message_of_a_window_is_looked_at_once(
    are_alike: bool, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watched, "looks", 0)
    confirms, size = Confirms(), 1000
    messages = [
        Watched(Delivery("", "q", Properties(message_id=str(number)), b"" if are_alike else b"%d" % number), True)
        for number in range(size)
    ]
    confirms.add(messages)
    for message in messages[::step]:
        assert confirms.returned(given_back(message.delivery))
        assert message.error is not None
    assert Watched.looks <= 4 * size  # by a look at each from the first on it would be a half of its square


class Reference:
    """The same by a look at each message."""

    def __init__(self) -> None:
        self.outstanding: list[tuple[int, Delivery]] = []

    def returned(self, back: Delivery) -> int | None:
        alike = [
            (number, sent)
            for number, sent in self.outstanding
            if (sent.exchange, sent.routing_key, sent.body) == (back.exchange, back.routing_key, back.body)
        ]
        same = [each for each in alike if ids_of(each[1]) == ids_of(back)]
        found = min(same or alike, default=None, key=lambda each: each[0])
        if found is None:
            return None
        self.outstanding.remove(found)
        return found[0]

    def confirm(self, tag: int, multiple: bool) -> None:
        self.outstanding = [each for each in self.outstanding if each[0] != tag and not (multiple and each[0] < tag)]


def ids_of(delivery: Delivery) -> tuple[Any, ...]:
    properties = delivery.properties
    return properties.message_id, properties.correlation_id, properties.headers or {}


headers = st.sampled_from([None, {"n": 1}, {"n": [1, {"deep": None}]}, {"n": {"a": 1, "b": 2}}])
properties = st.builds(
    Properties,
    message_id=st.sampled_from([None, "1"]),
    correlation_id=st.sampled_from([None, "c"]),
    headers=headers,
)
deliveries = st.builds(
    Delivery, st.sampled_from(["", "shop"]), st.sampled_from(["q", "other"]), properties, st.sampled_from([b"", b"x"])
)
steps = st.one_of(
    st.tuples(st.just("publish"), st.tuples(deliveries, st.sampled_from([True, True, False]))),
    st.tuples(st.just("return"), deliveries),
    st.tuples(st.just("confirm"), st.tuples(st.integers(1, 20), st.booleans())),
)


@given(st.lists(steps, max_size=40), st.sampled_from([0, 1000]))
def test_it_is_the_one_that_a_look_at_each_would_find(chosen: list[Any], slack: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kombulite.brokers.amqp.confirms.ReturnMatcher.SLACK", slack)
        confirms, reference = Confirms(), Reference()
        messages: list[Unconfirmed] = []
        for kind, argument in chosen:
            if kind == "publish":
                messages.append(Unconfirmed(*argument))
                confirms.add_one(messages[-1])
                if argument[1]:
                    reference.outstanding.append((len(messages), argument[0]))
            elif kind == "confirm":
                confirms.settle(confirmed(*argument))
                reference.confirm(*argument)
            else:
                before = {number for number, message in enumerate(messages, 1) if message.error is not None}
                is_found = confirms.returned(given_back(argument))
                after = {number for number, message in enumerate(messages, 1) if message.error is not None}
                expected = reference.returned(argument)
                assert (is_found, after - before) == (expected is not None, {expected} - {None})


def test_headers_that_raise_do_not_hide_a_message() -> None:
    class Odd(str):
        __slots__ = ()
        __hash__ = None  # type: ignore[assignment]

    message = Unconfirmed(Delivery("", "q", Properties(headers={"odd": Odd("x")}), b"x"), True)
    confirms = Confirms()
    confirms.add_one(message)
    assert confirms.returned(given_back(message.delivery))
    assert message.error is not None


# --- those that nothing waits for any more


def test_what_timed_out_on_an_event_loop_leaves_no_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kombulite.brokers.amqp.confirms.MANY", 10)

    async def main() -> None:
        confirms, loop = Confirms(), asyncio.get_running_loop()
        messages = [
            PendingConfirm(Delivery("", "q", Properties(), b"x%d" % number), True, loop.create_future())
            for number in range(11)
        ]
        waited = [message.pending for message in messages]
        for message in messages[:10]:
            confirms.add_one(message)
        assert waited[0] is not None
        waited[0].cancel()
        confirms.add_one(messages[10])
        assert [message.delivery.body for message in messages] == [b"", *(b"x%d" % number for number in range(1, 11))]
        assert not confirms.returned(given_back(Delivery("", "q", Properties(), b"x0")))
        assert confirms.returned(given_back(messages[1].delivery))
        confirms.settle(confirmed(0, True))
        assert [future.done() for future in waited if future is not None] == [True] * 11

    asyncio.run(main())


# --- those that wait to be drained


class Outlet:
    held = None
    decoder, encoder = FrameDecoder(), FrameEncoder()


@pytest.fixture
def session() -> AMQPProtocol:
    login = Login.__new__(Login)
    login.channel_max, login.server_properties = 10, {}
    return AMQPProtocol(Outlet(), {}, login, "test")  # type: ignore[arg-type]


class Taken(deque[Any]):
    """Events of which another thread takes each as soon as it waits."""

    def append(self, event: Any) -> None:
        pass


@pytest.mark.parametrize("left", [0, 3])
def test_another_thread_takes_the_message_that_is_one_too_many(
    session: AMQPProtocol, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_WAITING_EVENTS", left - 1)
    session.events = Taken(Cancelled(1, str(number)) for number in range(left))
    session.emit = session.events.append
    session.handle(given_back(Delivery("", "q", Properties(), b"x")))
    assert len(session.events) == left


def test_the_oldest_message_that_came_back_is_dropped_wherever_it_waits(
    session: AMQPProtocol, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(protocol, "MAX_WAITING_EVENTS", 3)
    session.events.append(Cancelled(1, "first"))
    for key in "abcd":
        session.handle(given_back(Delivery("", key, Properties(), b"x")))
    waiting = [event.delivery.routing_key if isinstance(event, Returned) else event for event in session.events]
    assert waiting == [Cancelled(1, "first"), "c", "d"]
    assert caplog.text.count("returned messages are dropped") == 1
