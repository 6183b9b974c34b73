"""Loggers, and log levels by name and number."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import IO, Any

from kombulite.utils.encoding import safe_repr, safe_str
from kombulite.utils.functional import maybe_evaluate
from kombulite.utils.objects import cached_property

__all__ = ["LOG_LEVELS", "Log", "LogMixin", "get_logger", "get_loglevel", "setup_logging"]

_NUMBERS = {"CRITICAL": 50, "FATAL": 50, "ERROR": 40, "WARN": 30, "WARNING": 30, "INFO": 20, "DEBUG": 10, "NOTSET": 0}
_NAMES = {50: "CRITICAL", 40: "ERROR", 30: "WARNING", 20: "INFO", 10: "DEBUG", 0: "NOTSET"}

#: Numbers by name, and names by number.
LOG_LEVELS: dict[Any, Any] = {**_NUMBERS, **_NAMES}

DISABLE_TRACEBACKS = os.environ.get("DISABLE_TRACEBACKS")


def get_logger(logger: str | logging.Logger) -> logging.Logger:
    """Return the logger of a name, with a handler that does nothing if it has none.

    Args:
        logger: Its name, or the logger itself.
    """
    if isinstance(logger, str):
        logger = logging.getLogger(logger)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return logger


def get_loglevel(level: str | int) -> int:
    """Return the number of a level.

    Args:
        level: Its name in capitals, or its number.

    Raises:
        KeyError: No level has that name.
    """
    return _NUMBERS[level] if isinstance(level, str) else level


class LogMixin:
    """Gives a class a logger of its own, and methods that log to it."""

    def debug(self, *args: object, **kwargs: Any) -> None:
        """Log a message of the level ``DEBUG``.

        Args:
            *args: The format, and its arguments.
            **kwargs: Keywords of ``logging.Logger.log``.
        """
        self.log(logging.DEBUG, *args, **kwargs)

    def info(self, *args: object, **kwargs: Any) -> None:
        """Log a message of the level ``INFO``.

        Args:
            *args: The format, and its arguments.
            **kwargs: Keywords of ``logging.Logger.log``.
        """
        self.log(logging.INFO, *args, **kwargs)

    def warn(self, *args: object, **kwargs: Any) -> None:
        """Log a warning.

        Args:
            *args: The format, and its arguments.
            **kwargs: Keywords of ``logging.Logger.log``.
        """
        self.log(logging.WARNING, *args, **kwargs)

    def error(self, *args: object, **kwargs: Any) -> None:
        """Log an error, with the traceback if one is being handled.

        Args:
            *args: The format, and its arguments.
            **kwargs: Keywords of ``logging.Logger.log``.
        """
        self._log_error(logging.ERROR, *args, **kwargs)

    def critical(self, *args: object, **kwargs: Any) -> None:
        """Log a critical error, with the traceback if one is being handled.

        Args:
            *args: The format, and its arguments.
            **kwargs: Keywords of ``logging.Logger.log``.
        """
        self._log_error(logging.CRITICAL, *args, **kwargs)

    def _log_error(self, severity: int, *args: object, **kwargs: Any) -> None:
        kwargs.setdefault("exc_info", sys.exc_info()[0] is not None)
        self.log(severity, *args, **kwargs)

    def annotate(self, text: str) -> str:
        """Return the text as it is logged: behind the name of the logger.

        Args:
            text: The format of the message.
        """
        return f"{self.logger_name} - {text}"

    def log(self, severity: int, *args: Any, **kwargs: Any) -> None:
        """Log a message.

        Args:
            severity: Number of the level.
            *args: The format, and its arguments; those that are lazy are evaluated only if the level is logged. If the
                first is no text, all of them are logged side by side.
            **kwargs: Keywords of ``logging.Logger.log``.
        """
        if DISABLE_TRACEBACKS:
            kwargs.pop("exc_info", None)
        if self.logger.isEnabledFor(severity):
            text, *values = args if isinstance(args[0], str) else [" ".join(map(safe_str, args))]
            self.logger.log(severity, self.annotate(text), *map(maybe_evaluate, values), **kwargs)

    def get_logger(self) -> logging.Logger:
        """Return the logger."""
        return get_logger(self.logger_name)

    def is_enabled_for(self, level: str | int) -> bool:
        """Return whether messages of a level are logged.

        Args:
            level: Its name in capitals, or its number.
        """
        return self.logger.isEnabledFor(self.get_loglevel(level))

    def get_loglevel(self, level: str | int) -> int:
        """Return the number of a level.

        Args:
            level: Its name in capitals, or its number.

        Raises:
            KeyError: No level has that name.
        """
        return get_loglevel(level)

    @cached_property
    def logger(self) -> logging.Logger:
        """The logger, looked up once."""
        return self.get_logger()

    @property
    def logger_name(self) -> str:
        """Name of the logger: the class's."""
        return type(self).__name__


class Log(LogMixin):
    """A logger with the mixin's methods.

    Args:
        name: Name of the logger.
        logger: The logger to use (None: the one of that name).
    """

    def __init__(self, name: str, logger: logging.Logger | None = None) -> None:
        self._logger_name = name
        self._logger = logger

    def get_logger(self) -> logging.Logger:
        """Return the logger that was given, or that of the name."""
        return self._logger or get_logger(self._logger_name)

    @property
    def logger_name(self) -> str:
        """Name of the logger."""
        return self._logger_name


def setup_logging(loglevel: str | int | None = None, logfile: str | IO[str] | None = None) -> logging.Logger:
    """Log to a file, unless logging is set up already. Return the root logger.

    Args:
        loglevel: Name or number of the lowest level that is logged (None: ``ERROR``).
        logfile: Name of the file, or an open one (None: the standard error).

    Raises:
        KeyError: No level has that name.
    """
    logger = logging.getLogger()
    level = get_loglevel(loglevel or "ERROR")
    if not logger.handlers:
        handler: logging.Handler
        if isinstance(logfile, (str, os.PathLike)):
            handler = import_module(__name__).WatchedFileHandler(logfile)
        else:
            handler = logging.StreamHandler(logfile or sys.__stderr__)
        logger.addHandler(handler)
        logger.setLevel(level)
    return logger


def __getattr__(name: str) -> Any:
    if name == "WatchedFileHandler":  # for few, and it brings sockets along
        return import_module("logging.handlers").WatchedFileHandler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def naive_format_parts(fmt: str) -> Iterator[str | None]:
    """Give the conversion letter of each part of a ``%`` format; None where a part has none.

    Args:
        fmt: The format.
    """
    for part in fmt.split("%")[1:]:
        yield part[0] if part else None


def safeify_format(
    fmt: str, args: Iterable[Any], filters: Mapping[str, Callable[[Any], Any]] | None = None
) -> Iterator[Any]:
    """Give the arguments of a ``%`` format, safe to print.

    Args:
        fmt: The format.
        args: The arguments.
        filters: Functions that return a printable value, by conversion letter; None: those for ``s`` and ``r``.
    """
    chosen = filters or {"s": safe_str, "r": safe_repr}
    for letter, value in zip(naive_format_parts(fmt), args, strict=False):
        yield chosen.get(letter or "", lambda value: value)(value)
