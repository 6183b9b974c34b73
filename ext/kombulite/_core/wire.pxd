# Big-endian numbers and short strings of AMQP 0-9-1 (section 4.2.5), read behind a bounds check, written to a Buffer.
# No module of its own: whoever cimports it gets inline C. Bytes that end too early raise ValueError.

from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from kombulite._core.buffer cimport Buffer, buffer_reserve, buffer_write

cdef enum:
    LONGEST_SHORT_STRING = 255  # bytes

cdef struct Cursor:
    const uint8_t* at
    const uint8_t* end


cdef inline int need(Cursor* self, uint64_t size) except -1:
    if <uint64_t> (self.end - self.at) < size:
        raise ValueError(f"{size} bytes are announced, and {self.end - self.at} are there")
    return 0


cdef inline uint16_t peek16(const uint8_t* at) noexcept:
    return <uint16_t> (at[0] << 8 | at[1])


cdef inline uint32_t peek32(const uint8_t* at) noexcept:
    return <uint32_t> at[0] << 24 | <uint32_t> at[1] << 16 | <uint32_t> at[2] << 8 | at[3]


cdef inline uint64_t peek64(const uint8_t* at) noexcept:
    return <uint64_t> peek32(at) << 32 | peek32(at + 4)


cdef inline uint8_t read8(Cursor* self) except? 255:
    need(self, 1)
    self.at += 1
    return self.at[-1]


cdef inline uint16_t read16(Cursor* self) except? 0xffff:
    need(self, 2)
    self.at += 2
    return peek16(self.at - 2)


cdef inline uint32_t read32(Cursor* self) except? 0xffffffff:
    need(self, 4)
    self.at += 4
    return peek32(self.at - 4)


cdef inline uint64_t read64(Cursor* self) except? 0xffffffffffffffff:
    need(self, 8)
    self.at += 8
    return peek64(self.at - 8)


cdef inline Cursor read_span(Cursor* self, uint64_t size) except *:
    """The next ``size`` bytes, as a cursor of their own."""
    cdef Cursor span
    need(self, size)
    span.at = self.at
    self.at += size
    span.end = self.at
    return span


cdef inline str text_of(Cursor span):
    """The text of a name or key; bytes that are no UTF-8 come as lone surrogates, and can be sent back."""
    return PyUnicode_DecodeUTF8(<const char*> span.at, span.end - span.at, b"surrogateescape")


cdef inline str read_short(Cursor* self):
    return text_of(read_span(self, read8(self)))


cdef inline void poke16(char* at, uint16_t value) noexcept:
    at[0] = <char> (value >> 8)
    at[1] = <char> value


cdef inline void poke32(char* at, uint32_t value) noexcept:
    poke16(at, <uint16_t> (value >> 16))
    poke16(at + 2, <uint16_t> value)


cdef inline void poke64(char* at, uint64_t value) noexcept:
    poke32(at, <uint32_t> (value >> 32))
    poke32(at + 4, <uint32_t> value)


cdef inline int write8(Buffer* out, uint8_t value) except -1:
    buffer_reserve(out, 1)
    out.data[out.size] = <char> value
    out.size += 1
    return 0


cdef inline int write16(Buffer* out, uint16_t value) except -1:
    buffer_reserve(out, 2)
    poke16(out.data + out.size, value)
    out.size += 2
    return 0


cdef inline int write32(Buffer* out, uint32_t value) except -1:
    buffer_reserve(out, 4)
    poke32(out.data + out.size, value)
    out.size += 4
    return 0


cdef inline int write64(Buffer* out, uint64_t value) except -1:
    buffer_reserve(out, 8)
    poke64(out.data + out.size, value)
    out.size += 8
    return 0


cdef inline bytes utf8_of(object text, str what):
    """What ``text_of`` reads back. Raises TypeError for what is neither text nor bytes."""
    if isinstance(text, str):
        return (<str> text).encode("utf-8", "surrogateescape")
    if isinstance(text, bytes):
        return <bytes> text
    raise TypeError(f"{what} is text, not {type(text).__name__}")


cdef inline int write_short(Buffer* out, object text, str what) except -1:
    cdef bytes data = utf8_of(text, what)
    if len(data) > LONGEST_SHORT_STRING:
        raise ValueError(f"{what} has at most {LONGEST_SHORT_STRING} bytes, not {len(data)}")
    write8(out, <uint8_t> len(data))
    return buffer_write(out, <const char*> data, len(data))
