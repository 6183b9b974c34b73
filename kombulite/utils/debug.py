"""Logging of what is called on connections and channels: to find out what a program does.

Environment: ``KOMBU_LOG_CONNECTION`` and ``KOMBU_LOG_CHANNEL`` log to the loggers ``kombu.connection`` and
``kombu.channel``; ``KOMBU_LOG_DEBUG`` does both, and shows them on the standard error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import wraps
from importlib import import_module
from threading import local
from typing import TYPE_CHECKING, Any

from kombulite.utils.functional import reprcall

if TYPE_CHECKING:
    from logging import Logger

__all__ = ["Logwrapped", "setup_logging"]

_BOTH = bool(os.environ.get("KOMBU_LOG_DEBUG"))
LOG_CONNECTION = _BOTH or bool(os.environ.get("KOMBU_LOG_CONNECTION"))
LOG_CHANNEL = _BOTH or bool(os.environ.get("KOMBU_LOG_CHANNEL"))

LOGGERS = ("kombu.connection", "kombu.channel")
DEBUG = 10  # as the standard library's ``logging`` numbers it

#: What the facade asks of channels and transports for itself: no verb of a broker.
INTERNAL = frozenset(
    [
        *(
            "fast_ack",
            "fast_publish",
            "channel_is_open",
            "detach",
            "disown",
            "highest_tag",
            "observe",
            "reopen",
            "resume",
            "suspend",
        ),
        *("register_with_event_loop", "unregister_from_event_loop", "use", "add_collector", "remove_collector"),
    ]
)


def setup_logging(loglevel: int | None = None, loggers: Iterable[str] | None = None) -> None:
    """Show what is logged on the standard error.

    Args:
        loglevel: lowest level that is shown, ``DEBUG`` by default.
        loggers: names of loggers, by default those of connections and channels.
    """
    here = import_module(__name__)
    for name in loggers or LOGGERS:
        logger = here.get_logger(name)
        logger.addHandler(here.logging.StreamHandler())
        logger.setLevel(DEBUG if loglevel is None else loglevel)


class Logwrapped:
    """An object whose calls are logged at the level ``DEBUG``.

    Args:
        instance: The object.
        logger: A logger or its name; by default the one of this module.
        ident: Beginning of each line, formatted with the object.
    """

    def __init__(self, instance: Any, logger: Logger | str | None = None, ident: str | None = None) -> None:
        self.instance = instance
        self.logger = import_module(__name__).get_logger(logger or __name__)
        self.ident = ident

    def __getattr__(self, key: str) -> Any:
        attribute = getattr(self.instance, key)
        if not callable(attribute):
            return attribute

        @wraps(attribute)
        def call(*args: Any, **kwargs: Any) -> Any:
            ident = self.ident.format(self.instance) if self.ident else ""
            self.logger.debug(ident + reprcall(getattr(attribute, "__name__", key), args, kwargs))
            return attribute(*args, **kwargs)

        return call

    def __enter__(self) -> Logwrapped:
        self.instance.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> Any:
        return self.instance.__exit__(*exc_info)

    def __repr__(self) -> str:
        return repr(self.instance)

    def __dir__(self) -> list[str]:
        return dir(self.instance)


def log_calls(instance: Any, logger: str, ident: str) -> None:
    """Log each call of a public method of an object, but not the calls that such a method makes itself.

    Args:
        instance: The object, whose methods are replaced.
        logger: Name of the logger.
        ident: Text before the call in each line.
    """
    import logging  # seldom needed, and slow to import

    log = logging.getLogger(logger)
    inside = local()

    def logged(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if getattr(inside, "is_call", False):
                return method(*args, **kwargs)
            log.debug("[%s] %s", ident, reprcall(name, args, kwargs))
            inside.is_call = True
            try:
                return method(*args, **kwargs)
            finally:
                inside.is_call = False

        return call

    for name in dir(type(instance)):
        attribute = getattr(type(instance), name)
        is_verb = callable(attribute) and not isinstance(attribute, type) and not name.startswith("_")
        if is_verb and name not in INTERNAL:
            setattr(instance, name, logged(name, getattr(instance, name)))
    own: Any = instance
    if hasattr(own, "fast_publish"):
        own.fast_publish = _no_step  # it would not be logged


def _no_step(channel: int) -> None:
    """Return nothing, in the place of a compiled step."""


def __getattr__(name: str) -> Any:
    # Seldom needed, and slow to import. A program may replace them in this module.
    if name in ("get_logger", "logging"):
        return import_module("logging") if name == "logging" else import_module("kombulite.log").get_logger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if _BOTH:
    setup_logging()
