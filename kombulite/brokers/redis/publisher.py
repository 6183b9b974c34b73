"""Publishing: from a message to the commands that bring it where it belongs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple

from hiredis import ReplyError

from kombulite import exceptions
from kombulite._core import Delivery, EnvelopeTemplate, ListPush, Properties, TagSequence, end_of_run, pack_command
from kombulite.brokers.redis.errors import reply_error
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.stream import Link
from kombulite.brokers.redis.options import Limits, Options
from kombulite.brokers.redis.router import Router, Routes
from kombulite.utils.json import codec

#: Places that are remembered.
MOST_PLACES = 1000
#: Bytes of messages in one command, or so, unless a single one has more. A server works on one while the next is made.
MOST_TOGETHER = 1 << 16

#: The property in which we say when a message was published (ms, the server's clock), where that decides how long it
#: lives. Consumers of ours look at it; kombu's carry it along.
PUBLISHED_AT = "published_at"

MULTI, EXEC = pack_command(("MULTI",)), pack_command(("EXEC",))


class Place:
    """Where the messages of one exchange, routing key and priority go: made once for many."""

    __slots__ = (
        "envelope",
        "expire_with_queue",
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
        #: Whether one of the queues says how long messages live.
        self.expire_with_queue = any(limits[queue].message_ttl is not None for queue in queues if queue in limits)

    def replies(self, messages: int) -> int:
        """How many replies there are to the commands for so many messages."""
        if self.topics:
            return len(self.topics) * messages
        return 1 if self.single is not None else 2 + len(self.pushes) + len(self.trailer)


class Run(NamedTuple):
    """Messages of a batch that follow one another and go the same way: they are taken or refused together."""

    start: int
    stop: int
    place: Place
    template: EnvelopeTemplate


class Publisher:
    """Publishes over one link.

    ``limits``: those of the queues that this connection declared. ``now()``: the server's time in seconds.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        options: Options,
        router: Router,
        limits: Mapping[str, Limits],
        now: Callable[[], float],
    ) -> None:
        self._link = link
        self._keys = keys
        self._options = options
        self._router = router
        self._limits = limits
        self._now = now
        self._tags = TagSequence()
        self._places: dict[tuple[str, str], Place] = {}

    def forget_places(self) -> None:
        """The limits of a queue, or the type of an exchange, have changed."""
        self._places.clear()

    # --- one message

    def publish(self, delivery: Delivery, timeout: float | None) -> bool:
        """Publish a message; False if nothing takes it. Raises NotFound, MessageNacked, PreconditionFailed."""
        place = self._place(delivery)
        template = self._template(place, delivery)
        if place.single is not None:
            stamp = self._stamp(place, delivery)
            self._link.ask(place.single.pack(template, self._tags, (delivery,), stamp), timeout)
            reached = 1
        else:
            reached = self._publish_to(place, place.queues, template, delivery, timeout)
        if place.routes is not None and not self._router.is_current(delivery.exchange, place.routes):
            reached += self._catch_up(delivery, place, timeout)
        return reached > 0

    def _publish_to(
        self, place: Place, queues: Sequence[str], template: EnvelopeTemplate, delivery: Delivery, timeout: float | None
    ) -> int:
        commands = self._commands(place, queues, template, (delivery,))
        replies = self._link.exchange(commands, len(commands), timeout) if commands else [0]
        failure = _failure(replies)
        if failure is not None:
            raise reply_error(str(failure))
        return int(replies[0]) if place.topics else len(queues)

    def _commands(
        self, place: Place, queues: Sequence[str], template: EnvelopeTemplate, deliveries: Sequence[Delivery]
    ) -> list[bytes]:
        """What brings messages that go the same way to some of the queues, or to the topics, of their place."""
        tags, stamp = self._tags, self._stamp(place, deliveries[0])
        if place.topics:
            envelopes = [template.encode(each.body, tags.next(), stamp) for each in deliveries]
            return [pack_command(("PUBLISH", topic, envelope)) for envelope in envelopes for topic in place.topics]
        # Each copy has its own tag: kombu notes under it who has the copy.
        pushes = [
            push.pack(template, tags, deliveries, stamp)
            for queue, push in zip(place.queues, place.pushes, strict=True)
            if queue in queues
        ]
        return pushes if not pushes or place.single is not None else [MULTI, *pushes, *place.trailer, EXEC]

    def _catch_up(self, delivery: Delivery, place: Place, timeout: float | None) -> int:
        """The bindings changed while the message was on its way: send it to the queues that it missed."""
        sent = set(place.queues)
        missed: tuple[str, ...] = ()
        for _ in range(3):
            place = self._place(delivery)
            missed = tuple(queue for queue in place.queues if queue not in sent)
            if not missed or place.topics:
                break
            self._publish_to(place, missed, self._template(place, delivery), delivery, timeout)
            sent.update(missed)
        return len(sent)

    def _template(self, place: Place, delivery: Delivery) -> EnvelopeTemplate:
        properties = delivery.properties
        known, template = place.envelope  # at once: threads may share the place
        if template is None or known is not properties:
            if properties.expiration is not None:
                _check_expiration(properties.expiration)
            template = EnvelopeTemplate(
                codec, delivery.exchange, delivery.routing_key, properties, self._options.body_encoding
            )
            place.envelope = properties, template
        return template

    def _stamp(self, place: Place, delivery: Delivery) -> bytes:
        """What the properties of an envelope end with."""
        if place.expire_with_queue or delivery.properties.expiration is not None:
            return b', "%s": %d' % (PUBLISHED_AT.encode(), self._now() * 1000)
        return b""

    # --- where to

    def _place(self, delivery: Delivery) -> Place:
        exchange, routing_key, priority = delivery.exchange, delivery.routing_key, delivery.properties.priority
        routes = None if exchange == "" else self._router.routes(exchange)
        place = self._places.get((exchange, routing_key))
        if place is None or place.routes is not routes or place.priority != priority:
            place = self._make_place(exchange, routing_key, priority, routes)
            if len(self._places) >= MOST_PLACES:
                self._places.clear()
            self._places[exchange, routing_key] = place
        return place

    def _make_place(self, exchange: str, routing_key: str, priority: Any, routes: Routes | None) -> Place:
        topics: tuple[str, ...] = ()
        if routes is None:
            queues: tuple[str, ...] = (routing_key,)
        elif routes.kind is None:
            raise exceptions.NotFound(f"no exchange '{exchange}', and nothing is bound to it")
        elif routes.kind == "fanout":
            queues, topics = (), (self._keys.topic(exchange, routing_key),)
            if self._options.sentinel_fanout_compat:
                topics += (self._keys.compatible_topic(exchange),)
        else:
            queues = routes.route(routing_key)
            if not queues and self._options.deadletter_queue:
                queues = (self._options.deadletter_queue,)
        return Place(self._keys, routes, queues, topics, self._limits, priority)

    # --- many messages

    def publish_many(
        self, deliveries: Sequence[Delivery], timeout: float | None
    ) -> tuple[list[tuple[int, Exception]], list[int]]:
        """Publish in order; returns those refused, as (index, exception), and the indexes of those nothing takes."""
        refused: list[tuple[int, Exception]] = []
        unroutable: list[int] = []
        runs: list[Run] = []
        start = 0
        previous: tuple[str, str, Any] | None = None
        while start < len(deliveries):
            stop, first = end_of_run(deliveries, start, MOST_TOGETHER), deliveries[start]
            where = first.exchange, first.routing_key, first.properties.priority
            try:
                if where != previous:
                    place = self._place(first)
                template = self._template(place, first)
            except exceptions.ChannelError as error:
                previous = None
                refused += [(index, error) for index in range(start, stop)]
            else:
                previous = where
                runs.append(Run(start, stop, place, template))
                if not place.queues and not place.topics:
                    unroutable += range(start, stop)
            start = stop
        refused += self._send(deliveries, [run for run in runs if run.place.queues or run.place.topics], timeout)
        for run in runs:
            routes = run.place.routes
            if routes is not None and not self._router.is_current(deliveries[run.start].exchange, routes):
                for index in range(run.start, run.stop):
                    if self._catch_up(deliveries[index], run.place, timeout) and index in unroutable:
                        unroutable.remove(index)
        return sorted(refused, key=itemgetter(0)), unroutable

    def _send(
        self, deliveries: Sequence[Delivery], runs: Sequence[Run], timeout: float | None
    ) -> list[tuple[int, Exception]]:
        counts = [run.place.replies(run.stop - run.start) for run in runs]
        replies = self._link.exchange(self._packed(deliveries, runs), sum(counts), timeout)
        refused: list[tuple[int, Exception]] = []
        for run, count, end in zip(runs, counts, accumulate(counts), strict=True):
            if count == 1 and replies[end - 1].__class__ is int:
                continue  # the common case, also where each message is a run of its own
            failure = _failure(replies[end - count : end])
            if failure is not None:
                error = reply_error(str(failure))
                if not isinstance(error, (exceptions.MessageNacked, exceptions.ChannelError)):
                    raise error
                refused += [(index, error) for index in range(run.start, run.stop)]
        return refused

    def _packed(self, deliveries: Sequence[Delivery], runs: Sequence[Run]) -> Iterator[bytes]:
        for start, stop, place, template in runs:
            mine = deliveries[start:stop]
            if place.single is not None:
                yield place.single.pack(template, self._tags, mine, self._stamp(place, mine[0]))
            else:
                yield from self._commands(place, place.queues, template, mine)


def _failure(replies: Sequence[Any]) -> ReplyError | None:
    """What was wrong with a command, or with one of a transaction.

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
