"""Transports as programs write them over kombu's classes: under kombulite they do what they do under kombu."""

from __future__ import annotations

import queue as queues
import warnings
from collections import defaultdict, deque
from types import SimpleNamespace

from tests.oracle.side_by_side import of, outcome, side_by_side

WAIT = 5  # seconds, for a message that is there


def store(lib, channel=(), transport=(), **hooks):
    """The class of a transport over lists in memory, with members of its own; ``hooks`` are the channel's."""
    virtual = of(lib, "transport.virtual")
    lists = defaultdict(deque)

    class Channel(virtual.Channel):
        def _put(self, queue, message, **kwargs):
            lists[queue].append(message)

        def _get(self, queue, timeout=None):
            if not lists[queue]:
                raise queues.Empty
            return lists[queue].popleft()

        def _size(self, queue):
            return len(lists[queue])

        def _purge(self, queue):
            return len(lists.pop(queue, ()))

    chosen = type("Channel", (Channel,), {**dict(channel), **hooks})
    made = {"Channel": chosen, "polling_interval": 0.01, "lists": lists, **dict(transport)}
    return type("Transport", (virtual.Transport,), made)


def round_trip(lib, cls, *bodies, settle="ack", exchange=None, **options):
    """What a consumer gets of some messages, or the errors on the way."""
    seen = []
    with lib.Connection(transport=cls, **options) as connection:
        queue = lib.Queue("q", exchange or lib.Exchange("e"), routing_key="k")
        producer = connection.Producer(exchange=queue.exchange, routing_key="k")
        seen.append([outcome(producer.publish, body, declare=[queue]) for body in bodies])

        def receive(body, message):
            seen.append((body, type(message).__name__, outcome(getattr(message, settle))))

        def consume():
            with connection.Consumer(queue, callbacks=[receive]):
                for _ in bodies:
                    seen.append(outcome(connection.drain_events, timeout=0.1))

        seen.append(outcome(consume))
    seen.append({name: len(each) for name, each in cls.lists.items()})
    return seen


def a_plain_store(lib):
    return round_trip(lib, store(lib), 1, "x", {"a": [1]})


def results_of_put(lib):
    """A publish returns what the store does, for the default exchange."""
    cls = store(lib, _put=lambda self, queue, message, **kwargs: ("put", queue, sorted(kwargs)))
    with lib.Connection(transport=cls) as connection:
        return [connection.Producer().publish(1, routing_key="q"), connection.Producer().publish(1, exchange="e")]


def errors_of_put(lib):
    def fail(self, queue, message, **kwargs):
        raise RuntimeError("full")

    return round_trip(lib, store(lib, _put=fail), 1)


def errors_of_get(lib):
    def fail(self, queue, timeout=None):
        raise LookupError("broken")

    return round_trip(lib, store(lib, _get=fail), 1)


def errors_of_new_queue_and_size(lib):
    def fail(self, queue, **kwargs):
        raise RuntimeError("refused")

    return [round_trip(lib, store(lib, **{name: fail}), 1) for name in ("_new_queue", "_size", "_has_queue")]


def errors_of_ack_and_reject(lib):
    def fail(self, *args, **kwargs):
        raise RuntimeError("lease lost")

    return [
        round_trip(lib, store(lib, basic_ack=fail), 1),
        round_trip(lib, store(lib, basic_reject=fail), 1, settle="reject"),
    ]


def hooks_that_are_missing(lib):
    virtual = of(lib, "transport.virtual")
    cls = type("Transport", (virtual.Transport,), {"polling_interval": 0.01, "lists": {}})
    with lib.Connection(transport=cls) as connection:
        channel = connection.channel()
        verbs = ("_get", "_purge", "_size", "_new_queue", "_delete", "_has_queue")
        return [outcome(getattr(channel, verb), "q") for verb in verbs] + [
            outcome(channel._put, "q", {}),
            outcome(channel.flow),
            outcome(channel.exchange_bind, "a", "b"),
            outcome(channel.basic_recover),
            outcome(channel.get_bindings),
        ]


def methods_of_base_that_are_missing(lib):
    base = of(lib, "transport.base")
    connection = lib.Connection(transport=base.Transport)
    found = [outcome(getattr(connection, verb)) for verb in ("connect", "channel", "drain_events", "ensure_connection")]
    return [*found, type(connection.get_manager()).__name__, connection.supports_heartbeats, connection.is_evented]


def errors_are_asked_of_the_class(lib):
    class Errors(Exception):
        pass

    cls = store(lib, transport={"connection_errors": (Errors,), "channel_errors": (KeyError,)})
    connection = lib.Connection(transport=cls)
    found = connection.recoverable_connection_errors, connection.recoverable_channel_errors
    tries = []

    def fail():
        tries.append(1)
        if len(tries) < 2:
            raise Errors("again")
        return "done"

    policy = {"max_retries": 5, "interval_start": 0, "interval_step": 0}
    return [found == ((Errors, KeyError), ()), outcome(connection.ensure(connection, fail, **policy)), len(tries)]


def polling_interval_by_option(lib):
    cls = store(lib)
    with lib.Connection(transport=cls, transport_options={"polling_interval": 0.25}) as connection:
        return [connection.transport.polling_interval, cls.polling_interval]


def fanout_without_its_hooks(lib):
    """Without the capability a message goes nowhere; with it, and without what it takes, binding is an error."""
    kind = lib.Exchange("f", "fanout")
    published = round_trip(lib, store(lib, channel={"supports_fanout": True}), 1, exchange=kind)[0]
    return [published[0] in ("AttributeError", "NotImplementedError"), round_trip(lib, store(lib), 1, exchange=kind)]


def fanout_with_its_hooks(lib):
    bound = []

    def put(self, exchange, message, routing_key, **kwargs):
        for queue in bound:
            self._put(queue, message)

    hooks = {"_queue_bind": lambda self, exchange, key, pattern, queue: bound.append(queue), "_put_fanout": put}
    cls = store(lib, channel={"supports_fanout": True}, **hooks)
    return [round_trip(lib, cls, 1, 2, exchange=lib.Exchange("f", "fanout")), bound]


def fanout_by_a_property(lib):
    asked = []

    def supports(self):
        asked.append(1)
        return False

    return [round_trip(lib, store(lib, channel={"supports_fanout": property(supports)}), 1), len(asked) > 0]


def many_at_once(lib):
    def get_many(self, queues_, timeout=None):
        found = 0
        for queue in list(queues_):
            while self.connection.lists[queue]:
                self.connection._deliver(self.connection.lists[queue].popleft(), queue)
                found += 1
        if not found:
            raise queues.Empty

    cls = store(lib, _get_many=get_many)
    with lib.Connection(transport=cls) as connection:
        queue, got = lib.Queue("q"), []
        for body in range(3):
            connection.Producer().publish(body, routing_key="q", declare=[queue])
        with connection.Consumer(queue, callbacks=[lambda body, message: (got.append(body), message.ack())]):
            connection.drain_events(timeout=WAIT)
            while len(got) < 3:
                connection.drain_events(timeout=WAIT)
            return [got, outcome(connection.drain_events, timeout=0)]


def a_poll_of_its_own(lib):
    polled = []

    def poll(self, cycle, callback, timeout=None):
        polled.append(timeout)
        return cycle.get(callback)

    return [round_trip(lib, store(lib, _poll=poll), 1), polled]


def basic_consume_overridden(lib):
    virtual, calls = of(lib, "transport.virtual"), []

    def consume(self, queue, no_ack, *args, **kwargs):
        calls.append((queue, no_ack, len(args), sorted(kwargs)))
        return virtual.Channel.basic_consume(self, queue, no_ack, *args, **kwargs)

    def cancel(self, consumer_tag):
        calls.append(type(consumer_tag).__name__)
        return virtual.Channel.basic_cancel(self, consumer_tag)

    return [round_trip(lib, store(lib, basic_consume=consume, basic_cancel=cancel), 1), calls]


def a_qos_of_its_own(lib):
    virtual, calls = of(lib, "transport.virtual"), []

    class QoS(virtual.QoS):
        def append(self, message, delivery_tag):
            calls.append("append")
            super().append(message, delivery_tag)

        def ack(self, delivery_tag):
            calls.append("ack")
            super().ack(delivery_tag)

        def can_consume(self):
            return super().can_consume()

    return [round_trip(lib, store(lib, channel={"QoS": QoS}), 1, 2), calls]


def a_qos_that_refuses(lib):
    virtual = of(lib, "transport.virtual")

    class QoS(virtual.QoS):
        def can_consume(self):
            return False

    return round_trip(lib, store(lib, channel={"QoS": QoS}), 1)


def messages_of_its_own(lib):
    virtual = of(lib, "transport.virtual")

    class Letter(virtual.Message):
        def __init__(self, payload, channel=None, **kwargs):
            super().__init__(payload, channel=channel, **kwargs)
            self.stamp = payload["properties"].get("stamp", "none")

    cls = store(lib, channel={"Message": Letter})
    with lib.Connection(transport=cls) as connection:
        queue, got = lib.Queue("q"), []
        connection.Producer().publish("x", routing_key="q", declare=[queue], stamp="first")
        with connection.Consumer(queue, callbacks=[lambda body, message: got.append((type(message), message.stamp))]):
            connection.drain_events(timeout=WAIT)
        return [got == [(Letter, "first")]]


def exchange_types_of_its_own(lib):
    exchange = of(lib, "transport.virtual.exchange")

    class Every(exchange.DirectExchange):
        type = "every"

        def lookup(self, table, exchange, routing_key, default):
            return [queue for _, _, queue in table]

    cls = store(lib, channel={"exchange_types": {"direct": exchange.DirectExchange, "every": Every}})
    seen = round_trip(lib, cls, 1, exchange=lib.Exchange("f", "every"))
    return [seen, round_trip(lib, cls, 1, exchange=lib.Exchange("g", "topic"))[0]]


def state_shared_by_connections(lib):
    cls = store(lib)
    virtual = of(lib, "transport.virtual")
    shared = virtual.BrokerState()

    def init(self, client, **kwargs):
        virtual.Transport.__init__(self, client, **kwargs)
        self.state = shared

    cls.global_state, cls.__init__ = shared, init
    with lib.Connection(transport=cls) as one, lib.Connection(transport=cls) as other:
        exchange = lib.Exchange("e", "topic")
        queue = lib.Queue("q", exchange, routing_key="a.*")
        queue(one.default_channel).declare()
        other.Producer(exchange=exchange).publish("x", routing_key="a.b")
        return [len(cls.lists["q"]), sorted(shared.exchanges), list(shared.queue_bindings("q"))]


def timeouts_of_its_own(lib):
    def drain(self, connection, **kwargs):
        raise TimeoutError("of its own")

    def closed(self, connection, **kwargs):
        raise ConnectionResetError("gone")

    found = []
    for each in (drain, closed):
        with lib.Connection(transport=store(lib, transport={"drain_events": each})) as connection:
            queue = lib.Queue("q")
            with connection.Consumer(queue, callbacks=[print]):
                found += [outcome(connection.drain_events, timeout=1), outcome(connection.drain_events)]
    return found


def links_of_any_kind(lib):
    """``establish_connection`` returns what it likes; the other methods get it back."""
    base = of(lib, "transport.base")
    found = []
    for link in (None, "link", object(), SimpleNamespace(client=None), [1]):
        given = []

        class Transport(base.Transport):
            def establish_connection(self, link=link):
                return link

            def create_channel(self, connection, given=given):
                given.append(connection)
                return SimpleNamespace(close=lambda: None)

            def close_connection(self, connection, given=given):
                given.append(connection)

        with lib.Connection(transport=Transport) as connection:
            connected = outcome(connection.connect)
            found.append((connected is link, connection.connection is link, connection.connected))
            connection.channel()
        found.append([each is link for each in given])
    return found


def a_verify_connection_that_says_no(lib):
    verified = []

    def verify(self, connection):
        verified.append(1)
        return len(verified) > 2

    with lib.Connection(transport=store(lib, transport={"verify_connection": verify})) as connection:
        connection.connect()
        return [connection.connected, connection.connected, connection.connected]


def errors_of_closing(lib):
    found = []
    for error in (OSError("gone"), AttributeError("gone"), RuntimeError("odd")):

        def close(self, connection, error=error):
            raise error

        connection = lib.Connection(transport=store(lib, transport={"close_connection": close}))
        connection.connect()
        found.append(outcome(connection.release))
    return found


def errors_of_connecting(lib):
    found = []
    for error in (OSError("refused"), RuntimeError("odd"), KeyError("option")):
        tries = []

        def establish(self, error=error, tries=tries):
            tries.append(1)
            raise error

        connection = lib.Connection(transport=store(lib, transport={"establish_connection": establish}))
        policy = {"max_retries": 1, "interval_start": 0, "interval_step": 0}
        found += [outcome(connection.ensure_connection, **policy), outcome(connection.connect), len(tries) > 1]
    return found


def codecs_of_its_own(lib):
    class Upside:
        def encode(self, s):
            return (s if isinstance(s, str) else s.decode())[::-1]

        def decode(self, s):
            return s[::-1].encode()

    cls = store(lib, channel={"codecs": {"upside": Upside()}, "body_encoding": "upside"})
    seen = round_trip(lib, cls, {"a": 1})
    with lib.Connection(transport=cls) as connection:
        connection.Producer().publish("abc", routing_key="z")
        return [seen, cls.lists["z"][0]["body"]]


def options_of_the_transport(lib):
    virtual = of(lib, "transport.virtual")
    names = (*virtual.Channel.from_transport_options, "lease", "prefix")
    cls = store(lib, channel={"from_transport_options": names, "lease": 30, "prefix": "p"})
    with lib.Connection(transport=cls, transport_options={"lease": 5, "other": 1}) as connection:
        channel = connection.channel()
        return [channel.lease, channel.prefix, hasattr(channel, "other")]


def dead_letters(lib):
    cls = store(lib)
    with lib.Connection(transport=cls, transport_options={"deadletter_queue": "dead"}) as connection:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            connection.Producer(exchange=lib.Exchange("e")).publish("x", routing_key="nobody")
        return [len(cls.lists["dead"]), [each.category.__name__ for each in caught]]


def no_acks(lib):
    cls = store(lib)
    with lib.Connection(transport=cls) as connection:
        queue, got = lib.Queue("q"), []
        connection.Producer().publish("x", routing_key="q", declare=[queue])
        with connection.Consumer(queue, no_ack=True, callbacks=[lambda body, message: got.append(message)]) as consumer:
            connection.drain_events(timeout=WAIT)
            return [got[0].payload, len(consumer.channel.qos._delivered), outcome(got[0].ack), outcome(got[0].ack)]


def channels_are_numbered(lib):
    with lib.Connection(transport=store(lib, transport={"channel_max": 3})) as connection:
        channels = [connection.channel() for _ in range(3)]
        numbers = [channel.channel_id for channel in channels]
        full = outcome(connection.channel)
        channels[1].close()
        return [numbers, full, connection.channel().channel_id]


test_both_do_the_same = side_by_side(globals())
