"""The byte stream between an event loop and the broker. It has no locks, because one thread has all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext, suppress
from copy import copy
from typing import Any, NoReturn

from kombulite import exceptions
from kombulite._core import FrameDecoder, FrameEncoder, HeldAcks, ProtocolError
from kombulite.brokers.aio import Pending, closed, resolve
from kombulite.brokers.amqp.errors import codec_error
from kombulite.brokers.amqp.heartbeat import Heartbeat
from kombulite.brokers.amqp.methods import Frames

HIGH_WATER = 1024 * 1024  # bytes that wait to be written before publishers are asked to wait


def do_nothing(*arguments: Any) -> None:
    """Stand for a callback that is not set."""


class AsyncStream(asyncio.BufferedProtocol):
    """The byte stream between the loop and the broker, with the codec on it.

    Args:
        loop: The loop that runs it.
        on_end: Called by the loop with the error that the stream ended with.
    """

    handle: Callable[[Any], None]  # called with what the decoder gives

    def __init__(self, loop: asyncio.AbstractEventLoop, on_end: Callable[[Exception], object]) -> None:
        self.decoder = FrameDecoder()
        self.encoder = FrameEncoder()
        self.heartbeat = Heartbeat()
        #: Acks of this turn of the loop that came in order; they leave before its requests, and at its end.
        self.held = HeldAcks(self.decoder.was_given, self.flush_soon, do_nothing)
        self.writing = nullcontext()
        self.failure: Exception | None = None
        self.closed: Pending[None] = loop.create_future()  # done when the socket is closed
        #: Called after each turn in which bytes came or went, and before the bytes of a turn are written.
        self.on_progress: Callable[[], object] = do_nothing
        self.before_flush: Callable[[], bytes] | None = None
        self._loop = loop
        self._on_end = on_end
        self._transport: Any = None
        self._view: memoryview | None = None
        self._out: list[bytes | memoryview] = []
        self._has_buffers = False  # a large body is among them, not to be copied
        self._size = 0
        self._is_flushing = False  # a flush is scheduled
        self._is_paused = False

    # --- for the loop

    def connection_made(self, transport: Any) -> None:
        """Take the transport of the loop."""
        self._transport = transport
        self.encoder.gathers = transport.get_extra_info("sslcontext") is None
        transport.set_write_buffer_limits(high=HIGH_WATER)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return room of the decoder to read into."""
        if self._view is not None:
            with suppress(BufferError):
                self._view.release()  # or the decoder could not make more room
        self._view = memoryview(self.decoder)
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Handle all events of what was read."""
        decoder, handle = self.decoder, self.handle
        decoder.received(nbytes)
        self.heartbeat.reads += 1
        try:
            while self.failure is None and (event := decoder.next_event()) is not None:
                handle(event)
        except ProtocolError as error:
            self.fail(codec_error(error))
        except exceptions.AMQPError as error:
            self.fail(error)
        self.on_progress()

    def eof_received(self) -> None:
        """Fail: the broker closes its side without having said why."""
        self.fail(exceptions.RecoverableConnectionError("the broker closed the connection without a word"))

    def pause_writing(self) -> None:
        """Note that the broker reads too slowly."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """Note that there is room again."""
        self._is_paused = False
        self.on_progress()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail, if that is not why it was lost."""
        self.fail(exc or exceptions.RecoverableConnectionError("the broker closed the connection without a word"))
        resolve(self.closed)

    # --- for the protocol

    @property
    def is_full(self) -> bool:
        """Whether there is more to write than should be."""
        return self._is_paused or self._size > HIGH_WATER

    def send(
        self,
        data: Frames,
        timeout: float | None = None,
        more: bool = False,
        on_turn: Callable[[], object] | None = None,
    ) -> None:
        """Write frames at the end of this turn of the loop, after what was to be written before."""
        self.check()
        self.flush_acks()
        if on_turn is not None:
            on_turn()
        self.write(data)

    def write(self, data: Frames) -> None:
        """Write at the end of this turn of the loop, without looking at anything."""
        if isinstance(data, list):
            self._out.extend(data)
            self._size += sum(map(len, data))
            self._has_buffers = True
        else:
            self._out.append(data)
            self._size += len(data)
        if not self._is_flushing:
            self.flush_soon()

    def flush_soon(self) -> None:
        """Write at the end of this turn of the loop."""
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        out = self._out
        self.flush_acks()
        was_full, self._size = self._size > HIGH_WATER, 0
        if self.failure is not None:
            out.clear()
        elif self._has_buffers:
            self._has_buffers = False
            self._out = []
            self.heartbeat.writes += 1
            self._transport.writelines(out)  # which may keep the list
        else:
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            if data:
                self.heartbeat.writes += 1
                self._transport.write(data)
        if was_full:
            self.on_progress()

    def flush_acks(self) -> None:
        """Write what was acknowledged in this turn: first what came in order, which the rest may build on."""
        if self.held:
            self._out.append(self.held.take())
        if self.before_flush is not None:
            self._out.append(self.before_flush())

    def check(self) -> None:
        """Raise the error that the stream ended with, if it has."""
        if self.failure is not None:
            self._raise()

    def _raise(self) -> NoReturn:
        assert self.failure is not None
        raise copy(self.failure)  # each gets its own: tracebacks would pile up on a shared one

    def fail(self, error: Exception) -> None:
        """Note that the stream is of no use any more. The first error counts."""
        if self.failure is None:
            self.failure = exceptions.socket_error(error) if isinstance(error, OSError) else error
            self.held.close()
            self._loop.call_soon(self._end)

    def _end(self) -> None:
        self.abort()
        assert self.failure is not None
        self._on_end(self.failure)

    def answer(self, data: bytes, on_turn: Callable[[], object] | None = None) -> None:
        """Write frames as ``send`` does, unless ``on_turn`` raises RecoverableConnectionError."""
        with suppress(exceptions.RecoverableConnectionError):
            self.send(data, on_turn=on_turn)

    def farewell(self, data: bytes) -> None:
        """Write frames after the stream has failed."""
        if self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        """Close the socket without a word."""
        if self.failure is None:
            self.failure = closed()
        self.held.close()
        if self._transport is not None:
            self._transport.abort()
