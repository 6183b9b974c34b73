"""Logging that leaves none of the standard library's locks taken when a signal handler raises in its midst."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["log"]


def log(name: str, level: str, text: str, *arguments: object, extra: dict[str, Any] | None = None) -> None:
    """Log as the logger of that name does.

    Args:
        name: Name of the logger.
        level: Name of the level, in capitals.
        text: The format.
        *arguments: Values for the format.
        extra: Further attributes of the record.
    """
    import logging  # slow to import, and a program that only imports us need not have it

    held = [lock for lock in _locks(logging, name) if lock._is_owned()]
    try:
        logger, number = logging.getLogger(name), getattr(logging, level)
        if logger.isEnabledFor(number):
            logger.log(number, text, *arguments, extra=extra, stacklevel=2)
    except BaseException:
        for lock in _locks(logging, name):
            while lock not in held and lock._is_owned():
                lock.release()
        raise


def _locks(logging: Any, name: str) -> Iterator[Any]:
    """Return the locks that logging takes for a logger."""
    yield logging._lock
    logger = logging.root.manager.loggerDict.get(name, logging.root)
    while logger is not None:
        yield from (handler.lock for handler in getattr(logger, "handlers", ()) if handler.lock is not None)
        logger = getattr(logger, "parent", None)
    if logging.lastResort is not None:
        yield logging.lastResort.lock
