"""The verbs that both streams have: what they ask the broker for, and what becomes of deliveries.

A transport says how a request is performed: a thread waits for the answer, an event loop gets a future for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from kombulite import exceptions
from kombulite._core import FrameEncoder
from kombulite.brokers.amqp import methods
from kombulite.brokers.amqp.channel import AMQPChannel
from kombulite.brokers.amqp.login import is_rabbitmq_since
from kombulite.brokers.amqp.methods import Method
from kombulite.brokers.base import ExchangeSpec, Outcome, QueueInfo, QueueSpec

DELIVERY_LIMIT = 20  # of a quorum queue of RabbitMQ 4 that was declared without one

# As globals: looking a member up costs as much as the call.
ACK, REJECT, REQUEUE, RETURN = Outcome.ACK, Outcome.REJECT, Outcome.REQUEUE, Outcome.RETURN


class AMQPVerbs:
    """Verbs of a transport: see ``base.Transport``. To be inherited beside it, or beside its form on event loops."""

    _protocol: Any  # AMQPProtocol, or None; what it is exactly, the transport knows
    _known_exchanges: set[str]  # published to without an error
    server_properties: dict[str, Any]

    def _perform(
        self, channel: int, method: Method, *arguments: Any, result: Callable[[list[Any]], Any] | None = None
    ) -> Any:
        """Send a request, and give what ``result`` makes of the arguments of its answer."""
        raise NotImplementedError

    def _opened(self) -> Any:
        """Return the protocol. Raises RecoverableConnectionError if the connection is not open."""
        protocol = self._protocol
        if protocol is None:
            raise exceptions.RecoverableConnectionError("connection already closed")
        return protocol

    def _is_rabbitmq_since(self, version: tuple[int, int]) -> bool:
        """Return whether the broker is a RabbitMQ of this version (major, minor) or a later one."""
        return is_rabbitmq_since(self.server_properties, version)

    def highest_tag(self, channel: int) -> int:
        return self._protocol.highest_tag(channel) if self._protocol is not None else 0

    def channel_is_open(self, channel: int) -> bool:
        state = self._protocol.channels.get(channel) if self._protocol is not None else None
        return state is not None and state.error is None

    def recover(self, channel: int) -> Any:
        return self._perform(channel, methods.BASIC_RECOVER, True)

    def update_secret(self, secret: str, reason: str = "") -> Any:
        return self._perform(0, methods.CONNECTION_UPDATE_SECRET, secret, reason)

    def _check_flow(self, active: bool) -> None:
        if not active and self.server_properties.get("product") == "RabbitMQ":
            # It would close the connection.
            raise exceptions.AMQPNotImplementedError("RabbitMQ cannot pause a channel; cancel the consumer")

    # --- exchanges, queues, bindings

    def declare_exchange(self, channel: int, spec: ExchangeSpec, passive: bool) -> Any:
        flags = (passive, spec.durable, spec.auto_delete, False, False)
        return self._perform(channel, methods.EXCHANGE_DECLARE, 0, spec.name, spec.type, *flags, spec.arguments or {})

    def delete_exchange(self, channel: int, name: str, if_unused: bool) -> Any:
        self._known_exchanges.discard(name)
        return self._perform(channel, methods.EXCHANGE_DELETE, 0, name, if_unused, False)

    def declare_queue(self, channel: int, spec: QueueSpec, passive: bool) -> Any:
        flags = (passive, spec.durable, spec.exclusive, spec.auto_delete, False)
        if (spec.arguments or {}).get("x-single-active-consumer"):
            self._opened().single_active.add(spec.name)
        return self._perform(
            channel, methods.QUEUE_DECLARE, 0, spec.name, *flags, spec.arguments or {}, result=_queue_info
        )

    def delete_queue(self, channel: int, name: str, if_unused: bool, if_empty: bool) -> Any:
        return self._perform(channel, methods.QUEUE_DELETE, 0, name, if_unused, if_empty, False, result=_first)

    def purge(self, channel: int, queue: str) -> Any:
        return self._perform(channel, methods.QUEUE_PURGE, 0, queue, False, result=_first)

    def bind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> Any:
        method = methods.EXCHANGE_BIND if to_exchange else methods.QUEUE_BIND
        return self._perform(channel, method, 0, destination, source, routing_key, False, arguments or {})

    def unbind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> Any:
        if to_exchange:
            return self._perform(
                channel, methods.EXCHANGE_UNBIND, 0, destination, source, routing_key, False, arguments or {}
            )
        return self._perform(channel, methods.QUEUE_UNBIND, 0, destination, source, routing_key, arguments or {})

    # --- consuming

    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> None:
        protocol = self._protocol or self._opened()
        stream = protocol.stream
        state = protocol.channels.get(channel) or protocol.channel(channel)
        if delivery_tag > stream.decoder.last_tag(channel) or (delivery_tag == 0 and not multiple):
            # The broker would close the channel.
            raise exceptions.PreconditionFailed(f"unknown delivery tag {delivery_tag!r}")
        if state.stale and delivery_tag:
            if delivery_tag <= state.stale:
                raise state.stale_error()
            delivery_tag -= state.tag_offset
        if outcome is ACK:
            frame = stream.encoder.ack(channel, delivery_tag, multiple)
        elif multiple or outcome is RETURN:
            frame = stream.encoder.nack(channel, delivery_tag, multiple, outcome is not REJECT)
        else:
            frame = stream.encoder.reject(channel, delivery_tag, outcome is not REJECT)
        on_turn = partial(state.settle_failed, delivery_tag, multiple) if state.failed else state.check_settles
        stream.send(frame, None, True, on_turn)
        state.settled.add(delivery_tag, multiple)

    def settle_many(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome) -> None:
        protocol = self._opened()
        stream = protocol.stream
        state = protocol.channels.get(channel) or protocol.channel(channel)
        tags = sorted({tag - state.tag_offset for tag in delivery_tags})
        if tags[0] <= state.stale - state.tag_offset and state.stale:
            raise state.stale_error()
        if tags[0] <= 0 or tags[-1] > stream.decoder.last_tag(channel) - state.tag_offset:
            raise exceptions.PreconditionFailed(f"unknown delivery tag among {delivery_tags!r:.80}")
        with stream.writing:  # from the look at what is settled to the frames
            stream.send(self._frames_to_settle(state, tags, outcome), None, True, state.check_settles)
            state.settle_all(tags)

    def _frames_to_settle(self, state: AMQPChannel, tags: list[int], outcome: Outcome) -> bytes:
        """Return the frames that settle deliveries, by the broker's tags, which are in order and not settled."""
        encoder: FrameEncoder = self._opened().stream.encoder
        channel = state.number
        requeue, last = outcome is not REJECT, tags[-1]
        # `multiple` is for all before it on the channel, other consumers' messages too: none of them may be out.
        is_all = state.settled.completes(tags)
        if is_all and outcome is ACK:
            return encoder.ack(channel, last, True)
        if is_all and outcome is not REQUEUE:  # which counts as a failure of each
            return encoder.nack(channel, last, True, requeue)
        if outcome is ACK:
            return b"".join([encoder.ack(channel, tag) for tag in tags])
        if outcome is RETURN:
            return b"".join([encoder.nack(channel, tag, False, True) for tag in tags])
        return b"".join([encoder.reject(channel, tag, requeue) for tag in tags])

    def delivery_limit(self, arguments: Mapping[str, Any]) -> int | None:
        if arguments.get("x-queue-type") != "quorum":
            return None
        limit = arguments.get("x-delivery-limit", DELIVERY_LIMIT if self._is_rabbitmq_since((4, 0)) else None)
        return limit if isinstance(limit, int) and limit >= 0 else None

    def note_failure(self, channel: int, delivery_tag: Any) -> None:
        protocol = self._protocol
        state = None if protocol is None else protocol.channels.get(channel)
        if state is not None and delivery_tag > state.stale:
            state.failed.add(delivery_tag - state.tag_offset)


def _queue_info(values: list[Any]) -> QueueInfo:
    return QueueInfo(*values)


def _first(values: list[Any]) -> Any:
    return values[0]
