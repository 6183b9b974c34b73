"""Compression: every method there and back, and what broken or hostile data costs."""

import bz2
import lzma
import subprocess
import sys
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kombulite import compression
from kombulite.compression import compress, decompress, encoders, get_decoder, get_encoder, set_max_inflated
from kombulite.exceptions import DecodeError, InflateError

MIB = 1024 * 1024
METHODS = {
    "application/x-gzip": ["gzip", "zlib"],
    "application/x-bz2": ["bzip2", "bzip"],
    "application/x-lzma": ["lzma", "xz"],
    "application/x-brotli": ["brotli"],
    "application/zstd": ["zstd", "zstandard"],
    "application/x-lz4": ["lz4"],
}
BODY = b"The quick brown fox jumps over the lazy dog. " * 50


@pytest.fixture(autouse=True)
def default_limit():
    yield
    set_max_inflated(256 * MIB)


methods = pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=pytest.mark.skipif(name not in encoders(), reason="no package")) for name in METHODS],
)


@methods
def test_round_trip(method):
    compressed, content_type = compress(BODY, method)
    assert content_type == method
    assert len(compressed) < len(BODY)
    assert decompress(compressed, method) == BODY


@methods
@settings(deadline=None, max_examples=50)
@given(body=st.binary(max_size=300))
def test_any_body_round_trips(method, body):
    assert decompress(compress(body, method)[0], method) == body


@methods
def test_text_is_utf8(method):
    assert decompress(compress("é", method)[0], method) == "é".encode()


@methods
def test_aliases(method):
    for alias in METHODS[method]:
        compressed, content_type = compress(BODY, alias)
        assert content_type == method
        assert decompress(compressed, alias) == decompress(compressed, method) == BODY
        assert get_encoder(alias) == get_encoder(method)
        assert get_decoder(alias) == get_decoder(method)


def test_methods_of_the_standard_library_are_there():
    assert {"application/x-gzip", "application/x-bz2", "application/x-lzma"} <= set(encoders()) <= set(METHODS)


def test_formats():
    assert zlib.decompress(compress(BODY, "gzip")[0]) == BODY
    assert bz2.decompress(compress(BODY, "bzip2")[0]) == BODY
    assert lzma.decompress(compress(BODY, "xz")[0], format=lzma.FORMAT_XZ) == BODY


@pytest.mark.parametrize("name", ["nope", "", "GZIP", "application/gzip", None])
@pytest.mark.parametrize(
    "call", [get_encoder, get_decoder, lambda name: compress(b"x", name), lambda name: decompress(b"x", name)]
)
def test_unknown_method(call, name):
    with pytest.raises(KeyError):
        call(name)


def test_registered_method(monkeypatch):
    for table in ("_encoders", "_decoders", "_aliases"):
        monkeypatch.setattr(compression, table, getattr(compression, table).copy())
    compression.register(lambda body: body[::-1], lambda data: data[::-1], "application/x-turned", ["turned"])
    assert compress("ab", "turned") == (b"ba", "application/x-turned")
    assert decompress(b"ba", "application/x-turned") == b"ab"
    assert "application/x-turned" in encoders()


@pytest.mark.parametrize(
    ("content_type", "packages"),
    [
        ("application/x-brotli", ["brotli"]),
        ("application/x-lz4", ["lz4"]),
        ("application/zstd", ["compression", "compression.zstd", "backports", "backports.zstd"]),
    ],
)
def test_method_whose_package_is_missing_is_not_listed(monkeypatch, content_type, packages):
    found = compression.find_spec

    def find_spec(name):
        if name in packages:
            raise ModuleNotFoundError(name)
        return found(name)

    monkeypatch.setattr(compression, "find_spec", find_spec)
    assert content_type not in encoders()
    assert "application/x-gzip" in encoders()


# --- broken data


@methods
def test_truncated_data_is_refused(method):
    compressed = compress(BODY, method)[0]
    for length in range(len(compressed)):
        with pytest.raises(InflateError):
            decompress(compressed[:length], method)


@methods
@pytest.mark.parametrize("data", [b"", b"\x00", b"garbage", b"\xff" * 9, b"{}", bytes(100)], ids=len)
def test_garbage_is_refused(method, data):
    with pytest.raises(InflateError):
        decompress(data, method)


@methods
@settings(deadline=None, max_examples=100)
@given(place=st.integers(0, 10**6), byte=st.integers(1, 255))
def test_damaged_data_raises_nothing_else(method, place, byte):
    set_max_inflated(MIB)
    compressed = bytearray(compress(BODY, method)[0])
    compressed[place % len(compressed)] ^= byte
    with suppress(InflateError):
        assert isinstance(decompress(bytes(compressed), method), bytes)


@methods
@settings(deadline=None, max_examples=100)
@given(data=st.binary())
def test_random_data_raises_nothing_else(method, data):
    set_max_inflated(MIB)
    with suppress(InflateError):
        assert isinstance(decompress(data, method), bytes)


def test_inflate_error_is_a_decode_error():
    assert issubclass(InflateError, DecodeError)


# --- the limit


@methods
def test_limit_is_exact(method):
    compressed = compress(BODY, method)[0]
    set_max_inflated(len(BODY))
    assert decompress(compressed, method) == BODY
    set_max_inflated(len(BODY) - 1)
    with pytest.raises(InflateError, match="more than"):
        decompress(compressed, method)


@methods
def test_bomb_is_refused(method):
    bomb = compress(bytes(10 * MIB), method)[0]
    assert len(bomb) < MIB
    assert len(decompress(bomb, method)) == 10 * MIB
    set_max_inflated(1000)
    with pytest.raises(InflateError, match="more than 1000 bytes"):
        decompress(bomb, method)


HELD_SHORT = """
import resource, sys
from kombulite.compression import decompress, set_max_inflated
from kombulite.exceptions import InflateError

bomb, method = sys.stdin.buffer.read(), sys.argv[1]
set_max_inflated(1024 * 1024)
try:
    decompress(b"garbage", method)
except InflateError:
    pass
with open("/proc/self/statm") as statm:
    size = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 24 * 1024 * 1024,) * 2)
try:
    decompress(bomb, method)
except InflateError as error:
    print(error)
"""


@methods
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_AS")
def test_bomb_costs_little_memory(method):
    bomb = compress(bytes(64 * MIB), method)[0]
    done = subprocess.run([sys.executable, "-c", HELD_SHORT, method], input=bomb, capture_output=True, check=False)
    assert done.stderr == b""
    assert b"more than" in done.stdout


def test_dictionary_that_lzma_asks_for_is_bounded():
    data = bytearray(lzma.compress(b"abc"))
    end = 12 + 4 * (data[12] + 1)  # of the block's header, which ends with its checksum
    data[data.index(b"\x21\x01", 12) + 2] = 40  # 4 GiB
    data[end - 4 : end] = zlib.crc32(data[12 : end - 4]).to_bytes(4, "little")
    with pytest.raises(InflateError, match="Memory usage limit"):
        decompress(bytes(data), "lzma")


def test_the_strongest_preset_of_lzma_is_read():
    assert decompress(lzma.compress(BODY, preset=9 | lzma.PRESET_EXTREME), "lzma") == BODY
