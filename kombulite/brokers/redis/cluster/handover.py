"""What connections that broke leave to the others of this process, queue by queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from typing import Any

from kombulite import exceptions
from kombulite._core import Lease
from kombulite.brokers.redis.cluster.keys import ClusterKeys
from kombulite.brokers.redis.cluster.publisher import Reached
from kombulite.brokers.redis.cluster.together import together
from kombulite.brokers.redis.handover import Abandoned, Handover, User
from kombulite.brokers.redis.leases import logger, pack_acknowledgement, put_back, put_back_tags, renew
from kombulite.brokers.redis.plans import Plan


class ClusterHandover(Handover):
    """What is left to the connections of this process to one cluster. ``tags`` of what is left: (queue, tags)."""

    _keys: ClusterKeys

    def __init__(self, keys: ClusterKeys) -> None:
        super().__init__(keys)
        #: What of a message that was published in part is where already.
        self.reached = Reached()

    def begin(self, user: User) -> Plan[None]:
        """Bring back what earlier connections have left. What a queue's node refuses comes back later."""
        try:
            yield from super().begin(user)
        except (exceptions.ChannelError, exceptions.MessageNacked, exceptions.ConnectionError) as error:
            logger.warning("What lost connections have left comes back later: %s", error)

    def renew(self) -> Plan[None]:
        """Give the leases that are held their full time again."""
        yield from renew_all(self._keys, self.held_leases)

    def _parts_of(self, abandoned: Abandoned) -> Iterable[Abandoned]:
        yield from (Abandoned(leases=mine) for _, mine in by_queue(abandoned.leases))
        yield from (Abandoned(taken=mine) for _, mine in by_queue(abandoned.taken))
        yield from (Abandoned(tags=[each]) for each in abandoned.tags)
        yield from (Abandoned(settled=[each]) for each in abandoned.settled)

    def _pack_acknowledgements(self, leases: Sequence[Lease]) -> list[bytes]:
        return [
            pack_acknowledgement(self._keys.of(queue), [lease.tag for lease in mine])
            for queue, mine in by_queue(leases)
        ]

    def leave_claims(self, claims: Sequence[Any]) -> None:
        """Keep the tags of what claims may have taken until it is put back."""
        if claims:
            self.leave(Abandoned(tags=self._tags_of(claims)))

    def leave_leases(self, leases: Sequence[Lease], are_noted: bool) -> None:
        """Keep messages until they are put back. ``are_noted``: whether the server notes leases of them."""
        if leases:
            self.leave(Abandoned(leases) if are_noted else Abandoned(taken=leases))

    def _bring_back_parts(self, parts: deque[Abandoned], refused: list[Abandoned]) -> Plan[Exception | None]:
        # All at once: a node that cannot be reached keeps none from coming back, and is waited for once.
        plans: dict[str, Plan[Exception | None]] = {}
        with suppress(IndexError):  # other connections may take some at the same time
            while True:
                plans[f"part {len(plans)}"] = self._bring_back_part(parts.popleft(), refused)
        failures = yield from together(plans)
        return next((failure for failure in failures.values() if failure is not None), None)

    def _bring_back_part(self, part: Abandoned, refused: list[Abandoned]) -> Plan[Exception | None]:
        try:
            yield from self._bring_back(part)
        except (exceptions.ChannelError, exceptions.MessageNacked) as error:
            refused.append(part)
            return error
        except BaseException:
            refused.append(part)
            raise
        return None

    def _tags_of(self, claims: Sequence[Any]) -> Sequence[Any]:
        parts = [part for claim in claims for part in getattr(claim, "parts", [claim])]
        return [(queue, part.possible_tags()) for part in parts for queue in part.queues]

    def _put_back(self, leases: Sequence[Lease], are_noted: bool) -> Plan[None]:
        yield from put_back_all(self._keys, leases, are_noted)

    def _put_back_tags(self, tags: Sequence[Any]) -> Plan[None]:
        for queue, mine in tags:
            yield from put_back_tags(self._keys.of(queue), mine)


def by_queue(leases: Iterable[Lease]) -> list[tuple[str, list[Lease]]]:
    """Return leases queue by queue, each queue's in the order given."""
    ordered = sorted(leases, key=attrgetter("queue"))
    return [(queue, list(mine)) for queue, mine in groupby(ordered, attrgetter("queue"))]


def put_back_all(keys: ClusterKeys, leases: Iterable[Lease], are_noted: bool) -> Plan[None]:
    """Return messages of any queues to the heads of their lists, each queue's in the order given."""
    yield from together({queue: put_back(keys.of(queue), mine, are_noted) for queue, mine in by_queue(leases)})


def renew_all(keys: ClusterKeys, leases: Iterable[Lease]) -> Plan[None]:
    """Give leases of any queues their full time again."""
    yield from together(
        {queue: renew(keys.of(queue), [lease.tag for lease in mine]) for queue, mine in by_queue(leases)}
    )
