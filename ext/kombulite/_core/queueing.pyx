"""Messages that wait, and messages that are out: what a transport keeps that is its own broker, or half of one.

Times are arguments, in seconds of whatever clock the caller uses; nothing here waits or wakes. Each object may be used
from many threads at once: its methods are atomic (by the GIL, or by critical sections where there is none).

The module is longer than others: a message goes from its queue to what a consumer holds, and back, in one step.
"""

cimport cython
from cpython.bytes cimport PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.string cimport memcpy

from kombulite._core.message cimport Delivery, size_of
from kombulite._core.plain cimport PlainValue

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX


cdef inline Py_ssize_t size_of_content(object content) except -1:
    if type(content) is PlainValue:
        return (<PlainValue> content).size
    return PyBytes_GET_SIZE(content)


@cython.final
@cython.no_gc
cdef class _Place:
    """What a message that waits has in common with its neighbours: all but its body."""


cdef enum:
    FEWEST_SLOTS = 8
    KEPT_SLOTS = 1024  # of an empty queue
    MOST_VALUES = 5000  # that wait in a queue as they are


@cython.final
@cython.no_gc
cdef class _Level:
    """The messages of one priority: a ring of slots, 16 bytes each.

    Most messages wait as their _Place and their body, which takes 128 bytes less than a Delivery would. Others wait as
    Deliveries, behind None for a place: those that were put back, which come first, and those that expire. But for what
    was put back the positions follow one another. To add and to take runs no Python code, and allocates nothing that
    the garbage collector tracks.
    """

    def __dealloc__(self):
        self.clear()

    cdef Slot* at(self, Py_ssize_t index) noexcept:
        return &self.slots[(self.start + index) & (self.capacity - 1)]

    cdef int grow(self) except -1:
        cdef Py_ssize_t capacity = max(2 * self.capacity, FEWEST_SLOTS)
        cdef Py_ssize_t first = self.capacity - self.start  # those up to the end of the ring
        cdef Slot* slots
        if self.capacity > PY_SSIZE_T_MAX // 4 // <Py_ssize_t> sizeof(Slot):
            raise MemoryError()
        slots = <Slot*> PyMem_Malloc(capacity * sizeof(Slot))
        if slots == NULL:
            raise MemoryError()
        if self.slots != NULL:
            memcpy(slots, self.slots + self.start, first * sizeof(Slot))
            memcpy(slots + first, self.slots, self.start * sizeof(Slot))
            PyMem_Free(self.slots)
        self.slots = slots
        self.capacity = capacity
        self.start = 0
        return 0

    cdef int add(self, object place, object content) except -1:
        """Append a message, whose position is the next."""
        cdef Slot* slot
        if self.count == self.capacity:
            self.grow()
        slot = self.at(self.count)
        Py_INCREF(place)
        Py_INCREF(content)
        slot.place = <PyObject*> place
        slot.content = <PyObject*> content
        self.count += 1
        self.position += 1
        return 0

    cdef int put_back(self, Delivery delivery) except -1:
        """Insert a message at its position."""
        cdef Py_ssize_t index = 0, other
        cdef Slot* slot
        if self.count == self.capacity:
            self.grow()
        while index < self.count:
            slot = self.at(index)
            if slot.place != <PyObject*> None or (<Delivery> slot.content).position > delivery.position:
                break
            index += 1
        self.start = (self.start - 1) & (self.capacity - 1)
        for other in range(index):
            self.at(other)[0] = self.at(other + 1)[0]
        slot = self.at(index)
        Py_INCREF(None)
        Py_INCREF(delivery)
        slot.place = <PyObject*> None
        slot.content = <PyObject*> delivery
        self.count += 1
        return 0

    cdef Delivery head(self):
        """The first message, if it waits as a Delivery; or None."""
        if self.count == 0 or self.at(0).place != <PyObject*> None:
            return None
        return <Delivery> self.at(0).content

    cdef Delivery take(self):
        """Take the first message, or None."""
        cdef Slot* slot
        cdef Delivery delivery
        cdef _Place place
        if self.count == 0:
            return None
        slot = self.at(0)
        content = <object> slot.content
        if slot.place == <PyObject*> None:
            delivery = <Delivery> content
        else:
            place = <_Place> slot.place
            delivery = Delivery.__new__(Delivery)  # before the slot is left: there may be no memory
            delivery.exchange = place.exchange
            delivery.routing_key = place.routing_key
            delivery.properties = place.properties
            delivery.content = content
            delivery.position = self.position - self.count + 1
            delivery.size = size_of_content(content)
        Py_DECREF(<object> slot.place)
        Py_DECREF(content)
        self.start = (self.start + 1) & (self.capacity - 1)
        self.count -= 1
        if self.count == 0 and self.capacity > KEPT_SLOTS:
            self.clear()
        return delivery

    cdef int clear(self) except -1:
        cdef Slot* slots = self.slots
        cdef Py_ssize_t capacity = self.capacity, start = self.start, count = self.count, index
        self.slots = NULL
        self.capacity = self.start = self.count = 0
        # What goes may be a program's, and come back here: the ring is another by then.
        for index in range(count):
            Py_DECREF(<object> slots[(start + index) & (capacity - 1)].place)
            Py_DECREF(<object> slots[(start + index) & (capacity - 1)].content)
        PyMem_Free(slots)
        return 0


@cython.final
cdef class MessageQueue:
    """Messages in the order they came, the highest priority first.

    ``max_priority``: priorities are 0 to that, a higher one counts as it. What comes out is a Delivery of the queue's
    own, whatever becomes of the publisher's. Each message knows its position, so that one that is put back finds its
    place again. Messages expire at the head only, as in RabbitMQ: one that lives on keeps those behind it.
    """

    def __cinit__(self, int max_priority=0):
        if max_priority < 0:
            raise ValueError(f"the highest priority is 0 or more, not {max_priority}")
        self._levels = [_Level.__new__(_Level) for _ in range(max_priority + 1)]
        if max_priority == 0:
            self._level = <_Level> self._levels[0]

    def __len__(self):
        cdef Py_ssize_t count = 0
        for level in self._levels:
            count += (<_Level> level).count
        return count

    cdef bint _takes_values(self) except -1:
        """Whether a message may wait as a PlainValue: while few wait, for it takes more memory than its text."""
        return (len(self) if self._level is None else self._level.count) < MOST_VALUES

    cdef _Level _level_of(self, Delivery delivery):
        if self._level is not None:
            return self._level
        priority = delivery.properties.priority
        if not isinstance(priority, int) or priority <= 0:
            return <_Level> self._levels[0]
        return <_Level> self._levels[min(priority, len(self._levels) - 1)]

    cdef _Place _place_of(self, Delivery delivery):
        cdef _Place place = self._place
        if (
            place is None or delivery.routing_key is not place.routing_key
            or delivery.properties is not place.properties or delivery.exchange is not place.exchange
        ):
            place = _Place.__new__(_Place)
            place.exchange = delivery.exchange
            place.routing_key = delivery.routing_key
            place.properties = delivery.properties
            self._place = place
        return place

    def add(self, Delivery delivery not None, double expires_at=0):
        """Append a message. ``expires_at``: when it does, 0 for never."""
        self._add(delivery, expires_at)

    def add_unless_expiring(self, Delivery delivery not None):
        """Append a message that stays until it is taken; returns whether it is one."""
        if delivery.properties.expiration is not None:
            return False
        self._add(delivery, 0)
        return True

    cdef int _add(self, Delivery delivery, double expires_at) except -1:
        cdef Delivery own
        cdef _Level level
        cdef object body = delivery.content
        if delivery.properties is None:
            raise TypeError("a Delivery without properties: it was made without its __init__")
        if type(body) is PlainValue and not self._takes_values():
            body = delivery.sent_body()  # one text, for whatever other queues it goes to
        if expires_at == 0 and (type(body) is PlainValue or PyBytes_CheckExact(body)):
            with cython.critical_section(self):
                self._level_of(delivery).add(self._place_of(delivery), body)
                self.size += size_of_content(body)
            return 0
        own = delivery.copy()
        own.size = size_of(own)  # once: the body may change, or refuse to tell when it is taken
        own.expires_at = expires_at
        with cython.critical_section(self):
            level = self._level_of(own)
            own.position = level.position + 1
            level.add(None, own)
            if expires_at:
                self.may_expire = True
            self.size += own.size
        return 0

    def put_back(self, Delivery delivery not None):
        """Put a message that was taken back into its place, as redelivered.

        A copy goes back: whoever took the message keeps the original.
        """
        cdef Delivery again = delivery.copy()
        again.position = delivery.position
        again.expires_at = delivery.expires_at
        again.redelivered = True
        again.delivery_count = delivery.delivery_count + 1
        again.size = delivery.size or size_of(again)
        if not self._takes_values():
            again.sent_body()
        with cython.critical_section(self):
            self._level_of(again).put_back(again)
            self.size += again.size

    def pop(self):
        """Take the next message, or None."""
        with cython.critical_section(self):
            return self._pop()

    cdef Delivery _pop(self):
        cdef Delivery delivery = None
        if self._level is not None:
            delivery = self._level.take()
        else:
            for level in reversed(self._levels):
                delivery = (<_Level> level).take()
                if delivery is not None:
                    break
        if delivery is not None:
            self.size -= delivery.size
        return delivery

    def pop_expired(self, double now):
        """Take the messages whose time is over (a list)."""
        with cython.critical_section(self):
            return self._pop_expired(now)

    cdef list _pop_expired(self, double now):
        cdef list expired = []
        cdef Delivery delivery
        for level in self._levels:
            while (delivery := (<_Level> level).head()) is not None and 0 < delivery.expires_at <= now:
                delivery = (<_Level> level).take()
                self.size -= delivery.size
                expired.append(delivery)
        return expired

    def next_expiry(self):
        """When a message expires next, or None."""
        cdef Delivery delivery
        cdef double soonest = 0
        with cython.critical_section(self):
            for level in self._levels:
                delivery = (<_Level> level).head()
                if delivery is not None and delivery.expires_at and not 0 < soonest <= delivery.expires_at:
                    soonest = delivery.expires_at
        return soonest or None

    def clear(self):
        """Remove all messages; returns how many."""
        cdef Py_ssize_t removed = 0
        with cython.critical_section(self):
            self.size = 0
            for level in self._levels:
                removed += (<_Level> level).count
                (<_Level> level).clear()
            return removed


@cython.final
cdef class UnackedDeliveries(AckStep):
    """The deliveries of one channel that are not settled yet, by delivery tag.

    ``prefetch_count``: how many there may be (0: no bound); ``active``: whether there may be more at all; ``stalled``:
    the consumers that wait for an ack, not for a message; ``highest_tag``: that of the last delivery. Tags begin above
    ``tag_offset``.
    """

    def __cinit__(self, unsigned long long tag_offset=0):
        self._outstanding = {}
        self.stalled = []
        self.active = True
        self.highest_tag = tag_offset

    def __len__(self):
        return len(self._outstanding)

    cpdef bint has_credit(self):
        """Whether another delivery may be made."""
        if not self.active or self._closed:
            return False
        return self.prefetch_count == 0 or len(self._outstanding) < self.prefetch_count

    def hand_over(self, Delivery delivery not None, MessageQueue source, unsigned int channel, consumer_tag,
                  bint no_ack):
        """Give a delivery its tag, for a consumer (None for the answer to a get); unless ``no_ack`` note it, and on it
        the queue it was taken from (None if that is elsewhere)."""
        with cython.critical_section(self):
            self._hand_over(delivery, source, channel, consumer_tag, no_ack)

    cdef int _hand_over(self, Delivery delivery, MessageQueue source, unsigned int channel, consumer_tag,
                        bint no_ack) except -1:
        self.highest_tag += 1
        delivery.delivery_tag = self.highest_tag
        delivery.channel = channel
        delivery.consumer_tag = consumer_tag
        if not no_ack:
            delivery.source = source
            self._outstanding[delivery.delivery_tag] = delivery
        return 0

    def settle(self, delivery_tag):
        """Strike a delivery, and return it. Raises KeyError if it is not outstanding."""
        with cython.critical_section(self):
            return self._outstanding.pop(delivery_tag)

    cdef bint acknowledge_tag(self, object delivery_tag) except -1:
        """Strike a delivery if that is all there is to do: it is outstanding, and no consumer waits for its credit."""
        with cython.critical_section(self):
            return not self.stalled and self._outstanding.pop(delivery_tag, None) is not None

    def settle_all(self, delivery_tags):
        """Strike some deliveries, all or none. Returns them (a list). Raises KeyError if one is not outstanding."""
        with cython.critical_section(self):
            settled = {tag: self._outstanding[tag] for tag in delivery_tags}  # a tag that comes twice is one delivery
            for tag in settled:
                del self._outstanding[tag]
            return list(settled.values())

    def settle_up_to(self, delivery_tag):
        """Strike all deliveries up to a tag, 0 for all. Returns them (a list, in their order)."""
        with cython.critical_section(self):
            if delivery_tag:
                tags = [tag for tag in list(self._outstanding) if tag <= delivery_tag]  # comparing may fail midway
                return [self._outstanding.pop(tag) for tag in tags]
            settled = list(self._outstanding.values())
            self._outstanding.clear()  # not another one: a tag's hash may be a program's, called while it is looked up
            return settled

    def close(self):
        """Strike all deliveries, and allow no more. Returns them (a list, in their order)."""
        with cython.critical_section(self):
            self._closed = True
            settled = list(self._outstanding.values())
            self._outstanding.clear()
            return settled


cdef class ConsumerSlot:
    """A consumer as far as claiming goes: the queue it takes from, the ledger of its channel. To be subclassed.

    What it claims gets that queue as its ``source``.
    """

    def __init__(self, MessageQueue messages not None, UnackedDeliveries ledger not None,
                 unsigned int channel_number, tag,
                 bint no_ack):
        self.messages = messages
        self.ledger = ledger
        self.channel_number = channel_number
        self.tag = tag
        self.no_ack = no_ack

    def may_claim(self):
        """Whether it could take another message, if there is one."""
        if self.ledger is None:
            raise TypeError("a ConsumerSlot without a ledger: it was made without its __init__")
        with cython.critical_section(self.ledger):  # an ack that is under way has seen who is stalled, or is seen here
            return self.ledger.active if self.no_ack else self.ledger.has_credit()


@cython.final
cdef class ConsumerRing:
    """The consumers of one connection whose queues may have something for them, taking turns.

    Some leave it without a message: their queue was empty, or they have no credit left; and messages may be found
    expired. ``take_left`` tells.
    """

    def __cinit__(self):
        self._ready = []
        self.left = []
        self._forget_left()

    cdef int _forget_left(self) except -1:
        self._emptied = []
        self._stalled = []
        self._expired = []
        self.left.clear()
        return 0

    def take_left(self):
        """Who left the rota since the last call: (those of empty queues, those without credit, expired messages).

        The messages come as (their queue, delivery).
        """
        with cython.critical_section(self):
            left = self._emptied, self._stalled, self._expired
            self._forget_left()
            return left

    def __iter__(self):
        with cython.critical_section(self):
            return iter(list(self._ready))

    def add(self, ConsumerSlot claimant not None):
        """Add a consumer, if it is not listed yet."""
        if claimant.messages is None:
            raise TypeError("a ConsumerSlot without a queue: it was made without its __init__")
        with cython.critical_section(self):
            if not claimant.listed:
                claimant.listed = True
                self._ready.append(claimant)

    def remove(self, ConsumerSlot claimant not None):
        """Remove a consumer, if it is listed."""
        with cython.critical_section(self):
            self._unlist(claimant)
            self._emptied = [other for other in self._emptied if other is not claimant]
            self._stalled = [other for other in self._stalled if other is not claimant]

    cdef int _unlist(self, ConsumerSlot claimant) except -1:
        cdef Py_ssize_t place
        if claimant.listed:
            claimant.listed = False
            for place in range(len(self._ready)):
                if self._ready[place] is claimant:  # not `==`: subclasses may be equal
                    break
            else:
                return 0  # another rota's
            del self._ready[place]
            if place < self._turn:
                self._turn -= 1
        return 0

    def next(self, double now):
        """Claim the next message (a Delivery), or None. ``now``: the time, 0 if nothing can have expired."""
        return self._next(now)

    cdef Delivery _next(self, double now):
        cdef ConsumerSlot claimant
        with cython.critical_section(self):
            while self._ready:
                if self._turn >= len(self._ready):
                    self._turn = 0
                claimant = <ConsumerSlot> self._ready[self._turn]
                # Taking from the queue and noting it are one step: a channel closed meanwhile leaves nothing behind.
                with cython.critical_section(claimant.messages, claimant.ledger):
                    delivery = self._claim(claimant, now)
                if delivery is not None:
                    self._turn += 1
                    if not claimant.no_ack and not claimant.ledger.has_credit():
                        self._stall(claimant.ledger)
                    return delivery
                self._unlist(claimant)
        return None

    cdef int _stall(self, UnackedDeliveries ledger) except -1:
        """Take the consumers off that a channel's last credit leaves without: others may want what waits for them."""
        cdef ConsumerSlot claimant
        kept = []
        for item in self._ready:
            claimant = <ConsumerSlot> item
            if claimant.ledger is ledger and not claimant.no_ack:
                claimant.listed = False
                self._stalled.append(claimant)
                self.left.append(claimant)
            else:
                kept.append(claimant)
        self._ready = kept
        return 0

    cdef Delivery _claim(self, ConsumerSlot claimant, double now):
        cdef Delivery delivery
        cdef UnackedDeliveries ledger = claimant.ledger
        if ledger._closed:
            return None
        if not (ledger.active if claimant.no_ack else ledger.has_credit()):
            self._stalled.append(claimant)
            self.left.append(claimant)
            return None
        if now and claimant.messages.may_expire:
            for late in claimant.messages._pop_expired(now):
                self._expired.append((claimant.messages, late))
                self.left.append(claimant)
        delivery = claimant.messages._pop()
        if delivery is None:
            self._emptied.append(claimant)
            self.left.append(claimant)
            return None
        ledger._hand_over(delivery, claimant.messages, claimant.channel_number, claimant.tag, claimant.no_ack)
        return delivery


@cython.final
cdef class FastPath:
    """The next message of a rota, as long as there is nothing else to see to.

    ``notices`` and ``expiring`` are empty then; ``tidy()`` is called when somebody has left the rota.
    """

    def __cinit__(self, ConsumerRing rota not None, notices, expiring, tidy):
        self._rota = rota
        self._notices = notices
        self._expiring = expiring
        self._tidy = tidy

    def next(self):
        """Claim a message (a Delivery); None if there is none, or something else to see to."""
        return self._next()

    cdef Delivery _next(self):
        if self._notices or self._expiring:
            return None
        delivery = self._rota._next(0)
        if self._rota.left:
            self._tidy()
        return delivery
