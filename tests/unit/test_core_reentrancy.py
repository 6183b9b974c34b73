"""Code that the compiled core runs (codecs, mappings, finalizers) comes back to it, or changes what it reads."""

from __future__ import annotations

import codecs
from collections.abc import Mapping

import pytest

from kombulite import _core
from kombulite._core import (
    JSON,
    AckWatermark,
    BaseMessage,
    BaseSubscription,
    ConsumerRing,
    ConsumerSlot,
    CounterBlock,
    Delivery,
    FrameDecoder,
    FrameEncoder,
    MessageQueue,
    Properties,
    RoutingTable,
    UnackedDeliveries,
    declaration_key,
    group_alike,
    make_properties,
)


def delivery(body=b"body", **properties):
    return Delivery("", "orders", Properties(**properties), body)


def decoded(encoder, decoder, *deliveries):
    """What a decoder makes of messages, as a broker would send them."""
    decoder.open(1)
    for each in deliveries:
        frames = encoder.publish(1, each)
        size = int.from_bytes(frames[3:7], "big")
        # basic.deliver in the place of basic.publish: a consumer tag, a delivery tag, a flag, exchange, routing key.
        method = b"\x00\x3c\x00\x3c" + b"\x01t" + (1).to_bytes(8, "big") + b"\x00" + b"\x00" + b"\x06orders"
        decoder.receive_data(b"\x01\x00\x01" + len(method).to_bytes(4, "big") + method + b"\xce" + frames[8 + size :])


# --- frames -------------------------------------------------------------------------------------------------------


def test_a_codec_may_feed_the_decoder_that_called_it():
    encoder, decoder = FrameEncoder(), FrameDecoder()
    nested = []

    def search(name):
        if name != "kombulite_reentrant":
            return None

        def decode(data, errors="strict"):
            if not nested:
                nested.append(decoder.next_event())
                decoder.receive_data(b"\x08\x00\x00\x00\x00\x00\x00\xce" * 100_000)  # its memory moves
            return bytes(data).decode("latin-1"), len(data)

        return codecs.CodecInfo(codecs.latin_1_encode, decode, name=name)

    codecs.register(search)
    try:
        first = delivery(b"first" * 100, content_encoding="kombulite_reentrant")
        decoded(encoder, decoder, first, delivery(b"second", content_encoding="utf-8"))
        assert decoder.next_event().body == "first" * 100
        assert nested[0].body == "second"
        assert decoder.next_event() is None
    finally:
        codecs.unregister(search)


def test_headers_that_publish_while_they_are_encoded_leave_each_message_its_own_frames():
    encoder = FrameEncoder()
    nested = []

    class Headers(Mapping):
        def __getitem__(self, key):
            return {"a": 1}[key]

        def __iter__(self):
            nested.append(encoder.publish(2, Delivery("other", "place", Properties(), b"nested")))
            return iter(["a"])

        def __len__(self):
            return 1

    message = Delivery("exchange", "key", Properties(headers=Headers()), b"outer")
    frames = encoder.publish(1, message)
    assert frames == FrameEncoder().publish(1, Delivery("exchange", "key", Properties(headers={"a": 1}), b"outer"))
    assert nested[0] == FrameEncoder().publish(2, Delivery("other", "place", Properties(), b"nested"))


def test_headers_that_publish_when_they_go_leave_the_next_message_its_own_frames():
    encoder = FrameEncoder()
    nested = []

    class Last(int):
        def __del__(self):
            nested.append(encoder.publish(2, Delivery("other", "place", Properties(), b"nested")))

    encoder.publish(1, Delivery("first", "key", Properties(headers={"a": Last(1)}), b"first"))
    frames = encoder.publish(1, Delivery("second", "key", Properties(), b"second"))
    assert frames == FrameEncoder().publish(1, Delivery("second", "key", Properties(), b"second"))
    assert nested == [FrameEncoder().publish(2, Delivery("other", "place", Properties(), b"nested"))]


def test_a_message_that_is_made_anew_while_it_is_encoded_keeps_the_body_that_was_read():
    class Headers(Mapping):
        def __getitem__(self, key):
            raise KeyError(key)

        def __iter__(self):
            message.__init__("", "orders", properties, b"")
            return iter(())

        def __len__(self):
            return 0

    properties = Properties(headers=Headers())
    body = bytes(bytearray(b"x" * 100_000))
    message = Delivery("", "orders", properties, body)
    del body
    assert b"x" * 100_000 in FrameEncoder().publish(1, message)


def test_a_decoder_reads_from_its_own_room():
    decoder = FrameDecoder()
    decoder.receive_data(decoder)  # room full of what was there: no frames
    with pytest.raises(_core.ProtocolError):
        while decoder.next_event() is None:
            pass


# --- JSON ---------------------------------------------------------------------------------------------------------


def test_a_list_that_grows_while_it_is_written_is_refused():
    class Item:
        def __json__(self):
            items.append(Item())
            return 1

    items = [Item()]
    with pytest.raises(RuntimeError, match="changed size"):
        JSON().dumps(items)


def test_a_dict_whose_keys_are_put_in_again_while_it_is_written_is_refused():
    class Item:
        def __json__(self):
            key = next(iter(items))
            items[key] = items.pop(key)
            return 1

    items = {"a": Item(), "b": Item()}
    with pytest.raises(RuntimeError, match="changed"):
        JSON().dumps(items)


# --- what contains itself -----------------------------------------------------------------------------------------


def nested_in_itself():
    value = {}
    value["again"] = [value]
    return value


def test_headers_within_themselves_are_refused():
    with pytest.raises(RecursionError):
        make_properties(None, None, nested_in_itself(), 2, None, {})


def test_binding_arguments_within_themselves_are_refused():
    table = RoutingTable()
    table.declare("exchange", "headers")
    with pytest.raises(RecursionError):
        table.bind("exchange", "queue", "", nested_in_itself())


def test_declarations_within_themselves_are_refused():
    class Entity:
        attrs = (("arguments", None),)
        arguments = nested_in_itself()

    with pytest.raises(RecursionError):
        declaration_key(Entity())


# --- queues -------------------------------------------------------------------------------------------------------


def test_a_body_that_changes_its_length_leaves_the_count_right_and_is_not_lost():
    queue, body = MessageQueue(), bytearray(b"12345")
    queue.add(delivery(body))
    body.extend(b"67890")
    assert queue.pop().body is body
    assert queue.size == 0


def test_a_body_that_was_released_is_not_lost():
    queue, body = MessageQueue(), memoryview(b"12345")
    queue.add(delivery(body))
    body.release()
    found = queue.pop()
    assert found.body is body
    queue.put_back(found)
    assert queue.size == 5
    assert queue.pop().body is body


def test_a_comparison_that_fails_settles_nothing():
    class Tag(int):
        def __ge__(self, other):  # 2 <= tag
            if other == 2:
                raise ZeroDivisionError
            return True

        __hash__ = int.__hash__

    ledger = UnackedDeliveries()
    for _ in range(3):
        ledger.hand_over(delivery(), None, 1, "tag", False)
    with pytest.raises(ZeroDivisionError):
        ledger.settle_up_to(Tag(3))
    assert len(ledger) == 3


def test_a_tag_that_is_named_twice_is_settled_once_and_not_lost():
    ledger = UnackedDeliveries()
    ledger.hand_over(delivery(b"one"), None, 1, "tag", False)
    assert [each.body for each in ledger.settle_all([1, 1])] == [b"one"]
    assert len(ledger) == 0


def test_consumers_that_say_they_are_equal_are_not_taken_for_each_other():
    class Equal(ConsumerSlot):
        def __eq__(self, other):
            return True

        __hash__ = None

    rota, queue = ConsumerRing(), MessageQueue()
    first, second = (Equal(queue, UnackedDeliveries(), 1, tag, True) for tag in ("first", "second"))
    rota.add(first)
    rota.add(second)
    rota.remove(second)
    queue.add(delivery())
    assert rota.next(0).consumer_tag == "first"


def test_no_tags_are_completed_by_none():
    assert AckWatermark().completes([]) is False


def test_none_among_messages_is_refused():
    with pytest.raises(TypeError):
        group_alike([None], 100)
    with pytest.raises(TypeError):
        group_alike([delivery(), None], 100)


# --- messages -----------------------------------------------------------------------------------------------------


def test_a_subclass_whose_new_returns_something_else_is_refused():
    class Message(BaseMessage):
        def __new__(cls, *arguments):
            return "no message"

    with pytest.raises(TypeError):
        Message.from_delivery(delivery(), None)


def test_messages_are_made_of_a_subclass_of_received():
    with pytest.raises(TypeError, match="BaseMessage"):
        BaseSubscription(int, None, CounterBlock(), True, print)


def test_errors_that_were_emptied_are_an_error_and_no_crash():
    class Message(BaseMessage):
        pass

    message = Message.from_delivery(delivery(), None)
    message.errors.append(())
    with pytest.raises(IndexError):
        message.raise_errors()
