"""Logging what is called on connections and channels: for finding out what a program does.

Environment: ``KOMBU_LOG_CONNECTION``, ``KOMBU_LOG_CHANNEL``, ``KOMBU_LOG_DEBUG`` (both).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from kombulite.utils.functional import reprcall

_BOTH = bool(os.environ.get("KOMBU_LOG_DEBUG"))
LOG_CONNECTION = _BOTH or bool(os.environ.get("KOMBU_LOG_CONNECTION"))
LOG_CHANNEL = _BOTH or bool(os.environ.get("KOMBU_LOG_CHANNEL"))


def log_calls(instance: object, logger: str, ident: str) -> None:
    """Log each call of a public method of an object, at the level DEBUG."""
    import logging  # for few

    log = logging.getLogger(logger)

    def logged(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            log.debug("[%s] %s", ident, reprcall(name, args, kwargs))
            return method(*args, **kwargs)

        return call

    for name in dir(type(instance)):
        attribute = getattr(type(instance), name)
        if not name.startswith("_") and callable(attribute) and not isinstance(attribute, type):
            setattr(instance, name, logged(name, getattr(instance, name)))


def setup_logging(loglevel: int | None = 10, loggers: Iterable[str] | None = None) -> None:
    """Write what is logged of connections and channels to the standard error, from a level on (DEBUG)."""
    import logging

    for name in loggers or ("kombu.connection", "kombu.channel"):
        logger = logging.getLogger(name)
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(loglevel or logging.DEBUG)


class Logwrapped:
    """An object whose calls are logged. ``ident``: a format that starts each line, filled in with the object."""

    def __init__(self, instance: Any, logger: Any = None, ident: str | None = None) -> None:
        from kombulite.log import get_logger

        self.instance = instance
        self.logger = get_logger(logger or __name__)
        self.ident = ident

    def __getattr__(self, key: str) -> Any:
        method = getattr(self.instance, key)
        if not callable(method):
            return method

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            start = self.ident.format(self.instance) if self.ident else ""
            self.logger.debug("%s%s", start, reprcall(getattr(method, "__name__", key), args, kwargs))
            return method(*args, **kwargs)

        return call

    def __repr__(self) -> str:
        return repr(self.instance)

    def __dir__(self) -> list[str]:
        return dir(self.instance)
