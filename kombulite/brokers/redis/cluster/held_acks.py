"""Acknowledgements that wait for those of messages that follow: one step for each queue, one packet for each node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kombulite.brokers.redis.claims import Acknowledgement
from kombulite.brokers.redis.cluster.keys import ClusterKeys
from kombulite.brokers.redis.cluster.nodes import Nodes
from kombulite.brokers.redis.cluster.posts import Ack
from kombulite.brokers.redis.held_acks import Groups, HeldAcks
from kombulite.brokers.redis.leases import ACK_REPLIES, pack_acknowledgement
from kombulite.brokers.redis.replies import Posted


class ClusterHeldAcks(HeldAcks):
    """The acks of one connection that wait."""

    min_following = 8  # one that is sent by itself costs more than a single server's
    max_held = 300  # those for a node are about as many as a single server's

    def __init__(self, nodes: Nodes, keys: ClusterKeys, on_hold: Callable[[], bool]) -> None:
        stream: Any = nodes
        super().__init__(stream, lambda leases: b"", on_hold)
        self._nodes = nodes
        self._keys = keys

    def unanswered(self) -> list[Posted]:
        """Return the acks that wait, as commands that may be sent over another connection."""
        return [(on_reply, data, ACK_REPLIES) for _, data, on_reply in self._packed(self._groups())]

    def _send(self, groups: Groups, deadline: float | None) -> None:
        # What a node does not take is sent again by ``Nodes``.
        self._nodes.post_acks(self._packed(groups))
        for _, leases in groups:
            self._note_sent(leases)

    def _packed(self, groups: Groups) -> list[Ack]:
        """Return the acks for each queue of a channel."""
        packed: list[Ack] = []
        for state, leases in groups:
            tags: dict[str, list[str]] = {}
            for lease in leases:
                if not lease.is_fanout:
                    tags.setdefault(lease.queue, []).append(lease.tag)
            for queue, mine in tags.items():
                keys = self._keys.of(queue)
                data = pack_acknowledgement(keys, mine)
                packed.append((keys.slot, data, Acknowledgement(state, data)))
        return packed
