"""What a run found, as data: it goes to JSON and comes back, and tables and plots are made from it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any, Literal

from bench.figure import Figure

#: How a curve is drawn: lines over a number, bars for names, percentiles over a load, who used the cores.
View = Literal["lines", "bars", "latency", "cores"]

PERCENTILES = (50.0, 99.0, 99.9)


@dataclass
class Point:
    """One client at one value of the parameter; lists have an entry for each round.

    ``seconds``: for one message, by the clock; ``cpu``: processor time of the client for one message; ``broker``: that
    of the broker; ``peak``: bytes, the most that a client's process had resident; ``latencies``: seconds, one row of
    ``PERCENTILES`` for each round.
    """

    value: float | str
    rival: str
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    broker: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)
    latencies: list[list[float]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Messages in a second."""
        return 1 / median(self.seconds)

    @property
    def client_seconds(self) -> float:
        """Processor time of the client for one message."""
        return median(self.cpu)

    @property
    def client_cores(self) -> float:
        """Cores that the clients kept busy."""
        return median(cpu / seconds for cpu, seconds in zip(self.cpu, self.seconds, strict=True))

    @property
    def broker_cores(self) -> float:
        """Cores that the broker kept busy."""
        return median(cpu / seconds for cpu, seconds in zip(self.broker, self.seconds, strict=True))

    @property
    def percentiles(self) -> list[float]:
        """The median of the rounds, for each of ``PERCENTILES``."""
        return [median(column) for column in zip(*self.latencies, strict=True)]


@dataclass
class Curve:
    """The points of one experiment, by value and rival."""

    name: str
    title: str
    parameter: str
    view: View
    points: list[Point] = field(default_factory=list)

    @property
    def values(self) -> list[float | str]:
        """The values of the parameter, in the order of the experiment."""
        return list(dict.fromkeys(point.value for point in self.points))

    @property
    def rivals(self) -> list[str]:
        """The rivals, in the order of the experiment."""
        return list(dict.fromkeys(point.rival for point in self.points))

    def of(self, rival: str) -> list[Point]:
        """A rival's points."""
        return [point for point in self.points if point.rival == rival]

    def at(self, value: float | str, rival: str) -> Point | None:
        """The point of a rival at a value, if it was measured."""
        return next((point for point in self.of(rival) if point.value == value), None)


@dataclass
class Need:
    """What a client needs for one message of a work: system calls, bytes sent and received, instructions."""

    work: str
    client: str
    system_calls: float
    wire: float
    instructions: float


@dataclass
class Results:
    """A whole run.

    ``about``: lines on machine, versions and commit; ``skipped``: what could not be run, and why; ``failed``: what was
    begun and failed, and with what.
    """

    about: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    needs: list[Need] = field(default_factory=list)

    def replace(self, curve: Curve) -> None:
        """Take a curve in the place of the one of that name."""
        names = [old.name for old in self.curves]
        if curve.name in names:
            self.curves[names.index(curve.name)] = curve
        else:
            self.curves.append(curve)

    def to_json(self) -> str:
        """All of it as JSON, numbers with four digits, a line for each thing."""
        parts = []
        for name, found in asdict(self).items():
            lines = ",\n".join(json.dumps(_short(each)) for each in found)
            parts.append(f'"{name}": [\n{lines}\n]')
        return "{\n" + ",\n".join(parts) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """What ``to_json`` wrote."""
        data: dict[str, Any] = json.loads(text)
        return cls(
            data["about"],
            [Figure(**figure) for figure in data["figures"]],
            [Curve(**{**curve, "points": [Point(**point) for point in curve["points"]]}) for curve in data["curves"]],
            [(name, reason) for name, reason in data["skipped"]],
            [(name, reason) for name, reason in data["failed"]],
            [Need(**need) for need in data["needs"]],
        )


def _short(value: Any) -> Any:
    """The same with four significant digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _short(each) for name, each in value.items()}
    return [_short(each) for each in value] if isinstance(value, list | tuple) else value


def percentiles(values: Iterable[float]) -> list[float]:
    """The ``PERCENTILES`` of some values, two or more."""
    cuts = quantiles(values, n=1000, method="inclusive")
    return [cuts[round(percent * 10) - 1] for percent in PERCENTILES]
