"""JSON with typed values, as kombu writes it.

What JSON lacks travels as ``{"__type__": marker, "__value__": value}``. Text is written exactly as the standard
library's ``json.dumps`` does by default (ASCII only, ``", "`` and ``": "``), so that outputs can be compared byte
for byte. Reading is the reader's (reader.pyx); what it does not know goes to the standard library, whose verdict is
final.

The module is longer than others: one writer has all types, since each value may hold values of all the others.
"""

import sys

from binascii import a2b_base64, b2a_base64

from kombulite._core.reader import Irregular

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_CheckExact, PyDict_Next
from cpython.float cimport PyFloat_CheckExact
from cpython.list cimport PyList_CheckExact
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.mem cimport PyMem_Free
from cpython.ref cimport PyObject
from cpython.unicode cimport PyUnicode_CheckExact
from libc.math cimport fabs, isfinite, signbit
from libc.string cimport memcpy

from kombulite._core.buffer cimport Buffer, buffer_free, buffer_init, buffer_put2, buffer_reserve, buffer_write
from kombulite._core.reader cimport KEPT_KEYS, read_json
from kombulite._core.recursion cimport Py_LeaveRecursiveCall, enter_recursion


cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    const unsigned char* PyUnicode_1BYTE_DATA(object text)
    int PyUnicode_KIND(object text)
    void* PyUnicode_DATA(object text)
    object PyUnicode_New(Py_ssize_t size, unsigned int most)
    unsigned int PyUnicode_READ(int kind, const void* data, Py_ssize_t index)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    Py_ssize_t PyDict_GET_SIZE(object value)
    object PyUnicode_FromObject(object text)
    object PyUnicode_DecodeASCII(const char* text, Py_ssize_t size, const char* errors)
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    char* PyOS_double_to_string(double value, char format_code, int precision, int flags, int* kind) except NULL
    int Py_DTSF_ADD_DOT_0


# Not by Cython's declarations, with which the module ``datetime`` would load together with this one.
cdef extern from *:
    """
    #include <datetime.h>
    static int kombulite_load_datetime(void) {
        PyDateTime_IMPORT;
        return PyDateTimeAPI == NULL ? -1 : 0;
    }
    """
    int kombulite_load_datetime() except -1
    bint PyDateTime_CheckExact(object value)
    bint PyDate_CheckExact(object value)
    PyObject* PyDateTime_TimeZone_UTC
    int PyDateTime_GET_YEAR(object value)
    int PyDateTime_GET_MONTH(object value)
    int PyDateTime_GET_DAY(object value)
    int PyDateTime_DATE_GET_HOUR(object value)
    int PyDateTime_DATE_GET_MINUTE(object value)
    int PyDateTime_DATE_GET_SECOND(object value)
    int PyDateTime_DATE_GET_MICROSECOND(object value)
    PyObject* PyDateTime_DATE_GET_TZINFO(object value)
    int PyDateTime_DATE_GET_FOLD(object value)


# A type with this flag takes no attributes after it was made (CPython 3.10 and later).
cdef enum:
    TPFLAGS_IMMUTABLETYPE = 1 << 8

# The marker that a mapping gets which happens to look like a typed value; its value is a list of [key, value].
ESCAPED = "dict"


def _dict_of_pairs(pairs):
    # Text is what the writer makes, and its hashes are secret: numbers can be chosen so that all of them collide.
    if not all(type(name) is str for name, _ in pairs):
        raise TypeError("a name that is no text")
    return dict(pairs)


class UnknownType(ValueError):
    """A typed value whose marker nobody registered."""


class InvalidValue(ValueError):
    """A typed value that its decoder cannot read."""


# --- writing plain values ---------------------------------------------------------------------------------------

cdef inline bint needs_escape(unsigned int char) noexcept nogil:
    return char < 0x20 or char == 0x22 or char == 0x5C or char > 0x7E


cdef inline bint all_plain(unsigned long long word) noexcept nogil:
    """Whether none of eight ASCII characters needs an escape."""
    cdef unsigned long long ones = 0x0101010101010101
    cdef unsigned long long quote = word ^ (ones * 0x22)
    cdef unsigned long long backslash = word ^ (ones * 0x5C)
    cdef unsigned long long delete = word ^ (ones * 0x7F)
    # Each term has the high bit of some byte set if a byte is below 0x20, or one of the three.
    return not (((word - ones * 0x20) | (quote - ones) | (backslash - ones) | (delete - ones)) & (ones * 0x80))


cdef inline Py_ssize_t copy_plain(char* at, const unsigned char* data, Py_ssize_t length) noexcept nogil:
    """Copy ASCII characters, eight or four in one step, until one needs an escape. Returns how many were copied."""
    cdef unsigned long long word
    cdef unsigned int low, high
    cdef Py_ssize_t i = 0
    if length >= 8:
        while i < length:
            if i + 8 > length:
                i = length - 8  # the last step overlaps the one before
            memcpy(&word, data + i, 8)
            if not all_plain(word):
                break
            memcpy(at + i, &word, 8)
            i += 8
    elif length >= 4:
        memcpy(&low, data, 4)
        memcpy(&high, data + length - 4, 4)
        if all_plain(low | <unsigned long long> high << 32):
            memcpy(at, &low, 4)
            memcpy(at + length - 4, &high, 4)
            return length
    while i < length and not needs_escape(data[i]):
        at[i] = data[i]
        i += 1
    return i


cdef inline bint is_plain(const unsigned char* data, Py_ssize_t length) noexcept nogil:
    """Whether none of these ASCII characters needs an escape."""
    cdef unsigned long long word
    cdef unsigned int low, high
    cdef Py_ssize_t i = 0
    if length >= 8:
        while i < length:
            if i + 8 > length:
                i = length - 8  # the last step overlaps the one before
            memcpy(&word, data + i, 8)
            if not all_plain(word):
                return False
            i += 8
        return True
    if length >= 4:
        memcpy(&low, data, 4)
        memcpy(&high, data + length - 4, 4)
        return all_plain(low | <unsigned long long> high << 32)
    while i < length and not needs_escape(data[i]):
        i += 1
    return i == length


cdef Py_ssize_t put_utf16_escape(char* at, unsigned int unit) noexcept nogil:
    cdef const char* HEX_DIGITS = b"0123456789abcdef"
    at[0] = b"\\"
    at[1] = b"u"
    at[2] = HEX_DIGITS[unit >> 12]
    at[3] = HEX_DIGITS[(unit >> 8) & 15]
    at[4] = HEX_DIGITS[(unit >> 4) & 15]
    at[5] = HEX_DIGITS[unit & 15]
    return 6


cdef Py_ssize_t put_escaped(char* at, unsigned int char) noexcept nogil:
    """Write one character that cannot stand for itself; at most 12 bytes (a surrogate pair)."""
    cdef char short_form = 0
    if char == 0x22 or char == 0x5C:
        short_form = <char> char
    elif char == 0x0A:
        short_form = b"n"
    elif char == 0x0D:
        short_form = b"r"
    elif char == 0x09:
        short_form = b"t"
    elif char == 0x0C:
        short_form = b"f"
    elif char == 0x08:
        short_form = b"b"
    if short_form:
        at[0] = b"\\"
        at[1] = short_form
        return 2
    if char < 0x10000:
        return put_utf16_escape(at, char)
    char -= 0x10000
    put_utf16_escape(at, 0xD800 | (char >> 10))
    put_utf16_escape(at + 6, 0xDC00 | (char & 0x3FF))
    return 12


cdef int write_str(Buffer* out, object text) except -1:
    """Write a str (or a subclass of it) with its quotes."""
    cdef Py_ssize_t length = PyUnicode_GET_LENGTH(text)
    cdef Py_ssize_t i = 0
    cdef char* at
    cdef int kind
    cdef const void* data
    cdef unsigned int char
    buffer_reserve(out, length + 2)
    at = out.data + out.size
    at[0] = b'"'
    if PyUnicode_IS_COMPACT_ASCII(text):
        # The common case: nothing needs an escape.
        i = copy_plain(at + 1, PyUnicode_1BYTE_DATA(text), length)
        if i == length:
            at[i + 1] = b'"'
            out.size += length + 2
            return 0
    out.size += i + 1
    kind = PyUnicode_KIND(text)
    data = PyUnicode_DATA(text)
    while i < length:
        buffer_reserve(out, 12)
        char = PyUnicode_READ(kind, data, i)
        if needs_escape(char):
            out.size += put_escaped(out.data + out.size, char)
        else:
            out.data[out.size] = <char> char
            out.size += 1
        i += 1
    return buffer_write(out, b'"', 1)


cdef Py_ssize_t size_of_str(object text) noexcept:
    """Bytes that ``write_str`` writes; -1 for text with surrogates, which reading that may change: it joins pairs."""
    cdef Py_ssize_t length = PyUnicode_GET_LENGTH(text)
    cdef Py_ssize_t size = length + 2, i
    cdef int kind
    cdef const void* data
    cdef unsigned int char
    cdef char[12] escaped
    if PyUnicode_IS_COMPACT_ASCII(text) and is_plain(PyUnicode_1BYTE_DATA(text), length):
        return size
    kind = PyUnicode_KIND(text)
    data = PyUnicode_DATA(text)
    for i in range(length):
        char = PyUnicode_READ(kind, data, i)
        if needs_escape(char):
            if 0xD800 <= char < 0xE000:
                return -1
            size += put_escaped(escaped, char) - 1
    return size


cdef int write_digits(Buffer* out, unsigned long long value) except -1:
    cdef char[20] digits  # as many as 64 bits have
    cdef int place = 20
    while value >= 10:
        place -= 1
        digits[place] = <char> (48 + value % 10)
        value //= 10
    place -= 1
    digits[place] = <char> (48 + value)
    return buffer_write(out, digits + place, 20 - place)


cdef int write_int(Buffer* out, object value) except -1:
    cdef int overflow = 0
    cdef long long number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow:
        # Beyond 64 bits: the slow way, for subclasses too.
        digits = int.__repr__(value).encode("ascii")
        return buffer_write(out, <const char*> digits, len(digits))
    if number < 0:
        buffer_write(out, b"-", 1)
        return write_digits(out, 0 - <unsigned long long> number)
    return write_digits(out, <unsigned long long> number)


cdef int write_float(Buffer* out, double value) except -1:
    cdef double magnitude = fabs(value)
    cdef unsigned long long scaled
    cdef unsigned int fraction, digit
    cdef char* text
    if magnitude < 1e9 and (magnitude >= 1e-4 or magnitude == 0):
        # A double that is a decimal fraction of six places or fewer has that fraction as its shortest form: it has no
        # more than 15 digits, and the quotient of two exact numbers is what parsing it gives. Prices, shares, seconds
        # are of that kind; it is some eight times as fast as the general way.
        scaled = <unsigned long long> (magnitude * 1e6 + 0.5)
        if <double> scaled / 1e6 == magnitude:
            if signbit(value):
                buffer_write(out, b"-", 1)
            write_digits(out, scaled // 1000000)
            fraction = <unsigned int> (scaled % 1000000)
            buffer_reserve(out, 8)
            out.data[out.size] = b"."
            out.size += 1
            while True:
                fraction *= 10
                digit = fraction // 1000000
                fraction -= digit * 1000000
                out.data[out.size] = <char> (48 + digit)
                out.size += 1
                if fraction == 0:
                    return 0
    if not isfinite(value):
        if value != value:
            return buffer_write(out, b"NaN", 3)
        if value > 0:
            return buffer_write(out, b"Infinity", 8)
        return buffer_write(out, b"-Infinity", 9)
    text = PyOS_double_to_string(value, b"r", 0, Py_DTSF_ADD_DOT_0, NULL)
    try:
        return buffer_write(out, text, len(text))
    finally:
        PyMem_Free(text)


# --- the types that JSON lacks ----------------------------------------------------------------------------------

cdef dict stand_in_of_bytes(object value):
    try:
        return {"__type__": "bytes", "__value__": value.decode("utf-8")}
    except UnicodeDecodeError:
        return {"__type__": "base64", "__value__": b2a_base64(value, newline=False).decode("ascii")}


def _bytes_of_text(value):
    return value.encode("utf-8")


def _bytes_of_base64(value):
    return a2b_base64(value.encode("ascii"))


# Of the module ``datetime``, once it is there.
isoformat = utc = None
# Names of the types that ``keeps`` knows, and their markers.
cdef frozenset KEPT = frozenset(("datetime", "date", "bytes", "base64"))


def text_of_datetime(value):
    """What ``datetime.isoformat`` returns, which takes ten times as long, most of it for a general format."""
    cdef char[32] text
    cdef char* at = text
    cdef int microsecond
    if isoformat is None:
        standard_types()  # what tells a datetime is not there before
    if not PyDateTime_CheckExact(value):
        return isoformat(value)
    zone = <object> PyDateTime_DATE_GET_TZINFO(value)
    if zone is not None and zone is not utc:
        return isoformat(value)
    at = put_digits(at, PyDateTime_GET_YEAR(value), 4, b"-")
    at = put_digits(at, PyDateTime_GET_MONTH(value), 2, b"-")
    at = put_digits(at, PyDateTime_GET_DAY(value), 2, b"T")
    at = put_digits(at, PyDateTime_DATE_GET_HOUR(value), 2, b":")
    at = put_digits(at, PyDateTime_DATE_GET_MINUTE(value), 2, b":")
    at = put_digits(at, PyDateTime_DATE_GET_SECOND(value), 2, b".")
    microsecond = PyDateTime_DATE_GET_MICROSECOND(value)
    if microsecond:
        at = put_digits(at, microsecond, 6, b"+")
    at -= 1  # nothing follows but the zone
    if zone is not None:
        memcpy(at, b"+00:00", 6)
        at += 6
    return PyUnicode_DecodeASCII(text, at - text, NULL)


cdef char* put_digits(char* at, int number, int digits, char behind) noexcept:
    """Write a number of so many digits, and a character behind it. Returns where that ends."""
    cdef int place
    for place in range(digits - 1, -1, -1):
        at[place] = <char> (c"0" + number % 10)
        number //= 10
    at[digits] = behind
    return at + digits + 1


def standard_types():
    """The types that every codec knows: (type, marker, encoder, decoder). Their modules cost much to import, and most
    programs never send one of them."""
    global isoformat, utc
    from datetime import date, datetime, time, timezone
    from decimal import Decimal
    from uuid import UUID
    kombulite_load_datetime()
    isoformat, utc = datetime.isoformat, timezone.utc
    return [
        (datetime, "datetime", text_of_datetime, datetime.fromisoformat),
        (date, "date", date.isoformat, lambda value: datetime.fromisoformat(value).date()),
        (time, "time", time.isoformat, time.fromisoformat),
        (Decimal, "decimal", str, Decimal),
        (UUID, "uuid", lambda value: {"hex": value.hex}, lambda value: UUID(**value)),
    ]


@cython.final
cdef class JSON:
    """Encoder and decoder of JSON with typed values; one instance holds one set of registered types.

    Safe to share between threads. Registering is not meant for hot paths.
    """

    def __cinit__(self):
        self._encoders = {}
        self._found = {}
        self._immutable = {}
        self._keys = [None] * KEPT_KEYS
        self.keeps_standard_types = True
        self._decoders = {ESCAPED: _dict_of_pairs, "bytes": _bytes_of_text, "base64": _bytes_of_base64}

    def register(self, kind, marker, encoder, decoder=None):
        """Register a type.

        Args:
            kind: The type; its subclasses are encoded as it is.
            marker: Name of the type in JSON (None: the stand-in is written untyped, and nothing is decoded).
            encoder: Function from a value to its stand-in in JSON.
            decoder: Function from the stand-in to the value.

        Raises:
            TypeError: ``kind`` is no type.
        """
        if not isinstance(kind, type):
            raise TypeError(f"a type is registered, not {kind!r}")
        self._learn_standard_types()
        if kind.__name__ in KEPT or marker in KEPT:
            self.keeps_standard_types = False
        self._encoders[kind] = (marker, encoder)
        self._found = {}
        self._immutable = {}
        if marker is not None:
            self._decoders[marker] = decoder

    def tables(self):
        """The registered types, to be looked at and changed: (marker, encoder) by type, decoder by marker."""
        self._learn_standard_types()
        self._found = {}
        self._immutable = {}
        self.keeps_standard_types = False
        return self._encoders, self._decoders

    cdef int _learn_standard_types(self) except -1:
        if not self._encoders:
            types = standard_types()
            self._decoders = {marker: decoder for _, marker, _, decoder in types} | self._decoders
            # Last, and in one step: another thread sees all of them or none.
            self._encoders = {kind: (marker, encoder) for kind, marker, encoder, _ in types}
        return 0

    # --- encoding

    def dumps(self, value):
        """Return a value as JSON text (str, ASCII only).

        Args:
            value: The value.

        Raises:
            TypeError: A value or key is of no known type.
            RecursionError: The value is nested too deep, or in itself.
        """
        cdef Buffer out
        buffer_init(&out)
        try:
            self.write(&out, value)
            text = PyUnicode_New(out.size, 127)
            memcpy(PyUnicode_DATA(text), out.data, out.size)
            return text
        finally:
            buffer_free(&out)

    cpdef bytes dump_bytes(self, value):
        """Return a value as JSON text (bytes, ASCII only), as ``dumps`` does.

        Args:
            value: The value.
        """
        cdef Buffer out
        buffer_init(&out)
        try:
            self.write(&out, value)
            return PyBytes_FromStringAndSize(out.data, out.size)
        finally:
            buffer_free(&out)

    def stand_in(self, value):
        """Return the stand-in for a value that plain JSON lacks.

        Args:
            value: The value.

        Raises:
            TypeError: There is none.
        """
        if type(value) is bytes:
            return stand_in_of_bytes(value)
        # In this order: an object's own wish, Django's lazy text, the registered types.
        own = getattr(value, "__json__", None)
        if own is not None:
            return own()
        django = sys.modules.get("django.utils.functional")
        if django is not None and isinstance(value, django.Promise):
            return str(value)
        encoder = self._encoder_of(type(value))
        if encoder is None:
            if isinstance(value, bytes):
                return stand_in_of_bytes(value)
            raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
        marker, encode = encoder
        if marker is None:
            return encode(value)
        return {"__type__": marker, "__value__": encode(value)}

    cdef bint keeps(self, object value) except -1:
        """Whether a value of a type that JSON lacks is what reading its text gives, and cannot change.

        The types are those of C: the names in their modules may stand for others, as where a test stops the clock.
        """
        if not self.keeps_standard_types:
            return False
        if PyBytes_CheckExact(value):
            return True
        if isoformat is None:
            standard_types()
        if not PyDateTime_CheckExact(value):
            return PyDate_CheckExact(value)
        zone = PyDateTime_DATE_GET_TZINFO(value)
        return (zone == <PyObject*> None or zone == PyDateTime_TimeZone_UTC) and not PyDateTime_DATE_GET_FOLD(value)

    cdef object _encoder_of(self, object kind):
        # Subclasses are looked up once; registering anew forgets what was found.
        cdef dict found = self._found
        cdef dict immutable = self._immutable
        encoder = found.get(kind, self)
        if encoder is self:
            self._learn_standard_types()
            encoder = None
            for base in kind.__mro__ + tuple(self._encoders):  # the closest class first, then abstract ones
                if base in self._encoders and issubclass(kind, base):
                    encoder = self._encoders[base]
                    break
            found[kind] = encoder
            if (
                encoder is not None and encoder[0] is not None and kind.__flags__ & TPFLAGS_IMMUTABLETYPE
                and not hasattr(kind, "__json__")
            ):
                immutable[kind] = b'{"__type__": %b, "__value__": ' % self.dump_bytes(encoder[0]), encoder[1]
        return encoder

    cdef int write(self, Buffer* out, object value) except -1:
        if PyUnicode_CheckExact(value):
            return write_str(out, value)
        if PyLong_CheckExact(value):
            return write_int(out, value)
        if value is None:
            return buffer_write(out, b"null", 4)
        if value is True:
            return buffer_write(out, b"true", 4)
        if value is False:
            return buffer_write(out, b"false", 5)
        if PyFloat_CheckExact(value):
            return write_float(out, value)
        _held = value  # writing it may run code that removes it from the container it came from
        enter_recursion(b" while encoding JSON")
        try:
            if PyDict_CheckExact(value):
                return self._write_dict(out, <dict> value)
            if PyList_CheckExact(value):
                return self._write_list(out, <list> value)
            if isinstance(value, str):
                return write_str(out, value)
            if isinstance(value, int):
                return write_int(out, value)
            if isinstance(value, float):
                return write_float(out, value)
            if isinstance(value, dict):
                return self._write_dict(out, dict(value.items()))
            if isinstance(value, (list, tuple)):
                return self._write_list(out, list(value))
            return self._write_stand_in(out, value)
        finally:
            Py_LeaveRecursiveCall()

    cdef int _write_list(self, Buffer* out, list value) except -1:
        cdef Py_ssize_t size = len(value)
        cdef Py_ssize_t comma = 0
        buffer_write(out, b"[", 1)
        for item in value:
            self.write(out, item)
            buffer_put2(out, b",", b" ")
            comma = 2
            if len(value) > size:  # an item's own way to JSON may add to it, for ever
                raise RuntimeError("list changed size during iteration")
        out.size -= comma  # the last one
        return buffer_write(out, b"]", 1)

    cdef int _write_dict(self, Buffer* out, dict value) except -1:
        cdef Py_ssize_t size = PyDict_GET_SIZE(value)
        cdef Py_ssize_t left = size  # keys that are put in again would come for ever
        cdef Py_ssize_t position = 0
        cdef Py_ssize_t comma = 0
        cdef PyObject* key
        cdef PyObject* item
        if size == 2 and "__type__" in value and "__value__" in value:
            # Application data, not a typed value of ours: it must not be mistaken for one on the other side.
            buffer_write(out, b'{"__type__": "dict", "__value__": ', 34)
            self.write(out, [list(pair) for pair in value.items()])
            return buffer_write(out, b"}", 1)
        buffer_write(out, b"{", 1)
        with cython.critical_section(value):
            while PyDict_Next(value, &position, &key, &item):
                self._write_key(out, <object> key)
                self.write(out, <object> item)
                buffer_put2(out, b",", b" ")
                comma = 2
                left -= 1
                if PyDict_GET_SIZE(value) != size or left < 0:
                    what = "keys" if left < 0 else "size"
                    raise RuntimeError(f"dictionary changed {what} during iteration")
        out.size -= comma  # the last one
        return buffer_write(out, b"}", 1)

    cdef int _write_key(self, Buffer* out, object key) except -1:
        if PyUnicode_CheckExact(key) or isinstance(key, str):
            write_str(out, key)
        elif isinstance(key, (int, float)) or key is None:
            buffer_write(out, b'"', 1)
            self.write(out, key)
            buffer_write(out, b'"', 1)
        else:
            raise TypeError(f"keys must be str, int, float, bool or None, not {type(key).__name__}")
        return buffer_put2(out, b":", b" ")

    cdef int _write_typed(self, Buffer* out, object value, tuple encoder) except -1:
        """Write a value of a type that cannot have its own way to JSON: datetimes, decimals."""
        cdef bytes opening = <bytes?> encoder[0]
        encode = encoder[1]
        buffer_write(out, PyBytes_AS_STRING(opening), PyBytes_GET_SIZE(opening))
        self.write(out, encode(value))
        return buffer_write(out, b"}", 1)

    cdef int _write_stand_in(self, Buffer* out, object value) except -1:
        cdef dict immutable = self._immutable  # held: a metaclass may say what the hash of a type is
        encoder = immutable.get(type(value))
        if encoder is not None:
            return self._write_typed(out, value, <tuple?> encoder)
        # A typed value is written by hand: as a dict it would be taken for application data and escaped.
        stand_in = self.stand_in(value)
        if type(stand_in) is dict and len(<dict> stand_in) == 2 and "__type__" in <dict> stand_in:
            marker = (<dict> stand_in)["__type__"]
            if "__value__" in <dict> stand_in:
                buffer_write(out, b'{"__type__": ', 13)
                self.write(out, marker)
                buffer_write(out, b', "__value__": ', 15)
                self.write(out, (<dict> stand_in)["__value__"])
                return buffer_write(out, b"}", 1)
        return self.write(out, stand_in)

    # --- decoding

    cpdef object loads(self, data):
        """Return the value of JSON text.

        Args:
            data: The text: str, or UTF-8 as bytes, bytearray or memoryview.

        Raises:
            ValueError: It is not JSON (UnicodeDecodeError: not UTF-8), or, as ``UnknownType`` or ``InvalidValue``, it
                has a typed value that cannot be decoded.
            RecursionError: It is nested too deep.
        """
        cdef const char* text
        cdef Py_ssize_t size
        if not PyBytes_CheckExact(data) and not PyUnicode_CheckExact(data):
            data = PyUnicode_FromObject(data) if isinstance(data, str) else bytes(memoryview(data))
        try:
            if PyBytes_CheckExact(data):
                return read_json(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), self._keys, self)
            text = PyUnicode_AsUTF8AndSize(data, &size)
            return read_json(text, size, self._keys, self)
        except (Irregular, UnicodeEncodeError):
            pass
        import json  # most texts are regular, and it costs much to import
        return json.loads(data if isinstance(data, str) else data.decode("utf-8"), object_hook=self.revive)

    def revive(self, dict value not None):
        """Return the value that a typed value stands for; any other dict as it is. For ``object_hook``.

        Args:
            value: The dict.
        """
        if len(value) != 2 or "__type__" not in value or "__value__" not in value:
            return value
        marker = value["__type__"]
        self._learn_standard_types()
        decoder = self._decoders.get(marker) if isinstance(marker, str) else None
        if decoder is None:
            raise UnknownType(f"no type is registered for the marker {marker!r:.80}")
        try:
            return decoder(value["__value__"])
        except Exception as error:
            raise InvalidValue(f"cannot decode {value['__value__']!r:.80} as {marker}: {error!r:.200}") from error
