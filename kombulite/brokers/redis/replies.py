"""What a server sends on one connection: replies, in the order of the commands, and pushes. Without I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from hiredis import ProtocolError, PushNotification, Reader, ReplyError

from kombulite import exceptions
from kombulite.brokers.redis.errors import code_of, connection_lost, reply_error

INCOMPLETE = object()
RESP2_PUSHES = (b"message", b"pmessage")
#: Pushes that are the replies to commands.
ANSWERS = (b"psubscribe", b"punsubscribe")
MAX_UNREAD = 512 << 20  # bytes of a string that is not there as a whole: the longest that Redis has, unless told else

OnReply = Callable[[Any], None]
#: A reply that is to come: what it goes to; the commands it belongs to, with the last of their replies, where they may
#: be sent once more over another connection; and how many replies these have. No class: one is made for each ack.
Posted = tuple[OnReply, "bytes | None", int]


class Unreached(ReplyError):
    """The reply to what was not sent, because its node could not be reached."""


class Lost(Unreached):
    """The reply to what was sent to a node whose connection was lost: whether it was done is unknown."""

    def __init__(self, text: str = "CLUSTERDOWN the connection to the node was lost") -> None:
        super().__init__(text)


class ErrorReplies:
    """Makes errors of error replies. ``ending``: codes of those that end the connection.

    Such a reply is given to nobody, so that what may be repeated is sent again over the next connection.
    """

    def __init__(self) -> None:
        self.ending: frozenset[str] = frozenset()

    def __call__(self, text: str) -> ReplyError:
        """Return the error for the text of an error reply. Raises it if it ends the connection."""
        if code_of(text) in self.ending:
            raise reply_error(text)
        return ReplyError(text)


class ReplyQueue:
    """The replies that are to come on one connection, and the bytes of them that have.

    ``protocol``: the version of RESP. ``on_push(message)`` gets what the server sends unasked.
    """

    def __init__(self, protocol: int, on_push: OnReply) -> None:
        self.protocol = protocol
        self.posted: deque[Posted] = deque()  # one for each reply that is to come
        self.errors = ErrorReplies()
        self._on_push = on_push
        self.restart(protocol)

    def restart(self, protocol: int) -> None:
        """Go on with another connection, on which nothing has come."""
        self.protocol = protocol
        self._reader = Reader(notEnoughData=INCOMPLETE, replyError=self.errors)

    def expect(
        self, replies: int, on_reply: OnReply, repeatable: bytes | None = None, on_earlier: OnReply | None = None
    ) -> None:
        """Note commands that have been sent. ``repeatable``: the same commands, where they may be sent again.

        ``on_earlier``: gets all replies but the last, if ``on_reply`` does not.
        """
        if replies > 1:
            self.posted.extend([(on_earlier or on_reply, b"", 0)] * (replies - 1))
        self.posted.append((on_reply, repeatable, replies))

    @property
    def unanswered(self) -> list[Posted]:
        """The posted commands that have not all of their replies, and may be sent again."""
        return [posted for posted in list(self.posted) if posted[1]]

    @property
    def may_repeat(self) -> bool:
        """Whether all commands without a reply may be sent again."""
        return all(again is not None for _, again, _ in self.posted)

    def feed(self, data: bytes) -> None:
        """Take bytes that have come. Raises RecoverableConnectionError for a string that is too long."""
        self._reader.feed(data)
        if self._reader.len() > MAX_UNREAD:
            raise connection_lost("the server sends a string that is too long")

    def take(self, count: int, replies: list[Any]) -> None:
        """Take all that has come whole: so many replies into ``replies``, and what goes elsewhere."""
        gets, posted = self._reader.gets, self.posted
        try:
            while (reply := gets()) is not INCOMPLETE:
                if reply.__class__ is PushNotification or (self.protocol == 2 and _is_resp2_push(reply)):
                    if posted and reply[0] in ANSWERS:
                        posted.popleft()[0](reply)
                    else:
                        self._on_push(reply)
                elif posted:
                    posted.popleft()[0](reply)
                elif len(replies) < count:
                    replies.append(reply)
                elif isinstance(reply, ReplyError):
                    raise reply_error(str(reply))  # the answer to something that was sent
                else:
                    raise connection_lost(f"unexpected reply without a pending command: {reply!r:.80}")
        except exceptions.ConnectionError:
            self.restart(self.protocol)  # the rest belongs to commands that count as unanswered
            raise
        except ProtocolError as error:
            raise connection_lost(f"the server does not speak RESP: {error}") from error
        except (LookupError, TypeError, ValueError) as error:  # where it went, it could not be read
            raise connection_lost(f"the server sends a reply that makes no sense: {error!r:.80}") from error


def _is_resp2_push(reply: Any) -> bool:
    """RESP2 has no pushes: what a subscriber gets are arrays like others."""
    return isinstance(reply, list) and bool(reply) and reply[0] in RESP2_PUSHES
