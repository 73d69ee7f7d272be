"""An ext4 disk read back: names, inodes, data, extended attributes; an independent way, sharing only the structures.

    with Reader.open(path) as disk:
        node = disk.lookup(b"/etc/passwd")      symbolic links are not followed
        b"".join(data for _, data in disk.data(node))

What is read may be hostile: every checksum there is is compared, every number bounded before it is used, no loop goes
on without end, and nothing is believed twice. Damaged is what BadInput is raised for; Unsupported names a feature that
is not read. fs/ext4/{super,inode,extents,dir,xattr}.c; linear directory blocks hold all names, indexed or not.
"""

from __future__ import annotations

import stat
import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from imagetool.ext4.xattr import decode
from rootdisk.artifact.disk import Device, RawDisk
from rootdisk.errors import BadInput, Unsupported
from rootdisk.ext4 import format as f
from rootdisk.ext4.checksum import crc, disk_seed, inode_seed
from rootdisk.text import printable

READ_BYTES = 1 << 20
EXTENT_DEPTH_MAX = 5  # EXT4_MAX_EXTENT_DEPTH
DIRECTORY_MAX_BYTES = 4 << 30
PATH_MAX_BYTES = 64 << 10  # of a directory's path, as our writer's
LINK_STEPS_MAX = 40  # as the kernel's
NAMES_MAX_COUNT = 1 << 24  # in one walk, and looked at to find one path

_KNOWN_INCOMPAT = f.FEATURE_INCOMPAT | 0x2000  # CSUM_SEED, read but not written
_INCOMPAT_NAMES = {0x1: "compression", 0x4: "a journal to be replayed", 0x8: "journal device", 0x10: "meta_bg"}
_INCOMPAT_NAMES |= {0x400: "ea_inode", 0x8000: "inline_data", 0x10000: "encrypt", 0x20000: "casefold"}
_UNREAD_RO_COMPAT = 0x200  # BIGALLOC: blocks in clusters


@dataclass(frozen=True, slots=True)
class Node:
    """An inode. Sizes are bytes, `block` is i_block, `xattr_block` a block number or 0, `raw` the whole inode."""

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
        return stat.S_IFMT(self.mode)

    @property
    def device(self) -> tuple[int, int]:
        """Major and minor number of a device; fs/ext4/inode.c, old_decode_dev and new_decode_dev."""
        old, new = struct.unpack_from("<II", self.block)
        if old:
            return old >> 8 & 0xFF, old & 0xFF
        return (new & 0xFFF00) >> 8, (new & 0xFF) | (new >> 12 & 0xFFF00)


@dataclass(frozen=True, slots=True)
class Extent:
    """`count` blocks of the file from `logical` on lie at disk block `physical`; an unwritten one reads as zeros."""

    logical: int
    physical: int
    count: int
    written: bool


class Reader:
    """A disk that is being read; a context manager."""

    def __init__(self, device: Device) -> None:
        self.device = device
        raw = device.read(f.SUPERBLOCK_OFFSET, f.SUPERBLOCK_SIZE) if device.size >= 2048 else b""
        self._super: dict[str, Any] = {
            name: struct.unpack_from("<" + form, raw, offset)[0] for name, (offset, form) in f.SUPERBLOCK_FIELDS.items()
        } if raw else {"s_magic": 0}  # fmt: skip
        if self._super["s_magic"] != f.EXT4_SUPER_MAGIC:
            raise BadInput("not an ext4 disk: no superblock")
        self._check_features()
        self.uuid: bytes = self._super["s_uuid"]
        self.checksums = bool(self._super["s_feature_ro_compat"] & f.RO_COMPAT_METADATA_CSUM)
        self._seed = disk_seed(self.uuid)
        if self._super["s_feature_incompat"] & 0x2000:
            (self._seed,) = struct.unpack_from("<I", raw, 0x270)  # s_checksum_seed
        if self.checksums:
            offset = f.SUPERBLOCK_FIELDS["s_checksum"][0]
            if crc(0xFFFF_FFFF, raw[:offset]) != self._super["s_checksum"]:
                raise _damaged("superblock", "checksum")
        if self._super["s_log_block_size"] > 6:
            raise _damaged("superblock", "block size")
        self.block_size = 1024 << self._super["s_log_block_size"]
        wide = self._super["s_feature_incompat"] & f.INCOMPAT_64BIT
        self.blocks: int = self._super["s_blocks_count_lo"] | (self._super["s_blocks_count_hi"] << 32 if wide else 0)
        self.inodes: int = self._super["s_inodes_count"]
        self.desc_size: int = self._super["s_desc_size"] if wide else 32
        self.inode_size: int = self._super["s_inode_size"]
        self.inodes_per_group: int = self._super["s_inodes_per_group"]
        self.blocks_per_group: int = self._super["s_blocks_per_group"]
        self.first_data_block: int = self._super["s_first_data_block"]
        if (
            self.blocks * self.block_size > device.size
            or not 32 <= self.desc_size <= 1024
            or self.inode_size not in (128, 256, 512, 1024, 2048, 4096)
            or not 0 < self.inodes_per_group <= 8 * self.block_size
            or not 0 < self.blocks_per_group <= 8 * self.block_size
            or self.inodes != self.groups * self.inodes_per_group
        ):
            raise _damaged("superblock", "sizes")
        self._descriptor = lru_cache(1024)(self._read_descriptor)
        self._table_block = lru_cache(256)(self._read_block)
        self.block_bitmap = lru_cache(256)(self._read_bitmap)

    @classmethod
    def open(cls, path: Path) -> Reader:
        """The raw disk at `path`."""
        return cls(RawDisk(path))

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.device.close()

    @property
    def groups(self) -> int:
        return -(-(self.blocks - self.first_data_block) // self.blocks_per_group)

    @property
    def free_blocks(self) -> int:
        """As the superblock says; stale on a disk that was not cleanly unmounted."""
        return int(self._super["s_free_blocks_count_lo"] | self._super["s_free_blocks_count_hi"] << 32)

    @property
    def free_inodes(self) -> int:
        return int(self._super["s_free_inodes_count"])

    @cached_property
    def root(self) -> Node:
        return self.node(f.EXT4_ROOT_INO)

    def node(self, number: int) -> Node:
        """Inode `number`, its checksum compared."""
        if not 0 < number <= self.inodes:
            raise _damaged(f"inode {number}", "number")
        group, index = divmod(number - 1, self.inodes_per_group)
        place = self._descriptor(group)[2] * self.block_size + index * self.inode_size
        block, offset = divmod(place, self.block_size)
        raw = self._table_block(block)[offset : offset + self.inode_size]
        (mode, uid, size, _, _, mtime, _, gid, links, blocks, flags, _, i_block, generation, acl, size_high, _,
         blocks_high, acl_high, uid_high, gid_high, low, _) = struct.unpack_from("<HHIIIIIHHIII60sIIIIHHHHHH", raw)  # fmt: skip
        extra_size, high, _, mtime_extra = struct.unpack_from("<HHII", raw, 128) if self.inode_size > 128 else (0,) * 4
        if self.checksums:
            bare = bytearray(raw)
            bare[f.CHECKSUM_LO_OFFSET : f.CHECKSUM_LO_OFFSET + 2] = b"\0\0"
            wide = extra_size >= 4
            if wide:
                bare[f.CHECKSUM_HI_OFFSET : f.CHECKSUM_HI_OFFSET + 2] = b"\0\0"
            computed = crc(inode_seed(self._seed, number, generation), bare)
            if (computed if wide else computed & 0xFFFF) != (low | high << 16 if wide else low):
                raise _damaged(f"inode {number}", "checksum")
        seconds = mtime - (1 << 32) if mtime >> 31 else mtime
        nanoseconds = 0
        if extra_size >= 12:  # reaches past i_mtime_extra
            seconds += (mtime_extra & 3) << 32
            nanoseconds = mtime_extra >> 2
        return Node(
            number, mode, uid | uid_high << 16, gid | gid_high << 16, size | size_high << 32, links,
            blocks | blocks_high << 32, seconds * 1_000_000_000 + nanoseconds, flags, generation, i_block,
            acl | acl_high << 32, raw,
        )  # fmt: skip

    def lookup(self, path: bytes, *, follow: bool = False) -> Node:
        """The inode at `path`; with `follow`, symbolic links are followed inside the disk. BadInput: there is none."""
        trail = [self.root]
        names = path.split(b"/")[::-1]
        steps = looked_at = 0
        while names:
            name = names.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if len(trail) > 1:
                    trail.pop()
                continue
            if trail[-1].type != stat.S_IFDIR:
                raise BadInput(f"{_text(path)}: a part of it is no directory")
            found = None
            for other, number, _ in self.entries(trail[-1]):
                looked_at += 1
                if other == name:
                    found = number
                    break
            if looked_at > NAMES_MAX_COUNT:
                raise BadInput(
                    f"{_text(path)}: more than {NAMES_MAX_COUNT} names on its way", "was the disk made to do harm?"
                )
            if found is None:
                raise BadInput(f"{_text(path)}: no such file on the disk")
            node = self.node(found)
            if node.type == stat.S_IFLNK and (follow or names):
                steps += 1
                if steps > LINK_STEPS_MAX:
                    raise BadInput(f"{_text(path)}: more than {LINK_STEPS_MAX} symbolic links")
                target = self.target(node)
                if target.startswith(b"/"):
                    trail = [self.root]
                names += target.split(b"/")[::-1]
            else:
                trail.append(node)
        return trail[-1]

    def entries(self, node: Node) -> Iterator[tuple[bytes, int, int]]:
        """Names, inode numbers and file types of a directory, without `.` and `..`, as they stand on the disk."""
        if node.size > DIRECTORY_MAX_BYTES or node.size % self.block_size:
            raise _damaged(f"directory {node.number}", "size")
        indexed = bool(node.flags & f.EXT4_INDEX_FL)
        inner = self._index_blocks(node) if indexed else frozenset()
        seed = inode_seed(self._seed, node.number, node.generation)
        for logical, block in enumerate(self._file_blocks(node)):
            if logical in inner:
                continue
            end = self.block_size - (12 if self.checksums and not (indexed and logical == 0) else 0)
            if self.checksums and end < self.block_size:
                *_, kind, checksum = f.DIRENT_TAIL.unpack_from(block, end)
                if kind != f.DIRENT_TAIL_TYPE or crc(seed, block[:end]) != checksum:
                    raise _damaged(f"directory {node.number}", f"checksum of block {logical}")
            yield from self._records(node, block, end)

    def _records(self, node: Node, block: bytes, end: int) -> Iterator[tuple[bytes, int, int]]:
        at = 0
        while at < end:
            number, length, name_length, kind = f.DIRENT.unpack_from(block, at)
            name = block[at + 8 : at + 8 + name_length]
            if length < 8 + name_length or length % 4 or length < 12 or at + length > end:
                raise _damaged(f"directory {node.number}", "entry")
            at += length
            if number and name not in (b".", b".."):
                if not name or b"/" in name or b"\0" in name:
                    raise _damaged(f"directory {node.number}", "name")
                yield name, number, kind

    def _index_blocks(self, node: Node) -> frozenset[int]:
        """Numbers of the blocks that hold only an htree's inner nodes: their one fake entry spans the block."""
        extents = self.extents(node)
        first = self._block_of(node, extents, 0)
        levels = first[0x1E]
        found: set[int] = set()
        if levels > 3:
            raise _damaged(f"directory {node.number}", "index")
        above = self._dx_blocks(node, first, 0x20)
        for _ in range(levels):
            below: list[int] = []
            for number in above:
                if number in found:  # each has one place
                    raise _damaged(f"directory {node.number}", "index")
                found.add(number)
                below += self._dx_blocks(node, self._block_of(node, extents, number), 8)
            above = below
            if len(above) > node.size // self.block_size:
                raise _damaged(f"directory {node.number}", "index")
        return frozenset(found)

    def _dx_blocks(self, node: Node, block: bytes, offset: int) -> list[int]:
        limit, count, first = f.DX_COUNT.unpack_from(block, offset)
        if not 0 < count <= limit <= (self.block_size - offset) // 8:
            raise _damaged(f"directory {node.number}", "index")
        if self.checksums:
            seed = inode_seed(self._seed, node.number, node.generation)
            (stored,) = struct.unpack_from("<I", block, offset + 8 * limit + 4)
            if crc(crc(crc(seed, block[: offset + 8 * count]), block[offset + 8 * limit :][:4]), bytes(4)) != stored:
                raise _damaged(f"directory {node.number}", "checksum of its index")
        rest = [f.DX_ENTRY.unpack_from(block, offset + 8 * place)[1] for place in range(1, count)]
        return [number & 0x0FFF_FFFF for number in (first, *rest)]

    def target(self, node: Node) -> bytes:
        """A symbolic link's target."""
        if node.size < 60 and not node.flags & f.EXT4_EXTENTS_FL:
            return node.block[: node.size]
        if node.size >= self.block_size:
            raise _damaged(f"inode {node.number}", "length of its link target")
        return b"".join(data for _, data in self.data(node))

    def extents(self, node: Node) -> list[Extent]:
        """All extents of a file, ascending."""
        if not node.flags & f.EXT4_EXTENTS_FL:
            raise Unsupported(f"inode {node.number} has no extents", "rootdisk and mke2fs -t ext4 write them")
        found: list[Extent] = []
        self._extents(node, node.block, None, found, set())
        end = 0
        for extent in found:
            if extent.logical < end or extent.physical + extent.count > self.blocks or not extent.count:
                raise _damaged(f"inode {node.number}", "extents")
            end = extent.logical + extent.count
        return found

    def _extents(self, node: Node, raw: bytes, depth: int | None, found: list[Extent], read: set[int]) -> None:
        """The extents below one node of the tree; `read` are its blocks so far: none is in two places."""
        magic, entries, limit, own, _ = f.EXTENT_HEADER.unpack_from(raw)
        wrong = own > EXTENT_DEPTH_MAX if depth is None else own != depth
        if magic != f.EXT4_EXT_MAGIC or entries > limit or 12 + 12 * limit > len(raw) or wrong:
            raise _damaged(f"inode {node.number}", "extent tree")
        if self.checksums and depth is not None:
            (stored,) = struct.unpack_from("<I", raw, 12 + 12 * limit)
            if crc(inode_seed(self._seed, node.number, node.generation), raw[: 12 + 12 * limit]) != stored:
                raise _damaged(f"inode {node.number}", "checksum of its extent tree")
        for place in range(12, 12 + 12 * entries, 12):
            if own:
                _, low, high, _ = f.EXTENT_INDEX.unpack_from(raw, place)
                block = low | high << 32
                if block in read:
                    raise _damaged(f"inode {node.number}", "extent tree")
                read.add(block)
                self._extents(node, self._read_block(block), own - 1, found, read)
            else:
                logical, count, high, low = f.EXTENT.unpack_from(raw, place)
                written = count <= f.EXTENT_MAX_BLOCKS
                found.append(
                    Extent(logical, low | high << 32, count if written else count - f.EXTENT_MAX_BLOCKS, written)
                )

    def data(self, node: Node) -> Iterator[tuple[int, bytes]]:
        """The bytes of a file as (offset, bytes), ascending; what lies between is a hole."""
        for extent in self.extents(node):
            if not extent.written:
                continue
            at, end = extent.logical * self.block_size, (extent.logical + extent.count) * self.block_size
            place = extent.physical * self.block_size - at
            while at < min(end, node.size):
                length = min(READ_BYTES, end - at, node.size - at)
                yield at, self.device.read(place + at, length)
                at += length

    def xattrs(self, node: Node) -> dict[bytes, bytes]:
        """Extended attributes by full name; POSIX ACLs in the kernel's form."""
        found: dict[bytes, bytes] = {}
        if self.inode_size > 128:
            (extra,) = struct.unpack_from("<H", node.raw, 128)
            start = 128 + extra + 4
            if start < self.inode_size and node.raw[start - 4 : start] == f.XATTR_MAGIC.to_bytes(4, "little"):
                found |= _decoded(node, node.raw[start:], 0)
        if node.xattr_block:
            block = self._read_block(node.xattr_block)
            if struct.unpack_from("<I", block)[0] != f.XATTR_MAGIC:
                raise _damaged(f"inode {node.number}", "block of extended attributes")
            if self.checksums:
                bare = block[:16] + bytes(4) + block[20:]
                state = crc(self._seed, struct.pack("<Q", node.xattr_block))
                if crc(state, bare) != struct.unpack_from("<I", block, 16)[0]:
                    raise _damaged(f"inode {node.number}", "checksum of its extended attributes")
            found |= _decoded(node, block, f.XATTR_HEADER.size)
        return found

    def walk(self, path: bytes = b"/") -> Iterator[tuple[bytes, Node]]:
        """Every name below `path` and its inode, parents first, names in bytewise order; `path` itself first.

        BadInput where a directory is found twice: a disk that goes in circles.
        """
        top = self.lookup(path)
        prefix = b"/" + path.strip(b"/")
        yield prefix, top
        if top.type != stat.S_IFDIR:
            return
        seen = {top.number}
        above = prefix.rstrip(b"/") + b"/"
        waiting = [(above, name, number) for name, number, _ in self._sorted(top)]  # whole paths would take far more
        count = 0
        while waiting:
            above, name, number = waiting.pop()
            place = above + name
            node = self.node(number)
            yield place, node
            count += 1
            if node.type == stat.S_IFDIR:
                if number in seen or len(place) > PATH_MAX_BYTES:
                    raise _damaged(f"directory {number}", "place: it is in two, or too deep")
                seen.add(number)
                place += b"/"
                waiting += [(place, name, below) for name, below, _ in self._sorted(node)]
            if count + len(waiting) > NAMES_MAX_COUNT:
                raise BadInput(f"more than {NAMES_MAX_COUNT} names on the disk", "was it made to do harm?")

    def _sorted(self, node: Node) -> list[tuple[bytes, int, int]]:
        """A directory's entries, last first; bounded, as many directories may claim the same blocks."""
        found = list(islice(self.entries(node), NAMES_MAX_COUNT + 1))
        found.sort(reverse=True)
        return found

    def _file_blocks(self, node: Node) -> Iterator[bytes]:
        """All blocks of a directory, holes refused."""
        end = 0
        for extent in self.extents(node):
            if extent.logical != end or not extent.written:
                raise _damaged(f"directory {node.number}", "extents: a hole")
            for place in range(extent.physical, extent.physical + extent.count):
                yield self._read_block(place)
            end = extent.logical + extent.count
        if end * self.block_size != node.size:
            raise _damaged(f"directory {node.number}", "size")

    def _block_of(self, node: Node, extents: list[Extent], logical: int) -> bytes:
        place = bisect_right(extents, logical, key=_first) - 1
        if place >= 0 and logical < extents[place].logical + extents[place].count:
            return self._read_block(extents[place].physical + logical - extents[place].logical)
        raise _damaged(f"directory {node.number}", "index")

    def _read_block(self, number: int) -> bytes:
        if not 0 < number < self.blocks:
            raise _damaged(f"block {number}", "number")
        return self.device.read(number * self.block_size, self.block_size)

    def _read_descriptor(self, group: int) -> tuple[int, int, int]:
        """Places of a group's block bitmap, inode bitmap and inode table."""
        raw = self._raw_descriptor(group)
        low = struct.unpack_from("<III", raw)
        high = struct.unpack_from("<III", raw, 0x20) if self.desc_size >= 64 else (0, 0, 0)
        bitmap, inode_bitmap, table = (a | b << 32 for a, b in zip(low, high, strict=True))
        return bitmap, inode_bitmap, table

    def _raw_descriptor(self, group: int) -> bytes:
        first = self.first_data_block + 1
        raw = self.device.read(first * self.block_size + group * self.desc_size, self.desc_size)
        if self.checksums:
            bare = raw[:0x1E] + b"\0\0" + raw[0x20:]
            if crc(crc(self._seed, struct.pack("<I", group)), bare) & 0xFFFF != struct.unpack_from("<H", raw, 0x1E)[0]:
                raise _damaged(f"group {group}", "checksum")
        return raw

    def _read_bitmap(self, group: int) -> bytes | None:
        """Which blocks of a group are taken, a bit for each; None where it has never been written: only metadata are."""
        raw = self._raw_descriptor(group)
        if struct.unpack_from("<H", raw, 0x12)[0] & f.BG_BLOCK_UNINIT:
            return None
        bitmap = self._read_block(self._descriptor(group)[0])
        if self.checksums:
            wide = self.desc_size >= 0x3A
            stored = struct.unpack_from("<H", raw, 0x18)[0] | (
                struct.unpack_from("<H", raw, 0x38)[0] << 16 if wide else 0
            )
            computed = crc(self._seed, bitmap[: self.blocks_per_group // 8])
            if (computed if wide else computed & 0xFFFF) != stored:
                raise _damaged(f"group {group}", "checksum of its block bitmap")
        return bitmap

    def _check_features(self) -> None:
        unknown = self._super["s_feature_incompat"] & ~_KNOWN_INCOMPAT
        for bit in range(32):
            if unknown >> bit & 1:
                name = _INCOMPAT_NAMES.get(1 << bit, f"0x{1 << bit:x}")
                hint = "mount it once, or e2fsck -fy" if bit == 2 else ""
                raise Unsupported(f"an ext4 disk with {name}, which is not read", hint)
        if self._super["s_feature_ro_compat"] & _UNREAD_RO_COMPAT:
            raise Unsupported("an ext4 disk with bigalloc, which is not read")


def _decoded(node: Node, raw: bytes, first: int) -> dict[bytes, bytes]:
    try:
        return decode(raw, first)
    except ValueError as err:
        raise _damaged(f"inode {node.number}", f"extended attributes: {err}") from err


def _damaged(what: str, which: str) -> BadInput:
    return BadInput(f"{what}: wrong {which}", "the disk is damaged; e2fsck -fn says more")


def _first(extent: Extent) -> int:
    return extent.logical


def _text(path: bytes) -> str:
    return printable(path)
