"""The states of a connection.

The states of a ``Connection``, each change a log record of the logger ``kombulite.connection``:

    CLOSED ──> CONNECTING ──> OPEN ──> LOST ──> CONNECTING ──> RESTORING ──> OPEN
                   │          │  ^      ^ │                        │
    CLOSED / LOST <┘          v  │      │ └──> CLOSED              └──> LOST / CLOSED
                             SUSPECT ───┘

A connection is SUSPECT when the broker owes a sign of life and half of the time is gone after which the connection is
given up: it works, or is about to be lost. It is LOST when it broke and its owner has not let it go (``release``,
``collect``). It is connected again by ``ensure_connection``, by ``drain_events``, or by whatever else needs it. Its
channels are then opened again, the same objects, with their prefetch limits and consumers, after what may be gone was
declared and bound again (``topology``): what is exclusive, auto-delete, not durable or expires; everything where the
broker may forget durable entities too. A connection that cannot be
restored as it was raises.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from kombulite.utils.logs import log


class State(Enum):
    """Where a connection stands."""

    CLOSED = "closed"
    CONNECTING = "connecting"
    OPEN = "open"
    SUSPECT = "suspect"
    LOST = "lost"
    RESTORING = "restoring"


NEXT: dict[State, frozenset[State]] = {
    State.CLOSED: frozenset([State.CONNECTING]),
    State.CONNECTING: frozenset([State.OPEN, State.CLOSED, State.LOST, State.RESTORING]),
    State.OPEN: frozenset([State.SUSPECT, State.LOST, State.CLOSED]),
    State.SUSPECT: frozenset([State.OPEN, State.LOST, State.CLOSED]),
    State.LOST: frozenset([State.CONNECTING, State.CLOSED]),
    State.RESTORING: frozenset([State.OPEN, State.LOST, State.CLOSED]),
}


class Lifecycle:
    """The state of one connection."""

    def __init__(self, name: Callable[[], str]) -> None:
        self.state = State.CLOSED
        self._name = name

    def to(self, state: State, reason: object = None) -> None:
        """Change the state, and log it. To where it is already: nothing."""
        before = self.state
        if state is before:
            return
        if state not in NEXT[before]:
            raise AssertionError(f"a connection does not go from {before.value} to {state.value}")
        self.state = state
        name, because = self._name(), "" if reason is None else f" ({reason})"
        facts = {"connection": name, "before": before.value, "state": state.value, "reason": reason}
        level = "WARNING" if state in (State.SUSPECT, State.LOST) else "INFO"
        log("kombulite.connection", level, "%s: %s%s", name, state.value, because, extra=facts)
