"""What no server deletes: queues, bindings and exchanges that end with their use, whose users may be killed.

A sorted set of our own has an entry for each, scored by when it ends (ms, the server's clock) unless its user extends
that. Each connection that consumes looks now and then for entries that have ended, and deletes what they name. kombu's
own rule (``_kombu.binding_deadlines``) knows only whole exchanges, which never end while another process uses them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hiredis import ReplyError

from kombulite.brokers.base import QueueSpec
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.leases import logger
from kombulite.brokers.redis.options import Limits
from kombulite.brokers.redis.plans import Command, Plan, call, call_all, run, send
from kombulite.brokers.redis.scripts import SWEEP

#: Milliseconds that a binding of an expiring queue lives at least, as in kombu, and twice as long as its queue.
MIN_BINDING_LIFE = 3_600_000
#: The same for a queue that nobody shares: ms.
MIN_OWN_LIFE = 30_000
#: Milliseconds that an exclusive queue without ``x-expires`` outlives a process that was killed.
EXCLUSIVE_LIFE = 300_000
#: Milliseconds in which late messages may still come to the lists of a deleted queue.
LATE_LIFE = 30_000
#: Entries that are looked at in one go.
MAX_SWEPT = 1000


def life_of(spec: QueueSpec, limits: Limits) -> int | None:
    """Return the milliseconds that a queue outlives its last use; None for one that stays."""
    if limits.expires:
        return max(2 * limits.expires, MIN_BINDING_LIFE if is_shared(spec) else MIN_OWN_LIFE)
    return None if is_shared(spec) or not (spec.exclusive or spec.name.startswith("amq.gen-")) else EXCLUSIVE_LIFE


def is_shared(spec: QueueSpec) -> bool:
    """Return whether processes that write no entries here, such as kombu's, may use the queue beside us."""
    return not (spec.exclusive or spec.auto_delete)


class Deadlines:
    """Entries of one database. ``now()``: the server's time in seconds."""

    def __init__(self, keys: Keys, now: Callable[[], float]) -> None:
        self._keys = keys
        self._now = now

    def now_ms(self) -> int:
        """Return the server's time in ms."""
        return int(self._now() * 1000)

    # --- entries

    @staticmethod
    def queue(name: str) -> str:
        """Return the entry of a queue with its messages."""
        return json.dumps(["queue", name])

    @staticmethod
    def exchange(name: str) -> str:
        """Return the entry of an exchange whose type we have noted."""
        return json.dumps(["exchange", name])

    @staticmethod
    def binding(exchange: str, member: str) -> str:
        """Return the entry of a binding that no other process uses, wherever it stands."""
        return json.dumps(["binding", exchange, member])

    @staticmethod
    def expiring_binding(exchange: str, member: str, queue: str, expires: int) -> str:
        """Return the entry of a binding of a queue that expires (ms) and that others may use too."""
        return json.dumps(["expiring", exchange, member, queue, expires])

    def extend(self, life: int, *entries: str) -> Command:
        """Return the command that lets entries live so many milliseconds from now, at least."""
        return self._add(("GT",), life, entries)

    def end(self, life: int, *entries: str) -> Command:
        """Return the command that ends entries in so many milliseconds."""
        return self._add((), life, entries)

    def _add(self, flags: tuple[str, ...], life: int, entries: Iterable[str]) -> Command:
        score = self.now_ms() + life
        pairs = [argument for entry in entries for argument in (score, entry)]
        return ("ZADD", self._keys.own_deadlines, *flags, *pairs)

    def forget(self, *entries: str) -> Command:
        """Return the command that lets entries stay for ever."""
        return ("ZREM", self._keys.own_deadlines, *entries)

    # --- their end

    def sweep(self) -> Plan[int]:
        """Delete what has ended; return how many entries. Nothing where the user has no right to our keys."""
        now = self.now_ms()
        look = ("ZRANGE", self._keys.own_deadlines, "-inf", now, "BYSCORE", "LIMIT", 0, MAX_SWEPT)
        (found,) = yield from send(look)
        if isinstance(found, ReplyError):
            logger.debug("No look for what has ended: %s", found)
            return 0
        yield from self._end_all(found, now)
        return len(found)

    def _end_all(self, entries: Sequence[bytes], now: int) -> Plan[None]:
        for entry in entries:
            yield from self._end(entry, now)

    def _end(self, entry: bytes, now: int) -> Plan[None]:
        keys = self._keys
        match _parsed(entry):
            case ["queue", str(name)]:
                yield from self._delete(entry, now, [*keys.lists(name), keys.record(name)], [])
            case ["binding", str(name), str(member)]:
                yield from self._delete(entry, now, [], [keys.permanent_bindings(name), keys.bindings(name)], member)
            case ["expiring", str(name), str(member), str(queue), int(expires)]:
                if (yield from call("SISMEMBER", keys.permanent_bindings(name), member)):
                    yield from call("ZREM", keys.own_deadlines, entry)  # it was bound again, to stay
                elif (yield from self._is_unused(entry, now, name, queue, expires)):
                    yield from self._delete(entry, now, [], [keys.bindings(name)], member)
            case ["exchange", str(name)]:
                if not (yield from call("EXISTS", keys.bindings(name))):
                    yield from call("HDEL", keys.exchanges, name)
                yield from call("ZREM", keys.own_deadlines, entry)
            case _:
                yield from call("ZREM", keys.own_deadlines, entry)

    def _delete(self, entry: bytes, now: int, deleted: list[str], tables: list[str], member: str = "") -> Plan[None]:
        yield from run(SWEEP, [self._keys.own_deadlines, *deleted, *tables], entry, now, len(deleted), member)

    def _is_unused(self, entry: bytes, now: int, name: str, queue: str, expires: int) -> Plan[bool]:
        """Return whether kombu's rule says so too. If not, look again when it may."""
        lists = self._keys.lists(queue)
        ends, *left = yield from call_all(("ZSCORE", self._keys.deadlines, name), *(("PTTL", key) for key in lists))
        if ends is None or float(ends) <= now:
            return True
        # What publishers still bring goes when nobody consumes it for as long as the queue may be unused.
        endless: list[tuple[Any, ...]] = [
            ("PEXPIRE", key, expires) for key, ttl in zip(lists, left, strict=True) if ttl == -1
        ]
        yield from send(("ZADD", self._keys.own_deadlines, "XX", float(ends), entry), *endless)
        return False


def _parsed(entry: bytes) -> Any:
    try:
        return json.loads(entry)
    except (ValueError, RecursionError):
        return None
