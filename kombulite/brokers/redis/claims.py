"""Consumers of a connection: whose turn it is, how much may be claimed, what waits to be handed over."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby, islice, zip_longest
from operator import attrgetter, itemgetter
from typing import Any, ClassVar, NamedTuple

from hiredis import ReplyError

from kombulite._core import BaseClaimQueue, BaseLeaseChannel, Lease
from kombulite.brokers.redis.errors import FOR_NOW, reply_error
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.leases import Tags, client_time, mark_redelivered
from kombulite.brokers.redis.options import OrderStrategy
from kombulite.brokers.redis.plans import Command, Plan, PostingStream, run_with
from kombulite.brokers.redis.scripts import CLAIM

#: Messages that are claimed at a time where no prefetch count says how many, and where there is nothing to give back.
MAX_UNBOUNDED = 100
#: Messages that are claimed at a time, and bytes, by the average of those before.
MAX_CLAIMED, MAX_BYTES = 250, 4 << 20
#: Queues that are asked at a time: with thousands of lists a claim costs more than the messages that it brings.
MAX_ASKED = 100
#: As long as there are messages to hand over, no fewer are asked for.
AHEAD = 50
#: Fanout messages that wait for a consumer without credit; beyond, the oldest are dropped: nobody stores them.
MAX_FANOUT = 10_000


class Consumer(NamedTuple):
    """A consumer of a queue."""

    tag: str
    queue: str
    no_ack: bool
    exclusive: bool


class Claim:
    """A request for messages of some queues, and what the answer means. ``lease``: whether the server notes them."""

    def __init__(self, keys: Keys, tags: Tags, queues: Sequence[str], count: int, lease: bool) -> None:
        self.count = count
        self.queues = queues
        self._keys = keys
        self._tags = tags
        self.lease = lease
        names = self._lists_of_queues()
        self._lists = [name[step] for step in range(len(names[0])) for name in names]
        self._first = tags.reserve(count)

    def post(self, stream: PostingStream, in_turns: bool, on_reply: Callable[[Any], None], send_source: bool) -> None:
        """Send it now; the answer comes later. ``send_source``: send the script along."""
        stream.post(self.packed(in_turns, send_source), 1, on_reply)

    def packed(self, in_turns: bool, send_source: bool) -> bytes:
        """Return the command as it is sent."""
        return CLAIM.pack(send_source, *self._command(in_turns))

    def run(self, *others: Command) -> Plan[list[Any]]:
        """Send it, and other commands after it, and wait for the answers."""
        return run_with(others, CLAIM, *self._command(False))

    def _lists_of_queues(self) -> list[tuple[str, ...]]:
        return [self._keys.lists(queue) for queue in self.queues]

    def _lease_endings(self) -> list[str]:
        return [self._keys.lease_ending(queue) for queue in self.queues]

    def _lease_tables(self) -> list[str]:
        """Return the hash and the index of the leases, of all queues or of each."""
        return [self._keys.unacked, self._keys.unacked_index]

    def _command(self, in_turns: bool) -> tuple[Any, ...]:
        tables = self._lease_tables()
        return (
            tables + self._lists,
            "1" if self.lease else "0",
            self.count,
            "1" if in_turns else "0",
            len(self.queues),
            len(tables) // 2,
            self._tags.prefix,
            self._first,
            client_time(),
            *self._lease_endings(),
        )

    def leases(self, reply: list[Any]) -> list[tuple[int, list[Lease]]]:
        """Return the messages of the answer: (index of the priority step, messages of one list).

        Raises LookupError, TypeError or ValueError for an answer that makes no sense.
        """
        found = []
        number = self._first
        for place, envelopes in zip(reply[::2], reply[1::2], strict=True):
            if place < 1 or {*map(type, envelopes)} != {bytes}:
                raise TypeError(f"messages of list {place!r:.20}: {envelopes!r:.80}")
            step, which = divmod(place - 1, len(self.queues))
            queue, key = self.queues[which], self._lists[place - 1]
            leases = [Lease(self._tags.tag(number + i), queue, key, each) for i, each in enumerate(envelopes)]
            number += len(leases)
            found.append((step, leases))
        return found

    def possible_tags(self) -> list[str]:
        """Return the tags that its leases have, if there are any."""
        return [self._tags.tag(self._first + i) for i in range(self.count)]


class ClaimQueue(BaseClaimQueue):
    """What one channel takes from queues, to be acknowledged or not. ``lease``: whether the server notes it."""

    consumers: dict[str, deque[Consumer]]

    def __init__(self, no_ack: bool, order: OrderStrategy, lease: bool) -> None:
        self.no_ack = no_ack
        self.lease = lease
        self.ready = deque()
        self.dirty_queues: set[str] = set()  # queues to which something may have come since they were asked
        self.is_filled = False  # whether the server has said that one of the dirty queues has something
        self.is_early = False  # whether they were made dirty by a claim, since more is likely to come after a pause
        self.claiming: Claim | None = None  # the request under way
        self.holds = 0  # consumers that are about to end, until when nothing is claimed
        self._order: list[str] = []
        self._strategy = order
        self._custom = order.custom() if order.custom is not None else None
        self._average = 0

    @property
    def rotates(self) -> bool:
        """Whether a queue that was served waits for all others."""
        return bool(self._strategy.rotates)

    @property
    def queues(self) -> Sequence[str]:
        """The queues, in the order in which they are served."""
        return list(self._custom.consume(len(self._order))) if self._custom is not None else self._order

    def add(self, consumer: Consumer) -> None:
        """Add a consumer."""
        self.consumers.setdefault(consumer.queue, deque()).append(consumer)
        if consumer.queue not in self._order:
            self._order.append(consumer.queue)
            self._reorder()
        self.dirty_queues.add(consumer.queue)

    def remove(self, consumer: Consumer) -> list[Lease]:
        """Remove a consumer; returns what was claimed for it and has no other to go to."""
        others = self.consumers[consumer.queue]
        others.remove(consumer)
        if others:
            return []
        del self.consumers[consumer.queue]
        self._order.remove(consumer.queue)
        self.dirty_queues.discard(consumer.queue)
        self._reorder()
        orphans = [lease for lease in self.ready if lease.queue == consumer.queue]
        self.ready = deque(lease for lease in self.ready if lease.queue != consumer.queue)
        return orphans

    def _reorder(self) -> None:
        if self._strategy.sorts:
            self._order.sort()
        if self._custom is not None:
            self._custom.update(list(self._order))

    def claim(
        self,
        stream: PostingStream,
        keys: Keys,
        tags: Tags,
        credit: int,
        on_claimed: Callable[[Any], None],
        send_source: bool,
    ) -> Iterable[str]:
        """Ask for as many messages as there is credit for. The answer goes to ``on_claimed``, then to ``claimed``.

        Returns queues that were not asked, since the order leaves them out, and are not dirty any more.
        """
        asked = list(islice((queue for queue in self.queues if queue in self.dirty_queues), MAX_ASKED))
        if not asked:
            ignored, self.dirty_queues = self.dirty_queues, set()
            return ignored & self.consumers.keys()
        self.dirty_queues.difference_update(asked)  # until something is heard; what comes now is heard of or found
        most = min(MAX_CLAIMED, max(1, MAX_BYTES // self._average)) if self._average else MAX_UNBOUNDED
        self.claiming = Claim(keys, tags, asked, min(credit, most), self.lease)
        self.claiming.post(stream, self._strategy.rotates, on_claimed, send_source)
        return ()

    @property
    def under_way(self) -> list[Any]:
        """The requests that may have taken messages which are not here."""
        return [] if self.claiming is None else [self.claiming]

    def is_asking(self, queue: str) -> bool:
        """Return whether messages of a queue may be on their way here."""
        return self.claiming is not None

    def failed(self) -> None:
        """Note that the claim was refused."""
        claim, self.claiming = self.claiming, None
        assert claim is not None
        self.dirty_queues.update(claim.queues)

    def claimed(self, reply: list[Any]) -> tuple[Sequence[str], int]:
        """Take the answer to a claim: which queues it has emptied, and how many messages it found."""
        claim = self.claiming
        assert claim is not None
        found = claim.leases(reply)  # raises for what makes no sense: then what it may have taken is left to others
        self.claiming = None
        came: list[Lease] = []
        for _, lists in groupby(found, itemgetter(0)):
            leases = [leases for _, leases in lists]
            came.extend(in_turns(leases) if self._strategy.rotates else chain.from_iterable(leases))
        if came:
            self._average = max(sum(len(lease.envelope) for lease in came) // len(came), 1)
            self.ready.extend(came)
            self._turn(came)
        if len(came) < claim.count:
            return claim.queues, len(came)
        self.dirty_queues.update(claim.queues)
        return (), len(came)

    def _turn(self, served: list[Lease]) -> None:
        """Each queue that was served goes to the end of the line, the last one last."""
        if self._custom is not None:
            self._custom.rotate(served[-1].queue)
        elif self._strategy.rotates and len(self._order) > 1:
            latest = {lease.queue: place for place, lease in enumerate(served)}
            waiting = [queue for queue in self._order if queue not in latest]
            self._order = waiting + sorted(latest.keys() & self._order, key=latest.__getitem__)


def in_turns(lists: list[list[Lease]]) -> Iterable[Lease]:
    """Return the messages of several lists, one of each in turn."""
    if len(lists) == 1:
        return lists[0]
    turns = zip_longest(*lists)
    return (lease for turn in turns for lease in turn if lease is not None)


class RedisChannel(BaseLeaseChannel):
    """A channel: its consumers and its unsettled messages. ``error``: of an ack that the server refused.

    A message is in ``ready`` of a claim queue or in ``fanout``, then ``outstanding``, then settled.
    """

    claim_queue: ClassVar[type[ClaimQueue]] = ClaimQueue
    leased: ClaimQueue
    taken: ClaimQueue
    fanout: deque[tuple[Consumer, Lease]]

    def __init__(self, number: int, order: OrderStrategy, lease: bool) -> None:
        self.number = number
        #: Asked before each message is taken, if the program wants to be; then they are taken one at a time.
        self.gate: Callable[[], Any] | None = None
        self.consumers: dict[str, Consumer] = {}
        self._returned: set[str] = set()  # tags of those that are back in their lists, whose settlement was refused
        self.leased, self.taken = self.claim_queue(False, order, lease), self.claim_queue(True, order, False)
        #: Both ways of taking messages.
        self.claim_queues = self.leased, self.taken
        self.fanout = deque(maxlen=MAX_FANOUT)
        self.fetching: list[Claim] = []  # requests of `get` under way
        self.unreturned: list[Lease] = []  # taken for good for a consumer that has ended, and not put back yet
        #: Has an ack made again, of packed commands, that the server refuses for the moment.
        self.make_again: Callable[[bytes], object] = _forget
        #: The same for a channel and for that in whose place it is, whose connection was lost.
        self.origin: object = object()
        self._fanout_first = False

    def credit(self, claims: ClaimQueue) -> int:
        """How many messages to ask for now."""
        if (
            not (claims.dirty_queues and self.active and claims.consumers)
            or claims.holds
            or claims.claiming is not None
        ):
            return 0
        ready = len(claims.ready)
        if self.gate is not None:
            return 1 if not ready and self.may_deliver() and self.gate() else 0
        if claims.no_ack:
            credit = MAX_UNBOUNDED
        elif self.prefetch_count == 0:
            credit = MAX_CLAIMED
        else:
            credit = self.prefetch_count - self.in_flight - ready
        # The next messages are asked for while the last are being worked on, but not one by one.
        return 0 if ready and credit < max(ready, AHEAD) else credit

    @property
    def in_flight(self) -> int:
        """How many messages the application has that count against the prefetch count."""
        if not self._returned:
            return len(self.outstanding)
        return len(self.outstanding) - len(self._returned & self.outstanding.keys())

    def keep(self, leases: Iterable[Lease]) -> None:
        """Keep messages outstanding that could not be settled: the same may be tried again.

        Some may be back in their lists already, where other messages could not be put back.
        """
        self.outstanding.update((lease.tag, lease) for lease in leases)
        self._returned = {tag for tag, lease in self.outstanding.items() if lease.is_back}

    def claims_of(self, consumer: Consumer) -> ClaimQueue:
        """How a consumer's messages are taken."""
        return self.taken if consumer.no_ack else self.leased

    def has_ready(self) -> bool:
        """Whether a message waits to be handed over, and may be."""
        if not self.active or self.is_closing:
            return False
        if self.taken.ready or (self.fanout and self.fanout[0][0].no_ack):
            return True
        return bool(self.leased.ready or self.fanout) and self.may_deliver()

    def may_deliver(self) -> bool:
        """Whether another message may be handed over that will be acknowledged."""
        most = self.prefetch_count
        return most == 0 or len(self.outstanding) < most or self.in_flight < most

    def next(self) -> tuple[Consumer, Lease] | None:
        """Return the next message that waits here, and whose it is."""
        if not self.active or self.is_closing:
            return None
        if self.fanout:
            self._fanout_first = not self._fanout_first
            if self._fanout_first and (found := self._next_fanout()) is not None:
                return found
        for claims in self.claim_queues:
            if claims.ready and (claims.no_ack or self.may_deliver()):
                lease = claims.ready.popleft()
                consumers = claims.consumers[lease.queue]
                consumers.rotate(-1)
                return consumers[-1], lease
        return self._next_fanout()

    def _next_fanout(self) -> tuple[Consumer, Lease] | None:
        if self.fanout and (self.fanout[0][0].no_ack or self.may_deliver()):
            return self.fanout.popleft()
        return None

    def unsettled(self) -> list[Lease]:
        """All that the server has noted for this channel, in the order of claims."""
        outstanding = [lease for lease in list(self.outstanding.values()) if not lease.is_fanout]
        return sorted([*outstanding, *self.leased.ready], key=attrgetter("tag"))

    def take_up_to(self, delivery_tag: Any) -> Sequence[Lease]:
        """Strike all that is outstanding up to a delivery tag, 0 for all; returns it in the order of delivery."""
        if delivery_tag and delivery_tag not in self.outstanding:
            return []
        taken = []
        for tag in list(self.outstanding):
            taken.append(self.outstanding.pop(tag))
            if tag == delivery_tag:
                break
        return taken

    def put_back_fanout(self, lease: Lease) -> None:
        """Deliver a fanout message again: it is stored nowhere but here."""
        consumers = [consumer for consumer in self.consumers.values() if consumer.queue == lease.queue]
        if consumers:
            lease.envelope = mark_redelivered(lease.envelope)
            self.fanout.appendleft((consumers[0], lease))

    def remove_fanout(self, consumer: Consumer) -> None:
        """Drop the fanout messages that wait for a consumer which has ended."""
        kept = [each for each in self.fanout if each[0] is not consumer]
        self.fanout.clear()
        self.fanout.extend(kept)


class Acknowledgement:
    """An ack under way, of packed commands, and what takes their replies: if one is refused, its channel has the error.

    What the server refuses for the moment is made again.
    """

    __slots__ = ("_data", "_is_made_again", "_state")

    def __init__(self, state: RedisChannel, data: bytes) -> None:
        self._state = state
        self._data = data
        self._is_made_again = False

    def __call__(self, reply: Any) -> None:
        """Take the next reply."""
        if not isinstance(reply, ReplyError):
            return
        error = self._state.error = reply_error(str(reply))
        if isinstance(error, FOR_NOW) and not self._is_made_again:
            self._is_made_again = True
            self._state.make_again(self._data)


def _forget(data: bytes) -> None:
    """Do nothing with an ack that was refused, where there is no connection to make it again."""


def consumers_of(channels: dict[int, RedisChannel], queue: str) -> Iterator[tuple[RedisChannel, Consumer]]:
    """All consumers of a queue, with their channels."""
    for state in list(channels.values()):
        for consumer in list(state.consumers.values()):
            if consumer.queue == queue:
                yield state, consumer
