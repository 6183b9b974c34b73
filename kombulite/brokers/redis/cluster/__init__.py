"""Redis Cluster and Valkey Cluster. docs/redis-cluster.md says which key is where, and what is promised.

    Transport ── Nodes (commands) ── one Stream for each node ──┐
        │                                                       ├── Cluster: addresses, slots
        └─────── ListeningNodes ──── one Stream for each node ──┘   with queues that are consumed

Two layouts: with ``hash_tag``, or with a tag in ``global_keyprefix``, all keys are in one slot and those of a single
server, and so are the plans. Otherwise each queue and each exchange has a slot of its own (``ClusterProtocol``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar
from urllib.parse import urlsplit

from kombulite import exceptions
from kombulite.brokers.base import Settings
from kombulite.brokers.base import Transport as BaseTransport
from kombulite.brokers.redis import Transport as SingleServerTransport
from kombulite.brokers.redis.cluster.held_acks import ClusterHeldAcks
from kombulite.brokers.redis.cluster.keys import ClusterKeys
from kombulite.brokers.redis.cluster.known import Cluster
from kombulite.brokers.redis.cluster.listening import ListeningNodes
from kombulite.brokers.redis.cluster.nodes import Nodes
from kombulite.brokers.redis.cluster.protocol import ClusterChores, ClusterProtocol
from kombulite.brokers.redis.cluster.receiver import ClusterReceiver
from kombulite.brokers.redis.cluster.slots import Address, slot_of
from kombulite.brokers.redis.cluster.waiter import ClusterWaiter
from kombulite.brokers.redis.connector import has_one_slot, hides_tags
from kombulite.brokers.redis.held_acks import HeldAcks
from kombulite.brokers.redis.leases import logger
from kombulite.brokers.redis.maintainer import Chores, LeaseMaintainer
from kombulite.brokers.redis.options import Options
from kombulite.brokers.redis.protocol import RedisProtocol
from kombulite.brokers.redis.stream import Stream

__all__ = ["Transport"]

DEFAULT_PORT = 6379
#: Seconds that chores wait for a slot to be served: what failed is due again a second later.
CHORE_PATIENCE = 0.25


class ChoreNodes:
    """Opens the connections of a ``LeaseMaintainer``, as a ``Connector`` does for a single server.

    ``meanwhile()``: what its thread does while a chore waits for a node.
    """

    def __init__(self, cluster: Cluster, lease_time: float, meanwhile: Callable[[], object]) -> None:
        self._cluster = cluster
        self._lease_time = lease_time
        self._meanwhile = meanwhile

    def open(self, on_push: Any) -> Nodes:
        """Return connections to all nodes, none of which is open yet."""
        nodes = Nodes(self._cluster, _ignore, _ignore, _ignore, meanwhile=self._meanwhile)
        # A silent node keeps the leases of the others from being renewed no longer than that.
        nodes.cap_timeout(min(self._cluster.timeout, self._lease_time / 6))
        nodes.patience = CHORE_PATIENCE
        return nodes

    def reopen(self, stream: Any) -> None:
        """Do nothing: ``Nodes`` opens its connections anew."""


class Transport(SingleServerTransport):
    """A connection to a cluster. May be shared between threads, of which one at a time receives.

    Raises ValueError for settings that cannot be.
    """

    driver_type = "rediscluster"
    driver_name = "rediscluster"
    async_transport: ClassVar[str | None] = None  # a thread runs it for an event loop

    _stream: Any
    _streams: Any
    _waiter: Any

    def __init__(self, settings: Settings) -> None:
        BaseTransport.__init__(self, settings)
        options = Options.of(settings.options)
        if options.hash_tag and not has_one_slot(options._replace(global_keyprefix="")):
            raise ValueError(
                f"hash_tag has braces with something in them, as '{{kombulite}}', not {options.hash_tag!r:.80}"
            )
        if hides_tags(options):
            raise ValueError(
                f"global_keyprefix must not begin its braces with empty ones, got {options.global_keyprefix!r:.80}: "
                "a cluster would spread the keys of a queue"
            )
        self._waiter = None
        self._maintainer: LeaseMaintainer | None = None
        self._acks: Any = None
        self._pid = os.getpid()
        self._replicas = options.wait_replicas
        self._is_compatible = has_one_slot(options)
        self._cluster = cluster = Cluster(settings, options, seeds_of(settings))
        identity = frozenset(cluster.seeds), settings.virtual_host, options.hash_tag, options.global_keyprefix
        protocol = RedisProtocol if self._is_compatible else ClusterProtocol
        self._protocol = protocol(settings, options, identity, self._wake, self._keep)
        self._channels = self._protocol.channels
        self._slot = slot_of(self._protocol.keys.prefix)  # of all keys, in the tagged layout
        self._stream = Nodes(cluster, self._on_push, self._greet, self._forget, self._is_compatible)
        self._streams = [self._stream]
        self._tracked = True
        cluster.on_moved.append(self._on_moved)

    # --- the connection

    def _connect(self) -> None:
        protocol, nodes = self._protocol, self._stream
        nodes.connect()
        nodes.perform(protocol.begin(nodes, self._tracked, nodes.perform), self.settings.connect_timeout)
        if not protocol.options.ack_emulation:
            self._acks = None
        elif isinstance(protocol, ClusterProtocol):
            self._acks = ClusterHeldAcks(nodes, protocol.keys, self._flush_soon)
        else:
            self._acks = HeldAcks(nodes, protocol.receiver.acknowledgement, self._flush_soon)
        self._waiter = ClusterWaiter(nodes, protocol.receiver, protocol.topology.router, self._channels)
        self.poll_ready = self._waiter.poll_ready

    def _greet(self, stream: Stream) -> None:
        """Make a connection for commands ready."""
        if stream.protocol != 3:
            raise exceptions.NotAllowed("a Redis Cluster is used over RESP3, which this server or its options refuse")
        tracked = stream.perform(self._protocol.greet(3), self.settings.connect_timeout)
        self._tracked = self._tracked and tracked
        if self._waiter is not None:
            topology = self._protocol.topology
            topology.router.renewed(self._tracked)
            topology.router.was_emptied |= topology.is_doubtful
            self._waiter.add(stream)
            self._wake()

    def _forget(self, stream: Stream) -> None:
        """Wait no more for a connection that was closed or lost."""
        if self._waiter is not None:
            self._waiter.forget(stream)
            owners, address = self._cluster.slots.owners, stream.address
            self._protocol.topology.router.discard_some(lambda key: owners[slot_of(key)] == address)
            # The node may start again without what it had: that is declared again as soon as it is reached.
            self._protocol.topology.is_doubtful = True

    def _on_moved(self, slots: set[int]) -> None:
        """Slots have another master: what its nodes were to say of them, the old one will not."""
        self._protocol.topology.router.discard_some(lambda key: slot_of(key) in slots)
        if self._waiter is not None:
            self._protocol.receiver.look_anew(lambda key: slot_of(key) in slots)
            self._wake()

    # --- publishing

    def _take_news(self, exchange: str, timeout: float | None) -> None:
        # Its bindings' node alone tells of them: to look at all connections would cost a system call each.
        keys = self._protocol.keys
        self._stream.poll_at(keys.namespaces[exchange].slot if isinstance(keys, ClusterKeys) else self._slot, timeout)

    # --- consuming

    def _listen(self) -> None:
        """Have connections that listen, from the first consumer on."""
        receiver, waiter = self._protocol.receiver, self._waiter
        if receiver.listener is None and waiter is not None:
            on_message = receiver.on_message if isinstance(receiver, ClusterReceiver) else _ignore
            listening = ListeningNodes(
                self._cluster,
                receiver.on_push,
                on_message,
                self._track_node,
                self._forget_listener,
                self._is_compatible,
            )
            waiter.listening = receiver.listener = listening
            receiver.watch_later(listening)
            self._streams.append(listening)

    def close(self) -> None:
        """Close the connection, without a wait for nodes that cannot be reached."""
        self._stream.patience = CHORE_PATIENCE
        if self.connected and self._pid == os.getpid():
            # An ack that a node refuses is sent on by this connection, or by the next one, if there is one.
            with suppress(exceptions.ConnectionError, OSError):
                self._stream.linger(CHORE_PATIENCE)
        super().close()

    def _check_rights(self, queue: str, no_ack: bool) -> None:
        # A queue whose node cannot be reached keeps no other from being consumed: its rights are known later.
        plan = self._protocol.check_rights(queue, no_ack)
        try:
            self._stream.perform(plan, patience=CHORE_PATIENCE)
        except (exceptions.RecoverableConnectionError, OSError) as error:
            logger.warning("Queue %r is not served yet, its consumer waits for that: %s", queue, error)

    def _wait_in_server(self) -> None:
        """Do nothing: where a node does not tell of changes, its queues are looked at now and then."""

    def _track_node(self, stream: Stream) -> None:
        """Have a node tell of changes, if it does."""
        receiver = self._protocol.receiver
        stream.perform(receiver.watch_over())
        if self._waiter is not None:
            self._waiter.add(stream)

    def _forget_listener(self, stream: Stream) -> None:
        """Have other connections tell what one did that listened, and was closed or is opened anew."""
        waiter, receiver = self._waiter, self._protocol.receiver
        if waiter is None:
            return
        waiter.forget(stream)
        listening = receiver.listener
        assert isinstance(listening, ListeningNodes)
        listening.subscribe_again(stream)
        owners, address = self._cluster.slots.owners, stream.address
        receiver.look_anew(lambda key: owners[slot_of(key)] == address)
        if self._is_compatible:
            receiver.look_everywhere()
            listening.restore = receiver.subscriptions.renew

    def _keep(self, queue: str | None) -> None:
        protocol = self._protocol
        if self._maintainer is None:
            opener: Any = ChoreNodes(self._cluster, protocol.options.visibility_timeout, self._flush_meanwhile)
            chores = Chores if self._is_compatible else ClusterChores
            self._maintainer = maintainer = LeaseMaintainer(protocol, opener, self._stream, self._streams, chores)
            try:
                maintainer.start()
            except RuntimeError:  # no thread can be started: the next consumer tries again
                self._maintainer = None
                raise
            protocol.bring_back_soon = maintainer.bring_back_now
        elif queue is not None and protocol.topology.declared.ends(queue):
            self._maintainer.extend_now()

    def _flush_meanwhile(self) -> None:
        """Send the acks that wait: the thread that is to do so waits for a node."""
        if self._acks is not None:
            with suppress(exceptions.ConnectionError, OSError):  # the next connection sends them
                self._acks.flush_if_free()

    # --- what administers it

    def nodes(self) -> Mapping[str, str]:
        """Return the masters and their slots: ``{"host:port": "slots 0-5460"}``."""
        found: dict[str, list[str]] = {}
        for (host, port), first, last in self._cluster.slots.ranges():
            found.setdefault(f"{host}:{port}", []).append(f"{first}-{last}" if first < last else str(first))
        return {node: f"slots {', '.join(ranges)}" for node, ranges in found.items()}

    def place_of(self, queue: str) -> str | None:
        """Return the slot of a queue, and the node that has it."""
        slot = slot_of(self._protocol.keys.lists(queue)[0])
        owner = self._cluster.slots.owners[slot]
        return f"slot {slot}, " + ("no node" if owner is None else f"{owner[0]}:{owner[1]}")


def seeds_of(settings: Settings) -> Sequence[Address]:
    """Return the nodes that are asked first: that of the URL, and those of all others."""
    first = settings.hostname or "localhost", settings.port or DEFAULT_PORT
    others = [urlsplit(url) for url in settings.alternates if "://" in url]
    return list(dict.fromkeys([first, *((part.hostname or "localhost", part.port or DEFAULT_PORT) for part in others)]))


def _ignore(*arguments: Any) -> None:
    """Do nothing with a push, or with a connection that is opened or closed."""
