"""Operations without waiting: which commands are sent, and what their replies mean.

A plan is a generator. It yields what it wants from the connection, gets what came of that, and returns its result. The
stream of a thread performs it and waits; that of an event loop does something else until the replies are there. The
hot paths (a publish to one list, acknowledgements, claims) post their commands without a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol, TypeVar

from hiredis import ReplyError

from kombulite import exceptions
from kombulite._core import pack_command
from kombulite.brokers.redis.errors import BEFORE_CAUSE, NOT_RUN, connection_lost, reply_error
from kombulite.brokers.redis.replies import OnReply
from kombulite.brokers.redis.scripts import Script

T = TypeVar("T")
Command = Sequence[Any]
#: Seconds that a server has for the replicas' answers where no limit is set for its own.
REPLY_TIMEOUT = 30.0
#: Bytes of small commands that are joined for one call.
MAX_JOINED = 1 << 16
#: How a server that has become a replica answers to WAIT: not by a code of its own.
NO_MASTER = "ERR WAIT cannot be used with replica"
#: What stands for a reply that did not come.
LOST = ReplyError("ERR the connection was lost")


class PostingStream(Protocol):
    """What all streams can: commands out, and the replies to where they belong. Nothing here waits for a reply."""

    protocol: int
    lock: Any  #: a context manager that keeps other threads out

    def post(self, data: bytes, replies: int, on_reply: OnReply, more: bool = False, may_repeat: bool = False) -> None:
        """Send packed commands, each of whose replies goes to ``on_reply``."""


class Exchange(NamedTuple):
    """Commands to send, packed, and how many replies they have. Gives these, error replies among them.

    ``partial``: where the connection to one node of a cluster is lost, it gets the replies of all, ``LOST`` for those
    that did not come. ``patience``: seconds to wait for a slot of a cluster that is not served, if not all of the time.
    """

    commands: Iterable[bytes]
    replies: int
    partial: list[Any] | None = None
    patience: float | None = None


class Wait(Enum):
    """What else a plan may ask for."""

    REPLIES = "the replies to all that was posted before"
    NEWS = "what the server has said so far"


Plan = Generator[Any, Any, T]


def perform(plan: Plan[T], fulfil: Callable[[Any, float | None], Any], limit: float | None) -> T:
    """Do what a plan asks for, by ``fulfil(request, limit)``, and return its result."""
    try:
        request = next(plan)
        while True:
            try:
                result = fulfil(request, limit)
            except BaseException as error:
                request = plan.throw(error)
            else:
                request = plan.send(result)
    except StopIteration as end:
        found: T = end.value
        return found


def pack_all(commands: Iterable[Command]) -> list[bytes]:
    """Return several commands, each as it travels."""
    return [pack_command(command) for command in commands]


def gathered(commands: Iterable[bytes]) -> Iterator[bytes]:
    """Return the bytes in pieces that are worth a call each: small ones are joined, large ones are not copied."""
    waiting: list[bytes] = []
    size = 0
    for command in commands:
        if waiting and size + len(command) > MAX_JOINED:
            yield b"".join(waiting)
            waiting, size = [], 0
        waiting.append(command)
        size += len(command)
    yield b"".join(waiting)


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


def transact(may_end: bool, *commands: Command, before: Sequence[Command] = ()) -> Plan[list[Any]]:
    """Send commands as one transaction (MULTI, EXEC) and return their replies. Raises the first error.

    If the user has no right to begin one, or to end it (``may_end``), the commands are done one after the other.
    ``before``: commands that are sent first, whose replies do not matter.
    """
    if not may_end:
        return _checked((yield from send(*before, *commands))[len(before) :])
    replies = (yield from send(*before, ("MULTI",), *commands, ("EXEC",)))[len(before) :]
    multi, *queued, _ = replies
    if is_refused(multi):
        return _checked(queued)  # each was done when it came
    return list(_checked(_checked(replies)[-1]))


def wait_for_replies() -> Plan[None]:
    """Wait until all that was posted before is answered."""
    yield Wait.REPLIES


def wait_for_replicas(count: int, timeout: float) -> Plan[None]:
    """Wait until so many replicas have what was sent, for half of the time. Raises what ``check_replicas`` does."""
    replies = yield Exchange((wait_command(count, timeout),), 1)
    check_replicas(replies[0], count, "the server")


def wait_command(count: int, timeout: float) -> bytes:
    """Return what waits for replicas, packed; half of the time (seconds) is left for the reply."""
    return pack_command(("WAIT", count, max(int(timeout * 500), 1)))


def check_replicas(reply: Any, count: int, master: str) -> None:
    """Raise MessageNacked if fewer replicas have what was sent; RecoverableConnectionError if nobody can say."""
    if isinstance(reply, ReplyError):
        if str(reply).startswith(NO_MASTER):
            raise exceptions.RecoverableConnectionError(f"{master} has become a replica: {reply}")
        raise reply_error(str(reply))
    if number_of(reply) < count:
        raise exceptions.MessageNacked(f"{reply} replicas of {master} have the message, {count} are to have it")


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
    """Run a script and other commands after it; raises its error, and returns those of the others.

    A server that lacks the script gets its source, by whichever command the user has the right to.
    """
    command = (len(keys), *keys, *arguments)
    replies = (yield from send(*before, ("EVALSHA", script.sha, *command), *others))[len(before) :]
    if is_missing(replies[0]) or is_refused(replies[0]):
        was_missing = is_missing(replies[0])
        replies = yield from send(("EVAL", script.source, *command), *others)
        if was_missing and is_refused(replies[0]):
            load = ("SCRIPT", "LOAD", script.source)
            loaded, *again = yield from send(load, ("EVALSHA", script.sha, *command), *others)
            replies = replies if isinstance(loaded, ReplyError) else again
    if isinstance(replies[0], ReplyError):
        raise script.error(replies[0])
    return replies


def is_granted(reply: Any) -> bool:
    """Return whether the server does what it was asked for. Raises RecoverableConnectionError if it may do so later."""
    if not isinstance(reply, ReplyError):
        return True
    error = reply_error(str(reply))
    if isinstance(error, (exceptions.RecoverableChannelError, exceptions.RecoverableConnectionError)):
        raise connection_lost(str(reply)) from error
    return False


def number_of(reply: Any) -> int:
    """Return the number that a reply is. Raises RecoverableConnectionError for one that is none."""
    if not isinstance(reply, int):
        raise connection_lost(f"the server sends a reply that makes no sense: {reply!r:.80} for a number")
    return reply


def is_missing(reply: Any) -> bool:
    """Return whether the server lacks the script that was to be run."""
    return isinstance(reply, ReplyError) and str(reply).startswith("NOSCRIPT")


def is_refused(reply: Any) -> bool:
    """Return whether a command was not begun, since the user has no right to it, or the operator has renamed it."""
    return isinstance(reply, ReplyError) and NOT_RUN.match(BEFORE_CAUSE.sub("", str(reply))) is not None


def _checked(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise reply_error(str(reply))
    return replies
