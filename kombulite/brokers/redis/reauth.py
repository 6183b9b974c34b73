"""Credentials that change while connections are open: redis-py's streaming providers, such as those for tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from logging import getLogger
from threading import Thread
from time import sleep
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

from kombulite import exceptions
from kombulite._core import pack_command
from kombulite.utils.compat import register_after_fork
from kombulite.utils.locks import Lock

logger = getLogger("kombulite.brokers.redis")

#: Seconds between two tries to send what a server does not take.
RETRY_PAUSE = 0.05


class AuthenticatedStream(Protocol):
    """A connection that can log in again."""

    def authenticate(self, command: bytes) -> None:
        """Send a packed ``AUTH``, from any thread, without waiting for the server."""


class Followers:
    """The open connections by their provider, which has one callback for all of them: some keep the last only."""

    def __init__(self) -> None:
        self._begin()
        register_after_fork(self, Followers._begin)

    def _begin(self) -> None:
        """Begin without connections: those of a parent process are not its child's, and its lock may be taken."""
        self._streams: WeakKeyDictionary[Any, WeakSet[Any]] = WeakKeyDictionary()
        self._lock = Lock()

    def add(self, provider: Any, stream: AuthenticatedStream) -> None:
        """Have a connection log in again with what a provider streams from now on."""
        with self._lock:
            is_known = provider in self._streams
            streams = self._streams.setdefault(provider, WeakSet())
            streams.add(stream)
        if not is_known:
            provider.on_next(partial(self._authenticate, streams))

    def _authenticate(self, streams: WeakSet[Any], token: Any) -> None:
        command = pack_command(("AUTH", token.try_get("oid"), token.get_value()))
        with self._lock:
            found = list(streams)
        for stream in found:
            stream.authenticate(command)


_followers = Followers()


def follow(provider: Any, stream: AuthenticatedStream) -> None:
    """Have a connection log in again whenever a provider streams new credentials; other providers have none.

    Args:
        provider: A provider of redis-py's, or None.
        stream: The connection, which has just logged in.
    """
    if hasattr(provider, "on_next") and hasattr(provider, "is_streaming"):
        _followers.add(provider, stream)


class PendingLogins:
    """The ``AUTH`` commands that one connection has not sent yet. The last one counts."""

    def __init__(self) -> None:
        self._commands: deque[bytes] = deque()

    def add(self, command: bytes, lock: Lock, send: Callable[[], bool]) -> None:
        """Have a command sent as soon as the connection is free.

        Args:
            command: The packed ``AUTH``.
            lock: That of the connection: another thread that holds it may wait for the server for long.
            send: Called with the lock held. Returns False if it has to be called later.
        """
        self._commands.append(command)
        if lock.call(0, send) is not True:
            try:
                Thread(target=_send_later, args=(lock, send), name="kombulite-redis-auth", daemon=True).start()
            except RuntimeError as error:
                logger.warning("cannot log in again: %s", error)

    def send(self, post: Callable[[bytes, Callable[[Any], None]], object]) -> None:
        """Send the last command, by ``post(command, on_reply)``; the lock is held."""
        command = None
        while self._commands:
            command = self._commands.popleft()
        if command is not None:
            try:
                post(command, note_reply)
            except (exceptions.ConnectionError, OSError) as error:  # its next use notices, and connects again
                logger.info("cannot log in again over a connection that is lost: %s", error)


def _send_later(lock: Lock, send: Callable[[], bool]) -> None:
    while not lock.call(None, send):
        sleep(RETRY_PAUSE)


def note_reply(reply: Any) -> None:
    """Log that new credentials were refused. The connection goes on with the old ones until the server ends it."""
    if isinstance(reply, Exception):
        logger.warning("the server refuses the new credentials: %s", reply)
