"""Fuzzing the reader of AMQP 1.0's bodies: nothing but a ValueError comes out."""

from kombulite.utils.amqp10 import read_body
from tests.fuzz.engine import Target


def fuzz_one(data: bytes) -> None:
    """Read ``data``; raises whatever is a defect."""
    try:
        read_body(data)
    except ValueError:
        pass


def seeds() -> list[bytes]:
    """A value of each type, sequences, and data."""
    values = [
        "40", "41", "5601", "43", "45", "52ff", "54ff", "60ffff", "70ffffffff", "723fc00000", "7300000061",
        "80ffffffffffffffff", "82bff8000000000000", "83ffffffffffffffff", "98" + "00" * 16, "a00200ff", "a102c3a9",
        "b1000000027a7a", "c0050340415407", "c10904a1016b5401540245", "d10000000800000002a1016140", "e00402540102",
        "f00000000700000002540102", "a3017a",
    ]  # fmt: skip
    bodies = [f"005377{value}" for value in values]
    return [bytes.fromhex(each) for each in (*bodies, "005376c003015401" * 2, "005375a00161" * 2)]


SCRAPS = [
    b"\x00Sw", b"\x00Sv", b"\x00Su", b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\x83\x7f" + b"\xff" * 7,
    b"s\0\x11\0\0",
    b"\xd0\x00\x00\x00\xff\x00\x00\x00\x01" * 70, b"\xf0\x00\x00\x00\x05\xff\xff\xff\xff\x40", b"\xc0\xff\xff",
    b"\xe0\xff",
]  # fmt: skip

target = Target("amqp10", fuzz_one, seeds(), SCRAPS)

if __name__ == "__main__":
    target.main(__doc__)
