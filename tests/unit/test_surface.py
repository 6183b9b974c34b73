"""The names that kombu's users import, and how they are called."""

from __future__ import annotations

import ast
import importlib
import inspect

import pytest

import kombulite

#: Names by module, as kombu 5.7 has them and as Celery 5.7 takes them.
NAMES = {
    "": "Connection BrokerConnection Producer Consumer Exchange Queue binding Message connections producers parse_url "
    "eventloop uuid enable_insecure_serializers disable_insecure_serializers VERSION version_info __version__ "
    "pools serialization pidbox",
    "abstract": "Object MaybeChannelBound",
    "asynchronous": "ERR READ WRITE Hub get_event_loop set_event_loop",
    "asynchronous.hub": "Hub get_event_loop set_event_loop",
    "asynchronous.semaphore": "DummyLock LaxBoundedSemaphore",
    "asynchronous.timer": "Entry Timer logger to_timestamp",
    "clocks": "LamportClock timetuple",
    "common": "Broadcast QoS collect_replies drain_consumer eventloop generate_oid ignore_errors insured itermessages "
    "maybe_declare oid_from send_reply uuid",
    "compat": "Consumer ConsumerSet Publisher entry_to_queue",
    "compression": "compress decompress encoders get_decoder get_encoder register",
    "connection": "BrokerConnection ChannelPool Connection ConnectionPool maybe_channel",
    "entity": "Exchange PERSISTENT_DELIVERY_MODE Queue TRANSIENT_DELIVERY_MODE binding",
    "exceptions": "BatchPublishError ChannelError ChannelLimitExceeded ConnectionError ConnectionLimitExceeded "
    "ContentDisallowed DecodeError EncodeError HttpError InconsistencyError KombuError LimitExceeded MessageStateError "
    "NotBoundError OperationalError ResourceError SerializationError SerializerNotInstalled TimeoutError "
    "VersionMismatch",
    "log": "LOG_LEVELS Log LogMixin get_logger get_loglevel setup_logging",
    "matcher": "MatcherNotInstalled match register unregister",
    "message": "Message",
    "messaging": "Consumer Exchange Message Producer Queue",
    "mixins": "ConsumerMixin ConsumerProducerMixin",
    "pidbox": "Mailbox Node",
    "pools": "PoolGroup ProducerPool connections get_limit producers register_group reset set_limit",
    "resource": "Resource",
    "serialization": "disable_insecure_serializers dumps enable_insecure_serializers loads pickle pickle_protocol "
    "prepare_accept_content raw_encode register registry unregister",
    "simple": "SimpleBuffer SimpleQueue",
    "transport.native_delayed_delivery": "bind_queue_to_native_delayed_delivery_exchange calculate_routing_key "
    "declare_native_delayed_delivery_exchanges_and_queues level_name",
    "utils": "cached_property json symbol_by_name uuid",
    "utils.collections": "EqualityDict",
    "utils.compat": "_detect_environment detect_environment fileno maybe_fileno nested register_after_fork",
    "utils.encoding": "bytes_to_str ensure_bytes from_utf8 safe_repr safe_str set_default_encoding_file str_to_bytes",
    "utils.eventio": "SELECT_BAD_FD",
    "utils.functional": "LRUCache accepts_argument dictfilter fxrange fxrangemax is_list lazy maybe_evaluate "
    "maybe_list memoize reprcall retry_over_time",
    "utils.imports": "symbol_by_name",
    "utils.json": "JSONEncoder dumps loads register_type",
    "utils.limits": "TokenBucket",
    "utils.objects": "cached_property",
    "utils.scheduling": "FairCycle cycle_by_name priority_cycle round_robin_cycle sorted_cycle",
    "utils.time": "maybe_s_to_ms",
    "utils.url": "_parse_url as_url maybe_sanitize_url parse_url safequote sanitize_url url_to_parts urlparse",
    "utils.uuid": "uuid",
}

#: How they are called: the specified arguments and defaults. More may follow if they have defaults.
SIGNATURES = """
Connection(hostname='localhost', userid=None, password=None, virtual_host=None, port=None, insist=False, ssl=False, transport=None, connect_timeout=5, transport_options=None, login_method=None, uri_prefix=None, heartbeat=0, failover_strategy='round-robin', alternates=None, credential_provider=None, **kwargs)
Connection.Pool(self, limit=None, **kwargs)
Connection.ChannelPool(self, limit=None, **kwargs)
Connection.Producer(self, channel=None, *args, **kwargs)
Connection.Consumer(self, queues=None, channel=None, *args, **kwargs)
Connection.SimpleQueue(self, name, no_ack=None, queue_opts=None, queue_args=None, exchange_opts=None, channel=None, **kwargs)
Connection.SimpleBuffer(self, name, no_ack=None, queue_opts=None, queue_args=None, exchange_opts=None, channel=None, **kwargs)
Connection.as_uri(self, include_password=False, mask='**', getfields=None)
Connection.autoretry(self, fun, channel=None, **ensure_options)
Connection.channel(self)
Connection.clone(self, **kwargs)
Connection.collect(self, socket_timeout=None)
Connection.completes_cycle(self, retries)
Connection.connect(self)
Connection.create_transport(self)
Connection.drain_events(self, timeout=None)
Connection.ensure(self, obj, fun, errback=None, max_retries=None, interval_start=1, interval_step=1, interval_max=1, on_revive=None, retry_errors=None)
Connection.ensure_connection(self, errback=None, max_retries=None, interval_start=2, interval_step=2, interval_max=30, callback=None, reraise_as_library_errors=True, timeout=None)
Connection.get_heartbeat_interval(self)
Connection.get_transport_cls(self)
Connection.heartbeat_check(self, rate=2)
Connection.info(self)
Connection.maybe_close_channel(self, channel)
Connection.maybe_switch_next(self)
Connection.register_with_event_loop(self, loop)
Connection.release(self)
Connection.revive(self, new_channel)
Connection.supports_exchange_type(self, exchange_type)
Connection.switch(self, conn_str)
Exchange(name='', type='', channel=None, **kwargs)
Exchange.Message(self, body, delivery_mode=None, properties=None, **kwargs)
Exchange.bind_to(self, exchange='', routing_key='', arguments=None, nowait=False, channel=None)
Exchange.declare(self, nowait=False, passive=None, channel=None)
Exchange.delete(self, if_unused=False, nowait=False)
Exchange.publish(self, message, routing_key=None, mandatory=False, immediate=False, exchange=None)
Exchange.unbind_from(self, source='', routing_key='', nowait=False, arguments=None, channel=None)
Queue(name='', exchange=None, routing_key='', channel=None, bindings=None, on_declared=None, **kwargs)
Queue.as_dict(self, recurse=False)
Queue.bind_to(self, exchange='', routing_key='', arguments=None, nowait=False, channel=None)
Queue.cancel(self, consumer_tag)
Queue.consume(self, consumer_tag='', callback=None, no_ack=None, nowait=False, on_cancel=None)
Queue.declare(self, nowait=False, channel=None)
Queue.delete(self, if_unused=False, if_empty=False, nowait=False)
Queue.from_dict(queue, **options)
Queue.get(self, no_ack=None, accept=None)
Queue.purge(self, nowait=False)
Queue.queue_bind(self, nowait=False, channel=None)
Queue.queue_declare(self, nowait=False, passive=False, channel=None)
Queue.queue_unbind(self, arguments=None, nowait=False, channel=None)
Queue.unbind_from(self, exchange='', routing_key='', arguments=None, nowait=False, channel=None)
binding(exchange=None, routing_key='', arguments=None, unbind_arguments=None)
binding.bind(self, entity, nowait=False, channel=None)
binding.declare(self, channel, nowait=False)
binding.unbind(self, entity, nowait=False, channel=None)
Producer(channel, exchange=None, routing_key=None, serializer=None, auto_declare=None, compression=None, on_return=None)
Producer.batch(self, max_size=1000)
Producer.declare(self)
Producer.maybe_declare(self, entity, retry=False, **retry_policy)
Producer.publish(self, body, routing_key=None, delivery_mode=None, mandatory=False, immediate=False, priority=0, content_type=None, content_encoding=None, serializer=None, headers=None, compression=None, exchange=None, retry=False, retry_policy=None, declare=None, expiration=None, timeout=None, confirm_timeout=None, **properties)
Producer.release(self)
Producer.revive(self, channel)
Consumer(channel, queues=None, no_ack=None, auto_declare=None, callbacks=None, on_decode_error=None, on_message=None, accept=None, prefetch_count=None, tag_prefix=None)
Consumer.add_queue(self, queue)
Consumer.cancel(self)
Consumer.cancel_by_queue(self, queue)
Consumer.consume(self, no_ack=None)
Consumer.consuming_from(self, queue)
Consumer.flow(self, active)
Consumer.purge(self)
Consumer.qos(self, prefetch_size=0, prefetch_count=0, apply_global=False)
Consumer.receive(self, body, message)
Consumer.recover(self, requeue=False)
Consumer.register_callback(self, callback)
Consumer.revive(self, channel)
Message(body=None, delivery_tag=None, content_type=None, content_encoding=None, delivery_info=None, properties=None, headers=None, postencode=None, accept=None, channel=None, **kwargs)
Message.ack_log_error(self, logger, errors, multiple=False)
Message.reject_log_error(self, logger, errors, requeue=False)
enable_insecure_serializers(choices=('pickle', 'yaml', 'msgpack'))
disable_insecure_serializers(allowed=('json',))
parse_url(url)
eventloop(conn, limit=None, timeout=None, ignore_timeouts=False)
asynchronous.hub.Hub(timer=None)
asynchronous.hub.Hub.add(self, fd, callback, flags, args=(), consolidate=False)
asynchronous.hub.Hub.add_reader(self, fds, callback, *args)
asynchronous.hub.Hub.add_writer(self, fds, callback, *args)
asynchronous.hub.Hub.call_at(self, when, callback, *args)
asynchronous.hub.Hub.call_later(self, delay, callback, *args)
asynchronous.hub.Hub.call_repeatedly(self, delay, callback, *args)
asynchronous.hub.Hub.call_soon(self, callback, *args)
asynchronous.hub.Hub.close(self, *args)
asynchronous.hub.Hub.fire_timers(self, min_delay=1, max_delay=10, max_timers=10, propagate=())
asynchronous.hub.Hub.remove(self, fd)
asynchronous.hub.Hub.run_forever(self)
asynchronous.hub.Hub.run_once(self)
asynchronous.hub.Hub.stop(self)
asynchronous.semaphore.LaxBoundedSemaphore(value)
asynchronous.semaphore.LaxBoundedSemaphore.acquire(self, callback, *partial_args, **partial_kwargs)
asynchronous.semaphore.LaxBoundedSemaphore.grow(self, n=1)
asynchronous.semaphore.LaxBoundedSemaphore.shrink(self, n=1)
asynchronous.timer.Entry(fun, args=None, kwargs=None)
asynchronous.timer.Timer(max_interval=None, on_error=None, **kwargs)
asynchronous.timer.Timer.call_after(self, secs, fun, args=(), kwargs=None, priority=0)
asynchronous.timer.Timer.call_at(self, eta, fun, args=(), kwargs=None, priority=0)
asynchronous.timer.Timer.call_repeatedly(self, secs, fun, args=(), kwargs=None, priority=0)
clocks.LamportClock(initial_value=0)
clocks.LamportClock.adjust(self, other)
clocks.LamportClock.sort_heap(self, h)
clocks.timetuple(clock, timestamp, id, obj=None)
common.Broadcast(name=None, queue=None, unique=False, auto_delete=True, exchange=None, alias=None, **kwargs)
common.QoS(callback, initial_value, max_prefetch=None)
common.QoS.decrement_eventually(self, n=1)
common.QoS.increment_eventually(self, n=1)
common.QoS.set(self, pcount)
common.collect_replies(conn, channel, queue, *args, **kwargs)
common.drain_consumer(consumer, limit=1, timeout=None, callbacks=None)
common.generate_oid(node_id, process_id, thread_id, instance)
common.ignore_errors(conn, fun=None, *args, **kwargs)
common.insured(pool, fun, args, kwargs, errback=None, on_revive=None, **opts)
common.itermessages(conn, channel, queue, limit=1, timeout=None, callbacks=None, **kwargs)
common.maybe_declare(entity, channel=None, retry=False, **retry_policy)
common.oid_from(instance, threads=True)
common.send_reply(exchange, req, msg, producer=None, retry=False, retry_policy=None, **props)
compat.Consumer(connection, queue=None, exchange=None, routing_key=None, exchange_type=None, durable=None, exclusive=None, auto_delete=None, **kwargs)
compat.ConsumerSet(connection, from_dict=None, consumers=None, channel=None, **kwargs)
compat.Publisher(connection, exchange=None, routing_key=None, exchange_type=None, durable=None, auto_delete=None, channel=None, **kwargs)
compression.compress(body, content_type)
compression.decompress(body, content_type)
compression.register(encoder, decoder, content_type, aliases=None)
exceptions.HttpError(code, message=None, response=None)
log.Log(name, logger=None)
log.get_logger(logger)
log.get_loglevel(level)
log.setup_logging(loglevel=None, logfile=None)
matcher.match(data, pattern, matcher=None, matcher_kwargs=None)
matcher.register(name, matcher)
matcher.unregister(name)
mixins.ConsumerMixin.consume(self, limit=None, timeout=None, safety_interval=1, **kwargs)
mixins.ConsumerMixin.extra_context(self, connection, channel)
mixins.ConsumerMixin.get_consumers(self, Consumer, channel)
mixins.ConsumerMixin.on_connection_error(self, exc, interval)
mixins.ConsumerMixin.on_consume_end(self, connection, channel)
mixins.ConsumerMixin.on_consume_ready(self, connection, channel, consumers, **kwargs)
mixins.ConsumerMixin.on_decode_error(self, message, exc)
mixins.ConsumerMixin.run(self, _tokens=1, **kwargs)
pidbox.Mailbox(namespace, type='direct', connection=None, clock=None, accept=None, serializer=None, producer_pool=None, queue_ttl=None, queue_expires=None, queue_durable=False, queue_exclusive=True, reply_queue_ttl=None, reply_queue_expires=10.0)
pidbox.Mailbox.Node(self, hostname=None, state=None, channel=None, handlers=None)
pidbox.Mailbox._broadcast(self, command, arguments=None, destination=None, reply=False, timeout=1, limit=None, callback=None, channel=None, serializer=None, pattern=None, matcher=None)
pidbox.Mailbox.abcast(self, command, kwargs=None)
pidbox.Mailbox.call(self, destination, command, kwargs=None, timeout=None, callback=None, channel=None)
pidbox.Mailbox.cast(self, destination, command, kwargs=None)
pidbox.Mailbox.get_queue(self, hostname)
pidbox.Mailbox.multi_call(self, command, kwargs=None, timeout=1, limit=None, callback=None, channel=None)
pidbox.Node(hostname, state=None, channel=None, handlers=None, mailbox=None)
pidbox.Node.Consumer(self, channel=None, no_ack=True, accept=None, **options)
pidbox.Node.dispatch(self, method, arguments=None, reply_to=None, ticket=None, **kwargs)
pidbox.Node.handle_message(self, body, message=None)
pidbox.Node.handler(self, fun)
pidbox.Node.listen(self, channel=None, callback=None)
pidbox.Node.reply(self, data, exchange, routing_key, ticket, **kwargs)
pools.PoolGroup(limit=None, close_after_fork=True)
pools.ProducerPool(connections, *args, **kwargs)
pools.get_limit()
pools.register_group(group)
pools.reset(*args, **kwargs)
pools.set_limit(limit, force=False, reset_after=False, ignore_errors=False)
resource.Resource(limit=None, preload=None, close_after_fork=None)
resource.Resource.acquire(self, block=False, timeout=None)
resource.Resource.force_close_all(self, close_pool=True)
resource.Resource.release(self, resource)
resource.Resource.replace(self, resource)
resource.Resource.resize(self, limit, force=False, ignore_errors=False, reset=False)
serialization.dumps(data, serializer=None)
serialization.loads(data, content_type, content_encoding, accept=None, force=False)
serialization.prepare_accept_content(content_types, name_to_type=None)
serialization.raw_encode(data)
serialization.register(name, encoder, decoder, content_type, content_encoding='utf-8')
serialization.unregister(name)
simple.SimpleBuffer(channel, name, no_ack=None, queue_opts=None, queue_args=None, exchange_opts=None, serializer=None, compression=None, accept=None)
simple.SimpleQueue(channel, name, no_ack=None, queue_opts=None, queue_args=None, exchange_opts=None, serializer=None, compression=None, accept=None)
simple.SimpleQueue.get(self, block=True, timeout=None)
simple.SimpleQueue.put(self, message, serializer=None, headers=None, compression=None, routing_key=None, **kwargs)
transport.native_delayed_delivery.bind_queue_to_native_delayed_delivery_exchange(connection, queue, prefix=None)
transport.native_delayed_delivery.calculate_routing_key(countdown, routing_key)
transport.native_delayed_delivery.declare_native_delayed_delivery_exchanges_and_queues(connection, queue_type, prefix=None)
transport.native_delayed_delivery.level_name(level, prefix=None)
utils.compat.nested(*managers)
utils.compat.register_after_fork(obj, func)
utils.encoding.safe_repr(o, errors='replace')
utils.encoding.safe_str(s, errors='replace')
utils.functional.LRUCache(limit=None)
utils.functional.accepts_argument(func, argument_name)
utils.functional.dictfilter(d=None, **kw)
utils.functional.fxrange(start=1.0, stop=None, step=1.0, repeatlast=False)
utils.functional.fxrangemax(start=1.0, stop=None, step=1.0, max=100.0)
utils.functional.lazy(fun, *args, **kwargs)
utils.functional.memoize(maxsize=None, keyfun=None, Cache=LRUCache)
utils.functional.reprcall(name, args=(), kwargs=None, sep=', ')
utils.functional.retry_over_time(fun, catch, args=None, kwargs=None, errback=None, max_retries=None, interval_start=2, interval_step=2, interval_max=30, callback=None, timeout=None)
utils.imports.symbol_by_name(name, aliases=None, imp=None, package=None, sep='.', default=None, **kwargs)
utils.json.register_type(t, marker, encoder, decoder=ANY)
utils.limits.TokenBucket(fill_rate, capacity=1)
utils.limits.TokenBucket.can_consume(self, tokens=1)
utils.limits.TokenBucket.expected_time(self, tokens=1)
utils.objects.cached_property(fget, fset=None, fdel=None)
utils.scheduling.FairCycle(fun, resources, predicate=Exception)
utils.time.maybe_s_to_ms(v)
utils.url.as_url(scheme, host=None, port=None, user=None, password=None, path=None, query=None, sanitize=False, mask='**')
utils.url.maybe_sanitize_url(url, mask='**')
utils.url.sanitize_url(url, mask='**')
"""  # noqa: E501 - one line each

ANY = object()


def module(name):
    return importlib.import_module(f"kombulite.{name}" if name else "kombulite")


@pytest.mark.parametrize(("where", "name"), [(where, name) for where, names in NAMES.items() for name in names.split()])
def test_name_is_there(where, name):
    assert getattr(module(where), name) is not None


def look_up(path):
    """The object behind a dotted path below the package: modules as far as there are some, then attributes."""
    found, parts = kombulite, path.split(".")
    while parts:
        name = parts.pop(0)
        try:
            found = getattr(found, name)
        except AttributeError:
            found = importlib.import_module(f"{found.__name__}.{name}")
    return found


def expected_parameters(text):
    """What a line of the table says: (name, kind, default) each."""
    call = text[text.index("(") :]
    arguments = ast.parse(f"def f{call}: pass").body[0].args
    scope = {"ANY": ANY, "LRUCache": look_up("utils.functional.LRUCache")}
    defaults = [eval(ast.unparse(node), scope) for node in arguments.defaults]
    names = [argument.arg for argument in arguments.args]
    without = len(names) - len(defaults)
    parameters = [
        (name, inspect.Parameter.empty if i < without else defaults[i - without]) for i, name in enumerate(names)
    ]
    return parameters, bool(arguments.vararg), bool(arguments.kwarg)


@pytest.mark.parametrize("line", SIGNATURES.strip().splitlines(), ids=lambda line: line.partition("(")[0])
def test_signature(line):
    target = look_up(line.partition("(")[0])
    signature = inspect.signature(target)
    expected, takes_args, takes_kwargs = expected_parameters(line)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    assert not takes_args or inspect.Parameter.VAR_POSITIONAL in kinds
    assert not takes_kwargs or inspect.Parameter.VAR_KEYWORD in kinds
    named = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    assert [parameter.name for parameter in named[: len(expected)]] == [name for name, _ in expected]
    for parameter, (name, default) in zip(named, expected):
        if default is not ANY:
            assert parameter.default == default, name
    for parameter in named[len(expected) :]:
        assert parameter.default is not parameter.empty, f"{parameter.name} is not in the table"


def test_keywords_of_entities():
    exchange = kombulite.Exchange(
        "e", arguments={}, durable=True, passive=False, auto_delete=False, delivery_mode=None, no_declare=False
    )
    queue = kombulite.Queue(
        "q",
        exchange,
        queue_arguments=None,
        binding_arguments=None,
        consumer_arguments=None,
        durable=True,
        exclusive=False,
        auto_delete=False,
        no_ack=False,
        alias=None,
        no_declare=None,
        expires=None,
        message_ttl=None,
        max_length=None,
        max_length_bytes=None,
        max_priority=None,
    )
    assert queue.as_dict()["exchange"] is exchange


def test_version_is_that_of_the_api():
    assert kombulite.VERSION >= (5, 7, 0)
    assert kombulite.VERSION[:3] == (5, 7, 0) == (kombulite.VERSION.major, 7, kombulite.VERSION.micro)
    assert kombulite.version_info is kombulite.VERSION
    with pytest.raises(AttributeError):
        kombulite.no_such_name  # noqa: B018
    assert set(kombulite.__all__) <= {*dir(kombulite)}
