"""Fuzzing the envelope decoder: nothing but MalformedEnvelope may come out of it.

``python tests/fuzz/fuzz_envelope.py [--seconds N] [--seed N]`` mutates known envelopes; with atheris installed,
``python tests/fuzz/fuzz_envelope.py --atheris [libFuzzer options]`` is guided by coverage.
"""

import argparse
import json
import random
import sys
from base64 import b64encode
from collections.abc import Iterator
from itertools import count
from time import monotonic

from kombulite._core import JSON, Delivery, EnvelopeTemplate, MalformedEnvelope, Properties, decode_envelope

codec = JSON()


def fuzz_one(data: bytes) -> None:
    """Decode ``data``; raises whatever is a defect."""
    try:
        delivery = decode_envelope(codec, data)
    except MalformedEnvelope:
        return
    check(delivery)


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


def mutate(source: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """A changed copy of ``data``: a few bytes flipped, cut, doubled, or replaced by scraps or parts of others."""
    changed = bytearray(data)
    for _ in range(source.choice((1, 1, 1, 2, 3, 8))):
        start = source.randint(0, len(changed))
        end = min(len(changed), start + source.choice((0, 1, 1, 2, 4, 16, 64)))
        match source.randrange(6):
            case 0 if start < len(changed):
                changed[start] ^= 1 << source.randrange(8)
            case 1:
                del changed[start:end]
            case 2:
                changed[start:start] = changed[start:end]
            case 3:
                changed[start:end] = source.randbytes(source.randint(0, 4))
            case 4:
                changed[start:end] = source.choice(SCRAPS)
            case _:
                other = source.choice(others)
                place = source.randint(0, len(other))
                changed[start:end] = other[place : place + source.randint(0, 40)]
    return bytes(changed)


def mutations(seed: int) -> Iterator[bytes]:
    """Mutated envelopes without end, the same ones for the same seed."""
    source = random.Random(seed)
    corpus = seeds()
    while True:
        data = source.choice(corpus)
        for _ in range(source.choice((1, 1, 2, 4))):
            data = mutate(source, data, corpus)
            yield data


def run(seed: int, executions: int | None = None, seconds: float | None = None) -> int:
    """Fuzz until the count or the time is reached; returns the executions. Prints the input of a failure."""
    end = None if seconds is None else monotonic() + seconds
    inputs = mutations(seed)
    for done in count():
        if done == executions or (end is not None and monotonic() >= end):
            return done
        data = next(inputs)
        try:
            fuzz_one(data)
        except BaseException:
            print(f"seed {seed}, execution {done}: {data!r}", file=sys.stderr)
            raise
    raise AssertionError("count() has no end")


def main() -> None:
    if "--atheris" in sys.argv:
        import atheris

        sys.argv.remove("--atheris")
        atheris.Setup(sys.argv, fuzz_one)
        atheris.Fuzz()
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{run(options.seed, seconds=options.seconds)} executions")


if __name__ == "__main__":
    main()
