"""RabbitMQ, and other brokers of AMQP 0-9-1.

py-amqp opens the connection (``handshake``); after that the stream is ours: ``link`` reads and writes it through the
compiled codec, ``conversation`` matches requests and answers and hears what the broker says unasked, ``methods``
describes the control plane, ``confirms`` keeps what was published and not confirmed.

A connection may be shared by threads. What is one step for the broker (a publish, an ack, a declaration) is one here.
Of the threads that wait, one reads for all; an event goes to one of those that drain.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import cycle
from time import monotonic
from typing import Any

from kombulite import exceptions
from kombulite._core import Delivery, NotEncodable
from kombulite.brokers.amqp import methods
from kombulite.brokers.amqp.confirms import Confirms, Unconfirmed, all_done
from kombulite.brokers.amqp.connector import DEFAULT_TIMEOUT, OPTIONS, open_link
from kombulite.brokers.amqp.conversation import Channel, Conversation
from kombulite.brokers.amqp.limits import PrefetchLimit
from kombulite.brokers.amqp.link import Link
from kombulite.brokers.amqp.pulse import pulse
from kombulite.brokers.base import (
    Capabilities,
    Event,
    ExchangeSpec,
    Outcome,
    QueueInfo,
    QueueSpec,
    Returned,
    Settings,
)
from kombulite.brokers.base import Transport as BaseTransport
from kombulite.brokers.options import check_transport_options
from kombulite.utils.locks import Lock
from kombulite.utils.uuid import uuid

MOST_CHANNELS = 65535
CLOSE_TIMEOUT = 5.0  # seconds to wait for the broker's farewell
LOOK_INTERVAL = 0.01  # seconds after which a publisher looks whether the broker has said something
MOST_AHEAD = 100  # events that a publisher reads for others, at the most
CHUNK = 65536  # bytes, about what is sent at once of many messages
DELIVERY_LIMIT = 20  # of a quorum queue of RabbitMQ 4 that was declared without one
STREAMS_TAKE_NACKS = (4, 3)  # version of RabbitMQ since which a nack on a stream does no harm
WINDOW = 4096  # messages of publish_many that may be unconfirmed

# As globals: looking a member up costs as much as the call.
ACK, REJECT, REQUEUE, RETURN = Outcome.ACK, Outcome.REJECT, Outcome.REQUEUE, Outcome.RETURN
GET_REPLIES = (methods.BASIC_GET_EMPTY,)


class Transport(BaseTransport):
    """A connection to a broker of AMQP 0-9-1. May be shared between threads."""

    driver_type = "amqp"
    driver_name = "py-amqp"
    counts_failures = True
    capabilities = Capabilities(heartbeats=True, asynchronous=True, queue_kinds=True)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        options = settings.options
        check_transport_options(options, OPTIONS)
        self._reply_timeout = float(options.get("read_timeout") or DEFAULT_TIMEOUT)
        self._write_timeout = float(options.get("write_timeout") or DEFAULT_TIMEOUT)
        self.confirms = bool(options.get("confirm_publish"))
        self._conversation: Conversation | None = None
        self._lock = Lock()
        self._numbers = cycle(range(1, MOST_CHANNELS + 1))
        self._channel_max = MOST_CHANNELS
        self._known_exchanges: set[str] = set()  # published to without an error
        self._look_at = 0.0
        self.server_properties: dict[str, Any] = {}

    # --- the connection

    def connect(self) -> None:
        link, login = open_link(self.settings, self._write_timeout)
        self._channel_max = login.channel_max
        self._numbers = cycle(range(1, self._channel_max + 1))
        self.server_properties = login.server_properties
        name = self.client.as_uri() if self.client is not None else repr(self.settings)
        self._conversation = Conversation(link, self._reply_timeout, self.settings.options, name)
        able = self.server_properties.get("capabilities")
        self._conversation.accepts_cancel_ok = isinstance(able, dict) and bool(able.get("accept_consumer_cancel_ok"))
        self._conversation.streams_take_nacks = self._is_rabbitmq_since(STREAMS_TAKE_NACKS)
        if link.heartbeat and self.settings.options.get("heartbeat_thread", True):
            pulse.add(link)

    def close(self) -> None:
        talk = self._conversation
        try:
            if talk is not None and talk.link.failure is None:
                talk.return_all(CLOSE_TIMEOUT)
                talk.request(talk.root, methods.CONNECTION_CLOSE, 0, "", 0, 0, timeout=CLOSE_TIMEOUT)
        except (exceptions.ConnectionError, OSError):
            pass  # it is gone either way
        finally:
            self.collect()
            if talk is not None:
                pulse.remove(talk.link)

    def collect(self) -> None:
        talk, self._conversation = self._conversation, None
        if talk is not None:
            talk.link.close()

    def update_secret(self, secret: str, reason: str = "") -> None:
        talk = self._talk()
        talk.request(talk.root, methods.CONNECTION_UPDATE_SECRET, secret, reason)

    @property
    def connected(self) -> bool:
        return self._conversation is not None and self._conversation.link.failure is None

    def driver_version(self) -> str:
        import amqp

        version: str = amqp.__version__
        return version

    @property
    def is_suspect(self) -> bool:
        return self._conversation is not None and self._conversation.link.is_suspect

    default_port = 5672

    @property
    def default_connection_params(self) -> dict[str, Any]:
        """What a URL that leaves it out stands for."""
        return {**super().default_connection_params, "userid": "guest", "password": "guest", "login_method": "PLAIN"}

    def heartbeat_check(self, connection: Any = None, rate: float = 2) -> None:
        self._talk().link.beat(rate)

    @property
    def heartbeat_interval(self) -> float:
        return self._conversation.link.heartbeat if self._conversation is not None else super().heartbeat_interval

    def qos_semantics_matches_spec(self, connection: Any = None) -> bool:
        # RabbitMQ 3.3 to 3.x: the limit is for each consumer.
        return not self._is_rabbitmq_since((3, 3)) or self._is_rabbitmq_since((4, 0))

    def _is_rabbitmq_since(self, version: tuple[int, int]) -> bool:
        """Return whether the broker is a RabbitMQ of this version (major, minor) or a later one."""
        if self.server_properties.get("product") != "RabbitMQ":
            return False
        try:
            major, minor = (int(part) for part in str(self.server_properties.get("version")).split(".")[:2])
        except ValueError:
            return False
        return (major, minor) >= version

    def fileno(self) -> int | None:
        return self._talk().link.fileno()

    def _talk(self) -> Conversation:
        talk = self._conversation
        if talk is None:
            raise exceptions.RecoverableConnectionError("connection already closed")
        return talk

    # --- channels

    def open_channel(self, above: int = 0) -> int:
        talk = self._talk()
        with self._lock:
            talk.link.check()
            if len(talk.channels) > self._channel_max:  # one of them is the connection
                raise exceptions.ResourceError(f"all {self._channel_max} channels of this connection are open")
            # A number comes again only after all others: what is still under way for a closed channel finds nobody.
            number = next(number for number in self._numbers if number not in talk.channels)
            channel = talk.add_channel(number, above)
        talk.request(channel, methods.CHANNEL_OPEN, "")
        if self.confirms:
            self.confirm(number)
        return number

    def close_channel(self, channel: int) -> None:
        talk = self._conversation
        if talk is not None and talk.link.failure is None:
            talk.close_channel(channel)

    def highest_tag(self, channel: int) -> int:
        return self._conversation.highest_tag(channel) if self._conversation is not None else 0

    def channel_is_open(self, channel: int) -> bool:
        return self._conversation is not None and channel in self._conversation.channels

    def qos(self, channel: int, prefetch_size: int, prefetch_count: int, apply_global: bool) -> None:
        talk = self._talk()
        talk.call(channel, methods.BASIC_QOS, prefetch_size, prefetch_count, apply_global)
        if self._is_for_new_consumers(apply_global):
            talk.channel(channel).prefetch_count = prefetch_count

    def _is_for_new_consumers(self, apply_global: bool) -> bool:
        """Return whether the broker bounds consumers by a prefetch count, and leaves those that are running alone."""
        return self._is_rabbitmq_since((3, 3)) and (not apply_global or self._is_rabbitmq_since((4, 0)))

    def successor_count(self, channel: int, consumer_tag: str, prefetch_count: int, apply_global: bool) -> int | None:
        talk = self._talk()
        state, decoder = talk.channel(channel), talk.link.decoder
        limit = state.limits.get(consumer_tag)
        _, has_streams = decoder.sources(channel)
        if limit is None or has_streams or not self._is_for_new_consumers(apply_global):
            return None
        last = decoder.last_tag(channel) - state.above
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
        talk = self._talk()
        state = talk.channel(channel)
        wanted, last = state.prefetch_count, talk.link.decoder.last_tag(channel) - state.above
        self.qos(channel, 0, prefetch_count, False)
        # Before the other one ends: the end of its last consumer may be that of the queue.
        self.consume(channel, queue, successor, False, False, arguments)
        talk.request(state, methods.BASIC_CANCEL, consumer_tag, False)
        self.qos(channel, 0, wanted, False)
        limit = state.limits.pop(consumer_tag)
        limit.succeed(prefetch_count, last)
        state.limits[successor] = limit
        state.consumers.pop(consumer_tag, None)
        for event in list(talk.events):
            if type(event) is Delivery and event.channel == channel and event.consumer_tag == consumer_tag:
                event.consumer_tag = successor

    def flow(self, channel: int, active: bool) -> None:
        if not active and self.server_properties.get("product") == "RabbitMQ":
            # It would close the connection.
            raise exceptions.AMQPNotImplementedError("RabbitMQ cannot pause a channel; cancel the consumer")
        talk = self._talk()
        talk.flow(talk.channel(channel), active, self._reply_timeout)

    # --- exchanges, queues, bindings

    def declare_exchange(self, channel: int, spec: ExchangeSpec, passive: bool) -> None:
        flags = (passive, spec.durable, spec.auto_delete, False, False)
        self._talk().call(channel, methods.EXCHANGE_DECLARE, 0, spec.name, spec.type, *flags, spec.arguments or {})

    def delete_exchange(self, channel: int, name: str, if_unused: bool) -> None:
        self._known_exchanges.discard(name)
        self._talk().call(channel, methods.EXCHANGE_DELETE, 0, name, if_unused, False)

    def declare_queue(self, channel: int, spec: QueueSpec, passive: bool) -> QueueInfo:
        flags = (passive, spec.durable, spec.exclusive, spec.auto_delete, False)
        return QueueInfo(*self._talk().call(channel, methods.QUEUE_DECLARE, 0, spec.name, *flags, spec.arguments or {}))

    def delete_queue(self, channel: int, name: str, if_unused: bool, if_empty: bool) -> int:
        deleted: int = self._talk().call(channel, methods.QUEUE_DELETE, 0, name, if_unused, if_empty, False)[0]
        return deleted

    def purge(self, channel: int, queue: str) -> int:
        purged: int = self._talk().call(channel, methods.QUEUE_PURGE, 0, queue, False)[0]
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
        self._talk().call(channel, method, 0, destination, source, routing_key, False, arguments or {})

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
            self._talk().call(
                channel, methods.EXCHANGE_UNBIND, 0, destination, source, routing_key, False, arguments or {}
            )
        else:
            self._talk().call(channel, methods.QUEUE_UNBIND, 0, destination, source, routing_key, arguments or {})

    # --- publishing

    def confirm(self, channel: int) -> None:
        talk = self._talk()
        state = talk.channel(channel)
        if state.confirms is None:
            talk.request(state, methods.CONFIRM_SELECT, False)
            state.confirms = Confirms()

    def publish(
        self,
        channel: int,
        delivery: Delivery,
        mandatory: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        talk = self._conversation or self._talk()
        try:
            state = talk.channels[channel]
        except KeyError:
            state = talk.publisher(channel)
        if timeout is None and state.confirms is not None:
            timeout = confirm_timeout
        link = talk.link
        if monotonic() > self._look_at or talk.blocked is not None:
            timeout = self._look(talk, state, timeout)
        try:
            frames = link.encoder.publish(channel, delivery, mandatory)
        except NotEncodable as error:
            raise exceptions.EncodeError(str(error)) from error
        if state.confirms is None:
            link.send(frames, timeout, False, state.check)
            if delivery.exchange not in self._known_exchanges:
                self._verify(talk, state, [delivery.exchange], timeout)
            return
        message = Unconfirmed(delivery)
        try:
            link.send(frames, timeout, on_turn=partial(state.count, [message]))
            self._await_confirms(talk, lambda: message.done, timeout if confirm_timeout is None else confirm_timeout)
            if message.error is not None:
                raise message.error
        except exceptions.ChannelError:
            if state.error is not None:
                talk.told(state)
            raise

    def _look(self, talk: Conversation, channel: Channel, timeout: float | None) -> float | None:
        """Hear what the broker has to say to a publisher: that it is blocked, or did not like an earlier message.

        Returns what is left of the timeout.
        """
        link = talk.link
        if len(talk.events) < MOST_AHEAD:
            link.look()
        self._look_at = monotonic() + LOOK_INTERVAL
        link.check()
        if channel.error is not None:
            talk.told(channel)
            raise channel.error
        if talk.blocked is None:
            return timeout
        deadline = monotonic() + (self._write_timeout if timeout is None else timeout)
        if not link.wait(lambda: talk.blocked is None, deadline):
            talk.raise_blocked()
        return deadline - monotonic()

    def _verify(self, talk: Conversation, channel: Channel, exchanges: Iterable[str], timeout: float | None) -> None:
        """After the first message to an exchange, see whether the broker took it.

        Without confirms it says nothing if so, and closes the channel if not. Either comes before the answer to a
        request that is sent now.
        """
        talk.flow(channel, True, self._reply_timeout if timeout is None else timeout)
        self._known_exchanges.update(exchanges)

    def _await_confirms(self, talk: Conversation, done: Callable[[], object], timeout: float | None) -> None:
        """Wait for confirms until ``done()``. Raises Blocked, TimeoutError, and what the link ended with."""
        timeout = self._reply_timeout if timeout is None else timeout
        if not talk.link.wait(done, monotonic() + timeout):
            talk.raise_blocked()
            raise TimeoutError(f"the broker did not confirm the message in {timeout:g} s")

    def publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> list[tuple[int, Exception]]:
        talk = self._talk()
        state = talk.channels.get(channel) or talk.publisher(channel)
        deliveries = list(deliveries)
        timeout = self._look(talk, state, timeout)
        if state.confirms is not None:
            return self._publish_confirmed(talk, state, deliveries, mandatory, timeout)
        link = talk.link
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
            timeout = self._look(talk, state, timeout)
        exchanges = {delivery.exchange for delivery in deliveries}
        if not self._known_exchanges.issuperset(exchanges):
            self._verify(talk, state, exchanges, timeout)
        return refused

    def _publish_confirmed(
        self,
        talk: Conversation,
        channel: Channel,
        deliveries: list[Delivery],
        mandatory: bool,
        timeout: float | None,
    ) -> list[tuple[int, Exception]]:
        """Send ahead within a window, and wait for the confirms. When the channel is closed the rest is refused too."""
        confirms = channel.confirms
        assert confirms is not None
        link = talk.link
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
                timeout = self._look(talk, channel, timeout)
                if len(confirms) > WINDOW:
                    self._await_confirms(talk, lambda: len(confirms) <= WINDOW // 2, timeout)
            self._await_confirms(talk, all_done(messages), timeout)
        except (exceptions.ChannelError, exceptions.Blocked, TimeoutError) as error:
            # Whether the broker has those that it has not confirmed is not known; if it says so later nobody hears.
            for message in messages:
                if not message.done:
                    message.settle(error)
        if channel.error is not None:
            talk.told(channel)
        return [(number, message.error) for number, message in enumerate(messages) if message.error is not None]

    def take_returned(self, channel: int) -> Sequence[Returned]:
        talk = self._talk()
        if not any(type(event) is Returned for event in list(talk.events)):
            return ()
        found = talk.drop_events(lambda event: type(event) is Returned and event.channel == channel)
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
        talk = self._talk()
        state = talk.channel(channel)
        consumer_tag = consumer_tag or f"ctag-{uuid()}"
        state.consumers[consumer_tag] = no_ack
        state.takes_acks = state.takes_acks or not no_ack
        flags = (False, no_ack, exclusive, False)
        try:
            talk.request(state, methods.BASIC_CONSUME, 0, queue, consumer_tag, *flags, arguments or {})
        except BaseException:
            state.consumers.pop(consumer_tag, None)
            if state.error is not None:
                talk.told(state)  # now that this one is not a consumer that learns it from the event
            raise
        if not no_ack and not exclusive:
            state.limits[consumer_tag] = PrefetchLimit(
                state.prefetch_count, talk.link.decoder.last_tag(channel) - state.above
            )
        return consumer_tag

    def cancel(self, channel: int, consumer_tag: str) -> Sequence[Delivery]:
        talk = self._talk()
        state = talk.channel(channel)
        talk.request(state, methods.BASIC_CANCEL, consumer_tag, False)
        no_ack = state.consumers.pop(consumer_tag, True)
        state.limits.pop(consumer_tag, None)
        # What the broker sent before it heard of it.
        events = talk.drop_events(
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
        talk = self._talk()
        state = talk.channel(channel)
        state.takes_acks = state.takes_acks or not no_ack
        frame = talk.link.encoder.get(channel, queue, no_ack)
        answer = talk.exchange(state, "Basic.get", frame, GET_REPLIES, None, state.check)
        return answer if type(answer) is Delivery else None

    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> None:
        talk = self._conversation or self._talk()
        link = talk.link
        state = talk.channels.get(channel) or talk.channel(channel)
        if delivery_tag > link.decoder.last_tag(channel) or (delivery_tag == 0 and not multiple):
            # The broker would close the channel.
            raise exceptions.PreconditionFailed(f"unknown delivery tag {delivery_tag!r}")
        if state.stale and delivery_tag:
            if delivery_tag <= state.stale:
                raise state.stale_error()
            delivery_tag -= state.above
        if outcome is ACK:
            frame = link.encoder.ack(channel, delivery_tag, multiple)
        elif multiple or outcome is RETURN:
            frame = link.encoder.nack(channel, delivery_tag, multiple, outcome is not REJECT)
        else:
            frame = link.encoder.reject(channel, delivery_tag, outcome is not REJECT)
        link.send(frame, None, True, state.check)
        state.settled.add(delivery_tag, multiple)
        if state.failed:
            state.forget_failures(delivery_tag, multiple)

    def settle_many(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome) -> None:
        talk = self._talk()
        link = talk.link
        state = talk.channels.get(channel) or talk.channel(channel)
        tags = sorted({tag - state.above for tag in delivery_tags})
        if tags[0] <= state.stale - state.above and state.stale:
            raise state.stale_error()
        if tags[0] <= 0 or tags[-1] > link.decoder.last_tag(channel) - state.above:
            raise exceptions.PreconditionFailed(f"unknown delivery tag among {delivery_tags!r:.80}")
        encoder, requeue, last = link.encoder, outcome is not REJECT, tags[-1]
        with link.writing:  # from the look at what is settled to the frames
            # `multiple` is for all before it on the channel, other consumers' messages too: none of them may be out.
            is_all = state.settled.completes(tags)
            if is_all and outcome is ACK:
                frames = encoder.ack(channel, last, True)
            elif is_all and outcome is not REQUEUE:  # which counts as a failure of each
                frames = encoder.nack(channel, last, True, requeue)
            elif outcome is ACK:
                frames = b"".join([encoder.ack(channel, tag) for tag in tags])
            elif outcome is RETURN:
                frames = b"".join([encoder.nack(channel, tag, False, True) for tag in tags])
            else:
                frames = b"".join([encoder.reject(channel, tag, requeue) for tag in tags])
            link.send(frames, None, True, state.check)
            for tag in tags:
                state.settled.add(tag)
            state.failed.difference_update(tags)

    def delivery_limit(self, arguments: Mapping[str, Any]) -> int | None:
        if arguments.get("x-queue-type") != "quorum":
            return None
        limit = arguments.get("x-delivery-limit", DELIVERY_LIMIT if self._is_rabbitmq_since((4, 0)) else None)
        return limit if isinstance(limit, int) and limit >= 0 else None

    def note_failure(self, channel: int, delivery_tag: Any) -> None:
        talk = self._conversation
        state = None if talk is None else talk.channels.get(channel)
        if state is not None and delivery_tag > state.stale:
            state.failed.add(delivery_tag - state.above)

    def recover(self, channel: int) -> None:
        self._talk().call(channel, methods.BASIC_RECOVER, True)

    def receive(self, timeout: float | None) -> Sequence[Event]:
        talk = self._conversation or self._talk()
        link, events = talk.link, talk.events
        link.check()  # what is left of a lost connection comes again on the next
        if not events:
            # The common case: the next of many messages that were read at once.
            delivery = link.reading.call(0, _next_delivery, link, events)
            link.hand_on()
            if type(delivery) is Delivery:
                return (delivery,)
        return talk.wait_for_event(timeout)


def _next_delivery(link: Link, events: Collection[Event]) -> Delivery | None:
    """The next message of what was read, if it comes next. For the reader."""
    event = link.next_event() if not events else None  # the thread that read until now may have left some
    if type(event) is Delivery and event.consumer_tag is not None:
        return event
    if event is not None:
        link.dispatch(event)
    return None
