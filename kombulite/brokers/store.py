"""What a store is to the virtual transport: bytes by queue, and a catalogue of exchanges, queues and bindings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, NamedTuple

from kombulite import exceptions
from kombulite._core import Delivery, RoutingTable
from kombulite.brokers.base import ExchangeSpec, QueueSpec, Settings, unknown_type

PREDECLARED = {f"amq.{kind}": kind for kind in ("direct", "fanout", "topic")}


class Claim(NamedTuple):
    """Message that was taken from a queue and is not settled.

    Attributes:
        token: Identity of the message in its store.
        data: The message, as ``put`` was given it.
        delivery_count: Number of earlier claims that came back.
    """

    token: Any
    data: bytes
    delivery_count: int = 0


class Store:
    """Store of messages and of the catalogue, for one connection: the base of transports over brokers that keep bytes.

    A subclass defines the methods that raise NotImplementedError. One thread at a time calls them, and they raise
    OSError if the store fails.

    Args:
        settings: Settings of the connection, which name the store.
        identity: Identity of the connection among others, of other processes too.
    """

    def __init__(self, settings: Settings, identity: str) -> None:
        self.settings = settings
        self.identity = identity

    def open(self) -> None:
        """Open the store."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the store."""
        raise NotImplementedError

    # --- messages

    def put(self, queue: str, data: bytes) -> None:
        """Add a message at the end of a queue, declared or not. When it returns, the message is stored.

        Args:
            queue: Name of the queue.
            data: The message.
        """
        raise NotImplementedError

    def claim(self, queue: str) -> Claim | None:
        """Take the first unclaimed message of a queue. Other connections do not get it unless it returns.

        A claim of a connection that was lost returns by itself; that counts as a delivery.

        Args:
            queue: Name of the queue.
        """
        raise NotImplementedError

    def finish(self, token: Any) -> None:
        """Delete a claimed message.

        Args:
            token: Identity of the message.
        """
        raise NotImplementedError

    def put_back(self, token: Any) -> None:
        """Undo a claim: the message returns to its position, and its delivery count grows by one.

        Args:
            token: Identity of the message.
        """
        raise NotImplementedError

    def set_aside(self, token: Any) -> None:
        """Move away a claimed message that cannot be read.

        Args:
            token: Identity of the message.
        """
        self.finish(token)

    def size(self, queue: str) -> int:
        """Return the number of waiting messages of a queue, without claimed ones.

        Args:
            queue: Name of the queue.
        """
        raise NotImplementedError

    def claimed(self, queue: str) -> int | None:
        """Return the number of claimed messages of a queue, by any connection; None if that is unknown.

        Args:
            queue: Name of the queue.
        """
        return None

    def clear(self, queue: str) -> int:
        """Delete the waiting messages of a queue. Return their number.

        Args:
            queue: Name of the queue.
        """
        raise NotImplementedError

    # --- the catalogue: entries of the kinds "exchange", "queue", "bindings" (by exchange)

    def read(self, kind: str, name: str) -> bytes | None:
        """Return an entry of the catalogue, or None.

        Args:
            kind: Kind of the entry.
            name: Name of the entry.
        """
        raise NotImplementedError

    def write(self, kind: str, name: str, data: bytes) -> None:
        """Create or replace an entry of the catalogue.

        Args:
            kind: Kind of the entry.
            name: Name of the entry.
            data: The entry.
        """
        raise NotImplementedError

    def remove(self, kind: str, name: str) -> None:
        """Delete an entry of the catalogue, if it exists.

        Args:
            kind: Kind of the entry.
            name: Name of the entry.
        """
        raise NotImplementedError

    def names(self, kind: str) -> Iterable[str]:
        """Return the names of the entries of a kind.

        Args:
            kind: Kind of the entries.
        """
        raise NotImplementedError

    def lock(self) -> AbstractContextManager[Any]:
        """Return a reentrant context manager that keeps others, other processes too, from changing the catalogue."""
        raise NotImplementedError

    # --- other connections, where they can know of each other

    def is_alive(self, identity: str) -> bool:
        """Return True if the connection of an identity exists. Queues of a connection that does not are deleted.

        Args:
            identity: Identity of the connection.
        """
        return True

    def consumed_elsewhere(self, queue: str) -> int:
        """Return the number of consumers of a queue that other connections have, as far as is known.

        Args:
            queue: Name of the queue.
        """
        return 0

    def on_consumers_changed(self, queues: Sequence[str]) -> None:
        """React to a change of the queues that this connection consumes from.

        Args:
            queues: Names of the queues.
        """


class Catalogue:
    """Exchanges, queues and bindings in a store. Changes require the store's lock.

    Args:
        store: The store.
        exchange_types: Types of exchanges that are supported.
    """

    def __init__(self, store: Store, exchange_types: Iterable[str]) -> None:
        self._store = store
        self._exchange_types = exchange_types
        self._routes: dict[str, tuple[Any, RoutingTable]] = {}
        self._seen: set[str] = set()  # queues that were there, though nobody declared them

    def _record(self, kind: str, name: str) -> dict[str, Any]:
        """Return an entry as a dict, empty for one that is not there."""
        data = self._store.read(kind, name)
        record = _loads(data, kind, name) if data else {}
        if not isinstance(record, dict):
            raise exceptions.ChannelError(f"the record of {kind} {name!r} is none")
        return record

    def _create(self, kind: str, spec: ExchangeSpec | QueueSpec, **extra: Any) -> None:
        wanted = {**spec._asdict(), "arguments": dict(spec.arguments or {}), **extra}
        known = self._record(kind, spec.name)
        if not known:
            self._store.write(kind, spec.name, json.dumps(wanted).encode())
        elif known != wanted:
            raise exceptions.NotEquivalentError(f"{kind} '{spec.name}' is declared as {known}, not as {wanted}")

    # --- exchanges

    def exchange_type(self, name: str) -> str:
        """Return the type of an exchange; ``"direct"`` if it has bindings and was never declared.

        Args:
            name: Name of the exchange.

        Raises:
            NotFound: The queue or exchange does not exist.
        """
        kind: str | None = PREDECLARED.get(name) or self._record("exchange", name).get("type")
        if kind is None and self._store.read("bindings", name) is None:
            raise exceptions.NotFound(f"no exchange '{name}'")
        return kind or "direct"

    def declare_exchange(self, spec: ExchangeSpec) -> None:
        """Create an exchange.

        Args:
            spec: The exchange.

        Raises:
            NotEquivalentError: It exists with other settings.
            InvalidCommand: It has no type.
            AMQPNotImplementedError: The type is not supported.
        """
        if spec.type not in self._exchange_types:
            raise unknown_type(spec, self._exchange_types)
        if PREDECLARED.get(spec.name) != spec.type:
            self._create("exchange", spec)

    def delete_exchange(self, name: str, if_unused: bool) -> None:
        """Delete an exchange with its bindings.

        Args:
            name: Name of the exchange.
            if_unused: Delete only if nothing is bound to it.

        Raises:
            AccessRefused: It is the default exchange.
            PreconditionFailed: It is in use.
        """
        if name in PREDECLARED or not name:
            raise exceptions.AccessRefused(f"exchange '{name}' is the broker's own")
        if if_unused and self.bindings(name):
            raise exceptions.PreconditionFailed(f"exchange '{name}' is in use")
        self._store.remove("exchange", name)
        self._store.remove("bindings", name)

    # --- queues

    def queue(self, name: str) -> dict[str, Any]:
        """Return the record of a queue that this connection may use.

        It is empty for a queue that has messages or bindings and was never declared.

        Args:
            name: Name of the queue.

        Raises:
            NotFound: The queue or exchange does not exist.
            ResourceLocked: It is an exclusive queue of another connection.
        """
        record = self._record("queue", name)
        if record.get("owner") and not self._store.is_alive(record["owner"]):
            self.delete_queue(name)
            record = {}
        if not record and name not in self._seen:
            if not self._store.size(name) and not self._is_bound(name):
                raise exceptions.NotFound(f"no queue '{name}'")
            self._seen.add(name)
        if record.get("owner") not in (None, self._store.identity):
            raise exceptions.ResourceLocked(f"queue '{name}' is another connection's own")
        return record

    def declare_queue(self, spec: QueueSpec) -> None:
        """Create a queue.

        Args:
            spec: The queue.

        Raises:
            NotEquivalentError: It exists with other settings.
            ResourceLocked: It is an exclusive queue of another connection.
        """
        if self._record("queue", spec.name):
            with suppress(exceptions.NotFound):  # its owner died
                self.queue(spec.name)
        self._create("queue", spec, owner=self._store.identity if spec.exclusive else None)

    def delete_queue(self, name: str) -> int:
        """Delete a queue with its bindings. Return the number of messages that were deleted with it.

        Args:
            name: Name of the queue.
        """
        self._store.remove("queue", name)
        self._seen.discard(name)
        for exchange in list(self._store.names("bindings")):
            self._rebind(exchange, [each for each in self.bindings(exchange) if each[2] != name])
        return self._store.clear(name)

    def is_auto_delete(self, queue: str) -> bool:
        """Return True if a queue is deleted with its last consumer.

        Args:
            queue: Name of the queue.
        """
        return bool(self._record("queue", queue).get("auto_delete"))

    def own_queues(self) -> list[str]:
        """Return the queues that are deleted with this connection."""
        names = list(self._store.names("queue"))
        return [name for name in names if self._record("queue", name).get("owner") == self._store.identity]

    # --- bindings

    def bindings(self, exchange: str) -> list[list[str]]:
        """Return the bindings of an exchange as kombu writes them, newest first: [routing key, pattern, queue].

        Args:
            exchange: Name of the exchange.
        """
        return _bindings(self._store.read("bindings", exchange), exchange)

    def bind(self, exchange: str, queue: str, routing_key: str) -> None:
        """Bind a queue.

        Args:
            exchange: Name of the exchange.
            queue: Name of the queue.
            routing_key: Routing key.

        Raises:
            NotFound: The queue or exchange does not exist.
            ResourceLocked: It is an exclusive queue of another connection.
        """
        self.queue(queue)
        pattern = _pattern(routing_key) if self.exchange_type(exchange) == "topic" else ""
        bindings = self.bindings(exchange)
        if not any(key == routing_key and bound == queue for key, _, bound in bindings):
            self._rebind(exchange, [[routing_key, pattern, queue], *bindings])

    def unbind(self, exchange: str, queue: str, routing_key: str) -> None:
        """Remove a binding, if it exists.

        Args:
            exchange: Name of the exchange.
            queue: Name of the queue.
            routing_key: Routing key.
        """
        bindings = self.bindings(exchange)
        self._rebind(exchange, [each for each in bindings if each[0] != routing_key or each[2] != queue])

    def _is_bound(self, queue: str) -> bool:
        return any(
            bound == queue for exchange in self._store.names("bindings") for *_, bound in self.bindings(exchange)
        )

    def _rebind(self, exchange: str, bindings: list[list[str]]) -> None:
        if bindings == self.bindings(exchange):
            return
        self._store.write("bindings", exchange, json.dumps(bindings).encode())
        if not bindings and self._record("exchange", exchange).get("auto_delete"):
            self.delete_exchange(exchange, if_unused=False)

    def route(self, delivery: Delivery) -> Sequence[str]:
        """Return the queues that a message goes to.

        Args:
            delivery: The message.

        Raises:
            NotFound: The exchange does not exist.
        """
        if not delivery.exchange:
            return (delivery.routing_key,)  # whether it was declared or not
        state = self.exchange_type(delivery.exchange), self._store.read("bindings", delivery.exchange)
        known, table = self._routes.get(delivery.exchange, (None, RoutingTable()))
        if known != state:
            table = RoutingTable()
            table.declare(delivery.exchange, state[0])
            for key, _, queue in _bindings(state[1], delivery.exchange):
                table.bind(delivery.exchange, queue, key)
            self._routes[delivery.exchange] = state, table
        return table.route(delivery.exchange, delivery.routing_key)


def _loads(data: bytes, kind: str, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise exceptions.ChannelError(f"the record of {kind} {name!r} is broken: {error}") from error


def _bindings(data: bytes | None, exchange: str) -> list[list[str]]:
    bindings = _loads(data, "bindings", exchange) if data else []
    if not isinstance(bindings, list) or not all(
        isinstance(each, list) and len(each) == 3 and all(isinstance(part, str) for part in each) for each in bindings
    ):
        raise exceptions.ChannelError(f"the bindings of exchange {exchange!r} are none")
    return bindings


def _pattern(routing_key: str) -> str:
    """Return a topic's binding key as the regular expression that kombu keeps beside it."""
    wildcards = {"*": r"[^\.]+", "#": ".*?"}
    words = (wildcards.get(word) or re.sub(r"([^a-zA-Z0-9*#])", r"\\\1", word) for word in routing_key.split("."))
    return "^" + r"\.".join(words) + "$"
