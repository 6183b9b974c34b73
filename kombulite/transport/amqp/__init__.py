"""RabbitMQ, and other brokers of AMQP 0-9-1.

py-amqp opens the connection (``handshake``); after that the stream is ours: ``link`` reads and writes it through the
compiled codec, ``methods`` describes the control plane, ``confirms`` keeps what was published and not confirmed.

A connection may be shared by threads. What is one step for the broker (a publish, an ack, a declaration) is one here.
Of the threads that wait, one reads for all; an event goes to one of those that drain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from logging import getLogger
from operator import itemgetter
from threading import RLock
from time import monotonic
from typing import Any, NoReturn

from kombulite import exceptions
from kombulite._core import ConfirmReceived, Delivery, MethodReceived, NotEncodable, ReturnReceived
from kombulite.transport.amqp import methods
from kombulite.transport.amqp.confirms import Confirms, Unconfirmed
from kombulite.transport.amqp.handshake import DEFAULT_TIMEOUT, open_link
from kombulite.transport.amqp.link import Link
from kombulite.transport.amqp.methods import Method
from kombulite.transport.base import (
    Cancelled,
    Capabilities,
    ChannelClosed,
    Event,
    ExchangeSpec,
    Outcome,
    QueueInfo,
    QueueSpec,
    Returned,
    Settings,
)
from kombulite.transport.base import Transport as BaseTransport
from kombulite.utils.uuid import uuid

logger = getLogger("kombulite.amqp")

MOST_CHANNELS = 65535
CLOSE_TIMEOUT = 5.0  # seconds to wait for the broker's farewell
LOOK_INTERVAL = 0.01  # seconds after which a publisher looks whether the broker has said something
MOST_AHEAD = 100  # events that a publisher reads for others, at the most
CHUNK = 65536  # bytes, about what is sent at once of many messages
WINDOW = 4096  # messages of publish_many that may be unconfirmed

ACK, REJECT = Outcome.ACK, Outcome.REJECT  # as globals: looking a member up costs as much as the call
GET_REPLIES = (methods.BASIC_GET_EMPTY,)


class Channel:
    """What the transport knows of a channel."""

    def __init__(self, number: int, above: int = 0) -> None:
        self.number = number
        self.above = above  # what our delivery tags have more than the broker's
        self.lock = RLock()  # held from a request to its answer
        self.awaited: tuple[methods.Signature, ...] = ()  # what may answer the request that is under way
        self.answer: Any = None
        self.error: Exception | None = None  # why the broker closed it
        self.consumers: dict[str, bool] = {}  # tag -> no_ack
        self.confirms: Confirms | None = None


class Transport(BaseTransport):
    """A connection to a broker of AMQP 0-9-1. May be shared between threads."""

    driver_type = "amqp"
    driver_name = "py-amqp"
    capabilities = Capabilities(heartbeats=True, asynchronous=True)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        options = settings.options
        self._reply_timeout = float(options.get("read_timeout") or DEFAULT_TIMEOUT)
        self._write_timeout = float(options.get("write_timeout") or DEFAULT_TIMEOUT)
        self._confirms = bool(options.get("confirm_publish"))
        self._on_blocked, self._on_unblocked = options.get("on_blocked"), options.get("on_unblocked")
        self._link: Link | None = None
        self._lock = RLock()
        self._channels: dict[int, Channel] = {}
        self._failed: dict[int, exceptions.ChannelError] = {}  # closed by the broker, and nobody knows it yet
        self._numbers = cycle(range(1, MOST_CHANNELS + 1))
        self._channel_max = MOST_CHANNELS
        self._events: deque[Event] = deque()
        self._root = Channel(0)  # the connection itself
        self._blocked: str | None = None  # why the broker does not take messages
        self._known_exchanges: set[str] = set()  # published to without an error
        self._look_at = 0.0
        self.server_properties: dict[str, Any] = {}

    # --- the connection

    def connect(self) -> None:
        link, handshake = open_link(self.settings, self._write_timeout)
        link.handle = self._handle
        self._channel_max = min(handshake.channel_max or MOST_CHANNELS, MOST_CHANNELS)
        self._numbers = cycle(range(1, self._channel_max + 1))
        self.server_properties = dict(handshake.server_properties)
        self._channels[0] = self._root
        self._link = link

    def close(self) -> None:
        link = self._link
        if link is None:
            return
        try:
            if link.failure is None:
                self._request(self._root, methods.CONNECTION_CLOSE, 0, "", 0, 0, timeout=CLOSE_TIMEOUT)
        except (exceptions.ConnectionError, OSError):
            pass  # it is gone either way
        finally:
            self.collect()

    def collect(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()
        self._channels.clear()
        self._events.clear()

    @property
    def connected(self) -> bool:
        return self._link is not None and self._link.failure is None

    def driver_version(self) -> str:
        import amqp

        version: str = amqp.__version__
        return version

    def heartbeat_check(self, rate: float = 2) -> None:
        self._stream().beat(rate)

    def qos_semantics_matches_spec(self) -> bool:
        # RabbitMQ 3.3 to 3.x: the limit is for each consumer.
        if self.server_properties.get("product") != "RabbitMQ":
            return True
        try:
            major, minor = (int(part) for part in str(self.server_properties.get("version")).split(".")[:2])
        except ValueError:
            return True
        return not (3, 3) <= (major, minor) < (4, 0)

    def fileno(self) -> int | None:
        return self._stream().fileno()

    def _stream(self) -> Link:
        link = self._link
        if link is None:
            raise exceptions.RecoverableConnectionError("connection already closed")
        return link

    # --- requests and their answers

    def _channel(self, number: int) -> Channel:
        """The state of a channel. Raises the error that the broker closed it with, once."""
        try:
            return self._channels[number]
        except KeyError:
            self._stream().check()
        error = self._failed.get(number)
        if error is None:
            raise exceptions.RecoverableConnectionError("channel already closed")
        if error.method_sig == methods.BASIC_PUBLISH:
            # The publisher's to know (`publish` raises it); for all others the channel is just closed.
            raise exceptions.RecoverableConnectionError(f"channel already closed: {error}") from error
        del self._failed[number]
        raise error

    def _call(self, number: int, method: Method, *arguments: Any) -> list[Any]:
        """Send a request, wait for its answer, and return the answer's arguments."""
        return method.decode(self._request(self._channel(number), method, *arguments))

    def _request(self, channel: Channel, method: Method, *arguments: Any, timeout: float | None = None) -> Any:
        frame = self._stream().encoder.method(channel.number, *method.signature, method.encode(*arguments))
        return self._exchange(channel, method.name, frame, (method.reply,), timeout)

    def _exchange(
        self,
        channel: Channel,
        name: str,
        frame: bytes,
        replies: tuple[methods.Signature, ...],
        timeout: float | None = None,
    ) -> Any:
        """Send a frame and wait for what answers it: a method's arguments, or a message.

        After a timeout it is not known what the next answer would be for, so the connection is given up.
        """
        link = self._stream()
        timeout = self._reply_timeout if timeout is None else timeout
        with channel.lock:
            channel.answer, channel.awaited = None, replies
            try:
                link.send(frame, timeout)
                link.wait(lambda: channel.answer is not None or channel.error is not None, monotonic() + timeout)
            finally:
                channel.awaited = ()
            if channel.answer is None:
                self._raise_unanswered(channel, name, timeout)
            return channel.answer

    def _raise_unanswered(self, channel: Channel, name: str, timeout: float) -> NoReturn:
        if channel.error is not None:
            self._failed.pop(channel.number, None)  # now it is known
            raise channel.error
        reason = f", and does not take messages: {self._blocked}" if self._blocked is not None else ""
        self._stream().give_up(
            exceptions.RecoverableConnectionError(f"{name}: the broker did not answer in {timeout:g} s{reason}")
        )

    # --- what the broker says

    def _handle(self, event: Any) -> None:
        """Take an event to where it belongs. Called by the thread that reads."""
        if type(event) is Delivery:
            if event.consumer_tag is not None:
                self._events.append(event)
            else:
                self._answer(event.channel, methods.BASIC_GET_EMPTY, event)
        elif type(event) is ConfirmReceived:
            channel = self._channels.get(event.channel)
            if channel is not None and channel.confirms is not None:
                channel.confirms.settle(event)
        elif type(event) is MethodReceived:
            self._handle_method(event)
        else:
            self._handle_return(event)

    def _handle_method(self, event: MethodReceived) -> None:
        signature = event.signature
        if signature == methods.CONNECTION_CLOSE.signature:
            self._connection_closed(event.arguments)
        elif signature == methods.CHANNEL_CLOSE.signature:
            self._channel_closed(event.channel, event.arguments)
        elif signature == methods.CONNECTION_BLOCKED:
            self._blocked = methods.decode("s", event.arguments)[0] or "no reason given"
            logger.warning("the broker does not take messages: %s", self._blocked)
            if self._on_blocked is not None:
                self._on_blocked(self._blocked)
        elif signature == methods.CONNECTION_UNBLOCKED:
            self._blocked = None
            logger.info("the broker takes messages again")
            if self._on_unblocked is not None:
                self._on_unblocked()
        elif signature == methods.BASIC_CANCEL.signature:
            (consumer_tag, _) = methods.decode("sb", event.arguments)
            channel = self._channels.get(event.channel)
            if channel is not None and channel.consumers.pop(consumer_tag, None) is not None:
                self._events.append(Cancelled(event.channel, consumer_tag))
        else:
            self._answer(event.channel, signature, event.arguments)

    def _handle_return(self, event: ReturnReceived) -> None:
        channel = self._channels.get(event.channel)
        if channel is None or channel.confirms is None or not channel.confirms.returned(event):
            self._events.append(Returned(event.channel, event.reply_code, event.reply_text, event.delivery))

    def _answer(self, number: int, signature: methods.Signature, answer: Any) -> None:
        channel = self._channels.get(number)
        if channel is None:
            return  # closed by both sides at once: the broker's answer to us comes after we heard of it
        if signature not in channel.awaited:
            self._stream().give_up(exceptions.UnexpectedFrame(f"method {signature}, which nobody asked for"))
        channel.answer = answer

    def _connection_closed(self, arguments: bytes) -> None:
        code, text, class_id, method_id = methods.decode(methods.CLOSE_ARGUMENTS, arguments)
        link = self._stream()
        link.fail(self._error(code, text, (class_id, method_id), exceptions.ConnectionError))
        link.farewell(link.encoder.method(0, *methods.CONNECTION_CLOSE.reply, b""))

    def _channel_closed(self, number: int, arguments: bytes) -> None:
        code, text, class_id, method_id = methods.decode(methods.CLOSE_ARGUMENTS, arguments)
        error = self._error(code, text, (class_id, method_id), exceptions.ChannelError)
        channel = self._channels.get(number)
        link = self._stream()
        if channel is None or number == 0:
            link.give_up(exceptions.UnexpectedFrame(f"channel {number} is closed, which is not open"))
        link.send(link.encoder.method(number, *methods.CHANNEL_CLOSE.reply, b""))
        self._drop_channel(channel)
        channel.error = error
        if channel.confirms is not None:
            channel.confirms.fail(error)
        # Whoever waits for an answer on it takes the error from here; else the event tells, or the next request.
        self._failed[number] = error  # type: ignore[assignment]
        self._events.append(ChannelClosed(number, error))  # type: ignore[arg-type]

    def _error(
        self, code: int, text: str, signature: methods.Signature, default: type[exceptions.AMQPError]
    ) -> exceptions.AMQPError:
        from amqp.exceptions import METHOD_NAME_MAP

        name = METHOD_NAME_MAP.get(signature, "")
        if code == exceptions.PreconditionFailed.code and "inequivalent arg" in text:
            return exceptions.NotEquivalentError(text, signature, name, code)
        return exceptions.error_for_code(code, text, signature, name, default)

    # --- channels

    def open_channel(self, above: int = 0) -> int:
        link = self._stream()
        with self._lock:
            link.check()
            if len(self._channels) > self._channel_max:
                raise exceptions.ResourceError(f"all {self._channel_max} channels of this connection are open")
            # A number comes again only after all others: what is still under way for a closed channel finds nobody.
            number = next(number for number in self._numbers if number not in self._channels)
            channel = self._channels[number] = Channel(number, above)
            self._failed.pop(number, None)
        link.decoder.open(number, above)
        self._request(channel, methods.CHANNEL_OPEN, "")
        if self._confirms:
            self._request(channel, methods.CONFIRM_SELECT, False)
            channel.confirms = Confirms()
        return number

    def close_channel(self, channel: int) -> None:
        state = self._channels.get(channel)
        if state is not None and self.connected:
            try:
                self._request(state, methods.CHANNEL_CLOSE, 0, "", 0, 0)
            except exceptions.ChannelError:
                return  # the broker was first
            self._drop_channel(state)
        self._failed.pop(channel, None)

    def _drop_channel(self, channel: Channel) -> None:
        """Forget a channel, and what has come for it."""
        self._channels.pop(channel.number, None)
        self._drop_events(lambda event: event.channel == channel.number)
        self._stream().decoder.close(channel.number)

    def _drop_events(self, matching: Callable[[Event], bool]) -> list[Event]:
        """Take events out of those that wait."""
        dropped = []
        for _ in range(len(self._events)):
            event = self._events.popleft()
            if matching(event):
                dropped.append(event)
            else:
                self._events.append(event)
        return dropped

    def highest_tag(self, channel: int) -> int:
        return self._link.decoder.last_tag(channel) if self._link is not None else 0

    def channel_is_open(self, channel: int) -> bool:
        return channel in self._channels

    def qos(self, channel: int, prefetch_size: int, prefetch_count: int, apply_global: bool) -> None:
        self._call(channel, methods.BASIC_QOS, prefetch_size, prefetch_count, apply_global)

    def flow(self, channel: int, active: bool) -> None:
        if not active and self.server_properties.get("product") == "RabbitMQ":
            # It would close the connection.
            raise exceptions.AMQPNotImplementedError("RabbitMQ cannot pause a channel; cancel the consumer")
        self._call(channel, methods.CHANNEL_FLOW, active)

    # --- exchanges, queues, bindings

    def declare_exchange(self, channel: int, spec: ExchangeSpec, passive: bool) -> None:
        flags = (passive, spec.durable, spec.auto_delete, False, False)
        self._call(channel, methods.EXCHANGE_DECLARE, 0, spec.name, spec.type, *flags, spec.arguments or {})

    def delete_exchange(self, channel: int, name: str, if_unused: bool) -> None:
        self._known_exchanges.discard(name)
        self._call(channel, methods.EXCHANGE_DELETE, 0, name, if_unused, False)

    def declare_queue(self, channel: int, spec: QueueSpec, passive: bool) -> QueueInfo:
        flags = (passive, spec.durable, spec.exclusive, spec.auto_delete, False)
        return QueueInfo(*self._call(channel, methods.QUEUE_DECLARE, 0, spec.name, *flags, spec.arguments or {}))

    def delete_queue(self, channel: int, name: str, if_unused: bool, if_empty: bool) -> int:
        deleted: int = self._call(channel, methods.QUEUE_DELETE, 0, name, if_unused, if_empty, False)[0]
        return deleted

    def purge(self, channel: int, queue: str) -> int:
        purged: int = self._call(channel, methods.QUEUE_PURGE, 0, queue, False)[0]
        return purged

    def bind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> None:
        method = methods.EXCHANGE_BIND if to_exchange else methods.QUEUE_BIND
        self._call(channel, method, 0, destination, source, routing_key, False, arguments or {})

    def unbind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> None:
        if to_exchange:
            self._call(channel, methods.EXCHANGE_UNBIND, 0, destination, source, routing_key, False, arguments or {})
        else:
            self._call(channel, methods.QUEUE_UNBIND, 0, destination, source, routing_key, arguments or {})

    # --- publishing

    def publish(
        self,
        channel: int,
        delivery: Delivery,
        mandatory: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        try:
            state = self._channels[channel]
        except KeyError:
            state = self._publisher(channel)
        link = self._stream()
        if monotonic() > self._look_at or self._blocked is not None:
            timeout = self._look(state, timeout)
        try:
            frames = link.encoder.publish(channel, delivery, mandatory)
        except NotEncodable as error:
            raise exceptions.EncodeError(str(error)) from error
        if state.confirms is None:
            link.send(frames, timeout)
            if delivery.exchange not in self._known_exchanges:
                self._verify(state, delivery.exchange)
            return
        with link.writing:
            message = state.confirms.add(delivery)
            link.send(frames, timeout)
        if not self._await_confirms([message], timeout if confirm_timeout is None else confirm_timeout):
            raise TimeoutError("the broker did not confirm the message in time")
        if message.error is not None:
            self._acknowledge_failure(state)
            raise message.error

    def _publisher(self, number: int) -> Channel:
        """The state of a channel to publish on. Raises what an earlier publish ended in, if it closed the channel."""
        error = self._failed.pop(number, None)
        if error is not None:
            raise error
        return self._channel(number)

    def _acknowledge_failure(self, channel: Channel) -> None:
        """The caller is told that the channel is closed, if it is: nobody else has to."""
        if channel.error is not None:
            self._failed.pop(channel.number, None)

    def _look(self, channel: Channel, timeout: float | None) -> float | None:
        """Hear what the broker has to say to a publisher: that it is blocked, or did not like an earlier message.

        Returns what is left of the timeout.
        """
        link = self._stream()
        if len(self._events) < MOST_AHEAD:
            link.look()
        self._look_at = monotonic() + LOOK_INTERVAL
        link.check()
        if channel.error is not None:
            self._publisher(channel.number)
        if self._blocked is None:
            return timeout
        deadline = monotonic() + (self._write_timeout if timeout is None else timeout)
        if not link.wait(lambda: self._blocked is None, deadline):
            raise exceptions.Blocked(f"the broker does not take messages: {self._blocked}")
        return deadline - monotonic()

    def _verify(self, channel: Channel, exchange: str) -> None:
        """After the first message to an exchange, see whether the broker took it.

        Without confirms it says nothing if so, and closes the channel if not. Either comes before the answer to a
        request that is sent now.
        """
        self._request(channel, methods.CHANNEL_FLOW, True)
        self._known_exchanges.add(exchange)

    def _await_confirms(self, messages: Sequence[Unconfirmed], timeout: float | None) -> bool:
        """Wait until the broker has confirmed or refused all of them. Returns whether it has in time."""
        first = 0

        def done() -> bool:
            nonlocal first
            while first < len(messages) and messages[first].done:
                first += 1
            return first == len(messages)

        return self._stream().wait(done, monotonic() + (self._reply_timeout if timeout is None else timeout))

    def publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> list[tuple[int, Exception]]:
        state = self._channels.get(channel) or self._publisher(channel)
        link = self._stream()
        deliveries = list(deliveries)
        refused: list[tuple[int, Exception]] = []
        sent: dict[int, Unconfirmed] = {}
        index = 0
        while index < len(deliveries):
            timeout = self._look(state, timeout)
            try:
                frames, following = link.encoder.publish_many(channel, deliveries, index, CHUNK, mandatory)
            except NotEncodable as error:
                refused.append((index, exceptions.EncodeError(str(error))))
                index += 1
                continue
            with link.writing:
                if state.confirms is not None:
                    for number in range(index, following):
                        sent[number] = state.confirms.add(deliveries[number])
                link.send(frames, timeout)
            index = following
            if state.confirms is not None and len(state.confirms) > WINDOW:
                self._await_confirms(list(sent.values())[: -WINDOW // 2], timeout)
        if state.confirms is None:
            exchanges = {delivery.exchange for delivery in deliveries} - self._known_exchanges
            for exchange in exchanges:
                self._verify(state, exchange)
            return refused
        self._await_confirms(list(sent.values()), timeout)
        for number, message in sent.items():
            if not message.done:
                refused.append((number, TimeoutError("the broker did not confirm the message in time")))
            elif message.error is not None:
                refused.append((number, message.error))
        self._acknowledge_failure(state)
        return sorted(refused, key=itemgetter(0))

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
        state.consumers[consumer_tag] = no_ack
        flags = (False, no_ack, exclusive, False)
        try:
            self._request(state, methods.BASIC_CONSUME, 0, queue, consumer_tag, *flags, arguments or {})
        except BaseException:
            state.consumers.pop(consumer_tag, None)
            raise
        return consumer_tag

    def cancel(self, channel: int, consumer_tag: str) -> None:
        state = self._channel(channel)
        self._request(state, methods.BASIC_CANCEL, consumer_tag, False)
        no_ack = state.consumers.pop(consumer_tag, True)
        # What the broker sent before it heard of it goes back.
        for event in self._drop_events(
            lambda event: type(event) is Delivery and event.channel == channel and event.consumer_tag == consumer_tag
        ):
            assert isinstance(event, Delivery)
            if no_ack:
                logger.warning("a message of the cancelled consumer %s, which needs no ack, is lost", consumer_tag)
            else:
                self.settle(channel, event.delivery_tag, Outcome.REQUEUE)

    def get(self, channel: int, queue: str, no_ack: bool) -> Delivery | None:
        state = self._channel(channel)
        frame = self._stream().encoder.get(channel, queue, no_ack)
        answer = self._exchange(state, "Basic.get", frame, GET_REPLIES)
        return answer if type(answer) is Delivery else None

    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> None:
        state = self._channels.get(channel) or self._channel(channel)
        link = self._stream()
        if delivery_tag > link.decoder.last_tag(channel) or (delivery_tag == 0 and not multiple):
            # The broker would close the channel.
            raise exceptions.PreconditionFailed(f"unknown delivery tag {delivery_tag!r}")
        if state.above and delivery_tag:
            if delivery_tag <= state.above:
                raise exceptions.RecoverableConnectionError("the message came on a connection that was lost")
            delivery_tag -= state.above
        if outcome is ACK:
            frame = link.encoder.ack(channel, delivery_tag, multiple)
        elif multiple:
            frame = link.encoder.nack(channel, delivery_tag, True, outcome is not REJECT)
        else:
            frame = link.encoder.reject(channel, delivery_tag, outcome is not REJECT)
        link.send(frame, None, True)

    def recover(self, channel: int) -> None:
        self._call(channel, methods.BASIC_RECOVER, True)

    def receive(self, timeout: float | None) -> Sequence[Event]:
        link = self._stream()
        link.check()  # what is left of a lost connection comes again on the next
        events = self._events
        if not events and link.reading.acquire(blocking=False):
            # The common case: the next of many messages that were read at once.
            try:
                event = link.next_event()
                if type(event) is Delivery and event.consumer_tag is not None:
                    return (event,)
                if event is not None:
                    self._handle(event)
            finally:
                link.reading.release()
                if link.waiters:
                    link.wake()
        return self._wait_for_event(link, timeout)

    def _wait_for_event(self, link: Link, timeout: float | None) -> Sequence[Event]:
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            if timeout is None and not self._events and not self._has_consumers():
                link.check()
                raise exceptions.OperationalError("waiting without a timeout, and there is no consumer to wait for")
            if not link.wait(lambda: self._events, deadline):
                return ()
            try:
                event = self._events.popleft()
            except IndexError:
                continue  # another thread was faster
            if isinstance(event, ChannelClosed) and self._failed.pop(event.channel, None) is not event.error:
                continue  # somebody knows it already
            return (event,)

    def _has_consumers(self) -> bool:
        return any(channel.consumers for channel in list(self._channels.values()))
