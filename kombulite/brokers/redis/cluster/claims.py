"""Claims in the own layout: one for the queues of each node, all at once, with the credit shared out among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, groupby, islice
from math import inf
from operator import itemgetter
from time import monotonic
from typing import Any, NamedTuple

from hiredis import ReplyError

from kombulite._core import Lease
from kombulite.brokers.redis.claims import (
    MAX_ASKED,
    MAX_BYTES,
    MAX_CLAIMED,
    MAX_UNBOUNDED,
    Claim,
    ClaimQueue,
    Consumer,
    RedisChannel,
    in_turns,
)
from kombulite.brokers.redis.cluster.keys import ClusterKeys
from kombulite.brokers.redis.cluster.nodes import Nodes
from kombulite.brokers.redis.cluster.slots import refusal_of
from kombulite.brokers.redis.cluster.units import DOWN_PAUSE, MOVING_PAUSE
from kombulite.brokers.redis.leases import Tags, logger
from kombulite.brokers.redis.options import OrderStrategy
from kombulite.brokers.redis.plans import is_missing, is_refused
from kombulite.brokers.redis.replies import Lost, Unreached
from kombulite.brokers.redis.scripts import CLAIM_ACROSS_SLOTS

#: Seconds that the replies of some nodes wait for those of others.
LATE = 0.1

#: Requests, each with its reply, or ``Unasked``.
Answers = list[tuple[Claim, Any]]


class Unasked(NamedTuple):
    """The answer to a request that a node did not take: which of its queues are to be asked by the next claim."""

    queues: Sequence[str]


class Rest(NamedTuple):
    """Since when a queue is not served, when it is asked again, and whether that was logged."""

    since: float
    due: float
    is_logged: bool = False


class NodeClaim(Claim):
    """A request for messages of queues that one node has, in several slots: one script takes them."""

    def __init__(self, keys: ClusterKeys, tags: Tags, queues: Sequence[str], count: int, lease: bool) -> None:
        self._namespaces = [keys.of(queue) for queue in queues]
        super().__init__(keys, tags, queues, count, lease)

    def _lists_of_queues(self) -> list[tuple[str, ...]]:
        return [each.own_lists for each in self._namespaces]

    def _lease_endings(self) -> list[str]:
        return [each.own_lease_ending for each in self._namespaces]

    def _lease_tables(self) -> list[str]:
        return [key for each in self._namespaces for key in (each.unacked, each.unacked_index)]

    def packed(self, in_turns: bool, send_source: bool) -> bytes:
        """Return the command as it is sent."""
        keys, *arguments = self._command(in_turns)
        return CLAIM_ACROSS_SLOTS.pack(send_source, (), len(keys), *keys, *arguments)

    def leases(self, reply: list[Any]) -> list[tuple[int, list[Lease]]]:
        """Return the messages of the answer; what it says of queues that refused to be asked is left out."""
        return super().leases(reply[:-2] if self.is_partial(reply) else reply)

    @staticmethod
    def is_partial(reply: list[Any]) -> bool:
        """Return whether some of the queues refused to be asked."""
        return bool(reply) and isinstance(reply[-1], ReplyError)


class SharedClaim:
    """Requests for messages of some queues, one to each node, that are answered together. ``count``: of messages.

    What nodes have not answered when it is set aside is handed over when it comes.

    Where a node does not answer for all of its queues, each of them is asked by itself: the command goes where its slot
    has gone, and an error is that of the queue.
    """

    def __init__(
        self,
        keys: ClusterKeys,
        tags: Tags,
        shares: Sequence[tuple[Sequence[str], int]],
        lease: bool,
        in_turns: bool,
        on_done: Callable[[Answers], None],
    ) -> None:
        self.is_over = False  #: whether the replies were handed over, but for those that are late
        self.late_at = monotonic() + LATE
        self.parts: list[Claim] = []
        self.queues = [queue for queues, _ in shares for queue in queues]
        self.count = sum(count for _, count in shares)
        self._keys = keys
        self._tags = tags
        self.lease = lease
        self._in_turns = in_turns
        self._answered: dict[int, Any] = {}  # by the place of the request
        self._on_done = on_done
        for queues, count in shares:
            self._add(queues, count)

    def _add(self, queues: Sequence[str], count: int) -> int:
        """Add a request; returns its place."""
        if len(queues) == 1:
            part = Claim(self._keys.of(queues[0]), self._tags, queues, count, self.lease)
        else:
            part = NodeClaim(self._keys, self._tags, queues, count, self.lease)
        self.parts.append(part)
        return len(self.parts) - 1

    def post(self, nodes: Nodes, send_source: bool) -> None:
        """Send all of them now."""
        for place, part in enumerate(list(self.parts)):
            slot, data = self._keys.of(part.queues[0]).slot, part.packed(self._in_turns, send_source)
            on_reply = partial(self._on_reply, nodes, place)
            if isinstance(part, NodeClaim):
                nodes.post_to_master(slot, data, on_reply)
            else:
                nodes.post_once(slot, data, on_reply)

    def _on_reply(self, nodes: Nodes, place: int, reply: Any) -> None:
        part = self.parts[place]
        needs_source = is_missing(reply) or (is_refused(reply) and "evalsha" in str(reply).lower())
        if needs_source and not self.is_over:
            # Each node has to get the script once, or each time.
            slot, data = self._keys.of(part.queues[0]).slot, part.packed(self._in_turns, True)
            nodes.post_once(slot, data, partial(self._on_reply, nodes, place), later=True)
            return
        if needs_source:
            reply = Unasked(part.queues)
        elif isinstance(part, NodeClaim) and not isinstance(reply, Unreached):
            if isinstance(reply, ReplyError):
                nodes.note_refused_script()
                reply = self._ask_one_by_one(nodes, part)
            elif part.is_partial(reply):
                nodes.note_refused_script()
        self._answered[place] = reply
        if self.is_over:
            self._on_done([(part, reply)])
        elif len(self._answered) == len(self.parts):
            self.set_aside()

    def _ask_one_by_one(self, nodes: Nodes, part: Claim) -> Unasked:
        """Ask as many queues as there is credit for: none if others may have used it up. Returns the rest."""
        asked = () if self.is_over else part.queues[: part.count]
        for queue in asked:
            each = self._add((queue,), part.count // len(part.queues) or 1)
            data = self.parts[each].packed(self._in_turns, True)
            nodes.post_once(self._keys.of(queue).slot, data, partial(self._on_reply, nodes, each), later=True)
        return Unasked(part.queues[len(asked) :])

    def set_aside(self) -> None:
        """Hand over the replies that are here."""
        self.is_over = True
        self._on_done([(self.parts[place], reply) for place, reply in sorted(self._answered.items())])

    @property
    def unanswered(self) -> list[Claim]:
        """The requests that have no reply yet."""
        return [part for place, part in enumerate(self.parts) if place not in self._answered]


class ClusterClaimQueue(ClaimQueue):
    """What one channel takes from queues of several slots."""

    claiming: Any
    _has_left_out = False  # whether there were queues that had to wait for the next claim
    _patience = 0.0  # seconds for a slot to be served again

    def __init__(self, no_ack: bool, order: OrderStrategy, lease: bool) -> None:
        super().__init__(no_ack, order, lease)
        #: Queues that were asked together for as many messages as there were, or more.
        self._full: set[str] = set()
        #: Queues whose slots are not served at the moment. They keep no other queue waiting.
        self.resting: dict[str, Rest] = {}
        #: What a queue was refused with for other reasons, or all of them for too long.
        self.failure: ReplyError | None = None
        #: Requests that nodes have not answered in time. Their messages may come beyond the credit, and wait here then.
        self.late: list[Claim] = []
        #: Requests that may have taken messages, over connections that were lost.
        self.lost: list[Claim] = []
        #: Messages that came too late for their consumer, which has ended.
        self.strays: list[Lease] = []

    def remove(self, consumer: Consumer) -> list[Lease]:
        """Remove a consumer; returns what was claimed for it and has no other to go to."""
        orphans = super().remove(consumer)
        if consumer.queue not in self.consumers:
            self._full.discard(consumer.queue)
        return orphans

    @property
    def under_way(self) -> list[Any]:
        """The requests that may have taken messages which are not here."""
        return [*super().under_way, *self.late, *self.lost]

    def is_asking(self, queue: str) -> bool:
        """Return whether messages of a queue may be on their way here, from a node that answers in time."""
        self.set_aside()
        return self.claiming is not None and any(queue in part.queues for part in self.claiming.unanswered)

    def set_aside(self) -> None:
        """Go on without the nodes that have not answered in time."""
        claim = self.claiming
        if claim is not None and monotonic() >= claim.late_at:
            self.late += claim.unanswered
            claim.set_aside()

    def wake_rested(self, now: float) -> None:
        """Have the queues asked again whose time has come."""
        for queue, rest in list(self.resting.items()):
            if queue not in self.consumers:
                del self.resting[queue]
            elif rest.due <= now:
                self.resting[queue] = rest._replace(due=inf)
                self.dirty_queues.add(queue)

    def _refuse(self, queues: Sequence[str], error: ReplyError) -> None:
        """Take the refusal of a claim: what is not served at the moment rests."""
        refusal, now = refusal_of(str(error), ("", 0)), monotonic()
        if refusal is None:
            self.failure = error
            self.dirty_queues.update(queues)
            return
        pause = MOVING_PAUSE if refusal.code in ("MOVED", "ASK", "TRYAGAIN") else DOWN_PAUSE
        for queue in queues:
            rest = self.resting.get(queue, Rest(now, now))
            is_long = now - rest.since > self._patience
            if is_long and not rest.is_logged:
                logger.warning("Queue %r is not served, its consumer goes on with others: %s", queue, error)
            self.resting[queue] = Rest(rest.since, now + pause, is_long)
        rests = [self.resting.get(queue) for queue in self.consumers]
        if all(rest is not None and rest.is_logged for rest in rests):  # there are no others
            self.failure = error
            self.dirty_queues.update(self.resting)
            self.resting.clear()

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
        self._patience = stream.cluster.timeout
        count = min(credit, min(MAX_CLAIMED, max(1, MAX_BYTES // self._average)) if self._average else MAX_UNBOUNDED)
        groups = self._groups(stream, keys, count)
        if not groups:
            ignored, self.dirty_queues = self.dirty_queues, set()
            return ignored & self.consumers.keys()
        self._has_left_out = self.rotates and sum(map(len, groups)) < len(self.dirty_queues)
        self.claiming = SharedClaim(keys, tags, shares_of(groups, count), self.lease, self.rotates, on_claimed)
        self.dirty_queues.difference_update(self.claiming.queues)
        self.claiming.post(stream, send_source)
        return ()

    def _groups(self, nodes: Nodes, keys: ClusterKeys, most: int) -> list[list[str]]:
        """Return the queues to ask, those together that one node can be asked for in one step."""
        late = {queue for part in self.late for queue in part.queues}
        asked = islice((queue for queue in self.queues if queue in self.dirty_queues and queue not in late), MAX_ASKED)
        if not self.rotates:  # the first queue goes before all others
            return [[queue] for queue in islice(asked, 1)]
        groups: dict[Any, list[str]] = {}
        owners, is_together = nodes.cluster.slots.owners, nodes.takes_scripts
        for queue in asked:
            groups.setdefault(owners[keys.of(queue).slot] if is_together else queue, []).append(queue)
        found = list(groups.values())[:most]
        if is_together and len(found) > 1 and all(self._full.issuperset(group) for group in found):
            return found[:1]  # each node has enough for all of the credit: they take turns, as that costs one request
        return found

    def _leases_of(self, part: Claim, answer: Any) -> list[tuple[int, list[Lease]]] | None:
        """Return what a request has found, as it says; None for one that was refused or lost."""
        try:
            leases = None if isinstance(answer, ReplyError) else part.leases(answer)
        except (LookupError, TypeError, ValueError) as error:
            leases, answer = None, Lost(f"ERR a node sends a reply that makes no sense: {error!r:.80}")
        if isinstance(answer, Lost) and part.lease:
            self.lost.append(part)
        if leases is None:
            self._refuse(part.queues, answer)
            return None
        for queue in part.queues if self.resting else ():
            self.resting.pop(queue, None)
        return leases

    def claimed(self, reply: Answers) -> tuple[Sequence[str], int]:
        """Take the answers to a claim: which queues it has emptied, and how many messages it found."""
        claim, asked = self.claiming, {queue for part, _ in reply for queue in part.queues}
        if claim is not None and claim.is_over:
            asked.update(claim.queues)
            self.claiming = None
        emptied: list[str] = []
        found: list[tuple[int, list[Lease]]] = []
        for part, answer in reply:
            if part in self.late:
                self.late.remove(part)
            if isinstance(answer, Unasked):
                self.dirty_queues.update(answer.queues)
                continue
            leases = self._leases_of(part, answer)
            if leases is None:
                continue
            for step, mine in leases:
                if mine and mine[0].queue not in self.consumers:  # each is of one queue
                    self.strays += mine
                else:
                    found.append((step, mine))
            if self._fills(part, leases) or NodeClaim.is_partial(answer):
                self.dirty_queues.update(part.queues)
            else:
                emptied += part.queues
        came = self._take(found)
        if self._has_left_out:
            self._order.sort(key=asked.__contains__)  # those that were not asked come first, each part in its order
        return emptied, came

    def _fills(self, part: Claim, leases: list[tuple[int, list[Lease]]]) -> bool:
        """Note, and return, whether a request has found as many messages as it asked for."""
        if sum(len(each) for _, each in leases) >= part.count:
            self._full.update(part.queues)
            return True
        self._full.difference_update(part.queues)
        return False

    def _take(self, found: list[tuple[int, list[Lease]]]) -> int:
        """Have messages wait for their consumers, those of the first step first; returns how many there are."""
        found.sort(key=itemgetter(0))
        came: list[Lease] = []
        for _, lists in groupby(found, itemgetter(0)):
            leases_of_step = [leases for _, leases in lists]
            came.extend(in_turns(leases_of_step) if self.rotates else chain.from_iterable(leases_of_step))
        if came:
            self._average = max(sum(len(lease.envelope) for lease in came) // len(came), 1)
            self.ready.extend(came)
            self._turn(came)
        return len(came)


class ClusterChannel(RedisChannel):
    """A channel whose queues are in several slots."""

    claim_queue = ClusterClaimQueue


def shares_of(groups: Sequence[Sequence[str]], count: int) -> list[tuple[Sequence[str], int]]:
    """Share a number of messages, one for each group at least, out among groups of queues, by their size."""
    rest, left = count - len(groups), sum(map(len, groups))
    shares = []
    for group in groups:
        share = rest * len(group) // left
        rest, left = rest - share, left - len(group)
        shares.append((group, 1 + share))
    return shares
