"""AMQP field tables: every type of amqp-usage.md, section 10, both ways, and what is no table."""

import decimal
import struct
from collections import OrderedDict
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kombulite._core import MalformedValue, NotEncodable, ProtocolError, decode_table, encode_table

DEEPEST = 64


def table(entries):
    return struct.pack(">I", len(entries)) + entries


def field(value, name=b"k"):
    """A table with one entry: an encoded value with its tag."""
    return table(bytes([len(name)]) + name + value)


def long(data):
    return struct.pack(">I", len(data)) + data


class Colour(IntEnum):
    RED = 7


# What we write, byte for byte, and read back.
WRITTEN = [
    (True, b"t\x01"),
    (False, b"t\x00"),
    (0, b"I" + bytes(4)),
    (-1, b"I\xff\xff\xff\xff"),
    (2**31 - 1, b"I\x7f\xff\xff\xff"),
    (-(2**31) + 1, b"I\x80\x00\x00\x01"),
    (-(2**31), b"l\xff\xff\xff\xff\x80\x00\x00\x00"),  # as py-amqp has it
    (2**31, b"l\x00\x00\x00\x00\x80\x00\x00\x00"),
    (2**63 - 1, b"l\x7f" + b"\xff" * 7),
    (-(2**63), b"l\x80" + bytes(7)),
    (1.5, b"d" + struct.pack(">d", 1.5)),
    (-0.0, b"d" + struct.pack(">d", -0.0)),
    (float("inf"), b"d" + struct.pack(">d", float("inf"))),
    (5e-324, b"d" + struct.pack(">d", 5e-324)),
    (Decimal("1.50"), b"D\x02\x00\x00\x00\x96"),
    (Decimal("-1.50"), b"D\x02\xff\xff\xff\x6a"),
    (Decimal(2**31 - 1), b"D\x00\x7f\xff\xff\xff"),
    (Decimal(-(2**31)), b"D\x00\x80\x00\x00\x00"),
    (Decimal("1E-255"), b"D\xff\x00\x00\x00\x01"),
    ("", b"S" + long(b"")),
    ("é😀\x00", b"S" + long("é😀\x00".encode())),
    (b"\xff\xfe", b"x" + long(b"\xff\xfe")),
    (datetime(1970, 1, 1), b"T" + bytes(8)),
    (datetime(2026, 1, 2, 3, 4, 5), b"T" + struct.pack(">Q", 1767323045)),
    (datetime(9999, 12, 31, 23, 59, 59), b"T" + struct.pack(">Q", 253402300799)),
    (None, b"V"),
    ({}, b"F" + table(b"")),
    ({"a": {"b": None}}, b"F" + table(b"\x01aF" + table(b"\x01bV"))),
    ([], b"A" + long(b"")),
    ([1, [None], {"a": True}], b"A" + long(b"I\x00\x00\x00\x01A" + long(b"V") + b"F" + table(b"\x01at\x01"))),
]


@pytest.mark.parametrize(("value", "data"), WRITTEN, ids=repr)
def test_written_and_read_back(value, data):
    assert encode_table({"k": value}) == field(data)
    found = decode_table(field(data))["k"]
    assert found == value
    assert type(found) is type(value)
    assert str(found) == str(value)  # the sign of a zero, the places of a decimal


# What comes back as something else than was written.
@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"text", "text"),
        ((1, "a"), [1, "a"]),
        (Colour.RED, 7),
        (OrderedDict(a=1), {"a": 1}),
        (datetime(2026, 1, 2, 3, 4, 5, 999999), datetime(2026, 1, 2, 3, 4, 5)),
        (datetime(2026, 1, 2, 5, 4, 5, tzinfo=timezone(timedelta(hours=2))), datetime(2026, 1, 2, 3, 4, 5)),
        ("\udcff", b"\xff"),
        (Decimal("2E+3"), Decimal("2000")),
    ],
    ids=repr,
)
def test_written_and_read_as_its_like(value, found):
    again = decode_table(encode_table({"k": value}))["k"]
    assert (type(again), again) == (type(found), found)


# What others write.
@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"t\x02", True),
        (b"b\x80", -128),
        (b"b\xff", -1),
        (b"b\x7f", 127),
        (b"B\xff", 255),
        (b"s\x80\x00", -32768),
        (b"s\x7f\xff", 32767),
        (b"U\x80\x00", -32768),
        (b"u\xff\xff", 65535),
        (b"I\x80\x00\x00\x00", -(2**31)),
        (b"i\xff\xff\xff\xff", 2**32 - 1),
        (b"l" + b"\xff" * 8, -1),
        (b"L" + b"\xff" * 8, -1),
        (b"L\x80" + bytes(7), -(2**63)),
        (b"f" + struct.pack(">f", -0.5), -0.5),
        (b"f" + struct.pack(">f", float("inf")), float("inf")),
        (b"x" + long(b"text"), b"text"),
        (b"x" + long(b""), b""),
        (b"D\xff\x80\x00\x00\x00", Decimal(-(2**31)).scaleb(-255)),
        (b"T" + struct.pack(">Q", 253402300800), 253402300800),  # the year 10000, which Python lacks
        (b"T" + b"\xff" * 8, 2**64 - 1),
    ],
    ids=repr,
)
def test_read(data, value):
    found = decode_table(field(data))["k"]
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize("data", [b"d" + struct.pack(">d", float("nan")), b"f" + struct.pack(">f", float("nan"))])
def test_not_a_number(data):
    found = decode_table(field(data))["k"]
    assert found != found


def test_decimals_do_not_depend_on_the_context():
    with decimal.localcontext(decimal.Context(prec=3, traps=[decimal.Inexact, decimal.Subnormal], Emin=-10, Emax=10)):
        found = decode_table(field(b"D\xff\x7f\xff\xff\xff"))["k"]
        assert found.as_tuple() == (0, tuple(map(int, str(2**31 - 1))), -255)
        assert encode_table({"k": found}) == field(b"D\xff\x7f\xff\xff\xff")


def test_names():
    names = {"": 1, "é": 2, "n" * 255: 3, "\udcff": 4}
    assert decode_table(encode_table(names)) == names
    assert encode_table({b"k": None}) == encode_table({"k": None})


def test_of_two_fields_of_one_name_the_last_one_counts():
    assert decode_table(table(b"\x01kt\x00\x01kt\x01")) == {"k": True}


def test_any_mapping_is_a_table():
    assert encode_table(MappingProxyType({"k": None})) == field(b"V")


@pytest.mark.parametrize(
    "value",
    [
        2**63,
        -(2**63) - 1,
        10**5000,
        Decimal(2**31),
        Decimal(-(2**31) - 1),
        Decimal("1E-256"),
        Decimal("1E+10"),
        Decimal("1E+999999"),
        Decimal("NaN"),
        Decimal("-Infinity"),
        datetime(1969, 12, 31, 23, 59, 59),
        datetime(1, 1, 1, tzinfo=timezone.utc),
        date(2026, 1, 2),
        print,
        {1, 2},
        1j,
        bytearray(b"x"),
        "\ud800",
        {1: 2},
        {None: 2},
        {"n" * 256: 1},
        {"é" * 128: 1},
        {"\ud800": 1},
    ],
    ids=lambda value: f"{type(value).__name__} {value!r:.40}" if not isinstance(value, int) else "int",
)
def test_not_encodable(value):
    for nested in (value, [value], {"a": [{"b": value}]}):
        with pytest.raises(NotEncodable):
            encode_table({"k": nested})


@pytest.mark.parametrize("value", [None, [], "text", 5, [("k", 1)]])
def test_what_is_no_table_is_not_encoded(value):
    with pytest.raises(NotEncodable, match="a table is a dict"):
        encode_table(value)


# --- nesting


def nested(depth, innermost=None):
    for _ in range(depth):
        innermost = {"k": innermost}
    return innermost


def nested_arrays(depth):
    value = None
    for _ in range(depth):
        value = [value]
    return value


def test_deepest_table():
    value = nested(DEEPEST + 1)  # the outermost is no nested one
    assert decode_table(encode_table(value)) == value
    array = {"k": nested_arrays(DEEPEST)}
    assert decode_table(encode_table(array)) == array


@pytest.mark.parametrize(
    "value", [nested(DEEPEST + 2), nested(5000), {"k": nested_arrays(DEEPEST + 1)}, {"k": nested_arrays(5000)}],
    ids=["tables", "many tables", "arrays", "many arrays"],
)  # fmt: skip
def test_nested_too_deep_to_write(value):
    with pytest.raises(NotEncodable, match="nested more than 64 deep"):
        encode_table(value)


@pytest.mark.parametrize("depth", [DEEPEST + 1, 5000])
@pytest.mark.parametrize("kind", ["tables", "arrays"])
def test_nested_too_deep_to_read(kind, depth):
    data = b"V"
    for _ in range(depth):
        data = b"F" + table(b"\x01k" + data) if kind == "tables" else b"A" + long(data)
    with pytest.raises(MalformedValue, match="nested more than 64 deep"):
        decode_table(field(data))


def test_cycles():
    itself = {}
    itself["a"] = itself["b"] = itself
    around = []
    around.append({"x": around, "y": around})
    for value in (itself, {"k": around}):
        with pytest.raises(NotEncodable, match="nested more than 64 deep"):
            encode_table(value)


# --- what is no table

ALL_KINDS = table(
    b"".join(b"\x01k" + data for _, data in WRITTEN)
    + b"\x01kb\x01\x01kB\x01\x01ks\x00\x01\x01kU\x00\x01\x01ku\x00\x01\x01ki\x00\x00\x00\x01\x01kf\x00\x00\x00\x00"
    + b"\x01kx"
    + long(b"abc")
)


def test_every_cut_is_malformed():
    assert decode_table(ALL_KINDS) == {"k": b"abc"}
    for cut in range(len(ALL_KINDS)):
        with pytest.raises(MalformedValue):
            decode_table(ALL_KINDS[:cut])


def test_every_cut_inside_the_length_is_malformed_or_shorter():
    for cut in range(len(ALL_KINDS) - 4):
        try:
            found = decode_table(table(ALL_KINDS[4 : 4 + cut]))
        except MalformedValue:
            continue
        assert found.keys() <= {"k"}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "4 bytes are announced"),
        (b"\xff\xff\xff\xff", "4294967295 bytes are announced, and 0 are there"),
        (table(b"") + b"\x00", "1 bytes follow"),
        (field(b"?"), "unknown type b'[?]'"),
        (field(b"\x00"), "unknown type"),
        (field(b""), "1 bytes are announced"),
        (table(b"\x05k"), "5 bytes are announced"),
        (field(b"S\xff\xff\xff\xff"), "announced"),
        (field(b"x\x00\x00\x00\x02a"), "announced"),
        (field(b"F\x7f\xff\xff\xff"), "announced"),
        (field(b"A\x00\x00\x00\x01"), "announced"),
        (field(b"A" + long(b"I\x00\x00\x00")) + b"\x00", "announced"),  # the array ends inside its value
    ],
)
def test_malformed(data, why):
    with pytest.raises(MalformedValue, match=why) as caught:
        decode_table(data)
    assert isinstance(caught.value, ProtocolError)
    assert isinstance(caught.value, ValueError)
    assert caught.value.reply_code == 502


@pytest.mark.parametrize("data", [None, "text", bytearray(4), memoryview(bytes(4))])
def test_tables_are_bytes(data):
    with pytest.raises(TypeError):
        decode_table(data)


# --- at random

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31)).map(lambda moment: moment.replace(microsecond=0))
    | st.builds(lambda unscaled, scale: Decimal(unscaled).scaleb(-scale), st.integers(-(2**31), 2**31 - 1),
                st.integers(0, 255))
)  # fmt: skip
names = st.text(max_size=20)
tables = st.dictionaries(
    names,
    st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=10
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=200)
@given(tables)
def test_any_table_comes_back(value):
    assert decode_table(encode_table(value)) == value


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60))
def test_random_bytes_raise_nothing_else(data):
    for candidate in (data, table(data), field(data)):
        try:
            found = decode_table(candidate)
        except MalformedValue:
            continue
        assert isinstance(found, dict)
