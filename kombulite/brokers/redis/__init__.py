"""Redis, on kombu's keys and envelopes: a kombulite process and a kombu process share a database, in both directions.

A transport has two connections. One carries commands and their replies; the server tells on it which binding sets have
changed (client-side caching). The other, made for the first consumer, only listens: it carries fanout messages, and
the news that something was put into a list that was found empty. docs/redis.md says what is promised.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import cycle
from operator import itemgetter
from time import monotonic, time
from typing import Any, NamedTuple

from hiredis import ReplyError

from kombulite import exceptions
from kombulite._core import Delivery, pack_command
from kombulite.brokers.base import (
    Cancelled,
    Capabilities,
    Event,
    ExchangeSpec,
    Outcome,
    QueueInfo,
    QueueSpec,
    Settings,
)
from kombulite.brokers.base import Transport as BaseTransport
from kombulite.brokers.redis.claims import Claim, Consumer, RedisChannel
from kombulite.brokers.redis.connector import Connector
from kombulite.brokers.redis.deadlines import Deadlines
from kombulite.brokers.redis.errors import connection_lost, get_redis_error_classes
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.leases import Lease, put_back, put_back_tags
from kombulite.brokers.redis.maintainer import LeaseMaintainer
from kombulite.brokers.redis.options import Options, OrderStrategy, database_of
from kombulite.brokers.redis.publisher import Publisher
from kombulite.brokers.redis.receiver import Receiver, consumers_of
from kombulite.brokers.redis.stream import OnReply, Posted, Stream
from kombulite.brokers.redis.topology import Topology
from kombulite.utils.uuid import uuid

__all__ = ["Transport", "get_redis_error_classes"]

MAX_CHANNELS = 65535
CLOSE_TIMEOUT = 5.0  # seconds for a reply while the connection is closed
REQUEUE = Outcome.REQUEUE  # as a global: looking the member up costs as much as the call


class Abandoned(NamedTuple):
    """What a connection that broke leaves to the next: leases, messages that it had taken ahead for good, the tags of
    what it may have claimed, and acks and rejects without an answer."""

    leases: list[Lease]
    taken: list[Lease]
    tags: list[str]
    settled: list[Posted]


#: By database.
_abandoned: dict[tuple[Any, ...], list[Abandoned]] = {}


class Transport(BaseTransport):
    """A connection to a Redis database. May be shared between threads, of which one at a time receives.

    Raises ValueError for settings that cannot be.
    """

    driver_type = "redis"
    driver_name = "redis"
    capabilities = Capabilities(
        exchange_types=frozenset(["direct", "topic", "fanout"]),
        asynchronous=True,
        keeps_durable=False,
        deletes_unused=False,
    )

    _stream: Stream
    _publisher: Publisher
    _topology: Topology

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._options = options = Options.of(settings.options)
        self._connector = Connector(settings, options)
        self._keys = Keys(options, database_of(settings.virtual_host))
        self._order = OrderStrategy(options.queue_order_strategy)
        self._streams: list[Stream] = []
        self._channels: dict[int, RedisChannel] = {}
        # A number comes again only after all others: what is still under way for a closed channel finds nobody.
        self._numbers = cycle(range(1, MAX_CHANNELS + 1))
        self._receiver: Receiver | None = None
        self._maintainer: LeaseMaintainer | None = None
        self._clock = 0.0  # the server's time, less our monotonic one
        self._pid = os.getpid()

    # --- the connection

    def connect(self) -> None:
        try:
            self._connect()
        except exceptions.ChannelError as error:
            self.collect()
            raise exceptions.NotAllowed(str(error)) from error
        except BaseException:
            self.collect()
            raise

    def _connect(self) -> None:
        stream = self._stream = self._open(self._on_push)
        tracked = self._track()
        options, keys = self._options, self._keys
        topology = self._topology = Topology(
            stream,
            keys,
            tracked,
            options.health_check_interval,
            self.settings.virtual_host,
            Deadlines(keys, self._now),
        )
        waiting = _abandoned.get(self._connector.identity, [])
        for each in list(waiting):  # each is forgotten when it is back
            if each.settled:
                commands = [again or b"" for _, again, _ in each.settled]
                stream.exchange(commands, sum(replies for _, _, replies in each.settled))
            put_back(stream, keys, each.leases, True)
            put_back(stream, keys, each.taken, False)
            put_back_tags(stream, keys, each.tags)
            with suppress(ValueError):  # another thread connects at the same time, and was faster: no harm
                waiting.remove(each)
        self._publisher = Publisher(stream, keys, options, topology.router, topology.limits, self._now)
        self._receiver = Receiver(stream, self._open, keys, options, self._channels, topology, self._now)

    def _track(self) -> bool:
        """Have the server tell of changes to binding sets, and its time; whether it does tell of them."""
        stream, timeout = self._stream, self.settings.connect_timeout
        tracked = False
        if stream.protocol == 3:
            track = pack_command(("CLIENT", "TRACKING", "ON", "OPTIN"))
            tracked = not isinstance(stream.exchange([track], 1, timeout)[0], ReplyError)
        try:
            (reply,) = stream.exchange([pack_command(("TIME",))], 1, timeout)
            # A user without the right to TIME goes by the clock of this machine.
            seconds = time() if isinstance(reply, ReplyError) else int(reply[0]) + int(reply[1]) / 1e6
            self._clock = seconds - monotonic()
        except (TypeError, ValueError, LookupError) as error:
            raise connection_lost(f"a server that tells no time: {error}") from error
        return tracked

    def _open(self, on_push: OnReply) -> Stream:
        stream = self._connector.open(on_push)
        self._streams.append(stream)
        stream.renew = self._renew
        return stream

    def _renew(self, stream: Stream) -> None:
        """Open a connection anew that the server closed because it was idle. Raises what keeps it from that."""
        self._connector.reopen(stream)
        if stream is self._stream:
            self._topology.router.renewed(self._track())
            self._topology.redeclare()  # the server may have started again without what it had
        if self._receiver is not None:
            self._receiver.renewed(stream)

    def _on_push(self, message: list[Any]) -> None:
        if message[:1] == [b"invalidate"] and len(message) == 2:
            self._topology.router.forget(message[1])

    def _now(self) -> float:
        return self._clock + monotonic()

    def close(self) -> None:
        try:
            if self.connected and self._pid == os.getpid():
                for stream in self._streams:
                    stream.cap_timeout(CLOSE_TIMEOUT)
                for number in list(self._channels):
                    self.close_channel(number)
                for queue in self._topology.exclusive_queues():
                    self._topology.delete_queue(queue, False)
        finally:
            self.collect()

    def collect(self) -> None:
        if self._pid == os.getpid():
            if self._maintainer is not None:
                self._maintainer.stop()
            self._abandon()
        self._channels.clear()
        for stream in self._streams:
            stream.drop()
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.close()

    def _abandon(self) -> None:
        """Leave what the server has noted for us to the next connection of this process."""
        states = list(self._channels.values())
        claim_queues = [claims for state in states for claims in state.claim_queues]
        claims = [claims.claiming for claims in claim_queues if claims.claiming is not None]
        is_noted = self._options.ack_emulation
        abandoned = Abandoned(
            [lease for state in states for lease in state.unsettled()] if is_noted else [],
            [lease for claims in claim_queues if not claims.lease for lease in claims.ready],
            [tag for claim in claims for tag in claim.possible_tags()] if is_noted else [],
            self._streams[0].unanswered if self._streams and is_noted else [],
        )
        if any(abandoned):
            _abandoned.setdefault(self._connector.identity, []).append(abandoned)

    @property
    def connected(self) -> bool:
        return self._receiver is not None and all(stream.is_open for stream in self._streams)

    @property
    def is_suspect(self) -> bool:
        return any(stream.is_suspect for stream in list(self._streams))

    def driver_version(self) -> str:
        return version("redis")

    def fileno(self) -> int | None:
        return None if self._receiver is None else self._receiver.fileno()

    @property
    def look_interval(self) -> float | None:
        return None if self._receiver is None else self._receiver.look_interval

    # --- channels

    def open_channel(self, above: int = 0) -> int:  # our tags are no numbers
        if not self.connected:
            raise connection_lost("connection already closed")
        if len(self._channels) >= MAX_CHANNELS:
            raise exceptions.ResourceError(f"all {MAX_CHANNELS} channels of this connection are open")
        number = next(number for number in self._numbers if number not in self._channels)
        self._channels[number] = RedisChannel(number, self._order, self._options.ack_emulation)
        return number

    def close_channel(self, channel: int) -> None:
        state = self._channels.get(channel)
        if state is None:
            return
        with self._stream.lock:
            consumers = list(state.consumers.values())
            for consumer in consumers:
                self._end_consumer(state, consumer)
            self._put_back(state.unsettled())
            del self._channels[channel]
            for queue in {consumer.queue for consumer in consumers}:
                if not any(consumers_of(self._channels, queue)):
                    self._topology.drop_fanout(queue)

    def _channel(self, number: int) -> RedisChannel:
        try:
            state = self._channels[number]
        except KeyError:
            raise connection_lost("channel already closed") from None
        if state.error is not None:
            error, state.error = state.error, None
            raise error
        return state

    def qos(self, channel: int, prefetch_size: int, prefetch_count: int, apply_global: bool) -> None:
        self._channel(channel).prefetch_count = prefetch_count
        self._receiving.wake()

    def flow(self, channel: int, active: bool) -> None:
        self._channel(channel).active = active
        self._receiving.wake()

    # --- exchanges, queues, bindings

    def declare_exchange(self, channel: int, spec: ExchangeSpec, passive: bool) -> None:
        self._channel(channel)
        if passive:
            self._topology.check_exchange(spec.name)
        else:
            self._topology.declare_exchange(spec)
            self._publisher.forget_destinations()

    def delete_exchange(self, channel: int, name: str, if_unused: bool) -> None:
        self._channel(channel)
        self._topology.delete_exchange(name, if_unused)
        self._publisher.forget_destinations()
        self._subscribe()

    def declare_queue(self, channel: int, spec: QueueSpec, passive: bool) -> QueueInfo:
        self._channel(channel)
        info = self._topology.assert_queue(spec.name) if passive else self._topology.declare_queue(spec)
        self._publisher.forget_destinations()
        if spec.exclusive:
            self._keep(info.queue)
        return info._replace(consumer_count=len(list(consumers_of(self._channels, info.queue))))

    def delete_queue(self, channel: int, name: str, if_unused: bool, if_empty: bool) -> int:
        self._channel(channel)
        consumers = list(consumers_of(self._channels, name))
        if if_unused and consumers:
            raise exceptions.PreconditionFailed(f"queue '{name}' is in use")
        if if_empty and consumers and self._topology.assert_queue(name).message_count:
            raise exceptions.PreconditionFailed(f"queue '{name}' is not empty")
        for state, consumer in consumers:  # first: what was claimed for them goes with the queue
            self._end_consumer(state, consumer)
            self._receiving.events.append(Cancelled(state.number, consumer.tag))
        count = self._topology.delete_queue(name, if_empty and not consumers)
        self._publisher.forget_destinations()
        return count

    def purge(self, channel: int, queue: str) -> int:
        self._channel(channel)
        return self._topology.purge(queue)

    def bind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> None:
        self._channel(channel)
        if to_exchange:
            raise exceptions.AMQPNotImplementedError("Redis has no bindings between exchanges")
        self._topology.bind(source, destination, routing_key)
        self._subscribe()

    def unbind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> None:
        self._channel(channel)
        if to_exchange:
            raise exceptions.AMQPNotImplementedError("Redis has no bindings between exchanges")
        self._topology.unbind(source, destination, routing_key)
        self._subscribe()

    # --- publishing

    def publish(
        self,
        channel: int,
        delivery: Delivery,
        mandatory: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        if channel not in self._channels:
            raise connection_lost("channel already closed")
        if not self._publisher.publish(delivery, timeout):
            if mandatory:
                raise exceptions.MessageReturned.no_route()
            self.unroutable += 1

    def publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> list[tuple[int, Exception]]:
        self._channel(channel)
        refused, unroutable = self._publisher.publish_many(deliveries, timeout)
        if mandatory:
            returned = [(index, exceptions.MessageReturned.no_route()) for index in unroutable]
            return sorted([*refused, *returned], key=itemgetter(0))
        self.unroutable += len(unroutable)
        return refused

    # --- consuming

    def consume(
        self,
        channel: int,
        queue: str,
        consumer_tag: str,
        no_ack: bool,
        exclusive: bool,
        arguments: Mapping[str, Any] | None,
    ) -> str:
        state = self._channel(channel)
        consumer_tag = consumer_tag or f"ctag-{uuid()}"
        if consumer_tag in state.consumers:
            raise exceptions.NotAllowed(f"consumer tag '{consumer_tag}' is in use")
        others = [other for _, other in consumers_of(self._channels, queue)]
        if (exclusive and others) or any(other.exclusive for other in others):
            raise exceptions.AccessRefused(f"queue '{queue}' has an exclusive consumer, or consumers already")
        consumer = Consumer(consumer_tag, queue, no_ack, exclusive)
        receiver = self._receiving
        with self._stream.lock:
            if not self.connected:  # the system would give the descriptor of the broken connection to the new one
                raise connection_lost("connection already closed")
            receiver.listen()
            state.consumers[consumer_tag] = consumer
            state.claims_of(consumer).add(consumer)
            self._subscribe()
        self._keep(queue)
        receiver.wake()
        return consumer_tag

    def _keep(self, queue: str | None = None) -> None:
        """See to it that leases are renewed, and that a queue stays that ends without use."""
        if self._maintainer is None:
            self._maintainer = LeaseMaintainer(
                self._connector, self._keys, self._options, self._channels, self._topology, self._streams
            )
            self._maintainer.start()
        elif queue is not None and self._topology.declared.ends(queue):
            self._maintainer.extend_now()

    @property
    def _receiving(self) -> Receiver:
        if self._receiver is None:
            raise connection_lost("connection already closed")
        return self._receiver

    def _subscribe(self) -> None:
        """Subscribe to what the queues that are consumed are bound to."""
        states = list(self._channels.values())
        consumed = {consumer.queue for state in states for consumer in list(state.consumers.values())}
        self._receiving.subscribe({queue: self._topology.fanout_bindings(queue) for queue in consumed})

    def cancel(self, channel: int, consumer_tag: str) -> None:
        state = self._channel(channel)
        consumer = state.consumers.get(consumer_tag)
        if consumer is not None:
            self._end_consumer(state, consumer)

    def _end_consumer(self, state: RedisChannel, consumer: Consumer) -> None:
        with self._stream.lock:
            self._stream.wait_for_replies()  # what is claimed for it shall be here
            claims = state.claims_of(consumer)
            del state.consumers[consumer.tag]
            self._put_back(claims.remove(consumer), claims.lease)
            state.remove_fanout(consumer)
            self._subscribe()
        self._receiving.wake()

    def _put_back(self, leases: Sequence[Lease], are_noted: bool | None = None) -> None:
        if are_noted is None:
            are_noted = self._options.ack_emulation
        put_back(self._stream, self._keys, [lease for lease in leases if not lease.is_fanout], are_noted)

    def get(self, channel: int, queue: str, no_ack: bool) -> Delivery | None:
        state = self._channel(channel)
        lease = self._options.ack_emulation and not no_ack
        lengths = [("LLEN", key) for key in self._keys.lists(queue)]
        while True:
            claim = Claim(self._keys, self._receiving.tags, (queue,), 1, lease)
            reply, *left = claim.run(self._stream, *lengths)
            found = claim.leases(reply)
            if not found:
                return None
            if lease:
                self._keep()
            delivery = self._receiving.hand_over(state, found[0][1][0], no_ack)
            self._topology.refresh_queue(queue)
            if delivery is not None:
                delivery.message_count = sum(left)
                return delivery

    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> None:
        state = self._channel(channel)
        if multiple:
            settled = state.take_up_to(delivery_tag)
        else:
            lease = state.outstanding.pop(delivery_tag, None)
            settled = () if lease is None else (lease,)
        if not settled and (not multiple or delivery_tag):
            raise self._unknown(delivery_tag)
        self._settle(state, settled, outcome)

    def _unknown(self, tag: Any) -> Exception:
        """Return why a delivery tag cannot be settled. Those of other connections have another prefix."""
        if str(tag).startswith("kl") and not str(tag).startswith(self._receiving.tags.prefix):
            return exceptions.RecoverableConnectionError("the message came on a connection that was lost or closed")
        return exceptions.PreconditionFailed(f"unknown delivery tag {tag!r:.80}")

    def settle_many(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome) -> None:
        state = self._channel(channel)
        outstanding = state.outstanding
        for tag in delivery_tags:
            if tag not in outstanding:
                raise self._unknown(tag)
        self._settle(state, [outstanding.pop(tag) for tag in delivery_tags], outcome)

    def _settle(self, state: RedisChannel, settled: Sequence[Lease], outcome: Outcome) -> None:
        receiver = self._receiving
        try:
            if outcome is REQUEUE:
                self._requeue(state, settled)
            else:
                receiver.settle(state, settled)
        except Exception:
            state.outstanding.update((lease.tag, lease) for lease in settled)  # the server does not know
            raise
        receiver.wake()

    def _requeue(self, state: RedisChannel, leases: Sequence[Lease]) -> None:
        self._put_back(leases)
        for lease in reversed(leases):
            if lease.is_fanout:
                state.put_back_fanout(lease)

    def recover(self, channel: int) -> None:
        state = self._channel(channel)
        self._requeue(state, state.take_up_to(0))
        self._receiving.wake()

    def receive(self, timeout: float | None) -> Sequence[Event]:
        return self._receiving.receive(timeout)
