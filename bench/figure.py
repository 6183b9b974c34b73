"""A figure: what two rivals took for the same work, round by round, and the ratio to reach."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any


@dataclass
class Figure:
    """Figures of two rivals; ``unit`` is ``"s"`` (for one operation) or ``"B"``.

    The ratio says how many times better ours is (rival / ours); for bytes, and with ``at_most``, what part of the
    rival's it takes (ours / rival).

    Round i of one was taken next to round i of the other, so it is the median of their ratios: a machine that changes
    its speed changes both.
    """

    work: str
    ours: list[float]
    theirs: list[float]  # empty where there is no rival
    unit: str = "s"
    at_least: float | None = None
    at_most: float | None = None
    rival: str = "kombu"

    @property
    def is_part(self) -> bool:
        return self.at_most is not None or self.unit == "B"

    @property
    def ratios(self) -> list[float]:
        pairs = zip(self.ours, self.theirs, strict=False)
        return [ours / theirs if self.is_part else theirs / ours for ours, theirs in pairs]

    @property
    def ratio(self) -> float | None:
        return median(self.ratios) if self.theirs else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """The middle half of the ratios lies between these."""
        if len(self.theirs) < 4:
            return None
        low, _, high = quantiles(self.ratios, n=4)
        return low, high

    @property
    def reached(self) -> bool | None:
        """Whether the mark is reached; None without a mark."""
        if self.ratio is None:
            return None
        if self.at_least is not None:
            return self.ratio >= self.at_least
        return None if self.at_most is None else self.ratio <= self.at_most

    def store(self, benchmark: Any) -> None:
        """Add it to the report of pytest-benchmark."""
        benchmark.extra_info["figure"] = asdict(self)
