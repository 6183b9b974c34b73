"""Saving what cannot be put back."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

from kombulite.log import get_logger

__all__ = ["emergency_dump_state"]

logger = get_logger(__name__)


def emergency_dump_state(
    state: object,
    open_file: Callable[..., Any] = open,
    dump: Callable[..., Any] | None = None,
    stderr: IO[str] | None = None,
) -> str:
    """Write objects to a new temporary file, which stays, and return its path.

    Args:
        state: The objects; pickled, or as text where that fails.
        open_file: Opens the file, as ``open`` does.
        dump: Writes them, as ``pickle.dump`` does; the file is opened for text then.
        stderr: File for the path; without one the path is logged.
    """
    from pickle import dump as pickle_dump  # seldom needed, as all below
    from pprint import pformat
    from tempfile import mkstemp

    descriptor, path = mkstemp()
    os.close(descriptor)
    if stderr is None:
        logger.error("EMERGENCY DUMP STATE TO FILE -> %s <-", path, extra={"emergency_state_file": path})
    else:
        print(f"EMERGENCY DUMP STATE TO FILE -> {path} <-", file=stderr)
    file = open_file(path, "wb" if dump is None else "w")
    try:
        try:
            (dump or pickle_dump)(state, file, protocol=0)
        except Exception as error:
            if stderr is None:
                logger.exception("Cannot pickle state. Falling back to pformat.")
            else:
                print(f"Cannot pickle state: {error!r}. Fallback to pformat.", file=stderr)
            try:
                file.seek(0)
                file.truncate()
            except (OSError, ValueError):  # a stream that cannot go back keeps the part that was pickled
                with suppress(OSError, ValueError):
                    file.seek(0, os.SEEK_END)
            text = pformat(state)
            try:
                file.write(text.encode())
            except TypeError:  # a text stream
                file.write(text)
    finally:
        file.flush()
        file.close()
    return path
