"""RabbitMQ on an event loop: the protocol over a stream that has no locks.

What is written in one turn of the loop (publishes of many tasks, acknowledgements, requests) leaves in one system call
at its end. What is read at once is decoded at once. Nothing waits: a request is a future of its answer.

The class has many methods, because the interface of a transport is wide; few of them need more than some lines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from logging import getLogger
from time import monotonic
from typing import Any

from kombulite import exceptions
from kombulite._core import HEARTBEAT_FRAME, AckStep, Delivery, NotEncodable
from kombulite.brokers import aio
from kombulite.brokers.aio import OnEvent, OnLost, Pending, refuse, resolve
from kombulite.brokers.amqp import methods
from kombulite.brokers.amqp.aio.connector import connect_socket
from kombulite.brokers.amqp.aio.pending import PendingBatch, PendingConfirm, PendingRequest
from kombulite.brokers.amqp.aio.stream import AsyncStream, do_nothing
from kombulite.brokers.amqp.channel import AMQPChannel
from kombulite.brokers.amqp.connector import DEFAULT_TIMEOUT, OPTIONS, address_of, set_socket_options, tls_of
from kombulite.brokers.amqp.login import PROTOCOL_HEADER, Endpoint, Login
from kombulite.brokers.amqp.methods import Method, Signature
from kombulite.brokers.amqp.protocol import AMQPProtocol
from kombulite.brokers.amqp.verbs import ACK, RETURN, AMQPVerbs
from kombulite.brokers.base import ChannelClosed, Event, Outcome, QueueStatus, Settings
from kombulite.brokers.options import as_number, check_transport_options
from kombulite.utils.uuid import uuid

logger = getLogger("kombulite.amqp")

CLOSE_TIMEOUT = 5.0  # seconds to wait for the broker's farewell
DIRECT_REPLY_TO = "amq.rabbitmq.reply-to"
CHUNK = 65536  # bytes, about what is encoded at once of many messages


class AsyncTransport(AMQPVerbs, aio.AsyncTransport):
    """A connection to a broker of AMQP 0-9-1 on an event loop."""

    def __init__(self, settings: Settings, on_event: OnEvent, on_lost: OnLost) -> None:
        super().__init__(settings, on_event, on_lost)
        options = settings.options
        check_transport_options(options, OPTIONS)
        self._reply_timeout = as_number("read_timeout", options.get("read_timeout") or DEFAULT_TIMEOUT)
        self._write_timeout = as_number("write_timeout", options.get("write_timeout") or DEFAULT_TIMEOUT)
        self._confirms_all = bool(options.get("confirm_publish"))
        self.server_properties: dict[str, Any] = {}
        self._known_exchanges: set[str] = set()
        self._loop = asyncio.get_running_loop()
        self._stream = AsyncStream(self._loop, self._ended)
        self._protocol: AMQPProtocol | None = None
        self._acking: dict[AMQPChannel, list[int]] = {}  # the broker's tags that are acknowledged in this turn
        self._logged_in: Pending[None] | None = None
        self._room: Pending[None] | None = None
        self._pulse: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None

    # --- the connection

    async def connect(self) -> None:
        login: Login | None = None
        try:
            tls = tls_of(self.settings)
            login = Login(self.settings, Endpoint(None, address_of(self.settings)[0]))
            early = await asyncio.wait_for(self._open(tls, login), self.settings.connect_timeout)
            self._begin(login, early)
        except BaseException as error:
            self.abort()
            if isinstance(error, asyncio.TimeoutError):  # another class than TimeoutError before Python 3.11
                error = TimeoutError("the broker did not answer in time")
            if login is not None and isinstance(error, (OSError, exceptions.RecoverableConnectionError)):
                error = login.explain(error)
            if isinstance(error, OSError):
                raise exceptions.socket_error(error) from error
            raise error

    def _begin(self, login: Login, early: list[Any]) -> None:
        """Go on with what was agreed on, and with the events that came behind the login."""
        stream = self._stream
        stream.decoder.frame_max = stream.encoder.frame_max = login.frame_max
        stream.heartbeat.interval = float(login.heartbeat)
        self.server_properties = login.server_properties
        self._protocol = AMQPProtocol(stream, self.settings.options, login, repr(self.settings), self._emit)
        stream.handle = self._protocol.handle
        stream.on_progress = self._offer_room
        for event in early:
            self._protocol.handle(event)
        stream.check()
        if stream.heartbeat.interval:
            self._beat()

    async def _open(self, tls: Any, login: Login) -> list[Any]:
        """Connect and log in. Returns the events that came behind the login."""
        stream, loop = self._stream, self._loop
        early: list[Any] = []
        done: Pending[None] = loop.create_future()
        self._logged_in = done

        def handle(event: Any) -> None:
            if login.is_done:
                early.append(event)
                return
            answer = login.receive(event)
            if answer:
                stream.write(answer)
            if login.is_done:
                resolve(done)

        stream.handle = handle
        arguments = {} if tls is None else {"ssl": tls.context, "server_hostname": tls.server_hostname}
        sock = await connect_socket(self.settings)
        try:
            await loop.create_connection(lambda: stream, sock=sock, **arguments)
        except BaseException:
            sock.close()
            raise
        login.transport = Endpoint(sock, address_of(self.settings)[0])
        set_socket_options(sock, self.settings, self._write_timeout)
        stream.write(PROTOCOL_HEADER)
        await done
        return early

    async def close(self) -> None:
        stream = self._stream
        self.on_lost = do_nothing
        try:
            if self._protocol is not None and stream.failure is None:
                deadline = monotonic() + CLOSE_TIMEOUT
                ends = [self.close_channel(number) for number in self._protocol.channels if number]
                if ends:
                    await asyncio.wait(ends, timeout=CLOSE_TIMEOUT)
                if stream.failure is None:
                    farewell = self._ask(self._protocol.root, methods.CONNECTION_CLOSE, 0, "", 0, 0)
                    await asyncio.wait([farewell], timeout=max(deadline - monotonic(), 0))
        finally:
            self.abort()
        if self._protocol is not None:
            await asyncio.wait([stream.closed], timeout=CLOSE_TIMEOUT)

    def abort(self) -> None:
        self.on_lost = do_nothing
        self._stream.abort()
        self._end(aio.closed())

    def _ended(self, error: Exception) -> None:
        """End what is under way, because the stream has failed. Called by the loop."""
        if self._logged_in is not None:
            refuse(self._logged_in, error)
        self._end(error)
        self.on_lost(error)

    def _end(self, error: Exception) -> None:
        for timer in (self._pulse, self._watch):
            if timer is not None:
                timer.cancel()
        self._acking.clear()
        if self._protocol is not None:
            self._protocol.abandon(error)
        if self._room is not None:
            resolve(self._room)

    @property
    def connected(self) -> bool:
        return self._protocol is not None and self._stream.failure is None

    @property
    def blocked(self) -> str | None:
        return None if self._protocol is None else self._protocol.blocked

    @property
    def counts_failures(self) -> bool:
        return True

    @property
    def reply_address(self) -> str | None:
        able = self.server_properties.get("capabilities")
        return DIRECT_REPLY_TO if isinstance(able, dict) and able.get("direct_reply_to") else None

    @property
    def is_suspect(self) -> bool:
        return self._stream.failure is None and self._stream.heartbeat.is_late(monotonic())

    def _emit(self, event: Event) -> None:
        if type(event) is ChannelClosed:
            protocol = self._opened()
            if event.error.method_sig != methods.BASIC_PUBLISH:
                protocol.forget_failure(event.channel)  # the event tells of it
            elif protocol.is_without_confirms(event.channel):
                logger.warning("messages that were published without confirms are lost: %s", event.error)
        self.on_event(event)

    def _beat(self) -> None:
        """Send a heartbeat if one is due, and end the connection if the broker has missed two."""
        stream, now = self._stream, monotonic()
        heartbeat = stream.heartbeat
        heartbeat.look(now)
        if heartbeat.is_missed(now):
            stream.fail(exceptions.ConnectionForced("Too many heartbeats missed"))
            return
        if heartbeat.is_due(now):
            stream.write(HEARTBEAT_FRAME)
            heartbeat.note_sent(now)
        self._pulse = self._loop.call_later(heartbeat.next_look(), self._beat)

    # --- what is to be written

    def writable(self) -> Pending[None] | None:
        protocol = self._protocol
        if protocol is None or (protocol.blocked is None and not self._stream.is_full):
            return None
        if self._room is None or self._room.done():
            self._room = self._loop.create_future()
        return self._room

    def _offer_room(self) -> None:
        """Let publishers go on, if they may."""
        room, protocol = self._room, self._protocol
        if room is not None and protocol is not None and protocol.blocked is None and not self._stream.is_full:
            self._room = None
            resolve(room)

    # --- requests

    def _perform(
        self, channel: int, method: Method, *arguments: Any, result: Callable[[list[Any]], Any] | None = None
    ) -> Pending[Any]:
        state = self._opened().channel(channel)
        return self._ask(state, method, *arguments, result=result)

    def _ask(
        self,
        state: AMQPChannel,
        method: Method,
        *arguments: Any,
        result: Callable[[list[Any]], Any] | None = None,
    ) -> Pending[Any]:
        """Send a request, and return the future of what ``result`` makes of the arguments of its answer."""
        frame = self._opened().encode(state.number, method, *arguments)

        def make(answer: bytes) -> Any:
            values = method.decode(answer)
            return None if result is None else result(values)

        on_turn = state.close if method is methods.CHANNEL_CLOSE else state.check
        return self._request(state, method.name, frame, (method.reply,), make, on_turn)

    def _request(
        self,
        state: AMQPChannel,
        name: str,
        frame: bytes,
        replies: tuple[Signature, ...],
        result: Callable[[Any], Any],
        on_turn: Callable[[], object],
    ) -> Pending[Any]:
        self._stream.send(frame, on_turn=on_turn)
        pending: Pending[Any] = self._loop.create_future()
        state.requests.append(PendingRequest(name, replies, pending, result))
        if self._watch is None:
            self._watch = self._loop.call_later(self._reply_timeout, self._check_requests)
        return pending

    def _check_requests(self) -> None:
        """End the connection if the broker has not answered a request in time."""
        self._watch = None
        protocol = self._opened()
        oldest = min(
            (state.requests[0] for state in protocol.channels.values() if state.requests),
            key=lambda request: request.sent_at,
            default=None,
        )
        if oldest is None:
            return
        left = oldest.sent_at + self._reply_timeout - monotonic()
        if left > 0:
            self._watch = self._loop.call_later(left, self._check_requests)
            return
        reason = f", and does not take messages: {protocol.blocked}" if protocol.blocked is not None else ""
        text = f"{oldest.name}: the broker did not answer in {self._reply_timeout:g} s{reason}"
        self._stream.fail(exceptions.RecoverableConnectionError(text))

    # --- channels

    def open_channel(self, tag_offset: int = 0) -> Pending[int]:
        protocol = self._opened()
        state = protocol.add_channel(tag_offset)
        number = state.number
        opened = self._ask(state, methods.CHANNEL_OPEN, "", result=lambda _: number)
        if not self._confirms_all:
            return opened
        return self._confirm(state, number)

    def confirm(self, channel: int) -> Pending[None]:
        state = self._opened().channel(channel)
        if state.confirms is not None:
            return self._done(None)
        return self._confirm(state, None)

    def _confirm(self, state: AMQPChannel, result: Any) -> Pending[Any]:
        pending = self._ask(state, methods.CONFIRM_SELECT, False, result=lambda _: result)
        state.confirms = self._opened().confirms_class()
        return pending

    def _done(self, result: Any) -> Pending[Any]:
        pending: Pending[Any] = self._loop.create_future()
        pending.set_result(result)
        return pending

    def close_channel(self, channel: int) -> Pending[None]:
        protocol = self._opened()
        protocol.forget_failure(channel)
        state = protocol.channels.get(channel)
        ended: Pending[None] = self._loop.create_future()
        if state is None or state.closing:
            resolve(ended)
            return ended

        def finish(_: Any = None) -> None:
            if state.closing:  # by another call, which waited for the end of the consumers too
                resolve(ended)
                return
            self._stream.flush_acks()
            protocol.give_back(state)
            closed = self._ask(state, methods.CHANNEL_CLOSE, 0, "", 0, 0)
            closed.add_done_callback(partial(_pass_end_on, ended))

        tag = protocol.end_consumers(state)
        if tag is None:
            finish()
        else:
            cancelled = self._ask(state, methods.BASIC_CANCEL, tag, False, result=finish)
            cancelled.add_done_callback(partial(_pass_error_on, ended))
        return ended

    def qos(self, channel: int, prefetch_size: int, prefetch_count: int, apply_global: bool) -> Pending[None]:
        return self._perform(channel, methods.BASIC_QOS, prefetch_size, prefetch_count, apply_global)

    def flow(self, channel: int, active: bool) -> Pending[None]:
        self._check_flow(active)
        return self._perform(channel, methods.CHANNEL_FLOW, active)

    def list_queues(self, channel: int) -> Pending[Sequence[QueueStatus]]:
        raise exceptions.AMQPNotImplementedError("the amqp transport cannot list its queues")

    # --- publishing

    def publish(self, channel: int, delivery: Delivery, mandatory: bool = False) -> Pending[None] | None:
        protocol = self._protocol or self._opened()
        stream = self._stream
        state = protocol.channels.get(channel)
        if state is None:
            state = protocol.publisher(channel)
        try:
            frames = stream.encoder.publish(channel, delivery, mandatory)
        except NotEncodable as error:
            raise methods.not_encodable(error) from error
        if stream.failure is not None or state.closing:
            stream.check()
            state.check()
        confirms = state.confirms
        stream.write(frames)
        if confirms is not None:
            pending: Pending[None] = self._loop.create_future()
            confirms.add_one(PendingConfirm(delivery, mandatory, pending))
            return pending
        if delivery.exchange not in self._known_exchanges:
            return self._verify(state, {delivery.exchange})
        return None

    def _verify(self, state: AMQPChannel, exchanges: set[str], result: Any = None) -> Pending[Any]:
        """After the first message to an exchange, see whether the broker took it: see the transport of threads."""

        def learn(_: Any) -> Any:
            self._known_exchanges |= exchanges
            return result

        return self._ask(state, methods.CHANNEL_FLOW, True, result=learn)

    def publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False
    ) -> Pending[list[tuple[int, Exception]]]:
        protocol = self._opened()
        stream = self._stream
        state = protocol.channels.get(channel) or protocol.publisher(channel)
        stream.check()
        state.check()
        deliveries = list(deliveries)
        pending: Pending[list[tuple[int, Exception]]] = self._loop.create_future()
        batch = PendingBatch(pending, mandatory)
        following = 0
        while following < len(deliveries):
            start = following
            try:
                frames, following = stream.encoder.publish_many(channel, deliveries, start, CHUNK, mandatory)
            except NotEncodable as error:
                following += 1
                for each in batch.add(deliveries[start:following]):
                    each.settle(methods.not_encodable(error))
                continue
            stream.write(frames)
            sent = batch.add(deliveries[start:following])
            if state.confirms is not None:
                state.confirms.add(sent)
            else:
                for each in sent:
                    each.settle(None)
        exchanges = {delivery.exchange for delivery in deliveries}
        if state.confirms is None and not self._known_exchanges.issuperset(exchanges):
            refused = [(number, each.error) for number, each in enumerate(batch.messages) if each.error is not None]
            return self._verify(state, exchanges, refused)
        room = self.writable() if state.confirms is None else None
        if room is None:
            batch.finish()
        else:
            room.add_done_callback(lambda _: batch.finish())
        return pending

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
        protocol = self._opened()
        state = protocol.channel(channel)
        state.keeps_order = state.keeps_order or queue in protocol.single_active
        consumer_tag = consumer_tag or f"ctag-{uuid()}"
        flags = (False, no_ack, exclusive, False)
        pending = self._ask(
            state,
            methods.BASIC_CONSUME,
            *(0, queue, consumer_tag, *flags, arguments or {}),
            result=lambda _: consumer_tag,
        )
        state.consumers[consumer_tag] = no_ack
        state.takes_acks = state.takes_acks or not no_ack
        return pending

    def cancel(self, channel: int, consumer_tag: str) -> Pending[Sequence[Delivery] | None]:
        state = self._opened().channel(channel)

        def end(_: Any) -> tuple[()]:
            state.consumers.pop(consumer_tag, None)
            return ()

        return self._ask(state, methods.BASIC_CANCEL, consumer_tag, False, result=end)

    def get(self, channel: int, queue: str, no_ack: bool) -> Pending[Delivery | None]:
        state = self._opened().channel(channel)
        state.takes_acks = state.takes_acks or not no_ack

        def take(answer: Any) -> Delivery | None:
            if type(answer) is not Delivery:
                return None
            if pending.cancelled() and not no_ack:
                with suppress(exceptions.AMQPError):  # the channel is about to be closed
                    self.settle(channel, answer.delivery_tag, RETURN)
            return answer

        try:
            frame = self._stream.encoder.get(channel, queue, no_ack)
        except NotEncodable as error:
            raise methods.not_encodable(error) from error
        replies = (methods.BASIC_GET_EMPTY,)
        pending = self._request(state, "Basic.get", frame, replies, take, state.check)
        return pending

    def fast_ack(self, channel: int) -> AckStep:
        step: AckStep = self._opened().channel(channel).settled
        return step

    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> None:
        if outcome is not ACK or multiple:
            super().settle(channel, delivery_tag, outcome, multiple)
            return
        protocol = self._protocol or self._opened()
        stream = self._stream
        state = protocol.channels.get(channel)
        if state is None or state.closing or stream.failure is not None:
            stream.check()
            protocol.channel(channel).check()
            return
        if not 0 < delivery_tag <= stream.decoder.last_tag(channel):
            raise exceptions.PreconditionFailed(f"unknown delivery tag {delivery_tag!r}")
        if delivery_tag <= state.stale:
            raise state.stale_error()
        acking = self._acking.get(state)
        if acking is None:
            acking = self._acking[state] = []
            stream.before_flush = self._take_acks
            stream.flush_soon()
        acking.append(delivery_tag - state.tag_offset)

    def _take_acks(self) -> bytes:
        """Return the frames of what was acknowledged in this turn: as few as can be."""
        self._stream.before_flush = None
        frames = []
        for state, acknowledged in self._acking.items():
            if not state.closing:
                tags = sorted(set(acknowledged))
                frames.append(self._frames_to_settle(state, tags, ACK))
                state.settle_all(tags)
        self._acking.clear()
        return b"".join(frames)


def _pass_end_on(ended: Pending[None], closed: Pending[Any]) -> None:
    """Set the end of a channel: it is closed too where the broker was first."""
    error = None if closed.cancelled() else closed.exception()
    if error is None or isinstance(error, exceptions.ChannelError):
        resolve(ended)
    else:
        refuse(ended, error)


def _pass_error_on(ended: Pending[None], cancelled: Pending[Any]) -> None:
    if cancelled.cancelled() or cancelled.exception() is not None:
        _pass_end_on(ended, cancelled)
