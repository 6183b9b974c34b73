"""Compression of bodies, by name or content type.

What is inflated is bounded: a body of some bytes may otherwise fill the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any, Protocol

from kombulite.exceptions import InflateError
from kombulite.utils.encoding import ensure_bytes

__all__ = ["compress", "decompress", "encoders", "get_decoder", "get_encoder", "register", "set_max_inflated"]

LZMA_MEMORY = 128 * 1024 * 1024  # bytes that its decoder may take; the strongest preset needs half of it

_limits = {"inflated": 256 * 1024 * 1024}  # bytes
_aliases: dict[str, str] = {}
_encoders: dict[str, Callable[[bytes], bytes]] = {}
_decoders: dict[str, Callable[[bytes], bytes]] = {}
_packages: dict[str, tuple[str, ...]] = {}  # content type -> packages of which one must be there


def set_max_inflated(size: int) -> None:
    """Set the size that one body may decompress to; a larger one raises InflateError.

    Args:
        size: Bytes (default: 256 MiB).
    """
    _limits["inflated"] = size


def register(
    encoder: Callable[[bytes], bytes],
    decoder: Callable[[bytes], bytes],
    content_type: str,
    aliases: Iterable[str] | None = None,
) -> None:
    """Add a compression method.

    Args:
        encoder: Function that compresses bytes.
        decoder: Function that decompresses them; it has to limit the size of its result.
        content_type: Content type of the method.
        aliases: Further names.
    """
    _encoders[content_type] = encoder
    _decoders[content_type] = decoder
    _aliases.update((alias, content_type) for alias in aliases or ())


def encoders() -> list[str]:
    """Return the content types of the methods that can be used."""
    return [content_type for content_type in _encoders if _is_available(content_type)]


def get_encoder(t: str) -> tuple[Callable[[bytes], bytes], str]:
    """Return the function that compresses, and the content type of a method.

    Args:
        t: Name or content type of the method.

    Raises:
        KeyError: The method is unknown.
    """
    content_type = _aliases.get(t, t)
    return _encoders[content_type], content_type


def get_decoder(t: str) -> Callable[[bytes], bytes]:
    """Return the function that decompresses.

    Args:
        t: Name or content type of the method.

    Raises:
        KeyError: The method is unknown.
    """
    return _decoders[_aliases.get(t, t)]


def compress(body: str | bytes, content_type: str) -> tuple[bytes, str]:
    """Return the compressed body and the content type of the method.

    Args:
        body: The body.
        content_type: Name or content type of the method.

    Raises:
        KeyError: The method is unknown.
    """
    encoder, content_type = get_encoder(content_type)
    return encoder(ensure_bytes(body)), content_type


def decompress(body: bytes, content_type: str) -> bytes:
    """Return the body of compressed data.

    Args:
        body: The compressed body.
        content_type: Name or content type of the method.

    Raises:
        KeyError: The method is unknown.
        InflateError: The data is broken, or decompresses to more than is allowed.
    """
    return get_decoder(content_type)(body)


def _is_available(content_type: str) -> bool:
    packages = _packages.get(content_type)
    return packages is None or any(_is_installed(package) for package in packages)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False


# --- the methods that come with it ------------------------------------------------------------------------------


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes | None: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _inflate(decompressor: _Decompressor, data: bytes, errors: tuple[type[Exception], ...]) -> bytes:
    limit = _limits["inflated"]
    try:
        body = decompressor.decompress(data, limit + 1)
    except errors as error:
        raise InflateError(f"broken compressed body: {error}") from error
    if decompressor.unused_data:
        raise InflateError("broken compressed body: something follows its end")
    return _checked(body, decompressor.eof)


def _checked(body: bytes, complete: bool) -> bytes:
    limit = _limits["inflated"]
    if len(body) > limit:
        raise InflateError(f"a compressed body inflates to more than {limit} bytes")
    if not complete:
        raise InflateError("broken compressed body: it is cut short")
    return body


def _zlib_compress(body: bytes) -> bytes:
    import zlib

    return zlib.compress(body)


def _zlib_decompress(data: bytes) -> bytes:
    import zlib

    return _inflate(zlib.decompressobj(), data, (zlib.error,))


def _bz2_compress(body: bytes) -> bytes:
    import bz2

    return bz2.compress(body)


def _bz2_decompress(data: bytes) -> bytes:
    import bz2

    return _inflate(bz2.BZ2Decompressor(), data, (OSError, ValueError))


def _lzma_compress(body: bytes) -> bytes:
    import lzma

    return lzma.compress(body)


def _lzma_decompress(data: bytes) -> bytes:
    import lzma

    return _inflate(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LZMA_MEMORY), data, (lzma.LZMAError,))


def _lz4_compress(body: bytes) -> bytes:
    import lz4.frame

    compressed: bytes = lz4.frame.compress(body)
    return compressed


def _lz4_decompress(data: bytes) -> bytes:
    import lz4.frame

    return _inflate(lz4.frame.LZ4FrameDecompressor(), data, (RuntimeError,))


def _brotli_compress(body: bytes) -> bytes:
    import brotli

    compressed: bytes = brotli.compress(body)
    return compressed


def _brotli_decompress(data: bytes) -> bytes:
    import brotli

    decompressor = brotli.Decompressor()
    limit = _limits["inflated"]
    try:
        body: bytes = decompressor.process(data, output_buffer_limit=limit + 1)
        while len(body) <= limit and not (decompressor.is_finished() or decompressor.can_accept_more_data()):
            body += decompressor.process(b"", output_buffer_limit=limit + 1 - len(body))
    except brotli.error as error:
        raise InflateError(f"broken compressed body: {error}") from error
    return _checked(body, decompressor.is_finished())


def _zstd() -> Any:
    """Return the zstd module of Python 3.14, or its backport: one and the same interface."""
    try:
        from compression import zstd
    except ImportError:
        from backports import zstd
    return zstd


def _zstd_compress(body: bytes) -> bytes:
    compressed: bytes = _zstd().compress(body)
    return compressed


def _zstd_decompress(data: bytes) -> bytes:
    zstd = _zstd()
    return _inflate(zstd.ZstdDecompressor(), data, (zstd.ZstdError,))


register(_zlib_compress, _zlib_decompress, "application/x-gzip", ["gzip", "zlib"])
register(_bz2_compress, _bz2_decompress, "application/x-bz2", ["bzip2", "bzip"])
register(_lzma_compress, _lzma_decompress, "application/x-lzma", ["lzma", "xz"])
register(_brotli_compress, _brotli_decompress, "application/x-brotli", ["brotli"])
register(_zstd_compress, _zstd_decompress, "application/zstd", ["zstd", "zstandard"])
register(_lz4_compress, _lz4_decompress, "application/x-lz4", ["lz4"])
_packages.update(
    {
        "application/x-brotli": ("brotli",),
        "application/zstd": ("compression.zstd", "backports.zstd"),
        "application/x-lz4": ("lz4",),
    }
)
