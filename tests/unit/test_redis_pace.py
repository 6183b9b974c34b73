"""When a consumer of Redis pauses between news and claim."""

from __future__ import annotations

import pytest

from kombulite.brokers.redis.pace import (
    FIRST_PAUSE,
    GAP,
    LONGEST_PAUSE,
    MAX_BACKOFF,
    MIXED_BACKOFF,
    PATIENCE,
    STREAM,
    TURN,
    Pace,
)


def stream(pace: Pace, claims: int, found: int, now: float = 100.0, every: float = GAP / 10) -> float:
    """Let so many claims find so much, one soon after the other; returns when that was over."""
    for _ in range(claims):
        now += every
        pace.claimed(found, now)
    return now


def test_the_first_message_is_claimed_at_once():
    pace = Pace()
    assert pace.pause(100.0) == 0
    now = stream(pace, 10 * STREAM, 1, every=2 * GAP)  # seldom ones too
    assert pace.pause(now) == 0


def test_in_a_stream_it_pauses_as_long_as_that_brings_more():
    pace = Pace()
    now = stream(pace, STREAM + 1, 1)
    assert pace.pause(now) == pytest.approx(FIRST_PAUSE)
    now = stream(pace, 10, 5, now)
    assert pace.pause(now) == pytest.approx(LONGEST_PAUSE)
    assert pace.pause(now + 1.01 * LONGEST_PAUSE) == 0
    assert pace.pause(now + 2 * GAP) == 0  # the stream has ended


def test_who_waits_for_our_answer_is_not_slowed_down():
    pace, pauses, now = Pace(), 0, 100.0
    for _ in range(1000):
        pauses += pace.pause(now) > 0
        now = stream(pace, 1, 1, now)
    assert 0 < pauses < 1000 / STREAM / 2


def test_in_a_stream_who_lost_a_message_pauses_too():
    pace = Pace()
    now = stream(pace, STREAM + 1, 1)
    now = stream(pace, 3, 4, now)
    pace.claimed(0, now + GAP / 10)
    assert pace.pause(now + GAP / 10) > GAP / 100


def test_pauses_of_two_that_share_a_stream_go_on():
    """If one claims right after the other each time, it finds a single message: it shortens a pause, and goes on."""
    pace = Pace()
    now = stream(pace, STREAM + 1, 1)
    now = stream(pace, 10, 5, now)
    for _ in range(10):
        now = stream(pace, 1, 1, now)
        assert pace.rest(now) == pytest.approx(LONGEST_PAUSE / 2)
        now = stream(pace, 1, 3, now)
        assert pace.rest(now) == pytest.approx(LONGEST_PAUSE)
    now = stream(pace, 10, 1, now)
    assert pace.rest(now) == 0  # nothing comes together


def test_who_never_gets_one_looks_less_often():
    pace = Pace()
    now = stream(pace, PATIENCE, 0)
    assert pace.pause(now) == 0
    for lost in (10, 50, 10_000):  # the more, the more others there are
        now = stream(pace, lost - pace._lost, 0, now)
        for limit in (MIXED_BACKOFF, MAX_BACKOFF):
            pauses = [pace.pause(now, limit) for _ in range(1000)]
            most = min(TURN * lost, limit)
            assert 0.9 * most < max(pauses) <= most
            assert min(pauses) < most / 10
    pace.claimed(1, now)
    assert pace.pause(now) == 0
