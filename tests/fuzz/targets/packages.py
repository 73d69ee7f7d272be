"""Package databases and programs on a disk that is looked through, the dm-verity tree of an artifact, and kernels."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import sqlite3
import struct

import zstandard

from imagetool.guest import vmlinux
from imagetool.sbom import golang, rpm
from imagetool.sbom.packages import stanzas
from rootdisk.artifact.compressed import VMLINUX_MAX_BYTES, Content, decompressed
from rootdisk.artifact.verity import tree_size
from rootdisk.oci.documents import Digest
from tests.fuzz.target import Target
from tests.support import kernels

_TREE = bytes(tree_size(128))
TREE = Content(Digest.of(_TREE), len(_TREE))


def header(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert rpm.parse(data).name


def database(data: bytes) -> None:
    for found in rpm.headers([data], [], b"/var/lib/rpm/rpmdb.sqlite"):
        assert found.name


def program(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        for module in golang.modules(lambda offset, length: data[offset : offset + length]):
            assert len(module.path) <= len(data)


def tree(data: bytes) -> None:
    pieces = [data[at : at + 999] for at in range(0, len(data), 999)]
    assert sum(map(len, decompressed(pieces, TREE, "tree"))) == len(_TREE)


def bzimage(data: bytes) -> None:
    assert len(vmlinux.extract(data)) <= VMLINUX_MAX_BYTES


def elf(data: bytes) -> None:
    vmlinux.check_pvh(data)


def dpkg(data: bytes) -> None:
    for fields in stanzas(data.decode("utf-8", "replace"), b"status"):
        assert fields


def an_rpm_header() -> bytes:
    """Return the header of a package with a name, a version, an epoch and a file."""
    texts = {1000: b"a\0", 1001: b"1\0", 1002: b"2\0", 1022: b"noarch\0", 1117: b"f\0", 1118: b"/d/\0"}
    data, entries = b"", []
    for tag, value in ((1003, struct.pack(">I", 3)), (1116, struct.pack(">I", 0)), *texts.items()):
        entries.append(struct.pack(">IIiI", tag, 8 if tag > 1116 else 6 if tag in texts else 4, len(data), 1))
        data += value
    return struct.pack(">II", len(entries), len(data)) + b"".join(entries) + data


def an_rpm_database() -> bytes:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL)")
        connection.execute("INSERT INTO Packages (blob) VALUES (?)", (an_rpm_header(),))
        connection.commit()
        return connection.serialize()


def a_go_program() -> bytes:
    """Return an ELF file that has nothing but the sections with its build information and their names."""
    listed = (
        b"path\tx\nmod\ta.b/c\t(devel)\t\ndep\td.e/f\tv1.0.0\th1:x\n=>\tg.h/i\tv2.0.0\th1:y\nbuild\t-ldflags=secret\n"
    )
    assert len(listed) < 96  # its length is one byte
    info = golang.MAGIC + bytes([8, 2]) + bytes(16) + b"\x08go1.22.1" + bytes([len(listed) + 32])
    info += bytes(16) + listed + bytes(16)
    names = b"\0.go.buildinfo\0"
    head = bytearray(64)
    head[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", head, 40, 64)
    struct.pack_into("<HHH", head, 58, 64, 2, 0)
    section = struct.Struct("<I4x8x8xQQ24x")
    sections = section.pack(0, 192, len(names)) + section.pack(1, 192 + len(names), len(info))
    return bytes(head) + sections + names + info


def _kernels() -> list[bytes]:
    elf = kernels.elf()
    return [kernels.bzimage(pack(elf), len(elf)) for pack in (gzip.compress, lzma.compress, zstandard.compress)]


TARGETS = {
    "dpkg-status": Target(dpkg, lambda: [b"Package: a\nVersion: 1\n x\n\nPackage: b\n"]),
    "rpm-header": Target(header, lambda: [an_rpm_header()], refuses=False),
    "rpm-database": Target(database, lambda: [an_rpm_database()]),
    "go-program": Target(program, lambda: [a_go_program()], refuses=False),
    "bzimage": Target(bzimage, _kernels),
    "vmlinux": Target(elf, lambda: [kernels.elf()]),
    "verity-tree": Target(tree, lambda: [zstandard.compress(_TREE)]),
}
