"""The protocol of a connection without I/O and waiting: channels, requests and answers, what a broker says unasked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import cycle
from logging import getLogger
from typing import Any, Protocol

from kombulite import exceptions
from kombulite._core import (
    ConfirmReceived,
    Delivery,
    FrameDecoder,
    FrameEncoder,
    HeldAcks,
    MethodReceived,
    NotEncodable,
    ReturnReceived,
)
from kombulite.brokers.amqp import methods
from kombulite.brokers.amqp.channel import AMQPChannel
from kombulite.brokers.amqp.confirms import Confirms
from kombulite.brokers.amqp.errors import closing_error
from kombulite.brokers.amqp.login import Login, is_rabbitmq_since
from kombulite.brokers.amqp.methods import Method
from kombulite.brokers.base import Cancelled, ChannelClosed, Event, Returned

logger = getLogger("kombulite.amqp")


#: Events that may wait to be drained before returned messages are dropped, the oldest first.
MAX_WAITING_EVENTS = 10_000

STREAMS_TAKE_NACKS = (4, 3)  # version of RabbitMQ since which a nack on a stream does no harm


class Outlet(Protocol):
    """What a protocol needs of the stream that it is on: to decode what comes, and to write frames in order."""

    decoder: FrameDecoder
    encoder: FrameEncoder
    writing: Any  # a context manager, held over a step that no other frame may come between

    @property
    def held(self) -> HeldAcks | None:
        """The acks that go before the next frames; None if none are held."""

    def send(
        self,
        data: bytes,
        timeout: float | None = None,
        more: bool = False,
        on_turn: Callable[[], object] | None = None,
    ) -> None:
        """Write frames; ``on_turn`` is called when it is their turn, and may raise."""

    def answer(self, data: bytes, on_turn: Callable[[], object] | None = None) -> None:
        """Write frames before all that is sent later, without waiting; not if ``on_turn`` finds the channel closed."""

    def check(self) -> None:
        """Raise the error that the stream ended with, if it has."""

    def fail(self, error: Exception) -> None:
        """Note that the stream is of no use any more."""

    def farewell(self, data: bytes) -> None:
        """Write frames if that can be done at once, after the stream has failed."""


class AMQPProtocol:
    """The state of a connection that is logged in: its channels, requests and events.

    It reads the events of the decoder (``handle``), changes the state of channels, and hands frames to its stream. It
    never waits: the stream of threads may, until its socket takes a request.

    Args:
        stream: The stream, which is open.
        options: The transport's options.
        login: What was agreed on.
        name: The connection's name in the log.
        emit: Called with each event for the application; without it they wait in ``events``.
    """

    channel_class: type[AMQPChannel] = AMQPChannel
    confirms_class: type[Confirms] = Confirms

    def __init__(
        self,
        stream: Outlet,
        options: Mapping[str, Any],
        login: Login,
        name: str,
        emit: Callable[[Event], object] | None = None,
    ) -> None:
        self.stream = stream
        self.root: Any = self.channel_class(0)  # the connection itself
        self.channels: dict[int, Any] = {0: self.root}
        self.events: deque[Event] = deque()
        self.single_active: set[str] = set()  # queues that were declared to have a single active consumer
        self.emit = emit or self.events.append
        self.channel_max = login.channel_max
        self.blocked: str | None = None  # why the broker does not take messages
        able = login.server_properties.get("capabilities")
        #: Whether the broker expects an answer to its basic.cancel.
        self.accepts_cancel_ok = isinstance(able, dict) and bool(able.get("accept_consumer_cancel_ok"))
        #: Whether a nack for all may go to a channel that had messages of streams.
        self.streams_take_nacks = is_rabbitmq_since(login.server_properties, STREAMS_TAKE_NACKS)
        self._numbers = cycle(range(1, login.channel_max + 1))
        self._drops_returns = False
        self._failed: dict[int, Any] = {}  # closed by the broker, and the application does not know it yet
        self._on_blocked, self._on_unblocked = options.get("on_blocked"), options.get("on_unblocked")
        self._facts = {"connection": name}

    def encode(self, number: int, method: Method, *arguments: Any) -> bytes:
        """Return a method as a frame. Raises EncodeError."""
        try:
            return self.stream.encoder.method(number, *method.signature, method.encode(*arguments))
        except NotEncodable as error:
            raise methods.not_encodable(error) from error

    def abandon(self, error: Exception) -> None:
        """End all that is under way, because the connection has ended."""
        for channel in list(self.channels.values()):
            channel.fail_requests(error, error)
            if channel.confirms is not None:
                channel.confirms.fail(error)

    # --- channels

    def add_channel(self, tag_offset: int) -> Any:
        """Return the state of a channel that is about to be opened. Raises ResourceError when none is left."""
        self.stream.check()
        if len(self.channels) > self.channel_max:  # one of them is the connection
            raise exceptions.ResourceError(f"all {self.channel_max} channels of this connection are open")
        # A number comes again only after all others: what is still under way for a closed channel has no taker.
        number = next(number for number in self._numbers if number not in self.channels)
        channel = self.channels[number] = self.channel_class(number, tag_offset, self.stream.held)
        self._failed.pop(number, None)
        return channel

    def highest_tag(self, number: int) -> int:
        """Return the highest delivery tag given out on a channel, also on one that the broker has closed."""
        failed = self._failed.get(number)
        return failed.tag_offset if failed is not None else self.stream.decoder.last_tag(number)

    def end_consumers(self, channel: AMQPChannel, timeout: float | None = None) -> str | None:
        """End the consumers of a channel that is about to be closed, except one, whose tag is returned.

        When the broker has answered the cancellation of that one, nothing is in flight to any of them.

        Not those of a queue with a single active consumer: when it ends the next one is active, and would get other
        messages before those that go back. The end of the channel is both at once.
        """
        if not channel.takes_acks or channel.closing or channel.keeps_order:
            return None
        tags = [tag for tag, no_ack in channel.consumers.items() if not no_ack]
        for tag in tags[:-1]:
            frame = self.encode(channel.number, methods.BASIC_CANCEL, tag, True)
            self.stream.send(frame, timeout, True, channel.check)
        return tags[-1] if tags else None

    def give_back(self, channel: AMQPChannel, timeout: float | None = None) -> None:
        """Put what a channel, which is about to be closed, has not settled back into its queues.

        If the broker did that, each delivery would count as failed, as those count whose callback has raised.
        """
        number, stream = channel.number, self.stream
        if not channel.takes_acks or channel.closing or channel.keeps_order:
            return
        from_queues, from_streams = stream.decoder.sources(number)
        may_nack = from_queues and (self.streams_take_nacks or not from_streams)
        if not may_nack:
            return
        stream.send(b"", timeout, True, channel.end_settling)  # before the look at what other threads have settled
        if not channel.settled.is_all(stream.decoder.last_tag(number) - channel.tag_offset):
            failed = [stream.encoder.reject(number, tag, True) for tag in sorted(channel.failed)]
            stream.send(b"".join([*failed, stream.encoder.nack(number, 0, True, True)]), timeout, True, channel.check)

    def channel(self, number: int) -> Any:
        """Return the state of a channel. Raises the error that the broker closed it with, once."""
        try:
            return self.channels[number]
        except KeyError:
            self.stream.check()
        channel = self._failed.get(number)
        if channel is None:
            raise exceptions.RecoverableConnectionError("channel already closed")
        assert channel.error is not None
        if channel.error.method_sig == methods.BASIC_PUBLISH:
            # `publish` raises it; for all other verbs the channel is just closed.
            raise channel.closed_error() from channel.error
        self.mark_reported(channel)
        raise channel.error

    def publisher(self, number: int) -> Any:
        """Return the state of a channel to publish on. Raises the error for the message if the broker has closed it."""
        channel = self._failed.get(number)
        if channel is None:
            return self.channel(number)
        self.mark_reported(channel)
        raise channel.unsent_error()

    def is_without_confirms(self, number: int) -> bool:
        """Return whether no message on a channel that the broker has closed was to be confirmed."""
        channel = self._failed.get(number)
        return channel is not None and channel.confirms is None

    def forget_failure(self, number: int) -> None:
        """Note that the application learns from an event that the broker closed a channel."""
        self._failed.pop(number, None)

    def mark_reported(self, channel: AMQPChannel) -> None:
        """Note that the application knows that a channel is closed. Its consumers learn that from the event."""
        self._failed.pop(channel.number, None)
        if not channel.consumers:
            self.drop_events(lambda event: event.channel == channel.number)

    def raise_blocked(self) -> None:
        """Raise Blocked, if the broker is."""
        blocked = self.blocked
        if blocked is not None:
            raise exceptions.Blocked(f"the broker does not take messages: {blocked}")

    # --- what the broker says

    def handle(self, event: Any) -> None:
        """Handle an event of the decoder. Called by the thread that reads."""
        if type(event) is Delivery:
            if event.consumer_tag is not None:
                self.emit(event)
            else:
                self._answer(event.channel, methods.BASIC_GET_EMPTY, event)
        elif type(event) is ConfirmReceived:
            channel = self.channels.get(event.channel)
            if channel is not None and channel.confirms is not None:
                channel.confirms.settle(event)
        elif type(event) is MethodReceived:
            self._handle_method(event)
        else:
            self._handle_return(event)

    def _handle_method(self, event: MethodReceived) -> None:
        signature = event.signature
        if self.stream.decoder.is_closed(event.channel) and signature != methods.CHANNEL_OPEN.reply:
            return  # sent before the broker knew, or a repeated channel.close, for which one answer is enough
        if signature == methods.CONNECTION_CLOSE.signature:
            self._connection_closed(event.arguments)
        elif signature == methods.CHANNEL_CLOSE.signature:
            self._channel_closed(event.channel, event.arguments)
        elif signature == methods.CONNECTION_BLOCKED:
            self.blocked = methods.decode("s", event.arguments)[0] or "no reason given"
            facts = {**self._facts, "state": "blocked", "reason": self.blocked}
            logger.warning("the broker does not take messages: %s", self.blocked, extra=facts)
            _notify(self._on_blocked, self.blocked)
        elif signature == methods.CONNECTION_UNBLOCKED:
            self.blocked = None
            logger.info("the broker takes messages again", extra={**self._facts, "state": "unblocked"})
            _notify(self._on_unblocked)
        elif signature == methods.CHANNEL_FLOW.signature:
            # A broker may ask publishers to pause. RabbitMQ does not: it stops reading.
            channel = self.channels.get(event.channel)
            if channel is not None:
                frame = self.stream.encoder.method(channel.number, *methods.CHANNEL_FLOW.reply, event.arguments)
                self.stream.answer(frame, channel.check)
        elif signature == methods.BASIC_CANCEL.signature:
            (consumer_tag, nowait) = methods.decode("sb", event.arguments)
            channel = self.channels.get(event.channel)
            if channel is not None and channel.end_cancelled(consumer_tag):
                self._answer_cancel(channel, consumer_tag, nowait)
                self.emit(Cancelled(event.channel, consumer_tag))
        else:
            self._answer(event.channel, signature, event.arguments)

    def _answer_cancel(self, channel: AMQPChannel, consumer_tag: str, nowait: bool) -> None:
        """Tell the broker that a consumer, which it has cancelled, has ended here too.

        Else an ack for a message of that consumer would start it again (RabbitMQ 4.3, after its consumer timeout).
        """
        stream = self.stream
        if self.accepts_cancel_ok or not nowait:
            frame = stream.encoder.method(
                channel.number, *methods.BASIC_CANCEL.reply, methods.BASIC_CANCEL_OK.encode(consumer_tag)
            )
        else:
            arguments = methods.BASIC_CANCEL.encode(consumer_tag, True)
            frame = stream.encoder.method(channel.number, *methods.BASIC_CANCEL.signature, arguments)
        stream.answer(frame, channel.check)

    def _handle_return(self, event: ReturnReceived) -> None:
        channel = self.channels.get(event.channel)
        if channel is None or channel.confirms is None or not channel.confirms.returned(event):
            self.emit(Returned(event.channel, event.reply_code, event.reply_text, event.delivery))
            if len(self.events) > MAX_WAITING_EVENTS:
                self._drop_oldest_return()

    def _drop_oldest_return(self) -> None:
        """Drop the oldest returned message, if no thread drains the connection. Deliveries are bounded by prefetch."""
        events = self.events
        try:
            oldest: Event | None = events[0]
            if type(oldest) is not Returned:
                oldest = next((each for each in list(events) if type(each) is Returned), None)
            if oldest is None:
                return  # another thread took them all
            events.remove(oldest)
        except (IndexError, ValueError):  # another thread took it
            return
        if not self._drops_returns:
            self._drops_returns = True
            logger.error(
                "no thread drains this connection: from now on returned messages are dropped, the oldest first"
            )

    def _answer(self, number: int, signature: methods.Signature, answer: Any) -> None:
        channel = self.channels.get(number)
        request = None if channel is None else channel.take_request(signature)
        if channel is not None and request is not None:
            if signature == methods.CHANNEL_OPEN.reply:
                self.stream.decoder.open(number, channel.tag_offset)  # what came before was for its predecessor
            elif signature == methods.BASIC_RECOVER.reply:
                self._recovered(channel)
            elif signature == methods.CHANNEL_CLOSE.reply:
                self._left(channel)
            request.succeed(answer)
        elif channel is not None and channel.flows and signature == methods.CHANNEL_FLOW.reply:
            channel.flows -= 1
        else:
            raise exceptions.UnexpectedFrame(
                f"unexpected method {signature} on channel {number}: no request is pending"
            )

    def _left(self, channel: AMQPChannel) -> None:
        """Forget a channel that the broker has closed as we asked; it confirms nothing any more."""
        self.drop_channel(channel)
        if channel.confirms is not None:
            text = "the broker may have the message: the channel was closed before it was confirmed"
            channel.confirms.fail(exceptions.RecoverableConnectionError(text))

    def _recovered(self, channel: AMQPChannel) -> None:
        """Drop the deliveries that wait to be received: the broker has taken them back, and sends them again."""
        channel.recovered(self.stream.decoder.last_tag(channel.number))
        no_ack = channel.consumers
        self.drop_events(
            lambda event: (
                type(event) is Delivery and event.channel == channel.number and not no_ack.get(event.consumer_tag or "")
            )
        )

    def _connection_closed(self, arguments: bytes) -> None:
        stream = self.stream
        stream.fail(closing_error(arguments, exceptions.ConnectionError))
        stream.farewell(stream.encoder.method(0, *methods.CONNECTION_CLOSE.reply, b""))

    def _channel_closed(self, number: int, arguments: bytes) -> None:
        error = closing_error(arguments, exceptions.ChannelError)
        if not isinstance(error, exceptions.ChannelError):
            # A code that is for connections, but it is the channel that is closed.
            error = exceptions.ChannelError(error.reply_text, error.method_sig, error.method_name, error.reply_code)
        channel = self.channels.get(number)
        if channel is None or number == 0:
            raise exceptions.UnexpectedFrame(f"channel {number} is closed, which is not open")
        stream = self.stream
        channel.error = error
        channel.leave()
        stream.answer(stream.encoder.method(number, *methods.CHANNEL_CLOSE.reply, b""))
        channel.tag_offset = stream.decoder.last_tag(number)
        # A thread that waits for an answer on it gets the error there; else the event, or the next request, has it.
        self._failed[number] = channel
        self.drop_channel(channel, (Delivery, Cancelled))
        channel.fail_requests(error, channel.closed_error())
        if channel.confirms is not None:
            channel.confirms.close(error)
        self.emit(ChannelClosed(number, error))

    # --- what waits to be received

    def drop_channel(self, channel: AMQPChannel, kinds: type[Any] | tuple[type[Any], ...] = object) -> None:
        """Forget a channel, and what has come for it, of these kinds."""
        self.channels.pop(channel.number, None)
        self.drop_events(lambda event: event.channel == channel.number and isinstance(event, kinds))
        self.stream.decoder.close(channel.number)

    def drop_events(self, matching: Callable[[Event], bool]) -> list[Event]:
        """Take events out of those that wait."""
        dropped = []
        for event in filter(matching, list(self.events)):
            with suppress(ValueError):  # another thread took it
                self.events.remove(event)
                dropped.append(event)
        return dropped


def _notify(callback: Callable[..., Any] | None, *arguments: Any) -> None:
    """Call what the application gave. An error must not end the reading of a frame, so it is logged."""
    if callback is None:
        return
    try:
        callback(*arguments)
    except Exception:
        logger.exception("%r raised", callback)
