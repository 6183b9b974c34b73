"""Priorities beside kombu's virtual channels."""

from bisect import bisect_right

import kombu
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kombulite._core import PriorityNaming


@pytest.fixture(scope="module")
def channel():
    with kombu.Connection("memory://") as connection, connection.channel() as channel:
        yield channel


def agree(channel, steps, priority):
    clamped = channel._get_message_priority({"properties": {"priority": priority}})
    assert PriorityNaming(steps).step(priority) == steps[bisect_right(steps, clamped) - 1]


@pytest.mark.parametrize("steps", [[0, 3, 6, 9], [1, 5], [0], list(range(10))])
@pytest.mark.parametrize(
    "priority",
    [*range(-3, 13), 255, 2**70, -(2**70), None, True, False, "5", " 7", "-1", "x", "", "5.5", b"4", 8.9, -0.5, [], {}],
)
def test_chosen_priorities(channel, steps, priority):
    agree(channel, steps, priority)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.integers(0, 9), min_size=1, unique=True).map(sorted),
    st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.none() | st.binary(max_size=3),
)
def test_any_priority(channel, steps, priority):
    agree(channel, steps, priority)
