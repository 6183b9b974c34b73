"""The protocol with calls that wait, over the stream that threads share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any, NoReturn

from kombulite import exceptions
from kombulite._core import FrameReceive, HeldAcks
from kombulite.brokers.amqp import methods
from kombulite.brokers.amqp.channel import AMQPChannel, Request
from kombulite.brokers.amqp.confirms import SharedConfirms
from kombulite.brokers.amqp.login import Login
from kombulite.brokers.amqp.methods import Method
from kombulite.brokers.amqp.protocol import AMQPProtocol
from kombulite.brokers.amqp.stream import Stream
from kombulite.brokers.base import Cancelled, ChannelClosed, Event
from kombulite.utils.locks import Lock


class SharedChannel(AMQPChannel):
    """The state of a channel that threads share."""

    def __init__(self, number: int, tag_offset: int = 0, held: HeldAcks | None = None) -> None:
        super().__init__(number, tag_offset, held)
        self.lock = Lock()  # held from a request to its answer
        self.cancelled: dict[str, bool] = {}  # tag -> no_ack, by the broker, and the event waits to be received

    def end_cancelled(self, consumer_tag: str) -> bool:
        """Forget a consumer that the broker has cancelled, except how its deliveries that wait are to be settled."""
        no_ack = self.consumers.get(consumer_tag)
        if no_ack is not None:
            self.cancelled[consumer_tag] = no_ack
        return super().end_cancelled(consumer_tag)

    def end_consumer(self, consumer_tag: str) -> bool:
        """Forget a consumer that we have cancelled, or the broker before. Return whether it takes no acks."""
        self.limits.pop(consumer_tag, None)
        no_ack = self.consumers.pop(consumer_tag, None)
        return self.cancelled.pop(consumer_tag, True) if no_ack is None else no_ack


class BlockingProtocol(AMQPProtocol):
    """A protocol that threads share: of those that wait, one handles what comes for all.

    ``reply_timeout``: seconds to wait for an answer.
    """

    channel_class = SharedChannel
    confirms_class = SharedConfirms
    stream: Stream

    def __init__(
        self, stream: Stream, options: Mapping[str, Any], login: Login, name: str, reply_timeout: float
    ) -> None:
        super().__init__(stream, options, login, name)
        self.reply_timeout = reply_timeout
        self._opening = Lock()
        stream.handle = self.handle
        #: The common case of receiving: the next of many messages that were read at once.
        self.poll_ready = FrameReceive(stream, stream.reading, stream.decoder, self.events, stream.dispatch).next

    # --- channels

    def open_channel(self, tag_offset: int) -> SharedChannel:
        """Open a channel, and return its state."""
        with self._opening:
            channel: SharedChannel = self.add_channel(tag_offset)
        self.request(channel, methods.CHANNEL_OPEN, "")
        return channel

    def confirm(self, number: int) -> None:
        """Have the broker confirm what is published on a channel."""
        channel, method = self.channel(number), methods.CONFIRM_SELECT
        if channel.confirms is None:
            frame = self.encode(number, method, False)
            on_turn = partial(channel.select, self.confirms_class())
            self.exchange(channel, method.name, frame, (method.reply,), None, on_turn)

    def close_channel(self, number: int) -> None:
        """Close a channel, if it is open."""
        channel = self.channels.get(number)
        if channel is not None:
            with self._unless_closed(channel):
                self.return_unsettled(channel, self.reply_timeout)
                self.request(channel, methods.CHANNEL_CLOSE, 0, "", 0, 0)
        self._failed.pop(number, None)

    def return_all(self, timeout: float) -> None:
        """Do what ``return_unsettled`` does for all channels, within ``timeout`` seconds."""
        deadline = monotonic() + timeout
        for channel in list(self.channels.values()):
            left = deadline - monotonic()
            if left > 0 and channel is not self.root:
                with self._unless_closed(channel):
                    self.return_unsettled(channel, left)

    @contextmanager
    def _unless_closed(self, channel: SharedChannel) -> Iterator[None]:
        """End quietly if the broker, or another thread, closes the channel first."""
        try:
            yield
        except exceptions.ChannelError:
            pass  # the answer, which has been reported
        except exceptions.RecoverableConnectionError:
            self.stream.check()
            if not channel.closing:
                raise
            self.mark_reported(channel)

    def return_unsettled(self, channel: SharedChannel, timeout: float) -> None:
        """Put what a channel, which is about to be closed, has not settled back into its queues.

        The consumers end first: what is in flight to them would count as failed too.
        """
        tag = self.end_consumers(channel, timeout)
        if tag is not None:
            self.request(channel, methods.BASIC_CANCEL, tag, False, timeout=timeout)
        self.give_back(channel, timeout)

    # --- requests and their answers

    def call(self, number: int, method: Method, *arguments: Any) -> list[Any]:
        """Send a request, wait for its answer, and return the answer's arguments."""
        return method.decode(self.request(self.channel(number), method, *arguments))

    def request(self, channel: SharedChannel, method: Method, *arguments: Any, timeout: float | None = None) -> Any:
        """Send a request on a channel, wait for its answer, and return that as bytes."""
        frame = self.encode(channel.number, method, *arguments)
        on_turn = channel.close if method is methods.CHANNEL_CLOSE else channel.check
        return self.exchange(channel, method.name, frame, (method.reply,), timeout, on_turn)

    def exchange(
        self,
        channel: SharedChannel,
        name: str,
        frame: bytes,
        replies: tuple[methods.Signature, ...],
        timeout: float | None,
        on_turn: Callable[[], None],
    ) -> Any:
        """Send a frame and wait for what answers it: a method's arguments, or a message.

        After a timeout it is not known what the next answer would be for, so the connection is given up.
        """
        stream = self.stream
        timeout = self.reply_timeout if timeout is None else timeout
        with channel.lock:
            request = Request(replies)
            channel.requests.append(request)
            try:
                stream.send(frame, timeout, on_turn=on_turn)
                stream.wait(lambda: request.answer is not None or channel.error is not None, monotonic() + timeout)
            finally:
                channel.requests.clear()
            if request.answer is None:
                self._raise_unanswered(channel, name, timeout)
            return request.answer

    def flow(self, channel: SharedChannel, active: bool, timeout: float) -> None:
        """Let deliveries flow, or not, and wait until the broker has done that, and all that came before it.

        Raises Blocked, or RecoverableConnectionError, if it has not in time. A late answer does no harm: all are
        counted.
        """
        stream = self.stream
        frame = self.encode(channel.number, methods.CHANNEL_FLOW, active)
        with channel.lock:
            stream.send(frame, timeout, on_turn=channel.ask_flow)
            in_time = stream.wait(lambda: not channel.flows or channel.error is not None, monotonic() + timeout)
        if channel.error is not None:
            self.mark_reported(channel)
            raise channel.error
        if not in_time:
            self.raise_blocked()
            raise exceptions.RecoverableConnectionError(f"the broker did not answer in {timeout:g} s")

    def _raise_unanswered(self, channel: SharedChannel, name: str, timeout: float) -> NoReturn:
        if channel.error is not None:
            self.mark_reported(channel)
            raise channel.error
        reason = f", and does not take messages: {self.blocked}" if self.blocked is not None else ""
        self.stream.give_up(
            exceptions.RecoverableConnectionError(f"{name}: the broker did not answer in {timeout:g} s{reason}")
        )

    # --- what waits to be received

    def wait_for_event(self, timeout: float | None) -> Sequence[Event]:
        """Return the next event in a tuple; an empty one if there was none in ``timeout`` seconds."""
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            if timeout is None and not self.events and not self._has_consumers():
                self.stream.check()
                raise exceptions.OperationalError("waiting without a timeout, and there is no consumer to wait for")
            if not self.stream.wait(lambda: self.events, deadline):
                return ()
            try:
                event = self.events.popleft()
            except IndexError:
                continue  # another thread was faster
            if isinstance(event, ChannelClosed):
                self._failed.pop(event.channel, None)
            elif isinstance(event, Cancelled) and (channel := self.channels.get(event.channel)) is not None:
                channel.cancelled.pop(event.consumer_tag, None)
            return (event,)

    def _has_consumers(self) -> bool:
        return any(channel.consumers for channel in list(self.channels.values()))
