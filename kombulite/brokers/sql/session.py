"""A connection to a database as the broker: its lease, its transactions, its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from kombulite import exceptions
from kombulite.brokers.sql.claims import Claims
from kombulite.brokers.sql.database import Database
from kombulite.brokers.sql.held import Left, write
from kombulite.brokers.sql.maintainer import LeaseMaintainer
from kombulite.brokers.sql.messages import Messages
from kombulite.brokers.sql.topology import QueueRecord, Topology
from kombulite.log import get_logger
from kombulite.utils.locks import Lock

__all__ = ["Session"]

logger = get_logger(__name__)

#: From one full queue to the next, before the lease is renewed: those that were rejected may go in a circle for ever.
MAX_DEAD_LETTER_STEPS = 8


class Session:
    """A connection with a lease. Used by one thread at a time, that which has ``lock``.

    A transaction waits for rows of others in one order: of connections, of messages, of ``meta`` (the topology), of
    consumers, of queues by their ids. Against that order it passes over those that others have locked. So no two wait
    for each other.

    Args:
        database: What it connects to.
        virtual_host: What errors name.
        lease: Seconds after which what it has claimed is back in the queues if it is not renewed.
        left: What earlier connections of the process have left.
        on_end: Called when the connection has ended, by whichever side.
    """

    def __init__(
        self, database: Database, virtual_host: str, lease: float, left: Left, on_end: Callable[[], None]
    ) -> None:
        self.database = database
        self.topology = Topology(database, virtual_host)
        self.messages = Messages(database, self.topology)
        self.claims = Claims(self.messages)
        self.left = left
        self.lock = Lock(self._recover)
        self.is_open = False
        self._is_ended = False
        self._lease = lease
        self._on_end = on_end
        self._maintainer: LeaseMaintainer | None = None

    # --- its life

    def open(self, creates_tables: bool) -> None:
        """Open the database and begin the lease. ``creates_tables``: create those that are missing."""
        database = self.database
        database.open()
        try:
            if creates_tables:
                database.create_tables()
            database.check_tables()
            with self.left.take_over(self.messages) as take_over, database.transaction():
                self.topology.connection = database.value(
                    "INSERT INTO {p}connections (alive_until, lease) VALUES ({now} + ?, ?) RETURNING id",
                    self._lease,
                    self._lease,
                )
                self.topology.refresh()
                take_over(self.topology.connection)
                self._sweep()
                self.topology.clear_deleted(by_all=True)
        except BaseException:
            database.close()
            raise
        self.left.begin(self.topology.connection)
        self.is_open, self._is_ended = True, False
        self._maintainer = LeaseMaintainer(self._renew, self._lease / 3)
        try:
            self.settle_held()
        except BaseException:
            with self.lock:
                self.drop()
            raise

    def end(self) -> None:
        """Delete the queues of this connection, and end its lease. Another of the process has what it holds."""
        self.flush()
        left, kept = self.left, set[int]()
        heir = left.end(self.topology.connection)
        self.settle_held()
        held = left.held_by(self.topology.connection)
        with self.transaction():
            self.database.rows("DELETE FROM {p}connections WHERE id = ?", self.topology.connection)
            if heir is not None and held:
                kept = self.messages.give(heir, self.topology.connection, [each.id for each in held])
            for record in sorted(self.topology.queues.values()):  # by their ids
                if record.owner == self.topology.connection:
                    self.topology.delete_queue(record)
        self._is_ended = True  # not before: what it holds is left to others if that fails
        if heir is not None:
            left.given(held, heir, kept)

    def drop(self) -> None:
        """Close the database: the lease runs out."""
        if self.is_open and not self._is_ended:
            self.left.lose(self.topology.connection, self.claims.acks)
        self.is_open = False
        self.claims.clear()
        self.messages.lengths.clear()
        self.topology.forget()
        if self._maintainer is not None:
            self._maintainer.stop()
            self._maintainer = None
        self.database.close()
        self._on_end()

    def parts(self) -> tuple[object, object]:
        """Return what a forked child has to keep: neither may be used nor closed there."""
        return self.database, self._maintainer

    def listen(self, ring: Callable[[], None]) -> None:
        """Have the database wake this connection by ``ring``, where it can and does not yet."""
        if self._maintainer is None or self._maintainer.is_listening:
            return
        try:
            listener = self.database.listen()
        except exceptions.AMQPError as error:
            logger.warning("Nothing can be listened to, messages are polled for: %s", error)
            return
        if listener is not None:
            self._maintainer.listen(listener, ring)

    def wake(self, ring: Callable[[], None]) -> None:
        """Have another thread call ``ring``, which may wait for the lock."""
        maintainer = self._maintainer
        if maintainer is not None:
            maintainer.call(ring)

    def _recover(self) -> None:
        """Roll back what a signal handler interrupted: called whenever the lock goes to others."""
        if self.is_open and not self.database.is_idle:
            self.database.recover()
            self.topology.forget()
            if self.database.is_lost:
                self.drop()

    # --- its use

    @contextmanager
    def use(self) -> Iterator[None]:
        """Use the database, and notice when the connection to it is lost."""
        with self.lock:
            if not self.is_open:
                raise exceptions.RecoverableConnectionError("connection already closed")
            try:
                yield
            except exceptions.ConnectionError:
                if self.database.is_lost:
                    self.drop()
                raise

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run a transaction that sees what is declared."""
        with self.use():
            before = self.topology.version
            try:
                with self.database.transaction():
                    self.topology.refresh()
                    yield
            except BaseException:
                if self.topology.version != before:
                    self.topology.forget()
                raise
            if self.messages.grown and self.database.is_idle:
                self._drop_excess_of_grown()

    def _drop_excess_of_grown(self) -> None:
        """Drop what dead letters brought above queues' limits. If that fails, it is done when the lease is renewed."""
        grown = self.messages.grown
        try:
            for _ in range(MAX_DEAD_LETTER_STEPS):
                queues = list(grown.values())
                if not queues:
                    return
                grown.clear()
                self._drop_excess(queues)  # has dead letters of its own, perhaps
        except exceptions.AMQPError as error:  # what brought them is committed
            logger.warning("Queues may exceed their limits for now: %s", error)

    def _drop_excess(self, queues: Sequence[QueueRecord]) -> None:
        """Drop what exceeds the limits of queues, in a transaction of its own, which locks them and nothing before."""
        with self.use(), self.database.transaction():
            self.messages.lock_limited(queues)
            self.topology.refresh()  # another connection may have changed where dead letters go, while this one waited
            self.messages.drop_excess(queues)

    def flush(self) -> None:
        """Delete what is acknowledged, and put back what is to be. If that fails, it is done another time."""
        claims = self.claims
        if claims.returns or claims.unfailed:
            with self.transaction():
                claims.write()
        elif claims.acks:
            with self.use():
                claims.write()  # one statement
        claims.written()

    def settle_held(self) -> None:
        """Settle what became of messages that the application had when an earlier connection was lost."""
        left = self.left
        work = left.work_of(self.topology.connection) if left.changed else []
        if work:
            with self.transaction():  # if that fails, they are settled another time
                write(self.messages, work)
            left.written(work)

    def pass_time(self) -> bool:
        """Do what is due by now, within a transaction; returns whether there was something to do."""
        if not self.messages.is_something_due():
            return False
        self.messages.pass_time()
        unused = "SELECT name FROM {p}queues WHERE expires <= {now} ORDER BY id"
        if self.database.rows(unused):
            self.topology.lock()
        for (name,) in self.database.rows(unused):
            record = self.topology.queues.get(name)
            if record is not None:
                self.topology.delete_queue(record)
        return True

    # --- the lease

    def _renew(self) -> None:
        """Renew the lease, and see to the connections whose leases have run out."""
        with self.lock:
            if not self.is_open:
                return
            with self.use():
                self.database.free_notifications()
            self.flush()
            self.settle_held()
            with self.transaction():
                renewed = self.database.rows(
                    "UPDATE {p}connections SET alive_until = {now} + ? WHERE id = ? RETURNING id",
                    self._lease,
                    self.topology.connection,
                )
                if renewed:
                    self._sweep()
                    self.topology.clear_deleted()
            if not renewed:
                logger.warning("The lease of this connection had run out; it is closed, and its messages come again")
                self.drop()
                return
            with self.use():
                limited = [queue for queue in self.topology.queues.values() if not queue.is_plain]
                exceeding = [queue for queue in limited if self.messages.excess(queue)]
            if exceeding:  # by what was published within others' transactions, or was not counted
                self.messages.lengths.forget(exceeding)
                self._drop_excess(exceeding)
                self._drop_excess_of_grown()

    def _sweep(self) -> None:
        """Give back what connections held that are gone, and delete the queues that went with them."""
        ended, consumed = self.messages.return_from_the_dead()
        for record in sorted(self.topology.queues.values()):  # by their ids
            is_left = record.id in consumed and not self.topology.is_consumed(record)
            if record.id in ended or (is_left and record.spec.auto_delete):
                self.topology.delete_queue(record)
            elif is_left:
                self.topology.used(record)  # it expires from now on
