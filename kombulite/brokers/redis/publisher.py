"""Publishing: from a message to the commands that bring it where it belongs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from operator import itemgetter
from typing import Any, NamedTuple

from hiredis import ReplyError

from kombulite import exceptions
from kombulite._core import Delivery, EnvelopeTemplate, ListPush, Properties, TagSequence, group_alike, pack_command
from kombulite.brokers.redis.errors import reply_error
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.options import Limits, Options
from kombulite.brokers.redis.plans import Exchange, Plan, is_refused, number_of
from kombulite.brokers.redis.router import Routes
from kombulite.brokers.redis.topology import Topology
from kombulite.utils.json_codec import codec

#: Destinations that are remembered.
MAX_DESTINATIONS = 1000
#: Bytes of messages in one command, or so, unless a single one has more. A server works on one while the next is made.
MAX_TOGETHER = 1 << 16

#: The property in which we say when a message was published (ms, the server's clock), where that decides how long it
#: lives. Consumers of ours look at it; kombu's carry it along.
PUBLISHED_AT = "published_at"

MULTI, EXEC = pack_command(("MULTI",)), pack_command(("EXEC",))


class Destination:
    """Where the messages of one exchange, routing key and priority go: made once for many."""

    __slots__ = (
        "envelope",
        "expire_with_queue",
        "is_transaction",
        "priority",
        "pushes",
        "queues",
        "routes",
        "single",
        "topics",
        "trailer",
    )

    def __init__(
        self,
        keys: Keys,
        routes: Routes | None,
        queues: tuple[str, ...],
        topics: tuple[str, ...],
        limits: Mapping[str, Limits],
        priority: Any,
        has_transactions: bool,
    ) -> None:
        self.routes = routes
        self.queues = queues
        self.topics = topics
        self.priority = priority
        #: The properties of the message before, and the template for all that share them: often the next does.
        self.envelope: tuple[Properties | None, EnvelopeTemplate | None] = None, None
        self.pushes = tuple(ListPush(keys.list_for(queue, priority)) for queue in queues)
        expiring = [(queue, limits[queue].expires) for queue in queues if queue in limits and limits[queue].expires]
        self.trailer = [
            pack_command(("PEXPIRE", key, expires)) for queue, expires in expiring for key in keys.lists(queue)
        ]
        self.single = self.pushes[0] if len(queues) == 1 and not self.trailer else None
        #: Whether what a message needs is done as one step.
        self.is_transaction = has_transactions and self.single is None
        #: Whether one of the queues says how long messages live.
        self.expire_with_queue = any(limits[queue].message_ttl is not None for queue in queues if queue in limits)

    def replies(self, messages: int) -> int:
        """How many replies there are to the commands for so many messages."""
        if self.topics:
            return len(self.topics) * messages
        return (2 if self.is_transaction else 0) + len(self.pushes) + len(self.trailer)

    def failure_of(self, replies: Sequence[Any]) -> ReplyError | None:
        """Return the error of one of the commands for some messages."""
        if self.is_transaction and not self.topics and is_refused(replies[0]):
            # The user has no right to begin a transaction: each command was done when it came.
            replies = replies[1:-1]
        return failure_of(replies)


class Segment(NamedTuple):
    """Messages of a batch that go the same way, in the same envelope: they are taken or refused together.

    ``places``: where they are in the batch.
    """

    places: Sequence[int]
    deliveries: Sequence[Delivery]
    destination: Destination
    template: EnvelopeTemplate


class Publisher:
    """What brings messages where they belong.

    ``topology``: what this connection declared. ``now()``: the server's time in seconds.
    """

    destination_class = Destination

    def __init__(
        self,
        keys: Keys,
        options: Options,
        topology: Topology,
        now: Callable[[], float],
    ) -> None:
        self._keys = keys
        self._options = options
        self._topology = topology
        self._router = topology.router
        self._limits = topology.limits
        self._now = now
        self._tags = TagSequence()
        self._destinations: dict[tuple[str, str], Destination] = {}

    def forget_destinations(self) -> None:
        """Forget where messages go, because the limits of a queue or the type of an exchange have changed."""
        self._destinations.clear()

    # --- one message to one list, the common case

    def single(self, delivery: Delivery) -> Destination | None:
        """Return where a message goes, if that is one list and the server need not be asked for it."""
        exchange = delivery.exchange
        if exchange == "":
            destination = self._find(delivery, None)
        else:
            routes = self._router.known(exchange)
            if routes is None:
                return None
            destination = self._find(delivery, routes)
        return None if destination.single is None else destination

    def pack(self, destination: Destination, delivery: Delivery) -> bytes:
        """Return the command that pushes a message to its one list; there is one reply. Raises PreconditionFailed."""
        template = self._template(destination, delivery)
        assert destination.single is not None
        return destination.single.pack(template, self._tags, (delivery,), self._stamp(destination, delivery))

    def push(self, stream: Any, destination: Destination, delivery: Delivery, timeout: float | None) -> None:
        """Push a message to its one list, and wait for the reply. Raises PreconditionFailed, MessageNacked."""
        stream.ask(self.pack(destination, delivery), timeout)

    def is_current(self, destination: Destination, exchange: str) -> bool:
        """Return whether no change was heard of since it was decided where messages go."""
        return destination.routes is None or self._router.is_current(exchange, destination.routes)

    # --- one message

    def publish(self, delivery: Delivery) -> Plan[bool]:
        """Publish a message; False if nothing takes it. Raises NotFound, MessageNacked, PreconditionFailed."""
        destination = yield from self._destination(delivery)
        reached = yield from self._publish_to(destination, destination.queues, delivery)
        if not self.is_current(destination, delivery.exchange):
            reached += yield from self.catch_up(delivery, destination)
        return reached > 0

    def _publish_to(self, destination: Destination, queues: Sequence[str], delivery: Delivery) -> Plan[int]:
        commands = self._commands(destination, queues, self._template(destination, delivery), (delivery,))
        replies = (yield Exchange(commands, len(commands))) if commands else [0]
        failure = destination.failure_of(replies)
        if failure is not None:
            raise reply_error(str(failure))
        return number_of(replies[0]) if destination.topics else len(queues)

    def _commands(
        self,
        destination: Destination,
        queues: Sequence[str],
        template: EnvelopeTemplate,
        deliveries: Sequence[Delivery],
    ) -> list[bytes]:
        """Return what brings messages that go the same way to some of their queues, or to their topics."""
        tags, stamp = self._tags, self._stamp(destination, deliveries[0])
        if destination.topics:
            envelopes = [template.encode(each.body, tags.next(), stamp) for each in deliveries]
            return [
                pack_command(("PUBLISH", topic, envelope)) for envelope in envelopes for topic in destination.topics
            ]
        # Each copy has its own tag: kombu notes under it who has the copy.
        pushes = [
            push.pack(template, tags, deliveries, stamp)
            for queue, push in zip(destination.queues, destination.pushes, strict=True)
            if queue in queues
        ]
        if not pushes or destination.single is not None:
            return pushes
        commands = [*pushes, *destination.trailer]
        return [MULTI, *commands, EXEC] if destination.is_transaction else commands

    def catch_up(self, delivery: Delivery, destination: Destination) -> Plan[int]:
        """Send a message to the queues that it missed: bindings changed while it was on its way.

        Returns how many queues have it.
        """
        sent = set(destination.queues)
        for _ in range(3):
            destination = yield from self._destination(delivery)
            missed = tuple(queue for queue in destination.queues if queue not in sent)
            if not missed or destination.topics:
                break
            yield from self._publish_to(destination, missed, delivery)
            sent.update(missed)
        return len(sent)

    def _template(self, destination: Destination, delivery: Delivery) -> EnvelopeTemplate:
        properties = delivery.properties
        known, template = destination.envelope  # at once: threads may share the destination
        if template is None or known is not properties:
            if properties.expiration is not None:
                _check_expiration(properties.expiration)
            try:
                template = EnvelopeTemplate(
                    codec, delivery.exchange, delivery.routing_key, properties, self._options.body_encoding
                )
            except exceptions.UNWRITABLE as error:
                raise exceptions.encode_error(error) from error
            destination.envelope = properties, template
        return template

    def _stamp(self, destination: Destination, delivery: Delivery) -> bytes:
        """Return the end of the properties of an envelope."""
        if destination.expire_with_queue or delivery.properties.expiration is not None:
            return b', "%s": %d' % (PUBLISHED_AT.encode(), self._now() * 1000)
        return b""

    # --- where to

    def _destination(self, delivery: Delivery) -> Plan[Destination]:
        routes = None if delivery.exchange == "" else (yield from self._router.routes(delivery.exchange))
        return self._find(delivery, routes)

    def _find(self, delivery: Delivery, routes: Routes | None) -> Destination:
        exchange, routing_key, priority = delivery.exchange, delivery.routing_key, delivery.properties.priority
        destination = self._destinations.get((exchange, routing_key))
        if destination is None or destination.routes is not routes or destination.priority != priority:
            destination = self._make_destination(exchange, routing_key, priority, routes)
            if len(self._destinations) >= MAX_DESTINATIONS:
                self._destinations.clear()
            self._destinations[exchange, routing_key] = destination
        return destination

    def _make_destination(self, exchange: str, routing_key: str, priority: Any, routes: Routes | None) -> Destination:
        topics: tuple[str, ...] = ()
        if routes is None:
            queues: tuple[str, ...] = (routing_key,)
        elif routes.known_kind() == "fanout":
            queues, topics = (), (self._keys.topic(exchange, routing_key),)
            if self._options.sentinel_fanout_compat:
                topics += (self._keys.compatible_topic(exchange),)
        else:
            queues = routes.route(routing_key)
            if not queues and self._options.deadletter_queue:
                queues = (self._options.deadletter_queue,)
        has_transactions = self._topology.has_transactions
        return self.destination_class(self._keys, routes, queues, topics, self._limits, priority, has_transactions)

    # --- many messages

    def publish_many(self, deliveries: Sequence[Delivery]) -> Plan[tuple[list[tuple[int, Exception]], list[int]]]:
        """Publish; returns those refused, as (index, exception), and the indexes of those nothing takes.

        Messages of a queue stay in their order.
        """
        refused: list[tuple[int, Exception]] = []
        unroutable: list[int] = []
        segments: list[Segment] = []
        previous: tuple[str, str, Any] | None = None
        for places, alike in group_alike(deliveries, MAX_TOGETHER):
            first = alike[0]
            where = first.exchange, first.routing_key, first.properties.priority
            try:
                if where != previous:
                    destination = self.single(first) or (yield from self._destination(first))
                template = self._template(destination, first)
            except (exceptions.ChannelError, exceptions.EncodeError) as error:
                previous = None
                refused += [(place, error) for place in places]
            else:
                previous = where
                segments.append(Segment(places, alike, destination, template))
                if not destination.queues and not destination.topics:
                    unroutable += places
        refused += yield from self._send(
            [each for each in segments if each.destination.queues or each.destination.topics]
        )
        for segment in segments:
            destination = segment.destination
            if not self.is_current(destination, segment.deliveries[0].exchange):
                for place, delivery in zip(segment.places, segment.deliveries, strict=True):
                    found = yield from self.catch_up(delivery, destination)
                    if found and place in unroutable:
                        unroutable.remove(place)
        return sorted(refused, key=itemgetter(0)), sorted(unroutable)

    def _send(self, segments: Sequence[Segment]) -> Plan[list[tuple[int, Exception]]]:
        if are_interleaved(segments):
            segments = runs_of(segments)
        counts = [segment.destination.replies(len(segment.places)) for segment in segments]
        replies = yield Exchange(self._packed(segments), sum(counts))
        refused: list[tuple[int, Exception]] = []
        for segment, count, end in zip(segments, counts, accumulate(counts), strict=True):
            if count == 1 and replies[end - 1].__class__ is int:
                continue  # the common case, also where each message is a segment of its own
            failure = segment.destination.failure_of(replies[end - count : end])
            if failure is not None:
                error = reply_error(str(failure))
                if not isinstance(error, (exceptions.MessageNacked, exceptions.ChannelError)):
                    raise error
                refused += [(place, error) for place in segment.places]
        return refused

    def _packed(self, segments: Sequence[Segment]) -> Iterator[bytes]:
        for _, mine, destination, template in segments:
            if destination.single is not None:
                yield destination.single.pack(template, self._tags, mine, self._stamp(destination, mine[0]))
            else:
                yield from self._commands(destination, destination.queues, template, mine)


def are_interleaved(segments: Sequence[Segment]) -> bool:
    """Return whether the messages of a queue, or of a fanout exchange, would lose their order if sent by segment."""
    last: dict[Any, int] = {}  # where the last message for each is in the batch
    for places, mine, destination, _ in segments:
        for each in destination.queues or ((mine[0].exchange,),):
            if last.get(each, -1) > places[0]:
                return True
            last[each] = places[-1]
    return False


def in_order(segments: Sequence[Segment]) -> list[tuple[int, Delivery, Segment]]:
    """Return the messages of segments as they are in the batch, with their places."""
    each = [(*pair, segment) for segment in segments for pair in zip(segment[0], segment[1], strict=True)]
    return sorted(each, key=itemgetter(0))


def runs_of(segments: Sequence[Segment]) -> list[Segment]:
    """Return the messages of segments as they are in the batch, those together that follow one another."""
    runs = [list(run) for _, run in groupby(in_order(segments), lambda each: id(each[2]))]
    return [
        Segment([place for place, _, _ in run], [delivery for _, delivery, _ in run], *run[0][2][2:]) for run in runs
    ]


def failure_of(replies: Sequence[Any]) -> ReplyError | None:
    """Return the error of a command, or of one in a transaction.

    There it is said when the command is queued, and EXEC only says that it was, or it is among the replies of EXEC.
    """
    executed = replies[-1] if replies and isinstance(replies[-1], list) else ()
    return next((reply for reply in (*replies, *executed) if isinstance(reply, ReplyError)), None)


def _check_expiration(expiration: Any) -> None:
    try:
        valid = int(str(expiration)) >= 0
    except ValueError:
        valid = False
    if not valid:
        raise exceptions.PreconditionFailed(f"invalid expiration {expiration!r:.80}")
