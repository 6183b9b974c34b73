"""What connections that broke leave to the others of this process.

A lease is the database's: it outlives the connection over which it was taken, and any other may settle it. So a message
that the application still has when its connection is lost stays with it (*held*): its lease is renewed, and its
acknowledgement goes over another connection. Once the application has forgotten it, unsettled, it goes back to its
queue. All else that the server has noted for a lost connection goes back at once.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple, Protocol
from weakref import ReferenceType, ref

from hiredis import ReplyError

from kombulite import exceptions
from kombulite._core import Lease
from kombulite.brokers.base import Outcome
from kombulite.brokers.redis.claims import RedisChannel
from kombulite.brokers.redis.errors import FOR_NOW, reply_error
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.leases import ACK_REPLIES, pack_acknowledgement, put_back, put_back_tags, renew
from kombulite.brokers.redis.plans import Exchange, Plan
from kombulite.brokers.redis.replies import Posted

#: Seconds between two looks for messages that the application has forgotten.
HELD_INTERVAL = 0.25
#: Refusals of what is served later; NOPERM by a connection of another user.
LATER = (*FOR_NOW, exceptions.AccessRefused)


class Abandoned(NamedTuple):
    """What a lost connection leaves to the next one.

    These are leases, messages that were taken ahead for good, tags of what may have been claimed, and acks and rejects
    without a reply.
    """

    leases: Sequence[Lease] = ()
    taken: Sequence[Lease] = ()
    tags: Sequence[Any] = ()
    #: (packed commands, number of their replies); not what their replies would go to: that has all of the connection.
    settled: Sequence[tuple[bytes, int]] = ()


def unmade(data: bytes) -> Abandoned:
    """Return an acknowledgement, of ``ACK_REPLIES`` packed commands, that is to be made."""
    return Abandoned(settled=[(data, ACK_REPLIES)])


class Held(NamedTuple):
    """A lease whose message the application still has. ``origin``: that of the channel on which it came."""

    lease: Lease
    origin: object  # not the channel, with all that it had: messages may be held for long
    delivery: ReferenceType[Any]


class User(Protocol):
    """A connection of the process. ``attends``: whether it looks after what is held, from ``attend`` on."""

    attends: bool

    def attend(self) -> None:
        """Look after what is held; may be called in any thread."""


class Handover:
    """What is left to the connections of this process to one database.

    Messages may be forgotten in any thread, at any point: what notes that takes no lock.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._left: deque[Abandoned] = deque()
        self._held: dict[str, Held] = {}
        self._forgotten: deque[str] = deque()
        self._users: dict[int, ReferenceType[User]] = {}
        self._pid = os.getpid()

    def begin(self, user: User) -> Plan[None]:
        """Bring back what earlier connections have left, over a new one; ``user``: what that one belongs to."""
        self._users[id(user)] = ref(user)
        yield from self.bring_back()
        yield from self.renew()

    def end(self, user: User) -> Plan[None]:
        """Close a connection: with the last of the process, what the application still holds goes back too."""
        self._users.pop(id(user), None)
        if not self._get_users():
            self._forgotten.extend(list(self._held))
        yield from self.bring_back()

    def _get_users(self) -> list[User]:
        return [user for each in list(self._users.values()) if (user := each()) is not None]

    def find_attendant(self) -> None:
        """Have one of the connections look after what is held, if none does: those that only publish do not."""
        users = self._get_users()
        if self.is_holding and users and not any(user.attends for user in users):
            with suppress(RuntimeError):  # no thread can be started, as when the interpreter ends
                users[0].attend()

    # --- what is held

    @property
    def is_holding(self) -> bool:
        """Whether the application has messages of connections that are lost."""
        return bool(self._held or self._left)

    @property
    def held_leases(self) -> list[Lease]:
        """The leases that are held."""
        return [held.lease for held in list(self._held.values())]

    @property
    def held_tags(self) -> list[str]:
        """The tags of the leases that are held."""
        return list(self._held)

    def renew(self) -> Plan[None]:
        """Give the leases that are held their full time again."""
        yield from renew(self._keys, self.held_tags)

    def take(self, tag: Any, multiple: bool) -> list[Lease]:
        """Take a lease that is held, with ``multiple`` all up to it that came on its channel; none if it is not."""
        held = self._held.get(tag)
        if held is None:
            return []
        tags = [tag]
        if multiple:
            came_on_channel = self._came_on(held.origin)  # in their order, also those of several lost connections
            tags = came_on_channel[: came_on_channel.index(tag) + 1]
        return self._take(tags)

    def take_all(self, origin: object) -> list[Lease]:
        """Take all that is held of a channel, and of those in whose place it is."""
        return self._take(self._came_on(origin)) if self._held else []

    def _came_on(self, origin: object) -> list[str]:
        return [tag for tag, each in list(self._held.items()) if each.origin is origin]

    def _take(self, tags: Sequence[str]) -> list[Lease]:
        taken = [self._held.pop(tag, None) for tag in tags]
        return [each.lease for each in taken if each is not None]

    def settle(self, delivery_tags: Sequence[Any], outcome: Outcome, multiple: bool = False) -> bool:
        """Settle deliveries over the next connection that looks after them; returns False if one is not held.

        In a forked child none is: the connections that look after them are its parent's.
        """
        if self._pid != os.getpid() or any(tag not in self._held for tag in delivery_tags):
            return False
        leases = [lease for tag in delivery_tags for lease in self.take(tag, multiple)]
        if outcome in (Outcome.ACK, Outcome.REJECT):
            for data in self._pack_acknowledgements(leases):
                self.leave(unmade(data))
        else:
            self.leave(Abandoned(leases))
        return True

    def _pack_acknowledgements(self, leases: Sequence[Lease]) -> list[bytes]:
        """Return what removes leases from the server's notes, in parts of ``ACK_REPLIES`` commands."""
        return [pack_acknowledgement(self._keys, [lease.tag for lease in leases])] if leases else []

    # --- what is left

    def abandon(
        self, user: User, channels: Iterable[RedisChannel], unanswered: list[Posted], are_noted: bool, holds: bool
    ) -> None:
        """Leave what the server has noted for the channels of a connection that is lost.

        ``are_noted``: whether the server notes leases. ``holds``: whether the application keeps the messages that it
        has, which it does not if it was closing the connection. ``unanswered``: commands that may be sent again.
        """
        self._users.pop(id(user), None)
        states = list(channels)
        leases: list[Lease] = []
        for state in states if are_noted else ():
            leases += self._hold(state) if holds else state.unsettled()
        queues = [claims for state in states for claims in state.claim_queues]
        claims = [claim for claims in queues for claim in claims.under_way]
        claims += [claim for state in states for claim in state.fetching]
        claims = [claim for claim in claims if claim.lease]
        abandoned = Abandoned(
            leases,
            [lease for claims in queues if not claims.lease for lease in claims.ready]
            + [lease for state in states for lease in state.unreturned],
            self._tags_of(claims) if are_noted else [],
            [(again or b"", replies) for _, again, replies in unanswered] if are_noted else [],
        )
        if any(abandoned):
            self.leave(abandoned)
        self.find_attendant()

    def leave(self, abandoned: Abandoned) -> None:
        """Keep what is left until it is brought back."""
        self._left.extend(part for part in self._parts_of(abandoned) if any(part))

    def _parts_of(self, abandoned: Abandoned) -> Iterable[Abandoned]:
        """Return what is brought back apart: what is back must not come again because the server refuses the rest."""
        yield Abandoned(settled=abandoned.settled)
        yield Abandoned(leases=abandoned.leases)
        yield Abandoned(taken=abandoned.taken)
        yield Abandoned(tags=abandoned.tags)

    def _tags_of(self, claims: Sequence[Any]) -> Sequence[Any]:
        """Return the tags of what claims may have taken."""
        return [tag for claim in claims for tag in claim.possible_tags()]

    def _hold(self, state: RedisChannel) -> list[Lease]:
        """Hold the leases of a channel whose messages the application still has; returns the others."""
        rest: list[Lease] = []
        for lease in state.unsettled():
            delivery = None if lease.delivery is None else lease.delivery()
            if delivery is None or lease.tag not in state.outstanding:
                rest.append(lease)
            else:
                forget = partial(_forget, self._forgotten, lease.tag)
                self._held[lease.tag] = Held(lease, state.origin, ref(delivery, forget))
        return rest

    def bring_back(self) -> Plan[None]:
        """Bring back what is left, and what the application has forgotten meanwhile.

        If the server refuses a part, the others are brought back all the same; then it raises the first refusal.
        """
        forgotten = []
        with suppress(IndexError):  # the last: another thread may have taken it, too
            while True:
                held = self._held.pop(self._forgotten.popleft(), None)
                if held is not None:
                    forgotten.append(held.lease)
        if forgotten:
            forgotten.sort(key=attrgetter("tag"))  # as they came: Python frees a list from its end
            self.leave(Abandoned(forgotten))
        refused: list[Abandoned] = []
        try:
            failure = yield from self._bring_back_parts(self._left, refused)
        finally:
            self._left.extend(refused)
        if failure is not None:
            raise failure

    def _bring_back_parts(self, parts: deque[Abandoned], refused: list[Abandoned]) -> Plan[Exception | None]:
        """Bring back parts, and put those that are refused on a list; returns the first refusal."""
        failure: Exception | None = None
        while parts:
            try:
                part = parts.popleft()  # connections that begin at the same time take one after the other
            except IndexError:  # another thread has taken the last
                break
            try:
                yield from self._bring_back(part)
            except (exceptions.ChannelError, exceptions.MessageNacked) as error:
                refused.append(part)
                failure = failure or error
            except BaseException:
                refused.append(part)
                raise
        return failure

    def _bring_back(self, left: Abandoned) -> Plan[None]:
        if left.settled:
            commands = [data for data, _ in left.settled]
            for reply in (yield Exchange(commands, sum(replies for _, replies in left.settled))):
                error = reply_error(str(reply)) if isinstance(reply, ReplyError) else None
                if isinstance(error, LATER):
                    raise error
        yield from self._put_back(left.leases, True)
        yield from self._put_back(left.taken, False)
        yield from self._put_back_tags(left.tags)

    def _put_back(self, leases: Sequence[Lease], are_noted: bool) -> Plan[None]:
        yield from put_back(self._keys, leases, are_noted)

    def _put_back_tags(self, tags: Sequence[Any]) -> Plan[None]:
        yield from put_back_tags(self._keys, tags)


class HeldByChannel:
    """What one connection leaves to the channels that take the places of its own: ``base.HeldDeliveries``."""

    def __init__(self, handover: Handover) -> None:
        self._handover = handover
        self._origins: dict[int, object] = {}

    def note(self, channels: Iterable[RedisChannel]) -> None:
        """Note which channels the connection had when it was lost."""
        self._origins = {state.number: state.origin for state in channels}

    def bequeath(self, before: int, state: RedisChannel) -> None:
        """Let a channel settle what came on another, with all before its own messages."""
        state.origin = self._origins.get(before, state.origin)

    def settle(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome, multiple: bool = False) -> bool:
        """Settle deliveries over the next connection that looks after them; returns False if one is not held."""
        return self._handover.settle(delivery_tags, outcome, multiple)


#: By process and database: a forked child has neither the messages of its parent nor its connections.
_handovers: dict[tuple[Any, ...], Handover] = {}


def handover_of(identity: tuple[Any, ...], keys: Keys, kind: type[Handover] = Handover) -> Handover:
    """Return what the connections of this process to a database leave to each other."""
    # Without a lock, which a child might find taken: each of these is one step.
    key = os.getpid(), *identity
    for other in [other for other in list(_handovers) if other[0] != key[0]]:
        _handovers.pop(other, None)
    return _handovers.setdefault(key, kind(keys))


def _forget(forgotten: deque[str], tag: str, delivery: object) -> None:
    forgotten.append(tag)
