"""Stand-ins inside of connections, consumers, pools and virtual channels: the same program sees the same in both."""

from __future__ import annotations

from unittest.mock import Mock, call, patch

from tests.oracle.side_by_side import of, outcome, side_by_side


def a_connection(lib, **options):
    """A connection to a transport without a store."""
    return lib.Connection(transport=f"{lib.__name__}.transport.virtual.Transport", **options)


def a_channel(lib):
    channel = a_connection(lib).channel()
    for name in ("_put", "_new_queue", "_purge"):
        setattr(channel, name, Mock())
    return channel


def envelope(channel, tag="tag"):
    return channel.prepare_message("body", properties={"delivery_tag": tag})


def messages_restored_by_a_stand_in(lib):
    channel = a_channel(lib)
    channel._restore = Mock()
    qos = of(lib, "transport.virtual").QoS(channel)
    qos._on_collect.cancel()
    for tag in "abc":
        qos.append(tag, tag)
    return qos.restore_unacked(), channel._restore.mock_calls, len(qos._delivered)


def channels_with_a_stand_in_for_qos(lib):
    channel, received = a_channel(lib), Mock()
    channel._qos = qos = Mock()
    channel.basic_consume("q", False, received, "consumer")
    channel.connection._callbacks["q"](envelope(channel))
    channel.basic_ack("tag", multiple=True)
    channel.basic_reject("tag", requeue=True)
    seen = [each for each in qos.mock_calls if each[0] in ("ack", "reject")]
    return qos.append.call_args[0][1], received.call_args[0][0].delivery_tag, seen


def channels_that_the_transport_does_not_know(lib):
    transport = a_connection(lib).transport
    transport.channels = Mock()
    transport.channels.remove.side_effect = ValueError
    channel = Mock(channel_id=7)
    return transport.close_channel(channel), channel.connection, transport.channels.remove.called


def consumers_of_stand_ins(lib):
    channel, queue = a_channel(lib), Mock()
    queue.name = "stand-in"
    consumer = lib.Consumer(channel, [lib.Queue("q", no_ack=True)])
    own = consumer._basic_consume(consumer.queues[0], consumer_tag="own")
    consumer._basic_consume(queue, consumer_tag="tag", no_ack=False, nowait=False)
    tag, callback = queue.consume.call_args[0]
    same = callback == consumer._receive_callback
    return own, tag, same, queue.consume.call_args[1], consumer._active_queue_no_ack, lib.Consumer._queues


def queues_of_an_iterator(lib):
    consumer = lib.Consumer(a_channel(lib), (lib.Queue(name) for name in "ab"))
    return [queue.name for queue in consumer.queues]


def connections_of_consumers(lib):
    channel = a_channel(lib)
    consumer = lib.Consumer(channel)
    channel.connection = None
    return consumer.connection, lib.Consumer(None).connection


def producers_with_a_promise(lib):
    channel = a_channel(lib)
    promise = of(lib, "utils.functional").ChannelPromise(lambda: channel)
    producer = lib.Producer(None)
    producer.revive(promise)
    return producer._channel is promise, producer.channel is channel, producer._channel is channel


def connections_to_other_hosts(lib):
    """An alternate that is a host name has everything else of the first URL."""
    seen = []
    several = ("amqp://u:p@a:1/v;b", "redis://:secret@a:7/3;b;c", "a;b")
    for urls in several:
        connection = lib.Connection(urls)
        for _ in range(3):
            connection.maybe_switch_next()
            seen.append(connection.as_uri(include_password=True))
    connection = lib.Connection("amqp://u:p@a:1/v")
    connection.switch("plain")
    return [*seen, connection.as_uri(include_password=True)]


def connections_that_connect_by_a_stand_in(lib):
    connection = a_connection(lib)
    connection._ensure_connection = Mock(return_value="connected")
    seen = [connection.connection, connection.connect(), connection._ensure_connection.mock_calls]
    connection = a_connection(lib)
    connection._connection_factory = Mock(return_value="made")
    return [*seen, connection._ensure_connection(), lib.Connection(heartbeat=None).heartbeat]


def connections_that_log(lib):
    connection = a_connection(lib)
    connection._logger = True
    with patch(f"{lib.__name__}.connection.logger") as logger:
        connection._debug("seen %r", 3, exc_info=1)
    (text, value), options = logger.debug.call_args
    return text[-7:], value, options, of(lib, "connection").CERT_NONE


def pooled_connections_that_fail(lib):
    cls, pool = of(lib, "connection").PooledConnection, Mock(limit=2)
    connection = cls(pool, hostname="memory://")
    connection.release = Mock()
    with connection:
        pass
    seen = [pool.replace.called, connection.release.call_count]

    def fail():
        with connection:
            raise KeyError

    return [*seen, outcome(fail), pool.replace.mock_calls == [call(connection)]]


def pools_of_connections_and_what_is_not_made(lib):
    pool = a_connection(lib).Pool(2)
    unmade = of(lib, "utils.functional").lazy(Mock)
    resource = of(lib, "resource").Resource
    return pool.collect_resource(unmade), pool.release_resource(object()), outcome(resource, limit=1)


def listeners_of_memory_channels(lib):
    cls = of(lib, "transport.memory").Channel
    return type(cls.events).__name__, cls.events["basic_return"]


test_both_do_the_same = side_by_side(globals())
