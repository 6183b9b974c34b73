# The interpreter's bound on recursion, for C code that calls itself. Pair enter_recursion with Py_LeaveRecursiveCall.

cdef extern from "Python.h":
    int Py_EnterRecursiveCall(const char* where)
    void Py_LeaveRecursiveCall()


cdef inline int enter_recursion(const char* where) except -1:
    """Raises RecursionError. (The C function says "nonzero" for an error, not -1.)"""
    return -1 if Py_EnterRecursiveCall(where) else 0
