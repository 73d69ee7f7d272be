"""The hash tree of a disk for the kernel's dm-verity: its place in the config, its size, and how the guest is told of it.

The format is version 1 of the kernel's Documentation/admin-guide/device-mapper/verity.rst, with the superblock that
`veritysetup` of cryptsetup reads: sha256, blocks of 4 KiB, top level first. Algorithm, salt and UUID are the same for all
disks, so equal ranges of two disks have equal blocks in their trees.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any, NamedTuple

from rootdisk.artifact.compressed import Content
from rootdisk.errors import Unsupported
from rootdisk.oci.fields import Fields
from rootdisk.parsing.digests import HEX_SHA256

VERSION = 1
ALGORITHM = "sha256"
BLOCK_BYTES = 4096
HASH_BYTES = 32
HASHES = BLOCK_BYTES // HASH_BYTES  # in a block of the tree
SALT = hashlib.sha256(b"rootdisk verity 1").digest()
UUID = bytes.fromhex("5a0f0c5f3c1d4e0b8a5e7c1f2b9d6e31")  # RFC 9562, version 4, the same for all trees
SERIAL = "rootdisk-verity"  # by which the guest finds the tree's disk; at most 20 bytes in virtio-blk
SECTOR_BYTES = 512
# lib/verity/verity.c of cryptsetup, struct verity_sb: signature, version, hash type, UUID, algorithm, block sizes,
# number of data blocks, size of the salt, salt.
_SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6x256s168x")


class Verity(NamedTuple):
    """The tree of a disk: what the config says about it."""

    root_hash: str  # 64 hex digits
    data_blocks: int
    tree: Content

    @classmethod
    def of(cls, value: Fields, disk_size: int) -> Verity:
        """Parse the config's value for a disk of `disk_size` bytes.

        Raises:
            BadInput: A key is missing or wrong, or the tree is another disk's.
            Unsupported: A newer format, or another algorithm.
        """
        fixed = (value.value.get("version"), value.value.get("algorithm"), value.value.get("salt"))
        if fixed != (VERSION, ALGORITHM, SALT.hex()) or isinstance(fixed[0], bool):
            raise Unsupported("the disk's dm-verity tree has an unknown format", "a newer rootdisk may read it")
        for key in ("data_block_size", "hash_block_size"):
            value.integer(key, BLOCK_BYTES, BLOCK_BYTES)
        blocks = value.integer("data_blocks", 1, disk_size // BLOCK_BYTES)
        if blocks * BLOCK_BYTES != disk_size:
            raise value.wrong("data_blocks", f"{blocks} blocks are not the disk's {disk_size} bytes")
        size = tree_size(blocks)
        tree = Content.of(value.inner("tree"), size)
        if tree.size != size:
            raise value.wrong("tree", f"{tree.size} bytes, and a tree of this disk has {size}")
        return cls(value.text("root_hash", limit=64, pattern=HEX_SHA256), blocks, tree)

    def to_json(self) -> dict[str, Any]:
        """Return the config's value."""
        return {
            "version": VERSION,
            "algorithm": ALGORITHM,
            "data_block_size": BLOCK_BYTES,
            "hash_block_size": BLOCK_BYTES,
            "data_blocks": self.data_blocks,
            "salt": SALT.hex(),
            "root_hash": self.root_hash,
            "tree": self.tree.to_json(),
        }

    def words(self, slot_offset: int, slot_length: int) -> str:
        """Return what the init is told: root hash, salt, data blocks, and the slot's sectors."""
        sectors = f"{slot_offset // SECTOR_BYTES}:{slot_length // SECTOR_BYTES}"
        return f"{self.root_hash}:{SALT.hex()}:{self.data_blocks}:{sectors}"


def level_blocks(data_blocks: int) -> list[int]:
    """Return the number of blocks of each level of the tree, the lowest first. The last one is 1."""
    levels: list[int] = []
    count = data_blocks
    while not levels or count > 1:
        count = -(-count // HASHES)
        levels.append(count)
    return levels


def tree_size(data_blocks: int) -> int:
    """Return the size of the tree in bytes, with its superblock."""
    return BLOCK_BYTES * (1 + sum(level_blocks(data_blocks)))


def superblock(data_blocks: int) -> bytes:
    """Return the first block of a tree."""
    packed = _SUPERBLOCK.pack(
        b"verity\0\0",
        VERSION,
        1,  # the hash of a block begins with the salt
        UUID,
        ALGORITHM.encode(),
        BLOCK_BYTES,
        BLOCK_BYTES,
        data_blocks,
        len(SALT),
        SALT,
    )
    return packed + bytes(BLOCK_BYTES - len(packed))
