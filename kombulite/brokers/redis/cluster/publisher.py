"""Publishing in the own layout: a command for each queue, because no transaction spans slots.

A message for several queues may reach some of them only. Which, is noted until the message is forgotten, so that it
goes to the others alone when it is published again, as by ``retry``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import ref

from hiredis import ReplyError

from kombulite import exceptions
from kombulite._core import Delivery, EnvelopeTemplate, pack_command
from kombulite.brokers.redis.cluster.slots import slot_of
from kombulite.brokers.redis.errors import reply_error
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.options import Limits
from kombulite.brokers.redis.plans import LOST, Exchange, Plan, is_refused, number_of
from kombulite.brokers.redis.publisher import (
    EXEC,
    MAX_TOGETHER,
    MULTI,
    Destination,
    Publisher,
    Segment,
    are_interleaved,
    failure_of,
    in_order,
)
from kombulite.brokers.redis.router import Routes

#: What replies to LPUSH are.
LENGTHS = frozenset([int])


class Reached(dict["ref[Delivery]", frozenset[str]]):
    """The queues that have a message which others have not. A message is forgotten with the last use of it elsewhere.

    It is empty nearly always, and asked before each publish: that takes no call, as with ``WeakKeyDictionary``.
    """

    def of(self, delivery: Delivery) -> frozenset[str]:
        """Return the queues that have a message."""
        return self.get(ref(delivery), frozenset())

    def note(self, delivery: Delivery, queues: Iterable[str]) -> None:
        """Note that queues have a message."""
        self[ref(delivery, self._drop)] = self.of(delivery).union(queues)

    def forget(self, delivery: Delivery) -> None:
        """Forget a message: all of its queues have it."""
        self._drop(ref(delivery))

    def _drop(self, key: ref[Delivery]) -> None:
        self.pop(key, None)


class ClusterDestination(Destination):
    """Where the messages of one exchange, routing key and priority go."""

    __slots__ = ("slot", "trailers")

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
        super().__init__(keys, routes, queues, topics, limits, priority, has_transactions)
        self.slot = slot_of(keys.lists(queues[0])[0]) if len(queues) == 1 else None  # of its one list
        #: For each queue what follows a message in its transaction.
        self.trailers: list[list[bytes]] = [
            [pack_command(("PEXPIRE", key, limits[queue].expires)) for key in keys.lists(queue)]
            if queue in limits and limits[queue].expires
            else []
            for queue in queues
        ]


class Group:
    """Messages of a batch that go to the same queues in one command each. ``places``: where they are in the batch."""

    __slots__ = ("deliveries", "destination", "places", "queues", "size", "template")

    def __init__(
        self,
        destination: ClusterDestination,
        template: EnvelopeTemplate,
        queues: Sequence[str],
        places: Iterable[int] = (),
        deliveries: Iterable[Delivery] = (),
        size: int = 0,
    ) -> None:
        self.destination = destination
        self.template = template
        self.queues = queues
        self.places = list(places)
        self.deliveries = list(deliveries)
        self.size = size  # bytes of the bodies

    def add(self, place: int, delivery: Delivery) -> None:
        """Put a message behind the others."""
        self.places.append(place)
        self.deliveries.append(delivery)
        self.size += len(delivery.body)


class ClusterPublisher(Publisher):
    """What brings messages where they belong."""

    destination_class = ClusterDestination

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.reached = Reached()

    def push(self, stream: Any, destination: Destination, delivery: Delivery, timeout: float | None) -> None:
        """Push a message to its one list, and wait for the reply. Raises PreconditionFailed, MessageNacked."""
        assert isinstance(destination, ClusterDestination)
        if self.reached:  # the list may have it
            stream.perform(self._publish_to(destination, destination.queues, delivery), timeout)
        else:
            stream.ask_at(destination.slot, self.pack(destination, delivery), timeout)

    def _destination(self, delivery: Delivery) -> Plan[Destination]:
        exchange = delivery.exchange
        destination = self._find(delivery, None if exchange == "" else (yield from self._router.routes(exchange)))
        if not destination.queues and not destination.topics:
            # That nothing is bound shall not be for news that is late: it comes from another node.
            self._router.discard(exchange)
            destination = self._find(delivery, (yield from self._router.routes(exchange)))
        return destination

    def catch_up(self, delivery: Delivery, destination: Destination) -> Plan[int]:
        """Send a message to the queues that it missed; returns how many queues have it."""
        try:
            return (yield from super().catch_up(delivery, destination))
        except (exceptions.ChannelError, exceptions.ConnectionError, exceptions.MessageNacked, OSError):
            self.reached.note(delivery, destination.queues)
            raise

    def _publish_to(self, destination: Destination, queues: Sequence[str], delivery: Delivery) -> Plan[int]:
        assert isinstance(destination, ClusterDestination)
        template = self._template(destination, delivery)
        if destination.topics:
            commands = list(self._topic_commands(destination, template, (delivery,)))
            (reply,) = yield Exchange(commands, 1)
            if isinstance(reply, ReplyError):
                raise reply_error(str(reply))
            return number_of(reply)
        missed = self._missed(delivery, queues)
        if missed:
            group = Group(destination, template, missed, [0], [delivery])
            try:
                failures = yield from self._send_groups([group])
            except exceptions.ConnectionError as error:
                error.reply_text = f"{error.reply_text}; taken by {self._taken_by(delivery, queues)}"
                raise
            if failures:
                self.reached.note(delivery, [queue for queue in missed if queue not in failures[group]])
                raise partly(failures[group], self._taken_by(delivery, queues))
        if self.reached:
            self.reached.forget(delivery)
        return len(queues)

    def _topic_commands(
        self, destination: Destination, template: EnvelopeTemplate, deliveries: Sequence[Delivery]
    ) -> Iterator[bytes]:
        stamp = self._stamp(destination, deliveries[0])
        for each in deliveries:
            envelope = template.encode(each.body, self._tags.next(), stamp)
            yield pack_command(("SPUBLISH", destination.topics[0], envelope))

    # --- what some queues have

    def _missed(self, delivery: Delivery, queues: Sequence[str]) -> Sequence[str]:
        """Return the queues that an earlier try to publish a message has not reached."""
        reached = self.reached.of(delivery) if self.reached else None
        return [queue for queue in queues if queue not in reached] if reached else queues

    def _taken_by(self, delivery: Delivery, queues: Sequence[str]) -> str:
        reached = self.reached.of(delivery)
        return ", ".join(queue for queue in queues if queue in reached) or "none"

    # --- many messages

    def _send(self, segments: Sequence[Segment]) -> Plan[list[tuple[int, Exception]]]:
        refused: list[tuple[int, Exception]] = []
        groups = self._groups([segment for segment in segments if segment.destination.queues])
        failures = yield from self._send_groups(groups)
        for group, mine in failures.items():
            taken = [queue for queue in group.destination.queues if queue not in mine]
            error = partly(mine, ", ".join(taken) or "none")
            if not is_refusal(error):
                self._note_all(groups, failures)
                raise error
            refused += [(place, error) for place in group.places]
        fanout = in_order([segment for segment in segments if segment.destination.topics])
        places = [place for place, _, _ in fanout]
        commands = [
            command
            for _, delivery, (_, _, destination, template) in fanout
            for command in self._topic_commands(destination, template, (delivery,))
        ]
        try:
            for place, reply in zip(places, (yield Exchange(commands, len(commands))) if commands else (), strict=True):
                if isinstance(reply, ReplyError):
                    error = reply_error(str(reply))
                    if not is_refusal(error):
                        raise error
                    refused.append((place, error))
        except (exceptions.ConnectionError, OSError):
            self._note_all(groups, failures)  # the queues shall not get theirs again with the fanout messages
            raise
        if self.reached:
            for segment in segments:
                for delivery in segment.deliveries:
                    self.reached.forget(delivery)
        return refused

    def _groups(self, segments: Sequence[Segment]) -> list[Group]:
        """Put messages together that go the same way. Those of a queue stay in their order."""
        if self.reached or are_interleaved(segments):
            return self._groups_in_order(segments)
        groups: list[Group] = []
        for places, deliveries, destination, template in segments:
            assert isinstance(destination, ClusterDestination)
            groups.append(Group(destination, template, destination.queues, places, deliveries))
        return groups

    def _groups_in_order(self, segments: Sequence[Segment]) -> list[Group]:
        groups: list[Group] = []
        latest: dict[str, Group] = {}  # by queue
        is_repeated = bool(self.reached)
        for place, delivery, (_, _, destination, template) in in_order(segments):
            assert isinstance(destination, ClusterDestination)
            queues: Sequence[str] = destination.queues
            if is_repeated and not (queues := self._missed(delivery, destination.queues)):
                continue
            group = latest.get(queues[0])
            if (
                group is None
                or group.template is not template
                or group.destination is not destination
                or group.size > MAX_TOGETHER
                or (len(queues) > 1 and any(latest.get(queue) is not group for queue in queues))
                or (is_repeated and group.queues != queues)
            ):
                group = Group(destination, template, queues)
                groups.append(group)
                latest.update(dict.fromkeys(queues, group))
            group.add(place, delivery)
        return groups

    def _send_groups(self, groups: Sequence[Group]) -> Plan[dict[Group, dict[str, ReplyError]]]:
        """Send messages to the queues of their groups; returns what queues have refused, and why."""
        commands: list[bytes] = []
        parts: list[tuple[Group, str, int]] = []  # a group, one of its queues, the number of commands for that
        for group in groups:
            destination = group.destination
            stamp = self._stamp(destination, group.deliveries[0])
            for queue, push, trailer in zip(destination.queues, destination.pushes, destination.trailers, strict=True):
                if queue in group.queues:
                    packed = push.pack(group.template, self._tags, group.deliveries, stamp)
                    is_transaction = trailer and destination.is_transaction
                    mine = [MULTI, packed, *trailer, EXEC] if is_transaction else [packed, *trailer]
                    commands += mine
                    parts.append((group, queue, len(mine)))
        partial: list[Any] = []
        try:
            replies = (yield Exchange(commands, len(commands), partial)) if commands else []
        except (exceptions.ConnectionError, OSError):
            self._note_all(groups, failures_of(parts, partial or [LOST] * len(commands)))
            raise
        return failures_of(parts, replies)

    def _note_all(self, groups: Sequence[Group], failures: Mapping[Group, Mapping[str, ReplyError]]) -> None:
        for group in groups:
            reached = [queue for queue in group.queues if queue not in failures.get(group, ())]
            for delivery in group.deliveries if reached else ():
                self.reached.note(delivery, reached)


def failures_of(parts: Sequence[tuple[Group, str, int]], replies: Sequence[Any]) -> dict[Group, dict[str, ReplyError]]:
    """Return the queues that have not taken messages, and why."""
    failures: dict[Group, dict[str, ReplyError]] = {}
    if LENGTHS.issuperset(map(type, replies)):
        return failures
    at = 0
    for group, queue, count in parts:
        mine, at = replies[at : at + count], at + count
        if count > 1 and group.destination.is_transaction and is_refused(mine[0]):
            # The user has no right to begin a transaction: each command was done when it came.
            mine = mine[1:-1]
        failure = failure_of(mine)
        if failure is not None:
            failures.setdefault(group, {})[queue] = failure
    return failures


def is_refusal(error: Exception) -> bool:
    """Return whether an error is about some messages of a batch only."""
    return isinstance(error, (exceptions.MessageNacked, exceptions.ChannelError))


def partly(failures: Mapping[str, ReplyError], taken: str) -> Exception:
    """Return the error of a message that queues have refused, with what became of it."""
    error = reply_error(str(next(iter(failures.values()))))
    return type(error)(f"{error}; refused for {', '.join(failures)}; taken by {taken}")
