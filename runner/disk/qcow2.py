"""Write and read qcow2 version 3 overlays over a raw disk; QEMU's docs/interop/qcow2.txt.

Creating an overlay takes less than a millisecond for any size of disk. All sandboxes share the page cache of the base. The
header always names the backing format: if QEMU guessed it, a guest could write a qcow2 header into a raw disk.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path

from rootdisk.durable import write_at
from rootdisk.errors import BadInput, RootdiskError

CLUSTER_BYTES = 65536
_CLUSTER_BITS = 16
_MAGIC = b"QFI\xfb"
_L2_ENTRIES = CLUSTER_BYTES // 8
_L2_SPAN = _L2_ENTRIES * CLUSTER_BYTES  # bytes of the disk that an L2 table maps
_REFCOUNT_ENTRIES = CLUSTER_BYTES // 2  # 16-bit counts in one refcount block
_COPIED = 1 << 63  # the refcount is exactly one, so the cluster may be written in place
_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00

# magic, version, backing name offset and length, cluster bits, size, encryption, L1 entries and offset, refcount table
# offset and clusters, snapshots and offset, incompatible, compatible and autoclear features, refcount order, header size
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_BACKING_FORMAT = struct.pack(">II8s", 0xE2792ACA, 3, b"raw")
_END_OF_EXTENSIONS = bytes(8)
_NAME_MAX_BYTES = 1023
_ENTRY = struct.Struct(">Q")
_PAGE_BYTES = 4096
_NO_PAGE = bytes(_PAGE_BYTES)


def write_overlay(path: Path, backing: Path, size: int, clusters: Mapping[int, bytes]) -> None:
    """Create the overlay `path` of `size` bytes over the raw file `backing`.

    `clusters` has disk contents by offset. Each is aligned and at most CLUSTER_BYTES long; the overlay gets it, padded with
    zeros.

    Raises:
        BadInput: The path of the backing file is too long for the format.
        OSError: The file cannot be written.
    """
    name = os.fsencode(backing.absolute())
    if len(name) > _NAME_MAX_BYTES:
        raise BadInput(f"path of {len(name)} bytes is too long for qcow2", "use a shorter ROOTDISK_STORE")
    l1_entries = -(-size // _L2_SPAN)
    l1_clusters = -(-l1_entries * 8 // CLUSTER_BYTES)
    tables = sorted({offset // _L2_SPAN for offset in clusters})
    fixed = 2 + l1_clusters + len(tables) + len(clusters)
    blocks = -(-(fixed + 1) // (_REFCOUNT_ENTRIES - 1))  # each block counts itself too
    refcount_table, first_block = 1, 2  # cluster numbers; the header is cluster 0
    l1 = first_block + blocks
    first_l2 = l1 + l1_clusters
    first_data = first_l2 + len(tables)
    used = fixed + blocks

    header = _HEADER.pack(
        _MAGIC, 3, _HEADER.size + len(_BACKING_FORMAT + _END_OF_EXTENSIONS), len(name), _CLUSTER_BITS, size, 0,
        l1_entries, l1 * CLUSTER_BYTES, refcount_table * CLUSTER_BYTES, 1, 0, 0, 0, 0, 0, 4, _HEADER.size,
    )  # fmt: skip
    numbers = {table: number for number, table in enumerate(tables, first_l2)}
    with open(path, "xb", buffering=0) as file:
        fd = file.fileno()
        # Everything not written is a hole, which reads as zeros.
        os.ftruncate(fd, used * CLUSTER_BYTES)
        for number, (offset, data) in enumerate(sorted(clusters.items()), first_data):
            assert len(data) <= CLUSTER_BYTES
            assert offset % CLUSTER_BYTES == 0
            table, entry = divmod(offset // CLUSTER_BYTES, _L2_ENTRIES)
            place = numbers[table] * CLUSTER_BYTES + entry * 8
            write_at(fd, _ENTRY.pack(number * CLUSTER_BYTES | _COPIED), place)
            for at in range(0, len(data), _PAGE_BYTES):
                page = data[at : at + _PAGE_BYTES]
                if page != _NO_PAGE:
                    write_at(fd, page, number * CLUSTER_BYTES + at)
        l1_table = [0] * l1_entries
        for table, number in numbers.items():
            l1_table[table] = number * CLUSTER_BYTES | _COPIED
        write_at(fd, struct.pack(f">{l1_entries}Q", *l1_table), l1 * CLUSTER_BYTES)
        write_at(fd, struct.pack(">H", 1) * used, first_block * CLUSTER_BYTES)
        table_of_blocks = (n * CLUSTER_BYTES for n in range(first_block, l1))
        write_at(fd, struct.pack(f">{blocks}Q", *table_of_blocks), refcount_table * CLUSTER_BYTES)
        write_at(fd, header + _BACKING_FORMAT + _END_OF_EXTENSIONS + name, 0)


def locate(fd: int, offset: int) -> int:
    """Return the offset in the overlay `fd` of the cluster for the disk offset `offset`.

    Raises:
        RootdiskError: The overlay has no such cluster, or is not one that `write_overlay` has written.
    """
    raw = os.pread(fd, _HEADER.size, 0)
    header = _HEADER.unpack(raw) if len(raw) == _HEADER.size else ()
    if not header or (header[0], header[1], header[4]) != (_MAGIC, 3, _CLUSTER_BITS):
        raise RootdiskError(
            "the disk of the sandbox is not an overlay of this rootdisk", "delete the sandbox: runner rm NAME"
        )
    table = offset // _L2_SPAN
    l2 = _entry(fd, header[8], table) & _OFFSET_MASK if table < header[7] else 0
    entry = _entry(fd, l2, offset % _L2_SPAN // CLUSTER_BYTES) if l2 else 0
    cluster = entry & _OFFSET_MASK
    if not cluster or entry != cluster | _COPIED:  # otherwise it is compressed, shared or a zero cluster
        raise RootdiskError(f"the overlay has no cluster for offset {offset}", "delete the sandbox: runner rm NAME")
    return cluster


def _entry(fd: int, table: int, number: int) -> int:
    if table != table & _OFFSET_MASK:  # not aligned, so not written by us; pread(2) may refuse the offset
        return 0
    raw = os.pread(fd, 8, table + number * 8)
    return int.from_bytes(raw, "big") if len(raw) == 8 else 0
