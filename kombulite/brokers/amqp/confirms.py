"""Publisher confirms: what was published on a channel and not confirmed yet (RabbitMQ's extension, Confirm.select)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kombulite import exceptions
from kombulite._core import ConfirmReceived, Delivery, ReturnReceived
from kombulite.utils.locks import Lock


class Unconfirmed:
    """A message that was published: whether the broker took it is known when ``done``; ``error``: why it did not."""

    __slots__ = ("delivery", "done", "error")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.done = False
        self.error: Exception | None = None

    def settle(self, error: Exception | None) -> None:
        """Note the outcome. An earlier error stands: what came back is confirmed afterwards."""
        self.error = self.error or error
        self.done = True


class Confirms:
    """The messages of one channel, by the number that the broker counts them with.

    ``add`` is for when it is the messages' turn to be sent (``Link.send``), so that both count alike. One thread
    publishes while another reads what the broker says.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._next = 1
        self._outstanding: dict[int, Unconfirmed] = {}

    def __len__(self) -> int:
        return len(self._outstanding)

    def add(self, messages: Iterable[Unconfirmed]) -> None:
        """Count messages that are about to be sent."""
        with self._lock:
            for message in messages:
                self._outstanding[self._next] = message
                self._next += 1

    def settle(self, confirm: ConfirmReceived) -> None:
        """The broker took or refused one message, or all up to it. A number that is not outstanding is nobody's."""
        tag, outstanding = confirm.delivery_tag, self._outstanding
        with self._lock:
            if not confirm.multiple:
                settled = [outstanding.pop(tag)] if tag in outstanding else []
            else:
                settled = [outstanding.pop(number) for number in self._up_to(tag)]
        error = None if confirm.accepted else exceptions.MessageNacked("the broker refused the message")
        for message in settled:
            message.settle(error)

    def _up_to(self, tag: int) -> list[int]:
        numbers = []
        for number in self._outstanding:  # they are in order
            if tag and number > tag:  # 0 stands for all
                break
            numbers.append(number)
        return numbers

    def returned(self, event: ReturnReceived) -> bool:
        """A message came back; its confirm follows. Returns whether it was one of ours.

        It does not say which: of those that are alike it is the first that has not come back yet.
        """
        back = event.delivery
        body = body_of(back)
        with self._lock:
            for message in self._outstanding.values():
                sent = message.delivery
                if (
                    message.error is None
                    and sent.routing_key == back.routing_key
                    and sent.exchange == back.exchange
                    and sent.body == body
                ):
                    message.error = exceptions.MessageReturned(
                        event.reply_text, (60, 50), "Basic.return", event.reply_code
                    )
                    return True
        return False

    def fail(self, error: Exception) -> None:
        """The channel is closed: what was not confirmed was not taken, or that is not known."""
        with self._lock:
            for message in self._outstanding.values():
                message.settle(error)
            self._outstanding.clear()


def all_done(messages: Iterable[Unconfirmed]) -> Callable[[], bool]:
    """A function that says whether all of them are done. It looks at each once."""
    waiting = iter(messages)
    current = next(waiting, None)

    def done() -> bool:
        nonlocal current
        while current is not None and current.done:
            current = next(waiting, None)
        return current is None

    return done


def body_of(delivery: Delivery) -> bytes:
    """The body as it was sent: a received one may be text."""
    body: bytes | str = delivery.body
    return body.encode(delivery.properties.content_encoding or "utf-8") if isinstance(body, str) else body
