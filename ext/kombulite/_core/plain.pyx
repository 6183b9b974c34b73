"""Bodies that stay in this process: what reading their JSON would give, without the text.

A consumer in the same process needs no text to get a value of its own, only a copy. A value is plain if its copy is
sure to be what the reader would make of the text: all else is the writer's (serialization.pyx), and travels as text.
"""

cimport cython
from cpython.dict cimport PyDict_CheckExact, PyDict_Copy, PyDict_Next, PyDict_SetItem
from cpython.float cimport PyFloat_CheckExact
from cpython.list cimport PyList_CheckExact
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_CheckExact
from cpython.unicode cimport PyUnicode_CheckExact
from libc.math cimport isfinite

from kombulite._core.buffer cimport Buffer, buffer_free, buffer_init
from kombulite._core.recursion cimport Py_LeaveRecursiveCall, enter_recursion
from kombulite._core.serialization cimport JSON, size_of_str, write_float

cdef extern from "Python.h":
    Py_ssize_t PyDict_GET_SIZE(object value)
    int PyUnicode_Compare(object text, object other) except? -1
    void PyObject_GC_UnTrack(object value)

cdef enum:
    MOST_PARTS = 250  # of a value: with more it takes many times the memory of its text
    MOST_DEPTH = 32


cdef object copied(object value):
    """A copy of nested dicts and lists, down to what is neither."""
    if PyDict_CheckExact(value):
        return copied_dict(<dict> value)
    if PyList_CheckExact(value):
        return copied_list(<list> value)
    return value


# What the copy holds is looked at, not what the caller has: that may change meanwhile.
cdef dict copied_dict(dict value):
    cdef Py_ssize_t position = 0
    cdef PyObject* name
    cdef PyObject* item
    cdef dict copy = PyDict_Copy(value)
    cdef Py_ssize_t size = PyDict_GET_SIZE(copy)
    while PyDict_Next(copy, &position, &name, &item):
        if has_parts(<object> item):
            key = <object> name  # held: what its hash is may be a program's to say
            copy[key] = copied_within(<object> item)
            if PyDict_GET_SIZE(copy) != size:
                raise RuntimeError("dictionary changed size during iteration")
    return copy


cdef list copied_list(list value):
    cdef list copy = value[:]
    cdef Py_ssize_t index
    for index in range(len(copy)):
        if has_parts(copy[index]):
            copy[index] = copied_within(copy[index])
    return copy


cdef inline bint has_parts(object value) noexcept:
    return PyDict_CheckExact(value) or PyList_CheckExact(value)


cdef object copied_within(object value):
    enter_recursion(b" while copying")
    try:
        return copied(value)
    finally:
        Py_LeaveRecursiveCall()


@cython.final
@cython.no_gc
@cython.freelist(64)
@cython.auto_pickle(False)
cdef class PlainValue:
    """A dict or list of what cannot change, and of other dicts and lists, all of which nobody else holds.

    There is no cycle in it for the garbage collector to find, which would else look at all that wait again and again.
    ``size``: bytes in its JSON text; ``has_types``: whether it has values that JSON lacks. Made by ``plain_value``.
    """

    cpdef object build(self):
        """Return the value, as reading the text would: all dicts and lists are the caller's own."""
        if self._is_flat and PyDict_CheckExact(self._value):
            return PyDict_Copy(self._value)
        return copied(self._value)

    cpdef bytes text(self):
        """Return its JSON text."""
        if self._json is None:
            raise TypeError("a PlainValue is made by plain_value")
        return self._json.dump_bytes(self._value)


cdef struct Measure:
    Py_ssize_t size
    Py_ssize_t left  # how many parts there may be yet
    bint is_flat  # no part of it has parts
    bint has_types
    Buffer text  # of one part


cpdef PlainValue plain_value(object value, JSON json):
    """Return a copy of a dict, list or tuple whose JSON text would be read as just that; None if it may not be.

    Plain are text without surrogates, integers of 64 bits, finite floats, booleans, None, what ``json`` keeps, lists,
    tuples (which become lists), and dicts whose names are text and which are not taken for a typed value. Subclasses
    are not, nor is what is large or deep.

    Args:
        value: The value.
        json: The codec that would write it.
    """
    cdef Measure measure
    cdef PlainValue made
    if json is None:
        raise TypeError("a value is plain for a codec, not for None")
    measure.size = 0
    measure.is_flat = True
    measure.has_types = False
    measure.left = MOST_PARTS
    buffer_init(&measure.text)
    try:
        copy = plain_copy(&measure, value, json, MOST_DEPTH)
    finally:
        buffer_free(&measure.text)
    if copy is None:
        return None
    made = PlainValue.__new__(PlainValue)
    made._value = copy
    made._json = json
    made.size = measure.size
    made.has_types = measure.has_types
    made._is_flat = measure.is_flat
    return made


cdef object plain_copy(Measure* measure, object value, JSON json, int depth):
    """The copy of a dict, list or tuple if it is plain, else None."""
    if depth == 0:
        return None
    if PyDict_CheckExact(value):
        return plain_dict(measure, <dict> value, json, depth - 1)
    if PyList_CheckExact(value) or PyTuple_CheckExact(value):
        return plain_list(measure, value, json, depth - 1)
    return None


cdef bint begin(Measure* measure, Py_ssize_t length) noexcept:
    """Count the parts and the punctuation between them. Returns whether there may be so many."""
    measure.left -= length
    measure.size += 2 * length if length else 2  # the brackets, and ", " between any two
    return measure.left >= 0


# Of a copy, not of what the caller has: that may change meanwhile.
cdef dict plain_dict(Measure* measure, dict value, JSON json, int depth):
    cdef Py_ssize_t position = 0, size
    cdef PyObject* name
    cdef PyObject* item
    cdef dict copy
    cdef bint typed
    if PyDict_GET_SIZE(value) > measure.left:
        return None
    copy = PyDict_Copy(value)
    typed = PyDict_GET_SIZE(copy) == 2
    PyObject_GC_UnTrack(copy)
    if not begin(measure, PyDict_GET_SIZE(copy)):
        return None
    while PyDict_Next(copy, &position, &name, &item):
        size = size_of_str(<object> name) if PyUnicode_CheckExact(<object> name) else -1
        if size < 0:
            return None
        measure.size += size + 2  # and ": "
        if typed and PyUnicode_Compare(<object> name, "__type__") and PyUnicode_Compare(<object> name, "__value__"):
            typed = False
        if not add_size(measure, <object> item, json):
            measure.is_flat = False
            part = plain_copy(measure, <object> item, json, depth)
            if part is None:
                return None
            PyDict_SetItem(copy, <object> name, part)
            PyObject_GC_UnTrack(copy)  # to set it has tracked the dict
    return None if typed else copy


cdef list plain_list(Measure* measure, object value, JSON json, int depth):
    cdef list copy
    cdef Py_ssize_t index
    if (len(<list> value) if PyList_CheckExact(value) else len(<tuple> value)) > measure.left:
        return None
    copy = list(value)
    PyObject_GC_UnTrack(copy)
    if not begin(measure, len(copy)):
        return None
    for index in range(len(copy)):
        if not add_size(measure, copy[index], json):
            part = plain_copy(measure, copy[index], json, depth)
            if part is None:
                return None
            copy[index] = part
    return copy


cdef bint add_size(Measure* measure, object value, JSON json) except -1:
    """Add the bytes of a value's text, if it has no parts and is plain. Returns whether it is such a value."""
    cdef Py_ssize_t size
    cdef int overflow = 0
    cdef long long number
    if PyUnicode_CheckExact(value):
        size = size_of_str(value)
        if size < 0:
            return False
        measure.size += size
    elif PyLong_CheckExact(value):
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow:
            return False
        measure.size += size_of_int(number)
    elif value is None or value is True:
        measure.size += 4
    elif value is False:
        measure.size += 5
    elif PyFloat_CheckExact(value):
        if not isfinite(<double> value):
            return False
        measure.text.size = 0
        write_float(&measure.text, <double> value)
        measure.size += measure.text.size
    elif not (PyDict_CheckExact(value) or PyList_CheckExact(value) or PyTuple_CheckExact(value)) and json.keeps(value):
        measure.text.size = 0
        json.write(&measure.text, value)
        measure.size += measure.text.size
        measure.has_types = True
    else:
        return False
    return True


cdef Py_ssize_t size_of_int(long long number) noexcept:
    cdef unsigned long long left = <unsigned long long> number
    cdef Py_ssize_t size = 1
    if number < 0:
        left = 0 - left
        size = 2
    while left >= 10:
        left //= 10
        size += 1
    return size
