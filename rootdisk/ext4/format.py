"""On-disk structures of ext4 with the kernel's names; fs/ext4/ext4.h, ext4_extents.h, xattr.h, include/linux/jbd2.h.

Only layouts and numbers: no policy. All are little-endian, except the journal's. BLOCK, INODE_SIZE and what follows from
them are our disks': 4 KiB and 256 bytes. The writer, the reader and the runner's larger disks all take them from here.
"""

from __future__ import annotations

import struct

BLOCK = 4096
INODE_SIZE = 256
INODES_PER_BLOCK = BLOCK // INODE_SIZE
BLOCKS_PER_GROUP = 8 * BLOCK
GROUP_BYTES = BLOCKS_PER_GROUP * BLOCK
GOOD_OLD_INODE_SIZE, GOOD_OLD_DESC_SIZE = 128, 32  # EXT4_GOOD_OLD_INODE_SIZE, EXT4_MIN_DESC_SIZE
DESC_SIZE = 64
DESCS_PER_BLOCK = BLOCK // DESC_SIZE

SUPERBLOCK_OFFSET = 1024
EXT4_SUPER_MAGIC = 0xEF53
EXT4_ROOT_INO = 2
EXT4_JOURNAL_INO = 8
EXT4_GOOD_OLD_FIRST_INO = 11
EXT4_LINK_MAX = 65000
FILE_MAX_BYTES = ((1 << 32) - 1) * BLOCK  # ext4_max_size(): the number of a file's block has 32 bits

COMPAT_HAS_JOURNAL, COMPAT_EXT_ATTR, COMPAT_DIR_INDEX = 0x4, 0x8, 0x20
INCOMPAT_FILETYPE, INCOMPAT_RECOVER, INCOMPAT_EXTENTS, INCOMPAT_64BIT, INCOMPAT_FLEX_BG = 0x2, 0x4, 0x40, 0x80, 0x200
INCOMPAT_META_BG, INCOMPAT_CSUM_SEED = 0x10, 0x2000
RO_COMPAT_SPARSE_SUPER, RO_COMPAT_LARGE_FILE, RO_COMPAT_HUGE_FILE = 0x1, 0x2, 0x8
RO_COMPAT_DIR_NLINK, RO_COMPAT_EXTRA_ISIZE, RO_COMPAT_METADATA_CSUM = 0x20, 0x40, 0x400
RO_COMPAT_BIGALLOC = 0x200
INCOMPAT_NAMES = {
    0x1: "compression",
    INCOMPAT_FILETYPE: "filetype",
    INCOMPAT_RECOVER: "a journal to be replayed",
    0x8: "journal device",
    INCOMPAT_META_BG: "meta_bg",
    INCOMPAT_EXTENTS: "extents",
    INCOMPAT_64BIT: "64bit",
    0x100: "mmp",
    INCOMPAT_FLEX_BG: "flex_bg",
    0x400: "ea_inode",
    0x1000: "dirdata",
    INCOMPAT_CSUM_SEED: "metadata_csum_seed",
    0x4000: "large_dir",
    0x8000: "inline_data",
    0x10000: "encrypt",
    0x20000: "casefold",
}

FEATURE_COMPAT = COMPAT_HAS_JOURNAL | COMPAT_EXT_ATTR | COMPAT_DIR_INDEX
FEATURE_INCOMPAT = INCOMPAT_FILETYPE | INCOMPAT_EXTENTS | INCOMPAT_64BIT | INCOMPAT_FLEX_BG
FEATURE_RO_COMPAT = (
    RO_COMPAT_SPARSE_SUPER
    | RO_COMPAT_LARGE_FILE
    | RO_COMPAT_HUGE_FILE
    | RO_COMPAT_DIR_NLINK
    | RO_COMPAT_EXTRA_ISIZE
    | RO_COMPAT_METADATA_CSUM
)

# struct ext4_super_block, 1024 bytes: name, offset, format. Fields not named are zero.
SUPERBLOCK_FIELDS: dict[str, tuple[int, str]] = {
    "s_inodes_count": (0x0, "I"),
    "s_blocks_count_lo": (0x4, "I"),
    "s_free_blocks_count_lo": (0xC, "I"),
    "s_free_inodes_count": (0x10, "I"),
    "s_first_data_block": (0x14, "I"),
    "s_log_block_size": (0x18, "I"),
    "s_log_cluster_size": (0x1C, "I"),
    "s_blocks_per_group": (0x20, "I"),
    "s_clusters_per_group": (0x24, "I"),
    "s_inodes_per_group": (0x28, "I"),
    "s_wtime": (0x30, "I"),
    "s_max_mnt_count": (0x36, "H"),
    "s_magic": (0x38, "H"),
    "s_state": (0x3A, "H"),
    "s_errors": (0x3C, "H"),
    "s_lastcheck": (0x40, "I"),
    "s_rev_level": (0x4C, "I"),
    "s_first_ino": (0x54, "I"),
    "s_inode_size": (0x58, "H"),
    "s_block_group_nr": (0x5A, "H"),
    "s_feature_compat": (0x5C, "I"),
    "s_feature_incompat": (0x60, "I"),
    "s_feature_ro_compat": (0x64, "I"),
    "s_uuid": (0x68, "16s"),
    "s_volume_name": (0x78, "16s"),
    "s_reserved_gdt_blocks": (0xCE, "H"),
    "s_journal_inum": (0xE0, "I"),
    "s_hash_seed": (0xEC, "16s"),
    "s_def_hash_version": (0xFC, "B"),
    "s_jnl_backup_type": (0xFD, "B"),
    "s_desc_size": (0xFE, "H"),
    "s_default_mount_opts": (0x100, "I"),
    "s_first_meta_bg": (0x104, "I"),
    "s_mkfs_time": (0x108, "I"),
    "s_jnl_blocks": (0x10C, "68s"),
    "s_blocks_count_hi": (0x150, "I"),
    "s_free_blocks_count_hi": (0x158, "I"),
    "s_min_extra_isize": (0x15C, "H"),
    "s_want_extra_isize": (0x15E, "H"),
    "s_flags": (0x160, "I"),
    "s_log_groups_per_flex": (0x174, "B"),
    "s_checksum_type": (0x175, "B"),
    "s_overhead_clusters": (0x248, "I"),
    "s_checksum_seed": (0x270, "I"),
    "s_checksum": (0x3FC, "I"),
}
SUPERBLOCK_SIZE = 1024
SUPERBLOCK_CHECKSUM_OFFSET = SUPERBLOCK_FIELDS["s_checksum"][0]
LOG_BLOCK_SIZE = 2  # s_log_block_size of 4 KiB: 1024 << 2
VALID_FS = 1  # EXT4_VALID_FS, s_state: unmounted cleanly
CRC32C_CHKSUM = 1  # EXT4_CRC32C_CHKSUM, s_checksum_type
DX_HASH_HALF_MD4 = 1
FLAGS_SIGNED_HASH = 1

# struct ext4_group_desc with 64-bit fields: bg_block_bitmap_lo, bg_inode_bitmap_lo, bg_inode_table_lo,
# bg_free_blocks_count_lo, bg_free_inodes_count_lo, bg_used_dirs_count_lo, bg_flags, bg_exclude_bitmap_lo,
# bg_block_bitmap_csum_lo, bg_inode_bitmap_csum_lo, bg_itable_unused_lo, bg_checksum, then the high parts in the same
# order (no flags, no checksum) and bg_reserved
GROUP_DESC = struct.Struct("<IIIHHHHIHHHHIIIHHHHIHHI")
DESC_CHECKSUM_OFFSET = 0x1E
DESC_BITMAP_CHECKSUM_HI_END = 0x3A  # EXT4_BG_BLOCK_BITMAP_CSUM_HI_END: a shorter descriptor has 16 bits of it
BG_INODE_UNINIT, BG_BLOCK_UNINIT, BG_INODE_ZEROED = 0x1, 0x2, 0x4

# struct ext4_inode up to i_projid, 160 bytes: i_mode, i_uid, i_size_lo, i_atime, i_ctime, i_mtime, i_dtime, i_gid,
# i_links_count, i_blocks_lo, i_flags, osd1, i_block, i_generation, i_file_acl_lo, i_size_high, i_obso_faddr,
# l_i_blocks_high, l_i_file_acl_high, l_i_uid_high, l_i_gid_high, l_i_checksum_lo, l_i_reserved, i_extra_isize,
# i_checksum_hi, i_ctime_extra, i_mtime_extra, i_atime_extra, i_crtime, i_crtime_extra, i_version_hi, i_projid
INODE_BASE = struct.Struct("<HHIIIIIHHIII60sIIIIHHHHHH")  # up to l_i_reserved: all of a small inode
INODE_EXTRA = struct.Struct("<HHIIIIIII")
INODE_GLANCE = struct.Struct("<H2xI100xI")  # of it, i_mode, i_size_lo and i_size_high
# Before it, i_ino and i_generation, which its checksum begins with.
NUMBERED_INODE = struct.Struct("<II" + INODE_BASE.format[1:] + INODE_EXTRA.format[1:])
I_BLOCK_BYTES = 60  # EXT4_N_BLOCKS * 4; a shorter link target stands there
EXTRA_ISIZE = 32
CHECKSUM_LO_OFFSET, CHECKSUM_HI_OFFSET = 0x7C, 0x82
EXT4_IMMUTABLE_FL, EXT4_INDEX_FL, EXT4_EXTENTS_FL = 0x10, 0x1000, 0x80000
TIME_MIN, TIME_MAX = -(1 << 31), (1 << 31) + 3 * (1 << 32) - 1  # seconds an inode can hold

# struct ext4_extent_header: eh_magic, eh_entries, eh_max, eh_depth, eh_generation
EXTENT_HEADER = struct.Struct("<HHHHI")
EXT4_EXT_MAGIC = 0xF30A
EXTENT = struct.Struct("<IHHI")  # ee_block, ee_len, ee_start_hi, ee_start_lo
EXTENT_INDEX = struct.Struct("<IIHH")  # ei_block, ei_leaf_lo, ei_leaf_hi, ei_unused
EXTENTS_INLINE = (60 - EXTENT_HEADER.size) // EXTENT.size  # in i_block
ONE_EXTENT = struct.Struct("<HHHHIIHHI36x")  # i_block with a header and one extent
EXTENT_MAX_BLOCKS = 32768
EXTENT_DEPTH_MAX = 5  # EXT4_MAX_EXTENT_DEPTH
EXTENTS_PER_BLOCK = (BLOCK - EXTENT_HEADER.size - 4) // EXTENT.size
EXTENT_TAIL_OFFSET = EXTENT_HEADER.size + EXTENTS_PER_BLOCK * EXTENT.size

DIRENT = struct.Struct("<IHBB")  # struct ext4_dir_entry_2 without its name
DIRENT_TAIL = struct.Struct("<IHBBI")  # struct ext4_dir_entry_tail
DIRENT_TAIL_TYPE = 0xDE
FT_UNKNOWN = 0
FT_REG_FILE, FT_DIR, FT_CHRDEV, FT_BLKDEV, FT_FIFO, FT_SOCK, FT_SYMLINK = 1, 2, 3, 4, 5, 6, 7
DX_ROOT_INFO = struct.Struct("<IBBBB")  # reserved_zero, hash_version, info_length, indirect_levels, unused_flags
DX_COUNT = struct.Struct("<HHI")  # limit, count, block of the first entry
DX_ENTRY = struct.Struct("<II")  # hash, block
DX_TAIL_BYTES = 8  # struct dx_tail: dt_reserved, dt_checksum
DX_ROOT_COUNT_OFFSET, DX_ROOT_LEVELS_OFFSET, DX_NODE_COUNT_OFFSET = 0x20, 0x1E, 8
DX_ROOT_LIMIT = (BLOCK - DX_ROOT_COUNT_OFFSET - DX_TAIL_BYTES) // DX_ENTRY.size
DX_NODE_LIMIT = (BLOCK - DX_NODE_COUNT_OFFSET - DX_TAIL_BYTES) // DX_ENTRY.size

XATTR_MAGIC = 0xEA020000
XATTR_REFCOUNT_MAX = 1024  # EXT4_XATTR_REFCOUNT_MAX: inodes that share a block
XATTR_HEADER = struct.Struct("<IIIIIIII")  # h_magic, h_refcount, h_blocks, h_hash, h_checksum, h_reserved[3]
XATTR_ENTRY = struct.Struct("<BBHIII")  # e_name_len, e_name_index, e_value_offs, e_value_inum, e_value_size, e_hash
XATTR_INDEX = {  # EXT4_XATTR_INDEX_*
    b"user.": 1,
    b"trusted.": 4,
    b"security.": 6,
    b"system.": 7,
}
XATTR_ACL_INDEX = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}

# journal_superblock_t, big-endian: h_magic, h_blocktype, h_sequence, s_blocksize, s_maxlen, s_first, s_sequence,
# s_start, s_errno, then features (3), s_uuid (zero: an internal journal), s_nr_users
JOURNAL_SUPERBLOCK = struct.Struct(">IIIIIIIIIIII16sI")
JBD2_MAGIC, JBD2_SUPERBLOCK_V2 = 0xC03B3998, 4

assert GROUP_DESC.size == DESC_SIZE
assert INODE_BASE.size == GOOD_OLD_INODE_SIZE
assert INODE_EXTRA.size == EXTRA_ISIZE
assert NUMBERED_INODE.size == 8 + GOOD_OLD_INODE_SIZE + EXTRA_ISIZE
assert (EXTENTS_INLINE, ONE_EXTENT.size) == (4, I_BLOCK_BYTES)
assert (EXTENTS_PER_BLOCK, EXTENT_TAIL_OFFSET) == (340, BLOCK - 4)
assert (DX_ROOT_LIMIT, DX_NODE_LIMIT) == (507, 510)
