"""Extended attributes in ext4's forms: in the inode, or in one block; fs/ext4/xattr.c, fs/ext4/acl.c."""

from __future__ import annotations

import stat
import struct
from collections.abc import Mapping

from rootdisk.errors import BadInput, Unsupported
from rootdisk.ext4.checksum import xattr_block_checksum
from rootdisk.ext4.format import (
    BLOCK,
    EXTRA_ISIZE,
    GOOD_OLD_INODE_SIZE,
    INODE_SIZE,
    XATTR_ACL_INDEX,
    XATTR_ENTRY,
    XATTR_HEADER,
    XATTR_INDEX,
    XATTR_MAGIC,
)
from rootdisk.limits import NAME_MAX
from rootdisk.parsing.ids import is_id
from rootdisk.text import printable

IN_INODE = INODE_SIZE - GOOD_OLD_INODE_SIZE - EXTRA_ISIZE - 4  # bytes for entries and values, after the magic
IN_BLOCK = BLOCK - XATTR_HEADER.size

_PREFIXES = {index: prefix for prefix, index in XATTR_INDEX.items()}
_ACL_NAMES = {index: name for name, index in XATTR_ACL_INDEX.items()}

_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20  # linux/posix_acl.h
Entry = tuple[int, bytes, bytes]  # name index, name without its prefix, value as ext4 stores it


def split(xattrs: Mapping[bytes, bytes]) -> tuple[list[Entry], list[Entry]]:
    """Return what goes into the inode and what goes into a block of its own.

    All go into the inode if they fit, else the largest go to the block.

    Raises:
        ValueError: neither holds them (a block is 4 KiB), or a name is too long.
        BadInput, Unsupported: an ACL or a name that Linux does not have.
    """
    entries = sorted((_entry(name, value) for name, value in xattrs.items()), key=_order)
    inside: list[Entry] = entries
    outside: list[Entry] = []
    total = _size(entries)
    if total > IN_INODE:
        inside = sorted(entries, key=lambda entry: (_size([entry]), entry))
        while inside and total > IN_INODE:
            outside.append(inside.pop())
            total -= _size(outside[-1:]) - _size([])
        inside.sort(key=_order)
    if _size(outside) > IN_BLOCK:
        raise ValueError(f"{_size(outside)} bytes of extended attributes are more than the {IN_BLOCK} ext4 can hold")
    outside.sort(key=_order)
    return inside, outside


def problem(name: bytes, value: bytes, mode: int) -> str:
    """Return why Linux gives an inode of `mode` no such attribute on ext4; "" if it does. fs/xattr.c, fs/posix_acl.c."""
    kind = stat.S_IFMT(mode)
    if name in XATTR_ACL_INDEX:
        if kind == stat.S_IFLNK:
            return "a symbolic link has no ACL"
        if name.endswith(b"default") and kind != stat.S_IFDIR:
            return "only a directory has a default ACL"
        return "" if _is_acl(value) else "it is not a valid ACL"
    if name.startswith(b"user.") and kind not in (stat.S_IFREG, stat.S_IFDIR):
        return "only files and directories have attributes of users"
    if name == b"security.capability" and not _is_capability(value):
        return "it is not a valid set of capabilities"
    if name.startswith(b"system."):  # ext4's own, such as the data of small files
        return "Linux has no such attribute"
    if any(name.startswith(prefix) and len(name) > len(prefix) for prefix in XATTR_INDEX):
        return ""
    return "Linux has no such namespace"


def too_much(xattrs: Mapping[bytes, bytes]) -> list[bytes]:
    """Return the names of the largest attributes, which have to go so that `split` can place the others."""
    sized = sorted(
        (_size([entry]) - 4, entry, name) for name, value in xattrs.items() for entry in [_entry(name, value)]
    )
    inside = count = 0
    while count < len(sized) and inside + sized[count][0] + 4 <= IN_INODE:
        inside += sized[count][0]
        count += 1
    outside = sum(size for size, _, _ in sized[count:]) + 4
    gone = []
    while outside > IN_BLOCK:
        size, _, name = sized.pop()
        outside -= size
        gone.append(name)
    return gone


def _is_acl(value: bytes) -> bool:
    """Tell whether the kernel takes it: posix_acl_from_xattr() and posix_acl_valid(), fs/posix_acl.c."""
    if len(value) < 4 or (len(value) - 4) % 8 or value[:4] != b"\2\0\0\0":
        return False
    entries = list(struct.iter_unpack("<HHI", value[4:]))
    tags = [tag for tag, _, _ in entries]
    named = any(tag in (_USER, _GROUP) for tag in tags)
    return (
        tags == sorted(tags)
        and all(tag in (_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER) for tag in tags)
        and all(tags.count(tag) == 1 for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER))
        and tags.count(_MASK) in ((1,) if named else (0, 1))
        and all(permissions <= 7 for _, permissions, _ in entries)
        and all(is_id(who) for tag, _, who in entries if tag in (_USER, _GROUP))
    )


def _is_capability(value: bytes) -> bool:
    """Tell whether the kernel takes it: validheader(), security/commoncap.c."""
    revision = value[3] if len(value) > 3 else 0
    return (len(value), revision) in ((20, 2), (24, 3))


def acl_of_mode(value: bytes, mode: int) -> bytes:
    """Return a valid access ACL with the permissions of `mode`, as chmod(2) changes it; b"" if it says no more than that."""
    entries = list(struct.iter_unpack("<HHI", value[4:]))
    if len(entries) == 3:
        return b""
    group = _MASK if any(tag == _MASK for tag, _, _ in entries) else _GROUP_OBJ
    permissions = {_USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, _OTHER: mode & 7}
    return value[:4] + b"".join(struct.pack("<HHI", tag, permissions.get(tag, had), who) for tag, had, who in entries)


def in_inode(entries: list[Entry]) -> bytes:
    """Return what stands in the inode after i_extra; b"" for nothing."""
    if not entries:
        return b""
    # Values' offsets count from the first entry; a hash of 0 means none, as the kernel writes it here.
    return struct.pack("<I", XATTR_MAGIC) + _lay_out(entries, IN_INODE, 0, [0] * len(entries))


def in_block(entries: list[Entry], place: int, seed: int, references: int) -> bytes:
    """Return the block of `entries` as it stands at disk block `place`, shared by so many inodes; `seed` is the disk's."""
    hashes = [_hash(name, value) for _, name, value in entries]
    total = 0
    for entry_hash in hashes:
        if not entry_hash:
            total = 0
            break
        total = ((total << 16) ^ (total >> 16) ^ entry_hash) & 0xFFFF_FFFF
    content = _lay_out(entries, IN_BLOCK, XATTR_HEADER.size, hashes)
    bare = XATTR_HEADER.pack(XATTR_MAGIC, references, 1, total, 0, 0, 0, 0) + content
    checksum = xattr_block_checksum(seed, place, bare)
    return XATTR_HEADER.pack(XATTR_MAGIC, references, 1, total, checksum, 0, 0, 0) + content


def decode(raw: bytes, first: int) -> dict[bytes, bytes]:
    """Return names and values of entries that begin at `first` in `raw`, from whose start the values' offsets count.

    ValueError: what is wrong with them. Values in inodes of their own (ea_inode) are not read.
    """
    found: dict[bytes, bytes] = {}
    at = first
    while at + 4 <= len(raw) and raw[at : at + 4] != bytes(4):
        if at + XATTR_ENTRY.size > len(raw):
            raise ValueError("an entry is cut")
        name_length, index, offset, inode, size, _ = XATTR_ENTRY.unpack_from(raw, at)
        name = raw[at + XATTR_ENTRY.size :][:name_length]
        if inode or offset + size > len(raw) or len(name) != name_length:
            raise ValueError("an entry points outside")
        value = raw[offset : offset + size]
        if index in _ACL_NAMES:
            found[_ACL_NAMES[index]] = _kernel_acl(value)
        elif index in _PREFIXES:
            found[_PREFIXES[index] + name] = value
        else:
            raise ValueError(f"name index {index}")
        at += XATTR_ENTRY.size + _up(name_length)
    return found


def _order(entry: Entry) -> tuple[int, int, bytes]:
    return entry[0], len(entry[1]), entry[1]


def _entry(name: bytes, value: bytes) -> Entry:
    if name in XATTR_ACL_INDEX:
        return XATTR_ACL_INDEX[name], b"", _acl(value)
    for prefix, index in XATTR_INDEX.items():
        if name.startswith(prefix) and len(name) > len(prefix) and prefix != b"system.":
            short = name[len(prefix) :]
            if len(short) > NAME_MAX:
                raise ValueError(f"the extended attribute name {name[:40]!r}… is longer than {NAME_MAX} bytes")
            return index, short, value
    raise Unsupported(f"extended attribute {printable(name, 80)}: Linux has no such namespace")


def _acl(value: bytes) -> bytes:
    """The kernel's xattr form (version 2, 8-byte entries) as ext4 stores it (version 1, ids only where they say something)."""
    if len(value) < 4 or (len(value) - 4) % 8 or value[:4] != b"\2\0\0\0":
        raise BadInput("a POSIX ACL that is not in the kernel's form")
    out = [struct.pack("<I", 1)]
    for tag, perm, who in struct.iter_unpack("<HHI", value[4:]):
        out.append(struct.pack("<HHI", tag, perm, who) if tag in (0x02, 0x08) else struct.pack("<HH", tag, perm))
    return b"".join(out)


def _kernel_acl(value: bytes) -> bytes:
    """An ACL as ext4 stores it, in the kernel's xattr form."""
    if value[:4] != b"\1\0\0\0":
        raise ValueError("an ACL of unknown version")
    out = [struct.pack("<I", 2)]
    at = 4
    while at < len(value):
        named = value[at] in (0x02, 0x08)
        if at + (8 if named else 4) > len(value):
            raise ValueError("an ACL is cut")
        tag, perm = struct.unpack_from("<HH", value, at)
        who = struct.unpack_from("<I", value, at + 4)[0] if named else 0xFFFF_FFFF
        out.append(struct.pack("<HHI", tag, perm, who))
        at += 8 if named else 4
    return b"".join(out)


def _size(entries: list[Entry]) -> int:
    return sum(XATTR_ENTRY.size + _up(len(name)) + _up(len(value)) for _, name, value in entries) + 4


def _up(length: int) -> int:
    return (length + 3) & ~3


def _lay_out(entries: list[Entry], room: int, base: int, hashes: list[int]) -> bytes:
    """Entries from the start, values from the end; value offsets count from `base` bytes before."""
    out = bytearray(room)
    at, end = 0, room
    for (index, name, value), entry_hash in zip(entries, hashes, strict=True):
        end -= _up(len(value))
        offset = end + base if value else 0
        XATTR_ENTRY.pack_into(out, at, len(name), index, offset, 0, len(value), entry_hash)
        out[at + 16 : at + 16 + len(name)] = name
        out[end : end + len(value)] = value
        at += XATTR_ENTRY.size + _up(len(name))
    return bytes(out)


def _hash(name: bytes, value: bytes) -> int:
    """ext4_xattr_hash_entry(): names as unsigned bytes, as kernels since 6.2 and e2fsprogs do first."""
    total = 0
    for byte in name:
        total = ((total << 5) ^ (total >> 27) ^ byte) & 0xFFFF_FFFF
    for (word,) in struct.iter_unpack("<I", value.ljust(_up(len(value)), b"\0")):
        total = ((total << 16) ^ (total >> 16) ^ word) & 0xFFFF_FFFF
    return total
