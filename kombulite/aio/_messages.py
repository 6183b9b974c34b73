"""Receiving: messages as they come, or many at a time, and what becomes of each.

It is longer than others: a consumer from its start to what settles its messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from logging import Logger, getLogger
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Literal

from kombulite import exceptions
from kombulite import message as messages
from kombulite._client.batching import STATES
from kombulite._client.batching import MessageBatch as SyncMessageBatch
from kombulite._client.dead_letters import DeadLetterRule, Verdict
from kombulite._client.declarations import consumer_arguments
from kombulite._client.streams import OffsetKeeper, OffsetStore, StreamPositions
from kombulite._core import BaseAsyncMessage, BaseMessages, Delivery
from kombulite.aio._session import ACK, AsyncSession, Channel, compiled
from kombulite.brokers.aio import AsyncTransport, Pending, closed
from kombulite.brokers.base import Cancelled, ChannelClosed, Event, Outcome
from kombulite.brokers.waits import WaitQueue
from kombulite.entity import Queue

logger = getLogger("kombulite.aio")

OnError = Literal["requeue", "reject", "keep"]


class Message(messages.Message, BaseAsyncMessage):
    """Received message: as the synchronous one, with awaitable ``ack``, ``reject`` and ``requeue``."""

    channel: Channel
    queue: str  #: name of the queue that it came from

    @compiled(BaseAsyncMessage._ack)
    def ack(self, multiple: bool = False) -> Coroutine[Any, Any, None]:  # type: ignore[empty-body, override]
        """Acknowledge the message.

        Args:
            multiple: If True, all earlier messages of the same ``consume`` too.

        Raises:
            MessageStateError: The message was acknowledged, rejected or requeued before, or has no channel.
            RecoverableConnectionError: The connection is known to be lost; the message is redelivered.
        """

    async def _ack_slowly(self, multiple: bool) -> None:
        if multiple:
            await self._settle(ACK, multiple)
        else:
            self._start_settling(ACK)

    async def reject(self, requeue: bool = False) -> None:  # type: ignore[override]
        """Reject the message.

        Args:
            requeue: If True, the message goes back to its queue; else to the dead letter exchange of the queue, if
                it has one.

        Raises:
            MessageStateError: The message was acknowledged, rejected or requeued before, or has no channel.
            RecoverableConnectionError: The connection is known to be lost; the message is redelivered.
        """
        await self._settle(Outcome.REQUEUE if requeue else Outcome.REJECT)

    async def requeue(self, failed: bool = True) -> None:  # type: ignore[override]
        """Return the message to its queue.

        Args:
            failed: If True, the delivery counts as failed, as for the synchronous ``requeue``.

        Raises:
            MessageStateError: The message was acknowledged, rejected or requeued before, or has no channel.
            RecoverableConnectionError: The connection is known to be lost; the message is redelivered.
        """
        await self._settle(Outcome.REQUEUE if failed else Outcome.RETURN)

    async def ack_log_error(  # type: ignore[override]
        self, logger: Logger, errors: tuple[type[BaseException], ...], multiple: bool = False
    ) -> None:
        """Acknowledge the message, and log given errors instead of raising them.

        Args:
            logger: The logger.
            errors: Error classes to log.
            multiple: If True, all earlier messages of the same ``consume`` too.
        """
        try:
            await self.ack(multiple)
        except errors as error:
            logger.critical("Couldn't ack %r, reason:%r", self.delivery_tag, error, exc_info=True)

    async def reject_log_error(  # type: ignore[override]
        self, logger: Logger, errors: tuple[type[BaseException], ...], requeue: bool = False
    ) -> None:
        """Reject the message, and log given errors instead of raising them.

        Args:
            logger: The logger.
            errors: Error classes to log.
            requeue: If True, the message goes back to its queue; else to the dead letter exchange of the queue, if
                it has one.
        """
        try:
            await self.reject(requeue)
        except errors as error:
            logger.critical("Couldn't reject %r, reason: %r", self.delivery_tag, error, exc_info=True)

    async def _settle(self, outcome: Outcome, multiple: bool = False) -> None:
        pending = self._start_settling(outcome, multiple)
        if pending is not None:
            session = self.channel.session
            try:
                await session.waits.wait(pending, session.waits.deadline(None), "settle")
            except Exception:
                self._state = "RECEIVED"
                raise
            session.count(outcome)

    def _start_settling(self, outcome: Outcome, multiple: bool = False) -> Pending[None] | None:
        """Settle it. Returns what has to be waited for."""
        if self.channel is None or self._state != "RECEIVED":
            self.refuse(STATES[outcome])
        pending = None if self.no_ack else self.channel.settle(self.delivery_tag, outcome, multiple)
        self._state = "ACK" if outcome is ACK else STATES[outcome]
        if pending is not None and outcome is ACK and not multiple:
            # A broker does not answer an ack, and a thread does what it is asked in order: waiting would make consuming
            # half as fast. If the connection is lost before, the message comes again.
            pending.add_done_callback(self._log_lost_ack)
            pending = None
        if pending is None and not self.no_ack:
            self.channel.session.count(outcome)
        return pending

    def _log_lost_ack(self, pending: Pending[None]) -> None:
        if not pending.cancelled() and (error := pending.exception()) is not None:
            logger.warning("a message of queue %r will come again: %s", self.queue, error)

    @asynccontextmanager
    async def process(self, on_error: OnError = "requeue") -> AsyncIterator[Message]:
        """Settle the message at the end of the block: acknowledge it, or after an error do what ``on_error`` says.

        A cancelled block requeues the message. A message that the block settles itself stays as it is. If an
        acknowledgement fails because the connection is lost, the failure is logged and the message is redelivered.

        Args:
            on_error: ``"requeue"``, ``"reject"``, or ``"keep"`` (unsettled until the consumer ends).
        """
        if on_error not in ("requeue", "reject", "keep"):
            raise ValueError(f"on_error must be 'requeue', 'reject' or 'keep', got {on_error!r}")
        if self.channel is None:
            self.refuse(STATES[ACK])
        try:
            with ExitStack() as stack:
                for hook in self.channel.connection.hooks or ():
                    stack.enter_context(hook.consume(self, self.queue))
                self.raise_errors()
                yield self
                await self._finish(Outcome.ACK)
        except Exception:
            if on_error != "keep":
                await self._finish(Outcome.REQUEUE if on_error == "requeue" else Outcome.REJECT)
            raise
        except BaseException:
            if not self.channel.is_ending:  # else it goes back at once, before what came later
                await self._finish(Outcome.RETURN)
            raise

    async def _finish(self, outcome: Outcome) -> None:
        if self._state != "RECEIVED":
            return
        try:
            await self._settle(outcome)
        except (exceptions.RecoverableConnectionError, OSError) as error:
            logger.warning("a message of queue %r will come again: %s", self.queue, error)


class MessageBatch(SyncMessageBatch):
    """Received messages of one ``consume``: a list. Messages that are settled already are left out when it settles."""

    async def ack(self) -> None:  # type: ignore[override]
        """Acknowledge all messages, at once if the broker can."""
        await self._settle_all(Outcome.ACK)

    async def reject(self, requeue: bool = False) -> None:  # type: ignore[override]
        """Reject all messages.

        Args:
            requeue: If True, the message goes back to its queue; else to the dead letter exchange of the queue, if
                it has one.
        """
        await self._settle_all(Outcome.REQUEUE if requeue else Outcome.REJECT)

    async def requeue(self, failed: bool = True) -> None:  # type: ignore[override]
        """Return all messages to their queues.

        Args:
            failed: If True, the deliveries count as failed, as for the synchronous ``requeue``.
        """
        await self._settle_all(Outcome.REQUEUE if failed else Outcome.RETURN)

    async def _settle_all(self, outcome: Outcome) -> None:
        unsettled, tags = self.unsettled()
        for message in unsettled:
            message._state = STATES[outcome]
        if not tags:
            return
        channel: Any = unsettled[0].channel
        try:
            pending = channel.settle_many(tags, outcome)
            if pending is not None:
                await channel.session.waits.wait(pending, channel.session.waits.deadline(None), "settle")
        except Exception:
            for message in unsettled:
                message._state = "RECEIVED"
            raise
        channel.session.count(outcome, len(tags))


class Messages(BaseMessages):
    """Messages of some queues: an asynchronous iterator inside ``async with``. Returned by ``Connection.consume``.

    It continues by itself after the connection was lost. Several tasks may iterate over it; each message goes to one of
    them. Messages that are unsettled when the ``async with`` ends return to their queues.
    """

    _channel: Channel | None

    def __init__(
        self,
        connection: Any,
        session: AsyncSession,
        queues: list[Queue],
        prefetch: int,
        no_ack: bool,
        accept: set[str | None] | None,
        rule: DeadLetterRule | None,
        exclusive: bool,
        auto_declare: bool,
        offsets: OffsetStore | None,
    ) -> None:
        if prefetch < 1:
            raise ValueError(f"prefetch must be at least 1, got {prefetch}")
        in_steps = rule is not None or offsets is not None
        super().__init__(Message, session.tally, WaitQueue(), accept, no_ack, in_steps)
        self._connection = connection
        self._session = session
        self._queues = queues
        self.prefetch = prefetch
        self._rule = rule
        self._exclusive = exclusive
        self._auto_declare = auto_declare
        self._error: BaseException | None = None
        self._is_over = False
        self._positions = StreamPositions()
        self._started: float | None = None  # seconds since the epoch
        self._store = offsets
        self._keeper: OffsetKeeper | None = None

    # --- beginning and end

    async def __aenter__(self) -> Messages:
        session = self._session
        if self._channel is not None and self._channel.is_open:
            raise RuntimeError("an `async with` of these messages goes on: call consume() again for another")
        deadline = session.waits.deadline(None)
        if self._auto_declare:
            for queue in self._queues:
                await self._connection.declare(queue)
        if self._store is not None and self._keeper is None:
            loading = asyncio.to_thread(OffsetKeeper, self._store)
            self._keeper = await session.waits.within(loading, deadline, "load offsets")
            for name, offset in self._keeper.offsets.items():
                self._positions.go_on(name, offset)
        await session.ensure(deadline)
        self._error, self._is_over = None, False
        try:
            await session.waits.once(self, self.start, deadline, "consume")
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            await self._end()
        finally:
            if self._keeper is not None:
                waits = self._session.waits
                saving = asyncio.to_thread(self._keeper.update, self.stream_offsets, at_once=True)
                await waits.within(saving, waits.deadline(None), "save offsets")

    async def start(self) -> None:
        """Consume on the connection that is open now."""
        session = self._session
        self._ready.clear()  # what came on a connection that is lost comes again
        self._names.clear()
        channel = self._channel = await session.open_channel(self._channel)  # messages come before all have started
        channel.on_event, channel.messages = self._on_event, self
        transport = session.transport
        assert transport is not None
        try:
            starting: list[Pending[Any]] = [transport.qos(channel.number, 0, self.prefetch, False)]
            for number, queue in enumerate(self._queues, 1):
                queue.name = session.topology.renamed.get(queue.name, queue.name)
                tag = f"{id(self):x}.{number}"
                self._names[tag] = queue.name
                arguments: Any = consumer_arguments(queue)
                if self._started is not None:
                    arguments = self._positions.resuming(tag, arguments, self._started)
                else:
                    arguments = self._positions.starting(queue.name, arguments)
                starting.append(transport.consume(channel.number, queue.name, tag, False, self._exclusive, arguments))
            for each in starting:  # all are under way at once
                await session.waits.answer(each)
            if self._is_over:  # it ended meanwhile, which is no fault of the connection
                session.drop_channel(channel)
                return
            if not channel.is_open:  # lost since, before this was among what goes on by itself
                raise channel.failure or closed()
        except BaseException:
            session.drop_channel(channel)
            raise
        self._started = self._started or time()
        session.restored.add(self)

    def fail(self, error: BaseException) -> None:
        """Raise an error in all waiting tasks.

        Args:
            error: The error.
        """
        self._error = self._error or error
        self._session.restored.discard(self)
        self._changes.wake_all()

    async def stop(self) -> None:
        """Stop consuming. Messages that were taken may still be settled; the others return to their queues."""
        self._is_over = True
        self._session.restored.discard(self)
        try:
            channel, transport = self._channel, self._session.transport
            if channel is not None and channel.is_open and transport is not None:
                with suppress(exceptions.RecoverableConnectionError):  # they end with the connection
                    await self._stop(channel, transport)
        finally:
            self._forget_queues()
            self._changes.wake_all()

    async def _stop(self, channel: Channel, transport: AsyncTransport) -> None:
        """End the consumers, and return the messages that no task took."""
        waits = self._session.waits
        deadline = waits.deadline(None)
        for tag in list(self._names):
            await waits.wait(transport.cancel(channel.number, tag), deadline, "cancel")
        while self._ready and channel.is_open:
            # The last first: where each goes to the front of its queue, they are in order again.
            delivery = self._ready.pop()
            if delivery.stream_offset is not None:
                continue  # a stream takes nothing back
            pending = channel.settle(delivery.delivery_tag, Outcome.RETURN)
            if pending is not None:
                await waits.wait(pending, deadline, "settle")

    def leave_to_the_end(self) -> None:
        """Leave what a cancelled handler would requeue to the end of the consumer, which returns all in their order.

        Otherwise they change places where each goes to the front of its queue. Brokers that do not count a return as a
        failed delivery, as they do the end of a consumer, keep the places.
        """
        if self._channel is not None:
            self._channel.is_ending = not self._channel.transport.counts_failures

    async def _end(self) -> None:
        self._is_over = True
        self._session.restored.discard(self)
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.messages = None  # what comes until it is closed goes back with it
        self._ready.clear()
        self._forget_queues()
        self._changes.wake_all()
        session = self._session
        if channel is not None and channel.is_open and not session.waits.is_closing:  # else it ends with the connection
            close = partial(session.close_channel, channel)
            try:
                await session.waits.once(channel, close, session.waits.deadline(None), "close a channel")
            except (exceptions.ConnectionError, OSError) as error:
                logger.warning("a consumer could not be ended: %s", error)

    def consumes_from(self, queue: str) -> bool:
        """Return True if messages of a queue come here.

        Args:
            queue: Name of the queue.
        """
        return queue in self._names.values()

    def _forget_queues(self) -> None:
        """Note that the consumers have ended, if they had started."""
        if self._started is not None:
            for queue in self._names.values():
                self._session.forget_consumer(queue)

    # --- streams

    @property
    def stream_offsets(self) -> dict[str, int]:
        """Offsets at which consuming would continue, by stream.

        Each is behind the last message up to which all are acknowledged.
        """
        return self._positions.offsets_of(self._names)

    async def _save_offsets(self) -> None:
        """Save how far it is, if it is time; in a thread, for a store may wait. The tasks that iterate do it once."""
        keeper = self._keeper
        if keeper is not None and keeper.is_due():
            save = partial(asyncio.to_thread, keeper.update, self.stream_offsets)
            await self._session.waits.once((self, "offsets"), save, self._session.waits.deadline(None), "save offsets")

    # --- messages

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Cancelled):
            queue = self._names.pop(event.consumer_tag, "")
            self.fail(exceptions.ConsumerCancelled(f"the broker cancelled the consumer of queue {queue!r}"))
            self._session.forget_consumer(queue)
        elif isinstance(event, ChannelClosed):
            self.fail(event.error)

    def _check(self) -> None:
        """Raise what the consumer ended with; StopAsyncIteration after ``stop`` or the end of ``async with``."""
        self._session.waits.check_loop()
        if self._error is not None:
            raise self._error
        if self._is_over:
            raise StopAsyncIteration
        if self._channel is None:
            raise RuntimeError("messages come within `async with connection.consume(...)` only")

    if TYPE_CHECKING:

        def __aiter__(self) -> AsyncIterator[Message]: ...

        def __anext__(self) -> Coroutine[Any, Any, Message]: ...

    async def next(self, timeout: float | None = None) -> Message | None:
        """Return the next message, or None if none arrives in time.

        Args:
            timeout: Seconds (None: no limit).
        """
        deadline = None if timeout is None else monotonic() + timeout
        try:
            while True:
                while not self._ready:
                    self._check()
                    if not await self._changes.wait(deadline):
                        return None
                if self._keeper is not None:
                    await self._save_offsets()
                message: Message | None = self._take() if self._ready else None
                if message is not None and (self._rule is None or await self._is_allowed(message, self._rule)):
                    self._hand_over(message)
                    return message
        except BaseException:
            self._leave_to_others()
            raise

    def _leave_to_others(self) -> None:
        """Wake tasks that wait, for what is ready: the task that was woken for it does not take it."""
        for _ in range(len(self._ready)):
            self._changes.wake()

    def _note_offset(self, delivery: Delivery) -> None:
        channel, offset = self._channel, delivery.stream_offset
        assert channel is not None
        assert offset is not None
        channel.positions = self._positions
        tag = delivery.consumer_tag or ""
        self._positions.receive(tag, delivery.delivery_tag, offset, redelivered=delivery.redelivered)

    async def _is_allowed(self, message: Message, rule: DeadLetterRule) -> bool:
        """Return whether a message is for the application; others go where they belong."""
        verdict = rule.judge(message)
        if verdict is Verdict.DEAD_LETTER:
            await self._dead_letter(message, rule)
        elif verdict is not Verdict.RECEIVE:
            await message.requeue(failed=False)
        return verdict is Verdict.RECEIVE

    def _settle_unasked(self, message: Message) -> None:
        message.channel.settle(message.delivery_tag, ACK)
        message.no_ack = True

    async def _dead_letter(self, message: Message, rule: DeadLetterRule) -> None:
        """Send a message to the dead letters, and acknowledge it once the broker has it there."""
        try:
            await self._connection.declare(rule.destination)
            letter = rule.letter(message, message.queue)
            await self._session.publish(letter, True, "confirmed", self._session.waits.deadline(None))
            await message.ack()
        except BaseException:
            if message.channel.is_open and not message.acknowledged:
                message.channel.settle(message.delivery_tag, Outcome.REQUEUE)
            raise
        rule.report(message, message.queue)

    def batches(self, size: int, within: float) -> AsyncIterator[MessageBatch]:
        """Return an iterator over ``MessageBatch`` objects.

        A batch is complete when it has ``size`` messages, or as many as the prefetch count allows, or ``within``
        seconds after its first message arrived.

        Args:
            size: Messages of a complete batch.
            within: Seconds that the first message may wait.
        """
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        if not within >= 0:
            raise ValueError(f"within must be a number of seconds from 0 on, got {within!r}")
        return Batches(self, min(size, self.prefetch), within)

    async def next_batch(self, size: int, within: float) -> MessageBatch:
        """Return the next batch. No message is taken before the batch is complete, so a wait may be cancelled.

        Args:
            size: Messages of a complete batch.
            within: Seconds that the first message may wait.
        """
        batch = MessageBatch()
        try:
            while not batch:
                while not self._ready:
                    self._check()
                    await self._changes.wait()
                deadline = monotonic() + within
                while len(self._ready) < size and not self._is_over and self._error is None:
                    if not await self._changes.wait(deadline):
                        break
                await self._save_offsets()
                batch.extend(map(self._hand_over, await self._take_many(size)))
        except BaseException:
            self._leave_to_others()
            raise
        return batch

    async def _take_many(self, size: int) -> list[Message]:
        """Take up to so many messages of those that are ready. If it raises, they are ready again."""
        taken: list[Message] = []
        try:
            while self._ready and len(taken) < size:
                message = self._take()
                if message is not None and (self._rule is None or await self._is_allowed(message, self._rule)):
                    taken.append(message)
        except BaseException:
            for message in reversed(_of_channel(self._channel, taken)):
                if message.delivery is not None:
                    self._ready.appendleft(message.delivery)
            raise
        return _of_channel(self._channel, taken)


def _of_channel(channel: Channel | None, messages: list[Message]) -> list[Message]:
    """Return the messages of a channel that is open: what came on another one comes again."""
    return [each for each in messages if each.channel is channel and each.channel.is_open]


class Batches:
    """Messages many at a time: what ``Messages.batches`` gives."""

    def __init__(self, source: Messages, size: int, within: float) -> None:
        self._source = source
        self._size = size
        self._within = within

    def __aiter__(self) -> Batches:
        return self

    async def __anext__(self) -> MessageBatch:
        return await self._source.next_batch(self._size, self._within)
