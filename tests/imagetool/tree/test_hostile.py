"""Tars made to do harm: each ends in one clear error that names layer and entry, or is read as harmless."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from imagetool.build import layer_data
from imagetool.sources.open import open_source
from imagetool.tree import tar
from imagetool.tree.index import TarIndex
from imagetool.tree.merge import merge
from rootdisk.errors import BadInput, RootdiskError, Unsupported
from rootdisk.oci.documents import Platform
from rootdisk.system.crew import Crew
from tests.support.layouts import write_layout
from tests.support.tars import END, directory, file, hard_link, header, index, octal, padded, pax, symlink

GOOD = (
    directory(b"d")
    + file(b"d/a", b"x" * 700)
    + pax([(b"path", b"long" * 40), (b"SCHILY.xattr.user.a", b"1")])
    + file(b"p", b"yy")
    + symlink(b"s", b"d")
    + hard_link(b"h", b"d/a")
    + header(b"L", b"L", size=300)
    + padded(b"n" * 200 + b"/" + b"m" * 90)
    + file(b"s/b", b"z" * 5)
    + pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")])
    + file(b"sparse", padded(b"1\n4\n2\n") + b"ab")
)


def sparse(pairs: bytes, real: bytes = b"9", data: bytes = b"abc") -> bytes:
    return pax([(b"GNU.sparse.size", real), (b"GNU.sparse.map", pairs)]) + file(b"bad", data)


BAD = {
    "checksum": file(b"bad")[:100] + b"1" + file(b"bad")[101:],
    "huge": header(b"bad", size=1 << 40),
    "negative": header(b"bad", size=-1),
    "pax size": pax([(b"size", b"9" * 18)]) + header(b"bad"),
    "pax size text": pax([(b"size", b"-1")]) + header(b"bad"),
    "pax length": header(b"bad", b"x", size=10) + padded(b"99 path=a\n"),
    "pax number": header(b"bad", b"x", size=10) + padded(b"0x9 path=\n"),
    "pax huge": header(b"bad", b"x", size=2 << 20) + bytes(2 << 20),
    "name": pax([(b"path", b"bad/" + b"n" * 256)]) + file(b"f"),
    "path": pax([(b"path", b"bad/" * 20000)]) + file(b"f"),
    "nul": pax([(b"path", b"bad\0")]) + file(b"f"),
    "uid": pax([(b"uid", b"4294967295")]) + file(b"bad"),
    "negative uid": file(b"bad", uid=-2),
    "time": pax([(b"mtime", b"nan")]) + file(b"bad"),
    "no target": symlink(b"bad", b""),
    "long target": pax([(b"linkpath", b"a/" * 2048)]) + symlink(b"bad", b"x"),
    "device": header(b"bad", b"3", major=1 << 13),
    "sparse overlap": sparse(b"0,2,1,1"),
    "sparse beyond": sparse(b"7,3"),
    "sparse unused": sparse(b"1,1"),
    "sparse odd": sparse(b"1,1,1"),
    "sparse many": sparse(b",".join(b"%d,0" % n for n in range(70000)), b"99999"),
    "sparse 1.0": pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")])
    + file(b"bad", b"9999999\n" + bytes(504)),
    "sparse old": header(b"bad", b"S", tail=bytes(41) + octal(3, 12) + octal(3, 12) + bytes(73) + octal(5, 12)),
    "lone zero block": bytes(512) + file(b"f"),
    "octal": file(b"bad")[:100] + b"0o_7-1+\0" + file(b"bad")[108:],
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str) -> None:
    with pytest.raises(BadInput, match=r"layer test: entry .* at byte \d+: "):
        index(GOOD + BAD[case] + END)


def test_entries_and_names_of_a_layer_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = b"".join(file(b"%04d" % number) for number in range(1000)) + END
    assert len(index(layer)) == 1000
    for bound, value in (("ENTRIES_MAX_COUNT", 999), ("HEAP_MAX_BYTES", 3999)):
        with monkeypatch.context() as patch:
            patch.setattr(tar, bound, value)
            with pytest.raises(BadInput, match="the layer is past"):
                index(layer)


def test_entries_and_names_of_all_layers_are_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Many layers that each keep to the bounds of one."""
    write_layout(tmp_path / "oci", "t", [file(b"%04d" % number) + END for number in range(20)])
    with open_source(f"oci:{tmp_path}/oci:t", Platform.host()) as image:
        for bound, value in (("ENTRIES_MAX_COUNT", 19), ("HEAP_MAX_BYTES", 79), ("LAYERS_MAX_COUNT", 19), ("", 0)):
            with monkeypatch.context() as patch:
                if not bound:
                    with layer_data.open_layers(image, tmp_path / "cache", Crew(1)) as found:
                        assert len(list(layer_data.scan_layers(found))) == 20
                    continue
                patch.setattr(layer_data, bound, value)
                with (
                    pytest.raises(BadInput, match=r"past .* entries|has 20 layers, more than 19"),
                    layer_data.open_layers(image, tmp_path / "cache", Crew(1)) as found,
                ):
                    list(layer_data.scan_layers(found))


def test_unknown_type() -> None:
    with pytest.raises(Unsupported, match=r"layer test: entry 'bad' .*unknown type 'V'"):
        index(header(b"bad", b"V") + END)


def test_sparse_map_without_end() -> None:
    more = bytes(504) + b"\1" + bytes(7)
    with pytest.raises(BadInput, match="sparse map does not end"):
        index(header(b"bad", b"S", tail=bytes(137) + b"\1" + octal(5, 12)) + more * 9)


def test_truncated() -> None:
    """At an entry's start the archive just ends, as GNU tar has it; anywhere else it is an error."""
    whole = len(index(GOOD + END))
    for end in (0, 512, 1024):
        assert len(index(GOOD + END[:end])) == whole
    fits = 0
    for cut in range(0, len(GOOD), 512):
        try:
            fits += len(index(GOOD[:cut])) < whole
        except BadInput as err:
            assert "layer test" in str(err)  # noqa: PT017 - an error is allowed, not required
        with pytest.raises(BadInput):
            index(GOOD[:cut] + b"\1")
    assert fits == 10  # before each entry, and between it and its extended headers, as Go reads it


def flip(seed: int) -> None:
    source = random.Random(seed)
    tar = bytearray(GOOD + END)
    for _ in range(source.choice((1, 1, 4))):
        block = source.randrange(len(tar) // 512) * 512
        tar[block + source.randrange(512)] ^= 1 << source.randrange(8)
        if source.random() < 0.8:  # with a right checksum it gets further
            total = sum(tar[block : block + 148]) + sum(tar[block + 156 : block + 512]) + 256
            tar[block + 148 : block + 156] = b"%06o\0 " % total
    try:
        found = index(bytes(tar))
        merge([("x", found)])
        assert TarIndex.unpack(found.pack(), "test") == found
    except RootdiskError as err:
        assert "layer test" in str(err)  # noqa: PT017 - an error is allowed, not required


def test_bit_flips() -> None:
    for seed in range(1500):
        flip(seed)


@pytest.mark.nightly
def test_many_bit_flips() -> None:
    for seed in range(1500, 200_000):
        flip(seed)
