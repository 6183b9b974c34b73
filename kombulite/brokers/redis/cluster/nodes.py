"""The nodes of a Redis Cluster as if they were one connection: commands go where their keys are.

Redirections are dealt with here and nowhere else. A node refuses what belongs to another (MOVED, ASK), or cannot be
served at the moment (TRYAGAIN, CLUSTERDOWN, LOADING, ...); it has done nothing then, so the same is sent again where it
belongs, until there is an answer or the time is over.

    exchange, perform   waits: sends to all nodes at once, then sends again what was refused, until one deadline
    post                does not wait: what was refused goes into ``_refused``, and is sent again by ``poll``

Between two tries the lock is free, and while a node is opened or is slow to reply: one node keeps no other waiting. If
the connection to a node is lost, those to the others go on. What may be repeated is sent again, what was sent to the
lost one and is waited for ends with an error, and what was posted gets ``Lost`` for its reply.

What is sent again is a unit: a command, a transaction from MULTI to EXEC, or CLIENT CACHING with the command after it.

The class is wider than others: it stands for one ``Stream`` wherever a single server has that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from logging import getLogger
from math import inf
from time import monotonic
from typing import Any, TypeVar

from hiredis import ReplyError

from kombulite import exceptions
from kombulite.brokers.redis.cluster.gather import MIN_TRY, gather, left_until
from kombulite.brokers.redis.cluster.known import Cluster
from kombulite.brokers.redis.cluster.openings import Openings
from kombulite.brokers.redis.cluster.pauses import Pauses
from kombulite.brokers.redis.cluster.posts import Ack, AckBatch, Post
from kombulite.brokers.redis.cluster.slots import Address, Refusal, SlotCache, refusal_of
from kombulite.brokers.redis.cluster.stream import NodeStream
from kombulite.brokers.redis.cluster.units import CACHING, DOWN_PAUSE, Unit, pause_of, share, split, units_of
from kombulite.brokers.redis.errors import ServerClosed, connection_lost, reply_error
from kombulite.brokers.redis.leases import ACK_REPLIES
from kombulite.brokers.redis.plans import LOST, Plan, Wait, check_replicas, perform, wait_command
from kombulite.brokers.redis.replies import OnReply, Posted, Unreached
from kombulite.brokers.redis.stream import IDLE, MIN_PING_INTERVAL
from kombulite.utils.compat import register_after_fork
from kombulite.utils.locks import Lock

logger = getLogger("kombulite.brokers.redis")

T = TypeVar("T")
#: Seconds until a script for queues of several slots is tried again.
SCRIPT_PAUSE = 1.0
#: Seconds that a command which is not waited for waits for a connection to be opened, and then is sent later.
OPEN_PATIENCE = 0.1
#: The same for one that is waited for, before the slots are read again: the node may have been replaced.
OPEN_TRY = 0.5
#: Seconds for a node to say the slots, before another one is asked.
REFRESH_TIMEOUT = 1.0
#: Seconds for one look at the replies of a node that does not answer.
LOOK = 0.05
#: What ends the connection to a node.
LOSSES = (exceptions.ConnectionError, OSError)


class Nodes:
    """Connections to the nodes of a cluster, one each, opened as they are needed.

    Args:
        cluster: What is known of it.
        on_push: Gets what a node says unasked.
        on_opened: Makes a new connection ready: ``on_opened(stream)``.
        on_dropped: Is told of a connection that is not needed any more.
        has_one_slot: Whether all keys are in one slot: there are no others to go on with if its node is lost.
        meanwhile: Called now and then while a thread waits for a node that is slow or cannot be reached.
    """

    def __init__(
        self,
        cluster: Cluster,
        on_push: OnReply,
        on_opened: Callable[[NodeStream], object],
        on_dropped: Callable[[NodeStream], object],
        has_one_slot: bool = False,
        meanwhile: Callable[[], object] | None = None,
    ) -> None:
        self.protocol = 3
        self._has_one_slot = has_one_slot
        #: One for all streams: a claim that comes in changes what the others see.
        self.lock = Lock()
        # Of threads until they send again; notified of new slots.
        self._pauses = Pauses(self.lock, meanwhile)
        self._is_dropped = False
        self.cluster = cluster
        self.streams: dict[Address, NodeStream] = {}
        self.patience = inf  # seconds that a command waits for its slot to be served, within its deadline
        self._on_push = on_push
        self._on_opened = on_opened
        self._on_dropped = on_dropped
        self._cache = SlotCache()
        self._refused: dict[Post, None] = {}  # in their order; each until it is sent
        self._timeout_cap: float | None = None
        self._written = threading.local()  # ``streams``: those that have taken commands of this thread
        self._notes_written = False
        self._scripts_from = 0.0  # when scripts for queues of several slots are tried again
        self.before_send: Callable[[float | None], object] | None = None  # sends what waits for the next command
        self._openings = Openings(self._pauses, self._connect, self._take)
        self._max_ping_interval = inf  # where nodes close connections sooner than they are asked
        self._is_parents = False  # in a forked child
        register_after_fork(self, Nodes._leave_to_parent)

    def _leave_to_parent(self) -> None:
        self._is_parents = True

    # --- connections

    def connect(self) -> None:
        """Open a connection to some node, and read the slots there. Raises what keeps all of them away."""
        failure: Exception | None = None
        addresses = self.cluster.addresses
        deadline = monotonic() + self.cluster.connect_timeout
        for place, address in enumerate(addresses):
            share = left_until(deadline) / (len(addresses) - place)
            try:
                self.cluster.read(self._open(address, share), share)
                return
            except exceptions.AccessRefused:
                raise
            except (exceptions.RecoverableConnectionError, OSError) as error:
                failure = failure or error
                self._close(address)
        assert failure is not None
        raise failure

    def _open(self, address: Address, timeout: float, waits: bool = True) -> NodeStream:
        """Return a connection, opened within so many seconds. ``waits``: also for a try that others have begun."""
        if self._is_parents:
            raise connection_lost("this connection belongs to the parent process")
        with self.lock:
            found = self.streams.get(address)
            if found is None:
                if self._is_dropped:
                    raise connection_lost("connection already closed")
                self._openings.open(address, timeout, waits)
                found = self.streams.get(address)
            if found is None or not found.is_open:
                raise connection_lost(f"the connection to {address[0]}:{address[1]} was closed when it had been opened")
            return found

    def _connect(self, address: Address) -> NodeStream:
        """Open a connection, in a thread of its own."""
        pushes: list[NodeStream] = []
        stream = self.cluster.connector(address).open(lambda message: self._take_push(pushes[0], message))
        pushes.append(stream)
        stream.address = address
        stream.ping_interval = min(stream.ping_interval, self._max_ping_interval)
        if self._timeout_cap is not None:
            stream.cap_timeout(self._timeout_cap)
        try:
            self._on_opened(stream)
        except BaseException:
            stream.drop()
            self._on_dropped(stream)
            raise
        return stream

    def _take(self, stream: NodeStream) -> None:
        """Use a connection that was opened."""
        if self._is_dropped:
            stream.drop()
            return
        stream.lock, stream.pauses = self.lock, self._pauses
        self.streams[stream.address] = stream

    def _take_push(self, stream: NodeStream, message: list[Any]) -> None:
        self._on_push(message)

    def _lose(self, stream: NodeStream, error: Exception) -> None:
        """Go on without a connection that broke."""
        if self._is_parents:
            raise error
        with self.lock:
            if self._is_dropped or self.streams.get(stream.address) is not stream:
                stream.drop()
                return
            idle = monotonic() - stream.used_at
            was_idle = isinstance(error, ServerClosed) and idle > IDLE and stream.may_repeat
            if self._has_one_slot and not was_idle:
                stream.drop()
                raise error
            log = logger.info if was_idle else logger.warning
            log("The connection to node %s:%s was lost, those to others go on: %s", *stream.address, error)
            if was_idle and stream.ping_interval:
                self._max_ping_interval = min(self._max_ping_interval, max(idle / 2, MIN_PING_INTERVAL))
            posted = stream.take_posted()
            self._close(stream.address)
            self.cluster.is_stale = True
            for on_reply in dict.fromkeys(on_reply for on_reply, _, _ in posted):
                if isinstance(on_reply, (Post, AckBatch)):
                    on_reply.lost()
            self._pauses.notify_all()  # threads that wait for replies find it closed

    def _try(self, stream: NodeStream, step: Callable[..., T], *arguments: Any) -> T | None:
        """Do something with a connection that is lost if it fails."""
        try:
            return step(*arguments)
        except LOSSES as error:
            self._lose(stream, error)
            if self._is_dropped:
                raise
            return None

    def _close(self, address: Address) -> None:
        stream = self.streams.pop(address, None)
        if stream is not None:
            stream.drop()
            self._on_dropped(stream)

    def _stream_to(self, address: Address | None, slot: int, timeout: float, waits: bool = True) -> NodeStream:
        """Return the connection to a node, within so many seconds. Raises what keeps it away."""
        if address is None:
            self.cluster.is_stale = True
            raise connection_lost(f"the cluster has no master for slot {slot}")
        return self._living(address) or (self._open(address, timeout) if waits else self._open(address, timeout, False))

    def _living(self, address: Address | None) -> NodeStream | None:
        """Return the connection to a node, if there is one that has not ended while it was idle."""
        stream = None if address is None else self.streams.get(address)
        if stream is None or stream.is_alive():
            return stream
        self._lose(stream, ServerClosed("the node closed the connection"))
        return None

    def _refresh(self, deadline: float) -> bool:
        """Read the slots again, from the first node that says them; returns whether one did."""
        cluster = self.cluster
        idle_first = sorted(self.streams, key=lambda address: self.streams[address].is_waiting)
        for address in dict.fromkeys([*idle_first, *cluster.addresses]):
            left = deadline - monotonic()
            if left < MIN_TRY:
                break
            try:
                stream = self._living(address) or self._open(address, min(left, REFRESH_TIMEOUT))
                cluster.read(stream, min(left_until(deadline), REFRESH_TIMEOUT))
            except (*LOSSES, exceptions.ChannelError) as error:
                if (found := self.streams.get(address)) is not None and not found.is_open:
                    self._lose(found, error)
                continue
            self._prune()
            self._pauses.notify_all()
            return True
        return False

    def refresh_if_stale(self, deadline: float) -> None:
        """Read the slots again if there was news of a change."""
        if self.cluster.is_stale and self.cluster.may_read:
            self._refresh(deadline)

    def _prune(self) -> None:
        """Close connections to nodes that have no slots any more."""
        masters = self.cluster.slots.masters
        for address, stream in list(self.streams.items()):
            if address not in masters and not stream.is_waiting and len(self.streams) > 1:
                logger.info("Node %s:%s has no slots any more", *address)
                self._close(address)

    def drop(self) -> None:
        """Close all connections, for good."""
        self._is_dropped = True
        for stream in list(self.streams.values()):
            stream.drop()

    def cap_timeout(self, seconds: float) -> None:
        """From now on no reply is waited for longer."""
        self._timeout_cap = seconds
        for stream in list(self.streams.values()):
            stream.cap_timeout(seconds)

    def check(self) -> None:
        """Raise RecoverableConnectionError if the connection is closed, or the parent's of this process.

        It comes before the lock: in a forked child a thread of the parent may hold that for ever.
        """
        if self._is_dropped or self._is_parents:
            raise connection_lost("connection already closed")

    @property
    def is_open(self) -> bool:
        """Whether it is in use: connections to single nodes may end meanwhile, unless that means all of it."""
        streams = list(self.streams.values()) if self._has_one_slot else []
        return not self._is_dropped and all(stream.is_open for stream in streams)

    @property
    def is_waiting(self) -> bool:
        """Whether posted commands have no reply yet."""
        return bool(self._refused) or any(stream.is_waiting for stream in list(self.streams.values()))

    @property
    def is_suspect(self) -> bool:
        """Whether a node owes a reply for half of the time that it has."""
        return any(stream.is_suspect for stream in list(self.streams.values()))

    # --- commands that are waited for

    def perform(self, plan: Plan[T], timeout: float | None = None, patience: float | None = None) -> T:
        """Do all that a plan asks for within so many seconds, and return its result.

        ``patience``: seconds that a command waits for its slot to be served, if not as long as others. Without a
        ``timeout`` each of the plan's requests has the time that the cluster has for one.
        """
        fulfil = self._fulfil if patience is None else partial(self._fulfil, patience=patience)
        return perform(plan, fulfil, monotonic() + timeout if timeout else None)

    def _fulfil(self, request: Any, deadline: float | None, patience: float | None = None) -> list[Any] | None:
        if deadline is not None and monotonic() >= deadline:
            raise connection_lost("the cluster did not answer in time")  # nothing is sent, so no connection is given up
        if request is Wait.REPLIES:
            self._look_for_replies()
        elif request is Wait.NEWS:
            self.poll(None if deadline is None else left_until(deadline))
        else:
            commands = list(request.commands)
            if len(commands) < request.replies:  # some of them were packed together
                commands = [command for data in commands for command in split(data)]
            units = units_of(commands, self._cache)
            try:
                patience = request.patience if patience is None else patience
                return self._exchange(units, self._deadline(None) if deadline is None else deadline, patience)
            except (exceptions.ConnectionError, OSError):
                if request.partial is not None:
                    request.partial.extend(
                        reply for unit in units for reply in unit.replies or [LOST] * len(unit.commands)
                    )
                raise
        return None

    def begin(self, deadline: float | None = None) -> None:
        """Send what waits for the next command, until a deadline. Raises what ``check`` does."""
        self.check()
        if self.before_send is not None:
            with self.lock:
                if self.before_send is not None:
                    self.before_send(deadline)

    def _deadline(self, timeout: float | None) -> float:
        return monotonic() + (timeout or self._timeout_cap or self.cluster.timeout)

    def ask(self, data: bytes, timeout: float | None = None) -> Any:
        """Send a packed command and return the reply."""
        slot = self._cache.slot_of(data)
        assert slot is not None, "a command without a key"
        return self.ask_at(slot, data, timeout)

    def ask_at(self, slot: int, data: bytes, timeout: float | None = None) -> Any:
        """Do what ``ask`` does, where the slot is known."""
        owner, reply, now = self.cluster.slots.owners[slot], None, monotonic()
        left = timeout or self._timeout_cap or self.cluster.timeout
        deadline = now + left
        stream = None if owner is None else self.streams.get(owner)
        # A connection that was just used is not looked at, and the stream does what ``begin`` checks.
        if stream is None or now - stream.used_at > IDLE or not stream.is_open or self.before_send is not None:
            self.begin(deadline)
            stream = self._living(self.cluster.slots.owners[slot])
            left = left_until(deadline)
        if stream is not None and not self._refused:
            try:
                reply = stream.reply_to(data, left)
            except LOSSES as error:
                self._lose(stream, error)
                raise
            if reply.__class__ is not ReplyError:
                if self._notes_written:
                    self._note_written(stream)
                return reply
        if reply is None or refusal_of(str(reply), ("", 0)) is not None:
            (reply,) = self._exchange([Unit(slot, [data])], deadline)
        if reply.__class__ is ReplyError:
            raise reply_error(str(reply))
        return reply

    def exchange(self, commands: Iterable[bytes], timeout: float | None = None) -> list[Any]:
        """Send packed commands where their keys are, and return their replies, error replies among them."""
        return self._exchange(units_of(commands, self._cache), self._deadline(timeout))

    def _exchange(self, units: list[Unit], deadline: float, patience: float | None = None) -> list[Any]:
        patience = self.patience if patience is None else patience
        self.begin(deadline)
        with self.lock:
            self.flush(deadline)
            left, last_try = units, min(deadline - MIN_TRY, monotonic() + patience)
            while left:
                left, pause = self._send(left, deadline, max(patience, OPEN_PATIENCE))
                if left and monotonic() + pause > last_try:
                    break
                if left:
                    self._pause(left, pause, deadline)
        return [reply for unit in units for reply in unit.replies]

    def _pause(self, left: Sequence[Unit], pause: float, deadline: float) -> None:
        if pause:
            self._pauses.wait(pause)
        if any(unit.refusal is not None and unit.refusal.code not in ("ASK", "TRYAGAIN") for unit in left):
            self.refresh_if_stale(deadline)

    def _send(self, units: Sequence[Unit], deadline: float, patience: float) -> tuple[list[Unit], float]:
        """Send units, all nodes at once; returns those that were refused, and the seconds until they may be again.

        ``patience``: seconds to wait for a connection to be opened, at most.
        """
        by_stream: dict[NodeStream, list[Unit]] = {}
        unserved: list[Unit] = []
        reached: dict[Address | None, NodeStream] = {}
        unreached: dict[Address | None, Exception] = {}
        failure: Exception | None = None
        is_alone = all(unit.slot == units[0].slot for unit in units)
        # Such a read is not tracked: ASKING and CLIENT CACHING hold for one command, each of them for the next.
        untracked = [unit for unit in units if unit.asks and unit.commands[0] == CACHING]
        for unit in units:
            unit.replies = []
            address = self._address_for(unit)
            try:
                if address in unreached:  # another try would take its time as well
                    raise unreached[address]
                if address not in reached:
                    # Opening a connection leaves half of the time to the nodes that answer.
                    left = left_until(deadline) / (1 if is_alone else 2)
                    reached[address] = self._stream_to(address, unit.slot, min(left, patience, OPEN_TRY))
            except (exceptions.RecoverableConnectionError, OSError) as error:
                unreached[address] = error
                self.cluster.is_stale = True
                if self._is_dropped or monotonic() + DOWN_PAUSE + MIN_TRY > deadline:
                    failure = failure or error  # when the others have got theirs
                    continue
                logger.debug("slot %d cannot be served: %s", unit.slot, error)
                unit.refusal = Refusal("CLUSTERDOWN")
                unit.replies = [ReplyError(f"CLUSTERDOWN {error}")] * len(unit.commands)  # if the time ends now
                unserved.append(unit)
            else:
                stream = reached[address]
                unit.asked = stream.address
                by_stream.setdefault(stream, []).append(unit)
        sent = {stream: [each for unit in mine for each in unit.packed] for stream, mine in by_stream.items()}
        gather(sent, deadline, lambda stream, replies: share(by_stream[stream], replies), self._lose)
        if failure is not None:
            raise failure
        for unit in untracked:
            self.cluster.left(unit.slot)
        refused = []
        for stream, mine in by_stream.items():
            if self._notes_written and any(unit.refusal is None for unit in mine):
                self._note_written(stream)
            refused += [unit for unit in mine if unit.refusal is not None]
        for unit in refused:
            self._note(unit)
        if not (refused or unserved):
            return [], 0.0
        pause = max(pause_of(unit) for unit in [*refused, *unserved])
        order = {id(unit): place for place, unit in enumerate(units)}
        return sorted([*refused, *unserved], key=lambda unit: order[id(unit)]), pause

    def _address_for(self, unit: Unit) -> Address | None:
        refusal = unit.refusal
        asking = None if refusal is None or refusal.code != "ASK" else refusal.address
        return asking or self.cluster.slots.owners[unit.slot]

    def _note(self, unit: Unit) -> None:
        """Learn from a refusal."""
        refusal = unit.refusal
        assert refusal is not None
        if refusal.code == "MOVED" and refusal.address is not None:
            self.cluster.moved(unit.slot, refusal.address)
        elif refusal.code not in ("ASK", "TRYAGAIN"):
            self.cluster.is_stale = True

    # --- replicas

    def note_written(self) -> None:
        """Note from now on which nodes take commands of this thread."""
        self._notes_written = True
        self._written.streams = set()

    def _note_written(self, stream: NodeStream) -> None:
        streams: set[NodeStream] | None = getattr(self._written, "streams", None)
        if streams is not None:
            streams.add(stream)

    def wait_for_replicas(self, count: int, timeout: float | None) -> None:
        """Wait until so many replicas have what was sent since ``note_written``, on each node. Raises MessageNacked."""
        deadline = self._deadline(timeout)
        data = [wait_command(count, deadline - monotonic())]
        self.check()
        with self.lock:
            reached: dict[NodeStream, Any] = {}
            gather(dict.fromkeys(self._written.streams, data), deadline, reached.__setitem__, self._lose)
            for stream, (reply,) in reached.items():
                check_replicas(reply, count, "{}:{}".format(*stream.address))

    # --- commands that are not waited for

    def post(
        self,
        data: bytes,
        replies: int,
        on_reply: OnReply,
        more: bool = False,
        may_repeat: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Send packed commands of one slot now. Their replies come later, each to ``on_reply``."""
        slot = self._cache.slot_of(data)
        assert slot is not None, "commands without a key"
        self.post_at(slot, data, replies, on_reply, more, may_repeat, timeout)

    def post_at(
        self,
        slot: int,
        data: bytes,
        replies: int,
        on_reply: OnReply,
        more: bool = False,
        may_repeat: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Do what ``post`` does, where the slot is known."""
        post = self._made(slot, data, replies, on_reply, may_repeat)
        stream = self._living(self.cluster.slots.owners[slot])
        if stream is None:
            self._post(post, more)
        else:
            post.asked = stream.address
            self._post_over(stream, post, data, replies, more, timeout)

    def post_acks(self, acks: Iterable[Ack]) -> None:
        """Post acknowledgements, in one step for each node."""
        self.check()
        with self.lock:
            by_stream: dict[NodeStream, list[Ack]] = {}
            streams: dict[Address | None, NodeStream | None] = {}
            owners = self.cluster.slots.owners
            for ack in acks:
                address = owners[ack[0]]
                if address not in streams:
                    streams[address] = self._living(address)
                stream = streams[address]
                if stream is None:
                    self._post(self._post_of(ack))
                else:
                    by_stream.setdefault(stream, []).append(ack)
            for stream, mine in by_stream.items():
                batch = AckBatch(mine, stream.address, self._post_of)
                try:
                    stream.post_batch(batch)
                except LOSSES as error:
                    self._lose(stream, error)
                    batch.lost()

    def _post_of(self, ack: Ack) -> Post:
        slot, data, on_reply = ack
        return self._made(slot, data, ACK_REPLIES, on_reply, True)

    def _post_over(
        self, stream: NodeStream, post: Post, data: bytes, replies: int, more: bool, timeout: float | None
    ) -> None:
        try:
            stream.post(data, replies, post, more, post.may_repeat, timeout)
        except LOSSES as error:
            self._refused.pop(post, None)
            self._lose(stream, error)
            if self._is_dropped:
                raise
            post.lost()  # if it was not among what the connection has
        else:
            if self._refused:
                self._refused.pop(post, None)

    def post_once(self, slot: int, data: bytes, on_reply: OnReply, later: bool = False) -> None:
        """Send a packed command now, or ``later``: for replies on whose arrival nothing may be sent.

        A slot that is on its way or has no master is not waited for: that is the reply then.
        """
        post = self._made(slot, data, 1, on_reply, False)
        post.is_patient = False
        if later:
            self._refused[post] = None
        else:
            self._post(post)

    def post_to_master(self, slot: int, data: bytes, on_reply: OnReply) -> None:
        """Send a packed command without keys to the master of a slot. What keeps it away is its reply."""
        post = self._made(slot, data, 1, on_reply, False)
        post.is_patient = post.follows = False
        self._post(post)

    @property
    def takes_scripts(self) -> bool:
        """Whether nodes take scripts for queues of several slots, as far as is known."""
        return monotonic() >= self._scripts_from

    def note_refused_script(self) -> None:
        """Note that a node refused such a script: a slot has left it, is on its way, or it takes none."""
        self._scripts_from = monotonic() + SCRIPT_PAUSE
        self.cluster.is_stale = True

    def _made(self, slot: int, data: bytes, replies: int, on_reply: OnReply, may_repeat: bool) -> Post:
        deadline = monotonic() + self.cluster.timeout
        return Post(slot, data, replies, on_reply, may_repeat, deadline, self._note_refused, self._later)

    def _post(self, post: Post, more: bool = False, deadline: float | None = None) -> None:
        try:
            deadline = min(post.deadline, self._deadline(None) if deadline is None else deadline)
            address = self.cluster.slots.owners[post.slot] if post.unit is None else self._address_for(post.unit)
            stream = self._stream_to(address, post.slot, min(left_until(deadline), OPEN_PATIENCE), waits=False)
        except (exceptions.RecoverableConnectionError, OSError) as error:
            if self._is_dropped:
                raise
            self.cluster.is_stale = True
            if post.may_repeat or (post.is_patient and monotonic() < post.deadline):
                post.refused().refusal = Refusal("CLUSTERDOWN")
                self._later(post)
            else:
                self._refused.pop(post, None)
                post.fail(Unreached(f"CLUSTERDOWN {error}"))
            return
        data, replies = post.begin(stream.address)
        self._post_over(stream, post, data, replies, more, left_until(deadline))

    def _note_refused(self, post: Post) -> bool:
        """Have what was refused sent again, unless its time is over; nothing is sent from here."""
        self._note(post.refused())
        if not post.follows or monotonic() >= post.deadline or not (post.is_patient or pause_of(post.refused()) == 0):
            return False
        self._later(post)
        return True

    def _later(self, post: Post) -> None:
        post.due = monotonic() + pause_of(post.refused())
        self._refused[post] = None

    @property
    def unanswered(self) -> list[Posted]:
        """The posted commands that have not all of their replies, and may be sent again: none without a key (PING)."""
        posted = [each for stream in list(self.streams.values()) for each in stream.unanswered]
        repeatable = [post for post in list(self._refused) if post.may_repeat]
        refused = [(post, data, 1) for post in repeatable for data in post.refused().commands]
        apart: list[Posted] = []
        for on_reply, again, _ in posted:
            acks = on_reply.unanswered if isinstance(on_reply, AckBatch) else [(0, again or b"", on_reply)]
            apart += [(each, data, 1) for _, commands, each in acks for data in split(commands)]
        return [*(each for each in apart if self._cache.slot_of(each[1] or b"") is not None), *refused]

    def flush(self, deadline: float) -> None:
        """Send again what was refused and is due."""
        if not self._refused:
            return
        self.check()
        with self.lock:
            self.refresh_if_stale(deadline)
            now = monotonic()
            for post in list(self._refused):
                if post.due > now or post not in self._refused:  # another thread sends it, or did while this one waited
                    continue
                post.due = inf
                try:
                    self._post(post, deadline=deadline)
                except BaseException:
                    post.due = now
                    self._refused[post] = None  # for the next connection, if it may be repeated
                    raise

    @property
    def next_flush(self) -> float | None:
        """Seconds until something is sent again, or may have been by another thread; None where nothing waits."""
        due = min((post.due for post in list(self._refused)), default=None)
        return None if due is None else min(max(due - monotonic(), 0.0), OPEN_PATIENCE)

    def wait_for_replies(self) -> None:
        """Wait for the replies to all posted commands."""
        self.begin()
        deadline = self._deadline(None)
        with self.lock:
            while True:
                self.flush(deadline)
                for stream in list(self.streams.values()):
                    self._try(stream, stream.wait_for_replies, left_until(deadline))
                pause = self.next_flush
                if pause is None:
                    return
                if monotonic() >= deadline:
                    raise connection_lost("the cluster did not answer in time")
                self._pauses.wait(pause)

    def linger(self, seconds: float) -> None:
        """Give the nodes so many seconds to answer what was posted, and to do what others have refused."""
        self.begin()
        end = monotonic() + seconds
        with self.lock:
            while self.is_waiting and (left := end - monotonic()) > 0:
                self._look_for_replies()
                if (pause := self.next_flush) is not None:
                    self._pauses.wait(min(pause, left))

    def _look_for_replies(self) -> None:
        """Wait for more replies to posted commands, for a moment."""
        self.check()
        with self.lock:
            self.flush(monotonic() + LOOK)
            for stream in list(self.streams.values()):
                self._try(stream, stream.look, LOOK)

    def poll(self, timeout: float | None = None) -> None:
        """Send what waits for the next command, and do what ``read`` does, within so many seconds."""
        self.begin()
        self.read(timeout)

    def read(self, timeout: float | None = None) -> None:
        """Read what has arrived, without waiting, and send again what was refused, within so many seconds."""
        self.check()
        for stream in list(self.streams.values()):
            self._try(stream, stream.poll)
        self._catch_up(timeout)

    def poll_at(self, slot: int, timeout: float | None = None) -> None:
        """Do what ``poll`` does, for what the master of a slot has said."""
        address = self.cluster.slots.owners[slot]
        stream = None if address is None else self.streams.get(address)
        if stream is not None:
            try:
                stream.poll()
            except LOSSES as error:
                self._lose(stream, error)
        if self._refused or self.cluster.is_stale:
            self._catch_up(timeout)

    def _catch_up(self, timeout: float | None) -> None:
        if self._refused:
            self.flush(self._deadline(timeout))
        elif self.cluster.is_stale:
            self.check()
            with self.lock:
                self.refresh_if_stale(self._deadline(timeout))

    def keep_alive(self) -> float | None:
        """Send a PING where one is due. Returns the seconds until the next, None for never."""
        pauses = [self._try(stream, stream.keep_alive) for stream in list(self.streams.values())]
        return min((pause for pause in pauses if pause is not None), default=None)
