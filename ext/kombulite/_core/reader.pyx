"""Reading plain JSON, fast where it is regular.

The reader knows the JSON that programs write: RFC 8259, with numbers and strings of ordinary kinds. Whatever else it
meets (NaN, lone surrogates, integers beyond 18 digits, infinite numbers, broken input) it does not judge: it raises
``Irregular``, and the caller asks the standard library, which accepts or refuses it.
"""

from cpython.dict cimport PyDict_SetItem
from cpython.list cimport PyList_Append
from cpython.ref cimport PyObject
from libc.string cimport memcmp, memcpy

from kombulite._core.buffer cimport Buffer, buffer_free, buffer_init, buffer_reserve
from kombulite._core.recursion cimport Py_LeaveRecursiveCall, enter_recursion


cdef extern from "Python.h":
    object PyUnicode_New(Py_ssize_t size, unsigned int most)
    void* PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    object PyUnicode_DecodeASCII(const char* text, Py_ssize_t size, const char* errors)
    object PyUnicode_DecodeUTF8(const char* text, Py_ssize_t size, const char* errors)
    double PyOS_string_to_double(const char* text, char** end, PyObject* overflow) except? -1.0
    Py_ssize_t PyDict_GET_SIZE(object value)


class Irregular(Exception):
    """Not for this reader."""


cdef enum:
    LONGEST_KEPT_KEY = 32  # characters of an object's key that is worth remembering


cdef struct Cursor:
    const unsigned char* at
    const unsigned char* end


cdef extern from *:
    """
    /* Each of them is exact in a double. */
    static const double kombulite_powers[18] = {
        1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17
    };

    /* All of ASCII but control characters, the quote and the backslash. */
    #define FOUR 1, 1, 1, 1
    #define SIXTEEN FOUR, FOUR, FOUR, FOUR
    static const unsigned char kombulite_plain[256] = {
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        1, 1, 0, 1, FOUR, FOUR, FOUR, SIXTEEN, SIXTEEN, FOUR, FOUR, FOUR, 0, 1, 1, 1, SIXTEEN, SIXTEEN
    };
    """
    const double* kombulite_powers
    const unsigned char* kombulite_plain


cdef int irregular() except -1:
    raise Irregular


cdef object read_json(const char* text, Py_ssize_t size, list keys, object codec):
    """The value that JSON text (UTF-8) stands for.

    ``keys``: a list of ``KEPT_KEYS`` places in which object keys are remembered from one call to the next.
    ``codec.revive(dict)`` replaces each object of exactly the keys ``__type__`` and ``__value__``, innermost first.
    Raises Irregular, RecursionError, and what ``revive`` raises.
    """
    cdef Cursor cursor
    cursor.at = <const unsigned char*> text
    cursor.end = cursor.at + size
    value = read_value(&cursor, keys, codec)
    skip_space(&cursor)
    if cursor.at != cursor.end:
        irregular()
    return value


cdef dict read_object_but(str name, Span* apart, const char* text, Py_ssize_t size, list keys, object codec):
    """The object that JSON text stands for, as ``read_json``; one member stays where it is if it is a plain string.

    ``apart``: the text of that member, for as long as ``text`` is there; its start is NULL where the member is among
    the others, or missing.
    """
    cdef Cursor cursor
    cdef dict found
    cursor.at = <const unsigned char*> text
    cursor.end = cursor.at + size
    apart.start = NULL
    if peek(&cursor) != b"{":
        irregular()
    cursor.at += 1
    found = read_members(&cursor, keys, codec, name, apart)
    skip_space(&cursor)
    if cursor.at != cursor.end or "__type__" in found:  # it may have to be revived
        irregular()
    return found


cdef inline void skip_space(Cursor* cursor) noexcept:
    cdef const unsigned char* at = cursor.at
    while at < cursor.end and at[0] <= 0x20 and (at[0] == 0x20 or at[0] == 0x0A or at[0] == 0x0D or at[0] == 0x09):
        at += 1
    cursor.at = at


cdef inline unsigned char peek(Cursor* cursor) noexcept:
    """The next character after white space, 0 at the end."""
    skip_space(cursor)
    return cursor.at[0] if cursor.at < cursor.end else 0


cdef object read_value(Cursor* cursor, list keys, object codec):
    cdef unsigned char first = peek(cursor)
    if first == b'"':
        cursor.at += 1
        return read_string(cursor)
    if first == b"{" or first == b"[":
        cursor.at += 1
        enter_recursion(b" while decoding JSON")
        try:
            if first == b"[":
                return read_array(cursor, keys, codec)
            found = read_members(cursor, keys, codec, None, NULL)
        finally:
            Py_LeaveRecursiveCall()
        if PyDict_GET_SIZE(found) == 2 and "__type__" in <dict> found and "__value__" in <dict> found:
            return codec.revive(found)
        return found
    if first == b"-" or b"0" <= first <= b"9":
        return read_number(cursor)
    if first == b"t" and read_literal(cursor, b"true", 4):
        return True
    if first == b"f" and read_literal(cursor, b"false", 5):
        return False
    if first == b"n" and read_literal(cursor, b"null", 4):
        return None
    irregular()


cdef inline bint read_literal(Cursor* cursor, const char* literal, Py_ssize_t size) noexcept:
    if cursor.end - cursor.at < size or memcmp(cursor.at, literal, size) != 0:
        return False
    cursor.at += size
    return True


cdef dict read_members(Cursor* cursor, list keys, object codec, str name, Span* apart):
    """The object whose first brace was read. ``name``, ``apart``: as for ``read_object_but``, or None and NULL."""
    cdef dict found = {}
    cdef unsigned char char = peek(cursor)
    if char == b"}":
        cursor.at += 1
        return found
    while True:
        if char != b'"':
            irregular()
        cursor.at += 1
        key = read_key(cursor, keys)
        if peek(cursor) != b":":
            irregular()
        cursor.at += 1
        if apart == NULL or key != name or not pass_string(cursor, apart):
            PyDict_SetItem(found, key, read_value(cursor, keys, codec))
        char = peek(cursor)
        cursor.at += 1
        if char == b"}":
            break
        if char != b",":
            irregular()
        char = peek(cursor)
    return found


cdef list read_array(Cursor* cursor, list keys, object codec):
    cdef list found = []
    cdef unsigned char char = peek(cursor)
    if char == b"]":
        cursor.at += 1
        return found
    while True:
        PyList_Append(found, read_value(cursor, keys, codec))
        char = peek(cursor)
        cursor.at += 1
        if char == b"]":
            return found
        if char != b",":
            irregular()


# --- strings ----------------------------------------------------------------------------------------------------

cdef inline bint is_plain(unsigned char char) noexcept:
    """Whether a character stands for itself, in ASCII."""
    return kombulite_plain[char]


cdef inline const unsigned char* end_of_plain(const unsigned char* at, const unsigned char* end) noexcept:
    """Where the ASCII characters that stand for themselves end; eight are looked at in one step."""
    cdef unsigned long long ones = 0x0101010101010101
    cdef unsigned long long word, quote, backslash
    while end - at >= 8:
        memcpy(&word, at, 8)
        quote = word ^ (ones * 0x22)
        backslash = word ^ (ones * 0x5C)
        if (word | (word - ones * 0x20) | (quote - ones) | (backslash - ones)) & (ones * 0x80):
            break
        at += 8
    while at < end and is_plain(at[0]):
        at += 1
    return at


cdef inline object ascii_string(const unsigned char* start, Py_ssize_t size):
    if size < 2:
        return PyUnicode_DecodeASCII(<const char*> start, size, NULL)  # knows the ready-made ones
    text = PyUnicode_New(size, 127)
    memcpy(PyUnicode_DATA(text), start, size)
    return text


cdef object read_string(Cursor* cursor):
    """The string whose first quote was read."""
    cdef const unsigned char* start = cursor.at
    cdef const unsigned char* at = end_of_plain(start, cursor.end)
    if at < cursor.end and at[0] == b'"':
        cursor.at = at + 1
        return ascii_string(start, at - start)
    return read_long_way(cursor)


cdef bint pass_string(Cursor* cursor, Span* found) noexcept:
    """Go past a value if it is a string of plain characters, and note where they are; NULL if it is not."""
    cdef const unsigned char* end
    found.start = NULL
    if peek(cursor) != b'"':
        return False
    end = end_of_plain(cursor.at + 1, cursor.end)
    if end == cursor.end or end[0] != b'"':
        return False
    found.start = cursor.at + 1
    found.size = end - found.start
    cursor.at = end + 1
    return True


cdef object read_key(Cursor* cursor, list keys):
    """A string that is likely to come again: many messages have the same few keys."""
    cdef const unsigned char* start = cursor.at
    cdef const unsigned char* end = cursor.end
    cdef const unsigned char* at = start
    cdef unsigned int place = 2166136261
    cdef Py_ssize_t size
    if end - at > LONGEST_KEPT_KEY:
        end = at + LONGEST_KEPT_KEY
    while at < end and is_plain(at[0]):
        place = (place ^ at[0]) * 16777619  # FNV-1a
        at += 1
    if at == end or at[0] != b'"':
        return read_string(cursor)
    cursor.at = at + 1
    size = at - start
    place = (place ^ (place >> 16)) % KEPT_KEYS
    key = keys[place]
    if key is not None and PyUnicode_GET_LENGTH(key) == size and memcmp(PyUnicode_DATA(key), start, size) == 0:
        return key
    key = ascii_string(start, size)
    keys[place] = key
    return key


cdef object read_long_way(Cursor* cursor):
    """A string with escapes, or characters beyond ASCII; its first quote was read."""
    cdef Buffer out
    cdef const unsigned char* at = cursor.at
    cdef const unsigned char* run
    cdef unsigned int code
    buffer_init(&out)
    try:
        while True:
            run = at
            while at < cursor.end and at[0] >= 0x20 and at[0] != b'"' and at[0] != b"\\":
                at += 1
            buffer_reserve(&out, at - run + 4)
            memcpy(out.data + out.size, run, at - run)
            out.size += at - run
            if at == cursor.end or at[0] < 0x20:
                irregular()
            if at[0] == b'"':
                cursor.at = at + 1
                try:
                    return PyUnicode_DecodeUTF8(out.data, out.size, NULL)
                except UnicodeDecodeError:
                    irregular()
            if cursor.end - at < 2:
                irregular()
            code = short_escape(at[1])
            if code:
                at += 2
            else:
                code = read_hex(at, cursor.end)
                at += 6
                if 0xD800 <= code < 0xDC00:
                    code = 0x10000 + ((code - 0xD800) << 10) + low_surrogate(at, cursor.end)
                    at += 6
                elif 0xDC00 <= code < 0xE000:
                    irregular()
            out.size += put_utf8(out.data + out.size, code)
    finally:
        buffer_free(&out)


cdef inline unsigned int short_escape(unsigned char char) noexcept:
    if char == b'"' or char == b"\\" or char == b"/":
        return char
    if char == b"n":
        return 10
    if char == b"r":
        return 13
    if char == b"t":
        return 9
    if char == b"b":
        return 8
    if char == b"f":
        return 12
    return 0


cdef unsigned int read_hex(const unsigned char* at, const unsigned char* end) except? 0xFFFFFFFF:
    """The code unit that ``\\uXXXX`` at this place stands for."""
    cdef unsigned int code = 0
    cdef unsigned char char
    cdef int i
    if end - at < 6 or at[0] != b"\\" or at[1] != b"u":
        irregular()
    for i in range(2, 6):
        char = at[i]
        if b"0" <= char <= b"9":
            code = code << 4 | (char - 48)
        elif b"a" <= char <= b"f":
            code = code << 4 | (char - 87)
        elif b"A" <= char <= b"F":
            code = code << 4 | (char - 55)
        else:
            irregular()
    return code


cdef unsigned int low_surrogate(const unsigned char* at, const unsigned char* end) except? 0xFFFFFFFF:
    """The ten bits that the second half of a pair adds."""
    cdef unsigned int code = read_hex(at, end)
    if not 0xDC00 <= code < 0xE000:
        irregular()
    return code - 0xDC00


cdef Py_ssize_t put_utf8(char* at, unsigned int code) noexcept:
    if code < 0x80:
        at[0] = <char> code
        return 1
    if code < 0x800:
        at[0] = <char> (0xC0 | code >> 6)
        at[1] = <char> (0x80 | code & 0x3F)
        return 2
    if code < 0x10000:
        at[0] = <char> (0xE0 | code >> 12)
        at[1] = <char> (0x80 | code >> 6 & 0x3F)
        at[2] = <char> (0x80 | code & 0x3F)
        return 3
    at[0] = <char> (0xF0 | code >> 18)
    at[1] = <char> (0x80 | code >> 12 & 0x3F)
    at[2] = <char> (0x80 | code >> 6 & 0x3F)
    at[3] = <char> (0x80 | code & 0x3F)
    return 4


# --- numbers ----------------------------------------------------------------------------------------------------

cdef object read_number(Cursor* cursor):
    cdef const unsigned char* start = cursor.at
    cdef const unsigned char* at = start
    cdef const unsigned char* digits
    cdef unsigned long long number = 0
    cdef bint negative = at[0] == b"-"
    cdef int places = 0
    cdef double value
    at += negative
    digits = at
    while at < cursor.end and b"0" <= at[0] <= b"9":
        number = number * 10 + (at[0] - 48)
        at += 1
    if at == digits or at - digits > 18 or (digits[0] == b"0" and at - digits > 1):
        irregular()
    if at == cursor.end or (at[0] != b"." and at[0] != b"e" and at[0] != b"E"):
        cursor.at = at
        return -<long long> number if negative else <long long> number
    if at[0] == b".":
        at += 1
        digits = at
        while at < cursor.end and b"0" <= at[0] <= b"9":
            number = number * 10 + (at[0] - 48)
            at += 1
        places = <int> (at - digits)
        if places == 0:
            irregular()
    if at < cursor.end and (at[0] == b"e" or at[0] == b"E"):
        return read_double(cursor, start)
    if at - start > 17 or number > 9007199254740992:
        return read_double(cursor, start)
    # An integer that a double holds exactly, over a power of ten that it holds exactly: the quotient is rounded once.
    cursor.at = at
    value = <double> number / kombulite_powers[places]
    return -value if negative else value


cdef object read_double(Cursor* cursor, const unsigned char* start):
    """A number with an exponent or many digits, by the interpreter's own routine."""
    cdef char[64] copy
    cdef char* end
    cdef Py_ssize_t size = 0
    cdef double value = 0
    while start + size < cursor.end and start[size] in b"+-.0123456789eE":
        size += 1
        if size == 64:
            irregular()
    memcpy(copy, start, size)
    copy[size] = 0
    try:
        value = PyOS_string_to_double(copy, &end, NULL)
    except ValueError:
        irregular()
    if end != copy + size or copy[size - 1] == b"." or value - value != 0:
        irregular()
    cursor.at = start + size
    return value
