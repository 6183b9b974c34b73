"""Publishing: from a message to the commands that bring it where it belongs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from hiredis import ReplyError

from kombulite import exceptions
from kombulite._core import Delivery, EnvelopeTemplate, Properties, TagSequence
from kombulite.transport.redis.errors import reply_error
from kombulite.transport.redis.keys import Keys
from kombulite.transport.redis.link import Command, Link, pack, pack_all
from kombulite.transport.redis.options import Limits, Options
from kombulite.transport.redis.routes import Router, Routes
from kombulite.utils.json import codec

#: Places that are remembered.
MOST_PLACES = 1000
#: Bytes that are collected before they are sent.
MOST_COLLECTED = 4 << 20

#: The property in which we say when a message was published (ms, the server's clock), where that decides how long it
#: lives. Consumers of ours look at it; kombu's carry it along.
PUBLISHED_AT = "published_at"


class Place:
    """Where the messages of one exchange, routing key and priority go: made once for many."""

    __slots__ = (
        "envelope",
        "expire_with_queue",
        "lists",
        "priority",
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
        self.lists = tuple(keys.list_for(queue, priority) for queue in queues)
        expiring = [(queue, limits[queue].expires) for queue in queues if queue in limits and limits[queue].expires]
        self.trailer = [("PEXPIRE", key, expires) for queue, expires in expiring for key in keys.lists(queue)]
        self.single = self.lists[0] if len(queues) == 1 and not self.trailer else None
        #: Whether one of the queues says how long messages live.
        self.expire_with_queue = any(limits[queue].message_ttl is not None for queue in queues if queue in limits)


class Group(NamedTuple):
    """Commands of a batch that are taken or refused together: those messages, by their index."""

    indexes: list[int]
    command: list[Any]  # an LPUSH that may still grow; empty for a transaction
    transaction: Sequence[Command]

    @property
    def replies(self) -> int:
        """How many replies it has."""
        return 1 if self.command else len(self.transaction)


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
        self._next_tag = TagSequence().next
        self._places: dict[tuple[str, str], Place] = {}

    def forget_places(self) -> None:
        """The limits of a queue, or the type of an exchange, have changed."""
        self._places.clear()

    # --- one message

    def publish(self, delivery: Delivery, timeout: float | None) -> bool:
        """Publish a message; False if nothing takes it. Raises NotFound, MessageNacked, PreconditionFailed."""
        place = self._place(delivery)
        if place.single is not None:
            self._link.ask(pack(("LPUSH", place.single, self._envelope(place, delivery))), timeout)
            reached = 1
        else:
            reached = self._publish_to(place, place.queues, delivery, timeout)
        if place.routes is not None and not self._router.is_current(delivery.exchange, place.routes):
            reached += self._catch_up(delivery, place, timeout)
        return reached > 0

    def _publish_to(self, place: Place, queues: Sequence[str], delivery: Delivery, timeout: float | None) -> int:
        commands = self._commands(place, queues, delivery)
        if not commands:
            return 0
        if len(commands) == 1:
            reply = self._link.call(*commands[0], timeout=timeout)
        else:
            reply = self._link.transact(*commands, timeout=timeout)[0]
        return int(reply) if place.topics else len(queues)

    def _commands(self, place: Place, queues: Sequence[str], delivery: Delivery) -> list[Command]:
        if place.topics:
            envelope = self._envelope(place, delivery)
            return [("PUBLISH", topic, envelope) for topic in place.topics]
        lists = [key for queue, key in zip(place.queues, place.lists, strict=True) if queue in queues]
        # Each copy has its own tag: kombu notes under it who has the copy.
        pushes = [("LPUSH", key, self._envelope(place, delivery)) for key in lists]
        return [*pushes, *place.trailer] if pushes else []

    def _catch_up(self, delivery: Delivery, place: Place, timeout: float | None) -> int:
        """The bindings changed while the message was on its way: send it to the queues that it missed."""
        sent = set(place.queues)
        missed: tuple[str, ...] = ()
        for _ in range(3):
            place = self._place(delivery)
            missed = tuple(queue for queue in place.queues if queue not in sent)
            if not missed or place.topics:
                break
            self._publish_to(place, missed, delivery, timeout)
            sent.update(missed)
        return len(sent)

    def _envelope(self, place: Place, delivery: Delivery) -> bytes:
        properties = delivery.properties
        known, template = place.envelope  # at once: threads may share the place
        if template is None or known is not properties:
            template = EnvelopeTemplate(
                codec, delivery.exchange, delivery.routing_key, properties, self._options.body_encoding
            )
            place.envelope = properties, template
        envelope = template.encode(delivery.body, self._next_tag())
        if place.expire_with_queue or properties.expiration is not None:
            # The delivery tag, and with it the properties, come last.
            return envelope[:-2] + b', "%s": %d}}' % (PUBLISHED_AT.encode(), self._now() * 1000)
        return envelope

    # --- where to

    def _place(self, delivery: Delivery) -> Place:
        exchange, routing_key, properties = delivery.exchange, delivery.routing_key, delivery.properties
        if properties.expiration is not None:
            _check_expiration(properties.expiration)
        routes = None if exchange == "" else self._router.routes(exchange)
        place = self._places.get((exchange, routing_key))
        if place is None or place.routes is not routes or place.priority != properties.priority:
            place = self._make_place(exchange, routing_key, properties.priority, routes)
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
        routed: list[tuple[Delivery, Place]] = []
        groups: list[Group] = []
        collected = 0
        place: Place | None = None
        previous: Delivery | None = None
        for index, delivery in enumerate(deliveries):
            try:
                if place is None or previous is None or not _alike(previous, delivery):
                    place = self._place(delivery)
                previous = delivery
                if place.single is not None:
                    envelope = self._envelope(place, delivery)
                    collected += len(envelope)
                    last = groups[-1] if groups else None
                    if last is not None and last.command and last.command[1] == place.single:
                        last.command.append(envelope)
                        last.indexes.append(index)
                    else:
                        groups.append(Group([index], ["LPUSH", place.single, envelope], ()))
                elif commands := self._commands(place, place.queues, delivery):
                    collected += sum(len(command[-1]) for command in commands if command[0] != "PEXPIRE")
                    groups.append(Group([index], [], (("MULTI",), *commands, ("EXEC",))))
                else:
                    unroutable.append(index)
            except exceptions.ChannelError as error:
                refused.append((index, error))
                place = None
                continue
            if place.routes is not None:
                routed.append((delivery, place))
            if collected >= MOST_COLLECTED:
                refused += self._send(groups, timeout)
                groups, collected = [], 0
        refused += self._send(groups, timeout)
        for delivery, place in routed:
            if place.routes is not None and not self._router.is_current(delivery.exchange, place.routes):
                self._catch_up(delivery, place, timeout)
        return sorted(refused, key=lambda each: each[0]), unroutable

    def _send(self, groups: list[Group], timeout: float | None) -> list[tuple[int, Exception]]:
        if not groups:
            return []
        data = b"".join([pack(group.command) if group.command else pack_all(group.transaction) for group in groups])
        replies = self._link.exchange(data, sum(group.replies for group in groups), timeout)
        refused: list[tuple[int, Exception]] = []
        place = 0
        for group in groups:
            mine = replies[place : place + group.replies]
            # In a transaction what was wrong with a command is said when it is queued; EXEC only says that it was.
            last = next((each for each in mine if isinstance(each, ReplyError)), mine[-1])
            place += group.replies
            failed = [last] if isinstance(last, ReplyError) else last if isinstance(last, list) else []
            for reply in failed:
                if isinstance(reply, ReplyError):
                    error = reply_error(str(reply))
                    if not isinstance(error, (exceptions.MessageNacked, exceptions.ChannelError)):
                        raise error
                    refused += [(index, error) for index in group.indexes]
                    break
        return refused


def _alike(one: Delivery, other: Delivery) -> bool:
    """Whether two messages go the same way, in the same envelope."""
    return (
        one.properties is other.properties and one.routing_key == other.routing_key and one.exchange == other.exchange
    )


def _check_expiration(expiration: Any) -> None:
    try:
        valid = int(str(expiration)) >= 0
    except ValueError:
        valid = False
    if not valid:
        raise exceptions.PreconditionFailed(f"invalid expiration {expiration!r:.80}")
