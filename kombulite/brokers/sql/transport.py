"""The verbs of the SQL brokers. The class is as wide as the interface."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import inf
from operator import itemgetter
from time import monotonic, sleep
from typing import Any

from kombulite import exceptions
from kombulite._core import Delivery
from kombulite.brokers.base import (
    Capabilities,
    ExchangeSpec,
    HeldDeliveries,
    Outcome,
    QueueInfo,
    QueueSpec,
    QueueStatus,
    Settings,
)
from kombulite.brokers.channels import ChannelTransport, Consumer, Taken
from kombulite.brokers.options import Option, as_number, check_transport_options
from kombulite.brokers.sql.database import Database
from kombulite.brokers.sql.held import HeldMessages, left_by
from kombulite.brokers.sql.outbox import runner
from kombulite.brokers.sql.schema import DEFAULT_PREFIX
from kombulite.brokers.sql.session import Session
from kombulite.brokers.sql.topology import DELETED_AT_ONCE, QueueRecord
from kombulite.utils.locks import Condition
from kombulite.utils.uuid import uuid

__all__ = ["SQLTransport"]

OPTIONS = {
    "table_prefix": Option("`kombulite_`", "Prefix of the names of all tables."),
    "lease": Option("30", "Seconds after which the messages of a lost connection return to their queues."),
    "create_tables": Option("True", "If True, the first connection creates the tables."),
    "synchronous": Option(
        "`FULL`", "SQLite: what a commit waits for. With `NORMAL` a power failure may undo the last commits."
    ),
    "schema": Option("the first of the search path", "PostgreSQL: schema of the tables."),
    "socket_timeout": Option(
        "30", "PostgreSQL: seconds for a statement. After that the connection is closed and the call raises."
    ),
    "connect_args": Option("", "PostgreSQL: further parameters of libpq, such as `sslmode`, `target_session_attrs`."),
}
DEFAULT_LEASE = 30.0  # seconds
#: A publisher that has not seen a new consumer yet does not wake it: for so long after its start it looks so often.
START_TIME, START_LOOK = 1.0, 0.1  # seconds
MAX_COUNTED = 10_000  # messages, where their number is asked for in passing: to count millions takes seconds
PAUSE = 0.001  # seconds between the parts of a long purge: in them the lease is renewed
REFUSALS = (
    exceptions.MessageNacked,
    exceptions.IrrecoverableChannelError,
    exceptions.MessageReturned,
    exceptions.EncodeError,
)

#: Messages of a batch that are alike: the place of the first, whether a queue may refuse it, the queues, the messages.
Planned = tuple[int, bool, list[QueueRecord], list[Delivery]]

#: Connections of a parent process: a forked child must neither use nor close them, so it keeps them.
_kept_from_parents: list[Any] = []


class SQLTransport(ChannelTransport):
    """A connection to a database. Threads may share it.

    Transport options: ``table_prefix`` (``kombulite_``); ``lease``: seconds after which the messages of a connection
    that is gone are back in their queues (30); ``create_tables``: whether missing tables are created (True).
    """

    capabilities = Capabilities()
    counts_failures = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        options = settings.options
        check_transport_options(options, OPTIONS)
        lease = as_number("lease", options.get("lease") or DEFAULT_LEASE)
        if not 0 < lease < inf:
            raise ValueError(f"lease must be above 0 seconds, and finite, got {lease}")
        self._creates_tables = bool(options.get("create_tables", True))
        self._database = self.open_database(settings, options.get("table_prefix") or DEFAULT_PREFIX)
        left = left_by(*self._identity)
        self._held = HeldMessages(left)
        self._session = Session(self._database, settings.virtual_host, lease, left, self._ended)
        self._topology, self._messages, self._claims = (
            self._session.topology,
            self._session.messages,
            self._session.claims,
        )
        self._lock = self._session.lock
        self._wake = Condition(self._lock)
        self._queue_of: dict[tuple[int, str], QueueRecord] = {}  # by channel and consumer tag
        self._seen_version = 0  # of the topology, by the consumers
        self._started_at = -inf  # when a consumer was started last (monotonic clock)
        self._news = 0  # how often the database woke this connection
        self._process = os.getpid()
        self._is_closing = False  # whether the application is closing the connection: then it keeps nothing

    @property
    def _identity(self) -> tuple[Hashable, ...]:
        """What tells one set of tables from another, for this process."""
        settings, options = self.settings, self.settings.options
        place = settings.hostname, settings.port, settings.virtual_host, settings.userid  # a user has a search path
        tables = options.get("table_prefix"), options.get("schema"), repr(options.get("connect_args"))
        return self.driver_type, *place, *tables

    @property
    def held(self) -> HeldDeliveries | None:
        return self._held

    def inherit(self, channel: int, held: HeldDeliveries, before: int) -> None:
        if isinstance(held, HeldMessages):
            self._held.inherit(channel, held, before)

    def held_settled(self) -> None:
        self._session.settle_held()

    def settle_held(self, channel: int, outcome: Outcome) -> None:
        if self._held.settle_all(channel, outcome):
            self._session.settle_held()

    def open_database(self, settings: Settings, prefix: str) -> Database:
        """Return the database, not opened."""
        raise NotImplementedError

    def create_tables(self) -> None:
        """Create the tables, or upgrade those of an earlier version. Not while it is connected."""
        self._database.open()
        try:
            self._database.create_tables(upgrades=True)
            self._database.check_tables()
        finally:
            self._database.close()

    # --- the connection

    def connect(self) -> None:
        """Open the database, and create its tables if they are missing."""
        self._process = os.getpid()
        self._is_closing = False
        self._session.left = left = left_by(*self._identity)  # the process may be a child of that which made this
        self._held = HeldMessages(left)
        self._session.open(self._creates_tables)
        self._connected = True

    def close(self) -> None:
        """Put back what is not settled, delete the queues of this connection, close the database."""
        if os.getpid() != self._process:
            self.collect()
            return
        with self._lock:
            if not self._connected:
                return
            self._is_closing = True
            try:
                for number in list(self._channels):
                    self.close_channel(number)
                self._session.end()
            finally:
                self._session.drop()

    def collect(self) -> None:
        """Drop the connection: its lease runs out. A forked child leaves all of it to its parent."""
        if os.getpid() != self._process:
            _kept_from_parents.append(self._session.parts())
            self._connected = False
            return
        with self._lock:
            self._session.drop()

    def _ended(self) -> None:
        """Forget the client's half of a connection that has ended; what the application still has is held."""
        self._connected = False
        for number, state in () if self._is_closing else self._channels.items():
            self._held.hold(number, state.tokens, self._topology.connection)
        self._forget_channels()
        self._turns.clear()
        self._events.clear()
        self._queue_of.clear()
        self._wake.notify_all()

    # --- exchanges, queues, bindings

    def declare_exchange(self, channel: int, spec: ExchangeSpec, passive: bool) -> None:
        with self._session.transaction():
            self._channel(channel)
            if passive:
                self._topology.check_exchange(spec.name)
            else:
                self._topology.declare_exchange(spec)

    def delete_exchange(self, channel: int, name: str, if_unused: bool) -> None:
        with self._session.transaction():
            self._channel(channel)
            self._topology.delete_exchange(name, if_unused)

    def declare_queue(self, channel: int, spec: QueueSpec, passive: bool) -> QueueInfo:
        with self._session.transaction():
            self._channel(channel)
            self._session.pass_time()
            if passive:
                record, limit = self._topology.queue(spec.name), None
                self._topology.used(record)
            else:
                record = self._topology.declare_queue(spec._replace(name=spec.name or f"amq.gen-{uuid()}"))
                limit = MAX_COUNTED
            name = record.spec.name
            return QueueInfo(name, self._messages.size(record, limit), self.consumer_count(name))

    def delete_queue(self, channel: int, name: str, if_unused: bool, if_empty: bool) -> int:
        with self._session.transaction():
            self._channel(channel)
            self._session.pass_time()
            try:
                record = self._topology.queue(name)
            except exceptions.NotFound:
                return 0
            if if_unused and self.consumer_count(name):
                raise exceptions.PreconditionFailed(f"queue '{name}' is in use")
            if if_empty and self._messages.size(record):
                raise exceptions.PreconditionFailed(f"queue '{name}' is not empty")
            deleted = self._topology.delete_queue(record)
            self._forget_queue(record)
        if deleted == DELETED_AT_ONCE:  # nothing is put into it any more, so this ends
            deleted += self._purge(record)
        return deleted

    def _forget_queue(self, record: QueueRecord) -> None:
        """End the consumers of a queue that is gone, and what was claimed ahead for them."""
        self._claims.forget_queue(record)
        self.cancel_consumers(record.spec.name)
        for key in [key for key, known in self._queue_of.items() if known.id == record.id]:
            del self._queue_of[key]

    def list_queues(self, channel: int) -> list[QueueStatus]:
        with self._session.transaction():
            self._channel(channel)
            self._session.pass_time()
            sizes, consumers = self._messages.sizes(), self._topology.consumer_counts()
            return [
                QueueStatus(name, waiting, consumers.get(record.id, 0), claimed)
                for name, record in sorted(self._topology.queues.items())
                if record.owner in (None, self._topology.connection)
                for waiting, claimed in [sizes.get(record.id, (0, 0))]
            ]

    def purge(self, channel: int, queue: str) -> int:
        with self._session.transaction():
            self._channel(channel)
            self._session.pass_time()
            record = self._topology.queue(queue)
        return self._purge(record)

    def _purge(self, record: QueueRecord) -> int:
        """Delete what waits in a queue by now, part by part; returns how many messages."""
        with self._session.use():
            newest = self._messages.newest(record)
        total, count = 0, DELETED_AT_ONCE
        while count == DELETED_AT_ONCE:
            with self._session.use():
                count = self._messages.purge(record, newest)
            total += count
            sleep(PAUSE)
        return total

    def bind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> None:
        with self._session.transaction():
            self._channel(channel)
            self._topology.bind(source, destination, routing_key, arguments, to_exchange)

    def unbind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> None:
        with self._session.transaction():
            self._channel(channel)
            self._topology.unbind(source, destination, routing_key, arguments, to_exchange)

    # --- publishing

    def publish(
        self,
        channel: int,
        delivery: Delivery,
        mandatory: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        with self._session.use():
            self._channel(channel)
            self._messages.check(delivery)
            if self._put_as_known([delivery]):
                return
            with self._session.transaction():
                queues = self._route(delivery, mandatory)
                if queues:
                    self._messages.lock_limited(queues)
                    self._messages.put(queues, delivery)

    def _put_as_known(self, alike: Sequence[Delivery]) -> bool:
        """Put messages where they go by the topology as it was seen last, if it is that still; one round trip."""
        queue = self._known_queue(alike[0])
        return queue is not None and self._messages.put_unless_changed(queue, alike)

    def _known_queue(self, delivery: Delivery) -> QueueRecord | None:
        """Return the queue that a message goes to by the topology as it was seen last, if one statement can put it."""
        try:
            queues = self._topology.route(delivery)
        except exceptions.NotFound:
            return None
        if len(queues) != 1 or not queues[0].is_plain or queues[0].limits.expires is not None:
            return None
        return queues[0]

    def _may_put(self, delivery: Delivery) -> bool:
        """Return whether a message may be stored; what refuses it names it by its place in a batch."""
        try:
            self._messages.check(delivery)
        except REFUSALS:
            return False
        return True

    def _route(self, delivery: Delivery, mandatory: bool) -> list[QueueRecord]:
        queues = self._topology.route(delivery)
        if (
            any(queue.limits.expires is not None or not queue.is_plain for queue in queues)
            and self._session.pass_time()
        ):
            queues = self._topology.route(delivery)
        if queues:
            return queues
        if mandatory:
            raise exceptions.MessageReturned.no_route()
        if delivery.exchange == "":
            # Declaring is optional here, as it is with kombu: what is sent to a queue's name is kept for it.
            return [self._topology.declare_queue(QueueSpec(delivery.routing_key))]
        self.unroutable += 1
        return []

    def publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> list[tuple[int, Exception]]:
        if deliveries and _are_all_alike(deliveries):
            with self._session.use():
                self._channel(channel)
                if self._may_put(deliveries[0]) and self._put_as_known(deliveries):
                    return []
        return self._publish_planned(channel, deliveries, mandatory)

    def begin_publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> Callable[[], list[tuple[int, Exception]]] | None:
        if not self._database.is_apart or not _are_all_alike(deliveries):
            return None
        with self._session.use():
            self._channel(channel)
            queue = self._known_queue(deliveries[0]) if self._may_put(deliveries[0]) else None
            if queue is None:
                return None
            wait = self._messages.begin_put_unless_changed(queue, deliveries)

        def complete() -> list[tuple[int, Exception]]:
            with self._session.use():
                is_put = wait()
            return [] if is_put else self._publish_planned(channel, deliveries, mandatory)

        return complete

    def _publish_planned(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool
    ) -> list[tuple[int, Exception]]:
        """Publish messages that may differ, in a transaction; returns those refused."""
        refused: list[tuple[int, Exception]] = []
        with self._session.transaction():
            self._channel(channel)
            plan: list[Planned] = []
            alike: list[Delivery] = []  # those that go where the first of them goes
            for index, delivery in enumerate(deliveries):
                if alike and _are_alike(alike[0], delivery):
                    alike.append(delivery)
                    continue
                alike = []
                try:
                    self._messages.check(delivery)
                    queues = self._route(delivery, mandatory)
                except REFUSALS as error:
                    refused.append((index, error))
                    continue
                may_refuse, placed = any(queue.limits.reject_publish for queue in queues), [delivery]
                plan.append((index, may_refuse, queues, placed))
                if queues and not may_refuse:
                    alike = placed
            self._messages.lock_limited(queue for _, _, queues, _ in plan for queue in queues)
            refused += self._put_planned(plan)
        return sorted(refused, key=itemgetter(0))

    def _put_planned(self, plan: Sequence[Planned]) -> Iterator[tuple[int, Exception]]:
        """Put messages into the queues that they go to; generates those that are refused, with the place of each."""
        placed: list[tuple[QueueRecord, list[Delivery]]] = []
        for index, may_refuse, queues, alike in plan:
            if not may_refuse:
                placed += [(queue, alike) for queue in queues]
                continue
            self._messages.put_many(placed)
            placed = []
            try:
                self._messages.put(queues, alike[0])
            except exceptions.MessageNacked as error:
                yield index, error
        self._messages.put_many(placed)

    def prepare_via(self, channel: int, via: Any, delivery: Delivery, mandatory: bool = False) -> Any:
        """Return what publishes within a transaction of the caller's: nothing is written over this connection."""
        with self._session.use():
            self._channel(channel)
            self._topology.refresh()
            self._messages.check(delivery)
            queues = self._topology.route(delivery)
            if not queues and mandatory:
                raise exceptions.MessageReturned.no_route()
            if not queues and delivery.exchange == "":
                raise exceptions.NotFound(f"no queue '{delivery.routing_key}': declare it before the transaction")
            self.unroutable += not queues
            return runner(via, self.driver_type, self._messages.outbox_statements(queues, delivery))

    # --- consuming

    def check_queue(self, queue: str) -> None:
        with (
            self._session.use()
        ):  # SQLite has one writer: what only reads must not wait for a transaction of somebody else
            self._topology.refresh()
            if self._messages.is_something_due():
                with self._session.transaction():
                    self._session.pass_time()
            self._topology.used(self._topology.queue(queue), is_polled=True)  # before a message is taken: it may fail

    def consumed_elsewhere(self, queue: str) -> int:
        return self._topology.consumers_elsewhere(self._topology.queue(queue))[0]

    def has_exclusive_elsewhere(self, queue: str) -> bool:
        return self._topology.consumers_elsewhere(self._topology.queue(queue))[1]

    def consumer_started(self, consumer: Consumer) -> None:
        self._session.listen(self._ring)  # before the first look: what comes in between is noticed
        with self._session.transaction():
            record = self._topology.queue(consumer.queue)
            self._topology.add_consumer(consumer.channel.number, consumer.tag, record, consumer.exclusive)
        self._queue_of[consumer.channel.number, consumer.tag] = record
        self._started_at = monotonic()

    def consumer_ended(self, consumer: Consumer) -> None:
        record = self._queue_of.pop((consumer.channel.number, consumer.tag), None)
        if record is None:
            return  # its queue is gone
        is_last = not self.consumers_of(consumer.queue)
        if is_last:
            self._claims.return_unseen(record)
            self._session.flush()
        with self._session.transaction():
            if record.spec.auto_delete:
                self._topology.lock()
            self._topology.remove_consumer(consumer.channel.number, consumer.tag)
            if not is_last:
                return
            found = self._topology.queues.get(consumer.queue)
            if found is None or found.id != record.id:
                return
            if record.spec.auto_delete and not self._topology.consumers_elsewhere(record)[0]:
                self._topology.delete_queue(record)
            else:
                self._topology.used(record)

    def get(self, channel: int, queue: str, no_ack: bool) -> Delivery | None:
        with self._lock:
            delivery = super().get(channel, queue, no_ack)
            record = self._topology.queues.get(queue)
            if delivery is not None and record is not None:  # another connection may have deleted it meanwhile
                with suppress(exceptions.AMQPError), self._session.use():
                    delivery.message_count = self._messages.size(record, MAX_COUNTED)
            return delivery

    def take(self, queue: str, credit: int) -> Taken | None:
        record = self._topology.queues.get(queue)
        if record is None:
            return None
        token = self._claims.next(record)
        if token is None:
            self._session.flush()
            with self._session.use():
                token = self._claims.claim(record, credit)
        return None if token is None else Taken(token.delivery, token)

    def settle_taken(self, tokens: Sequence[Any], outcome: Outcome) -> None:
        if outcome is Outcome.ACK:
            self._claims.acks += tokens
            if self._claims.is_flush_due:
                self._session.flush()
        elif outcome is Outcome.REQUEUE:
            self._claims.returns += tokens
            self._session.flush()
        elif outcome is Outcome.RETURN:
            self._claims.unfailed += tokens
            self._session.flush()
        else:
            try:
                with self._session.transaction():
                    self._messages.bury(self._messages.delete(tokens), "rejected")
            except exceptions.AMQPError:
                self._claims.returns += tokens  # the application cannot settle them any more
                raise

    # --- waiting

    can_interrupt = True

    def interrupt(self) -> None:
        self._is_interrupted = True
        self._session.wake(self._ring)

    def wait_for_messages(self, seconds: float | None, attempt: int) -> None:
        self._session.flush()
        self._session.settle_held()
        self._session.listen(self._ring)  # again, if that connection was lost
        look_interval = self._database.look_interval
        if monotonic() - self._started_at < START_TIME:
            look_interval = min(look_interval, START_LOOK)
        pause = look_interval if seconds is None else min(seconds, look_interval)
        with self._session.use():
            self._look_at_queues()
            next_change = self._messages.seconds_to_next()
            if next_change is not None and next_change <= 0:
                with self._session.transaction():
                    self._session.pass_time()
                return
        if not self._events:
            self._wait_for_news(pause if next_change is None else min(pause, next_change))

    def _look_at_queues(self) -> None:
        """End the consumers whose queues others have deleted."""
        self._topology.refresh()
        if self._topology.version != self._seen_version:
            self._seen_version = self._topology.version
            for record in {known.id: known for known in self._queue_of.values()}.values():
                found = self._topology.queues.get(record.spec.name)
                if found is None or found.id != record.id:
                    self._forget_queue(record)

    def _wait_for_news(self, seconds: float) -> None:
        """Wait until the database wakes this connection, or has news where it does not; for at most ``seconds``."""
        deadline, news = monotonic() + seconds, self._news
        has_news, next_look, wait = self._database.has_news, self._database.next_look, self._wake.wait
        while not has_news():
            pause, left = next_look(), deadline - monotonic()
            if left <= 0 or wait(left if pause is None or pause > left else pause) or not self._connected:
                return
            if self._news != news:  # the tick was over while the thread that woke this one had the lock
                return

    def _ring(self) -> None:
        """Wake the waiting threads: called by the database."""
        with self._lock:
            self._note_news()

    def _note_news(self) -> None:
        self._news += 1
        self._wake.notify_all()


def _are_all_alike(deliveries: Sequence[Delivery]) -> bool:
    first = deliveries[0]
    properties, routing_key, exchange = first.properties, first.routing_key, first.exchange
    for each in deliveries:  # as ``_are_alike``, in half of the time
        if each.properties is not properties or each.routing_key != routing_key or each.exchange != exchange:
            return False
    return True


def _are_alike(one: Delivery, other: Delivery) -> bool:
    """Return whether messages differ by their bodies alone, by a look that costs little: a producer's often do."""
    return (
        one.properties is other.properties and one.routing_key == other.routing_key and one.exchange == other.exchange
    )
