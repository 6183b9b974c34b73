"""The memory transport as others subclass it: queues of the process.

The URL ``memory://`` means kombulite's own memory transport, which is another one (``kombulite.brokers.memory``), with
queues of its own. This module's classes are for programs that name or subclass them, and look into their queues.
"""

from __future__ import annotations

from collections import defaultdict
from queue import Queue
from typing import Any, ClassVar

from kombulite.transport import base, note_contents, virtual
from kombulite.transport.virtual.exchange import copies

__all__ = ["Channel", "Transport"]


class Channel(virtual.Channel):
    """A channel over queues that all connections of the process share."""

    events: ClassVar[dict[str, Any]] = defaultdict(set)
    queues: Any = {}  # noqa: RUF012 - shared by all channels, and replaced by subclasses
    do_restore = False
    supports_fanout = True

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return queue in self.queues

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        self.queues.setdefault(queue, Queue())

    def _queue_for(self, queue: str) -> Any:
        return self.queues.setdefault(queue, Queue())

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        return self._queue_for(queue).get(block=False)

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        self._queue_for(queue).put(message)

    def _put_fanout(self, exchange: str, message: Any, routing_key: str | None = None, **kwargs: Any) -> None:
        for queue, each in copies(self, message, self._lookup(exchange, routing_key or "")):
            self._queue_for(queue).put(each)

    def _queue_bind(self, *args: Any) -> None:
        """Do nothing: the bindings are in the process's state."""

    def _size(self, queue: str) -> Any:
        return self._queue_for(queue).qsize()

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        self.queues.pop(queue, None)

    def _purge(self, queue: str) -> Any:
        waiting = self._queue_for(queue)
        size = waiting.qsize()
        waiting.queue.clear()
        return size

    def close(self) -> None:
        """End the consumers."""
        super().close()
        self.queues = {}

    def after_reply_message_received(self, queue: str) -> None:
        """Do nothing: the queue may hold the replies to other calls.

        Args:
            queue: Name of the queue.
        """


class Transport(virtual.Transport):
    """Connection to the queues of the process.

    Args:
        client: The ``Connection``.
        **kwargs: Options of ``kombulite.transport.virtual.Transport``.
    """

    Channel: Any = Channel

    #: The exchanges and bindings of all connections.
    global_state: ClassVar[Any] = virtual.BrokerState()

    implements: Any = base.Transport.implements
    driver_type = "memory"
    driver_name = "memory"

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.state = self.global_state

    def driver_version(self) -> str:
        """Return what has no version."""
        return "N/A"


note_contents(__name__)
