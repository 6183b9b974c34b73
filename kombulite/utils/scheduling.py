"""Whose turn it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any

from kombulite.utils.imports import symbol_by_name

__all__ = ["FairCycle", "cycle_by_name", "priority_cycle", "round_robin_cycle", "sorted_cycle"]

CYCLE_ALIASES = {
    "priority": f"{__name__}:priority_cycle",
    "round_robin": f"{__name__}:round_robin_cycle",
    "sorted": f"{__name__}:sorted_cycle",
}


class FairCycle:
    """Asks resources in turn: ``fun(resource, callback)``, until one does not raise ``predicate``."""

    def __init__(
        self, fun: Callable[..., Any], resources: Sequence[Any], predicate: type[BaseException] = Exception
    ) -> None:
        self.fun = fun
        self.resources = resources
        self.predicate = predicate
        self.pos = 0

    def _next(self) -> Any:
        while self.resources:
            self.pos += 1
            try:
                return self.resources[self.pos - 1]
            except IndexError:
                self.pos = 0
        self.pos = 0
        raise self.predicate

    def get(self, callback: Any, **kwargs: Any) -> Any:
        """Ask until one answers. Raises the last one's ``predicate`` when each was asked once."""
        for tried in count(1):
            resource = self._next()
            try:
                return self.fun(resource, callback, **kwargs)
            except self.predicate:
                if tried >= len(self.resources):
                    raise
        raise AssertionError("count() has no end")

    def close(self) -> None:
        """Nothing; kept for compatibility."""

    def __repr__(self) -> str:
        return f"<FairCycle: {self.pos}/{len(self.resources)} {self.resources}>"


class round_robin_cycle:  # noqa: N801 - kombu's name
    """An order in which who was served goes to the end."""

    def __init__(self, it: list[Any] | None = None) -> None:
        self.items = [] if it is None else it  # the caller's list: what is served moves in it

    def update(self, it: Iterable[Any]) -> None:
        """Take other items."""
        self.items[:] = it

    def consume(self, n: int) -> list[Any]:
        """Return the first ``n`` items."""
        return self.items[:n]

    def rotate(self, last_used: Any) -> Any:
        """Move an item to the end, if it is there."""
        try:
            self.items.remove(last_used)
        except ValueError:
            return last_used
        self.items.append(last_used)
        return last_used


class priority_cycle(round_robin_cycle):  # noqa: N801
    """An order that stays."""

    def rotate(self, last_used: Any) -> None:
        """Nothing: who is served keeps its place."""


class sorted_cycle(priority_cycle):  # noqa: N801
    """An order by name."""

    def consume(self, n: int) -> list[Any]:
        """Return the first ``n`` items by name."""
        return sorted(self.items[:n])


def cycle_by_name(name: str) -> Any:
    """Return the class of an order: ``round_robin``, ``priority``, ``sorted``, or a dotted path."""
    return symbol_by_name(name, CYCLE_ALIASES)
