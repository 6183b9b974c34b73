"""Sentinel: which server is the master, and the news that it is another one now."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from operator import itemgetter
from threading import Thread
from time import monotonic, sleep
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

from redis import Redis
from redis import exceptions as driver
from redis.backoff import NoBackoff
from redis.retry import Retry

from kombulite import exceptions
from kombulite.brokers.redis.errors import connect_error, driver_error, unquoted
from kombulite.brokers.redis.leases import logger
from kombulite.utils.locks import Lock

Address = tuple[str, int]

#: What sentinels publish. All know of a switch. A second or more before, the one that does it says which replica it has
#: promoted: from then on the old master acknowledges writes that are lost.
SWITCHED = "+switch-master"  # its data: name, old host, old port, new host, new port
PROMOTED = "+failover-state-wait-promotion"  # slave, name, host, port, @, name of the master, its host, its port
ABORTED = "-failover-abort-*"
#: Seconds between two questions to a sentinel.
ASK_INTERVAL = 1.0
#: Seconds that a sentinel has to answer while the master is watched.
ANSWER_TIMEOUT = 2.0
#: Seconds for which a sentinel that names the old master is taken to be late.
LATENESS = 15.0


class NoMaster(exceptions.RecoverableConnectionError):
    """Sentinels answer, and there is no master at the moment: one is about to be chosen."""


class Sentinels:
    """The sentinels of one master. ``options``: redis-py's, of the connections to them."""

    def __init__(
        self, addresses: list[Address], master: str, min_others: int, timeout: float | None, options: Mapping[str, Any]
    ) -> None:
        self.addresses = addresses
        self.master = master
        self._min_others = min_others
        self._options = {"socket_timeout": timeout, "socket_connect_timeout": timeout, **options}

    @property
    def identity(self) -> tuple[Any, ...]:
        """What tells one master, and a way to ask for it, from another."""
        return frozenset(self.addresses), self.master, repr(sorted(self._options.items(), key=itemgetter(0)))

    def client(self, address: Address, **options: Any) -> Redis:
        """Return a client of one sentinel, not connected."""
        # There are others; by default the driver would ask a dead one ten times.
        retry = Retry(NoBackoff(), 0)
        return Redis(host=address[0], port=address[1], **{"retry": retry, **self._options, **options})

    def find(self) -> Address:
        """Return where the master is, as the first sentinel says that knows.

        Raises ConnectionError or OSError, which name all sentinels that failed. It is no RecoverableConnectionError if
        all of them refuse: they would do so the next time too.
        """
        failures: list[str] = []
        refusals: list[driver.RedisError] = []
        has_answer = False
        for address in self.addresses:
            with self.client(address) as client:
                try:
                    state = client.sentinel_masters().get(self.master)
                except driver.RedisError as error:
                    failures.append(f"{address[0]}:{address[1]}: {unquoted(error)}")
                    if not isinstance(driver_error(error), exceptions.RecoverableConnectionError):
                        refusals.append(error)
                    continue
            has_answer = True
            if state and self._is_up(state):
                return state["ip"], int(state["port"])
        told = "".join(f"; {error}" for error in failures)
        if len(refusals) == len(self.addresses):
            raise connect_error(refusals[0], "; ".join(failures))
        if has_answer:
            raise NoMaster(f"No master found for {self.master!r}{told}")
        raise exceptions.RecoverableConnectionError(f"No sentinel of {self.master!r} can be asked{told}")

    def _is_up(self, state: Mapping[str, Any]) -> bool:
        if not state["is_master"] or state["is_sdown"] or state["is_odown"]:
            return False
        return bool(state["num-other-sentinels"] >= self._min_others)


class Failover(NamedTuple):
    """One master in the place of another, since a time of the monotonic clock. ``is_done``: not only begun.

    ``teller``: the sentinel that said so first. Of a failover that is only begun it is the one that leads it.
    """

    old: Address
    new: Address
    since: float
    is_done: bool
    teller: Address


class WatchedStream(Protocol):
    """A connection that ends when its server is no master any more, and can log in again."""

    address: Address
    is_open: bool

    def leave(self, reason: str) -> None:
        """End the connection, from any thread."""

    def authenticate(self, command: bytes) -> None:
        """Send a packed ``AUTH``, from any thread."""


class MasterWatch:
    """Listens to the sentinels for all connections of the process to one master: in a thread for each sentinel.

    If the master is another one, connections to the old one are ended at once: what it still acknowledges is lost. The
    threads end with the last connection.
    """

    def __init__(self, sentinels: Sentinels) -> None:
        self._sentinels = sentinels
        self._streams: WeakSet[WatchedStream] = WeakSet()
        self._failover: Failover | None = None
        self._running: set[Address] = set()
        self._lock = Lock()

    def add(self, stream: WatchedStream) -> None:
        """Watch for a connection too; its ``address`` says where it leads."""
        with self._lock:
            self._streams.add(stream)
            for address in self._sentinels.addresses:
                if address not in self._running:
                    self._running.add(address)
                    Thread(target=self._run, args=(address,), name="kombulite-sentinel", daemon=True).start()
        new = self.correct(stream.address)
        if new != stream.address:  # the master has changed while the connection was being opened
            _leave(stream, new)

    def correct(self, address: Address) -> Address:
        """Return the master's address, if a sentinel that names another one has not heard of it yet."""
        failover = self._failover
        if failover is not None and address == failover.old and monotonic() - failover.since < LATENESS:
            return failover.new
        return address

    # --- the threads

    def _goes_on(self, address: Address) -> bool:
        with self._lock:
            if any(stream.is_open for stream in self._streams):
                return True
            self._running.discard(address)
            return False

    def _run(self, address: Address) -> None:
        while self._goes_on(address):
            try:
                self._listen(address)
            except Exception as error:  # whatever it is: a thread that ends leaves connections to an old master
                reason = unquoted(error) if isinstance(error, driver.RedisError) else error
                logger.debug("sentinel %s:%s does not answer: %s", *address, reason)
                sleep(ASK_INTERVAL)

    def _listen(self, address: Address) -> None:
        """Take the news from one sentinel until it does not answer any more."""
        timeouts = {"socket_timeout": ANSWER_TIMEOUT, "socket_connect_timeout": ANSWER_TIMEOUT}
        with self._sentinels.client(address, **timeouts) as client, client.pubsub() as news:
            news.psubscribe(SWITCHED, PROMOTED, ABORTED)
            named = None
            while self._goes_on(address):
                before, named = named, self._ask(client)
                if before is not None and named is not None and named != before:
                    self._leave(before, named, True, address)
                deadline = monotonic() + ASK_INTERVAL
                while (left := deadline - monotonic()) > 0:
                    message = news.get_message(ignore_subscribe_messages=True, timeout=left)
                    if message is not None:
                        self._on_news(_text(message["channel"]), _text(message["data"]).split(" "), address)

    def _ask(self, client: Redis) -> Address | None:
        answer: Any = client.sentinel_get_master_addr_by_name(self._sentinels.master)
        return (_text(answer[0]), int(answer[1])) if answer else None

    def _on_news(self, channel: str, words: list[str], teller: Address) -> None:
        master = self._sentinels.master
        if channel == SWITCHED and len(words) == 5 and words[0] == master:
            self._leave((words[1], _port(words[2])), (words[3], _port(words[4])), True, teller)
        elif channel == PROMOTED and len(words) == 8 and words[5] == master:
            self._leave((words[6], _port(words[7])), (words[2], _port(words[3])), False, teller)
        elif channel not in (SWITCHED, PROMOTED) and words[1:2] == [master]:
            failover = self._failover
            # Those that were not chosen to lead abort too, in the middle of the one that goes on.
            if failover is not None and not failover.is_done and failover.teller == teller:
                self._failover = None

    def _leave(self, old: Address, new: Address, is_done: bool, teller: Address) -> None:
        """Leave the old master."""
        if self._failover is None or self._failover[:2] != (old, new) or is_done != self._failover.is_done:
            if self._failover is None or self._failover.new != new:
                logger.warning("The master %r is at %s:%s now", self._sentinels.master, *new)
            self._failover = Failover(old, new, monotonic(), is_done, teller)
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            if stream.is_open and stream.address == old:
                _leave(stream, new)


def _leave(stream: WatchedStream, new: Address) -> None:
    stream.leave(f"the master is at {new[0]}:{new[1]} now")


_watches: dict[tuple[Any, ...], MasterWatch] = {}


def watch_of(sentinels: Sentinels) -> MasterWatch:
    """Return the watch of this process for a master: a forked child has its own."""
    # Without a lock, which a child might find taken: each of these is one step.
    key = os.getpid(), *sentinels.identity
    for other in [other for other in list(_watches) if other[0] != key[0]]:
        _watches.pop(other, None)
    return _watches.setdefault(key, MasterWatch(sentinels))


def retry_until(connect: Callable[[], Any], deadline: float, pause: float) -> Any:
    """Call until there is a master to connect to; from the deadline (monotonic clock) on, raise what keeps it away."""
    while True:
        try:
            return connect()
        except NoMaster:
            if monotonic() + pause >= deadline:
                raise
        sleep(pause)


def _port(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _text(data: Any) -> str:
    return data.decode("utf-8", "replace") if isinstance(data, bytes) else str(data)
