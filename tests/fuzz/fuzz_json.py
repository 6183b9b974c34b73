"""Fuzzing the JSON reader: it says what the standard library says, and what it reads can be written and read again."""

import json
from typing import Any

from kombulite._core import JSON, InvalidValue, UnknownType
from tests.fuzz.engine import Target

codec = JSON()


def outcome(read: Any, data: bytes) -> Any:
    """What reading gives, as text in which what is no number equals itself; or the kind of error."""
    try:
        return repr(read(data))
    except (UnknownType, InvalidValue) as error:
        return type(error)
    except (ValueError, RecursionError):
        return ValueError


def standard(data: bytes) -> Any:
    return json.loads(data.decode("utf-8"), object_hook=codec.revive)


def fuzz_one(data: bytes) -> None:
    """Read ``data``; raises whatever is a defect."""
    found = outcome(codec.loads, data)
    expected = outcome(standard, data)
    # Of two errors either may be met first.
    assert found == expected or (isinstance(found, type) and isinstance(expected, type)), (found, expected)
    if isinstance(found, type):
        return
    written = codec.dump_bytes(codec.loads(data))
    assert codec.dump_bytes(codec.loads(written)) == written


SEEDS = [
    b'{"id": 184467, "amount": -129.95e-1, "items": [3, null, true, false, "\\u00e9\\ud83d\\ude00"], "n": {}}',
    b'[{"__type__": "datetime", "__value__": "2026-03-14T09:26:53Z"}, {"__type__": "decimal", "__value__": "1.5"}]',
    b'{"__type__": "dict", "__value__": [["__type__", 1], ["__value__", {"__type__": "bytes", "__value__": "x"}]]}',
    b'[{"__type__": "base64", "__value__": "/w=="}, {"__type__": "uuid", "__value__": {"hex": "'
    + b"0" * 32
    + b'", "version": null}}, {"__type__": "time", "__value__": "01:02:03"}]',
    b"[0, -0.0, 1e308, 123456789012345678, 12345678901234567890, 0.1, NaN, -Infinity]",
]
SCRAPS = [
    b"null", b"NaN", b"-Infinity", b"-0", b"1e999", b"1e-999", b"9" * 30, b".5", b"1.", b"01", b"[]", b"{}", b'""',
    b'"', b"[" * 50, b"]" * 50, b'{"a":' * 50, b"\\", b"\\u", b"\\ud800", b"\\udc00", b"\\u0000", b"\x00", b"\xff",
    b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xc3\xa9", b'"__type__"', b'"__value__"', b'"\\u005f_type__"', b'"dict"',
    b'"uuid"', b'"decimal"', b'"sNaN"', b"[[1, 2]]",
]  # fmt: skip

target = Target("json", fuzz_one, SEEDS, SCRAPS)

if __name__ == "__main__":
    target.main(__doc__)
