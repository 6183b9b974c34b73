"""The hub and its timer, and transports in it."""

from __future__ import annotations

import datetime
import errno
import os
import socket
import threading
import time

import pytest
import vine

from kombulite import Connection, Queue
from kombulite.asynchronous import ERR, READ, WRITE, Hub, get_event_loop, set_event_loop
from kombulite.asynchronous.timer import Entry, Timer, to_timestamp
from kombulite.brokers.base import Capabilities
from kombulite.brokers.memory import Transport as MemoryTransport
from kombulite.utils.eventio import poll


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def pipe():
    out, into = os.pipe()
    yield out, into
    for end in (out, into):
        try:
            os.close(end)
        except OSError:
            pass


def turns(hub, until, most=200):
    for _ in range(most):
        if until():
            return
        hub.run_once()
    raise AssertionError("it did not come to that")


# --- the hub


def test_calls_come_in_order(hub):
    got = []
    for i in range(10):
        hub.call_soon(got.append, i)
    hub.call_soon(got.append, "cancelled").cancel()
    hub.run_once()
    assert got == list(range(10))


def test_calls_behind_one_that_raises_are_still_made(hub):
    got = []
    hub.call_soon(got.append, 1)
    hub.call_soon(lambda: 1 / 0)
    hub.call_soon(got.append, 2)
    with pytest.raises(ZeroDivisionError):
        hub.run_once()
    hub.run_once()
    assert got == [1, 2]


def test_ready_calls_can_be_taken(hub):
    got = []
    hub.call_soon(got.append, 1)
    ready = hub._pop_ready()
    hub.call_soon(ready.pop())
    hub.run_once()
    assert got == [1]
    assert not ready


def test_promise_is_kept_as_it_is(hub):
    called = []
    promise = vine.promise(called.append, (1,))
    assert hub.call_soon(promise) is promise
    assert hub._pop_ready() == {promise}
    hub.call_soon(promise)
    hub.run_once()
    assert called == [1]


def test_call_from_within_wakes_nobody(hub):
    woken = []

    def call():
        hub.call_soon(woken.append, "called")
        woken.append(hub.poller.poll(0))

    hub.call_soon(int)
    hub.run_once()
    hub.call_soon(call)
    hub.run_once()
    hub.run_once()
    assert woken == [[], "called"]


def test_what_a_tick_calls_makes_the_loop_turn_again_at_once(hub, monkeypatch):
    """A transport asks for another turn so while it has messages at hand that no descriptor tells of."""
    waits, poller, poll = [], hub.poller, hub.poller.poll
    monkeypatch.setattr(poller, "poll", lambda timeout: waits.append(timeout) or poll(0))
    hub.call_later(60, int)
    hub.on_tick.add(lambda: hub.call_soon(int) if len(waits) < 2 else None)
    for _ in range(3):
        hub.run_once()
    assert waits[:2] == [0, 0]
    assert waits[2] > 0


def test_call_from_another_thread_wakes_it(hub):
    got = []
    hub.call_later(60, got.append, "late")
    timer = threading.Timer(0.1, hub.stop)
    timer.start()
    hub.run_forever()
    timer.join()
    assert got == []


def test_timers(hub):
    got, now = [], time.monotonic()
    hub.call_later(0.02, got.append, "later")
    hub.call_at(now, got.append, "now")
    repeated = hub.call_repeatedly(0.005, got.append, "again")
    hub.call_later(60, got.append, "late").cancel()
    turns(hub, lambda: got.count("again") > 2 and "later" in got)
    repeated.cancel()
    assert got[0] == "now"
    assert "late" not in got
    assert hub.fire_timers(min_delay=1, max_delay=5) <= 5


def test_errors_of_timers_are_logged_or_propagated(hub, caplog):
    def fail():
        raise ConnectionResetError("gone")

    hub.call_later(0, fail)
    hub.run_once()
    assert "Error in timer" in caplog.text
    hub.propagate_errors = (ConnectionError,)
    hub.call_later(0, fail)
    with pytest.raises(ConnectionResetError):
        hub.run_once()


def test_reading_and_writing_at_one_descriptor(hub):
    left, right = socket.socketpair()
    with left, right:
        got = []
        hub.add_reader(left, lambda: got.append(left.recv(10)))
        hub.add_writer(left, lambda: got.append("writable") or hub.remove_writer(left))
        right.send(b"x")
        turns(hub, lambda: len(got) == 2)
        assert sorted(map(str, got)) == ["b'x'", "writable"]
        assert left.fileno() in hub.readers
        assert left.fileno() not in hub.writers
        right.send(b"y")
        turns(hub, lambda: len(got) == 3)
        hub.remove_reader(left)
        assert not hub.readers


def test_generators_stand_for_callbacks(hub, pipe):
    out, into = pipe
    got = []

    def write():
        for i in range(3):
            os.write(into, b"x")
            got.append(i)
            yield

    hub.add_writer(into, write())
    turns(hub, lambda: not hub.writers)
    assert got == [0, 1, 2]

    def fail():
        raise ValueError("in a generator")
        yield

    hub.add_reader(out, fail())
    with pytest.raises(ValueError, match="in a generator"):
        turns(hub, lambda: not hub.readers)
    assert not hub.readers

    def bad():
        raise OSError(errno.EBADF, "bad")
        yield

    hub.add_reader(out, bad())
    turns(hub, lambda: not hub.readers)


def test_consolidated_descriptors_come_together(hub):
    pairs = [socket.socketpair() for _ in range(3)]
    got = []
    hub.consolidate_callback = lambda descriptors: got.append(sorted(descriptors))
    for left, _ in pairs:
        hub.add(left, None, WRITE | ERR, consolidate=True)
    hub.run_once()
    assert got == [sorted(left.fileno() for left, _ in pairs)]
    for left, right in pairs:
        hub.remove(left)
        left.close()
        right.close()
    assert not hub.consolidate


def test_descriptor_that_was_closed_and_comes_again(hub, pipe):
    left, right = socket.socketpair()
    number, got = left.fileno(), []
    hub.add_reader(number, lambda: None)
    left.close()
    os.dup2(pipe[0], number)
    hub.add_reader(number, lambda: got.append(os.read(number, 10)))
    os.write(pipe[1], b"x")
    turns(hub, lambda: got)
    hub.remove(number)
    os.close(number)
    right.close()
    with pytest.raises((OSError, ValueError)):
        hub.add_reader(10_000, lambda: None)
    assert not hub.readers


def test_close_tells_and_forgets(hub, pipe):
    got = []
    hub.on_close.add(got.append)
    hub.add_reader(pipe[0], lambda: None)
    hub.reset()
    assert (got, hub.readers) == ([hub], {})
    hub.close()
    assert got == [hub, hub]
    assert "R:0" in repr(hub)


def test_poller(pipe):
    out, into = pipe
    poller = poll()
    poller.register(out, READ)
    poller.register(into, WRITE)
    assert poller.poll(0) == [(into, WRITE)]
    poller.unregister(into)
    poller.unregister(into)
    os.write(into, b"x")
    assert poller.poll(1) == [(out, READ)]
    poller.close()


# --- the timer


def test_what_a_forked_child_forgets_its_parent_still_hears_of(hub, pipe):
    out, into = pipe
    got = []
    hub.add_reader(out, lambda: got.append(os.read(out, 1)))
    child = os.fork()
    if child == 0:
        hub.remove(out)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.write(into, b"x")
    hub.run_once()
    assert got == [b"x"]


def test_dates_become_seconds_of_the_monotonic_clock():
    moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=10)
    for date in (moment, moment.replace(tzinfo=None)):
        assert abs(to_timestamp(date) - time.monotonic() - 10) < 5
    assert to_timestamp(5.5) == 5.5
    assert to_timestamp(datetime.datetime(1970, 1, 2)) == 0


def test_entries_of_one_time_keep_their_order():
    timer = Timer()
    got = []
    for i in range(5):
        timer.call_at(1.0, got.append, (i,))
    schedule = iter(timer)
    for _ in range(5):
        timer.apply_entry(next(schedule)[1])
    assert got == list(range(5))
    assert "append(*(3,)" in repr(Entry(got.append, (3,)))


def test_repeated_call_goes_on_after_an_error(caplog):
    timer = Timer(max_interval=0.01)
    entry = timer.call_repeatedly(0, lambda: 1 / 0)
    schedule = iter(timer)
    for _ in range(2):
        timer.apply_entry(next(schedule)[1])
    assert len(timer) == 1
    assert "Error in timer" in caplog.text
    timer.cancel(entry)
    assert next(schedule) == (None, None)
    with timer:
        timer.clear()


# --- transports


class WakingTransport(MemoryTransport):
    """The embedded broker, with a descriptor that is readable when something was published."""

    capabilities = Capabilities(asynchronous=True)

    def __init__(self, settings):
        super().__init__(settings)
        self.left, self.right = socket.socketpair()

    def fileno(self):
        return self.left.fileno()

    def receive(self, timeout):
        events = super().receive(timeout)
        if not events:
            self.left.setblocking(False)
            try:
                self.left.recv(1000)
            except BlockingIOError:
                pass
        return events

    def close(self):
        super().close()
        self.left.close()
        self.right.close()


def test_callbacks_run_in_the_loop(hub):
    got = []
    with Connection("memory://localhost/loop", transport=WakingTransport) as connection:
        connection.register_with_event_loop(hub)
        consumer = connection.Consumer(Queue("q"), callbacks=[lambda body, message: got.append(body) or message.ack()])
        consumer.consume()
        with Connection("memory://localhost/loop") as other:
            other.Producer().publish_many(range(250), routing_key="q")
        connection.transport.right.send(b"x")
        turns(hub, lambda: len(got) == 250, most=300)
        assert got == list(range(250))
        assert hub.readers
        assert hub.on_tick
        connection.transport.unregister_from_event_loop(connection.connection, hub)
        connection.transport.unregister_from_event_loop(connection.connection, hub)
        assert not hub.readers
        assert not hub.on_tick
        connection.transport.register_with_event_loop(connection.connection, hub)
        assert hub.readers
    assert not hub.readers
    assert not hub.on_tick


def test_connection_in_the_loop_outlives_a_forked_child(hub):
    with Connection("memory://localhost/forked-loop", transport=WakingTransport) as connection:
        connection.register_with_event_loop(hub)
        connection.Consumer(Queue("q")).consume()
        child = os.fork()
        if child == 0:
            connection.collect()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        connection.transport.right.send(b"x")
        hub.call_later(60, hub.stop)
        assert connection.transport.left.fileno() in {fd for fd, _ in hub.poller.poll(10)}


def test_what_a_callback_asks_for_is_done_before_the_next_message_and_within_the_turn(hub):
    got = []

    def work(message):
        got.append("work")
        hub.call_soon(got.append, "ack")

    with Connection("memory://localhost/turns", transport=WakingTransport) as connection:
        connection.Producer().publish_many(range(20), routing_key="q")
        connection.Consumer(Queue("q"), on_message=work, no_ack=True).consume()
        connection.register_with_event_loop(hub)
        while len(got) < 40:
            hub.run_once()
            assert got == ["work", "ack"] * (len(got) // 2)


def test_time_out_of_the_network_is_not_taken_for_silence(hub):
    with Connection("memory://localhost/etimedout", transport=WakingTransport) as connection:
        connection.register_with_event_loop(hub)

        def fail(timeout):
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

        connection.transport.receive = fail
        with pytest.raises(TimeoutError):
            hub.run_once()


@pytest.mark.parametrize("error", [TimeoutError("the server did not answer in time"), TimeoutError()], ids=str)
def test_time_out_of_the_transport_is_not_taken_for_silence(hub, error):
    """It has no number, and the connection is lost: a loop that went on without a word would be deaf."""
    with Connection("memory://localhost/unanswered", transport=WakingTransport) as connection:
        connection.register_with_event_loop(hub)

        def fail(timeout):
            raise error

        connection.transport.receive = fail
        with pytest.raises(TimeoutError):
            hub.run_once()


def test_time_out_of_a_callback_is_not_taken_for_silence(hub):
    def fail(message):
        raise TimeoutError("another broker did not answer")

    with Connection("memory://localhost/callback", transport=WakingTransport) as connection:
        connection.Producer().publish("m", routing_key="q")
        connection.Consumer(Queue("q"), on_message=fail).consume()
        connection.register_with_event_loop(hub)
        with pytest.raises(TimeoutError, match="another broker"):
            turns(hub, lambda: False, most=5)


def test_descriptor_may_come_late_and_change(hub):
    """As that of a transport that opens a connection for its consumers when there are some."""
    with Connection("memory://localhost/late", transport=WakingTransport) as connection:
        transport = connection.connect()
        first, second = transport.left.fileno(), transport.right.fileno()
        descriptors = iter([None, None, first, first, second, None])
        transport.fileno = lambda: next(descriptors)
        connection.register_with_event_loop(hub)
        seen = [sorted(hub.readers)]
        for _ in range(5):
            hub.call_soon(lambda: None)
            next(hub.loop)
            hub.call_soon(lambda: None)
            seen.append(sorted(hub.readers))
        assert seen == [[], [], [first], [first], [second], []]
        transport.fileno = lambda: None


def test_descriptor_that_is_another_connections_by_now_stays(hub):
    with Connection("memory://localhost/reused", transport=WakingTransport) as connection:
        connection.register_with_event_loop(hub)
        number = connection.transport.fileno()
        hub.add_reader(number, print)  # as a new connection with the same number would
    assert hub.readers[number][0] is print
    hub.reset()


def test_without_a_descriptor_there_is_nothing_to_register(hub):
    with Connection("memory://") as connection:
        connection.register_with_event_loop(hub)
        assert not hub.readers
        assert not hub.on_tick
        assert not connection.is_evented


def test_facts_about_transports():
    connection = Connection("memory://")
    transport = connection.transport
    assert transport.client is connection
    assert (transport.driver_type, transport.driver_name, transport.driver_version()) == ("memory", "memory", "N/A")
    implements = transport.implements
    assert implements["heartbeats"] is implements.heartbeats is False
    assert implements.asynchronous is False
    assert implements.batch_publish is True
    assert implements.exchange_type >= {"direct", "topic", "fanout"}
    with pytest.raises(AttributeError):
        implements.no_such  # noqa: B018


def test_closing_a_hub_makes_the_calls_that_are_due(caplog):
    hub, called = Hub(), []
    hub.on_close.add(lambda hub: called.append("told"))
    hub.call_soon(called.append, "due")
    hub.call_soon(called.append, "cancelled").cancel()
    hub.call_soon(lambda: 1 / 0)
    hub.stop()
    hub.call_soon(called.append, "last")
    hub.close()
    assert called == ["told", "due", "last"]
    assert "ZeroDivisionError" in caplog.text


def test_closing_a_hub_goes_on_after_a_callback_that_raises(caplog):
    hub, called = Hub(), []
    hub.on_close.add(lambda hub: 1 / 0)
    hub.call_soon(called.append, "due")
    set_event_loop(hub)
    hub.close()
    assert called == ["due"]
    assert get_event_loop() is None
    assert "ZeroDivisionError" in caplog.text


def test_resetting_a_hub_makes_the_calls_that_are_due_and_keeps_it(caplog):
    hub, called = Hub(), []
    set_event_loop(hub)
    hub.call_soon(lambda: 1 / 0)
    hub.call_soon(called.append, "due")
    hub.reset()
    assert called == ["due"]
    assert get_event_loop() is hub
    assert "ZeroDivisionError" in caplog.text
    hub.close()
