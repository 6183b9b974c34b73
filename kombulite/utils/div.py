"""Saving what cannot be put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kombulite.log import get_logger

__all__ = ["emergency_dump_state"]

logger = get_logger(__name__)


def emergency_dump_state(
    state: Any, open_file: Callable[..., Any] = open, dump: Callable[..., Any] | None = None, stderr: Any = None
) -> str:
    """Write objects to a new temporary file, which stays, and return its path.

    Args:
        state: The objects; pickled, or as text where that fails.
        open_file: Opens the file, as ``open`` does.
        dump: Writes them, as ``pickle.dump`` does.
        stderr: Where the path is written to; it is logged if there is none.
    """
    from pickle import dump as pickle_dump  # seldom needed, as all below
    from pprint import pformat
    from tempfile import mkstemp

    descriptor, path = mkstemp()
    try:
        if stderr is None:
            logger.warning("EMERGENCY DUMP STATE TO FILE -> %s <-", path, extra={"emergency_state_file": path})
        else:
            print(f"EMERGENCY DUMP STATE TO FILE -> {path} <-", file=stderr)
        with open_file(path, "wb") as file:
            try:
                (dump or pickle_dump)(state, file, protocol=0)
            except Exception as error:
                if stderr is None:
                    logger.warning("Cannot pickle state: %r. Fallback to pformat.", error)
                else:
                    print(f"Cannot pickle state: {error!r}. Fallback to pformat.", file=stderr)
                file.write(pformat(state).encode())
                file.flush()
    finally:
        import os

        os.close(descriptor)
    return path
