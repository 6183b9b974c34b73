"""Fuzzing the reader of AMQP field tables: nothing but a ProtocolError comes out, and what is read can be sent on."""

import struct

from kombulite._core import NotEncodable, ProtocolError, decode_table, encode_table
from tests.fuzz.engine import Target


def fuzz_one(data: bytes) -> None:
    """Decode ``data`` as it is, and with its length in front; raises whatever is a defect."""
    for candidate in (data, struct.pack(">I", len(data)) + data):
        try:
            written = encode_table(decode_table(candidate))
        except (ProtocolError, NotEncodable):
            continue
        assert encode_table(decode_table(written)) == written


def seeds() -> list[bytes]:
    """Tables with every type that a broker sends, with and without a length in front."""
    table = encode_table({"s": "é", "n": [1, -(2**40), True, None, 1.5, b"\xff"], "t": {"deep": {"er": {}}}})
    fields = [
        b"t\x01", b"b\xff", b"B\xff", b"s\xff\xfe", b"u\xff\xfe", b"I\xff\xff\xff\xfe", b"i\xff\xff\xff\xfe",
        b"l" + b"\xff" * 8, b"L" + b"\x7f" * 8, b"f\x3f\x80\x00\x00", b"d\x3f" + bytes(7), b"D\x02\x00\x00\x00\x7f",
        b"S\x00\x00\x00\x01a", b"x\x00\x00\x00\x02\x00\xff", b"A\x00\x00\x00\x02t\x00", b"T" + bytes(8),
        b"F" + bytes(4), b"V",
    ]  # fmt: skip
    every = b"".join(b"\x01k" + field for field in fields)
    return [table, table[4:], every, *(b"\x01k" + field for field in fields)]


SCRAPS = [
    b"\x00", b"\xff", b"\x7f", b"\x80", bytes(4), b"\xff" * 4, b"\x00\x00\x00\x01", b"\x7f\xff\xff\xff", b"\x01k",
    b"\xc3", b"A\x00\x00\x00\x05" * 70, b"\x01kF\x00\x00\x00\x07" * 70, b"\x01kD\xff\x80\x00\x00\x00",
    b"\x01kT" + b"\xff" * 8,
    b"\x01kd\x7f\xf8" + bytes(6), b"\x00t\x01", b"V" * 40,
]  # fmt: skip

target = Target("tables", fuzz_one, seeds(), SCRAPS)

if __name__ == "__main__":
    target.main(__doc__)
