"""The nodes of a Redis Cluster as if they were one connection: commands go where their keys are.

Redirections are dealt with here and nowhere else. A node refuses what belongs to another (MOVED, ASK), or cannot be
served at the moment (TRYAGAIN, CLUSTERDOWN, LOADING, ...); it has done nothing then, so the same is sent again where it
belongs, until there is an answer or the time is over.

    exchange, perform   waits: sends to all nodes at once, then sends again what was refused
    post                does not wait: what was refused goes into ``_refused``, and is sent again by ``poll``

What is sent again is a unit: a command, a transaction from MULTI to EXEC, or CLIENT CACHING with the command after it.

The class is wider than others: it stands for one ``Stream`` wherever a single server has that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from logging import getLogger
from time import monotonic, sleep
from typing import Any, TypeVar

from hiredis import ReplyError

from kombulite import exceptions
from kombulite._core import pack_command
from kombulite.brokers.redis.cluster.known import Cluster
from kombulite.brokers.redis.cluster.slots import Address, Refusal, SlotCache, refusal_of
from kombulite.brokers.redis.cluster.units import CACHING, DOWN_PAUSE, Unit, pause_of, share, split, units_of
from kombulite.brokers.redis.errors import connection_lost, reply_error
from kombulite.brokers.redis.plans import Plan, Wait
from kombulite.brokers.redis.replies import OnReply, Posted
from kombulite.brokers.redis.stream import Stream
from kombulite.utils.locks import Lock

logger = getLogger("kombulite.brokers.redis")

T = TypeVar("T")


class Post:
    """Commands that nobody waits for: what their replies go to, if the node does not refuse them.

    ``may_repeat``: they do no harm when they are sent again, over another connection.
    """

    __slots__ = ("_nodes", "_on_reply", "deadline", "due", "may_repeat", "replies", "unit", "units_replies")

    def __init__(self, nodes: Nodes, unit: Unit, replies: int, on_reply: OnReply, may_repeat: bool = False) -> None:
        self._nodes = nodes
        self.unit = unit
        self._on_reply = on_reply
        self.units_replies: list[Any] = []
        self.replies = replies
        self.may_repeat = may_repeat
        self.due = self.deadline = 0.0

    def __call__(self, reply: Any) -> None:
        """Take the next reply."""
        if self.replies == 1 and reply.__class__ is not ReplyError and not self.units_replies:
            self._on_reply(reply)
            return
        self.units_replies.append(reply)
        if len(self.units_replies) < self.replies:
            return
        replies, self.units_replies = self.units_replies, []
        unit = self.unit
        unit.take(replies)
        if unit.refusal is not None and self._nodes.note_refused(self):
            return
        for each in replies:
            self._on_reply(each)


class Nodes:
    """Connections to the nodes of a cluster, one each, opened as they are needed.

    Args:
        cluster: What is known of it.
        on_push: Gets what a node says unasked.
        on_opened: Makes a new connection ready: ``on_opened(stream)``.
        on_dropped: Is told of a connection that is not needed any more.
    """

    def __init__(
        self,
        cluster: Cluster,
        on_push: OnReply,
        on_opened: Callable[[Stream], object],
        on_dropped: Callable[[Stream], object],
    ) -> None:
        self.protocol = 3
        #: One for all streams: a claim that comes in changes what the others see.
        self.lock = Lock()
        self.cluster = cluster
        self.streams: dict[Address, Stream] = {}
        self.renew: Any = None  # what a stream has; connections are opened anew by their nodes
        self._on_push = on_push
        self._on_opened = on_opened
        self._on_dropped = on_dropped
        self._cache = SlotCache()
        self._refused: deque[Post] = deque()
        self._timeout_cap: float | None = None
        #: Those that have taken commands that were waited for. What publishes empties it before.
        self.written: set[Stream] = set()

    # --- connections

    def connect(self) -> None:
        """Open a connection to some node, and read the slots there. Raises what keeps all of them away."""
        failure: Exception | None = None
        for address in self.cluster.addresses:
            try:
                self.cluster.read(self._open(address))
                return
            except exceptions.AccessRefused:
                raise
            except (exceptions.RecoverableConnectionError, OSError) as error:
                failure = failure or error
                self._close(address)
        assert failure is not None
        raise failure

    def _open(self, address: Address) -> Stream:
        with self.lock:
            found = self.streams.get(address)
            if found is not None and found.is_open:
                return found
            connector = self.cluster.connector(address)
            pushes: list[Stream] = []
            stream = connector.open(lambda message: self._take_push(pushes[0], message))
            pushes.append(stream)
            stream.lock = self.lock
            stream.address = address
            if self._timeout_cap is not None:
                stream.cap_timeout(self._timeout_cap)
            stream.renew = self._renew
            self.streams[address] = stream
            try:
                self._on_opened(stream)
            except BaseException:
                self._close(address)
                raise
            return stream

    def _take_push(self, stream: Stream, message: list[Any]) -> None:
        self._on_push(message)

    def _renew(self, stream: Stream) -> None:
        """Open a connection anew that its node closed because it was idle."""
        address = stream.address
        self.cluster.connector(address).reopen(stream)
        stream.address = address
        self._on_dropped(stream)
        self._on_opened(stream)

    def _close(self, address: Address) -> None:
        stream = self.streams.pop(address, None)
        if stream is not None:
            stream.drop()
            self._on_dropped(stream)

    def stream_at(self, slot: int) -> Stream:
        """Return the connection to the master of a slot. Raises what keeps it away."""
        address = self.cluster.slots.owners[slot]
        if address is None:
            self.cluster.is_stale = True
            raise connection_lost(f"the cluster has no master for slot {slot}")
        return self.streams.get(address) or self._open(address)

    def _refresh(self) -> bool:
        """Read the slots again, from the first node that says them; returns whether one did."""
        cluster = self.cluster
        for address in dict.fromkeys([*self.streams, *cluster.addresses]):
            try:
                cluster.read(self.streams.get(address) or self._open(address))
            except (exceptions.RecoverableConnectionError, exceptions.ChannelError, OSError):
                if (found := self.streams.get(address)) is not None and not found.is_open:
                    raise  # what was under way there is unknown
                continue
            self._prune()
            return True
        return False

    def refresh_if_stale(self) -> None:
        """Read the slots again if there was news of a change."""
        if self.cluster.is_stale and self.cluster.may_read:
            self._refresh()

    def _prune(self) -> None:
        """Close connections to nodes that have no slots any more."""
        masters = self.cluster.slots.masters
        for address, stream in list(self.streams.items()):
            if address not in masters and not stream.is_waiting and len(self.streams) > 1:
                logger.info("Node %s:%s has no slots any more", *address)
                self._close(address)

    def drop(self) -> None:
        """Close all connections."""
        for stream in list(self.streams.values()):
            stream.drop()

    def cap_timeout(self, seconds: float) -> None:
        """From now on no reply is waited for longer."""
        self._timeout_cap = seconds
        for stream in list(self.streams.values()):
            stream.cap_timeout(seconds)

    @property
    def is_open(self) -> bool:
        """Whether no connection has ended."""
        return all(stream.is_open for stream in list(self.streams.values()))

    @property
    def is_waiting(self) -> bool:
        """Whether posted commands have no reply yet."""
        return bool(self._refused) or any(stream.is_waiting for stream in list(self.streams.values()))

    @property
    def is_suspect(self) -> bool:
        """Whether a node owes a reply for half of the time that it has."""
        return any(stream.is_suspect for stream in list(self.streams.values()))

    # --- commands that are waited for

    def perform(self, plan: Plan[T], timeout: float | None = None) -> T:
        """Do what a plan asks for, and return its result."""
        try:
            request = next(plan)
            while True:
                try:
                    result = self._fulfil(request, timeout)
                except BaseException as error:
                    request = plan.throw(error)
                else:
                    request = plan.send(result)
        except StopIteration as end:
            found: T = end.value
            return found

    def _fulfil(self, request: Any, timeout: float | None) -> list[Any] | None:
        if request is Wait.REPLIES:
            self.wait_for_replies()
        elif request is Wait.NEWS:
            self.poll()
        else:
            commands = list(request.commands)
            if len(commands) < request.replies:  # some of them were packed together
                commands = [command for data in commands for command in split(data)]
            return self.exchange(commands, timeout)
        return None

    def ask(self, data: bytes, timeout: float | None = None) -> Any:
        """Send a packed command and return the reply."""
        slot = self._cache.slot_of(data)
        address = None if slot is None else self.cluster.slots.owners[slot]
        stream = None if address is None else self.streams.get(address)
        if stream is None or self._refused:
            (reply,) = self.exchange((data,), timeout)
        else:
            (reply,) = stream.exchange((data,), 1, timeout)
            if reply.__class__ is ReplyError and refusal_of(str(reply), stream.address) is not None:
                (reply,) = self.exchange((data,), timeout)
            else:
                self.written.add(stream)
        if reply.__class__ is ReplyError:
            raise reply_error(str(reply))
        return reply

    def exchange(self, commands: Iterable[bytes], timeout: float | None = None) -> list[Any]:
        """Send packed commands where their keys are, and return their replies, error replies among them."""
        units = units_of(commands, self._cache)
        deadline = monotonic() + (timeout or self._timeout_cap or self.cluster.timeout)
        with self.lock:
            self.flush()
            left = units
            while left:
                left, pause = self._send(left, deadline, timeout)
                if left and monotonic() + pause >= deadline:
                    break
                if left:
                    self._pause(left, pause)
        return [reply for unit in units for reply in unit.replies]

    def _pause(self, left: Sequence[Unit], pause: float) -> None:
        if pause:
            sleep(pause)
        if any(unit.refusal is not None and unit.refusal.code not in ("ASK", "TRYAGAIN") for unit in left):
            self.refresh_if_stale()

    def _send(self, units: Sequence[Unit], deadline: float, timeout: float | None) -> tuple[list[Unit], float]:
        """Send units, all nodes at once; returns those that were refused, and the seconds until they may be again."""
        by_stream: dict[Stream, list[Unit]] = {}
        unserved: list[Unit] = []
        # Such a read is not tracked: ASKING and CLIENT CACHING hold for one command, each of them for the next.
        untracked = [unit for unit in units if unit.asks and unit.commands[0] == CACHING]
        for unit in units:
            try:
                stream = self._stream_for(unit)
            except (exceptions.RecoverableConnectionError, OSError) as error:
                if monotonic() + DOWN_PAUSE >= deadline:
                    raise
                logger.debug("slot %d cannot be served: %s", unit.slot, error)
                unit.refusal = Refusal("CLUSTERDOWN")
                unit.replies = [ReplyError(f"CLUSTERDOWN {error}")] * len(unit.commands)  # if the time ends now
                self.cluster.is_stale = True
                unserved.append(unit)
            else:
                unit.asked = stream.address
                by_stream.setdefault(stream, []).append(unit)
        if len(by_stream) == 1:
            ((stream, mine),) = by_stream.items()
            replies = stream.exchange([unit.data for unit in mine], sum(unit.count for unit in mine), timeout)
            share(mine, replies)
        elif by_stream:
            self._send_to_all(by_stream, timeout)
        for unit in untracked:
            self.cluster.left(unit.slot)
        self.written.update(stream for stream, mine in by_stream.items() if any(unit.refusal is None for unit in mine))
        refused = [unit for mine in by_stream.values() for unit in mine if unit.refusal is not None]
        for unit in refused:
            self._note(unit)
        pause = max((pause_of(unit) for unit in [*refused, *unserved]), default=0.0)
        order = {id(unit): place for place, unit in enumerate(units)}
        return sorted([*refused, *unserved], key=lambda unit: order[id(unit)]), pause

    def _send_to_all(self, by_stream: dict[Stream, list[Unit]], timeout: float | None) -> None:
        collected: list[tuple[list[Unit], list[Any]]] = []
        for stream, mine in by_stream.items():
            replies: list[Any] = []
            stream.post(b"".join([unit.data for unit in mine]), sum(unit.count for unit in mine), replies.append)
            collected.append((mine, replies))
        failure: BaseException | None = None
        for stream, (mine, replies) in zip(by_stream, collected, strict=True):
            try:
                stream.wait_for_replies(timeout)
                share(mine, replies)
            except (exceptions.ConnectionError, OSError) as error:
                failure = failure or error  # the others' answers count all the same
        if failure is not None:
            raise failure

    def _stream_for(self, unit: Unit) -> Stream:
        refusal = unit.refusal
        if refusal is not None and refusal.code == "ASK" and refusal.address is not None:
            return self.streams.get(refusal.address) or self._open(refusal.address)
        return self.stream_at(unit.slot)

    def _note(self, unit: Unit) -> None:
        """Learn from a refusal."""
        refusal = unit.refusal
        assert refusal is not None
        if refusal.code == "MOVED" and refusal.address is not None:
            self.cluster.moved(unit.slot, refusal.address)
        elif refusal.code not in ("ASK", "TRYAGAIN"):
            self.cluster.is_stale = True

    def wait_for_replicas(self, count: int, timeout: float | None) -> None:
        """Wait until so many replicas have what was sent, on each node of ``written``. Raises MessageNacked."""
        timeout = timeout or self._timeout_cap or self.cluster.timeout
        data = pack_command(("WAIT", count, max(int(timeout * 500), 1)))  # ms: half of the time, the rest for the reply
        with self.lock:
            for stream in list(self.written):
                (reply,) = stream.exchange((data,), 1, timeout)
                if isinstance(reply, ReplyError):
                    raise reply_error(str(reply))
                if reply < count:
                    host, port = stream.address
                    text = f"{reply} replicas of {host}:{port} have the message, {count} are to have it"
                    raise exceptions.MessageNacked(text)

    # --- commands that are not waited for

    def post(self, data: bytes, replies: int, on_reply: OnReply, more: bool = False, may_repeat: bool = False) -> None:
        """Send packed commands of one slot now. Their replies come later, each to ``on_reply``."""
        slot = self._cache.slot_of(data)
        assert slot is not None, "commands without a key"
        post = Post(self, Unit(slot, [data] if replies == 1 else split(data)), replies, on_reply, may_repeat)
        post.deadline = monotonic() + self.cluster.timeout
        self._post(post, more)

    def _post(self, post: Post, more: bool = False) -> None:
        unit = post.unit
        try:
            stream = self._stream_for(unit)
        except (exceptions.RecoverableConnectionError, OSError):
            if monotonic() >= post.deadline:
                raise
            unit.refusal = Refusal("CLUSTERDOWN")
            self.cluster.is_stale = True
            self._later(post)
            return
        unit.asked = stream.address
        data = unit.data if unit.refusal is not None else b"".join(unit.commands)
        post.replies = unit.count
        stream.post(data, post.replies, post, more, post.may_repeat)

    def note_refused(self, post: Post) -> bool:
        """Have what was refused sent again, unless its time is over; nothing is sent from here."""
        if monotonic() >= post.deadline:
            return False
        self._note(post.unit)
        self._later(post)
        return True

    def _later(self, post: Post) -> None:
        post.due = monotonic() + pause_of(post.unit)
        self._refused.append(post)

    @property
    def unanswered(self) -> list[Posted]:
        """The posted commands that have not all of their replies, and may be sent again: none without a key (PING)."""
        posted = [each for stream in list(self.streams.values()) for each in stream.unanswered]
        repeatable = [post for post in list(self._refused) if post.may_repeat]
        refused = [(post, data, 1) for post in repeatable for data in post.unit.commands]
        apart = [(on_reply, data, 1) for on_reply, again, _ in posted for data in split(again or b"")]
        return [*(each for each in apart if self._cache.slot_of(each[1]) is not None), *refused]

    def post_later(self, data: bytes, replies: int, on_reply: OnReply) -> None:
        """Send packed commands of one slot soon: for replies on whose arrival nothing may be sent."""
        slot = self._cache.slot_of(data)
        assert slot is not None, "commands without a key"
        post = Post(self, Unit(slot, [data]), replies, on_reply)
        post.deadline, post.due = monotonic() + self.cluster.timeout, monotonic()
        self._refused.append(post)

    def flush(self) -> None:
        """Send again what was refused and is due."""
        if not self._refused:
            return
        with self.lock:
            self.refresh_if_stale()
            now = monotonic()
            for _ in range(len(self._refused)):
                post = self._refused.popleft()
                if post.due > now:
                    self._refused.append(post)
                    continue
                try:
                    self._post(post)
                except BaseException:
                    self._refused.append(post)  # for the next connection, if it may be repeated
                    raise

    @property
    def next_flush(self) -> float | None:
        """Seconds until something is sent again; None where nothing waits for that."""
        if not self._refused:
            return None
        return max(min(post.due for post in list(self._refused)) - monotonic(), 0.0)

    def wait_for_replies(self) -> None:
        """Wait for the replies to all posted commands."""
        deadline = monotonic() + (self._timeout_cap or self.cluster.timeout)
        with self.lock:
            while True:
                self.flush()
                for stream in list(self.streams.values()):
                    stream.wait_for_replies()
                pause = self.next_flush
                if pause is None:
                    return
                if monotonic() >= deadline:
                    raise connection_lost("the cluster did not answer in time")
                sleep(pause)

    def poll(self) -> None:
        """Read what has arrived, without waiting, and send again what was refused."""
        for stream in list(self.streams.values()):
            stream.poll()
        if self._refused:
            self.flush()
        elif self.cluster.is_stale:
            with self.lock:
                self.refresh_if_stale()

    def keep_alive(self) -> float | None:
        """Send a PING where one is due. Returns the seconds until the next, None for never."""
        pauses = [left for stream in list(self.streams.values()) if (left := stream.keep_alive()) is not None]
        return min(pauses, default=None)
