"""A sender of AMQP 1.0, made by hand: it logs in, attaches one link to a queue, and transfers messages."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

SASL_MECHANISMS, SASL_INIT, SASL_OUTCOME = 0x40, 0x41, 0x44
OPEN, BEGIN, ATTACH, FLOW, TRANSFER, DISPOSITION, CLOSE = 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x18
TIMEOUT = 20.0  # seconds for each answer

NULL, TRUE, FALSE = b"\x40", b"\x41", b"\x42"


def described(code: int, *fields: bytes) -> bytes:
    """Return a list of fields with a descriptor."""
    content = b"".join(fields)
    return b"\x00\x53" + bytes([code]) + b"\xd0" + struct.pack(">II", len(content) + 4, len(fields)) + content


def text(value: str) -> bytes:
    return b"\xa1" + bytes([len(value)]) + value.encode()


def symbol(value: str) -> bytes:
    return b"\xa3" + bytes([len(value)]) + value.encode()


def number(value: int) -> bytes:
    return b"\x70" + struct.pack(">I", value)


def send(port: int, queue: str, messages: Sequence[bytes]) -> None:
    """Send messages, which are the sections that each consists of, and wait until the broker has accepted them."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as sock:
        peer = _Peer(sock)
        peer.greet(b"AMQP\x03\x01\x00\x00", SASL_MECHANISMS)
        peer.write(1, described(SASL_INIT, symbol("PLAIN"), b"\xa0\x0c\x00guest\x00guest"))
        peer.read_until(SASL_OUTCOME)
        peer.greet(b"AMQP\x00\x01\x00\x00")
        peer.write(0, described(OPEN, text("test")))
        peer.write(0, described(BEGIN, NULL, number(0), number(100), number(100)))
        source, target = described(0x28, text("here")), described(0x29, text(f"/queues/{queue}"))
        peer.write(
            0, described(ATTACH, text("link"), number(0), FALSE, NULL, NULL, source, target, NULL, FALSE, number(0))
        )
        peer.read_until(FLOW)  # which gives credit
        for tag, message in enumerate(messages):
            transfer = described(TRANSFER, number(0), number(tag), b"\xa0\x01" + bytes([tag]), number(0), FALSE, FALSE)
            peer.write(0, transfer + message)
            peer.read_until(DISPOSITION)
        peer.write(0, described(CLOSE))
        peer.read_until(CLOSE)


class _Peer:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb")

    def greet(self, header: bytes, answer: int | None = None) -> None:
        """Exchange headers, and read the frame that the broker sends unasked."""
        self._sock.sendall(header)
        assert self._file.read(8) == header
        if answer is not None:
            self.read_until(answer)

    def write(self, kind: int, body: bytes) -> None:
        """Write a frame of AMQP (0) or SASL (1) for channel 0."""
        self._sock.sendall(struct.pack(">IBBH", len(body) + 8, 2, kind, 0) + body)

    def read_until(self, code: int) -> None:
        """Read frames until one has this performative."""
        while True:
            size, offset = struct.unpack(">IB3x", self._file.read(8))
            body = self._file.read(size - 8)[4 * offset - 8 :]
            if body[:3] == b"\x00\x53" + bytes([code]):
                return
            assert body[:3] != b"\x00\x53\x18", f"the broker closes the connection: {body!r}"
