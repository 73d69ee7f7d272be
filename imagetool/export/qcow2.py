"""Write a disk as a qcow2 file of version 3 that needs no other file; QEMU's docs/interop/qcow2.txt.

Clusters of zeros are left out. The data comes first and in disk order, then the tables, so one pass writes it. The same disk gives
the same bytes: `qemu-img convert` promises that only for one version of itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import IO

CLUSTER_BYTES = 65536
_CLUSTER_BITS = 16
_MAGIC = b"QFI\xfb"
_L2_ENTRIES = CLUSTER_BYTES // 8
_REFCOUNT_ENTRIES = CLUSTER_BYTES // 2  # 16-bit counts in one refcount block
_COPIED = 1 << 63  # the refcount is exactly one
# magic, version, backing name offset and length, cluster bits, size, encryption, L1 entries and offset, refcount table
# offset and clusters, snapshots and offset, incompatible, compatible and autoclear features, refcount order, header size
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_NO_CLUSTER = bytes(CLUSTER_BYTES)


def write_qcow2(file: IO[bytes], size: int, data: Iterable[tuple[int, bytes]]) -> None:
    """Write a disk of `size` bytes to the empty `file`. `data` has contents by offset, in disk order; the rest is zeros."""
    size += -size % 512  # QEMU's disks are whole sectors
    tables: dict[int, list[int]] = {}  # by place in the L1 table
    file.write(bytes(CLUSTER_BYTES))  # the header, written last
    used = 1
    for offset, cluster in _clusters(data):
        table, entry = divmod(offset // CLUSTER_BYTES, _L2_ENTRIES)
        tables.setdefault(table, [0] * _L2_ENTRIES)[entry] = used * CLUSTER_BYTES | _COPIED
        file.write(cluster)
        used += 1
    l1_entries = -(-size // (_L2_ENTRIES * CLUSTER_BYTES))
    l1_table = [0] * l1_entries
    for table, entries in sorted(tables.items()):
        l1_table[table] = used * CLUSTER_BYTES | _COPIED
        file.write(struct.pack(f">{_L2_ENTRIES}Q", *entries))
        used += 1
    l1 = used
    used += _write_clusters(file, struct.pack(f">{l1_entries}Q", *l1_table))
    # The refcount table and its blocks count themselves too.
    blocks = table_clusters = 0
    while True:
        needed = -(-(used + table_clusters + blocks) // _REFCOUNT_ENTRIES)
        needed_table = -(-needed * 8 // CLUSTER_BYTES)
        if (needed, needed_table) == (blocks, table_clusters):
            break
        blocks, table_clusters = needed, needed_table
    refcount_table, first_block = used, used + table_clusters
    used += table_clusters + blocks
    _write_clusters(file, struct.pack(f">{blocks}Q", *((first_block + n) * CLUSTER_BYTES for n in range(blocks))))
    for n in range(blocks):
        counted = min(used - n * _REFCOUNT_ENTRIES, _REFCOUNT_ENTRIES)
        _write_clusters(file, struct.pack(">H", 1) * counted)
    file.seek(0)
    file.write(
        _HEADER.pack(
            _MAGIC, 3, 0, 0, _CLUSTER_BITS, size, 0, l1_entries, l1 * CLUSTER_BYTES,
            refcount_table * CLUSTER_BYTES, table_clusters, 0, 0, 0, 0, 0, 4, _HEADER.size,
        )
    )  # fmt: skip


def _clusters(data: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Yield the clusters that are not all zeros, by disk offset. Pieces of `data` may begin and end inside a cluster."""
    start, cluster = 0, bytearray(CLUSTER_BYTES)
    for offset, piece in data:
        view = memoryview(piece)
        while view:
            base = offset - offset % CLUSTER_BYTES
            if base != start:
                if cluster != _NO_CLUSTER:
                    yield start, bytes(cluster)
                start, cluster = base, bytearray(CLUSTER_BYTES)
            count = min(len(view), base + CLUSTER_BYTES - offset)
            cluster[offset - base : offset - base + count] = view[:count]
            view, offset = view[count:], offset + count
    if cluster != _NO_CLUSTER:
        yield start, bytes(cluster)


def _write_clusters(file: IO[bytes], data: bytes) -> int:
    """Write `data`, padded to whole clusters; return how many."""
    count = -(-len(data) // CLUSTER_BYTES)
    file.write(data)
    file.write(bytes(count * CLUSTER_BYTES - len(data)))
    return count
