"""The list keys of priorities: redis-wire.md, section 2."""

import math
from bisect import bisect_right
from decimal import Decimal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kombulite._core import PriorityNaming

SEP = "\x06\x16"

naming = PriorityNaming()


def test_defaults():
    assert (naming.steps, naming.separator) == ((0, 3, 6, 9), SEP)


@pytest.mark.parametrize(
    ("priority", "step"), [(0, 0), (1, 0), (2, 0), (3, 3), (4, 3), (5, 3), (6, 6), (7, 6), (8, 6), (9, 9)]
)
def test_priority_is_rounded_down(priority, step):
    assert naming.step(priority) == step


@pytest.mark.parametrize(
    ("priority", "step"), [(10, 9), (255, 9), (2**100, 9), (-1, 0), (-3, 0), (-(2**100), 0), (1e300, 9), (-5.5, 0)]
)
def test_priority_is_clamped(priority, step):
    assert naming.step(priority) == step


@pytest.mark.parametrize(
    "priority", [None, "", "high", "5.5", b"x", [], {}, (5,), object(), math.nan, math.inf, -math.inf, 5j]
)
def test_what_is_no_number_counts_as_0(priority):
    assert naming.step(priority) == 0


@pytest.mark.parametrize("priority", ["5", " 5 ", b"5", 5.9, Decimal("5.5")])
def test_what_can_be_read_as_a_number_is(priority):
    assert naming.step(priority) == 3


def test_bool_counts_as_0_or_1():
    naming = PriorityNaming([0, 1, 2])
    assert (naming.step(False), naming.step(True)) == (0, 1)


def test_keys():
    assert naming.keys("q") == ("q", f"q{SEP}3", f"q{SEP}6", f"q{SEP}9")
    assert naming.keys("") == ("", f"{SEP}3", f"{SEP}6", f"{SEP}9")


def test_key_is_that_of_the_step():
    assert [naming.key("q", priority) for priority in (0, 2, 3, 7, 99, None, "6")] == [
        "q",
        "q",
        f"q{SEP}3",
        f"q{SEP}6",
        f"q{SEP}9",
        "q",
        f"q{SEP}6",
    ]


def test_keys_of_ten_thousand_queues():
    for _ in range(2):
        for number in range(10_000):
            assert naming.key(f"q{number}", 5) == f"q{number}{SEP}3"


def test_below_the_first_step_is_the_last():
    naming = PriorityNaming([1, 5])
    assert [naming.step(priority) for priority in (-1, 0, 1, 4, 5, 9, None)] == [5, 5, 1, 1, 5, 5, 5]
    assert naming.keys("q") == (f"q{SEP}1", f"q{SEP}5")
    assert naming.key("q", 0) == f"q{SEP}5"


def test_one_step_takes_all():
    for step in (0, 4):
        naming = PriorityNaming([step])
        assert {naming.step(priority) for priority in range(-1, 11)} == {step}


def test_steps_beyond_9_are_never_reached():
    naming = PriorityNaming([0, 5, 20])
    assert naming.step(100) == 5
    assert naming.keys("q")[2] == f"q{SEP}20"


def test_other_separator():
    naming = PriorityNaming(separator=":")
    assert naming.key("a:b", 3) == "a:b:3"
    assert naming.parse("a:b:3") == ("a:b", 3)


@pytest.mark.parametrize("steps", [(), [3, 0], [0, 3, 3], [0, 3, 2], ["a"], [0, "3", "1"], [math.nan]])
def test_bad_steps(steps):
    with pytest.raises(ValueError):
        PriorityNaming(steps)


@pytest.mark.parametrize("steps", [5, [None], None])
def test_steps_of_the_wrong_kind(steps):
    with pytest.raises(TypeError):
        PriorityNaming(steps)


def test_empty_separator():
    with pytest.raises(ValueError, match="separator"):
        PriorityNaming(separator="")


@pytest.mark.parametrize(
    ("key", "parsed"),
    [
        ("q", ("q", 0)),
        ("", ("", 0)),
        (f"q{SEP}3", ("q", 3)),
        (f"{SEP}3", ("", 3)),
        (f"q{SEP}9{SEP}6", (f"q{SEP}9", 6)),
        (f"q3{SEP}3", ("q3", 3)),
        ("q3", ("q3", 0)),
        (f"q{SEP}", (f"q{SEP}", 0)),
        (f"q{SEP}4", (f"q{SEP}4", 0)),
        (f"q{SEP}0", (f"q{SEP}0", 0)),
        (f"q{SEP}03", (f"q{SEP}03", 0)),
        (f"q{SEP} 3", (f"q{SEP} 3", 0)),
        (f"q{SEP}+3", (f"q{SEP}+3", 0)),
        (f"q{SEP}3x", (f"q{SEP}3x", 0)),
        (f"q{SEP}٣", (f"q{SEP}٣", 0)),
        (f"q{SEP}³", (f"q{SEP}³", 0)),
        (f"q{SEP}{'3' * 5000}", (f"q{SEP}{'3' * 5000}", 0)),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_parse(key, parsed):
    assert naming.parse(key) == parsed


some_steps = st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True).map(sorted)
separators = st.sampled_from([SEP, ":", "::", "."])
names = st.lists(st.sampled_from(["q", "3", "12", "0", SEP, ":", "."]) | st.text(max_size=3), max_size=6).map("".join)


@settings(deadline=None, max_examples=300)
@given(some_steps, separators, names, st.integers(-3, 15))
def test_key_and_parse_undo_each_other(steps, separator, queue, priority):
    naming = PriorityNaming(steps, separator)
    step = naming.step(priority)
    assume(step or naming.parse(queue) == (queue, 0))
    assert naming.parse(naming.key(queue, priority)) == (queue, step)


@settings(deadline=None, max_examples=200)
@given(some_steps, st.integers(-3, 15))
def test_step_is_the_largest_that_is_not_above(steps, priority):
    clamped = max(0, min(priority, 9))
    assert PriorityNaming(steps).step(priority) == steps[bisect_right(steps, clamped) - 1]


@settings(deadline=None, max_examples=200)
@given(some_steps, names)
def test_keys_are_distinct_and_in_order_of_the_steps(steps, queue):
    naming = PriorityNaming(steps)
    assert len(set(naming.keys(queue))) == len(steps)
    assert naming.keys(queue) == tuple(queue + (f"{SEP}{step}" if step else "") for step in steps)


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_any_key_is_parsed(key):
    queue, step = naming.parse(key)
    assert naming.key(queue, step) == key
