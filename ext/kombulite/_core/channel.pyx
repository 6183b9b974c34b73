"""The way of a message between a transport and a program: out through a channel; in to a callback, and its ack.

Each message takes it, so it is compiled. What is rare (errors, events that are no messages, a consumer or a channel
that is gone) goes to methods of the facade's subclasses.
"""

cimport cython

from kombulite._core.codecs cimport Codecs
from kombulite._core.message cimport BaseMessage, CounterBlock, Delivery, received

from kombulite._core.message import NOT_DECODED

#: What a callback returns where it has kept the message, and the application has not been called.
GATHERED = object()


cdef class PublishStep:
    """What publishes a message in one compiled step. To be subclassed by a transport's.

    ``takes_values``: whether it makes more of a PlainValue than of its text just now.
    """

    cdef object send(self, object channel, Delivery delivery, bint mandatory, object timeout, object confirm_timeout):
        raise NotImplementedError

    def publish(self, channel, Delivery delivery not None, bint mandatory=False, timeout=None, confirm_timeout=None):
        """Publish a message on a channel, by its number."""
        return self.send(channel, delivery, mandatory, timeout, confirm_timeout)


cdef class AckStep:
    """What acknowledges a delivery in one compiled step. To be subclassed."""

    cdef bint acknowledge_tag(self, object delivery_tag) except -1:
        raise NotImplementedError

    def acknowledge(self, delivery_tag):
        """Acknowledge a delivery if that is all there is to do. Returns whether it is done."""
        return self.acknowledge_tag(delivery_tag)


cdef class BaseSubscription:
    """A consumer as its messages see it.

    ``run``: what is called with each message; ``cls``: what messages are made of, a subclass of BaseMessage.
    """

    cdef public object run
    cdef readonly bint no_ack
    cdef type _cls
    cdef object _channel
    cdef CounterBlock _tally

    def __cinit__(self):
        self._cls = BaseMessage
        self._tally = CounterBlock()

    def __init__(self, type cls not None, channel, CounterBlock tally not None, bint no_ack, run):
        if not issubclass(cls, BaseMessage):
            raise TypeError(f"messages are made of a subclass of BaseMessage, not of {cls.__name__}")
        self._cls = cls
        self._channel = channel
        self._tally = tally
        self.no_ack = no_ack
        self.run = run

    cdef object _receive(self, Delivery delivery):
        """Make the message of a delivery, count it and run the callback; returns what that returns."""
        cdef BaseMessage message = received(self._cls, delivery, self._channel)
        cdef CounterBlock tally = self._tally  # held: `__init__` may be called again meanwhile
        message.no_ack = self.no_ack
        tally._consume(delivery)
        if delivery.properties.following_offset:
            self._channel.note_offset(delivery, self.no_ack)
        try:
            return self.run(message)
        except Exception:
            self._channel.note_failure(message)
            raise


cdef class BaseConsumer:
    """The way of a message to the callbacks of a consumer. The base of the synchronous facade's.

    ``accept``, ``callbacks``, ``on_message``: see there; ``_overrides_fields``: whether a subclass has them otherwise.
    ``_overrides_receive``: whether a message goes to the method ``receive``, which a program has replaced.
    """

    cdef public object accept
    cdef public object callbacks
    cdef public object on_message
    cdef public bint _overrides_fields
    cdef public bint _overrides_receive
    cdef Codecs _codecs
    cdef object _own_loads

    def __cinit__(self, *args, **kwargs):
        self._overrides_fields = True  # until it is known

    def __init__(self, Codecs codecs not None, loads):
        self._codecs = codecs
        self._own_loads = loads

    def _decoding_failed(self, message, error):
        """Deal with what a message raised before a callback was called."""
        raise NotImplementedError

    def _receive(self, BaseMessage message not None):
        """Decode a message and hand it to the callbacks."""
        cdef Codecs codecs = self._codecs
        cdef bint by_name = self._overrides_fields
        on_message = getattr(self, "on_message") if by_name else self.on_message
        body = None
        try:
            accept = message.accept = getattr(self, "accept") if by_name else self.accept
            if message._errors:
                message.raise_errors()
            if on_message is None and message._decoded is NOT_DECODED:
                loads = message.loads
                if loads is self._own_loads and codecs is not None:
                    body = codecs._loads(message.content, message.content_type, message.content_encoding, accept, False)
                else:
                    body = loads(message.sent_body(), message.content_type, message.content_encoding, accept)
                message._decoded = body
            elif on_message is None:
                body = message._decoded
        except Exception as error:
            self._decoding_failed(message, error)
            return
        if on_message is not None:
            on_message(message)
            return
        callbacks = getattr(self, "callbacks") if by_name else self.callbacks
        if self._overrides_receive or not callbacks:
            self.receive(body, message)
        elif type(callbacks) is list and len(<list> callbacks) == 1:
            (<list> callbacks)[0](body, message)
        else:
            for callback in callbacks:
                callback(body, message)


def is_channel_open(raw):
    """Whether a channel of a foreign transport is open, as far as it shows that."""
    return _is_channel_open(raw)


cdef bint _is_channel_open(raw) except -1:
    return getattr(raw, "closed", False) is not True and getattr(raw, "connection", raw) is not None


cdef class BaseChannel:
    """What each message needs of its channel.

    ``acknowledged``: what the transport's ``settle`` takes for an ack; ``session``: the connection's BaseSession;
    ``raw``: the channel of a foreign transport that it stands for, or None.
    """

    def __cinit__(self):
        self._tally = CounterBlock()
        self._subscriptions = {}

    def __init__(self, channel_id, CounterBlock tally not None, acknowledged):
        self.channel_id = channel_id
        self._tally = tally
        self._acknowledged = acknowledged

    @property
    def is_open(self):
        """Whether the channel is open; a foreign one is asked too, as far as it shows that."""
        return self._is_usable()

    @is_open.setter
    def is_open(self, bint value):
        self._is_open = value

    cdef bint _is_usable(self) except -1:
        return self._is_open and (self.raw is None or _is_channel_open(self.raw))

    def use(self, publish, settle, AckStep acknowledge, bint confirmed):
        """Set the transport's verbs.

        Args:
            publish: Function that publishes, or a PublishStep.
            settle: Function that settles a delivery.
            acknowledge: AckStep that acknowledges without ``settle`` where it can, or None.
            confirmed: If True, the broker has a message when ``publish`` returns.
        """
        with cython.critical_section(self):
            self._publish = publish
            self._publish_step = publish if isinstance(publish, PublishStep) else None
            self._settle = settle
            self._ack_step = acknowledge
            self._confirmed = confirmed

    # --- out

    def publish(self, Delivery delivery not None, bint mandatory=False, timeout=None, confirm_timeout=None):
        """Hand a message, whose routing key is a short string, to the broker. Return what the transport returns.

        After a mandatory message, those that have come back go to the listeners.

        Args:
            delivery: The message.
            mandatory: If True, the message has to reach a queue.
            timeout: Seconds to wait until the broker takes it (None: the transport's).
            confirm_timeout: Seconds to wait for the broker's confirm (None: the transport's).

        Raises:
            NotFound: There is no such exchange.
            MessageNacked: The broker refused the message.
            MessageReturned: It came back, and there is no listener.
        """
        return self._send(delivery, mandatory, timeout, confirm_timeout)

    cdef object _send(self, Delivery delivery, bint mandatory, object timeout, object confirm_timeout):
        cdef bint confirmed
        cdef PublishStep step
        cdef CounterBlock tally
        with cython.critical_section(self):
            number, publish, step, confirmed = self.channel_id, self._publish, self._publish_step, self._confirmed
            tally = self._tally
        result = None
        try:
            if step is not None:
                result = step.send(number, delivery, mandatory, timeout, confirm_timeout)
            else:
                result = publish(number, delivery, mandatory, timeout, confirm_timeout)
        except Exception as error:
            self.publish_raised(error, delivery)
        else:
            tally._publish(delivery, confirmed)
        if mandatory:
            self.tell_returned()
        return result

    def publish_raised(self, error, Delivery delivery not None):
        """Raise an error of publishing, unless it is a returned message for which there is a listener.

        Args:
            error: The error.
            delivery: The message.
        """
        raise NotImplementedError

    def tell_returned(self):
        """Deal with what has come back."""
        raise NotImplementedError

    # --- in

    def handle(self, event):
        """Handle an event that is no message for one of the consumers. Return whether it was kept for a batch.

        Args:
            event: The event.
        """
        raise NotImplementedError

    def dispatch(self, event):
        """Run the callback that an event of this channel is for. Return whether it was kept for a batch instead.

        Args:
            event: The event.
        """
        return self._dispatch(event)

    cdef bint _dispatch(self, event) except -1:
        if type(event) is Delivery:
            tag = (<Delivery> event).consumer_tag
            subscription = self._subscriptions.get(tag)
            if subscription is not None:
                return (<BaseSubscription?> subscription)._receive(<Delivery> event) is GATHERED
        return self.handle(event)

    # --- and settled

    def basic_ack(self, delivery_tag, bint multiple=False):
        """Acknowledge a delivery.

        Args:
            delivery_tag: Its delivery tag.
            multiple: If True, all deliveries before it are acknowledged too.

        Raises:
            PreconditionFailed: The delivery tag is unknown.
        """
        cdef AckStep step
        with cython.critical_section(self):
            number, settle, step = self.channel_id, self._settle, self._ack_step
        if multiple or step is None or not step.acknowledge_tag(delivery_tag):
            try:
                settle(number, delivery_tag, self._acknowledged, multiple)
            except Exception as error:
                self.ack_raised(error)
                raise
        if self.positions is not None:
            self.positions.settle((delivery_tag,), multiple)
        self._tally._ack()

    def note_offset(self, Delivery delivery not None, bint no_ack):
        """Note that a message of a stream is handed over: nothing to do here.

        Args:
            delivery: The message.
            no_ack: If True, the broker took it for acknowledged when it sent it.
        """

    def note_failure(self, message):
        """Note that the callback of a message raised an exception, which is raised then: nothing to do here.

        Args:
            message: The message.
        """

    def ack_raised(self, error):
        """Note an error of acknowledging, which is raised then.

        Args:
            error: The error.
        """
        raise NotImplementedError


cdef class BaseSession:
    """The open channels of a connection, by their number, and the way of what was received to them.

    ``poll_ready()``: the transport's next event if there is no need to wait for it, or None; it is None itself where
    that is not to be asked. ``declared``: what was declared since the connection is there, another set for another one.
    """

    def __cinit__(self):
        self.channels = {}

    def on_unknown_channel(self, event):
        """Deal with an event for a channel that is not there."""
        raise NotImplementedError

    def dispatch(self, events):
        """Run the callbacks that events are for. Returns whether the last was kept for a batch instead."""
        cdef bint is_kept = False
        for event in events:
            is_kept = self._dispatch(event)
        return is_kept

    def dispatch_ready(self):
        """Run the callback that the event at hand is for. Returns whether there was one."""
        with cython.critical_section(self):
            poll_ready = self.poll_ready
        return poll_ready is not None and self._dispatch_from(poll_ready)

    def dispatch_from(self, poll_ready):
        """The same for what ``poll_ready()`` gives, until one was not kept for a batch. Returns whether one was."""
        return self._dispatch_from(poll_ready)

    cdef bint _dispatch_from(self, poll_ready) except -1:
        while (event := poll_ready()) is not None:
            if not self._dispatch(event):
                return True
        return False

    cdef bint _dispatch(self, event) except -1:
        with cython.critical_section(self):
            channels = self.channels
        # Two ways to one field: by name it takes 140 instructions more.
        number = (<Delivery> event).channel if type(event) is Delivery else event.channel
        channel = channels.get(number)
        if channel is None:
            self.on_unknown_channel(event)
            return False
        return (<BaseChannel?> channel)._dispatch(event)
