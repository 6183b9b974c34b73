"""Publishing to a broker in this process: lock, route and enqueue as one step."""

cimport cython

from cpython.bytes cimport PyBytes_CheckExact

from kombulite._core.channel cimport PublishStep
from kombulite._core.locks cimport BaseLock
from kombulite._core.message cimport Delivery
from kombulite._core.plain cimport PlainValue
from kombulite._core.queueing cimport MessageQueue
from kombulite._core.routing cimport RoutingTable

from kombulite._core.routing import UnknownExchange

cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define kombulite_has_gil 0
    #else
    #define kombulite_has_gil 1
    #endif
    """
    const bint HAS_GIL "kombulite_has_gil"


cdef enum:
    TEXTS = 64  # messages behind one whose value was for nothing


cdef class BaseQueue:
    """A queue as far as publishing goes. The base of the facade's, which has the limits.

    ``messages``: what waits in it; ``is_plain``: whether it takes any message that has no expiration; ``idle``: the
    consumers that found nothing in it when they looked last.
    """

    cdef readonly MessageQueue messages
    cdef readonly bint is_plain
    cdef readonly list idle

    def __cinit__(self, *args, **kwargs):
        self.messages = MessageQueue()
        self.idle = []

    def __init__(self, MessageQueue messages not None, bint is_plain):
        self.messages = messages
        self.is_plain = is_plain


@cython.final
cdef class PublishPath(PublishStep):
    """The step from a message to its queue, while the broker's lock is held, or is nobody's and stays so.

    Most messages go to one plain queue, whose consumers are busy: that is done here, where no signal handler runs. All
    else is left to ``publish_slowly(channel, delivery, mandatory)``, which is called with the lock held.

    ``table``: finds the queues of a message; ``queues``: all that there are, by name; ``channels``: those that are
    open, by number; ``expiring``: empty unless something may have to expire first; ``offer(queue)`` wakes a consumer of
    a queue, and may be repeated. The timeouts of a publish have no effect.
    """

    cdef BaseLock _lock
    cdef RoutingTable _table
    cdef dict _queues
    cdef dict _channels
    cdef set _expiring
    cdef object _offer
    cdef object _publish_slowly
    cdef int _texts  # how many more messages had better come as text

    def __cinit__(self, BaseLock lock not None, RoutingTable table not None, dict queues not None,
                  dict channels not None, set expiring not None, offer, publish_slowly):
        self._lock = lock
        self._table = table
        self._queues = queues
        self._channels = channels
        self._expiring = expiring
        self._offer = offer
        self._publish_slowly = publish_slowly
        self.takes_values = True

    cdef object send(self, object channel, Delivery delivery, bint mandatory, object timeout, object confirm_timeout):
        cdef bint was_value = type(delivery.content) is PlainValue
        self._send(channel, delivery, mandatory)
        if was_value and type(delivery.content) is not PlainValue:  # a queue of many wants the text
            self._texts = TEXTS
        elif self._texts:
            self._texts -= 1
        self.takes_values = self._texts == 0

    cdef int _send(self, object channel, Delivery delivery, bint mandatory) except -1:
        # Where there is a GIL and the lock is free, what gives the GIL to no other thread needs no lock: taking it
        # costs as much as all the rest of this step.
        if HAS_GIL and self._lock._owner == 0 and self._add_alone(channel, delivery):
            return 0
        self._lock._acquire(None)
        try:
            if self._expiring or channel not in self._channels or not self._enqueue(delivery):
                self._publish_slowly(channel, delivery, mandatory)
        finally:
            self._lock._release()
        return 0

    cdef bint _add_alone(self, object channel, Delivery delivery) except -1:
        """Add a message to its queue if that takes no Python code: its queue is known, and no consumer has to wake.

        Returns whether it was added.
        """
        cdef object found
        cdef BaseQueue queue
        if (
            self._expiring or type(channel) is not int or channel not in self._channels
            or not (type(delivery.content) is PlainValue or PyBytes_CheckExact(delivery.content))
            or delivery.properties.expiration is not None
        ):
            return False
        found = self._table.known_queue(delivery, self._queues)
        if found is None:
            return False
        queue = <BaseQueue?> found
        if not queue.is_plain or queue.idle or queue.messages._level is None:  # a priority may be of any type
            return False
        if type(delivery.content) is PlainValue and not queue.messages._takes_values():
            return False
        queue.messages._add(delivery, 0)
        return True

    cdef bint _enqueue(self, Delivery delivery) except -1:
        """Add a message to its queue, if it is one plain queue. Returns whether it was."""
        cdef tuple queues
        cdef BaseQueue queue
        cdef MessageQueue messages
        try:
            queues = self._table.route_message(delivery, self._queues)
        except UnknownExchange:
            return False
        if len(queues) != 1 or delivery.properties.expiration is not None:
            return False
        queue = <BaseQueue?> queues[0]
        if not queue.is_plain:
            return False
        messages = queue.messages  # held: the body's length may be a program's to tell
        messages._add(delivery, 0)
        if queue.idle:
            try:
                self._offer(queue)
            except BaseException:  # a signal handler's: the message is there, and a consumer has to know
                self._offer(queue)
                raise
        return True
