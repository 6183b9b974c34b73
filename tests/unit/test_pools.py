"""Pools: bounded, blocking, replaced after errors, safe after a fork, and nothing leaks."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
import weakref
from typing import ClassVar
from unittest.mock import Mock

import pytest

from kombulite import Connection, exceptions, pools
from kombulite.brokers.memory import Transport as MemoryTransport
from kombulite.pools import ProducerPool
from kombulite.resource import ConnectionPool, Resource


class Things(Resource):
    """A pool of objects that count."""

    made = 0

    def new(self):
        type(self).made += 1
        return Thing()


class Thing:
    closed = False

    def close(self):
        self.closed = True


class BrokenThing(Thing):
    def close(self):
        raise ConnectionResetError("gone")


@pytest.fixture
def connection():
    with Connection("memory://") as connection:
        yield connection


@pytest.fixture(autouse=True)
def _reset():
    groups = list(pools._groups)
    yield
    pools._groups[:] = groups  # without those that a test registered
    pools.reset()
    pools.set_limit(10)


def test_last_one_back_is_first_out():
    pool = Things(3)
    one, two = pool.acquire(), pool.acquire()
    one.release()
    two.release()
    assert pool.acquire() is two
    assert pool.acquire() is one


def test_limit_is_kept_whatever_threads_do():
    pool = Things(3)
    out, most, errors = set(), [0], []

    def work():
        try:
            for i in range(200):
                thing = pool.acquire(block=True, timeout=30)
                out.add(thing)
                most[0] = max(most[0], len(out))
                out.discard(thing)
                (pool.replace if i % 7 == 0 else pool.release)(thing)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert most[0] <= 3
    assert not pool._dirty
    assert pool._out == 0
    assert pool._resource.qsize() <= 3


@pytest.mark.parametrize("give_back", ["release", "replace", "resize", "close"])
def test_waiting_ends_as_soon_as_something_changes(give_back):
    pool = Things(1)
    thing = pool.acquire()
    got = []

    def wait():
        try:
            got.append(pool.acquire(block=True, timeout=60))
        except RuntimeError as error:
            got.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not pool._waiting:
        pass
    if give_back == "resize":
        pool.resize(2)
    elif give_back == "close":
        pool.force_close_all()
    else:
        getattr(pool, give_back)(thing)
    waiting.join(30)
    assert len(got) == 1
    assert isinstance(got[0], RuntimeError) is (give_back == "close")
    assert (got[0] is thing) is (give_back == "release")


def test_waiting_ends_in_time():
    pool = Things(1)
    pool.acquire()
    with pytest.raises(exceptions.LimitExceeded):
        pool.acquire(block=True, timeout=0.05)
    pool.block_timeout = 0.05
    with pytest.raises(exceptions.LimitExceeded):
        pool.acquire(block=True)
    with pytest.raises(exceptions.LimitExceeded):
        pool.acquire()


def test_without_limit_nothing_is_kept():
    for limit in (None, 0):
        pool = Things(limit)
        things = [pool.acquire() for _ in range(20)]
        for thing in things:
            thing.release()
        assert all(thing.closed for thing in things)
        assert not pool._dirty
        assert pool._resource.empty()


def test_released_twice_is_kept_once():
    pool = Things(2)
    thing = pool.acquire()
    thing.release()
    thing.release()
    assert pool.acquire() is not pool.acquire()


def test_released_after_the_pool_shrank_is_closed():
    pool = Things(3)
    things = [pool.acquire() for _ in range(3)]
    pool.resize(1, ignore_errors=True)
    for thing in things:
        thing.release()
    assert sorted(thing.closed for thing in things) == [False, True, True]


def test_released_after_its_pool_went_is_closed():
    pool = Things(3)
    thing = pool.acquire()
    del pool
    gc.collect()
    thing.release()
    assert thing.closed


def test_shrinking_closes_what_is_free():
    pool = Things(3)
    things = [pool.acquire() for _ in range(3)]
    for thing in things:
        thing.release()
    pool.limit = 1
    assert sorted(thing.closed for thing in things) == [False, True, True]


def test_shrinking_in_use_leaves_no_more_than_the_limit():
    pool = Things(3)
    out, back = pool.acquire(), pool.acquire()
    back.release()
    pool.resize(1, ignore_errors=True)
    assert back.closed
    with pytest.raises(exceptions.LimitExceeded):
        pool.acquire()
    out.release()
    assert pool.acquire() is out


def test_threads_that_ask_at_the_same_time_get_the_same_pool():
    connection, found = Connection("memory://same"), []
    start = threading.Barrier(8)

    def ask():
        start.wait()
        found.append(pools.connections[connection])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(pool) for pool in found}) == 1


def test_shrinking_in_use_needs_force():
    pool = Things(3)
    thing = pool.acquire()
    with pytest.raises(RuntimeError, match="in use"):
        pool.resize(2)
    pool.resize(2, force=True)
    assert thing.closed
    assert pool.limit == 2


def test_closed_pool_gives_nothing():
    pool = Things(2)
    out, back = pool.acquire(), pool.acquire()
    back.release()
    pool.force_close_all()
    assert out.closed
    assert back.closed
    out.release()
    with pytest.raises(RuntimeError, match="closed pool"):
        pool.acquire()


def test_closing_what_is_broken_raises_nothing():
    class Broken(Things):
        def new(self):
            return BrokenThing()

    pool = Broken(2)
    pool.replace(pool.acquire())
    pool.acquire()
    pool.force_close_all()
    assert pool._out == 0


def test_failing_to_make_one_gives_the_place_back():
    class Failing(Things):
        fails = True

        def new(self):
            if self.fails:
                raise OSError("cannot be made")
            return Thing()

    pool = Failing(1)
    with pytest.raises(OSError, match="cannot be made"):
        pool.acquire()
    pool.fails = False
    assert isinstance(pool.acquire(), Thing)


def test_preload():
    for preload, made in ((2, 2), (5, 3)):
        pool = Things(3, preload=preload)
        assert pool._resource.qsize() == 3
        assert sum(isinstance(each, Thing) for each in pool._resource.queue) == made


def test_limit_is_a_number():
    with pytest.raises(TypeError):
        Things(True)
    with pytest.raises(TypeError):
        Things(2).resize(False)
    with pytest.raises(TypeError):
        pools.set_limit(True)


def test_connection_left_by_an_exception_is_replaced(connection):
    pool = connection.Pool(1)
    with pytest.raises(ZeroDivisionError), pool.acquire() as first:
        first.connect()
        raise ZeroDivisionError
    assert not first.connected
    with pool.acquire() as second:
        assert second is not first
        second.connect()
    assert second.connected
    with pool.acquire() as third:
        assert third is second


def test_connections_of_a_pool_are_not_the_one_it_was_made_from(connection):
    pool = ConnectionPool(connection, 2)
    acquired = pool.acquire()
    assert acquired is not connection
    assert acquired.as_uri() == connection.as_uri()
    with pool.acquire_channel() as (other, channel):
        assert channel is other.default_channel


def test_channel_pool_replaces_what_was_closed(connection):
    pool = connection.ChannelPool(1)
    with pool.acquire() as channel:
        assert channel.is_open
    channel.close()
    with pool.acquire() as another:
        assert another.is_open
    with pytest.raises(ZeroDivisionError), pool.acquire() as left:
        raise ZeroDivisionError
    assert not left.is_open
    pool.acquire()
    with pytest.raises(exceptions.ChannelLimitExceeded):
        pool.acquire()


def test_producer_has_a_connection_while_it_is_out(connection):
    pool = ProducerPool(connection.Pool(1), limit=2)
    with pool.acquire() as producer:
        producer.publish(1, routing_key="producers")
        with pytest.raises(exceptions.ConnectionLimitExceeded):
            pool.connections.acquire()
    assert producer.connection is None
    with pool.connections.acquire() as acquired:
        acquired.connect()
    with pytest.raises(ZeroDivisionError), pool.acquire() as producer:
        held = producer.connection
        raise ZeroDivisionError
    assert not held.connected
    assert pool.connections._out == 0


def test_producer_waits_for_a_connection_only_if_asked_to(connection):
    pool = ProducerPool(connection.Pool(1), limit=2)
    with pool.connections.acquire() as held:
        with pytest.raises(exceptions.ConnectionLimitExceeded):
            pool.acquire(block=False)
        with pytest.raises(exceptions.ConnectionLimitExceeded):
            pool.acquire(block=True, timeout=0.05)
        timer = threading.Timer(0.1, held.release)
        timer.start()
        with pool.acquire(block=True, timeout=30) as producer:
            assert producer.connection is held
        timer.join()


def test_a_reset_closes_and_forgets_all_even_if_closing_one_raises():
    group = pools.register_group(pools.Connections(limit=3))
    failing, other = Mock(**{"force_close_all.side_effect": KeyError("x")}), Mock()
    group["failing"], group["other"] = failing, other
    pools.reset()
    assert failing.force_close_all.call_count == other.force_close_all.call_count == 1
    assert not group


def test_groups_go_by_what_connections_are_like():
    one, other = Connection("memory://a"), Connection("memory://b")
    assert pools.connections[one] is pools.connections[one.clone()]
    assert pools.connections[one] is not pools.connections[other]
    assert pools.producers[one].connections is pools.connections[one]
    assert pools.connections[Connection("memory://a", transport_options={"x": 1})] is not pools.connections[one]
    group = pools.register_group(pools.Connections(limit=3))
    assert group[one].limit == 3
    assert pools.set_limit(5) == pools.get_limit() == pools.connections[one].limit == group[one].limit == 5
    pool = pools.connections[one]
    pools.reset()
    assert not group
    with pytest.raises(RuntimeError):
        pool.acquire()


class SocketTransport(MemoryTransport):
    """The embedded broker, with a descriptor to leak."""

    def connect(self):
        super().connect()
        self.pair = socket.socketpair()

    def close(self):
        super().close()
        for end in self.pair:
            end.close()


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
def test_nothing_leaks_over_ten_thousand_cycles():
    connection = Connection("memory://leaks", transport=SocketTransport)
    pool = ProducerPool(connection.Pool(4), limit=4)
    gc.collect()  # what other tests have left
    before = descriptors()
    seen = weakref.WeakSet()
    for i in range(10_000):
        try:
            with pool.acquire(block=True, timeout=10) as producer:
                seen.add(producer.connection)
                producer.connection.connect()
                if i % 3 == 0:
                    raise ConnectionResetError("the broker went")
                if i % 5 == 0:
                    producer.connection.collect()
        except ConnectionResetError:
            pass
    assert descriptors() - before <= 2 * 4
    pool.connections.force_close_all()
    pool.force_close_all()
    del producer, pool
    assert descriptors() <= before
    gc.collect()
    assert len(seen) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_starts_with_an_empty_pool():
    program = """
import os, threading
from kombulite import Connection, connections, producers
pool = connections[Connection("memory://")]
kept, out = pool.acquire(), pool.acquire()
kept.connect()
out.connect()
kept.release()
pool._lock.acquire()  # as another thread might hold it
child = os.fork()
if child == 0:
    assert pool._resource.empty() and pool._out == 0
    fresh = pool.acquire(block=True, timeout=5)
    assert fresh is not kept and fresh is not out
    fresh.connect()
    fresh.release()
    out.release()
    assert pool._resource.queue == [fresh]
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
pool._lock.release()
assert kept.connected and out.connected
assert pool.acquire() is kept
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_resources_may_be_taken_while_others_are_made_ahead():
    class Slow(Things):
        taken: ClassVar[list[Thing]] = []

        def new(self):
            if self.preload and not self.taken:
                self.taken.append(None)
                self.taken[:] = [self.acquire(), self.acquire()]  # as another thread may
            return Thing()

    pool = Slow(1)
    pool.preload = 2
    pool.resize(3)
    assert len(set(pool.taken)) == 2
    assert pool._out == 2
    assert pool._resource.qsize() == 1
    for each in pool.taken:
        pool.release(each)
    assert (pool._out, pool._resource.qsize()) == (0, 3)
