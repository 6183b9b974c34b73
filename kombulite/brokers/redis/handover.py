"""What a connection that broke leaves to the next one of this process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from kombulite.brokers.redis.claims import RedisChannel
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.leases import Lease, put_back, put_back_tags
from kombulite.brokers.redis.plans import Exchange, Plan
from kombulite.brokers.redis.replies import Posted


class Abandoned(NamedTuple):
    """What a lost connection leaves to the next one.

    These are leases, messages that were taken ahead for good, tags of what may have been claimed, and acks and rejects
    without a reply.
    """

    leases: list[Lease]
    taken: list[Lease]
    tags: list[str]
    settled: list[Posted]


#: By database.
_abandoned: dict[tuple[Any, ...], list[Abandoned]] = {}


def abandon(
    identity: tuple[Any, ...], channels: Iterable[RedisChannel], unanswered: list[Posted], are_noted: bool
) -> None:
    """Leave what the server has noted for channels to the next connection to the same database.

    ``are_noted``: whether the server notes leases. ``unanswered``: commands that may be sent again.
    """
    states = list(channels)
    queues = [claims for state in states for claims in state.claim_queues]
    under_way = [claims.claiming for claims in queues if claims.claiming is not None]
    abandoned = Abandoned(
        [lease for state in states for lease in state.unsettled()] if are_noted else [],
        [lease for claims in queues if not claims.lease for lease in claims.ready],
        [tag for claim in under_way for tag in claim.possible_tags()] if are_noted else [],
        unanswered if are_noted else [],
    )
    if any(abandoned):
        _abandoned.setdefault(identity, []).append(abandoned)


def take_over(identity: tuple[Any, ...], keys: Keys) -> Plan[None]:
    """Put back what earlier connections have left."""
    waiting = _abandoned.get(identity, [])
    while waiting:
        try:
            left = waiting.pop(0)  # connections that begin at the same time take one after the other
        except IndexError:  # another thread has taken the last
            return
        try:
            yield from _bring_back(left, keys)
        except BaseException:
            waiting.append(left)
            raise


def _bring_back(left: Abandoned, keys: Keys) -> Plan[None]:
    if left.settled:
        commands = [again or b"" for _, again, _ in left.settled]
        yield Exchange(commands, sum(replies for _, _, replies in left.settled))
    yield from put_back(keys, left.leases, True)
    yield from put_back(keys, left.taken, False)
    yield from put_back_tags(keys, left.tags)
