"""Messages that wait, and messages that are out: what a transport keeps that is its own broker, or half of one.

Times are arguments, in seconds of whatever clock the caller uses; nothing here waits or wakes. Each object may be used
from many threads at once: its methods are atomic (by the GIL, or by critical sections where there is none).
"""

from collections import deque

cimport cython

from kombulite._core.channel cimport AckStep
from kombulite._core.message cimport Delivery


@cython.final
cdef class MessageQueue:
    """Messages in the order they came, the highest priority first.

    ``max_priority``: priorities are 0 to that, a higher one counts as it. Each message knows its position, so that one
    that is put back finds its place again. Messages expire at the head only, as in RabbitMQ: one that lives on keeps
    those behind it.
    """

    def __cinit__(self, int max_priority=0):
        if max_priority < 0:
            raise ValueError(f"the highest priority is 0 or more, not {max_priority}")
        self._levels = [deque() for _ in range(max_priority + 1)]
        if max_priority == 0:
            self._level = self._levels[0]
            self._append = self._level.append
            self._popleft = self._level.popleft

    def __len__(self):
        if self._level is not None:
            return len(self._level)
        return sum([len(level) for level in self._levels])

    cdef object _level_of(self, Delivery delivery):
        if self._level is not None:
            return self._level
        priority = delivery.properties.priority
        if not isinstance(priority, int) or priority <= 0:
            return self._levels[0]
        return self._levels[min(priority, len(self._levels) - 1)]

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
        cdef Py_ssize_t size = len(delivery.body)  # once: the body may change, or refuse to tell when it is taken
        if delivery.properties is None:
            raise TypeError("a Delivery without properties: it was made without its __init__")
        with cython.critical_section(self):
            delivery.size = size
            self._position += 1
            delivery.position = self._position
            delivery.expires_at = expires_at
            if expires_at:
                self.may_expire = True
            if self._level is not None:
                self._append(delivery)
            else:
                self._level_of(delivery).append(delivery)
            self.size += size
        return 0

    def put_back(self, Delivery delivery not None):
        """Put a message that was taken back into its place, as redelivered.

        A copy goes back: whoever took the message keeps the original.
        """
        cdef Py_ssize_t place = 0
        cdef Delivery again = delivery.copy()
        again.position = delivery.position
        again.expires_at = delivery.expires_at
        again.redelivered = True
        again.delivery_count = delivery.delivery_count + 1
        again.size = delivery.size or len(again.body)
        with cython.critical_section(self):
            level = self._level_of(again)
            for waiting in level:
                if (<Delivery> waiting).position > again.position:
                    break
                place += 1
            level.insert(place, again)
            self.size += again.size

    def pop(self):
        """Take the next message, or None."""
        with cython.critical_section(self):
            return self._pop()

    cdef Delivery _pop(self):
        if self._level is not None:
            if not self._level:
                return None
            delivery = self._popleft()
        else:
            for level in reversed(self._levels):
                if level:
                    delivery = level.popleft()
                    break
            else:
                return None
        self.size -= (<Delivery> delivery).size
        return <Delivery> delivery

    def pop_expired(self, double now):
        """Take the messages whose time is over (a list)."""
        with cython.critical_section(self):
            return self._pop_expired(now)

    cdef list _pop_expired(self, double now):
        expired = []
        for level in self._levels:
            while level and 0 < (<Delivery> level[0]).expires_at <= now:
                delivery = level.popleft()
                self.size -= (<Delivery> delivery).size
                expired.append(delivery)
        return expired

    def next_expiry(self):
        """When a message expires next, or None."""
        with cython.critical_section(self):
            deadlines = [level[0].expires_at for level in self._levels if level and level[0].expires_at]
        return min(deadlines, default=None)

    def clear(self):
        """Remove all messages; returns how many."""
        with cython.critical_section(self):
            removed = 0
            for level in self._levels:
                removed += len(level)
                level.clear()
            self.size = 0
            return removed


@cython.final
cdef class UnackedDeliveries(AckStep):
    """The deliveries of one channel that are not settled yet, by delivery tag.

    ``prefetch_count``: how many there may be (0: no bound); ``active``: whether there may be more at all; ``stalled``:
    the consumers that wait for an ack, not for a message; ``highest_tag``: that of the last delivery. Tags begin above
    ``tag_offset``.
    """

    cdef dict _outstanding
    cdef readonly list stalled
    cdef readonly unsigned long long highest_tag
    cdef bint _closed
    cdef public Py_ssize_t prefetch_count
    cdef public bint active

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

    cdef readonly MessageQueue messages
    cdef readonly UnackedDeliveries ledger
    cdef readonly object tag
    cdef readonly unsigned int channel_number
    cdef readonly bint no_ack
    cdef readonly bint listed  # whether a rota holds it

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

    cdef list _ready
    cdef Py_ssize_t _turn  # index of whose turn it is
    cdef list _emptied
    cdef list _stalled
    cdef list _expired
    cdef readonly list left  # not empty where ``take_left`` has something to tell; always the same list

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

    cdef ConsumerRing _rota
    cdef object _notices
    cdef object _expiring
    cdef object _tidy

    def __cinit__(self, ConsumerRing rota not None, notices, expiring, tidy):
        self._rota = rota
        self._notices = notices
        self._expiring = expiring
        self._tidy = tidy

    def next(self):
        """Claim a message (a Delivery); None if there is none, or something else to see to."""
        if self._notices or self._expiring:
            return None
        delivery = self._rota._next(0)
        if self._rota.left:
            self._tidy()
        return delivery
