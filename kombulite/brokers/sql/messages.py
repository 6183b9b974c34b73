"""Messages of a SQL broker: put, claim, settle, expire, return to their queues.

The class is wider than others: all that may become of a row of one table.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from math import isfinite
from typing import Any, NamedTuple

from kombulite import exceptions
from kombulite._core import Delivery, Properties, make_properties
from kombulite.brokers.limits import Limits, dead_letter, expiration_of
from kombulite.brokers.sql.arrays import TID, array
from kombulite.brokers.sql.database import Database, Head, Row, Segment
from kombulite.brokers.sql.lengths import LengthBounds
from kombulite.brokers.sql.marks import Marks
from kombulite.brokers.sql.outbox import Statement
from kombulite.brokers.sql.topology import DELETED_AT_ONCE, WAITING, QueueRecord, Topology, delete_messages
from kombulite.log import get_logger
from kombulite.utils.json_codec import codec

__all__ = ["Messages", "Token"]

logger = get_logger(__name__)

NAMED_PROPERTIES = ("content_type", "content_encoding", "headers", "delivery_mode", "priority")

UNLIMITED = 1 << 62

COLUMNS = "id, rank, deliveries, exchange, routing_key, properties, body, {place}"

LOOK = "SELECT 1 FROM {p}messages WHERE queue = ? AND owner IS NULL AND due IS NULL LIMIT 1"

CLAIM_SQLITE = (
    "UPDATE {p}messages SET owner = ?, deliveries = deliveries + 1 WHERE id IN ("
    "SELECT id FROM {p}messages WHERE queue = ? AND owner IS NULL AND due IS NULL"
    " AND (expires IS NULL OR expires > {now}) ORDER BY rank, id LIMIT ?) RETURNING " + COLUMNS
)

# A sub-select in IN () may run again within the plan, and lock more rows than its limit: hence the materialized tables.
# The commit of a claim does not wait for the disk: if the server crashes, the message is as it was before.
CLAIM_POSTGRESQL = (
    "WITH found AS MATERIALIZED (SELECT {place} AS place FROM {p}messages WHERE queue = ? AND (rank, id) > (?, ?)"
    " AND owner IS NULL AND due IS NULL AND (expires IS NULL OR expires > {now}) ORDER BY rank, id LIMIT ? {skip}),"
    " soon AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))"
    " UPDATE {p}messages SET owner = ?, deliveries = deliveries + 1 FROM soon WHERE {found} RETURNING " + COLUMNS
)

POP = (
    "WITH found AS MATERIALIZED (SELECT {place} AS place FROM {p}messages WHERE queue = ? AND owner IS NULL"
    " AND due IS NULL ORDER BY rank, id LIMIT ? {skip})"
    " DELETE FROM {p}messages WHERE {found} RETURNING " + COLUMNS
)

# What has become due, and what has expired, is so much at a time as the server stores in time and fits into memory.
# The time is a sub-select: PostgreSQL's clock changes within a statement, so that compared with it each row is looked
# at, and no index used: 1.5 s beside 400,000 messages that wait. The lower bound has the planner expect few rows, and
# adding 0 keeps it from the index of all that wait.
RELEASE = (
    "WITH found AS MATERIALIZED (SELECT {place} AS place FROM {p}messages WHERE due >= 0 AND due <= (SELECT {now})"
    " ORDER BY due LIMIT ? {skip})"
    " UPDATE {p}messages SET due = NULL WHERE {found} RETURNING queue"
)
RELEASED_AT_ONCE = 10_000
EXPIRE = (
    "WITH found AS MATERIALIZED (SELECT {place} AS place FROM {p}messages WHERE expires >= 0"
    " AND expires <= (SELECT {now}) AND owner IS NULL AND due + 0 IS NULL AND %s ORDER BY expires LIMIT ? {skip})"
    " DELETE FROM {p}messages WHERE {found} RETURNING queue"
)
DEAD_LETTERS_AT_ONCE = 100
IN_QUEUES_POSTGRESQL = "queue = ANY(?)"
IN_QUEUES_SQLITE = "queue IN (SELECT value FROM json_each(?))"

# Messages by their ids, if they are still the connection's: by where they are in the table's file on PostgreSQL, for an
# index of the ids would cost a fifth of each publish. The planner is kept from the index of the owners, which has only
# those that have one: all that was acknowledged since the last vacuum is still in there, so each ack would cost more.
CLAIMED_POSTGRESQL = "coalesce(owner, 0) = ? AND id = ANY(?) AND ctid = ANY(?::tid[])"
CLAIMED_SQLITE = "owner + 0 = ? AND id IN (SELECT value FROM json_each(?))"
#: The same for rows that were moved since they were claimed, as VACUUM FULL and another owner do.
MOVED_POSTGRESQL = "owner = ? AND id = ANY(?)"

#: The newest of the messages that wait in a queue, by a step in their index for each priority.
NEWEST = (
    "WITH RECURSIVE ranks(rank) AS (SELECT (SELECT rank FROM {p}messages WHERE queue = ? AND "
    + WAITING
    + " ORDER BY rank LIMIT 1) UNION ALL SELECT (SELECT rank FROM {p}messages WHERE queue = ? AND rank > ranks.rank"
    " AND " + WAITING + " ORDER BY rank LIMIT 1) FROM ranks WHERE rank IS NOT NULL)"
    " SELECT max(id) FROM (SELECT (SELECT id FROM {p}messages WHERE queue = ? AND rank = ranks.rank AND "
    + WAITING
    + " ORDER BY id DESC LIMIT 1) AS id FROM ranks) AS newest"
)
#: The connections that have messages and are not there, by a step in the index of the owners for each connection.
#: A connection that has claimed much costs no more than one that has claimed little.
STRANDED = (
    "WITH RECURSIVE owners(id) AS (SELECT (SELECT owner FROM {p}messages WHERE owner IS NOT NULL"
    " ORDER BY owner LIMIT 1) UNION ALL SELECT (SELECT owner FROM {p}messages WHERE owner > owners.id"
    " AND owner IS NOT NULL ORDER BY owner LIMIT 1) FROM owners WHERE id IS NOT NULL)"
    " SELECT id FROM owners WHERE id IS NOT NULL AND id NOT IN (SELECT id FROM {p}connections)"
)
RETURN = (
    "WITH found AS MATERIALIZED (SELECT {place} AS place FROM {p}messages WHERE owner IS NOT NULL AND owner %s {skip})"
    " UPDATE {p}messages SET owner = NULL WHERE {found} RETURNING queue"
)
OWNED_POSTGRESQL = "= ANY(?)"
OWNED_SQLITE = "IN (SELECT value FROM json_each(?))"

#: What waits in a queue: how many, and of which size where that matters, for an index has the rest.
COUNTED = "SELECT count(*), 0 FROM {p}messages WHERE queue = ? AND " + WAITING
MEASURED = "SELECT count(*), coalesce(sum(length(body)), 0) FROM {p}messages WHERE queue = ? AND " + WAITING

#: Where no row is.
NOWHERE = bytes(6)


class Token(NamedTuple):
    """What a claimed message is known by. ``place``: where PostgreSQL has its row, unless that was moved since."""

    id: int
    queue: QueueRecord
    delivery: Delivery
    place: bytes = NOWHERE


class Messages:
    """The messages of all queues. Methods run in a transaction of the caller's, or are one statement."""

    def __init__(self, database: Database, topology: Topology) -> None:
        self._database = database
        self._topology = topology
        self._marks = Marks()
        self.lengths = LengthBounds(database, self.newest)
        self.grown: dict[int, QueueRecord] = {}  # queues with limits that dead letters have come to
        self._in_queues = IN_QUEUES_POSTGRESQL if database.is_postgresql else IN_QUEUES_SQLITE
        self._encoded: tuple[Properties | None, str] = (None, "")  # the last properties: a producer's are one object
        self._decoded: tuple[str, Properties | None] = ("", None)

    # --- putting

    def check(self, delivery: Delivery) -> None:
        """Raise PreconditionFailed for an expiration or eta that is none, EncodeError for what cannot be stored."""
        self._database.check_text(delivery.exchange)
        self._database.check_text(delivery.routing_key)
        self._text_of(delivery.properties)
        if delivery.properties.expiration is not None:
            expiration_of(delivery)
        _due(delivery)

    def lock_limited(self, queues: Iterable[QueueRecord]) -> None:
        """Keep other connections from counting queues with a length limit until the transaction ends.

        Called once in a transaction, after all else that waits for a lock: two connections would wait for each other.
        """
        for number in sorted({queue.id for queue in queues if not queue.is_plain}):
            self._database.rows("SELECT 1 FROM {p}queues WHERE id = ? {lock}", number)

    def put(self, queues: Sequence[QueueRecord], delivery: Delivery) -> None:
        """Put a message into queues that are locked. Raises MessageNacked if one is full and refuses it."""
        self._check_room(queues, delivery)
        self.put_many([(queue, [delivery]) for queue in queues])

    def put_unless_changed(self, queue: QueueRecord, alike: Sequence[Delivery]) -> bool:
        """Put messages into a queue without limits, in a transaction of its own; not if the topology has changed.

        They are alike but for their bodies.
        """
        segment = self._segment(queue, alike)
        return self._database.insert_unless_changed(segment, self._topology.version, _may_die(queue, segment.head))

    def begin_put_unless_changed(self, queue: QueueRecord, alike: Sequence[Delivery]) -> Callable[[], bool]:
        """Begin what ``put_unless_changed`` does; returns what waits for its end."""
        begin, segment = self._database.begin_insert_unless_changed, self._segment(queue, alike)
        return begin(segment, self._topology.version, _may_die(queue, segment.head))

    def _segment(self, queue: QueueRecord, alike: Sequence[Delivery]) -> Segment:
        return Segment(self._head(queue, alike[0]), _bodies(alike))

    def put_many(self, placed: Sequence[tuple[QueueRecord, Sequence[Delivery]]]) -> None:
        """Put messages into queues that are locked, whether they are full or not, and drop what exceeds their limits.

        Those of one queue that come together are alike but for their bodies.
        """
        if placed:
            self._store(placed)
            self.drop_excess({queue.id: queue for queue, _ in placed if not queue.is_plain}.values())

    def _store(self, placed: Sequence[tuple[QueueRecord, Sequence[Delivery]]]) -> None:
        segments = [self._segment(queue, alike) for queue, alike in placed]
        self._database.insert_messages(segments)
        may_die = any(_may_die(queue, segment.head) for (queue, _), segment in zip(placed, segments, strict=True))
        self._database.notify(sorted({queue.id for queue, _ in placed}), may_die)

    def outbox_statements(self, queues: Iterable[QueueRecord], delivery: Delivery) -> list[Statement]:
        """Return what puts a message into queues when a transaction of the caller's runs it and commits.

        What is above a queue's limit is dropped later, not in that transaction. Raises MessageNacked as ``put`` does.
        """
        queues = list(queues)
        self._check_room(queues, delivery)
        body = _body(delivery)
        return [self._database.outbox_statement(self._head(queue, delivery), body) for queue in queues]

    def drop_excess(self, queues: Iterable[QueueRecord]) -> None:
        """Drop what exceeds the limits of queues that are locked, oldest first."""
        for queue in queues:
            if self.lengths.is_within(queue):
                continue
            dropped: list[Token] = []
            count, size = self._measure(queue)  # once: it reads all that waits
            while excess := _excess(queue.limits, count, size):
                tokens = self._tokens(queue, self._database.rows(POP, queue.id, excess))
                if not tokens:
                    break
                dropped += tokens
                count -= len(tokens)
                size -= sum(len(token.delivery.body) for token in tokens)
            self.lengths.note(queue, count)
            self.bury(dropped, "maxlen")  # behind the loop: they may come to the same queue

    def _check_room(self, queues: Sequence[QueueRecord], delivery: Delivery) -> None:
        for queue in queues:
            if not queue.limits.reject_publish or self.lengths.is_within(queue, 1):
                continue
            count, size = self._measure(queue)
            if _excess(queue.limits, count + 1, size + len(delivery.body)):
                raise exceptions.MessageNacked(f"queue '{queue.spec.name}' is full")

    def _head(self, queue: QueueRecord, delivery: Delivery) -> Head:
        properties, limits = delivery.properties, queue.limits
        ttl = limits.message_ttl
        if properties.expiration is not None:
            own = expiration_of(delivery)
            ttl = min((each for each in (ttl, own) if each is not None), default=None)
        text = self._text_of(properties)
        priority = properties.priority
        rank = -min(max(priority if isinstance(priority, int) else 0, 0), limits.max_priority)
        due = _due(delivery)
        if due is not None and ttl is not None:
            ttl += max(due - datetime.now(timezone.utc).timestamp(), 0)
        return queue.id, rank, due, ttl, delivery.exchange, delivery.routing_key, text

    def _text_of(self, properties: Properties) -> str:
        """Return the properties as they are stored. Raises EncodeError."""
        known, text = self._encoded
        if known is not properties:
            try:
                text = codec.dumps(properties.as_dict())
            except exceptions.UNWRITABLE as error:
                raise exceptions.encode_error(error) from error
            self._encoded = properties, text
        return text

    def excess(self, queue: QueueRecord) -> int:
        """Return how many waiting messages are too many (or 1 where it is their size)."""
        return 0 if queue.is_plain else _excess(queue.limits, *self._measure(queue))

    def _measure(self, queue: QueueRecord) -> tuple[int, int]:
        """Return how many messages wait in a queue, and their bytes if these are limited."""
        measured = MEASURED if queue.limits.max_length_bytes is not None else COUNTED
        count, size = self._database.rows(measured, queue.id)[0]
        return int(count), int(size)

    def bury(self, tokens: Sequence[Token], reason: str) -> None:
        """Send messages that are out of their queues to the dead letter exchanges; a dead letter is never refused.

        What it brings above a queue's limits is to be dropped in a transaction that locks the queue: see ``grown``.
        """
        pending = deque((token, reason) for token in tokens)
        while pending:
            (_, queue, delivery, _), why = pending.popleft()
            if queue.limits.dead_letter_exchange is None:
                continue
            dead = dead_letter(queue.spec.name, queue.limits, delivery, why)
            if dead is None:
                continue
            try:
                queues = self._topology.route(dead)
            except exceptions.NotFound:
                continue
            if queues:
                self._store([(each, [dead]) for each in queues])
                self.grown.update((each.id, each) for each in queues if not each.is_plain)

    # --- claiming

    def claim(self, queue: QueueRecord, count: int) -> list[Token]:
        """Claim the next messages of a queue for this connection, at most ``count``."""
        if self._database.is_postgresql:
            owner = self._topology.connection
            rows = self._marks.claim(
                queue, lambda *start: self._database.rows(CLAIM_POSTGRESQL, queue.id, *start, count, owner)
            )
        elif self._database.value(LOOK, queue.id) is None:
            return []  # the claim would wait for the file's only writer
        else:
            rows = self._database.rows(CLAIM_SQLITE, self._topology.connection, queue.id, count)
        return self._tokens(queue, rows)

    def _tokens(self, queue: QueueRecord, rows: list[Row]) -> list[Token]:
        tokens = []
        in_order = sorted(rows, key=lambda row: (row[1], row[0]))
        for number, _, deliveries, exchange, routing_key, text, body, place in in_order:
            known, properties = self._decoded
            if properties is None or known != text:
                properties = _properties(number, text)
                self._decoded = text, properties
            delivery = Delivery(exchange, routing_key, properties, body)
            delivery.delivery_count = max(deliveries - 1, 0)
            delivery.redelivered = deliveries > 1
            tokens.append(Token(number, queue, delivery, place))
        return tokens

    # --- settling

    def delete(self, tokens: Sequence[Token], owner: int | None = None) -> list[Token]:
        """Delete claimed messages; returns those that were still a connection's, this one's by default."""
        ours = self._settle("DELETE FROM {p}messages", self._topology.connection if owner is None else owner, tokens)
        return [token for token in tokens if token.id in ours]

    def put_back(self, tokens: Sequence[Token], counts: bool = True) -> None:
        """Return claimed messages to their places; ``counts``: as delivered, which they have been."""
        put = "UPDATE {p}messages SET owner = NULL, deliveries = deliveries - ?"
        self._settle(put, self._topology.connection, tokens, int(not counts))
        queues = sorted({token.queue.id for token in tokens})
        self._marks.forget(queues)
        self._database.notify(queues)

    def take_over(self, owner: int, acknowledged: Sequence[Token], ids: Sequence[int]) -> set[int]:
        """Take over messages of a connection that is lost, and end its lease; returns the ids of those that it had.

        What it had acknowledged is deleted. The lease is first, as where leases that have run out are ended: in another
        order two connections would wait for each other.
        """
        self._database.rows("DELETE FROM {p}connections WHERE id = ?", owner)
        self.delete(acknowledged, owner)
        return self.give(self._topology.connection, owner, ids)

    def give(self, heir: int, owner: int, ids: Sequence[int]) -> set[int]:
        """Give messages of one connection to another; returns the ids of those that the first had."""
        where = MOVED_POSTGRESQL if self._database.is_postgresql else CLAIMED_SQLITE
        rows = self._database.rows(
            f"UPDATE {{p}}messages SET owner = ? WHERE {where} RETURNING id", heir, owner, self._list(ids)
        )
        return {number for (number,) in rows}

    def _settle(self, action: str, owner: int, tokens: Sequence[Token], *values: Any) -> set[int]:
        """Do something with claimed messages that are still a connection's; returns their ids."""
        rows, ids = self._database.rows, self._list([token.id for token in tokens])
        if not self._database.is_postgresql:
            settled = rows(f"{action} WHERE {CLAIMED_SQLITE} RETURNING id", *values, owner, ids)
        else:
            places = array(TID, [token.place for token in tokens])
            settled = rows(f"{action} WHERE {CLAIMED_POSTGRESQL} RETURNING id", *values, owner, ids, places)
            if len(settled) < len(tokens):
                settled += rows(f"{action} WHERE {MOVED_POSTGRESQL} RETURNING id", *values, owner, ids)
        return {number for (number,) in settled}

    def _list(self, numbers: Sequence[int]) -> Any:
        """Return numbers as a parameter."""
        return list(numbers) if self._database.is_postgresql else str(list(numbers))

    # --- what is there

    def size(self, queue: QueueRecord, limit: int | None = None) -> int:
        """Return how many messages wait in a queue; ``limit``: where to stop counting."""
        return int(
            self._database.value(
                "SELECT count(*) FROM (SELECT 1 FROM {p}messages WHERE queue = ? AND owner IS NULL AND due IS NULL"
                " AND (expires IS NULL OR expires > {now}) LIMIT ?) AS waiting",
                queue.id,
                UNLIMITED if limit is None else limit,
            )
        )

    def sizes(self) -> dict[int, tuple[int, int]]:
        """Return how many messages wait, and how many are claimed, by the ids of the queues that have any."""
        waiting = self._database.rows(
            "SELECT queue, count(*) FROM {p}messages WHERE owner IS NULL AND due IS NULL"
            " AND (expires IS NULL OR expires > {now}) GROUP BY queue"
        )
        claimed = self._database.rows("SELECT queue, count(*) FROM {p}messages WHERE owner IS NOT NULL GROUP BY queue")
        found = {queue: (count, 0) for queue, count in waiting}
        for queue, count in claimed:
            found[queue] = (found.get(queue, (0, 0))[0], count)
        return found

    def newest(self, queue: QueueRecord) -> int:
        """Return the id of the last message that waits in a queue, 0 if there is none."""
        return int(self._database.value(NEWEST, queue.id, queue.id, queue.id) or 0)

    def purge(self, queue: QueueRecord, newest: int) -> int:
        """Delete messages that wait in a queue, up to an id, not more than one statement may; returns how many."""
        return delete_messages(self._database, queue.id, WAITING, newest)

    # --- what time brings

    def seconds_to_next(self) -> float | None:
        """Return the seconds until something expires or becomes due: a message, or an unused queue; None for never."""
        seconds = self._database.value(
            "SELECT min(at) - {now} FROM (SELECT (SELECT due FROM {p}messages WHERE due IS NOT NULL"
            " ORDER BY due LIMIT 1) AS at UNION ALL SELECT (SELECT expires FROM {p}messages"
            " WHERE expires IS NOT NULL AND owner IS NULL ORDER BY expires LIMIT 1)"
            " UNION ALL SELECT min(expires) FROM {p}queues WHERE expires IS NOT NULL) AS times"
        )
        return None if seconds is None else float(seconds)

    def is_something_due(self) -> bool:
        """Return whether something has expired or become due by now."""
        seconds = self.seconds_to_next()
        return seconds is not None and seconds <= 0

    def pass_time(self) -> None:
        """Release the messages that are due, and drop those that have expired; of many at once only the first."""
        rows, queues = self._database.rows, {queue.id: queue for queue in self._topology.queues.values()}
        due = rows(RELEASE, RELEASED_AT_ONCE)
        burying = [number for number, queue in queues.items() if queue.limits.dead_letter_exchange is not None]
        rows(EXPIRE % f"NOT {self._in_queues}", self._list(burying), DELETED_AT_ONCE)
        if burying:
            expire = EXPIRE % self._in_queues
            expired = rows(f"{expire}, {COLUMNS}", self._list(burying), DEAD_LETTERS_AT_ONCE)
            for number in sorted({row[0] for row in expired}):
                dropped = self._tokens(queues[number], [row[1:] for row in expired if row[0] == number])
                self.bury(dropped, "expired")
        if due:
            released = {number for (number,) in due}
            self._topology.deleted += released - queues.keys()
            self._database.notify(sorted(released))

    def return_from_the_dead(self) -> tuple[set[int], set[int]]:
        """Give back what belongs to no connection any more, once the leases that have run out are ended.

        A message may have been claimed for a connection after that was ended: by a statement that a hanging server got
        to run late. So what counts is that its owner is missing, not who ended it.

        No lease ends later than its length from now, also if the database's clock was put back since it was renewed.
        A lease that another connection has just ended is left to it: several do this at once when a server is back.

        Returns the ids of the queues that went with their connections, and of those that they consumed from.
        """
        rows = self._database.rows
        leases = "SELECT id FROM {p}connections WHERE alive_until "
        rows("DELETE FROM {p}connections WHERE id IN (" + leases + "< {now} {skip})")
        rows("UPDATE {p}connections SET alive_until = {now} + lease WHERE id IN (" + leases + "> {now} + lease {skip})")
        owners = [owner for (owner,) in rows(STRANDED)]
        if owners:
            of_them = OWNED_POSTGRESQL if self._database.is_postgresql else OWNED_SQLITE
            returned = rows(RETURN % of_them, self._list(owners))
            if returned:
                self._database.notify(sorted({queue for (queue,) in returned}))
        gone = " AND NOT EXISTS (SELECT 1 FROM {p}connections WHERE id = "
        consumers = "FROM {p}consumers WHERE true" + gone + "connection)"
        queues = "SELECT id FROM {p}queues WHERE owner IS NOT NULL" + gone + "owner)"
        if not rows("SELECT 1 " + consumers + " LIMIT 1") and not rows(queues):
            return set(), set()
        self._topology.lock()  # their queues may be deleted
        consumed = rows("DELETE " + consumers + " RETURNING queue")
        return {queue for (queue,) in rows(queues)}, {queue for (queue,) in consumed}


def _excess(limits: Limits, count: int, size: int) -> int:
    """Return how many of so many messages are too many (or 1 where it is their size)."""
    if limits.max_length is not None and count > limits.max_length:
        return count - limits.max_length
    return int(limits.max_length_bytes is not None and size > limits.max_length_bytes and count > 0)


def _may_die(queue: QueueRecord, head: Head) -> bool:
    """Return whether a message may expire and come to another queue then, whose consumers have to know when."""
    return head[3] is not None and queue.limits.dead_letter_exchange is not None


def _properties(number: int, text: str) -> Properties:
    """Return the properties of a message; none if they cannot be read, as what others write into the table may be."""
    try:
        return _made(codec.loads(text))
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        logger.warning("Message %d is delivered without its properties, which cannot be read: %s", number, error)
        return _made({})


def _made(stored: dict[str, Any]) -> Properties:
    content_type, content_encoding, headers, delivery_mode, priority = (
        stored.pop(name, None) for name in NAMED_PROPERTIES
    )
    return make_properties(content_type, content_encoding, headers, delivery_mode, priority, stored)


def _bodies(deliveries: Iterable[Delivery]) -> list[bytes]:
    bodies: list[Any] = [delivery.body for delivery in deliveries]
    if any(type(body) is not bytes for body in bodies):
        return [_body(delivery) for delivery in deliveries]
    return bodies


def _body(delivery: Delivery) -> bytes:
    return delivery.body.encode() if isinstance(delivery.body, str) else bytes(delivery.body)


def _due(delivery: Delivery) -> float | None:
    """Return when a message may be delivered (seconds since 1970), from its property ``eta``; None for no time."""
    eta = (delivery.properties.extra or {}).get("eta")
    if eta is None:
        return None
    if isinstance(eta, str):
        try:
            eta = datetime.fromisoformat(eta.replace("Z", "+00:00"))
        except ValueError:
            raise exceptions.PreconditionFailed(f"invalid eta {eta!r:.80}") from None
    with suppress(OverflowError):
        if isinstance(eta, datetime):
            return max((eta if eta.tzinfo else eta.replace(tzinfo=timezone.utc)).timestamp(), 0.0)
        if isinstance(eta, (int, float)) and not isinstance(eta, bool) and isfinite(eta):
            return max(float(eta), 0.0)
    raise exceptions.PreconditionFailed(f"invalid eta {eta!r:.80}")
