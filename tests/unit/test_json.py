"""The JSON codec of the compiled core."""

import json
import math
import sys
import types
from collections import OrderedDict, UserString, namedtuple
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from threading import Barrier, Thread
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kombulite._core import JSON, InvalidValue, UnknownType
from kombulite.utils import json as facade

DEEP = 100_000

codec = JSON()

TYPED = [
    (datetime(2026, 1, 2, 3, 4, 5, 678), "datetime", "2026-01-02T03:04:05.000678"),
    (datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=-3))), "datetime", "2026-01-02T00:00:00-03:00"),
    (date(2026, 1, 2), "date", "2026-01-02"),
    (time(3, 4, 5), "time", "03:04:05"),
    (Decimal("1.50"), "decimal", "1.50"),
    (UUID(int=1), "uuid", {"hex": "00000000000000000000000000000001"}),
    (b"text \xc3\xa9", "bytes", "text é"),
    (b"", "bytes", ""),
    (b"\xff\xfe", "base64", "//4="),
]


def typed(marker, value):
    return {"__type__": marker, "__value__": value}


class Thing:
    def __init__(self, value=None):
        self.value = value


class SubThing(Thing):
    pass


class Text(str):
    __slots__ = ()


class Blob(bytes):
    pass


class Colour(Enum):
    RED = "red"


class Own:
    """Says itself what stands for it."""

    def __init__(self, reduce):
        self.reduce = reduce

    def __json__(self):
        return self.reduce()


# --- typed values


@pytest.mark.parametrize(("value", "marker", "written"), TYPED)
def test_typed_value_has_its_marker_form(value, marker, written):
    assert codec.dumps(value) == json.dumps(typed(marker, written))


@pytest.mark.parametrize(("value", "marker", "written"), TYPED)
def test_typed_value_comes_back_with_its_type(value, marker, written):
    found = codec.loads(codec.dumps([value, {"key": value}]))
    assert found == [value, {"key": value}]
    assert type(found[0]) is type(value)


def test_typed_value_at_the_top_comes_back():
    assert codec.loads('{"__type__": "decimal", "__value__": "2"}') == Decimal(2)


def test_typed_values_nest():
    codec = JSON()
    codec.register(Thing, "thing", lambda thing: thing.value, Thing)
    found = codec.loads(codec.dumps(Thing([Thing(Decimal(1))])))
    assert found.value[0].value == Decimal(1)


def test_json_method_gives_the_stand_in():
    assert codec.dumps([Own(lambda: {"a": (1, Decimal(2))})]) == json.dumps([{"a": [1, typed("decimal", "2")]}])


def test_json_method_of_a_bytes_subclass_is_asked():
    class OwnBlob(bytes):
        def __json__(self):
            return "blob"

    assert codec.dumps(OwnBlob(b"x")) == '"blob"'


@pytest.mark.parametrize("value", [b"text", b"\xff", b""])
def test_subclass_of_bytes_is_written_as_bytes(value):
    assert codec.dumps(Blob(value)) == codec.dumps(value)


def test_json_method_goes_before_a_registered_type():
    class Dated(date):
        def __json__(self):
            return "own"

    assert codec.dumps(Dated(2026, 1, 1)) == '"own"'


def test_json_method_may_give_a_typed_value():
    assert codec.loads(codec.dumps(Own(lambda: typed("decimal", "7")))) == Decimal(7)


def test_errors_of_json_method_pass():
    with pytest.raises(ZeroDivisionError):
        codec.dumps([Own(lambda: 1 / 0)])


def test_lazy_text_of_django_becomes_text(monkeypatch):
    functional = types.ModuleType("django.utils.functional")
    functional.Promise = UserString
    monkeypatch.setitem(sys.modules, "django.utils.functional", functional)
    assert codec.dumps({"a": UserString("lazy")}) == '{"a": "lazy"}'


# --- registered types


def test_registered_type_round_trips():
    codec = JSON()
    codec.register(Thing, "thing", lambda thing: {"v": thing.value}, lambda value: Thing(value["v"]))
    assert codec.dumps(Thing(5)) == json.dumps(typed("thing", {"v": 5}))
    assert codec.loads(codec.dumps(Thing(5))).value == 5


def test_type_without_marker_is_written_plain():
    codec = JSON()
    codec.register(Thing, None, lambda thing: [thing.value])
    assert codec.dumps(Thing("x")) == '["x"]'


def test_subclass_is_found():
    codec = JSON()
    codec.register(Thing, None, lambda thing: "thing")
    assert codec.dumps(SubThing()) == '"thing"'


def test_closest_class_wins():
    codec = JSON()
    codec.register(Thing, None, lambda thing: "thing")
    codec.register(SubThing, None, lambda thing: "sub")
    assert codec.dumps([Thing(), SubThing()]) == '["thing", "sub"]'


def test_abstract_class_is_found():
    codec = JSON()
    codec.register(AbstractSet, None, sorted)
    assert codec.dumps([{2, 1}, frozenset("a")]) == '[[1, 2], ["a"]]'


def test_class_with_a_metaclass_can_be_registered():
    codec = JSON()
    codec.register(Colour, "colour", lambda colour: colour.value, Colour)
    assert codec.loads(codec.dumps([Colour.RED])) == [Colour.RED]


def test_registering_after_use_counts():
    codec = JSON()
    with pytest.raises(TypeError):
        codec.dumps(SubThing())
    codec.register(Thing, None, lambda thing: 1)
    assert codec.dumps(SubThing()) == "1"
    codec.register(SubThing, None, lambda thing: 2)
    assert codec.dumps(SubThing()) == "2"


def test_standard_type_can_be_replaced():
    codec = JSON()
    codec.register(Decimal, None, str)
    assert codec.dumps(Decimal("1.5")) == '"1.5"'


def test_marker_of_a_standard_type_can_be_taken():
    codec = JSON()
    codec.register(Thing, "decimal", lambda thing: thing.value, lambda value: ("mine", value))
    assert codec.loads(json.dumps(typed("decimal", "1"))) == ("mine", "1")


def test_codecs_share_no_types():
    first, second = JSON(), JSON()
    first.register(Thing, "thing", lambda thing: 1, Thing)
    with pytest.raises(TypeError):
        second.dumps(Thing())
    with pytest.raises(UnknownType):
        second.loads(first.dumps(Thing()))


@pytest.mark.parametrize("kind", [None, "Thing", 5])
def test_only_a_type_can_be_registered(kind):
    with pytest.raises(TypeError):
        JSON().register(kind, "x", str)


# --- text


def test_every_place_of_an_escape_in_a_string():
    for length in range(40):
        for place in range(length + 1):
            for char in '"\\\x00\x1f\n\x7f\x80é€😀\ud800':
                text = "a" * place + char + "b" * (length - place)
                assert codec.dumps(text) == json.dumps(text)


def test_every_character_below_a_surrogate_pair():
    text = "".join(map(chr, range(0x10000)))
    assert codec.dumps(text) == json.dumps(text)
    assert codec.loads(codec.dumps(text)) == json.loads(json.dumps(text))


@settings(deadline=None, max_examples=300)
@given(st.text(st.characters(exclude_categories=())))
def test_text_is_written_as_the_standard_library_does(text):
    assert codec.dumps(text) == json.dumps(text)
    assert codec.loads(codec.dumps(text)) == json.loads(json.dumps(text))


def test_dump_bytes_is_dumps():
    value = {"é": [1, 2.5, None, Decimal(1), "x" * 5000]}
    assert codec.dump_bytes(value) == codec.dumps(value).encode("ascii")


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\udc00\ud800"])
def test_lone_surrogates_round_trip(text):
    assert codec.loads(codec.dumps(text)) == text
    assert codec.loads(f'"{text}"') == text


# --- numbers

few_places = st.builds(lambda n, places: n / 10**places, st.integers(-(10**12), 10**12), st.integers(0, 9))
steps = st.builds(lambda n, step: n * step, st.integers(-(10**6), 10**6), st.sampled_from([0.1, 0.01, 0.001, 1e-7]))


@settings(deadline=None, max_examples=2000)
@given(st.floats() | few_places | steps | st.floats(-1e9, 1e9))
def test_float_is_written_as_repr(value):
    assert codec.dumps(value) == json.dumps(value)


@pytest.mark.parametrize(
    "value",
    [
        0.0,
        -0.0,
        0.1,
        -0.1,
        5.0,
        1e-3,
        9.99e-4,
        1e-7,
        -1e-7,
        1e-4,
        9.9e-5,
        1e-6,
        0.000123,
        999999999.9999995,
        1e9,
        999999999.999999,
        1e16,
        1e22,
        5e-324,
        0.1 + 0.2,
    ],
)
def test_float_at_the_edges(value):
    assert codec.dumps(value) == repr(value)
    assert math.copysign(1, codec.loads(codec.dumps(value))) == math.copysign(1, value)


def test_hundredths():
    assert [codec.dumps(0.01 * n) for n in range(-20_000, 20_000)] == [repr(0.01 * n) for n in range(-20_000, 20_000)]


@pytest.mark.parametrize(("value", "text"), [(math.inf, "Infinity"), (-math.inf, "-Infinity"), (math.nan, "NaN")])
def test_what_is_no_finite_number_has_a_name(value, text):
    assert codec.dumps([value, {"k": value}]) == f'[{text}, {{"k": {text}}}]'
    assert repr(codec.loads(f"[{text}]")) == repr([value])


@settings(deadline=None, max_examples=500)
@given(st.integers() | st.builds(lambda n, bits: n << bits, st.integers(), st.integers(0, 2000)))
def test_int_of_any_size_round_trips(value):
    assert codec.dumps(value) == str(value)
    found = codec.loads(codec.dumps(value))
    assert (type(found), found) == (int, value)


@pytest.mark.parametrize("bits", [0, 31, 32, 53, 62, 63, 64, 65, 128])
def test_int_at_the_edges(bits):
    for value in (2**bits, 2**bits - 1, -(2**bits), -(2**bits) - 1, -(2**bits) + 1):
        assert codec.dumps(value) == str(value)
        assert codec.loads(str(value)) == value


@pytest.mark.parametrize("digits", range(1, 20))
def test_int_of_each_length(digits):
    for value in (10 ** (digits - 1), 10**digits - 1):
        assert codec.dumps([value, -value]) == f"[{value}, -{value}]"


def test_subclasses_are_written_as_their_base():
    class Real(float):
        def __repr__(self):
            return "no JSON"

    class Number(IntEnum):
        ONE = 1
        HUGE = 2**70

    value = [Real(1.5), Text("x"), Text("é"), Number.ONE, Number.HUGE]
    assert codec.dumps(value) == json.dumps([1.5, "x", "é", 1, 2**70])


# --- containers


def test_containers_are_written_as_the_standard_library_does():
    point = namedtuple("point", "x y")
    value = {"a": [], "b": {}, "c": (), "d": point(1, 2), "e": OrderedDict(z=1, a=2), "f": [[[None, True, False]]]}
    assert codec.dumps(value) == json.dumps(value)


@pytest.mark.parametrize("key", ["k", "é", 1, -(2**70), 1.5, math.inf, True, False, None, ""])
def test_key_is_written_as_the_standard_library_does(key):
    assert codec.dumps({key: 1}) == json.dumps({key: 1})


@pytest.mark.parametrize("key", [(1, 2), b"k", Decimal(1), frozenset(), Thing()])
def test_other_keys_are_refused(key):
    with pytest.raises(TypeError, match="keys must be"):
        codec.dumps({key: 1})


@pytest.mark.parametrize(
    "value", [set(), bytearray(), memoryview(b""), timedelta(1), 1j, Thing(), Colour.RED, object, print]
)
def test_other_values_are_refused(value):
    with pytest.raises(TypeError, match="not JSON serializable"):
        codec.dumps({"key": [value]})


def nested(wrap, value=None):
    for _ in range(DEEP):
        value = wrap(value)
    return value


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: (v,), lambda v: {"k": v}, lambda v: Own(lambda: v)])
def test_nesting_too_deep_is_refused(wrap):
    with pytest.raises(RecursionError):
        codec.dumps(nested(wrap))
    assert codec.dumps([]) == "[]"


def test_value_in_itself_is_refused():
    items = []
    items.append({"items": (items,)})
    with pytest.raises(RecursionError):
        codec.dumps(items)


def test_stand_in_for_ever_is_refused():
    own = Own(lambda: own)
    with pytest.raises(RecursionError):
        codec.dumps(own)


@pytest.mark.parametrize(
    "text",
    ["[" * DEEP, "[" * DEEP + "]" * DEEP, '{"k":' * DEEP + "1" + "}" * DEEP, "[NaN, " + "[" * DEEP + "]" * DEEP + "]"],
)
def test_reading_what_nests_too_deep_is_refused(text):
    with pytest.raises(RecursionError):
        codec.loads(text)


@pytest.mark.parametrize("change", [lambda d: d.update(new=1), lambda d: d.pop("b"), dict.clear])
def test_dict_that_changes_while_it_is_written(change):
    value = {"b": 1}
    value["a"] = Own(lambda: change(value))
    value["c"] = 1
    with pytest.raises(RuntimeError, match="changed size"):
        codec.dumps(value)


def test_values_taken_away_while_they_are_written():
    value = {}

    def replace():
        value["a"] = [{"x": i} for i in range(100)]
        return 7

    for _ in range(200):
        value["a"] = {"b": [Own(replace)], "c": ["x" * 50]}
        assert codec.dumps(value) == json.dumps({"a": {"b": [7], "c": ["x" * 50]}})


def test_list_that_shrinks_while_it_is_written():
    value = []
    value += [{"b": Own(value.clear), "c": 1}, 2]
    assert codec.dumps(value) == '[{"b": null, "c": 1}]'


# --- application data that looks like a typed value

looks_typed = st.fixed_dictionaries(
    {
        "__type__": st.none() | st.text() | st.sampled_from(["dict", "decimal", "bytes"]),
        "__value__": st.integers() | st.text(),
    }
)
nests_typed = st.recursive(
    looks_typed | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.fixed_dictionaries({"__value__": inner, "__type__": inner})
        | st.dictionaries(st.sampled_from(["__type__", "__value__", "k"]), inner)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(nests_typed)
def test_application_data_of_that_shape_round_trips(value):
    assert codec.loads(codec.dumps(value)) == value


def test_application_data_is_escaped():
    assert json.loads(codec.dumps({"__type__": "decimal", "__value__": "1"})) == typed(
        "dict", [["__type__", "decimal"], ["__value__", "1"]]
    )


def test_only_exactly_these_two_keys_make_a_typed_value():
    for value in ({"__type__": "decimal"}, {"__value__": 1}, {"__type__": "decimal", "__value__": "1", "more": 1}):
        assert codec.dumps(value) == json.dumps(value)
        assert codec.loads(json.dumps(value)) == value


@pytest.mark.parametrize("marker", ["nope", "", "Decimal", None, 5, True, ["decimal"], {"decimal": 1}])
def test_unknown_marker(marker):
    with pytest.raises(UnknownType):
        codec.loads(json.dumps([typed(marker, "1")]))


@pytest.mark.parametrize(
    ("marker", "value"),
    [
        ("datetime", "yesterday"),
        ("datetime", 5),
        ("date", "2026-13-01"),
        ("time", "25:00"),
        ("time", None),
        ("decimal", "one"),
        ("decimal", {}),
        ("uuid", {"hex": "zz"}),
        ("uuid", {"nope": 1}),
        ("uuid", "0" * 32),
        ("bytes", 5),
        ("bytes", "\ud800"),
        ("base64", "a"),
        ("base64", "é"),
        ("base64", None),
        ("dict", 5),
        ("dict", [[[], 1]]),
        ("dict", [[1, 2]]),  # numbers could be chosen so that their hashes collide
        ("dict", [["a", 1], [2**61 - 1, 1]]),
    ],
)
def test_value_that_its_decoder_cannot_read(marker, value):
    with pytest.raises(InvalidValue):
        codec.loads(json.dumps({"k": typed(marker, value)}))


def test_both_are_value_errors():
    assert issubclass(UnknownType, ValueError)
    assert issubclass(InvalidValue, ValueError)


@pytest.mark.parametrize(
    "key", ["\\u005f_type__", "_\\u005Ftype__", "__\\u0074ype__", "__type_\\u005f", "\\u005f\\u005ftype\\u005f\\u005f"]
)
@pytest.mark.parametrize("before", ["", "\\\\", "\\\\\\\\", "\\n", '\\"', "_", "é", "\ud800"])
def test_escaped_key_is_found(key, before):
    text = f'["{before}", {{"{key}": "decimal", "__value__": "1.5"}}]'
    assert codec.loads(text)[1] == Decimal("1.5")


@settings(deadline=None, max_examples=200)
@given(st.lists(st.booleans(), min_size=8, max_size=8), st.text(max_size=12), st.text(max_size=12))
def test_key_is_found_however_it_is_spelled(escapes, before, after):
    key = "".join(f"\\u{ord(c):04x}" if escape else c for c, escape in zip("__type__", escapes, strict=True))
    text = f'[{json.dumps(before)}, {{"{key}": "decimal", "__value__": "1"}}, {json.dumps(after)}]'
    assert codec.loads(text) == codec.loads(text.encode()) == [before, Decimal(1), after]


# --- inputs

INPUTS = [
    str,
    str.encode,
    lambda text: bytearray(text.encode()),
    lambda text: memoryview(text.encode()),
    lambda text: memoryview(bytes(b for byte in text.encode() for b in (byte, 0)))[::2],
    Text,
    lambda text: Blob(text.encode()),
]


@pytest.mark.parametrize("as_input", INPUTS)
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"é": [1, "€"]}', {"é": [1, "€"]}),
        ('{"é": {"__type__": "decimal", "__value__": "1"}}', {"é": Decimal(1)}),
        ('[Infinity, {"__type__": "decimal", "__value__": "1"}]', [math.inf, Decimal(1)]),
        (" null\n", None),
        ('"x"', "x"),
    ],
)
def test_every_kind_of_input(as_input, text, value):
    assert codec.loads(as_input(text)) == value


@pytest.mark.parametrize("data", [None, 5, ["[]"], object()])
def test_other_input_is_a_type_error(data):
    with pytest.raises(TypeError):
        codec.loads(data)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "{", "}", "[1,]", "{'a': 1}", '{"a" 1}', '{"a": 1,}', "{1: 2}", "01", "-01", "1.", ".5", "+1", "-",
        "1e", "nul", "True", "NaNN", "nan", "Inf", '"', '"\\x"', '"\\u12"', '"\\u12g4"', '"\x01"', '"\n"', "[1] 2",
        "\ufeff1", "[1\x00]", "1_000", "0x10", "/**/1", "\xa01",
    ],
)  # fmt: skip
def test_what_is_not_json_is_a_value_error(text):
    for data in (text, text.encode()):
        with pytest.raises(ValueError):
            codec.loads(data)


@pytest.mark.parametrize(
    "data",
    [
        b'"\xff"', b'"a\xc0\x80"', b'"\xed\xa0\x80"', b'{"\xff": 1}', b'{"__type__\xff": 1}', b'"\xf4\x90\x80\x80"',
        b'"\xe2\x82"', b"\xff", b'["ok", "\x80"]', '"text"'.encode("utf-16"), '"text"'.encode("utf-32-le"), b"NaN\xff",
    ],
)  # fmt: skip
def test_what_is_not_utf8_is_a_value_error(data):
    for given_data in (data, bytearray(data), memoryview(data)):
        with pytest.raises(ValueError):
            codec.loads(given_data)


# --- threads


def in_threads(count, run):
    barrier, failures = Barrier(count), []

    def guarded(number):
        barrier.wait()
        try:
            run(number)
        except BaseException as error:
            failures.append(error)

    threads = [Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_threads_share_a_codec():
    value = {"a": [Decimal(1), b"x", "é" * 2000], "b": {"n": list(range(500))}}
    text = codec.dumps(value)

    def run(number):
        for _ in range(100):
            assert codec.dumps(value) == text
            assert codec.loads(text) == value

    in_threads(8, run)


def test_threads_meet_in_a_fresh_codec():
    for _ in range(30):
        codec = JSON()
        in_threads(6, lambda number, codec=codec: codec.loads(codec.dumps([TYPED[number][0], Decimal(1)])))


def test_a_type_registered_while_others_encode_is_not_lost():
    codec = JSON()

    def run(number):
        kind = type(f"Kind{number}", (), {})
        for _ in range(100):
            with pytest.raises(TypeError):
                codec.dumps(kind())
        codec.register(kind, None, lambda value: number)
        assert codec.dumps([kind()]) == f"[{number}]"

    in_threads(6, run)


# --- the facade's functions


def test_facade_takes_the_options_of_the_standard_library():
    value = {"b": Decimal(1), "a": b"x"}
    assert facade.dumps(value, sort_keys=True) == json.dumps({"a": typed("bytes", "x"), "b": typed("decimal", "1")})
    assert facade.loads(facade.dumps(value, indent=2)) == value


def test_facade_escapes_application_data_with_options_too():
    value = {"k": {"__type__": "mine", "__value__": 1}}
    assert facade.loads(facade.dumps(value, sort_keys=True)) == value


def test_facade_takes_a_hook():
    assert facade.loads(b'{"a": {}}', object_hook=lambda value: [value]) == [{"a": [{}]}]


def test_encoder_class_knows_the_typed_values():
    assert json.dumps([Decimal(1)], cls=facade.JSONEncoder) == json.dumps([typed("decimal", "1")])


def test_a_type_that_is_registered_anew_is_written_the_new_way_from_then_on():
    own = JSON()
    moment = datetime(2026, 1, 2, 3, 4, 5)
    before = '{"__type__": "datetime", "__value__": "2026-01-02T03:04:05"}'
    assert [own.dumps(moment), own.dumps(moment)] == [before, before]
    own.register(datetime, "moment", lambda value: {"year": value.year})
    after = '{"__type__": "moment", "__value__": {"year": 2026}}'
    assert [own.dumps(moment), own.dumps([moment])] == [after, f"[{after}]"]
    own.register(datetime, None, datetime.isoformat)
    assert own.dumps(moment) == own.dumps(moment) == '"2026-01-02T03:04:05"'


ZONES = st.one_of(
    st.none(), st.just(timezone.utc), st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
)


class Moment(datetime):
    """A datetime with a text of its own, which is not asked for."""

    def isoformat(self, *arguments):
        raise AssertionError("not to be called")


@given(st.datetimes(timezones=ZONES), st.sampled_from([datetime, Moment]))
def test_datetimes_are_written_as_isoformat_has_them(moment, kind):
    value = kind.combine(moment.date(), moment.timetz())
    assert codec.dumps(value) == f'{{"__type__": "datetime", "__value__": "{datetime.isoformat(value)}"}}'
    assert codec.loads(codec.dumps(value)) == value
