"""What a test sees of kombu's parts: what they hand to what a mock stands for, in which order, and their tables."""

from __future__ import annotations

import copy
import errno
import functools
import io
import socket
import sys
from unittest.mock import Mock, patch

from tests.oracle.side_by_side import of, outcome, side_by_side


def a_hub(lib):
    hub = of(lib, "asynchronous.hub").Hub()
    hub.poller.close()
    hub.poller = Mock(name="poller")
    hub.poller.poll.return_value = []
    return hub


def end(hub):
    hub._waker.close()


def calls_that_are_repeated(lib):
    timer = of(lib, "asynchronous.timer").Timer()
    timer.enter_after = Mock()
    entry = timer.call_repeatedly(0.03, Mock(__name__="work")) and timer.enter_after.call_args.args[1]
    entry()
    seconds = [each.args[0] for each in timer.enter_after.call_args_list]
    entry.cancel()
    entry()
    return seconds, timer.enter_after.call_count


def the_order_of_a_turn(lib):
    hub, parts = a_hub(lib), Mock()
    parts.poller.poll.return_value = []
    hub.readers[9] = (Mock(), ())
    next(hub.loop)
    hub.poller = parts.poller
    hub._loop = None
    hub.on_tick.add(parts.tick)
    hub.call_soon(parts.call)
    parts.timer.__name__ = "timer"
    hub.timer.call_after(-1, parts.timer)
    next(hub.loop)
    end(hub)
    names = ("call", "timer", "tick", "poller.poll")
    return [each for each in parts.mock_calls if str(each).startswith(tuple(f"call.{name}" for name in names))]


def what_a_call_calls_soon(lib):
    hub, later = a_hub(lib), Mock()
    hub.call_soon(lambda: hub.call_soon(later))
    next(hub.loop)
    seen = [later.call_count]
    next(hub.loop)
    end(hub)
    return [*seen, later.call_count]


def delays_behind_as_many_timers_as_may_be(lib):
    hub = of(lib, "asynchronous.hub").Hub(timer=Mock(_queue=[1]))
    timers = [Mock() for _ in range(5)]
    hub.scheduler = iter([(None, each) for each in timers] + [(3.9, None)])
    seen = [hub.fire_timers(max_timers=4, min_delay=1.13), [each.call_count for each in timers], hub.fire_timers()]
    hub.poller.close()
    return seen


def descriptors_that_are_refused(lib):
    hub = a_hub(lib)
    hub._remove_from_loop = Mock()
    hub.poller.register.side_effect = ValueError("closed")
    return outcome(hub.add, 2, Mock(), hub.READ), hub._remove_from_loop.mock_calls, hub.readers


def waiters_of_a_semaphore(lib):
    semaphore = of(lib, "asynchronous.semaphore").LaxBoundedSemaphore(0)
    semaphore._add_waiter((len, ("ab",), {}))
    seen = semaphore._pop_waiter(), outcome(semaphore._pop_waiter)
    semaphore._add_waiter = Mock()
    semaphore.acquire(len, "abc")
    return seen, semaphore._add_waiter.mock_calls


def steps_of_a_poller(lib):
    eventio = of(lib, "utils.eventio")
    poller = eventio._poll()
    poller._quick_register, poller._quick_unregister = Mock(), Mock()
    poller._quick_poll = Mock(return_value=[(1, eventio.POLLIN)])
    found = poller.poll(1.2, round=int), poller.register(1, eventio.READ), poller.unregister(1)
    called = [each.mock_calls for each in (poller._quick_poll, poller._quick_register, poller._quick_unregister)]
    selecting = eventio._select()
    selecting._remove_bad = Mock()
    with patch.object(eventio, "_selectf", side_effect=OSError(errno.EBADF, "bad")):
        removed = selecting.poll(1) is selecting._remove_bad.return_value
    return found, called, removed


def libraries_of_green_threads(lib):
    compat, errors = of(lib, "utils.compat"), Mock(ConcurrentObjectUseError=KeyError)
    seen = []
    for modules in (
        {"gevent": Mock(socket=socket)},
        {"gevent": Mock()},
        {"gevent": Mock(spec=[])},
        {"gevent": None},
        {"gevent": Mock(), "gevent.exceptions": errors},
        {"gevent.exceptions": errors},
    ):
        with patch.dict(sys.modules, modules):
            seen.append((compat._detect_environment(), compat.get_gevent_concurrent_error()))
    return seen


def properties_that_are_cached(lib):
    cached_property = of(lib, "utils.objects").cached_property

    class Holder:
        @cached_property
        def value(self):
            return 1

    return isinstance(Holder.value, functools.cached_property), Holder.value.attrname


class Stream(io.BytesIO):
    """A file that cannot be cut off, and keeps what was written when it is closed."""

    def truncate(self, size=None):
        raise OSError(errno.EINVAL, "no")

    def close(self):
        self.kept = self.getvalue()
        super().close()


def dumps_into_a_stream_that_cannot_be_cut_off(lib):
    def dump(state, file, protocol):
        file.write(b"half of it, ")
        raise ValueError("state")

    stream = Stream()
    of(lib, "utils.div").emergency_dump_state([1], open_file=lambda *args: stream, dump=dump, stderr=io.StringIO())
    return stream.kept


def tables_of_encoders(lib):
    serialization = of(lib, "serialization")
    registry = serialization.SerializerRegistry()
    registry.register("one", repr, eval, "a/one")
    table = registry._encoders
    registry.register("other", str, None, "a/other")
    table["third"] = serialization.codec("a/third", "binary", ascii)
    del table["one"]
    seen = [sorted(table), registry.dumps([1], "third"), outcome(registry.dumps, [1], "one")]
    seen.append(table == registry._encoders)
    registry._encoders = {"new": serialization.codec("a/new", "utf-8", repr)}
    registry._decoders = {"a/new": lambda data: ["decoded", data]}
    seen += [sorted(registry._encoders), registry._encoders["new"].content_type, registry.dumps([2], "new")]
    registry._encoders = registry._encoders
    seen += [repr(registry._encoders), registry.loads(b"x", "a/new", "utf-8")]
    return [*seen, outcome(registry.dumps, 1, "third")]


def stand_ins_that_declare_themselves(lib):
    channel, entity = Mock(), Mock(is_bound=False, can_cache_declaration=False)
    of(lib, "common").maybe_declare(entity, channel)
    return entity.mock_calls[0], entity.declare.call_args.kwargs["channel"] is channel


def stand_ins_that_exchanges_deliver(lib):
    exchange = of(lib, "transport.virtual.exchange")
    seen = []
    for kind in (exchange.DirectExchange, exchange.TopicExchange):
        for message in ({"m": 1}, "message"):
            channel = Mock(**{"_lookup.return_value": ["a", "b"]})
            kind(channel).deliver(message, "exchange", "key", option=1)
            seen.append(channel._put.mock_calls)
    return seen


def acks_on_a_mock(lib):
    channel = Mock()
    messages = [lib.Message(body=b"x", channel=channel, delivery_tag=number) for number in range(3)]
    messages[0].ack()
    messages[1].ack(multiple=True)
    messages[2].ack_log_error(Mock(), (KeyError,))
    channel.no_ack_consumers = {"tag", None}
    lib.Message(body=b"x", channel=channel, delivery_tag=4, delivery_info={"consumer_tag": "tag"}).ack()
    lib.Message(body=b"x", channel=channel, delivery_tag=5, delivery_info={}).ack()
    return channel.mock_calls, [each.acknowledged for each in messages]


def connections_whose_release_is_another(lib):
    calls = []

    class Connection(lib.Connection):
        def release(self):
            calls.append("release")
            super().release()

    def fail(connection):
        with connection:
            raise KeyError("failed")

    replaced = lib.Connection("memory://")
    replaced.release = Mock()
    with Connection("memory://"):
        pass
    return outcome(fail, Connection("memory://")), calls, outcome(fail, replaced), replaced.release.mock_calls


def methods_that_a_subclass_overrides(lib):
    calls = []

    class Connection(lib.Connection):
        def close(self):
            calls.append("close")
            super().close()

    class Queue(lib.Queue):
        def as_dict(self, recurse=False):
            calls.append("as_dict")
            return {**super().as_dict(recurse), "alias": "kept"}

    class Log(of(lib, "log").Log):
        def get_loglevel(self, level):
            return ("level", level)

    connection = Connection("memory://")
    connection.switch("memory://other")
    seen = [calls[:], connection.hostname]
    calls.clear()
    seen += [copy.copy(Queue("q")).alias, calls[-1:], Queue("q").__reduce__()[1][1]["alias"]]
    seen.append(Queue("q")(Mock()).alias)
    log = Log("name", Mock())
    log.is_enabled_for("some")
    return [*seen, log.logger.mock_calls]


def connections_of_a_pool_that_are_switched(lib):
    pool = lib.Connection("memory://").Pool(1)
    connection = pool.acquire()
    connection.switch("memory://other")
    return connection.hostname, outcome(pool.acquire)


def matchers_without_a_default(lib):
    matcher = of(lib, "matcher")
    registry = matcher.MatcherRegistry()
    registry.register("glob", lambda data, pattern: (data, pattern))
    return registry.match(b"data", "pattern"), registry._default_matcher


test_both_do_the_same = side_by_side(vars())
