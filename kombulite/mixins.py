"""Programs that consume without end, and stay connected."""

from __future__ import annotations

import socket  # noqa: F401 - programs replace it here, as in kombu's module
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import count
from time import sleep
from typing import Any

from kombulite.common import ignore_errors
from kombulite.connection import Connection
from kombulite.log import get_logger
from kombulite.message import Message
from kombulite.messaging import Consumer, Producer
from kombulite.utils.compat import nested
from kombulite.utils.encoding import safe_repr
from kombulite.utils.limits import TokenBucket
from kombulite.utils.objects import cached_property

__all__ = ["ConsumerMixin", "ConsumerProducerMixin"]

MessageConsumer = Consumer  # within the mixin the name is that of its method

logger = get_logger(__name__)
debug, info, warn, error = logger.debug, logger.info, logger.warning, logger.error

W_CONN_LOST = "Connection to broker lost, trying to re-establish connection..."
W_CONN_ERROR = "Broker connection error, trying again in %s seconds: %r."

Context = tuple[Connection, Any, Sequence[MessageConsumer]]


class ConsumerMixin:
    """Mixin for a program around consumers. The class has a ``connection`` and defines ``get_consumers``.

    ``run`` consumes until ``should_stop`` is True. After a failure it reconnects, up to ``connect_max_retries`` times
    in a row (None: no limit). Each of the ``on_...`` methods may be overridden.

    Example:
        ```py
        class Worker(ConsumerMixin):
            def __init__(self, connection):
                self.connection = connection

            def get_consumers(self, Consumer, channel):
                return [Consumer(queue, callbacks=[self.handle])]
        ```
    """

    connection: Connection
    connect_max_retries: int | None = None
    should_stop = False

    @cached_property
    def _stream_offsets(self) -> dict[str, int]:
        return {}  # where the consumers of streams go on, by stream

    def get_consumers(self, Consumer: Callable[..., MessageConsumer], channel: Any) -> Sequence[MessageConsumer]:
        """Return the consumers, such as ``[Consumer(queues, callbacks=[...])]``. A subclass defines it.

        Args:
            Consumer: The class ``Consumer`` with its channel set.
            channel: The channel.
        """
        raise NotImplementedError("Subclass responsibility")

    def on_connection_revived(self) -> None:
        """React to an open connection: at the start, and after each reconnect."""

    def on_consume_ready(
        self, connection: Connection, channel: Any, consumers: Sequence[Consumer], **kwargs: Any
    ) -> None:
        """React to started consumers.

        Args:
            connection: The connection.
            channel: The channel.
            consumers: The consumers.
            **kwargs: Keywords of ``consume``.
        """

    def on_consume_end(self, connection: Connection, channel: Any) -> None:
        """React to cancelled consumers.

        Args:
            connection: The connection.
            channel: The channel.
        """

    def on_iteration(self) -> None:
        """Run before each wait for an event."""

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Log and acknowledge a message that cannot be decoded. The message is lost; override this to keep it.

        Args:
            message: The message.
            exc: The error.
        """
        error(
            "Can't decode message body: %r (type:%r encoding:%r raw:%r')",
            exc,
            message.content_type,
            message.content_encoding,
            safe_repr(message.body),
        )
        message.ack()

    def on_connection_error(self, exc: Exception, interval: float) -> None:
        """Log a failure to connect.

        Args:
            exc: The error.
            interval: Seconds before the next attempt.
        """
        warn(W_CONN_ERROR, interval, exc, exc_info=True)

    def extra_context(self, connection: Connection, channel: Any) -> AbstractContextManager[Any]:
        """Return a context manager to consume in.

        Args:
            connection: The connection.
            channel: The channel.
        """
        return nullcontext()

    def run(self, _tokens: float = 1, **kwargs: Any) -> None:
        """Consume until ``should_stop`` is True. After a failure consuming starts again, at most once a second.

        Args:
            _tokens: Tokens that each start takes from ``restart_limit``.
            **kwargs: Keywords of ``consume``.
        """
        limit = self.restart_limit
        while not self.should_stop:
            try:
                if limit.can_consume(_tokens):
                    for _ in self.consume(limit=None, **kwargs):
                        pass
                else:
                    sleep(limit.expected_time(_tokens))
            except (*self.connection_errors, *self.channel_errors):
                warn(W_CONN_LOST, exc_info=True)

    def consume(
        self, limit: int | None = None, timeout: float | None = None, safety_interval: float = 1, **kwargs: Any
    ) -> Iterator[None]:
        """Return a generator that yields after each event.

        Args:
            limit: Number of waits, each for an event or ``safety_interval`` (None: until ``should_stop`` is True).
            timeout: Seconds without an event after which it raises TimeoutError (None: never).
            safety_interval: Seconds between checks of ``should_stop``.
            **kwargs: Passed to ``on_consume_ready``.

        Raises:
            TimeoutError: No event came in time (``socket.timeout``).
        """
        with self.consumer_context(**kwargs) as (connection, _, _):
            idle = 0.0  # seconds without an event
            for _ in range(limit) if limit else count():
                if self.should_stop:
                    break
                self.on_iteration()
                wait = safety_interval if timeout is None else min(safety_interval, timeout)
                try:
                    connection.drain_events(timeout=wait)
                except TimeoutError:
                    connection.heartbeat_check()
                    idle += wait
                    if timeout and idle >= timeout:
                        raise
                    continue
                except OSError:
                    if self.should_stop:
                        return
                    raise
                yield
                idle = 0.0

    @contextmanager
    def consumer_context(self, **kwargs: Any) -> Iterator[Context]:
        """Run the consumers inside the block: (connection, channel, consumers).

        Args:
            **kwargs: Passed to ``on_consume_ready``.
        """
        with self.Consumer() as (connection, channel, consumers), self.extra_context(connection, channel):
            self.on_consume_ready(connection, channel, consumers, **kwargs)
            yield connection, channel, consumers

    def maybe_conn_error(self, fun: Callable[[], Any]) -> Any:
        """Call a function, and ignore errors of connection and channel.

        Args:
            fun: The function, without arguments.
        """
        return ignore_errors(self, fun)

    def create_connection(self) -> Connection:
        """Return a connection like the program's."""
        return self.connection.clone()

    @contextmanager
    def establish_connection(self) -> Iterator[Connection]:
        """Open a connection for the block, and close it at the end."""
        with self.create_connection() as connection:
            connection.ensure_connection(self.on_connection_error, self.connect_max_retries)
            yield connection

    @contextmanager
    def Consumer(self) -> Iterator[Context]:
        """Start the consumers on a connection of their own: (connection, channel, consumers)."""
        with self.establish_connection() as connection:
            self.on_connection_revived()
            info("Connected to %s", connection.as_uri())
            channel = connection.default_channel
            made = partial(Consumer, channel, on_decode_error=self.on_decode_error)
            made_now = self.get_consumers(made, channel)
            for each in made_now:
                if isinstance(each, MessageConsumer):
                    each.go_on(self._stream_offsets)
            with self._consume_from(*made_now) as consumers:
                try:
                    yield connection, channel, consumers
                finally:
                    for each in made_now:
                        if isinstance(each, MessageConsumer):
                            self._stream_offsets.update(each.stream_offsets)
            debug("Consumers canceled")
            self.on_consume_end(connection, channel)

    def _consume_from(self, *consumers: MessageConsumer) -> AbstractContextManager[list[Any]]:
        return nested(*consumers)

    @cached_property
    def restart_limit(self) -> TokenBucket:
        """Limit of restarts: one a second."""
        return TokenBucket(1)

    @cached_property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """Errors that a broken connection raises."""
        return self.connection.connection_errors

    @cached_property
    def channel_errors(self) -> tuple[type[BaseException], ...]:
        """Errors that a failed request raises."""
        return self.connection.channel_errors


class ConsumerProducerMixin(ConsumerMixin):
    """``ConsumerMixin`` with a ``producer``, on a connection of its own that is closed when consuming ends."""

    _producer_connection: Connection | None = None

    def on_consume_end(self, connection: Connection | None, channel: Any) -> None:
        """Close the producer's connection.

        Args:
            connection: The connection.
            channel: The channel.
        """
        if self._producer_connection is not None:
            self._producer_connection.close()
            self._producer_connection = None

    @property
    def producer(self) -> Producer:
        """The producer."""
        return Producer(self.producer_connection)

    @property
    def producer_connection(self) -> Connection:
        """The producer's connection, opened when it is first read."""
        if self._producer_connection is None:
            connection = self.connection.clone()
            connection.ensure_connection(self.on_connection_error, self.connect_max_retries)
            self._producer_connection = connection
        return self._producer_connection
