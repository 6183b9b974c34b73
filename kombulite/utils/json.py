"""JSON with typed values: datetime, date, time, Decimal, UUID, bytes, and what is registered."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from kombulite._core import JSON

codec = JSON()


class JSONEncoder(json.JSONEncoder):
    """The standard library's encoder with the typed values, for those who need its options."""

    def default(self, o: Any) -> Any:
        """What is written in place of a value that JSON lacks."""
        return codec.stand_in(o)


def dumps(
    s: Any, _dumps: Callable[..., str] = json.dumps, cls: type[json.JSONEncoder] | None = None, **kwargs: Any
) -> str:
    """``s`` as JSON text. Keywords are those of ``json.dumps``; with any, its slower encoder does the work."""
    if cls is None and not kwargs and _dumps is json.dumps:
        return codec.dumps(s)
    return _dumps(s, cls=cls or JSONEncoder, **kwargs)


def object_hook(value: dict[str, Any]) -> Any:
    """The value that a typed value stands for, or the dict itself."""
    return codec.revive(value)


def loads(
    s: str | bytes | bytearray | memoryview,
    _loads: Callable[..., Any] = json.loads,
    decode_bytes: bool = True,
    object_hook: Callable[[dict[str, Any]], Any] = object_hook,
) -> Any:
    """The value that JSON text stands for.

    ``decode_bytes`` is there for compatibility: bytes are always read as UTF-8. Raises ValueError.
    """
    if _loads is json.loads and object_hook is _typed:
        return codec.loads(s)
    return _loads(s if isinstance(s, str) else bytes(s).decode("utf-8"), object_hook=object_hook)


_typed = object_hook


def register_type(
    t: type, marker: str | None, encoder: Callable[[Any], Any], decoder: Callable[[Any], Any] = lambda value: value
) -> None:
    """Teach JSON a type: ``encoder`` gives what stands for a value, ``decoder`` undoes it.

    With ``marker`` None the stand-in is written untyped, and nothing is decoded.
    """
    codec.register(t, marker, encoder, decoder)
