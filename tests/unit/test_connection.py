"""Connections: addresses, lifetime, retries, failover."""

from __future__ import annotations

import copy
import gc
import pickle
import socket
import threading
from itertools import islice

import pytest

from kombulite import Connection, Consumer, Exchange, Producer, Queue, exceptions
from kombulite._client import retry
from kombulite.brokers import memory
from kombulite.brokers.base import Settings
from kombulite.utils import functional


class Unreliable(memory.Transport):
    """A transport whose hosts can be down, and which counts what is done to it."""

    down: set[str] = set()
    tried: list[str] = []
    fail_publishes = 0
    error: type[Exception] = OSError

    def connect(self):
        self.tried.append(self.settings.hostname)
        if self.settings.hostname in self.down:
            raise OSError(f"{self.settings.hostname} is down")
        super().connect()

    def publish(self, *args, **kwargs):
        if type(self).fail_publishes:
            type(self).fail_publishes -= 1
            raise self.error("lost")
        super().publish(*args, **kwargs)


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch):
    slept = []
    for module in (functional, retry):
        monkeypatch.setattr(module, "sleep_in_slices", lambda seconds, callback=None: slept.append(seconds))
    return slept


@pytest.fixture
def unreliable():
    Unreliable.down, Unreliable.tried, Unreliable.fail_publishes, Unreliable.error = set(), [], 0, OSError
    return Unreliable


def test_nothing_is_opened_until_needed(unreliable):
    connection = Connection("memory://a", transport=unreliable)
    assert not connection.connected
    assert unreliable.tried == []
    connection.default_channel  # noqa: B018 - opens
    assert connection.connected
    connection.release()
    assert not connection.connected


def test_released_connection_opens_again():
    connection = Connection("memory://")
    first = connection.channel()
    connection.release()
    assert not first.is_open
    assert connection.channel().is_open
    connection.release()
    assert connection.default_channel.is_open
    connection.close()


def test_default_channel_is_one_until_it_closes():
    with Connection("memory://") as connection:
        first = connection.default_channel
        assert connection.default_channel is first
        first.close()
        assert connection.default_channel is not first


@pytest.mark.parametrize("url", ["no-such://", "memry://", "no-such://;memory://"])
def test_unknown_scheme(url):
    with pytest.raises(KeyError, match="No such transport"):
        Connection(url)


def test_unknown_scheme_comes_with_a_suggestion():
    with pytest.raises(KeyError, match="Did you mean memory"):
        Connection("memry://")


def test_unknown_alternate_is_refused_at_once():
    with pytest.raises(KeyError):
        Connection("memory://a;no-such://b")


@pytest.mark.parametrize("url", ["mem.ory://", "a:b://x", "memory://a;mem.ory://b"])
def test_scheme_that_cannot_be(url):
    with pytest.raises(ValueError, match="scheme"):
        Connection(url)


def test_unknown_url_option_is_named_and_the_password_is_not():
    with pytest.raises(ValueError, match="'colour'") as caught:
        Connection("memory://me:secret@host/?colour=red")
    assert "secret" not in str(caught.value)


def test_url_options():
    connection = Connection("memory://h/v?heartbeat=7&connect_timeout=2.5&ssl_cert_reqs=required&ssl_ca_certs=/x")
    assert connection.heartbeat == 7
    assert connection.connect_timeout == 2.5
    assert connection.ssl["ssl_ca_certs"] == "/x"


def test_url_wins_over_keywords_but_transport_wins_over_url(unreliable):
    connection = Connection("memory://u:p@h:5/v", userid="other", port=9, transport=unreliable, heartbeat=3)
    assert (connection.userid, connection.port, connection.virtual_host, connection.heartbeat) == ("u", 5, "v", 3)
    assert connection.get_transport_cls() is unreliable
    path = Connection("memory://", transport="kombulite.brokers.memory:Transport")
    assert path.get_transport_cls() is memory.Transport
    assert Connection("memory://", transport="kombulite.brokers.memory.Transport").connect().connected


def test_password_is_shown_nowhere():
    connection = Connection("memory://me:s3cret@host:1/v")
    assert "s3cret" not in repr(connection) + connection.as_uri() + str(connection.transport)
    assert connection.as_uri() == "memory://me:**@host:1/v"
    assert connection.as_uri(mask="XX") == "memory://me:XX@host:1/v"
    assert connection.as_uri(include_password=True) == "memory://me:s3cret@host:1/v"


def test_settings_do_not_show_the_password():
    assert "s3cret" not in repr(Settings(password="s3cret"))


def test_callable_password_is_called_for_each_connect_and_never_to_show():
    calls = []

    def password():
        calls.append(1)
        return "secret"

    connection = Connection("memory://host", userid="me", password=password)
    assert connection.as_uri() == "memory://me:**@host//"
    assert not calls
    assert connection.as_uri(include_password=True) == "memory://me:secret@host//"
    connection.connect()
    assert len(calls) == 2
    assert connection.transport.settings.password == "secret"


@pytest.mark.parametrize("user", ["", ":**@", "me:**@"])
@pytest.mark.parametrize("query", ["", "?virtual_host=3"])
def test_the_url_of_a_socket_leads_to_it(user, query):
    shown = f"redis+socket://{user}/tmp/a%20socket{query}"
    url = shown.replace("**", "secret")
    connection = Connection(url)
    assert connection.as_uri() == shown
    assert connection.as_uri(include_password=True) == url
    assert connection.hostname == "/tmp/a socket"


@pytest.mark.parametrize("url", ["sqlite:///queue.db", "sqlite:////var/queue.db", "sqlite:///my%20queue.db"])
def test_the_url_of_a_file_names_no_host(url):
    assert Connection(url).as_uri() == Connection(url).as_uri(include_password=True) == url


def test_clone_copy_and_pickle_are_equal_and_unopened():
    connection = Connection("memory://u:p@h/v", transport_options={"a": 1}, heartbeat=4)
    connection.connect()
    for other in (connection.clone(), copy.copy(connection), pickle.loads(pickle.dumps(connection))):
        assert other.info() == connection.info()
        assert not other.connected
    assert connection.clone(heartbeat=9).heartbeat == 9
    clone = connection.clone()
    clone.transport_options["a"] = 2
    assert connection.transport_options == {"a": 1}
    connection.release()


def test_virtual_hosts_are_apart():
    with Connection("memory:///one") as one, Connection("memory:///two") as two:
        Queue("same name")(one).declare()
        with pytest.raises(exceptions.NotFound):
            Queue("same name")(two).queue_declare(passive=True)


def test_refused_connection_is_tried_once_more_and_raises_the_raw_error(unreliable, no_sleep):
    unreliable.down = {"a"}
    connection = Connection("memory://a", transport=unreliable)
    for connect in (connection.connect, connection.channel):
        unreliable.tried.clear()
        with pytest.raises(OSError, match="a is down"):
            connect()
        assert unreliable.tried == ["a", "a"]
    assert no_sleep == [2, 2]


def test_ensure_connection_raises_the_library_error(unreliable, no_sleep):
    unreliable.down = {"a"}
    connection = Connection("memory://a", transport=unreliable)
    heard = []
    with pytest.raises(exceptions.OperationalError) as caught:
        connection.ensure_connection(lambda error, interval: heard.append(interval), max_retries=4)
    assert isinstance(caught.value.__cause__, OSError)
    assert len(unreliable.tried) == 5
    assert heard == no_sleep == [2, 4, 6, 8]


def test_ensure_connection_returns_the_connection(unreliable):
    connection = Connection("memory://a", transport=unreliable)
    assert connection.ensure_connection() is connection
    assert connection.ensure_connection() is connection
    assert unreliable.tried == ["a"]


def test_failover_tries_the_next_at_once_and_sleeps_after_a_round(unreliable, no_sleep):
    unreliable.down = {"a", "b", "c"}
    connection = Connection("memory://a;memory://b;memory://c", transport=unreliable)
    with pytest.raises(exceptions.OperationalError):
        connection.ensure_connection(max_retries=5)
    assert unreliable.tried == ["a", "b", "c", "a", "b", "c"]
    assert no_sleep == [0, 0, 2, 0, 0]
    unreliable.down = {"a", "b"}
    unreliable.tried.clear()
    connection.ensure_connection()
    assert unreliable.tried[-1] == "c"
    assert connection.hostname == "c"


def test_shuffle_tries_all(unreliable):
    urls = [f"memory://h{i}" for i in range(5)]
    connection = Connection(urls, transport=unreliable, failover_strategy="shuffle")
    assert connection.hostname == "h0"
    unreliable.down = {f"h{i}" for i in range(5)}
    with pytest.raises(exceptions.OperationalError):
        connection.ensure_connection(max_retries=14)
    assert set(unreliable.tried) == unreliable.down


def test_failover_strategy_of_ones_own(unreliable):
    def last_first(urls):
        yield urls[0]
        while True:
            yield from reversed(urls)

    connection = Connection("memory://a", alternates=["memory://a", "memory://b"], failover_strategy=last_first)
    connection.maybe_switch_next()
    assert connection.hostname == "b"


def test_default_channel_takes_its_retries_from_the_transport_options(unreliable, no_sleep):
    unreliable.down = {"a"}
    options = {"max_retries": 2, "interval_start": 1, "interval_step": 1}
    connection = Connection("memory://a", transport=unreliable, transport_options=options)
    with pytest.raises(exceptions.OperationalError):
        connection.default_channel  # noqa: B018 - tries to open
    assert len(unreliable.tried) == 3
    assert no_sleep == [1, 2]


@pytest.mark.parametrize("error", [OSError, exceptions.ConnectionForced])
def test_publish_with_retry_reconnects_and_sends_once(unreliable, error):
    unreliable.fail_publishes, unreliable.error = 3, error
    connection = Connection("memory://a", transport=unreliable)
    queue = Queue("retry.publish", Exchange("retry.publish"), routing_key="k")
    queue(connection).declare()
    heard = []
    producer = Producer(connection, queue.exchange)
    policy = {"max_retries": 5, "errback": lambda *args: heard.append(args)}
    producer.publish({"a": 1}, routing_key="k", retry=True, retry_policy=policy)
    assert len(heard) == 3
    assert len(unreliable.tried) == 4
    assert queue(connection).get().payload == {"a": 1}
    assert queue(connection).get() is None
    assert connection.transport_options == {}
    queue(connection).delete()
    connection.release()


def test_refused_publish_is_tried_again_after_a_while_on_the_same_connection(unreliable, no_sleep):
    unreliable.fail_publishes, unreliable.error = 3, exceptions.MessageNacked
    connection = Connection("memory://a", transport=unreliable)
    policy = {"max_retries": 5, "interval_start": 1, "interval_step": 2, "interval_max": 4}
    Producer(connection).publish(1, routing_key="retry.nack", retry=True, retry_policy=policy)
    assert unreliable.tried == ["a"]
    assert no_sleep == [1, 3, 4]
    assert Queue("retry.nack")(connection).delete() == 1
    connection.release()


def test_broker_that_can_be_reached_and_does_not_serve_is_tried_at_intervals(unreliable, no_sleep):
    """A read-only replica, say: each new connection is made at once, and each publish fails."""
    unreliable.fail_publishes = 4
    connection = Connection("memory://a", transport=unreliable)
    heard = []
    policy = {"max_retries": 5, "interval_start": 1, "interval_step": 2, "interval_max": 4}
    policy["errback"] = lambda error, interval: heard.append(interval)
    Producer(connection).publish(1, routing_key="retry.again", retry=True, retry_policy=policy)
    assert heard == [0, 1, 3, 4]
    assert sum(no_sleep) == 8
    assert Queue("retry.again")(connection).delete() == 1
    connection.release()


def test_unknown_retry_policy_is_refused():
    with Connection("memory://") as connection, pytest.raises(TypeError):
        Producer(connection).publish(1, routing_key="x", retry=True, retry_policy={"max_retry": 1})


def test_declaring_with_retry_moves_to_the_new_channel(unreliable):
    connection = Connection("memory://a", transport=unreliable)
    queue = Queue("retry.declare", Exchange("retry.declare"), routing_key="k")
    channel = connection.channel()
    channel._transport.close()  # what a broker that goes away does
    channel.is_open = True
    assert connection.maybe_declare(queue, channel, retry=True, max_retries=3)
    assert Queue("retry.declare")(connection).queue_declare(passive=True).message_count == 0
    queue(connection).delete()
    connection.release()


def test_entities_to_declare_survive_a_retry(unreliable):
    unreliable.fail_publishes = 1
    connection = Connection("memory://a", transport=unreliable)
    queue = Queue("retry.generator", Exchange("retry.generator"), routing_key="k", exclusive=True)
    Producer(connection, queue.exchange).publish(
        1, routing_key="k", declare=(each for each in [queue]), retry=True, retry_policy={"max_retries": 3}
    )
    assert queue(connection).get().payload == 1
    connection.release()


def test_batch_that_cannot_be_sent_is_kept(unreliable):
    connection = Connection("memory://a", transport=unreliable)
    producer = Producer(connection)
    with producer.batch(max_size=3) as batch:
        producer.publish(1, routing_key="batch.kept")
        unreliable.fail_publishes = 1
        with pytest.raises(OSError, match="lost"):
            batch.flush()
        assert len(batch) == 1
        producer.publish(2, routing_key="batch.kept", retry=True)
        unreliable.fail_publishes = 2
        producer.publish(3, routing_key="batch.kept", retry=True, retry_policy={"max_retries": 5})
        assert len(batch) == 0
    queue = Queue("batch.kept")(connection)
    assert [queue.get().payload for _ in range(3)] == [1, 2, 3]
    queue.delete()
    connection.release()


def test_batch_does_not_grow_while_it_cannot_be_sent(unreliable):
    connection = Connection("memory://a", transport=unreliable)
    producer = Producer(connection)
    with producer.batch(max_size=2) as batch:
        producer.publish(1, routing_key="batch.bounded")
        unreliable.fail_publishes = 3
        with pytest.raises(OSError, match="lost"):
            producer.publish(2, routing_key="batch.bounded")  # it is the one that fills the batch
        for number in (3, 4):
            with pytest.raises(OSError, match="lost"):
                producer.publish(number, routing_key="batch.bounded")
        assert len(batch) == 2
        producer.publish(5, routing_key="batch.bounded")
    queue = Queue("batch.bounded")(connection)
    assert [queue.get().payload for _ in range(3)] == [1, 2, 5]
    queue.delete()
    connection.release()


def test_producer_of_a_connection_goes_on_after_release():
    connection = Connection("memory://")
    producer = Producer(connection)
    for i in range(2):
        producer.publish(i, routing_key="after.release")
        connection.release()
    queue = Queue("after.release")(connection)
    assert [queue.get().payload, queue.get().payload] == [0, 1]
    queue.delete()
    connection.release()


def test_closed_channel_touches_nothing_of_its_successor():
    with Connection("memory://") as connection:
        queue = Queue("closed.channel")
        Producer(connection).publish("once", routing_key=queue.name)
        first = connection.channel()
        message = queue(first).get()
        first.close()
        again = queue(connection.channel()).get()
        for use in (
            message.ack,
            message.requeue,
            lambda: first.basic_ack(1),
            lambda: first.basic_publish(first.prepare_message(b"x"), routing_key=queue.name),
            lambda: first.queue_purge(queue.name),
        ):
            with pytest.raises(exceptions.RecoverableConnectionError):
                use()
        again.requeue()
        assert queue(connection).queue_declare(passive=True).message_count == 1
        queue(connection).delete()


def test_cancellation_on_a_closed_channel_reaches_nobody_else():
    with Connection("memory://") as connection:
        queue = Queue("closed.cancel")(connection)
        queue.declare()
        first = connection.channel()
        Consumer(first, queue, tag_prefix="x").consume()
        queue.delete()
        first.close()
        second = connection.channel()
        other = Queue("closed.cancel.other", exclusive=True)
        Consumer(second, other, callbacks=[print]).consume()
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.05)


def test_names_may_be_of_a_subclass_of_str():
    class Key(str):
        pass

    with Connection("memory://") as connection:
        queue = Queue(Key("subclass"), Exchange(Key("subclass"), Key("topic")), Key("a.*"), exclusive=True)
        Producer(connection, queue.exchange).publish(1, routing_key=Key("a.b"), declare=[queue])
        assert queue(connection).get().payload == 1


def test_url_numbers_are_named_when_they_are_none():
    with pytest.raises(ValueError, match="heartbeat"):
        Connection("memory://?heartbeat=soon")


def test_publish_with_retry_gives_up_as_the_policy_says(unreliable):
    unreliable.fail_publishes = 100
    connection = Connection("memory://a", transport=unreliable)
    with pytest.raises(exceptions.OperationalError, match="lost"):
        Producer(connection).publish(1, routing_key="x", retry=True, retry_policy={"max_retries": 2})
    assert unreliable.fail_publishes == 97
    connection.release()


def test_publish_without_retry_raises_at_once(unreliable):
    unreliable.fail_publishes = 1
    connection = Connection("memory://a", transport=unreliable)
    with pytest.raises(OSError, match="lost"):
        Producer(connection).publish(1, routing_key="x")
    connection.release()


def test_ensure_does_not_retry_what_is_not_recoverable(unreliable):
    unreliable.fail_publishes, unreliable.error = 1, exceptions.NotFound
    connection = Connection("memory://a", transport=unreliable)
    with pytest.raises(exceptions.NotFound):
        Producer(connection).publish(1, routing_key="x", retry=True, retry_policy={"max_retries": 3})
    connection.release()


def test_ensure_retries_channel_errors_without_reconnecting(unreliable):
    unreliable.fail_publishes, unreliable.error = 2, exceptions.ContentTooLarge
    connection = Connection("memory://a", transport=unreliable)
    Producer(connection).publish(1, routing_key="ensure.channel", retry=True, retry_policy={"max_retries": 3})
    assert unreliable.tried == ["a"]
    Queue("ensure.channel")(connection).delete()
    connection.release()


def test_ensure_retry_errors():
    connection = Connection("memory://")
    calls = []

    def flaky():
        calls.append(1)
        if len(calls) < 3:
            raise ZeroDivisionError
        return "done"

    assert connection.ensure(connection, flaky, retry_errors=(ZeroDivisionError,))() == "done"
    calls.clear()
    with pytest.raises(ZeroDivisionError):
        connection.ensure(connection, flaky, max_retries=1, retry_errors=(ZeroDivisionError,))()
    assert len(calls) == 2


def test_ensure_revives_and_tells():
    connection = Connection("memory://")
    revived = []

    class Owner:
        def revive(self, channel):
            revived.append(channel)

    calls = []

    def flaky():
        calls.append(1)
        if len(calls) < 4:
            raise OSError("lost")
        return len(calls)

    assert connection.ensure(Owner(), flaky, on_revive=revived.append)() == 4
    assert len(revived) == 6
    assert revived[-1] is connection.default_channel
    connection.release()


def test_autoretry_passes_a_channel_and_returns_the_last(unreliable):
    connection = Connection("memory://a", transport=unreliable)
    channels = []

    def flaky(value, channel=None):
        channels.append(channel)
        if len(channels) < 3:
            raise OSError("lost")
        return value

    result, channel = connection.autoretry(flaky)("value")
    assert result == "value"
    assert channel is channels[-1]
    assert channel.is_open
    assert channel is channels[0]  # it came back with its connection
    connection.release()


def test_waiting_for_ever_for_nothing_is_an_error():
    with Connection("memory://") as connection:
        with pytest.raises(exceptions.OperationalError, match="no consumer"):
            connection.drain_events()
        with pytest.raises(socket.timeout):
            connection.drain_events(timeout=0.01)


def test_connection_that_is_dropped_gives_its_messages_back():
    with Connection("memory://") as keeper:
        queue = Queue("dropped")(keeper)
        queue.declare()
        Producer(keeper).publish("keep me", routing_key=queue.name)
        dropped = Connection("memory://")
        assert queue(dropped).get().payload == "keep me"
        del dropped
        gc.collect()
        assert queue.get().payload == "keep me"
        queue.delete()


def test_errors_on_exit_do_not_hide_others():
    with pytest.raises(ZeroDivisionError), Connection("memory://"):
        raise ZeroDivisionError


def test_channel_numbers_run_out():
    with Connection("memory://") as connection:
        transport = connection.connect()
        transport._channels = dict.fromkeys(range(1, 65536))
        with pytest.raises(exceptions.ResourceError):
            connection.channel()
        transport._channels = {}


def test_declarations_are_remembered_until_reconnect():
    with Connection("memory://") as connection:
        queue = Queue("remembered", Exchange("remembered"), routing_key="a")
        producer = Producer(connection)
        assert producer.maybe_declare(queue)
        assert not producer.maybe_declare(queue)
        # The same name with another binding is another declaration.
        assert producer.maybe_declare(Queue("remembered", Exchange("remembered"), routing_key="b"))
        assert producer.maybe_declare(Queue("expiring", expires=60))
        assert producer.maybe_declare(Queue("expiring", expires=60))
        connection.release()
        assert Producer(connection).maybe_declare(queue)
        for name in ("remembered", "expiring"):
            Queue(name)(connection).delete()


@pytest.mark.parametrize("retry", [True, False])
def test_what_is_declared_in_a_batch_is_declared_again_once_it_changed(retry):
    with Connection("memory://") as connection:
        queue = Queue("batched", Exchange("batched"), "a")
        producer = Producer(connection)
        with producer.batch():
            for key in ("a", "a", "b", "b"):
                queue.routing_key = key
                producer.publish(key, exchange="batched", routing_key=key, declare=[queue, None], retry=retry)
        bound = queue(connection)
        assert [bound.get(no_ack=True).payload for _ in range(4)] == ["a", "a", "b", "b"]
        bound.delete()


def test_retry_sleeps_end_with_the_timeout(no_sleep):
    calls = []

    def fail():
        calls.append(1)
        raise OSError

    with pytest.raises(OSError):
        functional.retry_over_time(fail, OSError, timeout=0)
    assert len(calls) == 1


def test_retry_intervals():
    assert list(islice(functional.retry_intervals(2, 2, 30), 18)) == [*range(2, 31, 2), 30, 30, 30]


def test_an_attribute_error_amid_connecting_is_told():
    class Broken(memory.Transport):
        def connect(self):
            raise AttributeError("broken inside")

    with pytest.raises(AttributeError, match="broken inside"):
        Consumer(Connection(transport=Broken), Queue("q"))


def test_a_connection_that_is_used_while_it_is_closed_is_open_then():
    with Connection("memory://") as connection:
        connection.connect()
        closed = connection.transport
        close = closed.close

        def close_while_another_thread_connects():
            close()
            thread = threading.Thread(target=connection.connect)
            thread.start()
            thread.join(20)

        closed.close = close_while_another_thread_connects
        connection.release()
        assert connection.connected
        assert connection.transport is not closed


def test_a_consumer_that_is_cancelled_while_others_are_restored(monkeypatch):
    """Another thread may do that: it stays cancelled, and the others are restored."""
    with Connection("memory://") as connection:
        channel = connection.channel()
        for tag in ("first", "second", "third"):
            Queue(f"restored.{tag}", auto_delete=True)(channel).declare()
            channel.basic_consume(f"restored.{tag}", consumer_tag=tag)
        consume, started = memory.Transport.consume, []

        def consume_and_cancel(transport, number, queue, tag, *arguments):
            started.append(tag)
            if tag == "first":
                channel.basic_cancel("second")
            return consume(transport, number, queue, tag, *arguments)

        monkeypatch.setattr(memory.Transport, "consume", consume_and_cancel)
        connection.abandon(connection.transport, "lost")
        connection.ensure_connection()
        assert started == ["first", "third"]


def test_a_channel_that_is_closed_while_its_connection_is_lost_does_not_come_back():
    with Connection("memory://") as connection:
        channel = connection.channel()
        Queue("left", auto_delete=True)(channel).declare()
        channel.basic_consume("left", callback=lambda message: message.ack())
        connection.abandon(connection.transport, "lost")
        channel.close()
        connection.ensure_connection()
        assert not channel.is_open
        with pytest.raises(exceptions.NotFound):  # it is gone with its consumer
            connection.channel().queue_declare("left", passive=True)


def test_a_channel_that_is_closed_as_the_connection_is_lost(monkeypatch):
    """By another thread: the others come back."""
    with Connection("memory://") as connection:
        first, second = connection.channel(), connection.channel()
        suspend = type(first).suspend

        def close_and_suspend(channel, reason):
            second.close()
            suspend(channel, reason)

        monkeypatch.setattr(type(first), "suspend", close_and_suspend)
        connection.abandon(connection.transport, "lost")
        connection.ensure_connection()
        assert first.is_open
        assert not second.is_open


def test_a_channel_that_is_closed_while_others_are_opened_again(monkeypatch):
    """By another thread: it does not come back, nor after another loss."""
    with Connection("memory://") as connection:
        first, second = connection.channel(), connection.channel()
        first.basic_qos(0, 1)
        reopen = type(first).reopen

        def reopen_and_close(channel, transport):
            reopen(channel, transport)
            if channel is second:
                first.close()

        with monkeypatch.context() as patched:
            patched.setattr(type(first), "reopen", reopen_and_close)
            connection.abandon(connection.transport, "lost")
            connection.ensure_connection()
        connection.abandon(connection.transport, "lost")
        connection.ensure_connection()
        assert not first.is_open
        assert second.is_open


@pytest.mark.parametrize("is_noticed", [True, False])
def test_a_consumer_whose_block_the_loss_has_ended_does_not_come_back(monkeypatch, is_noticed):
    """Else each turn of a loop would add one, and the first would get messages that the last is for."""

    def raise_lost(*arguments):
        raise exceptions.ConnectionForced("lost")

    with Connection("memory://") as connection:
        queue = Queue("turns")
        for _ in range(3):
            with (
                monkeypatch.context() as patched,
                pytest.raises(exceptions.ConnectionForced),
                Consumer(connection, queue, on_message=lambda message: message.ack()),
            ):
                info = queue(connection.default_channel).queue_declare(passive=True)
                assert info.consumer_count == 1
                if is_noticed:
                    connection.abandon(connection.transport, "lost")
                else:
                    patched.setattr(memory.Transport, "connected", False)
                    patched.setattr(memory.Transport, "cancel", raise_lost)
                raise_lost()
            connection.abandon(connection.transport, "lost")
        queue(connection.default_channel).delete()
