"""Where kombu takes None for the default, or for nothing, so does kombulite.

The calls are found by introspection: every public function, class and method that both libraries have. ``MADE_WITH``
says what a call needs besides; a call that cannot be made at all has its reason in ``LEFT_OUT``.
"""

from __future__ import annotations

import importlib
import inspect
import io
import logging
import pkgutil
import re
import uuid

import pytest

import kombulite
from tests.oracle.test_programs_against_kombu import outcome

#: Modules of other kinds, or with suites of their own.
OTHERS = re.compile(r"_|aio|brokers|cli|contrib|transport|asynchronous\.(aws|http|debug)")

MODULES = [
    name
    for name in (
        each.name.removeprefix("kombulite.") for each in pkgutil.walk_packages(kombulite.__path__, "kombulite.")
    )
    if not OTHERS.match(name) and importlib.util.find_spec(f"kombu.{name}") is not None
]


class Bench:
    """One library with one of each thing, on a broker in memory."""

    def __init__(self, name):
        self.library = name
        kombu = self.of()
        self.name = f"none-{uuid.uuid4().hex}"
        self.connection = kombu.Connection("memory://")
        self.channel = self.connection.channel()
        self.exchange = kombu.Exchange(self.name, "direct")(self.channel)
        self.queue = kombu.Queue(self.name, self.exchange, self.name)(self.channel)
        self.queue.declare()
        self.producer = kombu.Producer(self.channel, self.exchange, self.name)
        self.consumer = kombu.Consumer(self.channel, [self.queue], callbacks=[ignore])
        self.publish()
        self.message = self.queue.get()
        self.publish()
        self.lost = self.connection.recoverable_connection_errors[0]

    def of(self, module=""):
        return importlib.import_module(f"{self.library}.{module}" if module else self.library)

    def publish(self, body="1", **properties):
        self.producer.publish(body, serializer="json", **properties)

    def failing(self, times=1):
        """A function that loses its connection a few times, and then works."""
        left = [self.lost("lost")] * times

        def fail(*args, **kwargs):
            if left:
                raise left.pop()

        return fail

    def mailbox(self):
        return self.of("pidbox").Mailbox(self.name, connection=self.connection)

    def pool(self):
        return self.connection.Pool(2)


def ignore(*args, **kwargs):
    """A callback."""


VALUES = {
    "name": lambda b: b.name,
    "channel": lambda b: b.channel,
    "new_channel": lambda b: b.channel,
    "connection": lambda b: b.connection,
    "conn": lambda b: b.connection,
    "message": lambda b: b.message,
    "queue": lambda b: b.queue,
    "queues": lambda b: [b.queue],
    "exchange": lambda b: b.exchange,
    "entity": lambda b: b.of().Exchange(b.name),
    "consumer": lambda b: b.consumer,
    "callback": lambda b: ignore,
    "fun": lambda b: ignore,
    "contract": lambda b: ignore,
    "func": lambda b: ignore,
    "encoder": lambda b: ignore,
    "decoder": lambda b: ignore,
    "obj": lambda b: [1],
    "o": lambda b: [1],
    "instance": lambda b: b,
    "item": lambda b: 1,
    "url": lambda b: "memory://",
    "body": lambda b: "x",
    "text": lambda b: "t",
    "s": lambda b: '{"a": 1}',
    "data": lambda b: b'"text"',
    "content_type": lambda b: "application/json",
    "content_encoding": lambda b: "utf-8",
    "limit": lambda b: 2,
    "n": lambda b: 1,
    "value": lambda b: 1,
    "consumer_tag": lambda b: "t",
    "interval": lambda b: 1,
    "timeout": lambda b: 0.01,
    "fd": lambda b: 0,
    "fds": lambda b: 0,
    "flags": lambda b: 1,
    "f": lambda b: 0,
    "when": lambda b: 1.0,
    "eta": lambda b: 1.0,
    "d": lambda b: 1.0,
    "delay": lambda b: 1.0,
    "secs": lambda b: 1.0,
    "exc": lambda b: ValueError("x"),
    "entry": lambda b: b.of("asynchronous.timer").Entry(ignore),
    "tref": lambda b: b.of("asynchronous.timer").Entry(ignore),
    "priority": lambda b: 0,
    "other": lambda b: 1,
    "clock": lambda b: 1,
    "timestamp": lambda b: 1.0,
    "id": lambda b: "a",
    "initial_value": lambda b: 1,
    "pcount": lambda b: 1,
    "retries": lambda b: 1,
    "exchange_type": lambda b: "direct",
    "conn_str": lambda b: "memory://b",
    "code": lambda b: 404,
    "logger": lambda b: logging.getLogger(b.name),
    "level": lambda b: "INFO",
    "errors": lambda b: (KeyError,),
    "active": lambda b: True,
    "namespace": lambda b: b.name,
    "command": lambda b: "ping",
    "method": lambda b: "ping",
    "destination": lambda b: ["x"],
    "hostname": lambda b: "localhost",
    "connections": lambda b: b.pool(),
    "pool": lambda b: b.pool(),
    "content_types": lambda b: ["json"],
    "encoding": lambda b: "utf-8",
    "file": lambda b: io.StringIO(),
    "argument_name": lambda b: "args",
    "it": lambda b: [1],
    "iterable": lambda b: [1],
    "key": lambda b: "k",
    "loop": lambda b: b.of("asynchronous").Hub(),
    "catch": lambda b: KeyError,
    "t": lambda b: Bench,
    "marker": lambda b: None,
    "fill_rate": lambda b: 1,
    "v": lambda b: 1,
    "scheme": lambda b: "memory",
    "resources": lambda b: [1],
    "predicate": lambda b: KeyError,
    "node_id": lambda b: 1,
    "process_id": lambda b: 1,
    "thread_id": lambda b: 1,
    "args": lambda b: (),
    "kwargs": lambda b: {},
    "req": lambda b: b.message,
    "msg": lambda b: "x",
    "pattern": lambda b: "*",
    "cls": lambda b: b.of().Exchange,
    "type": lambda b: "json",
}

#: What a call is made with besides what it must have; parameters of these are tried with None too.
MADE_WITH = {
    "asynchronous.hub:set_event_loop": lambda b: {"loop": b.of("asynchronous").get_event_loop()},
    "common:eventloop": lambda b: {"conn": ready(b), "limit": 1, "timeout": 0.01, "ignore_timeouts": True},
    "common:maybe_declare": lambda b: {"channel": b.channel},
    "common:send_reply": lambda b: {"exchange": b.exchange, "producer": b.producer, "req": reply_to(b)},
    "common:itermessages": lambda b: {"timeout": 0.01},
    "common:drain_consumer": lambda b: {"timeout": 0.01},
    "common:collect_replies": lambda b: {"timeout": 0.01},
    "compression:compress": lambda b: {"body": b"x", "content_type": "zlib"},
    "compression:get_encoder": lambda b: {"t": "zlib"},
    "compression:get_decoder": lambda b: {"t": "zlib"},
    "connection:Connection": lambda b: {"hostname": "memory://a;memory://b"},
    "connection:Connection.SimpleBuffer": lambda b: {"name": f"{b.name}-simple"},
    "connection:Connection.SimpleQueue": lambda b: {"name": f"{b.name}-simple"},
    "connection:Connection.drain_events": lambda b: {"timeout": 0.1 if ready(b) else 0},
    "connection:Connection.ensure": lambda b: {"obj": b.producer, "fun": b.failing()},
    "connection:Connection.autoretry": lambda b: {"fun": b.failing()},
    "entity:Exchange.publish": lambda b: {"message": "x"},
    "entity:Exchange.Message": lambda b: {"body": "x"},
    "pidbox:Mailbox": lambda b: {"connection": b.connection},
    "pidbox:Mailbox.call": lambda b: {"timeout": 0.01},
    "pidbox:Mailbox.multi_call": lambda b: {"timeout": 0.01},
    "pidbox:Node.dispatch_from_message": lambda b: {"body": {"method": "ping", "destination": ["x"]}},
    "pidbox:Node.handle_message": lambda b: {"body": {"method": "ping", "destination": ["x"]}},
    "pidbox:Node": lambda b: {"mailbox": b.mailbox()},
    "serialization:SerializerRegistry.enable": lambda b: {"name": "yaml"},
    "serialization:SerializerRegistry.disable": lambda b: {"name": "yaml"},
    "simple:SimpleBuffer": lambda b: {"name": f"{b.name}-simple"},
    "simple:SimpleQueue.get": lambda b: {"timeout": 0.01},
    "simple:SimpleQueue.put": lambda b: {"message": "x"},
    "simple:SimpleBuffer.put": lambda b: {"message": "x"},
    "utils.functional:retry_over_time": lambda b: {"fun": b.failing(), "catch": b.lost, "interval_start": 0.01},
    "utils.imports:symbol_by_name": lambda b: {"name": "json:loads"},
    "utils.scheduling:FairCycle": lambda b: {"fun": ignore},
    "utils.scheduling:cycle_by_name": lambda b: {"name": "round_robin"},
    "utils.scheduling:priority_cycle.rotate": lambda b: {"last_used": 1},
}

WAITS = "waits for ever without a timeout"
NEEDS_ONE_OUT = "needs a resource that is out; the pools' own tests have it"
NOT_THERE = "what it asks for is not there: it raises with any arguments"
NOT_ON_MEMORY = "kombu's memory transport cannot do it"
INSIDE = "takes what others of these make"

LEFT_OUT = {
    "abstract:unpickle_dict": INSIDE,
    "asynchronous.hub:Hub.run_forever": "has no end",
    "asynchronous.hub:Hub.add": "a descriptor of its own: the event loop's tests have it",
    "asynchronous.hub:Hub.add_reader": "a descriptor of its own: the event loop's tests have it",
    "asynchronous.hub:Hub.add_writer": "a descriptor of its own: the event loop's tests have it",
    "asynchronous.hub:Hub.create_loop": "its keywords are names of built-in functions that a test of kombu's replaces",
    "asynchronous.timer:Timer.handle_error": INSIDE,
    "clocks:LamportClock.sort_heap": INSIDE,
    "common:insured": "without a failure in retries of its own: ensure has them",
    "compression:decompress": INSIDE,
    "connection:PooledConnection": "pools make it",
    "asynchronous.hub:Hub.repr_events": INSIDE,
    "entity:Exchange.bind_to": NOT_ON_MEMORY,
    "entity:Exchange.unbind_from": NOT_ON_MEMORY,
    "entity:Queue.bind_to": NOT_THERE,
    "entity:Queue.unbind_from": NOT_THERE,
    "entity:binding.bind": INSIDE,
    "entity:binding.unbind": INSIDE,
    "messaging:Consumer.flow": NOT_ON_MEMORY,
    "messaging:Consumer.recover": NOT_ON_MEMORY,
    "pidbox:Node.dispatch": INSIDE,
    "pidbox:Node.handle": INSIDE,
    "pidbox:Node.handle_call": INSIDE,
    "pidbox:Node.handle_cast": INSIDE,
    "pidbox:Node.reply": INSIDE,
    "pools:register_group": "changes the process",
    "resource:Resource": "abstract",
    "serialization:disable_insecure_serializers": "changes the process; the next is tried by hand below",
    "serialization:enable_insecure_serializers": "changes the process; tried by hand below",
    "serialization:codec": "another thing in kombulite",
    "serialization:pickle_loads": "pickle's",
    "serialization:unpickle": "pickle's",
    "serialization:SerializerRegistry.unregister": NOT_THERE,
    "simple:SimpleBase": INSIDE,
    "simple:SimpleBuffer.get": WAITS,
    "simple:SimpleBuffer.get_nowait": NOT_THERE,
    "utils.collections:eqhash": INSIDE,
    "utils.compat:coro": INSIDE,
    "utils.compat:entrypoints": "packages that are installed",
    "utils.functional:LRUCache.incr": NOT_THERE,
    "utils.functional:LRUCache.pop": NOT_THERE,
    "utils.functional:LRUCache.popitem": NOT_THERE,
    "utils.json:object_hook": INSIDE,
    "utils.json:register_type": "changes the process",
    "utils.objects:cached_property": "a property without a function",
    "utils.limits:TokenBucket.pop": NOT_THERE,
    "utils.url:parse_ssl_cert_reqs": "takes text",
    "utils.url:urlparts": INSIDE,
}
LEFT_OUT |= {
    "common:declaration_cached": INSIDE,
    "common:revive_connection": INSIDE,
    "connection:is_connection": "takes anything",
    "entity:pretty_bindings": INSIDE,
    "exceptions:reraise": "raises with any arguments",
    "log:naive_format_parts": "takes text",
    "log:safeify_format": "takes text",
    "serialization:parenthesize_alias": "takes text",
    "utils.amq_manager:get_manager": "needs a library that is not installed",
    "utils.debug:Logwrapped": "has the methods of what it wraps",
    "utils.div:emergency_dump_state": "leaves a file behind",
    "utils.text:escape_regex": "takes text",
    "utils.text:fmatch_best": "takes text",
    "utils.text:fmatch_iter": "takes text",
    "utils.text:version_string_as_tuple": "takes text",
}
LEFT_OUT |= {
    f"{pool}.{verb}": NEEDS_ONE_OUT
    for pool in ("connection:ChannelPool", "connection:ConnectionPool", "pools:ProducerPool", "resource:Resource")
    for verb in ("close_resource", "collect_resource", "prepare", "release", "release_resource", "replace")
}

#: Objects whose methods are tried, beside their classes.
OBJECTS = {
    "asynchronous.hub:Hub": lambda b: b.of("asynchronous.hub").Hub(),
    "asynchronous.semaphore:LaxBoundedSemaphore": lambda b: b.of("asynchronous.semaphore").LaxBoundedSemaphore(2),
    "asynchronous.timer:Timer": lambda b: b.of("asynchronous.timer").Timer(),
    "clocks:LamportClock": lambda b: b.of("clocks").LamportClock(),
    "common:QoS": lambda b: b.of("common").QoS(ignore, 1),
    "connection:ChannelPool": lambda b: b.connection.ChannelPool(2),
    "connection:Connection": lambda b: b.connection,
    "connection:ConnectionPool": lambda b: b.pool(),
    "entity:Exchange": lambda b: b.exchange,
    "entity:Queue": lambda b: b.queue,
    "entity:binding": lambda b: b.of().binding(b.exchange, "k"),
    "message:Message": lambda b: b.message,
    "messaging:Consumer": lambda b: b.consumer,
    "messaging:Producer": lambda b: b.producer,
    "pidbox:Mailbox": lambda b: b.mailbox(),
    "pidbox:Node": lambda b: b.mailbox().Node("h", channel=b.channel),
    "pools:ProducerPool": lambda b: b.of("pools").ProducerPool(b.pool(), 2),
    "resource:Resource": lambda b: b.pool(),
    "serialization:SerializerRegistry": lambda b: b.of("serialization").registry,
    "simple:SimpleBuffer": lambda b: b.connection.SimpleBuffer(f"{b.name}-simple"),
    "simple:SimpleQueue": lambda b: b.connection.SimpleQueue(b.name),
    "utils.functional:LRUCache": lambda b: b.of("utils.functional").LRUCache(3),
    "utils.limits:TokenBucket": lambda b: b.of("utils.limits").TokenBucket(1),
    "utils.scheduling:priority_cycle": lambda b: b.of("utils.scheduling").priority_cycle([1, 2]),
}

#: Parameters that kombu takes None for by an accident of its own, and what it does then.
ACCIDENTS = {
    ("common:collect_replies", "channel"): "fails at the end",
    ("common:eventloop", "limit"): WAITS,
    ("common:itermessages", "channel"): "fails at the first message",
    ("entity:Exchange.Message", "body"): "the message has no body, and cannot be sent",
    ("pidbox:Mailbox.call", "timeout"): WAITS,
    ("pidbox:Mailbox.multi_call", "timeout"): WAITS,
    ("serialization:SerializerRegistry.loads", "_trusted_content"): "private",
    ("utils.json:dumps", "default_kwargs"): "internal",
}


def ready(bench):
    """A connection with an event to drain."""
    bench.consumer.consume()
    return bench.connection


def reply_to(bench):
    bench.publish(reply_to=bench.name)
    bench.queue.get()
    return bench.queue.get()


def found(label, bench):
    """What a label stands for: ``module:function``, ``module:Class`` or ``module:Class.method``; None if missing."""
    module, _, path = label.partition(":")
    name, _, method = path.partition(".")
    if not method:
        return getattr(bench.of(module), name, None)
    return getattr(OBJECTS[f"{module}:{name}"](bench), method, None)


def labels():
    bench = Bench("kombu")
    for module in MODULES:
        for name, thing in vars(bench.of(module)).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != f"kombu.{module}":
                continue
            if inspect.isfunction(thing) or inspect.isclass(thing):
                yield f"{module}:{name}"
    for label, make in OBJECTS.items():
        cls = type(make(bench))
        for name in dir(cls):
            if not name.startswith("_") and inspect.isroutine(getattr(cls, name)):
                yield f"{label}.{name}"


def parameters(label):
    signature = inspect.signature(found(label, Bench("kombu")))
    by_name = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    return [each for each in signature.parameters.values() if each.kind in by_name]


def call(label, library, **changed):
    bench = Bench(library)
    arguments = {
        each.name: VALUES[each.name](bench)
        for each in parameters(label)
        if each.default is each.empty and each.name in VALUES
    }
    arguments |= MADE_WITH.get(label, lambda bench: {})(bench) | changed
    result = found(label, bench)(**arguments)
    if label in ("connection:Connection.ensure", "connection:Connection.autoretry"):
        result()
    if inspect.isgenerator(result):
        next(result, None)
        result.close()
    bench.connection.release()


pytestmark = pytest.mark.usefixtures("tables_stay")


def tried():
    bench = Bench("kombulite")
    for label in labels():
        if label in LEFT_OUT or found(label, bench) is None:
            continue
        try:
            wanted = parameters(label)
        except ValueError:
            continue  # a class without a signature, as some exceptions
        if wanted:
            yield label


@pytest.mark.parametrize("label", list(tried()))
def test_none_is_taken_where_kombu_takes_it(label):
    assert outcome(lambda: call(label, "kombu")) is None, "this call has no arguments that kombu takes"
    assert outcome(lambda: call(label, "kombulite")) is None
    for each in parameters(label):
        if (label, each.name) in ACCIDENTS:
            continue
        none = {each.name: None}
        if outcome(lambda none=none: call(label, "kombu", **none)) is None:
            call(label, "kombulite", **none)
