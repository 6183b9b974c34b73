"""Receiving: from lists and channels of the server to one event after the other, without waiting.

A consumer that finds its lists empty reads them (EXISTS) on a connection with client-side caching: the server then says
when one of them changes, whoever changes it, and nothing is asked until it does.

The class is wider than others: what the server says, claims and what is handed over share its state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from time import monotonic
from typing import Any
from weakref import ref

from hiredis import ReplyError

from kombulite import exceptions
from kombulite._core import (
    Delivery,
    EnvelopeReader,
    Lease,
    LeasedMessages,
    MalformedEnvelope,
    decode_envelope,
    pack_command,
)
from kombulite.brokers.base import Event
from kombulite.brokers.limits import reports_expiry
from kombulite.brokers.redis.blocking import ListWaits
from kombulite.brokers.redis.claims import Acknowledgement, ClaimQueue, RedisChannel, consumers_of
from kombulite.brokers.redis.errors import reply_error
from kombulite.brokers.redis.fanout import Subscriptions
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.leases import (
    ACK_REPLIES,
    Tags,
    dead_letter,
    logger,
    note,
    pack_acknowledgement,
    put_back,
)
from kombulite.brokers.redis.options import Limits, Options
from kombulite.brokers.redis.pace import MAX_BACKOFF, MIXED_BACKOFF, News, Pace
from kombulite.brokers.redis.plans import Exchange, Plan, PostingStream, is_granted, is_missing, is_refused, send
from kombulite.brokers.redis.publisher import PUBLISHED_AT
from kombulite.brokers.redis.scripts import CLAIM
from kombulite.brokers.redis.topology import Topology
from kombulite.utils.json_codec import codec
from kombulite.utils.locks import Lock
from kombulite.utils.uuid import uuid

#: Seconds between two looks where the server cannot wake us: at most, at least, and as a share of those since the last
#: message.
POLLING_INTERVAL, SHORTEST_POLL, POLL_SHARE = 1.0, 0.02, 0.1

#: The channel on which a server tells RESP2 clients what has changed.
INVALIDATED = b"__redis__:invalidate"


class Receiver:
    """The consuming half of a connection. ``stream`` is the one for commands, on which ``perform`` has a plan done.

    ``channels`` and ``topology`` are the connection's. ``now()``: the server's time in seconds.
    """

    def __init__(
        self,
        stream: PostingStream,
        perform: Callable[[Plan[Any]], object],
        keys: Keys,
        options: Options,
        channels: dict[int, RedisChannel],
        topology: Topology,
        now: Callable[[], float],
    ) -> None:
        self.events: deque[Event] = deque()
        self.tags = Tags(options.visibility_timeout)
        self.listener: PostingStream | None = None
        self.watcher: PostingStream | None = None  # over which lists are read to have their changes told
        self.pace = Pace()
        self._stream = stream
        self._perform = perform
        self._keys = keys
        self._options = options
        self._channels = channels
        self._topology = topology
        self._limits = topology.limits
        self._now = now
        # kombu's documentation has people set it high, for there the server wakes who waits.
        self._longest_poll = min(options.polling_interval or POLLING_INTERVAL, POLLING_INTERVAL)
        self.waits = ListWaits(options, self._longest_poll, self._consumed, self._mark_dirty)
        self.subscriptions = Subscriptions(keys, options.sentinel_fanout_compat, self._on_unsubscribed)
        self._envelopes = EnvelopeReader(codec)
        #: The common case of handing over a message.
        self.messages = LeasedMessages(self._envelopes, stream.lock if isinstance(stream.lock, Lock) else None)
        self._redirection: tuple[Any, ...] = ()
        self._tells_of_lists = False  # whether the server says when a list changes
        self._watched: dict[bytes, str] = {}  # lists of which it will -> their queue
        self._may_name = True  # whether the user may run a script by its digest (EVALSHA)
        self._sends_source = False  # whether the server has forgotten the script, and gets it with the next claim
        self._news = News()
        self._look_at = 0.0  # when all queues are asked once more
        self._found_at = monotonic()  # when a message was found last, or the connection began
        self._listened = False
        self._checked_at = -inf
        self._mark: bytes | None = None  # what tells the database from one that takes its place
        self._is_mark_awaited = self._is_look_awaited = False  # whether checks were posted and have no reply
        #: Called when there may be something new: another thread may wait for it than the one that reads.
        self.wake: Callable[[], object] = _do_nothing

    # --- what the server tells

    def track(self, listener: PostingStream) -> Plan[bool]:
        """Have the server tell the connection that listens of changes, if it does.

        RESP3 has them told to the connection that reads the lists. With RESP2 that is another one, the watcher, and
        the server publishes its news to the listener: returns whether there has to be such a one.
        """
        self._tells_of_lists = False
        if listener.protocol == 3:
            self.watcher = listener
            yield from self.watch(listener)
            return False
        identify, subscribe = pack_command(("CLIENT", "ID")), pack_command(("SUBSCRIBE", INVALIDATED))
        client, subscribed = yield Exchange((identify, subscribe), 2)
        if not (is_granted(client) and is_granted(subscribed)):
            return False
        self._redirection = ("REDIRECT", client)
        return True

    def watch(self, watcher: PostingStream) -> Plan[None]:
        """Have the server remember what is read over a connection, and tell when that changes."""
        self.watcher = watcher
        self._watched.clear()
        self._is_look_awaited = False
        yield from self.watch_over()

    def watch_later(self, watcher: PostingStream) -> None:
        """Watch lists over connections that are opened for the first list of their server."""
        self.watcher = watcher
        self._tells_of_lists = True

    def watch_over(self) -> Plan[None]:
        """Have the server remember what is read over a connection."""
        (reply,) = yield from send(("CLIENT", "TRACKING", "ON", *self._redirection))
        self._tells_of_lists = is_granted(reply)

    @property
    def missing_waits(self) -> int:
        """How many connections more are needed to wait in the server, because it does not report changes."""
        return 0 if self._tells_of_lists else self.waits.missing(self._count_lists())

    @property
    def listens(self) -> bool:
        """Whether the server says when a list changes, and that is worth while."""
        deaf_until = self._news.deaf_until
        return self._tells_of_lists and (not deaf_until or monotonic() >= deaf_until)

    def _consumed(self) -> set[str]:
        """Return the queues that are consumed."""
        claims = [claims for state in list(self._channels.values()) for claims in state.claim_queues]
        return {queue for each in claims for queue in list(each.consumers)}

    def _count_lists(self) -> int:
        """Return how many lists the queues have that are consumed."""
        return len(self._consumed()) * len(self._options.priority_steps)

    def _polling_interval(self) -> float:
        """Return the seconds until the next look: the less, the sooner the last message came."""
        if self.waits.cover(self._count_lists()):  # the server wakes us
            return self._options.health_check_interval or POLLING_INTERVAL
        return min(self._longest_poll, max((monotonic() - self._found_at) * POLL_SHARE, SHORTEST_POLL))

    def subscribe(self, bindings: Mapping[str, Iterable[tuple[str, str]]]) -> None:
        """Subscribe to what these queues are bound to, as (fanout exchange, routing key), and to nothing else."""
        if self.listener is not None:
            self.subscriptions.update(self.listener, bindings)

    def _on_unsubscribed(self, queues: Sequence[str], error: Exception) -> None:
        """Note that no fanout messages will come for queues, since the server refuses to subscribe."""
        for state in list(self._channels.values()):
            if any(consumer.queue in queues for consumer in list(state.consumers.values())):
                state.error = error

    # --- news

    def on_push(self, message: list[Any]) -> None:
        """Take what the server says unasked, on any connection."""
        kind = message[0]
        if kind == b"message" and message[1] == INVALIDATED:  # as RESP2 has it
            kind, message = b"invalidate", [b"invalidate", message[2]]
            if message[1] is None:
                self._topology.router.forget(None)
        if kind == b"invalidate":
            changed = list(self._watched) if message[1] is None else message[1]
            for key in changed:
                queue = self._watched.pop(key, None)
                if queue is not None and self.listens:
                    self._news.came(key)
                    self._mark_dirty(queue)
        elif kind == b"pmessage":
            self._on_fanout(message[1], message[3])

    def _mark_dirty(self, queue: str) -> None:
        for state in list(self._channels.values()):
            for claims in state.claim_queues:
                if queue in claims.consumers:
                    claims.dirty_queues.add(queue)
        self.wake()

    def _on_fanout(self, pattern: bytes, envelope: bytes) -> None:
        try:
            delivery = decode_envelope(codec, envelope)
        except MalformedEnvelope as error:
            logger.error("What was published to %r is no message: %s", pattern, error)
            return
        for queue in self.subscriptions.queues(pattern, delivery.exchange, delivery.delivery_tag):
            self.deliver_fanout(queue, envelope)

    def deliver_fanout(self, queue: str, envelope: bytes) -> None:
        """Have a consumer of a queue get a fanout message, if it has one."""
        consumers = list(consumers_of(self._channels, queue))
        if consumers:
            # The one with the least to do.
            state, consumer = min(consumers, key=lambda each: len(each[0].fanout) + len(each[0].outstanding))
            lease = Lease(self.tags.tag(self.tags.reserve(1)), queue, "", envelope, is_fanout=True)
            if len(state.fanout) == state.fanout.maxlen:
                logger.warning("Consumer %s is too slow: a fanout message is dropped", consumer.tag)
            state.fanout.append((consumer, lease))
            self.wake()

    def _watch_lists(self, claims: ClaimQueue, queues: Iterable[str], is_look: bool = False) -> None:
        """Have the server say when a list of these queues changes; look once more if one has something already.

        ``is_look``: whether that is asked in the place of a claim.
        """
        if not self._tells_of_lists:
            for queue in queues:
                for step, name in enumerate(self._keys.lists(queue)):
                    self.waits.want(name, step, queue)
            return
        if self.watcher is None or not self.listens:
            return
        missing = {key: queue for queue in queues for key in self._unwatched(queue)}
        if missing:
            self._watched.update(missing)
            looked = partial(self._on_watched, claims, queues, is_look)
            self.watcher.post(pack_command(("EXISTS", *missing)), 1, looked, may_repeat=True)

    def _unwatched(self, queue: str) -> list[bytes]:
        """Return the lists of a queue of which the server will not say that they change."""
        return [key for name in self._keys.lists(queue) if (key := name.encode()) not in self._watched]

    def unwatch(self, queue: str) -> None:
        """Forget the lists of a queue that is not consumed any more."""
        for name in self._keys.lists(queue):
            self._watched.pop(name.encode(), None)

    def _on_watched(self, claims: ClaimQueue, queues: Iterable[str], is_look: bool, reply: Any) -> None:
        if isinstance(reply, ReplyError) and isinstance(reply_error(str(reply)), exceptions.AccessRefused):
            logger.warning("The server does not report changes, so it is polled: %s", reply)
            self._tells_of_lists = False
        elif reply:
            claims.dirty_queues.update(queues)
            claims.is_filled = is_look
            if isinstance(reply, ReplyError):  # it is busy, say
                asked = set(queues)
                self.look_anew(lambda key: self._watched.get(key) in asked)
        elif is_look:
            self.pace.claimed(0, monotonic())
            self._news.led_to(0, monotonic())

    def look_anew(self, is_affected: Callable[[bytes], bool]) -> None:
        """Ask the queues once more of whose lists the server will not say that they change."""
        for key in [key for key in list(self._watched) if is_affected(key)]:
            queue = self._watched.pop(key, None)
            if queue is not None:
                self._mark_dirty(queue)

    def check(self) -> None:
        """See now and then whether the lists that the server watches are empty still, and the database is the same.

        Of some changes it says nothing: two databases change places, a slot moves, a master becomes a replica.
        """
        interval = self._options.health_check_interval
        if interval and self.listener is not None and monotonic() - self._checked_at >= interval:
            self._checked_at = monotonic()
            self._post_checks()

    def _post_checks(self) -> None:
        """Post the checks that are not on their way: they wait for a slot without a master, and would pile up."""
        if self._watched and self.watcher is not None and not self._is_look_awaited:
            self._is_look_awaited = True
            self.watcher.post(pack_command(("EXISTS", *self._watched)), 1, self._on_checked, may_repeat=True)
        if self._is_mark_awaited:
            return
        self._is_mark_awaited = True
        # A write that changes nothing: what has become a replica refuses it, which ends the connection.
        self._stream.post(pack_command(("HDEL", self._keys.unacked, "")), 1, _ignore, may_repeat=True)
        # No exchange that is declared has an empty name.
        exchanges = self._keys.exchanges
        mark = pack_command(("HSETNX", exchanges, "", uuid())) + pack_command(("HGET", exchanges, ""))
        self._stream.post(mark, 2, self._on_mark, may_repeat=True)

    def _on_mark(self, reply: Any) -> None:
        self._is_mark_awaited = False
        if isinstance(reply, bytes) and reply != self._mark:
            if self._mark is not None:
                self._topology.router.forget(None)
            self._mark = reply

    def _on_checked(self, reply: Any) -> None:
        self._is_look_awaited = False
        if reply:  # an error too
            self.look_everywhere()

    def look_if_due(self) -> None:
        """Ask all queues once more, if the server does not say when they change and it is time, or says so again."""
        listened, self._listened = self._listened, self.listens
        if self._listened:
            if not listened:
                self.look_everywhere()  # it is told which lists to watch as they are found empty
        elif monotonic() >= self._look_at:
            self._look_at = monotonic() + self._polling_interval()
            self.look_everywhere()
        else:  # the server may have refused to wait meanwhile
            self._look_at = min(self._look_at, monotonic() + self._polling_interval())

    @property
    def next_look(self) -> float | None:
        """Seconds until ``look_if_due`` has something to do, None for never."""
        return None if self.listens else max(self._look_at - monotonic(), 0)

    def look_everywhere(self) -> None:
        """Ask all queues once more."""
        for state in list(self._channels.values()):
            for claims in state.claim_queues:
                claims.dirty_queues.update(claims.consumers)

    # --- claiming

    def claim(self, state: RedisChannel) -> None:
        """Ask for what a channel has room for."""
        for claims in state.claim_queues:
            if (
                not claims.dirty_queues
                or state.credit(claims) <= 0
                or (claims.is_early and self.pace.rest(monotonic()))
            ):
                continue
            with self._stream.lock:  # no consumer ends between the look at what is consumed and the question
                credit = state.credit(claims)
                if credit > 0 and not self._look_first(claims):
                    claims.is_filled = claims.is_early = False
                    on_claimed = partial(self._on_claimed, state, claims)
                    ignored = claims.claim(self._stream, self._keys, self.tags, credit, on_claimed, self._sends_source)
                    self._sends_source = not self._may_name
                    self._watch_lists(claims, ignored)

    def _look_first(self, claims: ClaimQueue) -> bool:
        """Ask whether there is something left, where other consumers are mostly faster: that costs less than a claim.

        Returns False where there is nothing to ask, since the server has answered that, or tells of no changes.
        """
        if claims.is_filled or not (self.pace.is_outrun and self.listens):
            return False
        queues = [queue for queue in claims.dirty_queues if self._unwatched(queue)]
        if len(queues) < len(claims.dirty_queues):
            return False
        claims.dirty_queues.clear()
        self._watch_lists(claims, queues, is_look=True)
        return True

    def _on_claimed(self, state: RedisChannel, claims: ClaimQueue, reply: Any) -> None:
        self.wake()
        if isinstance(reply, ReplyError):
            claims.failed()
            # Nothing is sent from here: it would come between a command that waits for its reply, and that.
            if is_refused(reply) and "evalsha" in str(reply).lower():
                self._may_name = False
            elif not is_missing(reply):
                state.error = CLAIM.error(reply)
                return
            self._sends_source = True
            return
        emptied, found = claims.claimed(reply)
        if found:
            self._found_at = monotonic()
            self._look_at = min(self._look_at, self._found_at + self._polling_interval())
        if found or not claims.dirty_queues:
            self.pace.claimed(found, monotonic())
        if self.listens or found:
            self._news.led_to(found, monotonic())
        if emptied and found and self.pace.is_streaming:
            claims.dirty_queues.update(emptied)
            claims.is_early = True
        else:
            self._watch_lists(claims, emptied)

    def pause(self) -> float:
        """Return the seconds to wait before the next claim."""
        is_filled = any(claims.is_filled for claims in self._claimable())
        return 0.0 if is_filled else self.pace.pause(monotonic(), MAX_BACKOFF if self.is_outrun else MIXED_BACKOFF)

    @property
    def is_outrun(self) -> bool:
        """Whether all news is of messages that others are likely to get: of the one queue that is consumed."""
        return self.pace.is_outrun and not self.subscriptions and len(self._consumed()) == 1

    @property
    def next_claim(self) -> float | None:
        """Seconds until a claim is due that follows another after a pause, None where there is none."""
        is_early = any(claims.is_early for claims in self._claimable())
        return self.pace.rest(monotonic()) if is_early else None

    def _claimable(self) -> Iterator[ClaimQueue]:
        for state in list(self._channels.values()):
            for claims in state.claim_queues:
                if claims.dirty_queues and state.credit(claims) > 0:
                    yield claims

    # --- events

    def next_delivery(self, state: RedisChannel) -> Delivery | None:
        """Hand over the next message that waits on a channel, if there is one."""
        delivery = self.messages.next(state)
        if delivery is not None:
            return delivery
        with self._stream.lock:  # what is taken is noted before a consumer or the channel ends
            while (found := state.next()) is not None:
                consumer, lease = found
                delivery = self.hand_over(state, lease, consumer.no_ack)
                if delivery is not None:
                    delivery.consumer_tag = consumer.tag
                    return delivery
        return None

    def hand_over(self, state: RedisChannel, lease: Lease, no_ack: bool) -> Delivery | None:
        """Return a message as it goes to its consumer; None for what is none, or is too old."""
        try:
            delivery = self._envelopes.read(lease.queue, lease.envelope)
        except MalformedEnvelope as error:
            self._perform(self._dead_letter(lease, not no_ack and self._options.ack_emulation, error))
            return None
        if delivery.properties.extra is not None and has_expired(delivery, self._limits.get(lease.queue), self._now()):
            if not no_ack:
                self.acknowledge(state, [lease])
            return None
        if delivery.redelivered:
            delivery = without_flag(delivery)
        delivery.channel = state.number
        delivery.delivery_tag = lease.tag
        if not no_ack:
            lease.was_seen = True
            lease.delivery = ref(delivery)
            state.outstanding[lease.tag] = lease
        return delivery

    def _dead_letter(self, lease: Lease, is_noted: bool, reason: Exception) -> Plan[None]:
        """Move what is no message to the dead letters. If the user may not write them, keep it, and raise that."""
        keys = self._keys.of(lease.queue)
        try:
            yield from dead_letter(keys, lease.tag if is_noted else None, lease.queue, lease.envelope, reason)
        except exceptions.AccessRefused:
            if not is_noted:  # it is taken from its list already
                try:
                    yield from note(keys, lease)  # a consumer that has the right to finds it, as one that has no holder
                except exceptions.AccessRefused:
                    yield from put_back(keys, [lease], are_noted=False)
            raise

    def acknowledge(self, state: RedisChannel, leases: Sequence[Lease]) -> None:
        """Remove messages from the server's notes, at once; an error shows at the channel's next operation."""
        data = self.acknowledgement(leases)
        if data:
            # While the application is fed without a pause, the kernel may join what belongs together.
            on_reply = Acknowledgement(state, data)
            self._stream.post(data, ACK_REPLIES, on_reply, more=bool(state.leased.ready), may_repeat=True)

    def acknowledgement(self, leases: Sequence[Lease]) -> bytes:
        """Return what removes messages from the server's notes, in ``ACK_REPLIES`` commands; b"" for nothing."""
        tags = [lease.tag for lease in leases if not lease.is_fanout]
        if not tags or not self._options.ack_emulation:
            return b""
        return pack_acknowledgement(self._keys, tags)

    def has_ready(self) -> bool:
        """Return whether there is an event, or an error, to hand over."""
        return bool(self.events) or any(
            state.error is not None or state.has_ready() for state in list(self._channels.values())
        )

    @property
    def is_claiming(self) -> bool:
        """Whether a claim is under way that may bring messages."""
        states = list(self._channels.values())
        return any(claims.claiming is not None for state in states for claims in state.claim_queues)

    def has_something(self) -> bool:
        """Return whether there is, or there may be something to claim."""
        return self.has_ready() or next(self._claimable(), None) is not None


def _ignore(reply: Any) -> None:
    """Do nothing with the reply to a check."""


def _do_nothing() -> None:
    """Wake nobody: nobody sleeps."""


def without_flag(delivery: Delivery) -> Delivery:
    """Return the delivery without the header that says on the wire what ``redelivered`` says here."""
    headers = {name: value for name, value in (delivery.properties.headers or {}).items() if name != "redelivered"}
    properties = delivery.properties.replace(headers=headers or None)
    again = Delivery(delivery.exchange, delivery.routing_key, properties, delivery.body)
    again.redelivered = True
    again.delivery_count = delivery.delivery_count
    return again


def has_expired(delivery: Delivery, limits: Limits | None, now: float) -> bool:
    """Return whether a message has outlived its own expiration, or its queue's. ``now``: the server's time in s."""
    properties = delivery.properties
    published_at = (properties.extra or {}).get(PUBLISHED_AT)
    if type(published_at) is not int:
        return False  # nobody knows how old it is
    lives = [] if limits is None or limits.message_ttl is None else [limits.message_ttl]
    if properties.expiration is not None and not reports_expiry(delivery):
        with suppress(ValueError):
            lives.append(int(str(properties.expiration)))
    return bool(lives) and published_at + min(lives) <= now * 1000
