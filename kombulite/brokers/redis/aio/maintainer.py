"""What has to be done in time on an event loop: signs of life, looks for messages, chores."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

from kombulite.brokers.aio import Pending
from kombulite.brokers.redis.aio.stream import PING, AsyncStream
from kombulite.brokers.redis.leases import logger
from kombulite.brokers.redis.maintainer import Chores
from kombulite.brokers.redis.plans import Plan
from kombulite.brokers.redis.protocol import RedisProtocol
from kombulite.brokers.redis.receiver import SHORTEST_POLL
from kombulite.brokers.redis.stream import IDLE, MIN_PING_INTERVAL

MIN_TICK, MAX_TICK = 0.01, 5.0  # seconds between two looks at what is due

#: Seconds of idleness after which a server, or a proxy before it, has closed a connection, by database.
_idle_limits: dict[tuple[Any, ...], float] = {}


class AsyncMaintainer:
    """Keeps the leases, queues and connections of one transport, whose ``streams`` it reads.

    ``perform`` has a plan performed; ``dispatch()`` hands over what has come.
    """

    def __init__(
        self,
        protocol: RedisProtocol,
        identity: tuple[Any, ...],
        streams: list[AsyncStream],
        perform: Callable[[Plan[Any]], Pending[Any]],
        dispatch: Callable[[], object],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._identity = identity
        self._streams = streams
        self._perform = perform
        self._dispatch = dispatch
        self._chores: Chores | None = None
        self._is_active = self._is_working = False
        self._clock: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin: the connection is open."""
        self._is_active = True
        self._tick()

    def stop(self) -> None:
        """Do nothing any more."""
        self._is_active = False
        if self._clock is not None:
            self._clock.cancel()

    def keep(self, queue: str | None) -> None:
        """See to it that leases are renewed, and that a queue stays that ends without use. Any thread may call it."""
        if self._chores is None:
            self._chores = Chores(self._protocol, self._protocol.topology.router.routes)
        elif queue is not None and self._protocol.topology.declared.ends(queue):
            self._chores.extend_now()
        else:
            return
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._tick_in, 0)

    def bring_back_now(self) -> None:
        """Bring back at once what is left: there is more of it."""
        if self._chores is not None:
            self._chores.bring_back_now()
            self._tick_in(0)

    def note_end(self, stream: AsyncStream) -> None:
        """Note a connection that was lost: if it was idle, ask for signs of life sooner from now on."""
        idle = monotonic() - stream.used_at
        if idle > IDLE and not stream.is_waiting:
            logger.info("The server closed a connection that had been idle for %.1f s", idle)
            _idle_limits[self._identity] = idle

    def _tick_in(self, seconds: float) -> None:
        if self._clock is not None:
            self._clock.cancel()
        if self._is_active:
            self._clock = self._loop.call_later(seconds, self._tick)

    def _tick(self) -> None:
        """Do what is due."""
        pauses = [MAX_TICK]
        interval, now = self._ping_interval, monotonic()
        for stream in self._streams if interval else ():
            if now - stream.used_at >= interval and not stream.is_waiting:
                stream.post(PING, 1, _ignore, may_repeat=True)
            pauses.append(interval / 2)
        receiver = self._protocol.receiver
        if receiver.listener is not None:
            receiver.check()
            receiver.look_if_due()
            self._dispatch()
            if (look := receiver.next_look) is not None:
                # What it has just asked for may be there, and the next look due the sooner.
                pauses.append(min(look, SHORTEST_POLL) if self._is_claiming else look)
        if self._is_active:
            pauses.append(self._work())
            self._tick_in(max(min(pauses), MIN_TICK))

    @property
    def _is_claiming(self) -> bool:
        """Whether the server has been asked for messages, and has not answered yet."""
        states = self._protocol.channels.values()
        return any(claims.claiming is not None for state in states for claims in state.claim_queues)

    def _work(self) -> float:
        """Do the chores that are due; returns the seconds until the next is."""
        if self._chores is None or self._is_working:
            return MAX_TICK
        if not self._chores.pause:
            self._is_working = True
            self._perform(self._chores.work()).add_done_callback(self._on_worked)
            return MAX_TICK
        return self._chores.pause

    def _on_worked(self, done: Pending[None]) -> None:
        self._is_working = False
        if not self._is_active:
            return
        if not done.cancelled() and (error := done.exception()) is not None:
            logger.warning("Leases could not be looked after: %s", error)
        self._tick_in(MIN_TICK)

    @property
    def _ping_interval(self) -> float:
        limit = _idle_limits.get(self._identity)
        interval = self._protocol.options.health_check_interval
        return interval if limit is None else min(interval, max(limit / 2, MIN_PING_INTERVAL))


def _ignore(reply: Any) -> None:
    """Do nothing with the reply to a PING."""
