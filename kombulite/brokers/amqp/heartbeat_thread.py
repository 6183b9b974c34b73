"""What goes on while no thread reads: heartbeats, and acks that wait to be sent. One thread for all connections.

It calls nothing but ``beat`` and ``flush`` of streams. It runs while there are streams that need it, and not in a
forked child, whose streams are its parent's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from logging import getLogger
from threading import Thread
from weakref import WeakSet

from kombulite.brokers.amqp.stream import Stream
from kombulite.utils.locks import Condition, Lock

logger = getLogger("kombulite.amqp")

FLUSH_DELAY = 0.01  # seconds that an ack may wait for those of the deliveries that follow
MAX_INTERVAL = 60.0  # seconds after which to look whether there are still streams


class HeartbeatThread:
    """The thread that sends the heartbeats of all streams, and the acks that wait too long."""

    def __init__(self) -> None:
        self._streams: WeakSet[Stream] = WeakSet()
        self._waiting: set[Stream] = set()  # with acks that wait since the last flush
        self._changed = Condition(Lock())
        self._thread: Thread | None = None

    def add(self, stream: Stream) -> None:
        """Let a stream beat until it fails."""
        with self._changed.lock:
            self._add(stream)

    def flush_soon(self, stream: Stream) -> None:
        """Have a stream, which has just begun to hold acks, flushed in time."""
        thread = self._thread
        if stream in self._waiting and thread is not None and thread.is_alive():
            return
        try:
            with self._changed.lock:
                self._waiting.add(stream)
                self._add(stream)
        except RuntimeError:  # no thread can be started: nothing may wait for it
            self._waiting.discard(stream)
            stream.flush()

    def remove(self, stream: Stream) -> None:
        """Let a stream that is closed beat no longer; the thread ends with the last one."""
        with self._changed.lock:
            self._streams.discard(stream)
            self._changed.notify()

    def _add(self, stream: Stream) -> None:
        self._streams.add(stream)
        if self._thread is None or not self._thread.is_alive():
            thread = Thread(target=self._run, name="kombulite-heartbeats", daemon=True)
            thread.start()
            self._thread = thread
        self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed.lock:
                streams = [stream for stream in self._streams if stream.failure is None]
                self._streams = WeakSet(streams)
                if not streams:
                    self._thread = None
                    return
                intervals = [stream.heartbeat.next_look() for stream in streams if stream.heartbeat.interval]
            for stream in streams:
                self._call(stream.beat)
            del streams, stream  # or one that is not needed would be kept for an interval
            with self._changed.lock:
                if not self._waiting:
                    self._changed.wait(min(intervals, default=MAX_INTERVAL))
            if self._waiting:
                self._flush()

    def _flush(self) -> None:
        """Send, after a while, the acks that wait now."""
        with self._changed.lock:
            self._changed.wait(FLUSH_DELAY)
            waiting, self._waiting = self._waiting, set()
        for stream in waiting:
            self._call(stream.flush)
            if stream.failure is None and not stream.is_flushed:  # another thread writes, or the broker does not read
                self._waiting.add(stream)

    def _call(self, method: Callable[[], object]) -> None:
        try:
            method()
        except Exception as error:  # whatever ails one stream, it goes on for the others
            logger.warning("a connection is lost: %s", error)


heartbeats = HeartbeatThread()


def _start_anew() -> None:
    heartbeats.__init__()  # type: ignore[misc]  # the thread, and the holder of the lock, are in the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
