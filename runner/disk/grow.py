"""Enlarge the file system of a disk that was never mounted, as patches. Like resize2fs, but in milliseconds.

Each new group contains its own bitmaps and inode table. So all new groups but the last need only a descriptor: the kernel
initializes them at first use (BLOCK_UNINIT, INODE_UNINIT; INODE_ZEROED, because unwritten blocks read as zeros).
Descriptors that do not fit after the superblock are in the groups that they describe (meta_bg), as when the kernel grows a
mounted disk. fs/ext4/super.c descriptor_loc(), balloc.c ext4_bg_num_gdb().
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

from rootdisk.artifact.format import DISK_MAX_BYTES
from rootdisk.cli.sizes import size_text
from rootdisk.errors import BadInput, Unsupported
from rootdisk.ext4 import format as f
from rootdisk.ext4 import superblock
from rootdisk.ext4.checksum import bitmap_checksum, descriptor_checksum, disk_seed, superblock_checksum
from rootdisk.ext4.format import BLOCK, BLOCKS_PER_GROUP, DESC_SIZE, DESCS_PER_BLOCK, GROUP_BYTES
from rootdisk.ext4.groups import (
    LAST_GROUP_MIN_FREE,
    GroupDescriptor,
    descriptor_blocks,
    group_count,
    pack_bitmap,
    superblock_groups,
    superblock_place,
)
from runner.disk.base import Base, BaseFile

_EXPECTED = {
    "s_magic": f.EXT4_SUPER_MAGIC,
    "s_state": f.VALID_FS,
    "s_first_data_block": 0,
    "s_log_block_size": f.LOG_BLOCK_SIZE,
    "s_blocks_per_group": BLOCKS_PER_GROUP,
    "s_inode_size": f.INODE_SIZE,
    "s_desc_size": DESC_SIZE,
    "s_checksum_type": f.CRC32C_CHKSUM,
    "s_reserved_gdt_blocks": 0,
    "s_feature_compat": f.FEATURE_COMPAT,
    "s_feature_incompat": f.FEATURE_INCOMPAT,
    "s_feature_ro_compat": f.FEATURE_RO_COMPAT,
}


class _Base(NamedTuple):
    """The file system before it is enlarged."""

    superblock: bytes
    descriptors: bytes  # in whole blocks
    seed: int  # of the checksums
    blocks: int
    inodes_per_group: int
    last_bitmap: bytes  # block bitmap of the last group; empty if that group has full length

    @property
    def groups(self) -> int:
        """The number of groups."""
        return group_count(self.blocks)

    @property
    def table_blocks(self) -> int:
        """The number of blocks of a group's inode table."""
        return self.inodes_per_group // f.INODES_PER_BLOCK

    @property
    def old_descriptor_blocks(self) -> int:
        """The number of descriptor blocks after the superblock."""
        return len(self.descriptors) // BLOCK

    def descriptor(self, group: int) -> bytes:
        """Return the descriptor of a group as stored."""
        return self.descriptors[group * DESC_SIZE : (group + 1) * DESC_SIZE]


def patches(path: Path, size: int, content: Base | None = None) -> dict[int, bytes]:
    """Return bytes by offset that make the file system on `path` fill a disk of `size` bytes. Empty if it does already.

    A disk that is not complete yet is read from `content`.

    Raises:
        BadInput: `size` is smaller than the disk or larger than the limit, or the file system is damaged.
        Unsupported: imagetool has not written this file system.
    """
    with contextlib.ExitStack() as stack:
        base = content or stack.enter_context(contextlib.closing(BaseFile(path)))
        if not base.size <= size <= DISK_MAX_BYTES:
            raise BadInput(
                f"--disk-size: {size_text(size)}",
                f"write {size_text(base.size)}, which the artifact's disk has, to {size_text(DISK_MAX_BYTES)}, as 20g",
            )
        return _patches(_read(base), size)


def _read(disk: Base) -> _Base:
    raw = disk.read(f.SUPERBLOCK_OFFSET, f.SUPERBLOCK_SIZE)
    fields = superblock.unpack(raw.ljust(f.SUPERBLOCK_SIZE, b"\0"))
    for name, expected in _EXPECTED.items():
        if fields[name] != expected:
            raise Unsupported(
                f"--disk-size: the disk's {name} is {fields[name]:#x}, not {expected:#x}", "omit --disk-size"
            )
    if superblock_checksum(raw) != fields["s_checksum"]:
        raise _damaged("superblock")
    blocks, per_group = superblock.get(fields, "s_blocks_count_lo"), fields["s_inodes_per_group"]
    groups = group_count(blocks)
    free_blocks = superblock.get(fields, "s_free_blocks_count_lo")
    if (
        not 0 < blocks * BLOCK <= disk.size
        or not 0 < per_group <= BLOCKS_PER_GROUP
        or per_group % f.INODES_PER_BLOCK
        or fields["s_inodes_count"] != groups * per_group
        or fields["s_free_inodes_count"] > fields["s_inodes_count"]
        or max(free_blocks, fields["s_overhead_clusters"]) > blocks
    ):
        raise _damaged("superblock")
    descriptors = disk.read(BLOCK, descriptor_blocks(groups) * BLOCK)
    base = _Base(raw, descriptors, disk_seed(fields["s_uuid"]), blocks, per_group, b"")
    if blocks % BLOCKS_PER_GROUP:
        return base._replace(last_bitmap=_read_last_bitmap(disk, base))
    return base


def _read_last_bitmap(disk: Base, base: _Base) -> bytes:
    group = base.groups - 1
    raw = base.descriptor(group)
    last = GroupDescriptor.unpack(raw)
    if (
        len(raw) != DESC_SIZE
        or last.flags & f.BG_BLOCK_UNINIT
        or last.free_blocks > BLOCKS_PER_GROUP
        or f.GROUP_DESC.unpack(raw)[11] != descriptor_checksum(base.seed, group, raw)
    ):
        raise _damaged("group descriptors")
    place = last.block_bitmap
    bitmap = disk.read(place * BLOCK, BLOCK) if place < base.blocks else b""
    if len(bitmap) != BLOCK or _block_bitmap_checksum(base, bitmap) != last.block_bitmap_checksum:
        raise _damaged("block bitmap")
    return bitmap


def _damaged(what: str) -> BadInput:
    verb = "are" if what.endswith("s") else "is"
    return BadInput(f"--disk-size: the disk's {what} {verb} damaged", "pull the artifact again, or build it again")


def _patches(base: _Base, size: int) -> dict[int, bytes]:
    blocks = size // BLOCK
    groups = group_count(blocks)
    supers = set(superblock_groups(groups))
    fixed = _fixed(base, groups, supers)
    last = groups - 1
    last_metadata = fixed.get(last, 0) + 2 + base.table_blocks
    if groups > base.groups and blocks - last * BLOCKS_PER_GROUP < last_metadata + LAST_GROUP_MIN_FREE:
        blocks, groups = last * BLOCKS_PER_GROUP, last
        supers.discard(last)
    if blocks <= base.blocks:
        return {}
    if groups * base.inodes_per_group >= 1 << 32:
        most = ((1 << 32) - 1) // base.inodes_per_group * GROUP_BYTES
        raise BadInput(f"--disk-size: {size_text(size)}: too many inodes", f"use at most {size_text(most)}")
    patched: dict[int, bytes] = {}
    first, descriptors = _descriptors(base, blocks, groups, fixed, patched)
    _place_descriptors(base, first, descriptors, groups, supers, patched)
    _place_superblocks(base, blocks, groups, fixed, supers, patched)
    return patched


def _fixed(base: _Base, groups: int, supers: set[int]) -> dict[int, int]:
    """Return how many blocks each new group starts with for superblock and descriptors, if any."""
    old = base.old_descriptor_blocks
    block_counts = {group: 1 + old if group < old * DESCS_PER_BLOCK else 1 for group in supers}
    for meta in range(old * DESCS_PER_BLOCK, groups, DESCS_PER_BLOCK):
        for group in (meta, meta + 1, meta + DESCS_PER_BLOCK - 1):
            block_counts[group] = block_counts.get(group, 0) + 1
    return {group: count for group, count in block_counts.items() if base.groups <= group < groups}


def _descriptors(
    base: _Base, blocks: int, groups: int, fixed: dict[int, int], patched: dict[int, bytes]
) -> tuple[int, bytes]:
    """Return the first changed group and the descriptors from there on. Add changed bitmaps to `patched`."""
    first, out = base.groups, []
    if base.last_bitmap:
        first -= 1
        out.append(_longer_group(base, min(BLOCKS_PER_GROUP, blocks - first * BLOCKS_PER_GROUP), patched))
    make = _Maker(base)
    out += [make(group, fixed.get(group, 0)) for group in range(base.groups, groups)]
    if groups > base.groups:
        # Like mke2fs, always write the bitmap of the last group.
        last = groups - 1
        out[-1] = _last_group(base, last, blocks - last * BLOCKS_PER_GROUP, fixed.get(last, 0), patched)
    return first, b"".join(out)


def _longer_group(base: _Base, blocks: int, patched: dict[int, bytes]) -> bytes:
    """Return the descriptor of the last group of the base, now with `blocks` blocks. Add its bitmap to `patched`."""
    group = base.groups - 1
    old = GroupDescriptor.unpack(base.descriptor(group))
    before = base.blocks - group * BLOCKS_PER_GROUP
    bits = int.from_bytes(base.last_bitmap, "little")
    bits &= ~(((1 << (blocks - before)) - 1) << before)
    bitmap = bits.to_bytes(BLOCK, "little")
    patched[old.block_bitmap * BLOCK] = bitmap
    free = old.free_blocks + blocks - before
    checksum = _block_bitmap_checksum(base, bitmap)
    return old._replace(free_blocks=free, block_bitmap_checksum=checksum).pack(base.seed, group)


def _last_group(base: _Base, group: int, blocks: int, fixed: int, patched: dict[int, bytes]) -> bytes:
    used = fixed + 2 + base.table_blocks
    bitmap = pack_bitmap((1 << used) - 1, blocks)
    start = group * BLOCKS_PER_GROUP + fixed
    patched[start * BLOCK] = bitmap
    empty = _empty_group(start, blocks - used, base.inodes_per_group, f.BG_INODE_UNINIT | f.BG_INODE_ZEROED)
    return empty._replace(block_bitmap_checksum=_block_bitmap_checksum(base, bitmap)).pack(base.seed, group)


def _block_bitmap_checksum(base: _Base, bitmap: bytes) -> int:
    return bitmap_checksum(base.seed, bitmap, BLOCKS_PER_GROUP)


def _empty_group(start: int, free: int, inodes: int, flags: int) -> GroupDescriptor:
    """Return the descriptor of an empty group. Bitmaps and table start at block `start`."""
    return GroupDescriptor(
        start, start + 1, start + 2, free_blocks=free, free_inodes=inodes, unused_inodes=inodes, flags=flags
    )


class _Maker:
    """Makes the descriptor (64 bytes) of an empty group from its number, in a microsecond.

    In such a group each bit of the number changes a fixed set of bits of the descriptor, independent of the other bits: in
    three block numbers, and in the checksum because a CRC is linear. So a descriptor is that of group 0, XORed with the
    change for each bit of the number.
    """

    def __init__(self, base: _Base) -> None:
        self._base = base
        self._zero: dict[int, int] = {}  # descriptor of group 0, by the number of blocks at its start
        changes = [_change(bit) for bit in range(17)]  # 16 TiB are 2^17 groups
        self._low, self._high = _combined(changes[:8]), _combined(changes[8:])

    def __call__(self, group: int, fixed: int) -> bytes:
        zero = self._zero.get(fixed)
        if zero is None:
            free = BLOCKS_PER_GROUP - fixed - 2 - self._base.table_blocks
            flags = f.BG_INODE_UNINIT | f.BG_BLOCK_UNINIT | f.BG_INODE_ZEROED
            empty = _empty_group(fixed, free, self._base.inodes_per_group, flags)
            zero = self._zero[fixed] = int.from_bytes(empty.pack(self._base.seed, 0), "little")
        return (zero ^ self._low[group & 0xFF] ^ self._high[group >> 8]).to_bytes(DESC_SIZE, "little")


def _change(bit: int) -> int:
    """Return the bits of a descriptor that `bit` of the group number changes."""
    place = BLOCKS_PER_GROUP << bit
    return int.from_bytes(GroupDescriptor(place, place, place).pack(0, 1 << bit), "little")


def _combined(changes: list[int]) -> list[int]:
    """Return the XOR of every subset of `changes`, indexed by the bits of the subset."""
    sums = [0]
    for change in changes:
        sums += [change ^ other for other in sums]
    return sums


def _place_descriptors(
    base: _Base, first: int, descriptors: bytes, groups: int, supers: set[int], patched: dict[int, bytes]
) -> None:
    """Add all copies of the descriptor table, changed from group `first` on, to `patched`."""
    table = base.descriptors[: first * DESC_SIZE] + descriptors
    table = table.ljust(descriptor_blocks(groups) * BLOCK, b"\0")
    old = base.old_descriptor_blocks
    if first < old * DESCS_PER_BLOCK:
        changed = first // DESCS_PER_BLOCK * BLOCK
        for group in supers:
            if group < old * DESCS_PER_BLOCK:
                start = changed if group < base.groups else 0
                patched[group * GROUP_BYTES + BLOCK + start] = table[start : old * BLOCK]
    for meta in range(old, descriptor_blocks(groups)):
        meta_first = meta * DESCS_PER_BLOCK
        for group in (meta_first, meta_first + 1, meta_first + DESCS_PER_BLOCK - 1):
            if group < groups:
                place = group * BLOCKS_PER_GROUP + (group in supers)
                patched[place * BLOCK] = table[meta * BLOCK : (meta + 1) * BLOCK]


def _place_superblocks(
    base: _Base, blocks: int, groups: int, fixed: dict[int, int], supers: set[int], patched: dict[int, bytes]
) -> None:
    """Add the superblock and its backups to `patched`."""
    raw = bytearray(base.superblock)
    old = superblock.unpack(raw)
    new = groups - base.groups
    metadata = sum(count for group, count in fixed.items() if group < groups) + new * (2 + base.table_blocks)
    free = superblock.get(old, "s_free_blocks_count_lo") + blocks - base.blocks - metadata
    superblock.put(raw, "s_blocks_count_lo", blocks)
    superblock.put(raw, "s_free_blocks_count_lo", free)
    superblock.put(raw, "s_inodes_count", groups * base.inodes_per_group)
    superblock.put(raw, "s_free_inodes_count", old["s_free_inodes_count"] + new * base.inodes_per_group)
    superblock.put(raw, "s_overhead_clusters", old["s_overhead_clusters"] + metadata)
    if groups > base.old_descriptor_blocks * DESCS_PER_BLOCK:
        superblock.put(raw, "s_feature_incompat", old["s_feature_incompat"] | f.INCOMPAT_META_BG)
        superblock.put(raw, "s_first_meta_bg", base.old_descriptor_blocks)
    for group in supers:
        superblock.put(raw, "s_block_group_nr", min(group, 0xFFFF))
        patched[superblock_place(group)] = superblock.seal(raw)
