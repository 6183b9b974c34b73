"""Fuzzing the envelope decoder: nothing but MalformedEnvelope may come out of it, and bytes mean what text means.

``python -m tests.fuzz.fuzz_envelope [--seconds N] [--seed N]`` mutates known envelopes; with atheris installed,
``python -m tests.fuzz.fuzz_envelope --atheris [libFuzzer options]`` is guided by coverage.
"""

import json
from base64 import b64encode

from kombulite._core import (
    JSON,
    Delivery,
    EnvelopeReader,
    EnvelopeTemplate,
    MalformedEnvelope,
    Properties,
    decode_envelope,
)
from tests.fuzz.engine import Target

codec = JSON()


def fuzz_one(data: bytes) -> None:
    """Decode ``data``; raises whatever is a defect."""
    delivery = decoded(data)
    for neighbour in NEIGHBOURS:
        check_neighbour(neighbour, data, delivery)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        assert delivery is None
        return
    as_text = decoded(text)
    if delivery is None or as_text is None:
        assert delivery is as_text
        return
    check(delivery)
    # In bytes the body is read where it stands.
    assert (delivery.body, delivery.delivery_tag) == (as_text.body, as_text.delivery_tag)


def check_neighbour(neighbour: bytes, data: bytes, alone: Delivery | None) -> None:
    """See that an envelope is read behind another one as it is alone."""
    reader = EnvelopeReader(codec)
    reader.read("place", neighbour)
    try:
        found = reader.read("place", data)
    except MalformedEnvelope:
        assert alone is None
        return
    assert alone is not None
    assert (found.body, found.delivery_tag, found.redelivered) == (alone.body, alone.delivery_tag, alone.redelivered)
    assert (found.exchange, found.routing_key) == (alone.exchange, alone.routing_key)
    assert repr(found.properties) == repr(alone.properties)  # NaN is not itself


def decoded(data: bytes | str) -> Delivery | None:
    """What is in an envelope; None for one that is refused."""
    try:
        return decode_envelope(codec, data)
    except MalformedEnvelope:
        return None


def check(delivery: Delivery) -> None:
    """What a caller may rely on without looking."""
    assert isinstance(delivery.exchange, str)
    assert isinstance(delivery.routing_key, str)
    assert isinstance(delivery.delivery_tag, str)
    assert isinstance(delivery.body, (str, bytes))
    assert isinstance(delivery.properties.headers, (dict, type(None)))


def seeds() -> list[bytes]:
    """Envelopes of every shape that a writer makes."""
    plain = {
        "body": b64encode(b'{"id": 7}').decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"trace": "abc", "redelivered": True, "compression": "application/x-gzip"},
        "properties": {
            "reply_to": "rq",
            "mykey": [1, 2.5e3, None],
            "delivery_mode": 2,
            "expiration": "1500",
            "delivery_info": {"exchange": "orders", "routing_key": "order.new.eu", "redelivered": True},
            "priority": 5,
            "body_encoding": "base64",
            "delivery_tag": "c0d567d2-d236-4ff5-8b58-81008c869594",
        },
    }
    typed = Properties(
        headers={"at": b"\xff", "data": {"__type__": 1, "__value__": 2}}, extra={"é😀\ud800": float("nan")}
    )
    return [
        json.dumps(plain).encode(),
        json.dumps(plain, indent=1).encode(),
        EnvelopeTemplate(codec, "", "q", typed).encode(b"\x00" * 10, "tag"),
        EnvelopeTemplate(codec, "é", "q", typed, body_encoding=None).encode(b"\xff", "tag"),
        EnvelopeTemplate(codec, "", "", Properties(), body_encoding="utf-8").encode('text \\ "', ""),
        json.dumps(plain, ensure_ascii=False).replace("__type__", "\\u005f_type__").encode(),
    ]


SCRAPS = [
    b"null", b"true", b"NaN", b"-Infinity", b"-0", b"1e999", b"9" * 30, b"[]", b"{}", b'""', b'"', b"{", b"}", b",",
    b":", b"[" * 50, b"]" * 50, b"[" * 2000, b'{"a":' * 500, b"\\", b"\\u", b"\\ud800", b"\\u0000", b"\x00", b"\xff",
    b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"__type__"', b'"__value__"', b'"\\u005f_type__"', b'"dict"', b'"base64"',
    b'"utf-8"', b'"properties"', b'"headers"', b'"body"', b'{"__type__": "bytes", "__value__": "x"}',
    b'{"__type__": "base64", "__value__": "="}', b'{"__type__": "uuid", "__value__": {"int": -1}}',
    b'{"__type__": "dict", "__value__": [[[], 1]]}',
]  # fmt: skip


NEIGHBOURS = seeds()[:3]
target = Target("envelope", fuzz_one, seeds(), SCRAPS)

if __name__ == "__main__":
    target.main(__doc__)
