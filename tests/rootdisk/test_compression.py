"""Compression by the first bytes, and tars whose first name looks like it."""

from __future__ import annotations

import bz2
import gzip
import lzma

import pytest
import zstandard

from rootdisk.compression import HEAD_BYTES, compression
from tests.support.tars import file

COMPRESSED = {
    "gzip": gzip.compress(b"x"),
    "zstd": zstandard.ZstdCompressor().compress(b"x"),
    "bzip2": bz2.compress(b"x"),
    "xz": lzma.compress(b"x"),
    "lzma": lzma.compress(b"x", lzma.FORMAT_ALONE),
    "lz4": b"\x04\x22\x4d\x18" + bytes(20),
}


@pytest.mark.parametrize("how", COMPRESSED)
def test_each_is_known(how: str) -> None:
    assert compression(COMPRESSED[how][:HEAD_BYTES]) == how


def test_what_has_no_content() -> None:
    assert compression(bz2.compress(b"")[:HEAD_BYTES]) == "bzip2"
    skippable = b"\x50\x2a\x4d\x18" + bytes(4)
    assert compression(skippable) == "zstd"
    assert compression(b"") == ""


@pytest.mark.parametrize("name", [b"]", b"BZh", b"BZh9", b"BZhuge", b"PK"])
def test_a_tar_whose_first_name_looks_like_it(name: bytes) -> None:
    assert compression(file(name, b"x")[:HEAD_BYTES]) == ""
