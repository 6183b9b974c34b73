"""Exchanges, queues and the bindings between them.

Longer than other modules for the many attributes and verbs that kombu's users expect of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

from kombulite._client.interfaces import Bindable, Channel, DeclaredQueue
from kombulite._client.queue_kind import QueueKind, with_kind
from kombulite._core import declaration_key
from kombulite.abstract import MaybeChannelBound, Object
from kombulite.exceptions import ContentDisallowed
from kombulite.message import Message as ReceivedMessage
from kombulite.serialization import prepare_accept_content

__all__ = ["PERSISTENT_DELIVERY_MODE", "TRANSIENT_DELIVERY_MODE", "Exchange", "Queue", "binding", "maybe_delivery_mode"]

TRANSIENT_DELIVERY_MODE = 1
PERSISTENT_DELIVERY_MODE = 2
DELIVERY_MODES = {"transient": TRANSIENT_DELIVERY_MODE, "persistent": PERSISTENT_DELIVERY_MODE}

INTERNAL_EXCHANGE_PREFIX = ("amq.",)


def _reprstr(s: Any) -> str:
    """Return a name as it is shown in an entity's ``repr``: escaped, without quotes."""
    return repr(s)[1:-1]


def maybe_delivery_mode(
    v: int | str | None, modes: dict[str, int] | None = None, default: int = PERSISTENT_DELIVERY_MODE
) -> int:
    """Return the number of a delivery mode.

    Args:
        v: A number, a name, or None for the default.
        modes: Numbers by name.
        default: The number for None.

    Raises:
        KeyError: The name is unknown.
    """
    if not v:
        return default
    return v if isinstance(v, int) else (modes or DELIVERY_MODES)[v]


class Exchange(MaybeChannelBound):
    """Exchange: the address that messages are published to.

    Args:
        name: Name; ``""`` is the broker's default exchange.
        type: ``"direct"``, ``"topic"``, ``"fanout"``, ``"headers"``, or a type of a broker's plugin.
        channel: Channel to bind the exchange to.

    Keyword Args:
        durable (bool): If True (default), it survives a restart of the broker.
        auto_delete (bool): If True, it is deleted with its last binding.
        delivery_mode (int | str | None): Default for messages: 1 or ``"transient"``, 2 or ``"persistent"``.
        arguments (dict[str, Any] | None): The broker's own arguments, by name.
        passive (bool): If True, declaring only asserts that it exists.
        no_declare (bool): If True, it is never declared.

    Example:
        ```py
        orders = Exchange("orders", type="topic")
        ```
    """

    TRANSIENT_DELIVERY_MODE = TRANSIENT_DELIVERY_MODE
    PERSISTENT_DELIVERY_MODE = PERSISTENT_DELIVERY_MODE

    attrs: ClassVar[tuple[tuple[str, Any], ...]] = (
        ("name", None),
        ("type", None),
        ("arguments", None),
        ("durable", bool),
        ("passive", bool),
        ("auto_delete", bool),
        ("delivery_mode", lambda mode: DELIVERY_MODES.get(mode) or mode),
        ("no_declare", bool),
    )

    name: str = ""
    type: str = "direct"
    arguments: dict[str, Any] | None = None
    durable = True
    auto_delete = False
    passive = False
    delivery_mode: int | None = None
    no_declare = False

    def __init__(self, name: str = "", type: str = "", channel: Bindable | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name = name or self.name
        self.type = type or self.type
        self.maybe_bind(channel)

    @property
    def can_cache_declaration(self) -> bool:  # type: ignore[override]
        """True if one declaration lasts as long as the connection."""
        return not self.auto_delete

    def declare(self, nowait: bool = False, passive: bool | None = None, channel: Channel | None = None) -> Any:
        """Create the exchange on the broker, or assert that it exists. Return what the channel returns.

        Args:
            nowait: Passed to the channel; kombulite's own channels wait for the broker's answer all the same.
            passive: If True, only assert that it exists; nothing is created or changed.
            channel: Channel to use instead of the one that the entity is bound to.

        Raises:
            NotFound: The queue or exchange does not exist.
            NotEquivalentError: It exists with other settings.
        """
        if self._can_declare():
            passive = self.passive if passive is None else passive
            return (channel or self.channel).exchange_declare(
                exchange=self.name,
                type=self.type,
                durable=self.durable,
                auto_delete=self.auto_delete,
                arguments=self.arguments,
                nowait=nowait,
                passive=passive,
            )
        return None

    def _can_declare(self) -> bool:
        return not self.no_declare and bool(self.name) and not self.name.startswith(INTERNAL_EXCHANGE_PREFIX)

    def bind_to(
        self,
        exchange: Exchange | str = "",
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        nowait: bool = False,
        channel: Channel | None = None,
        **kwargs: Any,
    ) -> Any:
        """Bind the exchange to a source exchange, whose messages it then receives (RabbitMQ, memory, SQL).

        Args:
            exchange: The source, or its name.
            routing_key: Routing key.
            arguments: Arguments of the binding, such as those of a headers exchange.
            nowait: Passed to the channel; kombulite's own channels wait for the broker's answer all the same.
            channel: Channel to use instead of the one that the entity is bound to.
            **kwargs: Ignored; kept for compatibility.

        Raises:
            NotFound: The queue or exchange does not exist.
            AMQPNotImplementedError: The broker has no bindings between exchanges.
        """
        return (channel or self.channel).exchange_bind(
            destination=self.name,
            source=_name_of(exchange),
            routing_key=routing_key,
            nowait=nowait,
            arguments=arguments,
        )

    def unbind_from(
        self,
        source: Exchange | str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: dict[str, Any] | None = None,
        channel: Channel | None = None,
    ) -> Any:
        """Remove a binding to a source exchange.

        Args:
            source: The source, or its name.
            routing_key: Routing key.
            nowait: Passed to the channel; kombulite's own channels wait for the broker's answer all the same.
            arguments: Arguments of the binding.
            channel: Channel to use instead of the one that the entity is bound to.
        """
        return (channel or self.channel).exchange_unbind(
            destination=self.name, source=_name_of(source), routing_key=routing_key, nowait=nowait, arguments=arguments
        )

    def binding(
        self,
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        unbind_arguments: dict[str, Any] | None = None,
    ) -> binding:
        """Return a binding to this exchange, for ``Queue(bindings=...)``.

        Args:
            routing_key: Routing key.
            arguments: Arguments of the binding.
            unbind_arguments: Arguments with which it is removed.
        """
        return binding(self, routing_key, arguments, unbind_arguments)

    def Message(
        self,
        body: object,
        delivery_mode: int | str | None = None,
        properties: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return a message for ``publish``.

        Args:
            body: The body, text or bytes.
            delivery_mode: 1 or ``"transient"``, 2 or ``"persistent"`` (default: the exchange's, else persistent).
            properties: Properties of the message, by name.
            **kwargs: Keywords of ``Channel.prepare_message``.
        """
        properties = dict(properties or {})
        properties["delivery_mode"] = maybe_delivery_mode(delivery_mode or self.delivery_mode)
        if isinstance(body, str):
            kwargs.setdefault("content_encoding", "utf-8")
        return self.channel.prepare_message(body, properties=properties, **kwargs)

    def publish(
        self,
        message: object,
        routing_key: str | None = None,
        mandatory: bool = False,
        immediate: bool = False,
        exchange: Exchange | str | None = None,
    ) -> Any:
        """Publish a message that ``Message`` returned, and return the channel's result.

        Args:
            message: The message, or a text.
            routing_key: Routing key.
            mandatory: If True, the broker returns the message if no queue takes it.
            immediate: Ignored, as current brokers do.
            exchange: Another exchange, or its name.
        """
        if isinstance(message, str):
            message = self.Message(message)
        return self.channel.basic_publish(
            message,
            exchange=self.name if exchange is None else _name_of(exchange),
            routing_key=routing_key,
            mandatory=mandatory,
            immediate=immediate,
        )

    def delete(self, if_unused: bool = False, nowait: bool = False) -> Any:
        """Delete the exchange on the broker.

        Args:
            if_unused: Delete only if nothing is bound to it.
            nowait: Passed to the channel; kombulite's own channels wait for the broker's answer all the same.

        Raises:
            PreconditionFailed: It is in use.
        """
        return self.channel.exchange_delete(exchange=self.name, if_unused=if_unused, nowait=nowait)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Exchange):
            return NotImplemented
        return (
            self.name == other.name
            and self.type == other.type
            and self.arguments == other.arguments
            and self.durable == other.durable
            and self.auto_delete == other.auto_delete
            and self.delivery_mode == other.delivery_mode
        )

    def __hash__(self) -> int:
        return hash(f"E|{self.name}")

    def __repr__(self) -> str:
        return self._repr_entity(str(self))

    def __str__(self) -> str:
        return f"Exchange {_reprstr(self.name) or repr('')}({self.type})"


def _name_of(entity: Any) -> str:
    name: str = getattr(entity, "name", entity) or ""
    return name


class binding(Object):  # noqa: N801 - kombu's name
    """Binding of a queue or exchange to an exchange.

    Args:
        exchange: The exchange, or its name.
        routing_key: Routing key.
        arguments: Arguments of the binding, such as those of a headers exchange.
        unbind_arguments: Arguments with which it is removed.
    """

    attrs: ClassVar[tuple[tuple[str, Any], ...]] = (
        ("exchange", None),
        ("routing_key", None),
        ("arguments", None),
        ("unbind_arguments", None),
    )

    def __init__(
        self,
        exchange: Exchange | str | None = None,
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        unbind_arguments: dict[str, Any] | None = None,
    ) -> None:
        self.exchange = Exchange(exchange) if isinstance(exchange, str) else exchange
        self.routing_key = routing_key
        self.arguments = arguments
        self.unbind_arguments = unbind_arguments

    def declare(self, channel: Channel | None, nowait: bool = False) -> None:
        """Declare the exchange, if it has a name.

        Args:
            channel: The channel.
            nowait: Passed to the channel; kombulite's own channels wait for the broker's answer all the same.
        """
        if self.exchange is not None and self.exchange.name:
            self.exchange.declare(channel=channel, nowait=nowait)

    def bind(self, entity: Queue | Exchange, nowait: bool = False, channel: Channel | None = None) -> None:
        """Bind a queue or exchange.

        Args:
            entity: The queue or exchange.
            nowait: Passed to the channel; kombulite's own channels wait for the broker's answer all the same.
            channel: Channel to use instead of the one that the entity is bound to.
        """
        entity.bind_to(
            exchange=self.exchange or "",
            routing_key=self.routing_key,
            arguments=self.arguments,
            nowait=nowait,
            channel=channel,
        )

    def unbind(self, entity: Queue | Exchange, nowait: bool = False, channel: Channel | None = None) -> None:
        """Remove the binding of a queue or exchange.

        Args:
            entity: The queue or exchange.
            nowait: Passed to the channel; kombulite's own channels wait for the broker's answer all the same.
            channel: Channel to use instead of the one that the entity is bound to.
        """
        entity.unbind_from(
            self.exchange or "",
            routing_key=self.routing_key,
            arguments=self.unbind_arguments,
            nowait=nowait,
            channel=channel,
        )

    def __eq__(self, other: object) -> bool:
        return self.as_dict() == other.as_dict() if isinstance(other, binding) else NotImplemented

    def __hash__(self) -> int:
        return hash(f"B|{_name_of(self.exchange)}|{self.routing_key}")

    def __repr__(self) -> str:
        return f"<binding: {self}>"

    def __str__(self) -> str:
        return f"{_reprstr(_name_of(self.exchange))}->{_reprstr(self.routing_key)}"


class BindingSet(set["binding"]):
    """Bindings, in the order in which they were given."""

    def __init__(self, bindings: Iterable[binding] = ()) -> None:
        self._given = dict.fromkeys(bindings)
        super().__init__(self._given)

    def __iter__(self) -> Iterator[binding]:
        yield from (each for each in self._given if each in self)
        yield from (each for each in super().__iter__() if each not in self._given)

    def __repr__(self) -> str:
        return f"{{{', '.join(map(repr, self))}}}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self),)


class Queue(MaybeChannelBound):
    """Queue: the place where messages wait for consumers.

    Args:
        name: Name; for ``""`` the broker chooses one.
        exchange: Exchange to bind it to, its name, or several bindings.
        routing_key: Routing key of the binding.
        channel: Channel to bind the queue to.
        bindings: Bindings, instead of ``exchange`` and ``routing_key``.
        on_declared: Called with (name, messages, consumers) after each declaration.

    Keyword Args:
        durable (bool): If True (default), it survives a restart of the broker.
        exclusive (bool): If True, only this connection may use it, and it is deleted with the connection; it is
            ``auto_delete`` too.
        auto_delete (bool): If True, it is deleted with its last consumer.
        no_ack (bool): If True, messages count as acknowledged when the broker sends them.
        expires (float | None): Seconds without a consumer after which it is deleted.
        message_ttl (float | None): Seconds after which a waiting message expires.
        max_length (int | None): Largest number of waiting messages.
        max_length_bytes (int | None): Largest size of the waiting messages, in bytes.
        max_priority (int | None): Largest priority; the highest is delivered first.
        queue_arguments (dict[str, Any] | None): The broker's own arguments of the queue.
        binding_arguments (dict[str, Any] | None): The broker's own arguments of the binding.
        consumer_arguments (dict[str, Any] | None): The broker's own arguments of its consumers.
        kind (Quorum | Stream | None): ``Quorum(...)`` or ``Stream(...)`` for RabbitMQ's other queues. Arguments under
            the broker's names win over those of the kind.
        no_declare (bool): If True, it is never declared.
        alias (str | None): A name that programs give it.

    Raises:
        ValueError: An attribute contradicts ``kind``.

    Example:
        ```py
        Queue("invoices", Exchange("orders", type="topic"), routing_key="order.paid", message_ttl=3600)
        ```
    """

    attrs: ClassVar[tuple[tuple[str, Any], ...]] = (
        ("name", None),
        ("exchange", None),
        ("routing_key", None),
        ("queue_arguments", None),
        ("binding_arguments", None),
        ("consumer_arguments", None),
        ("durable", bool),
        ("exclusive", bool),
        ("auto_delete", bool),
        ("no_ack", None),
        ("alias", None),
        ("bindings", list),
        ("no_declare", bool),
        ("expires", float),
        ("message_ttl", float),
        ("max_length", int),
        ("max_length_bytes", int),
        ("max_priority", int),
        ("kind", None),
    )

    ContentDisallowed = ContentDisallowed

    name: str = ""
    exchange: Exchange | None = Exchange("")
    routing_key: str = ""
    durable = True
    exclusive = False
    auto_delete = False
    no_ack = False
    queue_arguments: dict[str, Any] | None
    binding_arguments: dict[str, Any] | None
    consumer_arguments: dict[str, Any] | None
    expires: float | None
    message_ttl: float | None
    max_length: int | None
    max_length_bytes: int | None
    max_priority: int | None
    kind: QueueKind | None
    no_declare: bool | None
    alias: str | None

    def __init__(
        self,
        name: str = "",
        exchange: Exchange | str | Iterable[binding] | None = None,
        routing_key: str = "",
        channel: Bindable | None = None,
        bindings: Iterable[binding] | None = None,
        on_declared: Callable[[str, int, int], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name = name or self.name
        self.routing_key = routing_key or self.routing_key
        self.on_declared = on_declared
        self.bindings: set[binding] = BindingSet(bindings) if bindings else set()
        if exchange is None:
            exchange = type(self).exchange
        if isinstance(exchange, str):
            self.exchange = Exchange(exchange)
        elif isinstance(exchange, Exchange) or exchange is None:
            self.exchange = exchange
        else:
            self.bindings = BindingSet([*self.bindings, *exchange])
        if self.bindings:
            self.exchange = None
        if self.exclusive:
            self.auto_delete = True
        if self.kind is not None:
            self.kind.check(self)
        self.maybe_bind(channel)

    def bind(self, channel: Bindable) -> Queue:
        """Return a copy that is bound to a channel.

        Args:
            channel: A channel, or a connection for its default channel.
        """
        bound = super().bind(channel)
        bound.on_declared = self.on_declared
        return bound

    def when_bound(self) -> None:
        """Bind the exchange too."""
        if self.exchange is not None:
            self.exchange = self.exchange.bind(self.channel)

    @property
    def can_cache_declaration(self) -> bool:  # type: ignore[override]
        """True if one declaration lasts as long as the connection."""
        expires = self.expires is not None or "x-expires" in (self.queue_arguments or {})
        return not self.auto_delete and not expires

    def declare(self, nowait: bool = False, channel: Channel | None = None) -> str:
        """Declare the exchange and the queue, and bind them.

        Args:
            nowait: Passed to the channel; kombulite's own channels wait for the broker's answer all the same.
            channel: Channel to use instead of the one that the entity is bound to.

        Returns:
            The name, which the broker chooses for ``""``.

        Raises:
            NotEquivalentError: It exists with other settings.
            ResourceLocked: It is an exclusive queue of another connection.
        """
        if not self.no_declare:
            self._create_exchange(nowait=nowait, channel=channel)
            self._create_queue(nowait=nowait, channel=channel)
            self._create_bindings(nowait=nowait, channel=channel)
        return self.name

    def _create_exchange(self, nowait: bool = False, channel: Channel | None = None) -> None:
        if self.exchange is not None:
            # One that was set after the queue was bound is not bound itself.
            if self.is_bound and not self.exchange.is_bound:
                channel = channel or self.channel
            self.exchange.declare(nowait=nowait, channel=channel)

    def _create_queue(self, nowait: bool = False, channel: Channel | None = None) -> None:
        self.queue_declare(nowait=nowait, passive=False, channel=channel)
        if self.exchange is not None and self.exchange.name:
            self.queue_bind(nowait=nowait, channel=channel)

    def _create_bindings(self, nowait: bool = False, channel: Channel | None = None) -> None:
        for each in self.bindings:
            channel = channel or self.channel
            each.declare(channel, nowait=nowait)
            each.bind(self, nowait=nowait, channel=channel)

    def queue_declare(
        self, nowait: bool = False, passive: bool = False, channel: Channel | None = None
    ) -> DeclaredQueue | None:
        """Declare only the queue.

        Args:
            nowait: Passed to the channel; kombulite's own channels wait for the broker's answer all the same.
            passive: If True, only assert that it exists; nothing is created or changed.
            channel: Channel to use instead of the one that the entity is bound to.

        Returns:
            (queue, message_count, consumer_count); None with ``nowait``.

        Raises:
            NotFound: The queue or exchange does not exist.
            NotEquivalentError: It exists with other settings.
            ResourceLocked: It is an exclusive queue of another connection.
        """
        channel = channel or self.channel
        of_kind = {} if self.kind is None else {"kind": self.kind}  # channels of kombu's know no such keyword
        info: DeclaredQueue | None = channel.queue_declare(
            queue=self.name,
            passive=passive,
            durable=self.durable,
            exclusive=self.exclusive,
            auto_delete=self.auto_delete,
            arguments=channel.prepare_queue_arguments(
                self.queue_arguments or {},
                expires=self.expires,
                message_ttl=self.message_ttl,
                max_length=self.max_length,
                max_length_bytes=self.max_length_bytes,
                max_priority=self.max_priority,
                **of_kind,
            ),
            nowait=nowait,
        )
        if info is not None:
            if not self.name:
                self.name = info[0]
            if self.on_declared is not None:
                self.on_declared(*info)
        return info

    def queue_bind(self, nowait: bool = False, channel: Channel | None = None) -> Any:
        """Bind the queue to its exchange.

        Args:
            nowait: Passed to the channel; kombulite's own channels wait for the broker's answer all the same.
            channel: Channel to use instead of the one that the entity is bound to.
        """
        return self.bind_to(
            self.exchange or "", self.routing_key, self.binding_arguments, channel=channel, nowait=nowait
        )

    def bind_to(
        self,
        exchange: Exchange | str = "",
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        nowait: bool = False,
        channel: Channel | None = None,
    ) -> Any:
        """Bind the queue to an exchange.

        Args:
            exchange: The exchange, or its name.
            routing_key: Routing key.
            arguments: Arguments of the binding, such as those of a headers exchange.
            nowait: Passed to the channel; kombulite's own channels wait for the broker's answer all the same.
            channel: Channel to use instead of the one that the entity is bound to.

        Raises:
            NotFound: The queue or exchange does not exist.
        """
        return (channel or self.channel).queue_bind(
            queue=self.name, exchange=_name_of(exchange), routing_key=routing_key, arguments=arguments, nowait=nowait
        )

    def queue_unbind(
        self, arguments: dict[str, Any] | None = None, nowait: bool = False, channel: Channel | None = None
    ) -> Any:
        """Remove the binding to the queue's exchange.

        Args:
            arguments: Arguments of the binding.
            nowait: Passed to the channel; kombulite's own channels wait for the broker's answer all the same.
            channel: Channel to use instead of the one that the entity is bound to.
        """
        return self.unbind_from(self.exchange or "", self.routing_key, arguments, nowait, channel)

    def unbind_from(
        self,
        exchange: Exchange | str = "",
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        nowait: bool = False,
        channel: Channel | None = None,
    ) -> Any:
        """Remove a binding to an exchange.

        Args:
            exchange: The exchange, or its name.
            routing_key: Routing key.
            arguments: Arguments of the binding.
            nowait: Passed to the channel; kombulite's own channels wait for the broker's answer all the same.
            channel: Channel to use instead of the one that the entity is bound to.
        """
        return (channel or self.channel).queue_unbind(
            queue=self.name, exchange=_name_of(exchange), routing_key=routing_key, arguments=arguments, nowait=nowait
        )

    def get(self, no_ack: bool | None = None, accept: Iterable[str] | None = None) -> ReceivedMessage | None:
        """Return the next message, or None if none waits.

        Args:
            no_ack: If True, a message counts as acknowledged when the broker sends it.
            accept: Serializer names or content types that may be decoded (None: all that are not disabled).
        """
        no_ack = self.no_ack if no_ack is None else no_ack
        accepted = prepare_accept_content(accept)
        message: Any = self.channel.basic_get(queue=self.name, no_ack=bool(no_ack))
        if message is not None:
            convert = getattr(self.channel, "message_to_python", None)
            if convert is not None:
                message = convert(message)
            if message.errors:
                message._reraise_error()
            message.accept = accepted
        received: ReceivedMessage | None = message
        return received

    def purge(self, nowait: bool = False) -> int:
        """Remove the waiting messages. Return their number.

        Args:
            nowait: Passed to the channel; kombulite's own channels wait for the broker's answer all the same.
        """
        return self.channel.queue_purge(queue=self.name, nowait=nowait) or 0

    def consume(
        self,
        consumer_tag: str = "",
        callback: Callable[[ReceivedMessage], Any] | None = None,
        no_ack: bool | None = None,
        nowait: bool = False,
        on_cancel: Callable[[str], Any] | None = None,
    ) -> Any:
        """Start a consumer, and return its tag.

        Args:
            consumer_tag: Tag that names the consumer on its channel.
            callback: Called with each message, in ``drain_events``.
            no_ack: If True, a message counts as acknowledged when the broker sends it.
            nowait: Passed to the channel; kombulite's own channels wait for the broker's answer all the same.
            on_cancel: Called with the consumer tag if the broker ends the consumer.
        """
        no_ack = self.no_ack if no_ack is None else no_ack
        arguments = self.consumer_arguments
        is_stream = (self.queue_arguments or {}).get("x-queue-type") == "stream"
        if self.kind is not None:
            arguments = with_kind(arguments, self.kind.consumer_arguments())
            is_stream = is_stream or self.kind.is_stream
        if is_stream:
            # RabbitMQ's default, in words: a consumer that comes back knows what it wanted.
            arguments = {"x-stream-offset": "next", **(arguments or {})}
        tag: str = self.channel.basic_consume(
            queue=self.name,
            no_ack=bool(no_ack),
            consumer_tag=consumer_tag or "",
            callback=callback,
            nowait=nowait,
            arguments=arguments,
            on_cancel=on_cancel,
        )
        return tag

    def cancel(self, consumer_tag: str) -> Any:
        """Cancel a consumer.

        Args:
            consumer_tag: Its tag.
        """
        return self.channel.basic_cancel(consumer_tag)

    def delete(self, if_unused: bool = False, if_empty: bool = False, nowait: bool = False) -> int:
        """Delete the queue. Return the number of messages that were deleted with it.

        Args:
            if_unused: Delete only if it has no consumer.
            if_empty: Delete only if no message waits in it.
            nowait: Passed to the channel; kombulite's own channels wait for the broker's answer all the same.

        Raises:
            PreconditionFailed: It is in use, or not empty.
        """
        return self.channel.queue_delete(queue=self.name, if_unused=if_unused, if_empty=if_empty, nowait=nowait) or 0

    def as_dict(self, recurse: bool = False) -> dict[str, Any]:
        """Return the attributes by name, as kombu does; ``kind`` is among them if it is set.

        Args:
            recurse: If True, the exchange and bindings become dicts too.
        """
        attributes = super().as_dict(recurse)
        if self.kind is None:
            del attributes["kind"]
        return attributes

    @classmethod
    def from_dict(cls, queue: str, **options: Any) -> Queue:
        """Return a queue made from plain settings, as configuration files hold them.

        Args:
            queue: Name of the queue.
            **options: Attributes of the queue and its exchange, under kombu's names.
        """
        binding_key = options.get("binding_key") or options.get("routing_key")
        exchange_durable = options.get("exchange_durable")
        exchange_durable = options.get("durable") if exchange_durable is None else exchange_durable
        exchange_auto_delete = options.get("exchange_auto_delete")
        exchange_auto_delete = options.get("auto_delete") if exchange_auto_delete is None else exchange_auto_delete
        queue_durable = options.get("queue_durable")
        queue_durable = options.get("durable") if queue_durable is None else queue_durable
        queue_auto_delete = options.get("queue_auto_delete")
        queue_auto_delete = options.get("auto_delete") if queue_auto_delete is None else queue_auto_delete
        exchange = Exchange(
            options.get("exchange") or "",
            type=options.get("exchange_type") or "direct",
            delivery_mode=options.get("delivery_mode"),
            routing_key=options.get("routing_key"),
            durable=exchange_durable,
            auto_delete=exchange_auto_delete,
            arguments=options.get("exchange_arguments"),
        )
        others = {
            name: options[name]
            for name, _ in cls.attrs
            if name in options and name not in cls._from_dict_explicit_attrs
        }
        return cls(
            queue,
            exchange=exchange,
            routing_key=binding_key or "",
            durable=queue_durable,
            auto_delete=queue_auto_delete,
            **others,
        )

    #: Attributes that ``from_dict`` makes of other settings; all others it takes as they are.
    _from_dict_explicit_attrs = frozenset(["name", "exchange", "routing_key", "durable", "auto_delete"])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Queue):
            return NotImplemented
        return (
            self.name == other.name
            and self.exchange == other.exchange
            and self.routing_key == other.routing_key
            and self.queue_arguments == other.queue_arguments
            and self.binding_arguments == other.binding_arguments
            and self.consumer_arguments == other.consumer_arguments
            and self.durable == other.durable
            and self.exclusive == other.exclusive
            and self.auto_delete == other.auto_delete
            and self.kind == other.kind
        )

    def __hash__(self) -> int:
        return hash(f"Q|{self.name}")

    def __repr__(self) -> str:
        if self.bindings:
            return self._repr_entity(f"Queue {_reprstr(self.name)} -> {pretty_bindings(self.bindings)}")
        return self._repr_entity(f"Queue {_reprstr(self.name)} -> {self.exchange!r} -> {_reprstr(self.routing_key)}")


def is_declared(entity: Any, declared: set[Any]) -> bool:
    """Return True if an entity, as it is now, is among the declarations of a connection.

    Args:
        entity: Exchange or queue.
        declared: Keys of the declarations.
    """
    return entity.can_cache_declaration and declaration_key(entity) in declared


def pretty_bindings(bindings: Iterable[Any]) -> str:
    """Return bindings as text: ``[exchange->key, ...]``.

    Args:
        bindings: The bindings.
    """
    return f"[{', '.join(map(str, bindings))}]"
