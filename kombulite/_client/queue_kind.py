"""What a queue asks its kind for: see ``queue_kinds``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def require(is_valid: bool, parameter: str, expected: str, value: object) -> None:
    """Raise ValueError if a parameter is not as expected."""
    if not is_valid:
        raise ValueError(f"{parameter} must be {expected}, got {value!r}")


class QueueKind:
    """Base of ``Quorum`` and ``Stream``."""

    is_stream = False

    def queue_arguments(self) -> dict[str, Any]:
        """Return the arguments of a declaration under the broker's names."""
        raise NotImplementedError

    def consumer_arguments(self) -> dict[str, Any]:
        """Return the arguments of a consumer under the broker's names."""
        return {}

    def check(self, queue: Any) -> None:
        """Raise ValueError if the queue has an attribute that the broker refuses for this kind.

        Args:
            queue: The queue.
        """
        name = type(self).__name__
        require(queue.durable, "durable", f"True for a queue of kind {name}", queue.durable)
        require(not queue.exclusive, "exclusive", f"False for a queue of kind {name}", queue.exclusive)
        require(not queue.auto_delete, "auto_delete", f"False for a queue of kind {name}", queue.auto_delete)
        require(queue.max_priority is None, "max_priority", f"None for a queue of kind {name}", queue.max_priority)
        named, own = (queue.queue_arguments or {}).get("x-queue-type"), name.lower()
        require(named in (None, own), 'queue_arguments["x-queue-type"]', f"{own!r} or left out", named)

    def refusal(self) -> str | None:
        """Return what a broker without such queues cannot do, or None if a classic queue does as well."""
        raise NotImplementedError


def with_kind(given: Mapping[str, Any] | None, of_kind: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of a kind, and those given by hand over them; None for none."""
    return {**of_kind, **(given or {})} or None
