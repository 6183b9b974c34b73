"""Credentials that change while connections are open: redis-py's streaming providers, such as those for tokens."""

from __future__ import annotations

from functools import partial
from logging import getLogger
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

from kombulite import exceptions
from kombulite._core import pack_command
from kombulite.utils.locks import Lock

logger = getLogger("kombulite.brokers.redis")


class AuthenticatedStream(Protocol):
    """A connection that can log in again."""

    def authenticate(self, command: bytes) -> None:
        """Send a packed ``AUTH``, from any thread."""


#: The open connections by their provider, which has one callback for all of them: some providers keep the last only.
_streams: WeakKeyDictionary[Any, WeakSet[Any]] = WeakKeyDictionary()
_lock = Lock()


def follow(provider: Any, stream: AuthenticatedStream) -> None:
    """Have a connection log in again whenever a provider streams new credentials; other providers have none.

    Args:
        provider: A provider of redis-py's, or None.
        stream: The connection, which has just logged in.
    """
    if not (hasattr(provider, "on_next") and hasattr(provider, "is_streaming")):
        return
    with _lock:
        is_known = provider in _streams
        streams = _streams.setdefault(provider, WeakSet())
        streams.add(stream)
    if not is_known:
        provider.on_next(partial(_authenticate, streams))


def _authenticate(streams: WeakSet[Any], token: Any) -> None:
    command = pack_command(("AUTH", token.try_get("oid"), token.get_value()))
    with _lock:
        found = list(streams)
    for stream in found:
        try:
            stream.authenticate(command)
        except (exceptions.ConnectionError, OSError) as error:  # its next use notices, and connects again
            logger.info("cannot log in again over a connection that is lost: %s", error)


def note_reply(reply: Any) -> None:
    """Log that new credentials were refused. The connection goes on with the old ones until the server ends it."""
    if isinstance(reply, Exception):
        logger.warning("the server refuses the new credentials: %s", reply)
