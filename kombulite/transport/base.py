"""The interface of kombu's transports: what others subclass and mock. ``kombulite.transport.adapter`` runs them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping
from typing import Any

from amqp.exceptions import ChannelError, ConnectionError, RecoverableConnectionError  # noqa: A004 - kombu's names

from kombulite.message import Message
from kombulite.utils.functional import dictfilter
from kombulite.utils.objects import cached_property
from kombulite.utils.time import maybe_s_to_ms

__all__ = ["Management", "Message", "StdChannel", "Transport"]

#: Keyword of ``Queue`` -> RabbitMQ's argument, and what makes its value.
RABBITMQ_QUEUE_ARGUMENTS: dict[str, tuple[str, Callable[[Any], int | None]]] = {
    "expires": ("x-expires", maybe_s_to_ms),
    "message_ttl": ("x-message-ttl", maybe_s_to_ms),
    "max_length": ("x-max-length", int),
    "max_length_bytes": ("x-max-length-bytes", int),
    "max_priority": ("x-max-priority", int),
}

UNAVAILABLE = (errno.EAGAIN, errno.EINTR)


def to_rabbitmq_queue_arguments(arguments: Mapping[str, Any], **options: Any) -> Any:
    """Return a queue's arguments, with RabbitMQ's names for the options that have a value.

    If no option has a value, ``arguments`` itself is returned.

    Args:
        arguments: The arguments.
        **options: ``expires`` and ``message_ttl`` (seconds), ``max_length`` (messages), ``max_length_bytes``,
            ``max_priority``; None: no value.

    Raises:
        KeyError: An option has another name.
    """
    prepared = dictfilter(dict(_to_rabbitmq_queue_argument(name, value) for name, value in options.items()))
    return {**arguments, **prepared} if prepared else arguments


def _to_rabbitmq_queue_argument(key: str, value: Any) -> tuple[str, Any]:
    """Return RabbitMQ's name for an option of ``Queue``, and its value there."""
    name, convert = RABBITMQ_QUEUE_ARGUMENTS[key]
    return name, None if value is None else convert(value)


def _LeftBlank(obj: object, method: str) -> NotImplementedError:
    cls = type(obj)
    return NotImplementedError(f"Transport {cls.__module__}.{cls.__name__} does not implement {method}")


class StdChannel:
    """Channel of such a transport: subclasses add the verbs."""

    #: Tags of consumers whose messages are not acknowledged; None where the channel does not keep them.
    no_ack_consumers: Any = None

    def Consumer(self, *args: Any, **kwargs: Any) -> Any:
        """Return a consumer on this channel.

        Args:
            *args: Arguments of ``kombulite.messaging.Consumer`` after the channel.
            **kwargs: Its keyword arguments.
        """
        from kombulite.messaging import Consumer  # importing a transport need not import the facade

        this: Any = self  # a subclass has the verbs
        return Consumer(this, *args, **kwargs)

    def Producer(self, *args: Any, **kwargs: Any) -> Any:
        """Return a producer on this channel.

        Args:
            *args: Arguments of ``kombulite.messaging.Producer`` after the channel.
            **kwargs: Its keyword arguments.
        """
        from kombulite.messaging import Producer

        this: Any = self
        return Producer(this, *args, **kwargs)

    def get_bindings(self) -> Any:
        """Return all bindings.

        Raises:
            NotImplementedError: The transport cannot list them.
        """
        raise _LeftBlank(self, "get_bindings")

    def after_reply_message_received(self, queue: str) -> None:
        """Clean up a reply queue, after each collection of replies; by default, do nothing.

        Args:
            queue: Name of the queue.
        """

    def prepare_queue_arguments(self, arguments: Mapping[str, Any], **kwargs: Any) -> Any:
        """Return the arguments of a queue, as the transport takes them; by default, ``arguments`` itself.

        Args:
            arguments: Arguments under the broker's names.
            **kwargs: Options of ``Queue`` that the broker has other names for.
        """
        return arguments

    def __enter__(self) -> Any:
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        self.close()  # type: ignore[attr-defined]


class Management:
    """Administration of a broker, as far as its transport has it.

    Args:
        transport: The transport.
    """

    def __init__(self, transport: Any) -> None:
        self.transport = transport

    def get_bindings(self) -> Any:
        """Return all bindings.

        Raises:
            NotImplementedError: The transport cannot list them.
        """
        raise _LeftBlank(self, "get_bindings")


class Implements(dict[str, Any]):
    """Capabilities of a transport, as keys and as attributes."""

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    def extend(self, **kwargs: Any) -> Any:
        """Return a copy with changes.

        Args:
            **kwargs: The capabilities that differ.
        """
        return type(self)(self, **kwargs)


default_transport_capabilities = Implements(
    asynchronous=False,
    batch_publish=False,
    exchange_type=frozenset(["direct", "topic", "fanout", "headers"]),
    heartbeats=False,
)


class Transport:
    """Transport of one ``Connection``, which makes an instance each time that it connects.

    Args:
        client: The ``Connection``.
        **kwargs: Options of a subclass.
    """

    Management = Management

    client: Any = None

    #: Whether the connection leaves a URL as it is, in ``client.hostname``.
    can_parse_url = False
    default_port: int | None = None

    connection_errors: Any = (ConnectionError,)
    channel_errors: Any = (ChannelError,)

    driver_type = "N/A"
    driver_name = "N/A"

    implements: Any = default_transport_capabilities.extend()

    __reader: Any = None

    def __init__(self, client: Any, **kwargs: object) -> None:
        self.client = client

    def establish_connection(self) -> Any:
        """Connect, and return the object that the other methods get as ``connection``."""
        raise _LeftBlank(self, "establish_connection")

    def close_connection(self, connection: Any) -> None:
        """Close a connection.

        Args:
            connection: The result of ``establish_connection``.
        """
        raise _LeftBlank(self, "close_connection")

    def create_channel(self, connection: Any) -> Any:
        """Return a new channel.

        Args:
            connection: The result of ``establish_connection``.
        """
        raise _LeftBlank(self, "create_channel")

    def close_channel(self, connection: Any) -> None:
        """Close a channel.

        Args:
            connection: The channel, by kombu's name for the parameter.
        """
        raise _LeftBlank(self, "close_channel")

    def drain_events(self, connection: Any, **kwargs: Any) -> Any:
        """Wait for one event and run its callbacks.

        Args:
            connection: The result of ``establish_connection``.
            **kwargs: ``timeout``: seconds to wait; None: no limit.

        Raises:
            socket.timeout: No event came in time.
        """
        raise _LeftBlank(self, "drain_events")

    def heartbeat_check(self, connection: Any, rate: int = 2) -> Any:
        """Send a heartbeat if one is due; by default, do nothing.

        Args:
            connection: The result of ``establish_connection``.
            rate: Number of checks in each interval between heartbeats.
        """

    def driver_version(self) -> str:
        """Return the version of the library that talks to the broker."""
        return "N/A"

    def get_heartbeat_interval(self, connection: Any) -> Any:
        """Return the seconds between heartbeats, 0 for none.

        Args:
            connection: The result of ``establish_connection``.
        """
        return 0

    def register_with_event_loop(self, connection: Any, loop: Any) -> Any:
        """Have a hub run the callbacks of what arrives; by default, do nothing.

        Args:
            connection: The result of ``establish_connection``.
            loop: The ``Hub``.
        """

    def unregister_from_event_loop(self, connection: Any, loop: Any) -> Any:
        """Remove from a hub what ``register_with_event_loop`` added; by default, do nothing.

        Args:
            connection: The result of ``establish_connection``.
            loop: The ``Hub``.
        """

    def verify_connection(self, connection: Any) -> bool:
        """Return whether a connection is open. Called often.

        Args:
            connection: The result of ``establish_connection``.
        """
        return True

    def _make_reader(
        self, connection: Any, timeout: Any = socket.timeout, error: Any = OSError, _unavail: Any = UNAVAILABLE
    ) -> Callable[[Any], None]:
        def read(loop: Any) -> None:
            if not connection.connected:
                raise RecoverableConnectionError("Socket was disconnected")
            try:
                connection.drain_events(timeout=0)
            except timeout:
                return
            except error as problem:
                if problem.errno in _unavail:
                    return
                raise
            loop.call_soon(read, loop)

        return read

    def qos_semantics_matches_spec(self, connection: Any) -> bool:
        """Return whether a prefetch count without ``apply_global`` is the limit of the channel, not of each consumer.

        Args:
            connection: The result of ``establish_connection``.
        """
        return True

    def on_readable(self, connection: Any, loop: Any) -> Any:
        """Run the callbacks of what has arrived, one event at each turn of the loop.

        Args:
            connection: The result of ``establish_connection``.
            loop: The ``Hub``.
        """
        if self.__reader is None:
            self.__reader = self._make_reader(connection)
        self.__reader(loop)

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Return a URL that the transport understands, safe to show.

        Args:
            uri: The URL.
            include_password: If True, the password is shown.
            mask: Text in place of the password.
        """
        raise NotImplementedError

    @property
    def default_connection_params(self) -> dict[str, Any]:
        """Values for what a URL leaves out, by the names of ``Connection``'s parameters."""
        return {}

    def get_manager(self, *args: Any, **kwargs: Any) -> Any:
        """Return a new ``Management`` of the broker.

        Args:
            *args: Arguments of a subclass.
            **kwargs: Keyword arguments of a subclass.
        """
        return self.Management(self)

    @cached_property  # type: ignore[no-untyped-call, untyped-decorator, unused-ignore]
    def manager(self) -> Any:
        """The object that administers the broker, created once."""
        return self.get_manager()

    @property
    def supports_heartbeats(self) -> bool:
        """True if it has heartbeats."""
        return bool(self.implements.heartbeats)

    @property
    def supports_ev(self) -> bool:
        """True if an event loop can wait for its events."""
        return bool(self.implements.asynchronous)
