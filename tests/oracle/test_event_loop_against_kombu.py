"""The event loop, its pollers, timers and semaphores, with mocks in the place of their parts."""

from __future__ import annotations

import errno
import socket
from datetime import datetime, timezone
from queue import Empty
from unittest.mock import Mock, call, patch

import pytest

from tests.oracle.side_by_side import of, os_error, outcome, side_by_side

HUBS = []


def a_hub(module):
    hub = module.Hub()
    HUBS.append(hub)
    return hub


@pytest.fixture(autouse=True)
def closed_wakers():
    yield
    while HUBS:
        hub = HUBS.pop()
        if hub._waker is not None:
            hub._waker.close()


def epolls(lib):
    ev = of(lib, "utils.eventio")
    out = []
    with patch.object(ev, "epoll", Mock()) as ep:
        p = ev._epoll()
        out.append(p._epoll is ep.return_value)
        out.append(p.register(3, ev.READ | ev.WRITE))
        out.append(ep.return_value.register.mock_calls)
        ep.return_value.register.side_effect = os_error(errno.EEXIST)
        out.append(outcome(p.register, 4, ev.READ))
        ep.return_value.register.side_effect = os_error(errno.EBADF)
        out.append(outcome(p.register, 4, ev.READ))
        out.append(p.unregister(3))
        out.append(ep.return_value.unregister.mock_calls)
        for e in (
            ValueError(),
            KeyError(),
            TypeError(),
            os_error(errno.ENOENT),
            os_error(errno.EPERM),
            os_error(errno.EINVAL),
            RuntimeError(),
        ):
            ep.return_value.unregister.side_effect = e
            out.append(outcome(p.unregister, 5))
        ep.return_value.poll.return_value = [(1, 1)]
        out += [p.poll(4), p.poll(None), p.poll(0), ep.return_value.poll.mock_calls]
        ep.return_value.poll.side_effect = os_error(errno.EINTR)
        out.append(p.poll(1))
        ep.return_value.poll.side_effect = ValueError()
        out.append(outcome(p.poll, 1))
        p.close()
        out.append(ep.return_value.close.mock_calls)
    return out


def kqueues(lib):
    ev = of(lib, "utils.eventio")
    out = []
    with (
        patch.object(ev, "kqueue", Mock()) as kq,
        patch.object(ev, "kevent", side_effect=lambda *a, **k: (a, tuple(sorted(k.items()))), create=True),
    ):
        p = ev._kqueue()
        q = kq.return_value
        out.append(p._kqueue is q)
        out.append(p._active)
        p.register(12, ev.WRITE)
        p.register(13, ev.READ)
        p.register(14, ev.READ | ev.WRITE)
        out.append(q.control.mock_calls[:])
        q.control.reset_mock()
        p.unregister(13)
        p.unregister(99)
        out.append(q.control.mock_calls[:])
        out.append(dict(p._active))
        q.control.side_effect = OSError()
        p.unregister(14)
        q.control.side_effect = ValueError()
        out.append(outcome(p.register, 5, ev.READ))
        q.control.side_effect = None
        q.control.reset_mock()
        p.watch_file(7)
        p.unwatch_file(7)
        out.append(q.control.mock_calls[:])

        def ke(ident, filter, flags=0, fflags=0):
            m = Mock()
            m.ident, m.filter, m.flags, m.fflags = ident, filter, flags, fflags
            return m

        p.on_file_change = Mock()
        q.control.return_value = [
            ke(1, ev.KQ_FILTER_READ),
            ke(2, ev.KQ_FILTER_WRITE),
            ke(2, ev.KQ_FILTER_READ),
            ke(3, ev.KQ_FILTER_WRITE, ev.KQ_EV_EOF),
            ke(4, ev.KQ_EV_ERROR),
            ke(5, ev.KQ_FILTER_VNODE, 0, ev.KQ_NOTE_DELETE),
            ke(6, ev.KQ_FILTER_VNODE),
        ]
        q.control.reset_mock()
        out.append(sorted(p.poll(3)))
        out.append(q.control.call_args_list[:1])
        out.append(len(p.on_file_change.call_args[0][0]))
        q.control.side_effect = os_error(errno.EINTR)
        out.append(p.poll(1))
        q.control.side_effect = os_error(errno.EBADF)
        out.append(outcome(p.poll, 1))
        p.close()
        out.append(q.close.mock_calls)
    return out


def polls(lib):
    ev = of(lib, "utils.eventio")
    out = []
    with patch.object(ev, "xpoll", Mock()) as xp:
        p = ev._poll()
        x = xp.return_value
        out.append(p._poller is x)
        out.append(
            [
                p.register(3, ev.READ),
                p.register(4, ev.WRITE),
                p.register(5, ev.ERR),
                p.register(6, ev.READ | ev.WRITE | ev.ERR),
            ]
        )
        out.append(x.register.mock_calls[:])
        f = Mock()
        f.fileno.return_value = 77
        out.append([p.register(f, ev.READ), p.unregister(f), p.unregister(3)])
        out.append(x.unregister.mock_calls[:])
        f.fileno.side_effect = os_error(errno.EBADF)
        out.append(p.unregister(f) is f)
        f.fileno.side_effect = os_error(errno.EINVAL)
        out.append(outcome(p.unregister, f))
        f2 = Mock()
        f2.fileno.return_value = 8
        x.poll.return_value = [
            (1, ev.POLLIN),
            (2, ev.POLLOUT),
            (3, ev.POLLERR),
            (4, ev.POLLHUP),
            (5, ev.POLLNVAL),
            (f2, ev.POLLIN | ev.POLLHUP),
        ]
        out.append(p.poll(1.2))
        out.append(p.poll(None))
        out.append(p.poll(-3))
        out.append(p.poll(0.0001))
        out.append(x.poll.mock_calls)
        x.poll.side_effect = os_error(errno.EINTR)
        out.append(p.poll(1))
        x.poll.side_effect = os_error(errno.EBADF)
        out.append(outcome(p.poll, 1))
        p.close()
        out.append(p._poller)
    return out


def selects(lib):
    ev = of(lib, "utils.eventio")
    out = []
    p = ev._select()
    a, b = socket.socketpair()
    out.append(p.register(a, ev.READ | ev.ERR) == a.fileno())
    p.register(b.fileno(), ev.WRITE)
    out.append([len(p._rfd), len(p._wfd), len(p._efd), len(p._all)])
    got = p.poll(0)
    out.append([(fd == b.fileno(), e) for fd, e in got])
    b.send(b"x")
    out.append(sorted((fd == a.fileno(), e) for fd, e in p.poll(0)))
    with patch.object(ev, "_selectf", Mock()) as s:
        s.return_value = [{3}, {4}, {5}]
        out.append(sorted(p.poll(2)))
        f = Mock()
        f.fileno.return_value = 8
        s.return_value = [{f}, {f}, {f}]
        out.append(sorted(p.poll(2)))
        s.side_effect = os_error(errno.EINTR)
        out.append(p.poll(1))
        s.side_effect = os_error(errno.EINVAL)
        out.append(outcome(p.poll, 1))
        s.side_effect = os_error(errno.EBADF)
        out.append(p.poll(1))
        out.append([len(x) for x in p._all])
    p.register(b, ev.WRITE)
    p.unregister(b)
    out.append([len(x) for x in p._all])
    f = Mock()
    f.fileno.side_effect = os_error(errno.EBADF)
    out.append(p.unregister(f))
    f.fileno.side_effect = os_error(errno.EINVAL)
    out.append(outcome(p.unregister, f))
    p.register(3, 7 | ev.ERR)
    p.close()
    out.append([len(x) for x in p._all])
    a.close()
    b.close()
    return out


def choosing_a_poller(lib):
    ev = of(lib, "utils.eventio")
    out = []
    out.append(type(ev.poll()).__name__)
    out.append(ev._get_poller().__name__)
    with patch.object(ev, "detect_environment", Mock(return_value="eventlet")):
        out.append(ev._get_poller().__name__)
    with patch.object(ev, "epoll", None):
        out.append(ev._get_poller().__name__)
        with patch.object(ev, "kqueue", Mock()), patch.object(ev, "sys") as s:
            s.platform = "netbsd"
            out.append(ev._get_poller().__name__)
        with patch.object(ev, "xpoll", None):
            out.append(ev._get_poller().__name__)
    with patch.object(ev, "_get_poller", Mock()) as g:
        ev.poll(1, a=2)
        out.append(g.mock_calls)
    return out


def calls_soon(lib):
    from vine import promise

    h = of(lib, "asynchronous.hub")
    hub = a_hub(h)
    out = []
    cb = Mock()
    p = hub.call_soon(cb, 1, 2)
    out += [isinstance(p, promise), p in hub._ready, len(hub._ready)]
    out += [p.fun is cb, tuple(p.args)]
    hub.run_once()
    out.append(cb.mock_calls)
    pr = promise(cb, (3,))
    out.append(hub.call_soon(pr) is pr)
    hub.run_once()
    out.append(cb.mock_calls)
    q = hub.call_soon(cb, 9)
    q.cancel()
    hub.run_once()
    out.append(cb.mock_calls)
    out.append(q.cancelled)
    hub.close()
    return out


def sets_of_ready_calls(lib):
    h = of(lib, "asynchronous.hub")
    hub = a_hub(h)
    out = []
    a, b = Mock(), Mock()
    hub._ready.add(a)
    hub._ready.add(b)
    hub._ready.add(None)
    outcome(hub.run_once)
    out.append([a.called, b.called])
    hub.call_soon = Mock()
    hub.stop()
    out.append(hub.call_soon.call_args == call(h._raise_stop_error))
    out.append(hub._pop_ready())
    hub._ready = {a}
    out.append(hub._pop_ready() == {a})
    out.append(hub._ready)
    hub.close()
    return out


def closing_a_hub(lib):
    h = of(lib, "asynchronous.hub")
    hub = a_hub(h)
    out = []
    hub.poller = Mock()
    hub.readers = {1: (1, ()), 2: (2, ())}
    hub.writers = {3: (3, ())}
    hub.consolidate.add(3)
    un = hub._unregister = Mock()
    cb = Mock()
    hub.on_close.add(cb)
    todo = Mock()
    hub._ready.add(todo)
    pl = hub._poller
    hub.close()
    out += [
        un.mock_calls,
        hub.readers,
        hub.writers,
        hub.consolidate,
        cb.call_args == call(hub),
        todo.mock_calls,
        pl.close.mock_calls,
        hub._poller,
    ]
    return out


def resetting_a_hub(lib):
    h = of(lib, "asynchronous.hub")
    hub = a_hub(h)
    out = []
    hub.poller = Mock()
    first = hub._poller
    cb = Mock()
    hub.on_close.add(cb)
    hub.add = Mock()
    hub.reset()
    out += [first.close.called, hub._poller is not first, hub._poller is not None, cb.called]
    with patch.object(h, "poll") as poll:
        hub.reset()
        out.append(poll.mock_calls[:1])
        out.append(hub.poller is poll.return_value)
        hub._create_poller()
        out += [hub._register_fd is poll.return_value.register, hub._unregister_fd is poll.return_value.unregister]
        hub._close_poller()
        out += [hub._poller, hub._register_fd, hub._unregister_fd, poll.return_value.close.called]
        hub._close_poller()
        out.append(hub.poller is poll.return_value)
    return out


def adding_descriptors(lib):
    h = of(lib, "asynchronous.hub")
    hub = a_hub(h)
    out = []
    hub.poller = Mock()
    cb = Mock()
    hub.add(5, cb, h.READ, (1,))
    hub.add(6, cb, h.WRITE)
    hub.add(7, None, h.WRITE, consolidate=True)
    hub.add(8, cb, h.WRITE, (2,))
    out += [
        hub.poller.register.mock_calls,
        {k: v and v[1] for k, v in hub.readers.items()},
        {k: v and v[1] for k, v in hub.writers.items()},
        hub.consolidate,
    ]
    hub.add = Mock()
    hub.add_reader(1, cb, 2)
    hub.add_writer(3, cb, 4)
    out.append([c[0][0:1] + c[0][2:] for c in hub.add.call_args_list])
    hub.readers.clear()
    hub.remove_reader(5)
    out.append([c[0][0:1] + c[0][2:] for c in hub.add.call_args_list])
    out.append(hub.poller.unregister.mock_calls)
    hub.remove_writer(5)
    out.append(hub.poller.unregister.mock_calls)
    hub._remove_from_loop = Mock()
    hub.remove(9)
    out.append(hub._remove_from_loop.mock_calls)
    f = Mock()
    f.fileno.return_value = 12
    hub.remove(f)
    out.append(hub._remove_from_loop.mock_calls)
    return out


def consolidated_writers(lib):
    h = of(lib, "asynchronous.hub")
    hub = a_hub(h)
    out = []
    hub.poller = Mock()
    hub.consolidate_callback = Mock()
    hub.add(1007, None, h.WRITE, consolidate=True)
    hub.poller.poll.return_value = [(1007, h.WRITE)]
    hub.run_once()
    out.append(hub.consolidate_callback.mock_calls)
    hub.poller.poll.return_value = [(1007, h.ERR)]
    hub.run_once()
    out.append(hub.consolidate_callback.mock_calls)
    return out


def readers_beside_consolidated_writers(lib):
    h = of(lib, "asynchronous.hub")
    hub = a_hub(h)
    hub.poller = Mock()
    read = Mock()
    hub.add_reader(1008, read)
    hub.add(1008, None, h.WRITE, consolidate=True)
    hub.remove_writer(1008)
    hub.poller.poll.return_value = [(1008, h.READ)]
    hub.run_once()
    return [read.mock_calls, 1008 in hub.readers, 1008 in hub.writers, 1008 in hub.consolidate]


def turns_of_the_loop(lib):
    h = of(lib, "asynchronous.hub")
    hub = a_hub(h)
    out = []
    hub.poller = Mock()
    pl = hub.poller
    r, w = Mock(name="r"), Mock(name="w")
    hub.add_reader(5, r, "r")
    hub.add_writer(6, w, "w")
    pl.poll.return_value = [(5, h.READ), (6, h.WRITE)]
    hub.fire_timers = Mock(return_value=0)
    tick = Mock()
    hub.on_tick.add(tick)
    hub.run_once()
    out += [r.mock_calls, w.mock_calls, tick.mock_calls]
    pl.poll.return_value = [(5, h.ERR)]
    hub.run_once()
    out += [r.mock_calls]
    pl.poll.return_value = [(6, h.ERR)]
    hub.run_once()
    out += [w.mock_calls]
    pl.poll.return_value = [(6, 1000 << 6)]
    hub.run_once()
    out += [w.mock_calls]
    pl.poll.return_value = [(5, h.WRITE)]
    hub.run_once()
    out += [r.mock_calls, sorted(hub.readers), sorted(hub.writers)]
    pl.poll.return_value = [(6, h.READ)]
    hub.run_once()
    out += [w.mock_calls, sorted(hub.readers), sorted(hub.writers)]
    pl.poll.return_value = [(99, h.ERR)]
    pl.unregister.reset_mock()
    hub.run_once()
    out += [pl.unregister.mock_calls]
    pl.poll.return_value = None
    hub.run_once()
    r.side_effect = Empty()
    pl.poll.return_value = [(5, h.READ)]
    hub.run_once()
    r.side_effect = KeyError("x")
    out.append(outcome(hub.run_once))
    return out


def generators_that_raise(lib):
    h = of(lib, "asynchronous.hub")
    hub = a_hub(h)
    out = []
    hub.poller = Mock()
    pl = hub.poller
    seen = []

    def g(end):
        seen.append("a")
        yield
        seen.append("b")
        yield
        if end:
            raise end

    for end in (os_error(errno.EBADF), KeyError("x")):
        hub.add_reader(5, g(end))
        pl.poll.return_value = [(5, h.READ)]
        res = [outcome(hub.run_once) for _ in range(4)]
        out.append((res, len(seen), sorted(hub.readers)))
        hub._loop = None
        hub.readers.clear()
    return out


def pollers_that_were_closed(lib):
    h = of(lib, "asynchronous.hub")
    hub = a_hub(h)
    out = []
    hub.poller = Mock()
    hub.add_reader(5, Mock())
    loop = hub.loop
    out.append(hub._loop is loop)
    hub.poller.poll.side_effect = ValueError()
    hub.run_once()
    out.append(hub._loop)
    out.append(hub.loop is loop)
    return out


def running_until_stopped(lib):
    h = of(lib, "asynchronous.hub")
    hub = a_hub(h)
    out = []
    hub.run_once = Mock(side_effect=[None, None, h.Stop()])
    hub.run_forever()
    out += [hub.run_once.call_count, hub._running]
    hub.run_once.side_effect = KeyError()
    out.append(outcome(hub.run_forever))
    out.append(hub._running)
    return out


def timers_of_a_hub(lib):
    h = of(lib, "asynchronous.hub")
    hub = a_hub(h)
    out = []
    hub.timer = Mock()
    hub.timer._queue = []
    out.append(hub.fire_timers(min_delay=42.3, max_delay=33.2))
    hub.timer._queue = [1]
    hub.scheduler = iter([(3.7, None)])
    out.append(hub.fire_timers())
    e1, e2 = Mock(), Mock()
    hub.scheduler = iter([(3, e1), (5, e2), (20, None)])
    out.append(hub.fire_timers(max_delay=10))
    out.append([e1.called, e2.called])
    hub.scheduler = iter([(3.7, Mock()) for _ in range(11)])
    out.append(hub.fire_timers(max_timers=10))
    for e in (MemoryError(), AssertionError(), os_error(errno.ENOMEM), KeyError("p")):
        x = Mock(side_effect=e)
        hub.scheduler = iter([(1, x)])
        out.append(outcome(hub.fire_timers, propagate=(KeyError,)))
    for e in (os_error(errno.ENOENT), ValueError()):
        with patch.object(h, "logger") as lg:
            x = Mock(side_effect=e)
            hub.scheduler = iter([(1, x), (2, None)])
            out.append(outcome(hub.fire_timers))
            out.append(lg.error.call_args[1] == {"exc_info": 1})
    return out


def calls_that_go_to_the_timer(lib):
    h = of(lib, "asynchronous.hub")
    hub = a_hub(h)
    hub.timer = Mock()
    hub.call_later(1, "f", 2)
    hub.call_at(3, "f", 4)
    hub.call_repeatedly(5, "f", 6)
    return hub.timer.mock_calls


def errors_of_callbacks(lib):
    h = of(lib, "asynchronous.hub")
    hub = a_hub(h)
    with patch.object(h, "logger") as lg:
        cb = Mock(name="c")
        e = KeyError()
        hub.on_callback_error(cb, e)
        return [lg.error.call_args[0][0], len(lg.error.call_args[0]), lg.error.call_args[1] == {"exc_info": 1}]


def events_without_a_meaning(lib):
    h = of(lib, "asynchronous.hub")
    hub = a_hub(h)
    hub.poller = Mock()
    with patch.object(h, "logger") as lg:
        hub.readers = {6: (Mock(), ())}
        hub.poller.poll.return_value = [(6, 1 << 9)]
        hub.run_once()
        return [len(lg.info.call_args_list), lg.info.call_args[0][1:] if lg.info.called else None]


def the_loop_of_the_process(lib):
    h = of(lib, "asynchronous.hub")
    a = of(lib, "asynchronous")
    out = []
    h._current_loop = Mock()
    out.append(h.get_event_loop() is h._current_loop)
    out.append(a.get_event_loop() is h._current_loop)
    x = Mock()
    out.append(a.set_event_loop(x) is x)
    out.append(h._current_loop is x)
    h.set_event_loop(None)
    out.append(h._current_loop)
    with patch.object(h, "set_event_loop") as s:
        hub = a_hub(h)
        h._current_loop = hub
        hub.close()
        out.append(s.mock_calls)
    h._current_loop = None
    return out


def hubs_as_text(lib):
    h = of(lib, "asynchronous.hub")
    d = of(lib, "asynchronous.debug")
    hub = a_hub(h)
    out = []

    def on_read(*a):
        pass

    def on_write(*a):
        pass

    hub.readers = {6: (on_read, (1,)), 7: None}
    hub.writers = {8: (on_write, (2,)), 9: None}
    hub.consolidate.add(9)
    hub.consolidate_callback = on_write
    out += [
        hub.repr_active(),
        hub.repr_events([(6, 1), (8, 4), (9, 4), (10, 1), (6, 24), (7, 1)]),
        hub.repr_events(None),
    ]
    out += [d.repr_flag(f) for f in (1, 4, 24, 8, 16, 1 | 4 | 24, 0)]
    out += [
        outcome(d.callback_for, hub, 6, 1) == (on_read, (1,)),
        d.callback_for(hub, 9, 4) is on_write,
        outcome(d.callback_for, hub, 77, 1),
        outcome(d.callback_for, hub, 77, 1, "d"),
        outcome(d.callback_for, hub, 6, 24),
        outcome(d.callback_for, hub, 77, 4, "foo"),
    ]
    out += [d._rcb(None), d._rcb("x"), d._rcb((on_read, (1, 2))), d._rcb(on_read)]
    return out


def timers(lib):
    t = of(lib, "asynchronous.timer")
    out = []
    timer = t.Timer()
    with timer as x:
        out.append(x is timer)
    timer.stop = Mock()
    with timer:
        pass
    out.append(timer.stop.mock_calls)
    timer._enter = Mock()
    e = t.Entry(Mock(__name__="n"), (1,), {"k": 1})
    out.append(repr(e))
    out.append(repr(t.Entry(print)))
    timer.enter_at(e, None, priority=3, time=lambda: 42)
    out.append(timer._enter.call_args[0][:2])
    timer.enter_at(e, 30, time=lambda: 1)
    out.append(timer._enter.call_args[0][:2])
    timer.enter_at = Mock()
    timer.enter_after(10, e, 3, time=lambda: 5)
    out.append(timer.enter_at.call_args == call(e, 15.0, 3))
    timer.call_at("w", print, (1,), {"a": 2}, 4)
    out.append([timer.enter_at.call_args[0][1:], timer.enter_at.call_args[0][0].fun is print])
    timer.enter_after = Mock()
    timer.call_after(3, print, (1,), {"a": 2}, 4)
    out.append(
        [
            timer.enter_after.call_args[0][0],
            timer.enter_after.call_args[0][2:],
            timer.enter_after.call_args[0][1].args,
            timer.enter_after.call_args[0][1].kwargs,
        ]
    )
    return out


def entries_of_timers(lib):
    t = of(lib, "asynchronous.timer")
    out = []
    f = Mock()
    e = t.Entry(f, (1,), {"k": 2})
    e()
    out.append(f.mock_calls)
    out += [e.canceled, e.cancelled]
    e.cancel()
    out += [e.canceled, e.cancelled]
    e.cancelled = False
    out.append(e.canceled)
    e2 = t.Entry(f)
    out += [e2.args, e2.kwargs, e2._last_run, hash(e) == hash(e), e == e, e == e2, (e < e2) != (e2 < e), e <= e]
    e.tref.canceled = True
    out.append(e.canceled)
    e._last_run = 3
    return out


def repeated_calls(lib):
    t = of(lib, "asynchronous.timer")
    out = []
    timer = t.Timer()
    f = Mock(__name__="f", return_value=5)
    timer.enter_after = Mock(side_effect=lambda s, e, p: e)
    ref = timer.call_repeatedly(1.0, f, (3,), {"k": 1}, 2)
    out.append(
        [
            timer.enter_after.call_args[0][0],
            timer.enter_after.call_args[0][2],
            timer.enter_after.call_args[0][1] is ref,
            ref.fun.__name__,
        ]
    )
    timer.enter_after.reset_mock()
    with patch.object(t, "monotonic", return_value=100):
        r = ref()
    out.append([f.mock_calls, timer.enter_after.call_count, r, ref._last_run])
    ref.cancel()
    timer.enter_after.reset_mock()
    ref._last_run = None
    ref()
    out.append(timer.enter_after.call_count)
    return out


def errors_of_timers(lib):
    t = of(lib, "asynchronous.timer")
    out = []
    on = Mock()
    timer = t.Timer(on_error=on)
    e = Mock(side_effect=KeyError("x"))
    timer.apply_entry(e)
    out.append([type(c[0][0]).__name__ for c in on.call_args_list])
    timer2 = t.Timer(max_interval=9)
    out += [
        timer2.handle_error(KeyError()),
        timer.handle_error(KeyError()),
        timer2.max_interval,
        t.Timer().max_interval,
    ]
    with patch.object(t, "logger") as lg:
        timer2.apply_entry(e)
        out.append([lg.error.call_args[0][0], lg.error.call_args[1] == {"exc_info": 1}])
    with patch.object(t, "to_timestamp", side_effect=OverflowError()):
        out.append(timer.enter_at(e, eta=datetime.now()))
        out.append(outcome(timer2.enter_at, e, eta=datetime.now()))
    return out


def dates_of_timers(lib):
    t = of(lib, "asynchronous.timer")
    out = []
    out.append([t.to_timestamp(3), t.to_timestamp(3.5), t.to_timestamp(t.EPOCH), t.to_timestamp(datetime(1960, 1, 1))])
    with patch.object(t, "_time", return_value=1000.0):
        out.append(
            [
                t.to_timestamp(datetime.fromtimestamp(1500, timezone.utc), time=lambda: 10),
                t.to_timestamp(datetime(1970, 1, 1, 1), time=lambda: 10),
            ]
        )
    out.append([str(t.EPOCH.tzinfo)])
    return out


def schedules(lib):
    t = of(lib, "asynchronous.timer")
    out = []
    timer = t.Timer(max_interval=5)
    it = iter(timer)
    out.append(next(it))
    a = timer.enter_at(t.Entry(print), 10, 0)
    b = timer.enter_at(t.Entry(print), 5, 0)
    c = timer.enter_at(t.Entry(print), 300, 0)
    it = timer.__iter__(nowfun=lambda: 7)
    out.append(next(it) == (None, b))
    out.append(next(it))
    out.append([x.entry is y for x, y in zip(timer.queue, (a, c))])
    out.append([len(timer), bool(timer), timer.schedule is timer, len(timer._queue)])
    out.append([type(timer.queue[0]).__name__, timer.queue[0]._fields])
    timer.cancel(a)
    out.append(a.canceled)
    q = timer._queue
    timer.clear()
    out.append([q is timer._queue, len(q)])
    return out


def semaphores(lib):
    s = of(lib, "asynchronous.semaphore")
    out = []
    x = s.LaxBoundedSemaphore(2)
    cb = Mock()
    out += [
        x.acquire(cb, 1, a=2),
        x.acquire(cb, 2),
        x.acquire(cb, 3, k=4),
        len(x._waiting),
        x.value,
        cb.mock_calls,
        repr(x),
    ]
    x.release()
    out += [cb.mock_calls, x.value]
    x.release()
    x.release()
    x.release()
    out += [x.value, x.initial_value]
    x.grow(2)
    out += [x.value, x.initial_value]
    x.shrink(3)
    out += [x.value, x.initial_value]
    x.shrink(10)
    out += [x.value, x.initial_value]
    x.clear()
    out += [x.value]
    with s.DummyLock() as lock:
        out.append(type(lock).__name__)
    return out


test_both_do_the_same = side_by_side(vars())
