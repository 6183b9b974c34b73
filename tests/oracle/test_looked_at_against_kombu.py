"""What a test of kombu's modules looks at behind their interface: the order of callbacks, calls on a registry."""

from __future__ import annotations

from contextlib import contextmanager
from unittest.mock import MagicMock, Mock, call, patch

from tests.oracle.side_by_side import of, outcome, side_by_side


def errors_that_were_ignored(lib):
    common = of(lib, "common")
    connection = Mock(connection_errors=(KeyError,), channel_errors=(ValueError,))
    ignored = common.ignore_errors(connection, Mock(side_effect=KeyError()))
    with ignored:
        raise ValueError
    raised = outcome(common.ignore_errors, connection, Mock(side_effect=TypeError("x")))
    return raised, common.ignore_errors(connection, Mock(return_value=4))


def callbacks_of_a_drained_consumer(lib):
    consumer, further = MagicMock(), Mock()
    drain = consumer.channel.connection.client.drain_events
    drain.side_effect = lambda timeout: consumer.callbacks[0]("body", "message")
    drained = list(of(lib, "common").drain_consumer(consumer, limit=2, callbacks=[further]))
    return drained, consumer.callbacks[1:] == [further]


def prefetch_counts_above_their_limit(lib):
    common = of(lib, "common")
    made = [common.QoS(Mock(), value, max_prefetch=limit) for value, limit in ((10, 5), (10, 0), (5, 5), (0, 5))]
    return [(qos.increment_eventually(3), qos.decrement_eventually(), qos.value) for qos in made]


def consumers_of_a_mixin(lib):
    mixins = of(lib, "mixins")

    class Worker(mixins.ConsumerMixin):
        connection = MagicMock()

        def get_consumers(self, Consumer, channel):
            return [Consumer(queues=["one"]), Consumer(queues=["other"])]

    worker = Worker()
    connection = worker.create_connection = MagicMock()
    with patch.object(mixins, "Consumer") as made, worker.Consumer() as (_, channel, consumers):
        expected = [call(channel, on_decode_error=worker.on_decode_error, queues=[name]) for name in ("one", "other")]
        return made.call_args_list == expected, len(consumers), connection.called


def turns_of_a_mixin(lib):
    class Worker(of(lib, "mixins").ConsumerMixin):
        link = Mock()

        @contextmanager
        def consumer_context(self, **kwargs):
            yield self.link, None, []

    worker = Worker()
    worker.link.drain_events.side_effect = [None, TimeoutError(), None]
    return len(list(worker.consume(limit=3))), worker.link.mock_calls


def pools_whose_prepare_fails(lib):
    class Pool(of(lib, "resource").Resource):
        collect_resource = Mock(side_effect=AttributeError)

        def setup(self):
            for _ in range(self.limit):
                self._resource.put_nowait(self.new())

        def new(self):
            return Mock()

        def prepare(self, resource):
            resource.prepared()
            return resource

    pool = Pool(limit=1)
    first = pool.acquire()
    pool.replace(first)
    second = pool.acquire()
    seen = [second is first, second.prepared.called]
    second.release()
    pool.prepare = Mock(side_effect=KeyError("x"))
    with patch.object(pool, "release") as release:
        seen += [outcome(pool.acquire), release.mock_calls == [call(second)]]
    pool = Pool(limit=2)
    pool.acquire()
    pool.force_close_all()
    seen.append((pool.collect_resource.call_count, pool._resource.qsize(), len(pool._dirty)))
    pool.force_close_all = Mock(side_effect=KeyError)
    pool.resize(3, reset=True)
    return [*seen, pool.limit]


def producers_that_return(lib):
    pool = of(lib, "pools").ProducerPool(Mock(), limit=1)
    producer = Mock()
    producer.__connection__ = Mock()
    pool.release(producer)
    return producer.__connection__.release.call_count, producer.channel


def serializers_by_content_type(lib):
    serialization = of(lib, "serialization")
    with patch.object(serialization, "registry") as registry:
        registry._decoders = ["one", "other"]
        serialization.disable_insecure_serializers(allowed=["other"])
        serialization.enable_insecure_serializers()
        registry.enable.side_effect = KeyError
        serialization.enable_insecure_serializers(["unknown"])
        called = registry.mock_calls
    serialization.enable_insecure_serializers(["application/x-yaml"])
    try:
        loaded = serialization.loads(b"[1]", "application/x-yaml", "utf-8")
    finally:
        serialization.disable_insecure_serializers()
    aliases = [serialization.parenthesize_alias(*names) for names in (("a", "b"), ("", "b"))]
    return called, loaded, outcome(serialization.loads, b"[1]", "application/x-yaml", "utf-8")[0], aliases


def yaml_of_buffers(lib):
    loads = of(lib, "serialization").loads
    bodies = (b"a: 1", memoryview(b"a: 1"), bytearray(b"a: 1"), "a: \u00e4".encode("utf-16"))
    return [loads(body, "application/x-yaml", "utf-8", force=True) for body in bodies]


def errors_of_messages(lib):
    message = lib.Message(b"body")
    message.errors = [(KeyError, KeyError("x"), None)]
    return outcome(message._reraise_error)


def consumers_without_a_tag_prefix(lib):
    return lib.Consumer(None, tag_prefix=None).tag_prefix, lib.Consumer(None, tag_prefix="x").tag_prefix


def events_of_unknown_descriptors(lib):
    hub = of(lib, "asynchronous.hub").Hub()
    poller, hub.poller = hub.poller, Mock()
    hub.readers[10], hub.writers[11] = (Mock(), ()), (Mock(), ())
    hub.remove, hub.remove_reader, hub.remove_writer = Mock(), Mock(), Mock()
    hub.poller.poll.return_value = [(11, hub.READ), (10, hub.WRITE), (12, hub.ERR)]
    next(hub.create_loop())
    seen = hub.remove_reader.mock_calls, hub.remove_writer.mock_calls, hub.remove.mock_calls
    hub.poller = poller
    hub.close()
    hub.timer = None
    return seen, hub.fire_timers()


def connections_with_methods_patched_on_the_class(lib):
    cls = lib.Connection
    with patch.object(cls, "switch") as switch:
        cls("memory://a;memory://b").maybe_switch_next()
    transport = Mock(connection_errors=(KeyError,), default_connection_params={}, can_parse_url=False)
    with patch.object(cls, "get_transport_cls", return_value=transport):
        connection = cls("memory://")
        errors, made = connection.connection_errors, connection.transport is transport.return_value
    return switch.mock_calls, errors, made


def values_that_are_logged(lib):
    log = of(lib, "log").Log("name", Mock())
    log.debug(KeyError("x"), 3, "text")
    log.info("%s %s", 1, of(lib, "utils.functional").lazy(lambda: 2))
    log.warn(b"bytes")
    return [(each.args[0], *map(str, each.args[1:])) for each in log.logger.log.call_args_list]


def policies_of_connecting_again(lib):
    class Transport(of(lib, "transport.base").Transport):
        connection_errors = recoverable_connection_errors = (KeyError,)

        def establish_connection(self):
            return Mock()

        def close_connection(self, connection):
            pass

        def create_channel(self, connection):
            return Mock(closed=False)

    connection = lib.Connection(transport=Transport)
    connection.connect()
    failing = Mock(side_effect=[KeyError("x"), "done"], __name__="failing")
    with patch.object(connection, "_ensure_connection", wraps=connection._ensure_connection) as connecting:
        called = connection.ensure(Mock(), failing, max_retries=3, interval_start=0, interval_max=2)()
    return called, connecting.call_args_list[0]


def results_of_heartbeat_checks(lib):
    class Transport(of(lib, "transport.base").Transport):
        def establish_connection(self):
            return Mock()

        def heartbeat_check(self, connection, rate=2):
            return "checked", rate

    return lib.Connection(transport=Transport).heartbeat_check(rate=4)


test_both_do_the_same = side_by_side(vars())
