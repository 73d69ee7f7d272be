"""One inode's 256 bytes; struct ext4_inode."""

from __future__ import annotations

import stat

from imagetool.tree.model import Inode, Special
from rootdisk.ext4.checksum import crc
from rootdisk.ext4.format import BLOCK, CHECKSUM_HI_OFFSET, CHECKSUM_LO_OFFSET, EXTRA_ISIZE, INODE_SIZE, NUMBERED_INODE

_ROOM = INODE_SIZE + 8 - NUMBERED_INODE.size  # for attributes
_NO_XATTRS = bytes(_ROOM)
_LO, _HI = 8 + CHECKSUM_LO_OFFSET, 8 + CHECKSUM_HI_OFFSET


def pack(
    inode: Inode,
    seed: int,
    number: int,
    size: int,
    links: int,
    blocks: int,
    flags: int,
    i_block: bytes,
    xattrs: bytes,
    xattr_block: int,
) -> bytes:
    """Inode `number` as it stands in the table. `seed` is the disk's checksum seed, `size` bytes, `blocks` all it uses,
    4 KiB each."""
    uid, gid = inode.uid, inode.gid
    seconds, nanoseconds = divmod(inode.mtime_ns, 1_000_000_000)
    low = seconds & 0xFFFF_FFFF
    # EXT4_EPOCH_BITS: two bits past the signed 32, then the nanoseconds.
    extra = nanoseconds << 2 | (seconds - (low - (1 << 32) if low >> 31 else low)) >> 32 & 3
    sectors = blocks * (BLOCK // 512)
    # Its number and generation come first, as they do in the checksum.
    raw = NUMBERED_INODE.pack(
        number,
        0,
        inode.mode,
        uid & 0xFFFF,
        size & 0xFFFF_FFFF,
        low,
        low,
        low,
        0,
        gid & 0xFFFF,
        links,
        sectors & 0xFFFF_FFFF,
        flags,
        0,
        i_block,
        0,
        xattr_block & 0xFFFF_FFFF,
        size >> 32,
        0,
        sectors >> 32,
        xattr_block >> 32,
        uid >> 16,
        gid >> 16,
        0,
        0,
        EXTRA_ISIZE,
        0,
        extra,
        extra,
        extra,
        low,
        extra,
        0,
        0,
    ) + (xattrs.ljust(_ROOM, b"\0") if xattrs else _NO_XATTRS)
    checksum = crc(seed, raw).to_bytes(4, "little")
    return raw[8:_LO] + checksum[:2] + raw[_LO + 2 : _HI] + checksum[2:] + raw[_HI + 2 :]


def device_block(inode: Special) -> bytes:
    """i_block of a device: the old 8:8 encoding where it fits, else the new 12:20; fs/ext4/inode.c, new_encode_dev()."""
    major, minor = inode.major, inode.minor
    if not (stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode)):
        return bytes(60)
    if major < 256 and minor < 256:
        return (major << 8 | minor).to_bytes(4, "little").ljust(60, b"\0")
    if major >= 1 << 12 or minor >= 1 << 20:
        raise ValueError(f"device {major}:{minor} is past what ext4 can hold (4095:1048575)")
    return (bytes(4) + (minor & 0xFF | major << 8 | (minor & ~0xFF) << 12).to_bytes(4, "little")).ljust(60, b"\0")
