"""A model of a broker that is some way off: a virtual transport whose every put and get takes a while.

It is one class, over the virtual transport of kombu or of kombulite: both run the same broker.
"""

from __future__ import annotations

import importlib
import time
from collections import defaultdict, deque
from functools import cache
from queue import Empty
from typing import Any

LATENCY = 0.0002  # seconds, as to a server in the same building


@cache
def transport_of(library: Any) -> type[Any]:
    """The class of the transport. Its messages are those of the process."""
    virtual = importlib.import_module(f"{library.__name__}.transport.virtual")
    waiting: defaultdict[str, deque[Any]] = defaultdict(deque)

    class Channel(virtual.Channel):  # type: ignore[misc]
        """Puts and gets, each after the way there and back."""

        def _put(self, queue: str, message: Any, **_: Any) -> None:
            time.sleep(LATENCY)
            waiting[queue].append(message)

        def _get(self, queue: str, timeout: float | None = None) -> Any:
            time.sleep(LATENCY)
            try:
                return waiting[queue].popleft()
            except IndexError:
                raise Empty from None

        def _size(self, queue: str) -> int:
            return len(waiting[queue])

        def _purge(self, queue: str) -> int:
            return len(waiting.pop(queue, ()))

    class Transport(virtual.Transport):  # type: ignore[misc]
        """The transport of these channels."""

        driver_type = driver_name = "distant"
        bound = virtual.BrokerState()  # the broker's: what one connection binds is there for the others

        def __init__(self, client: Any, **options: Any) -> None:
            super().__init__(client, **options)
            self.state = self.bound

    Transport.Channel = Channel
    return Transport
