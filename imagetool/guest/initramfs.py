"""The initramfs: the init, the modules it loads, and their order. A newc cpio (the kernel's early-userspace buffer format), gzip."""

from __future__ import annotations

import gzip
import lzma
import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import zstandard

from imagetool.guest.modules import slim, unsigned
from rootdisk.artifact.format import TEMPLATE_VERSION, TEMPLATE_WITH_VERITY
from rootdisk.compression import HEAD_BYTES, compression

MODULE_MAX_BYTES = 64 << 20
INITRAMFS_MAX_BYTES = 1 << 30  # decompressed; that of an artifact to verify is not ours


class Module(NamedTuple):
    """A kernel module: its file, and the word behind it in the list: see kernel.WANTED."""

    file: str
    content: bytes
    key: str

    @property
    def name(self) -> str:
        """The name of the decompressed file."""
        return self.file.removesuffix(".xz").removesuffix(".zst").removesuffix(".gz")


def build(init: bytes, modules: Sequence[Module], *, signed: bool = True) -> bytes:
    """`modules` in the order they are to be loaded; compressed ones are decompressed here, and unless `signed` they lose their signatures and what only debuggers read."""
    entries = [(b"dev", 0o040755, b""), (b"init", 0o100755, init), (b"modules", 0o040755, b"")]
    entries += [(b"modules/" + m.name.encode(), 0o100644, _content(m, signed=signed)) for m in modules]
    entries.append((b"modules/load", 0o100644, "".join(f"{m.name} {m.key}".rstrip() + "\n" for m in modules).encode()))
    out = b"".join(_entry(n, *entry) for n, entry in enumerate(entries, 1)) + _entry(0, b"TRAILER!!!", 0, b"")
    return gzip.compress(out, 9, mtime=0)


def template_version(initramfs: bytes) -> int:
    """Return how a guest with this `initramfs` can be saved before it touches the disk: 0 if it cannot.

    It can if the driver of the disk is a module that the init loads after that moment.
    """
    try:
        content = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(initramfs, INITRAMFS_MAX_BYTES)
    except zlib.error:
        return 0  # not one of ours
    if not re.search(rb"^virtio_blk\.ko late$", content, re.MULTILINE):
        return 0
    return TEMPLATE_WITH_VERITY if re.search(rb"^dm[-_]verity\.ko verity$", content, re.MULTILINE) else TEMPLATE_VERSION


def _entry(number: int, name: bytes, mode: int, data: bytes) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name + b"\0"
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _content(module: Module, *, signed: bool) -> bytes:
    content = _plain(module.content)
    return content if signed else slim(unsigned(content))


def _plain(content: bytes) -> bytes:
    how = compression(content[:HEAD_BYTES])
    if how == "xz":
        return lzma.decompress(content)
    if how == "zstd":
        with zstandard.ZstdDecompressor().stream_reader(content) as reader:
            return bytes(reader.read(MODULE_MAX_BYTES))
    return gzip.decompress(content) if how == "gzip" else content
