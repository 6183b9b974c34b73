"""Leased messages in the core: what is one step, and all that it leaves to the transport."""

from __future__ import annotations

import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from kombulite._core import (
    JSON,
    BaseClaimQueue,
    BaseLeaseChannel,
    EnvelopeReader,
    EnvelopeTemplate,
    Lease,
    LeaseAck,
    LeasedMessages,
    LeaseReceive,
    Properties,
)
from kombulite.utils.locks import Lock

codec = JSON()
FIRST, SECOND = SimpleNamespace(tag="first"), SimpleNamespace(tag="second")


def envelope(body: bytes = b"body", json: JSON = codec, **properties: Any) -> bytes:
    return EnvelopeTemplate(json, "ex", "key", Properties(**properties)).encode(body, "tag")


def lease(number: int, data: bytes | None = None, queue: str = "q") -> Lease:
    return Lease(f"tag{number}", queue, queue, envelope(b"%d" % number) if data is None else data)


class Channel(BaseLeaseChannel):
    """A channel with two consumers of one queue."""

    def __init__(self, leases: int = 0, taken: int = 0) -> None:
        self.number = 7
        self.fanout = deque()
        self.leased, self.taken = BaseClaimQueue(), BaseClaimQueue()
        for source, count in ((self.leased, leases), (self.taken, taken)):
            source.ready = deque(lease(number) for number in range(count))
            source.consumers["q"] = deque([FIRST, SECOND])
        self.kept: list[Any] = []

    def keep(self, leases: Any) -> None:
        self.kept += leases


def elsewhere(call: Any) -> Any:
    """What a call returns in another thread."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


# --- handing over


@pytest.fixture
def lock() -> Lock:
    return Lock()


@pytest.fixture
def messages(lock: Lock) -> LeasedMessages:
    return LeasedMessages(EnvelopeReader(codec), lock)


def test_a_leased_message_is_handed_over_and_outstanding(messages, lock):
    channel = Channel(leases=3)
    leases = list(channel.leased.ready)
    found = [messages.next(channel) for _ in range(3)]
    assert [each.body for each in found] == [b"0", b"1", b"2"]
    assert [each.delivery_tag for each in found] == ["tag0", "tag1", "tag2"]
    assert [each.consumer_tag for each in found] == ["first", "second", "first"]
    assert {(each.channel, each.exchange, each.routing_key) for each in found} == {(7, "ex", "key")}
    assert channel.outstanding == {each.tag: each for each in leases}
    assert all(each.was_seen for each in leases)
    assert [each.delivery() for each in leases] == found
    del found
    assert [each.delivery() for each in leases] == [None] * 3
    assert messages.next(channel) is None
    assert not lock.depth()


def test_a_message_that_was_taken_for_good_is_not_outstanding(messages):
    channel = Channel(taken=1)
    (taken,) = channel.taken.ready
    assert messages.next(channel).body == b"0"
    assert not channel.outstanding
    assert not taken.was_seen
    assert taken.delivery is None


def test_on_an_event_loop_there_is_no_lock():
    channel = Channel(leases=1)
    assert LeasedMessages(EnvelopeReader(codec), None).next(channel).body == b"0"


def test_a_lock_that_another_thread_has_is_not_waited_for(messages, lock):
    channel = Channel(leases=1)
    with lock:
        assert elsewhere(lambda: messages.next(channel)) is None
    assert len(channel.leased.ready) == 1
    assert messages.next(channel).body == b"0"


def reach_limit(channel: Channel) -> None:
    channel.prefetch_count = 1
    channel.outstanding["other"] = lease(9)


@pytest.mark.parametrize(
    "hinder",
    [
        lambda channel: setattr(channel, "active", False),
        lambda channel: setattr(channel, "is_closing", True),
        lambda channel: setattr(channel, "error", OSError()),
        lambda channel: channel.fanout.append("a message"),
        lambda channel: channel.taken.ready.append(lease(5)),
        reach_limit,
        lambda channel: channel.leased.consumers.clear(),
        lambda channel: channel.leased.consumers["q"].clear(),
        lambda channel: setattr(channel.leased.ready[0], "envelope", b"rubbish"),
        lambda channel: setattr(channel.leased.ready[0], "envelope", envelope(extra={"published_at": 1})),
        lambda channel: setattr(channel.leased.ready[0], "envelope", envelope(headers={"redelivered": True})),
        lambda channel: setattr(channel.leased.ready[0], "is_fanout", True),
    ],
)
def test_what_is_more_to_do_is_left_to_the_transport(messages, lock, hinder):
    channel = Channel(leases=2)
    hinder(channel)
    before = list(channel.leased.ready), dict(channel.outstanding), dict(channel.leased.consumers)
    assert messages.next(channel) is None
    assert (list(channel.leased.ready), channel.outstanding, channel.leased.consumers) == before
    assert not lock.depth()


def test_a_channel_below_its_limit_has_more(messages):
    channel = Channel(leases=3)
    channel.prefetch_count = 2
    assert [messages.next(channel).body for _ in range(2)] == [b"0", b"1"]
    assert messages.next(channel) is None
    del channel.outstanding["tag0"]
    assert messages.next(channel).body == b"2"


@pytest.mark.parametrize("replace", [False, True])
def test_a_decoder_in_python_may_take_the_messages_away(replace):
    json, channel = JSON(), Channel()

    def decode(value: Any) -> Any:
        if replace:
            channel.leased.ready = deque([lease(1)])
        else:
            channel.leased.ready.clear()
        return value

    json.register(complex, "complex", lambda value: [value.real, value.imag], decode)
    channel.leased.ready = deque([lease(0, envelope(json=json, headers={"z": 1j}))])
    assert LeasedMessages(EnvelopeReader(json), None).next(channel) is None
    assert len(channel.leased.ready) == replace
    assert not channel.outstanding


@pytest.mark.parametrize("wrong", [None, object(), SimpleNamespace(leased=None)])
def test_a_channel_is_one(messages, wrong):
    with pytest.raises(TypeError):
        messages.next(wrong)


def test_what_waits_are_leases(messages, lock):
    channel = Channel()
    channel.leased.ready.append("something else")
    with pytest.raises(TypeError):
        messages.next(channel)
    assert not lock.depth()
    assert channel.leased.ready


def test_a_channel_without_queues_has_nothing(messages):
    assert messages.next(BaseLeaseChannel()) is None


@pytest.mark.parametrize("wrong", [None, object()])
def test_parts_of_handing_over_are_those_of_the_core(wrong, lock):
    with pytest.raises(TypeError):
        LeasedMessages(wrong, lock)
    with pytest.raises(TypeError):
        LeaseReceive(wrong, lock, (), 32)
    with pytest.raises(TypeError):
        LeaseReceive(LeasedMessages(EnvelopeReader(codec), lock), wrong, (), 32)


# --- receiving


def test_the_channel_that_was_served_last_is_looked_at_and_now_and_then_all_else(messages):
    receiving, events = Lock(), deque()
    step = LeaseReceive(messages, receiving, events, 4)
    step.looks = 1
    assert step.next() is None  # of no channel
    step.channel = channel = Channel(leases=8)
    assert [step.next().body for _ in range(3)] == [b"0", b"1", b"2"]
    assert step.looks == 4
    assert step.next() is None
    step.looks += 1
    events.append("an event")
    assert step.next() is None
    events.clear()
    with receiving:
        assert elsewhere(step.next) is None
    assert len(channel.leased.ready) == 5
    assert step.next().body == b"3"
    assert not receiving.depth()


# --- acknowledging


class Acks:
    """Acks that wait, as a connection has them, and the step to them."""

    def __init__(self, channel: Channel, least: int = 2, most: int = 4) -> None:
        self.channel = channel
        self.is_over = False
        self.calls: list[str] = []
        self.held: deque[Any] = deque()
        self.stream: Any = SimpleNamespace(before_send=None, check=lambda: self.calls.append("check"))
        self.sleeper: Any = SimpleNamespace(is_sleeping=False, wake=lambda: self.calls.append("wake"))
        self.channels = {channel.number: channel}
        self.step = LeaseAck(channel, self.channels, self.stream, self, self.held, least, most, self.sleeper)

    def joined(self) -> None:
        self.calls.append("joined")
        if self.is_over:
            raise ConnectionError
        self.stream.before_send = print


def channel_with(outstanding: int, following: int) -> Channel:
    channel = Channel(leases=following)
    channel.outstanding = {f"tag{number}": lease(number) for number in range(outstanding)}
    return channel


def test_an_ack_waits_for_those_that_follow():
    acks = Acks(channel_with(outstanding=3, following=2))
    leases = list(acks.channel.outstanding.values())
    assert acks.step.acknowledge("tag0")
    assert acks.calls == ["check", "joined"]
    assert acks.step.acknowledge("tag1")
    assert acks.calls == ["check", "joined", "check"]
    assert list(acks.held) == [(acks.channel, leases[0]), (acks.channel, leases[1])]
    assert list(acks.channel.outstanding) == ["tag2"]
    acks.sleeper.is_sleeping = True
    acks.stream.before_send = None  # sent meanwhile
    assert acks.step.acknowledge("tag2")
    assert acks.calls[3:] == ["check", "joined", "wake"]


def test_where_one_waits_fewer_have_to_follow():
    acks = Acks(channel_with(outstanding=2, following=1))
    assert not acks.step.acknowledge("tag0")
    acks.held.append("another")
    assert acks.step.acknowledge("tag0")


@pytest.mark.parametrize(
    "hinder",
    [
        lambda acks: acks.channel.leased.ready.clear(),
        lambda acks: setattr(acks.channel, "error", OSError()),
        lambda acks: acks.channels.clear(),
        lambda acks: acks.channels.update({7: Channel()}),
        lambda acks: acks.held.extend("full"),
        lambda acks: acks.channel.outstanding.pop("tag0"),
        lambda acks: setattr(acks.channel, "leased", None),
    ],
)
def test_any_other_ack_is_left_to_settle(hinder):
    acks = Acks(channel_with(outstanding=2, following=5))
    hinder(acks)
    before = len(acks.held), dict(acks.channel.outstanding)
    assert not acks.step.acknowledge("tag0")
    assert (len(acks.held), acks.channel.outstanding) == before


def test_an_ack_that_cannot_be_sent_leaves_the_message_outstanding():
    acks = Acks(channel_with(outstanding=1, following=5))
    acks.stream.check = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        acks.step.acknowledge("tag0")
    assert list(acks.channel.outstanding) == ["tag0"]
    assert not acks.held


def test_an_ack_that_comes_too_late_is_kept():
    acks = Acks(channel_with(outstanding=1, following=5))
    (late,) = acks.channel.outstanding.values()
    acks.is_over = True
    with pytest.raises(ConnectionError):
        acks.step.acknowledge("tag0")
    assert acks.channel.kept == [late]


def test_a_tag_is_hashable():
    acks = Acks(channel_with(outstanding=1, following=5))
    with pytest.raises(TypeError):
        acks.step.acknowledge([])
    assert len(acks.channel.outstanding) == 1


@pytest.mark.parametrize("wrong", [None, object()])
def test_parts_of_an_ack_are_those_of_the_core(wrong):
    with pytest.raises(TypeError):
        LeaseAck(wrong, {}, None, None, deque(), 1, 1, None)
    with pytest.raises(TypeError):
        LeaseAck(Channel(), wrong, None, None, deque(), 1, 1, None)
