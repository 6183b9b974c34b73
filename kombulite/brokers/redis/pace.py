"""When to claim after news: at once, or after a pause in which more messages come together."""

from __future__ import annotations

from random import uniform

#: Seconds that a consumer pauses at most after others were faster, for each time in a row and in all, once they were
#: more often than so. Among many each is the fastest as often as the others, so the pauses grow with their number.
TURN, MAX_BACKOFF, PATIENCE = 0.0005, 0.05, 2
#: In all, where it consumes other queues too, or a fanout: their messages may be for this consumer alone.
MIXED_BACKOFF = 0.01
#: Seconds that it pauses where messages come one after the other: the first try, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.004
#: A stream is where so many claims in a row found something, each within so many seconds of the last.
STREAM, GAP = 8, 0.01
#: So many claims pass after so many shortest pauses in a row that brought nothing, until the next try. Where two
#: consumers share a queue one in two does: the other has claimed meanwhile.
FRUITLESS, MAX_FRUITLESS = 64, 2
#: News is false if so many claims in a row found nothing after news of so many lists, within so many seconds.
MAX_FALSE, FALSE_LISTS, FALSE_WINDOW = 40, 20, 4.0
#: Seconds for which it is not listened to then.
DEAF = 60.0


class Pace:
    """How long a consumer waits between the news that there is something and its claim.

    One that keeps up with a stream would claim each message alone, which costs many times what a share of a large claim
    does. So it tries a pause, and keeps to it as long as that brings it more than one message. Somebody who waits for
    our answer to send the next message is not slowed down: there the pause brings nothing.

    Where many wait for one queue, each message wakes them all, and one gets it. Those that never do look less often,
    and only whether there is something left.
    """

    def __init__(self) -> None:
        self._pause = 0.0
        self._claimed_at = 0.0  # when something was found last
        self._looked_at = 0.0
        self._streak = 0  # claims in a row that found something
        self._fruitless = 0  # pauses in a row that brought nothing
        self._lost = 0  # claims in a row that found nothing

    def claimed(self, found: int, now: float) -> None:
        """Note what a claim found (a number of messages), at a time in seconds."""
        self._looked_at = now
        if not found:
            self._lost += 1
            return
        self._lost = 0
        if now - self._claimed_at > GAP:
            self._pause, self._streak = 0.0, 0
        elif self._pause and found > 1:
            self._pause, self._streak, self._fruitless = min(2 * self._pause, LONGEST_PAUSE), 0, 0
        elif self._pause > FIRST_PAUSE:
            self._pause /= 2  # from now on we do not come right after another consumer any more, with the same pause
        elif self._pause:
            self._fruitless += 1
            if self._fruitless >= MAX_FRUITLESS:
                self._pause, self._streak, self._fruitless = 0.0, STREAM - FRUITLESS, 0
        else:
            self._streak += 1
            if self._streak >= STREAM:
                self._pause = FIRST_PAUSE
        self._claimed_at = now

    @property
    def is_outrun(self) -> bool:
        """Whether others are mostly faster, so that a claim is likely to find nothing."""
        return self._lost > PATIENCE

    @property
    def is_streaming(self) -> bool:
        """Whether messages come so fast that the next claim need not wait for news of them."""
        return bool(self._pause)

    def rest(self, now: float) -> float:
        """Seconds of a pause in a stream that are left."""
        return max(self._looked_at + self._pause - now, 0.0) if now - self._claimed_at < GAP else 0.0

    def pause(self, now: float, most: float = MIXED_BACKOFF) -> float:
        """Seconds to wait before the next claim. ``most``: what is left to others at most, where they are faster."""
        rest = self.rest(now)
        if self.is_outrun:
            rest = max(rest, uniform(0, min(most, TURN * self._lost)))  # noqa: S311
        return rest


class News:
    """Whether it is worth while to listen to what the server says of changes.

    A server that is to watch more than its table has room for (``tracking-table-max-keys``) announces changes that are
    none, time and again: each list that is watched anew makes it forget another. The consumer then looks now and then
    instead, for a while, or until it finds something. Many lists tell this from one that other consumers empty first.
    """

    def __init__(self) -> None:
        self._false = 0
        self._since = 0.0
        self._lists: set[bytes] = set()
        self.deaf_until = 0.0  #: not before that time (monotonic clock), 0 for now

    def came(self, changed: bytes) -> None:
        """Note the news that a list has changed."""
        self._lists.add(changed)

    def led_to(self, found: int, now: float) -> None:
        """Note how many messages a claim found."""
        if found:
            self.deaf_until = 0.0
        if found or not self._false or now - self._since > FALSE_WINDOW:
            self._false, self._since = 0, now
            self._lists.clear()
        self._false += not found
        if self._false >= MAX_FALSE and len(self._lists) >= FALSE_LISTS:
            self._false, self.deaf_until = 0, now + DEAF
