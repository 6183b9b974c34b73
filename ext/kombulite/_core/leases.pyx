"""Messages of brokers that note who has them: to the application as one step, and its ack as another."""

cimport cython
from cpython.weakref cimport PyWeakref_NewRef

from kombulite._core.channel cimport AckStep
from kombulite._core.envelopes cimport EnvelopeReader
from kombulite._core.locks cimport BaseLock
from kombulite._core.message cimport Delivery

from kombulite._core.envelope import MalformedEnvelope


@cython.final
cdef class Lease:
    """A message that was taken from a list: its envelope, and where it came from. ``tag``: None where none is noted.

    ``is_back``: whether it was put back into its list: the server notes that only of what it has leased; ``was_seen``:
    whether the application has had it; ``delivery``: a weak reference to what that got, or None.
    """

    cdef public object tag
    cdef public object queue
    cdef public object key
    cdef public object envelope
    cdef public object delivery
    cdef public bint is_fanout
    cdef public bint is_back
    cdef public bint was_seen

    def __cinit__(self, tag, queue, key, envelope, bint is_fanout=False):
        self.tag = tag
        self.queue = queue
        self.key = key
        self.envelope = envelope
        self.is_fanout = is_fanout


cdef class BaseClaimQueue:
    """What a channel has taken from queues. The base of the facade's, which takes it.

    ``ready``: a deque of leases to be handed over; ``consumers``: a deque of them for each queue, the next one first.
    """

    cdef public object ready
    cdef public dict consumers

    def __cinit__(self, *args, **kwargs):
        self.consumers = {}


cdef class BaseLeaseChannel:
    """A channel as far as its messages go. The base of the facade's, which has the consumers.

    ``leased``, ``taken``: what is handed over to be acknowledged, and what is not; ``outstanding``: the leases that the
    application has, by tag; ``fanout``: what waits besides; ``prefetch_count``: how many may be outstanding, 0 for any
    number; ``active``, ``is_closing``: whether messages may be handed over; ``error``: what comes before them, or None.
    """

    cdef public object number
    cdef public object prefetch_count
    cdef public bint active
    cdef public bint is_closing
    cdef public object error
    cdef public dict outstanding
    cdef public object fanout
    cdef public BaseClaimQueue leased
    cdef public BaseClaimQueue taken

    def __cinit__(self, *args, **kwargs):
        self.prefetch_count = 0
        self.active = True
        self.outstanding = {}

    cdef BaseClaimQueue _source(self):
        """What the next message comes from, if nothing else may come before it."""
        cdef BaseClaimQueue leased = self.leased, taken = self.taken
        if leased is None or taken is None or self.fanout or self.error is not None:
            return None
        if not self.active or self.is_closing:
            return None
        if not leased.ready:
            return taken if taken.ready else None
        if taken.ready or (self.prefetch_count and len(self.outstanding) >= self.prefetch_count):
            return None
        return leased


@cython.final
cdef class LeasedMessages:
    """The messages that wait on a channel, where there is nothing to do but to hand over the next.

    Args:
        envelopes: Reads them.
        lock: Guards the channels, and what they have; None where no other thread may touch them.
    """

    cdef EnvelopeReader _envelopes
    cdef BaseLock _lock

    def __cinit__(self, EnvelopeReader envelopes not None, BaseLock lock):
        self._envelopes = envelopes
        self._lock = lock

    def next(self, BaseLeaseChannel channel not None):
        """Hand over a message (a Delivery), which is noted if it was leased. None if there is none, or more to do."""
        return self._next(channel)

    cdef Delivery _next(self, BaseLeaseChannel channel):
        if channel._source() is None:
            return None
        if self._lock is None:
            return self._take(channel)
        if not self._lock._acquire(0):
            return None
        try:
            return self._take(channel)
        finally:
            self._lock._release()

    cdef Delivery _take(self, BaseLeaseChannel channel):
        cdef BaseClaimQueue source = channel._source()  # again: until now another thread may have taken it
        cdef Lease lease
        cdef Delivery delivery
        if source is None:
            return None
        ready = source.ready
        lease = <Lease?> ready[0]
        consumers = source.consumers.get(lease.queue)
        if lease.is_fanout or not consumers:
            return None
        try:
            delivery = self._envelopes._read(lease.queue, lease.envelope)
        except MalformedEnvelope:
            return None
        # Properties that no protocol has may say that it is too old; what came back may have a flag to be taken off.
        if delivery.properties.extra is not None or delivery.redelivered:
            return None
        if source.ready is not ready or not ready or ready[0] is not lease:  # a decoder in Python has had its way
            return None
        ready.popleft()
        consumers.rotate(-1)
        delivery.channel = channel.number
        delivery.consumer_tag = consumers[-1].tag
        delivery.delivery_tag = lease.tag
        if source is channel.leased:
            lease.was_seen = True
            lease.delivery = PyWeakref_NewRef(delivery, None)
            channel.outstanding[lease.tag] = lease
        return delivery


@cython.final
cdef class LeaseReceive:
    """The next message of the channel that was served last, as one step, where there is nothing else to receive.

    ``channel``: that channel, or None; ``looks``: how often there was a look for a message, which is counted here too:
    each ``every`` looks it is left to the transport, which hears what the server has to say.

    Args:
        messages: What waits on channels.
        receiving: The lock of who receives.
        events: What is to be received before.
        every: How many looks there are from one to be left to the transport to the next.
    """

    cdef LeasedMessages _messages
    cdef BaseLock _receiving
    cdef object _events
    cdef unsigned int _every
    cdef public BaseLeaseChannel channel
    cdef public unsigned int looks

    def __cinit__(self, LeasedMessages messages not None, BaseLock receiving not None, events, unsigned int every):
        self._messages = messages
        self._receiving = receiving
        self._events = events
        self._every = max(every, 1)

    def next(self):
        """Take a message (a Delivery); None if there is none, or something else to do or to wait for."""
        cdef BaseLeaseChannel channel = self.channel
        if channel is None or self.looks % self._every == 0 or self._events or not self._receiving._acquire(0):
            return None
        try:
            self.looks += 1
            return self._messages._next(channel)
        finally:
            self._receiving._release()


@cython.final
cdef class LeaseAck(AckStep):
    """Has the ack of a message wait for those that are about to follow, to be sent together.

    Args:
        channel: The message's; ``keep(leases)`` makes leases outstanding again.
        channels: Those that are open, by number.
        stream: ``check()`` raises if nothing can be sent; ``before_send``: what sends the acks that wait, or None.
        acks: ``is_over``: whether none may wait any more; ``joined()`` has those that wait sent soon.
        held: The deque of those that wait, as pairs of channel and lease.
        least: How many messages must be about to follow for the first to wait.
        most: How many may wait.
        sleeper: ``is_sleeping``: whether a thread waits for messages, which ``wake()`` has look again.
    """

    cdef BaseLeaseChannel _channel
    cdef dict _channels
    cdef object _stream
    cdef object _acks
    cdef object _held
    cdef Py_ssize_t _least
    cdef Py_ssize_t _most
    cdef object _sleeper

    def __cinit__(self, BaseLeaseChannel channel not None, dict channels not None, stream, acks, held,
                  Py_ssize_t least, Py_ssize_t most, sleeper):
        self._channel = channel
        self._channels = channels
        self._stream = stream
        self._acks = acks
        self._held = held
        self._least = least
        self._most = most
        self._sleeper = sleeper

    cdef bint acknowledge_tag(self, object delivery_tag) except -1:
        cdef BaseLeaseChannel channel = self._channel
        cdef Py_ssize_t waiting = len(self._held), following
        if channel.leased is None or channel.error is not None or self._channels.get(channel.number) is not channel:
            return False
        following = len(channel.leased.ready)
        if not following or waiting >= self._most or (not waiting and following < self._least):
            return False
        self._stream.check()
        lease = channel.outstanding.pop(delivery_tag, None)
        if lease is None:
            return False
        self._held.append((channel, lease))
        # Another thread may have sent, or taken, what waited before that.
        if self._acks.is_over or self._stream.before_send is None:
            try:
                self._acks.joined()
            except BaseException:
                channel.keep((lease,))  # the server does not know
                raise
        if self._sleeper.is_sleeping:
            self._sleeper.wake()
        return True
