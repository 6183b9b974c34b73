"""What travels, and the compiled core as a whole."""

import pickle
import subprocess
import sys
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pkgutil import iter_modules

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kombulite._core
from kombulite._core import NOT_DECODED, BaseMessage, Delivery, Properties

NAMES = [
    "content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to",
    "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id",
]  # fmt: skip
FULL = {name: f"value of {name}" for name in NAMES} | {"headers": {"h": 1}, "extra": {"x-own": 2}}

values = st.none() | st.integers() | st.text() | st.lists(st.integers())
fields = st.dictionaries(st.sampled_from([*NAMES, "extra"]), values).map(
    lambda fields: fields | {name: {"k": fields[name]} for name in ("headers", "extra") if name in fields}
)


# --- properties


def test_properties_are_none_unless_set():
    assert all(getattr(Properties(), name) is None for name in [*NAMES, "extra"])


def test_properties_come_in_the_order_of_amqp():
    properties = Properties(*range(15))
    assert [getattr(properties, name) for name in [*NAMES, "extra"]] == list(range(15))


def test_properties_are_fixed():
    for name in [*NAMES, "extra"]:
        with pytest.raises(AttributeError):
            setattr(Properties(), name, 1)


def test_unknown_property():
    with pytest.raises(TypeError):
        Properties(nope=1)
    with pytest.raises(TypeError):
        Properties().replace(nope=1)


def test_as_dict_holds_what_is_set():
    assert Properties().as_dict() == {}
    assert Properties(priority=0, reply_to="", extra={"x": None}).as_dict() == {
        "priority": 0,
        "reply_to": "",
        "x": None,
    }


def test_as_dict_is_the_callers_own():
    properties = Properties(**FULL)
    properties.as_dict().clear()
    assert properties.as_dict() == {name: value for name, value in FULL.items() if name != "extra"} | {"x-own": 2}


def test_replace_makes_a_copy():
    properties = Properties(**FULL)
    changed = properties.replace(priority=None, reply_to="new")
    assert (changed.priority, changed.reply_to, changed.app_id) == (None, "new", FULL["app_id"])
    assert properties == Properties(**FULL)


@pytest.mark.parametrize("name", [*NAMES, "extra"])
def test_properties_differ_in_each_field(name):
    assert Properties(**FULL) == Properties(**FULL)
    assert Properties(**FULL) != Properties(**FULL).replace(**{name: None})


def test_properties_equal_nothing_else():
    assert Properties() != {}
    assert Properties() != None  # noqa: E711
    assert (Properties() == ()) is False


def test_properties_have_no_hash():
    with pytest.raises(TypeError):
        hash(Properties())


@settings(deadline=None, max_examples=100)
@given(fields)
def test_properties_pickle_and_rebuild(fields):
    properties = Properties(**fields)
    assert pickle.loads(pickle.dumps(properties)) == properties == properties.replace()
    assert all(getattr(properties, name) == fields.get(name) for name in [*NAMES, "extra"])


def test_properties_say_what_is_set():
    assert repr(Properties(priority=3, extra={"x": "y"})) == "Properties(priority=3, x='y')"


# --- delivery


def delivery():
    made = Delivery("ex", "rk", Properties(priority=1), b"body")
    made.consumer_tag, made.delivery_tag, made.message_count = "c", 7, 3
    made.expires_at, made.position, made.channel, made.redelivered = 1.5, 2**63, 9, True
    return made


BROKER_FIELDS = ["consumer_tag", "delivery_tag", "message_count", "expires_at", "position", "channel", "redelivered"]


def test_new_delivery():
    made = Delivery("ex", "rk", Properties(), "text")
    assert (made.exchange, made.routing_key, made.properties, made.body) == ("ex", "rk", Properties(), "text")
    assert [getattr(made, name) for name in BROKER_FIELDS] == [None, None, None, 0, 0, 0, False]


@pytest.mark.parametrize("name", ["exchange", "routing_key", "properties", "body"])
def test_what_the_publisher_said_is_fixed(name):
    with pytest.raises(AttributeError):
        setattr(delivery(), name, None)


@pytest.mark.parametrize("properties", [None, {}, "x"])
def test_delivery_needs_properties(properties):
    with pytest.raises(TypeError):
        Delivery("ex", "rk", properties, b"")


def test_copy_is_as_published():
    original = delivery()
    made = original.copy()
    assert (made.exchange, made.routing_key, made.body) == ("ex", "rk", b"body")
    assert made.properties is original.properties
    assert [getattr(made, name) for name in BROKER_FIELDS] == [None, None, None, 0, 0, 0, False]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_delivery_pickles_whole(protocol):
    original = delivery()
    made = pickle.loads(pickle.dumps(original, protocol))
    for name in ["exchange", "routing_key", "properties", "body", *BROKER_FIELDS]:
        assert getattr(made, name) == getattr(original, name)


def test_delivery_tells_its_way_but_not_its_body():
    text = repr(delivery())
    assert text == "<Delivery 7 exchange='ex' routing_key='rk' 4 in body>"


def test_ten_thousand_deliveries_keep_to_themselves():
    made = [Delivery("ex", str(number), Properties(), b"%d" % number) for number in range(10_000)]
    del made[::2]
    made += [Delivery("ex", str(number), Properties(), b"%d" % number) for number in range(10_000)]
    assert all(one.routing_key.encode() == one.body and one.delivery_tag is None for one in made)


# --- received


class Channel:
    def __init__(self):
        self.calls = []

    def basic_ack(self, delivery_tag, multiple):
        self.calls.append(("ack", delivery_tag, multiple))

    def basic_reject(self, delivery_tag, requeue):
        self.calls.append(("reject", delivery_tag, requeue))


class Refused(Exception):
    pass


class Message(BaseMessage):
    decoded = 0

    def loads(self, body, content_type, content_encoding, accept):
        self.decoded += 1
        return body, content_type, content_encoding, accept

    def inflate(self, compression):
        self.body = (compression, self.body)

    def refuse(self, state):
        raise Refused(state)


def received(properties=None, channel=None):
    made = Delivery("ex", "rk", properties or Properties("type", "encoding", {"h": 1}, reply_to="r"), b"body")
    made.delivery_tag = 7
    return Message.from_delivery(made, Channel() if channel is None else channel)


def test_received_takes_over_the_delivery():
    message = received()
    assert (message.body, message.content_type, message.content_encoding) == (b"body", "type", "encoding")
    assert (message.delivery_tag, message.headers, message.properties) == (7, {"h": 1}, {"reply_to": "r"})
    assert (message.errors, message.accept, message.no_ack, message.acknowledged) == ([], None, False, False)


def test_its_dicts_are_its_own():
    properties = Properties(headers={"h": 1}, extra={"x": 1})
    message = received(properties)
    for own in (message.headers, message.properties, message.delivery_info):
        own["added"] = 1
    assert properties == Properties(headers={"h": 1}, extra={"x": 1})
    other = received(properties)
    assert "added" not in {**other.headers, **other.properties, **other.delivery_info}
    assert message.headers["added"] == message.properties["added"] == message.delivery_info["added"] == 1


def test_its_dicts_can_be_set():
    message = received()
    message.headers, message.properties, message.delivery_info = {"a": 1}, {"b": 2}, {"c": 3}
    assert (message.headers, message.properties, message.delivery_info) == ({"a": 1}, {"b": 2}, {"c": 3})


def test_delivery_info_of_a_consumer_and_of_a_get():
    made = delivery()
    common = {"delivery_tag": 7, "redelivered": True, "exchange": "ex", "routing_key": "rk"}
    assert Message.from_delivery(made, None).delivery_info == {**common, "consumer_tag": "c"}
    made.consumer_tag = None
    assert Message.from_delivery(made, None).delivery_info == {**common, "message_count": 3}


def test_one_made_by_hand_is_empty():
    message = Message()
    assert (message.headers, message.properties, message.delivery_info, message.errors) == ({}, {}, {}, [])
    assert message._decoded is NOT_DECODED


def test_body_is_decoded_once():
    message = received()
    assert message.payload == message.decode() == (b"body", "type", "encoding", None)
    assert message.decoded == 1


def test_unpack_sets_what_is_accepted():
    assert received().unpack({"type"}) == (b"body", "type", "encoding", {"type"})


def test_errors_are_raised_instead_of_decoding():
    message = received()
    message.raise_errors()
    for error in (ValueError("first"), ValueError("second")):
        message.errors.append((ValueError, error, None))
    for call in (message.raise_errors, lambda: message.unpack(None)):
        with pytest.raises(ValueError, match="first"):
            call()
    assert message.decoded == 0


def test_compressed_body_is_inflated_at_once():
    assert received(Properties(headers={"compression": "zip"})).body == ("zip", b"body")


@pytest.mark.parametrize(
    ("settle", "call", "state"),
    [
        (lambda message: message.ack(), ("ack", 7, False), "ACK"),
        (lambda message: message.ack(multiple=True), ("ack", 7, True), "ACK"),
        (lambda message: message.reject(), ("reject", 7, False), "REJECTED"),
        (lambda message: message.reject(requeue=True), ("reject", 7, True), "REJECTED"),
        (lambda message: message.requeue(), ("reject", 7, True), "REQUEUED"),
    ],
)
def test_settled_once(settle, call, state):
    message = received()
    settle(message)
    assert message.acknowledged is True
    for again in (message.ack, message.reject, message.requeue):
        with pytest.raises(Refused):
            again()
    assert message.channel.calls == [call]
    assert message._state == state


def test_failed_settling_can_be_tried_again():
    class Broken(Channel):
        def basic_ack(self, delivery_tag, multiple):
            raise OSError

    message = received(channel=Broken())
    with pytest.raises(OSError):
        message.ack()
    assert message.acknowledged is False
    message.reject()
    assert message.acknowledged is True


def test_no_ack_settles_without_the_channel():
    message = received()
    message.no_ack = True
    message.ack()
    assert (message.acknowledged, message.channel.calls) == (True, [])


def test_without_a_channel_nothing_can_be_settled():
    message = Message()
    for settle, state in ((message.ack, "ACK"), (message.reject, "REJECTED"), (message.requeue, "REQUEUED")):
        with pytest.raises(Refused, match=state):
            settle()


def test_base_leaves_the_rest_to_the_facade():
    message = BaseMessage()
    message.body = b""
    for call in (message.decode, message.ack, lambda: message.inflate("x")):
        with pytest.raises(NotImplementedError):
            call()


# --- the core as a whole

MODULES = sorted(module.name for module in iter_modules(kombulite._core.__path__))


def test_core_has_modules():
    assert {"envelope", "message", "priority", "queueing", "routing", "serialization"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_module_is_compiled(name):
    module = import_module(f"kombulite._core.{name}")
    assert module.__file__.endswith(tuple(EXTENSION_SUFFIXES))


def test_door_names_what_it_has():
    assert all(hasattr(kombulite._core, name) for name in kombulite._core.__all__)


ALONE = """
import sys, types
package = types.ModuleType("kombulite")
package.__path__ = [sys.argv[1]]
sys.modules["kombulite"] = package
import kombulite._core
core = kombulite._core
codec = core.JSON()
assert codec.loads(codec.dumps({"a": b"x"})) == {"a": b"x"}
data = core.EnvelopeTemplate(codec, "", "q", core.Properties()).encode(b"body", core.TagSequence().next())
assert core.decode_envelope(codec, data).body == b"body"
print(*(name for name in sys.modules if name.split(".")[0] in ("kombulite", "kombu")))
"""


def test_core_loads_without_the_facade():
    (path,) = kombulite.__path__
    done = subprocess.run([sys.executable, "-c", ALONE, path], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    loaded = set(done.stdout.split())
    assert {"kombulite", "kombulite._core", "kombulite._core.envelope"} <= loaded
    assert [name for name in loaded if name != "kombulite" and not name.startswith("kombulite._core")] == []
