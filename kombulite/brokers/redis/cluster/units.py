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


class Unit:
    """Commands of one slot that are done together or not at all, and their replies."""

    __slots__ = ("asked", "commands", "refusal", "refusals", "replies", "slot")

    def __init__(self, slot: int, commands: list[bytes]) -> None:
        self.slot = slot
        self.commands = commands
        self.replies: list[Any] = []
        self.refusal: Refusal | None = None
        self.refusals = 0
        self.asked: Address = ("", 0)

    @property
    def asks(self) -> bool:
        """Whether it is sent to the node that a slot is on its way to."""
        return self.refusal is not None and self.refusal.code == "ASK"

    @property
    def data(self) -> bytes:
        """The commands as they are sent now."""
        if not self.asks:
            return b"".join(self.commands)
        place = 1 if self.commands[0] == CACHING else 0
        return b"".join([*self.commands[:place], ASKING, *self.commands[place:]])

    @property
    def count(self) -> int:
        """The number of replies to ``data``."""
        return len(self.commands) + self.asks

    def take(self, replies: list[Any]) -> None:
        """Take the replies to ``data``, and see whether it was refused."""
        if len(replies) > len(self.commands):
            del replies[1 if self.commands[0] == CACHING else 0]
        self.replies = replies
        self.refusal = None
        for reply in replies:
            if isinstance(reply, ReplyError):
                self.refusal = refusal_of(str(reply), self.asked)
                if self.refusal is not None:
                    self.refusals += 1
                    break


def share(units: Sequence[Unit], replies: list[Any]) -> None:
    """Give units, which were sent one after the other, their replies."""
    at = 0
    for unit in units:
        count = unit.count
        unit.take(replies[at : at + count])
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
