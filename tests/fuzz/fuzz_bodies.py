"""Fuzzing what makes a payload of a body: decompression, then the serializers, all of them but pickle.

The input is a line of JSON (content type, content encoding, compression, each of any type), then the body.
"""

import json

from kombulite import Message
from kombulite.compression import compress, set_max_inflated
from kombulite.exceptions import KombuError
from kombulite.serialization import dumps
from tests.fuzz.engine import Target

ACCEPTED = ["json", "yaml", "msgpack", "text/plain", "text/other", "application/data"]
METHODS = ["gzip", "bzip2", "lzma", "brotli", "zstd", "lz4"]
MOST_INFLATED = 1 << 20


def fuzz_one(data: bytes) -> None:
    """Decode a message; raises whatever is a defect."""
    head, _, body = data.partition(b"\n")
    try:
        content_type, content_encoding, compression = json.loads(head)
    except (ValueError, TypeError, RecursionError):
        content_type, content_encoding, compression = "text/other", "utf-8", None
        body = data
    set_max_inflated(MOST_INFLATED)
    headers = {} if compression is None else {"compression": compression}
    message = Message(body, accept=ACCEPTED, headers=headers)
    # As a transport fills it in, where nobody has checked the types.
    message.content_type, message.content_encoding = content_type, content_encoding
    assert len(message.body) <= max(MOST_INFLATED, len(body))
    if message.errors:  # which names the method that is not known (a KeyError), or says what is broken
        return
    try:
        message.payload  # noqa: B018
    except (KombuError, TypeError):  # TypeError: a content type that cannot be looked up
        pass


def seeds() -> list[bytes]:
    """A message of each serializer, and one of each compression."""
    value = {"id": 7, "text": "é", "list": [1, 2.5, None, {"deep": True}]}
    made = []
    for serializer in ("json", "yaml", "msgpack"):
        content_type, encoding, body = dumps(value, serializer)
        data = body.encode() if isinstance(body, str) else body
        made.append(json.dumps([content_type, encoding, None]).encode() + b"\n" + data)
    for method in METHODS:
        try:
            data, content_type = compress(json.dumps(value).encode(), method)
        except ImportError:
            continue
        made.append(json.dumps(["application/json", "utf-8", content_type]).encode() + b"\n" + data)
    made.extend(
        json.dumps(["text/other", encoding, None]).encode() + b"\ntext \xc3\xa9"
        for encoding in ("utf-8", "latin-1", "utf-16", "utf-7", "unicode_escape", "binary")
    )
    return made


SCRAPS = [
    b"null", b"[]", b"{}", b"5", b'"gzip"', b'"utf-7"', b'"punycode"', b'"zlib"', b'"application/x-yaml"', b"\n",
    b"\x00", b"\xff", b"&a [*a]", b"!!python/name:os.system", b"!!timestamp 9999", b"\xdd\xff\xff\xff\xff",
    b"\x91" * 50, b"[" * 50, b"\xc7\xff\x00", b"\xd6\xff\xff\xff\xff\xff", b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\x00",
    b"\x28\xb5\x2f\xfd",
]  # fmt: skip

target = Target("bodies", fuzz_one, seeds(), SCRAPS)

if __name__ == "__main__":
    target.main(__doc__)
