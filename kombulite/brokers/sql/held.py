"""What connections that were lost leave to the others of this process.

A message belongs to a connection by a number in its row, which any connection may change. So a message that the
application still has when its connection is lost stays with it (*held*): the next connection of the process takes it
over, and settles it. Once the application has forgotten it, unsettled, it goes back to its queue, as all else does.

Messages may be forgotten in any thread, at any point: what notes that takes no lock.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

from kombulite._core import Delivery
from kombulite.brokers.base import Outcome
from kombulite.brokers.sql.messages import Messages, Token

__all__ = ["HeldMessages", "Left", "left_by", "write"]


class Held:
    """A message that the application still has. ``owner``: the connection that it belongs to."""

    def __init__(self, owner: int, token: Token, forgotten: deque[Held]) -> None:
        self.owner = owner
        self.id = token.id
        self.queue = token.queue
        self.delivery: ReferenceType[Delivery] = ref(token.delivery, partial(_forget, forgotten, ref(self)))


class Settlement(NamedTuple):
    """What becomes of a held message."""

    held: Held
    token: Token
    outcome: Outcome


class Left:
    """What the lost connections of this process to one database have left."""

    def __init__(self) -> None:
        self.held: dict[int, Held] = {}  # by the message's id
        self.forgotten: deque[Held] = deque()
        self.settled: deque[Settlement] = deque()
        self._lost: dict[int, list[Token]] = {}  # connections -> what was acknowledged, and is not deleted yet

    def lose(self, owner: int, acknowledged: Iterable[Token]) -> None:
        """Note a connection that is lost."""
        self._lost[owner] = list(acknowledged)

    def take_over(self, messages: Messages) -> Callable[[int], None]:
        """Make a new connection the owner of what is held, and end those that are lost; within a transaction.

        Returns what notes that, to be called with the new owner once it is committed.
        """
        lost = list(self._lost)
        held = [*self.held.values(), *(each.held for each in self.settled)]
        held = [each for each in held if each.owner in lost]
        kept: set[int] = set()
        for owner in lost:
            messages.delete(self._lost[owner], owner)
            kept |= messages.take_over(owner, [each.id for each in held if each.owner == owner])
        return partial(self._taken_over, lost, held, kept)

    def _taken_over(self, lost: Iterable[int], held: Iterable[Held], kept: set[int], owner: int) -> None:
        for connection in lost:
            self._lost.pop(connection, None)
        for each in held:
            each.owner = owner
            if each.id not in kept:
                self.held.pop(each.id, None)  # its lease had ended

    def release(self, owner: int) -> None:
        """Give back all that a connection holds, which ends."""
        self.forgotten.extend(each for each in list(self.held.values()) if each.owner == owner)

    def work_of(self, owner: int) -> list[Settlement | Held]:
        """Take what became of the held messages of a connection: it is settled, or forgotten."""
        work: list[Settlement | Held] = []
        for _ in range(len(self.settled)):
            settlement = self.settled.popleft()
            (work if settlement.held.owner == owner else self.settled).append(settlement)
        for _ in range(len(self.forgotten)):
            held = self.forgotten.popleft()
            if held.owner == owner:
                work += [held] if self.held.pop(held.id, None) is not None else []
            else:
                self.forgotten.append(held)
        return work


def write(messages: Messages, work: Iterable[Settlement | Held]) -> None:
    """Settle held messages, within a transaction."""
    for each in work:
        if isinstance(each, Held):
            messages.put_back([Token(each.id, each.queue, NO_DELIVERY)])
        elif each.outcome is Outcome.ACK:
            messages.delete([each.token])
        elif each.outcome is Outcome.REJECT:
            messages.bury(messages.delete([each.token]), "rejected")
        else:
            messages.put_back([each.token])


#: Stands for the content of a message that the application has forgotten.
NO_DELIVERY: Any = None


class HeldMessages:
    """What one connection had, by channel and delivery tag: ``base.HeldDeliveries``."""

    def __init__(self, left: Left) -> None:
        self._left = left
        self.channels: dict[int, dict[Any, Held]] = {}

    def hold(self, channel: int, tokens: dict[Any, Token], owner: int) -> None:
        """Hold those messages of a channel that the application still has."""
        held = self.channels.setdefault(channel, {})
        for tag in list(tokens):
            each = Held(owner, tokens.pop(tag), self._left.forgotten)
            if each.delivery() is not None:
                held[tag] = self._left.held[each.id] = each

    def settle(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome, multiple: bool = False) -> bool:
        """Settle deliveries over the connection that has taken them over, or will. Returns False if one is not held."""
        held = self.channels.get(channel, {})
        if any(tag not in held or held[tag].id not in self._left.held for tag in delivery_tags):
            return False
        for tag in delivery_tags:
            for each in [other for other in list(held) if other == tag or (multiple and other < tag)]:
                found = held.pop(each)
                delivery = found.delivery()
                if delivery is not None and self._left.held.pop(found.id, None) is not None:
                    self._left.settled.append(Settlement(found, Token(found.id, found.queue, delivery), outcome))
        return True


_left: dict[tuple[Any, ...], Left] = {}


def left_by(*identity: Hashable) -> Left:
    """Return what the connections of this process to a database leave to each other. A forked child has its own."""
    key = os.getpid(), *identity
    for other in [other for other in list(_left) if other[0] != key[0]]:
        _left.pop(other, None)
    return _left.setdefault(key, Left())


def _forget(forgotten: deque[Held], held: ReferenceType[Held], delivery: object) -> None:
    found = held()
    if found is not None:
        forgotten.append(found)
