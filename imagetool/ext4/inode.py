"""The 256 bytes of an inode; struct ext4_inode."""

from __future__ import annotations

import stat

from imagetool.tree.model import Inode, Special
from rootdisk.ext4.checksum import crc
from rootdisk.ext4.format import (
    BLOCK,
    CHECKSUM_HI_OFFSET,
    CHECKSUM_LO_OFFSET,
    EXTRA_ISIZE,
    I_BLOCK_BYTES,
    INODE_SIZE,
    NUMBERED_INODE,
)
from rootdisk.ext4.inodes import encode_device, encode_time

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
    """Return inode `number` as it stands in the table, 256 bytes.

    `seed` is the disk's checksum seed, `size` is in bytes, `blocks` counts all blocks of 4 KiB that it uses. `xattrs` is
    what stands in the inode, `xattr_block` the block of the others or 0. fs/ext4/inode.c, ext4_do_update_inode().
    """
    uid, gid = inode.uid, inode.gid
    low, extra = encode_time(inode.mtime_ns)
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
    """Return i_block of a device or FIFO. ValueError: a number past what ext4 can hold."""
    if not (stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode)):
        return bytes(I_BLOCK_BYTES)
    return encode_device(inode.major, inode.minor)
