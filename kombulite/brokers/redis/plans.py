"""Operations without waiting: which commands are sent, and what their replies mean.

A plan is a generator. It yields what it wants from the connection, gets what came of that, and returns its result. The
stream of a thread performs it and waits; that of an event loop does something else until the replies are there. The
hot paths (a publish to one list, acknowledgements, claims) post their commands without a plan.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol, TypeVar

from hiredis import ReplyError

from kombulite._core import pack_command
from kombulite.brokers.redis.errors import reply_error
from kombulite.brokers.redis.replies import OnReply
from kombulite.brokers.redis.scripts import Script

T = TypeVar("T")
Command = Sequence[Any]


class PostingStream(Protocol):
    """What all streams can: commands out, and the replies to where they belong. Nothing here waits for a reply."""

    protocol: int
    lock: Any  #: a context manager that keeps other threads out

    def post(self, data: bytes, replies: int, on_reply: OnReply, more: bool = False, may_repeat: bool = False) -> None:
        """Send packed commands, each of whose replies goes to ``on_reply``."""

    def send(self, data: bytes) -> None:
        """Send packed commands that are answered by pushes."""


class Exchange(NamedTuple):
    """Commands to send, packed, and how many replies they have. Gives these, error replies among them."""

    commands: Iterable[bytes]
    replies: int


class Wait(Enum):
    """What else a plan may ask for."""

    REPLIES = "the replies to all that was posted before"
    NEWS = "what the server has said so far"


Plan = Generator[Any, Any, T]


def pack_all(commands: Iterable[Command]) -> list[bytes]:
    """Return several commands, each as it travels."""
    return [pack_command(command) for command in commands]


def send(*commands: Command) -> Plan[list[Any]]:
    """Send commands together and return their replies, error replies (hiredis.ReplyError) among them."""
    replies: list[Any] = yield Exchange(pack_all(commands), len(commands))
    return replies


def call(*command: Any) -> Plan[Any]:
    """Send a command and return the reply. Raises what an error reply stands for."""
    (reply,) = _checked((yield Exchange((pack_command(command),), 1)))
    return reply


def call_all(*commands: Command) -> Plan[list[Any]]:
    """Send commands together and return their replies. Raises the first error."""
    return _checked((yield from send(*commands)))


def transact(*commands: Command, before: Sequence[Command] = ()) -> Plan[list[Any]]:
    """Send commands as one transaction (MULTI, EXEC) and return their replies. Raises the first error.

    ``before``: commands that are sent first, whose replies do not matter.
    """
    replies = yield from send(*before, ("MULTI",), *commands, ("EXEC",))
    return list(_checked(_checked(replies[len(before) :])[-1]))


def run(script: Script, keys: Sequence[str | bytes], *arguments: Any, before: Sequence[Command] = ()) -> Plan[Any]:
    """Run a script on the server. ``before``: commands that are sent first, whose replies do not matter."""
    return (yield from run_with((), script, keys, *arguments, before=before))[0]


def run_with(
    others: Sequence[Command],
    script: Script,
    keys: Sequence[str | bytes],
    *arguments: Any,
    before: Sequence[Command] = (),
) -> Plan[list[Any]]:
    """Run a script and other commands after it. A server that lacks the script gets its source."""
    command = (len(keys), *keys, *arguments)
    replies = yield from send(*before, ("EVALSHA", script.sha, *command), *others)
    replies = replies[len(before) :]
    if isinstance(replies[0], ReplyError) and str(replies[0]).startswith("NOSCRIPT"):
        replies = yield from send(("EVAL", script.source, *command), *others)
    return _checked(replies)


def _checked(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise reply_error(str(reply))
    return replies
