"""Reading the bodies of AMQP 1.0: the sections that RabbitMQ 4 hands to a client of AMQP 0-9-1 as they are.

The numbers are those of AMQP 1.0, part 1 (types) and section 3.2 (the sections of a message).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from kombulite.utils.records import NamedTuple

if TYPE_CHECKING:
    from uuid import UUID

__all__ = ["Body", "read_body"]

DATA, SEQUENCE, VALUE = 0x75, 0x76, 0x77  # descriptors of sections
MAX_DEPTH = 64  # lists, maps and arrays within one another

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Body(NamedTuple):
    """A body that was read.

    Attributes:
        is_data: True if the value is the bytes of data sections, which the content type is about.
        value: The value.
    """

    is_data: bool
    value: Any


def read_body(data: bytes) -> Body:
    """Return what is in the sections of a body.

    That is the value of the one section of a value; the elements of all sequences as one list; the bytes of all data
    sections as one. Numbers, text (also symbols), bytes, lists (also arrays) and maps become Python's own, timestamps
    a ``datetime``, UUIDs a ``UUID``.

    Args:
        data: The encoded body of an AMQP 1.0 message.

    Raises:
        ValueError: The body is malformed, nested deeper than 64, or has a type that there is none for (decimals,
            described values).
    """
    reader = _Reader(bytes(data))
    sections = []
    while reader.has_more:
        sections.append(reader.section())
    if len(sections) == 1 and sections[0][0] == VALUE:
        return Body(False, sections[0][1])
    kinds = {kind for kind, _ in sections}
    if kinds == {DATA} and all(type(value) is bytes for _, value in sections):
        return Body(True, b"".join(value for _, value in sections))
    if kinds == {SEQUENCE} and all(type(value) is list for _, value in sections):
        return Body(False, [element for _, value in sections for element in value])
    raise ValueError("no value, sequences or data, but a mix of sections")


def _timestamp(milliseconds: int) -> datetime:
    try:
        return EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError as error:
        raise ValueError(f"a timestamp of {milliseconds} ms: {error}") from None


def _is_true(octet: int) -> bool:
    if octet > 1:
        raise ValueError(f"a boolean of {octet}")
    return bool(octet)


def _utf8(octets: bytes) -> str:
    return octets.decode()


def _ascii(octets: bytes) -> str:
    return octets.decode("ascii")


def _character(octets: bytes) -> str:
    return octets.decode("utf-32-be")


def _uuid(octets: bytes) -> UUID:
    from uuid import UUID  # few bodies need it

    return UUID(bytes=octets)


#: Types of no octets.
CONSTANTS: dict[int, Any] = {0x40: None, 0x41: True, 0x42: False, 0x43: 0, 0x44: 0}
#: Types of a fixed number of octets: how they are packed, and what is made of that.
FIXED: dict[int, tuple[struct.Struct, Callable[[Any], Any] | None]] = {
    code: (struct.Struct(f">{packed}"), make)
    for code, packed, make in (
        *((0x50, "B", None), (0x51, "b", None), (0x52, "B", None), (0x53, "B", None), (0x54, "b", None)),
        *((0x55, "b", None), (0x56, "B", _is_true), (0x60, "H", None), (0x61, "h", None), (0x70, "I", None)),
        *((0x71, "i", None), (0x72, "f", None), (0x73, "4s", _character), (0x80, "Q", None), (0x81, "q", None)),
        *((0x82, "d", None), (0x83, "q", _timestamp), (0x98, "16s", _uuid)),
    )
}
#: Types whose size is in front of them, as one octet or (0x10 above) as four.
VARIABLE: dict[int, Callable[[bytes], Any]] = {0xA0: bytes, 0xA1: _utf8, 0xA3: _ascii}
EMPTY_LIST, LIST, MAP, ARRAY = 0x45, 0xC0, 0xC1, 0xE0  # the last three as the above


class _Reader:
    """A position in the octets of a body."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._depth = 0

    @property
    def has_more(self) -> bool:
        """Whether there is more to read."""
        return self._at < len(self._data)

    def section(self) -> tuple[int, Any]:
        """Return the descriptor of the next section, and its value."""
        if self._number(0x50) != 0:
            raise ValueError("a section without a descriptor")
        code = self._number(0x50)
        if code not in (0x53, 0x80):
            raise ValueError(f"a section whose descriptor is of the type {code:#04x}")
        kind = self._number(code)
        if kind not in (DATA, SEQUENCE, VALUE):
            raise ValueError(f"a section with the descriptor {kind:#x}")
        return kind, self._value(self._number(0x50))

    def _take(self, size: int) -> bytes:
        start, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise ValueError("it ends too early")
        return self._data[start : self._at]

    def _number(self, code: int) -> Any:
        packed, make = FIXED[code]
        (found,) = packed.unpack(self._take(packed.size))
        return found if make is None else make(found)

    def _value(self, code: int) -> Any:
        if code in CONSTANTS:
            return CONSTANTS[code]
        if code in FIXED:
            return self._number(code)
        is_wide = code & 0x10
        size_code = 0x70 if is_wide else 0x50
        narrow = code - is_wide
        if narrow in VARIABLE:
            return VARIABLE[narrow](self._take(self._number(size_code)))
        if code == EMPTY_LIST:
            return []
        if narrow in (LIST, MAP, ARRAY):
            return self._nested(narrow, size_code)
        raise ValueError(f"a value of the type {code:#04x}")

    def _nested(self, kind: int, size_code: int) -> Any:
        size = self._number(size_code)
        end = self._at + size
        count = self._number(size_code)
        if end > len(self._data) or count > size:  # elements of no octets would cost the sender nothing
            raise ValueError(f"{count} elements in {size} octets")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        if kind == ARRAY:
            code = self._number(0x50)
            elements = [self._value(code) for _ in range(count)]
        else:
            elements = [self._value(self._number(0x50)) for _ in range(count)]
        self._depth -= 1
        if self._at != end:
            raise ValueError(f"{count} elements are not {size} octets")
        return self._map(elements) if kind == MAP else elements

    @staticmethod
    def _map(elements: list[Any]) -> dict[Any, Any]:
        pairs = zip(elements[::2], elements[1::2], strict=True)
        try:
            found = dict(pairs)
        except TypeError as error:
            raise ValueError(f"a key of a map: {error}") from None
        if 2 * len(found) != len(elements):
            raise ValueError("a key of a map twice")
        return found
