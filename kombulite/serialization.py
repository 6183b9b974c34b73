"""Serializers by name and content type, and the policy of what is accepted."""

from __future__ import annotations

import os
from codecs import decode as _decode  # noqa: F401 - by kombu's name, which programs import
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import Any, NoReturn

from kombulite._core import Codecs
from kombulite.exceptions import ContentDisallowed, DecodeError, EncodeError, SerializerNotInstalled, reraise  # noqa: F401
from kombulite.utils.compat import entrypoints
from kombulite.utils.encoding import bytes_to_str, str_to_bytes  # noqa: F401 - the first by kombu's name
from kombulite.utils.json_codec import codec as json
from kombulite.utils.records import NamedTuple

__all__ = [
    "disable_insecure_serializers",
    "dumps",
    "enable_insecure_serializers",
    "loads",
    "pickle",  # noqa: F822 - see __getattr__
    "prepare_accept_content",
    "raw_encode",
    "register",
    "registry",
    "unregister",
]

ENTRY_POINT_GROUP = "kombu.serializers"

#: What is not decoded, and what is trusted, whatever a consumer accepts.
SKIP_DECODE = frozenset(["binary", "ascii-8bit"])
TRUSTED_CONTENT = frozenset(["application/data", "application/text"])

#: An argument that was not given, where None means something.
NOTSET: Any = object()


class codec(NamedTuple):  # noqa: N801 - kombu's name
    """A serializer, for the side that encodes."""

    content_type: str | None
    content_encoding: str
    encoder: Callable[[Any], Any]


Codec = tuple[str | None, str, Callable[[Any], Any]]  # content type, content encoding, encoder


pickle_protocol = int(os.environ.get("PICKLE_PROTOCOL", "4"))


def raw_encode(data: object) -> tuple[str, str, Any]:
    """Pass a body on as it is. Text is encoded as UTF-8.

    Args:
        data: Text or bytes.

    Returns:
        (content type, content encoding, body).
    """
    return registry.dumps(data, "raw")


class _Encoders(MutableMapping[str, codec]):
    """The table of a registry's encoders, by kombu's name: a program that changes it gets what it wants.

    The table itself holds plain tuples, which the compiled base takes apart faster.

    Args:
        table: The registry's own.
    """

    def __init__(self, table: dict[Any, Any]) -> None:
        self._table = table

    def __getitem__(self, name: str) -> codec:
        return codec(*self._table[name])

    def __setitem__(self, name: str, encoder: Codec) -> None:
        self._table[name] = tuple(encoder)

    def __delitem__(self, name: str) -> None:
        del self._table[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __repr__(self) -> str:
        return repr(dict(self))


def _replace(table: dict[Any, Any], by: Mapping[Any, Any]) -> None:
    contents = dict(by)  # which may be the table itself
    table.update(contents)  # first: other threads find what stays at any time
    for name in table.keys() - contents.keys():
        del table[name]


class SerializerRegistry(Codecs):
    """Registry of serializers by name, decoders by content type, and content types that are refused by default."""

    def __init__(self) -> None:
        self.default = (None, None, None)  # type: ignore[assignment]
        self.type_to_name: dict[str | None, str] = {}
        self.name_to_type: dict[str, str | None] = {}
        self._entry_points_loaded = False

    def register(
        self,
        name: str,
        encoder: Callable[[Any], Any] | None,
        decoder: Callable[[Any], Any] | None,
        content_type: str | None,
        content_encoding: str = "utf-8",
    ) -> None:
        """Add or replace a serializer.

        Args:
            name: Name of the serializer.
            encoder: Function from a value to text or bytes.
            decoder: Function that reverses it.
            content_type: Content type of the result.
            content_encoding: Encoding of the result, such as ``"utf-8"`` or ``"binary"``.
        """
        if encoder is not None:
            self.encoders[name] = (content_type, content_encoding, encoder)
        if decoder is not None:
            self.decoders[content_type] = decoder
        self.type_to_name[content_type] = name
        self.name_to_type[name] = content_type

    def unregister(self, name: str) -> None:
        """Remove a serializer.

        Args:
            name: Name of the serializer.

        Raises:
            SerializerNotInstalled: It is unknown.
        """
        try:
            content_type = self.name_to_type.pop(name)
        except KeyError:
            raise SerializerNotInstalled(f"No encoder/decoder installed for {name}") from None
        self.decoders.pop(content_type, None)
        self.encoders.pop(name, None)
        self.type_to_name.pop(content_type, None)

    def enable(self, name: str) -> None:
        """Accept the content type of a serializer by default.

        Args:
            name: Name of the serializer, or a content type.

        Raises:
            KeyError: It is unknown.
        """
        self.disabled.discard(self._known_type(name))

    def disable(self, name: str) -> None:
        """Refuse the content type of a serializer, unless a consumer accepts it by name.

        Args:
            name: Name of the serializer, or a content type.

        Raises:
            KeyError: It is unknown.
        """
        self.disabled.add(self._known_type(name))

    def content_type_of(self, name: str) -> str | None:
        """Return the content type of a serializer.

        Args:
            name: Name of the serializer.

        Raises:
            SerializerNotInstalled: It is unknown.
        """
        try:
            return self._known_type(name)
        except KeyError:
            raise SerializerNotInstalled(f"No encoder/decoder installed for {name}") from None

    def _known_type(self, name: str) -> str | None:
        """Return the content type of a serializer. Raises KeyError if it is unknown."""
        if name in self.type_to_name or "/" in name:
            return name
        if name not in self.name_to_type:
            self._load_entry_points()
        return self.name_to_type[name]

    @property
    def _encoders(self) -> MutableMapping[str, codec]:
        return _Encoders(self.encoders)

    @_encoders.setter
    def _encoders(self, encoders: Mapping[str, Codec]) -> None:
        _replace(self.encoders, {name: tuple(each) for name, each in encoders.items()})

    @property
    def _decoders(self) -> dict[Any, Callable[[Any], Any]]:
        return self.decoders

    @_decoders.setter
    def _decoders(self, decoders: Mapping[Any, Callable[[Any], Any]]) -> None:
        _replace(self.decoders, decoders)

    @property
    def _disabled_content_types(self) -> set[str | None]:
        return self.disabled

    @_disabled_content_types.setter
    def _disabled_content_types(self, disabled: set[str | None]) -> None:
        self.disabled.update(disabled)  # never less than what both refuse
        self.disabled.intersection_update(disabled)

    @property
    def _default_content_type(self) -> str | None:
        return self.default[0]

    @_default_content_type.setter
    def _default_content_type(self, content_type: str | None) -> None:
        self.default = (content_type, *self.default[1:])

    @property
    def _default_content_encoding(self) -> str:
        return self.default[1]

    @_default_content_encoding.setter
    def _default_content_encoding(self, content_encoding: str) -> None:
        self.default = (self.default[0], content_encoding, self.default[2])

    @property
    def _default_encode(self) -> Callable[[Any], Any]:
        return self.default[2]

    @_default_encode.setter
    def _default_encode(self, encode: Callable[[Any], Any]) -> None:
        self.default = (*self.default[:2], encode)

    def _set_default_serializer(self, name: str) -> None:
        self.default = self.encoders.get(name) or self.find_encoder(name)

    def _load_entry_points(self) -> None:
        # Other packages' serializers; looked for only once something is missing, as the search costs milliseconds.
        if self._entry_points_loaded:
            return
        self._entry_points_loaded = True
        for entry_point, arguments in entrypoints(ENTRY_POINT_GROUP):
            if entry_point.name not in self.encoders:
                self.register(entry_point.name, *arguments)

    # --- what the compiled base asks for

    def find_encoder(self, name: str) -> Codec:
        self._load_entry_points()
        if name not in self.encoders:
            raise SerializerNotInstalled(f"No encoder installed for {name}")
        return self.encoders[name]

    def find_decoder(self, content_type: str) -> Callable[[Any], Any] | None:
        if content_type not in ("text/plain", "application/data", "application/text"):
            self._load_entry_points()
        return self.decoders.get(content_type)

    def refuse(self, content_type: str, is_disabled: bool) -> NoReturn:
        raise self._for_untrusted_content(content_type, "disabled" if is_disabled else "untrusted")

    def _for_untrusted_content(self, ctype: str, why: str) -> ContentDisallowed:
        """Return the error for a content type that is not accepted, for a reason in one word."""
        name = parenthesize_alias(self.type_to_name.get(ctype, ctype), ctype)
        return ContentDisallowed(f"Refusing to deserialize {why} content of type {name}")

    def encode_failed(self, error: Exception) -> NoReturn:
        if isinstance(error, SerializerNotInstalled):
            raise error
        raise EncodeError(error) from error

    def decode_failed(self, error: Exception) -> NoReturn:
        if isinstance(error, SerializerNotInstalled):
            raise error
        raise DecodeError(error) from error


registry = SerializerRegistry()
dumps = registry.dumps
loads = registry.loads
register = registry.register
unregister = registry.unregister


def prepare_accept_content(
    content_types: Iterable[str] | None, name_to_type: dict[str, str | None] | None = None
) -> set[str | None] | None:
    """Return the content types for names and content types. None stays None.

    Args:
        content_types: A name or content type, or several.
        name_to_type: Content types by name (default: those of the registry).

    Raises:
        SerializerNotInstalled: A name is unknown.
    """
    if content_types is None:
        return None
    if isinstance(content_types, str):
        content_types = [content_types]
    if name_to_type is None:
        return {registry.content_type_of(name) for name in content_types}
    try:
        return {name if "/" in name else name_to_type[name] for name in content_types}
    except KeyError as error:
        raise SerializerNotInstalled(f"No encoder/decoder installed for {error.args[0]}") from None


def enable_insecure_serializers(choices: Iterable[str] | None = ("pickle", "yaml", "msgpack")) -> None:
    """Accept serializers by default that can run code in the consumer, such as pickle.

    Args:
        choices: Names of the serializers, or content types (None: none but the default ones). Unknown ones are ignored.
    """
    for choice in choices or ():
        with suppress(KeyError):
            registry.enable(choice)


def disable_insecure_serializers(allowed: Iterable[str] | None = ("json",)) -> None:
    """Refuse all serializers that are registered now, unless a consumer accepts them by name.

    Args:
        allowed: Names of serializers that stay accepted, or content types.
    """
    for content_type in registry._decoders:
        registry.disable(content_type)
    for name in allowed or ():
        registry.enable(name)


@contextmanager
def _reraise_errors(
    wrapper: Callable[[Exception], Exception],
    include: tuple[type[Exception], ...] = (Exception,),
    exclude: tuple[type[Exception], ...] = (SerializerNotInstalled,),
) -> Iterator[None]:
    """Raise what a codec raises as an error of the library. For codecs of programs, by kombu's name."""
    try:
        yield
    except exclude:
        raise
    except include as error:
        raise wrapper(error) from error


# --- the serializers that come with it --------------------------------------------------------------------------


def _needs(package: str, error: ImportError) -> SerializerNotInstalled:
    return SerializerNotInstalled(f"this serializer needs the package {package}: {error}")


def __getattr__(name: str) -> Any:
    # ``serialization.pickle`` is part of the API; most users never need the module itself.
    if name not in ("pickle", "pickle_load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pickle

    return pickle if name == "pickle" else pickle.load


def _pickle_dumps(value: Any) -> bytes:
    import pickle

    return pickle.dumps(value, protocol=pickle_protocol)


def pickle_loads(s: Any, load: Callable[[BytesIO], Any] | None = None) -> Any:
    """Return the value of a pickle.

    Args:
        s: The pickle.
        load: Function that reads it from a file (default: ``pickle.load``).
    """
    import pickle

    return (load or pickle.load)(BytesIO(s))


def unpickle(s: Any) -> Any:
    """Return the value of a pickle.

    Args:
        s: The pickle, bytes or text.
    """
    return pickle_loads(str_to_bytes(s))


def _yaml_dumps(value: Any) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise _needs("PyYAML", error) from error
    return yaml.safe_dump(value)


def _yaml_loads(data: Any) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise _needs("PyYAML", error) from error
    # Bytes as they are: PyYAML finds their encoding. Other buffers it takes for files.
    return yaml.safe_load(bytes(data) if isinstance(data, memoryview | bytearray) else data)


def _msgpack_dumps(value: Any) -> Any:
    try:
        import msgpack
    except ImportError as error:
        raise _needs("msgpack", error) from error
    return msgpack.packb(value, use_bin_type=True)


def _msgpack_loads(data: Any) -> Any:
    try:
        import msgpack
    except ImportError as error:
        raise _needs("msgpack", error) from error
    return msgpack.unpackb(data, raw=False)


#: The functions that stand for JSON in the registry: methods that are looked up anew are other objects.
JSON_DUMPS, JSON_LOADS = json.dumps, json.loads


def register_json() -> None:
    """Add the JSON serializer to the registry (again)."""
    registry.register("json", JSON_DUMPS, JSON_LOADS, "application/json")


def register_yaml() -> None:
    """Add YAML to the registry. Without PyYAML, using it raises SerializerNotInstalled."""
    registry.register("yaml", _yaml_dumps, _yaml_loads, "application/x-yaml")


def register_pickle() -> None:
    """Add pickle to the registry. Consumers have to accept it by name."""
    registry.register("pickle", _pickle_dumps, unpickle, "application/x-python-serialize", "binary")


def register_msgpack() -> None:
    """Add MessagePack to the registry. Without msgpack, using it raises SerializerNotInstalled."""
    registry.register("msgpack", _msgpack_dumps, _msgpack_loads, "application/x-msgpack", "binary")


def parenthesize_alias(first: str, second: str) -> str:
    """Return ``first (second)``, or ``second`` alone.

    Args:
        first: The name, or an empty text.
        second: Its alias.
    """
    return f"{first} ({second})" if first else second


registry.use_json(json, JSON_DUMPS, JSON_LOADS)
register_json()
register_yaml()
register_pickle()
register_msgpack()
registry._set_default_serializer("json")
disable_insecure_serializers()
