"""A TCP proxy before a broker, which does harm when told to: resets, silence, slices, cuts after so many bytes."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from enum import Enum
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from weakref import WeakSet

RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: closing sends RST


class Direction(Enum):
    """Which way bytes go."""

    REQUEST = "request"  # from the client to the broker
    REPLY = "reply"


class Cut(NamedTuple):
    """Where a connection ends: after so many bytes of one way.

    They count from when the cut is set; with a marker, from the read that has it in a request.
    """

    direction: Direction
    after: int
    marker: bytes = b""


class Pair:
    """A client's connection and the one to the broker that belongs to it."""

    def __init__(self, client: asyncio.StreamWriter, broker: asyncio.StreamWriter, cut: Cut | None) -> None:
        self.silent = False
        self.source: str = client.get_extra_info("peername")[0]
        self._targets = {Direction.REQUEST: broker, Direction.REPLY: client}
        self._cut = cut  # of its own
        self._counted: Cut | None = None  # the cut that the next two are about
        self._marked = False
        self._passed = 0

    def allowed(self, way: Direction, data: bytes, cut: Cut | None) -> int:
        """How many of these bytes may pass, if that is the cut for all."""
        cut = self._cut or cut
        if cut is not self._counted:
            self._counted, self._marked, self._passed = cut, False, 0
        if cut is None:
            return len(data)
        self._marked = self._marked or (way is Direction.REQUEST and cut.marker in data)
        if way is not cut.direction or (cut.marker and not self._marked):
            return len(data)
        allowed = min(cut.after - self._passed, len(data))
        self._passed += allowed
        return allowed

    def is_used_up(self) -> bool:
        """Whether it has passed what it may."""
        return self._counted is not None and self._passed >= self._counted.after

    def write(self, way: Direction, data: bytes, size: int | None) -> None:
        """Pass bytes on, so many at a time."""
        target = self._targets[way]
        for start in range(0, len(data), size or max(len(data), 1)):
            if target.is_closing():  # asyncio warns of each write
                return
            target.write(data[start : start + (size or len(data))])

    def end(self, reset: bool = False) -> None:
        """End both: with FIN, or with RST."""
        for writer in self._targets.values():
            if reset:
                with suppress(OSError):
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()
            else:
                writer.close()


class Proxy:
    """Passes bytes between clients and the broker at a port. Its methods may be called from any thread."""

    def __init__(self, broker_port: int) -> None:
        #: Bytes that are sent at a time; None: as they come.
        self.slice: int | None = None
        #: Where all connections end.
        self.cut: Cut | None = None
        #: Where new connections end: each takes the next.
        self.cuts: Iterator[Cut] = iter(())
        #: Whether new connections are accepted, and nothing else.
        self.deaf = False
        #: Whether new connections are ended at once, as if there were no broker any more.
        self.ended = False
        #: Addresses from which nothing passes, nor to them.
        self.parted: frozenset[str] = frozenset()
        #: Connections taken so far.
        self.taken = 0
        #: The port that new connections lead to.
        self.target = broker_port
        self._pairs: set[Pair] = set()
        self._transports: WeakSet[asyncio.WriteTransport] = WeakSet()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    def url(self, url: str) -> str:
        """The URL of the broker, with the proxy in its place."""
        return url.replace(f":{urlsplit(url).port}", f":{self.port}")

    def refuse(self) -> None:
        """Take no new connections any more."""
        self._on_loop(self._server.close)

    def end(self) -> None:
        """End all connections with RST, those to come too."""
        self.ended = True
        self.reset()

    def reset(self) -> None:
        """End all connections with RST."""
        self._on_loop(lambda: [pair.end(reset=True) for pair in self._pairs])

    def finish(self) -> None:
        """End all connections with FIN."""
        self._on_loop(lambda: [pair.end() for pair in self._pairs])

    def part(self, sources: Iterable[str]) -> None:
        """Pass nothing any more from these addresses, nor to them. Open connections stay so until the reset."""
        self.parted = frozenset(sources)
        self._on_loop(lambda: [setattr(pair, "silent", True) for pair in self._pairs if pair.source in self.parted])

    def silence(self) -> None:
        """Pass nothing any more on all connections that there are, and do not close them."""
        self._on_loop(lambda: [setattr(pair, "silent", True) for pair in self._pairs])

    def close(self) -> None:
        """End it and all connections."""
        self._on_loop(self._server.close)
        self.finish()
        asyncio.run_coroutine_threadsafe(self._cancel_rest(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        with warnings.catch_warnings():  # a client that connects meanwhile leaves a transport that has no task yet
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _on_loop(self, work: Callable[[], Any]) -> None:
        async def do() -> None:
            work()

        asyncio.run_coroutine_threadsafe(do(), self._loop).result(10)

    async def _cancel_rest(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)  # connections that were just accepted get their tasks, which note them
        while rest := asyncio.all_tasks() - {asyncio.current_task()}:  # one that is cancelled may leave another
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
        if sys.version_info >= (3, 13):  # those of a client that connected meanwhile, which have no task yet, too
            self._server.abort_clients()
        for _ in range(5):  # they are closed in the loop's next turns
            for transport in list(self._transports):  # some wait for a peer that reads no more
                with suppress(AttributeError):  # what is closed by now has no loop any more, which abort does not ask
                    transport.abort()
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken += 1
        self._transports.add(writer.transport)
        if self.ended:
            writer.transport.abort()
            return
        try:
            broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        self._transports.add(broker_writer.transport)
        pair = Pair(writer, broker_writer, next(self.cuts, None))
        pair.silent = self.deaf or pair.source in self.parted
        self._pairs.add(pair)
        try:
            await asyncio.gather(
                self._pump(pair, Direction.REQUEST, reader), self._pump(pair, Direction.REPLY, broker_reader)
            )
        finally:
            pair.end()
            self._pairs.discard(pair)

    async def _pump(self, pair: Pair, way: Direction, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if pair.silent:
                    continue
                pair.write(way, data[: pair.allowed(way, data, self.cut)], self.slice)
                if pair.is_used_up():
                    break
        if not pair.silent:
            pair.end()
