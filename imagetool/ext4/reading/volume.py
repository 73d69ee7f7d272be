"""An ext4 volume: what superblock, group descriptors and inode tables say; fs/ext4/super.c, fs/ext4/inode.c."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from rootdisk.artifact.disk import Device
from rootdisk.errors import BadInput, Unsupported
from rootdisk.ext4 import format as f
from rootdisk.ext4 import superblock
from rootdisk.ext4.checksum import (
    bitmap_checksum,
    crc,
    descriptor_checksum,
    disk_seed,
    inode_seed,
    superblock_checksum,
)
from rootdisk.ext4.groups import GroupDescriptor
from rootdisk.ext4.inodes import decode_device, decode_time

_KNOWN_INCOMPAT = f.FEATURE_INCOMPAT | f.INCOMPAT_CSUM_SEED  # read but not written
_INODE_SIZES = (128, 256, 512, 1024, 2048, 4096)
_LOG_BLOCK_SIZE_MAX = 6  # 64 KiB
_EXTRA_TO_CHECKSUM, _EXTRA_TO_MTIME = 4, 12  # bytes of i_extra_isize that reach past i_checksum_hi, i_mtime_extra


@dataclass(frozen=True, slots=True)
class Node:
    """An inode. `size` is in bytes, `block` is i_block, `xattr_block` a block number or 0, `raw` the whole inode."""

    number: int
    mode: int
    uid: int
    gid: int
    size: int
    links: int
    blocks: int  # of 512 bytes
    mtime_ns: int
    flags: int
    generation: int
    block: bytes
    xattr_block: int
    raw: bytes

    @property
    def type(self) -> int:
        """The file type, as stat.S_IFMT gives it."""
        return stat.S_IFMT(self.mode)

    @property
    def device(self) -> tuple[int, int]:
        """Major and minor number of a device."""
        return decode_device(self.block)


class Volume:
    """The metadata of an ext4 disk, each block read when it is asked for."""

    def __init__(self, device: Device) -> None:
        """Read the superblock.

        Raises:
            BadInput: there is none, or it is damaged.
            Unsupported: a feature that is not read.
        """
        self.device = device
        end = f.SUPERBLOCK_OFFSET + f.SUPERBLOCK_SIZE
        raw = device.read(f.SUPERBLOCK_OFFSET, f.SUPERBLOCK_SIZE) if device.size >= end else bytes(f.SUPERBLOCK_SIZE)
        fields = superblock.unpack(raw)
        if fields["s_magic"] != f.EXT4_SUPER_MAGIC:
            raise BadInput("not an ext4 disk: no superblock")
        _check_features(fields)
        self.uuid: bytes = fields["s_uuid"]
        self.checksums = bool(fields["s_feature_ro_compat"] & f.RO_COMPAT_METADATA_CSUM)
        own_seed = fields["s_feature_incompat"] & f.INCOMPAT_CSUM_SEED
        self.seed: int = fields["s_checksum_seed"] if own_seed else disk_seed(self.uuid)
        if self.checksums and superblock_checksum(raw) != fields["s_checksum"]:
            raise damaged("superblock", "checksum")
        if fields["s_log_block_size"] > _LOG_BLOCK_SIZE_MAX:
            raise damaged("superblock", "block size")
        self.block_size = 1024 << fields["s_log_block_size"]
        wide = fields["s_feature_incompat"] & f.INCOMPAT_64BIT
        self.blocks: int = superblock.get(fields, "s_blocks_count_lo") if wide else fields["s_blocks_count_lo"]
        self.inodes: int = fields["s_inodes_count"]
        self.desc_size: int = fields["s_desc_size"] if wide else f.GOOD_OLD_DESC_SIZE
        self.inode_size: int = fields["s_inode_size"]
        self.inodes_per_group: int = fields["s_inodes_per_group"]
        self.blocks_per_group: int = fields["s_blocks_per_group"]
        self.first_data_block: int = fields["s_first_data_block"]
        # As the superblock says; stale on a disk that was not cleanly unmounted.
        self.free_blocks: int = (
            superblock.get(fields, "s_free_blocks_count_lo") if wide else fields["s_free_blocks_count_lo"]
        )
        self.free_inodes: int = fields["s_free_inodes_count"]
        if (
            self.blocks * self.block_size > device.size
            or not f.GOOD_OLD_DESC_SIZE <= self.desc_size <= 1024
            or self.inode_size not in _INODE_SIZES
            or self.inode_size > self.block_size
            or not 0 < self.inodes_per_group <= 8 * self.block_size
            or not 0 < self.blocks_per_group <= 8 * self.block_size
            or self.inodes != self.groups * self.inodes_per_group
        ):
            raise damaged("superblock", "sizes")
        self._descriptor = lru_cache(1024)(self._read_descriptor)
        self._table_block = lru_cache(256)(self.read_block)
        self.block_bitmap = lru_cache(256)(self._read_block_bitmap)

    @property
    def groups(self) -> int:
        """The number of block groups."""
        return -(-(self.blocks - self.first_data_block) // self.blocks_per_group)

    @cached_property
    def root(self) -> Node:
        """The inode of the root directory."""
        return self.node(f.EXT4_ROOT_INO)

    def inode_offset(self, number: int) -> int:
        """Return the byte of the disk at which inode `number` begins. BadInput: there is none."""
        if not 0 < number <= self.inodes:
            raise damaged(f"inode {number}", "number")
        group, index = divmod(number - 1, self.inodes_per_group)
        return int(self._descriptor(group).inode_table * self.block_size + index * self.inode_size)

    @property
    def descriptor_blocks(self) -> int:
        """The number of blocks that the group descriptors take."""
        return int(-(-self.groups * self.desc_size // self.block_size))

    def node(self, number: int) -> Node:
        """Return inode `number`. BadInput: there is none, or its checksum is wrong."""
        block, offset = divmod(self.inode_offset(number), self.block_size)
        raw = self._table_block(block)[offset : offset + self.inode_size]
        (mode, uid, size, _, _, mtime, _, gid, links, blocks, flags, _, i_block, generation, acl, size_high, _,
         blocks_high, acl_high, uid_high, gid_high, checksum, _) = f.INODE_BASE.unpack_from(raw)  # fmt: skip
        extra_size = checksum_high = mtime_extra = 0
        if self.inode_size > f.GOOD_OLD_INODE_SIZE:
            extra_size, checksum_high, _, mtime_extra, *_ = f.INODE_EXTRA.unpack_from(raw, f.GOOD_OLD_INODE_SIZE)
        if self.checksums:
            bare = bytearray(raw)
            bare[f.CHECKSUM_LO_OFFSET : f.CHECKSUM_LO_OFFSET + 2] = b"\0\0"
            wide = extra_size >= _EXTRA_TO_CHECKSUM
            if wide:
                bare[f.CHECKSUM_HI_OFFSET : f.CHECKSUM_HI_OFFSET + 2] = b"\0\0"
            computed = crc(inode_seed(self.seed, number, generation), bare)
            if (computed if wide else computed & 0xFFFF) != (checksum | checksum_high << 16 if wide else checksum):
                raise damaged(f"inode {number}", "checksum")
        return Node(
            number, mode, uid | uid_high << 16, gid | gid_high << 16, size | size_high << 32, links,
            blocks | blocks_high << 32, decode_time(mtime, mtime_extra if extra_size >= _EXTRA_TO_MTIME else 0), flags,
            generation, i_block, acl | acl_high << 32, raw,
        )  # fmt: skip

    def glance(self, number: int) -> tuple[int, int]:
        """Return mode and size of inode `number`, whose checksum is not looked at. BadInput: there is none."""
        block, offset = divmod(self.inode_offset(number), self.block_size)
        mode, low, high = f.INODE_GLANCE.unpack_from(self._table_block(block), offset)
        return mode, low | high << 32

    def node_seed(self, node: Node) -> int:
        """Return the start of the checksums of an inode's own blocks."""
        return inode_seed(self.seed, node.number, node.generation)

    def read_block(self, number: int) -> bytes:
        """Return block `number` of the disk. BadInput: there is none."""
        if not 0 < number < self.blocks:
            raise damaged(f"block {number}", "number")
        return self.device.read(number * self.block_size, self.block_size)

    def _raw_descriptor(self, group: int) -> bytes:
        first = self.first_data_block + 1
        raw = self.device.read(first * self.block_size + group * self.desc_size, self.desc_size)
        if self.checksums:
            stored = raw[f.DESC_CHECKSUM_OFFSET : f.DESC_CHECKSUM_OFFSET + 2]
            if descriptor_checksum(self.seed, group, raw) != int.from_bytes(stored, "little"):
                raise damaged(f"group {group}", "checksum")
        return raw

    def _read_descriptor(self, group: int) -> GroupDescriptor:
        return GroupDescriptor.unpack(self._raw_descriptor(group))

    def _read_block_bitmap(self, group: int) -> bytes | None:
        """Return a group's block bitmap; None if it was never written: only metadata is in use."""
        descriptor = self._descriptor(group)
        if descriptor.flags & f.BG_BLOCK_UNINIT:
            return None
        bitmap = self.read_block(descriptor.block_bitmap)
        if self.checksums:
            computed = bitmap_checksum(self.seed, bitmap, self.blocks_per_group)
            if self.desc_size < f.DESC_BITMAP_CHECKSUM_HI_END:
                computed &= 0xFFFF
            if computed != descriptor.block_bitmap_checksum:
                raise damaged(f"group {group}", "checksum of its block bitmap")
        return bitmap


def damaged(what: str, which: str) -> BadInput:
    """Make the error about damage: `which` part of `what` is wrong."""
    return BadInput(f"{what}: wrong {which}", "the disk is damaged; e2fsck -fn says more")


def _check_features(fields: dict[str, Any]) -> None:
    unknown = fields["s_feature_incompat"] & ~_KNOWN_INCOMPAT
    for bit in range(32):
        feature = 1 << bit
        if unknown & feature:
            name = f.INCOMPAT_NAMES.get(feature, f"0x{feature:x}")
            hint = "mount it once, or e2fsck -fy" if feature == f.INCOMPAT_RECOVER else ""
            raise Unsupported(f"an ext4 disk with {name}, which is not read", hint)
    if fields["s_feature_ro_compat"] & f.RO_COMPAT_BIGALLOC:
        raise Unsupported("an ext4 disk with bigalloc, which is not read")
