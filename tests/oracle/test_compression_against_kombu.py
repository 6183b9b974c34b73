"""What we compress, kombu decompresses, and the reverse."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu import compression as theirs

from kombulite import compression as ours

SHARED = sorted(set(ours.encoders()) & set(theirs.encoders()))
NAMES = ["gzip", "zlib", "bzip2", "bzip", "lzma", "xz", "brotli", "zstd", "zstandard"]


def test_all_methods_of_kombu_are_ours_too():
    assert set(theirs.encoders()) <= set(ours.encoders())
    assert {"application/x-gzip", "application/x-bz2", "application/x-lzma"} <= set(SHARED)


@pytest.mark.parametrize("content_type", SHARED)
@settings(deadline=None, max_examples=50)
@given(body=st.binary(max_size=2000) | st.text(max_size=500))
def test_each_reads_the_other(content_type, body):
    expected = body.encode() if isinstance(body, str) else body
    for writer, reader in ((ours, theirs), (theirs, ours)):
        compressed, named = writer.compress(body, content_type)
        assert named == content_type
        assert reader.decompress(compressed, named) == expected


@pytest.mark.parametrize("name", NAMES)
def test_names_mean_the_same(name):
    if name not in theirs._aliases:
        pytest.skip("kombu has no such method here")
    assert ours.get_encoder(name)[1] == theirs.get_encoder(name)[1]


@pytest.mark.parametrize("name", ["nope", "application/nope"])
def test_both_refuse_an_unknown_method(name):
    for library in (ours, theirs):
        with pytest.raises(KeyError):
            library.compress(b"x", name)
        with pytest.raises(KeyError):
            library.decompress(b"x", name)
