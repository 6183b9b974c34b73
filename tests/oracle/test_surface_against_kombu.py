"""The same program with the helpers, pools, mailboxes and mixins of kombu and of kombulite does the same."""

from __future__ import annotations

import copy
import importlib
import io
import logging
import pickle
import re
import threading
import uuid
from itertools import islice

import pytest

from tests.oracle.test_programs_against_kombu import outcome, run

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def of(lib, name):
    return importlib.import_module(f"{lib.__name__}.{name}")


def without_uuids(value):
    return UUID.sub("UUID", repr(value))


class Unrepresentable:
    def __repr__(self):
        raise KeyError("no")


def functional(lib, connection, name):
    f = of(lib, "utils.functional")
    cache = f.LRUCache(limit=3)
    for i in range(5):
        cache[i] = i
    seen = [list(cache), list(cache.items()), list(cache.values()), len(cache), 3 in cache, cache.get(0)]
    cache.update({7: 7, 8: 8})
    cache[4]
    cache["x"] = "5"
    seen += [list(cache), cache.incr("x"), cache["x"], cache.popitem(), cache.popitem(last=False), list(cache)]
    seen += [list(pickle.loads(pickle.dumps(cache)).items()), cache.pop(7, None), outcome(lambda: cache[99])]

    @f.memoize(maxsize=2)
    def add(a, b=1):
        return a + b

    seen += [add(1), add(1), add(2), add(3), add(1), add(1, b=2), add.hits, add.misses, add.original_func(1)]
    add.clear()
    seen += [add.hits, add.misses]
    keyed = f.memoize(keyfun=lambda args, kwargs: args[0] % 2)(lambda a: a)
    seen += [keyed(1), keyed(3), keyed(2)]
    late = f.lazy(lambda a, b=1: a + b, 2, b=3)
    seen += [late(), str(late), repr(late), late == 5, late != 5, late == f.lazy(lambda: 5)]
    seen += [str(copy.deepcopy(late)), f.maybe_evaluate(late), f.maybe_evaluate(3)]
    for values in [1, None, [1], "a", {}, b"x", set(), (1,), iter([])]:
        seen += [f.is_list(values), type(f.maybe_list(values)).__name__]
    for arguments in [(1, None, 1, 10), (1, 3, 0.5, 100), (1, 3, 1, 4)]:
        seen.append([float(value) for value in islice(f.fxrangemax(*arguments), 100)])
    seen.append([float(value) for value in islice(f.fxrange(1, 3, 0.7), 10)])
    seen += [f.dictfilter({"a": None, "b": 1}), f.dictfilter(a=None, c=2), f.dictfilter({"x": None}, z=1)]
    seen += [f.reprcall("n", (1, "a"), {"k": 2, "j": "s"}), f.reprcall("n"), f.reprcall("n", (1,), sep="; ")]
    seen += [f.accepts_argument(lambda a, *, b: 1, name) for name in "abc"]
    seen.append(outcome(lambda: f.accepts_argument(3, "a")))
    return seen


def helpers(lib, connection, name):
    e = of(lib, "utils.encoding")
    seen = []
    for value in ["ü", b"\xc3\xbc", b"\xff", 3, None, ["x"]]:
        seen += [e.str_to_bytes(value), e.bytes_to_str(value), e.ensure_bytes(value), e.safe_str(value)]
        seen += [e.safe_repr(value), e.from_utf8(value)]
    seen.append(e.safe_repr(Unrepresentable())[:40])
    s = of(lib, "utils.scheduling")
    turns = s.round_robin_cycle([1, 2, 3])
    seen += [turns.consume(2), turns.rotate(1), turns.items, turns.rotate(9), turns.items]
    turns.update([5, 6])
    seen += [turns.items, s.priority_cycle([1, 2]).rotate(1), s.sorted_cycle([3, 1, 2]).consume(2)]
    seen += [s.cycle_by_name(kind).__name__ for kind in ("round_robin", "priority", "sorted")]
    fair = s.FairCycle(lambda resource, callback: callback(resource), [1, 2, 3], KeyError)

    def refuse(resource):
        raise KeyError(resource)

    seen += [fair.get(lambda resource: resource), fair.get(lambda resource: resource), repr(fair)]
    seen += [outcome(lambda: fair.get(refuse)), fair.get(lambda resource: resource)]
    seen.append(outcome(lambda: s.FairCycle(lambda r, c: c(r), [], KeyError).get(refuse)))
    bucket = of(lib, "utils.limits").TokenBucket(0.01, 2)
    seen += [bucket.can_consume(3), bucket.can_consume(2), bucket.can_consume(1), 90 < bucket.expected_time(1) <= 100]
    bucket.add("a")
    bucket.add("b")
    seen += [bucket.pop(), list(bucket.contents), bucket.clear_pending(), len(bucket.contents)]
    c = of(lib, "utils.compat")
    with c.nested(io.StringIO("a"), io.StringIO("b")) as (first, second):
        seen += [first.read(), second.read()]
    seen += [c.detect_environment(), c.fileno(3), c.maybe_fileno(io.StringIO()), c.maybe_fileno(None)]
    seen += [of(lib, "utils.time").maybe_s_to_ms(value) for value in (1.5, 2, None)]
    grouped = of(lib, "utils.collections").EqualityDict()
    grouped[lib.Connection("memory://x", transport_options={"a": 1})] = 1
    seen += [len(grouped), grouped[lib.Connection("memory://x", transport_options={"a": 1})]]
    symbol = of(lib, "utils.imports").symbol_by_name
    seen += [symbol("json:dumps").__name__, symbol("json.loads").__name__, symbol("x", {"x": "json:dumps"}).__name__]
    seen += [outcome(lambda: symbol("no.such.module")), symbol("no.such", default=4), symbol(7)]

    class Cached:
        @of(lib, "utils.objects").cached_property
        def value(self):
            return seen.append("worked out") or 1

        @value.setter
        def value(self, new):
            return new * 2

        @value.deleter
        def value(self, old):
            seen.append(("deleted", old))

    cached = Cached()
    seen += [cached.value, cached.value]
    cached.value = 4
    seen.append(cached.value)
    del cached.value
    seen.append(cached.value)
    return seen


def clocks_and_matchers(lib, connection, name):
    clocks, matcher = of(lib, "clocks"), of(lib, "matcher")
    times = [
        clocks.timetuple(1, 5.0, "a"),
        clocks.timetuple(2, 4.0, "b"),
        clocks.timetuple(0, 1.0, "c", {}),
        clocks.timetuple(None, 9.0, "d"),
        clocks.timetuple(1, 0.0, "0"),
    ]
    seen = [[(a < b, a > b, a <= b, a >= b, a == b) for a in times] for b in times]
    seen += [repr(times[2]), times[0].clock, times[0].timestamp, times[0].id, times[2].obj, tuple(times[0])]
    seen.append(pickle.loads(pickle.dumps(times[0])) == times[0])
    clock = clocks.LamportClock(3)
    seen += [clock.forward(), clock.adjust(10), clock.adjust(2), str(clock), repr(clock), clock.value]
    seen.append(clock.sort_heap([(1, "b"), (2, "a"), (1, "0")]))
    match = lambda *args: bool(matcher.match(*args))  # noqa: E731
    seen += [match("celery@h", "celery@*"), match("celery", "[c]elery", "glob"), match("a", "b")]
    seen += [
        match("celery", "cel.*y", "pcre"),
        match("xcelery", "cel", "pcre"),
        outcome(lambda: match("a", "b", "nix")),
    ]
    matcher.register("same", lambda data, pattern: data == pattern)
    seen += [match("a", "a", "same"), match("a", "b", "same"), matcher.unregister("same")]
    seen += [outcome(lambda: matcher.unregister("same")), outcome(lambda: match("a", "a", "same"))]
    return seen


def loggers(lib, connection, name):
    log = of(lib, "log")
    seen = [log.LOG_LEVELS, log.get_loglevel("INFO"), log.get_loglevel(10), outcome(lambda: log.get_loglevel("x"))]
    seen.append([type(handler).__name__ for handler in log.get_logger(name).handlers])
    written = io.StringIO()
    logger = logging.getLogger(name)
    logger.addHandler(logging.StreamHandler(written))
    logger.setLevel(logging.DEBUG)
    own = log.Log(name, logger)
    own.debug("a %s", 1)
    own.info("b %s %r", "x", {"y": 1})
    own.warn("c")
    own.log(20, "d %s", of(lib, "utils.functional").lazy(lambda: "late"))
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        own.error("failed")
        own.critical("worse", exc_info=False)
    lines = written.getvalue().replace(name, "NAME").splitlines()
    seen.append([line for line in lines if not line.startswith((" ", "Traceback"))])
    seen += [own.is_enabled_for("INFO"), own.get_loglevel("ERROR"), own.logger is logger, own.logger_name == name]
    return seen


def logged_calls(lib, connection, name):
    debug, written = of(lib, "utils.debug"), io.StringIO()
    logger = logging.getLogger(f"{lib.__name__}.{name}")
    logger.addHandler(logging.StreamHandler(written))
    logger.setLevel(logging.DEBUG)
    wrapped = debug.Logwrapped([3, 1], logger, "[{0!r}] ")
    wrapped.sort(reverse=True)
    wrapped.append(2)
    seen = [repr(wrapped), written.getvalue(), "sort" in dir(wrapped), outcome(lambda: wrapped.nothing)]
    with debug.Logwrapped(io.StringIO("text"), logger.name) as file:
        seen.append(file.read())
    before = len(logger.handlers)
    debug.setup_logging(logging.INFO, [logger.name])
    return [*seen, written.getvalue(), logger.level, len(logger.handlers) - before, sorted(debug.__all__)]


def simple_queues(lib, connection, name):
    simple = of(lib, "simple")
    queue = connection.SimpleQueue(name)
    seen = [bool(queue), len(queue), queue.qsize(), queue.no_ack, list(queue.buffer)]
    queue.put({"a": 1})
    queue.put("b", headers={"x": 1}, compression="zlib")
    seen.append(len(queue))
    for message in (queue.get(), queue.get(timeout=10)):
        seen.append((message.payload, message.headers, message.acknowledged))
        message.ack()
    for wait in (queue.get_nowait, lambda: queue.get(timeout=0.05), lambda: queue.get(block=False)):
        seen.append(outcome(wait))
    queue.put(1)
    queue.put(2)
    seen += [queue.clear(), len(queue), queue.Empty.__name__]
    with queue as same:
        seen.append(same is queue)
    for made in (
        connection.SimpleBuffer(f"{name}-b"),
        connection.SimpleQueue(f"{name}-o", queue_opts={"durable": False}, exchange_opts={"type": "topic"}),
        simple.SimpleQueue(connection.channel(), lib.Queue(f"{name}-q", lib.Exchange("e", "fanout"), routing_key="r")),
        connection.SimpleQueue(f"{name}-s", no_ack=True, serializer="pickle", accept=["pickle"]),
    ):
        made.put({"n": 1})
        message = made.get(timeout=10)
        seen += [made.queue.as_dict(recurse=True), made.no_ack, made.producer.routing_key, message.payload]
        seen += [message.content_type, made.producer.exchange.as_dict()]
        made.close()
    return repr(seen).replace(name, "NAME")


def common_helpers(lib, connection, name):
    common = of(lib, "common")
    seen = []
    for args, kwargs in [
        (("n",), {}),
        ((), {}),
        (("n", "q"), {}),
        (("n", "q"), {"unique": True}),
        ((), {"queue": "qq", "exchange": lib.Exchange("e")}),
        (("n",), {"alias": "al", "auto_delete": False, "routing_key": "k", "queue_arguments": {"a": 1}}),
    ]:
        made = common.Broadcast(*args, **kwargs)
        seen += [made.as_dict(recurse=True), repr(made), pickle.loads(pickle.dumps(made)).name == made.name]
    channel = connection.channel()
    exchange = lib.Exchange(name)
    seen += [common.maybe_declare(exchange, channel), common.maybe_declare(exchange, channel)]
    seen += [common.maybe_declare(exchange(channel)), outcome(lambda: common.maybe_declare(lib.Exchange("unbound")))]
    closed = connection.channel()
    seen.append(common.oid_from(seen) == common.oid_from(seen))
    seen.append(common.oid_from(seen) != common.oid_from(seen, threads=False))
    seen += [common.generate_oid(1, 2, 3, seen) == common.generate_oid(1, 2, 3, seen), closed is not channel]
    queue = lib.Queue(name, exchange, routing_key="k")(channel)
    queue.declare()
    producer = connection.Producer(exchange=exchange, routing_key="k")
    for i in range(6):
        producer.publish({"n": i}, correlation_id=f"c{i}", reply_to=name)
    seen.append(
        [body for body, _ in common.drain_consumer(connection.Consumer(queue, no_ack=True), limit=2, timeout=1)]
    )
    seen.append([body for body, _ in common.itermessages(connection, channel, queue, limit=2, timeout=1, no_ack=True)])
    request = queue.get(no_ack=True)
    common.send_reply(exchange, request, {"answer": 1}, producer, routing_key="k")
    answer = queue.get(no_ack=True), queue.get(no_ack=True)
    seen += [answer[1].payload, answer[1].properties["correlation_id"], answer[1].content_type]
    seen.append(list(common.eventloop(connection, limit=2, timeout=0.02, ignore_timeouts=True)))
    seen.append(outcome(lambda: list(common.eventloop(connection, limit=2, timeout=0.02))))
    with common.ignore_errors(connection):
        raise lib.exceptions.ChannelError("x")
    seen += [common.ignore_errors(connection, lambda a: a + 1, 2)]
    seen.append(outcome(lambda: common.ignore_errors(connection, lambda: 1 / 0)))
    pool = connection.Pool(2)
    arguments = {}
    seen.append(common.insured(pool, lambda a, **kwargs: arguments.update(kwargs) or a, (1,), {"k": 2}))
    seen += [sorted(arguments), arguments["k"]]
    return without_uuids(seen).replace(name, "NAME")


def prefetch(lib, connection, name):
    seen = []
    for initial, limit in [(10, None), (10, 12), (0, None)]:
        sent = []
        qos = of(lib, "common").QoS(lambda prefetch_count, sent=sent: sent.append(prefetch_count), initial, limit)
        for name, *arguments in [
            ("update",),
            ("increment_eventually",),
            ("update",),
            ("decrement_eventually", 20),
            ("update",),
            ("increment_eventually", 5),
            ("set", 65535),
            ("set", 65536),
            ("set", 0),
            ("update",),
        ]:
            seen.append((name, getattr(qos, name)(*arguments), qos.value, qos.prev, list(sent)))
    return seen


def pools(lib, connection, name):
    pools = of(lib, "pools")
    pools.reset()
    pool = connection.Pool(2)
    first, second = pool.acquire(), pool.acquire()
    seen = [first is not connection, first is not second, outcome(pool.acquire)]
    seen.append(outcome(lambda: pool.acquire(block=True, timeout=0.02)))
    second.release()
    seen += [pool.acquire() is second, outcome(lambda: pool.resize(1)), outcome(lambda: pool.resize(True))]
    pool.resize(1, force=True)
    seen.append(pool.limit)
    with pytest.raises(ValueError, match="left"), connection.Pool(1).acquire() as left:
        left.connect()
        raise ValueError("left")
    seen.append(left.connected)
    channels = connection.ChannelPool(1)
    channel = channels.acquire()
    seen.append(outcome(channels.acquire))
    channel.release()
    seen.append(channels.acquire() is channel)
    with connection.Pool(1).acquire_channel() as (connected, opened):
        seen.append(opened is connected.default_channel)
    seen += [pools.connections[connection] is pools.connections[connection], pools.producers[connection].limit]
    seen.append(pools.producers[connection].connections is pools.connections[connection])
    with pools.producers[connection].acquire(block=True) as producer:
        producer.publish(1, routing_key=name)
        seen.append(producer.channel.connection.client is producer.connection)
    seen += [pools.get_limit(), pools.set_limit(3), pools.connections[connection].limit, pools.get_limit()]
    pools.reset()
    seen += [len(pools.connections), pools.set_limit(10)]
    pool.force_close_all()
    seen += [outcome(pool.acquire), outcome(lambda: connection.Pool(True)), connection.Pool(None).limit or 0]
    return seen


def mailbox(lib, connection, name):
    pidbox = of(lib, "pidbox")
    mailbox = pidbox.Mailbox(name, type="fanout", queue_ttl=3, queue_expires=5)
    bound = mailbox(connection)
    seen = [bound is mailbox, bound.connection is connection, bound.exchange is mailbox.exchange]
    seen += [each.as_dict() for each in (bound.exchange, bound.reply_exchange)]
    seen += [bound.get_queue("h").as_dict(recurse=True), bound.get_reply_queue().as_dict(recurse=True)]
    seen.append(bound.oid == bound.reply_queue.routing_key)
    seen.append(outcome(lambda: pidbox.Mailbox("x", queue_exclusive=True, queue_durable=True)))
    other = pidbox.Mailbox(name, queue_exclusive=False, queue_durable=True)
    seen += [other.get_queue("h").as_dict(recurse=True), other.get_reply_queue().as_dict(recurse=True)]
    node = bound.Node("h", state={"s": 1}, channel=connection.channel())

    @node.handler
    def ping(state, **arguments):
        return ["pong", state, arguments]

    @node.handler
    def fail(state):
        raise ValueError("x")

    seen += [node.dispatch("ping", {"a": 1}), node.dispatch("nix"), node.dispatch("fail"), sorted(node.handlers)]
    seen += [node.handle_message({"method": "ping", "destination": ["other"]}), node.handle("ping", {"x": 1})]
    seen.append(node.handle_message({"method": "ping", "arguments": {"q": 1}, "destination": None}))
    requests = []
    consumer = node.listen()
    consumer.register_callback(lambda body, message: requests.append((body, sorted(message.headers))))
    done = threading.Event()

    def serve():
        while not done.is_set():
            try:
                connection.drain_events(timeout=0.05)
            except TimeoutError:
                pass

    server = threading.Thread(target=serve)
    server.start()
    try:
        with lib.Connection("memory://") as caller_connection:
            caller = pidbox.Mailbox(name, type="fanout")(caller_connection)
            seen += [caller.multi_call("ping", {"k": 1}, timeout=5, limit=1), caller.call(["h"], "ping", timeout=5)]
            got = []
            seen += [caller.call(["h"], "fail", {}, timeout=5, callback=got.append), got]
            seen += [caller.cast(["h"], "ping", {"z": 2}), caller.abcast("ping"), caller.call(["h"], "nix", timeout=5)]
            seen.append(outcome(lambda: caller.cast("h", "ping")))
    finally:
        done.set()
        server.join()
    seen.append(requests)
    return without_uuids(seen).replace(name, "NAME")


def mixins(lib, connection, name):
    seen = []
    queue = lib.Queue(name)
    queue(connection).declare()
    producer = connection.Producer()

    class Worker(of(lib, "mixins").ConsumerProducerMixin):
        def __init__(self):
            self.connection = connection
            self.bodies = 0

        def get_consumers(self, Consumer, channel):
            return [Consumer(queue, callbacks=[self.on_body], accept=["json"])]

        def on_body(self, body, message):
            seen.append(body)
            message.ack()
            self.bodies += 1
            self.should_stop = self.bodies == 3

        def on_connection_revived(self):
            seen.append("revived")

        def on_consume_ready(self, connection, channel, consumers, **kwargs):
            seen.append(("ready", len(consumers), kwargs))

        def on_consume_end(self, connection, channel):
            seen.append("end")
            super().on_consume_end(connection, channel)

        def on_iteration(self):
            seen.append("iteration")

    for i in range(3):
        producer.publish({"n": i}, routing_key=name)
    Worker().run(extra=1)
    for i in range(2):
        producer.publish({"n": i}, routing_key=name)
    worker = Worker()
    seen.append(list(worker.consume(limit=2)))
    seen.append(outcome(lambda: list(worker.consume(limit=1, timeout=0.05, safety_interval=0.05))))
    with worker.establish_connection() as own:
        seen += [own is not connection, own.connected]
    worker.producer.publish({"own": 1}, routing_key=name)
    seen += [worker.producer_connection.connected, queue(connection).get(no_ack=True).payload]
    worker.on_consume_end(None, None)
    seen += [worker._producer_connection, worker.maybe_conn_error(lambda: 3), worker.restart_limit.fill_rate]
    return seen


def legacy(lib, connection, name):
    compat = of(lib, "compat")
    publisher = compat.Publisher(connection, exchange=name, routing_key="rk")
    consumer = compat.Consumer(connection, queue=name, exchange=name, routing_key="rk")
    publisher.send({"x": 1})
    seen = [consumer.fetch(no_ack=True).payload, consumer.fetch(), publisher.exchange.as_dict(), publisher.routing_key]
    seen += [queue.as_dict(recurse=True) for queue in consumer.queues]
    publisher.send(1)
    publisher.send(2)
    seen += [consumer.discard_all(), outcome(consumer.process_next), outcome(lambda: consumer.discard_all(bool))]
    publisher.send(3)
    publisher.send(4)
    seen.append([message.payload for message in consumer.iterqueue(limit=5)])
    consumer.register_callback(lambda body, message: seen.append(("callback", body)))
    publisher.send(5)
    seen.append(consumer.fetch(enable_callbacks=True).payload)
    publisher.send(6)
    seen.append(list(consumer.iterconsume(limit=1)))
    settings = {f"{name}-1": {"exchange": f"{name}-e", "routing_key": "r"}}
    several = compat.ConsumerSet(connection, from_dict=settings, consumers=[consumer])
    seen += [sorted(queue.name for queue in several.queues), several.discard_all()]
    seen.append(compat.entry_to_queue("e", exchange="x", binding_key="k").as_dict(recurse=True))
    several.close()
    consumer.close()
    publisher.close()
    return repr(seen).replace(name, "NAME")


def timers_and_semaphores(lib, connection, name):
    seen = []
    timer = of(lib, "asynchronous.timer").Timer(max_interval=0.5)
    entries = [timer.call_after(0, seen.append, (i,), priority=p) for i, p in enumerate((0, 0, 0))]
    late = timer.call_after(60, seen.append, ("late",))
    entries[1].cancel()
    seen += [len(timer), len(timer.queue), bool(timer), entries[1].canceled, late.cancelled, timer.schedule is timer]
    schedule = iter(timer)
    for _ in range(3):
        wait, entry = next(schedule)
        if entry is None:
            seen.append(wait)
        else:
            timer.apply_entry(entry)
    timer.clear()
    seen.append(next(schedule))
    failed = of(lib, "asynchronous.timer").Timer(on_error=lambda error: seen.append(type(error).__name__))
    failed.apply_entry(failed.call_after(0, lambda: 1 / 0))
    semaphore = of(lib, "asynchronous.semaphore").LaxBoundedSemaphore(2)
    for i in range(4):
        seen.append(semaphore.acquire(seen.append, i))
    for act in (semaphore.release, semaphore.clear, semaphore.grow, semaphore.shrink, semaphore.release):
        act()
        seen.append((semaphore.value, semaphore.initial_value))
    with of(lib, "asynchronous.semaphore").DummyLock():
        pass
    return seen


def hub(lib, connection, name):
    import os

    asynchronous = of(lib, "asynchronous")
    loop = asynchronous.Hub()
    seen = [asynchronous.get_event_loop() is None, asynchronous.set_event_loop(loop) is loop]
    asynchronous.set_event_loop(None)
    out, into = os.pipe()
    try:
        loop.add_reader(out, lambda: seen.append(os.read(out, 10)))
        loop.add_writer(into, lambda: (os.write(into, b"x"), loop.remove_writer(into)))
        loop.call_soon(seen.append, "soon")
        loop.on_tick.add(lambda: None)
        loop.on_close.add(lambda closed: seen.append(closed is loop))
        seen += [sorted(loop.readers) == [out], sorted(loop.writers) == [into]]
        for wanted in (b"x", "later"):
            if wanted == "later":
                loop.call_later(0.01, seen.append, "later")
            for _ in range(20):
                loop.run_once()
                if wanted in seen:
                    break
        loop.remove(out)
        seen += [loop.readers, loop.writers]
        loop.call_later(0, loop.stop)
        loop.run_forever()
        loop.close()
    finally:
        os.close(out)
        os.close(into)
    order = ["soon", b"x", "later"]
    return [each for each in seen if each not in order], sorted(str(each) for each in seen if each in order)


@pytest.mark.parametrize(
    "program",
    [
        functional,
        helpers,
        clocks_and_matchers,
        loggers,
        logged_calls,
        simple_queues,
        common_helpers,
        prefetch,
        pools,
        mailbox,
        mixins,
        legacy,
        timers_and_semaphores,
        hub,
    ],
    ids=lambda program: program.__name__,
)
def test_program(program):
    kombu, kombulite = run(program)
    assert kombulite == kombu


class Recorder:
    """A channel that notes what is declared and bound."""

    channel_id = 1

    def __init__(self):
        self.calls = []

    def prepare_queue_arguments(self, arguments, **kwargs):
        return arguments

    def __getattr__(self, name):
        if name.startswith("_") or name == "default_channel":
            raise AttributeError(name)
        return lambda **kwargs: (
            self.calls.append((name, sorted((key, value) for key, value in kwargs.items() if value))) or ("q", 0, 0)
        )


class Recording:
    def __init__(self):
        self.default_channel = Recorder()

    def channel(self):
        return self.default_channel


def delayed_delivery(lib):
    delayed = importlib.import_module(f"{lib.__name__}.transport.native_delayed_delivery")
    connection = Recording()
    for queue_type, prefix in (("quorum", None), ("classic", "pre")):
        delayed.declare_native_delayed_delivery_exchanges_and_queues(connection, queue_type, prefix)
    topic = lib.Exchange("e", "topic")
    for queue in (
        lib.Queue("q", topic, routing_key="k.x"),
        lib.Queue("q", topic, routing_key="#.k"),
        lib.Queue("q", lib.Exchange("e", "direct"), routing_key="k"),
        lib.Queue("q", lib.Exchange("e", "fanout")),
        lib.Queue("q", [lib.binding(topic, "a"), lib.binding(lib.Exchange("e2", "direct"), "b")]),
        lib.Queue("q"),
    ):
        delayed.bind_queue_to_native_delayed_delivery_exchange(connection, queue)
        delayed.bind_queue_to_native_delayed_delivery_exchange(connection, queue, "pre")
    key = delayed.calculate_routing_key(5, "a.b")
    values = [key, delayed.calculate_routing_key(1, key), delayed.level_name(3), delayed.level_name(3, "p")]
    for call in (
        lambda: delayed.level_name(-1),
        lambda: delayed.calculate_routing_key(-1, "a"),
        lambda: delayed.calculate_routing_key(1, ""),
        lambda: delayed.declare_native_delayed_delivery_exchanges_and_queues(connection, "x"),
    ):
        values.append(outcome(call))
    return {repr(call) for call in connection.default_channel.calls}, values


def test_delayed_delivery():
    kombu, kombulite = (delayed_delivery(importlib.import_module(name)) for name in ("kombu", "kombulite"))
    assert kombulite == kombu


def test_identities_differ_between_processes_and_objects():
    from kombulite.common import generate_oid

    assert len({generate_oid(1, 2, 3, each) for each in (uuid, pytest)} | {generate_oid(1, 2, 4, uuid)}) == 3
