"""What comes in on a connection: whom it is for, and the batches that some consumers gather of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from kombulite._core import BaseInbox
from kombulite.brokers.base import Event

if TYPE_CHECKING:
    from kombulite._client.batching import Gathering
    from kombulite.channel import Channel

AtHand = Callable[[], Event | None]
Receive = Callable[[float | None], Sequence[Event]]


class Inbox(BaseInbox):
    """The open channels of a connection by their number, and what each of them still has to be told."""

    channels: dict[int, Channel]

    def __init__(self) -> None:
        super().__init__()
        self._source: AtHand | None = None  # of the transport
        #: What the consumers that want batches have so far.
        self.gatherings: list[Gathering] = []
        #: Channels that the broker closed, with consumers that do not know it: by number while the connection lasts.
        self._orphaned: dict[int, Channel] = {}
        #: Those whose connection is lost.
        self.untold: list[Channel] = []

    def connect(self, at_hand: AtHand | None) -> None:
        """There is a connection: what its transport has at hand, if it can tell; or there is none."""
        self._source = at_hand
        self._find_source()

    def _find_source(self) -> None:
        # To ask for these each time, in Python, takes 2 % of a message's way.
        self.at_hand = None if self.gatherings or self.untold else self._source

    def add(self, channel: Channel) -> None:
        """A channel is open."""
        self.channels[channel.channel_id] = channel

    def remove(self, channel: Channel) -> None:
        """A channel is closed."""
        self.channels.pop(channel.channel_id, None)
        if self.gatherings:
            self.watch_gatherings()

    def replace_channels(self, channels: Sequence[Channel]) -> None:
        """The channels have other numbers, on another connection."""
        self.channels = {channel.channel_id: channel for channel in channels}

    def clear(self) -> None:
        """Forget all."""
        self.connect(None)
        self.channels = {}
        self._orphaned = {}
        self.untold = []

    # --- channels that the broker closed

    def remember_orphans(self, channel: Channel) -> None:
        """A channel is closed, and its consumers have to be told: when what was sent for it before has been seen."""
        self._orphaned[channel.channel_id] = channel

    def lose_connection(self) -> None:
        """No more will come for the channels that were closed."""
        self.connect(None)
        self.untold += self._orphaned.values()
        self._orphaned = {}

    def miss(self, event: Event) -> None:
        """Deal with an event for a channel that is not there: its consumers may have to be told that it was closed."""
        orphaned = self._orphaned.pop(event.channel, None)  # who asked for what it was closed for knows it
        if orphaned is not None:
            self._tell(orphaned)

    def tell_orphans(self) -> None:
        """Raise what the consumers of a channel have to know that was closed before the connection was lost."""
        while self.untold:
            channel = self.untold.pop()
            self._find_source()
            self._tell(channel)

    def _tell(self, channel: Channel) -> None:
        if channel.orphans and channel.failure is not None:
            raise channel.failure from None

    # --- batches

    def watch_gatherings(self) -> None:
        """A channel has more or fewer consumers that want batches."""
        self.gatherings = [each for channel in list(self.channels.values()) for each in channel.gatherings]
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
            due = min((each.deadline for each in self.gatherings), default=inf)
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
        return any(each.hand_over() for each in self.gatherings if each.deadline <= now)
