"""Publisher confirms: what was published on a channel and not confirmed yet (RabbitMQ's extension, Confirm.select)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from kombulite import exceptions
from kombulite._core import ConfirmReceived, Delivery, ReturnReceived, encode_text
from kombulite.brokers.amqp import methods
from kombulite.brokers.base import MessageIgnored
from kombulite.utils.locks import Lock


class Unconfirmed:
    """A message that was published. When it is ``done``, ``error`` says why the broker did not take it, or is None."""

    __slots__ = ("delivery", "done", "error", "mandatory")

    def __init__(self, delivery: Delivery, mandatory: bool) -> None:
        self.delivery = delivery
        self.mandatory = mandatory
        self.done = False
        self.error: Exception | None = None

    def settle(self, error: Exception | None) -> None:
        """Note the outcome. An earlier error stands: what came back is confirmed afterwards."""
        self.error = self.error or error
        self.done = True

    @property
    def is_given_up(self) -> bool:
        """Whether nothing waits for the outcome any more."""
        return False

    def let_go(self) -> None:
        """Keep no body, because nothing waits for the outcome any more: the broker may never confirm the message."""
        sent = self.delivery
        self.mandatory = False
        self.delivery = Delivery(sent.exchange, sent.routing_key, sent.properties, b"")


MANY = 5000  # messages that are not confirmed before those are looked for that nothing waits for any more


class Confirms:
    """The messages of one channel, by the number that the broker counts them with.

    ``add`` is for when it is the messages' turn to be sent (``send`` of the stream), so that both count alike.
    """

    def __init__(self) -> None:
        self._first = 1  # no lower number is outstanding
        self._next = 1
        self._outstanding: dict[int, Unconfirmed] = {}
        self._matcher: ReturnMatcher | None = None  # made when a message comes back: most channels never need it
        self._many = MANY

    def __len__(self) -> int:
        return len(self._outstanding)

    def add(self, messages: Iterable[Unconfirmed]) -> None:
        """Count messages that are about to be sent."""
        for message in messages:
            self._outstanding[self._next] = message
            self._next += 1

    def add_one(self, message: Unconfirmed) -> None:
        """Count a message that is about to be sent."""
        self._outstanding[self._next] = message
        self._next += 1
        if len(self._outstanding) > self._many:
            self._let_go()

    def _let_go(self) -> None:
        """Keep no content of messages that nothing waits for any more: the broker may never confirm them."""
        for message in self._outstanding.values():
            if message.is_given_up:
                message.let_go()
        self._many = max(MANY, 2 * len(self._outstanding))

    def skip(self, number: int) -> None:
        """Count messages whose confirms nobody waits for."""
        self._next += number

    def settle(self, confirm: ConfirmReceived) -> None:
        """Settle what the broker took or refused: one message, or all up to it. Ignore unknown numbers."""
        error = None if confirm.accepted else exceptions.MessageNacked("the broker refused the message")
        for message in self.take(confirm.delivery_tag, confirm.multiple):
            message.settle(error)

    def take(self, tag: int, multiple: bool) -> list[Unconfirmed]:
        """Take out one message, or all up to it (0: all)."""
        outstanding = self._outstanding
        if not multiple:
            message = outstanding.pop(tag, None)
            if not outstanding:
                self._first = self._next  # or the next confirm of many would look at each number since the last one
                self._matcher, self._many = None, MANY
            return [] if message is None else [message]
        end = min(tag + 1, self._next) if tag else self._next
        found = []
        for number in range(self._first, end):
            if (message := outstanding.pop(number, None)) is not None:
                found.append(message)
        self._first = max(self._first, end)
        if not outstanding:
            self._matcher, self._many = None, MANY
        return found

    def returned(self, event: ReturnReceived) -> bool:
        """Note that a message came back; its confirm follows. Return whether it was one of these.

        The broker does not say which: of those that are alike it is the first that has not come back yet, one with the
        same ids and headers if there is one.
        """
        if self._matcher is None:
            self._matcher = ReturnMatcher(self._outstanding)
        found = self._matcher.take(event.delivery)
        if found is None:
            return False
        found.error = exceptions.MessageReturned(event.reply_text, (60, 50), "Basic.return", event.reply_code)
        return True

    def close(self, error: exceptions.ChannelError) -> None:
        """Settle all, because the broker has closed the channel, which is one message's fault at most."""
        messages = self.take(0, True)
        for message, its_own in zip(messages, errors_of_each(messages, error), strict=True):
            message.settle(its_own)

    def fail(self, error: Exception) -> None:
        """Settle all, because the channel is closed: the broker did not take them, or that is not known."""
        for message in self.take(0, True):
            message.settle(error)


class SharedConfirms(Confirms):
    """Confirms of a channel that threads share: one publishes while another reads what the broker says."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = Lock()

    def add(self, messages: Iterable[Unconfirmed]) -> None:
        """Count messages that are about to be sent."""
        with self._lock:
            super().add(messages)

    def skip(self, number: int) -> None:
        """Count messages whose confirms nobody waits for."""
        with self._lock:
            super().skip(number)

    def take(self, tag: int, multiple: bool) -> list[Unconfirmed]:
        """Take out one message, or all up to it (0: all)."""
        with self._lock:
            return super().take(tag, multiple)

    def returned(self, event: ReturnReceived) -> bool:
        """Note that a message came back; its confirm follows. Return whether it was one of these."""
        with self._lock:
            return super().returned(event)


class ReturnMatcher:
    """Which message of a channel came back, by what the broker says of it: where it was to go, its content.

    It looks at each message once, so a window of messages that all come back takes time in proportion to their number.
    It keeps no bodies.

    Args:
        outstanding: The messages that are not confirmed, by their number, in order.
    """

    SLACK = 1000  # messages beyond twice those outstanding that may be kept after they were confirmed

    def __init__(self, outstanding: dict[int, Unconfirmed]) -> None:
        self._outstanding = outstanding
        self._clear()

    def _clear(self) -> None:
        self._last = 0  # the highest number that was looked at
        self._count = 0  # messages that are kept
        self._numbers: dict[Hashable, deque[int]] = {}

    def take(self, back: Delivery) -> Unconfirmed | None:
        """Return the message that came back, if it is one of these and has not come back before."""
        self._extend()
        body = body_of(back)
        for key in keys_of(back, body):
            numbers = self._numbers.get(key)
            while numbers and self._is_done(numbers[0]):
                numbers.popleft()
            for number in numbers or ():  # the first one, unless different bodies have the same hash
                if not self._is_done(number) and self._outstanding[number].delivery.body == body:
                    return self._outstanding[number]
        return None

    def _is_done(self, number: int) -> bool:
        """Return whether a message is confirmed, has come back, or is waited for no more."""
        message = self._outstanding.get(number)
        return message is None or message.error is not None or not message.mandatory

    def _extend(self) -> None:
        """Look at the messages that were published since the last time."""
        if self._count > 2 * len(self._outstanding) + self.SLACK:
            self._clear()
        fresh = list(takewhile(lambda number: number > self._last, reversed(self._outstanding)))
        for number in reversed(fresh):
            message = self._outstanding[number]
            if message.mandatory and message.error is None:
                for key in keys_of(message.delivery, message.delivery.body):
                    self._numbers.setdefault(key, deque()).append(number)
                self._count += 1
        if fresh:
            self._last = fresh[0]


def all_done(messages: Iterable[Unconfirmed]) -> Callable[[], bool]:
    """Return a function that returns whether all are done, and looks at each once."""
    waiting = iter(messages)
    current = next(waiting, None)

    def done() -> bool:
        nonlocal current
        while current is not None and current.done:
            current = next(waiting, None)
        return current is None

    return done


def errors_of_each(messages: Sequence[Unconfirmed], error: exceptions.ChannelError) -> list[Exception]:
    """Return the error of each message that was not confirmed when the broker closed the channel for one of them.

    It is one of those that the broker's error names, which all get it: an exchange may have been there for the first of
    them. The broker ignores what is behind that one, so behind the last of them for certain; of the others it may have
    some, which it has not confirmed yet. If the error names none, all get it; if it is of another request, none does.
    """
    if error.method_sig != methods.BASIC_PUBLISH:
        return [unknown_after(error)] * len(messages)
    named = [is_named(each.delivery, error) for each in messages]
    last = max((number for number, is_named in enumerate(named) if is_named), default=None)
    if last is None:
        return [error] * len(messages)
    ignored, unknown = ignored_for(error), unknown_after(error)
    return [error if is_named else unknown if number < last else ignored for number, is_named in enumerate(named)]


def settle_rest(
    messages: Sequence[Unconfirmed], sent: int, closed: exceptions.ChannelError | None, error: Exception
) -> None:
    """Settle what is left of a batch, of which ``sent`` messages were sent, when it ends with ``error``.

    ``closed``: what the broker has closed the channel with, if it has. What it names nobody for is told to all.
    """
    names_nobody = closed is not None and any(
        message.error is closed and not is_named(message.delivery, closed) for message in messages
    )
    for number, message in enumerate(messages):
        if message.done:
            continue
        if closed is None:
            message.settle(error.with_traceback(None))  # whose frames have all of the batch
            message.let_go()
        elif names_nobody:
            message.settle(closed)
        else:  # one that waits for its confirm gets its error just now, in another thread
            message.settle(unknown_after(closed) if number < sent else ignored_for(closed))


def unknown_after(error: exceptions.ChannelError) -> exceptions.RecoverableChannelError:
    """Return the error of a message that the broker may have or not, because it has closed the channel."""
    text = f"the broker may have the message: the channel was closed for something else: {error}"
    unknown = exceptions.RecoverableChannelError(text, error.method_sig)
    unknown.__cause__ = error
    return unknown


def ignored_for(error: exceptions.ChannelError) -> MessageIgnored:
    """Return the error of a message that the broker has not taken, because it has closed the channel before."""
    text = f"the broker has not taken the message: the channel was closed for something else: {error}"
    ignored = MessageIgnored(text, error.method_sig)
    ignored.__cause__ = error
    return ignored


def is_named(delivery: Delivery, error: exceptions.ChannelError) -> bool:
    """Return whether the error is of a publish, and names what a message has: its topic, exchange, user or size."""
    if error.method_sig != methods.BASIC_PUBLISH:
        return False
    text, user = error.reply_text or "", delivery.properties.user_id
    exchange = f"exchange '{delivery.exchange or 'amq.default'}'"
    if "access to topic '" in text:
        return f"access to topic '{delivery.routing_key}' in {exchange}" in text
    return (
        exchange in text
        or (user is not None and f"user_id property set to '{user}'" in text)
        or f"message size {len(delivery.body)} " in text
    )


def keys_of(delivery: Delivery, body: bytes) -> tuple[Hashable, Hashable]:
    """Return what a message is found by: with its ids and headers, and without."""
    properties = delivery.properties
    alike = delivery.exchange, delivery.routing_key, len(body), hash(body)
    try:
        headers = frozen(properties.headers or {})
        hash(headers)
    except Exception:  # they are the caller's: they may change meanwhile, or raise what they like
        headers = None
    return (*alike, properties.message_id, properties.correlation_id, headers), alike


def frozen(value: Any) -> Hashable:
    """Return what can be a key in place of a header's value: equal ones are equal."""
    if isinstance(value, Mapping):
        return frozenset((name, frozen(each)) for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(frozen(each) for each in value)
    key: Hashable = value
    return key


def body_of(delivery: Delivery) -> bytes:
    """Return the body as it was sent: a received one may be text."""
    body: bytes | str = delivery.body
    return encode_text(body, delivery.properties.content_encoding) if isinstance(body, str) else body
