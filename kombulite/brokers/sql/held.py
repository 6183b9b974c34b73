"""What connections that were lost leave to the others of this process.

A message belongs to a connection by a number in its row, which any connection may change. So a message that the
application still has when its connection is lost stays with it (*held*): the next connection of the process takes it
over, and settles it. Once the application has forgotten it, unsettled, it goes back to its queue, as all else does.

Messages may be settled in any thread, and forgotten at any point: what notes that takes no lock. Each change of a
dictionary here is a single step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import ReferenceType, ref

from kombulite._core import Delivery
from kombulite.brokers.base import Outcome
from kombulite.brokers.sql.messages import Messages, Token

__all__ = ["HeldMessages", "Left", "left_by", "write"]


class Held:
    """A message that the application had when its connection was lost.

    ``owner``: the connection that it belongs to; ``settled``: what the application has made of it.
    """

    def __init__(self, owner: int, token: Token, changed: dict[Held, None]) -> None:
        self.owner = owner
        self.id = token.id
        self.queue = token.queue
        self.settled: tuple[Token, Outcome] | None = None
        self.delivery: ReferenceType[Delivery] = ref(token.delivery, partial(_forget, changed, ref(self)))


class Left:
    """What the lost connections of this process to one database have left."""

    def __init__(self) -> None:
        self.held: dict[int, Held] = {}  # by the message's id
        self.changed: dict[Held, None] = {}  # those that are settled, forgotten or to be given back, in this order
        self._lost: dict[int, list[Token]] = {}  # connections -> what was acknowledged, and is not deleted yet
        self._open: dict[int, None] = {}  # connections that are open, in this order

    def begin(self, owner: int) -> None:
        """Note a connection that is open."""
        self._open[owner] = None

    def lose(self, owner: int, acknowledged: Iterable[Token]) -> None:
        """Note a connection that is lost."""
        self._lost[owner] = list(acknowledged)
        self._open.pop(owner, None)

    @contextmanager
    def take_over(self, messages: Messages) -> Iterator[Callable[[int], None]]:
        """Make a new connection the owner of what is held, and end those that are lost, which no other has meanwhile.

        Gives what does so, to be called with the new owner in a transaction that is committed when the block ends.
        """
        numbers = list(self._lost)
        lost = {number: tokens for number in numbers if (tokens := self._lost.pop(number, None)) is not None}
        taken: list[tuple[Held, int | None]] = []  # with the new owner; None: its lease had ended

        def take(owner: int) -> None:
            for number, acknowledged in lost.items():
                held = self.held_by(number)
                kept = messages.take_over(number, acknowledged, [each.id for each in held])
                taken.extend((each, owner if each.id in kept else None) for each in held)

        try:
            yield take
        except BaseException:
            self._lost.update(lost)
            raise
        for each, owner in taken:
            if owner is None:
                self._drop(each)
            else:
                each.owner = owner

    def end(self, owner: int) -> int | None:
        """Note a connection that ends. Returns another one for what it holds; None: there is none, and it goes back."""
        self._open.pop(owner, None)
        heir = next(iter(list(self._open)), None)
        if heir is None:
            self.changed.update((each, None) for each in self.held_by(owner))
        return heir

    def held_by(self, owner: int) -> list[Held]:
        """Return the messages that a connection holds for the application."""
        return [each for each in list(self.held.values()) if each.owner == owner]

    def given(self, held: Iterable[Held], heir: int, ids: Container[int]) -> None:
        """Note that another connection has those of the messages whose ids are given.

        If that has ended meanwhile, they are in their queues again.
        """
        for each in held:
            each.owner = heir
            if each.id not in ids or (heir not in self._open and heir not in self._lost):
                self._drop(each)

    def work_of(self, owner: int) -> list[Held]:
        """Return the held messages of a connection that are settled, forgotten or to be given back."""
        for each in list(self.changed):
            if not self.has(each):
                self.changed.pop(each, None)
        return [each for each in list(self.changed) if each.owner == owner]

    def written(self, work: Iterable[Held]) -> None:
        """Note that messages are settled in the database."""
        for each in work:
            self._drop(each)

    def has(self, held: Held | None) -> bool:
        """Return whether a message is held still."""
        return held is not None and self.held.get(held.id) is held

    def _drop(self, held: Held) -> None:
        if self.has(held):
            self.held.pop(held.id, None)
        self.changed.pop(held, None)


def write(messages: Messages, work: Iterable[Held]) -> None:
    """Settle held messages, within a transaction; those that are not settled go back."""
    for each in work:
        token, outcome = each.settled or (Token(each.id, each.queue, NO_DELIVERY), Outcome.REQUEUE)
        if outcome is Outcome.ACK:
            messages.delete([token])
        elif outcome is Outcome.REJECT:
            messages.bury(messages.delete([token]), "rejected")
        else:
            messages.put_back([token], counts=outcome is not Outcome.RETURN)


#: Stands for the content of a message that the application has forgotten.
NO_DELIVERY: Any = None


class HeldMessages:
    """What one connection had, by channel and delivery tag: ``base.HeldDeliveries``."""

    def __init__(self, left: Left) -> None:
        self._left = left
        self.channels: dict[int, dict[Any, Held]] = {}

    def hold(self, channel: int, tokens: dict[Any, Token], owner: int) -> None:
        """Hold the messages of a channel; those that the application has forgotten are noted as that."""
        held = self.channels.setdefault(channel, {})
        for tag in list(tokens):
            each = Held(owner, tokens[tag], self._left.changed)
            held[tag] = self._left.held[each.id] = each
            del tokens[tag]

    def inherit(self, channel: int, other: HeldMessages, before: int) -> None:
        """Let a channel settle what that in whose place it is had."""
        # On an event loop a message may still be settled by the channel that it came on: that keeps what it had.
        held = list((other.channels.pop if other is self else other.channels.get)(before, {}).items())
        self.channels[channel] = {tag: each for tag, each in held if self._left.has(each)}

    def settle(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome, multiple: bool = False) -> bool:
        """Settle deliveries over the connection that has taken them over, or will. Returns False if one is not held."""
        left, held = self._left, self.channels.get(channel, {})
        if not all(left.has(held.get(tag)) for tag in delivery_tags):
            return False
        for tag in delivery_tags:
            self._settle(held, [other for other in list(held) if other <= tag] if multiple else [tag], outcome)
        return True

    def settle_all(self, channel: int, outcome: Outcome) -> bool:
        """Settle all that a channel has. Returns whether it has something."""
        held = self.channels.pop(channel, {})
        delivery_tags = list(held)
        self._settle(held, delivery_tags, outcome)
        return bool(delivery_tags)

    def _settle(self, held: dict[Any, Held], delivery_tags: Iterable[Any], outcome: Outcome) -> None:
        for tag in delivery_tags:
            found = held.pop(tag, None)
            delivery = None if found is None else found.delivery()
            if found is not None and found.settled is None and delivery is not None:
                found.settled = Token(found.id, found.queue, delivery), outcome
                self._left.changed[found] = None


_left: dict[tuple[Any, ...], Left] = {}


def left_by(*identity: Hashable) -> Left:
    """Return what the connections of this process to a database leave to each other. A forked child has its own."""
    key = os.getpid(), *identity
    for other in [other for other in list(_left) if other[0] != key[0]]:
        _left.pop(other, None)
    return _left.setdefault(key, Left())


def _forget(changed: dict[Held, None], held: ReferenceType[Held], delivery: object) -> None:
    found = held()
    if found is not None:
        changed[found] = None
