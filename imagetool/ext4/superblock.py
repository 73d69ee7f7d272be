"""The superblock and the journal's; fs/ext4/ext4.h, include/linux/jbd2.h."""

from __future__ import annotations

import struct

from imagetool.ext4.bitmaps import Groups
from imagetool.ext4.geometry import Geometry
from rootdisk.ext4 import format as f
from rootdisk.ext4 import superblock as fields


def superblock(
    geometry: Geometry, uuid: bytes, hash_seed: bytes, time: int, groups: Groups, journal: bytes, group: int
) -> bytes:
    """Return the 1024 bytes for `group` (0, or one with a backup); `journal` is the journal inode's i_block."""
    journal_size = geometry.journal_blocks * f.BLOCK
    raw = fields.pack(
        s_inodes_count=geometry.inodes,
        s_blocks_count_lo=geometry.blocks,
        s_free_blocks_count_lo=groups.free_blocks,
        s_free_inodes_count=groups.free_inodes,
        s_log_block_size=f.LOG_BLOCK_SIZE,
        s_log_cluster_size=f.LOG_BLOCK_SIZE,
        s_blocks_per_group=f.BLOCKS_PER_GROUP,
        s_clusters_per_group=f.BLOCKS_PER_GROUP,
        s_inodes_per_group=geometry.inodes_per_group,
        s_wtime=time,
        s_lastcheck=time,
        s_mkfs_time=time,
        s_max_mnt_count=0xFFFF,
        s_magic=f.EXT4_SUPER_MAGIC,
        s_state=f.VALID_FS,
        s_errors=1,
        s_rev_level=1,
        s_first_ino=f.EXT4_GOOD_OLD_FIRST_INO,
        s_inode_size=f.INODE_SIZE,
        s_block_group_nr=min(group, 0xFFFF),  # as mke2fs past the field's end
        s_feature_compat=f.FEATURE_COMPAT,
        s_feature_incompat=f.FEATURE_INCOMPAT,
        s_feature_ro_compat=f.FEATURE_RO_COMPAT,
        s_uuid=uuid,
        s_journal_inum=f.EXT4_JOURNAL_INO,
        s_hash_seed=hash_seed,
        s_def_hash_version=f.DX_HASH_HALF_MD4,
        s_jnl_backup_type=1,
        s_jnl_blocks=journal + struct.pack("<II", journal_size >> 32, journal_size & 0xFFFF_FFFF),
        s_desc_size=f.DESC_SIZE,
        s_default_mount_opts=0x0C,  # user_xattr, acl
        s_min_extra_isize=f.EXTRA_ISIZE,
        s_want_extra_isize=f.EXTRA_ISIZE,
        s_flags=f.FLAGS_SIGNED_HASH,  # said, or the kernel takes its processor's char
        s_log_groups_per_flex=geometry.flex.bit_length() - 1,
        s_checksum_type=f.CRC32C_CHKSUM,
        s_overhead_clusters=geometry.overhead,
    )
    return fields.seal(raw)


def journal_superblock(blocks: int) -> bytes:
    """Return the first block of an empty journal of so many blocks. Its UUID stays zero, because it is an internal one."""
    raw = f.JOURNAL_SUPERBLOCK.pack(
        f.JBD2_MAGIC, f.JBD2_SUPERBLOCK_V2, 0, f.BLOCK, blocks, 1, 1, 0, 0, 0, 0, 0, bytes(16), 1
    )
    return raw.ljust(f.BLOCK, b"\0")
