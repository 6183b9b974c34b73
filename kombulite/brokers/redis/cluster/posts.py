"""Commands that are sent to a node of a cluster, and whose replies come later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hiredis import ReplyError

from kombulite.brokers.redis.cluster.slots import Address, Refusal
from kombulite.brokers.redis.cluster.units import Unit, split
from kombulite.brokers.redis.leases import ACK_REPLIES
from kombulite.brokers.redis.replies import Lost, OnReply

#: The acks of one queue: its slot, the ``ACK_REPLIES`` commands, what gets the errors among their replies.
Ack = tuple[int, bytes, OnReply]


class Post:
    """Commands that nobody waits for: what their replies go to, if the node does not refuse them.

    What precedes a refusal is passed on, and comes once more when all are sent again.

    ``may_repeat``: they do no harm when they are sent again, over another connection. ``on_refused(post)``: is called
    when they are refused; returns whether they will be sent again. ``unit``: None until then, for few are.
    ``is_patient``: whether to wait for a slot that is on its way or has no master; if not, only redirections count,
    and where it does not ``follows`` them, nothing does. ``on_lost(post)``: has what may be repeated sent again.
    """

    __slots__ = (
        "_awaited",
        "_is_lost",
        "_on_lost",
        "_on_refused",
        "_on_reply",
        "_passed_on",
        "_replies",
        "asked",
        "data",
        "deadline",
        "due",
        "follows",
        "is_patient",
        "may_repeat",
        "slot",
        "unit",
    )

    def __init__(
        self,
        slot: int,
        data: bytes,
        replies: int,
        on_reply: OnReply,
        may_repeat: bool,
        deadline: float,
        on_refused: Callable[[Post], bool],
        on_lost: Callable[[Post], object],
    ) -> None:
        self.slot = slot
        self.data = data
        self._awaited = replies
        self._on_reply = on_reply
        self._on_refused = on_refused
        self._on_lost = on_lost
        self._is_lost = False
        self._replies: Sequence[Any] = ()
        self._passed_on = 0
        self.may_repeat = may_repeat
        self.deadline = deadline
        self.is_patient = self.follows = True
        self.due = 0.0
        self.unit: Unit | None = None
        self.asked: Address = ("", 0)

    def begin(self, asked: Address) -> tuple[bytes, int]:
        """Return what is sent to a node now, and how many replies it has."""
        self.asked = asked
        self._is_lost = False
        if self.unit is not None:
            self.unit.asked = asked
            packed = self.unit.packed
            self.data, self._awaited = b"".join(packed), len(packed)
        return self.data, self._awaited

    def __call__(self, reply: Any) -> None:
        """Take the next reply."""
        if reply.__class__ is not ReplyError and not self._replies and self.unit is None:
            self._passed_on += 1
            self._on_reply(reply)
            return
        self._replies = [*self._replies, reply]
        if self._passed_on + len(self._replies) < self._awaited:
            return
        unit, passed_on = self.refused(), self._passed_on
        unit.take([*[None] * passed_on, *self._replies])
        self._replies, self._passed_on = (), 0
        if unit.refusal is not None and self._on_refused(self):
            return
        for each in unit.replies[passed_on:]:
            self._on_reply(each)

    def lost(self) -> None:
        """Note that the connection over which it was sent is lost."""
        if self._is_lost:
            return
        self._is_lost = True
        missing = self._awaited - self._passed_on
        self._replies, self._passed_on = (), 0
        if self.may_repeat:
            self.refused().refusal = Refusal("CLUSTERDOWN")
            self._on_lost(self)
            return
        for _ in range(missing):
            self._on_reply(Lost())

    def fail(self, error: ReplyError) -> None:
        """Give an error to what waits for the replies."""
        self._on_reply(error)

    def refused(self) -> Unit:
        """Return the commands one by one: some of them may be to be sent again."""
        if self.unit is None:
            self.unit = Unit(self.slot, split(self.data), self.asked)
        return self.unit


class AckBatch:
    """Acks of several queues that were sent to one node together, and what takes their replies.

    There are no ``Post`` objects but for what the node refuses or loses: two objects and two calls for each queue
    would cost as much as what is sent. So the replies are looked at when the last is there.

    ``asked``: the node. ``make(ack)``: returns the post that has acks sent again, or passes their errors on.
    """

    __slots__ = ("_acks", "_asked", "_is_lost", "_make", "_replies", "collect")

    def __init__(self, acks: Sequence[Ack], asked: Address, make: Callable[[Ack], Post]) -> None:
        self._acks = acks
        self._asked = asked
        self._make = make
        self._replies: list[Any] = []
        self._is_lost = False
        self.collect: OnReply = self._replies.append  #: takes a reply that is not the last

    @property
    def packed(self) -> bytes:
        """All commands, as they are sent."""
        return b"".join([data for _, data, _ in self._acks])

    @property
    def replies(self) -> int:
        """The number of replies to come in all."""
        return ACK_REPLIES * len(self._acks)

    @property
    def unanswered(self) -> Sequence[Ack]:
        """The acks that have not all of their replies."""
        return () if self._is_lost else self._acks[len(self._replies) // ACK_REPLIES :]

    def __call__(self, reply: Any) -> None:
        """Take the next reply."""
        self._replies.append(reply)
        if len(self._replies) == self.replies:
            self._pass_on_errors()

    def lost(self) -> None:
        """Have sent again what has no replies: the connection is lost."""
        unanswered = self.unanswered
        if not unanswered:
            return
        self._is_lost = True
        self._pass_on_errors()
        for ack in unanswered:
            self._post_of(ack).lost()

    def _pass_on_errors(self) -> None:
        if ReplyError not in map(type, self._replies):
            return
        for place, ack in enumerate(self._acks[: len(self._replies) // ACK_REPLIES]):
            replies = self._replies[ACK_REPLIES * place : ACK_REPLIES * (place + 1)]
            if ReplyError in map(type, replies):
                post = self._post_of(ack)
                for reply in replies:
                    post(reply)

    def _post_of(self, ack: Ack) -> Post:
        post = self._make(ack)
        post.asked = self._asked
        return post
