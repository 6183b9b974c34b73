"""The SQL brokers: durable queues in a database that is already there, PostgreSQL or a SQLite file.

A message is stored when ``publish`` returns. A consumer claims the next messages of a queue in one statement, as their
owner; the ack deletes them. An owner is a connection with a lease, dated by the server's clock and renewed by a thread:
when it runs out, whatever the connection had claimed is back in its place for others.

    Transport   the verbs; what is claimed ahead, acks that wait for company
    Topology    exchanges, queues, bindings, consumers: rows and a cache to route by
    Messages    put, claim, settle, expire
    Database    statements and transactions on SQLite or PostgreSQL

The class is as wide as the interface.
"""

from __future__ import annotations

import os
import sqlite3
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

from kombulite import exceptions
from kombulite._core import Delivery
from kombulite.brokers.base import Capabilities, ExchangeSpec, Outcome, QueueInfo, QueueSpec, QueueStatus, Settings
from kombulite.brokers.channels import ChannelTransport, Consumer, Taken
from kombulite.brokers.options import check_transport_options
from kombulite.brokers.sql.database import Database
from kombulite.brokers.sql.maintainer import LeaseMaintainer
from kombulite.brokers.sql.messages import Messages, Token
from kombulite.brokers.sql.sqlite import SQLite
from kombulite.brokers.sql.topology import QueueRecord, Topology
from kombulite.log import get_logger
from kombulite.utils.locks import Condition, Lock
from kombulite.utils.uuid import uuid

__all__ = ["PostgreSQLTransport", "SQLTransport", "SQLiteTransport"]

OPTIONS = frozenset(["table_prefix", "lease", "create_tables", "synchronous", "schema", "connect_args"])
DEFAULT_PREFIX = "kombulite_"
DEFAULT_LEASE = 30.0  # seconds
MAX_CLAIMED_AHEAD = 100  # messages
MAX_UNFLUSHED_ACKS = 100
LOOK_AGAIN = 5.0  # seconds: a look that needs no notice
REFUSALS = (exceptions.MessageNacked, exceptions.IrrecoverableChannelError, exceptions.MessageReturned)
SQLITE_TICK = 0.008  # seconds between two looks at what other processes have committed

logger = get_logger(__name__)

#: Connections of a parent process: a forked child must neither use nor close them, so it keeps them.
_kept_from_parents: list[Any] = []


class SQLTransport(ChannelTransport):
    """A connection to a database. Threads may share it.

    Transport options: ``table_prefix`` (``kombulite_``); ``lease``: seconds after which the messages of a connection
    that is gone are back in their queues (30); ``create_tables``: whether missing tables are created (True).
    """

    capabilities = Capabilities()

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        options = settings.options
        check_transport_options(options, OPTIONS)
        self._lease = float(options.get("lease") or DEFAULT_LEASE)
        if self._lease <= 0:
            raise ValueError(f"lease must be above 0 seconds, got {self._lease}")
        self._creates_tables = bool(options.get("create_tables", True))
        self._database = self.open_database(settings, options.get("table_prefix") or DEFAULT_PREFIX)
        self._topology = Topology(self._database, settings.virtual_host)
        self._messages = Messages(self._database, self._topology)
        self._lock = Lock(self._recover)
        self._wake = Condition(self._lock)
        self._maintainer: LeaseMaintainer | None = None
        self._ahead: dict[int, deque[Token]] = {}  # claimed and not delivered yet, by queue
        self._acks: list[Token] = []  # acknowledged and not deleted yet
        self._returns: list[Token] = []  # to be put back, where that has failed
        self._queue_of: dict[tuple[int, str], QueueRecord] = {}  # by channel and consumer tag
        self._process = os.getpid()

    def open_database(self, settings: Settings, prefix: str) -> Database:
        """Return the database, not opened."""
        raise NotImplementedError

    # --- the connection

    def connect(self) -> None:
        """Open the database, and create its tables if they are missing."""
        self._process = os.getpid()
        self._database.open()
        try:
            if self._creates_tables:
                self._database.create_tables()
            with self._database.transaction():
                self._topology.connection = self._database.value(
                    "INSERT INTO {p}connections (alive_until) VALUES ({now} + ?) RETURNING id", self._lease
                )
                self._topology.refresh()
                self._sweep()
        except BaseException:
            self._database.close()
            raise
        self._connected = True
        self._maintainer = LeaseMaintainer(self._renew, self._lease / 3)

    def close(self) -> None:
        """Put back what is not settled, delete the queues of this connection, close the database."""
        if os.getpid() != self._process:
            self.collect()
            return
        with self._lock:
            if not self._connected:
                return
            try:
                for number in list(self._channels):
                    self.close_channel(number)
                self._flush()
                with self._transaction():
                    for record in list(self._topology.queues.values()):
                        if record.owner == self._topology.connection:
                            self._topology.delete_queue(record)
                    self._database.rows("DELETE FROM {p}connections WHERE id = ?", self._topology.connection)
            finally:
                self._drop()

    def collect(self) -> None:
        """Drop the connection: its lease runs out. A forked child leaves all of it to its parent."""
        if os.getpid() != self._process:
            _kept_from_parents.append((self._database, self._maintainer))
            self._connected = False
            return
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        self._connected = False
        self._channels.clear()
        self._turns.clear()
        self._events.clear()
        self._ahead.clear()
        self._acks.clear()
        self._returns.clear()
        self._queue_of.clear()
        self._topology.forget()
        if self._maintainer is not None:
            self._maintainer.stop()
            self._maintainer = None
        self._database.close()
        self._wake.notify_all()

    def _recover(self) -> None:
        """Roll back what a signal handler interrupted: called whenever the lock goes to others."""
        if self._connected and not self._database.is_idle:
            self._database.recover()
            self._topology.forget()
            if self._database.is_lost:
                self._drop()

    @contextmanager
    def _use(self) -> Iterator[None]:
        """Use the database, and notice when the connection to it is lost."""
        with self._lock:
            self._check_connected()
            try:
                yield
            except exceptions.ConnectionError:
                if self._database.is_lost:
                    self._drop()
                raise

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Run a transaction that sees what is declared."""
        with self._use():
            before = self._topology.version
            try:
                with self._database.transaction():
                    self._topology.refresh()
                    yield
            except BaseException:
                if self._topology.version != before:
                    self._topology.forget()
                raise

    def _renew(self) -> None:
        """Renew the lease, and see to the connections whose leases have run out."""
        with self._lock:
            if not self._connected:
                return
            self._flush()
            with self._transaction():
                renewed = self._database.rows(
                    "UPDATE {p}connections SET alive_until = {now} + ? WHERE id = ? RETURNING id",
                    self._lease,
                    self._topology.connection,
                )
                if renewed:
                    self._sweep()
                    self._topology.clear_deleted()
            if not renewed:
                logger.warning("The lease of this connection had run out; it is given up, and its messages come again")
                self._drop()

    def _sweep(self) -> None:
        """Give back what connections held that are gone, and delete the queues that went with them."""
        gone, consumed = self._messages.return_from_the_dead()
        for record in list(self._topology.queues.values()):
            if record.owner in gone or (
                record.id in consumed and record.spec.auto_delete and not self.consumer_count(record.spec.name)
            ):
                self._topology.delete_queue(record)

    # --- exchanges, queues, bindings

    def declare_exchange(self, channel: int, spec: ExchangeSpec, passive: bool) -> None:
        with self._transaction():
            self._channel(channel)
            if passive:
                self._topology.check_exchange(spec.name)
            else:
                self._topology.declare_exchange(spec)

    def delete_exchange(self, channel: int, name: str, if_unused: bool) -> None:
        with self._transaction():
            self._channel(channel)
            self._topology.delete_exchange(name, if_unused)

    def declare_queue(self, channel: int, spec: QueueSpec, passive: bool) -> QueueInfo:
        with self._transaction():
            self._channel(channel)
            self._pass_time()
            if passive:
                record = self._topology.queue(spec.name)
                self._topology.used(record)
            else:
                record = self._topology.declare_queue(spec._replace(name=spec.name or f"amq.gen-{uuid()}"))
            name = record.spec.name
            return QueueInfo(name, self._messages.size(record), self.consumer_count(name))

    def delete_queue(self, channel: int, name: str, if_unused: bool, if_empty: bool) -> int:
        with self._transaction():
            self._channel(channel)
            self._pass_time()
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
            return deleted

    def _forget_queue(self, record: QueueRecord) -> None:
        """End the consumers of a queue that is gone, and what was claimed ahead for them."""
        self._ahead.pop(record.id, None)
        self.cancel_consumers(record.spec.name)
        for key in [key for key, known in self._queue_of.items() if known.id == record.id]:
            del self._queue_of[key]

    def list_queues(self, channel: int) -> list[QueueStatus]:
        with self._transaction():
            self._channel(channel)
            self._pass_time()
            usable = [
                each for each in self._topology.queues.values() if each.owner in (None, self._topology.connection)
            ]
            return [
                QueueStatus(
                    each.spec.name,
                    self._messages.size(each),
                    self.consumer_count(each.spec.name),
                    self._messages.claimed(each),
                )
                for each in sorted(usable, key=lambda record: record.spec.name)
            ]

    def purge(self, channel: int, queue: str) -> int:
        with self._transaction():
            self._channel(channel)
            self._pass_time()
            return self._messages.purge(self._topology.queue(queue))

    def bind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> None:
        with self._transaction():
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
        with self._transaction():
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
        with self._use():
            self._channel(channel)
            self._messages.check(delivery)
            if self._put_as_known(delivery):
                return
            with self._transaction():
                queues = self._route(delivery, mandatory)
                if queues:
                    self._messages.put(queues, delivery)

    def _put_as_known(self, delivery: Delivery) -> bool:
        """Put a message where it goes by the topology as it was seen last, if it is that still; one round trip."""
        try:
            queues = self._topology.route(delivery)
        except exceptions.NotFound:
            return False
        if len(queues) != 1 or not queues[0].is_plain or queues[0].limits.expires is not None:
            return False
        return self._messages.put_unless_changed(queues[0], delivery)

    def _route(self, delivery: Delivery, mandatory: bool) -> list[QueueRecord]:
        queues = self._topology.route(delivery)
        if any(queue.limits.expires is not None or not queue.is_plain for queue in queues) and self._pass_time():
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
        refused: list[tuple[int, Exception]] = []
        with self._transaction():
            self._channel(channel)
            placed: list[tuple[QueueRecord, Delivery]] = []
            for index, delivery in enumerate(deliveries):
                try:
                    self._messages.check(delivery)
                    queues = self._route(delivery, mandatory)
                    if any(queue.limits.reject_publish for queue in queues):
                        self._messages.put_many(placed)
                        placed = []
                        self._messages.put(queues, delivery)
                    else:
                        placed += [(queue, delivery) for queue in queues]
                except (
                    exceptions.MessageNacked,
                    exceptions.IrrecoverableChannelError,
                    exceptions.MessageReturned,
                ) as error:
                    refused.append((index, error))
            self._messages.put_many(placed)
        return refused

    def publish_via(self, channel: int, via: Any, delivery: Delivery, mandatory: bool = False) -> None:
        """Publish within a transaction of the caller's: nothing is written over this connection."""
        with self._lock:
            self._check_connected()
            self._channel(channel)
            self._topology.refresh()
            self._messages.check(delivery)
            queues = self._topology.route(delivery)
            if queues:
                Messages(self._database.borrow(driver_connection(via)), self._topology).put(queues, delivery)
            elif mandatory:
                raise exceptions.MessageReturned.no_route()
            elif delivery.exchange == "":
                raise exceptions.NotFound(f"no queue '{delivery.routing_key}': declare it before the transaction")
            else:
                self.unroutable += 1

    # --- consuming

    def check_queue(self, queue: str) -> None:
        with self._use():  # SQLite has one writer: what only reads must not wait for a transaction of somebody else
            self._topology.refresh()
            if self._messages.is_something_due():
                with self._transaction():
                    self._pass_time()
            self._topology.queue(queue)

    def consumed_elsewhere(self, queue: str) -> int:
        return self._topology.consumers_elsewhere(self._topology.queue(queue))[0]

    def has_exclusive_elsewhere(self, queue: str) -> bool:
        return self._topology.consumers_elsewhere(self._topology.queue(queue))[1]

    def consumer_started(self, consumer: Consumer) -> None:
        self.start_listening()
        with self._transaction():
            record = self._topology.queue(consumer.queue)
            self._topology.add_consumer(consumer.channel.number, consumer.tag, record, consumer.exclusive)
        self._queue_of[consumer.channel.number, consumer.tag] = record

    def start_listening(self) -> None:
        """Have the database wake this connection, where it can."""

    def consumer_ended(self, consumer: Consumer) -> None:
        record = self._queue_of.pop((consumer.channel.number, consumer.tag), None)
        if record is None:
            return  # its queue is gone
        with self._transaction():
            self._topology.remove_consumer(consumer.channel.number, consumer.tag)
            if self.consumers_of(consumer.queue):
                return
            unseen = self._ahead.pop(record.id, None)
            if unseen:
                self._messages.put_back(list(unseen), is_unseen=True)
            found = self._topology.queues.get(consumer.queue)
            if found is None or found.id != record.id:
                return
            self._topology.used(record)
            if record.spec.auto_delete and not self._topology.consumers_elsewhere(record)[0]:
                self._topology.delete_queue(record)

    def get(self, channel: int, queue: str, no_ack: bool) -> Delivery | None:
        with self._lock:
            delivery = super().get(channel, queue, no_ack)
            if delivery is not None:
                delivery.message_count = self._messages.size(self._topology.queues[queue])
            return delivery

    def take(self, queue: str, credit: int) -> Taken | None:
        record = self._topology.queues.get(queue)
        if record is None:
            return None
        ahead = self._ahead.get(record.id)
        if not ahead:
            self._flush()
            claimed = self._claim(record, min(credit or MAX_CLAIMED_AHEAD, MAX_CLAIMED_AHEAD))
            if not claimed:
                return None
            ahead = self._ahead[record.id] = deque(claimed)
        token = ahead.popleft()
        return Taken(token.delivery, token)

    def _claim(self, record: QueueRecord, count: int) -> list[Token]:
        with self._use():
            return self._messages.claim(record, count)

    def settle_taken(self, tokens: Sequence[Any], outcome: Outcome) -> None:
        if outcome is Outcome.ACK:
            self._acks += tokens
            if len(self._acks) >= MAX_UNFLUSHED_ACKS or not any(self._ahead.values()):
                self._flush()
        elif outcome is Outcome.REQUEUE:
            self._returns += tokens
            self._flush()
        else:
            with self._transaction():
                self._messages.bury(self._messages.delete(tokens), "rejected")

    def _flush(self) -> None:
        """Delete what is acknowledged, and put back what is to be."""
        if not self._acks and not self._returns:
            return
        with self._transaction():
            if self._acks:
                self._messages.delete(self._acks)
            if self._returns:
                self._messages.put_back(self._returns)
        self._acks.clear()
        self._returns.clear()

    # --- waiting

    def wait_for_messages(self, seconds: float | None, attempt: int) -> None:
        self._flush()
        pause = LOOK_AGAIN if seconds is None else min(seconds, LOOK_AGAIN)
        with self._use():
            self._look_at_queues()
            next_change = self._messages.seconds_to_next()
            if next_change is not None and next_change <= 0:
                with self._transaction():
                    self._pass_time()
                return
        if not self._events:
            self.wait_for_news(pause if next_change is None else min(pause, next_change))

    def _look_at_queues(self) -> None:
        """End the consumers whose queues others have deleted."""
        if self._topology.refresh():
            for record in {known.id: known for known in self._queue_of.values()}.values():
                found = self._topology.queues.get(record.spec.name)
                if found is None or found.id != record.id:
                    self._forget_queue(record)

    def wait_for_news(self, seconds: float) -> None:
        """Wait until the database has news, for at most ``seconds``."""
        raise NotImplementedError

    def _pass_time(self) -> bool:
        """Do what is due by now, within a transaction; returns whether there was something to do."""
        if not self._messages.is_something_due():
            return False
        self._messages.pass_time()
        for (name,) in self._database.rows("SELECT name FROM {p}queues WHERE expires <= {now}"):
            record = self._topology.queues.get(name)
            if record is not None:
                self._topology.delete_queue(record)
                self._forget_queue(record)
        return True


def driver_connection(via: Any) -> Any:
    """Return the driver's connection behind a session or connection of SQLAlchemy, or a connection of Django."""
    if hasattr(via, "ensure_connection"):  # Django
        via.ensure_connection()
        return via.connection
    if callable(connection := getattr(via, "connection", None)):  # SQLAlchemy's Session
        via = connection()
    return getattr(getattr(via, "connection", None), "driver_connection", via)


class SQLiteTransport(SQLTransport):
    """A connection to a SQLite file: ``sqlite:///events.db``, ``sqlite:////absolute/path.db``.

    Transport option ``synchronous``: what a commit waits for, ``FULL`` (it survives a power failure) or ``NORMAL`` (it
    survives the process; the last commits may be gone after a power failure).
    """

    driver_type = "sqlite"
    driver_name = "sqlite3"
    _database: SQLite

    def open_database(self, settings: Settings, prefix: str) -> Database:
        """Return the file, not opened."""
        return SQLite(settings, prefix)

    def connect(self) -> None:
        """Open the file."""
        super().connect()
        self._database.ring = self._ring

    def _ring(self) -> None:
        """Wake a waiting thread, if the lock is free: one that has it looks soon."""
        self._lock.call(0, self._wake.notify_all)

    def driver_version(self) -> str:
        """Return SQLite's version."""
        return sqlite3.sqlite_version

    def wait_for_news(self, seconds: float) -> None:
        """Wait for a commit of this process, or look every few milliseconds for those of others."""
        deadline = monotonic() + seconds
        while not self._database.has_news():
            left = deadline - monotonic()
            if left <= 0 or self._wake.wait(min(left, SQLITE_TICK)) or not self._connected:
                return


class PostgreSQLTransport(SQLTransport):
    """A connection to PostgreSQL: ``postgresql://user:password@host:5432/database``.

    Transport options: ``schema``: the schema of the tables; ``connect_args``: further parameters of libpq, such as
    ``sslmode`` or ``target_session_attrs``.
    """

    driver_type = "postgresql"
    driver_name = "psycopg"

    def open_database(self, settings: Settings, prefix: str) -> Database:
        """Return the database, not connected. Raises OperationalError where psycopg is not installed."""
        try:
            from kombulite.brokers.sql.postgresql import PostgreSQL  # psycopg is an extra
        except ImportError as error:
            raise exceptions.OperationalError(
                f"postgresql:// needs psycopg 3: pip install 'kombulite[postgresql]' ({error})"
            ) from error
        return PostgreSQL(settings, prefix)

    def driver_version(self) -> str:
        """Return psycopg's version."""
        from importlib.metadata import version

        return version("psycopg")

    def start_listening(self) -> None:
        """Listen before the first look: what comes in between is noticed."""
        maintainer = self._maintainer
        if maintainer is not None and not maintainer.is_listening:
            maintainer.listen(self._database.listen(), self._ring)  # type: ignore[attr-defined]

    def _ring(self) -> None:
        """Wake the waiting threads."""
        with self._lock:
            self._wake.notify_all()

    def wait_for_news(self, seconds: float) -> None:
        """Wait for a notification."""
        self._wake.wait(seconds)
