"""Blobs inflated and verified: every compression, every kind of damage."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import zstandard

from imagetool.tree.inflate import Inflated, inflate
from imagetool.tree.layers import FileSource
from rootdisk.errors import BadInput, DigestMismatch, RootdiskError, Unsupported
from rootdisk.oci.documents import Descriptor, Digest
from rootdisk.system.crew import Crew

TAR = random.Random(1).randbytes(100_000) + bytes(2_000_000) + random.Random(2).randbytes(30_000)
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"


@contextmanager
def target() -> Iterator[int]:
    fd = os.memfd_create("out")
    yield fd
    os.close(fd)


def run(blob: bytes, fd: int, *, diff_id: Digest | None = None, max_bytes: int = 1 << 30) -> Inflated:
    pieces = [blob[n : n + 7777] for n in range(0, len(blob), 7777)]
    expected = Descriptor("x", Digest.of(blob), len(blob))
    with Crew(2) as crew:
        return inflate(pieces, fd, crew, expected=expected, diff_id=diff_id, name="3", max_bytes=max_bytes)


BLOBS = {
    "plain": TAR,
    "gzip": gzip.compress(TAR, 1),
    "gzip members": gzip.compress(TAR[:5], 1) + gzip.compress(TAR[5:], 9),
    "gzip and a tape's zeros": gzip.compress(TAR, 1) + bytes(9000),
    "bzip2": bz2.compress(TAR, 1),
    "bzip2 streams": bz2.compress(TAR[:5]) + bz2.compress(TAR[5:], 1),
    "bzip2 and a tape's zeros": bz2.compress(TAR, 1) + bytes(9000),
    "xz": lzma.compress(TAR, preset=1),
    "xz of the largest window": lzma.compress(TAR, preset=9),
    "xz streams": lzma.compress(TAR[:5]) + bytes(8000) + lzma.compress(TAR[5:], preset=1),
    "xz and a tape's zeros": lzma.compress(TAR, preset=1) + bytes(9000),
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress(TAR),
    "zstd chunked": SKIPPABLE + zstandard.compress(TAR[:5]) + SKIPPABLE + zstandard.compress(TAR[5:]) + SKIPPABLE,
}


@pytest.mark.parametrize("form", BLOBS)
def test_forms(form: str) -> None:
    with target() as fd:
        assert run(BLOBS[form], fd, diff_id=Digest.of(TAR)) == Inflated(Digest.of(TAR), len(TAR))
        found = bytearray(len(TAR))
        FileSource(fd, "3").read_into([memoryview(found)], 0)
        assert found == TAR
        with pytest.raises(DigestMismatch):
            FileSource(fd, "3").read_into([memoryview(found)], 1)


@pytest.mark.parametrize(
    "form", ["gzip", "gzip members", "bzip2", "bzip2 streams", "xz", "xz streams", "zstd", "zstd chunked"]
)
def test_damage_with_a_right_digest(form: str) -> None:
    """The maker's own damage, at many places: an error that names the layer, whatever the diff ID would say."""
    blob = BLOBS[form]
    for cut in [*range(1, 30), len(blob) // 2, len(blob) - 20, len(blob) - 1]:
        with target() as fd, pytest.raises(RootdiskError, match="layer 3"):
            run(blob[:cut], fd, diff_id=Digest.of(TAR))
    for place in random.Random(3).sample(range(40, 100_000), 20):
        with target() as fd, pytest.raises(RootdiskError, match="layer 3"):
            run(blob[:place] + bytes([blob[place] ^ 4]) + blob[place + 1 :], fd, diff_id=Digest.of(TAR))


@pytest.mark.parametrize("form", ["gzip", "bzip2", "xz", "zstd"])
def test_cut_or_followed_without_diff_id(form: str) -> None:
    for blob in (BLOBS[form][:-30], BLOBS[form] + b"garbage!"):
        with target() as fd, pytest.raises(BadInput, match=r"layer 3: .*stream"):
            run(blob, fd)


@pytest.mark.parametrize("form", BLOBS)
def test_wrong_bytes(form: str) -> None:
    blob = BLOBS[form]
    expected = Descriptor("x", Digest.of(blob), len(blob))
    for wrong in (blob[:-1], blob + b"x", blob[:-1] + bytes([blob[-1] ^ 1]), b"\0" + blob[1:]):
        with target() as fd, pytest.raises(DigestMismatch, match="layer 3"):
            inflate([wrong], fd, Crew(1), expected=expected, diff_id=None, name="3")
    with target() as fd, pytest.raises(DigestMismatch, match="config says"):
        run(blob, fd, diff_id=Digest.of(b""))


@pytest.mark.parametrize("pack", [lambda d: gzip.compress(d, 1), bz2.compress, lzma.compress, zstandard.compress])
def test_bomb(pack: object) -> None:
    with target() as fd:
        with pytest.raises(BadInput, match="longer than"):
            run(pack(bytes(100 << 20)), fd, max_bytes=10 << 20)  # type: ignore[operator]
        assert os.fstat(fd).st_size <= 10 << 20


def test_zeros_between_members_of_gzip() -> None:
    """The second would be lost: as in Go, an error."""
    with target() as fd, pytest.raises(BadInput, match="something that is not gzip follows"):
        run(gzip.compress(TAR, 1) + bytes(512) + gzip.compress(TAR, 1), fd)


def test_memory_is_bounded() -> None:
    """An xz stream may ask for a dictionary of 1.5 GiB."""
    filters = [
        {"id": lzma.FILTER_LZMA2, "dict_size": 192 << 20, "mode": lzma.MODE_FAST, "mf": lzma.MF_HC3, "nice_len": 4}
    ]
    blob = lzma.compress(b"x" * 1000, filters=filters)
    with target() as fd, pytest.raises(BadInput, match=r"layer 3: the xz stream .*[Mm]emory"):
        run(blob, fd)


@pytest.mark.parametrize("name", ["lz4", "lzma"])
def test_other_compression(name: str) -> None:
    """Docker does not know them either."""
    blob = lzma.compress(TAR, format=lzma.FORMAT_ALONE) if name == "lzma" else b"\x04\x22\x4d\x18" + bytes(20)
    with target() as fd, pytest.raises(Unsupported, match=f"layer 3: compressed with {name}"):
        run(blob, fd)
