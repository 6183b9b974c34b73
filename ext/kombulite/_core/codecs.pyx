"""Choosing a codec: encoders by name, decoders by content type, and what is accepted."""

from codecs import lookup

from cpython.unicode cimport PyUnicode_AsUTF8String

from kombulite._core.message cimport Delivery
from kombulite._core.plain cimport PlainValue, plain_value
from kombulite._core.serialization cimport JSON

from kombulite._core.message import SLOW_CODECS

# Text and raw bytes hold nothing that could run; every consumer takes them.
TRUSTED_CONTENT = frozenset(["application/data", "application/text"])
BINARY_ENCODINGS = frozenset(["binary", "ascii-8bit"])


cdef class Codecs:
    """Encoders by name and decoders by content type. The base of the facade's serializer registry, which adds the rest.

    ``encoders``: name -> (content type, content encoding, encoder); ``default``: such a triple; ``decoders``: content
    type -> decoder; ``disabled``: content types that are refused where the receiver does not say what it accepts.
    """

    def __cinit__(self, *args, **kwargs):
        self.encoders = {}
        self.decoders = {}
        self.disabled = set()

    def use_json(self, JSON json not None, dumps, loads):
        """Take a short way where ``dumps`` and ``loads``, as they were registered, are those of ``json``.

        Args:
            json: The codec.
            dumps: Its registered encoder.
            loads: Its registered decoder.
        """
        self._json, self._json_dumps, self._json_loads = json, dumps, loads

    # --- what the facade adds

    def find_encoder(self, name):
        """Return the triple of an encoder that is not in ``encoders``, or raise.

        Args:
            name: Name of the encoder.
        """
        raise NotImplementedError

    def find_decoder(self, content_type):
        """Return the decoder of a content type that is not in ``decoders``, or None.

        Args:
            content_type: The content type.
        """
        raise NotImplementedError

    def refuse(self, content_type, is_disabled):
        """Raise the error for a content type that is not accepted.

        Args:
            content_type: The content type.
            is_disabled: If True, it is disabled; else the receiver does not name it.
        """
        raise NotImplementedError

    def encode_failed(self, error):
        """Raise the error for an encoder's exception.

        Args:
            error: The exception.
        """
        raise NotImplementedError

    def decode_failed(self, error):
        """Raise the error for a decoder's exception.

        Args:
            error: The exception.
        """
        raise NotImplementedError

    # --- the hot paths

    def dumps(self, data, serializer=None):
        """Encode a body: (content type, content encoding, payload).

        Args:
            data: The body.
            serializer: Name of the serializer (None: bytes and text pass as they are, all else takes the default).

        Raises:
            EncodeError: The body cannot be encoded.
            SerializerNotInstalled: The serializer is unknown.
        """
        return self._dumps(data, serializer)

    def encode(self, data, serializer):
        """Encode a body as ``dumps`` does, with the payload as it travels, which is bytes; text becomes UTF-8.

        Args:
            data: The body.
            serializer: Name of the serializer, or None.
        """
        return self._encode(data, serializer)

    cdef tuple _encode(self, data, serializer):
        cdef Delivery made = Delivery.__new__(Delivery)
        cdef tuple codec = self._encode_body(made, data, serializer, False)
        return codec[0], codec[1], made.content

    cdef tuple _encode_body(self, Delivery made, data, serializer, bint as_value):
        """Set the body of a message that is being made, where it may be a PlainValue ``as_value``.

        Returns a tuple that begins with its type and its encoding.
        """
        cdef tuple codec
        cdef JSON json = self._json
        if json is not None and (type(serializer) is str or serializer is None and type(data) is dict):
            codec = self.default if serializer is None else self.encoders.get(serializer)
            if codec is not None and codec[2] is self._json_dumps:
                try:
                    if as_value:
                        made.content = plain_value(data, json)
                    if made.content is None:
                        made.content = json.dump_bytes(data)
                except Exception as error:
                    self.encode_failed(error)
                    raise
                return codec
        codec = self._dumps(data, serializer)
        payload = codec[2]
        try:
            if type(payload) is bytes:
                made.content = payload
            elif isinstance(payload, str):
                made.content = PyUnicode_AsUTF8String(payload)
            elif isinstance(payload, (bytes, bytearray, memoryview)):
                made.content = bytes(payload)
            else:
                raise TypeError(f"a body travels as text or bytes, not as {type(payload).__name__}")
        except Exception as error:
            self.encode_failed(error)
            raise
        return codec

    cdef tuple _dumps(self, data, serializer):
        cdef tuple codec
        try:
            if not serializer:
                if isinstance(data, bytes):
                    return "application/data", "binary", data
                if isinstance(data, str):
                    return "text/plain", "utf-8", data.encode("utf-8")
                codec = self.default
            elif serializer == "raw":
                if isinstance(data, str):
                    return "application/data", "utf-8", data.encode("utf-8")
                return "application/data", "binary", data
            else:
                codec = self.encoders.get(serializer)
                if codec is None:
                    codec = self.find_encoder(serializer)
            return codec[0], codec[1], codec[2](data)
        except Exception as error:
            self.encode_failed(error)
            raise

    def loads(self, data, content_type, content_encoding, accept=None, bint force=False):
        """Decode a body.

        Args:
            data: The body, bytes or text.
            content_type: Its content type.
            content_encoding: Its content encoding.
            accept: Content types that may be decoded (None: all that are not disabled).
            force: If True, and ``accept`` is None, disabled ones may be decoded too.

        Raises:
            ContentDisallowed: The content type is not accepted.
            DecodeError: The body cannot be decoded.
        """
        return self._loads(data, content_type, content_encoding, accept, force)

    cdef object _loads(self, data, content_type, content_encoding, accept, bint force):
        cdef JSON json = self._json
        if not content_type:
            content_type = "application/data"
        if accept is None:
            if not force and content_type in self.disabled:
                self.refuse(content_type, True)
        elif content_type not in accept and content_type not in TRUSTED_CONTENT:
            self.refuse(content_type, False)
        if type(data) is not PlainValue and not data:
            return data
        decoder = self.decoders.get(content_type)
        if decoder is None:
            decoder = self.find_decoder(content_type)
        try:
            if type(data) is PlainValue:
                if (
                    json is not None and decoder is self._json_loads
                    and (json.keeps_standard_types or not (<PlainValue> data).has_types)
                ):
                    return (<PlainValue> data).build()
                data = (<PlainValue> data).text()
            if decoder is not None:
                return json.loads(data) if decoder is self._json_loads else decoder(data)
            content_encoding = (content_encoding or "utf-8").lower()
            if isinstance(data, str) or content_encoding in BINARY_ENCODINGS:
                return data
            if lookup(content_encoding).name in SLOW_CODECS:
                raise LookupError(f"bodies are not read as {content_encoding}")
            return bytes(data).decode(content_encoding)
        except Exception as error:
            self.decode_failed(error)
