"""Modules of the facade with mocks in the place of their parts: common, pools, mailboxes, serializers, ..."""

from __future__ import annotations

import pickle
import warnings
from itertools import islice
from unittest.mock import MagicMock, Mock, call, patch

from tests.oracle.side_by_side import of, outcome, side_by_side


def a_channel(**k):
    c = MagicMock(name="channel", **k)
    c.connection.client.declared_entities = set()
    c.prepare_queue_arguments.side_effect = lambda a, **k: a
    c.queue_declare.return_value = ("q", 0, 0)
    return c


def declaring_once(lib):
    c = of(lib, "common")
    out = []
    ch = Mock()
    ch.connection.client.declared_entities = set()
    e = Mock()
    e.can_cache_declaration = True
    e.is_bound = True
    e.name = "n"
    out.append(c.maybe_declare(e, ch))
    out.append(e.declare.mock_calls == [call(channel=ch)])
    out.append(c.maybe_declare(e, ch))
    out.append(e.declare.call_count)
    out.append(ch.connection.client.declared_entities == {hash(e)})
    e2 = Mock()
    e2.is_bound = False
    out.append(outcome(c.maybe_declare, e2))
    out.append(outcome(c.maybe_declare, e2, None))
    e3 = Mock()
    e3.is_bound = True
    e3.channel.connection = None
    e3.can_cache_declaration = False
    out.append(outcome(c.maybe_declare, e3))
    ch2 = Mock()
    ch2.connection = None
    e4 = Mock()
    e4.is_bound = True
    e4.can_cache_declaration = True
    e4.channel = ch
    out.append(outcome(c.maybe_declare, e4, ch2))
    return out


def declaring_again(lib):
    c = of(lib, "common")
    out = []
    e = Mock()
    e.is_bound = True
    ch = Mock()
    e.channel = ch
    r = c.maybe_declare(e, ch, retry=True, max_retries=3, interval_start=1)
    en = ch.connection.client.ensure
    out.append([en.call_args[0][0] is e, en.call_args[1]])
    out.append(en.return_value.call_args == call(e, ch))
    out.append(r is en.return_value.return_value)
    e2 = Mock()
    e2.is_bound = True
    e2.channel.connection = None
    out.append(outcome(c.maybe_declare, e2, None, True))
    e3 = Mock()
    e3.is_bound = True
    e3.channel.connection = None
    ch3 = Mock()
    e3.revive.side_effect = lambda x: setattr(e3, "channel", x)
    outcome(c.maybe_declare, e3, ch3, retry=True)
    out.append(e3.revive.mock_calls == [call(ch3)])
    out.append(ch3.connection.client.ensure.called)
    with patch.object(c, "_maybe_declare") as m, patch.object(c, "_imaybe_declare") as i:
        c.maybe_declare("e", "c")
        c.maybe_declare("e", "c", True, a=1)
        out += [m.mock_calls, i.mock_calls]
    return out


def identities(lib):
    c = of(lib, "common")
    out = []
    with patch.object(c, "uuid3", side_effect=ValueError):
        out.append(len(c.generate_oid(1, 1, 1, c)))
    with patch.object(c, "uuid3", return_value="three"):
        out.append(c.generate_oid(1, 1, 1, c))
    with patch.object(c, "get_node_id", return_value=3), patch.object(c, "generate_oid", return_value="O") as g:
        out += [c.oid_from("x"), g.call_args[0][0], g.call_args[0][3]]
        c.oid_from("x", threads=False)
        out.append(g.call_args[0][2])
    out.append(c.get_node_id() == c.get_node_id())
    c._node_id = 5
    out.append(c.get_node_id())
    c._node_id = None
    out.append(isinstance(c.get_node_id(), int))
    out.append(c._node_id == c.get_node_id())
    out.append(c.oid_from(c) == c.oid_from(c))
    return out


def ignored_errors(lib):
    c = of(lib, "common")
    out = []
    conn = Mock()
    conn.connection_errors = (KeyError,)
    conn.channel_errors = (ValueError,)

    def boom(e):
        raise e

    for e in (KeyError(), ValueError(), TypeError()):

        def ignored(error=e):
            with c.ignore_errors(conn):
                raise error

        out.append(outcome(ignored))
    f = Mock(return_value=4)
    out.append(c.ignore_errors(conn, f, 1, a=2))
    out.append(f.mock_calls)
    with patch.object(c, "logger") as lg:
        c._ensure_errback(KeyError("x"), 3)
        out.append([lg.error.call_args[0][0], lg.error.call_args[0][2], lg.error.call_args[1]])
    return out


def loops_over_events(lib):
    c = of(lib, "common")
    out = []
    conn = Mock()
    conn.drain_events.side_effect = [1, 2, TimeoutError(), 4]
    out.append(list(c.eventloop(conn, limit=2, timeout=3)))
    out.append(conn.drain_events.mock_calls)
    out.append(outcome(lambda: list(c.eventloop(conn, limit=1, timeout=3))))
    conn.drain_events.side_effect = [TimeoutError(), 5]
    out.append(list(c.eventloop(conn, limit=2, timeout=1, ignore_timeouts=True)))
    conn.drain_events.side_effect = [TimeoutError(), 5]
    out.append(list(c.eventloop(conn, limit=2)))
    conn.drain_events.side_effect = None
    conn.drain_events.return_value = 7
    out.append(list(islice(c.eventloop(conn), 3)))
    return out


def replies(lib):
    c = of(lib, "common")
    out = []
    conn, ch, q = Mock(), Mock(), Mock()
    with patch.object(c, "itermessages") as it:
        m = Mock()
        it.return_value = [("body", m)]
        out.append(list(c.collect_replies(conn, ch, q, no_ack=False)))
        out.append(m.ack.called)
        out.append(ch.after_reply_message_received.mock_calls == [call(q.name)])
        out.append(it.call_args[1])
        m.reset_mock()
        ch.reset_mock()
        out.append(list(c.collect_replies(conn, ch, q)))
        out.append([m.ack.called, it.call_args[1]])
        it.return_value = []
        ch.reset_mock()
        out.append(list(c.collect_replies(conn, ch, q)))
        out.append(ch.after_reply_message_received.called)
    with patch.object(c, "drain_consumer") as d:
        r = c.itermessages(conn, ch, q, limit=4, timeout=5, callbacks=[1], foo=2)
        out.append(r is d.return_value)
        out.append(conn.Consumer.call_args == call(queues=[q], channel=ch, foo=2))
        out.append(d.call_args[1])
    p = Mock()
    req = Mock()
    req.content_type = "application/json"
    req.content_encoding = "binary"
    req.properties = {"reply_to": "h", "correlation_id": "cid"}
    ex = Mock()
    c.send_reply(ex, req, {"a": 1}, p)
    k = dict(p.publish.call_args[1])
    out.append([p.publish.call_args[0], k.pop("exchange") is ex, k])
    c.send_reply(ex, req, 1, p, retry=True, retry_policy={"x": 1}, serializer="pickle")
    k = dict(p.publish.call_args[1])
    k.pop("exchange")
    out.append(k)
    return out


def drained_consumers(lib):
    c = of(lib, "common")
    out = []

    class Cons:
        callbacks = []

        def __init__(s):
            s.channel = Mock()
            s.channel.connection.client = Mock()

        def __enter__(s):
            return s

        def __exit__(s, *a):
            out.append("exit")

    x = Cons()

    def drain(timeout=None):
        for cb in x.callbacks:
            cb("b", "m")

    x.channel.connection.client.drain_events.side_effect = drain
    extra = Mock()
    out.append(list(c.drain_consumer(x, limit=2, timeout=1, callbacks=[extra])))
    out.append(extra.mock_calls)
    out.append(len(x.callbacks))
    with patch.object(c, "eventloop") as ev:
        ev.return_value = iter([1, 1])
        out.append(list(c.drain_consumer(x)))
        out.append([ev.call_args[0][0] is x.channel.connection.client, ev.call_args[1]])
    return out


def insured_calls(lib):
    c = of(lib, "common")
    out = []
    pool = MagicMock()
    conn = pool.acquire.return_value.__enter__.return_value = Mock()
    ins = conn.autoretry.return_value = Mock(return_value=("R", "ch"))
    fun = Mock()
    orv = Mock()
    out.append(c.insured(pool, fun, (2, 2), {"foo": "bar"}, on_revive=orv, max_retries=3))
    out.append(pool.acquire.call_args)
    out.append([type(x).__name__ for x in conn.ensure_connection.call_args[1]])
    out.append(
        [
            conn.autoretry.call_args[0][0] is fun,
            conn.autoretry.call_args[0][1] is conn.default_channel,
            sorted(conn.autoretry.call_args[1]),
        ]
    )
    out.append(ins.call_args == call(2, 2, foo="bar", connection=conn))
    conn.autoretry.call_args[1]["on_revive"]("chan")
    out.append(orv.mock_calls)
    out.append(conn.ensure_connection.call_args[1]["errback"] is c._ensure_errback)
    eb = Mock()
    c.insured(pool, fun, (), {}, errback=eb)
    out.append(conn.ensure_connection.call_args == call(errback=eb))
    c.revive_connection(None, "x")
    revived = Mock()
    c.revive_connection(revived, "x", orv)
    out.append(revived.mock_calls)
    out.append(orv.mock_calls)
    return out


def prefetch_counts(lib):
    c = of(lib, "common")
    out = []
    cb = Mock()
    q = c.QoS(cb, 10)
    out += [
        q.value,
        q.prev,
        q.callback is cb,
        q.increment_eventually(),
        q.increment_eventually(3),
        q.decrement_eventually(5),
        q.update(),
        cb.mock_calls,
        q.prev,
        q.update(),
        cb.call_count,
    ]
    with patch.object(c, "logger") as lg:
        out += [q.set(2**16), cb.mock_calls, q.prev, lg.warning.called]
    q = c.QoS(cb, 0)
    out += [q.increment_eventually(), q.decrement_eventually(), q.value]
    q = c.QoS(cb, None)
    out.append(q.value)
    q = c.QoS(cb, 1)
    out += [q.decrement_eventually(10), q.increment_eventually(-3)]
    q = c.QoS(cb, 5, max_prefetch=7)
    out += [q.increment_eventually(9), q.max_prefetch, c.PREFETCH_COUNT_MAX]
    return out


def broadcast_queues(lib):
    c = of(lib, "common")
    out = []
    for k in (
        {"name": "n"},
        {"name": "n", "queue": "q"},
        {"name": "n", "unique": True},
        {"name": "n", "exchange": lib.Exchange("x"), "alias": "al", "auto_delete": False},
    ):
        b = c.Broadcast(**k)
        out.append(
            [
                b.name[:6],
                len(b.name),
                b.exchange.name,
                b.exchange.type,
                b.alias,
                b.auto_delete,
                [a for a, _ in b.attrs][-1],
            ]
        )
    with patch.object(c, "uuid", return_value="U"):
        out.append(c.Broadcast("n").name)
        out.append(c.Broadcast("n", queue="q", unique=True).name)
    return out


def pools_of_anything(lib):
    r = of(lib, "resource")
    out = []

    class P(r.Resource):
        close_after_fork = True

        def setup(self):
            for _ in range(self.limit or 0):
                self._resource.put_nowait(self.new())

        def new(self):
            return Mock()

    with patch.object(r, "register_after_fork") as ra:
        p = P(limit=2)
        out.append([len(ra.mock_calls), ra.call_args[0][0] is p, ra.call_args[0][1] is r._after_fork_cleanup_resource])
        P(limit=2, close_after_fork=False)
        out.append(len(ra.mock_calls))
    with patch.object(r, "register_after_fork", None):
        P(limit=1)
    out.append(outcome(P, limit=True))
    x = Mock()
    p.close_resource(x)
    out.append(x.close.called)
    p = P(limit=0)
    a = p.acquire()
    p.release(a)
    out.append(a.close.called)
    p = P(limit=2)
    p.prepare = Mock(side_effect=KeyError())
    out.append(outcome(p.acquire))
    p = P(limit=1)
    p.acquire()
    out.append(outcome(p.acquire))
    out.append(outcome(p.acquire, block=True, timeout=0.01))
    p = P(limit=3)
    p.acquire()
    out.append(outcome(p.resize, 2))
    p.resize(2, force=True)
    out.append([p.limit, p._resource.qsize()])
    p.resize(5)
    out.append([p.limit, p._resource.qsize()])
    p.resize(0)
    out.append([p.limit, p._resource.qsize()])
    p = P(limit=5)
    p._shrink_down()
    p._limit = 2
    p.collect_resource = Mock()
    p._shrink_down()
    out.append([p._resource.qsize(), p.collect_resource.call_count])
    p._limit = 1
    p._shrink_down(collect=False)
    out.append([p._resource.qsize(), p.collect_resource.call_count])
    p = P(limit=1)
    out.append(
        [
            p.release_resource(Mock()),
            p.prepare(3),
            p.collect_resource(3),
            p.LimitExceeded.__name__,
            p.preload,
            p.close_after_fork,
        ]
    )
    return out


def groups_of_pools(lib):
    o = of(lib, "pools")
    out = []
    with patch.object(o, "register_after_fork") as ra:
        g = o.PoolGroup(limit=3)
        out.append([ra.call_args[0][0] is g, ra.call_args[0][1] is o._after_fork_cleanup_group])
        o.PoolGroup(limit=3, close_after_fork=False)
        out.append(ra.call_count)
    with patch.object(o, "register_after_fork", None):
        o.PoolGroup(limit=1)
    g = Mock()
    o._after_fork_cleanup_group(g)
    out.append(g.mock_calls)
    out.append(outcome(o.PoolGroup(limit=1).create, "r", 1))

    class G(o.PoolGroup):
        def create(self, resource, limit):
            return resource, limit

    out += [G(limit=10)["x"], G(limit=o.use_global_limit)["y"] == ("y", o.get_limit())]
    conn = Mock()
    c = o.Connections(limit=3)
    conn.__eqhash__ = None
    del conn.__eqhash__
    out.append([c.create(conn, 4) is conn.Pool.return_value, conn.Pool.call_args])
    pools = [Mock(), Mock()]
    with patch.object(o, "_all_pools", return_value=pools):
        o.set_limit(21)
        out.append([p.resize.call_count for p in pools])
        o.set_limit(10)
        o.reset()
        out.append([p.force_close_all.called for p in pools])
    out += [o.set_limit(10), o._limit, outcome(o.set_limit, True), len(o._groups), o.connections in o._groups]
    P = o.ProducerPool
    conns = Mock()
    p = P(conns, limit=2)
    pr = p.acquire()
    out.append([isinstance(pr, lib.Producer), pr.__connection__ is conns.acquire.return_value])
    p.release(pr)
    out.append([conns.acquire.return_value.release.called, pr._channel])
    p.Producer = Mock(side_effect=KeyError())
    out.append(outcome(p.create_producer))
    out.append(conns.acquire.return_value.release.call_count)
    pr = Mock()
    pr._channel = None
    pr.revive.side_effect = KeyError()
    out.append(outcome(p.prepare, Mock(return_value=pr)))
    out.append(conns.acquire.return_value.release.call_count)
    pr = Mock()
    pr._channel = 1
    out.append(p.prepare(Mock(return_value=pr)) is pr)
    pr.__connection__ = None
    p.release(pr)
    out.append([pr.channel, p.close_resource(pr)])
    C = Mock()
    p = P(conns, limit=2, Producer=C)
    out.append(p.Producer is C)
    return out


def nodes(lib):
    b = of(lib, "pidbox")
    out = []
    m = b.Mailbox("ns", type="fanout")
    n = m.Node("h", state={"s": 1}, channel=a_channel())
    out += [n.hostname, n.state, n.handlers, n.mailbox is m, n.adjust_clock == m.clock.adjust]
    with patch("socket.gethostname", return_value="HN"):
        out.append(m.Node().hostname)
    with patch.object(b, "debug") as d, patch.object(b, "error") as e:
        h = Mock(__name__="x", return_value="R")
        n.handler(h)
        out.append(n.dispatch("x", {"a": 1}))
        out.append(h.call_args)
        out.append(d.call_args)
        n.reply = Mock()
        out.append(n.dispatch("x", reply_to={"exchange": "e", "routing_key": "r"}, ticket="t"))
        out.append(n.reply.call_args)
        h.side_effect = KeyError("foo")
        out.append(n.dispatch("x"))
        out.append([e.call_args[0][0], e.call_args[1] == {"exc_info": 1}])

        def ex(*a, **k):
            raise SystemExit()

        n.handlers["s"] = ex
        try:
            n.dispatch("s")
        except SystemExit:
            out.append("SE")
        n.on_decode_error("m", KeyError())
        out.append(e.call_args[0][0])
    del n.reply
    m._publish_reply = Mock()
    n.reply("d", "e", "r", "t")
    out.append([m._publish_reply.call_args[0], sorted(m._publish_reply.call_args[1])])
    n.dispatch = Mock()
    n.adjust_clock = Mock()
    msg = Mock()
    msg.headers = {"clock": 7}
    n.handle_message({"method": "m", "destination": ["h"]}, msg)
    n.handle_message({"method": "m", "destination": ["z"]}, msg)
    n.handle_message({"method": "m", "pattern": "h*", "matcher": "glob"})
    n.handle_message({"method": "m", "pattern": "z*", "matcher": "glob"})
    n.handle_message({"method": "m", "pattern": "^h", "matcher": "pcre"})
    n.handle_message({"method": "m"})
    out += [n.dispatch.mock_calls, n.adjust_clock.mock_calls]
    with patch.object(b, "match", return_value=False) as mt:
        n.dispatch.reset_mock()
        n.handle_message({"method": "m", "pattern": "h*", "matcher": "glob"})
        out += [mt.call_args, n.dispatch.called]
    return out


def consumers_of_nodes(lib):
    b = of(lib, "pidbox")
    out = []
    m = b.Mailbox("ns", type="direct")
    ch = a_channel()
    n = m.Node("h", channel=ch)
    with patch.object(b, "Consumer") as C:
        r = n.Consumer(foo=1)
        out.append(r is C.return_value)
        out.append([C.call_args[0][0] is ch, C.call_args[0][1][0].name, C.call_args[1]])
        q = C.call_args[0][1][0]
        with warnings.catch_warnings(record=True) as w:
            warnings.simplefilter("always")
            q.on_declared("x", 0, 0)
            q.on_declared("x", 0, 1)
            out.append([len(w), str(w[0].message)[:30] if w else None])
        with patch.object(b, "warnings") as ww:
            q.on_declared("x", 1, 1)
            out.append([len(ww.warn.call_args[0]), "h" in ww.warn.call_args[0][0]])
        n.Consumer(channel="c2", no_ack=False, accept=["x"])
        out.append([C.call_args[0][0], C.call_args[1]])
        consumer = n.listen("ch3")
        out.append(
            [
                C.call_args[0][0],
                C.call_args[1]["callbacks"] == [n.handle_message],
                C.call_args[1]["on_decode_error"] == n.on_decode_error,
                consumer.consume.called,
            ]
        )
        n.listen("c", callback=print)
        out.append(C.call_args[1]["callbacks"])
        conn = Mock()
        conn.channel_errors = (KeyError,)
        mb = m(conn)
        nb = mb.Node("h")
        err = KeyError()
        err.code = 405
        C.side_effect = err
        out.append(outcome(nb.Consumer))
        err.code = 404
        out.append(outcome(nb.Consumer))
        out.append(outcome(n.Consumer))
    return out


def mailboxes(lib):
    b = of(lib, "pidbox")
    out = []
    m = b.Mailbox("ns")
    out += [
        m.namespace,
        m.type,
        m.exchange.as_dict(),
        m.reply_exchange.as_dict(),
        type(m.unclaimed).__name__,
        m.accept,
        m.serializer,
        m.queue_ttl,
        m.queue_expires,
        m.queue_durable,
        m.queue_exclusive,
        m.reply_queue_ttl,
        m.reply_queue_expires,
    ]
    out.append(outcome(b.Mailbox, "x", queue_durable=True, queue_exclusive=True))
    m2 = b.Mailbox(
        "n",
        queue_ttl=1,
        queue_expires=2,
        queue_durable=True,
        queue_exclusive=False,
        reply_queue_ttl=3,
        reply_queue_expires=4,
    )
    out += [m2.get_queue("h").as_dict()]
    d = m2.get_reply_queue().as_dict()
    d.pop("name")
    d.pop("routing_key")
    out.append(d)
    out.append(m2.reply_queue == m2.reply_queue)
    out.append(m2.oid == m2.oid)
    conn = Mock()
    bound = m(conn)
    out += [bound.connection is conn, m.connection, bound.unclaimed is m.unclaimed, bound.clock is m.clock]
    bound._broadcast = Mock(return_value="B")
    out += [
        bound.call(["h"], "c", {"a": 1}, timeout=3, callback=print, channel="ch"),
        bound._broadcast.call_args,
        bound.cast(["h"], "c"),
        bound._broadcast.call_args,
        bound.abcast("c", {"z": 1}),
        bound._broadcast.call_args,
        bound.multi_call("c"),
        bound._broadcast.call_args,
    ]
    del bound._broadcast
    bound._publish = Mock()
    bound._collect = Mock(return_value="COL")
    with patch.object(b, "uuid", return_value="UU"):
        out += [
            bound._broadcast(
                "c",
                {"a": 1},
                ["h", "i"],
                reply=True,
                timeout=9,
                callback="cb",
                channel="CH",
                serializer="s",
                pattern="p",
                matcher="m",
            ),
            bound._publish.call_args,
            bound._collect.call_args,
        ]
        out += [
            bound._broadcast("c"),
            bound._publish.call_args[0],
            sorted(k for k, v in bound._publish.call_args[1].items() if isinstance(v, Mock)),
        ]
    out += [outcome(bound._broadcast, "c", destination="str"), outcome(bound._broadcast, "c", pattern=1, matcher=2)]
    return out


def commands(lib):
    b = of(lib, "pidbox")
    out = []
    m = b.Mailbox("ns", serializer="json")
    m.connection = Mock()
    m.clock = Mock()
    m.clock.forward.return_value = 33
    p = Mock()
    with patch.object(b, "maybe_declare") as md, patch.object(b, "time", return_value=1000.0):
        m._publish("t", {"a": 1}, ["d"], channel=a_channel(), timeout=5, producer=p, pattern="p", matcher="mm")
        k = dict(p.publish.call_args[1])
        k.pop("retry_policy", None)
        out.append(
            [
                p.publish.call_args[0],
                getattr(k.pop("exchange"), "name", "ns.pidbox"),
                [e.name for e in k.pop("declare")],
                k,
            ]
        )
        out.append(md.called)
        m._publish("t", {}, reply_ticket="TT", channel=a_channel(), producer=p)
        msg = p.publish.call_args[0][0]
        out.append([sorted(msg), msg["ticket"], msg["reply_to"]["exchange"], msg["reply_to"]["routing_key"] == m.oid])
        out.append(md.call_count)
        out.append(p.publish.call_args[1]["headers"])
    m._publish_reply({"h": 1}, "ex", "rk", "tick", channel=a_channel(), producer=p, serializer="q")
    k = dict(p.publish.call_args[1])
    k.pop("retry_policy", None)
    out.append([p.publish.call_args[0], k.pop("exchange").as_dict(), len(k.pop("declare")), k])
    exc = of(lib, "exceptions").InconsistencyError
    p.publish.side_effect = exc()
    out.append(outcome(m._publish_reply, 1, "e", "r", "t", channel=a_channel(), producer=p))
    with m.producer_or_acquire("P") as x:
        out.append(x)
    with patch.object(b, "Producer") as P:
        with m.producer_or_acquire(None, "chan") as x:
            out.append([x is P.return_value, P.call_args])
    pool = MagicMock()
    m3 = b.Mailbox("z", producer_pool=pool)
    with m3.producer_or_acquire() as x:
        out.append(x is pool.acquire.return_value.__enter__.return_value)
    out.append(m3.producer_pool is pool)
    f = of(lib, "utils.functional")
    m4 = b.Mailbox("z", producer_pool=f.lazy(lambda: 5))
    out.append(m4.producer_pool)
    out.append(b.Mailbox("q").producer_pool)
    return out


def collected_replies(lib):
    b = of(lib, "pidbox")
    out = []
    m = b.Mailbox("ns")
    conn = m.connection = Mock()
    m.clock = Mock()
    m.reply_queue = Mock()
    ch = a_channel()
    with patch.object(b, "Consumer") as C:
        cons = C.return_value = MagicMock()

        def drain(timeout):
            cb = cons.register_callback.call_args[0][0]
            msg = Mock()
            msg.headers = {"ticket": "T", "clock": 3}
            cb("one", msg)
            msg = Mock()
            msg.headers = {"ticket": "OTHER"}
            cb("two", msg)
            msg = Mock()
            msg.headers = {"ticket": "T", "expires": 1}
            cb("late", msg)

        conn.drain_events.side_effect = drain
        cb = Mock()
        out.append(m._collect("T", limit=1, timeout=2, callback=cb, channel=ch))
        out.append(
            [
                C.call_args[0][0] is ch,
                C.call_args[1],
                cb.mock_calls,
                dict(m.unclaimed),
                m.clock.adjust.mock_calls,
                conn.drain_events.called,
                ch.after_reply_message_received.call_count,
            ]
        )
        conn.drain_events.side_effect = TimeoutError()
        out.append(list(m._collect("OTHER", channel=ch, timeout=1)))
        out.append(dict(m.unclaimed))
        out.append(m._collect("N", timeout=1, channel=ch, accept=["yaml"]))
        out.append(C.call_args[1]["accept"])
    return out


def simple_queues(lib):
    s = of(lib, "simple")
    out = []
    ch = a_channel()
    cons, prod = MagicMock(), Mock()
    b = s.SimpleBase(ch, prod, cons, no_ack=True)
    out += [
        b.channel is ch,
        b.producer is prod,
        b.consumer is cons,
        b.no_ack,
        cons.register_callback.call_args == call(b._receive),
        type(b.buffer).__name__,
        b._consuming,
    ]
    b.buffer.append("m")
    out.append(b.get())
    out.append(cons.consume.call_args)
    b.queue = Mock()
    b.queue.get.return_value = None
    out.append(outcome(b.get_nowait))
    out.append(b.queue.get.call_args)
    b.queue.get.return_value = "mm"
    out.append(b.get(block=False))
    b.put({"a": 1}, serializer="json", headers={"h": 1}, compression="zlib", routing_key="rk", priority=3)
    out.append(prod.publish.call_args)
    b.queue.purge.return_value = 4
    cons.purge.return_value = 3
    out.append(b.clear())
    b.queue.queue_declare.return_value = (1, 2, 3)
    out.append(b.qsize())
    out.append(len(b))
    out.append(bool(b))
    b._consuming = True
    b.close()
    out.append(cons.cancel.called)
    b._receive("body", "mess")
    out.append(list(b.buffer))
    with b as x:
        out.append(x is b)
    ch2 = a_channel()
    ch2.connection.client.drain_events.side_effect = TimeoutError()
    b = s.SimpleBase(ch2, prod, cons)
    out.append(outcome(b.get, timeout=0.01))
    out.append([sorted(ch2.connection.client.drain_events.call_args[1])])
    out.append(s.SimpleBase.Empty.__name__)
    with patch.object(s, "monotonic", return_value=5):
        out.append(outcome(b.get, timeout=1))
        out.append(ch2.connection.client.drain_events.call_args)
    with patch.object(s.messaging, "Producer") as P, patch.object(s.messaging, "Consumer") as C:
        q = s.SimpleQueue(
            ch,
            "nm",
            queue_opts={"durable": False},
            queue_args={"x": 1},
            exchange_opts={"type": "topic"},
            serializer="js",
            compression="c",
            accept=["json"],
        )
        out.append(
            [
                q.queue.name,
                q.queue.durable,
                q.queue.queue_arguments,
                q.queue.exchange.name,
                P.call_args[1]["serializer"],
                P.call_args[1]["compression"],
                P.call_args[1]["routing_key"],
                C.call_args[1],
            ]
        )
        bq = s.SimpleBuffer(ch, "b")
        out.append(
            [
                bq.queue.durable,
                bq.queue.auto_delete,
                bq.no_ack,
                bq.queue.exchange.durable,
                bq.queue.exchange.delivery_mode,
                bq.queue.exchange.auto_delete,
            ]
        )
    q = s.SimpleQueue(ch, lib.Queue("own", lib.Exchange("ex")))
    out.append([q.queue.name, q.producer.exchange.name])
    q = s.SimpleQueue(ch, "n2", exchange_opts={"type": "topic"})
    out.append([q.queue.exchange.type, q.queue.routing_key])
    q = s.SimpleQueue(ch, lib.Queue("own2"))
    out.append([q.producer.exchange.name, q.producer.routing_key])
    return out


def clocks(lib):
    c = of(lib, "clocks")
    out = []
    t = c.timetuple(3, 1.5, "id", "obj")
    out += [
        repr(t),
        t.clock,
        t.timestamp,
        t.id,
        t.obj,
        pickle.loads(pickle.dumps(t)) == t,
        tuple(t.__getnewargs__()),
        t < c.timetuple(4, 0, "a"),
        t > c.timetuple(4, 0, "a"),
        t <= c.timetuple(3, 9, "z"),
        t >= c.timetuple(3, 9, "z"),
        c.timetuple(0, 1, "a") < c.timetuple(0, 2, "a"),
        c.timetuple(None, 1, "a") < c.timetuple(5, 0, "a"),
        t.__lt__(()),
    ]
    clock = c.LamportClock()
    out += [
        clock.forward(),
        clock.adjust(10),
        clock.adjust(3),
        clock.value,
        str(clock),
        repr(clock),
        c.LamportClock(initial_value=5).value,
    ]
    L = Mock(return_value=MagicMock())
    c.LamportClock(Lock=L)
    out.append(L.call_count)
    out.append(clock.sort_heap([(1, "z"), (2, "a")]))
    out.append(clock.sort_heap([(1, "z"), (1, "a"), (1, "c"), (2, "x")]))
    out.append(c.R_CLOCK)
    return out


def matchers(lib):
    m = of(lib, "matcher")
    out = []
    f = Mock(return_value=True)
    m.register("fn", f)
    try:
        out += [m.match("d", "p", "fn"), f.call_args]
    finally:
        m.unregister("fn")
    out += [
        outcome(m.match, "d", "p", "fn"),
        outcome(m.unregister, "nix"),
        m.match("data", "d*"),
        bool(m.match("data", "^d", "pcre")),
        m.match("data", "x"),
    ]
    r = m.MatcherRegistry()
    out += [outcome(r.unregister, "z"), r.matcher_pattern_first]
    f.reset_mock()
    r.register("t", f)
    r.match("A", "B", "t")
    out.append(f.call_args)
    r.register("pcre", f)
    r.match("A", "B", "pcre")
    out.append(f.call_args)
    r.unregister("t")
    out.append(list(r._matchers))
    with patch.object(m.registry, "register") as reg:
        m.register_glob()
        m.register_pcre()
        out.append([(c[0][0], callable(c[0][1])) for c in reg.call_args_list])
    return out


def compression_methods(lib):
    c = of(lib, "compression")
    out = []
    out += [
        sorted(c._aliases)[:3],
        sorted((k, v) for k, v in c._aliases.items() if k in ("gzip", "bzip2", "zlib", "zstd", "xz", "lzma", "brotli")),
        sorted(set(c._encoders) & {"application/x-gzip", "application/x-bz2"}),
        [outcome(c.get_encoder, t)[1] for t in ("gzip", "application/x-bz2")],
        callable(c.get_decoder("zlib")),
        outcome(c.get_encoder, "nix"),
        outcome(c.get_decoder, "nix"),
        "gzip" in c.encoders(),
    ]
    e, d = Mock(return_value=b"E"), Mock(return_value=b"D")
    c.register(e, d, "application/t", aliases=["tt"])
    try:
        out += [
            c.compress("body", "tt"),
            e.call_args,
            c.decompress(b"x", "application/t"),
            d.call_args,
            c.get_encoder("tt")[0] is e,
            c.get_decoder("tt") is d,
            c._encoders["application/t"] is e,
            c._decoders["application/t"] is d,
        ]
    finally:
        c._aliases.pop("tt", None)
        c._encoders.pop("application/t", None)
        c._decoders.pop("application/t", None)
    with patch.object(c, "get_encoder", return_value=(lambda b: b + b"!", "ct")):
        out.append(c.compress("a", "q"))
    return out


def serializers(lib):
    s = of(lib, "serialization")
    out = []
    r = s.registry
    out += [
        sorted(r._encoders),
        r._encoders["json"].content_type,
        r._encoders["json"].content_encoding,
        sorted(r._decoders),
        r._default_content_type,
        r._default_content_encoding,
        sorted(r.type_to_name.values()),
        sorted(r.name_to_type),
    ]
    R = s.SerializerRegistry()
    e, d = Mock(return_value="enc"), Mock(return_value="dec")
    R.register("n", e, d, "t/n", "enc-8")
    out += [
        R.dumps({"a": 1}, "n"),
        e.call_args,
        R.loads("x", "t/n", "enc-8"),
        d.call_args,
        R.loads("x", "t/n", "enc-8", force=True),
        outcome(R.loads, "x", "t/n", "enc-8", accept={"other"}),
        R.name_to_type,
        R.type_to_name,
    ]
    R.disable("n")
    out += [R._disabled_content_types, outcome(R.loads, "x", "t/n", "enc-8"), R.loads("x", "t/n", "enc-8", force=True)]
    R.enable("n")
    out.append(R._disabled_content_types)
    R.disable("t/n")
    out.append(R._disabled_content_types)
    R.enable("t/n")
    out += [
        outcome(R.enable, "zz"),
        outcome(R.disable, "zz"),
        outcome(R._set_default_serializer, "zz"),
        outcome(R.dumps, {}, "zz"),
    ]
    e.side_effect = KeyError("x")
    out.append(outcome(R.dumps, 1, "n"))
    d.side_effect = KeyError("x")
    out.append(outcome(R.loads, "b", "t/n", "enc-8"))
    out += [
        R.dumps("text"),
        R.dumps(b"bytes"),
        R.dumps("text", "raw"),
        R.dumps(b"b", "raw"),
        R.loads("x", None, None),
        R.loads(b"x", "application/data", "binary"),
        R.loads("x", "text/plain", "utf-8"),
        R.loads(b"\xc3\xbc", "text/plain", "utf-8"),
        R.loads(b"x", "unknown/t", "utf-8"),
        R.loads(b"x", "unknown/t", None),
        R.loads("", "t/n", "utf-8"),
    ]
    out += [
        s.raw_encode("ü"),
        s.raw_encode(b"x"),
        s.parenthesize_alias("a", "b"),
        s.pickle_protocol,
        s.pickle_loads(b"\x80\x04K\x05."),
        s.unpickle(b"\x80\x04K\x05."),
        s.prepare_accept_content(["json", "a/b"]),
        s.prepare_accept_content(None),
        outcome(s.prepare_accept_content, ["zz"]),
        s.prepare_accept_content([], {}),
        s.SKIP_DECODE,
        s.TRUSTED_CONTENT,
    ]
    with patch.object(s, "registry", R):
        s.register("z", None, None, "a/z")
        s.unregister("z")
        out.append("z" in R._encoders)
    with patch.object(s.registry, "disable") as dis, patch.object(s.registry, "enable") as en:
        s.disable_insecure_serializers(["json"])
        out += [dis.call_count, en.mock_calls]
        dis.reset_mock()
        en.reset_mock()
        s.enable_insecure_serializers(["pickle"])
        out += [en.mock_calls]
        s.disable_insecure_serializers()
        s.enable_insecure_serializers()
        out.append([len(en.mock_calls)])
    out.append(outcome(s.registry.loads, "{", "application/json", "utf-8"))
    out.append(s.codec._fields)
    reg = Mock()
    with patch.object(s, "registry", reg):
        s.register_json()
        s.register_yaml()
        s.register_pickle()
        s.register_msgpack()
        out.append([c[0][0] for c in reg.register.call_args_list])
    return out


def loggers(lib):
    log = of(lib, "log")
    out = []
    with (
        patch.object(log.logging, "getLogger") as g,
        patch.object(log.logging, "StreamHandler") as sh,
        patch.object(log, "WatchedFileHandler") as wf,
    ):
        g.return_value.handlers = []
        log.setup_logging()
        out.append(
            [g.call_args_list[:1], g.return_value.setLevel.call_args, sh.called, g.return_value.addHandler.called]
        )
        g.return_value.handlers = []
        log.setup_logging(logfile="f.log", loglevel=3)
        out.append([wf.call_args, g.return_value.setLevel.call_args])

    class C(log.LogMixin):
        pass

    c = C()
    c.logger = Mock()
    c.debug("a")
    c.info("b")
    c.warn("c")
    c.critical("d")
    c.error("e", exc_info=False)
    out.append([(x[0], x[1]) for x in c.logger.mock_calls])
    out.append(
        [
            c.get_logger().name,
            c.is_enabled_for(10) is c.logger.isEnabledFor.return_value,
            c.get_loglevel("INFO"),
            c.logger_name,
        ]
    )
    out.append(c.annotate("x"))
    c.log(20, "%s", "z", extra=1)
    out.append(c.logger.log.call_args)
    out += [log.get_loglevel(3), outcome(log.get_loglevel, "NIX"), log.LOG_LEVELS["DEBUG"], log.LOG_LEVELS[10]]
    with patch.object(log.logging, "getLogger") as g:
        g.return_value.handlers = []
        x = log.get_logger("n")
        out.append([g.call_args, x is g.return_value, x.addHandler.called])
        m = Mock()
        m.handlers = [1]
        out.append(log.get_logger(m) is m)
    return out


def objects_bound_to_channels(lib):
    a = of(lib, "abstract")
    out = []

    class T(a.Object):
        attrs = (("one", None), ("two", int), ("three", bool))

    t = T(one=1, two="2")
    out += [t.one, t.two, t.three, t.as_dict(), pickle.loads(pickle.dumps(lib.Exchange("e"))).name, outcome(T, four=1)]
    import copy

    out.append(copy.copy(t).as_dict())
    out.append(t.__reduce__()[1][1])

    class B(a.MaybeChannelBound):
        attrs = (("x", None),)

    b = B()
    ch = Mock(channel_id=5)
    ch.is_bound = 1
    bb = b(ch)
    out += [b.is_bound, bb.is_bound, bb.channel is ch, repr(bb), repr(b), outcome(lambda: b.channel)]
    b2 = B()
    b2.when_bound = Mock()
    b2.maybe_bind(ch)
    out += [b2.is_bound, b2.when_bound.called, b2.maybe_bind(ch) is b2]
    b2.revive(Mock())
    out.append(b2.when_bound.call_count)
    out.append(b.can_cache_declaration)
    out.append(b.bind(ch) is b)
    conn = lib.Connection("memory://")
    b3 = b.bind(conn)
    out.append(b3._channel is conn)
    out.append(b3.channel is conn.default_channel)
    return out


def errors(lib):
    x = of(lib, "exceptions")
    out = []
    out += [
        str(x.HttpError(404, "m", Mock(__repr__=lambda s: "R"))),
        repr(x.LimitExceeded(3)),
        x.HttpError.__mro__[1].__name__,
    ]
    for n in (
        "NotBoundError",
        "MessageStateError",
        "LimitExceeded",
        "ConnectionLimitExceeded",
        "ChannelLimitExceeded",
        "VersionMismatch",
        "SerializerNotInstalled",
        "ContentDisallowed",
        "SerializationError",
        "EncodeError",
        "DecodeError",
        "InconsistencyError",
        "OperationalError",
        "TimeoutError",
    ):
        out.append(
            [n]
            + [
                c.__name__
                for c in getattr(x, n).__mro__
                if c.__name__ in ("KombuError", "Exception", "OperationalError", "SerializationError", "LimitExceeded")
            ]
        )

    def f():
        x.reraise(KeyError, KeyError("a"), None)

    out.append(outcome(f))
    out.append(str(x.KombuError("z")))
    return out


test_both_do_the_same = side_by_side(vars())
