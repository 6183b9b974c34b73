/* A signal that arrives at a given instruction of Python code: it is noted there, as the C handler of CPython notes it,
   and the interpreter runs the handler in Python where it would run it for a signal of the kernel's. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <frameobject.h>

static Py_ssize_t seen;         /* instructions so far */
static Py_ssize_t target = -1;  /* the one that the signal comes before; -1: none is counted */
static int signal_number;
static unsigned long thread;

static void count(void)
{
    if (target < 0 || PyThread_get_thread_ident() != thread)
        return;
    if (seen++ == target)
        PyErr_SetInterruptEx(signal_number);
}

static int trace(PyObject *object, PyFrameObject *frame, int what, PyObject *argument)
{
    if (what == PyTrace_CALL)
        return PyObject_SetAttrString((PyObject *)frame, "f_trace_opcodes", Py_True);
    if (what == PyTrace_OPCODE)
        count();
    return 0;
}

/* arm(target, signal, trace): count the instructions of this thread from now on */
static PyObject *arm(PyObject *self, PyObject *arguments)
{
    Py_ssize_t number;
    int use_trace;
    if (!PyArg_ParseTuple(arguments, "nip", &number, &signal_number, &use_trace))
        return NULL;
    seen = 0;
    thread = PyThread_get_thread_ident();
    target = number;
    if (use_trace)
        PyEval_SetTrace(trace, NULL);
    Py_RETURN_NONE;
}

/* disarm(): how many there were */
static PyObject *disarm(PyObject *self, PyObject *ignored)
{
    target = -1;
    return PyLong_FromSsize_t(seen);
}

/* tick(code, offset): for sys.monitoring */
static PyObject *tick(PyObject *self, PyObject *ignored)
{
    count();
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"arm", arm, METH_VARARGS, NULL},
    {"disarm", disarm, METH_NOARGS, NULL},
    {"tick", tick, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "interrupts", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_interrupts(void)
{
    return PyModule_Create(&module);
}
