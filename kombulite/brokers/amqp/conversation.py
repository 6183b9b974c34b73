"""The conversation with a broker on one link: requests and what answers them, and what the broker says unasked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from logging import getLogger
from time import monotonic
from typing import Any, NoReturn

from kombulite import exceptions
from kombulite._core import ConfirmReceived, Delivery, MethodReceived, ReturnReceived, Settled
from kombulite.brokers.amqp import methods
from kombulite.brokers.amqp.confirms import Confirms, Unconfirmed
from kombulite.brokers.amqp.errors import closing_error
from kombulite.brokers.amqp.limits import PrefetchLimit
from kombulite.brokers.amqp.link import Link
from kombulite.brokers.amqp.methods import Method
from kombulite.brokers.base import Cancelled, ChannelClosed, Event, Returned
from kombulite.utils.locks import Lock

logger = getLogger("kombulite.amqp")


#: Events that may wait to be drained before returned messages are dropped, the oldest first.
MOST_WAITING = 10_000


class Channel:
    """What the transport knows of a channel."""

    def __init__(self, number: int, above: int = 0) -> None:
        self.number = number
        self.above = above  # what our delivery tags have more than the broker's
        self.stale = above  # tags up to this one are not to be settled any more
        self.lock = Lock()  # held from a request to its answer
        self.awaited: tuple[methods.Signature, ...] = ()  # what may answer the request that is under way
        self.answer: Any = None
        self.error: exceptions.ChannelError | None = None  # why the broker closed it
        self.left = False  # one side has closed it: whatever is sent on it now would end the connection
        self.consumers: dict[str, bool] = {}  # tag -> no_ack
        self.prefetch_count = 0  # of consumers that are to start
        self.limits: dict[str, PrefetchLimit] = {}  # of those that are running, by tag
        self.takes_acks = False  # whether there may be deliveries to settle
        self.failed: set[int] = set()  # the broker's tags of deliveries that failed and are not settled
        self.confirms: Confirms | None = None
        self.settled = Settled()  # the broker's tags
        self.flows = 0  # answers to channel.flow that are to come

    # For `Link.send`, when it is a frame's turn.

    def check(self) -> None:
        """Raise RecoverableConnectionError if the channel is closed."""
        if self.left:
            raise self.closed_error()

    def closed_error(self) -> exceptions.RecoverableConnectionError:
        """What all are told but the one whose request or message it was closed for."""
        reason = f": {self.error}" if self.error is not None else ""
        return exceptions.RecoverableConnectionError(f"channel already closed{reason}")

    def leave(self) -> None:
        """This frame is the last one."""
        self.left = True

    def close(self) -> None:
        """This frame, which asks the broker to close the channel, is the last one."""
        self.check()
        self.left = True

    def forget_failures(self, delivery_tag: int, multiple: bool) -> None:
        """Note that failed deliveries are settled."""
        if multiple:
            self.failed = {tag for tag in self.failed if 0 < delivery_tag < tag}
        else:
            self.failed.discard(delivery_tag)

    def recovered(self, last_tag: int) -> None:
        """Note that all deliveries went back to their queues, up to this one."""
        self.stale = last_tag
        self.settled.add(last_tag - self.above, True)
        self.failed.clear()

    def stale_error(self) -> exceptions.AMQPError:
        """Return the error for a delivery that is not to be settled any more."""
        if self.stale > self.above:
            return exceptions.PreconditionFailed("the message went back to its queue when the channel recovered")
        return exceptions.RecoverableConnectionError("the message came on a connection that was lost")

    def ask_flow(self) -> None:
        """Expect one more answer to channel.flow."""
        self.check()
        self.flows += 1

    def count(self, messages: Sequence[Unconfirmed]) -> None:
        """Expect confirms for messages. Raises what the channel was closed for."""
        if self.left:
            raise self.error or self.closed_error()
        assert self.confirms is not None
        self.confirms.add(messages)


class Conversation:
    """What is going on between us and the broker, by channel. Made for a link that is open.

    ``reply_timeout``: seconds to wait for an answer; ``options``: the transport's; ``name``: of the connection, for the
    log. Threads share it: of those that wait, one handles what comes for all.
    """

    def __init__(self, link: Link, reply_timeout: float, options: Mapping[str, Any], name: str) -> None:
        self.link = link
        self.reply_timeout = reply_timeout
        self.root = Channel(0)  # the connection itself
        self.channels: dict[int, Channel] = {0: self.root}
        self.events: deque[Event] = deque()
        self.blocked: str | None = None  # why the broker does not take messages
        self.accepts_cancel_ok = False  # whether the broker expects an answer to its basic.cancel
        self.streams_take_nacks = False  # whether a nack for all may go to a channel that had messages of streams
        self._drops_returns = False
        self._failed: dict[int, Channel] = {}  # closed by the broker, and nobody knows it yet
        self._on_blocked, self._on_unblocked = options.get("on_blocked"), options.get("on_unblocked")
        self._facts = {"connection": name}
        link.handle = self._handle

    # --- channels

    def add_channel(self, number: int, above: int) -> Channel:
        """The state of a channel that is about to be opened."""
        channel = self.channels[number] = Channel(number, above)
        self._failed.pop(number, None)
        return channel

    def highest_tag(self, number: int) -> int:
        """The highest delivery tag given out on a channel, also on one that the broker has closed."""
        failed = self._failed.get(number)
        return failed.above if failed is not None else self.link.decoder.last_tag(number)

    def close_channel(self, number: int) -> None:
        """Close a channel, if it is open."""
        channel = self.channels.get(number)
        if channel is not None:
            try:
                self.return_unsettled(channel, self.reply_timeout)
                self.request(channel, methods.CHANNEL_CLOSE, 0, "", 0, 0)
            except exceptions.ChannelError:
                return  # the broker was first
            self._drop_channel(channel)
        self._failed.pop(number, None)

    def return_all(self, timeout: float) -> None:
        """Do what ``return_unsettled`` does for all channels, within ``timeout`` seconds."""
        deadline = monotonic() + timeout
        for channel in list(self.channels.values()):
            left = deadline - monotonic()
            if left > 0 and channel is not self.root:
                with suppress(exceptions.ChannelError):
                    self.return_unsettled(channel, left)

    def return_unsettled(self, channel: Channel, timeout: float) -> None:
        """Put what a channel, which is about to be closed, has not settled back into its queues.

        If the broker did that, each delivery would count as failed, as those count whose callback has raised. The
        consumers end first: what is in flight to them counts too.
        """
        number, link = channel.number, self.link
        if not channel.takes_acks or channel.left:
            return
        tags = [tag for tag, no_ack in channel.consumers.items() if not no_ack]
        for tag in tags[:-1]:
            frame = link.encoder.method(number, *methods.BASIC_CANCEL.signature, methods.BASIC_CANCEL.encode(tag, True))
            link.send(frame, timeout, True, channel.check)
        if tags:
            self.request(channel, methods.BASIC_CANCEL, tags[-1], False, timeout=timeout)
        from_queues, from_streams = link.decoder.sources(number)
        may_nack = from_queues and (self.streams_take_nacks or not from_streams)
        if may_nack and not channel.settled.is_all(link.decoder.last_tag(number) - channel.above):
            failed = [link.encoder.reject(number, tag, True) for tag in sorted(channel.failed)]
            link.send(b"".join([*failed, link.encoder.nack(number, 0, True, True)]), timeout, True, channel.check)

    def channel(self, number: int) -> Channel:
        """The state of a channel. Raises the error that the broker closed it with, once."""
        try:
            return self.channels[number]
        except KeyError:
            self.link.check()
        channel = self._failed.get(number)
        if channel is None:
            raise exceptions.RecoverableConnectionError("channel already closed")
        assert channel.error is not None
        if channel.error.method_sig == methods.BASIC_PUBLISH:
            # The publisher's to know (`publish` raises it); for all others the channel is just closed.
            raise channel.closed_error() from channel.error
        self.told(channel)
        raise channel.error

    def publisher(self, number: int) -> Channel:
        """The state of a channel to publish on. Raises what an earlier publish ended in, if it closed the channel."""
        channel = self._failed.get(number)
        if channel is None:
            return self.channel(number)
        self.told(channel)
        assert channel.error is not None
        raise channel.error

    def told(self, channel: Channel) -> None:
        """Somebody knows that the broker closed the channel. Its consumers, if it had any, learn it from the event."""
        self._failed.pop(channel.number, None)
        if not channel.consumers:
            self.drop_events(lambda event: event.channel == channel.number)

    # --- requests and their answers

    def call(self, number: int, method: Method, *arguments: Any) -> list[Any]:
        """Send a request, wait for its answer, and return the answer's arguments."""
        return method.decode(self.request(self.channel(number), method, *arguments))

    def request(self, channel: Channel, method: Method, *arguments: Any, timeout: float | None = None) -> Any:
        """The same on a channel whose state one has; returns the answer as bytes."""
        frame = self.link.encoder.method(channel.number, *method.signature, method.encode(*arguments))
        on_turn = channel.close if method is methods.CHANNEL_CLOSE else channel.check
        return self.exchange(channel, method.name, frame, (method.reply,), timeout, on_turn)

    def exchange(
        self,
        channel: Channel,
        name: str,
        frame: bytes,
        replies: tuple[methods.Signature, ...],
        timeout: float | None,
        on_turn: Callable[[], None],
    ) -> Any:
        """Send a frame and wait for what answers it: a method's arguments, or a message.

        After a timeout it is not known what the next answer would be for, so the connection is given up.
        """
        link = self.link
        timeout = self.reply_timeout if timeout is None else timeout
        with channel.lock:
            channel.answer, channel.awaited = None, replies
            try:
                link.send(frame, timeout, on_turn=on_turn)
                link.wait(lambda: channel.answer is not None or channel.error is not None, monotonic() + timeout)
            finally:
                channel.awaited = ()
            if channel.answer is None:
                self._raise_unanswered(channel, name, timeout)
            return channel.answer

    def flow(self, channel: Channel, active: bool, timeout: float) -> None:
        """Let deliveries flow, or not, and wait until the broker has done that, and all that came before it.

        Raises Blocked, or RecoverableConnectionError, if it has not in time. A late answer does no harm: all are
        counted.
        """
        link = self.link
        method = methods.CHANNEL_FLOW
        frame = link.encoder.method(channel.number, *method.signature, method.encode(active))
        with channel.lock:
            link.send(frame, timeout, on_turn=channel.ask_flow)
            in_time = link.wait(lambda: not channel.flows or channel.error is not None, monotonic() + timeout)
        if channel.error is not None:
            self.told(channel)
            raise channel.error
        if not in_time:
            self.raise_blocked()
            raise exceptions.RecoverableConnectionError(f"the broker did not answer in {timeout:g} s")

    def raise_blocked(self) -> None:
        """Raise Blocked, if the broker is."""
        blocked = self.blocked
        if blocked is not None:
            raise exceptions.Blocked(f"the broker does not take messages: {blocked}")

    def _raise_unanswered(self, channel: Channel, name: str, timeout: float) -> NoReturn:
        if channel.error is not None:
            self.told(channel)
            raise channel.error
        reason = f", and does not take messages: {self.blocked}" if self.blocked is not None else ""
        self.link.give_up(
            exceptions.RecoverableConnectionError(f"{name}: the broker did not answer in {timeout:g} s{reason}")
        )

    # --- what the broker says

    def _handle(self, event: Any) -> None:
        """Take an event to where it belongs. Called by the thread that reads."""
        if type(event) is Delivery:
            if event.consumer_tag is not None:
                self.events.append(event)
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
        if self.link.decoder.is_closed(event.channel) and signature != methods.CHANNEL_OPEN.reply:
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
            link = self.link
            link.send(link.encoder.method(event.channel, *methods.CHANNEL_FLOW.reply, event.arguments))
        elif signature == methods.BASIC_CANCEL.signature:
            (consumer_tag, nowait) = methods.decode("sb", event.arguments)
            channel = self.channels.get(event.channel)
            if channel is not None and channel.consumers.pop(consumer_tag, None) is not None:
                channel.limits.pop(consumer_tag, None)
                self._answer_cancel(channel, consumer_tag, nowait)
                self.events.append(Cancelled(event.channel, consumer_tag))
        else:
            self._answer(event.channel, signature, event.arguments)

    def _answer_cancel(self, channel: Channel, consumer_tag: str, nowait: bool) -> None:
        """Tell the broker that a consumer, which it has cancelled, has ended here too.

        Else an ack for a message of that consumer would start it again (RabbitMQ 4.3, after its consumer timeout).
        """
        link = self.link
        if self.accepts_cancel_ok or not nowait:
            frame = link.encoder.method(
                channel.number, *methods.BASIC_CANCEL.reply, methods.BASIC_CANCEL_OK.encode(consumer_tag)
            )
        else:
            arguments = methods.BASIC_CANCEL.encode(consumer_tag, True)
            frame = link.encoder.method(channel.number, *methods.BASIC_CANCEL.signature, arguments)
        with suppress(exceptions.RecoverableConnectionError):  # closed in the meantime
            link.send(frame, on_turn=channel.check)

    def _handle_return(self, event: ReturnReceived) -> None:
        channel = self.channels.get(event.channel)
        if channel is None or channel.confirms is None or not channel.confirms.returned(event):
            self.events.append(Returned(event.channel, event.reply_code, event.reply_text, event.delivery))
            if len(self.events) > MOST_WAITING:
                self._drop_oldest_return()

    def _drop_oldest_return(self) -> None:
        """On a connection that nobody drains they would pile up without end. Deliveries have their prefetch count."""
        oldest = next(each for each in list(self.events) if type(each) is Returned)
        with suppress(ValueError):  # another thread took it
            self.events.remove(oldest)
        if not self._drops_returns:
            self._drops_returns = True
            logger.error("nobody drains this connection: from now on returned messages are dropped, the oldest first")

    def _answer(self, number: int, signature: methods.Signature, answer: Any) -> None:
        channel = self.channels.get(number)
        if channel is not None and signature in channel.awaited:
            if signature == methods.CHANNEL_OPEN.reply:
                self.link.decoder.open(number, channel.above)  # what came before was for its predecessor
            elif signature == methods.BASIC_RECOVER.reply:
                self._recovered(channel)
            channel.answer = answer
        elif channel is not None and channel.flows and signature == methods.CHANNEL_FLOW.reply:
            channel.flows -= 1
        else:
            raise exceptions.UnexpectedFrame(f"method {signature} on channel {number}, which nobody asked for")

    def _recovered(self, channel: Channel) -> None:
        """Drop the deliveries that wait to be received: the broker has taken them back, and sends them again."""
        channel.recovered(self.link.decoder.last_tag(channel.number))
        no_ack = channel.consumers
        self.drop_events(
            lambda event: (
                type(event) is Delivery and event.channel == channel.number and not no_ack.get(event.consumer_tag or "")
            )
        )

    def _connection_closed(self, arguments: bytes) -> None:
        link = self.link
        link.fail(closing_error(arguments, exceptions.ConnectionError))
        link.farewell(link.encoder.method(0, *methods.CONNECTION_CLOSE.reply, b""))

    def _channel_closed(self, number: int, arguments: bytes) -> None:
        error = closing_error(arguments, exceptions.ChannelError)
        if not isinstance(error, exceptions.ChannelError):
            # A code that is for connections, but it is the channel that is closed.
            error = exceptions.ChannelError(error.reply_text, error.method_sig, error.method_name, error.reply_code)
        channel = self.channels.get(number)
        if channel is None or number == 0:
            raise exceptions.UnexpectedFrame(f"channel {number} is closed, which is not open")
        link = self.link
        channel.error = error
        link.send(link.encoder.method(number, *methods.CHANNEL_CLOSE.reply, b""), on_turn=channel.leave)
        channel.above = link.decoder.last_tag(number)
        # Whoever waits for an answer on it takes the error from there; else the event tells, or the next request.
        self._failed[number] = channel
        self._drop_channel(channel, (Delivery, Cancelled))
        self.events.append(ChannelClosed(number, error))
        if channel.confirms is not None:
            channel.confirms.fail(error)

    # --- what waits to be received

    def _drop_channel(self, channel: Channel, kinds: type[Any] | tuple[type[Any], ...] = object) -> None:
        """Forget a channel, and what has come for it, of these kinds."""
        self.channels.pop(channel.number, None)
        self.drop_events(lambda event: event.channel == channel.number and isinstance(event, kinds))
        self.link.decoder.close(channel.number)

    def drop_events(self, matching: Callable[[Event], bool]) -> list[Event]:
        """Take events out of those that wait."""
        dropped = []
        for event in filter(matching, list(self.events)):
            with suppress(ValueError):  # another thread took it
                self.events.remove(event)
                dropped.append(event)
        return dropped

    def wait_for_event(self, timeout: float | None) -> Sequence[Event]:
        """The next event, in a tuple; an empty one if there was none in ``timeout`` seconds."""
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            if timeout is None and not self.events and not self._has_consumers():
                self.link.check()
                raise exceptions.OperationalError("waiting without a timeout, and there is no consumer to wait for")
            if not self.link.wait(lambda: self.events, deadline):
                return ()
            try:
                event = self.events.popleft()
            except IndexError:
                continue  # another thread was faster
            if isinstance(event, ChannelClosed):
                self._failed.pop(event.channel, None)
            return (event,)

    def _has_consumers(self) -> bool:
        return any(channel.consumers for channel in list(self.channels.values()))


def _notify(callback: Callable[..., Any] | None, *arguments: Any) -> None:
    """Call what the application gave. An error must not end the reading of a frame, so it is logged."""
    if callback is None:
        return
    try:
        callback(*arguments)
    except Exception:
        logger.exception("%r raised", callback)
