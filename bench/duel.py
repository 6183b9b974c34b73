"""Two rivals at the same work, in alternating rounds."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from time import perf_counter
from typing import Any

from bench.figure import Figure

ROUNDS = 31
SECONDS = 0.02  # that a round should take


@dataclass(frozen=True)
class Side:
    """One rival: ``run(n)`` does the work n times; ``prepare(n)``, before each round, is not timed."""

    run: Callable[[int], object]
    prepare: Callable[[int], object] = lambda n: None

    def round(self, n: int, timer: Callable[[], float] = perf_counter) -> float:
        """Seconds that a round of n operations takes, on the clock ``timer``."""
        self.prepare(n)
        gc.collect()
        start = timer()
        self.run(n)
        return timer() - start

    def operations(self) -> int:
        """How many operations make a round of the right length. Warms up as well."""
        n = 1
        while (seconds := self.round(n)) < SECONDS / 4:
            n *= 2
        return max(1, round(n * SECONDS / seconds))


def calls(function: Callable[..., object], *arguments: Any) -> Side:
    """A side that calls a function again and again."""

    def run(n: int) -> None:
        for _ in repeat(None, n):
            function(*arguments)

    return Side(run)


def duel(
    benchmark: Any,
    work: str,
    ours: Side,
    theirs: Side | None,
    *,
    operations: int | None = None,
    rounds: int = ROUNDS,
    at_least: float | None = None,
    at_most: float | None = None,
    rival: str = "kombu",
    timer: Callable[[], float] = perf_counter,
) -> None:
    """Time both, and store the figure.

    pytest-benchmark runs and times our rounds. The rival's are run beside them, in the order ABBA: in the set-up of
    one round, after the end of the next. ``operations`` in a round: the same number for both where a queue's length
    may matter, otherwise as many as make the round long enough. ``timer``: the clock, which has to be the one that the
    benchmark's mark names.
    """
    n = operations or ours.operations()
    rival_n = 0 if theirs is None else operations or theirs.operations()
    rival_times: list[float] = []
    begun = 0

    def set_up() -> tuple[tuple[int], dict[str, Any]]:
        nonlocal begun
        begun += 1
        if theirs is not None and begun % 2:
            rival_times.append(theirs.round(rival_n, timer) / rival_n)
        ours.prepare(n)
        gc.collect()
        return (n,), {}

    def tear_down(_: int) -> None:
        if theirs is not None and not begun % 2:
            rival_times.append(theirs.round(rival_n, timer) / rival_n)

    benchmark.pedantic(ours.run, setup=set_up, teardown=tear_down, rounds=rounds)
    times = [seconds / n for seconds in benchmark.stats.stats.data]
    Figure(work, times, rival_times, at_least=at_least, at_most=at_most, rival=rival).store(benchmark)
    benchmark.extra_info["operations"] = {"ours": n, "theirs": rival_n}
