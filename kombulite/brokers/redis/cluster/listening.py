"""The connections that listen: one to each node with queues that are consumed.

A node says when a list changes that was read over such a connection. It says nothing where a list leaves it with its
slot, but it ends the sharded subscriptions of that slot: so there is one for each slot whose lists are watched.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hiredis import ReplyError

from kombulite._core import pack_command
from kombulite.brokers.redis.cluster.known import Cluster
from kombulite.brokers.redis.cluster.nodes import Nodes, logger
from kombulite.brokers.redis.cluster.slots import Address, key_of, refusal_of, slot_of
from kombulite.brokers.redis.replies import OnReply
from kombulite.brokers.redis.stream import Stream


class ListeningNodes(Nodes):
    """Connections over which lists are watched and sharded channels subscribed to.

    Args:
        cluster: What is known of it.
        on_news: Gets what a node says of lists, and of channels with patterns.
        on_message: Gets what was published to a sharded channel: ``on_message(channel, message)``.
        on_opened, on_dropped, has_one_slot: As for ``Nodes``.
    """

    def __init__(
        self,
        cluster: Cluster,
        on_news: OnReply,
        on_message: Callable[[bytes, bytes], object],
        on_opened: Callable[[Stream], object],
        on_dropped: Callable[[Stream], object],
        has_one_slot: bool,
    ) -> None:
        super().__init__(cluster, on_news, on_opened, on_dropped, has_one_slot)
        self._on_message = on_message
        self._announced: dict[int, Address | None] = {}  # slots whose leaving a node will announce -> that node
        self._announces = True
        self._channels: set[bytes] = set()
        self._has_moved = False
        #: Subscribes to patterns again after a connection was closed.
        self.restore: Callable[[Any], object] | None = None
        cluster.on_moved.append(self._on_slots_moved)

    def post(
        self,
        data: bytes,
        replies: int,
        on_reply: OnReply,
        more: bool = False,
        may_repeat: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Send packed commands of one slot now, and have the node say when that leaves it."""
        key = key_of(data)
        if key is not None and self._announces:
            slot = slot_of(key)
            owner = self.cluster.slots.owners[slot]
            if self._announced.get(slot) != owner or owner is None:
                self._announced[slot] = owner
                super().post(pack_command(("SSUBSCRIBE", key)), 1, partial(self._on_subscribed, slot))
        super().post(data, replies, on_reply, more, may_repeat, timeout)

    def _on_subscribed(self, slot: int, reply: Any) -> None:
        if is_unserved(reply):
            self._announced.pop(slot, None)  # with the next list of that slot
        elif isinstance(reply, ReplyError):
            logger.warning("A slot that moves is noticed late, because sharded subscriptions are refused: %s", reply)
            self._announces = False

    # --- sharded channels

    def subscribe(self, channel: str) -> None:
        """Subscribe to a sharded channel, wherever its slot goes. Once subscribed to, it stays that."""
        name = channel.encode()
        if name not in self._channels:
            self._channels.add(name)
            super().post(pack_command(("SSUBSCRIBE", name)), 1, self._on_channel)

    def _on_channel(self, reply: Any) -> None:
        if is_unserved(reply):
            self._has_moved = True
        elif isinstance(reply, ReplyError):
            logger.error("Fanout messages do not come, because a sharded subscription was refused: %s", reply)

    def subscribe_again(self, stream: Stream) -> None:
        """Subscribe again over a connection that was opened anew."""
        self._has_moved = True
        self._announced = {slot: owner for slot, owner in self._announced.items() if owner != stream.address}

    def _on_slots_moved(self, slots: set[int]) -> None:
        self._has_moved = True
        for slot in slots:
            self._announced.pop(slot, None)

    def poll(self, timeout: float | None = None) -> None:
        """Read what has arrived, and subscribe where slots have gone."""
        super().poll(timeout)
        if self._has_moved:
            self._has_moved = False
            restore, self.restore = self.restore, None
            if restore is not None:
                restore(self)
            for channel in list(self._channels):
                super().post(pack_command(("SSUBSCRIBE", channel)), 1, self._on_channel)

    def _take_push(self, stream: Stream, message: list[Any]) -> None:
        kind = message[0]
        if kind == b"ssubscribe":
            stream.answer_posted(message)  # it comes in the place of a reply
        elif kind == b"sunsubscribe":
            slot = slot_of(message[1])
            self._announced.pop(slot, None)
            self.cluster.left(slot)
        elif kind == b"smessage":
            self._on_message(message[1], message[2])
        else:
            self._on_push(message)


def is_unserved(reply: Any) -> bool:
    """Return whether a command was not done because its slot is not served, or its node was lost."""
    return isinstance(reply, ReplyError) and refusal_of(str(reply), ("", 0)) is not None
