"""Publishing as kombu does it, step by step, for programs that replace a step or look at it.

A step is a method: what a subclass overrides or a program sets on a producer is called, with kombu's arguments. All
other producers publish in one go.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from kombulite import serialization
from kombulite._client.outgoing import as_it_is, as_they_travel
from kombulite._core import Delivery, make_properties
from kombulite._sync.batches import SessionBatch
from kombulite.compression import compress
from kombulite.transport.adapter import AdaptedChannel

P = ParamSpec("P")
R = TypeVar("R")


class Step(Generic[P, R]):
    """A method that may be replaced on an object, which takes note by ``_note_replaced``.

    What replaces it is kept in ``_replaced``: an object whose ``__dict__`` was asked for takes 20 % more instructions
    to publish.
    """

    def __init__(self, method: Callable[Concatenate[Any, P], R]) -> None:
        self.method = method
        self.__doc__ = method.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, obj: None, owner: type) -> Callable[Concatenate[Any, P], R]: ...

    @overload
    def __get__(self, obj: object, owner: type) -> Callable[P, R]: ...

    def __get__(self, obj: Any, owner: type) -> Callable[..., R]:
        if obj is None:
            return self.method
        replaced: Callable[..., R] | None = obj._replaced.get(self._name)
        return replaced or MethodType(self.method, obj)

    def __set__(self, obj: Any, value: Any) -> None:
        obj._replaced = {**obj._replaced, self._name: value}
        obj._note_replaced()

    def __delete__(self, obj: Any) -> None:
        if self._name not in obj._replaced:
            raise AttributeError(self._name)
        obj._replaced = {name: value for name, value in obj._replaced.items() if name != self._name}
        obj._note_replaced()


def replaced_name(name: str) -> Any:
    """Return what a program has put in the place of a name of ``kombulite.messaging``, as tests do; None: nothing."""
    module = sys.modules.get("kombulite.messaging")  # it imports this one, and may not be needed
    found = None if module is None else vars(module).get(name)
    return None if found is ORIGINALS.get(name) else found


#: Names of ``kombulite.messaging`` that publishing looks up there. It has not ``maybe_declare`` itself.
ORIGINALS = {"dumps": serialization.dumps, "compress": compress}


def prepare(
    producer: Any,
    body: Any,
    serializer: str | None = None,
    content_type: str | None = None,
    content_encoding: str | None = None,
    compression: str | None = None,
    headers: Any = None,
) -> tuple[Any, str | None, str | None]:
    """Return a body as it travels, its content type and content encoding; ``headers`` gets its compression."""
    if content_type:
        content_encoding, body = as_it_is(body, content_encoding)
    else:
        dumps = replaced_name("dumps") or serialization.dumps
        content_type, content_encoding, body = dumps(body, serializer=serializer or producer.serializer)
    if compression:
        body, headers["compression"] = (replaced_name("compress") or compress)(body, compression)
    return body, content_type, content_encoding


def publish_in_steps(
    producer: Any,
    body: Any,
    routing_key: str | None,
    delivery_mode: int | str | None,
    mandatory: bool,
    immediate: bool,
    priority: int | None,
    content_type: str | None,
    content_encoding: str | None,
    serializer: str | None,
    headers: Mapping[str, Any] | None,
    compression: str | None,
    exchange: Any,
    retry: bool,
    retry_policy: Mapping[str, Any] | None,
    declare: Any,
    expiration: float | None,
    timeout: float | None,
    confirm_timeout: float | None,
    properties: dict[str, Any],
) -> Any:
    """Do what ``Producer.publish`` does, by the producer's ``_delivery_details``, ``_prepare`` and ``_publish``."""
    entities = list(declare or ())
    given = dict(headers or {})
    policy = dict(retry_policy or {})
    name, mode = producer._delivery_details(producer.exchange if exchange is None else exchange, delivery_mode)
    properties = {**as_they_travel(properties, expiration), "delivery_mode": mode}
    body, content_type, content_encoding = producer._prepare(
        body, serializer, content_type, content_encoding, compression or producer.compression, given
    )
    if producer.auto_declare and producer.exchange.name and producer.exchange not in entities:
        entities.append(producer.exchange)
    publish = producer._publish
    if retry:
        publish = producer.connection.ensure(producer, publish, **policy)
    return publish(
        body,
        priority,
        content_type,
        content_encoding,
        given,
        properties,
        producer.routing_key if routing_key is None else routing_key,
        mandatory,
        immediate,
        name,
        entities,
        timeout,
        confirm_timeout,
        retry,
        policy,
    )


def publish_prepared(
    producer: Any,
    body: Any,
    priority: int | None,
    content_type: str | None,
    content_encoding: str | None,
    headers: Any,
    properties: dict[str, Any],
    routing_key: str,
    mandatory: bool,
    immediate: bool,
    exchange: str,
    declare: Iterable[Any] | None,
    timeout: float | None = None,
    confirm_timeout: float | None = None,
    retry: bool = False,
    retry_policy: Mapping[str, Any] | None = None,
) -> Any:
    """Publish a body that ``_prepare`` has made ready. Returns what the channel returns."""
    channel, batch = producer._open_channel(), producer._batch
    is_direct = isinstance(channel, AdaptedChannel) and not channel.is_hooked
    is_direct = is_direct and (batch is None or isinstance(batch, SessionBatch))
    message = None
    if is_direct:
        message = channel.public.prepare_message(body, priority, content_type, content_encoding, headers, properties)
    for entity in declare or ():
        producer.maybe_declare(entity, retry=retry, **(retry_policy or {}))
    if not is_direct:
        made = make_properties(content_type, content_encoding, headers, None, priority, properties)
        body = body.encode(content_encoding or "utf-8") if isinstance(body, str) else body
        delivery = Delivery(exchange, routing_key, made, body)
        return producer._send(delivery, mandatory, None, timeout, confirm_timeout)
    options = {
        "exchange": exchange,
        "routing_key": routing_key,
        "mandatory": mandatory,
        "immediate": immediate,
        "timeout": timeout,
        "confirm_timeout": confirm_timeout,
    }
    if batch is not None:
        return batch.publish(channel.public, message, **options)
    return channel.publish_prepared(message, body, options)
