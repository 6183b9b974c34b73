"""The AMQP transport as others subclass it: py-amqp's connection and channel.

The URL ``amqp://`` means kombulite's own AMQP transport (``kombulite.brokers.amqp``): this module's classes are what
subclasses, and code that wants py-amqp's objects, stand on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import amqp

from kombulite.transport import base, note_contents
from kombulite.transport.base import to_rabbitmq_queue_arguments
from kombulite.utils.amq_manager import get_manager
from kombulite.utils.text import version_string_as_tuple

__all__ = ["Channel", "Connection", "Message", "SSLTransport", "Transport"]

DEFAULT_PORT = 5672
DEFAULT_SSL_PORT = 5671

#: RabbitMQ's versions in which a prefetch count without ``apply_global`` bounds a consumer.
BY_CONSUMER_SINCE, BY_CONSUMER_UNTIL = (3, 3), (4, 0)


class Message(base.Message):
    """A message of py-amqp's, received.

    Args:
        msg: The message of py-amqp.
        channel: The channel.
        **kwargs: Keyword arguments of ``kombulite.message.Message``.
    """

    def __init__(self, msg: Any, channel: Any = None, **kwargs: Any) -> None:
        properties = msg.properties
        super().__init__(
            body=msg.body,
            channel=channel,
            delivery_tag=msg.delivery_tag,
            content_type=properties.get("content_type"),
            content_encoding=properties.get("content_encoding"),
            delivery_info=msg.delivery_info,
            properties=properties,
            headers=properties.get("application_headers") or {},
            **kwargs,
        )


class Channel(amqp.Channel, base.StdChannel):  # type: ignore[misc]
    """A channel of py-amqp's."""

    Message = Message

    def prepare_message(
        self,
        body: object,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: Mapping[str, Any] | None = None,
        properties: Mapping[str, Any] | None = None,
        _Message: Callable[..., Any] = amqp.Message,
    ) -> Any:
        """Return a message for ``basic_publish``.

        Args:
            body: The body, encoded.
            priority: The priority; None: none.
            content_type: The content type.
            content_encoding: The content encoding.
            headers: The headers; None: none.
            properties: Further properties; None: none.
        """
        return _Message(
            body,
            priority=priority,
            content_type=content_type,
            content_encoding=content_encoding,
            application_headers=headers,
            **(properties or {}),
        )

    def prepare_queue_arguments(self, arguments: Mapping[str, Any], **kwargs: Any) -> Any:
        """Return a queue's arguments under RabbitMQ's names.

        Args:
            arguments: Arguments under the broker's names; None: none.
            **kwargs: ``expires``, ``message_ttl`` (seconds), ``max_length``, ``max_length_bytes``, ``max_priority``.
        """
        return to_rabbitmq_queue_arguments(arguments, **kwargs)

    def message_to_python(self, raw_message: Any) -> Any:
        """Return the message of one of py-amqp's.

        Args:
            raw_message: The message, as the transport received it.
        """
        return self.Message(raw_message, channel=self)


class Connection(amqp.Connection):  # type: ignore[misc]
    """A connection of py-amqp's."""

    Channel = Channel


class Transport(base.Transport):
    """A way to a broker by py-amqp.

    Args:
        client: The ``Connection``.
        default_port: Port if the URL has none; None: 5672.
        default_ssl_port: Port with TLS if the URL has none; None: 5671.
        **kwargs: Ignored; kept for compatibility.
    """

    #: What ``Connection`` runs for this very class.
    native = "kombulite.brokers.amqp:Transport"

    Connection: Any = Connection
    default_port: Any = DEFAULT_PORT
    default_ssl_port: Any = DEFAULT_SSL_PORT

    connection_errors: Any = amqp.Connection.connection_errors
    channel_errors: Any = amqp.Connection.channel_errors
    recoverable_connection_errors: Any = amqp.Connection.recoverable_connection_errors
    recoverable_channel_errors: Any = amqp.Connection.recoverable_channel_errors

    driver_name = "py-amqp"
    driver_type = "amqp"
    implements: Any = base.Transport.implements.extend(asynchronous=True, heartbeats=True)

    def __init__(
        self, client: Any, default_port: int | None = None, default_ssl_port: int | None = None, **kwargs: Any
    ) -> None:
        self.client = client
        self.default_port = default_port or self.default_port
        self.default_ssl_port = default_ssl_port or self.default_ssl_port

    def driver_version(self) -> str:
        """Return py-amqp's version."""
        version: str = amqp.__version__
        return version

    def create_channel(self, connection: Any) -> Any:
        """Return a new channel.

        Args:
            connection: The result of ``establish_connection``.
        """
        return connection.channel()

    def drain_events(self, connection: Any, **kwargs: Any) -> Any:
        """Wait for one event and run its callbacks.

        Args:
            connection: The result of ``establish_connection``.
            **kwargs: ``timeout``: seconds to wait; None: no limit.
        """
        return connection.drain_events(**kwargs)

    def _collect(self, connection: Any) -> None:
        if connection is not None:
            connection.collect()

    def establish_connection(self) -> Any:
        """Connect, filling the defaults into the client."""
        client = self.client
        for name, value in self.default_connection_params.items():
            if not getattr(client, name, None):
                setattr(client, name, value)
        if client.hostname == "localhost":
            client.hostname = "127.0.0.1"
        if isinstance(client.ssl, dict) and "server_hostname" in client.ssl and client.ssl["server_hostname"] is None:
            client.ssl["server_hostname"] = client.hostname
        password = client.password
        options = {
            "host": client.host,
            "userid": client.userid,
            "password": password() if callable(password) else password,
            "login_method": client.login_method,
            "virtual_host": client.virtual_host,
            "insist": client.insist,
            "ssl": client.ssl,
            "connect_timeout": client.connect_timeout,
            "heartbeat": client.heartbeat,
            **(client.transport_options or {}),
        }
        connection = self.Connection(**options)
        connection.client = client
        connection.connect()
        return connection

    def verify_connection(self, connection: Any) -> bool:
        """Return whether a connection is open.

        Args:
            connection: The result of ``establish_connection``.
        """
        return bool(connection.connected)

    def close_connection(self, connection: Any) -> None:
        """Close a connection.

        Args:
            connection: The result of ``establish_connection``.
        """
        connection.client = None
        connection.close()

    def get_heartbeat_interval(self, connection: Any) -> Any:
        """Return the seconds between heartbeats.

        Args:
            connection: The result of ``establish_connection``.
        """
        return connection.heartbeat

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let a hub run the callbacks of what arrives.

        Args:
            connection: The result of ``establish_connection``.
            loop: The ``Hub``.
        """
        connection.transport.raise_on_initial_eintr = True
        loop.add_reader(connection.sock, self.on_readable, connection, loop)

    def heartbeat_check(self, connection: Any, rate: int = 2) -> Any:
        """Send a heartbeat if one is due; raise if the broker's are missing.

        Args:
            connection: The result of ``establish_connection``.
            rate: Number of checks in each interval between heartbeats.
        """
        return connection.heartbeat_tick(rate=rate)

    def qos_semantics_matches_spec(self, connection: Any) -> bool:
        """Return whether a prefetch count without ``apply_global`` bounds the channel.

        Args:
            connection: The result of ``establish_connection``.
        """
        facts = connection.server_properties
        version = facts.get("version")
        if facts.get("product") != "RabbitMQ" or not version:
            return True
        return not BY_CONSUMER_SINCE <= version_string_as_tuple(version)[:2] < BY_CONSUMER_UNTIL

    @property
    def default_connection_params(self) -> dict[str, Any]:
        """Values for what a URL leaves out."""
        return {
            "userid": "guest",
            "password": "guest",
            "port": self.default_ssl_port if self.client.ssl else self.default_port,
            "hostname": "localhost",
            "login_method": "PLAIN",
        }

    def get_manager(self, *args: Any, **kwargs: Any) -> Any:
        """Return a client of RabbitMQ's management interface.

        Args:
            *args: Arguments of the client.
            **kwargs: Keyword arguments of the client.
        """
        return get_manager(self.client, *args, **kwargs)


class SSLTransport(Transport):
    """The same with TLS.

    Args:
        *args: Arguments of ``Transport``.
        **kwargs: Keyword arguments of ``Transport``.
    """

    native = "kombulite.brokers.amqp:Transport"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.client.ssl:
            self.client.ssl = True


note_contents(__name__)
