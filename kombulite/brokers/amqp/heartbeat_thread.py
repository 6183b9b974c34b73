"""Heartbeats while no thread reads: one for all connections of the process, which calls nothing but ``Stream.beat``.

It runs while there are streams that have it, and not in a forked child, whose streams are its parent's.
"""

from __future__ import annotations

import os
from logging import getLogger
from threading import Thread
from weakref import WeakSet

from kombulite.brokers.amqp.stream import Stream
from kombulite.utils.locks import Condition, Lock

logger = getLogger("kombulite.amqp")


class HeartbeatThread:
    """The thread that sends the heartbeats of all streams."""

    def __init__(self) -> None:
        self._streams: WeakSet[Stream] = WeakSet()
        self._changed = Condition(Lock())
        self._thread: Thread | None = None

    def add(self, stream: Stream) -> None:
        """Let a stream beat until it fails."""
        with self._changed.lock:
            self._streams.add(stream)
            if self._thread is None:
                self._thread = Thread(target=self._run, name="kombulite-heartbeats", daemon=True)
                self._thread.start()
            self._changed.notify()

    def remove(self, stream: Stream) -> None:
        """Let a stream that is closed beat no longer; the thread ends with the last one."""
        with self._changed.lock:
            self._streams.discard(stream)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed.lock:
                streams = [stream for stream in self._streams if stream.failure is None]
                self._streams = WeakSet(streams)
                if not streams:
                    self._thread = None
                    return
                interval = min(stream.heartbeat.next_look() for stream in streams)
            for stream in streams:
                try:
                    stream.beat()
                except Exception as error:  # whatever ails one, the others' heartbeats go on
                    logger.warning("a connection is lost: %s", error)
            del streams, stream  # or one that is not needed would be kept for an interval
            with self._changed.lock:
                self._changed.wait(interval)


heartbeats = HeartbeatThread()


def _start_anew() -> None:
    heartbeats.__init__()  # type: ignore[misc]  # the thread, and the holder of the lock, are in the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
