"""Redis commands as they travel (RESP: an array of bulk strings).

An envelope is written where it is sent from, inside the command: a body is passed over once, when it becomes base64.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from kombulite._core.envelope cimport TAG_SIZE, EnvelopeTemplate, TagRange, TagSequence, put_bytes, put_tag
from kombulite._core.message cimport Delivery, Properties


def pack_command(words):
    """A command: its words are bytes, text or numbers.

    hiredis has such a function, which uses printf: 4,960 instructions for three words, 2,080 here.
    """
    cdef list encoded = [as_bytes(each) for each in words]
    cdef Py_ssize_t count = len(encoded)
    cdef Py_ssize_t size = count_size(count)
    cdef bytes command, word
    cdef char* at
    for word in encoded:
        size += count_size(PyBytes_GET_SIZE(word)) + PyBytes_GET_SIZE(word) + 2
    command = PyBytes_FromStringAndSize(NULL, size)
    at = put_count(PyBytes_AS_STRING(command), b"*", count)
    for word in encoded:
        at = put_bytes(put_count(at, b"$", PyBytes_GET_SIZE(word)), word)
        at[0] = b"\r"
        at[1] = b"\n"
        at += 2
    return command


def word_of(bytes command not None, Py_ssize_t place):
    """The word (bytes) at a place of a packed command, its name being at 0. Raises ValueError if it has none there."""
    cdef const char* at = PyBytes_AS_STRING(command)
    cdef const char* end = at + PyBytes_GET_SIZE(command)
    cdef Py_ssize_t count = 0, size = 0
    if place < 0 or not skip_count(&at, end, b"*", &count) or place >= count:
        raise ValueError(f"a command without a word at {place}")
    while True:
        if not skip_count(&at, end, b"$", &size) or size > end - at - 2:
            raise ValueError(f"a command that breaks off before its word at {place}")
        if not place:
            return PyBytes_FromStringAndSize(at, size)
        at += size + 2
        place -= 1


cdef bint skip_count(const char** at, const char* end, char mark, Py_ssize_t* count) noexcept:
    """Read what ``put_count`` writes. Returns whether it is there."""
    cdef const char* here = at[0]
    cdef Py_ssize_t number = 0
    if here >= end or here[0] != mark:
        return False
    here += 1
    while here < end and 48 <= here[0] <= 57 and number < (1 << 40):
        number = number * 10 + here[0] - 48
        here += 1
    if end - here < 2 or here[0] != b"\r" or here[1] != b"\n":
        return False
    at[0], count[0] = here + 2, number
    return True


cdef bytes as_bytes(object word):
    if PyBytes_CheckExact(word):
        return <bytes> word
    if isinstance(word, str):
        return (<str> word).encode("utf-8")
    if isinstance(word, (int, float)):
        return repr(word).encode("ascii")
    return bytes(memoryview(word))


# Bytes that an envelope adds to a small body, or so.
cdef enum:
    ENVELOPE = 350


@cython.final
cdef class AlikeMessages:
    """Messages that go the same way, in the same envelope: their places, themselves, and the bytes that they take."""

    cdef list places
    cdef list deliveries
    cdef Properties properties
    cdef Py_ssize_t size


def group_alike(deliveries, Py_ssize_t most):
    """Put messages together that go the same way, in the same envelope: (places, messages) of each group.

    The groups are in the order of their first messages, and the messages of a group in their own. Those of a group have
    some ``most`` bytes together, unless it is a single one: what goes beyond begins another group.
    """
    cdef list groups = []
    cdef dict by_exchange = {}, by_key = {}
    cdef AlikeMessages group
    cdef Delivery each
    cdef Properties properties
    cdef Py_ssize_t place = 0, size
    last_exchange = None
    for delivery in deliveries:
        each = <Delivery?> delivery
        exchange, key, properties, body = each.exchange, each.routing_key, each.properties, each.sent_body()
        if exchange is not last_exchange or not place:
            by_key = by_exchange.setdefault(exchange, {})
            last_exchange = exchange
        size = len(body) + ENVELOPE
        group = by_key.get(key)
        if group is None or group.properties is not properties or group.size + size > most:
            group = AlikeMessages.__new__(AlikeMessages)
            group.places, group.deliveries, group.properties = [], [], properties
            by_key[key] = group
            groups.append(group)
        group.places.append(place)
        group.deliveries.append(each)
        group.size += size
        place += 1
    return [(group.places, group.deliveries) for group in groups]


@cython.final
cdef class ListPush:
    """``LPUSH`` to one list."""

    cdef bytes _words

    def __cinit__(self, str key not None):
        self._words = pack_command(("LPUSH", key))[4:]  # without the count of words

    def pack(self, EnvelopeTemplate template not None, TagSequence tags not None, deliveries, bytes stamp not None=b""):
        """The command (bytes) for one or more messages, each in an envelope under a tag of its own.

        ``stamp``: as for ``EnvelopeTemplate.encode``.
        """
        cdef list payloads = [template.payload((<Delivery?> each).sent_body()) for each in deliveries]
        cdef Py_ssize_t words = 2 + len(payloads)
        cdef Py_ssize_t ending = TAG_SIZE + 4 + PyBytes_GET_SIZE(stamp)  # the quotes of the tag, two braces
        cdef Py_ssize_t size = count_size(words) + PyBytes_GET_SIZE(self._words)
        cdef Py_ssize_t envelope
        cdef bytes command, payload
        cdef TagRange range_
        cdef char* at
        tags.take(&range_, len(payloads))
        for payload in payloads:
            envelope = template.opening_size(payload) + ending
            size += count_size(envelope) + envelope + 2
        command = PyBytes_FromStringAndSize(NULL, size)
        at = put_bytes(put_count(PyBytes_AS_STRING(command), b"*", words), self._words)
        for payload in payloads:
            at = put_count(at, b"$", template.opening_size(payload) + ending)
            at = template.put_opening(at, payload)
            at[0] = b'"'
            at = put_tag(at + 1, &range_)
            at[0] = b'"'
            at = put_bytes(at + 1, stamp)
            at[0] = at[1] = b"}"
            at[2] = b"\r"
            at[3] = b"\n"
            at += 4
        return command


cdef inline int digits_of(Py_ssize_t number) noexcept:
    cdef int digits = 1
    while number >= 10:
        number //= 10
        digits += 1
    return digits


cdef inline Py_ssize_t count_size(Py_ssize_t number) noexcept:
    """Bytes that ``put_count`` writes."""
    return digits_of(number) + 3


cdef char* put_count(char* at, char mark, Py_ssize_t number) noexcept:
    """Write what stands before an array or a bulk string. Returns where it ends."""
    cdef int place = digits_of(number)
    cdef char* end = at + place + 3
    at[0] = mark
    while place:
        at[place] = <char> (48 + number % 10)
        number //= 10
        place -= 1
    end[-2] = b"\r"
    end[-1] = b"\n"
    return end
