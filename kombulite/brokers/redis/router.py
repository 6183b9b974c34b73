"""Where messages go: the binding sets of the server, and what this process remembers of them."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

from hiredis import ReplyError

from kombulite import exceptions
from kombulite._core import RoutingTable
from kombulite.brokers.redis.errors import reply_error
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.plans import Command, Plan, Wait, send

#: Seconds that a table may be old where the server does not tell of changes.
MAX_AGE = 1.0

#: Types as they are stored.
KINDS = (b"direct", b"topic", b"fanout")


class Routes:
    """The bindings of one exchange, as they were read.

    ``kind``: None for an exchange that nobody knows. ``refusal``: why its type could not be read, if it could not.
    """

    def __init__(
        self, keys: Keys, exchange: str, kind: str | None, members: set[bytes], refusal: ReplyError | None = None
    ) -> None:
        found = [member for member in map(keys.parse_member, members) if member is not None]
        if kind is None and found:
            # kombu stores no types. A pattern is what only topic exchanges have.
            kind = "topic" if any(member.pattern for member in found) else "direct"
        self.kind = kind
        self.has_bindings = bool(members)
        self.read_at = monotonic()
        self._refusal = refusal
        self._exchange = exchange
        self._table = RoutingTable()
        self._table.declare(exchange, kind or "direct")
        for member in sorted(found):
            self._table.bind(exchange, member.queue, member.routing_key)

    def known_kind(self) -> str:
        """Return the type. Raises NotFound; AccessRefused if it may be one whose type cannot be read."""
        if self.kind is not None:
            return self.kind
        if self._refusal is not None:
            raise reply_error(str(self._refusal))
        raise exceptions.NotFound(f"no exchange '{self._exchange}', and nothing is bound to it")

    def route(self, routing_key: str) -> tuple[str, ...]:
        """Return the queues that a message goes to."""
        queues: tuple[str, ...] = self._table.route(self._exchange, routing_key)
        return queues


class Router:
    """Tables of exchanges, read when they are first asked for.

    With client-side caching (CLIENT TRACKING in OPTIN mode) the server says when one changes, on the connection that
    carries the publishes: a change that precedes a publish on the server is known when the publish returns. Without,
    a table is read again when it is ``MAX_AGE`` old; with it after ``check_interval`` seconds (0: never), because of
    some changes, as SWAPDB, the server says nothing.

    The server also says when a database was emptied: ``redeclare()`` is then called before the next table is read. The
    same is done where another database has taken its place.
    """

    def __init__(
        self,
        keys: Keys,
        declared: dict[str, str],
        check_interval: float,
        redeclare: Callable[[], Plan[None]],
    ) -> None:
        self._keys = keys
        self._declared = declared  # exchange -> type, as far as this connection knows
        self.is_tracked = False  # whether the server tells of changes
        self._check_interval = check_interval or inf
        self._redeclare = redeclare
        self.was_emptied = False
        self._routes: dict[str, Routes] = {}
        self._states: dict[str, object] = {}  # exchange -> what changes with its bindings, as far as was heard
        self._exchange_of: dict[bytes, str] = {}

    def known(self, exchange: str) -> Routes | None:
        """Return the table of an exchange if the server need not be asked."""
        routes = self._routes.get(exchange)
        most_age = self._check_interval if self.is_tracked else MAX_AGE
        return None if routes is None or self.was_emptied or monotonic() - routes.read_at >= most_age else routes

    def routes(self, exchange: str) -> Plan[Routes]:
        """Return the table of an exchange."""
        if self.is_tracked:
            yield Wait.NEWS
            yield from self.catch_up()
        return self.known(exchange) or (yield from self._read(exchange))

    def catch_up(self) -> Plan[None]:
        """Declare again what is gone with all else, if the server has said so."""
        if self.was_emptied:
            self.was_emptied = False
            yield from self._redeclare()

    def is_current(self, exchange: str, routes: Routes) -> bool:
        """Whether nothing was heard of a change."""
        return self._routes.get(exchange) is routes

    def _read(self, exchange: str) -> Plan[Routes]:
        commands: list[Command] = [
            ("SMEMBERS", self._keys.bindings(exchange)),
            ("HGET", self._keys.exchanges, exchange),
        ]
        if self.is_tracked:
            commands.insert(0, ("CLIENT", "CACHING", "YES"))
        # Remembered before it is read: a change that the server tells of together with the answer discards it.
        state = self._states.setdefault(exchange, object())
        self._exchange_of[self._keys.bindings(exchange).encode()] = exchange
        members, kind = (yield from send(*commands))[-2:]
        if isinstance(members, ReplyError):
            raise reply_error(str(members))
        # Where our own key cannot be read the bindings have to tell.
        refusal = kind if isinstance(kind, ReplyError) else None
        kind = self._declared.get(exchange) or (kind.decode() if kind in KINDS else None)
        routes = Routes(self._keys, exchange, kind, set(members), refusal)
        if self._states.get(exchange) is state:
            self._routes[exchange] = routes
        return routes

    def renewed(self, tracked: bool) -> None:
        """Forget what was read, because on a new connection the server announces no change of it."""
        self.is_tracked = tracked
        self._forget_all()

    def _forget_all(self) -> None:
        self._routes.clear()
        self._states.clear()

    def on_push(self, message: list[Any]) -> None:
        """Take what the server says unasked on the connection for commands."""
        if message[:1] == [b"invalidate"] and len(message) == 2:
            self.forget(message[1])

    def forget(self, keys: list[bytes] | None) -> None:
        """Forget keys that the server reports as changed (None: all)."""
        if keys is None:
            self._forget_all()
            self.was_emptied = True
        else:
            for key in keys:
                exchange = self._exchange_of.get(key)
                if exchange is not None:
                    self.discard(exchange)

    def discard_some(self, is_affected: Callable[[bytes], bool]) -> None:
        """Read the tables anew whose binding sets are affected by a change that the server does not tell of."""
        for key, exchange in list(self._exchange_of.items()):
            if is_affected(key):
                self.discard(exchange)

    def discard(self, exchange: str) -> None:
        """Read the table of an exchange anew: this connection has changed something."""
        self._routes.pop(exchange, None)
        self._states.pop(exchange, None)
