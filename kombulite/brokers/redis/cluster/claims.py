"""Claims in the own layout: one for each queue, all at once, with the credit shared out among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Any

from hiredis import ReplyError

from kombulite.brokers.redis.claims import (
    MAX_ASKED,
    MAX_BYTES,
    MAX_CLAIMED,
    MAX_UNBOUNDED,
    Claim,
    ClaimQueue,
    RedisChannel,
    in_turns,
)
from kombulite.brokers.redis.cluster.keys import ClusterKeys
from kombulite.brokers.redis.cluster.nodes import Nodes
from kombulite.brokers.redis.leases import Lease, Tags
from kombulite.brokers.redis.options import OrderStrategy


class SharedClaim:
    """Requests for messages of some queues, one each, that are answered together. ``count``: of messages, in all."""

    def __init__(
        self,
        keys: ClusterKeys,
        tags: Tags,
        shares: Sequence[tuple[str, int]],
        lease: bool,
        on_done: Callable[[Any], None],
    ) -> None:
        self.parts = [Claim(keys.of(queue), tags, (queue,), count, lease) for queue, count in shares]
        self.queues = [queue for queue, _ in shares]
        self.count = sum(count for _, count in shares)
        self._replies: list[Any] = [None] * len(shares)
        self._left = len(shares)
        self._on_done = on_done

    def post(self, nodes: Nodes, in_turns: bool, send_source: bool) -> None:
        """Send all of them now."""
        for place, part in enumerate(self.parts):
            part.post(nodes, in_turns, partial(self._on_reply, nodes, place), send_source)

    def _on_reply(self, nodes: Nodes, place: int, reply: Any) -> None:
        if isinstance(reply, ReplyError) and str(reply).startswith("NOSCRIPT"):
            # Each node has to get the script once.
            data = self.parts[place].packed(True, True)
            nodes.post_later(data, 1, partial(self._on_reply, nodes, place))
            return
        self._replies[place] = reply
        self._left -= 1
        if not self._left:
            self._on_done(self._replies)


class ClusterClaimQueue(ClaimQueue):
    """What one channel takes from queues of several slots."""

    claiming: Any

    def claim(
        self,
        stream: Any,
        keys: Any,
        tags: Tags,
        credit: int,
        on_claimed: Callable[[Any], None],
        send_source: bool,
    ) -> Iterable[str]:
        """Ask for as many messages as there is credit for. The answers go to ``on_claimed``, then to ``claimed``."""
        # The first queue of an order that does not rotate goes before all others.
        most = min(MAX_ASKED, credit) if self.rotates else 1
        asked = list(islice((queue for queue in self.queues if queue in self.dirty_queues), most))
        if not asked:
            ignored, self.dirty_queues = self.dirty_queues, set()
            return ignored & self.consumers.keys()
        self.dirty_queues.difference_update(asked)
        count = min(credit, min(MAX_CLAIMED, max(1, MAX_BYTES // self._average)) if self._average else MAX_UNBOUNDED)
        each, rest = divmod(max(count, len(asked)), len(asked))
        shares = [(queue, each + (place < rest)) for place, queue in enumerate(asked)]
        self.claiming = SharedClaim(keys, tags, shares, self.lease, on_claimed)
        self.claiming.post(stream, self.rotates, send_source)
        return ()

    def claimed(self, reply: list[Any]) -> tuple[Sequence[str], int]:
        """Take the answers to a claim: which queues it has emptied, and how many messages it found."""
        claim = self.claiming
        emptied: list[str] = []
        found: list[tuple[int, list[Lease]]] = []
        for part, answer in zip(claim.parts, reply, strict=True):
            leases = [] if isinstance(answer, ReplyError) else part.leases(answer)
            found += leases
            if isinstance(answer, ReplyError) or sum(len(each) for _, each in leases) >= part.count:
                self.dirty_queues.update(part.queues)
            else:
                emptied += part.queues
        self.claiming = None
        found.sort(key=itemgetter(0))
        came: list[Lease] = []
        for _, lists in groupby(found, itemgetter(0)):
            leases_of_step = [leases for _, leases in lists]
            came.extend(in_turns(leases_of_step) if self.rotates else chain.from_iterable(leases_of_step))
        if came:
            self._average = max(sum(len(lease.envelope) for lease in came) // len(came), 1)
            self.ready.extend(came)
            self._turn(came)
        self._turn_empty(emptied)
        return emptied, len(came)

    def _turn_empty(self, emptied: Sequence[str]) -> None:
        """Let queues that had nothing wait behind those that were not asked."""
        if self.rotates and len(self._order) > MAX_ASKED:
            gone = set(emptied)
            self._order = [queue for queue in self._order if queue not in gone] + [
                queue for queue in self._order if queue in gone
            ]


class ClusterChannel(RedisChannel):
    """A channel whose queues are in several slots."""

    def __init__(self, number: int, order: OrderStrategy, lease: bool) -> None:
        super().__init__(number, order, lease)
        self.leased, self.taken = ClusterClaimQueue(False, order, lease), ClusterClaimQueue(True, order, False)
