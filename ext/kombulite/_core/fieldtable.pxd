from libc.stdint cimport int64_t

from kombulite._core.buffer cimport Buffer
from kombulite._core.wire cimport Cursor


cdef int write_table(Buffer* out, object table, int depth) except -1
cdef dict read_table(Cursor* cursor, int depth)
cdef int64_t timestamp_of(object moment) except? -1
cdef bint is_text(bytes data) except -1
cdef object decimal_type()
