"""Bodies in the encoding of AMQP 1.0: what is read, and what is refused."""

from __future__ import annotations

import math
import pickle
import tracemalloc
import uuid
from datetime import datetime, timezone

import pytest

from kombulite import Message
from kombulite.exceptions import ContentDisallowed, DecodeError
from kombulite.utils.amqp10 import read_body
from tests.unit.test_frames import message, only, short

VALUE, SEQUENCE, DATA = "005377", "005376", "005375"


def read(sections):
    return read_body(bytes.fromhex(sections)).value


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        ("40", None), ("41", True), ("42", False), ("5600", False), ("5601", True),
        ("43", 0), ("44", 0), ("50ff", 255), ("51ff", -1), ("52ff", 255), ("53ff", 255), ("54ff", -1), ("55ff", -1),
        ("60ffff", 65535), ("61ffff", -1), ("70ffffffff", 2**32 - 1), ("71ffffffff", -1),
        ("80ffffffffffffffff", 2**64 - 1), ("81ffffffffffffffff", -1), ("723fc00000", 1.5),
        ("82bff8000000000000", -1.5),
        ("730001f600", "😀"), ("83ffffffffffffffff", datetime(1969, 12, 31, 23, 59, 59, 999000, timezone.utc)),
        ("98" + "00" * 15 + "07", uuid.UUID(int=7)),
        ("a00200ff", b"\x00\xff"), ("b00000000100", b"\x00"), ("a102c3a9", "é"), ("b10000000161", "a"),
        ("a3017a", "z"), ("b3000000017a", "z"),
        ("45", []), ("c0050340415407", [None, True, 7]), ("d0000000080000000245c00100", [[], []]),
        ("c10100", {}), ("c10904a1016b5401540245", {"k": 1, 2: []}),
        ("d10000000800000002a1016140", {"a": None}),
        ("e00402540102", [1, 2]), ("f00000000700000002540102", [1, 2]),
        ("e00a02c00301540103015402", [[1], [2]]),
    ],
)  # fmt: skip
def test_values(encoded, value):
    found = read(VALUE + encoded)
    assert found == value
    assert type(found) is type(value)


def test_numbers_that_are_none():
    assert math.isnan(read(VALUE + "727fc00000"))


def test_sections():
    assert read(SEQUENCE + "c003015401" + SEQUENCE + "45" + SEQUENCE + "c003015402") == [1, 2]
    assert read_body(bytes.fromhex(DATA + "a00161" + DATA + "b00000000162")) == (True, b"ab")
    assert read("00800000000000000077" + "41") is True


@pytest.mark.parametrize(
    "sections",
    [
        "", "00", "0053", VALUE, "5377" + "40", "00a30176" + "45",  # no section, or not the whole of one
        VALUE + "40" + VALUE + "40", VALUE + "40" + "00", VALUE + "40" + DATA + "a000",  # more than one
        SEQUENCE + "40", DATA + "a100", "005378c10100", "00537040",  # wrong values, and wrong sections
        VALUE + "00a30161" + "40", VALUE + "7400000000", VALUE + "84" + "00" * 8, VALUE + "94" + "00" * 16,  # no type
        VALUE + "ff", VALUE + "d200000000", VALUE + "5602", VALUE + "7300110000", VALUE + "730000d800",
        VALUE + "83" + "7f" + "ff" * 7, VALUE + "a101ff", VALUE + "a301ff", VALUE + "a00561", VALUE + "b1ffffffff61",
        VALUE + "c00000", VALUE + "c00401" + "5401", VALUE + "c002015401", VALUE + "c0ff01" + "40",
        VALUE + "c1020140", VALUE + "c103024540", VALUE + "c1050440404040",  # maps with bad keys
        VALUE + "e0020340", VALUE + "f000000005ffffffff40", VALUE + "f0ffffffffffffffff40",  # of no octets
    ],
)  # fmt: skip
def test_what_is_malformed_or_has_no_type_here_is_refused(sections):
    with pytest.raises(ValueError, match=r"\w"):
        read(sections)


def test_nesting_is_bounded():
    def nested(depth):
        body = b"\x45"
        for _ in range(depth):
            body = b"\xd0" + (len(body) + 4).to_bytes(4, "big") + b"\x00\x00\x00\x01" + body
        return bytes.fromhex(VALUE) + body

    assert read_body(nested(64)).value
    with pytest.raises(ValueError, match="nested deeper than 64"):
        read_body(nested(65))
    with pytest.raises(ValueError, match="nested"):
        read_body(nested(1000))


def test_sizes_are_not_paid_for_before_they_come():
    tracemalloc.start()
    try:
        for encoded in ("d07fffffff7fffffff40", "f07fffffff7fffffff40", "b07fffffff40", "f000000005ffffffff40"):
            with pytest.raises(ValueError, match=r"\w"):
                read(VALUE + encoded)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


# --- messages


def received(data, content_type=None, headers=b"", kind="amqp-1.0"):
    """Return a message with a ``type`` as RabbitMQ delivers it; ``headers``: a table without its length."""
    table = len(headers).to_bytes(4, "big") + headers
    flags, first = (b"\xa0\x20", short(content_type)) if content_type else (b"\x20\x20", b"")
    return Message.from_delivery(only(message(data, flags + first + table + short(kind))), None)


def test_a_message_has_the_value():
    found = received(bytes.fromhex(VALUE + "a10568656c6c6f"))
    assert found.payload == found.unpack({"application/json"}) == "hello"
    assert found.body == bytes.fromhex(VALUE + "a10568656c6c6f")
    assert received(b"hello", kind="amqp-2.0").payload == "hello"


def test_a_message_that_cannot_be_read_has_no_payload():
    found = received(b"hello")
    for read in (lambda: found.payload, found.decode, lambda: found.unpack(None)):
        with pytest.raises(DecodeError, match=r"AMQP 1\.0"):
            read()


def test_the_content_type_is_about_data():
    data = bytes.fromhex(DATA + "a0025b31" + DATA + "a0015d")
    assert received(data, "application/json").payload == [1]
    assert received(data).payload == "[1]"
    with pytest.raises(ContentDisallowed):
        received(data, "application/x-python-serialize").payload  # noqa: B018
    assert received(bytes.fromhex(VALUE + "a1035b315d"), "application/x-python-serialize").payload == "[1]"


def test_a_header_that_names_a_compression_does_not_change_a_value():
    found = received(bytes.fromhex(VALUE + "a10161"), headers=short("compression") + b"S\0\0\0\4gzip")
    assert found.payload == "a"
    assert not found.errors


def test_a_pickled_message_has_the_value():
    found = received(bytes.fromhex(VALUE + "a10161"))
    assert pickle.loads(pickle.dumps(found)).payload == "a"
