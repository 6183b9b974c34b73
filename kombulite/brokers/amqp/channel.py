"""What both sides know of a channel: its consumers, what is settled and confirmed, the requests under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from kombulite import exceptions
from kombulite._core import AckWatermark, HeldAcks
from kombulite.brokers.amqp import methods
from kombulite.brokers.amqp.confirms import Confirms, Unconfirmed, ignored_for
from kombulite.brokers.amqp.limits import PrefetchLimit
from kombulite.brokers.amqp.methods import Signature


class Request:
    """A request that is under way, and its answer: the arguments of a method, or a message.

    ``replies``: the methods that may answer it.
    """

    __slots__ = ("answer", "replies")

    def __init__(self, replies: tuple[Signature, ...]) -> None:
        self.replies = replies
        self.answer: Any = None

    def succeed(self, answer: Any) -> None:
        """Take the answer."""
        self.answer = answer

    def fail(self, error: Exception) -> None:
        """Take the error that came instead of an answer."""


class AMQPChannel:
    """The state of a channel. ``held``: where its stream holds acks, if it does."""

    def __init__(self, number: int, tag_offset: int = 0, held: HeldAcks | None = None) -> None:
        self.number = number
        self.tag_offset = tag_offset  # what our delivery tags have more than the broker's
        self.stale = tag_offset  # tags up to this one are not to be settled any more
        self.requests: deque[Request] = deque()  # that are not answered yet, in the order of their answers
        self.error: exceptions.ChannelError | None = None  # why the broker closed it
        self.closing = False  # one side has closed it: whatever is sent on it now would end the connection
        self.settles = True  # until all deliveries go back before it is closed: to the broker they are unknown then
        self.consumers: dict[str, bool] = {}  # tag -> no_ack
        self.prefetch_count = 0  # of consumers that are to start
        self.limits: dict[str, PrefetchLimit] = {}  # of those that are running, by tag
        self.takes_acks = False  # whether there may be deliveries to settle
        self.keeps_order = False  # whether a queue passes to its next consumer when one here ends
        self.failed: set[int] = set()  # the broker's tags of deliveries that failed and are not settled
        self.confirms: Confirms | None = None
        self.settled = AckWatermark(held, number, tag_offset, self.failed)  # the broker's tags
        self.flows = 0  # answers to channel.flow that are to come

    def end_cancelled(self, consumer_tag: str) -> bool:
        """Forget a consumer that the broker has cancelled. Return whether there was one."""
        self.limits.pop(consumer_tag, None)
        return self.consumers.pop(consumer_tag, None) is not None

    # For ``send`` of a stream, when it is a frame's turn.

    def check(self) -> None:
        """Raise RecoverableConnectionError if the channel is closed."""
        if self.closing:
            raise self.closed_error()

    def check_settles(self) -> None:
        """Raise RecoverableConnectionError if all deliveries went back to their queues, or the channel is closed."""
        if self.closing or not self.settles:
            raise self.closed_error()

    def end_settling(self) -> None:
        """Note that all deliveries go back to their queues, because the channel is about to be closed."""
        self.check()
        self.settles = False
        self.settled.close()

    def closed_error(self) -> exceptions.RecoverableConnectionError:
        """Return the error for all but the request or message that the channel was closed for."""
        reason = f": {self.error}" if self.error is not None else ""
        return exceptions.RecoverableConnectionError(f"channel already closed{reason}")

    def unsent_error(self) -> exceptions.ChannelError:
        """Return the error for a message that comes after the broker has closed the channel.

        Without confirms it is that of an earlier message: nobody else has it.
        """
        assert self.error is not None
        is_of_earlier = self.confirms is None and self.error.method_sig == methods.BASIC_PUBLISH
        return self.error if is_of_earlier else ignored_for(self.error)

    def leave(self) -> None:
        """Note that this frame is the last one."""
        self.closing = True
        self.settled.close()

    def close(self) -> None:
        """Note that this frame, which asks the broker to close the channel, is the last one."""
        self.check()
        self.leave()

    def settle_failed(self, delivery_tag: int, multiple: bool) -> None:
        """Note that this frame settles deliveries of which some failed."""
        self.check_settles()
        self.forget_failures(delivery_tag, multiple)

    def forget_failures(self, delivery_tag: int, multiple: bool) -> None:
        """Note that failed deliveries are settled."""
        if multiple:
            self.failed -= {tag for tag in self.failed if not 0 < delivery_tag < tag}
        else:
            self.failed.discard(delivery_tag)

    def settle_all(self, tags: Sequence[int]) -> None:
        """Note that deliveries are settled, by the broker's tags."""
        for tag in tags:
            self.settled.add(tag)
        self.failed.difference_update(tags)

    def recovered(self, last_tag: int) -> None:
        """Note that all deliveries went back to their queues, up to this one."""
        self.stale = last_tag
        self.settled.add(last_tag - self.tag_offset, True)
        self.failed.clear()

    def stale_error(self) -> exceptions.AMQPError:
        """Return the error for a delivery that is not to be settled any more."""
        if self.stale > self.tag_offset:
            return exceptions.PreconditionFailed("the message went back to its queue when the channel recovered")
        return exceptions.RecoverableConnectionError("the message came on a connection that was lost")

    def ask_flow(self) -> None:
        """Expect one more answer to channel.flow."""
        self.check()
        self.flows += 1

    def count(self, messages: Sequence[Unconfirmed]) -> None:
        """Expect confirms for messages. Raises that they are not sent, if the channel is closed."""
        if self.closing:
            raise self.closed_error() if self.error is None else ignored_for(self.error)
        assert self.confirms is not None
        self.confirms.add(messages)

    def pass_by(self, number: int = 1) -> None:
        """Note messages that wait for no confirm; another thread may have asked for confirms just now."""
        if self.closing:
            raise self.closed_error()
        if self.confirms is not None:
            self.confirms.skip(number)

    def select(self, confirms: Confirms) -> None:
        """Note that the broker counts messages from now on; again, it goes on counting."""
        self.check()
        if self.confirms is None:
            self.confirms = confirms

    def take_request(self, signature: Signature) -> Request | None:
        """Take out the request that a method answers, or None."""
        try:
            request = self.requests[0]
        except IndexError:
            return None
        if signature not in request.replies:
            return None
        with suppress(IndexError):  # its thread was interrupted just now
            self.requests.popleft()
        return request

    def fail_requests(self, error: Exception, following: Exception) -> None:
        """End the requests that are under way: the first one with one error, all others with another."""
        while self.requests:
            self.requests.popleft().fail(error)
            error = following
