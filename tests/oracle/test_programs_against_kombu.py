"""The same program over ``memory://`` under kombu and under kombulite does the same."""

from __future__ import annotations

import copy
import importlib
import pickle
import uuid

import pytest

NAMES = ["hello", "grüße"]


def run(program):
    """Run a program under both libraries; returns what each gave."""
    results = []
    for name in ("kombu", "kombulite"):
        library = importlib.import_module(name)
        with library.Connection("memory://") as connection:
            results.append(program(library, connection, f"{program.__name__}-{uuid.uuid4()}"))
    return results


def outcome(function):
    """What a function returns, or the name of the error it raises."""
    try:
        return function()
    except Exception as error:
        return type(error).__name__


def publish_and_consume(lib, connection, name):
    exchange = lib.Exchange(name, "direct")
    queues = [lib.Queue(f"{name}-{key}", exchange, routing_key=key) for key in "ab"]
    producer = lib.Producer(connection, exchange=exchange, serializer="json")
    got = []

    def callback(body, message):
        got.append((body, message.headers, message.content_type, message.delivery_info["routing_key"]))
        message.ack()

    with lib.Consumer(connection, queues, callbacks=[callback], accept=["json"]) as consumer:
        for i in range(4):
            producer.publish({"n": i}, routing_key="ab"[i % 2], headers={"h": i})
        for _ in range(4):
            connection.drain_events(timeout=10)
        states = [consumer.consuming_from(f"{name}-a")]
        consumer.cancel_by_queue(f"{name}-a")
        states += [consumer.consuming_from(f"{name}-a"), sorted(queue.name[-1] for queue in consumer.queues)]
    return sorted(got, key=repr), states


def get_and_states(lib, connection, name):
    queue = lib.Queue(name)(connection)
    queue.declare()
    producer = lib.Producer(connection)
    seen = []
    for i in range(3):
        producer.publish({"n": i}, routing_key=name, correlation_id=f"c{i}", priority=i, expiration=100)
    first = queue.get()
    seen.append((first.payload, first.acknowledged, first._state, first.properties["correlation_id"]))
    seen.append((first.properties["delivery_mode"], first.properties["priority"], first.properties["expiration"]))
    first.ack()
    seen.append((first.acknowledged, first._state, outcome(first.ack), outcome(first.reject), outcome(first.requeue)))
    second = queue.get(no_ack=True)
    seen.append(second.payload)
    third = queue.get(accept=["pickle"])
    seen.append(outcome(lambda: third.payload))
    third.reject()
    seen.append((third._state, queue.get(), queue.purge(), outcome(lambda: queue.delete() or 0)))
    return seen


def bodies_of_all_kinds(lib, connection, name):
    queue = lib.Queue(name)(connection)
    queue.declare()
    producer = lib.Producer(connection)
    seen = []
    for body, options in [
        ("text", {}),
        ("", {}),
        (b"raw", {}),
        ({"a": [1, None]}, {}),
        ("quoted", {"serializer": "json"}),
        (b"bytes", {"serializer": "json"}),
        ("raw text", {"serializer": "raw"}),
        ("typed", {"content_type": "text/x-mine"}),
        (b"typed", {"content_type": "application/x-mine"}),
        (b"typed", {"content_type": "application/x-mine", "content_encoding": "utf-8"}),
        ({"z": 1}, {"compression": "zlib"}),
        ("z", {"compression": "bzip2"}),
    ]:
        producer.publish(body, routing_key=name, **options)
        message = queue.get(no_ack=True)
        seen.append((message.body, message.payload, message.content_type, message.content_encoding, message.headers))
    return seen


def fanout_and_topic(lib, connection, name):
    fanout, topic = lib.Exchange(f"{name}-f", "fanout"), lib.Exchange(f"{name}-t", "topic")
    queues = [
        lib.Queue(f"{name}-1", fanout),
        lib.Queue(f"{name}-2", [lib.binding(fanout), lib.binding(topic, "a.*")]),
        lib.Queue(f"{name}-3", topic, routing_key="*.b"),
    ]
    for queue in queues:
        queue(connection).declare()
    producer = lib.Producer(connection)
    producer.publish("f", exchange=fanout)
    for key in ("a.b", "a.c", "x.b", "x.y"):
        producer.publish(key, exchange=topic, routing_key=key)
    found = []
    for queue in queues:
        bound, bodies = queue(connection), []
        while (message := bound.get(no_ack=True)) is not None:
            bodies.append(message.payload)
        found.append(bodies)
    return found


def entities(lib, connection, name):
    exchange = lib.Exchange("ex", "topic", durable=False, delivery_mode="transient", arguments={"a": 1})
    queue = lib.Queue(
        "q", exchange, routing_key="k", expires=60, message_ttl=2.5, max_length=100, max_priority=5, exclusive=True
    )
    several = lib.Queue("s", [lib.binding(exchange, "x")])
    bound = queue(connection.channel())
    seen = [repr(exchange), str(exchange), repr(queue), repr(several), str(exchange.binding("k"))]
    seen += [queue.as_dict(recurse=True), several.as_dict(recurse=True), exchange.as_dict()]
    seen += [bound.is_bound, queue.is_bound, bound == queue, hash(bound) == hash(queue), queue.auto_delete]
    seen += [exchange.can_cache_declaration, queue.can_cache_declaration, lib.Queue("n").can_cache_declaration]
    seen += [copy.copy(queue).as_dict(recurse=True), pickle.loads(pickle.dumps(bound)).as_dict(recurse=True)]
    seen += [copy.copy(exchange) == exchange, pickle.loads(pickle.dumps(exchange)) == exchange]
    seen += [outcome(lambda: queue.channel), outcome(lambda: lib.Queue("u").declare())]
    seen += [lib.Queue("a") == lib.Queue("a", durable=False), lib.Exchange("a") == lib.Exchange("a", "topic")]
    seen.append(
        lib.Queue.from_dict(
            "f",
            exchange="e",
            exchange_type="topic",
            binding_key="bk",
            durable=False,
            queue_durable=True,
            auto_delete=True,
        ).as_dict(recurse=True)
    )
    seen += [exchange.delivery_mode, exchange.type, lib.Exchange("d").delivery_mode]
    return seen


def consumer_errors(lib, connection, name):
    queue = lib.Queue(name)(connection)
    queue.declare()
    producer = lib.Producer(connection)
    errors = []
    producer.publish("{", routing_key=name, content_type="application/json")
    producer.publish({"a": 1}, routing_key=name, serializer="pickle")
    seen = []
    with lib.Consumer(
        connection,
        queue,
        callbacks=[lambda body, message: seen.append(body)],
        on_decode_error=lambda message, error: errors.append(type(error).__name__),
    ):
        for _ in range(2):
            connection.drain_events(timeout=10)
    seen.append(errors)
    seen.append(outcome(lambda: lib.Consumer(connection, queue, accept=["no-such-serializer"])))
    seen.append(outcome(lambda: producer.publish(1, routing_key=name, serializer="no-such-serializer")))
    seen.append(outcome(lambda: producer.publish(object(), routing_key=name)))
    seen.append(outcome(lambda: producer.publish(1, routing_key=name, compression="no-such-compression")))
    seen.append(outcome(lambda: connection.drain_events(timeout=0.05)))
    return seen


def addresses(lib, connection, name):
    seen = []
    for url in [
        "memory://",
        "memory://h/vh",
        "memory://u:p%40w@h:77/v%2Fh",
        "memory://[::1]:1/",
        "memory://;memory://b",
    ]:
        made = lib.Connection(url)
        info = dict(made.info())
        info["alternates"] = list(info["alternates"])
        seen.append(
            (made.as_uri(), made.as_uri(include_password=True), info, made.alt, made.hostname, made.virtual_host)
        )
        cloned = pickle.loads(pickle.dumps(made)).clone(userid="other")
        seen.append((cloned.as_uri(), cloned.userid, cloned.connected))
    seen.append(outcome(lambda: lib.Connection("no-such-scheme://")))
    seen.append(outcome(lambda: lib.Connection("mem.ory://")))
    seen.append(outcome(lambda: lib.Connection("memory://h:port/")))
    made = lib.Connection("memory://a;memory://b;memory://c")
    seen.append([made.completes_cycle(n) for n in range(6)])
    made.maybe_switch_next()
    seen.append((made.hostname, made.as_uri()))
    made.switch("memory://z")
    seen.append((made.hostname, made.as_uri()))
    for url in ["amqp://guest:x@localhost:5672//", "amqp://a%40b:c%2Fd@h/v%2Fh", "amqp://", "redis://:pw@h:1/3?a=b"]:
        seen.append(lib.parse_url(url))
    return seen


def retries(lib, connection, name):
    functional = importlib.import_module(f"{lib.__name__}.utils.functional")
    calls, sleeps = [], []

    def fail():
        calls.append(1)
        if len(calls) % 5:
            raise OSError("down")
        return "done"

    def errback(error, intervals, retries):
        sleeps.append((retries, next(intervals)))
        return 0

    def tries(**options):
        calls.clear()
        sleeps.clear()
        return (
            outcome(lambda: functional.retry_over_time(fail, OSError, errback=errback, **options)),
            len(calls),
            list(sleeps),
        )

    seen = [
        tries(),
        tries(max_retries=2),
        tries(max_retries=0),
        tries(max_retries=10, interval_start=1, interval_step=0.5, interval_max=2),
        outcome(lambda: functional.retry_over_time(lambda: 1 / 0, OSError)),
    ]
    seen.append([value for value, _ in zip(functional.fxrange(1, 3, 0.5, repeatlast=True), range(8))])
    seen.append(outcome(lambda: connection.ensure(connection, fail_always, max_retries=1)()))
    return seen


def fail_always():
    raise RuntimeError("not a connection error")


@pytest.mark.parametrize(
    "program",
    [
        publish_and_consume,
        get_and_states,
        bodies_of_all_kinds,
        fanout_and_topic,
        entities,
        consumer_errors,
        addresses,
        retries,
    ],
    ids=lambda program: program.__name__,
)
def test_program(program):
    kombu, kombulite = run(program)
    assert kombulite == kombu
