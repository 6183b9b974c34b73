"""As much of MQTT 5 as it takes to publish a message and to receive the answer."""

from __future__ import annotations

import socket
import struct

TIMEOUT = 20.0  # seconds
CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK = 0x10, 0x20, 0x30, 0x40, 0x80, 0x90
AT_LEAST_ONCE = 0x02  # in the flags of a publish; a subscription has the same bit


def data(value: bytes) -> bytes:
    """Bytes with their length, as text is written too."""
    return struct.pack(">H", len(value)) + value


def text(value: str) -> bytes:
    return data(value.encode())


def content_type(value: str) -> bytes:
    return b"\x03" + text(value)


def response_topic(value: str) -> bytes:
    return b"\x08" + text(value)


def correlation_data(value: bytes) -> bytes:
    return b"\x09" + data(value)


def user_property(name: str, value: str) -> bytes:
    return b"\x26" + text(name) + text(value)


class Client:
    """A connection to the broker, logged in as guest. Packets have less than 16,384 bytes."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        self._answers = self._socket.makefile("rb")
        self._number = 0
        login = text("kombulite"), text("guest"), text("guest")
        self._send(CONNECT, text("MQTT"), b"\x05\xc2\x00\x3c\x00", *login)
        answer = self._receive(CONNACK)
        assert answer[1] == 0, f"not let in: {answer[1]:#x}"

    def publish(self, topic: str, body: bytes, *properties: bytes) -> None:
        """Publish a message, and wait until the broker has it."""
        joined = b"".join(properties)
        self._send(PUBLISH | AT_LEAST_ONCE, text(topic), self._next(), bytes([len(joined)]), joined, body)
        assert self._receive(PUBACK)[:2] == struct.pack(">H", self._number)

    def subscribe(self, topic: str) -> None:
        """Subscribe to a topic, and wait until the broker has noted that."""
        self._send(SUBSCRIBE | AT_LEAST_ONCE, self._next(), b"\x00", text(topic), b"\x00")
        self._receive(SUBACK)

    def receive(self) -> tuple[str, bytes]:
        """Return the next message: its topic, and what comes behind the length of its properties."""
        content = self._receive(PUBLISH)
        end = 2 + int.from_bytes(content[:2], "big")
        return content[2:end].decode(), content[end + 1 :]

    def close(self) -> None:
        self._answers.close()
        self._socket.close()

    def _next(self) -> bytes:
        self._number += 1
        return struct.pack(">H", self._number)

    def _send(self, kind: int, *parts: bytes) -> None:
        content = b"".join(parts)
        size = [len(content)] if len(content) < 128 else [len(content) & 127 | 128, len(content) >> 7]
        self._socket.sendall(bytes([kind, *size]) + content)

    def _receive(self, kind: int) -> bytes:
        first, size = self._answers.read(2)
        if size > 127:
            size = size & 127 | self._answers.read(1)[0] << 7
        assert first & 0xF0 == kind
        return self._answers.read(size)
