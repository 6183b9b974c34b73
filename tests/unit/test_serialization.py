"""What may be encoded and decoded, and how: api.md, section 7."""

import json
import pickle
import sys
from datetime import datetime, timezone
from decimal import Decimal
from types import SimpleNamespace

import pytest

from kombulite import serialization
from kombulite.exceptions import (
    ContentDisallowed,
    DecodeError,
    EncodeError,
    KombuError,
    SerializationError,
    SerializerNotInstalled,
)
from kombulite.serialization import (
    disable_insecure_serializers,
    dumps,
    enable_insecure_serializers,
    loads,
    prepare_accept_content,
    raw_encode,
    register,
    registry,
    unregister,
)

JSON, PICKLE = "application/json", "application/x-python-serialize"
YAML, MSGPACK = "application/x-yaml", "application/x-msgpack"
DATA, TEXT = "application/data", "text/plain"


pytestmark = pytest.mark.usefixtures("tables_stay")


def brackets(name="brackets", content_type="application/x-brackets", **options):
    """Register a serializer that writes (value) for a value."""
    register(name, lambda value: f"({value})", lambda data: bytes(data)[1:-1].decode(), content_type, **options)


# --- dumps


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"\x00\xff", (DATA, "binary", b"\x00\xff")),
        (b"", (DATA, "binary", b"")),
        ("é", (TEXT, "utf-8", b"\xc3\xa9")),
        ("", (TEXT, "utf-8", b"")),
        ({"a": 1}, (JSON, "utf-8", '{"a": 1}')),
        ([], (JSON, "utf-8", "[]")),
        (None, (JSON, "utf-8", "null")),
        (0, (JSON, "utf-8", "0")),
    ],
)
@pytest.mark.parametrize("serializer", [None, ""])
def test_dumps_without_a_serializer(body, expected, serializer):
    assert dumps(body, serializer) == expected
    assert dumps(body) == expected


def test_bytes_pass_as_the_same_object():
    body = b"body" * 100
    assert dumps(body)[2] is body
    assert dumps(body, "raw")[2] is body


@pytest.mark.parametrize("encode", [raw_encode, lambda body: dumps(body, "raw")])
def test_raw(encode):
    assert encode("é") == (DATA, "utf-8", b"\xc3\xa9")
    assert encode(b"\xff") == (DATA, "binary", b"\xff")
    body = object()
    assert encode(body) == (DATA, "binary", body)


def test_explicit_serializer_applies_to_text_and_bytes():
    assert dumps("a", "json") == (JSON, "utf-8", '"a"')
    assert json.loads(dumps(b"a", "json")[2]) == {"__type__": "bytes", "__value__": "a"}
    assert dumps(b"a", "pickle") == (PICKLE, "binary", pickle.dumps(b"a", 4))


def test_json_payload_is_text_with_typed_values():
    payload = dumps({"at": datetime(2026, 1, 2, tzinfo=timezone.utc), "price": Decimal("1.5")})[2]
    assert isinstance(payload, str)
    assert json.loads(payload) == {
        "at": {"__type__": "datetime", "__value__": "2026-01-02T00:00:00+00:00"},
        "price": {"__type__": "decimal", "__value__": "1.5"},
    }


def test_pickle_is_of_protocol_4():
    assert dumps({"a": 1}, "pickle")[2] == pickle.dumps({"a": 1}, protocol=4)


@pytest.mark.parametrize("name", ["nope", "JSON", JSON])
def test_unknown_serializer(name):
    with pytest.raises(SerializerNotInstalled):
        dumps({}, name)


@pytest.mark.parametrize(("body", "serializer"), [({1, 2}, None), (object(), "json"), (lambda: 0, "pickle")])
def test_what_cannot_be_encoded(body, serializer):
    with pytest.raises(EncodeError) as caught:
        dumps(body, serializer)
    assert isinstance(caught.value.__cause__, Exception)


@pytest.mark.parametrize("serializer", [None, "raw"])
def test_text_that_is_no_unicode_cannot_be_encoded(serializer):
    with pytest.raises(EncodeError):
        dumps("\ud800", serializer)


def test_nesting_too_deep_cannot_be_encoded():
    body = []
    body.append(body)
    with pytest.raises(EncodeError):
        dumps(body)


def test_default_serializer_can_be_set():
    registry._set_default_serializer("pickle")
    assert dumps([1]) == (PICKLE, "binary", pickle.dumps([1], 4))
    assert dumps("text")[0] == TEXT
    with pytest.raises(SerializerNotInstalled):
        registry._set_default_serializer("nope")
    assert dumps([1])[0] == PICKLE


# --- loads


@pytest.mark.parametrize("data", ['{"a": [1]}', b'{"a": [1]}', bytearray(b'{"a": [1]}'), memoryview(b'{"a": [1]}')])
def test_json_from_every_kind_of_buffer(data):
    assert loads(data, JSON, "utf-8") == {"a": [1]}
    assert loads(data, JSON, None, accept={JSON}) == {"a": [1]}


@pytest.mark.parametrize("content_type", [None, ""])
def test_no_content_type_is_data(content_type):
    assert loads(b"\xc3\xa9", content_type, "utf-8") == "é"
    assert loads(b"\xff", content_type, "binary", accept=set()) == b"\xff"


@pytest.mark.parametrize("data", [b"", "", None, [], {}, bytearray()])
@pytest.mark.parametrize("content_type", [JSON, TEXT, DATA, "application/unknown", None])
def test_empty_data_is_returned_as_it_is(data, content_type):
    assert loads(data, content_type, "utf-8") is data


def test_empty_data_of_a_refused_type_is_refused():
    with pytest.raises(ContentDisallowed):
        loads(b"", PICKLE, "binary")
    with pytest.raises(ContentDisallowed):
        loads(b"", TEXT, "utf-8", accept={JSON})


@pytest.mark.parametrize("content_type", [TEXT, DATA, "application/text", "application/unknown"])
@pytest.mark.parametrize(
    ("encoding", "data", "expected"),
    [
        ("utf-8", b"\xc3\xa9", "é"),
        ("UTF-8", b"\xc3\xa9", "é"),
        (None, b"\xc3\xa9", "é"),
        ("", b"\xc3\xa9", "é"),
        ("latin-1", b"\xe9", "é"),
        ("utf-16-le", b"\xe9\x00", "é"),
        ("binary", b"\xe9", b"\xe9"),
        ("BINARY", b"\xe9", b"\xe9"),
        ("ascii-8bit", b"\xe9", b"\xe9"),
        ("utf-8", "text", "text"),
        ("utf-8", memoryview(b"abc"), "abc"),
        ("utf-8", bytearray(b"abc"), "abc"),
    ],
)
def test_unknown_type_is_decoded_by_its_encoding(content_type, encoding, data, expected):
    assert loads(data, content_type, encoding) == expected


@pytest.mark.parametrize(
    ("data", "encoding"), [(b"\xff", "utf-8"), (b"\xff", None), (b"x", "no-such-codec"), (b"x", 5), (b"x", "\0")]
)
def test_what_its_encoding_cannot_read(data, encoding):
    with pytest.raises(DecodeError):
        loads(data, TEXT, encoding)


@pytest.mark.parametrize("encoding", ["idna", "punycode", "PunyCode"])
def test_codecs_that_take_more_than_linear_time_are_refused(encoding):
    with pytest.raises(DecodeError, match="not read as"):
        loads(b"a-b", TEXT, encoding)


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        "{",
        b"\xff",
        '{"__type__": "nope", "__value__": 1}',
        '{"__type__": "decimal", "__value__": "x"}',
        "[" * 100_000,
    ],
)
def test_broken_json(data):
    with pytest.raises(DecodeError) as caught:
        loads(data, JSON, "utf-8")
    assert isinstance(caught.value.__cause__, Exception)


def test_broken_pickle():
    with pytest.raises(DecodeError):
        loads(b"garbage", PICKLE, "binary", accept={PICKLE})


# --- what is accepted


def test_accept_is_the_whole_truth():
    assert loads(b"1", JSON, "utf-8", accept={JSON}) == 1
    for content_type in (TEXT, PICKLE, YAML, "application/unknown"):
        with pytest.raises(ContentDisallowed):
            loads(b"1", content_type, "utf-8", accept={JSON})
    with pytest.raises(ContentDisallowed):
        loads(b"1", JSON, "utf-8", accept=set())
    with pytest.raises(ContentDisallowed):
        loads(b"1", JSON, "utf-8", accept={PICKLE}, force=True)


@pytest.mark.parametrize("content_type", [DATA, "application/text", None])
@pytest.mark.parametrize("accept", [set(), {JSON}, [], ()])
def test_raw_content_is_always_accepted(content_type, accept):
    assert loads(b"x", content_type, "utf-8", accept=accept) == "x"


@pytest.mark.parametrize("content_type", [PICKLE, YAML, MSGPACK])
def test_insecure_types_are_refused_unless_accepted(content_type):
    with pytest.raises(ContentDisallowed, match=content_type):
        loads(b"\x80", content_type, "binary")


class Marker:
    ran = False

    def __reduce__(self):
        return setattr, (Marker, "ran", True)


def test_refused_pickle_does_not_run(monkeypatch):
    monkeypatch.setattr(Marker, "ran", False)
    data = dumps(Marker(), "pickle")[2]
    for accept in (None, {JSON}, set()):
        with pytest.raises(ContentDisallowed):
            loads(data, PICKLE, "binary", accept=accept)
    assert Marker.ran is False
    loads(data, PICKLE, "binary", accept={PICKLE})
    assert Marker.ran is True


@pytest.mark.parametrize("name", ["pickle", "yaml", "msgpack"])
def test_insecure_types_are_decoded_where_accepted(name):
    if name != "pickle":
        pytest.importorskip({"yaml": "yaml", "msgpack": "msgpack"}[name])
    value = {"a": [1, "é", None, True], "b": {"c": 1.5}}
    content_type, encoding, payload = dumps(value, name)
    for data in (payload, payload.encode() if isinstance(payload, str) else payload):
        assert loads(data, content_type, encoding, accept={content_type}) == value
        assert loads(data, content_type, encoding, force=True) == value


def test_msgpack_keeps_text_and_bytes_apart():
    pytest.importorskip("msgpack")
    content_type, encoding, payload = dumps(["é", b"\xff"], "msgpack")
    assert (content_type, encoding, type(payload)) == (MSGPACK, "binary", bytes)
    assert loads(payload, content_type, encoding, force=True) == ["é", b"\xff"]


def test_yaml_makes_no_objects():
    pytest.importorskip("yaml")
    with pytest.raises(DecodeError):
        loads("!!python/object/apply:os.getcwd []", YAML, "utf-8", force=True)
    with pytest.raises(EncodeError):
        dumps(SimpleNamespace(), "yaml")


def test_registered_later_is_accepted():
    brackets()
    assert loads(b"(1)", "application/x-brackets", "utf-8") == "1"


def test_enabling_insecure_serializers():
    enable_insecure_serializers(["pickle", "not there"])
    assert loads(pickle.dumps([1]), PICKLE, "binary") == [1]
    with pytest.raises(ContentDisallowed):
        loads(b"a: 1", YAML, "utf-8")
    with pytest.raises(ContentDisallowed):
        loads(pickle.dumps([1]), PICKLE, "binary", accept={JSON})


def test_enabling_all_insecure_serializers():
    enable_insecure_serializers()
    assert registry.disabled & {PICKLE, YAML, MSGPACK} == set()


@pytest.mark.parametrize("allowed", [["pickle"], [PICKLE]])
def test_disabling_leaves_what_is_allowed(allowed):
    brackets()
    disable_insecure_serializers(allowed)
    assert loads(pickle.dumps([1]), PICKLE, "binary") == [1]
    for content_type in (JSON, "application/x-brackets", YAML):
        with pytest.raises(ContentDisallowed):
            loads(b"1", content_type, "utf-8")


@pytest.mark.parametrize("allowed", [None, []])
def test_disabling_everything(allowed):
    disable_insecure_serializers(allowed)
    with pytest.raises(ContentDisallowed):
        loads(b"1", JSON, "utf-8")
    assert loads(b"1", JSON, "utf-8", accept={JSON}) == 1


def test_disabling_allows_json_by_default():
    brackets()
    disable_insecure_serializers()
    assert loads(b"1", JSON, "utf-8") == 1
    with pytest.raises(ContentDisallowed):
        loads(b"(1)", "application/x-brackets", "utf-8")


@pytest.mark.parametrize("name", ["pickle", PICKLE])
def test_registry_enables_and_disables_one(name):
    registry.enable(name)
    assert loads(pickle.dumps(1), PICKLE, "binary") == 1
    registry.disable(name)
    with pytest.raises(ContentDisallowed):
        loads(pickle.dumps(1), PICKLE, "binary")


@pytest.mark.parametrize("call", [registry.enable, registry.disable])
def test_enabling_what_is_not_installed(call):
    with pytest.raises(KeyError):
        call("nope")


# --- names and content types


@pytest.mark.parametrize("make", [list, set, tuple, iter])
def test_accept_list_of_names_and_content_types(make):
    names = make(["json", PICKLE, "yaml", "application/x-own"])
    assert prepare_accept_content(names) == {JSON, PICKLE, YAML, "application/x-own"}


def test_accept_list_of_nothing():
    assert prepare_accept_content(None) is None
    assert prepare_accept_content([]) == set()


def test_accept_list_with_an_unknown_name():
    with pytest.raises(SerializerNotInstalled):
        prepare_accept_content(["json", "nope"])


def test_accept_list_from_a_table():
    assert prepare_accept_content(["a", "b/c"], {"a": "x/a"}) == {"x/a", "b/c"}


def test_registered_serializer_round_trips():
    brackets(content_encoding="latin-1")
    assert dumps("x", "brackets") == ("application/x-brackets", "latin-1", "(x)")
    assert loads(b"(x)", "application/x-brackets", "latin-1", accept=prepare_accept_content(["brackets"])) == "x"
    assert registry.name_to_type["brackets"] == "application/x-brackets"
    assert registry.type_to_name["application/x-brackets"] == "brackets"
    assert registry._encoders["brackets"][:2] == ("application/x-brackets", "latin-1")


def test_content_encoding_is_utf8_unless_said():
    brackets()
    assert dumps("x", "brackets")[1] == "utf-8"


def test_registering_again_replaces():
    brackets()
    register("brackets", lambda value: "new", lambda data: "newer", "application/x-brackets")
    assert dumps("x", "brackets")[2] == "new"
    assert loads(b"x", "application/x-brackets", None) == "newer"


def test_serializer_may_lack_a_side():
    register("write", lambda value: b"w", None, "application/x-write")
    assert dumps(1, "write")[2] == b"w"
    assert loads(b"as it is", "application/x-write", "binary") == b"as it is"
    register("read", None, lambda data: "r", "application/x-read")
    assert loads(b"x", "application/x-read", None) == "r"
    with pytest.raises(SerializerNotInstalled):
        dumps(1, "read")


def test_unregistered_is_unknown():
    brackets()
    unregister("brackets")
    with pytest.raises(SerializerNotInstalled):
        dumps("x", "brackets")
    with pytest.raises(SerializerNotInstalled):
        prepare_accept_content(["brackets"])
    with pytest.raises(SerializerNotInstalled):
        unregister("brackets")
    assert loads(b"(x)", "application/x-brackets", None) == "(x)"


def test_errors_of_a_serializer_are_wrapped():
    def fail(value):
        raise OSError("disk on fire")

    register("fail", fail, fail, "application/x-fail")
    with pytest.raises(EncodeError, match="disk on fire"):
        dumps(1, "fail")
    with pytest.raises(DecodeError, match="disk on fire"):
        loads(b"x", "application/x-fail", None)


def test_interrupts_are_not_wrapped():
    def interrupt(value):
        raise KeyboardInterrupt

    register("slow", interrupt, interrupt, "application/x-slow")
    with pytest.raises(KeyboardInterrupt):
        dumps(1, "slow")
    with pytest.raises(KeyboardInterrupt):
        loads(b"x", "application/x-slow", None)


@pytest.mark.parametrize(("name", "package"), [("yaml", "yaml"), ("msgpack", "msgpack")])
def test_missing_package_is_named(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SerializerNotInstalled):
        dumps({}, name)
    with pytest.raises(SerializerNotInstalled):
        loads(b"x", registry.name_to_type[name], None, force=True)


def test_serializers_of_other_packages_are_found(monkeypatch):
    entry_point = SimpleNamespace(
        name="plugged", load=lambda: (str, lambda data: "decoded", "application/x-plugged", "utf-8")
    )
    asked = []

    def entry_points(group):
        asked.append(group)
        return [entry_point]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    monkeypatch.setattr(registry, "_entry_points_loaded", False)
    assert dumps(5, "plugged") == ("application/x-plugged", "utf-8", "5")
    assert loads(b"x", "application/x-plugged", None) == "decoded"
    assert asked == ["kombu.serializers"]


def test_kinds_of_errors():
    assert issubclass(ContentDisallowed, SerializerNotInstalled)
    assert issubclass(EncodeError, SerializationError)
    assert issubclass(DecodeError, SerializationError)
    assert issubclass(SerializationError, KombuError)
    assert issubclass(SerializerNotInstalled, KombuError)


def test_pickle_is_part_of_the_module():
    assert serialization.pickle is pickle
    with pytest.raises(AttributeError):
        serialization.nope  # noqa: B018


def test_names_of_the_table():
    assert {name: registry.name_to_type[name] for name in ("json", "pickle", "yaml", "msgpack")} == {
        "json": JSON,
        "pickle": PICKLE,
        "yaml": YAML,
        "msgpack": MSGPACK,
    }
