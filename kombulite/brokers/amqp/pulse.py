"""Heartbeats while nobody reads: one thread for all connections of the process, which calls nothing but ``Link.beat``.

It runs while there are links that have it, and not in a forked child, whose links are its parent's.
"""

from __future__ import annotations

import os
from logging import getLogger
from threading import Thread
from weakref import WeakSet

from kombulite.brokers.amqp.link import Link
from kombulite.utils.locks import Condition, Lock

logger = getLogger("kombulite.amqp")


class Pulse:
    """Keeps links beating."""

    def __init__(self) -> None:
        self._links: WeakSet[Link] = WeakSet()
        self._changed = Condition(Lock())
        self._thread: Thread | None = None

    def add(self, link: Link) -> None:
        """Let a link beat until it fails."""
        with self._changed.lock:
            self._links.add(link)
            if self._thread is None:
                self._thread = Thread(target=self._run, name="kombulite heartbeats", daemon=True)
                self._thread.start()
            self._changed.notify()

    def remove(self, link: Link) -> None:
        """Let a link that is closed beat no longer; the thread ends with the last one."""
        with self._changed.lock:
            self._links.discard(link)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed.lock:
                links = [link for link in self._links if link.failure is None]
                self._links = WeakSet(links)
                if not links:
                    self._thread = None
                    return
                interval = min(link.heartbeat for link in links) / 4
            for link in links:
                try:
                    link.beat()
                except Exception as error:  # whatever ails one, the others' heartbeats go on
                    logger.warning("a connection is lost: %s", error)
            del links, link  # or one that nobody needs would be kept for an interval
            with self._changed.lock:
                self._changed.wait(interval)


pulse = Pulse()


def _start_anew() -> None:
    pulse.__init__()  # type: ignore[misc]  # the thread, and whoever held the lock, are in the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
