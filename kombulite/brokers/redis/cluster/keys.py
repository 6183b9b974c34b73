"""Names in a cluster, where keys that are used in one step have to be in one slot.

Own layout: each queue and each exchange has a namespace of its own, ``{name}:``, and in it the keys of a single server.
Whatever stands in one namespace is in one slot. What belongs to no queue and no exchange is in ``{_kombulite}:``.
"""

from __future__ import annotations

from kombulite.brokers.redis.cluster.slots import slot_of
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.options import Options

#: Namespaces that are remembered.
MAX_REMEMBERED = 10_000
#: The namespace of what belongs to no queue and no exchange.
REGISTRY = "_kombulite"


def tag_of(name: str) -> str:
    """Return the hash tag of a queue or an exchange: any name but one that is empty or has the end of a tag in it."""
    return "{" + name.replace("%", "%25").replace("}", "%7D") + "}:"


class Namespace(Keys):
    """The keys of one queue or exchange."""

    def __init__(self, options: Options, database: int, name: str) -> None:
        prefix = options.global_keyprefix + tag_of(name)
        super().__init__(options._replace(global_keyprefix=prefix), database)
        self.slot = slot_of(prefix)
        self._name = name
        self.own_lists = super().lists(name)
        self.own_lease_ending = super().lease_ending(name)
        #: The bindings of a queue: members are ``[exchange, member of its binding set]``.
        self.bound = f"{self.prefix}_kombulite.bound"

    def lists(self, queue: str) -> tuple[str, ...]:
        """Return the lists of a queue, in the order of service."""
        return self.own_lists if queue == self._name else super().lists(queue)

    def lease_ending(self, queue: str) -> str:
        """Return how the lease of a message from that queue ends."""
        return self.own_lease_ending if queue == self._name else super().lease_ending(queue)


class Namespaces(dict[str, Namespace]):
    """The namespaces that were asked for lately, by their names: each is made when it is first asked for."""

    def __init__(self, options: Options, database: int) -> None:
        super().__init__()
        self._options = options
        self._database = database

    def __missing__(self, name: str) -> Namespace:
        if len(self) >= MAX_REMEMBERED:
            self.clear()
        found = self[name] = Namespace(self._options, self._database, name)
        return found


class ClusterKeys(Keys):
    """All names of a cluster in the own layout."""

    def __init__(self, options: Options, database: int) -> None:
        registry = Namespace(options, database, REGISTRY)
        super().__init__(options, database)
        self.namespaces = Namespaces(options, database)  #: by the names of queues and exchanges
        self.exchanges = registry.exchanges
        self.deadlines = registry.deadlines
        self.own_deadlines = registry.own_deadlines

    def of(self, name: str) -> Namespace:
        """Return the keys of a queue or an exchange."""
        return self.namespaces[name]

    # --- queues

    def lists(self, queue: str) -> tuple[str, ...]:
        """Return the lists of a queue, in the order of service."""
        return self.of(queue).lists(queue)

    def list_for(self, queue: str, priority: object) -> str:
        """Return the list for messages of that priority."""
        return self.of(queue).list_for(queue, priority)

    def lease_ending(self, queue: str) -> str:
        """Return how the lease of a message from that queue ends."""
        return self.of(queue).lease_ending(queue)

    def record(self, queue: str) -> str:
        """Return the key that says how a queue was declared."""
        return self.of(queue).record(queue)

    def dead_letters(self, queue: str) -> str:
        """Return the list for elements of a queue's lists that are no messages."""
        return self.of(queue).dead_letters(queue)

    # --- bindings

    def bindings(self, exchange: str) -> str:
        """Return the set of an exchange's bindings."""
        return self.of(exchange).bindings(exchange)

    def permanent_bindings(self, exchange: str) -> str:
        """Return the set of the bindings of queues that do not expire."""
        return self.of(exchange).permanent_bindings(exchange)

    # --- fanout

    def topic(self, exchange: str, routing_key: str) -> str:
        """Return the sharded channel of a fanout exchange: without patterns, so consumers look at routing keys."""
        return self.of(exchange).topic(exchange, "")
