"""The vmlinux in a bzImage: every compression, the PVH entry, and kernels that say what is not so."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import lz4.block
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from lzallright import LZOCompressor

from imagetool.guest.vmlinux import NoVmlinux, extract
from rootdisk.artifact.compressed import VMLINUX_MAX_BYTES
from tests.support.kernels import bzimage, elf

KERNEL = elf() + bytes(100)  # behind the file are the relocations


def by_lz4(data: bytes) -> bytes:
    out = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[at : at + (8 << 20)], store_size=False)
        out += struct.pack("<I", len(block)) + block
    return out


def by_xz(data: bytes) -> bytes:  # as scripts/xz_wrap.sh does
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 32 << 20}]
    return lzma.compress(data, check=lzma.CHECK_CRC32, filters=filters)


def by_lzo(data: bytes) -> bytes:  # as `lzop -9`
    head = b"\x89LZO\0\r\n\x1a\n" + struct.pack(">HHHBBIIIIB4x", 0x1040, 0x20A0, 0x0940, 3, 9, 0x0300_0001, 0, 0, 0, 0)
    out = bytearray(head)
    for at in range(0, len(data), 256 << 10):
        block = data[at : at + (256 << 10)]
        packed = min(LZOCompressor().compress(block), block, key=len)
        out += struct.pack(">III", len(block), len(packed), zlib.adler32(block)) + packed
    return bytes(out) + bytes(4)


WAYS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "xz": by_xz,
    "lz4": by_lz4,
    "lzo": by_lzo,
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_taken_out(way: str) -> None:
    assert extract(bzimage(WAYS[way](KERNEL), len(KERNEL))) == KERNEL
    long = KERNEL + bytes(9 << 20)  # more than a block of LZ4
    assert extract(bzimage(WAYS[way](long), len(long))) == long
    for size in (len(KERNEL) - 1, len(KERNEL) + 1):
        with pytest.raises(NoVmlinux, match=r"should have|cannot be decompressed"):
            extract(bzimage(WAYS[way](KERNEL), size))
    with pytest.raises(NoVmlinux):
        extract(bzimage(WAYS[way](KERNEL)[:-30], len(KERNEL)))


@pytest.mark.parametrize("way", WAYS)
def test_what_inflates_without_end_is_stopped(way: str) -> None:
    bomb = bzimage(WAYS[way](bytes(64 << 20)), 1000)
    tracemalloc.start()
    try:
        with pytest.raises(NoVmlinux, match=r"should have|cannot be decompressed"):
            extract(bomb)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20  # a block of LZ4 is 8 MiB
    finally:
        tracemalloc.stop()


def test_a_kernel_that_cannot_be_used_says_why() -> None:
    cases = {
        "not a bzImage": b"\x7fELF" + bytes(4096),
        "where its payload": bzimage(gzip.compress(KERNEL), len(KERNEL))[:900] + bytes(200),
        "should have 9": bzimage(b"\x89LZO\0\r\n\x1a\n" + bytes(90), 9),
        "wrong length": bzimage(b"\x89LZO\0\r\n\x1a\n" + b"\1" * 90, 9),
        "unknown way": bzimage(b"?" * 100, 9),
        "allowed": bzimage(gzip.compress(KERNEL), VMLINUX_MAX_BYTES + 1),
        "not an ELF": bzimage(gzip.compress(b"?" * 100), 100),
    }
    for words, kernel in cases.items():
        with pytest.raises(NoVmlinux, match=words):
            extract(kernel)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"machine": 183}, "not an ELF file for x86-64"),
        ({"note": b"Xen\0\x11"}, "no PVH entry"),
        ({"owner": b"Xeno"}, "no PVH entry"),
        ({"entry": 1 << 30}, "in none of its segments"),
        ({"physical": (1 << 32) - 1}, "not in memory"),
        ({"file_size": 1 << 40}, "does not lie in the file"),
        ({"count": 65535}, "65535 segments"),
        ({"count": 64}, "damaged"),
    ],
)
def test_the_entry_is_checked(changed: dict[str, int | bytes], words: str) -> None:
    data = elf(**changed)  # type: ignore[arg-type]
    with pytest.raises(NoVmlinux, match=words):
        extract(bzimage(gzip.compress(data), len(data)))


@given(data=st.binary(max_size=400), at=st.integers(0, 400))
@settings(max_examples=200, deadline=None)
def test_any_change_is_refused_or_changes_nothing_that_counts(data: bytes, at: int) -> None:
    changed = bytearray(elf())
    changed[at : at + len(data)] = data
    try:
        assert extract(bzimage(gzip.compress(changed), len(changed))) == changed
    except NoVmlinux:
        pass
