"""RabbitMQ, and other brokers of AMQP 0-9-1.

``protocol`` keeps the state of a connection, and neither reads nor waits: ``channel``, ``confirms``, ``login``,
``heartbeat`` and ``methods`` are parts of it, ``verbs`` what a transport asks of it. It has two streams. This module is
the transport of threads, over ``stream`` and the calls that wait (``blocking``); ``aio`` is the one of event loops.

A connection may be shared by threads. What is one step for the broker (a publish, an ack, a declaration) is one here.
Of the threads that wait, one reads for all; an event goes to one of those that drain.

It is long because its verbs are many, and the hot ones are written out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import repeat
from time import monotonic
from typing import Any

from kombulite import exceptions
from kombulite._core import AckStep, Delivery, FramePublish, NotEncodable, PublishStep
from kombulite.brokers.amqp import methods
from kombulite.brokers.amqp.blocking import BlockingProtocol, SharedChannel
from kombulite.brokers.amqp.confirms import Unconfirmed, all_done, settle_rest, unknown_after
from kombulite.brokers.amqp.connector import DEFAULT_TIMEOUT, OPTIONS, open_stream
from kombulite.brokers.amqp.heartbeat_thread import heartbeats
from kombulite.brokers.amqp.limits import PrefetchLimit
from kombulite.brokers.amqp.methods import Method
from kombulite.brokers.amqp.verbs import RETURN, AMQPVerbs
from kombulite.brokers.base import (
    Capabilities,
    Event,
    Returned,
    Settings,
)
from kombulite.brokers.base import Transport as BaseTransport
from kombulite.brokers.options import as_number, check_transport_options
from kombulite.utils.uuid import uuid

CLOSE_TIMEOUT = 5.0  # seconds to wait for the broker's farewell
LOOK_INTERVAL = 0.01  # seconds after which a publisher looks whether the broker has said something
MAX_READ_AHEAD = 100  # events that a publisher reads for others, at the most
CHUNK = 65536  # bytes, about what is sent at once of many messages
WINDOW = 4096  # messages of publish_many that may be unconfirmed

GET_REPLIES = (methods.BASIC_GET_EMPTY,)


class Transport(AMQPVerbs, BaseTransport):
    """A connection to a broker of AMQP 0-9-1. May be shared between threads."""

    driver_type = "amqp"
    driver_name = "py-amqp"
    counts_failures = True
    async_transport = "kombulite.brokers.amqp.aio:AsyncTransport"
    capabilities = Capabilities(heartbeats=True, asynchronous=True, queue_kinds=True)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        options = settings.options
        check_transport_options(options, OPTIONS)
        self._reply_timeout = as_number("read_timeout", options.get("read_timeout") or DEFAULT_TIMEOUT)
        self._write_timeout = as_number("write_timeout", options.get("write_timeout") or DEFAULT_TIMEOUT)
        self.confirms = bool(options.get("confirm_publish"))
        self._protocol: BlockingProtocol | None = None
        self._known_exchanges: set[str] = set()  # published to without an error
        self.look_at = 0.0  # when a publisher looks again whether the broker has said something
        self.server_properties: dict[str, Any] = {}

    # --- the connection

    def connect(self) -> None:
        stream, login = open_stream(self.settings, self._write_timeout)
        self.server_properties = login.server_properties
        name = self.client.as_uri() if self.client is not None else repr(self.settings)
        self._protocol = BlockingProtocol(stream, self.settings.options, login, name, self._reply_timeout)
        self.poll_ready = self._protocol.poll_ready
        if self.settings.options.get("heartbeat_thread", True):
            stream.hold_acks(partial(heartbeats.flush_soon, stream))
            if stream.heartbeat.interval:
                heartbeats.add(stream)

    def close(self) -> None:
        protocol = self._protocol
        try:
            if protocol is not None and protocol.stream.failure is None:
                protocol.return_all(CLOSE_TIMEOUT)
                protocol.request(protocol.root, methods.CONNECTION_CLOSE, 0, "", 0, 0, timeout=CLOSE_TIMEOUT)
        except (exceptions.ConnectionError, OSError):
            pass  # it is gone either way
        finally:
            self.collect()

    def collect(self) -> None:
        protocol, self._protocol = self._protocol, None
        self.poll_ready = None
        if protocol is not None:
            protocol.stream.close()
            heartbeats.remove(protocol.stream)

    @property
    def connected(self) -> bool:
        return self._protocol is not None and self._protocol.stream.failure is None

    def driver_version(self) -> str:
        import amqp

        version: str = amqp.__version__
        return version

    @property
    def is_suspect(self) -> bool:
        return self._protocol is not None and self._protocol.stream.is_suspect

    default_port = 5672

    @property
    def default_connection_params(self) -> dict[str, Any]:
        """What a URL that leaves it out stands for."""
        return {**super().default_connection_params, "userid": "guest", "password": "guest", "login_method": "PLAIN"}

    def heartbeat_check(self, connection: Any = None, rate: float = 2) -> None:
        self._opened().stream.beat(rate)

    @property
    def heartbeat_interval(self) -> float:
        return self._protocol.stream.heartbeat.interval if self._protocol is not None else super().heartbeat_interval

    def qos_semantics_matches_spec(self, connection: Any = None) -> bool:
        # RabbitMQ 3.3 to 3.x: the limit is for each consumer.
        return not self._is_rabbitmq_since((3, 3)) or self._is_rabbitmq_since((4, 0))

    def fileno(self) -> int | None:
        number: int = self._opened().stream.fileno()
        return number

    # --- channels

    def open_channel(self, above: int = 0) -> int:
        number: int = self._opened().open_channel(above).number
        if self.confirms:
            self.confirm(number)
        return number

    def close_channel(self, channel: int) -> None:
        protocol = self._protocol
        if protocol is not None and protocol.stream.failure is None:
            protocol.close_channel(channel)

    def _perform(
        self, channel: int, method: Method, *arguments: Any, result: Callable[[list[Any]], Any] | None = None
    ) -> Any:
        values = self._opened().call(channel, method, *arguments)
        return None if result is None else result(values)

    def qos(self, channel: int, prefetch_size: int, prefetch_count: int, apply_global: bool) -> None:
        protocol = self._opened()
        protocol.call(channel, methods.BASIC_QOS, prefetch_size, prefetch_count, apply_global)
        if self._is_for_new_consumers(apply_global):
            protocol.channel(channel).prefetch_count = prefetch_count

    def _is_for_new_consumers(self, apply_global: bool) -> bool:
        """Return whether the broker bounds consumers by a prefetch count, and leaves those that are running alone."""
        return self._is_rabbitmq_since((3, 3)) and (not apply_global or self._is_rabbitmq_since((4, 0)))

    def successor_count(self, channel: int, consumer_tag: str, prefetch_count: int, apply_global: bool) -> int | None:
        protocol = self._opened()
        state, decoder = protocol.channel(channel), protocol.stream.decoder
        limit: PrefetchLimit | None = state.limits.get(consumer_tag)
        _, has_streams = decoder.sources(channel)
        if limit is None or has_streams or not self._is_for_new_consumers(apply_global):
            return None
        last = decoder.last_tag(channel) - state.tag_offset
        return limit.count_for(prefetch_count, state.settled.unsettled(last), last, len(state.consumers) == 1)

    def replace_consumer(
        self,
        channel: int,
        consumer_tag: str,
        successor: str,
        prefetch_count: int,
        queue: str,
        arguments: Mapping[str, Any] | None,
    ) -> None:
        protocol = self._opened()
        state = protocol.channel(channel)
        wanted, last = state.prefetch_count, protocol.stream.decoder.last_tag(channel) - state.tag_offset
        self.qos(channel, 0, prefetch_count, False)
        # Before the other one ends: the end of its last consumer may be that of the queue.
        self.consume(channel, queue, successor, False, False, arguments)
        protocol.request(state, methods.BASIC_CANCEL, consumer_tag, False)
        self.qos(channel, 0, wanted, False)
        limit = state.limits.pop(consumer_tag, None)
        if limit is not None:  # else the broker has cancelled it meanwhile
            limit.succeed(prefetch_count, last)
            state.limits[successor] = limit
        state.consumers.pop(consumer_tag, None)
        for event in list(protocol.events):
            if type(event) is Delivery and event.channel == channel and event.consumer_tag == consumer_tag:
                event.consumer_tag = successor

    def flow(self, channel: int, active: bool) -> None:
        self._check_flow(active)
        protocol = self._opened()
        protocol.flow(protocol.channel(channel), active, self._reply_timeout)

    # --- publishing

    def confirm(self, channel: int) -> None:
        self._opened().confirm(channel)

    def fast_publish(self, channel: int) -> PublishStep:
        protocol = self._opened()
        stream = protocol.stream
        return FramePublish(
            self.publish,
            monotonic,
            self,
            protocol,
            protocol.channel(channel),
            stream,
            stream.writing,
            stream.encoder,
            stream.writer,
            self._known_exchanges,
        )

    def publish(
        self,
        channel: int,
        delivery: Delivery,
        mandatory: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        protocol = self._protocol or self._opened()
        try:
            state = protocol.channels[channel]
        except KeyError:
            state = protocol.publisher(channel)
        if timeout is None and state.confirms is not None:
            timeout = confirm_timeout
        stream = protocol.stream
        if monotonic() > self.look_at or protocol.blocked is not None:
            timeout = self._look(protocol, state, timeout)
        try:
            frames = stream.encoder.publish(channel, delivery, mandatory)
        except NotEncodable as error:
            raise methods.not_encodable(error) from error
        if state.confirms is None:
            stream.send(frames, timeout, False, state.pass_by)
            if delivery.exchange not in self._known_exchanges:
                self._verify(protocol, state, [delivery.exchange], timeout)
            return
        message = Unconfirmed(delivery, mandatory)
        try:
            stream.send(frames, timeout, on_turn=partial(state.count, [message]))
            self._await_confirms(
                protocol, lambda: message.done, timeout if confirm_timeout is None else confirm_timeout
            )
            if message.error is not None:
                raise message.error
        except exceptions.ChannelError:
            if state.error is not None:
                protocol.mark_reported(state)
            raise
        finally:
            if not message.done:
                message.let_go()

    def _look(self, protocol: BlockingProtocol, channel: SharedChannel, timeout: float | None) -> float | None:
        """Hear what the broker has to say to a publisher: that it is blocked, or did not like an earlier message.

        Returns what is left of the timeout.
        """
        stream = protocol.stream
        if len(protocol.events) < MAX_READ_AHEAD:
            stream.look()
        self.look_at = monotonic() + LOOK_INTERVAL
        stream.check()
        if channel.error is not None:
            protocol.mark_reported(channel)
            raise channel.unsent_error()
        if protocol.blocked is None:
            return timeout
        deadline = monotonic() + (self._write_timeout if timeout is None else timeout)
        if not stream.wait(lambda: protocol.blocked is None, deadline):
            protocol.raise_blocked()
        return deadline - monotonic()

    def _verify(
        self, protocol: BlockingProtocol, channel: SharedChannel, exchanges: Iterable[str], timeout: float | None
    ) -> None:
        """After the first message to an exchange, see whether the broker took it.

        Without confirms it says nothing if so, and closes the channel if not. Either comes before the answer to a
        request that is sent now.
        """
        try:
            protocol.flow(channel, True, self._reply_timeout if timeout is None else timeout)
        except exceptions.ChannelError as error:
            if error.method_sig == methods.BASIC_PUBLISH:
                raise
            raise unknown_after(error) from error
        self._known_exchanges.update(exchanges)

    def _await_confirms(self, protocol: BlockingProtocol, done: Callable[[], object], timeout: float | None) -> None:
        """Wait for confirms until ``done()``. Raises Blocked, TimeoutError, and what the stream ended with."""
        timeout = self._reply_timeout if timeout is None else timeout
        if not protocol.stream.wait(done, monotonic() + timeout):
            protocol.raise_blocked()
            raise TimeoutError(f"the broker did not confirm the message in {timeout:g} s")

    def publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> list[tuple[int, Exception]]:
        protocol = self._opened()
        state = protocol.channels.get(channel) or protocol.publisher(channel)
        deliveries = list(deliveries)
        timeout = self._look(protocol, state, timeout)
        if state.confirms is not None:
            return self._publish_confirmed(protocol, state, deliveries, mandatory, timeout)
        stream = protocol.stream
        refused: list[tuple[int, Exception]] = []
        following = 0
        while following < len(deliveries):
            start = following
            try:
                frames, following = stream.encoder.publish_many(channel, deliveries, start, CHUNK, mandatory)
            except NotEncodable as error:
                refused.append((following, methods.not_encodable(error)))
                following += 1
                continue
            stream.send(frames, timeout, False, partial(state.pass_by, following - start))
            timeout = self._look(protocol, state, timeout)
        exchanges = {delivery.exchange for delivery in deliveries}
        if not self._known_exchanges.issuperset(exchanges):
            self._verify(protocol, state, exchanges, timeout)
        return refused

    def _publish_confirmed(
        self,
        protocol: BlockingProtocol,
        channel: SharedChannel,
        deliveries: list[Delivery],
        mandatory: bool,
        timeout: float | None,
    ) -> list[tuple[int, Exception]]:
        """Send ahead within a window, and wait for the confirms. When the channel is closed the rest is refused too."""
        confirms = channel.confirms
        assert confirms is not None
        stream = protocol.stream
        messages = list(map(Unconfirmed, deliveries, repeat(mandatory)))
        following = sent = 0
        try:
            while following < len(messages):
                start = following
                try:
                    frames, following = stream.encoder.publish_many(channel.number, deliveries, start, CHUNK, mandatory)
                except NotEncodable as error:
                    messages[start].settle(methods.not_encodable(error))
                    following += 1
                    continue
                stream.send(frames, timeout, on_turn=partial(channel.count, messages[start:following]))
                sent = following
                timeout = self._look(protocol, channel, timeout)
                if len(confirms) > WINDOW:
                    self._await_confirms(protocol, lambda: len(confirms) <= WINDOW // 2, timeout)
            self._await_confirms(protocol, all_done(messages), timeout)
        except (exceptions.ChannelError, exceptions.Blocked, TimeoutError) as error:
            # After a timeout the broker may have those that wait for a confirm; a later one is ignored.
            settle_rest(messages, sent, channel.error, error)
        if channel.error is not None:
            protocol.mark_reported(channel)
        return [(number, message.error) for number, message in enumerate(messages) if message.error is not None]

    def take_returned(self, channel: int) -> Sequence[Returned]:
        protocol = self._opened()
        if not any(type(event) is Returned for event in list(protocol.events)):
            return ()
        found = protocol.drop_events(lambda event: type(event) is Returned and event.channel == channel)
        return [event for event in found if isinstance(event, Returned)]

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
        protocol = self._opened()
        state = protocol.channel(channel)
        consumer_tag = consumer_tag or f"ctag-{uuid()}"
        state.consumers[consumer_tag] = no_ack
        state.takes_acks = state.takes_acks or not no_ack
        state.keeps_order = state.keeps_order or queue in protocol.single_active
        flags = (False, no_ack, exclusive, False)
        try:
            protocol.request(state, methods.BASIC_CONSUME, 0, queue, consumer_tag, *flags, arguments or {})
        except BaseException:
            state.consumers.pop(consumer_tag, None)
            if state.error is not None:
                protocol.mark_reported(state)  # now that this one is not a consumer that learns it from the event
            raise
        if not no_ack and not exclusive:
            state.limits[consumer_tag] = PrefetchLimit(
                state.prefetch_count, protocol.stream.decoder.last_tag(channel) - state.tag_offset
            )
        return consumer_tag

    def cancel(self, channel: int, consumer_tag: str) -> Sequence[Delivery]:
        protocol = self._opened()
        state = protocol.channel(channel)
        protocol.request(state, methods.BASIC_CANCEL, consumer_tag, False)
        no_ack = state.end_consumer(consumer_tag)
        # What the broker sent before it heard of it.
        events = protocol.drop_events(
            lambda event: type(event) is Delivery and event.channel == channel and event.consumer_tag == consumer_tag
        )
        deliveries = [event for event in events if isinstance(event, Delivery)]
        if no_ack:
            return deliveries
        tags = [delivery.delivery_tag for delivery in deliveries if delivery.stream_offset is None]
        if tags:
            self.settle_many(channel, tags, RETURN)
        return ()

    def get(self, channel: int, queue: str, no_ack: bool) -> Delivery | None:
        protocol = self._opened()
        state = protocol.channel(channel)
        state.takes_acks = state.takes_acks or not no_ack
        try:
            frame = protocol.stream.encoder.get(channel, queue, no_ack)
        except NotEncodable as error:
            raise methods.not_encodable(error) from error
        answer = protocol.exchange(state, "Basic.get", frame, GET_REPLIES, None, state.check)
        return answer if type(answer) is Delivery else None

    def fast_ack(self, channel: int) -> AckStep | None:
        protocol = self._opened()
        if protocol.stream.held is None:
            return None
        step: AckStep = protocol.channel(channel).settled
        return step

    def receive(self, timeout: float | None) -> Sequence[Event]:
        protocol = self._protocol or self._opened()
        protocol.stream.check()  # what is left of a lost connection comes again on the next
        delivery = protocol.poll_ready()
        return protocol.wait_for_event(timeout) if delivery is None else (delivery,)
