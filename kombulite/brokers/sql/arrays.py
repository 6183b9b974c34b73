"""Arrays in the binary format of PostgreSQL's parameters."""

from __future__ import annotations

import struct
from collections.abc import Sequence

__all__ = ["BYTEA", "TID", "array"]

BYTEA, TID = 17, 27  # OIDs of types

_header = struct.Struct("!iiIii").pack  # dimensions, whether there are NULLs, the elements' type, their number, 1
_size = struct.Struct("!i").pack


def array(oid: int, values: Sequence[bytes]) -> bytes:
    """Return an array of values that are in the binary format themselves. ``oid``: their type."""
    pieces = [_header(1, 0, oid, len(values), 1)]
    for value in values:
        pieces += (_size(len(value)), value)
    return b"".join(pieces)
