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
    """Cycle that asks resources in turn, and begins behind the one that answered last.

    Args:
        fun: Called with a resource, the callback and the keywords of ``get``; returns the answer.
        resources: The resources.
        predicate: Error class that ``fun`` raises if a resource has nothing.
    """

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

    def get(self, callback: Callable[..., Any], **kwargs: Any) -> Any:
        """Return the first answer of a resource.

        Args:
            callback: Second argument of ``fun``.
            **kwargs: Keyword arguments of ``fun``.

        Raises:
            Exception: ``predicate``, if no resource has anything, or there are no resources.
        """
        for tried in count(1):
            resource = self._next()
            try:
                return self.fun(resource, callback, **kwargs)
            except self.predicate:
                if tried >= len(self.resources):
                    raise
        raise AssertionError("count() has no end")

    def close(self) -> None:
        """Do nothing; kept for compatibility."""

    def __repr__(self) -> str:
        return f"<FairCycle: {self.pos}/{len(self.resources)} {self.resources}>"


class round_robin_cycle:  # noqa: N801 - kombu's name
    """Order in which an item that was used goes to the end.

    Args:
        it: The list of items, which is changed in place; None: an empty one.
    """

    def __init__(self, it: list[Any] | None = None) -> None:
        self.items = [] if it is None else it  # the caller's list: what is served moves in it

    def update(self, it: Iterable[Any]) -> None:
        """Replace the items.

        Args:
            it: The new items.
        """
        self.items[:] = it

    def consume(self, n: int) -> list[Any]:
        """Return the first ``n`` items.

        Args:
            n: Number of items.
        """
        return self.items[:n]

    def rotate(self, last_used: object) -> Any:
        """Move an item to the end if it is in the list, and return it.

        Args:
            last_used: The item.
        """
        try:
            self.items.remove(last_used)
        except ValueError:
            return last_used
        self.items.append(last_used)
        return last_used


class priority_cycle(round_robin_cycle):  # noqa: N801
    """Order that does not change."""

    def rotate(self, last_used: object) -> None:
        """Do nothing: the order does not change.

        Args:
            last_used: The item that was used.
        """


class sorted_cycle(priority_cycle):  # noqa: N801
    """Order by name."""

    def consume(self, n: int) -> list[Any]:
        """Return the first ``n`` items, sorted.

        Args:
            n: Number of items.
        """
        return sorted(self.items[:n])


def cycle_by_name(name: str) -> Any:
    """Return the class of an order.

    Args:
        name: ``round_robin``, ``priority``, ``sorted``, or a dotted path.
    """
    return symbol_by_name(name, CYCLE_ALIASES)
