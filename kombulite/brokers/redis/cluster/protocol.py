"""The state of one connection to a cluster in the own layout: what differs from that of a single server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kombulite._core import Lease
from kombulite.brokers.redis.claims import Claim, RedisChannel
from kombulite.brokers.redis.cluster.claims import ClusterChannel
from kombulite.brokers.redis.cluster.handover import ClusterHandover, put_back_all, renew_all
from kombulite.brokers.redis.cluster.keys import ClusterKeys
from kombulite.brokers.redis.cluster.publisher import ClusterPublisher
from kombulite.brokers.redis.cluster.receiver import ClusterReceiver
from kombulite.brokers.redis.cluster.together import together
from kombulite.brokers.redis.cluster.topology import ClusterDeadlines, ClusterTopology
from kombulite.brokers.redis.leases import restore_overdue
from kombulite.brokers.redis.maintainer import Chores
from kombulite.brokers.redis.plans import Plan, PostingStream
from kombulite.brokers.redis.protocol import RedisProtocol


class ClusterProtocol(RedisProtocol):
    """The client's half of a connection to a cluster."""

    keys: ClusterKeys
    keys_class = ClusterKeys
    channel_class = ClusterChannel
    handover_class = ClusterHandover
    topology_class = ClusterTopology
    deadlines_class = ClusterDeadlines
    publisher_class = ClusterPublisher
    receiver_class = ClusterReceiver
    handover: ClusterHandover
    publisher: ClusterPublisher
    receiver: ClusterReceiver

    def begin(self, stream: PostingStream, tracked: bool, perform: Callable[[Plan[Any]], object]) -> Plan[None]:
        """Begin on a connection: an earlier one of this process may have published messages in part."""
        yield from super().begin(stream, tracked, perform)
        self.publisher.reached = self.handover.reached
        self.receiver.leave_leases, self.receiver.leave_claims = self._leave_leases, self._leave_claims

    def _lose_claim(self, state: RedisChannel, claim: Claim) -> None:
        state.fetching.remove(claim)
        self._leave_claims([claim])

    def _leave_claims(self, claims: Sequence[Claim]) -> None:
        self.handover.leave_claims([claim for claim in claims if claim.lease])
        self.attend()
        self.bring_back_soon()

    def _leave_leases(self, leases: Sequence[Lease], are_noted: bool) -> None:
        self.handover.leave_leases(leases, are_noted)
        self.bring_back_soon()

    def _put_back(self, leases: Sequence[Lease], are_noted: bool | None = None) -> Plan[None]:
        if are_noted is None:
            are_noted = self.options.ack_emulation
        yield from put_back_all(self.keys, [lease for lease in leases if not lease.is_fanout], are_noted)


class ClusterChores(Chores):
    """What is due when, queue by queue."""

    _keys: ClusterKeys

    def _renew(self) -> Plan[float]:
        leases = [lease for state in list(self._channels.values()) for lease in state.unsettled()]
        if self._options.ack_emulation:
            yield from renew_all(self._keys, [*leases, *self._handover.held_leases])
        return self._options.visibility_timeout / 3

    def _restore(self) -> Plan[float]:
        states = list(self._channels.values())
        queues = {consumer.queue for state in states for consumer in list(state.consumers.values())}
        yield from together(
            {queue: restore_overdue(self._keys.of(queue), self._options, self._queues_of) for queue in queues}
        )
        return self._options.restore_interval
