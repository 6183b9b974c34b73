"""How the queues of brokers stand, read again and again: what ``kombulite top`` and ``kombulite web`` show.

A ``Source`` reads one broker; a ``Monitor`` reads all of them and works out rates. RabbitMQ is read by its management
API where that answers, every other broker by what its transport can tell of its queues.
"""

from __future__ import annotations

import base64
import http.client
import json
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from time import monotonic, time
from typing import Any, NamedTuple, Protocol

from kombulite import Connection, Queue, exceptions
from kombulite.brokers.base import QueueStatus
from kombulite.cli.options import connection_to

MANAGEMENT_PORT = 15672
MANAGEMENT_TIMEOUT = 5.0  # seconds
ANSWER_TIMEOUT = 10.0  # seconds after which the others are shown without a broker; it may answer later
MAX_ANSWER = 64 * 1024 * 1024  # bytes of an answer of the management API

#: What an answer raises that is none of a management API's.
UNUSABLE = (
    OSError,
    http.client.HTTPException,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)


class QueueReading(NamedTuple):
    """How a queue stands; None where the broker does not tell.

    Attributes:
        queue: Its name.
        ready: Messages that wait.
        unacked: Messages that are delivered and not settled.
        consumers: Consumers.
        change: By how much ``ready`` grows, in messages a second.
        published: Messages that come in a second.
        delivered: Messages that go out a second.
        redelivered: Messages that go out again a second.
        oldest: Age of the message at the head, in seconds.
        memory: Bytes that the broker keeps in memory for it.
    """

    queue: str
    ready: int
    unacked: int | None
    consumers: int | None
    change: float | None = None
    published: float | None = None
    delivered: float | None = None
    redelivered: float | None = None
    oldest: float | None = None
    memory: int | None = None


class BrokerReading(NamedTuple):
    """What one look at a broker found.

    Attributes:
        broker: Its URL without the password.
        queues: Its queues, by name.
        error: Why it could not be read, or None.
    """

    broker: str
    queues: Sequence[QueueReading]
    error: str | None


class Source(Protocol):
    """What reads one broker."""

    @property
    def broker(self) -> str:
        """Its URL without the password."""

    def read(self) -> Sequence[QueueReading]:
        """Return how its queues stand. Raises ``SourceError``."""

    def close(self) -> None:
        """Close its connection."""


class SourceError(Exception):
    """A broker cannot be read."""


def queue_statuses(connection: Connection, names: Sequence[str] = ()) -> list[QueueStatus]:
    """Return how queues stand: those with these names that exist, or all.

    Raises:
        AMQPNotImplementedError: The broker cannot list its queues, and none are named.
    """
    try:
        listed = connection.transport.list_queues(connection.default_channel.channel_id)
    except exceptions.AMQPNotImplementedError:
        if not names:
            raise
        listed = [status for name in names if (status := _queue_status(connection, name)) is not None]
    by_name = {status.queue: status for status in listed}
    return [by_name[name] for name in names if name in by_name] if names else list(listed)


def _queue_status(connection: Connection, name: str) -> QueueStatus | None:
    with connection.channel() as channel:  # a broker closes it where there is no such queue
        try:
            info = Queue(name)(channel).queue_declare(passive=True)
        except exceptions.NotFound:
            return None
    return QueueStatus(*info) if info is not None else None


class StatusSource:
    """A broker as its transport sees it. ``names``: the queues, where it cannot list them."""

    def __init__(self, url: str, transport_options: Mapping[str, Any], names: Sequence[str] = ()) -> None:
        self._connection = connection_to(url, transport_options)
        self._names = names

    @property
    def broker(self) -> str:
        """Its URL without the password."""
        return self._connection.as_uri()

    def read(self) -> Sequence[QueueReading]:
        """Return how its queues stand. Raises ``SourceError``."""
        connection = self._connection
        errors = (*connection.connection_errors, *connection.channel_errors)
        known: tuple[type[BaseException], ...] = (*errors, exceptions.KombuError)
        try:
            connection.ensure_connection(max_retries=0)
            return [
                QueueReading(each.queue, each.message_count, each.unacked, each.consumer_count)
                for each in queue_statuses(connection, self._names)
            ]
        except exceptions.AMQPNotImplementedError as error:
            raise SourceError(f"{error}; name them: --queue NAME") from error
        except known as error:
            connection.collect()
            raise SourceError(str(error)) from error

    def close(self) -> None:
        """Close its connection."""
        self._connection.release()


class ManagementSource:
    """A RabbitMQ by the HTTP API of its management plugin (https://www.rabbitmq.com/docs/http-api-reference).

    Raises:
        SourceError: ``url`` is none of HTTP's.
    """

    def __init__(self, broker: str, url: str, virtual_host: str, user: str, password: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise SourceError(f"management must be an http:// or https:// URL, got {url!r:.80}")
        self.broker = broker
        self._url = f"{url.rstrip('/')}/api/queues/{urllib.parse.quote(virtual_host, safe='')}"
        credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._authorization = f"Basic {credentials}"

    def read(self) -> Sequence[QueueReading]:
        """Return how its queues stand. Raises ``SourceError``."""
        request = urllib.request.Request(self._url, headers={"Accept": "application/json"})  # noqa: S310 - checked
        request.add_unredirected_header("Authorization", self._authorization)  # the password is for no other server
        try:
            with urllib.request.urlopen(request, timeout=MANAGEMENT_TIMEOUT) as answer:  # noqa: S310
                content = answer.read(MAX_ANSWER + 1)
            if len(content) > MAX_ANSWER:
                raise SourceError(f"the management API answers with more than {MAX_ANSWER} bytes")
            return [_management_reading(each) for each in json.loads(content)]
        except UNUSABLE as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection, and is kept as the cause
            raise SourceError(f"management API: {error}") from error

    def close(self) -> None:
        """Nothing is open between two reads."""


def _management_reading(queue: Mapping[str, Any]) -> QueueReading:
    stats = queue.get("message_stats") or {}
    stamp, memory = queue.get("head_message_timestamp"), queue.get("memory")
    return QueueReading(
        _text(queue["name"]),
        int(queue.get("messages_ready") or 0),
        int(queue.get("messages_unacknowledged") or 0),
        int(queue.get("consumers") or 0),
        _rate(queue, "messages_ready"),
        _rate(stats, "publish"),
        _rate(stats, "deliver_get"),
        _rate(stats, "redeliver"),
        max(time() - stamp, 0) if isinstance(stamp, int) else None,
        None if memory is None else int(memory),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a queue's name is {value!r:.80}")
    return value


def _rate(stats: Mapping[str, Any], name: str) -> float | None:
    details = stats.get(f"{name}_details")
    return None if details is None else float(details["rate"])


def source_of(
    url: str, transport_options: Mapping[str, Any], names: Sequence[str] = (), management: str | None = None
) -> Source:
    """Return what reads a broker: its management API if that answers, else its transport.

    Args:
        url: The broker.
        transport_options: Options of the transport.
        names: The queues to read, where a broker cannot list them.
        management: URL of RabbitMQ's management API. By default it is looked for on port 15672 of an ``amqp://`` host,
            if no queues are named.

    Raises:
        SourceError: ``management`` was given and does not answer.
    """
    connection = connection_to(url, transport_options)
    try:
        address = connection.info()
        if address["transport"] in ("amqp", "pyamqp", "amqps", "pyamqps") and (management or not names):
            looked_for = management or f"http://{address['hostname']}:{MANAGEMENT_PORT}"
            found = ManagementSource(
                connection.as_uri(), looked_for, address["virtual_host"], address["userid"], connection.password or ""
            )
            if management is not None or not connection.ssl:  # the password goes as openly as over amqp
                try:
                    found.read()
                    return found
                except SourceError:
                    if management is not None:
                        raise
        return StatusSource(url, transport_options, names)
    finally:
        connection.release()


class SourceReader:
    """Reads a source in a thread of its own, one reading at a time."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._since: float | None = None  # when the reading began that is under way
        self._is_done = threading.Event()
        self._outcome: Sequence[QueueReading] | BaseException = ()

    def start(self) -> None:
        """Begin a reading, unless one is under way."""
        if self._since is None:
            self._since = monotonic()
            self._is_done.clear()
            threading.Thread(target=self._read, daemon=True).start()  # one that hangs may not keep the process

    def _read(self) -> None:
        try:
            self._outcome = self.source.read()
        except BaseException as error:
            self._outcome = error
        self._is_done.set()

    def result(self, timeout: float) -> Sequence[QueueReading]:
        """Return what the reading found. Raises ``SourceError``, also if it takes more than so many seconds."""
        assert self._since is not None
        if not self._is_done.wait(max(self._since + timeout - monotonic(), 0)):
            raise SourceError(f"no answer for {monotonic() - self._since:,.0f} s")
        self._since = None
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def close(self) -> None:
        """Close the source, unless it is being read: the reading may hang, and its connection with it."""
        if self._since is None or self._is_done.is_set():
            self.source.close()


class Monitor:
    """Reads brokers, all at once, and works out what changes between two readings."""

    def __init__(
        self,
        sources: Sequence[Source],
        clock: Callable[[], float] = monotonic,
        answer_timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        self._readers = [SourceReader(each) for each in sources]
        self._clock = clock
        self._answer_timeout = answer_timeout
        self._before: list[tuple[float, dict[str, int]]] = [(0.0, {}) for _ in sources]

    def read(self) -> list[BrokerReading]:
        """Read each broker once. A broker that fails is reported with its error, and read again the next time."""
        for reader in self._readers:
            reader.start()
        return [self._finish(number, reader) for number, reader in enumerate(self._readers)]

    def _finish(self, number: int, reader: SourceReader) -> BrokerReading:
        broker = reader.source.broker
        try:
            queues = reader.result(self._answer_timeout)
        except SourceError as error:
            self._before[number] = (0.0, {})
            return BrokerReading(broker, (), str(error))
        now = self._clock()
        then, before = self._before[number]
        changed = [
            each._replace(change=(each.ready - before[each.queue]) / (now - then))
            if each.change is None and each.queue in before and now > then
            else each
            for each in queues
        ]
        self._before[number] = (now, {each.queue: each.ready for each in queues})
        return BrokerReading(broker, sorted(changed), None)

    def close(self) -> None:
        """Close the connections."""
        for reader in self._readers:
            reader.close()
