"""Acknowledgements that wait for those of messages that follow: one step for each queue, one packet for each node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kombulite.brokers.redis.claims import RedisChannel
from kombulite.brokers.redis.cluster.keys import ClusterKeys
from kombulite.brokers.redis.cluster.nodes import Nodes
from kombulite.brokers.redis.held_acks import Groups, HeldAcks
from kombulite.brokers.redis.leases import ACK_REPLIES, pack_acknowledgement
from kombulite.brokers.redis.replies import Posted


class ClusterHeldAcks(HeldAcks):
    """The acks of one connection that wait."""

    max_held = 300  # those for a node are about as many as a single server's

    def __init__(self, nodes: Nodes, keys: ClusterKeys, on_hold: Callable[[], bool]) -> None:
        stream: Any = nodes
        super().__init__(stream, lambda leases: b"", on_hold)
        self._nodes = nodes
        self._keys = keys

    def unanswered(self) -> list[Posted]:
        """Return the acks that wait, as commands that may be sent over another connection."""
        return [(state.on_settled, data, ACK_REPLIES) for state, _, data in self._packed(self._groups())]

    def _send(self, groups: Groups, deadline: float | None) -> None:
        # What a node does not take is sent again by ``Nodes``.
        self._nodes.post_acks([(slot, data, state.on_settled) for state, slot, data in self._packed(groups)])
        for _, leases in groups:
            self._note_sent(leases)

    def _packed(self, groups: Groups) -> list[tuple[RedisChannel, int, bytes]]:
        """Return (channel, slot, commands) for each queue of a channel."""
        packed = []
        for state, leases in groups:
            tags: dict[str, list[str]] = {}
            for lease in leases:
                if not lease.is_fanout:
                    tags.setdefault(lease.queue, []).append(lease.tag)
            for queue, mine in tags.items():
                keys = self._keys.of(queue)
                packed.append((state, keys.slot, pack_acknowledgement(keys, mine)))
        return packed
