"""Receiving: from lists and channels of the server to one event after the other.

A consumer that finds its lists empty reads them (EXISTS) on a connection with client-side caching: the server then says
when one of them changes, whoever changes it, and nothing is asked until it does.

Longer than other modules: news, claims and sleep share their state, and each is a step of one loop.
"""

from __future__ import annotations

import os
import selectors
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from socket import socketpair
from threading import get_ident
from time import monotonic, sleep
from typing import Any

from hiredis import ReplyError

from kombulite import exceptions
from kombulite._core import Delivery, MalformedEnvelope, decode_envelope, pack_command
from kombulite.brokers.base import Event
from kombulite.brokers.redis.claims import ClaimQueue, Consumer, RedisChannel
from kombulite.brokers.redis.errors import reply_error
from kombulite.brokers.redis.fanout import Subscriptions
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.leases import Lease, Tags, dead_letter, logger
from kombulite.brokers.redis.options import Options
from kombulite.brokers.redis.pace import News, Pace
from kombulite.brokers.redis.publisher import PUBLISHED_AT
from kombulite.brokers.redis.stream import OnReply, Stream
from kombulite.brokers.redis.topology import Topology
from kombulite.utils.compat import detect_environment
from kombulite.utils.json import codec
from kombulite.utils.locks import NOT_ACQUIRED, Lock

#: Seconds between two looks where the server cannot wake us, at most.
POLLING_INTERVAL = 1.0
#: Messages that are handed over between two looks for news, on other channels too.
LISTEN_EVERY = 32

#: The channel on which a server tells RESP2 clients what has changed.
INVALIDATED = b"__redis__:invalidate"


class Receiver:
    """The consuming half of a transport. ``open(on_push)`` opens a connection; ``stream`` is the one for commands.

    ``channels`` and ``topology`` are the transport's. ``now()``: the server's time in seconds.
    """

    def __init__(
        self,
        stream: Stream,
        open: Callable[[OnReply], Stream],
        keys: Keys,
        options: Options,
        channels: dict[int, RedisChannel],
        topology: Topology,
        now: Callable[[], float],
    ) -> None:
        self.events: deque[Event] = deque()
        self._subscriptions = Subscriptions(keys, options.sentinel_fanout_compat)
        self.tags = Tags(options.visibility_timeout)
        self._stream = stream
        self._open = open
        self._keys = keys
        self._options = options
        self._channels = channels
        self._topology = topology
        self._limits = topology.limits
        self._now = now
        self._listener: Stream | None = None
        self._watcher: Stream | None = None  # over which lists are read to have their changes told
        self._redirection: tuple[Any, ...] = ()
        self._tells_of_lists = False  # whether the server says when a list changes
        self._watched: dict[bytes, str] = {}  # lists of which it will -> their queue
        self._receiving = Lock()  # a signal handler may come back to it
        self._thread: int | None = None  # the thread that receives
        self._is_over = False
        self._pid = os.getpid()
        self._sends_source = False  # whether the server has forgotten the script, and gets it with the next claim
        # They end the sleep of the thread that receives. No pipe: eventlet would wait for each write, and let two green
        # threads not wait at once; and who comes too late writes to what is closed, not to what has its number since.
        self._waker_out, self._waker_in = socketpair()
        self._waker_out.setblocking(False)
        self._waker_in.setblocking(False)
        self._awaited = selectors.DefaultSelector()  # both connections, and the waker
        self._descriptors: dict[Stream, int] = {}  # by which it waits for them
        self._awaited.register(self._waker_out, selectors.EVENT_READ)
        self._has_twins = detect_environment() == "eventlet"
        self._await(stream)
        self._is_sleeping = False
        self._looks = 0
        self._current: RedisChannel | None = None  # the channel that was served last
        self._pace = Pace()
        self._news = News()
        self._polled_at = 0.0
        self._listened = False
        self._checked_at = monotonic()

    def close(self) -> None:
        """Let go of what is the system's. The thread that receives, if there is one, ends with an error."""
        if os.getpid() != self._pid:
            self._close_descriptors()  # a thread that held our lock is the parent's, and so is all else
            return
        self.wake()
        if self._thread == get_ident():
            self._is_over = True  # it was interrupted by who closes: a signal handler, say
            return
        with self._receiving:
            self._let_go()

    def _let_go(self) -> None:
        self._awaited.close()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        self._waker_out.close()
        self._waker_in.close()
        if self._has_twins:
            for twin in self._descriptors.values():
                os.close(twin)
        self._descriptors.clear()

    def _await(self, stream: Stream) -> None:
        """Wait for a connection too."""
        # eventlet lets no two green threads wait for one descriptor: another may wait for the reply to a command there.
        descriptor = self._descriptors[stream] = os.dup(stream.fileno()) if self._has_twins else stream.fileno()
        self._awaited.register(descriptor, selectors.EVENT_READ)

    def renewed(self, stream: Stream) -> None:
        """A connection was opened anew: the server knows nothing of what it had been asked for over the old one."""
        descriptor = self._descriptors.pop(stream)
        with suppress(KeyError, ValueError, OSError):  # the system may have forgotten it when it was closed
            self._awaited.unregister(descriptor)
        if self._has_twins:
            os.close(descriptor)
        self._await(stream)
        if stream is self._listener:
            self._track(stream)
            self._subscriptions.renew(stream)
            self._look_everywhere()
        elif stream is self._watcher:
            self._watch(stream)
            self._look_everywhere()
        self.wake()

    # --- consumers

    def listen(self) -> Stream:
        """The connection that listens, opened for the first consumer."""
        if self._listener is None:
            listener = self._open(self._on_push)
            self._track(listener)
            self._await(listener)
            self._listener = listener
        return self._listener

    def _track(self, listener: Stream) -> None:
        """Have the server tell of changes, if it does.

        RESP3 has them told to the connection that reads the lists. With RESP2 that is another one, the watcher, and
        the server publishes its news to the listener.
        """
        self._tells_of_lists = False
        if listener.protocol == 3:
            self._watcher = listener
            self._watch(listener)
        else:
            identify, subscribe = pack_command(("CLIENT", "ID")), pack_command(("SUBSCRIBE", INVALIDATED))
            client, subscribed = listener.exchange([identify, subscribe], 2)
            if not isinstance(client, ReplyError) and not isinstance(subscribed, ReplyError):
                self._redirection = ("REDIRECT", client)
                if self._watcher is None:
                    self._watcher = self._open(self._on_push)
                    self._await(self._watcher)
                self._watch(self._watcher)
        if not self._tells_of_lists:
            text = "The server does not tell %s of changes: a message for an idle consumer waits up to %g seconds"
            logger.warning(text, self._options.client_name or "us", self._polling_interval)

    def _watch(self, watcher: Stream) -> None:
        """Have the server remember what is read over a connection, and tell when that changes."""
        self._watched.clear()
        reply = watcher.exchange([pack_command(("CLIENT", "TRACKING", "ON", *self._redirection))], 1)[0]
        self._tells_of_lists = not isinstance(reply, ReplyError)

    def fileno(self) -> int | None:
        """What an event loop may wait for: a descriptor that is readable when one of ours is, where there is such."""
        fileno: Callable[[], int] | None = getattr(self._awaited, "fileno", None)
        return None if fileno is None else fileno()

    @property
    def look_interval(self) -> float | None:
        """Seconds between two looks, where the server does not wake us."""
        return None if self._listener is None or self._listens else self._polling_interval

    @property
    def _listens(self) -> bool:
        """Whether the server says when a list changes, and that is worth while."""
        return self._tells_of_lists and self._news.is_on(monotonic())

    def subscribe(self, bindings: Mapping[str, Iterable[tuple[str, str]]]) -> None:
        """Subscribe to what these queues are bound to, as (fanout exchange, routing key), and to nothing else."""
        if self._listener is not None:
            self._subscriptions.update(self._listener, bindings)

    def wake(self) -> None:
        """Let the thread that waits in ``receive`` look again: something changed here."""
        if self._is_sleeping:
            with suppress(OSError):  # full, or closed
                self._waker_in.send(b"!")

    # --- news

    def _on_push(self, message: list[Any]) -> None:
        kind = message[0]
        if kind == b"message" and message[1] == INVALIDATED:  # as RESP2 has it
            kind, message = b"invalidate", [b"invalidate", message[2]]
            if message[1] is None:
                self._topology.router.forget(None)
        if kind == b"invalidate":
            changed = list(self._watched) if message[1] is None else message[1]
            for key in changed:
                queue = self._watched.pop(key, None)
                if queue is not None and self._listens:
                    self._news.came(key)
                    self._mark_dirty(queue)
        elif kind == b"pmessage":
            self._on_fanout(message[1], message[3])

    def _mark_dirty(self, queue: str) -> None:
        for state in list(self._channels.values()):
            for claims in state.claim_queues:
                if queue in claims.consumers:
                    claims.dirty_queues.add(queue)

    def _on_fanout(self, pattern: bytes, envelope: bytes) -> None:
        try:
            delivery = decode_envelope(codec, envelope)
        except MalformedEnvelope as error:
            logger.error("What was published to %r is no message: %s", pattern, error)
            return
        for queue in self._subscriptions.queues(pattern, delivery.exchange, delivery.delivery_tag):
            consumers = list(consumers_of(self._channels, queue))
            if consumers:
                # The one with the least to do.
                state, consumer = min(consumers, key=lambda each: len(each[0].fanout) + len(each[0].outstanding))
                lease = Lease(self.tags.tag(self.tags.reserve(1)), queue, "", envelope, is_fanout=True)
                if len(state.fanout) == state.fanout.maxlen:
                    logger.warning("Consumer %s is too slow: a fanout message is dropped", consumer.tag)
                state.fanout.append((consumer, lease))

    def _watch_lists(self, claims: ClaimQueue, queues: Iterable[str]) -> None:
        """Have the server say when a list of these queues changes; look once more if one has something already."""
        if self._watcher is None or not self._listens:
            return
        missing = {
            key: queue
            for queue in queues
            for name in self._keys.lists(queue)
            if (key := name.encode()) not in self._watched
        }
        if missing:
            self._watched.update(missing)
            looked = partial(self._on_watched, claims, queues)
            self._watcher.post(pack_command(("EXISTS", *missing)), 1, looked, may_repeat=True)

    def _on_watched(self, claims: ClaimQueue, queues: Iterable[str], reply: Any) -> None:
        if isinstance(reply, ReplyError):
            logger.warning("The server does not tell of changes, so it is asked now and then: %s", reply)
            self._tells_of_lists = False
        elif reply:
            claims.dirty_queues.update(queues)

    # --- claiming

    def _claim(self, state: RedisChannel) -> None:
        for claims in state.claim_queues:
            if state.credit(claims) <= 0:
                continue
            with self._stream.lock:  # no consumer ends between the look at what is consumed and the question
                credit = state.credit(claims)
                if credit > 0:
                    on_claimed = partial(self._on_claimed, state, claims)
                    ignored = claims.claim(self._stream, self._keys, self.tags, credit, on_claimed, self._sends_source)
                    self._sends_source = False
                    self._watch_lists(claims, ignored)

    def _on_claimed(self, state: RedisChannel, claims: ClaimQueue, reply: Any) -> None:
        if isinstance(reply, ReplyError):
            claims.failed()
            # Nothing is sent from here: it would come between a command that waits for its reply, and that.
            self._sends_source = str(reply).startswith("NOSCRIPT")
            if not self._sends_source:
                state.error = reply_error(str(reply))
            return
        emptied, found = claims.claimed(reply)
        if found or not claims.dirty_queues:
            self._pace.claimed(found, monotonic())
        if self._listens or found:
            self._news.led_to(found, monotonic())
        self._watch_lists(claims, emptied)

    # --- events

    def receive(self, timeout: float | None) -> tuple[Event, ...]:
        """The next event, waited for so many seconds (None: until there is one); empty if there was none.

        Raises OperationalError where no event can ever come.
        """
        deadline = None if timeout is None else monotonic() + timeout
        events = self._receiving.call(timeout, self._receive, deadline)
        return () if events is NOT_ACQUIRED else events

    def _receive(self, deadline: float | None) -> tuple[Event, ...]:
        try:
            self._thread = get_ident()
            # The common case: the channel that was served last has more.
            state = self._current
            if state is not None and self._looks % LISTEN_EVERY and not self.events and state.error is None:
                self._looks += 1
                delivery = self._next_delivery(state)
                if delivery is not None:
                    return (delivery,)
            while True:
                event = self._next_event()
                if event is not None:
                    return (event,)
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    return ()
                if left is None and not any(state.consumers for state in list(self._channels.values())):
                    raise exceptions.OperationalError("waiting without a timeout, and there is no consumer to wait for")
                self._wait(left)
        finally:
            self._thread = None
            if self._is_over:
                self._is_over = False
                self._let_go()

    def _next_event(self) -> Event | None:
        if self.events:
            return self.events.popleft()
        self._looks += 1
        channels = list(self._channels.values())
        if self._looks % LISTEN_EVERY == 0 or not any(state.has_ready() for state in channels):
            self._poll()
        for i in range(len(channels)):
            state = channels[(self._looks + i) % len(channels)]
            if state.error is not None:
                error, state.error = state.error, None
                raise error
            self._claim(state)
            delivery = self._next_delivery(state)
            if delivery is not None:
                self._current = state
                return delivery
        self._current = None
        return None

    def _next_delivery(self, state: RedisChannel) -> Delivery | None:
        with self._stream.lock:  # what is taken is noted before a consumer or the channel ends
            while (found := state.next()) is not None:
                consumer, lease = found
                delivery = self.hand_over(state, lease, consumer.no_ack)
                if delivery is not None:
                    delivery.consumer_tag = consumer.tag
                    return delivery
        return None

    def _poll(self) -> None:
        """Take what has arrived on both connections."""
        # A server that has vanished tells nothing. In an event loop, where nobody waits here, each turn asks.
        self._stream.keep_alive()
        self._stream.poll()
        self._topology.router.catch_up()
        if self._listener is not None:
            for stream in self._listeners:
                stream.keep_alive()
                stream.poll()
            self._check()
            listened, self._listened = self._listened, self._listens
            if not listened and monotonic() - self._polled_at >= self._polling_interval:
                self._polled_at = monotonic()
                self._look_everywhere()

    @property
    def _listeners(self) -> set[Stream]:
        return {stream for stream in (self._listener, self._watcher) if stream is not None}

    def _check(self) -> None:
        """See now and then whether the lists that the server watches are empty still.

        Of some changes it says nothing: two databases change places, or a slot moves.
        """
        interval = self._options.health_check_interval
        if interval and self._watched and self._watcher is not None and monotonic() - self._checked_at >= interval:
            self._checked_at = monotonic()
            self._watcher.post(pack_command(("EXISTS", *self._watched)), 1, self._on_checked, may_repeat=True)

    def _on_checked(self, reply: Any) -> None:
        if reply:  # an error too
            self._look_everywhere()

    def _look_everywhere(self) -> None:
        """Ask all queues once more."""
        for state in list(self._channels.values()):
            for claims in state.claim_queues:
                claims.dirty_queues.update(claims.consumers)

    @property
    def _polling_interval(self) -> float:
        # kombu's documentation has people set it high, for there the server wakes who waits.
        return min(self._options.polling_interval or POLLING_INTERVAL, POLLING_INTERVAL)

    def hand_over(self, state: RedisChannel, lease: Lease, no_ack: bool) -> Delivery | None:
        """A message as it goes to its consumer; None for what is none, or is too old."""
        try:
            delivery = decode_envelope(codec, lease.envelope)
        except MalformedEnvelope as error:
            is_noted = not no_ack and self._options.ack_emulation
            dead_letter(self._stream, self._keys, lease.tag if is_noted else None, lease.queue, lease.envelope, error)
            return None
        if delivery.properties.extra is not None and self._has_expired(delivery, lease.queue):
            if not no_ack:
                self.settle(state, [lease])
            return None
        if delivery.redelivered:
            delivery = without_flag(delivery)
        delivery.channel = state.number
        delivery.delivery_tag = lease.tag
        if not no_ack:
            lease.was_seen = True
            state.outstanding[lease.tag] = lease
        return delivery

    def _has_expired(self, delivery: Delivery, queue: str) -> bool:
        properties, limits = delivery.properties, self._limits.get(queue)
        published_at = (properties.extra or {}).get(PUBLISHED_AT)
        if type(published_at) is not int:
            return False  # nobody knows how old it is
        lives = [] if limits is None or limits.message_ttl is None else [limits.message_ttl]
        # A header says when it expires where the receiver wants to know of it: Celery's worker reports such a task as
        # revoked, and whoever waits for its result would wait for ever if the message vanished.
        if properties.expiration is not None and not (properties.headers or {}).get("expires"):
            with suppress(ValueError):
                lives.append(int(str(properties.expiration)))
        return bool(lives) and published_at + min(lives) <= self._now() * 1000

    def settle(self, state: RedisChannel, leases: Sequence[Lease]) -> None:
        """Strike messages from the server's notes, at once; an error shows at the channel's next operation."""
        tags = [lease.tag for lease in leases if not lease.is_fanout]
        if tags and self._options.ack_emulation:
            date, note = ("ZREM", self._keys.unacked_index, *tags), ("HDEL", self._keys.unacked, *tags)
            data = pack_command(date) + pack_command(note)
            # While the application is fed without a pause, the kernel may join what belongs together.
            self._stream.post(data, 2, state.on_settled, more=bool(state.leased.ready), may_repeat=True)

    # --- waiting

    def _wait(self, left: float | None) -> None:
        """Sleep until there may be something new, at most so many seconds."""
        self._is_sleeping = True
        try:
            self._poll()
            if not self._has_something():
                seconds = left
                for pause in self._pauses():
                    seconds = pause if seconds is None else min(seconds, pause)
                if any(key.fileobj is self._waker_out for key, _ in self._awaited.select(seconds)):
                    with suppress(BlockingIOError):
                        self._waker_out.recv(4096)
                self._poll()
        finally:
            self._is_sleeping = False
        if self._has_something() and not self._has_ready():
            pause = self._pace.pause(monotonic())
            if pause:
                sleep(pause if left is None else min(pause, left))

    def _has_ready(self) -> bool:
        """Whether there is an event, or an error, to hand over."""
        return bool(self.events) or any(
            state.error is not None or state.has_ready() for state in list(self._channels.values())
        )

    def _has_something(self) -> bool:
        """Whether there is, or there may be something to claim."""
        return self._has_ready() or any(
            state.credit(claims) > 0 for state in list(self._channels.values()) for claims in state.claim_queues
        )

    def _pauses(self) -> Iterator[float]:
        """Seconds until something else is due."""
        if self._listener is None:
            return
        if not self._listens:
            yield max(self._polled_at + self._polling_interval - monotonic(), 0)
        for stream in (self._stream, *self._listeners):
            if stream.ping_interval:
                yield stream.ping_interval
        if self._stream.is_waiting or any(stream.is_waiting for stream in self._listeners):
            yield 1.0


def consumers_of(channels: dict[int, RedisChannel], queue: str) -> Iterator[tuple[RedisChannel, Consumer]]:
    """All consumers of a queue, with their channels."""
    for state in list(channels.values()):
        for consumer in list(state.consumers.values()):
            if consumer.queue == queue:
                yield state, consumer


def without_flag(delivery: Delivery) -> Delivery:
    """The delivery without the header that says on the wire what ``redelivered`` says here."""
    headers = {name: value for name, value in (delivery.properties.headers or {}).items() if name != "redelivered"}
    properties = delivery.properties.replace(headers=headers or None)
    again = Delivery(delivery.exchange, delivery.routing_key, properties, delivery.body)
    again.redelivered = True
    again.delivery_count = delivery.delivery_count
    return again
