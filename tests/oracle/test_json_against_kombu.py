"""Our JSON beside kombu's, and our reader beside the standard library's."""

import json
import math
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from kombu.utils import json as theirs

from kombulite._core import JSON

ours = JSON()

any_text = st.text(st.characters(exclude_categories=()), max_size=20)
zones = st.none() | st.builds(lambda m: timezone(timedelta(minutes=m)), st.integers(-1439, 1439))
plain = st.none() | st.booleans() | st.integers() | st.integers(-(2**200), 2**200) | st.floats() | any_text
leaves = (
    plain
    | st.datetimes(timezones=zones)
    | st.dates()
    | st.times(timezones=zones)
    | st.decimals()
    | st.uuids()
    | st.binary(max_size=20)
)
keys = any_text | st.sampled_from(["__type__", "__value__"]) | st.integers() | st.floats() | st.booleans() | st.none()


def nest(inner):
    dicts = st.dictionaries(keys, inner, max_size=4).filter(lambda value: value.keys() != {"__type__", "__value__"})
    return st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | dicts


values = st.recursive(leaves, nest, max_leaves=12)
plain_values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4), max_leaves=12
)


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, Decimal):
        return str(a) == str(b)
    if isinstance(a, (datetime, date, time)):
        return a.isoformat() == b.isoformat()
    return a == b


@settings(deadline=None, max_examples=300)
@given(values)
@example({1: "a", "1": "b", None: 1, False: 2, 1.5: 3, math.nan: 4})
@example({"__type__": "decimal", "__value__": 1, "more": 2})
def test_we_write_what_kombu_writes(value):
    text = theirs.dumps(value)
    assert ours.dumps(value) == text
    assert ours.dump_bytes(value) == text.encode("ascii")


@settings(deadline=None, max_examples=300)
@given(values)
def test_we_read_what_kombu_reads(value):
    text = theirs.dumps(value)
    expected = theirs.loads(text)
    assert same(ours.loads(text), expected)
    assert same(ours.loads(text.encode()), expected)


@settings(deadline=None, max_examples=300)
@given(values)
def test_kombu_reads_what_we_write(value):
    text = ours.dumps(value)
    assert same(theirs.loads(text), ours.loads(text))


class Dated(date):
    def __json__(self):
        return {"own": self.isoformat()}


class Blob(bytes):
    def __json__(self):
        return "own"


class PlainBlob(bytes):
    pass


class Bare:
    def __json__(self):
        return [Decimal(1), b"\xff"]


@pytest.mark.parametrize("value", [Dated(2026, 1, 1), Blob(b"x"), PlainBlob(b"x"), Bare()])
def test_objects_of_other_classes(value):
    assert ours.dumps([value]) == theirs.dumps([value])


@pytest.mark.parametrize("value", [set(), bytearray(b"x"), memoryview(b"x"), timedelta(1), object(), 1j])
def test_both_refuse(value):
    for dumps in (ours.dumps, theirs.dumps):
        with pytest.raises(TypeError):
            dumps({"k": value})


# --- the reader beside the standard library's


def verdict(read, data):
    try:
        return True, read(data)
    except RecursionError:
        raise
    except ValueError:
        return False, None


def agree(text):
    assume("__type__" not in text and "\\u00" not in text)
    accepted, expected = verdict(json.loads, text)
    found_accepted, found = verdict(ours.loads, text)
    assert found_accepted == accepted, text
    assert same(found, expected), text


def agree_on_bytes(data):
    assume(b"__type__" not in data and b"\\u00" not in data)
    accepted, expected = verdict(lambda data: json.loads(data.decode("utf-8")), data)
    found_accepted, found = verdict(ours.loads, data)
    assert found_accepted == accepted, data
    assert same(found, expected), data


SCRAPS = [
    *'[]{}",: \t\n\r\v\x00\x1f\x7f\\/eE+-.0123456789aé€😀\ud800\udc00\ufeff',
    "null", "true", "false", "NaN", "Infinity", "-Infinity", '"a"', '"":', "\\u", "\\ud83d", "\\ude00", "\\n", "\\x",
    "1e5", "1E400", "-0", "-0.0", "0.1", "1e-400", "9" * 25, "1.5", "18446744073709551616", "-9223372036854775809",
]  # fmt: skip
scraps = st.lists(st.sampled_from(SCRAPS), max_size=12).map("".join)


@st.composite
def mutated(draw):
    text = json.dumps(draw(plain_values), ensure_ascii=draw(st.booleans()))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(start + draw(st.integers(0, 2)), len(text))
        text = text[:start] + draw(st.sampled_from(["", *SCRAPS])) + text[end:]
    return text


@settings(deadline=None, max_examples=300)
@given(any_text)
def test_arbitrary_text(text):
    agree(text)


@settings(deadline=None, max_examples=600)
@given(scraps)
@example("-0")
@example("1e400")
@example('{"a": 1, "a": 2}')
@example('"\\ud83d\\ude00"')
@example('"\\ud83d\\ud83d"')
@example('"\\ud83dx"')
@example('"\\ude00"')
@example("0.1e1")
@example("1E5")
@example("123456789012345678901234567890.5")
@example("2.2250738585072014e-308")
@example("9007199254740993.0")
def test_scraps_of_json(text):
    agree(text)
    agree(f"[{text}]")
    agree(f'["{text}"]')
    agree(f'{{"{text}": {text}}}')


@settings(deadline=None, max_examples=400)
@given(mutated())
def test_mutated_json(text):
    agree(text)


@settings(deadline=None, max_examples=400)
@given(mutated(), st.integers(0), st.integers(0, 255), st.booleans())
def test_mutated_bytes(text, place, byte, insert):
    data = text.encode("utf-8", "surrogatepass")
    place %= len(data) + 1
    agree_on_bytes(data[:place] + bytes([byte]) + data[place + (not insert) :])


@settings(deadline=None, max_examples=400)
@given(st.floats(allow_nan=False), st.integers(1, 25), st.sampled_from("eEfg"))
def test_numbers_of_any_spelling(value, precision, form):
    agree(f"{value:.{precision}{form}}")
