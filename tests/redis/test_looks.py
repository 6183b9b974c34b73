"""When an idle consumer looks for messages, where the server does not say that there are any."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from hiredis import ReplyError

from kombulite.brokers import base
from kombulite.brokers.base import Settings
from kombulite.brokers.redis import receiver as receiving
from kombulite.brokers.redis.claims import Consumer, RedisChannel
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.options import Options, OrderStrategy
from kombulite.brokers.redis.pace import FALSE_LISTS, GAP, LONGEST_PAUSE, MAX_FALSE, PATIENCE, STREAM
from kombulite.brokers.redis.receiver import Receiver

MOMENT = 1e-6  # seconds: more than what a float of the clock is rounded by


class Clock:
    """A clock that goes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (receiving, base):
        monkeypatch.setattr(module, "monotonic", clock)
    return clock


class Wire:
    """A stream that keeps what is sent, and where the replies go."""

    protocol = 3
    lock = nullcontext()

    def __init__(self) -> None:
        self.on_replies: list[Callable[[Any], None]] = []
        self.sent: list[str] = []  # commands that are not seen yet

    def post(self, data: bytes, replies: int, on_reply: Callable[[Any], None], **flags: bool) -> None:
        self.on_replies.append(on_reply)
        self.sent.append(data.split(b"\r\n")[2].decode())

    def seen(self) -> list[str]:
        """What was sent since the last time."""
        sent, self.sent = self.sent, []
        return sent


class Idle:
    """A consumer of an empty queue, on a channel without credit limits."""

    def __init__(self) -> None:
        options = Options()
        self.wire = Wire()
        self.state = RedisChannel(1, OrderStrategy("round_robin"), True)
        self.claims = self.state.leased
        topology: Any = SimpleNamespace(limits={}, router=None)
        self.receiver = Receiver(
            self.wire, lambda plan: None, Keys(options, 0), options, {1: self.state}, topology, lambda: 0.0
        )
        self.claims.add(Consumer("tag", "queue", False, False))

    def looks(self) -> bool:
        """Whether the queue is asked now, if that is due."""
        self.claims.dirty_queues.clear()
        self.receiver.look_if_due()
        return bool(self.claims.dirty_queues)


@pytest.fixture
def idle(clock: Clock) -> Idle:
    return Idle()


def test_the_next_look_is_due_when_it_was_said_to_be(clock, idle):
    pauses = []
    for _ in range(100):
        assert idle.looks()
        assert not idle.looks()
        pauses.append(idle.receiver.next_look)
        clock.now += pauses[-1] + MOMENT
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(receiving.SHORTEST_POLL)
    assert pauses[-1] == pytest.approx(receiving.POLLING_INTERVAL)


def test_a_message_brings_the_next_look_forward(clock, idle):
    clock.now += 100
    assert idle.looks()
    idle.receiver.claim(idle.state)
    (on_claimed,) = idle.wire.on_replies
    on_claimed([1, [b"{}"]])
    assert idle.receiver.next_look == pytest.approx(receiving.SHORTEST_POLL)


def test_queues_are_asked_when_the_server_is_listened_to_again(clock, idle):
    """What it says while nobody listens is lost, so the lists have to be watched anew."""
    idle.receiver._tells_of_lists = True
    idle.receiver._news.deaf_until = clock.now + 60
    assert idle.looks()
    idle.receiver._news.deaf_until = 0.0
    assert idle.looks()
    assert not idle.looks()
    assert idle.receiver.next_look is None


class Loop:
    """An event loop that keeps what it is asked to call, and when."""

    def __init__(self) -> None:
        self.on_tick: set[Any] = set()
        self.on_close: set[Any] = set()
        self.readers: dict[int, Any] = {}
        self.later: list[Any] = []
        self.soon: list[Any] = []

    def call_later(self, seconds: float, callback: Callable[[], Any]) -> Any:
        entry = SimpleNamespace(seconds=seconds, fire=callback, is_cancelled=False)
        entry.cancel = lambda: setattr(entry, "is_cancelled", True)
        self.later.append(entry)
        return entry

    def call_soon(self, callback: Callable[[], Any]) -> None:
        self.soon.append(callback)

    def tick(self) -> None:
        for tick in list(self.on_tick):
            tick()


class Polling(base.Transport):
    """A transport that is to look now and then."""

    capabilities = base.Capabilities(asynchronous=True)
    look_interval = 1.0


def test_an_event_loop_turns_when_the_next_look_is_due(clock):
    transport, loop = Polling(Settings()), Loop()
    transport.register_with_event_loop(transport, loop)
    loop.tick()
    assert [entry.seconds for entry in loop.later] == [1.0]
    assert loop.soon  # it had decided already for how long it sleeps
    loop.tick()
    assert len(loop.later) == 1
    transport.look_interval = 0.02  # a message came
    loop.tick()
    assert [entry.seconds for entry in loop.later if not entry.is_cancelled] == [0.02]
    clock.now += 0.02
    loop.later[-1].fire()
    loop.tick()
    assert len(loop.later) == 3
    transport.unregister_from_event_loop(transport, loop)
    assert loop.later[-1].is_cancelled


# --- where the server says when lists change


@pytest.fixture
def told(idle: Idle) -> Idle:
    """A consumer whose server does so, and which looks when it is told to."""
    idle.receiver.watch_later(idle.wire)
    idle.claims.dirty_queues.clear()
    return idle


def tell(told: Idle) -> None:
    """Have the server say that the list has changed."""
    told.receiver.on_push([b"invalidate", [b"queue"]])


def claim(told: Idle, *reply: Any) -> list[str]:
    """Claim what there is, if it is time, and answer that; returns what was sent."""
    told.receiver.claim(told.state)
    sent = told.wire.seen()
    if reply:
        told.wire.on_replies[-1](*reply)
    return sent


def outrun(told: Idle) -> None:
    """Let others be faster, time and again."""
    for _ in range(PATIENCE + 1):
        tell(told)
        told.claims.dirty_queues.add("queue")
        assert claim(told, []) == ["EVALSHA"]
        told.wire.seen()


def test_a_consumer_that_others_outrun_looks_before_it_claims(told):
    outrun(told)
    for _ in range(3):
        tell(told)
        assert claim(told, 0) == ["EXISTS"]
        assert not told.claims.dirty_queues
    tell(told)
    assert claim(told, 1) == ["EXISTS"]
    assert told.receiver.pause() == 0  # it does not pause once more: there is something
    assert claim(told, [1, [b"{}"]]) == ["EVALSHA"]
    told.wire.seen()
    tell(told)
    assert claim(told) == ["EVALSHA"]


def test_a_consumer_that_is_told_of_more_while_it_looks_claims_all_the_same(told):
    outrun(told)
    tell(told)
    assert claim(told, 1) == ["EXISTS"]
    tell(told)
    assert claim(told) == ["EVALSHA"]


def test_a_look_that_fails_is_made_again(told):
    outrun(told)
    tell(told)
    assert claim(told, ReplyError("BUSY a script")) == ["EXISTS"]
    assert claim(told) == ["EVALSHA"]


def test_false_news_is_found_out_by_looks_too(told, clock):
    """As where the server's table is too small for the lists that are watched."""
    for number in range(FALSE_LISTS):
        told.claims.add(Consumer(f"tag{number}", f"queue{number}", False, False))
    told.claims.dirty_queues.clear()
    for number in range(2 * MAX_FALSE):
        queue = f"queue{number % FALSE_LISTS}"
        told.receiver._watched[queue.encode()] = queue
        told.receiver.on_push([b"invalidate", [queue.encode()]])
        if not told.receiver.listens:
            break
        sent = claim(told)
        told.wire.on_replies[-1]([] if sent == ["EVALSHA"] else 0)
        told.wire.seen()
    assert not told.receiver.listens


def test_in_a_stream_the_next_claim_follows_after_a_pause_without_news(told, clock):
    pace = told.receiver.pace
    told.claims.dirty_queues.add("queue")
    for _ in range(STREAM + 2):
        clock.now += GAP / 2
        assert claim(told, [1, [b"{}", b"{}"]]) == ["EVALSHA"]
        told.wire.seen()
        told.claims.ready.clear()
        told.claims.dirty_queues.add("queue")
    assert claim(told) == []  # it is too soon
    assert 0 < told.receiver.pause() <= LONGEST_PAUSE
    clock.now += LONGEST_PAUSE
    assert claim(told, [1, [b"{}", b"{}"]]) == ["EVALSHA"]
    assert told.wire.seen() == []  # no question that has news as its answer
    clock.now += LONGEST_PAUSE
    told.claims.ready.clear()
    tell(told)
    assert claim(told, []) == ["EVALSHA"]
    assert told.wire.seen() == ["EXISTS"]  # the stream has ended
    assert pace.is_streaming


@pytest.mark.parametrize("reply", [0, ReplyError("CLUSTERDOWN the cluster is down")], ids=["answered", "refused"])
def test_checks_are_not_made_again_while_those_before_have_no_reply(clock, told, reply):
    """In a cluster they wait for a slot that has no master, for as long as it has none."""
    receiver, wire = told.receiver, told.wire
    receiver.listener = wire
    told.claims.dirty_queues.add("queue")
    claim(told, [])  # so its list is watched
    wire.on_replies.clear()
    wire.seen()
    receiver.check()
    checks = wire.seen()
    assert checks
    for _ in range(100):
        clock.now += receiver._options.health_check_interval
        receiver.check()
    assert not wire.seen()
    for on_reply in wire.on_replies:
        on_reply(reply)
    receiver.check()
    assert not wire.seen()
    clock.now += receiver._options.health_check_interval
    receiver.check()
    assert wire.seen() == checks
