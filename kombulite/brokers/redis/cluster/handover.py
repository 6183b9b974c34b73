"""What connections that broke leave to the others of this process, queue by queue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

from kombulite.brokers.base import Outcome
from kombulite.brokers.redis.cluster.keys import ClusterKeys
from kombulite.brokers.redis.handover import Abandoned, Handover
from kombulite.brokers.redis.leases import ACK_REPLIES, Lease, pack_acknowledgement, put_back, put_back_tags, renew
from kombulite.brokers.redis.plans import Exchange, Plan


class ClusterHandover(Handover):
    """What is left to the connections of this process to one cluster. ``tags`` of what is left: (queue, tags)."""

    _keys: ClusterKeys

    def begin(self, user: object) -> Plan[None]:
        """Bring back what earlier connections have left, over a new one; ``user``: what that one belongs to."""
        self._users.add(user)
        yield from self.bring_back()
        yield from renew_all(self._keys, self.held_leases)

    def settle(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome, multiple: bool = False) -> bool:
        """Settle deliveries over the next connection that looks after them; returns False if one is not held."""
        if any(tag not in self._held for tag in delivery_tags):
            return False
        leases = [lease for tag in delivery_tags for lease in self.take(tag, multiple)]
        if outcome in (Outcome.ACK, Outcome.REJECT):
            packed = [
                pack_acknowledgement(self._keys.of(queue), [lease.tag for lease in mine])
                for queue, mine in by_queue(leases)
            ]
            self._left.append(Abandoned(settled=[(_ignore, data, ACK_REPLIES) for data in packed]))
        else:
            self._left.append(Abandoned(leases))
        return True

    def _tags_of(self, claims: Sequence[Any]) -> Sequence[Any]:
        return [(part.queues[0], part.possible_tags()) for claim in claims for part in getattr(claim, "parts", [claim])]

    def _bring_back(self, left: Abandoned) -> Plan[None]:
        if left.settled:
            commands = [again or b"" for _, again, _ in left.settled]
            yield Exchange(commands, sum(replies for _, _, replies in left.settled))
        yield from put_back_all(self._keys, left.leases, True)
        yield from put_back_all(self._keys, left.taken, False)
        for queue, tags in left.tags:
            yield from put_back_tags(self._keys.of(queue), tags)


def by_queue(leases: Iterable[Lease]) -> list[tuple[str, list[Lease]]]:
    """Return leases queue by queue, each queue's in the order given."""
    ordered = sorted(leases, key=attrgetter("queue"))
    return [(queue, list(mine)) for queue, mine in groupby(ordered, attrgetter("queue"))]


def put_back_all(keys: ClusterKeys, leases: Iterable[Lease], are_noted: bool) -> Plan[None]:
    """Return messages of any queues to the heads of their lists, each queue's in the order given."""
    for queue, mine in by_queue(leases):
        yield from put_back(keys.of(queue), mine, are_noted)


def renew_all(keys: ClusterKeys, leases: Iterable[Lease]) -> Plan[None]:
    """Give leases of any queues their full time again."""
    for queue, mine in by_queue(leases):
        yield from renew(keys.of(queue), [lease.tag for lease in mine])


def _ignore(reply: Any) -> None:
    """Do nothing with the reply to an acknowledgement."""
