"""Leases: who has a message, for how long, and how it comes back.

A lease is an entry of the ``unacked`` hash, dated in ``unacked_index`` by the server's clock. Its tag is made for each
claim, so that a late ack of an earlier holder touches nobody else's. It begins with the holder's timeout: that tells
others of us when it runs out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from logging import getLogger
from time import time
from typing import Any, NamedTuple

from kombulite import exceptions
from kombulite._core import Lease, pack_command
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.options import Options
from kombulite.brokers.redis.plans import Command, Plan, call, call_all, run, run_with
from kombulite.brokers.redis.scripts import DEAD_LETTER, OVERDUE, RENEW, RESTORE, UNLOCK
from kombulite.utils.uuid import uuid

logger = getLogger("kombulite.brokers.redis")

#: Seconds that a restorer may take before others go ahead; kombu's allowance of 300 s blocks all when one dies.
MUTEX_LIFE = 10

#: Leases that are read or renewed in one step: Lua passes on at most some 8,000 arguments.
CHUNK = 1000
#: Messages that are put back in one step, so that nobody gets between them.
MAX_RESTORED = 10_000

#: Commands of an acknowledgement.
ACK_REPLIES = 2

#: Of a tag; all numbers have as many digits.
FIRST_NUMBER = 10_000_000_001

_OWN_TAG = re.compile(rb"kl([0-9.]+)-")


class Tags:
    """The tags of one connection's leases, in the order of claims."""

    def __init__(self, timeout: float) -> None:
        self.prefix = f"kl{timeout:.3f}-{os.urandom(10).hex()}-"
        self._next = FIRST_NUMBER

    def reserve(self, count: int) -> int:
        """Return the number of the first of so many tags."""
        first = self._next
        self._next += count
        return first

    def tag(self, number: int) -> str:
        """Return the tag of that number; its text sorts as the number does."""
        return f"{self.prefix}{number}"


def client_time() -> str:
    """Return the time by this machine's clock, in seconds: scripts date by it if the user has no right to TIME."""
    return f"{time():.6f}"


def mark_redelivered(envelope: bytes) -> bytes:
    """Return the envelope with both redelivered flags set, and counted. One that is no envelope stays as it is."""
    try:
        message = json.loads(envelope)
        _set_flags(message)
    except (ValueError, RecursionError, TypeError, AttributeError):
        return envelope
    return json.dumps(message).encode()


def _set_flags(message: dict[str, Any]) -> None:
    message["headers"] = {**(message.get("headers") or {}), "redelivered": True}
    properties = message["properties"] = dict(message.get("properties") or {})
    info = properties["delivery_info"] = {**(properties.get("delivery_info") or {}), "redelivered": True}
    count = info.get("delivery_count")  # ours; kombu leaves it as it is
    info["delivery_count"] = count + 1 if isinstance(count, int) else 1


def put_back(keys: Keys, leases: Sequence[Lease], are_noted: bool) -> Plan[None]:
    """Return messages to the heads of their lists, in the order given.

    ``are_noted``: True if the server knows of them; messages that have another holder now stay where they are. If a
    list refuses its messages, the others go back all the same, then it raises that; a message is put back once,
    however often it is tried.
    """
    latest = "" if are_noted else "-"
    failure: Exception | None = None
    leases = [lease for lease in leases if not lease.is_back]
    for end in range(len(leases), 0, -MAX_RESTORED):
        # The last first: each then goes to the very front.
        chunk = leases[max(end - MAX_RESTORED, 0) : end][::-1]
        restored = yield from _restore(
            keys,
            latest,
            [
                (lease.key, lease.tag, mark_redelivered(lease.envelope) if lease.was_seen else lease.envelope)
                for lease in chunk
            ],
        )
        for place, lease in enumerate(chunk):
            lease.is_back = place not in restored.refused
        failure = failure or restored.failure
    if failure is not None:
        raise failure


class Restored(NamedTuple):
    """What came of putting messages back: the number of them, the error of a list, the places of what lists refused."""

    number: int
    failure: Exception | None = None
    refused: frozenset[int] = frozenset()

    def checked(self) -> int:
        """Return how many are back. Raises the error of a list that refused one."""
        if self.failure is not None:
            raise self.failure
        return self.number


def _restore(
    keys: Keys, latest: str | bytes, rows: Sequence[tuple[str, Any, bytes]], *others: Command
) -> Plan[Restored]:
    """Put messages back, and send other commands together with that."""
    if not rows:
        return Restored(0)
    arguments = [argument for _, tag, envelope in rows for argument in (tag, envelope)]
    lists = [key for key, _, _ in rows]
    replies = yield from run_with(others, RESTORE, [keys.unacked, keys.unacked_index, *lists], latest, *arguments)
    number, *refusal = replies[0]
    if not refusal:
        return Restored(int(number))
    return Restored(int(number), RESTORE.error(refusal[0]), frozenset(refusal[1:]))


def dead_letter(keys: Keys, tag: Any, queue: str, element: Any, reason: object) -> Plan[None]:
    """Move an element that is no message to the dead letters of its queue. ``tag``: None if it is not leased."""
    logger.error("An element of queue %r is no message and goes to %r: %s", queue, keys.dead_letters(queue), reason)
    if tag is None:
        try:
            yield from call("LPUSH", keys.dead_letters(queue), element)
            return
        except exceptions.MessageNacked:  # memory is full: it is taken from its list already, so it must be kept
            tag = ""
    yield from run(DEAD_LETTER, [keys.unacked, keys.unacked_index, keys.dead_letters(queue)], tag, element)


def note(keys: Keys, lease: Lease) -> Plan[None]:
    """Have the server note an element that was taken for good, as it notes what is leased."""
    element = json.dumps(lease.envelope.decode("utf-8", "surrogateescape"))
    entry = ("HSET", keys.unacked, lease.tag, f"[{element}{keys.lease_ending(lease.queue)}")
    yield from call_all(entry, ("ZADD", keys.unacked_index, client_time(), lease.tag))


def put_back_tags(keys: Keys, tags: Sequence[str]) -> Plan[None]:
    """Return messages that a claim may have taken whose answer never came."""
    for start in range(0, len(tags), CHUNK):
        chunk = tags[start : start + CHUNK]
        values = yield from call("HMGET", keys.unacked, *chunk)
        found = []
        for tag, value in zip(chunk, values, strict=True):
            if (
                value is not None
                and (each := (yield from _read(keys, tag.encode(), value, _route_nowhere))) is not None
            ):
                found.append(each)
        restored = yield from _restore(
            keys, "", [(key, each.tag, each.envelope) for each in reversed(found) for key in each.lists]
        )
        restored.checked()


def pack_acknowledgement(keys: Keys, tags: Sequence[Any]) -> bytes:
    """Return the ``ACK_REPLIES`` commands that remove leases from the server's notes."""
    return pack_command(("ZREM", keys.unacked_index, *tags)) + pack_command(("HDEL", keys.unacked, *tags))


def renew(keys: Keys, tags: Sequence[str]) -> Plan[None]:
    """Give leases their full time again."""
    for start in range(0, len(tags), CHUNK):
        yield from run(RENEW, [keys.unacked_index], client_time(), *tags[start : start + CHUNK])


# --- the leases of the dead -------------------------------------------------------------------------------------


#: (exchange, routing key) -> the queues that a message goes to; None if nobody stores it.
Route = Callable[[str, str], "Plan[Iterable[str] | None]"]


def _route_nowhere(exchange: str, routing_key: str) -> Plan[Iterable[str] | None]:
    """Leave the route of a message open."""
    yield from ()
    return ()


class Abandoned(NamedTuple):
    """A lease that ran out: its message and where it goes. ``lists``: empty where nobody knows."""

    tag: bytes
    envelope: bytes
    lists: tuple[str, ...]


def restore_overdue(keys: Keys, options: Options, route: Route) -> Plan[int]:
    """Put messages back whose leases ran out, the oldest to the very front; returns how many.

    Those of anybody in the database: kombu's are judged by our timeout, ours by that of their holder.
    ``route(exchange, routing_key)``: the queues that kombu's holders of a message leave us to find.
    """
    token, mutex = uuid(), [keys.unacked_mutex]
    try:
        latest, overdue, failure = yield from _overdue(keys, options, route, token)
        if overdue:
            logger.warning("Restoring %d messages whose consumers are gone", len(overdue))
        rows = [(key, each.tag, each.envelope) for each in reversed(overdue) for key in each.lists]
        # A message may end the process as soon as it is back, and with it all looking, as long as the mutex lives.
        unlock = ("EVAL", UNLOCK.source, 1, keys.unacked_mutex, token)
        number = (yield from _restore(keys, latest, rows, unlock)).checked()
        if failure is not None:
            raise failure
        return number
    finally:
        yield from run(UNLOCK, mutex, token)


def _overdue(
    keys: Keys, options: Options, route: Route, token: str
) -> Plan[tuple[bytes, list[Abandoned], Exception | None]]:
    """Return the latest score of leases that ran out, these, oldest first, and the error of what could not be read.

    There are none if another client is at it.
    """
    limit = min(options.unacked_restore_limit or MAX_RESTORED, MAX_RESTORED)
    life = int(min(options.unacked_mutex_expire, MUTEX_LIFE) * 1000)
    overdue: list[Abandoned] = []
    failure: Exception | None = None
    latest, others = b"0", 0
    while len(overdue) < limit:
        most = min(CHUNK, limit - len(overdue))
        found = yield from run(
            OVERDUE,
            [keys.unacked, keys.unacked_index, keys.unacked_mutex],
            token,
            life,
            options.visibility_timeout,
            len(overdue) + others,
            most,
            client_time(),
        )
        if found is None:
            break
        latest, rows = found[0], list(zip(found[1::3], found[2::3], found[3::3], strict=True))
        due = [row for row in rows if _has_run_out(row[0], float(row[1]), float(latest), options)]
        others += len(rows) - len(due)
        for tag, _, value in due:
            try:
                each = yield from _read(keys, tag, value, route)
            except (exceptions.ChannelError, exceptions.MessageNacked) as error:  # it keeps no other from coming back
                others += 1
                failure = failure or error
                continue
            if each is not None:
                overdue.append(each)
        if len(rows) < most:
            break
    return latest, overdue, failure


def _has_run_out(tag: bytes, score: float, latest: float, options: Options) -> bool:
    """Whether its holder's own timeout is over, where its tag tells."""
    own = _OWN_TAG.match(tag)
    if own is None:
        return True
    try:
        return score + float(own.group(1)) <= latest + options.visibility_timeout
    except ValueError:
        return True


def _read(keys: Keys, tag: bytes, value: bytes | None, route: Route) -> Plan[Abandoned | None]:
    """Return the content of a lease; None for one that is dealt with here."""
    if value is None:
        yield from call("ZREM", keys.unacked_index, tag)  # settled by somebody who died halfway
        return None
    queue = ""
    try:
        message, exchange, routing_key = json.loads(value)
        queue = str(routing_key or exchange)
        if isinstance(message, str):
            value = message.encode("utf-8", "surrogateescape")
        _set_flags(message)
        priority = message["properties"].get("priority")
        envelope = json.dumps(message).encode()
        queues = (routing_key,) if exchange == "" else (yield from route(exchange, routing_key))
        lists = tuple(keys.list_for(name, priority) for name in queues or ())
    except (ValueError, RecursionError, TypeError, AttributeError) as error:
        yield from dead_letter(keys, tag, queue or "unacked", value, error)
        return None
    if queues is None:
        yield from call_all(("ZREM", keys.unacked_index, tag), ("HDEL", keys.unacked, tag))
        return None
    if not lists:
        yield from dead_letter(
            keys, tag, queue, envelope, f"no queue is bound to exchange {exchange!r} with {routing_key!r}"
        )
        return None
    return Abandoned(tag, envelope, lists)
