"""The state of one connection, and what each verb asks of the server, without I/O.

Theory of operation: a verb is a plan (``plans.py``), or does at once what needs no answer. The transports, one for
threads (``__init__.py``) and one for event loops (``aio/``), have the plans performed by streams of theirs, and ask
the receiver for events.

``RedisProtocol`` is wider than other classes: it has a method for each verb.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import cycle
from operator import itemgetter
from time import monotonic, time
from typing import Any
from weakref import WeakSet

from kombulite import exceptions
from kombulite._core import Delivery, Lease
from kombulite.brokers.base import Cancelled, ExchangeSpec, HeldDeliveries, QueueInfo, QueueSpec, Settings
from kombulite.brokers.redis.claims import Claim, Consumer, RedisChannel, consumers_of
from kombulite.brokers.redis.deadlines import Deadlines
from kombulite.brokers.redis.errors import connection_lost
from kombulite.brokers.redis.handover import Handover, HeldByChannel, handover_of, unmade
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.leases import logger, put_back
from kombulite.brokers.redis.options import Options, OrderStrategy, database_of
from kombulite.brokers.redis.plans import Plan, PostingStream, Wait, is_granted, is_refused, send
from kombulite.brokers.redis.publisher import Publisher
from kombulite.brokers.redis.receiver import Receiver
from kombulite.brokers.redis.replies import Posted
from kombulite.brokers.redis.topology import Topology
from kombulite.utils.uuid import uuid

MAX_CHANNELS = 65535


class RedisProtocol:
    """The client's half of a connection: channels, topology, what is published and received.

    ``identity`` tells the database from others. ``wake()`` is called when there may be something to receive;
    ``keep(queue)`` when there are leases to renew, or a queue that ends unless it is kept in use.
    """

    publisher: Publisher
    receiver: Receiver
    # What a cluster has others of.
    keys_class: type[Keys] = Keys
    channel_class: type[RedisChannel] = RedisChannel
    handover_class: type[Handover] = Handover
    topology_class: type[Topology] = Topology
    deadlines_class: type[Deadlines] = Deadlines
    publisher_class: type[Publisher] = Publisher
    receiver_class: type[Receiver] = Receiver
    #: Has what is left brought back soon.
    bring_back_soon: Callable[[], object] = staticmethod(lambda: None)

    def __init__(
        self,
        settings: Settings,
        options: Options,
        identity: tuple[Any, ...],
        wake: Callable[[], object],
        keep: Callable[[str | None], object],
    ) -> None:
        self.options = options
        self.keys = self.keys_class(options, database_of(settings.virtual_host))
        self.channels: dict[int, RedisChannel] = {}
        self._identity = identity
        self._is_ending = False  # whether the application is closing the connection
        self.handover = handover_of(identity, self.keys, self.handover_class)
        self.held = HeldByChannel(self.handover)
        self._wake = wake
        self._have_kept = keep
        self._noting: WeakSet[Keys] = WeakSet()  # where the user has the right to note leases
        self.attends = False  #: whether it has begun to look after leases, also those that lost connections left
        self._order = OrderStrategy(options.queue_order_strategy)
        # A number comes again only after all others: what is still under way for a closed channel finds none.
        self._numbers = cycle(range(1, MAX_CHANNELS + 1))
        self._clock = 0.0  # the server's time, less our monotonic one
        interval, vhost = options.health_check_interval, settings.virtual_host
        deadlines = self.deadlines_class(self.keys, self.now)
        self.topology = self.topology_class(self.keys, interval, vhost, deadlines)

    # --- the connection

    def greet(self, version: int) -> Plan[bool]:
        """Have the server tell of changes to binding sets, and its time. Returns whether it does tell of them."""
        tracked = False
        if version == 3:
            (reply,) = yield from send(("CLIENT", "TRACKING", "ON", "OPTIN"))
            tracked = is_granted(reply)
        try:
            # Before a transaction is begun: with EXEC renamed it could not be ended, and swallow all that follows.
            reply, executed = yield from send(("TIME",), ("EXEC",))
            self.topology.has_transactions = not is_refused(executed)
            # A user without the right to TIME goes by the clock of this machine.
            seconds = int(reply[0]) + int(reply[1]) / 1e6 if is_granted(reply) else time()
            self._clock = seconds - monotonic()
        except (TypeError, ValueError, LookupError) as error:
            raise connection_lost(f"unexpected reply to TIME: {error}") from error
        return tracked

    def begin(self, stream: PostingStream, tracked: bool, perform: Callable[[Plan[Any]], object]) -> Plan[None]:
        """Begin on a connection, after ``greet``: what an earlier one of this process has left goes back."""
        options, keys = self.options, self.keys
        topology = self.topology
        topology.router.renewed(tracked)
        # The process may be a child of that which made this.
        self.handover = handover_of(self._identity, keys, self.handover_class)
        self.held = HeldByChannel(self.handover)
        try:
            yield from self.handover.begin(self)
        except (exceptions.ChannelError, exceptions.MessageNacked) as error:
            # What cannot be brought back shall not keep the process from all else: it is tried again now and then.
            logger.warning("What an earlier connection has left could not be brought back: %s", error)
        self.publisher = self.publisher_class(keys, options, topology, self.now)
        channels = self.channels
        self.receiver = self.receiver_class(stream, perform, keys, options, channels, topology, self.now)
        if self.handover.is_holding:
            self.attend()

    def _lose_claim(self, state: RedisChannel, claim: Claim) -> None:
        """Note that the reply to a claim is lost, with the connection: that leaves what was taken to others."""

    def _keep(self, queue: str | None) -> None:
        self._have_kept(queue)
        self.attends = True

    def make_again(self, data: bytes) -> None:
        """Have an acknowledgement made again, of packed commands, that the server refuses for the moment."""
        self.handover.leave(unmade(data))
        with suppress(RuntimeError):  # no thread can be started: the next connection makes it
            self.attend()
        self.bring_back_soon()

    def attend(self) -> None:
        """Look after what lost connections have left."""
        self._keep(None)

    def end(self) -> Plan[None]:
        """Close the channels, and delete what is this connection's alone."""
        self._is_ending = True
        failure: Exception | None = None
        for number in list(self.channels):
            try:
                yield from self.close_channel(number)
            except (exceptions.ConnectionError, exceptions.ChannelError, exceptions.MessageNacked, OSError) as error:
                failure = failure or error  # of one node of a cluster, say, or of a list that takes no message
        if failure is not None:
            raise failure
        for queue in self.topology.exclusive_queues():
            yield from self.topology.delete_queue(queue, False)
        yield from self.handover.end(self)

    def renew(self, tracked: bool) -> Plan[None]:
        """Go on with another connection for commands, after ``greet``."""
        self.topology.router.renewed(tracked)
        self.publisher.forget_destinations()
        yield from self.topology.redeclare()  # the server may have started again without what it had

    def now(self) -> float:
        """Return the server's time in seconds."""
        return self._clock + monotonic()

    def abandon(self, unanswered: list[Posted]) -> None:
        """Leave what the server has noted for us to the next connection of this process."""
        are_noted, self.attends = self.options.ack_emulation, False
        self.held.note(self.channels.values())
        self.handover.abandon(self, self.channels.values(), unanswered, are_noted, holds=not self._is_ending)
        self.channels.clear()

    # --- channels

    def open_channel(self) -> int:
        """Open a channel and return its number. Raises ResourceError if none is left."""
        if len(self.channels) >= MAX_CHANNELS:
            raise exceptions.ResourceError(f"all {MAX_CHANNELS} channels of this connection are open")
        number = next(number for number in self._numbers if number not in self.channels)
        state = self.channels[number] = self.channel_class(number, self._order, self.options.ack_emulation)
        state.make_again = self.make_again
        return number

    def inherit(self, number: int, held: HeldDeliveries, before: int) -> None:
        """Let a channel settle what another had whose connection was lost, and in whose place it is."""
        if isinstance(held, HeldByChannel):
            held.bequeath(before, self.channels[number])

    def channel(self, number: int) -> RedisChannel:
        """Return a channel that is open. Raises RecoverableConnectionError, or what an earlier ack ended with."""
        state = self.channels.get(number)
        if state is None:
            raise connection_lost("channel already closed")
        if state.error is not None:
            error, state.error = state.error, None
            raise error
        return state

    def close_channel(self, channel: int) -> Plan[None]:
        """Close a channel: its consumers end, messages not settled go back to their queues."""
        state = self.channels.get(channel)
        if state is None or state.is_closing:
            return
        state.is_closing = True  # from now on nothing is handed over
        consumers = list(state.consumers.values())
        try:
            for consumer in consumers:
                yield from self._end_consumer(state, consumer)
            yield from self._put_back(state.unsettled())
            yield from self._put_back(state.unreturned, False)
        except BaseException:
            state.is_closing = False
            raise
        del self.channels[channel]
        for queue in {consumer.queue for consumer in consumers}:
            if not any(consumers_of(self.channels, queue)):
                yield from self.topology.drop_fanout(queue)

    # --- exchanges, queues, bindings

    def declare_exchange(self, channel: int, spec: ExchangeSpec, passive: bool) -> Plan[None]:
        """Create an exchange, or assert it."""
        self.channel(channel)
        if passive:
            yield from self.topology.check_exchange(spec.name)
        else:
            yield from self.topology.declare_exchange(spec)
            self.publisher.forget_destinations()

    def delete_exchange(self, channel: int, name: str, if_unused: bool) -> Plan[None]:
        """Delete an exchange with its bindings, if there is one."""
        self.channel(channel)
        yield from self.topology.delete_exchange(name, if_unused)
        self.publisher.forget_destinations()
        self._subscribe()

    def declare_queue(self, channel: int, spec: QueueSpec, passive: bool) -> Plan[QueueInfo]:
        """Create a queue, or assert it."""
        self.channel(channel)
        if passive:
            info = yield from self.topology.assert_queue(spec.name)
        else:
            info = yield from self.topology.declare_queue(spec)
        self.publisher.forget_destinations()
        if spec.exclusive:
            self._keep(info.queue)
        return info._replace(consumer_count=len(list(consumers_of(self.channels, info.queue))))

    def delete_queue(self, channel: int, name: str, if_unused: bool, if_empty: bool) -> Plan[int]:
        """Delete a queue, if there is one; returns the messages gone with it."""
        self.channel(channel)
        consumers = list(consumers_of(self.channels, name))
        if if_unused and consumers:
            raise exceptions.PreconditionFailed(f"queue '{name}' is in use")
        if if_empty and consumers and (yield from self.topology.assert_queue(name)).message_count:
            raise exceptions.PreconditionFailed(f"queue '{name}' is not empty")
        for state, consumer in consumers:  # first: what was claimed for them goes with the queue
            yield from self._end_consumer(state, consumer)
            self.receiver.events.append(Cancelled(state.number, consumer.tag))
        count = yield from self.topology.delete_queue(name, if_empty and not consumers)
        self.publisher.forget_destinations()
        return count

    def bind(self, channel: int, source: str, destination: str, routing_key: str, to_exchange: bool) -> Plan[None]:
        """Bind a queue to an exchange."""
        self.channel(channel)
        _check_destination(to_exchange)
        yield from self.topology.bind(source, destination, routing_key)
        self._subscribe()

    def unbind(self, channel: int, source: str, destination: str, routing_key: str, to_exchange: bool) -> Plan[None]:
        """Take a binding away, if there is one."""
        self.channel(channel)
        _check_destination(to_exchange)
        yield from self.topology.unbind(source, destination, routing_key)
        self._subscribe()

    # --- publishing

    def publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool
    ) -> Plan[tuple[list[tuple[int, Exception]], int]]:
        """Publish in order; returns those refused, as (index, exception), and how many went nowhere."""
        self.channel(channel)
        refused, unroutable = yield from self.publisher.publish_many(deliveries)
        if not mandatory:
            return refused, len(unroutable)
        returned = [(index, exceptions.MessageReturned.no_route()) for index in unroutable]
        return sorted([*refused, *returned], key=itemgetter(0)), 0

    # --- consuming

    def check_rights(self, queue: str, no_ack: bool) -> Plan[None]:
        """Claim no message of a queue: what its consumer may not do is known when it starts. Raises AccessRefused."""
        lease, keys = self.options.ack_emulation and not no_ack, self.keys.of(queue)
        yield from Claim(keys, self.receiver.tags, (queue,), 0, lease).run()
        if lease:
            self._noting.add(keys)

    def start_consumer(self, channel: int, queue: str, consumer_tag: str, no_ack: bool, exclusive: bool) -> str:
        """Start a consumer, where there is a connection that listens; returns its tag."""
        state = self.channel(channel)
        if state.is_closing:
            raise connection_lost("channel already closed")
        consumer_tag = consumer_tag or f"ctag-{uuid()}"
        if consumer_tag in state.consumers:
            raise exceptions.NotAllowed(f"consumer tag '{consumer_tag}' is in use")
        others = [other for _, other in consumers_of(self.channels, queue)]
        if (exclusive and others) or any(other.exclusive for other in others):
            raise exceptions.AccessRefused(f"queue '{queue}' has an exclusive consumer, or consumers already")
        consumer = state.consumers[consumer_tag] = Consumer(consumer_tag, queue, no_ack, exclusive)
        state.claims_of(consumer).add(consumer)
        if self.topology.fanout_bindings(queue):
            self._subscribe()
        self._keep(queue)
        self._wake()
        return consumer_tag

    def cancel(self, channel: int, consumer_tag: str) -> Plan[None]:
        """End a consumer, if there is one."""
        state = self.channel(channel)
        consumer = state.consumers.get(consumer_tag)
        if consumer is not None:
            yield from self._end_consumer(state, consumer)

    def _end_consumer(self, state: RedisChannel, consumer: Consumer) -> Plan[None]:
        if state.consumers.get(consumer.tag) is not consumer:
            return  # it is ending already
        claims = state.claims_of(consumer)
        del state.consumers[consumer.tag]
        claims.holds += 1
        try:
            while claims.is_asking(consumer.queue):  # what is claimed for it shall be here
                yield Wait.REPLIES
        finally:
            claims.holds -= 1
        left = claims.remove(consumer)
        state.remove_fanout(consumer)
        if not any(consumers_of(self.channels, consumer.queue)):
            self.receiver.unwatch(consumer.queue)
        if self.topology.fanout_bindings(consumer.queue):
            self._subscribe()
        try:
            yield from self._put_back(left, claims.lease)
        except BaseException:
            if claims.lease:
                state.keep(left)  # the server does not know
            else:
                state.unreturned += left
            raise
        self._wake()

    def _subscribe(self) -> None:
        """Subscribe to what the queues that are consumed are bound to."""
        states = list(self.channels.values())
        consumed = {consumer.queue for state in states for consumer in list(state.consumers.values())}
        self.receiver.subscribe({queue: self.topology.fanout_bindings(queue) for queue in consumed})

    def _put_back(self, leases: Sequence[Lease], are_noted: bool | None = None) -> Plan[None]:
        if are_noted is None:
            are_noted = self.options.ack_emulation
        yield from put_back(self.keys, [lease for lease in leases if not lease.is_fanout], are_noted)

    def get(self, channel: int, queue: str, no_ack: bool) -> Plan[Delivery | None]:
        """Take the next message of a queue."""
        state = self.channel(channel)
        lease = self.options.ack_emulation and not no_ack
        if lease and self.keys.of(queue) not in self._noting:
            yield from self.check_rights(queue, no_ack)
        lengths = [("LLEN", key) for key in self.keys.lists(queue)]
        while True:
            claim = Claim(self.keys.of(queue), self.receiver.tags, (queue,), 1, lease)
            state.fetching.append(claim)  # if the connection is lost meanwhile, what it has taken is left to others
            try:
                reply, *left = yield from claim.run(*lengths)
            except (exceptions.ChannelError, exceptions.MessageNacked):
                state.fetching.remove(claim)
                raise
            except (exceptions.ConnectionError, OSError):
                self._lose_claim(state, claim)
                raise
            try:
                found = claim.leases(reply)
            except (LookupError, TypeError, ValueError) as error:
                self._lose_claim(state, claim)
                raise connection_lost(f"the server sends a reply that makes no sense: {error!r:.80}") from error
            state.fetching.remove(claim)
            if not found:
                return None
            if self.channels.get(channel) is not state or state.is_closing:
                yield from self._put_back(found[0][1], lease)
                raise connection_lost("channel already closed")
            delivery = self.receiver.hand_over(state, found[0][1][0], no_ack)
            if lease:
                self._keep(None)  # if no thread can be started, the message is outstanding, and goes back
            yield from self.topology.refresh_queue(queue)
            if delivery is not None:
                delivery.message_count = sum(length for length in left if isinstance(length, int))
                return delivery

    # --- settling

    def take(self, channel: int, delivery_tag: Any, multiple: bool) -> tuple[RedisChannel, Sequence[Lease]]:
        """Take a delivery, with ``multiple`` all up to it, out of what is outstanding on a channel."""
        state = self.channel(channel)
        if multiple:
            settled = state.take_up_to(delivery_tag)
            if settled or not delivery_tag:
                settled = [*self.handover.take_all(state.origin), *settled]
        else:
            lease = state.outstanding.pop(delivery_tag, None)
            settled = () if lease is None else (lease,)
        if not settled and (not multiple or delivery_tag):
            settled = self.handover.take(delivery_tag, multiple)
        if not settled and (not multiple or delivery_tag):
            raise _unknown(delivery_tag, self.receiver.tags.prefix)
        return state, settled

    def take_many(self, channel: int, delivery_tags: Sequence[Any]) -> tuple[RedisChannel, Sequence[Lease]]:
        """Take some deliveries out of what is outstanding on a channel."""
        state = self.channel(channel)
        outstanding, tags, held = state.outstanding, dict.fromkeys(delivery_tags), self.handover.held_tags
        for tag in tags:
            if tag not in outstanding and tag not in held:
                raise _unknown(tag, self.receiver.tags.prefix)
        settled: list[Lease] = []
        for tag in tags:
            lease = outstanding.pop(tag, None)
            settled += self.handover.take(tag, False) if lease is None else [lease]
        return state, settled

    def requeue(self, state: RedisChannel, leases: Sequence[Lease]) -> Plan[None]:
        """Put deliveries back that were taken out of what is outstanding."""
        try:
            yield from self._put_back(leases)
        except BaseException:
            state.keep(leases)  # the server does not know
            self._wake()  # some may be back
            raise
        for lease in reversed(leases):
            if lease.is_fanout:
                state.put_back_fanout(lease)
        self._wake()


def _check_destination(to_exchange: bool) -> None:
    if to_exchange:
        raise exceptions.AMQPNotImplementedError("Redis has no bindings between exchanges")


def _unknown(tag: Any, prefix: str) -> Exception:
    """Return why a delivery tag cannot be settled. Those of other connections have another prefix."""
    if str(tag).startswith("kl") and not str(tag).startswith(prefix):
        return exceptions.RecoverableConnectionError("the message came on a connection that was lost or closed")
    return exceptions.PreconditionFailed(f"unknown delivery tag {tag!r:.80}")
