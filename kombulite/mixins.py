"""Programs that consume for ever, and stay connected."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from time import monotonic, sleep
from typing import Any

from kombulite.connection import Connection
from kombulite.log import get_logger
from kombulite.message import Message
from kombulite.messaging import Consumer as MessageConsumer
from kombulite.messaging import Producer
from kombulite.utils.compat import nested
from kombulite.utils.limits import TokenBucket
from kombulite.utils.objects import cached_property

__all__ = ["ConsumerMixin", "ConsumerProducerMixin"]

logger = get_logger(__name__)
debug, info, warn, error = logger.debug, logger.info, logger.warning, logger.error

W_CONN_LOST = "Connection to broker lost, trying to re-establish connection..."
W_CONN_ERROR = "Broker connection error, trying again in %s seconds: %r."

Context = tuple[Connection, Any, Sequence[MessageConsumer]]


class ConsumerMixin:
    """A program around consumers. The class that uses it has a ``connection``, and ``get_consumers``.

    ``run`` consumes until ``should_stop`` is set; it reconnects as often as it takes, ``connect_max_retries`` times in
    a row at most (None: no limit). Each of the ``on_…`` methods may be overridden.
    """

    connection: Connection
    connect_max_retries: int | None = None
    should_stop = False

    @cached_property
    def _stream_offsets(self) -> dict[str, int]:
        return {}  # where the consumers of streams go on, by stream

    def get_consumers(self, Consumer: Callable[..., MessageConsumer], channel: Any) -> Sequence[MessageConsumer]:
        """The consumers: ``[Consumer(queues, callbacks=[…])]``; here ``Consumer`` knows its channel."""
        raise NotImplementedError("Subclass responsibility")

    def on_connection_revived(self) -> None:
        """Called when a connection is open, also at the start."""

    def on_consume_ready(self, connection: Connection, channel: Any, consumers: Any, **kwargs: Any) -> None:
        """Called when the consumers are started."""

    def on_consume_end(self, connection: Connection, channel: Any) -> None:
        """Called when the consumers are cancelled."""

    def on_iteration(self) -> None:
        """Called before each wait for an event."""

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Called for a message that cannot be decoded: it is logged and acknowledged, so it is gone."""
        logger.critical(
            "Can't decode message body: %r (type:%r encoding:%r raw:%r')",
            exc,
            message.content_type,
            message.content_encoding,
            message.body,
        )
        message.ack()

    def on_connection_error(self, exc: Exception, interval: float) -> None:
        """Called when connecting failed and will be tried again in ``interval`` seconds: it is logged."""
        logger.warning(W_CONN_ERROR, interval, exc, exc_info=exc)

    def extra_context(self, connection: Connection, channel: Any) -> AbstractContextManager[Any]:
        """A context to consume in."""
        return nullcontext()

    def run(self, _tokens: float = 1, **kwargs: Any) -> None:
        """Consume until ``should_stop``; what fails is started again, once a second at most."""
        limit = self.restart_limit
        while not self.should_stop:
            try:
                if limit.can_consume(_tokens):
                    for _ in self.consume(limit=None, **kwargs):
                        pass
                else:
                    sleep(limit.expected_time(_tokens))
            except (*self.connection_errors, *self.channel_errors):
                logger.warning(W_CONN_LOST, exc_info=True)

    def consume(
        self, limit: int | None = None, timeout: float | None = None, safety_interval: float = 1, **kwargs: Any
    ) -> Iterator[None]:
        """A generator that yields after each event, ``limit`` of them (None: until ``should_stop``).

        ``timeout``: seconds without an event after which it raises TimeoutError (None: never); ``safety_interval``:
        seconds between looks at ``should_stop``; keywords go to ``on_consume_ready``.
        """
        with self.consumer_context(**kwargs) as (connection, _, _):
            idle_since = monotonic()
            left = limit or None
            while left != 0 and not self.should_stop:
                self.on_iteration()
                wait = safety_interval if timeout is None else min(safety_interval, timeout)
                try:
                    connection.drain_events(timeout=wait)
                except TimeoutError:
                    connection.heartbeat_check()
                    if timeout and monotonic() - idle_since >= timeout:
                        raise
                    continue
                except OSError:
                    if self.should_stop:
                        return
                    raise
                yield
                idle_since = monotonic()
                left = None if left is None else left - 1

    @contextmanager
    def consumer_context(self, **kwargs: Any) -> Iterator[Context]:
        """Consumers that run: (connection, channel, consumers)."""
        with self.Consumer() as (connection, channel, consumers), self.extra_context(connection, channel):
            self.on_consume_ready(connection, channel, consumers, **kwargs)
            yield connection, channel, consumers

    def maybe_conn_error(self, fun: Callable[[], Any]) -> Any:
        """Call ``fun``, and ignore errors of connection and channel."""
        try:
            return fun()
        except (*self.connection_errors, *self.channel_errors):
            return None

    def create_connection(self) -> Connection:
        """A connection like the one that was given."""
        return self.connection.clone()

    @contextmanager
    def establish_connection(self) -> Iterator[Connection]:
        """An open connection, closed at the end."""
        with self.create_connection() as connection:
            connection.ensure_connection(self.on_connection_error, self.connect_max_retries)
            yield connection

    @contextmanager
    def Consumer(self) -> Iterator[Context]:
        """The consumers, started, on a connection of their own: (connection, channel, consumers)."""
        with self.establish_connection() as connection:
            self.on_connection_revived()
            logger.info("Connected to %s", connection.as_uri())
            channel = connection.default_channel
            made = partial(MessageConsumer, channel, on_decode_error=self.on_decode_error)
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
            logger.debug("Consumers canceled")
            self.on_consume_end(connection, channel)

    def _consume_from(self, *consumers: MessageConsumer) -> AbstractContextManager[list[Any]]:
        return nested(*consumers)

    @cached_property
    def restart_limit(self) -> TokenBucket:
        """How often it is started again: once a second."""
        return TokenBucket(1)

    @cached_property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """What a broken connection raises."""
        return self.connection.connection_errors

    @cached_property
    def channel_errors(self) -> tuple[type[BaseException], ...]:
        """What a failed request raises."""
        return self.connection.channel_errors


class ConsumerProducerMixin(ConsumerMixin):
    """The same with a ``producer``, on a connection of its own that is closed when consuming ends."""

    _producer_connection: Connection | None = None

    def on_consume_end(self, connection: Connection | None, channel: Any) -> None:
        """Close the producer's connection."""
        if self._producer_connection is not None:
            self._producer_connection.close()
            self._producer_connection = None

    @property
    def producer(self) -> Producer:
        """A producer."""
        return Producer(self.producer_connection)

    @property
    def producer_connection(self) -> Connection:
        """The producer's connection, opened when it is first asked for."""
        if self._producer_connection is None:
            connection = self.connection.clone()
            connection.ensure_connection(self.on_connection_error, self.connect_max_retries)
            self._producer_connection = connection
        return self._producer_connection
