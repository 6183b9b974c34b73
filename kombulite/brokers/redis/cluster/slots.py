"""Which node of a Redis Cluster has which slot, and what nodes say of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from kombulite._core import word_of
from kombulite.brokers.redis.errors import connection_lost

SLOTS: int = REDIS_CLUSTER_HASH_SLOTS
Address = tuple[str, int]

#: Where the first key is among the arguments of a command, counted from its name; 1 for all others.
KEY_PLACES = {b"EVALSHA": 3, b"EVAL": 3, b"SCAN": 3}
#: Commands without a key.
KEYLESS = frozenset([b"MULTI", b"EXEC", b"CLIENT", b"PING", b"ASKING", b"TIME", b"DISCARD", b"SCRIPT"])
#: What nodes call a node whose name they do not know: it is reached at the host that was asked.
UNKNOWN_HOSTS = ("", "?")
PORT, MAX_PORT = re.compile("[0-9]{1,5}"), 65535
#: Keys whose slot is remembered.
MAX_REMEMBERED = 10_000
#: Nodes that a cluster has, at most: a reply that names more makes no sense.
MAX_NODES = SLOTS


def slot_of(key: str | bytes) -> int:
    """Return the slot of a key. Raises TypeError for what is none, as a node may send it."""
    if isinstance(key, str):
        key = key.encode()
    elif not isinstance(key, bytes):
        raise TypeError(f"no key: {key!r:.80}")
    slot: int = key_slot(key)
    return slot


def key_of(command: bytes) -> bytes | None:
    """Return the first key of a packed command, None for one without a key."""
    name = word_of(command, 0)
    return None if name in KEYLESS else word_of(command, KEY_PLACES.get(name, 1))


class SlotCache:
    """The slots of keys that were asked for lately: hashing one costs more than sending it."""

    def __init__(self) -> None:
        self._slots: dict[bytes, int] = {}

    def slot_of(self, command: bytes) -> int | None:
        """Return the slot that a packed command belongs to, None for one without a key."""
        key = key_of(command)
        if key is None:
            return None
        slot = self._slots.get(key)
        if slot is None:
            if len(self._slots) >= MAX_REMEMBERED:
                self._slots.clear()
            slot = self._slots[key] = slot_of(key)
        return slot


class SlotMap:
    """The master of each slot, as far as is known."""

    def __init__(self) -> None:
        self.owners: list[Address | None] = [None] * SLOTS
        self.nodes: tuple[Address, ...] = ()  #: all nodes that may be asked, masters first

    def update(self, reply: Any, asked: Address) -> set[int]:
        """Take the reply to CLUSTER SLOTS of the node at ``asked``; returns the slots whose master is another one now.

        Raises RecoverableConnectionError for a reply that makes no sense.
        """
        owners: list[Address | None] = [None] * SLOTS
        masters: dict[Address, None] = {}
        replicas: dict[Address, None] = {}
        left = SLOTS
        try:
            for first, last, master, *others in reply:
                owner = _address(master, asked)
                masters[owner] = None
                replicas |= dict.fromkeys(_address(other, asked) for other in others)
                mine = range(max(int(first), 0), min(int(last), SLOTS - 1) + 1)
                left -= max(len(mine), 1)
                if left < 0 or len(masters) + len(replicas) > MAX_NODES:
                    raise ValueError("more slots or nodes than there may be")
                for slot in mine:
                    owners[slot] = owner
        except (TypeError, ValueError, LookupError, OverflowError) as error:
            raise connection_lost(f"a node whose slots make no sense: {error!r:.80}") from error
        self.nodes = tuple(masters | replicas)
        changed = {slot for slot, (old, new) in enumerate(zip(self.owners, owners, strict=True)) if old != new}
        self.owners = owners
        return changed

    @property
    def masters(self) -> tuple[Address, ...]:
        """The nodes that have slots."""
        return tuple(dict.fromkeys(owner for owner in self.owners if owner is not None))

    def ranges(self) -> Iterable[tuple[Address, int, int]]:
        """Return the ranges of slots: (master, first, last)."""
        first = 0
        for slot in range(1, SLOTS + 1):
            if slot == SLOTS or self.owners[slot] != self.owners[first]:
                owner = self.owners[first]
                if owner is not None:
                    yield owner, first, slot - 1
                first = slot


def _address(node: Any, asked: Address) -> Address:
    """Return the address of a node: one that does not know its own name is the one that was asked."""
    host, port = node[0], int(node[1])
    if not 0 <= port <= MAX_PORT:
        raise ValueError(f"no port: {port}")
    name = host.decode() if isinstance(host, bytes) else str(host or "")
    return (asked[0] if name in UNKNOWN_HOSTS else name), port or asked[1]


class Refusal(NamedTuple):
    """Why a node did not do what it was asked for, and where to ask instead, if it says so."""

    code: str
    address: Address | None = None


#: What nodes say when they did nothing, because the cluster changes or is not whole, besides MOVED and ASK.
LATER = frozenset(["TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY"])


def refusal_of(text: str, asked: Address) -> Refusal | None:
    """Return what an error reply of the node at ``asked`` says of the cluster; None if it is about the command."""
    code, _, rest = text.partition(" ")
    if code in LATER:
        return Refusal(code)
    if code not in ("MOVED", "ASK"):
        return None
    host, _, port = rest.partition(" ")[2].strip().rpartition(":")
    if not PORT.fullmatch(port) or int(port) > MAX_PORT:
        return Refusal(code)
    return Refusal(code, (asked[0] if host in UNKNOWN_HOSTS else host, int(port)))
