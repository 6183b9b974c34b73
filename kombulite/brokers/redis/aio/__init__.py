"""Connections to Redis on an event loop.

The state and the verbs are those of the transport for threads (``protocol.py``); here plans are performed by the loop.
What the tasks of one turn publish leaves in one write, and what they acknowledge in one command.

The class is as wide as the interface that it implements.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from hiredis import ReplyError

from kombulite import exceptions
from kombulite._core import Delivery, Lease
from kombulite.brokers import aio as interface
from kombulite.brokers.aio import OnEvent, OnLost, Pending, closed, refuse, resolve
from kombulite.brokers.base import ExchangeSpec, HeldDeliveries, Outcome, QueueInfo, QueueSpec, QueueStatus, Settings
from kombulite.brokers.redis.aio.connector import AsyncConnector
from kombulite.brokers.redis.aio.dispatcher import Dispatcher
from kombulite.brokers.redis.aio.maintainer import AsyncMaintainer
from kombulite.brokers.redis.aio.stream import Answer, AsyncStream
from kombulite.brokers.redis.claims import RedisChannel
from kombulite.brokers.redis.errors import FOR_NOW, REPLICA_CODES, connection_lost, reply_error, socket_error
from kombulite.brokers.redis.leases import ACK_REPLIES, logger
from kombulite.brokers.redis.options import Options
from kombulite.brokers.redis.plans import REPLY_TIMEOUT, Plan, call, wait_for_replicas, wait_for_replies
from kombulite.brokers.redis.protocol import RedisProtocol
from kombulite.brokers.redis.publisher import Destination
from kombulite.brokers.redis.replies import OnReply

__all__ = ["AsyncTransport"]

T = TypeVar("T")

CLOSE_TIMEOUT = 5.0  # seconds for a reply while the connection is closed


class Published(Answer):
    """What the reply to a publish through an exchange goes to: its bindings may have changed meanwhile."""

    __slots__ = ("_delivery", "_destination", "_transport")

    def __init__(
        self, pending: Pending[Any], transport: AsyncTransport, delivery: Delivery, destination: Destination
    ) -> None:
        super().__init__(pending)
        self._transport = transport
        self._delivery = delivery
        self._destination = destination

    def __call__(self, reply: Any) -> None:
        """Take the reply, and send the message to the queues that it missed."""
        if reply.__class__ is int and not self._transport.is_current(self._destination, self._delivery.exchange):
            self._transport.catch_up(self._delivery, self._destination, self.pending)
        else:
            super().__call__(reply)


class AsyncTransport(interface.AsyncTransport):
    """A connection to a Redis database, on an event loop."""

    def __init__(self, settings: Settings, on_event: OnEvent, on_lost: OnLost) -> None:
        super().__init__(settings, on_event, on_lost)
        self._loop = asyncio.get_running_loop()
        self._options = options = Options.of(settings.options)
        self._connector = AsyncConnector(settings, options)
        self._protocol = RedisProtocol(settings, options, self._connector.identity, self._wake, self._keep)
        self._channels = self._protocol.channels
        self._stream: AsyncStream | None = None
        self._streams: list[AsyncStream] = []
        self._listener: AsyncStream | None = None
        self._opening: asyncio.Task[None] | None = None  # of connections for consumers
        self._is_begun = self._is_over = False
        self._acked: list[Lease] = []  # in this turn of the loop
        self._ack_pending: Pending[None] | None = None
        self._dispatcher = Dispatcher(self._protocol, on_event, self._perform_aside, self._fail)
        self._maintainer = AsyncMaintainer(
            self._protocol, self._connector.identity, self._streams, self._perform, self._dispatcher.dispatch
        )
        self._protocol.bring_back_soon = self._maintainer.bring_back_now

    # --- the connection

    async def connect(self) -> None:
        """Open the connection, within ``settings.connect_timeout`` seconds."""
        try:
            await asyncio.wait_for(self._connect(), self.settings.connect_timeout)
        except asyncio.TimeoutError as error:  # not the built-in one before Python 3.11
            self.abort()
            raise socket_error(TimeoutError("the server did not answer in time")) from error
        except BaseException as error:
            self.abort()
            if isinstance(error, exceptions.ChannelError) and not isinstance(error, exceptions.ConnectionError):
                raise exceptions.NotAllowed(str(error)) from error
            raise

    async def _connect(self) -> None:
        protocol = self._protocol
        stream = self._stream = await self._open(protocol.topology.router.on_push)
        stream.before_flush = self._send_acks
        tracked = await stream.perform(protocol.greet(stream.protocol))
        await stream.perform(protocol.begin(stream, tracked, self._perform_aside))
        self._is_begun = True
        self._dispatcher.start()
        self._maintainer.start()

    async def _open(self, on_push: OnReply) -> AsyncStream:
        stream = await self._connector.open(on_push, self._dispatcher.dispatch, self._on_lost_stream)
        if self._is_over:
            stream.drop(closed())
            raise closed()
        stream.errors.ending = REPLICA_CODES
        self._streams.append(stream)
        return stream

    async def close(self) -> None:
        """Close the connection and its channels: messages not settled go back to their queues. May be repeated."""
        opening = self._opening
        try:
            if self.connected:
                protocol = self._protocol
                for stream in self._streams:
                    stream.cap_timeout(CLOSE_TIMEOUT)
                await self._perform(protocol.end())
                if self._stream is not None and self._stream.is_waiting:
                    await self._perform(call("PING"))  # what was sent before is answered then
        finally:
            self.abort()
        if opening is not None and not opening.done():
            await asyncio.wait([opening])

    def abort(self) -> None:
        """Drop the connection without a word to the broker."""
        self._end(closed())

    def _end(self, error: Exception) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._dispatcher.stop()
        self._maintainer.stop()
        if self._opening is not None:
            self._opening.cancel()
        unanswered = [] if self._stream is None else self._stream.unanswered
        for stream in self._streams:
            stream.drop(error)  # first: messages that are on their way back count as outstanding again
        if self._is_begun:
            if data := self._protocol.receiver.acknowledgement(self._acked):
                unanswered.append((_ignore, data, ACK_REPLIES))
            self._protocol.abandon(unanswered)
        if self._ack_pending is not None:
            refuse(self._ack_pending, error)

    def _on_lost_stream(self, stream: AsyncStream, error: Exception) -> None:
        self._maintainer.note_end(stream)
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        """End, since something broke."""
        was_connected = self.connected
        self._end(error)
        if was_connected:
            self.on_lost(error)

    def _wake(self) -> None:
        self._dispatcher.wake()

    def _keep(self, queue: str | None) -> None:
        self._maintainer.keep(queue)

    @property
    def connected(self) -> bool:
        """Whether the connection is open."""
        return self._is_begun and not self._is_over

    @property
    def is_suspect(self) -> bool:
        """Whether half of the time is gone after which a silent server is given up."""
        return any(stream.is_suspect for stream in self._streams)

    def writable(self) -> Pending[None] | None:
        """Return a Pending that is set when more may be sent; None if more may be sent now."""
        return None if self._stream is None else self._stream.writable()

    @property
    def held(self) -> HeldDeliveries | None:
        """What settles deliveries when their connection is lost."""
        return self._protocol.held

    def inherit(self, channel: int, held: HeldDeliveries, before: int) -> None:
        """Let a channel settle what another had whose connection was lost, and in whose place it is."""
        self._protocol.inherit(channel, held, before)

    # --- plans

    def _perform(self, plan: Plan[T]) -> Pending[T]:
        if self._stream is None or not self.connected:
            raise closed()
        return self._stream.perform(plan)

    def _perform_aside(self, plan: Plan[Any]) -> None:
        """Perform a plan whose result nobody waits for."""
        if self.connected:
            self._perform(plan).add_done_callback(self._log_failure)

    def _log_failure(self, done: Pending[Any]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None and self.connected:
            logger.warning("Something could not be done at the server: %s", error)

    def _done(self, result: T) -> Pending[T]:
        pending: Pending[T] = self._loop.create_future()
        pending.set_result(result)
        return pending

    # --- channels

    def open_channel(self, tag_offset: int = 0) -> Pending[int]:
        """Open a channel; our tags are no numbers."""
        if not self.connected:
            raise closed()
        return self._done(self._protocol.open_channel())

    def close_channel(self, channel: int) -> Pending[None]:
        """Close a channel: its consumers end, messages not settled go back to their queues."""
        return self._perform(self._protocol.close_channel(channel))

    def qos(self, channel: int, prefetch_size: int, prefetch_count: int, apply_global: bool) -> Pending[None]:
        """Bound the messages that are delivered and not settled (0: no bound)."""
        self._protocol.channel(channel).prefetch_count = prefetch_count
        self._wake()
        return self._done(None)

    def flow(self, channel: int, active: bool) -> Pending[None]:
        """Pause the deliveries of a channel, or let them go on."""
        self._protocol.channel(channel).active = active
        self._wake()
        return self._done(None)

    def confirm(self, channel: int) -> Pending[None]:
        """Do nothing: the server answers each publish anyway."""
        return self._done(None)

    # --- exchanges, queues, bindings

    def declare_exchange(self, channel: int, spec: ExchangeSpec, passive: bool) -> Pending[None]:
        """Create an exchange, or assert it."""
        return self._perform(self._protocol.declare_exchange(channel, spec, passive))

    def delete_exchange(self, channel: int, name: str, if_unused: bool) -> Pending[None]:
        """Delete an exchange with its bindings, if there is one."""
        return self._perform(self._protocol.delete_exchange(channel, name, if_unused))

    def declare_queue(self, channel: int, spec: QueueSpec, passive: bool) -> Pending[QueueInfo]:
        """Create a queue, or assert it."""
        return self._perform(self._protocol.declare_queue(channel, spec, passive))

    def delete_queue(self, channel: int, name: str, if_unused: bool, if_empty: bool) -> Pending[int]:
        """Delete a queue, if there is one; gives the messages gone with it."""
        return self._perform(self._protocol.delete_queue(channel, name, if_unused, if_empty))

    def purge(self, channel: int, queue: str) -> Pending[int]:
        """Remove the messages that wait in a queue; gives how many."""
        self._protocol.channel(channel)
        return self._perform(self._protocol.topology.purge(queue))

    def list_queues(self, channel: int) -> Pending[Sequence[QueueStatus]]:
        """Raise AMQPNotImplementedError: an empty queue has no key."""
        raise exceptions.AMQPNotImplementedError("the redis transport cannot list its queues")

    def bind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> Pending[None]:
        """Bind a queue to an exchange."""
        plan = self._protocol.bind(channel, source, destination, routing_key, to_exchange)
        return self._perform(self._subscribed(plan))

    def unbind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> Pending[None]:
        """Take a binding away, if there is one."""
        return self._perform(self._protocol.unbind(channel, source, destination, routing_key, to_exchange))

    def _subscribed(self, plan: Plan[T]) -> Plan[T]:
        """Perform a plan, and wait until the server knows what is subscribed to: it comes on another connection."""
        result = yield from plan
        if self._listener is not None and self._protocol.receiver.subscriptions.unanswered:
            yield self._listener.perform(wait_for_replies())
        return result

    # --- publishing

    def publish(self, channel: int, delivery: Delivery, mandatory: bool = False) -> Pending[None]:
        """Publish a message; done when the server has it."""
        stream = self._stream
        if channel not in self._channels or stream is None:
            raise connection_lost("channel already closed")
        publisher = self._protocol.publisher
        destination = None if self._options.wait_replicas else publisher.single(delivery)
        if destination is None:
            return self._perform(self._publish(delivery, mandatory))
        data = publisher.pack(destination, delivery)
        pending: Pending[None] = self._loop.create_future()
        is_routed = destination.routes is not None
        stream.post(data, 1, Published(pending, self, delivery, destination) if is_routed else Answer(pending))
        return pending

    def _publish(self, delivery: Delivery, mandatory: bool) -> Plan[None]:
        has_reached = yield from self._protocol.publisher.publish(delivery)
        yield from self._replicated()
        if mandatory and not has_reached:
            raise exceptions.MessageReturned.no_route()

    def _replicated(self) -> Plan[None]:
        """Wait for replicas, if that is asked for: those that publish in one turn of the loop wait together."""
        if self._options.wait_replicas:
            yield from wait_for_replicas(self._options.wait_replicas, self._options.socket_timeout or REPLY_TIMEOUT)

    def is_current(self, destination: Destination, exchange: str) -> bool:
        """Return whether no change was heard of since it was decided where messages go."""
        return self._protocol.publisher.is_current(destination, exchange)

    def catch_up(self, delivery: Delivery, destination: Destination, pending: Pending[None]) -> None:
        """Send a message to the queues that it missed; ``pending`` is done then."""
        done = self._perform(self._protocol.publisher.catch_up(delivery, destination))
        done.add_done_callback(partial(_pass_on, pending))

    def publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False
    ) -> Pending[list[tuple[int, Exception]]]:
        """Publish one or more in order; gives those refused, as (index, exception)."""
        return self._perform(self._publish_many(channel, deliveries, mandatory))

    def _publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool
    ) -> Plan[list[tuple[int, Exception]]]:
        refused, _ = yield from self._protocol.publish_many(channel, deliveries, mandatory)
        yield from self._replicated()
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
    ) -> Pending[str]:
        """Start a consumer; gives its tag."""
        return self._perform(self._subscribed(self._consume(channel, queue, consumer_tag, no_ack, exclusive)))

    def _consume(self, channel: int, queue: str, consumer_tag: str, no_ack: bool, exclusive: bool) -> Plan[str]:
        self._protocol.channel(channel)
        yield from self._protocol.check_rights(queue, no_ack)
        if self._listener is None:
            yield self._open_once(self._listen)
        tag = self._protocol.start_consumer(channel, queue, consumer_tag, no_ack, exclusive)
        if self._protocol.receiver.missing_waits > 0:
            yield self._open_once(self._wait_in_server)
        return tag

    def _open_once(self, opening: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Open connections for consumers, in one task for all that begin at the same time."""
        if self._opening is None or self._opening.done():
            self._opening = self._loop.create_task(opening())
        return self._opening

    async def _listen(self) -> None:
        """Open the connection that listens."""
        receiver = self._protocol.receiver
        listener = await self._open(self._dispatcher.on_news)
        if await listener.perform(receiver.track(listener)):
            watcher = await self._open(self._dispatcher.on_news)
            await watcher.perform(receiver.watch(watcher))
        receiver.listener = self._listener = listener

    async def _wait_in_server(self) -> None:
        """Open the connections over which the server is waited for, where it does not tell of changes."""
        receiver = self._protocol.receiver
        while receiver.missing_waits > 0:
            try:
                stream = await self._open(self._dispatcher.on_news)
            except (exceptions.ConnectionError, OSError) as error:  # such as one too many for the server
                receiver.waits.add_no_more(error)
                break
            receiver.waits.add(stream)

    def cancel(self, channel: int, consumer_tag: str) -> Pending[Sequence[Delivery] | None]:
        """End a consumer, if there is one."""
        return self._perform(self._protocol.cancel(channel, consumer_tag))

    def get(self, channel: int, queue: str, no_ack: bool) -> Pending[Delivery | None]:
        """Take the next message of a queue."""
        return self._perform(self._protocol.get(channel, queue, no_ack))

    def recover(self, channel: int) -> Pending[None]:
        """Put all that is outstanding on the channel back into its queues."""
        state, leases = self._protocol.take(channel, 0, True)
        return self._perform(self._protocol.requeue(state, leases))

    # --- settling

    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> Pending[None] | None:
        """Say what becomes of a delivery, and with ``multiple`` of all before it on the channel.

        The Pending of an acknowledgement belongs to all of the same turn of the loop: it is not to be cancelled.
        """
        state, leases = self._protocol.take(channel, delivery_tag, multiple)
        if outcome is not Outcome.ACK or multiple:
            return self._settle(state, leases, outcome)
        if self._stream is None or not self.connected:
            raise closed()
        self._acked += leases
        if self._ack_pending is None:
            self._ack_pending = self._loop.create_future()
            self._stream.flush_soon()
        self._wake()
        return self._ack_pending

    def settle_many(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome) -> Pending[None] | None:
        """Say what becomes of some deliveries of a channel, and of no others."""
        return self._settle(*self._protocol.take_many(channel, delivery_tags), outcome)

    def _settle(self, state: RedisChannel, leases: Sequence[Lease], outcome: Outcome) -> Pending[None] | None:
        if outcome in (Outcome.REQUEUE, Outcome.RETURN):
            return self._perform(self._protocol.requeue(state, leases))
        self._wake()
        pending: Pending[None] = self._loop.create_future()
        self._acknowledge(leases, pending)
        return pending

    def _send_acks(self) -> None:
        """Send the acknowledgements of this turn of the loop."""
        pending, self._ack_pending = self._ack_pending, None
        leases, self._acked = self._acked, []
        if pending is not None:
            self._acknowledge(leases, pending)

    def _acknowledge(self, leases: Sequence[Lease], pending: Pending[None]) -> None:
        data = self._protocol.receiver.acknowledgement(leases)
        if data and self._stream is not None:
            self._stream.post(data, ACK_REPLIES, AckAnswer(pending, data, self._protocol.make_again), may_repeat=True)
        else:
            resolve(pending)


class AckAnswer(Answer):
    """What the replies to an acknowledgement go to. ``make_again(data)`` has it made again if it is refused for now."""

    __slots__ = ("_data", "_make_again")

    def __init__(self, pending: Pending[None], data: bytes, make_again: Callable[[bytes], object]) -> None:
        super().__init__(pending, ACK_REPLIES)
        self._data = data
        self._make_again = make_again

    def __call__(self, reply: Any) -> None:
        """Take the next reply."""
        if reply.__class__ is ReplyError and self._data and isinstance(reply_error(str(reply)), FOR_NOW):
            data, self._data = self._data, b""
            self._make_again(data)
        super().__call__(reply)


def _pass_on(pending: Pending[None], done: Pending[Any]) -> None:
    if done.cancelled():
        pending.cancel()
    elif (error := done.exception()) is not None:
        refuse(pending, error)
    else:
        resolve(pending)


def _ignore(reply: Any) -> None:
    """Do nothing with the reply to an acknowledgement that is sent again."""
