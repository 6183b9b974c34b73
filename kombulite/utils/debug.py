"""Logging what is called on connections and channels: for finding out what a program does.

Environment: ``KOMBU_LOG_CONNECTION``, ``KOMBU_LOG_CHANNEL``, ``KOMBU_LOG_DEBUG`` (both).
"""

from __future__ import annotations

import os
from collections.abc import Callable
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
