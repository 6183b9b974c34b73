"""JSON with typed values: datetime, date, time, Decimal, UUID, bytes, and what is registered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

from kombulite.utils import json_codec

__all__ = ["JSONEncoder", "dumps", "loads", "object_hook", "register_type"]

#: Not imported by this name: CPython 3.11 and newer bind a method anew at each call of one of an imported object.
codec = json_codec.codec

#: The standard library's, as names of this module: they are compared with at each call.
plain_dumps, plain_loads = json.dumps, json.loads


class JSONEncoder(json.JSONEncoder):
    """The standard library's encoder with the typed values, for those who need its options."""

    def default(self, o: object) -> Any:
        """Return the value that is written in place of one that JSON lacks.

        Args:
            o: The value.

        Raises:
            TypeError: The type is not registered.
        """
        stand_in = codec.stand_in(o)
        if _looks_typed(stand_in):  # and is meant to
            return {name: _escaped(value) for name, value in stand_in.items()}
        return _escaped(stand_in)

    def encode(self, o: object) -> str:
        """Return a value as JSON text.

        Args:
            o: The value.
        """
        return super().encode(_escaped(o))

    def iterencode(self, o: object, _one_shot: bool = False) -> Iterator[str]:
        """Return an iterator over the pieces of a value's JSON text.

        Args:
            o: The value.
            _one_shot: Argument of the standard library's encoder, which calls this method with True from ``encode``.
        """
        return super().iterencode(o if _one_shot else _escaped(o), _one_shot)


def _looks_typed(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"__type__", "__value__"}


def _escaped(value: Any) -> Any:
    """Return the data with values that look like typed values made recognizable, as the core does it."""
    if isinstance(value, dict):
        escaped = {name: _escaped(item) for name, item in value.items()}
        return (
            {"__type__": "dict", "__value__": [list(pair) for pair in escaped.items()]}
            if _looks_typed(value)
            else escaped
        )
    if isinstance(value, (list, tuple)):
        return [_escaped(item) for item in value]
    return value


def dumps(
    s: object,
    _dumps: Callable[..., str] = plain_dumps,
    cls: type[json.JSONEncoder] = JSONEncoder,
    default_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> str:
    """Return a value as JSON text.

    Args:
        s: The value.
        _dumps: A replacement of ``json.dumps``.
        cls: The encoder's class.
        default_kwargs: Keywords of ``json.dumps`` that are not among the others.
        **kwargs: Keywords of ``json.dumps``; with any, its slower encoder does the work.
    """
    if cls is JSONEncoder and _dumps is plain_dumps and not default_kwargs and not kwargs:
        return codec.dumps(s)
    return _dumps(s, cls=cls, **{**(default_kwargs or {}), **kwargs})


def object_hook(o: dict[str, Any]) -> Any:
    """Return the value that a typed value stands for, or the dict itself.

    Args:
        o: The dict, as it was decoded.
    """
    return codec.revive(o)


def loads(
    s: str | bytes | bytearray | memoryview,
    _loads: Callable[..., Any] = plain_loads,
    decode_bytes: bool = True,
    object_hook: Callable[[dict[str, Any]], Any] = object_hook,
) -> Any:
    """Return the value that JSON text stands for.

    Args:
        s: The text; bytes are read as UTF-8.
        _loads: A replacement of ``json.loads``.
        decode_bytes: If False, such a replacement gets bytes as they are.
        object_hook: Gives the value of each dict.

    Raises:
        ValueError: It is no JSON.
    """
    if _loads is plain_loads and object_hook is _typed:
        return codec.loads(s)
    if isinstance(s, (bytearray, memoryview)) or (decode_bytes and isinstance(s, bytes)):
        s = bytes(s).decode("utf-8")
    return _loads(s, object_hook=object_hook)


_typed = object_hook


def register_type(
    t: type, marker: str | None, encoder: Callable[[Any], Any], decoder: Callable[[Any], Any] = lambda value: value
) -> None:
    """Register a type, so that its values are encoded and decoded.

    Args:
        t: The type.
        marker: Name of the type in the JSON text. If it is None, values are written without a name, and not decoded.
        encoder: Returns a value that JSON has for one of the type.
        decoder: Returns the value of the type for that one.
    """
    codec.register(t, marker, encoder, decoder)


#: What is text though it is no ``str``.
textual_types: tuple[type, ...] = ()

T = TypeVar("T")
EncodedT = TypeVar("EncodedT")
EncoderT = Callable[[Any], Any]
DecoderT = Callable[[Any], Any]


def _as(t: str, v: Any) -> dict[str, Any]:
    """Return what stands for a value in JSON text."""
    return {"__type__": t, "__value__": v}


class _Table(MutableMapping[Any, Any]):
    """One of the codec's tables, by kombu's name: a program that changes it gets what it wants."""

    # Not by the module's __getattr__: that takes 5 % more instructions for each `json.dumps`.

    def __init__(self, index: int) -> None:
        self._index = index

    @property
    def _table(self) -> dict[Any, Any]:
        return codec.tables()[self._index]

    def __getitem__(self, key: Any) -> Any:
        return self._table[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._table[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._table[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


_encoders, _decoders = _Table(0), _Table(1)
