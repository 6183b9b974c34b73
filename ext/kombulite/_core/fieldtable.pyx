"""AMQP field tables: the values of headers and arguments.

Format: AMQP 0-9-1 section 4.2.5.5, with the types as RabbitMQ has them (its table of 0-9-1 errata), which differ from
the specification's. A table is a length in bytes, then pairs of name and value; a value starts with an octet for its
type.
"""

import datetime as dt
from collections.abc import Mapping

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from kombulite._core.buffer cimport Buffer, buffer_free, buffer_init, buffer_write
from kombulite._core.wire cimport (
    Cursor, poke32, read8, read16, read32, read64, read_short, read_span, utf8_of, write8, write32, write64,
    write_short,
)

cdef enum:
    DEEPEST = 64  # tables and arrays within one another

EPOCH = dt.datetime(1970, 1, 1)
EPOCH_UTC = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)


class ProtocolError(ValueError):
    """Bytes that AMQP does not allow. ``reply_code``: AMQP's number for it (section 1.1)."""

    reply_code = 501


class MalformedFrame(ProtocolError):
    """A frame that is none: an unknown type, a wrong end, too large."""

    reply_code = 501


class MalformedValue(ProtocolError):
    """A frame whose content cannot be read: a field, a property or a table is broken."""

    reply_code = 502


class UnexpectedFrame(ProtocolError):
    """A frame out of sequence."""

    reply_code = 505


class NotEncodable(ValueError):
    """A value that AMQP has no form for."""


def encode_table(table):
    """The bytes of a field table (a dict with text as names), its length in front. Raises NotEncodable."""
    cdef Buffer out
    buffer_init(&out)
    try:
        write_table(&out, table, 0)
        return PyBytes_FromStringAndSize(out.data, out.size)
    except (TypeError, ValueError, OverflowError) as error:
        raise NotEncodable(str(error)) from error
    finally:
        buffer_free(&out)


def decode_table(bytes data not None):
    """The dict in the bytes of a field table. Raises MalformedValue."""
    cdef Cursor cursor
    cursor.at = <const uint8_t*> PyBytes_AS_STRING(data)
    cursor.end = cursor.at + len(data)
    try:
        table = read_table(&cursor, 0)
        if cursor.at != cursor.end:
            raise ValueError(f"{cursor.end - cursor.at} bytes follow the table")
        return table
    except (ValueError, OverflowError) as error:
        raise MalformedValue(f"malformed table: {error}") from error


# --- writing ------------------------------------------------------------------------------------------------------


cdef int write_table(Buffer* out, object table, int depth) except -1:
    cdef Py_ssize_t start = out.size
    if depth > DEEPEST:
        raise ValueError(f"tables are nested more than {DEEPEST} deep")
    if not isinstance(table, (dict, Mapping)):
        raise TypeError(f"a table is a dict, not {type(table).__name__}")
    write32(out, 0)
    for name, value in table.items():
        write_short(out, name, "the name of a field")
        write_value(out, value, depth)
    return close_length(out, start)


cdef int write_array(Buffer* out, object array, int depth) except -1:
    cdef Py_ssize_t start = out.size
    if depth > DEEPEST:
        raise ValueError(f"arrays are nested more than {DEEPEST} deep")
    write32(out, 0)
    for value in array:
        write_value(out, value, depth)
    return close_length(out, start)


cdef int close_length(Buffer* out, Py_ssize_t start) except -1:
    """Fill in the length of what was written behind ``start``."""
    cdef Py_ssize_t size = out.size - start - 4
    if size > 0xffffffff:
        raise ValueError("a table or text of more than 4 GiB")
    poke32(out.data + start, <uint32_t> size)
    return 0


cdef bint is_text(bytes data) except -1:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


cdef int write_value(Buffer* out, object value, int depth) except -1:
    cdef bytes data
    cdef double number
    cdef uint64_t bits
    if isinstance(value, (str, bytes)):
        data = utf8_of(value, "")
        write8(out, b"x" if isinstance(value, bytes) and not is_text(data) else b"S")
        if len(data) > 0xffffffff:
            raise ValueError("a text of more than 4 GiB")
        write32(out, <uint32_t> len(data))
        buffer_write(out, <const char*> data, len(data))
    elif isinstance(value, bool):
        write8(out, b"t")
        write8(out, value is True)
    elif isinstance(value, int):
        if -2147483647 <= value <= 2147483647:
            write8(out, b"I")
            write32(out, <uint32_t> <int32_t> value)
        else:
            if not -0x8000000000000000 <= value <= 0x7fffffffffffffff:
                raise ValueError("a number of more than 64 bits")
            write8(out, b"l")
            write64(out, <uint64_t> <int64_t> value)
    elif value is None:
        write8(out, b"V")
    elif isinstance(value, float):
        number = value
        memcpy(&bits, &number, 8)
        write8(out, b"d")
        write64(out, bits)
    elif isinstance(value, dict):
        write8(out, b"F")
        write_table(out, value, depth + 1)
    elif isinstance(value, (list, tuple)):
        write8(out, b"A")
        write_array(out, value, depth + 1)
    elif isinstance(value, dt.datetime):
        write8(out, b"T")
        write64(out, <uint64_t> timestamp_of(value))
    elif isinstance(value, decimal_type()):
        write_decimal(out, value)
    else:
        raise TypeError(f"AMQP has no form for {type(value).__name__}")
    return 0


cdef object decimal_type():
    from decimal import Decimal  # seldom needed, and slow to import

    return Decimal


cdef int64_t timestamp_of(object moment) except? -1:
    """Whole seconds since 1970; a time without a zone is UTC."""
    seconds = (moment - (EPOCH if moment.tzinfo is None else EPOCH_UTC)) // dt.timedelta(seconds=1)
    if seconds < 0:
        raise ValueError("AMQP has no time before 1970")
    return seconds


cdef int write_decimal(Buffer* out, object value) except -1:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise ValueError(f"AMQP has no form for the decimal {value}")
    if exponent < -255 or exponent > 10 or len(digits) > 10:
        raise ValueError("a decimal has at most 32 bits and 255 places")
    unscaled = int("".join(map(str, digits))) * (-1 if sign else 1) * 10 ** max(exponent, 0)
    if not -0x80000000 <= unscaled <= 0x7fffffff:
        raise ValueError("a decimal has at most 32 bits and 255 places")
    write8(out, b"D")
    write8(out, max(-exponent, 0))
    write32(out, <uint32_t> <int32_t> unscaled)
    return 0


# --- reading ------------------------------------------------------------------------------------------------------


cdef dict read_table(Cursor* cursor, int depth):
    cdef Cursor inner = read_span(cursor, read32(cursor))
    cdef dict table = {}
    if depth > DEEPEST:
        raise ValueError(f"tables are nested more than {DEEPEST} deep")
    while inner.at != inner.end:
        name = read_short(&inner)
        table[name] = read_value(&inner, depth)
    return table


cdef list read_array(Cursor* cursor, int depth):
    cdef Cursor inner = read_span(cursor, read32(cursor))
    cdef list array = []
    if depth > DEEPEST:
        raise ValueError(f"arrays are nested more than {DEEPEST} deep")
    while inner.at != inner.end:
        array.append(read_value(&inner, depth))
    return array


cdef object read_value(Cursor* cursor, int depth):
    cdef unsigned char tag = read8(cursor)
    if tag == b"S":
        return read_text(cursor)
    if tag == b"I":
        return <int32_t> read32(cursor)
    if tag == b"t":
        return read8(cursor) != 0
    if tag == b"l" or tag == b"L":  # RabbitMQ has both signed
        return <int64_t> read64(cursor)
    if tag == b"V":
        return None
    if tag == b"F":
        return read_table(cursor, depth + 1)
    if tag == b"A":
        return read_array(cursor, depth + 1)
    if tag == b"d":
        return read_double(cursor)
    if tag == b"T":
        return read_timestamp(cursor)
    if tag == b"b":
        return <int8_t> read8(cursor)
    if tag == b"B":
        return read8(cursor)
    if tag == b"s" or tag == b"U":  # the specification has U for it
        return <int16_t> read16(cursor)
    if tag == b"u":
        return read16(cursor)
    if tag == b"i":
        return read32(cursor)
    if tag == b"f":
        return read_float(cursor)
    if tag == b"D":
        return read_decimal(cursor)
    if tag == b"x":
        return read_bytes(cursor)
    raise ValueError(f"unknown type {bytes([tag])!r} of a field")


cdef bytes read_bytes(Cursor* cursor):
    cdef Cursor span = read_span(cursor, read32(cursor))
    return PyBytes_FromStringAndSize(<const char*> span.at, span.end - span.at)


cdef object read_text(Cursor* cursor):
    """Text, or bytes where it is none."""
    cdef Cursor span = read_span(cursor, read32(cursor))
    try:
        return PyUnicode_DecodeUTF8(<const char*> span.at, span.end - span.at, NULL)
    except UnicodeDecodeError:
        return PyBytes_FromStringAndSize(<const char*> span.at, span.end - span.at)


cdef double read_double(Cursor* cursor) except? -1:
    cdef uint64_t bits = read64(cursor)
    cdef double number
    memcpy(&number, &bits, 8)
    return number


cdef double read_float(Cursor* cursor) except? -1:
    cdef uint32_t bits = read32(cursor)
    cdef float number
    memcpy(&number, &bits, 4)
    return number


cdef object read_timestamp(Cursor* cursor):
    """A time in UTC, without a zone; the number of seconds where Python has no such year."""
    seconds = read64(cursor)
    try:
        return EPOCH + dt.timedelta(seconds=seconds)
    except OverflowError:
        return seconds


cdef object read_decimal(Cursor* cursor):
    cdef int scale = read8(cursor)
    cdef int64_t unscaled = <int32_t> read32(cursor)
    digits = tuple([int(digit) for digit in str(abs(unscaled))])
    return decimal_type()((unscaled < 0, digits, -scale))  # exact, whatever the decimal context is
