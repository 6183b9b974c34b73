"""What a channel or transport of others is asked by kombu, and by kombulite: the same calls, recorded with mocks."""

from __future__ import annotations

import importlib
import socket
from unittest.mock import MagicMock, Mock

import kombu
import pytest

import kombulite


def of(lib, module):
    return importlib.import_module(f"{lib.__name__}.{module}")


def a_channel():
    channel = MagicMock(name="channel")
    channel.connection.client.declared_entities = set()
    channel.queue_declare.return_value = ("named", 3, 1)
    channel.prepare_queue_arguments.side_effect = lambda arguments, **kwargs: arguments
    channel.message_to_python = None
    channel.closed = False
    return channel


def calls(mock):
    found = []
    for name, args, kwargs in mock.mock_calls:
        if name.startswith(("connection", "__")) or "()." in name:
            continue
        given = tuple("mock" if isinstance(each, Mock) else each for each in args)
        named = {key: repr(value) for key, value in kwargs.items() if key not in ("callback", "on_cancel")}
        found.append((name, given, tuple(sorted(named.items()))))
    return sorted(found, key=repr)


def exchanges(lib):
    channel = a_channel()
    exchange = lib.Exchange("e", "topic", durable=False, arguments={"a": 1})(channel)
    exchange.declare()
    exchange.bind_to("other", routing_key="k")
    exchange.unbind_from("other", routing_key="k")
    exchange.delete(if_unused=True)
    exchange.publish("body", routing_key="x")
    exchange.Message("text", delivery_mode="transient", content_type="text/plain")
    return calls(channel), exchange.channel is channel, exchange.is_bound


def queues(lib):
    channel = a_channel()
    seen = []
    queue = lib.Queue("", lib.Exchange("e"), "k", expires=3, on_declared=lambda *args: seen.append(args))(channel)
    queue.declare()
    queue.consume("tag", Mock(), no_ack=True)
    queue.cancel("tag")
    queue.purge()
    queue.unbind_from(lib.Exchange("e"), "k")
    queue.delete(if_empty=True)
    channel.basic_get.return_value = None
    return calls(channel), queue.name, queue.get(), seen, queue.exchange.channel is channel


def producers(lib):
    channel = a_channel()
    channel.basic_publish.return_value = "result"
    exchange = lib.Exchange("e")
    producer = lib.Producer(channel, exchange, "key")
    seen = [producer.publish({"a": 1}, headers={"h": 1}, correlation_id="c", mandatory=True)]
    seen.append(producer.publish(b"raw", routing_key="r", content_type="x/y", content_encoding="binary", priority=4))
    producer.publish("x", exchange="other", serializer="pickle")
    producer.maybe_declare(lib.Queue("q"))
    seen += [producer.channel is channel, producer.connection is channel.connection.client]
    return [each for each in calls(channel) if not each[0].startswith("queue")], seen


def producers_with_returns(lib):
    channel = a_channel()
    channel.events = {"basic_return": Mock()}
    listener = Mock()
    lib.Producer(channel, on_return=listener)
    return channel.events["basic_return"].add.call_args[0][0] is listener


def consumers(lib):
    channel = a_channel()
    got = []
    consumer = lib.Consumer(
        channel, [lib.Queue("q", lib.Exchange("e"), "k")], callbacks=[lambda *args: got.append(args)], tag_prefix="t"
    )
    consumer.consume()
    consumer.qos(prefetch_count=10)
    consumer.flow(True)
    consumer.recover(requeue=True)
    callback = channel.basic_consume.call_args[1]["callback"]
    message = Mock(errors=[], decode=Mock(return_value="decoded"), headers={}, delivery_count=0)
    callback(message)
    consumer.cancel()
    made = [each for each in calls(channel) if each[0] not in ("basic_consume", "basic_cancel")]
    return made, [got[0][0], got[0][1] is message], consumer.channel is channel, channel.basic_cancel.called


def decoding_errors(lib):
    channel, failed = a_channel(), []
    consumer = lib.Consumer(
        channel, [lib.Queue("q")], callbacks=[Mock()], on_decode_error=lambda message, error: failed.append(repr(error))
    )
    message = Mock(errors=[], headers={})
    message.decode.side_effect = KeyError("x")
    consumer._receive_callback(message)
    consumer.on_message = Mock()
    consumer._receive_callback(message)
    return failed, consumer.on_message.call_args[0][0] is message


def messages(lib):
    channel = Mock(no_ack_consumers=None)
    message = lib.Message("body", delivery_tag=7, channel=channel, content_type="text/plain", content_encoding="utf-8")
    message.ack(multiple=True)
    other = lib.Message("body", delivery_tag=8, channel=channel)
    other.reject(requeue=False)
    third = lib.Message("body", delivery_tag=9, channel=channel)
    third.requeue()
    logged = lib.Message("body", delivery_tag=10, channel=channel)
    channel.basic_ack.side_effect = KeyError("x")
    logger = Mock()
    logged.ack_log_error(logger, (KeyError,))
    return [[name, args, kwargs] for name, args, kwargs in channel.mock_calls], message._state, logger.critical.called


def connections(lib):
    base = of(lib, "transport.base")
    made = []

    class Transport(base.Transport):
        default_port = 77
        connection_errors = (KeyError,)
        verified = True

        def establish_connection(self):
            made.append("establish")
            return Mock(client=self.client)

        def create_channel(self, connection):
            made.append("channel")
            return Mock(connection=connection, channel_id=1)

        def drain_events(self, connection, **kwargs):
            made.append(("drain", tuple(sorted(kwargs.items()))))
            if kwargs.get("timeout") == 0:
                raise TimeoutError
            return "event"

        def close_connection(self, connection):
            made.append("close")
            raise KeyError("ignored")

        def heartbeat_check(self, connection, rate=2):
            return made.append(("heartbeat", rate))

        def get_heartbeat_interval(self, connection):
            return 5

    connection = lib.Connection(transport=Transport, port=5, hostname="h")
    seen = [connection.connected, connection.host, connection._connection]
    seen += [connection.connect() is connection.connection, connection.connected, connection.channel() is not None]
    seen += [connection.drain_events(), connection.drain_events(timeout=1), connection.get_heartbeat_interval()]
    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=0)
    connection.heartbeat_check()
    first = connection.default_channel
    seen += [connection.default_channel is first, connection.connection_errors, connection.recoverable_channel_errors]
    seen += [connection.supports_heartbeats, connection.is_evented, connection.qos_semantics_matches_spec]
    transport = connection.transport
    connection.release()
    seen += [connection.connected, first.close.called, transport.client, connection._connection]
    return seen, made


def connections_set_errors(lib):
    connection = lib.Connection("memory://")
    connection.recoverable_connection_errors = (KeyError,)
    connection.connection_errors = (KeyError,)
    failures = [KeyError("x"), None]

    def fun():
        error = failures.pop(0)
        if error is not None:
            raise error
        return "done"

    revived = Mock()
    fun.__name__ = "fun"
    return connection.ensure(revived, fun, max_retries=3, interval_start=0)(), revived.revive.called


def simple_queues(lib):
    channel = a_channel()
    queue = of(lib, "simple").SimpleQueue(channel, "q")
    queue.put("x")
    size = queue.qsize()
    queue.clear()
    queue.close()
    return [each for each in calls(channel) if each[0] in ("basic_publish", "queue_purge")], size


def virtual_channels(lib):
    virtual = of(lib, "transport.virtual")
    connection = lib.Connection(transport=f"{lib.__name__}.transport.virtual.Transport")
    channel = connection.channel()
    channel._put = Mock()
    channel.exchange_declare("e", "direct")
    channel._new_queue = Mock()
    channel._size = Mock(return_value=4)
    declared = tuple(channel.queue_declare("q"))
    channel.queue_bind("q", "e", "k")
    message = channel.prepare_message("body", 3, "text/plain", "utf-8", {"h": 1})
    channel.basic_publish(message, "e", "k")
    put = channel._put.call_args[0]
    channel.qos.append("m", "t")
    seen = [declared, put[0], put[1]["body"], sorted(put[1]), channel.list_bindings().__next__(), channel.qos.get("t")]
    channel.basic_qos(0, 5, False)
    seen += [channel.qos.can_consume(), channel.qos.can_consume_max_estimate(), isinstance(channel, virtual.Channel)]
    channel.qos._delivered.clear()
    callback = Mock()
    channel.basic_consume("q", True, callback, "tag")
    raw = dict(message, properties=dict(message["properties"]))
    connection.transport._callbacks["q"](raw)
    seen += [callback.call_args[0][0].body, list(channel._consumers), channel._active_queues]
    channel.basic_cancel("tag")
    channel.close()
    return [*seen, list(connection.transport._callbacks), channel.closed, channel.exchange_types]


def consumers_with_other_methods(lib):
    """Methods that are set on a consumer, before and after it has started."""
    seen = []
    with lib.Connection("memory://") as connection:
        channel = connection.channel()

        def consumer(name):
            queue = lib.Queue(f"methods.{name}", auto_delete=True)
            return lib.Consumer(channel, [queue], callbacks=[lambda body, message: seen.append(("callback", body))])

        def deliver(name, body):
            lib.Producer(channel).publish(body, routing_key=f"methods.{name}")
            connection.drain_events(timeout=5)

        first, second = consumer("first"), consumer("second")
        first.receive = lambda body, message: seen.append(("set", body))
        second._receive_callback = lambda message: seen.append(("raw", message.payload))
        first.consume()
        second.consume()
        deliver("first", "before")
        deliver("second", "before")
        first.receive = Mock(side_effect=lambda body, message: seen.append(("mock", body)))
        deliver("first", "after")
        seen.append(first.receive.call_count)
        del first.receive
        deliver("first", "as it was")
        with pytest.raises(AttributeError):
            del first.receive
    return seen


PROGRAMS = [
    consumers_with_other_methods,
    exchanges,
    queues,
    producers,
    producers_with_returns,
    consumers,
    decoding_errors,
    messages,
    connections,
    connections_set_errors,
    simple_queues,
    virtual_channels,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_mocks_see_the_same(program):
    assert program(kombulite) == program(kombu)
