"""What a connection has as long as its ``Connection`` lives, however often it is lost: one session for each.

``Session`` is what both facades share: the state, what was declared, counters and hooks. ``ChannelSession`` has the
channels of the synchronous facade too, dispatches what comes in to them, and hands over the batches that some of their
consumers collect. A channel tells its session what it declares, consumes and loses; it never calls its connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from kombulite._client.batching import BatchCollector
from kombulite._client.counters import Counters
from kombulite._client.interfaces import Connection, Hook, SessionChannel
from kombulite._client.lifecycle import Lifecycle
from kombulite._client.topology import Topology
from kombulite._core import BaseSession, CounterBlock
from kombulite.brokers.base import Event, Outcome
from kombulite.exceptions import NotFound, RecoverableConnectionError, ResourceLocked

if TYPE_CHECKING:
    from kombulite._client.hooks import Hooks

PollReady = Callable[[], Event | None]
Receive = Callable[[float | None], Sequence[Event]]


class Session:
    """What a connection of either facade knows."""

    def __init__(self, name: Callable[[], str]) -> None:
        self.name = name  #: returns the URL, without its password
        self.life = Lifecycle(name)
        #: What has to be declared again when the connection was lost.
        self.topology = Topology()
        #: Keys of the entities that were declared since the connection is there.
        self.declared: set[Any] = set()
        #: What went through it.
        self.tally = CounterBlock()
        #: What is around its publishing and consuming, if anything.
        self.hooks: Hooks | None = None
        self._was_missing = False  # whether the last try to restore found something missing that may be declared again

    def forget_declarations(self) -> None:
        """Declare again what is needed: the connection is new, or something was deleted."""
        self.declared = set()

    # --- after a loss

    def must_declare_all(self, place: Any, keeps_durable: bool) -> bool:
        """Return whether a broker at that place may have nothing of the topology, not even what is durable."""
        return not keeps_durable or self.topology.place not in (None, place)

    def note_restored(self, place: Any) -> None:
        """Note that the broker at that place has all of the topology."""
        self._was_missing = False
        self.topology.renamed = {}
        self.topology.place = place

    def restore_error(self, error: BaseException, everything: bool) -> BaseException:
        """Return what a failure to restore raises: RecoverableConnectionError where it may go well the next time."""
        if isinstance(error, ResourceLocked):
            # The broker has not noticed yet that the old connection is gone: it holds its exclusive queues.
            return RecoverableConnectionError(str(error))
        is_first = not self._was_missing and self.topology.needs_restoring(everything)
        if isinstance(error, NotFound) and is_first:
            # It may have been there when it was declared, and gone since: with the old connection, which the broker
            # had not noticed to be gone. That happens once.
            self._was_missing = True
            return RecoverableConnectionError(str(error))
        return error

    # --- what is seen of it

    @property
    def counters(self) -> Counters:
        """The numbers of this moment."""
        return Counters(*self.tally.values())

    def count(self, outcome: Outcome, number: int = 1) -> None:
        """Count deliveries that were settled."""
        tally = self.tally
        if outcome is Outcome.ACK:
            tally.count_acked(number)
        elif outcome is Outcome.REJECT:
            tally.count_rejected(number)
        else:
            tally.count_requeued(number)

    def add_hook(self, hook: Hook, connection: Connection) -> bool:
        """Have a hook around what is published and consumed; returns False if it is there already."""
        hooks = tuple(self.hooks or ())
        if hook in hooks:
            return False
        self._observe((*hooks, hook), connection)
        return True

    def remove_hook(self, hook: Hook, connection: Connection) -> None:
        """Take a hook away, if it is there."""
        self._observe(tuple(each for each in self.hooks or () if each is not hook), connection)

    def _observe(self, hooks: tuple[Any, ...], connection: Connection) -> None:
        from kombulite._client.hooks import Hooks  # for those who have some

        self.hooks = Hooks(connection, hooks) if hooks else None


class ChannelSession(Session, BaseSession):
    """The session of a synchronous connection: its open channels by their number, and what comes in for them."""

    channels: dict[int, SessionChannel]

    def __init__(self, name: Callable[[], str]) -> None:
        super().__init__(name)
        self._source: PollReady | None = None  # of the transport
        #: The channel for all who do not want their own.
        self.default_channel: Any = None
        #: What the consumers that want batches have so far.
        self.collectors: list[BatchCollector] = []
        #: Channels that the broker closed, with consumers that do not know it: by number while the connection lasts.
        self._closed: dict[int, SessionChannel] = {}
        #: Those whose connection is lost.
        self.unreported: list[SessionChannel] = []

    def connect(self, poll_ready: PollReady | None) -> None:
        """There is a connection: what its transport has at hand, if it can tell; or there is none."""
        self._source = poll_ready
        self._find_source()

    def _find_source(self) -> None:
        # To ask for these each time, in Python, takes 2 % of a message's way.
        self.poll_ready = None if self.collectors or self.unreported else self._source

    def _observe(self, hooks: tuple[Any, ...], connection: Connection) -> None:
        super()._observe(hooks, connection)
        for channel in list(self.channels.values()):
            channel.observe(self.hooks)

    # --- channels

    def add(self, channel: SessionChannel) -> None:
        """Note a channel that was opened."""
        self.channels[channel.channel_id] = channel

    def remove(self, channel: SessionChannel) -> None:
        """Forget a channel that closes."""
        self.channels.pop(channel.channel_id, None)
        if self.collectors:
            self.watch_collectors()
        if self.default_channel is channel:
            self.default_channel = None

    def replace_channels(self, channels: Sequence[SessionChannel]) -> None:
        """Note the numbers that the channels have on another connection."""
        self.channels = {channel.channel_id: channel for channel in channels}

    def forget_consumer(self, queue: str) -> None:
        """Note that a consumer of a queue is gone: an auto-delete queue goes with its last one."""
        if not any(channel.consumes_from(queue) for channel in list(self.channels.values())):
            self.topology.last_consumer_gone(queue)

    def close(self) -> None:
        """Forget all that depends on the connection: its owner has closed it."""
        for channel in list(self.channels.values()):
            channel.detach()
        self.connect(None)
        self.channels = {}
        self.default_channel = None
        self._closed = {}
        self.unreported = []
        self.topology = Topology()
        self.forget_declarations()

    # --- channels that the broker closed

    def report_closed(self, channel: SessionChannel) -> None:
        """Report to the consumers of a closed channel, once what was sent for it before has been seen."""
        self._closed[channel.channel_id] = channel

    def lose_connection(self, reason: object) -> None:
        """Keep the channels for the next connection. No more will come for those that were closed."""
        for channel in list(self.channels.values()):  # another thread may open or close some
            channel.suspend(reason)
        self.connect(None)
        self.unreported += self._closed.values()
        self._closed = {}
        self.forget_declarations()

    def on_unknown_channel(self, event: Event) -> None:
        """Deal with an event for a channel that is not there: its consumers may have to be told that it was closed."""
        closed = self._closed.pop(event.channel, None)  # the caller of what it was closed for knows it
        if closed is not None:
            self._report(closed)

    def report_unreported(self) -> None:
        """Raise what the consumers of a channel have to know that was closed before the connection was lost."""
        while self.unreported:
            channel = self.unreported.pop()
            self._find_source()
            self._report(channel)

    def _report(self, channel: SessionChannel) -> None:
        if channel.unreported and channel.failure is not None:
            raise channel.failure from None

    # --- batches

    def watch_collectors(self) -> None:
        """Note that a channel has more or fewer consumers that want batches."""
        self.collectors = [each for channel in list(self.channels.values()) for each in channel.collectors]
        self._find_source()

    def drain_batch(self, receive: Receive, timeout: float | None) -> bool:
        """Dispatch what ``receive(timeout)`` returns until a callback of the application has run.

        Returns whether one has; waits for at most ``timeout`` seconds (None: until one has).
        """
        deadline = None if timeout is None else monotonic() + timeout
        if self._hand_over_due():
            return True
        while True:
            source = self._source  # once: another thread may lose or close the connection
            if source is not None and self.dispatch_from(source):
                return True
            events: Sequence[Event] = receive(0)
            while events:  # what is there already
                if not self.dispatch(events):
                    return True
                events = receive(0)
            due = min((each.deadline for each in self.collectors), default=inf)
            wake = due if deadline is None else min(due, deadline)
            events = receive(None if wake == inf else max(wake - monotonic(), 0))
            if events:
                if not self.dispatch(events):
                    return True
            elif self._hand_over_due():
                return True
            elif deadline is not None and monotonic() >= deadline:
                return False

    def _hand_over_due(self) -> bool:
        now = monotonic()
        return any(each.hand_over() for each in self.collectors if each.deadline <= now)
