"""Publishing in the own layout: a command for each queue, because no transaction spans slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from hiredis import ReplyError

from kombulite._core import Delivery, EnvelopeTemplate, pack_command
from kombulite.brokers.redis.errors import reply_error
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.options import Limits
from kombulite.brokers.redis.plans import Exchange, Plan
from kombulite.brokers.redis.publisher import EXEC, MULTI, Destination, Publisher, failure_of
from kombulite.brokers.redis.router import Routes


class ClusterDestination(Destination):
    """Where the messages of one exchange, routing key and priority go."""

    __slots__ = ("trailers",)

    def __init__(
        self,
        keys: Keys,
        routes: Routes | None,
        queues: tuple[str, ...],
        topics: tuple[str, ...],
        limits: Mapping[str, Limits],
        priority: Any,
    ) -> None:
        super().__init__(keys, routes, queues, topics, limits, priority)
        #: For each queue what follows a message in its transaction.
        self.trailers: list[list[bytes]] = [
            [pack_command(("PEXPIRE", key, limits[queue].expires)) for key in keys.lists(queue)]
            if queue in limits and limits[queue].expires
            else []
            for queue in queues
        ]

    @property
    def counts(self) -> list[int]:
        """For each queue the number of replies to the commands that bring it messages."""
        return [3 + len(trailer) if trailer else 1 for trailer in self.trailers]

    def replies(self, messages: int) -> int:
        """Return the number of replies to the commands for so many messages."""
        return len(self.topics) * messages if self.topics else sum(self.counts)


class ClusterPublisher(Publisher):
    """What brings messages where they belong."""

    destination_class = ClusterDestination

    def _destination(self, delivery: Delivery) -> Plan[Destination]:
        destination: Destination = yield from super()._destination(delivery)
        if not destination.queues and not destination.topics:
            # That nothing is bound shall not be for news that is late: it comes from another node.
            self._router.discard(delivery.exchange)
            destination = yield from super()._destination(delivery)
        return destination

    def _publish_to(self, destination: Destination, queues: Sequence[str], delivery: Delivery) -> Plan[int]:
        if len(queues) <= 1:
            return (yield from super()._publish_to(destination, queues, delivery))
        assert isinstance(destination, ClusterDestination)
        commands = self._commands(destination, queues, self._template(destination, delivery), (delivery,))
        replies = yield Exchange(commands, len(commands))
        counts = [count for queue, count in zip(destination.queues, destination.counts, strict=True) if queue in queues]
        failures: dict[str, ReplyError] = {}
        for queue, count, end in zip(queues, counts, accumulate(counts), strict=True):
            failure = failure_of(replies[end - count : end])
            if failure is not None:
                failures[queue] = failure
        if failures:
            error = reply_error(str(next(iter(failures.values()))))
            raise type(error)(partly(queues, failures, error))
        return len(queues)

    def _commands(
        self,
        destination: Destination,
        queues: Sequence[str],
        template: EnvelopeTemplate,
        deliveries: Sequence[Delivery],
    ) -> list[bytes]:
        assert isinstance(destination, ClusterDestination)
        tags, stamp = self._tags, self._stamp(destination, deliveries[0])
        if destination.topics:
            envelopes = [template.encode(each.body, tags.next(), stamp) for each in deliveries]
            return [pack_command(("SPUBLISH", destination.topics[0], envelope)) for envelope in envelopes]
        commands: list[bytes] = []
        for queue, push, trailer in zip(destination.queues, destination.pushes, destination.trailers, strict=True):
            if queue in queues:
                packed = push.pack(template, tags, deliveries, stamp)
                commands += [MULTI, packed, *trailer, EXEC] if trailer else [packed]
        return commands


def partly(queues: Sequence[str], failures: Mapping[str, object], error: Exception) -> str:
    """Return what became of a message that not all of its queues have taken."""
    reached = [queue for queue in queues if queue not in failures]
    return f"{error}; refused for {', '.join(failures)}; taken by {', '.join(reached) or 'none'}"
