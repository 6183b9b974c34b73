"""Exchanges, queues and the bindings between them.

Longer than other modules for the many attributes and verbs that kombu's users expect of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

from kombulite._client.interfaces import DeclaredQueue
from kombulite._client.queue_kinds import QueueKind, Stream, with_kind
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


def maybe_delivery_mode(
    v: int | str | None, modes: dict[str, int] | None = None, default: int = PERSISTENT_DELIVERY_MODE
) -> int:
    """The delivery mode behind its number or name."""
    if not v:
        return default
    if isinstance(v, str):
        return (modes or DELIVERY_MODES)[v]
    return v


class Exchange(MaybeChannelBound):
    """An exchange: where messages are published to.

    ``type``: direct, topic, fanout or headers; ``durable``: survives a broker restart; ``auto_delete``: goes with its
    last binding; ``delivery_mode``: default for messages (1 or ``"transient"``, 2 or ``"persistent"``);
    ``arguments``: the broker's own; ``passive``: declaring only asserts that it is there; ``no_declare``: it is never
    declared.
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

    def __init__(self, name: str = "", type: str = "", channel: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name = name or self.name
        self.type = type or self.type
        self.maybe_bind(channel)

    @property
    def can_cache_declaration(self) -> bool:  # type: ignore[override]
        """Whether one declaration lasts as long as the connection."""
        return not self.auto_delete

    def declare(self, nowait: bool = False, passive: bool | None = None, channel: Any = None) -> None:
        """Create it on the broker, or with ``passive`` assert that it is there.

        Raises NotFound, NotEquivalentError.
        """
        if self._can_declare():
            passive = self.passive if passive is None else passive
            (channel or self.channel).exchange_declare(
                exchange=self.name,
                type=self.type,
                durable=self.durable,
                auto_delete=self.auto_delete,
                arguments=self.arguments,
                nowait=nowait,
                passive=passive,
            )

    def _can_declare(self) -> bool:
        return not self.no_declare and bool(self.name) and not self.name.startswith(INTERNAL_EXCHANGE_PREFIX)

    def bind_to(
        self,
        exchange: Exchange | str = "",
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        nowait: bool = False,
        channel: Any = None,
    ) -> None:
        """Let messages of another exchange come to this one."""
        (channel or self.channel).exchange_bind(
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
        channel: Any = None,
    ) -> None:
        """Take a binding from another exchange away."""
        (channel or self.channel).exchange_unbind(
            destination=self.name, source=_name_of(source), routing_key=routing_key, nowait=nowait, arguments=arguments
        )

    def binding(
        self,
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        unbind_arguments: dict[str, Any] | None = None,
    ) -> binding:
        """A binding to this exchange, for ``Queue(bindings=...)``."""
        return binding(self, routing_key, arguments, unbind_arguments)

    def Message(
        self,
        body: Any,
        delivery_mode: int | str | None = None,
        properties: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """A message for ``publish``. ``kwargs`` as ``Channel.prepare_message`` takes them."""
        properties = dict(properties or {})
        properties["delivery_mode"] = maybe_delivery_mode(delivery_mode or self.delivery_mode)
        if isinstance(body, str):
            kwargs.setdefault("content_encoding", "utf-8")
        return self.channel.prepare_message(body, properties=properties, **kwargs)

    def publish(
        self,
        message: Any,
        routing_key: str | None = None,
        mandatory: bool = False,
        immediate: bool = False,
        exchange: Exchange | str | None = None,
    ) -> Any:
        """Publish what ``Message`` made. Returns what the channel returns."""
        if isinstance(message, str):
            message = self.Message(message)
        return self.channel.basic_publish(
            message,
            exchange=self.name if exchange is None else _name_of(exchange),
            routing_key=routing_key or "",
            mandatory=mandatory,
            immediate=immediate,
        )

    def delete(self, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete it on the broker. ``if_unused``: only if nothing is bound to it. Raises PreconditionFailed."""
        self.channel.exchange_delete(exchange=self.name, if_unused=if_unused, nowait=nowait)

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
        return f"Exchange {self.name or repr('')}({self.type})"


def _name_of(entity: Any) -> str:
    name: str = getattr(entity, "name", entity) or ""
    return name


class binding(Object):  # noqa: N801 - kombu's name
    """A binding of a queue (or exchange) to ``exchange`` under ``routing_key``."""

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

    def declare(self, channel: Any, nowait: bool = False) -> None:
        """Declare the exchange, if it has a name."""
        if self.exchange is not None and self.exchange.name:
            self.exchange.declare(channel=channel, nowait=nowait)

    def bind(self, entity: Queue | Exchange, nowait: bool = False, channel: Any = None) -> None:
        """Bind a queue or exchange."""
        entity.bind_to(
            exchange=self.exchange or "",
            routing_key=self.routing_key,
            arguments=self.arguments,
            nowait=nowait,
            channel=channel,
        )

    def unbind(self, entity: Queue | Exchange, nowait: bool = False, channel: Any = None) -> None:
        """Take the binding away."""
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
        return f"{_name_of(self.exchange)}->{self.routing_key}"


class BindingSet(set["binding"]):
    """Bindings, in the order in which they were given."""

    def __init__(self, bindings: Iterable[binding] = ()) -> None:
        self._given = dict.fromkeys(bindings)
        super().__init__(self._given)

    def __iter__(self) -> Iterator[binding]:
        yield from (each for each in self._given if each in self)
        yield from (each for each in super().__iter__() if each not in self._given)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self),)


class Queue(MaybeChannelBound):
    """A queue: where messages wait for consumers.

    ``exchange`` and ``routing_key``, or a list of ``bindings``, say what comes in. ``durable``: survives a broker
    restart; ``exclusive``: for this connection only (and auto-deleted); ``auto_delete``: goes with its last consumer;
    ``expires`` and ``message_ttl`` in seconds; ``max_length`` in messages, ``max_length_bytes``; ``max_priority``:
    priorities 0 to that, the highest first; ``queue_arguments``, ``binding_arguments``, ``consumer_arguments``:
    the broker's own; ``on_declared(name, messages, consumers)``; ``no_ack``: messages count as acknowledged when sent.

    ``kind``: ``Quorum(...)`` or ``Stream(...)`` for RabbitMQ's other queues, with their options. Arguments under the
    broker's names go over those of the kind. Raises ValueError for an attribute that such a queue cannot have.
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
        channel: Any = None,
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

    def bind(self, channel: Any) -> Queue:
        """A copy bound to a channel, or to a connection's default channel."""
        bound = super().bind(channel)
        bound.on_declared = self.on_declared
        return bound

    def when_bound(self) -> None:
        """Bind the exchange too."""
        if self.exchange is not None:
            self.exchange = self.exchange.bind(self.channel)

    @property
    def can_cache_declaration(self) -> bool:  # type: ignore[override]
        """Whether one declaration lasts as long as the connection."""
        expires = self.expires is not None or "x-expires" in (self.queue_arguments or {})
        return not self.auto_delete and not expires

    def declare(self, nowait: bool = False, channel: Any = None) -> str:
        """Declare the exchange, the queue, and bind them. Returns the name, which the broker chooses for ``""``."""
        if not self.no_declare:
            channel = channel or self.channel
            self._create_exchange(nowait, channel)
            self._create_queue(nowait, channel)
            self._create_bindings(nowait, channel)
        return self.name

    def _create_exchange(self, nowait: bool, channel: Any) -> None:
        if self.exchange is not None:
            self.exchange.declare(nowait=nowait, channel=channel)

    def _create_queue(self, nowait: bool, channel: Any) -> None:
        self.queue_declare(nowait=nowait, passive=False, channel=channel)
        if self.exchange is not None and self.exchange.name:
            self.queue_bind(nowait=nowait, channel=channel)

    def _create_bindings(self, nowait: bool, channel: Any) -> None:
        for each in self.bindings:
            each.declare(channel, nowait=nowait)
            each.bind(self, nowait=nowait, channel=channel)

    def queue_declare(self, nowait: bool = False, passive: bool = False, channel: Any = None) -> DeclaredQueue | None:
        """Declare just the queue: (queue, message_count, consumer_count), None with ``nowait``.

        ``passive`` only asserts that it is there. Raises NotFound, NotEquivalentError, ResourceLocked.
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

    def queue_bind(self, nowait: bool = False, channel: Any = None) -> None:
        """Bind the queue to its exchange."""
        self.bind_to(self.exchange or "", self.routing_key, self.binding_arguments, channel=channel, nowait=nowait)

    def bind_to(
        self,
        exchange: Exchange | str = "",
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        nowait: bool = False,
        channel: Any = None,
    ) -> None:
        """Bind the queue to an exchange. Raises NotFound."""
        (channel or self.channel).queue_bind(
            queue=self.name, exchange=_name_of(exchange), routing_key=routing_key, arguments=arguments, nowait=nowait
        )

    def queue_unbind(self, arguments: dict[str, Any] | None = None, nowait: bool = False, channel: Any = None) -> None:
        """Take the binding to its exchange away."""
        self.unbind_from(self.exchange or "", self.routing_key, arguments, nowait, channel)

    def unbind_from(
        self,
        exchange: Exchange | str = "",
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        nowait: bool = False,
        channel: Any = None,
    ) -> None:
        """Take a binding away."""
        (channel or self.channel).queue_unbind(
            queue=self.name, exchange=_name_of(exchange), routing_key=routing_key, arguments=arguments, nowait=nowait
        )

    def get(self, no_ack: bool | None = None, accept: Iterable[str] | None = None) -> Any:
        """The next message, or None. ``accept``: as for a consumer."""
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
        return message

    def purge(self, nowait: bool = False) -> int:
        """Remove the messages that wait. Returns how many."""
        return self.channel.queue_purge(queue=self.name, nowait=nowait) or 0

    def consume(
        self,
        consumer_tag: str = "",
        callback: Callable[[ReceivedMessage], Any] | None = None,
        no_ack: bool | None = None,
        nowait: bool = False,
        on_cancel: Callable[[str], Any] | None = None,
    ) -> Any:
        """Start a consumer: ``callback(message)`` runs in ``drain_events``. Returns the consumer tag.

        ``on_cancel(tag)`` is called when the broker ends it.
        """
        no_ack = self.no_ack if no_ack is None else no_ack
        arguments = self.consumer_arguments
        if self.kind is not None:
            arguments = with_kind(arguments, self.kind.consumer_arguments())
        if isinstance(self.kind, Stream) or (self.queue_arguments or {}).get("x-queue-type") == "stream":
            # RabbitMQ's default, in words: a consumer that comes back knows what it wanted.
            arguments = {"x-stream-offset": "next", **(arguments or {})}
        tag: str = self.channel.basic_consume(
            queue=self.name,
            no_ack=bool(no_ack),
            consumer_tag=consumer_tag,
            callback=callback,
            nowait=nowait,
            arguments=arguments,
            on_cancel=on_cancel,
        )
        return tag

    def cancel(self, consumer_tag: str) -> None:
        """End a consumer."""
        self.channel.basic_cancel(consumer_tag)

    def delete(self, if_unused: bool = False, if_empty: bool = False, nowait: bool = False) -> int:
        """Delete it, with the messages in it. Returns how many. Raises PreconditionFailed."""
        return self.channel.queue_delete(queue=self.name, if_unused=if_unused, if_empty=if_empty, nowait=nowait) or 0

    def as_dict(self, recurse: bool = False) -> dict[str, Any]:
        """The attributes by name, as kombu has them: ``kind`` is among them if it is set."""
        attributes = super().as_dict(recurse)
        if self.kind is None:
            del attributes["kind"]
        return attributes

    @classmethod
    def from_dict(cls, queue: str, **options: Any) -> Queue:
        """A queue from plain settings, as configuration files hold them."""
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
        others = {name: options[name] for name, _ in cls.attrs if name in options and name not in cls._FROM_DICT_GIVEN}
        return cls(
            queue,
            exchange=exchange,
            routing_key=binding_key or "",
            durable=queue_durable,
            auto_delete=queue_auto_delete,
            **others,
        )

    #: Attributes that ``from_dict`` makes of other settings; all others it takes as they are.
    _FROM_DICT_GIVEN = frozenset(["name", "exchange", "routing_key", "durable", "auto_delete"])

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
            bindings = ", ".join(str(each) for each in self.bindings)
            return self._repr_entity(f"Queue {self.name} -> [{bindings}]")
        return self._repr_entity(f"Queue {self.name} -> {self.exchange!r} -> {self.routing_key}")


def is_declared(entity: Any, declared: set[Any]) -> bool:
    """Whether an entity, as it is now, is among the declarations that a connection remembers."""
    return entity.can_cache_declaration and declaration_key(entity) in declared


def pretty_bindings(bindings: Iterable[Any]) -> str:
    """Return bindings as text: ``[exchange->key, ...]``."""
    return f"[{', '.join(map(str, bindings))}]"
