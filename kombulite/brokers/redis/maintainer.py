"""What has to be done in time, whatever the application is doing: a thread with a connection of its own.

A live consumer renews its leases, so that a long task is not delivered twice; keeps queues that end without use in
use; puts back what consumers left that are gone, and deletes what nobody uses any more; and keeps the transport's
connections alive: servers and proxies close idle ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from math import inf
from threading import Event, Thread
from time import monotonic
from weakref import WeakMethod

from kombulite import exceptions
from kombulite.brokers.redis.connector import Connector
from kombulite.brokers.redis.deadlines import MIN_BINDING_LIFE, MIN_OWN_LIFE
from kombulite.brokers.redis.handover import HELD_INTERVAL
from kombulite.brokers.redis.leases import logger, renew, restore_overdue
from kombulite.brokers.redis.plans import Plan
from kombulite.brokers.redis.protocol import RedisProtocol
from kombulite.brokers.redis.router import Routes
from kombulite.brokers.redis.stream import Stream

#: Seconds until the next try when one failed.
RETRY_INTERVAL = 1.0
#: Where the next chore is due within so many seconds the connection waits for it: opening one costs more than a chore.
LINGER = 15.0
#: Seconds that an ack may wait for those of the messages that follow.
FLUSH_DELAY = 0.01


class Chores:
    """What is due when, as plans. ``routes(exchange)``: the plan that gives the routes of an exchange."""

    def __init__(self, protocol: RedisProtocol, routes: Callable[[str], Plan[Routes]]) -> None:
        self._keys = protocol.keys
        self._options = protocol.options
        self._channels = protocol.channels
        self._topology = protocol.topology
        self._handover = protocol.handover
        self._routes = routes
        self._extended_at = self._rebound_at = monotonic()
        self._complaint = ""  # what a chore failed with last
        self._pause = self._options.restore_interval  # between two extensions
        first_renewal = monotonic() + self._options.visibility_timeout / 3
        self._due = {self._renew: first_renewal}
        self._due |= dict.fromkeys([self._extend, self._sweep, self._restore, self._bring_back], 0.0)

    def extend_now(self) -> None:
        """Look at once for what has to be kept in use: there is more of it."""
        self._due[self._extend] = 0.0

    def bring_back_now(self) -> None:
        """Bring back at once what is left: there is more of it."""
        self._due[self._bring_back] = 0.0

    @property
    def pause(self) -> float:
        """Seconds until something is due."""
        return max(min(self._due.values()) - monotonic(), 0.0)

    def work(self) -> Plan[None]:
        """Do what is due. Raises at its end what has broken a connection: that may be one of several."""
        failure: Exception | None = None
        for chore in [chore for chore, at in self._due.items() if at <= monotonic()]:
            for each in (self._renew, chore):  # leases run out: their renewal waits for one chore at most
                if self._due[each] <= monotonic():
                    try:
                        yield from self._do(each)
                    except (exceptions.ConnectionError, OSError) as error:
                        failure = failure or error
        if failure is not None:
            raise failure

    def _do(self, chore: Callable[[], Plan[float]]) -> Plan[None]:
        self._due[chore] = inf  # until it is done, unless it is asked for meanwhile
        try:
            pause = yield from chore()
        except (exceptions.ChannelError, exceptions.MessageNacked) as error:  # the others shall be done all the same
            pause = RETRY_INTERVAL
            log = logger.debug if str(error) == self._complaint else logger.warning
            log("Leases could not be looked after; next try in %g s: %s", pause, error)
            self._complaint = str(error)
        except BaseException:
            self._due[chore] = monotonic() + RETRY_INTERVAL
            raise
        self._due[chore] = min(self._due[chore], monotonic() + pause)

    # Each returns the seconds until it is due again.

    def _renew(self) -> Plan[float]:
        leases = [lease for state in list(self._channels.values()) for lease in state.unsettled()]
        if self._options.ack_emulation:
            yield from renew(self._keys, [lease.tag for lease in leases])
            yield from self._handover.renew()
        return self._options.visibility_timeout / 3

    def _extend(self) -> Plan[float]:
        """Queues that end when they are not used, and their bindings."""
        states = list(self._channels.values())
        consumed = {consumer.queue for state in states for consumer in list(state.consumers.values())}
        now = monotonic()
        # After a pause of the whole process they may be gone already. kombu says them again as often, too.
        rebind = now - self._rebound_at > MIN_BINDING_LIFE / 3000 or now - self._extended_at > 3 * self._pause
        pause = yield from self._topology.extend(consumed, rebind)
        self._extended_at = now
        self._rebound_at = now if rebind else self._rebound_at
        self._pause = self._options.restore_interval if pause is None else min(pause, self._options.restore_interval)
        return self._pause

    def _sweep(self) -> Plan[float]:
        yield from self._topology.deadlines.sweep()
        return min(self._options.restore_interval, MIN_OWN_LIFE / 1000)

    def _restore(self) -> Plan[float]:
        if any(state.consumers for state in list(self._channels.values())):
            yield from restore_overdue(self._keys, self._options, self._queues_of)
        return self._options.restore_interval

    def _bring_back(self) -> Plan[float]:
        yield from self._handover.bring_back()
        return HELD_INTERVAL if self._handover.is_holding else self._options.restore_interval

    def _queues_of(self, exchange: str, routing_key: str) -> Plan[Iterable[str] | None]:
        routes = yield from self._routes(exchange)
        return None if routes.kind == "fanout" else routes.route(routing_key)


class LeaseMaintainer:
    """Does the chores of one transport, in a thread with a connection of its own.

    ``commands`` is the transport's stream for commands, ``streams`` are all that it has.
    ``start`` it, then ``stop`` it; it ends also when it is forgotten.
    """

    def __init__(
        self,
        protocol: RedisProtocol,
        connector: Connector,
        commands: Stream,
        streams: list[Stream],
        chores: type[Chores] = Chores,
    ) -> None:
        self._connector = connector
        self._router = protocol.topology.router
        self._commands = commands
        self._kept_alive = streams
        self._chores = chores(protocol, self._routes)
        self._stopped, self._news = Event(), Event()
        self._flush_if_free: Callable[[], bool] | None = None
        self._flush_at = inf
        self._retry_at = 0.0  # after a failure
        self._complaint = ""  # what it failed with last
        self._streams: list[Stream] = []  # one, or none; the thread closes it when it ends

    def start(self) -> None:
        """Start the thread."""
        arguments = WeakMethod(self._work), self._stopped, self._news, self._streams
        Thread(target=_run, args=arguments, name="kombulite-redis", daemon=True).start()

    def stop(self) -> None:
        """End the thread soon; it is not waited for."""
        self._stopped.set()
        self._news.set()

    def extend_now(self) -> None:
        """Look at once for what has to be kept in use: there is more of it."""
        self._chores.extend_now()
        self._news.set()

    def flush_soon(self, flush_if_free: Callable[[], bool]) -> None:
        """Have the acks of the connection sent that wait, in ``FLUSH_DELAY``, unless they will be already."""
        if self._flush_at == inf:
            self._flush_if_free, self._flush_at = flush_if_free, monotonic() + FLUSH_DELAY
            self._news.set()

    def _flush(self) -> None:
        if self._flush_if_free is not None and monotonic() >= self._flush_at:
            self._flush_at = inf  # before they are taken: those that come later ask again
            with suppress(exceptions.ConnectionError, OSError):  # the next connection sends them
                if not self._flush_if_free():
                    self._flush_at = monotonic() + FLUSH_DELAY

    def bring_back_now(self) -> None:
        """Bring back at once what is left: there is more of it."""
        self._chores.bring_back_now()
        self._news.set()

    def _work(self) -> float:
        """Do what is due; returns the seconds until the next time."""
        try:
            self._flush()
            pause = self._look_after()
        except Exception as error:  # whatever it is: a thread that ends loses leases
            _drop(self._streams)
            pause, self._retry_at = RETRY_INTERVAL, monotonic() + RETRY_INTERVAL
            log = logger.debug if str(error) == self._complaint else logger.warning
            log("Leases could not be looked after; next try in %g s: %s", pause, error)
            self._complaint = str(error)
        return min(pause, max(self._flush_at - monotonic(), 0.0))

    def _look_after(self) -> float:
        next_ping = min((left for stream in self._kept_alive if (left := stream.keep_alive()) is not None), default=inf)
        if not self._chores.pause and monotonic() >= self._retry_at:  # acks that wait wake us sooner
            if not self._streams:
                stream = self._connector.open(lambda message: None)
                stream.renew = self._connector.reopen
                self._streams.append(stream)
            self._streams[0].perform(self._chores.work())
        left = max(self._chores.pause, self._retry_at - monotonic())
        if left > LINGER:
            _drop(self._streams)
        return min(left, next_ping)

    def _routes(self, exchange: str) -> Plan[Routes]:
        """Read routes over the connection on which the server tells of their changes."""
        yield from ()
        return self._commands.perform(self._router.routes(exchange))


def _run(work_of: Callable[[], Callable[[], float] | None], stopped: Event, news: Event, streams: list[Stream]) -> None:
    pause = 0.0
    while not (news.wait(pause) and stopped.is_set()):
        news.clear()
        work = work_of()
        if work is None:
            break
        pause = work()
        del work
    _drop(streams)


def _drop(streams: list[Stream]) -> None:
    while streams:
        streams.pop().drop()
