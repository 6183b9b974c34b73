"""Code that the compiled core runs drops the last reference to what the core is using: it is used to the end."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from kombulite import Exchange
from kombulite._core import (
    JSON,
    BaseAsyncChannel,
    BaseAsyncMessage,
    BaseAsyncProducer,
    BaseAsyncSession,
    BaseChannel,
    BaseConsumer,
    BaseLock,
    BaseMaker,
    BaseMessage,
    BaseMessages,
    BaseQueue,
    BaseSubscription,
    BaseWaits,
    Codecs,
    Condition,
    CounterBlock,
    Delivery,
    MessageQueue,
    PriorityNaming,
    Properties,
    PublishPath,
    RoutingTable,
    UnackedDeliveries,
    group_alike,
)


def delivery(body=b"body", exchange="", routing_key="orders"):
    return Delivery(exchange, routing_key, Properties(), body)


class Body:
    """A body that does something when it is asked for its length."""

    def __init__(self, act):
        self.act = act

    def __len__(self):
        self.act()
        return 4


class Text(str):
    """Text that does something when it is compared, and leaves the answer to the other side."""

    act = staticmethod(lambda: None)

    def __eq__(self, other):
        self.act()
        return NotImplemented

    def __ne__(self, other):
        self.act()
        return NotImplemented

    __hash__ = str.__hash__


class Hashed:
    """Something that does something when it is asked for its hash."""

    def __init__(self, act, value):
        self.act = act
        self.value = value

    def __hash__(self):
        self.act()
        return hash(self.value)

    def __eq__(self, other):
        return self.value == other


# --- a channel ----------------------------------------------------------------------------------------------------


def test_counters_of_a_channel_that_is_made_anew_while_a_body_is_measured():
    channel = BaseChannel(1, CounterBlock(), None)
    channel.use(lambda *arguments: "sent", None, None, False)
    assert channel.publish(delivery(Body(lambda: channel.__init__(2, CounterBlock(), None)))) == "sent"
    assert channel.channel_id == 2


def test_counters_of_a_subscription_that_is_made_anew_while_a_body_is_measured():
    def again():
        channel._subscriptions["tag"].__init__(BaseMessage, channel, CounterBlock(), True, seen.append)

    channel, seen = BaseChannel(1, CounterBlock(), None), []
    channel._subscriptions["tag"] = BaseSubscription(BaseMessage, channel, CounterBlock(), True, seen.append)
    event = delivery(Body(again))
    event.consumer_tag = "tag"
    channel.dispatch(event)
    assert [type(each) for each in seen] == [BaseMessage]


def test_consumer_tag_that_is_replaced_when_it_is_hashed():
    def replace():
        event.consumer_tag = None

    class Channel(BaseChannel):
        def handle(self, event):
            return False

    event = delivery()
    event.consumer_tag = Hashed(replace, "tag")
    assert Channel(1, CounterBlock(), None).dispatch(event) is False
    assert event.consumer_tag is None


def test_codecs_of_a_consumer_that_is_made_anew_while_they_decode():
    class Message(BaseMessage):
        def loads(self, *arguments):
            raise AssertionError("the consumer decodes")

    class Consumer(BaseConsumer):
        accept = on_message = None

    def decoder(data):
        consumer.__init__(Codecs(), None)
        return data

    codecs, seen = Codecs(), []
    codecs.decoders["text/own"] = decoder
    message = Message.from_delivery(Delivery("", "", Properties("text/own", "utf-8"), b"body"), None)
    own = message.loads
    consumer = Consumer(codecs, own)
    message.__class__ = type("Own", (Message,), {"loads": own})
    consumer.callbacks = [lambda body, message: seen.append(body)]
    del codecs
    consumer._receive(message)
    assert seen == [b"body"]


# --- codecs, messages to publish ----------------------------------------------------------------------------------


class Failing(Codecs):
    def encode_failed(self, error):
        raise error

    decode_failed = encode_failed


def with_json(codecs):
    """Codecs that have the only reference to their JSON."""

    def dumps(value):
        raise AssertionError("the short way is taken")

    json = JSON()
    json.register(complex, "complex", lambda value: [value.real, value.imag], lambda parts: forget() or complex(*parts))

    def forget():
        codecs.use_json(JSON(), dumps, dumps)

    codecs.use_json(json, dumps, dumps)
    codecs.encoders["json"] = ("application/json", "utf-8", dumps)
    codecs.decoders["application/json"] = dumps
    return forget


class Item:
    def __init__(self, act):
        self.act = act

    def __json__(self):
        self.act()
        return 1


def test_json_that_is_replaced_while_it_encodes():
    codecs = Failing()
    assert codecs.encode([Item(with_json(codecs)), 2j], "json")[2].startswith(b'[1, {"__type__"')


def test_json_that_is_replaced_while_it_decodes():
    codecs = Failing()
    with_json(codecs)
    text = b'[{"__type__": "complex", "__value__": [1, 2]}, {"__type__": "complex", "__value__": [3, 4]}]'
    assert codecs.loads(text, "application/json", "utf-8") == [1 + 2j, 3 + 4j]


@pytest.mark.parametrize("headers", [None, {"h": 1}])
def test_codecs_of_a_producer_that_is_made_anew_while_they_encode(headers):
    class Maker(BaseMaker):
        exchange, routing_key, serializer, compression = "", "orders", None, None

    def encoder(value):
        maker.__init__(Codecs())
        return b"encoded"

    codecs = Failing()
    codecs.encoders["own"] = ("text/own", "utf-8", encoder)
    maker = Maker(codecs)
    del codecs
    made = maker._make("place", "key", "body", 1, None, None, None, "own", headers, None, None, {})
    assert (made.body, made.properties.content_type, made.routing_key) == (b"encoded", "text/own", "key")


def test_types_that_are_registered_while_one_of_them_is_looked_up():
    class Meta(type):
        def __hash__(cls):
            json.register(frozenset, None, list)
            return 1

        def __eq__(cls, other):
            return cls is other

    class Own(metaclass=Meta):
        def __json__(self):
            return "own"

    json = JSON()
    assert json.dumps([Own(), Own()]) == '["own", "own"]'


def test_queues_that_are_forgotten_while_one_is_looked_up():
    def fill():
        for number in range(5000):
            naming.keys(f"queue {number}")

    class Name(str):
        def __hash__(self):
            fill()
            return str.__hash__(self)

    naming = PriorityNaming((0,))
    assert naming.keys(Name("orders")) == ("orders",)


# --- queues, routing ----------------------------------------------------------------------------------------------


def test_messages_of_a_queue_that_is_made_anew_while_a_body_is_measured():
    queue = BaseQueue(MessageQueue(), True)
    table = RoutingTable()
    path = PublishPath(
        BaseLock(threading.Lock, threading.get_ident), table, {"orders": queue}, {1: None}, set(), None, None
    )
    path.publish(1, delivery(Body(lambda: queue.__init__(MessageQueue(), True))))
    assert len(queue.messages) == 0


@pytest.mark.parametrize("settle", ["settle", "acknowledge", "settle_all"])
@pytest.mark.parametrize("close", ["close", "settle_up_to"])
def test_deliveries_that_are_all_settled_while_one_is_looked_up(settle, close):
    ledger, settled = UnackedDeliveries(), []

    def settle_the_rest():
        settled.extend(ledger.close() if close == "close" else ledger.settle_up_to(0))

    for _ in range(3):
        ledger.hand_over(delivery(), None, 1, "tag", False)
    tag = Hashed(settle_the_rest, 2)
    if settle == "acknowledge":
        assert ledger.acknowledge(tag) is False
    else:
        with pytest.raises(KeyError):
            getattr(ledger, settle)([tag] if settle == "settle_all" else tag)
    assert [each.delivery_tag for each in settled] == [1, 2, 3]
    assert len(ledger) == 0


@pytest.mark.parametrize("change", ["bind", "unbind"])
def test_targets_of_a_key_that_are_unbound_when_another_is_hashed(change):
    class Queue:
        unbinding = False

        def __hash__(self):
            if Queue.unbinding:
                Queue.unbinding = False
                table.unbind("exchange", "last", "a.b")
            return 1

        def __eq__(self, other):
            return self is other

    class Late(Queue):
        """Unbinds when the targets of a key are changed, which hash it last."""

        hashed = 0

        def __hash__(self):
            Late.hashed += 1
            Queue.unbinding = Late.hashed == Late.wanted
            return Queue.__hash__(self)

    for wanted in range(1, 8):  # each of the times that it is hashed
        table, queue = RoutingTable(), Late()
        Late.wanted, Late.hashed = 0, 0
        table.declare("exchange", "topic")
        if change == "unbind":
            table.bind("exchange", queue, "a.b")
        table.bind("exchange", "last", "a.b")
        Late.wanted, Late.hashed = wanted, 0
        getattr(table, change)("exchange", queue, "a.b")
        Late.wanted = 0
        assert set(table.route("exchange", "a.b")) <= ({queue, "last"} if change == "bind" else {"last"})


def test_exchange_that_is_replaced_while_it_is_compared():
    message = delivery()
    exchange = Text("")
    exchange.act = lambda: message.__init__("", "", Properties(), b"")
    message.__init__(exchange, "orders", Properties(), b"")
    del exchange
    assert RoutingTable().route_message(message, {"": "found", "orders": "found"}) == ("found",)


@pytest.mark.parametrize("name", ["exchange", "routing_key"])
def test_places_that_are_replaced_while_they_are_compared(name):
    properties = Properties()
    one, other = Delivery("", "", properties, b""), Delivery("", "", properties, b"")

    def replace():
        for each in (one, other):
            each.__init__("", "", properties, b"")

    for each in (one, other):
        text = Text("")
        text.act = replace
        each.__init__(text if name == "exchange" else "", text if name == "routing_key" else "", properties, b"")
        del text
    assert [mine for _, mine in group_alike([one, other], 1000)] == [[one], [other]]  # no longer alike when looked at


# --- locks --------------------------------------------------------------------------------------------------------


def test_condition_that_is_made_anew_while_it_waits():
    lock = BaseLock(threading.Lock, threading.get_ident)
    other = BaseLock(threading.Lock, threading.get_ident, lambda: None)
    condition = Condition(lock)
    condition.__init__(other)
    assert condition.lock is lock


# --- on an event loop ---------------------------------------------------------------------------------------------


class Loop:
    """An event loop that does something when it is asked whether it runs, and does not."""

    act = staticmethod(lambda: None)

    def is_running(self):
        self.act()
        return False


class Waits(BaseWaits):
    def __init__(self, loop):
        self.name = "the first"
        self.adopt(loop)

    def check_loop(self):
        raise RuntimeError(self.name)


def async_channel(loop):
    return BaseAsyncChannel(1, None, Waits(loop), CounterBlock(), None, None)


def test_waits_of_a_channel_that_is_made_anew_when_their_loop_is_asked():
    loop = Loop()
    channel = async_channel(loop)
    loop.act = lambda: channel.__init__(1, None, Waits(None), CounterBlock(), None, None)
    message = BaseAsyncMessage.from_delivery(delivery(), channel)
    with pytest.raises(RuntimeError, match="the first"):
        message._ack(False).send(None)


def test_waits_of_a_session_that_are_replaced_when_their_loop_is_asked():
    loop = Loop()
    session = BaseAsyncSession()
    session.waits = Waits(loop)
    loop.act = lambda: setattr(session, "waits", Waits(None))

    producer = BaseAsyncProducer(Failing())
    producer.exchange, producer.routing_key = Exchange(), "orders"
    producer._session = session
    made = producer._publish("body")
    with pytest.raises(RuntimeError, match="the first"):
        made.send(None)


def test_waits_of_messages_that_are_ready_when_their_loop_is_asked():
    loop = Loop()
    messages = BaseMessages(BaseAsyncMessage, CounterBlock(), SimpleNamespace(waiters=[]), None, False, False)
    messages._ready.append(delivery())
    messages._channel = async_channel(loop)
    loop.act = lambda: setattr(messages, "_channel", None)
    with pytest.raises(RuntimeError, match="the first"):
        messages.__anext__().send(None)
