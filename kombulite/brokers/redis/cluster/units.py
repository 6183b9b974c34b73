"""What is sent to a node, and sent again where that refuses it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hiredis import ReplyError

from kombulite._core import pack_command
from kombulite.brokers.redis.cluster.slots import LATER, Address, Refusal, SlotCache, refusal_of

#: Seconds until what was refused is sent again: while a slot moves, and where the cluster is not whole.
MOVING_PAUSE, DOWN_PAUSE = 0.005, 0.05
#: Redirections that are followed at once; more are nodes that do not agree yet.
MAX_HOPS = 3

MULTI, EXEC, ASKING = pack_command(("MULTI",)), pack_command(("EXEC",)), pack_command(("ASKING",))
CACHING = pack_command(("CLIENT", "CACHING", "YES"))
#: What replies are that refuse nothing.
ACCEPTING = frozenset([int, bytes, str, list, type(None)])


class Unit:
    """Commands of one slot that are done together or not at all, and their replies."""

    __slots__ = ("asked", "commands", "refusal", "refusals", "replies", "slot")

    def __init__(self, slot: int, commands: list[bytes], asked: Address = ("", 0)) -> None:
        self.slot = slot
        self.commands = commands
        self.replies: list[Any] = []
        self.refusal: Refusal | None = None
        self.refusals = 0
        self.asked = asked

    @property
    def asks(self) -> bool:
        """Whether it is sent to the node that a slot is on its way to."""
        return self.refusal is not None and self.refusal.code == "ASK"

    @property
    def packed(self) -> list[bytes]:
        """The commands as they are sent now: ASKING holds for the next one, or for a whole transaction."""
        if not self.asks:
            return self.commands
        first, *others = self.commands
        if first == MULTI:
            return [ASKING, *self.commands]
        if first == CACHING:
            return [CACHING, ASKING, *others]
        return [each for command in self.commands for each in (ASKING, command)]

    def take(self, replies: list[Any]) -> None:
        """Take the replies to ``packed``, and see whether it was refused."""
        self.replies = [reply for sent, reply in zip(self.packed, replies, strict=True) if sent is not ASKING]
        self.refusal = None
        for reply in self.replies:
            if isinstance(reply, ReplyError):
                self.refusal = refusal_of(str(reply), self.asked)
                if self.refusal is not None:
                    self.refusals += 1
                    break


def share(units: Sequence[Unit], replies: list[Any]) -> None:
    """Give units, which were sent one after the other, their replies."""
    has_refusal = not ACCEPTING.issuperset(map(type, replies))
    at = 0
    for unit in units:
        if has_refusal or unit.refusal is not None:
            count = len(unit.packed)
            unit.take(replies[at : at + count])
        else:  # the common case, at no call for each
            count = len(unit.commands)
            unit.replies = replies[at : at + count]
        at += count


def pause_of(unit: Unit) -> float:
    """Return the seconds until a unit that was refused is sent again."""
    refusal = unit.refusal
    if refusal is None or (refusal.address is not None and unit.refusals <= MAX_HOPS):
        return 0.0
    return DOWN_PAUSE if refusal.code in LATER and refusal.code != "TRYAGAIN" else MOVING_PAUSE


def split(data: bytes) -> list[bytes]:
    """Return the commands of several that were packed together."""
    commands, at = [], 0
    while at < len(data):
        start, end = at, data.index(b"\r\n", at)
        count, at = int(data[at + 1 : end]), end + 2
        for _ in range(count):
            end = data.index(b"\r\n", at)
            at = end + 2 + int(data[at + 1 : end]) + 2
        commands.append(data[start:at])
    return commands


def units_of(commands: Iterable[bytes], cache: SlotCache) -> list[Unit]:
    """Return commands as units, in their order."""
    units: list[Unit] = []
    waiting: list[bytes] = []  # those before the command that says which slot it is
    slot: int | None = None
    is_transaction = False
    for command in commands:
        waiting.append(command)
        if command == MULTI:
            is_transaction = True
        if slot is None:
            slot = cache.slot_of(command)
        if slot is not None and (not is_transaction or command == EXEC):
            units.append(Unit(slot, waiting))
            waiting, slot, is_transaction = [], None, False
    assert not waiting, "commands without a key"
    return units
