"""AMQP 0-9-1 frames: what a client sends and what it receives, as bytes.

Format: section 4.2 of the specification. A frame is type (octet), channel (short), size (long), payload, and the octet
0xCE. A message is a method frame, a content header frame (section 4.2.6.1), and as many body frames as it needs.

Sans-I/O: ``FrameDecoder`` takes bytes, however they are sliced, and gives events; ``FrameEncoder`` returns bytes, or
buffers. Each is for one connection. An encoder may be shared by threads, a decoder is its owner's to lock.

Both directions stand in one module, though it is long: they share the layout of frames, methods and properties.
"""

import datetime as dt
from codecs import lookup

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove

from kombulite._core.buffer cimport Buffer, buffer_free, buffer_init, buffer_reserve, buffer_write
from kombulite._core.channel cimport AckStep, PublishStep
from kombulite._core.fieldtable cimport read_table, timestamp_of, write_table
from kombulite._core.locks cimport BaseLock
from kombulite._core.message cimport Delivery, Properties
from kombulite._core.wire cimport (
    Cursor, peek16, peek32, peek64, poke16, poke32, poke64, read8, read16, read32, read64, read_short, read_span,
    text_of, write8, write16, write64, write_short,
)

from kombulite._core.fieldtable import MalformedFrame, MalformedValue, NotEncodable, ProtocolError, UnexpectedFrame
from kombulite._core.message import SLOW_CODECS

cdef enum:
    METHOD = 1
    HEADER = 2
    BODY = 3
    HEARTBEAT = 8
    END = 0xCE
    OVERHEAD = 8  # bytes of a frame around its payload

    BASIC = 60  # class id; the methods of it that are spoken here
    PUBLISH = 40
    RETURN = 50
    DELIVER = 60
    GET = 70
    GET_OK = 71
    ACK = 80
    REJECT = 90
    NACK = 120

    SMALLEST_FRAME_MAX = 4096  # bytes (section 4.9)
    DEFAULT_FRAME_MAX = 131072  # bytes, as RabbitMQ proposes
    LARGEST_FRAME_MAX = 0x7fffffff
    LARGEST_BODY = 536870912  # bytes, 512 MiB; RabbitMQ allows no larger ones
    ROOM = 131072  # free bytes that the decoder offers to its reader, at least

cdef uint64_t LARGEST_OFFSET = 1 << 63  # of a stream
# Of a delivery on a channel: a million a second for 142 years. A channel whose connection is lost goes on above the
# highest one, and 4,000 times that fits into 64 bits.
cdef uint64_t LARGEST_TAG = 1 << 52

#: From so many bytes on a body is not copied into its frames where a socket takes several buffers at once.
LARGE_BODY = 65536
cdef Py_ssize_t _LARGE_BODY = LARGE_BODY
#: What a system call takes of them (Linux: UIO_MAXIOV in linux/uio.h).
cdef Py_ssize_t MAX_BUFFERS = 1024

#: A heartbeat frame (section 4.2.7).
HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"


cdef Py_ssize_t largest_payload(Py_ssize_t frame_max) except -1:
    """Bytes of payload in a frame of the size that was negotiated."""
    if not SMALLEST_FRAME_MAX <= frame_max <= LARGEST_FRAME_MAX:
        raise ValueError(f"a frame may have {SMALLEST_FRAME_MAX} bytes to 2 GiB, not {frame_max}")
    return frame_max - OVERHEAD


# --- encoding -----------------------------------------------------------------------------------------------------


@cython.final
cdef class _Head:
    """What a publish has in common with the next one to the same place: method and header frame.

    Never changed: code that encoding runs (a mapping's, a finalizer's) may publish too, and has its own.
    """

    cdef bytes frames
    cdef Py_ssize_t size_at  # where the body size stands in them
    cdef object exchange
    cdef object routing_key
    cdef Properties properties
    cdef unsigned int channel
    cdef bint mandatory


@cython.final
cdef class FrameEncoder:
    """Frames to send.

    ``frame_max``: bytes that a frame may have, as negotiated; ``gathers``: whether a message with a body of LARGE_BODY
    bytes or more is a list of buffers to be sent one after the other, so that the body is not copied.
    """

    cdef public bint gathers
    cdef Py_ssize_t _chunk
    cdef _Head _head  # of the last publish

    def __cinit__(self, Py_ssize_t frame_max=DEFAULT_FRAME_MAX):
        self.frame_max = frame_max

    @property
    def frame_max(self):
        return self._chunk + OVERHEAD

    @frame_max.setter
    def frame_max(self, Py_ssize_t frame_max):
        self._chunk = largest_payload(frame_max)
        self._head = None  # it may be too large now

    def publish(self, uint16_t channel, Delivery delivery not None, bint mandatory=False):
        """A message (basic.publish), body frames and all, as bytes or as a list of buffers. Raises NotEncodable."""
        return self._message(channel, delivery, mandatory)

    cdef object _message(self, uint16_t channel, Delivery delivery, bint mandatory):
        cdef bytes body = body_of(delivery)
        cdef bytes frames
        cdef _Head head
        with cython.critical_section(self):
            head = self._prepare(channel, delivery, mandatory)
            if self.gathers and PyBytes_GET_SIZE(body) >= _LARGE_BODY:
                return self._buffers(head, body)
            frames = PyBytes_FromStringAndSize(NULL, self._length(head, PyBytes_GET_SIZE(body)))
            self._fill(PyBytes_AS_STRING(frames), head, body)
        return frames

    def publish_many(self, uint16_t channel, list deliveries not None, Py_ssize_t start, Py_ssize_t size_hint,
                     bint mandatory=False):
        """The messages from index ``start`` on, until they have ``size_hint`` bytes: (bytes, index of the next one).

        One that is a list of buffers stands alone. Ends before a message that cannot be encoded; raises NotEncodable
        where it is the first.
        """
        cdef Py_ssize_t index = start
        cdef Delivery delivery
        cdef bytes body
        cdef _Head head
        cdef Buffer out
        if start < 0:
            raise IndexError(f"there is no message {start}")
        buffer_init(&out)
        try:
            while index < len(deliveries) and (out.size < size_hint or index == start):
                delivery = <Delivery?> deliveries[index]
                try:
                    body = body_of(delivery)
                    with cython.critical_section(self):
                        head = self._prepare(channel, delivery, mandatory)
                        if self.gathers and PyBytes_GET_SIZE(body) >= _LARGE_BODY:
                            if index > start:
                                break
                            return self._buffers(head, body), index + 1
                        self._append(&out, head, body)
                except NotEncodable:
                    if index == start:
                        raise
                    break
                index += 1
            return PyBytes_FromStringAndSize(out.data, out.size), index
        finally:
            buffer_free(&out)

    def ack(self, uint16_t channel, uint64_t delivery_tag, bint multiple=False):
        """basic.ack"""
        return settlement(channel, ACK, delivery_tag, multiple)

    def reject(self, uint16_t channel, uint64_t delivery_tag, bint requeue=False):
        """basic.reject"""
        return settlement(channel, REJECT, delivery_tag, requeue)

    def nack(self, uint16_t channel, uint64_t delivery_tag, bint multiple=False, bint requeue=False):
        """basic.nack (RabbitMQ): reject, for all up to a tag with ``multiple``."""
        return settlement(channel, NACK, delivery_tag, multiple | requeue << 1)

    def get(self, uint16_t channel, queue, bint no_ack=False):
        """basic.get. Raises NotEncodable."""
        cdef Buffer out
        buffer_init(&out)
        try:
            write16(&out, 0)
            write_short(&out, queue, "a queue's name")
            write8(&out, no_ack)
            return self.method(channel, BASIC, GET, PyBytes_FromStringAndSize(out.data, out.size))
        except (TypeError, ValueError) as error:
            raise NotEncodable(str(error)) from error
        finally:
            buffer_free(&out)

    def method(self, uint16_t channel, uint16_t class_id, uint16_t method_id, bytes arguments not None):
        """A method frame around arguments that are encoded already."""
        cdef Py_ssize_t size = len(arguments)
        cdef bytes frame
        cdef char* at
        if size + 4 > self._chunk:
            raise NotEncodable(f"a method of {size} bytes does not fit into a frame")
        frame = PyBytes_FromStringAndSize(NULL, 12 + size)
        at = PyBytes_AS_STRING(frame)
        put_frame_start(at, METHOD, channel, size + 4)
        poke16(at + 7, class_id)
        poke16(at + 9, method_id)
        memcpy(at + 11, <const char*> arguments, size)
        at[11 + size] = <char> END
        return frame

    cdef _Head _prepare(self, unsigned int channel, Delivery delivery, bint mandatory):
        cdef _Head head = self._head
        if (
            head is not None and delivery.routing_key is head.routing_key
            and delivery.properties is head.properties and delivery.exchange is head.exchange
            and channel == head.channel and mandatory == head.mandatory
        ):
            return head
        head = _Head.__new__(_Head)
        head.channel = channel
        head.exchange = delivery.exchange
        head.routing_key = delivery.routing_key
        head.properties = delivery.properties
        head.mandatory = mandatory
        try:
            if head.properties is None:
                raise TypeError("a Delivery without properties: it was made without its __init__")
            self._encode_head(head)
        except (TypeError, ValueError, OverflowError) as error:
            raise NotEncodable(str(error)) from error
        self._head = head
        return head

    cdef int _encode_head(self, _Head head) except -1:
        cdef Buffer out
        cdef Py_ssize_t start
        cdef bytes properties = encoded_properties(head.properties)
        if len(properties) + 12 > self._chunk:
            raise ValueError(f"properties of {len(properties)} bytes do not fit into a frame")
        buffer_init(&out)
        try:
            start = open_frame(&out, METHOD, head.channel)
            write16(&out, BASIC)
            write16(&out, PUBLISH)
            write16(&out, 0)
            write_short(&out, head.exchange, "an exchange's name")
            write_short(&out, head.routing_key, "a routing key")
            write8(&out, head.mandatory)
            close_frame(&out, start)
            start = open_frame(&out, HEADER, head.channel)
            write16(&out, BASIC)
            write16(&out, 0)
            head.size_at = out.size
            write64(&out, 0)
            buffer_write(&out, <const char*> properties, len(properties))
            close_frame(&out, start)
            head.frames = PyBytes_FromStringAndSize(out.data, out.size)
        finally:
            buffer_free(&out)
        return 0

    @cython.nonecheck(False)  # of this and the next one: a head is what _prepare has returned
    @cython.cdivision(True)  # a chunk has some bytes
    cdef Py_ssize_t _length(self, _Head head, Py_ssize_t size) noexcept:
        return PyBytes_GET_SIZE(head.frames) + size + (size + self._chunk - 1) // self._chunk * OVERHEAD

    cdef list _buffers(self, _Head head, bytes body):
        """A message as buffers; those of the body are its own memory."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(body), before = PyBytes_GET_SIZE(head.frames), sent = 0
        cdef Py_ssize_t part = min(size, self._chunk)
        cdef bytes between = PyBytes_FromStringAndSize(NULL, before + 7)
        cdef char* at = PyBytes_AS_STRING(between)
        cdef list buffers = []
        view = memoryview(body)
        memcpy(at, PyBytes_AS_STRING(head.frames), before)
        poke64(at + head.size_at, size)
        put_frame_start(at + before, BODY, head.channel, part)
        while True:
            buffers.append(between)
            buffers.append(view[sent:sent + part])
            sent += part
            if sent == size:
                buffers.append(b"\xce")
                return buffers
            part = min(size - sent, self._chunk)
            between = PyBytes_FromStringAndSize(NULL, OVERHEAD)
            at = PyBytes_AS_STRING(between)
            at[0] = <char> END
            put_frame_start(at + 1, BODY, head.channel, part)

    cdef int _append(self, Buffer* out, _Head head, bytes body) except -1:
        cdef Py_ssize_t length = self._length(head, PyBytes_GET_SIZE(body))
        buffer_reserve(out, length)
        self._fill(out.data + out.size, head, body)
        out.size += length
        return 0

    @cython.nonecheck(False)
    cdef void _fill(self, char* at, _Head head, bytes content) noexcept:
        """Write a message to where there is room for it."""
        cdef const char* body = PyBytes_AS_STRING(content)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(content)
        cdef Py_ssize_t part, before = PyBytes_GET_SIZE(head.frames)
        memcpy(at, PyBytes_AS_STRING(head.frames), before)
        poke64(at + head.size_at, size)
        at += before
        while size:
            part = min(size, self._chunk)
            put_frame_start(at, BODY, head.channel, part)
            memcpy(at + 7, body, part)
            at[7 + part] = <char> END
            at += part + OVERHEAD
            body += part
            size -= part


cdef bytes body_of(Delivery delivery):
    body = delivery.sent_body()
    if type(body) is not bytes:
        raise NotEncodable(f"a body travels as bytes, not as {type(body).__name__}")
    return <bytes> body


cdef inline void put_frame_start(char* at, uint8_t kind, unsigned int channel, Py_ssize_t size) noexcept:
    at[0] = <char> kind
    poke16(at + 1, <uint16_t> channel)
    poke32(at + 3, <uint32_t> size)


cdef Py_ssize_t open_frame(Buffer* out, uint8_t kind, unsigned int channel) except -1:
    cdef Py_ssize_t start = out.size
    buffer_reserve(out, 7)
    put_frame_start(out.data + start, kind, channel, 0)
    out.size += 7
    return start


cdef int close_frame(Buffer* out, Py_ssize_t start) except -1:
    poke32(out.data + start + 3, <uint32_t> (out.size - start - 7))
    return write8(out, END)


cdef bytes settlement(unsigned int channel, uint16_t method_id, uint64_t delivery_tag, uint8_t bits):
    """basic.ack, basic.reject and basic.nack: a tag, and an octet of bits."""
    cdef bytes frame = PyBytes_FromStringAndSize(NULL, 21)
    cdef char* at = PyBytes_AS_STRING(frame)
    put_frame_start(at, METHOD, channel, 13)
    poke16(at + 7, BASIC)
    poke16(at + 9, method_id)
    poke64(at + 11, delivery_tag)
    at[19] = <char> bits
    at[20] = <char> END
    return frame


# --- properties ---------------------------------------------------------------------------------------------------


cdef bytes encoded_properties(Properties properties):
    """``encode_properties``, once for all messages that share them."""
    cdef bytes encoded
    with cython.critical_section(properties):  # they are shared between connections, and so between threads
        if properties.encoded is None:
            properties.encoded = encode_properties(properties)
        encoded = properties.encoded
    return encoded


cdef bytes encode_properties(Properties properties):
    """Flags and values of a content header (section 4.2.6.1). ``headers`` are always sent, as kombu does."""
    cdef Buffer out
    cdef uint16_t flags = 0x2000
    buffer_init(&out)
    try:
        write16(&out, 0)
        flags |= put_short(&out, properties.content_type, "content_type", 0x8000)
        flags |= put_short(&out, properties.content_encoding, "content_encoding", 0x4000)
        write_table(&out, {} if properties.headers is None else properties.headers, 0)
        flags |= put_octet(&out, properties.delivery_mode, "delivery_mode", 0x1000)
        flags |= put_octet(&out, properties.priority, "priority", 0x0800)
        flags |= put_short(&out, properties.correlation_id, "correlation_id", 0x0400)
        flags |= put_short(&out, properties.reply_to, "reply_to", 0x0200)
        flags |= put_short(&out, properties.expiration, "expiration", 0x0100)
        flags |= put_short(&out, properties.message_id, "message_id", 0x0080)
        if properties.timestamp is not None:
            write64(&out, as_seconds(properties.timestamp))
            flags |= 0x0040
        flags |= put_short(&out, properties.type, "type", 0x0020)
        flags |= put_short(&out, properties.user_id, "user_id", 0x0010)
        flags |= put_short(&out, properties.app_id, "app_id", 0x0008)
        flags |= put_short(&out, properties.cluster_id, "cluster_id", 0x0004)
        poke16(out.data, flags)
        return PyBytes_FromStringAndSize(out.data, out.size)
    finally:
        buffer_free(&out)


cdef uint64_t as_seconds(object moment) except? 0:
    return timestamp_of(moment) if isinstance(moment, dt.datetime) else moment


cdef int put_short(Buffer* out, object value, str name, int flag) except -1:
    if value is None:
        return 0
    write_short(out, value, name)
    return flag


cdef int put_octet(Buffer* out, object value, str name, int flag) except -1:
    if value is None:
        return 0
    if not isinstance(value, int) or not 0 <= value <= 255:
        raise ValueError(f"{name} is a number from 0 to 255, not {value!r:.80}")
    write8(out, value)
    return flag


cdef uint64_t following_offset(dict headers) except? 0:
    """Return the offset behind a message in its stream (RabbitMQ), 0 for one that is not from a stream."""
    offset = headers.get("x-stream-offset")
    if type(offset) is int and 0 <= offset < LARGEST_OFFSET:
        return <uint64_t> offset + 1
    return 0


cdef Properties decode_properties(Cursor* cursor):
    cdef Properties properties = Properties.__new__(Properties)
    cdef uint16_t flags = read16(cursor)
    properties.from_header = True
    if flags & 3:
        raise ValueError("unknown properties")
    if flags & 0x8000:
        properties.content_type = read_short(cursor)
    if flags & 0x4000:
        properties.content_encoding = read_short(cursor)
    if flags & 0x2000:
        properties.headers = read_table(cursor, 0) or None
        if properties.headers is not None:
            properties.following_offset = following_offset(properties.headers)
    if flags & 0x1000:
        properties.delivery_mode = read8(cursor)
    if flags & 0x0800:
        properties.priority = read8(cursor)
    if flags & 0x0400:
        properties.correlation_id = read_short(cursor)
    if flags & 0x0200:
        properties.reply_to = read_short(cursor)
    if flags & 0x0100:
        properties.expiration = read_short(cursor)
    if flags & 0x0080:
        properties.message_id = read_short(cursor)
    if flags & 0x0040:
        properties.timestamp = read64(cursor)
    if flags & 0x0020:
        properties.type = read_short(cursor)
    if flags & 0x0010:
        properties.user_id = read_short(cursor)
    if flags & 0x0008:
        properties.app_id = read_short(cursor)
    if flags & 0x0004:
        properties.cluster_id = read_short(cursor)
    if cursor.at != cursor.end:
        raise ValueError(f"{cursor.end - cursor.at} bytes follow the properties")
    return properties


# --- events -------------------------------------------------------------------------------------------------------


@cython.final
cdef class MethodReceived:
    """Event: a method that carries no message, its arguments not decoded. Channel 0 is the connection."""

    cdef readonly unsigned int channel
    cdef readonly tuple signature  # class id, method id
    cdef readonly bytes arguments

    def __repr__(self):
        return f"<MethodReceived {self.signature} on channel {self.channel}, {len(self.arguments)} bytes>"


@cython.final
cdef class ReturnReceived:
    """Event: a mandatory message came back (basic.return)."""

    cdef readonly unsigned int channel
    cdef readonly unsigned int reply_code
    cdef readonly str reply_text
    cdef readonly Delivery delivery

    def __repr__(self):
        return f"<ReturnReceived {self.reply_code} {self.reply_text!r} on channel {self.channel}>"


@cython.final
cdef class ConfirmReceived:
    """Event: the broker took (basic.ack) or refused (basic.nack) what was published, up to a tag with ``multiple``."""

    cdef readonly unsigned int channel
    cdef readonly uint64_t delivery_tag
    cdef readonly bint multiple
    cdef readonly bint accepted

    def __repr__(self):
        return (f"<ConfirmReceived {'ack' if self.accepted else 'nack'} {self.delivery_tag}"
                f"{' and all before' if self.multiple else ''} on channel {self.channel}>")


# --- acknowledging ------------------------------------------------------------------------------------------------


@cython.final
cdef class HeldAcks:
    """The acks of one stream that wait to be sent, with those of the deliveries that follow, as one frame of a channel.

    ``may_wait(channel, delivery_tag)``: whether an ack may, None if its delivery was not given out: a decoder's
    ``is_followed``, or ``was_given`` where all that is sent waits for the end of a turn. ``on_hold()`` is called when
    the first is held, and ``flush()`` if an ack may not wait that comes after such ones.
    """

    cdef object _may_wait
    cdef object _on_hold
    cdef object _flush
    cdef list _channels  # that hold some
    cdef bint _closed

    def __cinit__(self, may_wait, on_hold, flush):
        self._may_wait = may_wait
        self._on_hold = on_hold
        self._flush = flush
        self._channels = []

    def __bool__(self):
        return len(self._channels) > 0

    def take(self):
        """Return the frames of what is held, which is not held any more."""
        cdef AckWatermark channel
        cdef list frames = []
        with cython.critical_section(self):
            for channel in self._channels:
                frames.append(settlement(channel._number, ACK, channel._held, channel._held != channel._first))
                channel._held = 0
            self._channels.clear()
        return b"".join(frames)

    def close(self):
        """Hold no more, and forget what is held: the stream has ended."""
        with cython.critical_section(self):
            self._closed = True
            self._channels.clear()


@cython.final
cdef class FrameWriter:
    """Writes frames, and keeps what the kernel did not take. For the thread that has the turn to write.

    Each call is one step for signal handlers, which run between two steps of Python: acks that are taken here are
    written before those that a handler makes. If a handler's came first, RabbitMQ would close the channel, for
    `multiple` would name a tag that is acknowledged already. And no frame of a handler comes into the middle of
    another. Only TLS has steps of Python within; there a handler may close the channel so, which loses no message.
    """

    cdef readonly object unsent
    cdef object _send
    cdef object _sendmsg
    cdef tuple _blocking_errors

    def __cinit__(self, send, sendmsg, tuple blocking_errors not None):
        self._send = send
        self._sendmsg = sendmsg
        self._blocking_errors = blocking_errors
        self.unsent = b""

    cpdef write(self, data, int flags, HeldAcks held):
        """Write frames, bytes or a list of buffers, behind the acks that are held; what is not written is ``unsent``.

        ``send(bytes, flags)`` and ``sendmsg(buffers, (), flags)`` return how many bytes the kernel took.
        """
        if type(data) is list:
            buffers = list(data)
            if held is not None and held._channels:
                buffers.insert(0, held.take())
            self._write_buffers(buffers, flags)
            return
        if type(data) is not bytes:
            raise TypeError(f"frames are bytes or a list of buffers, not {type(data).__name__}")
        if held is not None and held._channels:
            data = held.take() + <bytes> data
        try:
            sent = self._send(data, flags)
        except self._blocking_errors:
            sent = 0
        if sent != len(<bytes> data):
            self.unsent = memoryview(data)[sent:]

    def write_rest(self):
        """Write what the kernel takes of what is ``unsent``."""
        if type(self.unsent) is list:
            self._write_buffers(self.unsent, 0)
            return
        try:
            self.unsent = self.unsent[self._send(self.unsent):]
        except self._blocking_errors:
            pass

    cdef int _write_buffers(self, list buffers, int flags) except -1:
        cdef Py_ssize_t sent = 0, taken = 0
        try:
            sent = self._sendmsg(buffers[:MAX_BUFFERS], (), flags)
        except self._blocking_errors:
            pass
        while taken < len(buffers) and sent >= len(buffers[taken]):
            sent -= len(buffers[taken])
            taken += 1
        del buffers[:taken]
        if sent:
            buffers[0] = memoryview(buffers[0])[sent:]
        self.unsent = buffers
        return 0


@cython.final
cdef class FramePublish(PublishStep):
    """Publishes on a channel without confirms, as one step, where there is nothing to do but to write frames.

    All else is left to ``publish``. These are the parts of a connection that it looks at:

    Args:
        publish: Publishes any message; called as ``BaseChannel`` calls it.
        clock: Returns the time, as ``transport.look_at`` has it.
        transport: ``look_at``: when what the broker says is to be heard again.
        protocol: ``blocked``: why the broker takes no messages, or None.
        channel: ``closing``: whether it is closed; ``confirms``: None where the broker confirms no message.
        stream: ``failure``, ``answers``, ``held``, ``corked``, ``heartbeat``; ``write_failed(error)`` raises what is to
            be raised, ``finish_write(timeout)`` writes what the kernel did not take.
        writing: The lock of who writes.
        encoder: Makes frames.
        writer: Writes them.
        exchanges: Names of the exchanges that are known to be there.
    """

    cdef object _publish
    cdef object _clock
    cdef object _transport
    cdef object _protocol
    cdef object _channel
    cdef object _stream
    cdef BaseLock _writing
    cdef FrameEncoder _encoder
    cdef FrameWriter _writer
    cdef set _exchanges

    def __cinit__(self, publish, clock, transport, protocol, channel, stream, BaseLock writing not None,
                  FrameEncoder encoder not None, FrameWriter writer not None, set exchanges not None):
        self._publish = publish
        self._clock = clock
        self._transport = transport
        self._protocol = protocol
        self._channel = channel
        self._stream = stream
        self._writing = writing
        self._encoder = encoder
        self._writer = writer
        self._exchanges = exchanges

    cdef object send(self, object channel, Delivery delivery, bint mandatory, object timeout, object confirm_timeout):
        if not self._write(channel, delivery, mandatory, timeout):
            self._publish(channel, delivery, mandatory, timeout, confirm_timeout)

    cdef bint _write(self, object channel, Delivery delivery, bint mandatory, object timeout) except -1:
        """Write a message, if nothing stands in the way. Returns whether it is done."""
        if (
            delivery.exchange not in self._exchanges or self._clock() > self._transport.look_at
            or self._protocol.blocked is not None or self._channel.confirms is not None
        ):
            return False
        try:
            frames = self._encoder._message(channel, delivery, mandatory)
        except NotEncodable:
            return False
        if not self._writing._acquire(0):
            return False
        try:
            # Only now nobody else writes: a request for confirms, or the end of the channel, say.
            return self._write_frames(frames, timeout)
        finally:
            self._writing._release()

    cdef bint _write_frames(self, frames, timeout) except -1:
        channel, stream, writer = self._channel, self._stream, self._writer
        if (
            channel.closing or channel.confirms is not None or stream.failure is not None or writer.unsent
            or stream.answers
        ):
            return False
        try:
            writer.write(frames, 0, stream.held)
        except BaseException as error:
            stream.write_failed(error)
            raise
        stream.corked = False
        stream.heartbeat.writes += 1
        if writer.unsent:
            try:
                stream.finish_write(timeout)
            except OSError as error:
                stream.write_failed(error)
                raise
        return True


@cython.final
cdef class AckWatermark(AckStep):
    """Which of the deliveries 1, 2, 3, … of a channel are settled, as far as two numbers can tell.

    It may know of fewer than there are, never of more: each delivery is settled once. With ``held`` it acknowledges, as
    a step of its own, what comes in order, while all before it is settled, if it may wait.

    Args:
        held: Where acks are held; without it, none are.
        number: The channel's.
        tag_offset: What delivery tags have more than the broker's.
        failed: The broker's tags of deliveries that failed; none is acknowledged here while there are some.
    """

    cdef unsigned long long _count
    cdef unsigned long long _highest
    cdef unsigned long long _covered  # the highest that was settled together with all before it
    cdef HeldAcks _acks
    cdef unsigned int _number
    cdef unsigned long long _tag_offset
    cdef unsigned long long _first  # the broker's tag of the first ack that is held
    cdef unsigned long long _held  # and of the last one, 0 for none
    cdef set _failed
    cdef bint _closed

    def __cinit__(self, HeldAcks held=None, uint16_t number=0, unsigned long long tag_offset=0, set failed=None):
        self._acks = held
        self._number = number
        self._tag_offset = tag_offset
        self._failed = failed

    def close(self):
        """Acknowledge no more: the channel is closed."""
        with cython.critical_section(self):
            self._closed = True

    cdef bint acknowledge_tag(self, object delivery_tag) except -1:
        cdef HeldAcks acks = self._acks
        cdef uint64_t tag
        cdef object may_wait
        cdef bint is_first = False
        if acks is None or acks._closed or self._closed or self._failed or type(delivery_tag) is not int:
            return False
        with cython.critical_section(self):
            if self._count != self._highest or delivery_tag != self._highest + self._tag_offset + 1:
                return False
            may_wait = acks._may_wait(self._number, delivery_tag)
            if may_wait is None or (not may_wait and self._held == 0):
                return False
            tag = self._count = self._highest = self._highest + 1
            if self._held == 0:
                self._first = tag
                acks._channels.append(self)
                is_first = len(acks._channels) == 1
            self._held = tag
        try:
            if not may_wait:
                acks._flush()
            elif is_first:
                acks._on_hold()
        except BaseException:
            self._take_back(tag)
            raise
        return True

    cdef void _take_back(self, uint64_t tag):
        """Forget the last ack, which raised, unless it was sent: it may be made again."""
        with cython.critical_section(self):
            if self._held != tag or self._highest != tag or self._count != tag:
                return
            self._count = self._highest = tag - 1
            if self._first == tag:
                self._held = 0
                self._acks._channels.remove(self)
            else:
                self._held = tag - 1

    def add(self, unsigned long long delivery_tag, bint multiple=False):
        """Note that a delivery is settled; with ``multiple`` all up to it."""
        with cython.critical_section(self):
            if multiple:
                self._covered = max(self._covered, delivery_tag)
                if delivery_tag >= self._highest:
                    self._count = delivery_tag
            elif delivery_tag > self._covered:  # or it was counted with them: threads note what they sent in any order
                self._count += 1
            if delivery_tag > self._highest:
                self._highest = delivery_tag

    def completes(self, list delivery_tags not None):
        """Whether all are settled up to the highest of these, once these are, which are in order and not settled."""
        cdef unsigned long long last
        if not delivery_tags:
            return False
        last = delivery_tags[-1]
        with cython.critical_section(self):
            return self._highest <= last and self._count + <unsigned long long> len(delivery_tags) == last

    def is_all(self, unsigned long long last):
        """Return whether all are settled up to the last one."""
        with cython.critical_section(self):
            return self._count >= last

    def unsettled(self, unsigned long long last):
        """Return how many of the deliveries up to the last one may be not settled."""
        with cython.critical_section(self):
            return last - self._count if last > self._count else 0


# --- decoding -----------------------------------------------------------------------------------------------------


cdef class _Content:
    """A channel's message that is coming in: its method has come, its header or its body not yet."""

    cdef object event  # what it becomes: the delivery, or a ReturnReceived around it
    cdef Delivery delivery
    cdef uint64_t size
    cdef uint64_t filled
    cdef bytes body  # where the frames of a long one are put together
    cdef uint64_t first_tag  # what is added to the broker's delivery tags
    cdef uint64_t last_tag  # the highest one given out
    cdef bint from_queues  # whether there were messages of queues
    cdef bint from_streams  # whether there were messages of streams


@cython.final
cdef class FrameDecoder:
    """Bytes in, events out: ``Delivery`` (``consumer_tag`` is None in the answer to a get), ``ReturnReceived``,
    ``ConfirmReceived``, ``MethodReceived``.

    Bytes come by ``receive_data``; or they are read straight into the decoder, which is a writable buffer (its free
    room), and ``received`` tells it how many. Take the buffer anew for each read. What it holds is bounded: a frame by
    ``frame_max``, a body by LARGEST_BODY, messages in the making by the channels that were ``open``\\ ed. What comes
    for a channel that was closed is discarded. After an error it gives no more events.

    A body is text where its content encoding is a character set, as kombu has it on AMQP, unless it is compressed. A
    message whose properties cannot be read is delivered all the same, and its ``error`` says why.
    """

    cdef char* _data
    cdef Py_ssize_t _capacity
    cdef Py_ssize_t _start  # of what is not decoded yet
    cdef Py_ssize_t _end
    cdef Py_ssize_t _exported  # readers at work
    cdef bint _decoding  # a frame is looked at where it lies
    cdef Py_ssize_t _limit  # bytes in a payload
    cdef dict _contents  # by channel that is open
    cdef set _closed  # channels that were open
    cdef _Content _content  # of the channel that had a message last
    cdef unsigned int _content_channel
    cdef object _error
    # What a message has in common with the one before: the strings of its method, and its properties.
    cdef bytes _tag_bytes
    cdef str _tag
    cdef bytes _place_bytes
    cdef str _exchange
    cdef str _routing_key
    cdef bytes _properties_bytes
    cdef Properties _properties

    def __cinit__(self):
        self._contents = {}
        self._closed = set()
        self._capacity = 2 * ROOM
        self._data = <char*> PyMem_Malloc(self._capacity)
        if self._data == NULL:
            raise MemoryError()

    def __dealloc__(self):
        PyMem_Free(self._data)

    def __init__(self, Py_ssize_t frame_max=DEFAULT_FRAME_MAX):
        self.frame_max = frame_max

    @property
    def frame_max(self):
        """Bytes that a frame may have."""
        return self._limit + OVERHEAD

    @frame_max.setter
    def frame_max(self, Py_ssize_t frame_max):
        self._limit = largest_payload(frame_max)

    def open(self, uint16_t channel, uint64_t above=0):
        """Expect messages on a channel; ``above`` is added to their delivery tags."""
        cdef _Content content = _Content()
        content.first_tag = content.last_tag = above
        self._contents[channel] = content
        self._closed.discard(channel)
        self._content = None

    def close(self, uint16_t channel):
        """Discard the messages that are still in flight on a channel, until it is opened again."""
        if self._contents.pop(channel, None) is not None:
            self._closed.add(channel)
        self._content = None

    def is_closed(self, uint16_t channel):
        """Return whether a channel was open, and is not any more: the broker may not know that yet."""
        return channel in self._closed

    def last_tag(self, uint16_t channel):
        """The highest delivery tag given out on a channel, 0 if there was none."""
        cdef _Content content = self._content_of(channel)
        return 0 if content is None else content.last_tag

    def sources(self, uint16_t channel):
        """Return whether messages of queues, and whether messages of streams came on a channel: a pair."""
        cdef _Content content = self._content_of(channel)
        return (False, False) if content is None else (content.from_queues, content.from_streams)

    def was_given(self, uint16_t channel, uint64_t delivery_tag):
        """Return True if a delivery was given out, else None."""
        cdef _Content content = self._content_of(channel)
        return None if content is None or delivery_tag > content.last_tag else True

    def is_followed(self, uint16_t channel, uint64_t delivery_tag):
        """Return whether the delivery behind one is here in whole; None if that one was not given out."""
        cdef _Content content = self._content_of(channel)
        return None if content is None or delivery_tag > content.last_tag else self._has_delivery()

    cdef bint _has_delivery(self) noexcept:
        cdef const uint8_t* at = <const uint8_t*> self._data + self._start
        cdef const uint8_t* end = <const uint8_t*> self._data + self._end
        cdef uint64_t size, left = 0
        cdef int frame = 0
        while end - at >= OVERHEAD:
            size = peek32(at + 3)
            if <uint64_t> (end - at) < size + OVERHEAD:
                return False
            if frame == 0:
                if at[0] != METHOD or size < 4 or peek16(at + 7) != BASIC or peek16(at + 9) != DELIVER:
                    return False
            elif frame == 1:
                if at[0] != HEADER or size < 12:
                    return False
                left = peek64(at + 11)
            elif at[0] != BODY or size > left:
                return False
            else:
                left -= size
            if frame >= 1 and left == 0:
                return True
            frame = min(frame + 1, 2)
            at += size + OVERHEAD
        return False

    # --- bytes in

    def receive_data(self, data):
        """Take bytes from the peer, or whatever has a buffer of them."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self._make_room(view.len)
            memmove(self._data + self._end, view.buf, view.len)  # it may be our own room
            self._end += view.len
        finally:
            PyBuffer_Release(&view)

    def received(self, Py_ssize_t size):
        """Say that ``size`` bytes were written into the room that the decoder offered as a buffer."""
        if not 0 <= size <= self._capacity - self._end:
            raise ValueError(f"{size} bytes were not offered")
        self._end += size

    def read(self, recv_into, Py_ssize_t size=0):
        """Have ``recv_into(decoder, size)`` read, and take what it says it has read: one step. Returns how many bytes.

        ``size``: how many it may read, 0 for as many as there is room for.
        """
        cdef Py_ssize_t read = recv_into(self, size)
        self.received(read)
        return read

    def __getbuffer__(self, Py_buffer* view, int flags):
        self._make_room(ROOM)
        PyBuffer_FillInfo(view, self, self._data + self._end, self._capacity - self._end, 0, flags | PyBUF_WRITABLE)
        self._exported += 1

    def __releasebuffer__(self, Py_buffer* view):
        self._exported -= 1

    cdef int _make_room(self, Py_ssize_t size) except -1:
        cdef Py_ssize_t held = self._end - self._start, capacity
        cdef char* data
        if self._capacity - self._end >= size:
            return 0
        if self._exported or self._decoding:
            raise BufferError("the decoder is at work, or being written to")
        if self._capacity - held >= size:
            memmove(self._data, self._data + self._start, held)
        else:
            capacity = 2 * (held + size)  # doubled, so that a long frame is not copied with each read
            data = <char*> PyMem_Malloc(capacity)
            if data == NULL:
                raise MemoryError()
            memcpy(data, self._data + self._start, held)
            PyMem_Free(self._data)
            self._data = data
            self._capacity = capacity
        self._start = 0
        self._end = held
        return 0

    # --- events out

    def next_event(self):
        """The next event, or None where more bytes are needed.

        Raises MalformedFrame, MalformedValue, UnexpectedFrame; then the connection is of no use any more.
        """
        return self._next_event()

    cdef object _next_event(self):
        if self._error is not None:
            raise self._error.with_traceback(None)
        if self._decoding:
            raise RuntimeError("the decoder is at work: code that decoding runs has come back to it")
        try:
            return self._decode()
        except ProtocolError as error:
            self._error = error
            raise
        except (ValueError, OverflowError) as error:
            self._error = MalformedValue(f"malformed frame: {error}")
            raise self._error from error
        except BaseException:  # no memory, or an interrupt: a frame is lost, and with it the sequence
            self._error = UnexpectedFrame("decoding was interrupted before")
            raise

    cdef object _decode(self):
        cdef Cursor payload
        cdef const uint8_t* at
        cdef Py_ssize_t held
        cdef uint32_t size
        cdef uint8_t kind
        cdef unsigned int channel
        while True:
            held = self._end - self._start
            if held < 7:
                break
            at = <const uint8_t*> self._data + self._start
            kind = at[0]
            channel = peek16(at + 1)
            size = peek32(at + 3)
            if kind != METHOD and kind != HEADER and kind != BODY and kind != HEARTBEAT:
                raise MalformedFrame(f"a frame of the unknown type {kind}")
            if size > self._limit:
                raise MalformedFrame(f"a frame of {size} bytes, where {self._limit} are allowed")
            if held < <Py_ssize_t> size + OVERHEAD:
                break
            if at[7 + size] != END:
                raise MalformedFrame(f"a frame that ends with {at[7 + size]:#04x}")
            payload.at = at + 7
            payload.end = payload.at + size
            self._start += size + OVERHEAD
            self._decoding = True  # a finalizer, run by a garbage collection, may come back here
            try:
                if kind == METHOD:
                    event = self._method(channel, &payload)
                elif kind == HEADER:
                    event = self._header(channel, &payload)
                elif kind == BODY:
                    event = self._body(channel, &payload)
                elif channel or size:
                    raise MalformedFrame("a heartbeat with a channel or a payload")
                else:
                    event = None
            finally:
                self._decoding = False
            if event is not None:
                return event
        if self._start == self._end and not self._exported:
            self._start = self._end = 0
        return None

    cdef _Content _content_of(self, unsigned int channel):
        if self._content is None or self._content_channel != channel:
            self._content = self._contents.get(channel)
            self._content_channel = channel
        return self._content

    cdef object _method(self, unsigned int channel, Cursor* cursor):
        cdef uint16_t class_id = read16(cursor), method_id = read16(cursor)
        cdef ConfirmReceived confirm
        cdef uint8_t bits
        cdef _Content content = self._content_of(channel)
        if content is not None and content.delivery is not None:
            raise UnexpectedFrame(f"method {class_id},{method_id} within a message")
        if class_id == BASIC:
            if method_id == DELIVER or method_id == GET_OK or method_id == RETURN:
                if content is None:
                    if channel in self._closed:
                        return None
                    raise UnexpectedFrame(f"a message on channel {channel}, which is not open")
                self._begin(content, channel, method_id, cursor)
                return None
            if method_id == ACK or method_id == NACK:
                confirm = ConfirmReceived.__new__(ConfirmReceived)
                confirm.channel = channel
                confirm.delivery_tag = read64(cursor)
                bits = read8(cursor)
                confirm.multiple = bits & 1
                confirm.accepted = method_id == ACK
                return confirm
        return method_received(channel, class_id, method_id, cursor)

    @cython.nonecheck(False)  # the caller has looked
    cdef int _begin(self, _Content content, unsigned int channel, uint16_t method_id, Cursor* cursor) except -1:
        """A method came that a message follows."""
        cdef Delivery delivery = Delivery.__new__(Delivery)
        cdef ReturnReceived returned
        cdef uint64_t tag
        delivery.channel = channel
        content.event = delivery
        if method_id == RETURN:
            returned = ReturnReceived.__new__(ReturnReceived)
            returned.channel = channel
            returned.reply_code = read16(cursor)
            returned.reply_text = read_short(cursor)
            returned.delivery = delivery
            content.event = returned
        else:
            if method_id == DELIVER:
                delivery.consumer_tag = self._consumer_tag(read_span(cursor, read8(cursor)))
            tag = read64(cursor)
            if tag > LARGEST_TAG or tag > ~content.first_tag:  # or the sum would begin at 0 again
                raise MalformedValue(f"the delivery tag {tag}, where at most {LARGEST_TAG} is allowed")
            tag += content.first_tag
            content.last_tag = max(content.last_tag, tag)
            delivery.delivery_tag = tag
            delivery.redelivered = read8(cursor) & 1
        self._set_place(delivery, cursor)
        if method_id == GET_OK:
            delivery.message_count = read32(cursor)
        content.delivery = delivery
        return 0

    cdef str _consumer_tag(self, Cursor span):
        if self._tag_bytes is None or not is_same(self._tag_bytes, span):
            self._tag_bytes = None
            self._tag = text_of(span)
            self._tag_bytes = bytes_of(span)
        return self._tag

    cdef int _set_place(self, Delivery delivery, Cursor* cursor) except -1:
        """Exchange and routing key, which neighbours often share."""
        cdef Cursor span
        cdef const uint8_t* start = cursor.at
        read_span(cursor, read8(cursor))
        read_span(cursor, read8(cursor))
        span.at = start
        span.end = cursor.at
        if self._place_bytes is None or not is_same(self._place_bytes, span):
            self._place_bytes = None
            self._exchange = read_short(&span)
            self._routing_key = read_short(&span)
            span.at = start
            self._place_bytes = bytes_of(span)
        delivery.exchange = self._exchange
        delivery.routing_key = self._routing_key
        return 0

    cdef object _header(self, unsigned int channel, Cursor* cursor):
        cdef _Content content = self._content_of(channel)
        cdef Delivery delivery
        if content is None or content.delivery is None or content.delivery.properties is not None:
            if channel in self._closed:
                return None
            raise UnexpectedFrame(f"a content header on channel {channel}, where none is due")
        delivery = content.delivery
        if read16(cursor) != BASIC:
            raise MalformedValue("a content header of another class than basic")
        read16(cursor)  # the weight, which is not used
        content.size = read64(cursor)
        content.filled = 0
        if content.size > LARGEST_BODY:
            raise MalformedValue(f"a body of {content.size} bytes, where {LARGEST_BODY} are allowed")
        if self._properties_bytes is None or not is_same(self._properties_bytes, cursor[0]):
            self._read_properties(delivery, cursor)
        else:
            delivery.properties = self._properties
        if delivery.properties.following_offset:
            content.from_streams = True
        else:
            content.from_queues = True
        if content.size == 0:
            return self._complete(content, cursor.end, 0)
        return None

    cdef int _read_properties(self, Delivery delivery, Cursor* cursor) except -1:
        cdef bytes raw = bytes_of(cursor[0])
        self._properties_bytes = None
        try:
            delivery.properties = decode_properties(cursor)
        except (ValueError, OverflowError) as error:
            # The frames are in order, so the connection is: only this message is not.
            delivery.properties = Properties()
            delivery.error = MalformedValue(f"malformed properties: {error}")
            return 0
        self._properties = delivery.properties
        self._properties_bytes = raw
        return 0

    cdef object _body(self, unsigned int channel, Cursor* cursor):
        cdef _Content content = self._content_of(channel)
        cdef uint64_t size = cursor.end - cursor.at
        if content is None or content.delivery is None or content.delivery.properties is None:
            if channel in self._closed:
                return None
            raise UnexpectedFrame(f"a body on channel {channel}, where none is due")
        if size > content.size - content.filled:
            raise MalformedFrame(f"a body of more than the {content.size} bytes that were announced")
        if size == 0:
            return None
        if size == content.size:  # all of it at once
            return self._complete(content, cursor.at, size)
        if content.body is None:
            content.body = PyBytes_FromStringAndSize(NULL, content.size)
        memcpy(PyBytes_AS_STRING(content.body) + content.filled, cursor.at, size)
        content.filled += size
        if content.filled < content.size:
            return None
        return self._complete(content, <const uint8_t*> PyBytes_AS_STRING(content.body), content.size)

    @cython.nonecheck(False)  # the callers have looked, and properties come before a body
    cdef object _complete(self, _Content content, const uint8_t* body, uint64_t size):
        cdef Delivery delivery = content.delivery
        cdef bytes whole = content.body
        event = content.event
        content.event = content.delivery = content.body = None
        if is_utf8(delivery.properties):
            try:
                delivery.content = PyUnicode_DecodeUTF8(<const char*> body, size, NULL)
                return event
            except UnicodeDecodeError:
                pass
        if whole is None:  # it came in one frame
            whole = PyBytes_FromStringAndSize(<const char*> body, size)
        delivery.content = whole
        self._decoding = False  # all is as it has to be: codecs run code, which may come back here
        text = body_as_text(delivery.properties, whole)
        if text is not None:
            delivery.content = text
        return event


cdef object method_received(unsigned int channel, uint16_t class_id, uint16_t method_id, Cursor* cursor):
    cdef MethodReceived event = MethodReceived.__new__(MethodReceived)
    event.channel = channel
    event.signature = (class_id, method_id)
    event.arguments = bytes_of(cursor[0])
    return event


cdef inline bytes bytes_of(Cursor span):
    return PyBytes_FromStringAndSize(<const char*> span.at, span.end - span.at)


cdef inline bint is_same(bytes known, Cursor span) noexcept:
    cdef Py_ssize_t size = span.end - span.at
    return PyBytes_GET_SIZE(known) == size and memcmp(PyBytes_AS_STRING(known), span.at, size) == 0


cdef inline bint is_utf8(Properties properties):
    encoding = properties.content_encoding
    return (
        type(encoding) is str and <str> encoding == "utf-8"
        and (properties.headers is None or "compression" not in properties.headers)
    )


cdef object body_as_text(Properties properties, bytes body):
    """A body as text, or None where it is none."""
    encoding = properties.content_encoding
    if encoding is None or encoding == "utf-8":
        return None
    if properties.headers is not None and "compression" in properties.headers:
        return None
    try:
        return None if lookup(encoding).name in SLOW_CODECS else body.decode(encoding)
    except MemoryError:
        raise
    except Exception:  # no character set ("binary", say), or bytes that are not of it; codecs raise what they like
        return None


@cython.final
cdef class FrameReceive:
    """The next message of what was read at once, as one step, where there is nothing else to receive before it.

    These are the parts of a connection that it looks at:

    Args:
        stream: ``failure``: why it is of no use any more, or None; ``waiters``: how many threads sleep until the reader
            has done something, and ``wake()`` has them look; ``give_up_decoding(error)`` raises what an error of the
            decoder means.
        reading: The lock of who reads.
        decoder: Has what was read.
        events: What waits to be received; empty, or it is received first.
        dispatch: Has another event than a message handled; called as the reader.
    """

    cdef object _stream
    cdef BaseLock _reading
    cdef FrameDecoder _decoder
    cdef object _events
    cdef object _dispatch

    def __cinit__(self, stream, BaseLock reading not None, FrameDecoder decoder not None, events, dispatch):
        self._stream = stream
        self._reading = reading
        self._decoder = decoder
        self._events = events
        self._dispatch = dispatch

    def next(self):
        """Take a message (a Delivery); None if none is here, or something else comes first, or another thread reads."""
        if self._events or self._stream.failure is not None or not self._reading._acquire(0):
            return None
        try:
            return self._take()
        finally:
            self._reading._release()
            if self._stream.waiters:  # others may read now
                self._stream.wake()

    cdef object _take(self):
        if self._events:  # the thread that read until now has left some
            return None
        try:
            event = self._decoder._next_event()
        except ProtocolError as error:
            self._stream.give_up_decoding(error)
            raise
        if event is None:
            return None
        if type(event) is Delivery and (<Delivery> event).consumer_tag is not None:
            return event
        self._dispatch(event)
        return None
