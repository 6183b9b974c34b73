"""The modules below ``utils``: what they return, and the names in them that programs replace."""

from __future__ import annotations

import copy
import datetime
import decimal
import io
import pickle
import socket
import sys
import types
import uuid as _uuid
from itertools import count, islice
from unittest.mock import Mock, call, patch

from tests.oracle.side_by_side import of, outcome, side_by_side


def pauses_between_tries(lib):
    f = of(lib, "utils.functional")
    out = []
    with patch.object(f, "sleep") as s:
        calls = []

        def fun(*a, **k):
            calls.append((a, k))
            if len(calls) < 4:
                raise KeyError()
            return 42

        cb = Mock()
        eb = Mock(side_effect=lambda e, i, r: next(i))
        out.append(
            f.retry_over_time(fun, KeyError, args=(1,), kwargs={"a": 2}, errback=eb, interval_max=14, callback=cb)
        )
        out.append(sum(c[0][0] for c in s.call_args_list))
        out.append(cb.call_count)
        out.append([c[0][2] for c in eb.call_args_list])
        out.append(s.call_args_list)
        out.append(calls[0])
        s.reset_mock()
        calls.clear()
        out.append(f.retry_over_time(fun, KeyError, interval_start=0.5, interval_step=0.25))
        out.append([c[0][0] for c in s.call_args_list])
        s.reset_mock()
        calls.clear()
        out.append(outcome(f.retry_over_time, fun, KeyError, max_retries=1))
        out.append(len(calls))
        out.append(s.call_args_list)
        s.reset_mock()
        calls.clear()
        out.append(outcome(f.retry_over_time, fun, KeyError, max_retries=0))
        out.append(len(calls))
        s.reset_mock()
        calls.clear()
        out.append(outcome(f.retry_over_time, fun, KeyError, errback=lambda *a: 0))
        out.append(s.call_args_list)
        s.reset_mock()
        calls.clear()
        out.append(outcome(f.retry_over_time, fun, KeyError, errback=lambda *a: 100, interval_max=3))
        out.append([float(c[0][0]) for c in s.call_args_list])
        s.reset_mock()
        calls.clear()
        out.append(outcome(f.retry_over_time, fun, (KeyError, ValueError), errback=Mock(return_value=2)))
        out.append(s.call_args_list)
    return out


def tries_until_a_time(lib):
    f = of(lib, "utils.functional")
    out = []
    ticks = count(0)
    with patch.object(f, "sleep"), patch.object(f, "time", side_effect=lambda: next(ticks) * 1.0):
        fun = Mock(side_effect=KeyError())
        out.append(outcome(f.retry_over_time, fun, KeyError, timeout=3, interval_start=1))
        out.append(fun.call_count > 1)
    return out


def caches(lib):
    f = of(lib, "utils.functional")
    out = []
    x = f.LRUCache(3)
    for i in range(5):
        x[i] = i
    out += [list(x.keys()), list(x.values()), list(x.items()), len(x), list(x.data)]
    x[2]
    out.append(list(x))
    x[2] = "n"
    out.append(list(x))
    x.update({9: 9, 10: 10, 11: 11, 12: 12})
    out.append(list(x.items()))
    out.append([x.limit, type(x.data).__name__, hasattr(x, "mutex")])
    out.append(outcome(x.__getitem__, "nix"))
    out.append(x.get("nix", 1))
    out.append(9 in x)
    del x[10]
    out.append(list(x))
    x.setdefault("s", 1)
    out.append(list(x))
    x.clear()
    out.append(len(x))
    out.append(outcome(x.popitem))
    out.append(outcome(x.incr, "a"))
    y = f.LRUCache(2)
    y["a"] = "1"
    out.append([y.incr("a"), y.incr("a", 3), y["a"]])
    z = pickle.loads(pickle.dumps(y))
    out.append([list(z.items()), z.limit])
    out.append(list(y._iterate_items()))
    out.append(list(y._iterate_keys()))
    out.append(list(y._iterate_values()))
    out.append([repr(y), str(y), y == {"a": "5"}, bool(y), len(y)])
    return out


def remembered_results(lib):
    f = of(lib, "utils.functional")
    out = []
    C = Mock()
    f.memoize(maxsize=5, Cache=C)(lambda x: x)
    out.append(C.mock_calls)
    fun = Mock(__name__="n", side_effect=lambda *a, **k: (a, tuple(k)))
    g = f.memoize()(fun)
    out += [g(1, 2), g(1, 2), g(1, b=2), g(1, b=2), g.hits, g.misses, fun.call_count, g.original_func is fun]
    g.clear()
    out += [g.hits, g.misses, g(1, 2), fun.call_count]
    k = Mock(return_value="k")
    h = f.memoize(keyfun=k)(fun)
    h(1, a=2)
    out.append(k.mock_calls)
    c = f.LRUCache()
    e = f.memoize(Cache=lambda limit: c)(fun)
    e(1, z=2)
    out.append([x[:1] + x[2:] for x in c.data])
    out.append(type(next(iter(c.data))).__name__)
    return out


def lazy_values(lib):
    f = of(lib, "utils.functional")
    out = []
    late = f.lazy(lambda a, b: [a, b], 1, b=2)
    out += [
        late._fun.__name__,
        late._args,
        late._kwargs,
        late(),
        late.evaluate(),
        str(late),
        repr(late),
        late == [1, 2],
        late != [1, 2],
        late != 3,
        late == 3,
    ]
    out += [copy.deepcopy(late) is late, copy.copy(late)()]
    p = f.lazy(int, "3")
    out += [
        pickle.loads(pickle.dumps(p))(),
        f.maybe_evaluate(p),
        f.maybe_evaluate(4),
        f.promise is f.lazy,
        f.maybe_promise is f.maybe_evaluate,
        p.__reduce__()[1:],
    ]
    out.append(outcome(hash, p))
    return out


def promises_of_channels(lib):
    f = of(lib, "utils.functional")
    out = []
    c = Mock(return_value=Mock(__repr__=lambda s: "R"))
    p = f.ChannelPromise(c)
    out += [repr(p).startswith("<promise: 0x"), c.called, p.__contract__ is c]
    v = p()
    out += [v is c.return_value, p() is v, c.call_count, repr(p)]
    return out


def ranges(lib):
    f = of(lib, "utils.functional")
    out = []
    out += [
        list(islice(f.fxrange(*a), 8))
        for a in ((1, 3, 1), (1.0, 3.0, 0.5), (5, 3, 1), (0, 0, 1), (1, None, 2), (2, 0, 1))
    ]
    out += [list(islice(f.fxrange(*a, repeatlast=True), 8)) for a in ((1, 3, 1), (1.0, 3.0, 0.5), (1, None, 2))]
    out.append(outcome(lambda: list(islice(f.fxrange(5, 3, 1, repeatlast=True), 3))))
    out += [
        list(islice(f.fxrangemax(*a), 12))
        for a in ((1, None, 1, 10), (1.0, 3.0, 1.0, 30.0), (1, 3, 1, 4), (1.0, None, 1.0, 30.0), (2, 10, 5, 50))
    ]
    return out


def shuffled_items(lib):
    f = of(lib, "utils.functional")
    out = []
    with patch.object(f, "random") as r:
        r.shuffle.side_effect = lambda items: items.reverse()
        it = f.shufflecycle([1, 2, 3])
        out += [next(it), next(it), next(it), r.shuffle.call_count]
    with patch("random.shuffle", side_effect=lambda items: items.reverse()):
        it = f.shufflecycle("ab")
        out += [next(it), next(it)]
    return out


def lists_and_calls_as_text(lib):
    f = of(lib, "utils.functional")
    out = []
    for v in (None, 1, "a", b"a", [1], (1,), {1}, {}, range(3), iter(()), Mock()):
        out += [f.is_list(v), type(f.maybe_list(v)).__name__]
    out += [
        f.is_list({}, scalars=()),
        f.maybe_list("a", scalars=()),
        f.is_list([1], iters=(tuple,)),
        f.is_list("x", scalars=None),
    ]
    d = {"a": None, "b": 2}
    out += [
        f.dictfilter(d),
        f.dictfilter(d, c=None, e=3),
        f.dictfilter(a=None, c=1),
        f.dictfilter({}),
        f.dictfilter(None),
    ]
    out += [
        f.reprkwargs({"a": 1, "b": "x"}),
        f.reprkwargs({"a": 1}, sep="|", fmt="{0}->{1}"),
        f.reprcall("n", (1, 2), {"k": "v"}, sep="; "),
        f.reprcall("n", None, None),
        f.reprcall("n", (), {"a": 1}),
        f.reprcall("n", [1]),
    ]
    out += [
        f.accepts_argument(lambda a, *, b: 1, "b"),
        f.accepts_argument(lambda *a, **k: 1, "b"),
        outcome(f.accepts_argument, "x", "b"),
        f.accepts_argument(lists_and_calls_as_text, "lib"),
        outcome(f.accepts_argument, int, "x"),
    ]
    return out


def types_of_json(lib):
    j = of(lib, "utils.json")
    out = []
    out.append([t.__name__ for t in j._encoders])
    out.append("uuid" in j._decoders)

    class A:
        def __init__(s, v):
            s.v = v

    j.register_type(A, "aa", lambda o: o.v, lambda v: A(v * 2))
    try:
        out.append(j.dumps(A(3)))
        out.append(j.loads(j.dumps(A(3))).v)
        out.append(j._encoders[A][0])
        out.append(callable(j._decoders["aa"]))
    finally:
        j._encoders.pop(A, None)
        j._decoders.pop("aa", None)
    out.append(outcome(j.dumps, A(3)))
    out.append(refused(j.loads, '{"__type__":"aa","__value__":1}'))

    class B:
        pass

    j.register_type(B, None, lambda o: "bee")
    try:
        out.append(j.dumps([B()]))
    finally:
        j._encoders.pop(B, None)
    out.append(outcome(j.dumps, B()))

    class C(str):
        pass

    j.register_type(decimal.Decimal, "decimal", str, decimal.Decimal)
    out.append(j._as("t", 1))
    return out


def calls_of_json(lib):
    j = of(lib, "utils.json")
    out = []
    m = Mock(return_value="x")
    out.append(j.dumps({"a": 1}, _dumps=m))
    out.append([m.call_args[0], m.call_args[1]["cls"].__name__, len(m.call_args[1])])
    out.append(j.dumps({"a": 1}, _dumps=m, default_kwargs={"indent": 2}, sort_keys=True))
    out.append(sorted(m.call_args[1]))
    out.append(j.dumps({"b": 1, "a": 2}, sort_keys=True))
    out.append(j.dumps({"a": 1}, default_kwargs={"indent": 1}))
    load = Mock(return_value=5)
    out.append(j.loads("x", _loads=load))
    out.append([load.call_args[0], load.call_args[1]["object_hook"] is j.object_hook])
    for v in (b"y", bytearray(b"y"), memoryview(b"y")):
        j.loads(v, _loads=load)
        out.append(load.call_args[0])
    j.loads(b"y", _loads=load, decode_bytes=False)
    out.append(load.call_args[0])
    h = Mock(return_value="h")
    out.append(j.loads('{"a":{}}', object_hook=h))
    out.append(h.call_count)

    class R:
        def __json__(self):
            return {"r": 1}

    out.append(j.dumps([R()]))
    for v in (
        b"a",
        b"\xff",
        datetime.date(2020, 1, 2),
        datetime.datetime(2020, 1, 2, 3),
        datetime.time(1, 2),
        decimal.Decimal("1.5"),
        _uuid.UUID(int=5),
        datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc),
    ):
        out.append(j.dumps(v))
        out.append(j.loads(j.dumps(v)) == v)
    out.append(outcome(j.dumps, object()))
    out.append(refused(j.object_hook, {"__type__": "nix", "__value__": 1}))
    out.append(j.object_hook({"a": 1}))
    out.append(j.object_hook({"__type__": "decimal", "__value__": "1"}))
    e = j.JSONEncoder()
    out.append(outcome(e.default, object()))
    out.append(e.default(b"x"))
    out.append(e.encode({"a": b"x"}))
    out.append(j.JSONEncoder().default(decimal.Decimal("2")))

    class Sub(j.JSONEncoder):
        def default(self, o):
            if isinstance(o, object) and type(o) is object:
                return "OBJ"
            return super().default(o)

    out.append(j.dumps([object(), b"z"], cls=Sub))
    return out


def urls(lib):
    u = of(lib, "utils.url")
    out = []
    for s in (
        "amqp://user:pass@localhost:5672/my/vhost",
        "redis://:p%40w@h/1?ssl_cert_reqs=CERT_NONE&ssl_check_hostname=False&ssl_ca_certs=/x&a=b",
        "http://h",
        "x://",
        "amqp://u@h//",
        "sqs://a%2Fb:c@/",
        "foo://[::1]:33/v",
        "rediss://h?ssl_cert_reqs=required",
        "x://H.Com:1/",
    ):
        out.append(outcome(u.parse_url, s))
        out.append(outcome(u.url_to_parts, s))
        out.append(outcome(u.sanitize_url, s))
        out.append(outcome(u.sanitize_url, s, None))
        out.append(outcome(u.maybe_sanitize_url, s, "XX"))
    out += [u.maybe_sanitize_url("foo"), u.maybe_sanitize_url(None), u.maybe_sanitize_url(b"a://")]
    out += [
        u.as_url("https"),
        u.as_url("https", "h"),
        u.as_url("https", "h", 1, "u", "p", "/path"),
        u.as_url("x", user="a/b", password="c@d", path="p", sanitize=True),
        u.as_url("x", password="c", sanitize=True, mask=""),
        u.as_url("x", user="u"),
        u.as_url("x", "h", query={"a": 1}),
    ]
    with patch.object(u, "logger") as lg:
        u.parse_url("redis://h?ssl_cert_reqs=CERT_NONE")
        out.append(lg.warning.called)
    with patch.object(u, "ssl_available", False), patch.object(u, "logger") as lg:
        out.append(u.parse_url("redis://h?ssl_cert_reqs=CERT_REQUIRED"))
        out.append(lg.warning.called)
        out.append(u.parse_ssl_cert_reqs("x"))
    with patch.object(u, "_parse_url", return_value=("s", "h", 1, "u", "p", "v", {"q": "1"})):
        out.append(u.parse_url("z"))
    with patch.object(u, "parse_ssl_cert_reqs", return_value=7):
        out.append(u.parse_url("redis://h?ssl_cert_reqs=CERT_REQUIRED"))
    out += [u.safequote("a/b"), u._parse_url is u.url_to_parts, u.url_to_parts("a://b").hostname]
    return out


def with_modules(**k):
    mods = {}
    for name, m in k.items():
        mods[name.replace("__", ".")] = m
    return patch.dict(sys.modules, mods)


def environments(lib):
    c = of(lib, "utils.compat")
    out = []
    old = getattr(c, "_environment", None)
    try:
        c._environment = None
        with patch.object(c, "_detect_environment", return_value="foo") as d:
            out += [c.detect_environment(), c.detect_environment(), d.call_count, c._environment]
        c._environment = "cached"
        out.append(c.detect_environment())
    finally:
        c._environment = old
    ev = types.ModuleType("eventlet")
    pa = types.ModuleType("eventlet.patcher")
    pa.is_monkey_patched = lambda m: m is socket
    ev.patcher = pa
    with with_modules(eventlet=ev, eventlet__patcher=pa):
        out.append(c._detect_environment())
        pa.is_monkey_patched = lambda m: False
        out.append(c._detect_environment())
    with with_modules(eventlet=ev, eventlet__patcher=None):
        out.append(c._detect_environment())
    ge = types.ModuleType("gevent")
    gs = types.ModuleType("gevent.socket")
    gs.socket = socket.socket
    ge.socket = gs
    with with_modules(gevent=ge, gevent__socket=gs):
        out.append(c._detect_environment())
        gs.socket = object()
        out.append(c._detect_environment())
    with with_modules(gevent=None):
        out.append(c._detect_environment())
    ex = types.ModuleType("gevent.exceptions")
    ex.ConcurrentObjectUseError = KeyError
    out.append(c.get_gevent_concurrent_error())
    with with_modules(gevent=ge, gevent__exceptions=ex):
        out.append(c.get_gevent_concurrent_error())
    with with_modules(gevent=ge, gevent__exceptions=None):
        out.append(c.get_gevent_concurrent_error())
    return out


def files_and_entry_points(lib):
    c = of(lib, "utils.compat")
    out = []
    with patch.object(c, "importlib_metadata") as im:
        ep = Mock()
        im.entry_points.return_value = [ep]
        out.append([(a is ep, b is ep.load.return_value) for a, b in c.entrypoints("group")])
        out.append(im.entry_points.mock_calls)
    with patch("importlib.metadata.entry_points", return_value=[ep]) as m:
        out.append([(a is ep) for a, b in c.entrypoints("x")])
        out.append(m.mock_calls)
    f = Mock()
    f.fileno.return_value = 3
    out += [
        c.fileno(f),
        c.fileno(4),
        outcome(c.fileno, None),
        outcome(c.fileno, object()),
        c.maybe_fileno(f),
        c.maybe_fileno(None),
        c.maybe_fileno("x"),
        c.maybe_fileno(io.StringIO()),
    ]
    f.fileno.side_effect = io.UnsupportedOperation
    out.append(c.maybe_fileno(f))
    f.fileno.side_effect = OSError()
    out.append(outcome(c.maybe_fileno, f))

    @c.coro
    def g():
        x = yield 1
        while 1:
            x = yield x

    it = g()
    out += [it.send("a"), g.__name__]
    with c.nested(io.StringIO("a"), io.StringIO("b")) as (first, second):
        out += [first.read(), second.read()]
    out.append(c.FILENO_ERRORS)
    out.append(callable(c.register_after_fork))
    return out


def logged_calls(lib):
    d = of(lib, "utils.debug")
    out = []
    with patch.object(d, "get_logger") as g, patch.object(d, "logging") as log:
        d.setup_logging(loggers=["a.b"])
        out.append(g.call_args_list)
        out.append([c[0] for c in g.return_value.mock_calls])
        out.append(g.return_value.setLevel.call_count)
        d.setup_logging(3)
        out.append(g.call_args_list)
        out.append(g.return_value.setLevel.call_args)
        out.append(log.StreamHandler.call_count)
        out.append(g.return_value.addHandler.call_args == call(log.StreamHandler.return_value))

    class Instance:
        x = 3

        def go(self, *a, **k):
            return (a, k)

        def __enter__(self):
            return "no"

        def __exit__(self, *a):
            return 5

        def __repr__(self):
            return "I!"

    i = Instance()
    with patch.object(d, "get_logger") as g:
        w = d.Logwrapped(i, "lg", ident="id: {0.x} ")
        out += [
            g.call_args,
            w.instance is i,
            w.ident,
            w.go(1, k=2),
            g.return_value.debug.call_args,
            w.go(),
            g.return_value.debug.call_args,
            w.go(k=1),
            g.return_value.debug.call_args,
            w.x,
            repr(w),
            "go" in dir(w),
            w.__enter__() is w,
            w.__exit__(None, None, None),
            w.go.__name__,
            w.logger is g.return_value,
        ]
        n = d.Logwrapped(i)
        n.go("s")
        out.append(g.return_value.debug.call_args)
        out.append(outcome(lambda: w.nix))
    return out


def refused(function, *args):
    try:
        return function(*args)
    except ValueError:
        return "ValueError"


class NoPickle:
    def __reduce__(self):
        raise KeyError("no pickle")

    def __repr__(self):
        return "NP"


class Keep(io.BytesIO):
    def close(self):
        pass


class KeepS(io.StringIO):
    def close(self):
        pass


def dumps_in_an_emergency(lib):
    d = of(lib, "utils.div")
    out = []
    fh = Keep()
    err = io.StringIO()
    op = Mock(return_value=fh)
    path = d.emergency_dump_state({"a": 1}, open_file=op, stderr=err)
    out.append(pickle.loads(fh.getvalue()))
    out.append(op.call_args[0][1])
    out.append(err.getvalue().replace(path, "P"))
    out.append(op.call_args[0][0] == path)
    fh = Keep()
    err = io.StringIO()
    path = d.emergency_dump_state({"a": NoPickle()}, open_file=lambda p, m: fh, stderr=err)
    out.append(fh.getvalue())
    out.append(err.getvalue().replace(path, "P"))
    fh = KeepS()
    m = Mock()
    op = Mock(return_value=fh)
    d.emergency_dump_state({"a": 1}, open_file=op, dump=m, stderr=err)
    out.append([m.call_args[0][0], m.call_args[1], op.call_args[0][1]])
    fh = KeepS()
    m = Mock(side_effect=KeyError("x"))
    d.emergency_dump_state({"a": 1}, open_file=lambda p, m_: fh, dump=m, stderr=err)
    out.append(fh.getvalue())
    with patch.object(d, "logger") as lg:
        fh = Keep()
        p = d.emergency_dump_state({"a": NoPickle()}, open_file=lambda p_, m_: fh)
        out.append(
            [
                lg.error.call_args[0][0],
                lg.error.call_args[0][1] == p,
                lg.error.call_args[1]["extra"] == {"emergency_state_file": p},
                lg.exception.call_args,
            ]
        )
    with patch("tempfile.mkstemp", return_value=(99999, "/x")), patch.object(d, "os") as o:
        out.append(
            [d.emergency_dump_state({}, open_file=lambda p_, m_: Keep(), stderr=io.StringIO()), o.close.call_args]
        )
    return out


class Bad:
    def __repr__(self):
        raise UnicodeDecodeError("foo", b"", 0, 1, "x")


class Bad2:
    def __repr__(self):
        raise KeyError("r")

    def __str__(self):
        return "strOK"


def text_and_bytes(lib):
    e = of(lib, "utils.encoding")
    out = []
    with patch("sys.getfilesystemencoding", return_value="ascii"):
        out.append(e.default_encoding())
    f = Mock(encoding="utf-99")
    out += [e.default_encoding(f)]
    e.set_default_encoding_file(f)
    out += [e.get_default_encoding_file() is f, e.default_encoding_file is f, e.default_encoding()]
    f.encoding = None
    with patch("sys.getfilesystemencoding", return_value="qq"):
        out.append(e.default_encoding())
    with patch.object(e, "get_default_encoding_file", return_value=Mock(encoding="gg")):
        out.append(e.default_encoding())
    e.set_default_encoding_file(None)
    out.append(e.default_encoding_file)
    out += [
        e.str_to_bytes("ü"),
        e.str_to_bytes(b"x"),
        e.str_to_bytes(3),
        e.bytes_to_str(b"\xff"),
        e.bytes_to_str("x"),
        e.from_utf8("x"),
        e.default_encode(b"foo"),
        e.ensure_bytes("a"),
        e.ensure_bytes(b"a"),
        e.ensure_bytes(None),
    ]
    out += [
        e.safe_str("foo"),
        e.safe_str(b"foo"),
        e.safe_str("\udc80"),
        e.safe_str(object) == "<class 'object'>",
        e.safe_str(["a"]),
        e.safe_str(Bad())[:15],
        e.safe_repr(Bad2()),
        e.safe_str(Bad2()),
        e._safe_str("x"),
        e._safe_str(3),
        e._safe_str(Bad2()),
    ]
    b = e.safe_repr(Bad())
    out.append(b.split(":")[0].split(" at ")[0])
    out.append("Traceback" in b or "File" in b)
    with patch.object(e, "traceback") as t:
        t.format_stack.return_value = ["S1", "S2"]
        out.append(e._safe_str(Bad()).replace("tests.oracle.test_utils_against_kombu.", ""))
    return out


def imports_by_name(lib):
    m = of(lib, "utils.imports")
    s = m.symbol_by_name
    out = []
    imp = Mock()
    out += [s("a.b.C", imp=imp) is imp.return_value.C, imp.mock_calls]
    imp.reset_mock()
    out += [s("a.b:C.d", imp=imp) is getattr(imp.return_value, "C.d"), imp.mock_calls]
    imp.reset_mock()
    out += [s("abc", imp=imp) is imp.return_value, imp.mock_calls]
    imp.reset_mock()
    out += [outcome(s, "abc", package="pk", imp=imp) is imp.return_value, imp.mock_calls]
    imp.reset_mock()
    out += [s(".abc", package="pk", imp=imp) is imp.return_value.abc, imp.mock_calls]
    imp.reset_mock()
    out += [s("x", aliases={"x": "y.z"}, imp=imp, foo=1) is imp.return_value.z, imp.mock_calls]
    imp.reset_mock()
    out += [s("x", aliases={"x": None}, imp=imp) is imp.return_value, imp.mock_calls]
    imp.reset_mock()
    imp.side_effect = ValueError("foo")
    try:
        s("a.b", imp=imp)
    except ValueError as e:
        out.append(str(e))
    imp.side_effect = ImportError()
    out += [outcome(s, "a.b", imp=imp), s("a.b", imp=imp, default=3)]
    out += [
        outcome(s, "json.nix"),
        s("json.nix", default=1),
        s(int),
        s(3),
        s("a/b", sep="/", imp=Mock(return_value=Mock(b=4))),
        outcome(s, ""),
    ]
    with patch.object(m, "importlib") as il:
        out += [s("q.r") is il.import_module.return_value.r]
    return out


def token_buckets(lib):
    limits = of(lib, "utils.limits")
    out = []
    with patch.object(limits, "monotonic", return_value=100.0) as mt:
        b = limits.TokenBucket(2, 10)
        out += [
            b._tokens == 10,
            b.capacity,
            b.fill_rate,
            b.timestamp,
            type(b.contents).__name__,
            b.can_consume(),
            b._tokens == 9,
            b.can_consume(9),
            b.can_consume(),
            b.expected_time(4),
            b.expected_time(0),
        ]
        mt.return_value = 101.0
        out += [b.can_consume(2), b.can_consume(1), b._get_tokens(), b.timestamp]
        mt.return_value = 200.0
        out += [b._get_tokens(), b.expected_time(11), b.expected_time(20)]
        b._get_tokens = Mock(return_value=5.0)
        b._tokens = 5.0
        out += [b.expected_time(7), b.can_consume(6)]
    out += [
        limits.TokenBucket.fill_rate,
        limits.TokenBucket.capacity,
        limits.TokenBucket.timestamp,
        limits.TokenBucket(1, 5)._tokens == 5,
    ]
    return out


def cached_properties(lib):
    o = of(lib, "utils.objects")
    out = []
    log = []

    class X:
        def __init__(s):
            s.n = 0

        @o.cached_property
        def foo(s):
            "doc"
            s.n += 1
            return s.n

        @foo.setter
        def foo(s, v):
            log.append(("set", v))
            return 10

        @foo.deleter
        def foo(s, v):
            log.append(("del", v))

        @o.cached_property
        def bar(s):
            return 1

    x = X()
    out += [x.foo, x.foo, x.n]
    x.foo = 5
    out += [x.foo]
    del x.foo
    out += [x.foo, log[:]]
    del x.bar
    x.bar = 7
    out += [x.bar, x.__dict__["bar"]]
    del x.bar
    del x.bar
    out.append(x.bar)
    out += [
        type(X.foo).__name__,
        X.foo.__doc__,
        X.foo.attrname,
        callable(X.foo.func),
        X.foo.__get__(None) is X.foo,
        hasattr(X.foo, "lock"),
    ]
    p = X.__dict__["foo"]
    out += [p.__set__(None, 1) is p, p.__delete__(None) is p]
    f = Mock(__name__="f", __doc__="d")
    cp = o.cached_property(f)
    out.append(outcome(cp.__get__, None) is cp)
    out.append(repr(o._NOT_FOUND)[:8])
    return out


def turns(lib):
    s = of(lib, "utils.scheduling")
    out = []

    class My(Exception):
        pass

    def echo(r, cb):
        return r, cb

    c = s.FairCycle(echo, ["a", "b", "c"], My)
    out += [[c.get("x") for _ in range(5)], c.pos, repr(c), c.resources, c.predicate is My, c.fun is echo]
    c = s.FairCycle(echo, ["a"], My)
    c.get(1)
    c.resources.append("b")
    out += [c.get(1), c.get(1)]
    c.resources[:] = []
    out += [outcome(c.get, 1), outcome(c._next)]
    n = []

    def empty(r, cb, **k):
        n.append((r, k))
        raise My(r)

    c = s.FairCycle(empty, ["a", "b"], My)
    out += [outcome(c.get, 1, timeout=3), n[:]]
    try:
        c.get(1)
    except My as e:
        out.append(e.args)
    out += [c.close()]
    r = s.round_robin_cycle(["a", "b"])
    out += [r.consume(1), r.rotate("a"), r.items, r.rotate("z"), r.items]
    r.update(["q"])
    out.append(r.items)
    out.append(s.round_robin_cycle().items)
    items = ["a", "b"]
    r = s.round_robin_cycle(items)
    r.rotate("a")
    out.append(items)
    out += [
        s.priority_cycle(["b", "a"]).rotate("b"),
        s.sorted_cycle(["b", "a", "c"]).consume(2),
        s.cycle_by_name("priority").__name__,
        s.CYCLE_ALIASES,
        outcome(s.cycle_by_name, "nix"),
    ]
    return out


def identifiers(lib):
    u = of(lib, "utils.uuid")
    return [u.uuid(lambda: 5), len(u.uuid()), u.uuid().count("-"), u.uuid(_uuid=Mock(return_value="z"))]


def keys_of_objects(lib):
    c = of(lib, "utils.collections")
    out = []
    h = c.HashedSeq(1, 2)
    out += [
        hash(h) == hash((1, 2)),
        list(h),
        h == [1, 2],
        h == c.HashedSeq(1, 2),
        h != c.HashedSeq(1, 2),
        h.hashvalue == hash((1, 2)),
        h == (1, 2),
        h != [1, 2],
    ]

    class E:
        def __init__(s, k):
            s.k = k

        def __eqhash__(s):
            return hash(s.k)

    d = c.EqualityDict()
    d[E(1)] = 2
    d["a"] = 3
    out += [d[E(1)], d["a"], len(d), c.eqhash(E(4)) == hash(4), c.eqhash("a") == hash("a")]
    del d[E(1)]
    out += [len(d)]

    class D(c.EqualityDict):
        def __missing__(s, k):
            return "m"

    out += [D()["q"]]
    return out


def versions_and_similar_names(lib):
    t = of(lib, "utils.text")
    out = []
    out += [
        t.escape_regex("a.b*c\0 d", white=" "),
        list(t.fmatch_iter("foo", ["fob", "bar", "foo"], 0.5)),
        t.fmatch_best("foo", ["fob", "bar"]),
        t.fmatch_best("foo", ["zzz"]),
        t.fmatch_best("aaa", ["aab", "aac"]),
    ]
    for v in (
        "3",
        "3.3",
        "3.3.1",
        "3.3.1a3",
        "3.3.1a3-40c32",
        "3.3.1.a3.40c32",
        "4.0.0+1.abc",
        "3.13.0rc1-2",
        "1.2.3-dev",
    ):
        out.append(tuple(outcome(t.version_string_as_tuple, v)))
    out += [
        outcome(t.version_string_as_tuple, "x.y"),
        t._splitmicro("12ab"),
        t._splitmicro("12"),
        t._splitmicro("3c", "r", "s"),
        tuple(t._unpack_version("1", "2")),
    ]
    return out


def managers(lib):
    a = of(lib, "utils.amq_manager")
    out = []
    pr = types.ModuleType("pyrabbit")
    pr.Client = Mock()
    with with_modules(pyrabbit=pr):
        c = Mock()
        c.transport_options = {}
        c.hostname = c.userid = c.password = None
        c.port = 1
        a.get_manager(c)
        c.hostname = "hh"
        c.userid = "u"
        c.password = "p"
        a.get_manager(c)
        a.get_manager(c, "a", 2, "b", "c")
        c.transport_options = {
            "manager_hostname": "mh",
            "manager_port": 7,
            "manager_userid": "mu",
            "manager_password": "mp",
        }
        a.get_manager(c)
        a.get_manager(c, hostname="")
        out.append(pr.Client.mock_calls)
    return out


def milliseconds(lib):
    t = of(lib, "utils.time")
    return [t.maybe_s_to_ms(v) for v in (None, 1, 1.5, 0, 0.0001)]


test_both_do_the_same = side_by_side(vars())
