"""The vmlinux in a bzImage: the kernel itself, as an ELF file that QEMU starts without the kernel's decompressor.

The place of the compressed payload is in the kernel's Documentation/arch/x86/boot.rst (`payload_offset`, boot protocol
2.08). The last four bytes of the payload are the size of what is in it (scripts/Makefile.lib, `size_append`; gzip has it
too). QEMU starts an ELF file only at its PVH entry, an ELF note of Xen's (xen/include/public/elfnote.h).
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

import zstandard

from rootdisk.artifact.compressed import VMLINUX_MAX_BYTES
from rootdisk.compression import HEAD_BYTES, ZSTD_WINDOW_MAX_BYTES, compression
from rootdisk.errors import BadInput

_SETUP_SECTORS, _MAGIC, _VERSION, _PAYLOAD = 0x1F1, 0x202, 0x206, 0x248  # in the first sector
_PAYLOAD_VERSION = 0x208
_SECTOR_BYTES = 512
_LZ4_LEGACY = b"\x02\x21\x4c\x18"  # lz4's lz4_Frame_format.md, legacy frame: blocks of 8 MiB, each with its length
_LZ4_BLOCK_BYTES = 8 << 20
_LZO = b"\x89LZO\0"  # lzop: lib/decompress_unlzo.c has its header and blocks
_LZO_HEADER_BYTES = 9 + 7  # the magic; versions of lzop and of its library, and the method
_LZO_LEVEL_VERSION, _LZO_FILTER = 0x0940, 0x800
_LZO_BLOCK = struct.Struct(">III")  # bytes of it, bytes that it takes, checksum
_LZO_BLOCK_BYTES = 256 << 10
_LZMA_MEMORY_BYTES = 256 << 20
_DAMAGED = (zlib.error, lzma.LZMAError, zstandard.ZstdError, struct.error)
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")  # elf(5), Elf64_Ehdr
_PROGRAM_HEADER = struct.Struct(
    "<IIQQQQQQ"
)  # Elf64_Phdr: type, flags, offset, virtual, physical, in file, in memory, alignment
_NOTE = struct.Struct("<III")  # Elf64_Nhdr: length of the name, of the value, type
_ELF64_LITTLE_ENDIAN, _X86_64 = b"\x7fELF\x02\x01", 62
_PT_LOAD, _PT_NOTE = 1, 4
_XEN, _PVH_ENTRY = b"Xen\0", 18  # XEN_ELFNOTE_PHYS32_ENTRY
_SEGMENTS_MAX_COUNT, _NOTES_MAX_BYTES = 64, 1 << 20  # a kernel has five, and less than a page
_PHYSICAL_END = 1 << 32  # it starts in 32-bit mode
_HINT = "leave vmlinux out: then the bzImage is booted"


class NoVmlinux(BadInput):
    """A kernel without a vmlinux that QEMU can start."""


class _Segment(NamedTuple):
    kind: int
    offset: int
    physical: int
    file_size: int
    memory_size: int


def extract(bzimage: bytes) -> bytes | bytearray:
    """Return the ELF file in `bzimage`, with what follows it in the payload: the table of relocations.

    Raises:
        NoVmlinux: It has none, or cannot be decompressed, or is larger than VMLINUX_MAX_BYTES, or has no PVH entry.
    """
    payload = _payload(bzimage)
    (size,) = struct.unpack("<I", payload[-4:])
    if not 0 < size <= VMLINUX_MAX_BYTES:
        raise NoVmlinux(f"kernel: its vmlinux has {size} bytes; {VMLINUX_MAX_BYTES} are allowed", _HINT)
    try:
        elf = _decompressor(payload)(payload, size)
    except (*_DAMAGED, ValueError, IndexError, OSError, EOFError, RuntimeError) as err:
        raise NoVmlinux(f"kernel: its vmlinux cannot be decompressed: {err}", _HINT) from err
    if len(elf) != size:
        raise NoVmlinux(f"kernel: its vmlinux has {len(elf)} bytes or more, and should have {size}", _HINT)
    check_pvh(elf)
    return elf


def _payload(bzimage: bytes) -> memoryview:
    if len(bzimage) < 2 * _SECTOR_BYTES or bzimage[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise NoVmlinux("kernel: it is not a bzImage", _HINT)
    (version,) = struct.unpack_from("<H", bzimage, _VERSION)
    offset, length = struct.unpack_from("<II", bzimage, _PAYLOAD)
    start = ((bzimage[_SETUP_SECTORS] or 4) + 1) * _SECTOR_BYTES + offset
    if version < _PAYLOAD_VERSION or length < HEAD_BYTES or start + length > len(bzimage):
        raise NoVmlinux("kernel: it does not say where its payload is", _HINT)
    return memoryview(bzimage)[start : start + length]


def _decompressor(payload: memoryview) -> Callable[[memoryview, int], bytes | bytearray]:
    head = bytes(payload[:HEAD_BYTES])
    if head.startswith(_LZ4_LEGACY):
        return _lz4
    if head.startswith(_LZO):
        return _lzo
    known = {"gzip": _gzip, "zstd": _zstd, "xz": _xz, "lzma": _lzma, "bzip2": _bzip2}
    how = compression(head)
    if how not in known:
        raise NoVmlinux("kernel: its vmlinux is compressed in an unknown way", _HINT)
    return known[how]


# Each decompresses at most one byte more than `size`.


def _gzip(payload: memoryview, size: int) -> bytes:
    return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(payload, size + 1)


def _zstd(payload: memoryview, size: int) -> bytes:
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX_BYTES)
    with decompressor.stream_reader(payload) as reader:
        return bytes(reader.read(size + 1))


def _xz(payload: memoryview, size: int) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY_BYTES).decompress(payload, size + 1)


def _lzma(payload: memoryview, size: int) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY_BYTES).decompress(payload, size + 1)


def _bzip2(payload: memoryview, size: int) -> bytes:
    return bz2.BZ2Decompressor().decompress(payload, size + 1)


def _lz4(payload: memoryview, size: int) -> bytearray:
    import lz4.block

    # All at once: an array that grows leaves as much memory behind as the kernel takes.
    out, done = bytearray(size + 1), 0
    at, end = len(_LZ4_LEGACY), len(payload) - 4  # where the size is
    while at < end and done <= size:
        (length,) = struct.unpack_from("<I", payload, at)
        at += 4
        if not 0 < length <= end - at:
            raise ValueError("a block is longer than the payload")
        block = lz4.block.decompress(payload[at : at + length], uncompressed_size=_LZ4_BLOCK_BYTES)
        block = block[: len(out) - done]
        out[done : done + len(block)] = block
        done += len(block)
        at += length
    del out[done:]
    return out


def _lzo(payload: memoryview, size: int) -> bytearray:
    from lzallright import LZOCompressor, LZOError

    at, out = _lzo_start(payload), bytearray()
    while len(out) <= size and (length := int.from_bytes(payload[at : at + 4], "big")):
        length, taken, _ = _LZO_BLOCK.unpack_from(payload, at)
        at += _LZO_BLOCK.size
        block = bytes(payload[at : at + taken])
        if not 0 < taken <= length <= _LZO_BLOCK_BYTES or len(block) != taken:
            raise ValueError("a block has a wrong length")
        try:
            out += block if taken == length else LZOCompressor.decompress(block, length)[: size + 1 - len(out)]
        except LZOError as err:
            raise ValueError(f"a block is damaged: {err}") from err
        at += taken
    return out


def _lzo_start(payload: memoryview) -> int:
    """Return where the blocks begin."""
    (version,) = struct.unpack_from(">H", payload, 9)
    is_later = bool(version >= _LZO_LEVEL_VERSION)
    at = _LZO_HEADER_BYTES + is_later
    (flags,) = struct.unpack_from(">I", payload, at)
    at += 8 if flags & _LZO_FILTER else 4
    at += 12 if is_later else 8  # mode and time
    return at + 1 + payload[at] + 4  # the name and the checksum


def check_pvh(elf: bytes | bytearray) -> None:
    """Check that `elf` is a kernel for x86-64 that can be started at its PVH entry.

    Raises:
        NoVmlinux: It is not.
    """
    try:
        segments = _segments(elf)
        entry = next((found for s in segments if s.kind == _PT_NOTE if (found := _pvh_entry(elf, s)) is not None), None)
    except (struct.error, OverflowError) as err:
        raise NoVmlinux("kernel: its vmlinux is damaged", _HINT) from err
    loaded = [segment for segment in segments if segment.kind == _PT_LOAD]
    if any(
        s.file_size > s.memory_size or s.offset + s.file_size > len(elf) or s.physical + s.memory_size > _PHYSICAL_END
        for s in loaded
    ):
        raise NoVmlinux("kernel: a segment of its vmlinux does not lie in the file, or not in memory", _HINT)
    if entry is None:
        raise NoVmlinux("kernel: its vmlinux has no PVH entry (CONFIG_PVH)", _HINT)
    if not any(s.physical <= entry < s.physical + s.file_size for s in loaded):
        raise NoVmlinux("kernel: the PVH entry of its vmlinux is in none of its segments", _HINT)


def _segments(elf: bytes | bytearray) -> list[_Segment]:
    ident, _, machine, _, _, offset, _, _, _, entry_size, count, *_ = _ELF_HEADER.unpack_from(elf)
    if not ident.startswith(_ELF64_LITTLE_ENDIAN) or machine != _X86_64 or entry_size != _PROGRAM_HEADER.size:
        raise NoVmlinux("kernel: its payload is not an ELF file for x86-64", _HINT)
    if count > _SEGMENTS_MAX_COUNT:
        raise NoVmlinux(f"kernel: its vmlinux has {count} segments; {_SEGMENTS_MAX_COUNT} are allowed", _HINT)
    segments = []
    for number in range(count):
        kind, _, start, _, physical, file_size, memory_size, _ = _PROGRAM_HEADER.unpack_from(
            elf, offset + number * entry_size
        )
        segments.append(_Segment(kind, start, physical, file_size, memory_size))
    return segments


def _pvh_entry(elf: bytes | bytearray, segment: _Segment) -> int | None:
    """Return the address in the note of a PVH entry, or None if there is none in `segment`."""
    at, end = segment.offset, min(segment.offset + min(segment.file_size, _NOTES_MAX_BYTES), len(elf))
    while at + _NOTE.size <= end:
        name_length, value_length, kind = _NOTE.unpack_from(elf, at)
        name_at = at + _NOTE.size
        value_at = name_at + _padded(name_length)
        value = elf[value_at : min(value_at + value_length, end)]
        if (elf[name_at : name_at + name_length], kind) == (_XEN, _PVH_ENTRY) and len(value) in (4, 8):
            return int.from_bytes(value, "little")
        at = value_at + _padded(value_length)
    return None


def _padded(length: int) -> int:
    return -(-length // 4) * 4
