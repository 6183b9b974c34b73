"""Acks of messages that were claimed together leave as one command, in time, and are not lost with the connection."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import pytest

from kombulite import Connection, Consumer, Producer, Queue, exceptions
from kombulite._core import Lease
from kombulite.brokers.redis import held_acks, maintainer
from kombulite.brokers.redis.cluster import ChoreNodes
from kombulite.brokers.redis.cluster.held_acks import ClusterHeldAcks
from kombulite.brokers.redis.held_acks import HeldAcks
from kombulite.brokers.redis.plans import Exchange, Plan, Wait
from kombulite.utils.locks import Lock
from tests.proxy import Proxy
from tests.redis.conftest import drain
from tests.servers import wait_until

pytestmark = pytest.mark.usefixtures("killed_is_lost")

MESSAGES = 2 * held_acks.MIN_FOLLOWING


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let acks wait for those that follow, however slow this machine is."""
    monkeypatch.setattr(maintainer, "FLUSH_DELAY", 600.0)


def fill(connection: Any, name: str) -> None:
    Queue(name)(connection.channel()).declare()
    Producer(connection.channel()).publish_many(range(MESSAGES), routing_key=name)


def consume(connection: Any, name: str, count: int, callback: Any = None, got: list[int] | None = None) -> Consumer:
    """Consume so many messages and acknowledge each; then call back with the last."""
    got = [] if got is None else got

    def handle(body: Any, message: Any) -> None:
        message.ack()
        got.append(body)
        if len(got) == count and callback is not None:
            callback(message)

    consumer = Consumer(connection.channel(), Queue(name), callbacks=[handle], prefetch_count=MESSAGES)
    consumer.consume()
    drain(connection, lambda: len(got) >= count)
    return consumer


def are_settled(client: Any) -> None:
    wait_until(lambda: not client.hlen("unacked") and not client.zcard("unacked_index"), 20, "they are leased still")


@pytest.mark.usefixtures("patient")
def test_acks_of_messages_that_were_claimed_together_are_few_commands(ours, client, name):
    fill(ours(), name)
    connection = ours()
    client.config_resetstat()
    consumer = consume(connection, name, MESSAGES)
    are_settled(client)
    calls = client.info("commandstats")
    assert calls["cmdstat_zrem"]["calls"] < MESSAGES / 4
    consumer.cancel()


def test_an_ack_leaves_in_time_while_a_callback_goes_on(ours, client, name):
    fill(ours(), name)
    left: list[int] = []

    def wait(message: Any) -> None:
        wait_until(lambda: client.hlen("unacked") == MESSAGES - 2, 20, "the acks wait still")
        left.append(client.llen(name))

    consumer = consume(ours(), name, 2, wait)
    assert left == [0]
    consumer.cancel()


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("step", ["publish", "get", "collect", "close", "exit"])
def test_acks_that_wait_leave_before_what_is_sent_next(ours, client, name, step):
    fill(ours(), name)
    connection = ours()
    consumer = consume(connection, name, 2)
    assert client.hlen("unacked") == MESSAGES  # they wait
    if step == "publish":
        Producer(consumer.channel).publish("x", routing_key=f"{name}.other")
    elif step == "get":
        assert consumer.channel.basic_get(f"{name}.other") is None
    elif step == "collect":
        connection.collect()
    elif step == "close":
        connection.close()
    else:
        held_acks._flush_all()
    if step == "close":
        are_settled(client)
        assert client.llen(name) == MESSAGES - 2
    else:
        # The rest stays, or is put back by the other connection.
        wait_until(lambda: client.hlen("unacked") + client.llen(name) == MESSAGES - 2, 20, "they wait still")


@pytest.mark.usefixtures("patient")
def test_publish_has_its_own_time_for_acks_that_go_before_it(redis_url, client, name, monkeypatch):
    """A server that answers nothing has replies outstanding, for which the acks wait: without a limit, in this case."""
    with Proxy(int(redis_url.rpartition(":")[2].partition("/")[0])) as proxy:
        options = {"socket_timeout": None, "health_check_interval": 0}
        connection = Connection(proxy.url(redis_url), transport_options=options)
        fill(connection, name)
        consumer = consume(connection, name, 2)
        producer = Producer(consumer.channel)
        proxy.silence()
        connection.transport._stream.post(b"*1\r\n$4\r\nPING\r\n", 1, print)
        connection.transport._acks.hold(*acked(connection))
        monkeypatch.setattr("kombulite.brokers.redis.stream.MAX_POSTED", 1)
        publish = partial(producer.publish, "x", routing_key=f"{name}.other", timeout=0.1, retry=False)
        errors: list[BaseException] = []
        thread = threading.Thread(target=lambda: errors.append(raised_by(publish)), daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        assert isinstance(errors[0], exceptions.RecoverableConnectionError)
        connection.collect()


def test_a_plan_has_its_time_for_all_that_it_asks_for(ours, monkeypatch):
    """As a publish that has to read the bindings first."""
    connection, now, times = ours(), [1000.0], []
    connection.connect()
    stream = connection.transport._stream

    def exchange(commands: Any, replies: int, timeout: float) -> list[Any]:
        times.append(timeout)
        now[0] += 3
        return []

    def plan() -> Plan[None]:
        for _ in range(3):
            yield Exchange((), 0)

    monkeypatch.setattr("kombulite.brokers.redis.stream.monotonic", lambda: now[0])
    monkeypatch.setattr(stream, "exchange", exchange)
    stream.perform(plan(), 10)
    assert times == [10, 7, 4]


def raised_by(function: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as failure:
        function()
    return failure.value


def acked(connection: Any) -> tuple[Any, Any]:
    """Return a channel that has more messages at hand, and one of these."""
    (state,) = (state for state in connection.transport._channels.values() if state.leased.ready)
    return state, [state.leased.ready[0]]


def test_acks_leave_in_time_where_leases_cannot_be_looked_after(monkeypatch):
    """As where the server takes no connection more."""
    monkeypatch.setattr(maintainer, "RETRY_INTERVAL", 600.0)
    tries: list[object] = []
    flushed = threading.Event()

    def refuse(on_push: object) -> None:
        tries.append(on_push)
        raise exceptions.NotAllowed("max number of clients reached")

    def flush() -> bool:
        flushed.set()
        return True

    protocol: Any = SimpleNamespace(topology=SimpleNamespace(router=None))
    connector: Any = SimpleNamespace(open=refuse)
    chores: Any = lambda protocol, routes: SimpleNamespace(pause=0.0)  # noqa: E731
    stream: Any = None
    looking = maintainer.LeaseMaintainer(protocol, connector, stream, [], chores)
    looking.start()
    try:
        wait_until(lambda: tries, 20, "it opens no connection")
        looking.flush_soon(flush)
        assert flushed.wait(20)
        assert len(tries) == 1
    finally:
        looking.stop()


@pytest.mark.usefixtures("patient")
def test_acks_that_wait_when_the_connection_is_lost_are_made_over_the_next(ours, client, name):
    fill(ours(), name)
    connection = ours(unacked_restore_interval=1, unacked_restore_throttle=1)
    got: list[int] = []
    consume(connection, name, 2, got=got)
    client.client_kill_filter(_type="normal", skipme=True)
    client.client_kill_filter(_type="pubsub", skipme=True)
    with pytest.raises((exceptions.RecoverableConnectionError, OSError)):
        while True:
            connection.drain_events(timeout=0.1)
    connection.ensure_connection()
    drain(connection, lambda: len(set(got)) == MESSAGES, step=0.1)
    assert got.count(0) == got.count(1) == 1
    connection.close()
    are_settled(client)


@pytest.mark.usefixtures("patient")
def test_a_forked_child_holds_no_ack_of_its_parent(ours, client, name):
    fill(ours(), name)
    outcomes: list[int] = []

    def fork(message: Any) -> None:
        step = message.channel.connection.transport._acks
        state = next(iter(message.channel.connection.transport._channels.values()))
        child = os.fork()
        if not child:
            code = 1
            try:
                step.hold(state, [state.leased.ready[0]])
            except exceptions.RecoverableConnectionError:
                code = 0
            finally:
                os._exit(code)
        outcomes.append(os.waitpid(child, 0)[1])

    consumer = consume(ours(), name, 1, fork)
    assert outcomes == [0]
    consumer.cancel()


def test_nothing_is_asked_of_the_thread_where_no_ack_waits(ours, client, name):
    Producer(ours().channel()).publish("x", routing_key=name)
    connection = ours()
    consumer = consume(connection, name, 1)
    are_settled(client)
    assert connection.transport._maintainer._flush_at == inf
    consumer.cancel()


# --- what happens to those that are not sent


def held_for(acks: HeldAcks, channel: str, *tags: str) -> None:
    """Have acks wait as those of a channel, with more messages at hand."""
    ready = [None] * held_acks.MIN_FOLLOWING
    state: Any = SimpleNamespace(leased=SimpleNamespace(ready=ready), name=channel)
    assert acks.hold(state, [Lease(tag, "q", "q", b"") for tag in tags])


def named(posted: list[Any]) -> list[tuple[str, bytes]]:
    """Return the channels of acks without a reply, and their commands."""
    return [(on_reply._state.name, data) for on_reply, data, _ in posted]


def tags_of(leases: Any) -> bytes:
    return b" ".join(lease.tag.encode() for lease in leases)


@pytest.mark.parametrize("refused", [b"1 2", b"3", b"4"])
def test_acks_that_cannot_be_sent_wait_on_in_their_order(refused: bytes) -> None:
    sent: list[bytes] = []

    def post(data: bytes, *arguments: Any, **options: Any) -> None:
        if data == refused:
            raise exceptions.RecoverableConnectionError("lost")
        sent.append(data)

    stream: Any = SimpleNamespace(lock=Lock(), check=lambda: None, post=post, before_send=None)
    acks = HeldAcks(stream, tags_of, lambda: True)
    held_for(acks, "first", "1", "2")
    held_for(acks, "second", "3")
    held_for(acks, "third", "4")
    with pytest.raises(exceptions.RecoverableConnectionError):
        stream.before_send()
    left = named(acks.unanswered())
    everything = [("first", b"1 2"), ("second", b"3"), ("third", b"4")]
    assert left == everything[len(sent) :]
    assert left[0][1] == refused
    refused = b""
    stream.before_send()
    assert sent == [b"1 2", b"3", b"4"]
    assert not acks.unanswered()


def test_an_ack_that_comes_when_what_waits_was_left_to_the_next_connection_does_not_wait() -> None:
    left: list[Any] = []
    stream: Any = SimpleNamespace(lock=Lock(), check=lambda: left.append(acks.end()), before_send=None)
    acks = HeldAcks(stream, tags_of, lambda: True)
    with pytest.raises(exceptions.RecoverableConnectionError):
        held_for(acks, "first", "1")
    assert left == [[]]


@pytest.fixture(autouse=True)
def acks_of_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the end of a forked child find none that an earlier test has made up."""
    monkeypatch.setattr(held_acks, "_all", WeakSet())


@pytest.fixture
def in_a_cluster() -> ClusterHeldAcks:
    """The acks of a connection to a cluster that is not reached."""
    transport: Any = Connection("rediscluster://").transport
    return ClusterHeldAcks(transport._stream, transport._protocol.keys, lambda: True)


def test_acks_for_a_cluster_wait_until_they_are_sent(
    in_a_cluster: ClusterHeldAcks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever closes the connection meanwhile finds them, and so does who looks after a failure."""
    nodes: Any = in_a_cluster._nodes
    held_for(in_a_cluster, "first", "1")
    held_for(in_a_cluster, "second", "2")
    everything = named(in_a_cluster.unanswered())
    assert [channel for channel, _ in everything] == ["first", "second"]

    def refuse(acks: Any) -> None:
        assert named(in_a_cluster.unanswered()) == everything
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(nodes, "post_acks", refuse)
        with pytest.raises(KeyboardInterrupt):
            nodes.poll()
    assert named(in_a_cluster.unanswered()) == everything
    nodes.poll()
    assert not in_a_cluster.unanswered()
    sent = [post._on_reply._state.name for post, _, _ in nodes.unanswered]
    assert sent == ["first"] * 2 + ["second"] * 2


def exit_code_of(work: Callable[[], object]) -> int:
    """Do something in a forked child. 0: done, 1: the connection is its parent's; else it failed or hung."""
    child = os.fork()
    if not child:
        code = 2
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)
            work()
            code = 0
        except exceptions.RecoverableConnectionError:
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def replies_of_others() -> Plan[None]:
    yield Wait.REPLIES


@pytest.mark.parametrize("tags", [(), ("1",)], ids=["none", "one"])
def test_a_child_that_was_forked_while_nodes_were_in_use_ends(in_a_cluster: ClusterHeldAcks, tags: Any) -> None:
    nodes: Any = in_a_cluster._nodes
    if tags:
        held_for(in_a_cluster, "first", *tags)
    transport: Any = Connection("rediscluster://").transport
    transport._stream, transport._waiter = nodes, True
    nodes.note_written()
    nodes.post_at(0, b"*1\r\n$4\r\nPING\r\n", 1, print, may_repeat=True)  # no node has it
    works = [
        nodes.poll,
        nodes.wait_for_replies,
        partial(nodes.poll_at, 0),
        partial(nodes.flush, inf),
        partial(nodes.exchange, []),
        partial(nodes.perform, replies_of_others()),
        partial(nodes.post_acks, []),
        partial(nodes.wait_for_replicas, 1, None),
        partial(transport.delete_queue, 1, "q", False, False),
    ]
    is_held, may_go = threading.Event(), threading.Event()

    def use() -> None:
        with nodes.lock:
            is_held.set()
            may_go.wait(60)

    thread = threading.Thread(target=use)
    thread.start()
    try:
        assert is_held.wait(20)
        assert exit_code_of(held_acks._flush_all) == 0
        for work in works:
            assert exit_code_of(work) == 1
    finally:
        may_go.set()
        thread.join()


def test_a_forked_child_reads_nothing_that_a_node_says_to_its_parent(cluster: Any) -> None:
    transport: Any = Connection(cluster.url).transport
    nodes = ChoreNodes(transport._cluster, 60.0, print).open(None)
    nodes.connect()
    try:
        for stream in nodes.streams.values():
            stream.used_at -= 2
            assert exit_code_of(stream.is_alive) == 1
            assert stream.is_alive()
    finally:
        nodes.drop()


def test_what_other_threads_have_sent_is_not_sent_again(
    in_a_cluster: ClusterHeldAcks, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes: Any = in_a_cluster._nodes
    for _ in range(2):
        nodes.post_at(0, b"*1\r\n$4\r\nPING\r\n", 1, print, may_repeat=True)
    monkeypatch.setattr(nodes, "_post", lambda post, **options: nodes._refused.clear())
    for post in nodes._refused:
        post.due = 0.0
    nodes.poll()
    assert nodes.next_flush is None


def test_what_is_sent_again_is_known_until_its_node_has_it(
    in_a_cluster: ClusterHeldAcks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may give the connection up while this one waits for the node, or look for what is due."""
    nodes: Any = in_a_cluster._nodes
    tried: list[Any] = []

    def open_for_long(*arguments: Any, **options: Any) -> None:
        tried.append([post for post, _, _ in nodes.unanswered])
        nodes.poll()  # as another thread would
        assert nodes.is_waiting
        assert nodes.next_flush > 0
        raise tried_in_vain

    tried_in_vain: BaseException = exceptions.RecoverableConnectionError("it cannot be reached")
    nodes.post_at(0, b"*1\r\n$4\r\nPING\r\n", 1, print, may_repeat=True)
    (post,) = nodes._refused
    monkeypatch.setattr(nodes, "_stream_to", open_for_long)
    for error in (tried_in_vain, KeyboardInterrupt()):
        tried_in_vain, post.due = error, 0.0
        with suppress(KeyboardInterrupt):
            nodes.poll()
    assert tried == [[post]] * 2
    assert post.due < inf
