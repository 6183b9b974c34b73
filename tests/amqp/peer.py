"""A broker that does what a test says: it listens on the loopback interface, and a script is its part."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from amqp.serialization import dumps, loads

from kombulite import Connection
from kombulite._core import HEARTBEAT_FRAME, Delivery, FrameEncoder, Properties

PATIENCE = 30.0  # seconds until a script that waits for the client fails
HEADER = b"AMQP\x00\x00\x09\x01"
SERVER_PROPERTIES = {
    "product": "Scripted",
    "version": "1.0",
    "capabilities": {
        "publisher_confirms": True,
        "basic.nack": True,
        "consumer_cancel_notify": True,
        "connection.blocked": True,
        "authentication_failure_close": True,
    },
}

START, START_OK = (10, 10), (10, 11)
TUNE, TUNE_OK = (10, 30), (10, 31)
OPEN, OPEN_OK = (10, 40), (10, 41)
CLOSE, CLOSE_OK = (10, 50), (10, 51)
BLOCKED, UNBLOCKED = (10, 60), (10, 61)
CHANNEL_OPEN, CHANNEL_OPEN_OK = (20, 10), (20, 11)
FLOW, FLOW_OK = (20, 20), (20, 21)
CHANNEL_CLOSE, CHANNEL_CLOSE_OK = (20, 40), (20, 41)
DECLARE, DECLARE_OK = (50, 10), (50, 11)
CONSUME, CONSUME_OK = (60, 20), (60, 21)
GET, GET_OK = (60, 70), (60, 71)
CANCEL, CANCEL_OK = (60, 30), (60, 31)
PUBLISH, RETURN, DELIVER, ACK, NACK = (60, 40), (60, 50), (60, 60), (60, 80), (60, 120)
SELECT, SELECT_OK = (85, 10), (85, 11)


class Method(NamedTuple):
    """A method that the client sent; ``header`` and ``body`` of a message."""

    channel: int
    signature: tuple[int, int]
    arguments: bytes
    body: bytes = b""
    header: bytes = b""

    def read(self, format: str) -> list[Any]:
        values: list[Any] = loads(format, self.arguments, 0)[0]
        return values


class Gone(Exception):
    """The client closed its connection."""


class Session:
    """One connection of a client."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self.sock = sock
        self.encoder = FrameEncoder()
        self.heartbeats = 0  # that the client sent
        self.client_properties: dict[str, Any] = {}
        self.tuned: list[int] = []  # channel_max, frame_max, heartbeat

    # --- what the client says

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            if not part:
                raise Gone
            data += part
        return data

    def frame(self) -> tuple[int, int, bytes]:
        kind, channel, size = struct.unpack(">BHL", self.read(7))
        payload = self.read(size)
        assert self.read(1) == b"\xce"
        return kind, channel, payload

    def method(self) -> Method:
        """The next method, with its message if it is a publish."""
        while True:
            kind, channel, payload = self.frame()
            if kind == 1:
                break
            assert kind == 8
            self.heartbeats += 1
        signature = struct.unpack(">HH", payload[:4])
        body = header = b""
        if signature == PUBLISH:
            kind, _, header = self.frame()
            assert kind == 2
            (size,) = struct.unpack(">Q", header[4:12])
            while len(body) < size:
                kind, _, part = self.frame()
                assert kind == 3
                body += part
        return Method(channel, signature, payload[4:], body, header)

    def expect(self, signature: tuple[int, int]) -> Method:
        method = self.method()
        assert method.signature == signature, f"{method.signature} instead of {signature}"
        return method

    # --- what it is told

    def send(self, channel: int, signature: tuple[int, int], format: str = "", *values: Any) -> None:
        arguments = bytes(dumps(format, values)) if format else b""
        self.sock.sendall(self.encoder.method(channel, *signature, arguments))

    def message(self, channel: int, signature: tuple[int, int], format: str, values: Any, body: bytes = b"") -> None:
        """A method that a message follows."""
        frames = self.encoder.publish(channel, Delivery("", "", Properties(), body))
        (size,) = struct.unpack(">L", frames[3:7])
        content = frames[8 + size :]
        self.sock.sendall(self.encoder.method(channel, *signature, bytes(dumps(format, values))) + content)

    def deliver(self, tag: int, body: bytes = b"x", consumer_tag: str = "c", channel: int = 1) -> None:
        self.message(channel, DELIVER, "sLbss", (consumer_tag, tag, False, "", "q"), body)

    def give_back(self, body: bytes, routing_key: str, channel: int = 1, code: int = 312) -> None:
        self.message(channel, RETURN, "Bsss", (code, "NO_ROUTE", "", routing_key), body)

    def give_back_as_sent(self, method: Method, routing_key: str) -> None:
        """Return a message of a method, with its properties; its body is short."""
        arguments = bytes(dumps("Bsss", (312, "NO_ROUTE", "", routing_key)))
        self.sock.sendall(self.encoder.method(method.channel, *RETURN, arguments))
        for kind, payload in ((2, method.header), (3, method.body)):
            self.sock.sendall(struct.pack(">BHL", kind, method.channel, len(payload)) + payload + b"\xce")

    def ack(self, tag: int, multiple: bool = False, channel: int = 1) -> None:
        self.send(channel, ACK, "Lb", tag, multiple)

    def nack(self, tag: int, multiple: bool = False, channel: int = 1) -> None:
        self.send(channel, NACK, "Lbb", tag, multiple, False)

    def close_channel(self, code: int, text: str, signature: tuple[int, int] = PUBLISH, channel: int = 1) -> None:
        self.send(channel, CHANNEL_CLOSE, "BsBB", code, text, *signature)

    def close(self, code: int, text: str, signature: tuple[int, int] = (0, 0)) -> None:
        self.send(0, CLOSE, "BsBB", code, text, *signature)

    def beat(self) -> None:
        self.sock.sendall(HEARTBEAT_FRAME)

    # --- what it is told in turn

    def start(self) -> None:
        assert self.read(8) == HEADER
        self.send(0, START, "ooFSS", 0, 9, SERVER_PROPERTIES, "PLAIN AMQPLAIN EXTERNAL", "en_US")
        self.client_properties = self.expect(START_OK).read("FsSs")[0]

    def handshake(self, channel_max: int = 2047, frame_max: int = 131072, heartbeat: int = 0) -> None:
        self.start()
        self.send(0, TUNE, "BlB", channel_max, frame_max, heartbeat)
        self.tuned = self.expect(TUNE_OK).read("BlB")
        self.expect(OPEN)
        self.send(0, OPEN_OK, "s", "")

    def open_channel(self, confirms: bool = False) -> int:
        channel = self.expect(CHANNEL_OPEN).channel
        self.send(channel, CHANNEL_OPEN_OK, "S", "")
        if confirms:
            self.expect(SELECT)
            self.send(channel, SELECT_OK)
        return channel

    def consume(self) -> str:
        """Answer a consume; returns the consumer's tag."""
        method = self.expect(CONSUME)
        tag: str = method.read("Bss")[2]
        self.send(method.channel, CONSUME_OK, "s", tag)
        return tag

    def verify(self) -> None:
        """Let a publisher know that its message arrived."""
        self.send(self.expect(FLOW).channel, FLOW_OK, "b", True)

    def farewell(self) -> None:
        """Answer everything until the client says goodbye."""
        with suppress(Gone, OSError):
            while True:
                method = self.method()
                if method.signature == CLOSE:
                    self.send(0, CLOSE_OK)
                    return
                if method.signature == CHANNEL_CLOSE:
                    self.send(method.channel, CHANNEL_CLOSE_OK)
                elif method.signature == FLOW:
                    self.send(method.channel, FLOW_OK, "b", True)
                elif method.signature == CHANNEL_OPEN:
                    self.send(method.channel, CHANNEL_OPEN_OK, "S", "")
                elif method.signature == SELECT:
                    self.send(method.channel, SELECT_OK)
                elif method.signature == CANCEL:
                    self.send(method.channel, CANCEL_OK, "s", method.read("s")[0])
                elif method.signature == DECLARE:
                    self.send(method.channel, DECLARE_OK, "sll", method.read("Bs")[1], 0, 0)

    def silence(self) -> None:
        """Take what comes, and say nothing, until the client is gone."""
        with suppress(OSError):
            while self.sock.recv(65536):
                pass


class Peer:
    """Listens; plays a script with the next client, or one with each of the next clients."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE)
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self.errors: list[BaseException] = []

    def connection(self, **options: Any) -> Connection:
        return Connection(f"amqp://127.0.0.1:{self.port}//", **options)

    def play(self, *scripts: Callable[[Session], Any]) -> None:
        def run() -> None:
            try:
                for script in scripts:
                    sock, _ = self._listener.accept()
                    self._sockets.append(sock)
                    script(Session(sock))
                    if script is not scripts[-1]:
                        sock.close()
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        """Wait for the scripts; raise what went wrong in them."""
        deadline = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._listener.close()
        for sock in self._sockets:
            sock.close()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive(), "a script goes on"
        for error in self.errors:
            raise error
