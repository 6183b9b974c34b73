"""The thread beside a SQL connection: it renews the lease, and hears the database's notifications."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from selectors import EVENT_READ, DefaultSelector
from threading import Thread
from time import monotonic
from typing import Any
from weakref import WeakMethod

from kombulite import exceptions
from kombulite.log import get_logger

__all__ = ["LeaseMaintainer"]

logger = get_logger(__name__)

MAX_WAIT = 86400.0  # seconds: the system's own wait takes 24 days at most


class LeaseMaintainer:
    """Calls ``renew`` (a bound method, held weakly) every ``interval`` seconds; ends with its object, or by ``stop``.

    ``listen(listener, ring)``: call ``ring`` for the notifications that a connection of its own receives.
    """

    def __init__(self, renew: Callable[[], None], interval: float) -> None:
        self._renew = WeakMethod(renew)
        self._interval = interval
        self._wake, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._listener: Any = None
        self._ring: Callable[[], None] | None = None
        self._called: Callable[[], None] | None = None
        self._is_stopped = False
        self._thread = Thread(target=self._run, name="kombulite-sql", daemon=True)
        self._thread.start()

    def listen(self, listener: Any, ring: Callable[[], None]) -> None:
        """Hear the notifications that a connection receives, from now on."""
        self._listener, self._ring = listener, ring
        self._waker.send(b"x")

    def call(self, function: Callable[[], None]) -> None:
        """Have the thread call a function soon, once for all calls until then."""
        self._called = function
        with suppress(OSError):  # it has ended, or has not come to the calls before
            self._waker.send(b"x")

    @property
    def is_listening(self) -> bool:
        """Whether notifications are heard."""
        return self._listener is not None

    def stop(self) -> None:
        """End the thread."""
        self._is_stopped = True
        with suppress(OSError):  # it has ended
            self._waker.send(b"x")

    def _run(self) -> None:
        next_renewal = monotonic() + self._interval
        try:
            while not self._is_stopped:
                self._hear(min(max(next_renewal - monotonic(), 0), MAX_WAIT))
                if self._is_stopped or monotonic() < next_renewal:
                    continue
                renew = self._renew()
                if renew is None:
                    return
                try:
                    renew()
                except (exceptions.AMQPError, OSError) as error:
                    logger.warning("The lease of a SQL connection was not renewed: %s", error)
                del renew
                next_renewal = monotonic() + self._interval
        finally:
            self._drop_listener()
            self._wake.close()
            self._waker.close()

    def _hear(self, seconds: float) -> None:
        """Wait for a notification, for a call from another thread, or for ``seconds``."""
        listener = self._listener
        sources = [self._wake] if listener is None else [self._wake, listener]
        try:
            ready = _readable(sources, seconds)
            if listener in ready and listener.take_notifications() and self._ring is not None:
                self._ring()
        except OSError as error:
            logger.warning("Notifications are not received any more, so consumers poll: %s", error)
            self._drop_listener()
            return
        if self._wake in ready:
            self._wake.recv(4096)
            called, self._called = self._called, None
            if called is not None:
                called()

    def _drop_listener(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()


def _readable(sources: list[Any], seconds: float) -> list[Any]:
    with DefaultSelector() as selector:
        for source in sources:
            selector.register(source, EVENT_READ)
        return [key.fileobj for key, _ in selector.select(seconds)]
