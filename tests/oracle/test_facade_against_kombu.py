"""Messages, producers, consumers and entities, with mocks for channels and replaced names and methods."""

from __future__ import annotations

import pickle
import sys
from unittest.mock import MagicMock, Mock, call, patch

from tests.oracle.side_by_side import of, outcome, side_by_side


def a_channel(**k):
    c = MagicMock(name="channel", **k)
    c.connection.client.declared_entities = set()
    c.prepare_queue_arguments.side_effect = lambda a, **k: a
    c.queue_declare.return_value = ("q", 0, 0)
    c.message_to_python = None
    c.no_ack_consumers = None
    return c


def decoding(lib):
    out = []
    M = lib.Message
    m = M("b", channel=Mock(), content_type="application/json", content_encoding="utf-8", accept={"application/json"})
    m._decode = Mock(return_value="D")
    out += [m.decode(), m.payload, m._decode.call_count, m._decoded_cache]
    m = M('{"a":1}', content_type="application/json", content_encoding="utf-8")
    m._decoded_cache = "cached"
    out += [m.payload, m.decode()]
    m = M('{"a":1}', content_type="application/json", content_encoding="utf-8")
    m.decode = Mock(return_value="dd")
    out.append(m.payload)

    class S(M):
        def _decode(self):
            return "sub"

    out.append(S("x").payload)
    out.append(S("x").decode())
    return out


def errors_of_messages(lib):
    out = []
    M = lib.Message
    m = M(b"x", headers={"compression": "zlib"})
    out += [len(m.errors), isinstance(m.errors[0][1], Exception)]
    cb = Mock()
    m._reraise_error(cb)
    out.append([cb.call_args[0][0] is m])
    out.append(outcome(m._reraise_error) in ("error", "InflateError"))
    m = M("\udc80", postencode="utf-8")
    out += [len(m.errors)]
    m = M("b")
    m.errors.append((KeyError, KeyError("foo"), None))
    out.append(outcome(m._reraise_error))
    m._reraise_error(cb)
    out.append(repr(cb.call_args[0][1]))
    try:
        raise ValueError("tb")
    except ValueError:
        ei = sys.exc_info()
    m = M("b")
    m.errors.append(ei)
    try:
        m._reraise_error()
    except ValueError as e:
        out.append(e is ei[1])
    with patch.object(of(lib, "message"), "decompress", return_value=b"DEC") as d:
        m = M(b"z", headers={"compression": "q"})
        out += [m.body, d.call_args]
    with patch.object(of(lib, "message"), "decompress", side_effect=KeyError()):
        m = M(b"z", headers={"compression": "q"}, postencode="ccc")
        out += [[e[0].__name__ for e in m.errors], m.body]
    return out


def states_of_messages(lib):
    out = []
    M = lib.Message
    for name in ("ack", "reject", "requeue"):
        ch = Mock()
        ch.no_ack_consumers = None
        m = M("b", channel=ch, delivery_tag=3)
        getattr(m, name)()
        out += [ch.mock_calls, m._state, m.acknowledged, outcome(m.ack), outcome(m.reject), outcome(m.requeue)]
        out.append(outcome(getattr(M("b"), name)))
    ch = Mock()
    ch.no_ack_consumers = {"t"}
    m = M("b", channel=ch, delivery_info={"consumer_tag": "t"})
    out += [m.ack(), m._state, m.acknowledged, ch.basic_ack.called]
    m.delivery_info = {}
    m.ack()
    out.append(m._state)
    ch = Mock()
    ch.no_ack_consumers = None
    m = M("b", channel=ch)
    m.ack(multiple=True)
    out.append(ch.mock_calls)
    ch = Mock()
    ch.no_ack_consumers = None
    lg = Mock()
    m = M("b", channel=ch)
    ch.basic_reject.side_effect = KeyError("foo")
    m.reject_log_error(lg, KeyError)
    out.append([lg.critical.call_args[0][0], lg.critical.call_args[1], m._state])
    ch.basic_ack.side_effect = KeyError("foo")
    m.ack_log_error(lg, KeyError)
    out.append([lg.critical.call_args[0][0], m._state])
    ch.basic_ack.side_effect = BrokenPipeError()
    out.append(outcome(m.ack_log_error, lg, (KeyError,)))
    m = M("b", channel=ch)
    m.ack = Mock()
    m.ack_log_error(lg, KeyError, multiple=True)
    out.append(m.ack.mock_calls)
    m.reject = Mock()
    m.reject_log_error(lg, KeyError, requeue=True)
    out.append(m.reject.mock_calls)
    m = M(
        "body",
        delivery_tag=1,
        content_type="a/b",
        properties={"correlation_id": "c", "type": "t"},
        delivery_info={"exchange": "e", "routing_key": "r"},
    )
    out.append(repr(m))
    out += [m.MessageStateError.__name__, m.errors, m.headers, m.accept]
    m._state = "ACK"
    out.append(m.acknowledged)
    m.foo = 3
    out.append(m.__dict__.get("foo"))
    return out


def replaced_maybe_declare(lib):
    out = []
    ms = of(lib, "messaging")
    ch = a_channel()
    p = lib.Producer(ch)
    q = lib.Queue("foo")
    with patch.object(ms, "maybe_declare") as md:
        p.maybe_declare(q)
        out.append([md.call_args[0][0] is q, md.call_args[0][1] is ch, md.call_args[0][2:], md.call_args[1]])
        p.maybe_declare(q, retry=True, max_retries=3)
        out.append([md.call_args[0][2:], md.call_args[1]])
        md.reset_mock()
        p.maybe_declare(None)
        out.append(md.called)
        p.publish("x", routing_key="r", declare=[q])
        out.append([md.call_count, md.call_args[0][0] is q])
        p.publish("x", routing_key="r", declare=[q], exchange=lib.Exchange("e"), retry=True)
        out.append(md.call_count)
    conn = lib.Connection("memory://")
    p = lib.Producer(conn.channel())
    with patch.object(ms, "maybe_declare") as md:
        p.maybe_declare(q)
        out.append(md.called)
    with patch(f"{lib.__name__}.messaging.maybe_declare") as md:
        p.publish("x", routing_key="foo", declare=[q])
        out.append(md.call_count)
    conn.release()
    return out


def replaced_exchanges(lib):
    out = []
    ch = a_channel()
    p = lib.Producer(ch)
    p.exchange = Mock()
    p.exchange.name = "exn"
    p.exchange.delivery_mode = 2
    p.declare()
    out.append(p.exchange.declare.mock_calls)
    p.auto_declare = False
    out.append(outcome(p.publish, "x", routing_key="k") is None)
    out.append([c[1]["routing_key"] for c in ch.basic_publish.call_args_list])
    p.exchange.name = ""
    p.exchange.declare.reset_mock()
    p.declare()
    out.append(p.exchange.declare.called)
    p2 = lib.Producer(ch, exchange=lib.Exchange("foo"))
    p2.exchange.declare = Mock()
    p2.declare()
    out.append(p2.exchange.declare.called)
    p3 = lib.Producer(None)
    e = Mock()
    p3.exchange = e
    p3.revive(ch)
    out.append([e.mock_calls[:1] == [call(ch)], p3.exchange is e.return_value])
    return out


def channels_of_producers(lib):
    out = []
    ch = a_channel()
    p = lib.Producer(ch)
    ch2 = a_channel()
    p.revive(ch2)
    out += [p.channel is ch2, p._channel is ch2, p.exchange.channel is ch2]
    conn = lib.Connection("memory://")
    p.revive(conn)
    out += [p.__connection__ is conn, type(p._channel).__name__]
    promise = of(lib, "utils.functional").ChannelPromise(lambda: ch)
    p4 = lib.Producer(None)
    p4.channel = promise
    out.append(p4.channel is ch)
    p5 = lib.Producer(promise)
    out.append(p5.channel is ch)
    r = Mock()
    lib.Producer(ch, on_return=r)
    out.append(ch.events.__getitem__.call_args)
    out.append(repr(lib.Producer(None)))
    p7 = pickle.loads(pickle.dumps(lib.Producer(None, lib.Exchange("e"), "rk", "json", True, "gzip")))
    out += [p7.exchange.name, p7.routing_key, p7.serializer, p7.auto_declare, p7.compression]
    p8 = lib.Producer(Mock())
    p8.__connection__ = Mock()
    out.append(p8.connection is p8.__connection__)
    p8.__connection__ = None
    p8.channel = Mock()
    out.append(p8.connection is p8.channel.connection.client)

    class C:
        pass

    p8.channel = C()
    out.append(outcome(lambda: p8.connection))
    with p:
        pass
    p.release = Mock()
    with p as x:
        out.append(x is p)
    out.append(p.release.called)
    out.append(lib.Producer.close is lib.Producer.release)
    out += [
        lib.Producer.exchange,
        lib.Producer.routing_key,
        lib.Producer.serializer,
        lib.Producer.compression,
        lib.Producer.auto_declare,
        lib.Producer.on_return,
        lib.Producer.__connection__,
    ]
    return out


def prepared_bodies(lib):
    out = []
    ms = of(lib, "messaging")
    ch = a_channel()
    p = lib.Producer(ch, serializer="json")
    h = {}
    out.append(p._prepare({"a": 1}, headers=h))
    out.append(p._prepare("text", headers=h))
    out.append(p._prepare(b"b", headers=h))
    out.append(p._prepare({"a": 1}, compression="zlib", headers=h)[1:])
    out.append(h)
    out.append(p._prepare("x", content_type="a/b", headers={}))
    out.append(p._prepare("x", content_type="a/b", content_encoding="latin-1", headers={}))
    out.append(p._prepare(b"x", content_type="a/b", headers={}))
    with patch.object(ms, "dumps", return_value=("ct", "ce", "body")) as d:
        out.append(p._prepare({"a": 1}, serializer="q", headers={}))
        out.append(d.call_args)
    with patch.object(ms, "compress", return_value=("Z", "zz")) as c:
        hh = {}
        out.append(p._prepare(b"x", compression="zip", headers=hh, content_type="t"))
        out.append([c.call_args, hh])
    return out


def consumers(lib):
    out = []
    ch = a_channel()
    C = lib.Consumer
    q = lib.Queue("qname", lib.Exchange("foo"), "rkey")
    c = C(ch, q)
    out += [
        [x.name for x in c.queues],
        c.channel is ch,
        c._active_tags,
        c.callbacks,
        c.no_ack,
        c.connection is ch.connection.client,
    ]
    c.consume()
    out.append(
        [
            sorted(k for k in ch.basic_consume.call_args[1]),
            ch.basic_consume.call_args[1]["queue"],
            ch.basic_consume.call_args[1]["no_ack"],
        ]
    )
    out.append(c.consuming_from(q))
    c.cancel()
    out.append([ch.basic_cancel.call_count, c._active_tags])
    c.close()
    c.purge()
    out.append(ch.queue_purge.call_args)
    c.qos(1, 2, True)
    out.append(ch.basic_qos.call_args)
    c.flow(False)
    out.append(ch.flow.call_args)
    c.recover(requeue=True)
    out.append(ch.basic_recover.call_args)
    c.register_callback(print)
    out.append(c.callbacks)
    out.append(outcome(C(ch, q).receive, {}, Mock()))
    c2 = C(ch, [q], auto_declare=False, prefetch_count=7, callbacks=[1], on_message=2, accept=["json"])
    out.append([ch.basic_qos.call_args, c2.auto_declare, c2.callbacks, c2.on_message, c2.accept])

    class Sub(C):
        callbacks = [5]
        no_ack = True
        auto_declare = False
        prefetch_count = None

    out.append([Sub(ch, q).callbacks, Sub(ch, q).no_ack])
    ch.basic_consume.reset_mock()
    c3 = C(ch, [lib.Queue(n) for n in "abc"])
    c3.consume()
    out.append([(x[1]["queue"], x[1]["nowait"]) for x in ch.basic_consume.call_args_list])
    c3.cancel_by_queue("b")
    out.append([sorted(c3._active_tags), sorted(x.name for x in c3.queues)])
    c3.cancel_by_queue(lib.Queue("zzz"))
    c3.add_queue(lib.Queue("d"))
    out.append([x.name for x in c3.queues])
    c3.consume()
    out.append(len(c3._active_tags))
    c4 = C(None, [q])
    c4.channel = Mock()
    out.append([c4.consuming_from("qname")])
    c4.revive(ch)
    out.append(c4.channel is ch)
    with patch.object(C, "revive") as r:
        C(ch, q)
        out.append(r.call_args == call(ch))
    ch.connection.client.connection_errors = (ValueError,)
    c5 = C(ch, q)
    c5.cancel = Mock()
    with c5:
        pass
    out.append(c5.cancel.called)
    c5.cancel.side_effect = KeyError()
    with c5:
        pass
    ch.connection.client.connection_errors = (ValueError,)
    c5.cancel = Mock()

    def boom():
        with c5:
            raise ValueError()

    out.append(outcome(boom))
    out.append(c5.cancel.called)
    c5.channel.connection = None
    with c5:
        pass
    out.append(c5.cancel.called)
    c6 = C(ch, [q])
    c6._queues = {"x": Mock(name="x")}
    c6.declare()
    out.append(c6._queues["x"].declare.called)
    c6._queues["x"].purge.return_value = 4
    out.append(c6.purge())
    c6._basic_consume = Mock()
    c6._queues = {"x": Mock(), "y": Mock()}
    c6._queues["x"].name = "x"
    c6._queues["y"].name = "y"
    c6.consume(no_ack=True)
    out.append([(a[0][0].name, a[1]) for a in c6._basic_consume.call_args_list])
    return out


def received_messages(lib):
    out = []
    ch = a_channel()
    C = lib.Consumer
    q = lib.Queue("q")
    c = C(ch, q)
    m = Mock()
    m.errors = []
    m.decode.return_value = "D"
    c.receive = Mock()
    c._receive_callback(m)
    out.append(c.receive.call_args == call("D", m))
    m2 = Mock()
    m2.errors = []
    m2.decode.return_value = "D2"
    ch.message_to_python = Mock(return_value=m2)
    c._receive_callback("raw")
    out.append([ch.message_to_python.call_args, c.receive.call_args == call("D2", m2)])
    ch.message_to_python = None
    c.accept = {"x"}
    c._receive_callback(m)
    out.append(m.accept)
    c.on_message = Mock(return_value="OM")
    m.decode.reset_mock()
    out.append(c._receive_callback(m))
    out.append(m.decode.called)
    c.on_message = None
    c.on_decode_error = Mock()
    e = KeyError("f")
    m.decode.side_effect = e
    c._receive_callback(m)
    out.append(c.on_decode_error.call_args == call(m, e))
    c.on_decode_error = None
    out.append(outcome(c._receive_callback, m))
    m.errors = [(KeyError, e, None)]
    c.on_decode_error = Mock()
    c._receive_callback(m)
    out.append([m._reraise_error.call_args == call(c.on_decode_error), c.on_decode_error.called])
    ch.message_to_python = Mock(side_effect=e)
    c._receive_callback("r")
    out.append(c.on_decode_error.call_args[0][0])
    return out


def entities(lib):
    out = []
    E = lib.Exchange
    Q = lib.Queue
    ch = a_channel()
    e = E("foo", "topic")(ch)
    e.declare()
    out.append(ch.exchange_declare.call_args)
    E("foo", no_declare=True)(ch).declare()
    E("amq.foo")(ch).declare()
    E("")(ch).declare()
    out.append(ch.exchange_declare.call_count)
    e.declare(nowait=True, passive=True)
    out.append(ch.exchange_declare.call_args)
    e.bind_to("bar", routing_key="k", arguments={"x": 1})
    out.append(ch.exchange_bind.call_args)
    e.bind_to(E("other"))
    out.append(ch.exchange_bind.call_args)
    e.unbind_from("bar", routing_key="k", nowait=True)
    out.append(ch.exchange_unbind.call_args)
    e.delete(if_unused=True, nowait=True)
    out.append(ch.exchange_delete.call_args)
    out.append(
        [
            E("a").can_cache_declaration,
            E("a", auto_delete=True).can_cache_declaration,
            E("a", durable=False).can_cache_declaration,
        ]
    )
    out.append(
        [
            repr(E("x")),
            E("a") == E("a"),
            E("a") != E("b"),
            E("a") == "a",
            hash(E("a")) == hash("E|a"),
            E("a", delivery_mode="transient").delivery_mode,
            E("a", delivery_mode=7).delivery_mode,
            E("a").delivery_mode,
            outcome(E, "a", delivery_mode="nix"),
        ]
    )
    e2 = E("x")(ch)
    e2.publish("mm", routing_key="r", mandatory=True)
    out.append(ch.basic_publish.call_args)
    e2.publish({"a": 1}, routing_key="r")
    out.append(ch.prepare_message.called)
    out.append(
        e2.Message(
            "b",
            delivery_mode=1,
            priority=3,
            content_type="c",
            content_encoding="utf-8",
            properties={"p": 1},
            headers={"h": 2},
        )
        is ch.prepare_message.return_value
    )
    out.append(ch.prepare_message.call_args)
    b = E("z").binding("rk", {"a": 1}, unbind_arguments={"b": 2})
    out.append([type(b).__name__, b.routing_key, b.arguments, b.unbind_arguments, str(b), repr(b)])
    b.declare(ch)
    out.append(ch.exchange_declare.call_args[1]["exchange"])
    q = Q("qq")
    qb = q(ch)
    b.bind(qb)
    out.append(ch.queue_bind.call_args)
    b.unbind(qb)
    out.append(ch.queue_unbind.call_args)
    q = Q(
        "foo",
        E("ex"),
        "rk",
        max_length=5,
        expires=3,
        message_ttl=2,
        max_priority=4,
        max_length_bytes=9,
        queue_arguments={"z": 1},
        consumer_arguments={"c": 1},
    )
    q2 = q(ch)
    q2.declare()
    out.append(ch.prepare_queue_arguments.call_args_list[-1])
    out.append(ch.queue_declare.call_args)
    out.append(ch.queue_bind.call_args)
    q2.queue_declare(nowait=True, passive=True)
    out.append(ch.queue_declare.call_args)
    q2.consume("ct", "cb", no_ack=True, nowait=False)
    out.append(ch.basic_consume.call_args)
    q2.cancel("ct")
    out.append(ch.basic_cancel.call_args)
    q2.delete(if_unused=True, if_empty=True, nowait=True)
    out.append(ch.queue_delete.call_args)
    q2.purge(nowait=True)
    out.append(ch.queue_purge.call_args)
    q2.unbind_from(E("e9"), "k9")
    out.append(ch.queue_unbind.call_args)
    q2.bind_to(E("e8"), "k8")
    out.append(ch.queue_bind.call_args)
    m = Mock()
    ch.basic_get.return_value = m
    out.append([q2.get() is m, ch.basic_get.call_args, m.accept])
    q2.get(no_ack=True, accept=["json"])
    out.append([ch.basic_get.call_args, m.accept])
    m.errors = [1]
    q2.get()
    out.append(m._reraise_error.called)
    ch.message_to_python = Mock()
    q2.get()
    out.append(ch.message_to_python.called)
    ch.message_to_python = None
    od = Mock()
    q3 = Q("n", on_declared=od)(ch)
    q3.queue_declare()
    out.append(od.call_args)
    ch.queue_declare.return_value = ("gen", 1, 2)
    q4 = Q()(ch)
    q4.declare()
    out.append(q4.name)
    q5 = Q("b", bindings=[lib.binding(E("1"), "a"), lib.binding(E("2"), "b")])
    q5(ch).declare()
    out.append(sorted(c[1]["exchange"] for c in ch.queue_bind.call_args_list[-2:]))
    out.append(
        [
            Q("x", durable=False).can_cache_declaration,
            Q("x", auto_delete=True).can_cache_declaration,
            Q("x", exclusive=True).auto_delete,
            Q("a").as_dict()["alias"],
        ]
    )
    out.append(
        [
            Q("a") == Q("a"),
            Q("a") == E("a"),
            Q("a") != Q("b"),
            hash(Q("a")) == hash("Q|a"),
            repr(Q("q", E("e"), "k")),
            repr(q5)[:20],
            str(q2),
        ]
    )
    q6 = Q("c", E("e"))
    q6b = q6.bind(ch)
    out.append([q6b.exchange.is_bound, q6b.channel is ch])
    q6b.when_bound()
    q6b.revive(Mock(channel_id=1))
    out.append(
        [
            Q.ContentDisallowed.__name__,
            Q.from_dict(
                "n", exchange="e", routing_key="r", queue_durable=False, binding_durable=1, auto_delete=True
            ).as_dict(recurse=True),
        ]
    )
    en = of(lib, "entity")
    out.append(
        [
            en.maybe_delivery_mode("persistent"),
            en.maybe_delivery_mode(None),
            en.maybe_delivery_mode(2, {}, 9),
            en.DELIVERY_MODES,
            en.TRANSIENT_DELIVERY_MODE,
            en.INTERNAL_EXCHANGE_PREFIX,
            en.pretty_bindings([lib.binding(E("e"), "k")]),
        ]
    )
    x = E("zz")
    x.declare = Mock()
    q7 = Q("qw", x)(ch)
    q7._create_exchange()
    out.append(1)
    q7._create_queue()
    out.append(ch.queue_declare.call_args[1]["queue"])
    return out


test_both_do_the_same = side_by_side(vars())
