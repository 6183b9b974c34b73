"""Messages on an event loop where nothing has to wait: out through a channel, in to a task, and their acks.

``publish``, ``__anext__`` and ``ack`` return a coroutine whose first step is compiled, and mostly its last one too.
What has to wait, and what is rare, is a coroutine of the facade's subclasses, which goes on in its place.

The module is longer than others: all three share the coroutine and the look at the loop, which is compiled into each.
"""

cimport cython
from cpython.exc cimport PyErr_SetObject, PyErr_WarnEx
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF

from kombulite._core.channel cimport AckStep, PublishStep
from kombulite._core.message cimport BaseMessage, CounterBlock, Delivery, received
from kombulite._core.outgoing cimport BaseMaker
from kombulite._core.queueing cimport FastPath

from kombulite._core.message import NOT_DECODED

cdef extern from "Python.h":
    int PyIter_Send(object iterator, object value, PyObject** result) except -1
    int PYGEN_RETURN
    int PYGEN_NEXT
    unsigned long PyThread_get_thread_ident()
    bint PyCFunction_Check(object value)
    PyObject* PyCFunction_GET_SELF(object function)

cdef extern from *:
    """
    /* What CPython asks first for a coroutine's next step: without it each end of one is an exception. */
    static void kombulite_set_send(PyTypeObject *type, void *send) {
        type->tp_as_async->am_send = (sendfunc) send;
    }
    """
    void set_send "kombulite_set_send"(type kind, void* send)


# --- coroutines ---------------------------------------------------------------------------------------------------

cdef object OVER = object()  # what a coroutine gives that has ended
cdef dict NOTHING = {}

ctypedef object (*FirstStep)(FastCoroutine made)


@cython.final
@cython.freelist(16)
cdef class FastCoroutine:
    """A coroutine whose first step is compiled, and mostly its last one too.

    Nothing is done before it is awaited; it warns if it never is.
    """

    cdef FirstStep _first  # returns the result, or sets ``_rest``; NULL once it is done
    cdef str _name
    cdef object _owner  # whose method returned it
    cdef object _given  # what it is about
    cdef bint _flag
    cdef tuple _others  # the arguments that few callers give, or None
    cdef object _rest  # the coroutine that goes on in its place, if one does
    cdef object _result

    cdef object _advance(self, object value):
        """Do the next step. Returns what is to be waited for; OVER if there is nothing, and ``_result`` is set."""
        cdef PyObject* given = NULL
        cdef int how
        cdef FirstStep first = self._first
        rest = self._rest
        if first != NULL:
            self._first = NULL
            self._result = first(self)
            rest = self._rest
            if rest is None:
                return OVER
        elif rest is None:
            raise RuntimeError("cannot reuse already awaited coroutine")
        how = PyIter_Send(rest, value, &given)
        result = <object> given
        Py_DECREF(result)  # the reference that came with it
        if how != PYGEN_RETURN:
            return result
        self._result = result
        return OVER

    def __await__(self):
        return self

    def __next__(self):
        waited_for = self._advance(None)
        if waited_for is not OVER:
            return waited_for
        if isinstance(self._result, (tuple, BaseException)):
            raise StopIteration(self._result)  # set as they are they would be taken for its arguments
        if self._result is not None:
            PyErr_SetObject(StopIteration, self._result)
        raise StopIteration  # compiled to the return of nothing: what is set stays, and nothing is made else

    def send(self, value):
        """Go on with a value."""
        waited_for = self._advance(value)
        if waited_for is OVER:
            raise StopIteration(self._result)
        return waited_for

    def throw(self, *error):
        """Go on with an error."""
        self._first = NULL
        if self._rest is not None:
            return self._rest.throw(*error)
        raise_error(*error)

    def close(self):
        """End it."""
        self._first = NULL
        if self._rest is not None:
            self._rest.close()

    @property
    def __name__(self):
        return self._name

    @property
    def __qualname__(self):
        return self._name

    def __dealloc__(self):
        if self._first != NULL:
            PyErr_WarnEx(RuntimeWarning, f"coroutine '{self._name}' was never awaited".encode(), 1)


cdef int send_to(PyObject* made, PyObject* value, PyObject** result) except -1:
    """Do the next step of a FastCoroutine, as ``PyIter_Send`` does."""
    cdef int how = PYGEN_NEXT
    cdef FastCoroutine self = <FastCoroutine> <object> made
    result[0] = NULL
    given = self._advance(<object> value)
    if given is OVER:
        given, self._result = self._result, None
        how = PYGEN_RETURN
    Py_INCREF(given)
    result[0] = <PyObject*> given
    return how


set_send(FastCoroutine, <void*> send_to)


def raise_error(kind, value=None, traceback=None):
    """Raise what ``throw`` was given."""
    if isinstance(kind, BaseException):
        value = kind
    elif not isinstance(value, BaseException):
        value = kind() if value is None else kind(value)
    raise value if traceback is None else value.with_traceback(traceback)


cdef object owner_of(function, str name):
    """The object whose compiled method of this name a function is, or None."""
    cdef PyObject* owner = PyCFunction_GET_SELF(function) if PyCFunction_Check(function) else NULL
    return <object> owner if owner != NULL and function.__name__ == name else None  # a static method has no owner


def pass_on(source, sink, Py_ssize_t limit):
    """Call ``sink(event)`` with what ``source()`` gives, until it gives None or ``limit`` were; returns how many."""
    cdef Py_ssize_t number = 0
    cdef FastPath path = None
    cdef BaseAsyncSession session = None
    owner = owner_of(source, "next")
    if isinstance(owner, FastPath):  # the embedded broker's own
        path = <FastPath> owner
    owner = owner_of(sink, "on_event")
    if isinstance(owner, BaseAsyncSession):
        session = <BaseAsyncSession> owner
    while number < limit:
        event = source() if path is None else path._next()
        if event is None:
            break
        number += 1
        if session is None:
            sink(event)
        else:
            session._on_event(event)
    return number


# --- the connection -----------------------------------------------------------------------------------------------


cdef class BaseWaits:
    """Whose loop it is. The base of the facade's, which waits."""

    cdef readonly object _loop
    cdef dict _fields  # of a loop that has, while it runs, the number of its thread, as asyncio's own loops do; or None
    cdef unsigned long _thread

    def adopt(self, loop):
        """Belong to a loop that runs in this thread; or to none."""
        self._thread = PyThread_get_thread_ident()
        fields = getattr(loop, "__dict__", None)
        self._fields = fields if type(fields) is dict and fields.get("_thread_id") == self._thread else None
        self._loop = loop

    def is_here(self):
        """Whether the loop runs in this thread."""
        return self._is_here()

    cdef bint _is_here(self) except -1:
        # To ask for the running loop makes a system call (CPython up to 3.11): a quarter of a publish. To call
        # `is_running` three times for a message is 6 % of its way from task to task; to get the attribute, 2 %.
        loop, fields = self._loop, self._fields
        if loop is None or self._thread != PyThread_get_thread_ident():
            return False
        return loop.is_running() if fields is None else (<dict> fields).get("_thread_id") is not None

    def check_loop(self):
        """Return the loop. Raises RuntimeError in another one, or in a thread without one."""
        raise NotImplementedError

    cdef int _check(self) except -1:
        if not self._is_here():
            self.check_loop()
        return 0


@cython.final
cdef class PacedPublish(PublishStep):
    """Publishing in one compiled step, so many messages at most between two turns of the loop.

    ``room``: how many more there may be before ``renew()`` is called.
    """

    cdef PublishStep _step
    cdef Py_ssize_t _limit
    cdef readonly Py_ssize_t room

    def __init__(self, PublishStep step not None, Py_ssize_t limit):
        self._step = step
        self._limit = self.room = limit
        self.takes_values = step.takes_values

    def renew(self):
        """Begin to count anew: the loop had its turn."""
        self.room = self._limit

    cdef object send(self, object channel, Delivery delivery, bint mandatory, object timeout, object confirm_timeout):
        cdef PublishStep step = self._step  # held: `__init__` may be called again meanwhile
        self.room -= 1
        result = step.send(channel, delivery, mandatory, timeout, confirm_timeout)
        self.takes_values = step.takes_values
        return result


cdef class BaseAsyncChannel:
    """What each message needs of its channel.

    ``messages``: where deliveries go, a BaseMessages, or None; ``positions``: of its consumers in streams, once there
    are any; ``publish_step`` and ``ack_step``: what publishes and acknowledges at once, or None.
    """

    cdef public object number
    cdef public bint is_open
    cdef public object transport
    cdef public object positions
    cdef public BaseMessages messages
    cdef BaseWaits _waits
    cdef CounterBlock _tally
    cdef PacedPublish _publish_step
    cdef AckStep _ack_step

    def __init__(self, number, transport, BaseWaits waits not None, CounterBlock tally not None,
                 PacedPublish publish_step, AckStep ack_step):
        self.number = number
        self.transport = transport
        self.is_open = True
        self._waits = waits
        self._tally = tally
        self._publish_step = publish_step
        self._ack_step = ack_step

    cdef bint _acknowledge(self, object delivery_tag) except -1:
        """Acknowledge a delivery if that is all there is to do. Returns whether it is done."""
        cdef AckStep step = self._ack_step  # held: `__init__` may be called again meanwhile
        cdef CounterBlock tally = self._tally
        cdef BaseWaits waits = self._waits
        waits._check()
        if step is None or not self.is_open or self.positions is not None or not step.acknowledge_tag(delivery_tag):
            return False
        tally._ack()
        return True


cdef class BaseAsyncSession:
    """The open channels of a connection: by their number for what comes in, by their role for what goes out.

    ``hooks``: what is around publishing and consuming, or None; ``declared``: what was declared since the connection is
    there, another set for another one; ``exchanges``: those that are known to be there; ``window``: what is sent and
    not answered.
    """

    cdef public BaseWaits waits
    cdef public CounterBlock tally
    cdef public object window
    cdef public object hooks
    cdef public object declared
    cdef public set exchanges
    cdef readonly dict channels
    cdef readonly dict roles

    def __cinit__(self):
        self.channels = {}
        self.roles = {}
        self.exchanges = set()

    # --- in

    def on_other_event(self, event):
        """Deal with an event that is no message for one of the consumers."""
        raise NotImplementedError

    def on_event(self, event):
        """Deal with an event of the transport: a message goes to where its channel's do."""
        self._on_event(event)

    cdef int _on_event(self, event) except -1:
        cdef BaseMessages messages
        if type(event) is Delivery:
            channel = self.channels.get((<Delivery> event).channel)
            if channel is not None:
                messages = (<BaseAsyncChannel?> channel).messages
                if messages is not None:
                    return messages._receive(<Delivery> event)
        self.on_other_event(event)
        return 0

    # --- out

    def publish_raised(self, error, Delivery delivery not None, BaseAsyncChannel channel not None):
        """Deal with an error of publishing, which is raised then."""
        raise NotImplementedError

    def publish_at_once(self, Delivery delivery not None, bint mandatory, str role not None):
        """Publish a message on the channel of a role, if it is its turn.

        Returns True if it is done, what has to be waited for if there is something, False if it is not sent.
        """
        return self._publish_at_once(delivery, mandatory, role, role != "plain")

    cdef object _publish_at_once(self, Delivery delivery, bint mandatory, str role, bint confirmed):
        cdef BaseAsyncChannel channel
        cdef PacedPublish step
        cdef CounterBlock tally = self.tally
        found = self.roles.get(role)
        if found is None or delivery.exchange not in self.exchanges:
            return False
        channel = <BaseAsyncChannel?> found
        step = channel._publish_step
        if step is None:
            window = self.window
            if window.sent and window.is_full or channel.transport.writable() is not None:
                return False
        elif step.room <= 0:
            return False
        try:
            if step is None:
                pending = channel.transport.publish(channel.number, delivery, mandatory)
            else:
                pending = step.send(channel.number, delivery, mandatory, None, None)
        except Exception as error:
            self.publish_raised(error, delivery, channel)
            raise
        if pending is not None:
            return pending
        tally._publish(delivery, confirmed)
        return True


# --- out ----------------------------------------------------------------------------------------------------------


cdef class BaseAsyncProducer(BaseMaker):
    """The step from the arguments of ``publish`` to the broker. The base of the asynchronous facade's producer.

    ``_session``: the connection's; ``_declared``: the connection's declarations that hold our exchange; ``role``: of
    the channel that it publishes on; ``confirm``: whether the broker has a message when its publish is done, also one
    that is not mandatory;
    ``_in_steps``: whether a program's class makes the messages, or has defaults of its own.
    """

    cdef public object exchange
    cdef public object routing_key
    cdef public object serializer
    cdef public object compression
    cdef public BaseAsyncSession _session
    cdef public object _declared
    cdef public str role
    cdef public bint confirm
    cdef public bint _in_steps

    def __cinit__(self, *args, **kwargs):
        self.routing_key = ""

    def _publish_slowly(self, sent, delivery, mandatory, declare=None, timeout=None, retry=False, retry_policy=None,
                        via=None):
        """Return the coroutine that publishes where there is more to do than to hand a message over.

        ``sent``: what has to be waited for, or False if it is not sent yet.
        """
        raise NotImplementedError

    cdef bint takes_values(self) except -1:
        cdef BaseAsyncSession session = self._session
        channel = None if session is None or session.hooks is not None else session.roles.get(self.role)
        if not isinstance(channel, BaseAsyncChannel) or (<BaseAsyncChannel> channel)._publish_step is None:
            return False
        return (<BaseAsyncChannel> channel)._publish_step.takes_values

    @cython.binding(True)
    def _publish(self, body, routing_key=None, *, bint mandatory=False, bint immediate=False, declare=None,
                 timeout=None, confirm_timeout=None, bint retry=False, retry_policy=None, via=None, **arguments):
        """Return the coroutine that publishes a message."""
        cdef FastCoroutine made
        given = None
        try:
            if confirm_timeout is not None:
                timeout = confirm_timeout if timeout is None else timeout + confirm_timeout
            if arguments or self._in_steps:
                given = <Delivery?> self.make(body, routing_key, **arguments)
            else:
                given = self._made(self.exchange, None, self.routing_key if routing_key is None else routing_key, body,
                                   None, 0, None, None, self.serializer, None, self.compression, None, None, None,
                                   NOTHING)
        except Exception as error:
            given = error
        made = FastCoroutine.__new__(FastCoroutine)
        made._first = publish_first
        made._name = "Producer.publish"
        made._owner = self
        made._given = given
        made._flag = mandatory
        if declare or timeout is not None or retry or via is not None:
            made._others = (declare, timeout, retry, retry_policy, via)
        return made


cdef object publish_first(FastCoroutine made):
    cdef BaseAsyncProducer producer = <BaseAsyncProducer> made._owner
    cdef BaseAsyncSession session = producer._session
    cdef Delivery delivery
    cdef tuple others = made._others
    cdef BaseWaits waits
    if type(made._given) is not Delivery:
        raise made._given  # why the message could not be made
    delivery = <Delivery> made._given
    waits = session.waits  # held: a loop may be a program's, and replace it when it is asked whether it runs
    waits._check()
    sent = False
    if (
        (others is None or not others[0] and not others[2] and others[4] is None)
        and (producer.confirm or not made._flag) and session.hooks is None and producer._declared is session.declared
    ):
        sent = session._publish_at_once(delivery, made._flag, producer.role, producer.confirm)
        if sent is True:
            return None
    made._rest = producer._publish_slowly(sent, delivery, made._flag, *(others or ()))


# --- in -----------------------------------------------------------------------------------------------------------

cdef enum:
    FEWEST_SLOTS = 8


cdef class BaseAsyncMessage(BaseMessage):
    """A delivery in the hands of its receiver. ``queue``: name of the queue that it came from."""

    cdef public object queue

    def __cinit__(self):
        self.queue = ""

    @property
    def payload(self):
        """The decoded body. Raises DecodeError, ContentDisallowed."""
        # Not by `decode`, which programs' own classes may replace: of this one they make none.
        if self._decoded is NOT_DECODED:
            self._decoded = self.load()
        return self._decoded

    def _ack_slowly(self, multiple):
        """Return the coroutine that acknowledges where there is more to do than to hand the ack over."""
        raise NotImplementedError

    @cython.binding(True)
    def _ack(self, bint multiple=False):
        """Return the coroutine that acknowledges the message."""
        cdef FastCoroutine made = FastCoroutine.__new__(FastCoroutine)
        made._first = ack_first
        made._name = "Message.ack"
        made._owner = self
        made._flag = multiple
        return made


cdef object ack_first(FastCoroutine made):
    cdef BaseAsyncMessage message = <BaseAsyncMessage> made._owner
    channel = message.channel
    if not made._flag and not message.no_ack and message._state == "RECEIVED" and channel is not None:
        if (<BaseAsyncChannel?> channel)._acknowledge(message.delivery_tag):
            message._state = "ACK"
            return None
    made._rest = message._ack_slowly(made._flag)


@cython.final
@cython.no_gc
cdef class DeliveryQueue:
    """Deliveries that are ready for the tasks of one loop, in their order: a ring, which is as long as it ever was.

    A deque takes three times the instructions, for each of its methods is looked up.
    """

    cdef PyObject** _slots
    cdef Py_ssize_t _capacity  # a power of two, or 0
    cdef Py_ssize_t _start
    cdef Py_ssize_t _count

    def __dealloc__(self):
        self._clear()

    def __len__(self):
        return self._count

    cdef int _grow(self) except -1:
        cdef Py_ssize_t capacity = max(2 * self._capacity, FEWEST_SLOTS)
        cdef PyObject** slots = <PyObject**> PyMem_Malloc(capacity * sizeof(PyObject*))
        cdef Py_ssize_t index
        if slots == NULL:
            raise MemoryError()
        for index in range(self._count):
            slots[index] = self._slots[(self._start + index) & (self._capacity - 1)]
        PyMem_Free(self._slots)
        self._slots, self._capacity, self._start = slots, capacity, 0
        return 0

    def append(self, Delivery delivery not None):
        """Put a delivery behind the others."""
        self._append(delivery)

    cdef int _append(self, Delivery delivery) except -1:
        if self._count == self._capacity:
            self._grow()
        Py_INCREF(delivery)
        self._slots[(self._start + self._count) & (self._capacity - 1)] = <PyObject*> delivery
        self._count += 1
        return 0

    def appendleft(self, Delivery delivery not None):
        """Put a delivery before the others."""
        if self._count == self._capacity:
            self._grow()
        Py_INCREF(delivery)
        self._start = (self._start - 1) & (self._capacity - 1)
        self._slots[self._start] = <PyObject*> delivery
        self._count += 1

    cdef Delivery _at(self, Py_ssize_t index):
        """The delivery of a slot, whose reference is the caller's from now on."""
        cdef PyObject* slot = self._slots[index & (self._capacity - 1)]
        delivery = <Delivery> slot
        Py_DECREF(delivery)
        self._count -= 1
        return delivery

    cdef Delivery _take(self):
        """Take the first one. Raises IndexError if there is none."""
        if self._count == 0:
            raise IndexError("no delivery is ready")
        self._start += 1
        return self._at(self._start - 1)

    def pop(self):
        """Take the last one. Raises IndexError if there is none."""
        if self._count == 0:
            raise IndexError("no delivery is ready")
        return self._at(self._start + self._count - 1)

    def clear(self):
        """Forget all of them."""
        self._clear()

    cdef int _clear(self) except -1:
        while self._count:
            self._take()
        PyMem_Free(self._slots)
        self._slots, self._capacity, self._start = NULL, 0, 0
        return 0


cdef class BaseMessages:
    """The deliveries of some consumers that are ready, and the step from one to a message. To be subclassed.

    ``cls``: what messages are made of; ``changes``: has ``wake()``, and the ``waiters`` to be woken; ``accept``: set on
    messages; ``in_steps``: whether a message takes more than being made: then all are left to ``next()``.
    """

    cdef readonly DeliveryQueue _ready
    cdef readonly dict _names  # consumer tag -> queue
    cdef public BaseAsyncChannel _channel
    cdef readonly object _changes
    cdef object _waiters
    cdef type _cls
    cdef CounterBlock _tally
    cdef object _accept
    cdef readonly bint _no_ack
    cdef bint _in_steps

    def __cinit__(self):
        self._cls = BaseAsyncMessage
        self._names = {}
        self._ready = DeliveryQueue.__new__(DeliveryQueue)

    def __init__(self, type cls not None, CounterBlock tally not None, changes, accept, bint no_ack, bint in_steps):
        if not issubclass(cls, BaseAsyncMessage):
            raise TypeError(f"messages are made of a subclass of BaseAsyncMessage, not of {cls.__name__}")
        self._waiters = changes.waiters
        self._cls = cls
        self._tally = tally
        self._changes = changes
        self._accept = accept
        self._no_ack = no_ack
        self._in_steps = in_steps

    cdef int _receive(self, Delivery delivery) except -1:
        self._ready._append(delivery)
        if self._waiters:  # in a stream of messages there are none
            self._changes.wake()
        return 0

    # --- what the facade adds

    def next(self):
        """Return the coroutine that waits for a message."""
        raise NotImplementedError

    def _note_offset(self, Delivery delivery not None):
        """Note that a message of a stream is taken."""
        raise NotImplementedError

    def _settle_unasked(self, message):
        """Settle a message that needs no ack, as it is handed over."""
        raise NotImplementedError

    def _leave_to_others(self):
        """Wake tasks that wait, for what is ready."""
        raise NotImplementedError

    # --- the hot path

    def _take(self):
        """Take what is ready; None if its connection is lost."""
        return self.take_ready()

    cdef BaseAsyncMessage take_ready(self):
        cdef BaseAsyncChannel channel = self._channel
        cdef BaseAsyncMessage message
        cdef Delivery delivery = self._ready._take()
        if not channel.is_open:
            return None  # it comes again on the next connection
        message = <BaseAsyncMessage?> received(self._cls, delivery, channel)
        message.queue = self._names.get(delivery.consumer_tag, "")
        message.accept = self._accept
        if delivery.properties.following_offset:
            self._note_offset(delivery)
        return message

    def _hand_over(self, BaseAsyncMessage message not None):
        """Count a message that is handed to the application, and return it."""
        return self.count_in(message)

    cdef BaseAsyncMessage count_in(self, BaseAsyncMessage message):
        cdef CounterBlock tally = self._tally
        cdef Delivery delivery = message._delivery
        if self._no_ack:
            self._settle_unasked(message)
        if delivery is None:
            raise TypeError("a message without a delivery: it was made by hand")
        tally._consume(delivery)
        return message

    def __aiter__(self):
        cdef MessageIterator made = MessageIterator.__new__(MessageIterator)
        made._source = self
        return made

    def __anext__(self):
        return next_of(self)


@cython.final
cdef class MessageIterator:
    """Iterator of one ``async for``, which asks it without a look at what a subclass may have."""

    cdef BaseMessages _source

    def __aiter__(self):
        return self

    def __anext__(self):
        return next_of(self._source)


cdef FastCoroutine next_of(BaseMessages source):
    cdef FastCoroutine made = FastCoroutine.__new__(FastCoroutine)
    made._first = next_first
    made._name = "Messages.__anext__"
    made._owner = source
    return made


cdef object next_first(FastCoroutine made):
    cdef BaseMessages source = <BaseMessages> made._owner
    cdef BaseAsyncChannel channel = source._channel
    cdef BaseAsyncMessage message
    cdef BaseWaits waits
    if not source._in_steps and source._ready._count and channel is not None:
        waits = channel._waits
        waits._check()
        try:
            message = source.take_ready()
            if message is not None:
                return source.count_in(message)
        except BaseException:
            source._leave_to_others()
            raise
    made._rest = source.next()
