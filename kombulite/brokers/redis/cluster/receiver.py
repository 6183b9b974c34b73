"""Receiving in the own layout: lists are watched on the node of their queue, fanout comes by sharded channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from itertools import groupby
from math import inf
from time import monotonic
from typing import Any

from kombulite._core import Lease, MalformedEnvelope, decode_envelope, pack_command
from kombulite.brokers.redis.claims import Acknowledgement, Claim, ClaimQueue, RedisChannel
from kombulite.brokers.redis.cluster.claims import ClusterClaimQueue
from kombulite.brokers.redis.cluster.handover import by_queue
from kombulite.brokers.redis.cluster.keys import ClusterKeys
from kombulite.brokers.redis.cluster.listening import ListeningNodes
from kombulite.brokers.redis.cluster.nodes import Nodes
from kombulite.brokers.redis.leases import ACK_REPLIES, logger, pack_acknowledgement
from kombulite.brokers.redis.receiver import Receiver
from kombulite.brokers.redis.scripts import CLAIM
from kombulite.utils.json_codec import codec


class ClusterReceiver(Receiver):
    """The consuming half of a connection to a cluster."""

    _keys: ClusterKeys
    _stream: Nodes

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._bound: Mapping[str, Iterable[tuple[str, str]]] = {}
        #: Has put back what claims may have taken whose reply is lost.
        self.leave_claims: Callable[[Sequence[Claim]], object] = _forget
        #: Has messages put back that came too late for their consumer: ``leave_leases(leases, are_noted)``.
        self.leave_leases: Callable[[Sequence[Lease], bool], object] = _ignore

    # --- fanout

    def subscribe(self, bindings: Mapping[str, Iterable[tuple[str, str]]]) -> None:
        """Subscribe to what these queues are bound to, as (fanout exchange, routing key)."""
        self._bound = {queue: list(bound) for queue, bound in bindings.items()}
        if isinstance(self.listener, ListeningNodes):
            for exchange in {exchange for bound in self._bound.values() for exchange, _ in bound}:
                self.listener.subscribe(self._keys.topic(exchange, ""))

    def on_message(self, channel: bytes, envelope: bytes) -> None:
        """Take what was published to a sharded channel."""
        try:
            delivery = decode_envelope(codec, envelope)
        except MalformedEnvelope as error:
            logger.error("What was published to %r is no message: %s", channel, error)
            return
        for queue, bound in list(self._bound.items()):
            if any(self._takes(delivery, exchange, key) for exchange, key in bound):
                self.deliver_fanout(queue, envelope)

    def _takes(self, delivery: Any, exchange: str, binding_key: str) -> bool:
        if delivery.exchange != exchange:
            return False
        if not binding_key or not self._options.fanout_patterns:
            return True
        return bool(delivery.routing_key) and fnmatchcase(delivery.routing_key, binding_key.replace("#", "*"))

    # --- lists

    def _watch_lists(self, claims: ClaimQueue, queues: Iterable[str], is_look: bool = False) -> None:
        if self.watcher is None or not self.listens:
            return
        for queue in queues:
            missing = self._unwatched(queue)
            if missing:
                self._watched.update(dict.fromkeys(missing, queue))
                looked = partial(self._on_watched, claims, (queue,), is_look)
                self.watcher.post(pack_command(("EXISTS", *missing)), 1, looked)

    def _post_checks(self) -> None:
        if self.watcher is None:
            return
        for _, lists in groupby(sorted(self._watched.items(), key=lambda item: item[1]), lambda item: item[1]):
            self.watcher.post(pack_command(("EXISTS", *(key for key, _ in lists))), 1, self._on_checked)

    # --- claims and acknowledgements

    def _on_claimed(self, state: RedisChannel, claims: ClaimQueue, reply: Any) -> None:
        assert isinstance(claims, ClusterClaimQueue)
        super()._on_claimed(state, claims, reply)
        if claims.lost:
            lost, claims.lost = claims.lost, []
            self.leave_claims(lost)
        if claims.strays:
            strays, claims.strays = claims.strays, []
            self.leave_leases(strays, claims.lease)
        failure, claims.failure = claims.failure, None
        if failure is not None:
            state.error = CLAIM.error(failure)

    def _claim_queues(self) -> list[ClusterClaimQueue]:
        states: list[Any] = list(self._channels.values())
        return [each for state in states for each in state.claim_queues if each.resting or each.claiming is not None]

    def look_if_due(self) -> None:
        """Ask queues once more: all where that is due, and those whose slots were not served a moment ago."""
        super().look_if_due()
        for claims in self._claim_queues():
            with self._stream.lock:
                claims.set_aside()
            claims.wake_rested(monotonic())

    @property
    def next_look(self) -> float | None:
        """Seconds until ``look_if_due`` has something to do, None for never."""
        waiting = self._claim_queues()
        dues = [rest.due - monotonic() for claims in waiting for rest in claims.resting.values()]
        dues += [claims.claiming.late_at - monotonic() for claims in waiting if claims.claiming is not None]
        look = super().next_look
        left = min(dues if look is None else [look, *dues], default=None)
        return None if left is None or left == inf else max(left, 0.0)

    def acknowledge(self, state: RedisChannel, leases: Sequence[Lease]) -> None:
        """Remove messages from their nodes' notes, at once; an error shows at the channel's next operation."""
        if not self._options.ack_emulation:
            return
        more = bool(state.leased.ready)
        if len(leases) == 1 and not leases[0].is_fanout:  # the common case
            self._acknowledge(state, leases[0].queue, (leases[0].tag,), more)
            return
        for queue, mine in by_queue(lease for lease in leases if not lease.is_fanout):
            self._acknowledge(state, queue, [lease.tag for lease in mine], more)

    def _acknowledge(self, state: RedisChannel, queue: str, tags: Sequence[str], more: bool) -> None:
        keys = self._keys.of(queue)
        data = pack_acknowledgement(keys, tags)
        self._stream.post_at(keys.slot, data, ACK_REPLIES, Acknowledgement(state, data), more, True)


def _forget(claims: Sequence[Claim]) -> None:
    """Do nothing, before there is a connection."""


def _ignore(leases: Sequence[Lease], are_noted: bool) -> None:
    """Do nothing, before there is a connection."""
