"""Messages on an event loop where nothing has to wait: out through a channel, in to a task, and their acks.

``publish``, ``__anext__`` and ``ack`` return a coroutine whose first step is compiled, and mostly its last one too.
What has to wait, and what is rare, is a coroutine of the facade's subclasses, which goes on in its place.

The module is longer than others: all three share the coroutine and the look at the loop, which is compiled into each.
"""

cimport cython
from cpython.exc cimport PyErr_SetObject, PyErr_WarnEx
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF

from kombulite._core.channel cimport AckStep, PublishStep
from kombulite._core.message cimport BaseMessage, CounterBlock, Delivery, received
from kombulite._core.outgoing cimport BaseMaker

from kombulite._core.message import NOT_DECODED

cdef extern from "Python.h":
    int PyIter_Send(object iterator, object value, PyObject** result) except -1
    int PYGEN_RETURN
    unsigned long PyThread_get_thread_ident()


# --- coroutines ---------------------------------------------------------------------------------------------------

cdef object OVER = object()  # what a coroutine gives that has ended
cdef dict NOTHING = {}


cdef class FastCoroutine:
    """A coroutine whose first step is compiled, and mostly its last one too. To be subclassed.

    Nothing is done before it is awaited; it warns if it never is.
    """

    cdef bint _is_begun
    cdef object _rest  # the coroutine that goes on in its place, if one does
    cdef object _result

    cdef object _begin(self):
        """Do the first step. Returns the result, or sets ``_rest``."""
        raise NotImplementedError

    cdef str _name(self):
        raise NotImplementedError

    cdef object _advance(self, object value):
        """Do the next step. Returns what is to be waited for; OVER if there is nothing, and ``_result`` is set."""
        cdef PyObject* given = NULL
        cdef int how
        rest = self._rest
        if rest is None:
            if self._is_begun:
                raise RuntimeError("cannot reuse already awaited coroutine")
            self._is_begun = True
            self._result = self._begin()
            rest = self._rest
            if rest is None:
                return OVER
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
        if self._result is not None:
            # Neither a tuple nor an exception: these would be taken for StopIteration's arguments.
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
        if self._rest is not None:
            return self._rest.throw(*error)
        self._is_begun = True
        raise_error(*error)

    def close(self):
        """End it."""
        self._is_begun = True
        if self._rest is not None:
            self._rest.close()

    @property
    def __name__(self):
        return self._name()

    @property
    def __qualname__(self):
        return self._name()

    def __dealloc__(self):
        if not self._is_begun:
            PyErr_WarnEx(RuntimeWarning, f"coroutine '{self._name()}' was never awaited".encode(), 1)


def raise_error(kind, value=None, traceback=None):
    """Raise what ``throw`` was given."""
    if isinstance(kind, BaseException):
        value = kind
    elif not isinstance(value, BaseException):
        value = kind() if value is None else kind(value)
    raise value if traceback is None else value.with_traceback(traceback)


def pass_on(source, sink, Py_ssize_t limit):
    """Call ``sink(event)`` with what ``source()`` gives, until it gives None or ``limit`` were; returns how many."""
    cdef Py_ssize_t number = 0
    while number < limit and (event := source()) is not None:
        number += 1
        sink(event)
    return number


# --- the connection -----------------------------------------------------------------------------------------------


cdef class BaseWaits:
    """Whose loop it is. The base of the facade's, which waits."""

    cdef readonly object _loop
    cdef bint _names_thread  # whether the loop has, while it runs, the number of its thread: asyncio's own loops do
    cdef unsigned long _thread

    def adopt(self, loop):
        """Belong to a loop that runs in this thread; or to none."""
        self._thread = PyThread_get_thread_ident()
        self._names_thread = getattr(loop, "_thread_id", None) == self._thread
        self._loop = loop

    def is_here(self):
        """Whether the loop runs in this thread."""
        return self._is_here()

    cdef bint _is_here(self) except -1:
        # To ask for the running loop makes a system call (CPython up to 3.11): a quarter of a publish. To call
        # `is_running` three times for a message is 6 % of its way from task to task.
        loop = self._loop
        if loop is None or self._thread != PyThread_get_thread_ident():
            return False
        return loop._thread_id is not None if self._names_thread else loop.is_running()

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

    def renew(self):
        """Begin to count anew: the loop had its turn."""
        self.room = self._limit

    cdef object send(self, object channel, Delivery delivery, bint mandatory, object timeout, object confirm_timeout):
        self.room -= 1
        return self._step.send(channel, delivery, mandatory, timeout, confirm_timeout)


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
        cdef BaseMessages messages
        if type(event) is Delivery:
            channel = self.channels.get((<Delivery> event).channel)
            if channel is not None:
                messages = (<BaseAsyncChannel?> channel).messages
                if messages is not None:
                    messages._receive(<Delivery> event)
                    return
        self.on_other_event(event)

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
        window = self.window
        if window.sent and window.is_full:
            return False
        step = channel._publish_step
        if step is None:
            if channel.transport.writable() is not None:
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
    the channel that it publishes on; ``confirm``: whether the broker has a message when its publish is done.
    """

    cdef public BaseAsyncSession _session
    cdef public object _declared
    cdef public str role
    cdef public bint confirm

    def _publish_slowly(self, sent, delivery, mandatory, declare, timeout, retry, retry_policy, via):
        """Return the coroutine that publishes where there is more to do than to hand a message over.

        ``sent``: what has to be waited for, or False if it is not sent yet.
        """
        raise NotImplementedError

    def _publish(self, body, routing_key, bint mandatory, declare, timeout, bint retry, retry_policy, via,
                 dict arguments not None):
        """Return the coroutine that publishes a message."""
        cdef Publication made
        cdef Delivery delivery = None
        failure = None
        try:
            if arguments:
                delivery = <Delivery?> self.make(body, routing_key, **arguments)
            else:
                delivery = self._made(self.exchange, None, routing_key, body, None, 0, None, None, None, None, None,
                                      None, None, None, NOTHING)
        except Exception as error:
            failure = error
        made = Publication.__new__(Publication)
        made._producer = self
        made._delivery = delivery
        made._failure = failure
        made._mandatory = mandatory
        made._is_plain = not declare and not retry and via is None
        made._declare = declare
        made._timeout = timeout
        made._retry = retry
        made._retry_policy = retry_policy
        made._via = via
        return made


@cython.final
cdef class Publication(FastCoroutine):
    """What ``publish`` returns."""

    cdef BaseAsyncProducer _producer
    cdef Delivery _delivery
    cdef object _failure  # why the message could not be made
    cdef bint _mandatory
    cdef bint _is_plain
    cdef object _declare
    cdef object _timeout
    cdef bint _retry
    cdef object _retry_policy
    cdef object _via

    cdef str _name(self):
        return "Producer.publish"

    cdef object _begin(self):
        cdef BaseAsyncProducer producer = self._producer
        cdef BaseAsyncSession session = producer._session
        cdef BaseWaits waits
        cdef Delivery delivery = self._delivery
        if delivery is None:
            raise self._failure
        waits = session.waits  # held: a loop may be a program's, and replace it when it is asked whether it runs
        waits._check()
        sent = False
        if self._is_plain and session.hooks is None and producer._declared is session.declared:
            sent = session._publish_at_once(delivery, self._mandatory, producer.role, producer.confirm)
            if sent is True:
                return None
        self._rest = producer._publish_slowly(sent, delivery, self._mandatory, self._declare, self._timeout,
                                              self._retry, self._retry_policy, self._via)


# --- in -----------------------------------------------------------------------------------------------------------


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
            self._decoded = self.loads(self.body, self.content_type, self.content_encoding, self.accept)
        return self._decoded

    def _ack_slowly(self, multiple):
        """Return the coroutine that acknowledges where there is more to do than to hand the ack over."""
        raise NotImplementedError

    def _ack(self, bint multiple):
        """Return the coroutine that acknowledges the message."""
        cdef Acknowledgement made = Acknowledgement.__new__(Acknowledgement)
        made._message = self
        made._multiple = multiple
        return made


@cython.final
cdef class Acknowledgement(FastCoroutine):
    """What ``ack`` returns."""

    cdef BaseAsyncMessage _message
    cdef bint _multiple

    cdef str _name(self):
        return "Message.ack"

    cdef object _begin(self):
        cdef BaseAsyncMessage message = self._message
        channel = message.channel
        if not self._multiple and not message.no_ack and message._state == "RECEIVED" and channel is not None:
            if (<BaseAsyncChannel?> channel)._acknowledge(message.delivery_tag):
                message._state = "ACK"
                return None
        self._rest = message._ack_slowly(self._multiple)


cdef class BaseMessages:
    """The deliveries of some consumers that are ready, and the step from one to a message. To be subclassed.

    ``cls``: what messages are made of; ``changes``: has ``wake()``, and the ``waiters`` to be woken; ``accept``: set on
    messages; ``in_steps``: whether a message takes more than being made: then all are left to ``next()``.
    """

    cdef readonly object _ready  # a deque of deliveries
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

    def __init__(self, type cls not None, CounterBlock tally not None, ready, changes, accept, bint no_ack,
                 bint in_steps):
        if not issubclass(cls, BaseAsyncMessage):
            raise TypeError(f"messages are made of a subclass of BaseAsyncMessage, not of {cls.__name__}")
        self._waiters = changes.waiters
        self._cls = cls
        self._tally = tally
        self._ready = ready
        self._changes = changes
        self._accept = accept
        self._no_ack = no_ack
        self._in_steps = in_steps

    cdef int _receive(self, Delivery delivery) except -1:
        self._ready.append(delivery)
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
        cdef Delivery delivery = <Delivery?> self._ready.popleft()
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
        return self

    def __anext__(self):
        cdef NextMessage made = NextMessage.__new__(NextMessage)
        made._source = self
        return made


@cython.final
cdef class NextMessage(FastCoroutine):
    """What ``__anext__`` returns."""

    cdef BaseMessages _source

    cdef str _name(self):
        return "Messages.__anext__"

    cdef object _begin(self):
        cdef BaseMessages source = self._source
        cdef BaseAsyncChannel channel = source._channel
        cdef BaseAsyncMessage message
        cdef BaseWaits waits
        if not source._in_steps and source._ready and channel is not None:
            waits = channel._waits
            waits._check()
            try:
                message = source.take_ready()
                if message is not None:
                    return source.count_in(message)
            except BaseException:
                source._leave_to_others()
                raise
        self._rest = source.next()
