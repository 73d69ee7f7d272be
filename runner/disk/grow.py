"""A larger file system on a disk that was never mounted, as patches over it: what resize2fs does, in milliseconds.

A new group keeps its bitmaps and inode table within itself. So all but the last can be left to the kernel to begin
(BLOCK_UNINIT, INODE_UNINIT, and INODE_ZEROED, as what was never written reads as zeros): nothing but their descriptors
is written. Descriptors that have no room behind the superblock lie in the groups they describe (meta_bg), as when the
kernel grows a mounted disk. fs/ext4/ext4.h, super.c descriptor_loc(), balloc.c ext4_bg_num_gdb().
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rootdisk.artifact.format import DISK_MAX_BYTES
from rootdisk.durable import open_file
from rootdisk.errors import BadInput, Unsupported

BLOCK = 4096
GROUP_BLOCKS = 8 * BLOCK
GROUP_BYTES = GROUP_BLOCKS * BLOCK
INODES_PER_BLOCK = 16
DESC = struct.Struct("<IIIHHHHIHHHHIIIHHHHIHHI")  # struct ext4_group_desc: its 23 fields, 64 bytes
DESCS = BLOCK // DESC.size
INODE_UNINIT, BLOCK_UNINIT, INODE_ZEROED = 1, 2, 4
META_BG = 0x10
LAST_GROUP_FREE_MIN = 64  # as mke2fs, roughly: a last group that could hold little but its own metadata is left away

# struct ext4_super_block: what is read or changed
_AT = {
    "inodes": (0x0, "I"), "blocks": (0x4, "I"), "free_blocks": (0xC, "I"), "free_inodes": (0x10, "I"),
    "first_data_block": (0x14, "I"), "log_block_size": (0x18, "I"), "blocks_per_group": (0x20, "I"),
    "inodes_per_group": (0x28, "I"), "magic": (0x38, "H"), "state": (0x3A, "H"), "inode_size": (0x58, "H"),
    "group": (0x5A, "H"), "compat": (0x5C, "I"), "incompat": (0x60, "I"), "ro_compat": (0x64, "I"),
    "uuid": (0x68, "16s"), "reserved_gdt": (0xCE, "H"), "desc_size": (0xFE, "H"), "first_meta_bg": (0x104, "I"),
    "blocks_hi": (0x150, "I"), "free_blocks_hi": (0x158, "I"), "checksum_type": (0x175, "B"),
    "overhead": (0x248, "I"), "checksum": (0x3FC, "I"),
}  # fmt: skip
_SUPERBLOCK_OFFSET, _SUPERBLOCK_BYTES = 1024, 1024
_EXPECTED = {
    "magic": 0xEF53, "state": 1, "first_data_block": 0, "log_block_size": 2, "blocks_per_group": GROUP_BLOCKS,
    "inode_size": 256, "desc_size": DESC.size, "checksum_type": 1, "reserved_gdt": 0,
    "compat": 0x2C,  # has_journal, ext_attr, dir_index
    "incompat": 0x2C2,  # filetype, extents, 64bit, flex_bg
    "ro_compat": 0x46B,  # sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum
}  # fmt: skip


class _Base(NamedTuple):
    """The file system as it is."""

    superblock: bytes
    descriptors: bytes  # in whole blocks
    seed: int  # of its checksums
    blocks: int
    inodes_per_group: int
    last_bitmap: bytes  # of the last group's blocks; "" where that group is whole

    @property
    def groups(self) -> int:
        return -(-self.blocks // GROUP_BLOCKS)

    @property
    def table_blocks(self) -> int:
        return self.inodes_per_group // INODES_PER_BLOCK

    @property
    def old_descriptor_blocks(self) -> int:
        """How many blocks of descriptors have room behind the superblock."""
        return len(self.descriptors) // BLOCK


def patches(base: Path, size: int) -> dict[int, bytes]:
    """Bytes by offset that make the file system on `base` fill a disk of `size` bytes; none where it does already.

    BadInput: `size` is less than the disk's or more than the file system can have, or the disk is damaged; Unsupported:
    a file system that imagetool does not write.
    """
    fd = open_file(base)
    try:
        present = os.fstat(fd).st_size
        if not present <= size <= DISK_MAX_BYTES:
            raise BadInput(f"--disk-size: {_text(size)}", f"the artifact's disk has {_text(present)}; at most 16 TiB")
        return _patches(_read(fd, present), size)
    finally:
        os.close(fd)


def _read(fd: int, size: int) -> _Base:
    raw = os.pread(fd, _SUPERBLOCK_BYTES, _SUPERBLOCK_OFFSET)
    found = dict.fromkeys(_AT, 0)
    if len(raw) == _SUPERBLOCK_BYTES:
        found = {name: struct.unpack_from("<" + form, raw, at)[0] for name, (at, form) in _AT.items()}
    for name, wanted in _EXPECTED.items():
        if found[name] != wanted:
            raise Unsupported(
                f"--disk-size: the disk's {name} is {found[name]:#x}, not {wanted:#x}", "leave --disk-size away"
            )
    if crc(0xFFFF_FFFF, raw[: _AT["checksum"][0]]) != found["checksum"]:
        raise _damaged("superblock")
    blocks, per_group = found["blocks"] | found["blocks_hi"] << 32, found["inodes_per_group"]
    groups = -(-blocks // GROUP_BLOCKS)
    if (
        not 0 < blocks * BLOCK <= size
        or not 0 < per_group <= GROUP_BLOCKS
        or per_group % INODES_PER_BLOCK
        or found["inodes"] != groups * per_group
        or found["free_inodes"] > found["inodes"]
        or max(found["free_blocks"] | found["free_blocks_hi"] << 32, found["overhead"]) > blocks
    ):
        raise _damaged("superblock")
    descriptors = os.pread(fd, -(-groups // DESCS) * BLOCK, BLOCK)
    seed = crc(0xFFFF_FFFF, raw[0x68:0x78])
    bitmap = b""
    if blocks % GROUP_BLOCKS:
        last = descriptors[(groups - 1) * DESC.size : groups * DESC.size]
        fields = DESC.unpack(last) if len(last) == DESC.size else (0,) * 23
        free = fields[3] | fields[15] << 16
        if fields[6] & BLOCK_UNINIT or free > GROUP_BLOCKS or fields[11] != _desc_checksum(seed, groups - 1, last):
            raise _damaged("group descriptors")
        place = fields[0] | fields[12] << 32
        bitmap = os.pread(fd, BLOCK, place * BLOCK) if place < blocks else b""
        if len(bitmap) != BLOCK or crc(seed, bitmap) != fields[8] | fields[20] << 16:
            raise _damaged("block bitmap")
    return _Base(raw, descriptors, seed, blocks, per_group, bitmap)


def _text(size: int) -> str:
    return f"{size} bytes" if size % (1 << 20) else f"{size >> 20} MiB"


def _damaged(what: str) -> BadInput:
    verb = "are" if what.endswith("s") else "is"
    return BadInput(f"--disk-size: the disk's {what} {verb} damaged", "pull the artifact again, or build it again")


def _patches(base: _Base, size: int) -> dict[int, bytes]:
    blocks = size // BLOCK
    groups = -(-blocks // GROUP_BLOCKS)
    supers = _with_super(groups)
    fixed = _fixed(base, groups, supers)
    last = groups - 1
    if groups > base.groups and blocks - last * GROUP_BLOCKS < fixed.get(last, 0) + base.table_blocks + 66:
        blocks, groups = last * GROUP_BLOCKS, last
        supers.discard(last)
    if blocks <= base.blocks:
        return {}
    if groups * base.inodes_per_group >= 1 << 32:
        most = ((1 << 32) - 1) // base.inodes_per_group * GROUP_BYTES
        raise BadInput(f"--disk-size: {_text(size)}: too many inodes", f"give {_text(most)} at most")
    found: dict[int, bytes] = {}
    first, descriptors = _descriptors(base, blocks, groups, fixed, found)
    _place_descriptors(base, first, descriptors, groups, supers, found)
    _place_superblocks(base, blocks, groups, fixed, supers, found)
    return found


def _with_super(groups: int) -> set[int]:
    """The groups with a superblock: 0, 1 and the powers of 3, 5 and 7 (sparse_super)."""
    found = {0, 1}
    for prime in (3, 5, 7):
        power = prime
        while power < groups:
            found.add(power)
            power *= prime
    return {group for group in found if group < groups}


def _fixed(base: _Base, groups: int, supers: set[int]) -> dict[int, int]:
    """Blocks of superblock and descriptors at the start of each new group that has any."""
    old = base.old_descriptor_blocks
    found = {group: 1 + old if group < old * DESCS else 1 for group in supers}
    for meta in range(old * DESCS, groups, DESCS):
        for group in (meta, meta + 1, meta + DESCS - 1):
            found[group] = found.get(group, 0) + 1
    return {group: count for group, count in found.items() if base.groups <= group < groups}


def _descriptors(
    base: _Base, blocks: int, groups: int, fixed: dict[int, int], found: dict[int, bytes]
) -> tuple[int, bytes]:
    """The changed descriptors, from the first such group on; bitmaps that go with them are put into `found`."""
    first, out = base.groups, []
    if base.last_bitmap:
        first -= 1
        out.append(_longer_group(base, min(GROUP_BLOCKS, blocks - first * GROUP_BLOCKS), found))
    make = _Maker(base)
    out += [make(group, fixed.get(group, 0)) for group in range(base.groups, groups)]
    if groups > base.groups:
        # As mke2fs does, the last group has its bitmap, whether it is whole or not.
        out[-1] = _last_group(base, groups - 1, blocks - (groups - 1) * GROUP_BLOCKS, fixed.get(groups - 1, 0), found)
    return first, b"".join(out)


def _longer_group(base: _Base, blocks: int, found: dict[int, bytes]) -> bytes:
    """The descriptor of the base's last group, now `blocks` long."""
    group = base.groups - 1
    fields = list(DESC.unpack_from(base.descriptors, group * DESC.size))
    before = base.blocks - group * GROUP_BLOCKS
    bits = int.from_bytes(base.last_bitmap, "little")
    bits &= ~(((1 << (blocks - before)) - 1) << before)
    bitmap = bits.to_bytes(BLOCK, "little")
    found[(fields[0] | fields[12] << 32) * BLOCK] = bitmap
    free = (fields[3] | fields[15] << 16) + blocks - before
    checksum = crc(base.seed, bitmap)
    fields[3], fields[15] = free & 0xFFFF, free >> 16
    fields[8], fields[20] = checksum & 0xFFFF, checksum >> 16
    return _sealed(base.seed, group, fields)


def _last_group(base: _Base, group: int, blocks: int, fixed: int, found: dict[int, bytes]) -> bytes:
    used = fixed + 2 + base.table_blocks
    bits = (1 << used) - 1 | ((1 << (GROUP_BLOCKS - blocks)) - 1) << blocks
    bitmap = bits.to_bytes(BLOCK, "little")
    start = group * GROUP_BLOCKS + fixed
    found[start * BLOCK] = bitmap
    checksum = crc(base.seed, bitmap)
    fields = _fields(start, blocks - used, base.inodes_per_group, INODE_UNINIT | INODE_ZEROED)
    fields[8], fields[20] = checksum & 0xFFFF, checksum >> 16
    return _sealed(base.seed, group, fields)


def _fields(start: int, free: int, inodes: int, flags: int) -> list[int]:
    """An empty group's descriptor, its bitmaps and table from block `start` on: below 2^32, as disks end at 16 TiB."""
    fields = [start, start + 1, start + 2, free, inodes, 0, flags, *[0] * 16]
    fields[10] = inodes  # none of the table was ever used
    return fields


def _sealed(seed: int, group: int, fields: list[int]) -> bytes:
    fields[11] = 0
    fields[11] = _desc_checksum(seed, group, DESC.pack(*fields))
    return DESC.pack(*fields)


def _desc_checksum(seed: int, group: int, descriptor: bytes) -> int:
    """bg_checksum: over the group's number and its descriptor with a checksum of zero."""
    return crc(seed, struct.pack("<I", group) + descriptor[:0x1E] + b"\0\0" + descriptor[0x20:]) & 0xFFFF


class _Maker:
    """Descriptors of empty groups: number in, 64 bytes out, in a microsecond.

    Where a group's places are its own, each bit of its number changes the same bits of the descriptor, whatever the
    others are: those of three block numbers, and those of the checksum, as a CRC is linear. So a descriptor is that
    of group 0 and the changes of its number's bits, XORed.
    """

    def __init__(self, base: _Base) -> None:
        self._base = base
        self._zero: dict[int, int] = {}  # by blocks at the group's start
        changes = [self._change(bit) for bit in range(17)]  # 16 TiB are 2^17 groups
        self._low, self._high = _combined(changes[:8]), _combined(changes[8:])

    def __call__(self, group: int, fixed: int) -> bytes:
        zero = self._zero.get(fixed)
        if zero is None:
            free = GROUP_BLOCKS - fixed - 2 - self._base.table_blocks
            fields = _fields(fixed, free, self._base.inodes_per_group, INODE_UNINIT | BLOCK_UNINIT | INODE_ZEROED)
            zero = self._zero[fixed] = int.from_bytes(_sealed(self._base.seed, 0, fields), "little")
        return (zero ^ self._low[group & 0xFF] ^ self._high[group >> 8]).to_bytes(DESC.size, "little")

    def _change(self, bit: int) -> int:
        place = GROUP_BLOCKS << bit
        fields = [place, place, place, *[0] * 20]
        fields[11] = _desc_checksum(0, 1 << bit, DESC.pack(*fields))
        return int.from_bytes(DESC.pack(*fields), "little")


def _combined(changes: list[int]) -> list[int]:
    """The XOR of every set of `changes`, by the set's bits."""
    found = [0]
    for change in changes:
        found += [change ^ other for other in found]
    return found


def _place_descriptors(
    base: _Base, first: int, descriptors: bytes, groups: int, supers: set[int], found: dict[int, bytes]
) -> None:
    """Puts the table, changed from group `first` on, into `found`, each block wherever it stands."""
    table = base.descriptors[: first * DESC.size] + descriptors
    table = table.ljust(-(-groups // DESCS) * BLOCK, b"\0")
    old = base.old_descriptor_blocks
    if first < old * DESCS:
        changed = first // DESCS * BLOCK
        for group in supers:
            if group < old * DESCS:
                start = changed if group < base.groups else 0
                found[group * GROUP_BYTES + BLOCK + start] = table[start : old * BLOCK]
    for meta in range(old, -(-groups // DESCS)):
        for group in (meta * DESCS, meta * DESCS + 1, meta * DESCS + DESCS - 1):
            if group < groups:
                place = group * GROUP_BLOCKS + (group in supers)
                found[place * BLOCK] = table[meta * BLOCK : (meta + 1) * BLOCK]


def _place_superblocks(
    base: _Base, blocks: int, groups: int, fixed: dict[int, int], supers: set[int], found: dict[int, bytes]
) -> None:
    """Puts the superblock and its backups into `found`."""
    raw = bytearray(base.superblock)
    new = groups - base.groups
    starts = sum(count for group, count in fixed.items() if group < groups)
    free = _get(raw, "free_blocks") | _get(raw, "free_blocks_hi") << 32
    free += blocks - base.blocks - starts - new * (2 + base.table_blocks)
    _set(raw, "inodes", groups * base.inodes_per_group)
    _set(raw, "free_inodes", _get(raw, "free_inodes") + new * base.inodes_per_group)
    _set(raw, "overhead", _get(raw, "overhead") + starts + new * (2 + base.table_blocks))
    for name, value in (("blocks", blocks), ("free_blocks", free)):
        _set(raw, name, value & 0xFFFF_FFFF)
        _set(raw, name + "_hi", value >> 32)
    if groups > base.old_descriptor_blocks * DESCS:
        _set(raw, "incompat", _get(raw, "incompat") | META_BG)
        _set(raw, "first_meta_bg", base.old_descriptor_blocks)
    for group in supers:
        _set(raw, "group", min(group, 0xFFFF))
        _set(raw, "checksum", crc(0xFFFF_FFFF, raw[: _AT["checksum"][0]]))
        found[group * GROUP_BYTES or _SUPERBLOCK_OFFSET] = bytes(raw)


def _get(raw: bytearray, name: str) -> int:
    at, form = _AT[name]
    return int(struct.unpack_from("<" + form, raw, at)[0])


def _set(raw: bytearray, name: str, value: int) -> None:
    at, form = _AT[name]
    struct.pack_into("<" + form, raw, at, value)


def _table() -> Iterator[int]:
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F6_3B78 if value & 1 else 0)  # Castagnoli's polynomial, reflected
        yield value


_CRC32C = tuple(_table())


def crc(state: int, data: bytes | bytearray) -> int:
    """crc32c as ext4 carries it from part to part: raw, without the inversion at its end."""
    for byte in data:
        state = _CRC32C[(state ^ byte) & 0xFF] ^ state >> 8
    return state
