"""What is known of a cluster: where its nodes are, and which slots they have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

from redis.connection import AbstractConnection

from kombulite import exceptions
from kombulite.brokers.base import Settings
from kombulite.brokers.redis.cluster.slots import MAX_NODES, Address, SlotMap
from kombulite.brokers.redis.cluster.stream import NodeStream
from kombulite.brokers.redis.connector import Connector, is_in_cluster
from kombulite.brokers.redis.options import Options
from kombulite.brokers.redis.replies import OnReply

#: Seconds between two looks at the slots at least: while they change, and where looks find nothing new.
MIN_REFRESH_INTERVAL, MAX_REFRESH_INTERVAL = 0.02, 0.1
#: Seconds for a cluster without a master for a slot to choose one, where nothing else is configured.
DEFAULT_TIMEOUT = 30.0


class NodeConnector(Connector):
    """Opens streams to one node. Raises NotAllowed for a server that is not in cluster mode."""

    stream_class = NodeStream

    def open(self, on_push: OnReply) -> NodeStream:
        """Open a connection. Raises ConnectionError or OSError."""
        stream = super().open(on_push)
        assert isinstance(stream, NodeStream)
        stream.address = self.address
        return stream

    def check_mode(self, connection: AbstractConnection) -> None:
        """Refuse a server alone."""
        if not is_in_cluster(connection):
            raise exceptions.NotAllowed(
                f"the server at {self.address[0]}:{self.address[1]} is not in cluster mode: use redis:// or rediss://"
            )


#: The nodes that were known last, by those that are asked first: the latter may all be gone when it is needed.
_known: dict[tuple[Address, ...], tuple[Address, ...]] = {}
#: Clusters whose nodes are kept there, those that were read last.
MAX_KNOWN = 1000


def remember(seeds: tuple[Address, ...], nodes: tuple[Address, ...]) -> None:
    """Keep the nodes of a cluster for connections that begin later."""
    # Without a lock, which a forked child might find taken: each of these is one step.
    _known.pop(seeds, None)
    _known[seeds] = nodes
    for others in list(_known)[:-MAX_KNOWN]:
        _known.pop(others, None)


class Cluster:
    """What is known of a cluster: the addresses of its nodes, and their slots. All connections of a transport share it.

    ``on_moved(slots)`` is called when slots have another master, from whatever thread found out.
    """

    def __init__(self, settings: Settings, options: Options, seeds: Sequence[Address]) -> None:
        self.slots = SlotMap()
        self.on_moved: list[Callable[[set[int]], object]] = []
        self.is_stale = False  # whether there was news of a change since the slots were read
        self._settings = settings
        self._options = options
        self.seeds = tuple(seeds)
        self._connectors: dict[Address, NodeConnector] = {}
        self._read_at, self._read_interval = 0.0, MIN_REFRESH_INTERVAL
        # What a slot without a master is waited for: until a replica is promoted.
        self.timeout = options.socket_timeout or DEFAULT_TIMEOUT
        self.connect_timeout = options.socket_connect_timeout or settings.connect_timeout or self.timeout
        self.connector(self.seeds[0])  # settings that cannot be shall fail at once

    def connector(self, address: Address) -> NodeConnector:
        """Return what opens connections to a node."""
        found = self._connectors.get(address)
        if found is None:
            if len(self._connectors) >= MAX_NODES:
                self._connectors = {}  # refusals may name any number of nodes that there are not
            settings = self._settings._replace(hostname=address[0], port=address[1])
            found = self._connectors[address] = NodeConnector(settings, self._options)
        return found

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The nodes that may be asked for the slots."""
        return tuple(dict.fromkeys([*self.slots.nodes, *self.seeds, *_known.get(self.seeds, ())]))

    def moved(self, slot: int, address: Address) -> None:
        """Note that a slot has another master."""
        if self.slots.owners[slot] != address:
            self._read_interval = MIN_REFRESH_INTERVAL
            self.slots.owners[slot] = address
            self._tell({slot})
        self.is_stale = True

    def left(self, slot: int) -> None:
        """Note that a slot has left its master, which did not say where it is."""
        self.is_stale = True
        self._tell({slot})

    def read(self, stream: NodeStream, timeout: float) -> None:
        """Ask a node for the slots."""
        self.is_stale, self._read_at = False, monotonic()
        reply = stream.call("CLUSTER", "SLOTS", timeout=min(timeout, self.timeout))
        changed = self.slots.update(reply, stream.address)
        remember(self.seeds, self.slots.nodes)
        addresses = set(self.addresses)
        self._connectors = {address: each for address, each in list(self._connectors.items()) if address in addresses}
        if changed:
            self._read_interval = MIN_REFRESH_INTERVAL
            self._tell(changed)
        else:
            self._read_interval = min(2 * self._read_interval, MAX_REFRESH_INTERVAL)

    @property
    def may_read(self) -> bool:
        """Whether the last look at the slots is some time ago."""
        return monotonic() - self._read_at >= self._read_interval

    def _tell(self, changed: set[int]) -> None:
        for tell in self.on_moved:
            tell(changed)
