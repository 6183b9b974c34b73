"""Messages on their way in: from what a transport received to the consumer's callback, and the acknowledgement back.

Each message takes this way, so it is one compiled step. What is rare (a consumer or a channel that is gone, events that
are no messages, errors) goes to methods of the facade's subclasses.
"""

cimport cython

from kombulite._core.message cimport Delivery, Received, Tally, received

#: What a callback returns where it has kept the message, and the application has not been called.
GATHERED = object()


cdef class BaseSubscription:
    """A consumer as its messages see it.

    ``run``: what is called with each message; ``cls``: what messages are made of, a subclass of Received.
    """

    cdef public object run
    cdef readonly bint no_ack
    cdef type _cls
    cdef object _channel
    cdef Tally _tally

    def __init__(self, type cls not None, channel, Tally tally not None, bint no_ack, run):
        self._cls = cls
        self._channel = channel
        self._tally = tally
        self.no_ack = no_ack
        self.run = run

    def receive(self, Delivery delivery not None):
        """Make the message of a delivery, count it and run the callback; returns what that returns."""
        return self._receive(delivery)

    cdef object _receive(self, Delivery delivery):
        cdef Received message = received(self._cls, delivery, self._channel)
        message.no_ack = self.no_ack
        self._tally._consume(delivery)
        return self.run(message)


cdef class BaseChannel:
    """What each message needs of its channel: its consumer, and what acknowledges it.

    ``subscriptions`` by consumer tag. ``settle``: the transport's verb, which takes ``acknowledged`` for an ack.
    """

    cdef public object channel_id
    cdef public object _settle
    cdef object _acknowledged
    cdef readonly Tally _tally
    cdef readonly dict _subscriptions

    def __init__(self, channel_id, Tally tally not None, acknowledged):
        self.channel_id = channel_id
        self._tally = tally
        self._acknowledged = acknowledged
        self._subscriptions = {}

    def handle(self, event):
        """Deal with an event that is not a message for one of the consumers. Returns whether it was kept for a batch."""
        raise NotImplementedError

    def note_failure(self, error):
        """An acknowledgement failed: called before the error is raised."""
        raise NotImplementedError

    def dispatch(self, event):
        """Run the callback that an event of this channel is for. Returns whether it was kept for a batch instead."""
        return self._dispatch(event)

    cdef bint _dispatch(self, event) except -1:
        if type(event) is Delivery:
            subscription = self._subscriptions.get((<Delivery> event).consumer_tag)
            if subscription is not None:
                return (<BaseSubscription?> subscription)._receive(<Delivery> event) is GATHERED
        return self.handle(event)

    def basic_ack(self, delivery_tag, bint multiple=False):
        """Acknowledge a delivery, and with ``multiple`` all before it. Raises PreconditionFailed."""
        try:
            self._settle(self.channel_id, delivery_tag, self._acknowledged, multiple)
        except Exception as error:
            self.note_failure(error)
            raise
        self._tally._ack()


cdef class BaseInbox:
    """The open channels of a connection, by their number, and the way of what was received to them."""

    cdef public dict channels

    def __init__(self):
        self.channels = {}

    def miss(self, event):
        """Deal with an event for a channel that is not there."""
        raise NotImplementedError

    def dispatch(self, events):
        """Run the callbacks that events are for. Returns whether the last was kept for a batch instead."""
        cdef bint is_kept = False
        for event in events:
            channel = self.channels.get(event.channel)
            if channel is None:
                self.miss(event)
            else:
                is_kept = (<BaseChannel?> channel)._dispatch(event)
        return is_kept
