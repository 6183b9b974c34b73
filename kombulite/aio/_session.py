"""The broker connection of a ``Connection``: when it is opened and restored, its channels, what is sent over them.

The class is wider than others: channels and the connection fail together, and come back together.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import partial, update_wrapper
from operator import itemgetter
from typing import Any, Protocol, TypeVar, cast

from kombulite import exceptions
from kombulite._client.address import Address
from kombulite._client.lifecycle import Lifecycle, State
from kombulite._client.retry import Refusals
from kombulite._client.session import Session
from kombulite._client.streams import StreamPositions
from kombulite._client.topology import Topology
from kombulite._core import BaseAsyncChannel, BaseAsyncSession, Delivery
from kombulite.aio._unclaimed import UnclaimedGets, result_of
from kombulite.brokers import is_native, resolve_transport
from kombulite.brokers.aio import AsyncTransport, Pending, closed
from kombulite.brokers.base import ChannelClosed, Event, ExchangeSpec, MessageIgnored, Outcome, Transport
from kombulite.brokers.threaded import async_transport
from kombulite.brokers.waits import Waits, Window
from kombulite.utils.functional import retry_intervals
from kombulite.utils.imports import symbol_by_name

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# As globals: looking a member up costs as much as the call.
ACK, RETURN = Outcome.ACK, Outcome.RETURN

WINDOW = 4096  # messages that may be on their way to the broker, and not answered yet
DEFAULT_TIMEOUT = 30.0  # seconds
CLOSE_TIMEOUT = 10.0  # seconds


def compiled(method: Callable[..., Any]) -> Callable[[F], F]:
    """Have a method of the core, which returns a coroutine, stand where its signature and its docstring are."""

    def decorate(documented: F) -> F:
        # For what asks whether it is a coroutine function: mocks, which look behind a wrapper, and frameworks.
        if hasattr(inspect, "markcoroutinefunction"):  # since Python 3.12
            inspect.markcoroutinefunction(documented)
        else:
            documented._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
        return cast("F", update_wrapper(method, documented))  # with the mark

    return decorate


class Channel(BaseAsyncChannel):
    """A channel of one broker connection. What came on it is settled on it, and on no other."""

    transport: AsyncTransport
    positions: StreamPositions | None

    def __init__(self, session: AsyncSession, transport: AsyncTransport, number: int) -> None:
        steps = transport.fast_publish(number), transport.fast_ack(number)
        super().__init__(number, transport, session.waits, session.tally, *steps)
        self.session = session
        self.connection: Any = session.address
        self.failure: Exception | None = None  # what it was lost for
        self.is_ending = False  # whether it is closed next, and its messages go back with it
        self.on_event: Callable[[Event], object] | None = None
        self.on_closed: Callable[[object], object] | None = None  # called with why it is closed

    def settle(self, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> Pending[None] | None:
        """Say what becomes of a delivery. Raises RecoverableConnectionError if its channel is closed."""
        self.session.waits.check_loop()
        if not self.is_open:
            self._settle_held([delivery_tag], outcome, multiple)
            return None
        if self.positions is not None and outcome in (ACK, Outcome.REJECT):  # a stream takes nothing back
            self.positions.settle((delivery_tag,), multiple)
        return self.transport.settle(self.number, delivery_tag, self._known(outcome), multiple)

    def settle_many(self, delivery_tags: list[Any], outcome: Outcome) -> Pending[None] | None:
        """Say what becomes of some deliveries."""
        self.session.waits.check_loop()
        if not self.is_open:
            self._settle_held(delivery_tags, outcome, False)
            return None
        if self.positions is not None and outcome in (ACK, Outcome.REJECT):
            self.positions.settle(delivery_tags)
        return self.transport.settle_many(self.number, delivery_tags, self._known(outcome))

    def inherit(self, before: Channel) -> None:
        """Settle also what came on another channel, whose connection was lost, and in whose place this is."""
        if before.transport is not self.transport and before.transport.held is not None:
            self.transport.inherit(self.number, before.transport.held, before.number)

    def _settle_held(self, delivery_tags: list[Any], outcome: Outcome, multiple: bool) -> None:
        """Settle deliveries of a connection that is lost, if the broker lets another do that."""
        held = self.transport.held
        if held is None or not held.settle(self.number, delivery_tags, outcome, multiple):
            raise exceptions.RecoverableConnectionError("the message came on a channel that is closed")

    def _known(self, outcome: Outcome) -> Outcome:
        """Return the outcome as the broker knows it."""
        return Outcome.REQUEUE if outcome is RETURN and not self.transport.counts_failures else outcome

    def notice(self) -> None:
        """After an error: see whether the broker has closed the channel for it."""
        if self.is_open and not self.transport.channel_is_open(self.number):
            self.session.forget(self, "the channel was closed")


#: A message, and the channel that it came on.
Fetched = tuple[Delivery, Channel]


class Restored(Protocol):
    """What goes on with the next connection when one was lost: a consumer."""

    async def start(self) -> None:
        """Begin on the connection that there is now."""

    def fail(self, error: BaseException) -> None:
        """End: there will be no connection."""

    def consumes_from(self, queue: str) -> bool:
        """Return whether it is a consumer of a queue."""


class AsyncSession(Session, BaseAsyncSession):
    """The broker connection of one ``Connection``, opened when it is needed."""

    channels: dict[int, Channel]
    roles: dict[str, Channel]  # open ones, of a connection that is open: they leave with either
    waits: Waits
    window: Window

    def __init__(self, address: Address) -> None:
        super().__init__(address.as_uri)
        self.address = address
        self.exchanges = {""}
        self.restored: set[Restored] = set()
        self.unclaimed: UnclaimedGets[Fetched] = UnclaimedGets()
        self.transport: AsyncTransport | None = None
        self.watchers: list[Callable[[State], object]] = []
        timeout = float(address.transport_options.get("read_timeout") or DEFAULT_TIMEOUT)
        self.waits = Waits(timeout, lambda: self.transport is None, self._blocked)
        self.window = Window(WINDOW, self.waits)
        #: What readies the channel of a role, where that takes something.
        self.preparing: dict[str, Callable[[Channel], Awaitable[object]]] = {"confirmed": self._confirm}

    # --- the connection

    @property
    def transport_class(self) -> type[Transport]:
        """The class of the synchronous transport, which knows the errors."""
        found = resolve_transport(self.address.transport_cls)
        if not is_native(found):  # the synchronous facade runs it, which this one does not import for others
            found = symbol_by_name("kombulite.transport.foreign:foreign_transport")(found)
        return cast("type[Transport]", found)

    @property
    def is_open(self) -> bool:
        """Whether the connection is open, and restored."""
        return self.transport is not None and self.life.state in (State.OPEN, State.SUSPECT)

    def state(self) -> State:
        """See whether the broker has fallen silent. Returns the state."""
        if self.is_open:
            assert self.transport is not None
            self._to(State.SUSPECT if self.transport.is_suspect else State.OPEN)
        return self.life.state

    def _to(self, state: State, reason: object = None) -> None:
        if state is not self.life.state:
            self.life.to(state, reason)
            for watcher in list(self.watchers):
                watcher(state)

    def _blocked(self) -> str | None:
        return None if self.transport is None else self.transport.blocked

    async def ensure(self, deadline: float) -> AsyncTransport:
        """Return the open connection, after connecting if need be. Raises what connecting ended with."""
        while not self.is_open:
            await self.waits.once("connect", self._connect, deadline, "connect")
        assert self.transport is not None
        return self.transport

    async def _connect(self) -> None:
        """Connect: each URL once; as long as there are consumers, again and again, until all URLs have refused."""
        address, intervals, tries = self.address, iter(retry_intervals(0.5, 0.5, 5.0)), 0
        retryable = self.transport_class.recoverable_connection_errors
        refusals = Refusals(retryable, address.alt)
        if address.cycle is not None:
            retryable = (*self.transport_class.connection_errors, *self.transport_class.channel_errors, *retryable)
        try:
            while True:
                try:
                    await self._connect_once()
                    return
                except retryable as error:
                    refusals.add(address.current_url, address.as_uri(), error)
                    is_over = address.completes_cycle(tries)
                    tries += 1
                    if address.cycle is not None:
                        address.take(next(address.cycle))
                    if refusals.are_complete or (is_over and not self.restored):
                        named = refusals.summarize(error)
                        if named is error:
                            raise
                        raise named from error
                    if is_over:
                        await asyncio.sleep(next(intervals))
        except Exception as error:
            for each in list(self.restored):
                each.fail(error)
            raise

    async def _connect_once(self) -> None:
        before = self.life.state
        self._to(State.CONNECTING)
        transport = async_transport(self.transport_class, self.address.settings(), self.on_event)
        transport.on_lost = partial(self._lost, transport)
        try:
            await transport.connect()
        except BaseException as error:
            self._to(before, error)
            raise
        self.transport = transport
        if before is State.LOST:
            await self._restore(transport)
            self.tally.count_reconnect()
        else:
            self.topology.place = self.address.place
        if self.transport is not transport:
            raise exceptions.RecoverableConnectionError("the connection was lost again at once")
        self._to(State.OPEN)

    async def _restore(self, transport: AsyncTransport) -> None:
        """Declare again what may be gone, and start the consumers again."""
        self._to(State.RESTORING)
        place = self.address.place
        everything = self.must_declare_all(place, self.transport_class.capabilities.keeps_durable)
        try:
            if self.topology.needs_restoring(everything):
                number = await self.waits.answer(transport.open_channel())
                for step in self.topology.restoring(everything):
                    step.answer = await self.waits.answer(getattr(transport, step.verb)(number, *step.arguments))
                await self.waits.answer(transport.close_channel(number))
            for each in list(self.restored):
                await each.start()
        except BaseException as error:
            self._drop(transport, error)
            raised = self.restore_error(error, everything)
            if raised is error:
                raise
            raise raised from error
        self.note_restored(place)

    def on_other_event(self, event: Event) -> None:
        """Deal with an event that is no message for a consumer."""
        channel = self.channels.get(event.channel)
        if channel is None:
            return
        if type(event) is ChannelClosed:
            self.forget(channel, event.error)
        if channel.on_event is not None:
            channel.on_event(event)

    def _lost(self, transport: AsyncTransport, error: Exception) -> None:
        if self.transport is transport:
            self._drop(transport, error)
            if self.restored and not self.waits.is_closing and not self.waits.is_busy("connect"):
                self.waits.keep("connect", self.waits.check_loop().create_task(self._connect()))

    def _drop(self, transport: AsyncTransport, reason: object) -> None:
        """Forget a connection that is lost."""
        if self.transport is not transport:
            return
        self.transport = None
        transport.abort()
        for channel in list(self.channels.values()):
            self.forget(channel, reason)
        self.forget_declarations()
        self.window.lose(exceptions.RecoverableConnectionError(f"the connection is lost: {reason}"))
        if self.life.state is not State.CLOSED:
            self._to(State.LOST, reason)

    def forget_declarations(self) -> None:
        """Declare again what is needed: the connection is new, or something was deleted."""
        super().forget_declarations()
        self.exchanges = {""}

    async def close(self) -> None:
        """Close the connection, and end all that was going on for it."""
        self.waits.check_loop()
        self.waits.is_closing = True
        try:
            for each in list(self.restored):
                each.fail(closed())
            await self.waits.end_tasks(CLOSE_TIMEOUT)
            transport, self.transport = self.transport, None
            for channel in list(self.channels.values()):
                self.forget(channel, closed())
            if transport is not None:
                try:
                    await transport.close()
                except (*self.transport_class.connection_errors, *self.transport_class.channel_errors):
                    transport.abort()
            self.waits.end_waits()
            self.window.close()
        finally:
            self.waits.disarm()
            self.topology = Topology()
            self.forget_declarations()
            self.waits.is_closing = False
            self._to(State.CLOSED)

    def abandon(self) -> None:
        """Forget the connection in a forked child, whose parent has it."""
        self.waits.abandon()
        for channel in self.channels.values():
            channel.is_open = False
        self.window = Window(WINDOW, self.waits)
        self.transport = None
        self.channels.clear()
        self.roles.clear()
        self.restored = set()
        self.unclaimed = UnclaimedGets()
        self.tally.clear()
        self.life = Lifecycle(self.address.as_uri)

    def forget_consumer(self, queue: str) -> None:
        """Note that a consumer of a queue has ended: an auto-delete queue goes with its last one."""
        if not any(each.consumes_from(queue) for each in self.restored):
            self.topology.last_consumer_gone(queue)

    # --- channels

    async def open_channel(self, before: Channel | None = None) -> Channel:
        """Open a channel on the connection that there is, in the place of another. For tasks of the session only."""
        transport = self.transport
        if transport is None:
            raise closed()
        number = await self.waits.answer(transport.open_channel())
        channel = self.channels[number] = Channel(self, transport, number)
        if before is not None:
            channel.inherit(before)
        return channel

    async def close_channel(self, channel: Channel) -> None:
        """Close a channel, if it is open: its consumers end, messages not settled go back."""
        if channel.is_open and self.transport is not None:
            self.forget(channel, "it was closed")
            await self.waits.answer(self.transport.close_channel(channel.number))

    def forget(self, channel: Channel, reason: object) -> None:
        """Take a channel for closed."""
        channel.is_open = False
        channel.failure = reason if isinstance(reason, Exception) else None
        if channel.on_closed is not None:
            channel.on_closed(reason)
        if self.channels.get(channel.number) is channel:
            del self.channels[channel.number]
        for role, each in list(self.roles.items()):
            if each is channel:
                del self.roles[role]

    async def channel(self, role: str, deadline: float) -> Channel:
        """Return the channel of a role: "control", "get", "confirmed", "plain", "calls"."""
        while (channel := self.roles.get(role)) is None:
            await self.ensure(deadline)
            await self.waits.once(role, partial(self._open_role, role), deadline, "open a channel")
        return channel

    async def _open_role(self, role: str) -> None:
        channel = await self.open_channel()
        try:
            if (prepare := self.preparing.get(role)) is not None:
                await prepare(channel)
        except BaseException:
            self.drop_channel(channel)
            raise
        if channel.is_open:  # else it was lost as it was made ready
            self.roles[role] = channel

    async def _confirm(self, channel: Channel) -> None:
        await self.waits.answer(channel.transport.confirm(channel.number))

    def drop_channel(self, channel: Channel) -> None:
        """Have a channel closed that could not be made ready; nothing waits for that."""
        channel.notice()
        if channel.is_open and self.transport is channel.transport:
            self.forget(channel, "it could not be made ready")
            channel.transport.close_channel(channel.number)

    async def ask(self, verb: str, *arguments: Any, deadline: float) -> Any:
        """Have the transport do something on the control channel, and return the answer."""
        answer, _ = await self._request("control", verb, *arguments, deadline=deadline)
        return answer

    async def _request(self, role: str, verb: str, *arguments: Any, deadline: float) -> tuple[Any, Channel]:
        """Have the transport do something on the channel of a role. Returns the answer, and the channel.

        A broker may close the channel for a request that it refuses. It ignores the requests of other tasks that came
        after that one, so they are made again on the next channel.
        """
        while True:
            channel = await self.channel(role, deadline)
            transport = self.transport
            assert transport is not None
            try:
                pending = getattr(transport, verb)(channel.number, *arguments)
                return await self.waits.wait(pending, deadline, verb), channel
            except exceptions.ChannelError:
                channel.notice()
                raise
            except exceptions.RecoverableConnectionError:
                if not transport.connected or transport.channel_is_open(channel.number):
                    raise
                channel.notice()

    # --- publishing

    def publish_raised(self, error: Exception, delivery: Delivery, channel: Channel) -> None:
        """Deal with an error of publishing, which is raised then."""
        if isinstance(error, exceptions.ChannelError):
            self._note_refused(delivery, error)
            channel.notice()

    async def publish(self, delivery: Delivery, mandatory: bool, role: str, deadline: float) -> None:
        """Publish one message on the channel of a role, when it is its turn. Cancelled before that, it is not sent."""
        sent: Pending[None] | bool = False
        try:
            while (sent := self.publish_at_once(delivery, mandatory, role)) is not True:
                if sent is False:
                    await self._wait_for_turn(delivery, role, deadline)
                    continue
                self.window.pass_room_on()
                if await self.wait_for_answer(sent, delivery, role, deadline):
                    return
        finally:
            if isinstance(sent, bool):  # no answer will give the turn on that this may have waited for
                self.window.offer_turn()

    async def wait_for_answer(self, sent: Any, delivery: Delivery, role: str, deadline: float) -> bool:
        """Wait for what the broker says of a message; returns False if it has to be published again."""
        channel = self.roles[role]
        try:
            await self.window.wait_for_answer(sent, deadline, "publish")
        except MessageIgnored:  # the channel was closed for the message of another task
            channel.notice()
            return False
        except exceptions.ChannelError as error:
            self.publish_raised(error, delivery, channel)
            raise
        self.tally.count_published(delivery, role != "plain")
        return True

    async def _wait_for_turn(self, delivery: Delivery, role: str, deadline: float) -> None:
        """Wait for one of the things that a message has to wait for, if there is one."""
        channel = self.roles.get(role)
        if channel is None:
            await self.channel(role, deadline)
        elif delivery.exchange not in self.exchanges:
            await self._find_exchange(delivery.exchange, deadline)
        elif self.window.is_full:
            await self.window.turn(deadline)
        elif (room := channel.transport.writable()) is not None:
            await self.window.room(room, deadline)

    def _note_refused(self, delivery: Delivery, error: Exception) -> None:
        """Look for the exchange again before the next message to it, if it is gone."""
        if isinstance(error, exceptions.NotFound):
            self.exchanges.discard(delivery.exchange)

    async def publish_via(self, via: Any, delivery: Delivery, mandatory: bool, deadline: float) -> None:
        """Publish one message within a transaction of the caller's, on this loop."""
        unfinished = (await self.ask("prepare_via", via, delivery, mandatory, deadline=deadline))()
        if unfinished is not None:
            await self.waits.within(unfinished, deadline, "publish")
        self.tally.count_published(delivery, True)

    async def publish_many(
        self, deliveries: list[Delivery], mandatory: bool, confirm: bool, deadline: float
    ) -> list[tuple[int, Exception]]:
        """Publish messages in order; gives those refused, as (index, exception)."""
        refused = await self._publish_many(deliveries, mandatory, confirm, deadline)
        while ignored := [index for index, error in refused if isinstance(error, MessageIgnored)]:
            others = [each for each in refused if not isinstance(each[1], MessageIgnored)]
            try:
                again = await self._publish_many([deliveries[each] for each in ignored], mandatory, confirm, deadline)
            except exceptions.ChannelError as error:
                again = [(number, error) for number in range(len(ignored))]
            refused = sorted([*others, *((ignored[number], error) for number, error in again)], key=itemgetter(0))
        self.tally.count_many(deliveries, confirm, {index for index, _ in refused})
        return refused

    async def _publish_many(
        self, deliveries: list[Delivery], mandatory: bool, confirm: bool, deadline: float
    ) -> list[tuple[int, Exception]]:
        for exchange in {delivery.exchange for delivery in deliveries}:
            if exchange not in self.exchanges:
                await self._find_exchange(exchange, deadline)
        channel = await self.channel("confirmed" if confirm else "plain", deadline)
        pending = channel.transport.publish_many(channel.number, deliveries, mandatory)
        try:
            refused = await self.window.wait_for_answer(pending, deadline, "publish_many")
        finally:
            channel.notice()
        for index, error in refused:
            self._note_refused(deliveries[index], error)
        return refused

    async def _find_exchange(self, name: str, deadline: float) -> None:
        """See that an exchange is there: a publish to one that is not would take the channel from all other tasks."""
        await self.ask("declare_exchange", ExchangeSpec(name), True, deadline=deadline)
        self.exchanges.add(name)

    # --- fetching

    async def get(self, queue: str, no_ack: bool, deadline: float) -> Fetched | None:
        """Fetch a message. One that comes after its caller has gone returns to its queue, or is the next caller's.

        It is the next caller's if it needs no ack: the broker has forgotten it.
        """
        while True:
            unclaimed = self.unclaimed.take(queue) if no_ack else None
            number, task = unclaimed or self._start_get(queue, no_ack, deadline)
            try:
                found = await self.waits.result(task, deadline, "get")
            except BaseException as error:
                if no_ack:
                    self.unclaimed.add(queue, number, task)
                else:
                    task.add_done_callback(_put_back)
                if unclaimed is None or not task.done() or not isinstance(error, Exception):
                    raise
            else:
                if unclaimed is None or found is not None:
                    return found

    def _start_get(self, queue: str, no_ack: bool, deadline: float) -> tuple[int, asyncio.Task[Fetched | None]]:
        return self.unclaimed.number(), self.waits.task(object(), partial(self._get, queue, no_ack, deadline))

    async def _get(self, queue: str, no_ack: bool, deadline: float) -> Fetched | None:
        # Not by the caller's deadline: a message that comes for a caller who has gone is put back.
        answered = self.waits.deadline(None)
        delivery, channel = await self._request("get", "get", queue, no_ack, deadline=max(deadline, answered))
        return None if delivery is None else (delivery, channel)


def _put_back(task: asyncio.Task[Fetched | None]) -> None:
    if (found := result_of(task)) is not None:
        delivery, channel = found
        if channel.is_open:
            channel.settle(delivery.delivery_tag, Outcome.RETURN)
