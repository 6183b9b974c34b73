# A byte buffer that grows, for the encoders. It has no module of its own: whoever cimports it gets inline C.
# `Buffer` lives on the C stack; small outputs never touch the heap. Pair buffer_init with buffer_free in a finally.

from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.string cimport memcpy

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX

cdef enum:
    BUFFER_SMALL = 1024

cdef struct Buffer:
    char* data
    Py_ssize_t size
    Py_ssize_t capacity
    char[BUFFER_SMALL] small


cdef inline void buffer_init(Buffer* self) noexcept:
    self.data = self.small
    self.size = 0
    self.capacity = BUFFER_SMALL


cdef inline void buffer_free(Buffer* self) noexcept:
    if self.data != self.small:
        PyMem_Free(self.data)


cdef inline int buffer_grow(Buffer* self, Py_ssize_t extra) except -1:
    cdef Py_ssize_t capacity = self.capacity * 2
    cdef char* data
    if extra > PY_SSIZE_T_MAX // 4 - self.size:
        raise MemoryError("the encoded message is too large")
    while capacity < self.size + extra:
        capacity *= 2
    if self.data == self.small:
        data = <char*> PyMem_Malloc(capacity)
        if data == NULL:
            raise MemoryError()
        memcpy(data, self.small, self.size)
    else:
        data = <char*> PyMem_Realloc(self.data, capacity)
        if data == NULL:
            raise MemoryError()
    self.data = data
    self.capacity = capacity
    return 0


cdef inline int buffer_reserve(Buffer* self, Py_ssize_t extra) except -1:
    if self.capacity - self.size < extra:
        return buffer_grow(self, extra)
    return 0


cdef inline int buffer_put2(Buffer* self, char first, char second) except -1:
    buffer_reserve(self, 2)
    self.data[self.size] = first
    self.data[self.size + 1] = second
    self.size += 2
    return 0


cdef inline int buffer_write(Buffer* self, const char* data, Py_ssize_t size) except -1:
    buffer_reserve(self, size)
    memcpy(self.data + self.size, data, size)
    self.size += size
    return 0
