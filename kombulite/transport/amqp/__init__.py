"""RabbitMQ, and other brokers of AMQP 0-9-1.

py-amqp opens the connection (``handshake``); after that the stream is ours: ``link`` reads and writes it through the
compiled codec, ``methods`` describes the control plane, ``confirms`` keeps what was published and not confirmed.

A connection may be shared by threads. What is one step for the broker (a publish, an ack, a declaration) is one here.
Of the threads that wait, one reads for all; an event goes to one of those that drain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import cycle
from logging import getLogger
from threading import RLock
from time import monotonic
from typing import Any, NoReturn

from kombulite import exceptions
from kombulite._core import ConfirmReceived, Delivery, MethodReceived, NotEncodable, ReturnReceived
from kombulite.transport.amqp import methods
from kombulite.transport.amqp.confirms import Confirms, Unconfirmed, all_done
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
        self.error: exceptions.ChannelError | None = None  # why the broker closed it
        self.left = False  # one side has closed it: whatever is sent on it now would end the connection
        self.consumers: dict[str, bool] = {}  # tag -> no_ack
        self.confirms: Confirms | None = None
        self.flows = 0  # answers to channel.flow that are to come

    # For `Link.send`, when it is a frame's turn.

    def check(self) -> None:
        """Raise RecoverableConnectionError if the channel is closed."""
        if self.left:
            raise self.closed_error()

    def closed_error(self) -> exceptions.RecoverableConnectionError:
        """What all are told but the one whose request or message it was closed for."""
        reason = f": {self.error}" if self.error is not None else ""
        return exceptions.RecoverableConnectionError(f"channel already closed{reason}")

    def leave(self) -> None:
        """This frame is the last one."""
        self.left = True

    def close(self) -> None:
        """This frame, which asks the broker to close the channel, is the last one."""
        self.check()
        self.left = True

    def ask_flow(self) -> None:
        """Expect one more answer to channel.flow."""
        self.check()
        self.flows += 1

    def count(self, messages: Sequence[Unconfirmed]) -> None:
        """Expect confirms for messages. Raises what the channel was closed for."""
        if self.left:
            raise self.error or self.closed_error()
        assert self.confirms is not None
        self.confirms.add(messages)


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
        self._failed: dict[int, Channel] = {}  # closed by the broker, and nobody knows it yet
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
        channel = self._failed.get(number)
        if channel is None:
            raise exceptions.RecoverableConnectionError("channel already closed")
        assert channel.error is not None
        if channel.error.method_sig == methods.BASIC_PUBLISH:
            # The publisher's to know (`publish` raises it); for all others the channel is just closed.
            raise channel.closed_error() from channel.error
        self._told(channel)
        raise channel.error

    def _told(self, channel: Channel) -> None:
        """Somebody knows that the broker closed the channel. Its consumers, if it had any, learn it from the event."""
        self._failed.pop(channel.number, None)
        if not channel.consumers:
            self._drop_events(lambda event: event.channel == channel.number)

    def _call(self, number: int, method: Method, *arguments: Any) -> list[Any]:
        """Send a request, wait for its answer, and return the answer's arguments."""
        return method.decode(self._request(self._channel(number), method, *arguments))

    def _request(self, channel: Channel, method: Method, *arguments: Any, timeout: float | None = None) -> Any:
        frame = self._stream().encoder.method(channel.number, *method.signature, method.encode(*arguments))
        on_turn = channel.close if method is methods.CHANNEL_CLOSE else channel.check
        return self._exchange(channel, method.name, frame, (method.reply,), timeout, on_turn)

    def _exchange(
        self,
        channel: Channel,
        name: str,
        frame: bytes,
        replies: tuple[methods.Signature, ...],
        timeout: float | None,
        on_turn: Callable[[], None],
    ) -> Any:
        """Send a frame and wait for what answers it: a method's arguments, or a message.

        After a timeout it is not known what the next answer would be for, so the connection is given up.
        """
        link = self._stream()
        timeout = self._reply_timeout if timeout is None else timeout
        with channel.lock:
            channel.answer, channel.awaited = None, replies
            try:
                link.send(frame, timeout, on_turn=on_turn)
                link.wait(lambda: channel.answer is not None or channel.error is not None, monotonic() + timeout)
            finally:
                channel.awaited = ()
            if channel.answer is None:
                self._raise_unanswered(channel, name, timeout)
            return channel.answer

    def _raise_unanswered(self, channel: Channel, name: str, timeout: float) -> NoReturn:
        if channel.error is not None:
            self._told(channel)
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
        if channel is not None and signature in channel.awaited:
            channel.answer = answer
        elif channel is not None and channel.flows and signature == methods.CHANNEL_FLOW.reply:
            channel.flows -= 1
        elif channel is not None or signature != methods.CHANNEL_CLOSE.reply:  # both sides may close at the same time
            raise exceptions.UnexpectedFrame(f"method {signature} on channel {number}, which nobody asked for")

    def _connection_closed(self, arguments: bytes) -> None:
        code, text, class_id, method_id = methods.decode(methods.CLOSE_ARGUMENTS, arguments)
        link = self._stream()
        link.fail(self._error(code, text, (class_id, method_id), exceptions.ConnectionError))
        link.farewell(link.encoder.method(0, *methods.CONNECTION_CLOSE.reply, b""))

    def _channel_closed(self, number: int, arguments: bytes) -> None:
        code, text, class_id, method_id = methods.decode(methods.CLOSE_ARGUMENTS, arguments)
        error = self._error(code, text, (class_id, method_id), exceptions.ChannelError)
        if not isinstance(error, exceptions.ChannelError):
            # A code that is for connections, but it is the channel that is closed.
            error = exceptions.ChannelError(text, error.method_sig, error.method_name, code)
        channel = self._channels.get(number)
        if channel is None or number == 0:
            raise exceptions.UnexpectedFrame(f"channel {number} is closed, which is not open")
        link = self._stream()
        channel.error = error
        link.send(link.encoder.method(number, *methods.CHANNEL_CLOSE.reply, b""), on_turn=channel.leave)
        # Whoever waits for an answer on it takes the error from there; else the event tells, or the next request.
        self._failed[number] = channel
        self._drop_channel(channel, (Delivery, Cancelled))
        self._events.append(ChannelClosed(number, error))
        if channel.confirms is not None:
            channel.confirms.fail(error)

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
        if state is not None and not state.left and self.connected:
            try:
                self._request(state, methods.CHANNEL_CLOSE, 0, "", 0, 0)
            except exceptions.ChannelError:
                return  # the broker was first
            self._drop_channel(state)
        self._failed.pop(channel, None)

    def _drop_channel(self, channel: Channel, kinds: type[Any] | tuple[type[Any], ...] = object) -> None:
        """Forget a channel, and what has come for it, of these kinds."""
        self._channels.pop(channel.number, None)
        self._drop_events(lambda event: event.channel == channel.number and isinstance(event, kinds))
        self._stream().decoder.close(channel.number)

    def _drop_events(self, matching: Callable[[Event], bool]) -> list[Event]:
        """Take events out of those that wait."""
        dropped = []
        for event in filter(matching, list(self._events)):
            with suppress(ValueError):  # another thread took it
                self._events.remove(event)
                dropped.append(event)
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
        self._flow(self._channel(channel), active, self._reply_timeout)

    def _flow(self, channel: Channel, active: bool, timeout: float) -> None:
        """Let deliveries flow, or not, and wait until the broker has done that, and all that came before it.

        Raises Blocked, or RecoverableConnectionError, if it has not in time. A late answer does no harm: all are
        counted.
        """
        link = self._stream()
        method = methods.CHANNEL_FLOW
        frame = link.encoder.method(channel.number, *method.signature, method.encode(active))
        with channel.lock:
            link.send(frame, timeout, on_turn=channel.ask_flow)
            in_time = link.wait(lambda: not channel.flows or channel.error is not None, monotonic() + timeout)
        if channel.error is not None:
            self._told(channel)
            raise channel.error
        if not in_time:
            self._raise_blocked()
            raise exceptions.RecoverableConnectionError(f"the broker did not answer in {timeout:g} s")

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
            link.send(frames, timeout, False, state.check)
            if delivery.exchange not in self._known_exchanges:
                self._verify(state, [delivery.exchange], timeout)
            return
        message = Unconfirmed(delivery)
        try:
            link.send(frames, timeout, on_turn=partial(state.count, [message]))
            self._await_confirms(lambda: message.done, timeout if confirm_timeout is None else confirm_timeout)
            if message.error is not None:
                raise message.error
        except exceptions.ChannelError:
            if state.error is not None:
                self._told(state)
            raise

    def _publisher(self, number: int) -> Channel:
        """The state of a channel to publish on. Raises what an earlier publish ended in, if it closed the channel."""
        channel = self._failed.get(number)
        if channel is None:
            return self._channel(number)
        self._told(channel)
        assert channel.error is not None
        raise channel.error

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
            self._told(channel)
            raise channel.error
        if self._blocked is not None:
            deadline = monotonic() + (self._write_timeout if timeout is None else timeout)
            if not link.wait(lambda: self._blocked is None, deadline):
                self._raise_blocked()
            return deadline - monotonic()
        return timeout

    def _raise_blocked(self) -> None:
        """Raise Blocked, if the broker is."""
        blocked = self._blocked
        if blocked is not None:
            raise exceptions.Blocked(f"the broker does not take messages: {blocked}")

    def _verify(self, channel: Channel, exchanges: Iterable[str], timeout: float | None) -> None:
        """After the first message to an exchange, see whether the broker took it.

        Without confirms it says nothing if so, and closes the channel if not. Either comes before the answer to a
        request that is sent now.
        """
        self._flow(channel, True, self._reply_timeout if timeout is None else timeout)
        self._known_exchanges.update(exchanges)

    def _await_confirms(self, done: Callable[[], object], timeout: float | None) -> None:
        """Wait for confirms until ``done()``. Raises Blocked, TimeoutError, and what the link ended with."""
        timeout = self._reply_timeout if timeout is None else timeout
        if not self._stream().wait(done, monotonic() + timeout):
            self._raise_blocked()
            raise TimeoutError(f"the broker did not confirm the message in {timeout:g} s")

    def publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> list[tuple[int, Exception]]:
        state = self._channels.get(channel) or self._publisher(channel)
        deliveries = list(deliveries)
        timeout = self._look(state, timeout)
        if state.confirms is not None:
            return self._publish_confirmed(state, deliveries, mandatory, timeout)
        link = self._stream()
        refused: list[tuple[int, Exception]] = []
        following = 0
        while following < len(deliveries):
            try:
                frames, following = link.encoder.publish_many(channel, deliveries, following, CHUNK, mandatory)
            except NotEncodable as error:
                refused.append((following, exceptions.EncodeError(str(error))))
                following += 1
                continue
            link.send(frames, timeout, False, state.check)
            timeout = self._look(state, timeout)
        exchanges = {delivery.exchange for delivery in deliveries}
        if not self._known_exchanges.issuperset(exchanges):
            self._verify(state, exchanges, timeout)
        return refused

    def _publish_confirmed(
        self, channel: Channel, deliveries: list[Delivery], mandatory: bool, timeout: float | None
    ) -> list[tuple[int, Exception]]:
        """Send ahead within a window, and wait for the confirms. When the channel is closed the rest is refused too."""
        confirms = channel.confirms
        assert confirms is not None
        link = self._stream()
        messages = list(map(Unconfirmed, deliveries))
        following = 0
        try:
            while following < len(messages):
                start = following
                try:
                    frames, following = link.encoder.publish_many(channel.number, deliveries, start, CHUNK, mandatory)
                except NotEncodable as error:
                    messages[start].settle(exceptions.EncodeError(str(error)))
                    following += 1
                    continue
                link.send(frames, timeout, on_turn=partial(channel.count, messages[start:following]))
                timeout = self._look(channel, timeout)
                if len(confirms) > WINDOW:
                    self._await_confirms(lambda: len(confirms) <= WINDOW // 2, timeout)
            self._await_confirms(all_done(messages), timeout)
        except (exceptions.ChannelError, exceptions.Blocked, TimeoutError) as error:
            # Whether the broker has those that it has not confirmed is not known; if it says so later nobody hears.
            for message in messages:
                if not message.done:
                    message.settle(error)
        if channel.error is not None:
            self._told(channel)
        return [(number, message.error) for number, message in enumerate(messages) if message.error is not None]

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
        answer = self._exchange(state, "Basic.get", frame, GET_REPLIES, None, state.check)
        return answer if type(answer) is Delivery else None

    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> None:
        link = self._stream()
        state = self._channels.get(channel) or self._channel(channel)
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
        link.send(frame, None, True, state.check)

    def recover(self, channel: int) -> None:
        self._call(channel, methods.BASIC_RECOVER, True)

    def receive(self, timeout: float | None) -> Sequence[Event]:
        link = self._stream()
        link.check()  # what is left of a lost connection comes again on the next
        events = self._events
        if not events and link.reading.acquire(blocking=False):
            # The common case: the next of many messages that were read at once.
            try:
                event = link.next_event() if not events else None  # the thread that read until now may have left some
                if type(event) is Delivery and event.consumer_tag is not None:
                    return (event,)
                if event is not None:
                    link.dispatch(event)
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
            if isinstance(event, ChannelClosed):
                self._failed.pop(event.channel, None)
            return (event,)

    def _has_consumers(self) -> bool:
        return any(channel.consumers for channel in list(self._channels.values()))
