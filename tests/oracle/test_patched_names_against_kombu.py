"""Names of modules and classes that programs' tests replace: what they put there is used, as in kombu."""

from __future__ import annotations

import importlib
import pkgutil
import socket
import types
from queue import Empty
from typing import TypeVar
from unittest.mock import MagicMock, Mock, call, patch

import pytest

import kombulite
from tests.oracle.side_by_side import of, outcome, side_by_side

#: Modules whose private names are compared: those that kombulite has itself.
MODULES = [
    "kombu",
    *(
        f"kombu.{name}"
        for names in (
            ("abstract", "clocks", "common", "compat", "compression", "connection", "entity", "exceptions", "log"),
            ("matcher", "message", "messaging", "mixins", "pidbox", "pools", "resource", "serialization", "simple"),
            [f"asynchronous.{name}" for name in ("debug", "hub", "semaphore", "timer")],
            [f"transport.{name}" for name in ("base", "memory", "pyamqp", "native_delayed_delivery", "virtual")],
            ("transport", "transport.virtual.base", "transport.virtual.exchange"),
        )
        for name in names
    ),
    *(each.name for each in pkgutil.iter_modules(importlib.import_module("kombu.utils").__path__, "kombu.utils.")),
]


def is_missing(name, value, ours):
    """Whether ours lacks a name of a module of kombu's that is kombu's own, or that of a module of sockets."""
    origin = getattr(value, "__module__", None)
    is_own = origin is None or origin.startswith("kombu")
    if isinstance(value, types.ModuleType):
        # A package has those of its modules that anybody imported: not what it is asked for here.
        is_module_of_it = value.__name__ == f"{ours.__name__}.{name}".replace("kombulite", "kombu", 1)
        is_own = value is socket or (value.__name__.startswith("kombu") and not is_module_of_it)
    if name.startswith("__") or name in ("annotations", "TYPE_CHECKING") or isinstance(value, TypeVar):
        return False
    return is_own and not hasattr(ours, name)


@pytest.mark.parametrize("name", MODULES)
def test_modules_have_all_names_of_kombu_s(name):
    theirs = importlib.import_module(name)
    ours = importlib.import_module(name.replace("kombu", "kombulite", 1))
    missing = {each for each, value in vars(theirs).items() if is_missing(each, value, ours)}
    assert missing == UNNEEDED.get(name, set())


#: Names that nothing in kombulite uses, so that replacing them could have no effect.
UNNEEDED: dict[str, set[str]] = {
    "kombu.abstract": {"_any"},
    "kombu.asynchronous.hub": {"_dummy_context"},
    "kombu.transport.native_delayed_delivery": {"Connection"},
    "kombu.utils.json": {"_register_default_types"},
}


@pytest.mark.parametrize("name", MODULES)
def test_classes_have_all_members_of_kombu_s(name):
    theirs = importlib.import_module(name)
    ours = importlib.import_module(name.replace("kombu", "kombulite", 1))
    missing = set()
    for cls in [each for each in vars(theirs).values() if isinstance(each, type) and each.__module__ == name]:
        own = getattr(ours, cls.__name__, None)
        for member in vars(cls):
            if not (member.startswith("__") or hasattr(own, member)):
                missing.add(f"{cls.__name__}.{member}")
    assert missing == UNNEEDED_MEMBERS.get(name, set())


UNNEEDED_MEMBERS: dict[str, set[str]] = {"kombu.connection": {"Connection._dummy_context"}}


def functions_that_programs_call(lib):
    entity, base = of(lib, "entity"), of(lib, "transport.base")
    registry, simple = of(lib, "serialization").registry, of(lib, "simple")
    messaging = of(lib, "messaging")
    context = lib.Producer(Mock()).batch()
    return [
        [entity._reprstr(each) for each in ("name", "it's", "a\nb", "")],
        [
            base._to_rabbitmq_queue_argument(*each)
            for each in (("expires", 3), ("max_length", "4"), ("max_priority", None))
        ],
        repr(registry._for_untrusted_content("application/json", "strange")),
        repr(registry._for_untrusted_content("a/b", "strange")),
        simple.SimpleBase._consuming,
        sorted(lib.Queue._from_dict_explicit_attrs),
        (simple.socket.timeout, simple.Empty is Empty),
        type(context) is messaging._ProducerBatch,
        (context.producer is not None, context.max_size, context.state, context.is_outermost, context.entered),
    ]


def states_of_batches(lib):
    state = of(lib, "messaging")._ProducerBatchState(3)
    seen = [(state.max_size, state.aborted, state.session, state.immediate)]
    plain = Mock(spec=["basic_publish"])
    seen += [state.publish(plain, "message", exchange="e") is plain.basic_publish.return_value, state.immediate]
    able, other = Mock(supports_batch_publish=True), Mock(supports_batch_publish=True)
    batch = of(lib, "messaging")._ProducerBatchState(5)
    able.create_publish_batch.return_value.channel = able
    seen += [
        batch.publish(able, "m", a=1) is batch.session.publish.return_value,
        able.create_publish_batch.mock_calls[0],
    ]
    seen.append(outcome(batch.publish, other, "m"))
    batch.flush()
    batch.abort()
    batch.abort()
    batch.close()
    seen += [outcome(batch.flush), outcome(batch.publish, able, "m"), batch.aborted]
    return [*seen, [each[0] for each in batch.session.mock_calls]]


def consumers_that_go_on(lib):
    channel = MagicMock()
    channel.connection.client.declared_entities = set()
    consumer = lib.Consumer(channel, [lib.Queue("a"), lib.Queue("b")], auto_declare=False)
    consumer._consume_previously_active = Mock()
    consumer.declare = Mock()
    consumer._active_queue_no_ack = {"a": True}
    consumer.auto_declare = True
    consumer.revive(channel)
    return consumer._consume_previously_active.mock_calls, consumer.declare.mock_calls, consumer._active_queue_no_ack


def queues_that_are_declared(lib):
    queue = lib.Queue("q", lib.Exchange("e"), "k")(Mock())
    queue.queue_declare, queue.queue_bind = Mock(), Mock()
    queue.exchange = Mock()
    queue.exchange.name = "e"
    name = queue.declare()
    seen = [name, queue.queue_declare.mock_calls, queue.queue_bind.mock_calls, queue.exchange.declare.mock_calls]
    channel = Mock()
    queue.declare(nowait=True, channel=channel)
    seen.append(queue.queue_declare.call_args == call(nowait=True, passive=False, channel=channel))
    steps = lib.Queue("q")(Mock())
    steps._create_exchange, steps._create_queue, steps._create_bindings = Mock(), Mock(), Mock()
    steps.declare()
    return [*seen, steps._create_exchange.mock_calls, steps._create_queue.mock_calls, steps._create_bindings.mock_calls]


def results_of_channels(lib):
    channel = MagicMock()
    exchange, queue = lib.Exchange("e")(channel), lib.Queue("q", lib.Exchange("e"), "k")(channel)
    return [
        exchange.declare() is channel.exchange_declare.return_value,
        exchange.bind_to("other") is channel.exchange_bind.return_value,
        exchange.unbind_from("other") is channel.exchange_unbind.return_value,
        exchange.delete() is channel.exchange_delete.return_value,
        queue.queue_bind() is channel.queue_bind.return_value,
        queue.bind_to("e") is channel.queue_bind.return_value,
        queue.unbind_from(lib.Exchange("e")) is channel.queue_unbind.return_value,
        queue.queue_unbind() is channel.queue_unbind.return_value,
        queue.cancel("t") is channel.basic_cancel.return_value,
        queue.consume(None) is channel.basic_consume.return_value,
        channel.basic_consume.call_args[1]["consumer_tag"],
        exchange.publish("x") is channel.basic_publish.return_value,
        channel.basic_publish.call_args[1]["routing_key"],
    ]


def parsed_urls(lib):
    module = of(lib, "connection")
    with patch.object(module, "parse_url") as parse:
        parse.return_value = {"transport": "memory", "hostname": "elsewhere", "port": 7, "userid": None}
        parse.return_value |= {"password": None, "virtual_host": "v"}
        connection = lib.Connection("memory://here")
    return connection.hostname, connection.port, connection.virtual_host, parse.call_count


def libraries_of_rabbitmq(lib):
    module = of(lib, "connection")
    with patch.object(module, "supports_librabbitmq", return_value=True):
        chosen = [lib.Connection(url).transport_cls for url in ("amqp://host", "pyamqp://host", "memory://")]
    with patch.object(module, "supports_librabbitmq", return_value=False):
        chosen.append(lib.Connection("amqp://host").transport_cls)
    return chosen


def classes_of_transports(lib):
    module = of(lib, "connection")
    with patch.object(module, "get_transport_cls") as get:
        connection = lib.Connection("memory://")
        made = connection.create_transport()
        same = made is get.return_value.return_value
    return same, get.return_value.mock_calls[-1] == call(client=connection)


def names_of_mailboxes(lib):
    pidbox = of(lib, "pidbox")
    box = pidbox.Mailbox("box", connection=MagicMock())
    seen = []
    with patch.object(pidbox, "uuid", return_value="ticket"), patch.object(pidbox, "maybe_declare") as declare:
        box._publish, box._collect = Mock(), Mock()
        box._broadcast("f", reply=True)
        seen += [box._publish.call_args[1]["reply_ticket"], box._collect.call_args[0], declare.called]
    with patch.object(pidbox, "oid_from", return_value="oid"):
        seen += [box.oid, box.get_reply_queue().name]
    with patch.object(pidbox.socket, "gethostname", return_value="machine"):
        seen.append(box.Node().hostname)
    with patch.object(pidbox, "match", return_value=True) as match:
        node = box.Node("host")
        node.dispatch = Mock()
        node.handle_message({"pattern": "h*", "matcher": "glob", "method": "f"})
        seen += [match.mock_calls, node.dispatch.called]
    with patch.object(pidbox, "Producer") as producer, box.producer_or_acquire(None, "channel") as given:
        seen += [given is producer.return_value, producer.mock_calls[0]]
    with patch.object(pidbox, "Consumer") as consumer:
        seen.append(box.Node("host").Consumer(channel="channel") is consumer.return_value)
    return seen


def names_of_other_modules(lib):
    seen = []
    pools, simple, common = of(lib, "pools"), of(lib, "simple"), of(lib, "common")
    with patch.object(pools, "register_after_fork") as register:
        pools.PoolGroup()
        pools.PoolGroup(close_after_fork=False)
        seen.append(register.call_count)
    group = pools.Connections(limit=pools.use_global_limit)
    with patch.object(pools, "get_limit", return_value=7):
        seen.append(group[lib.Connection("memory://")].limit)
    with patch.object(simple, "maybe_channel") as channel:
        seen.append(simple.SimpleBase("c", Mock(), Mock(queues=["q"])).channel is channel.return_value)
    with patch.object(simple.messaging, "Consumer") as consumer, patch.object(simple.messaging, "Producer") as producer:
        queue = simple.SimpleQueue(Mock(), "name", serializer="s", compression="c")
        seen += [queue.consumer is consumer.return_value, queue.producer is producer.return_value]
        seen.append(producer.call_args[1])
    with patch.object(common, "get_gevent_concurrent_error", return_value=KeyError):
        seen.append(
            common.ignore_errors(Mock(connection_errors=(), channel_errors=()), Mock(side_effect=KeyError)) is None
        )
    with patch.object(common, "serializers", create=True) as table:
        table.type_to_name = {"a/b": "named"}
        producer = Mock()
        request = Mock(content_type="a/b", content_encoding="utf-8", properties={"reply_to": "r"})
        outcome(common.send_reply, "e", request, "m", producer)
        seen.append(producer.publish.call_args and producer.publish.call_args[1]["serializer"])
    return seen


def transports_whose_methods_are_replaced(lib):
    memory = of(lib, "transport.memory")
    seen = []
    with patch.object(memory.Channel, "_put") as put:
        connection = lib.Connection("memory://")
        connection.Producer().publish({"a": 1}, routing_key="replaced")
        seen += [put.call_args[0][0], put.call_args[0][1]["content-type"]]
        seen.append(isinstance(connection.transport, memory.Transport))
        connection.release()
    return seen


test_both_do_the_same = side_by_side(globals())


def test_a_class_that_is_named_stands_for_itself():
    for cls in (of(kombulite, f"transport.{name}").Transport for name in ("redis", "pyamqp")):
        connection = kombulite.Connection(transport=cls)
        assert isinstance(connection.transport, cls)
        assert connection.connection_errors[: len(cls.connection_errors)] == cls.connection_errors


@pytest.mark.parametrize("name", ["redis", "amqp", "memory"])
def test_urls_run_the_own_transport_unless_a_method_of_kombu_s_is_replaced(name):
    module = importlib.import_module(f"kombulite.transport.{'pyamqp' if name == 'amqp' else name}")
    theirs = module.Transport
    connection = kombulite.Connection(f"{name}://")
    assert not isinstance(connection.create_transport(), theirs)
    with patch.object(theirs, "driver_version", return_value="patched"):
        assert kombulite.Connection(f"{name}://").transport.driver_version() == "patched"
    assert not isinstance(connection.create_transport(), theirs)
    assert isinstance(module, types.ModuleType)
