"""A compact index of the tar of a layer: made by tar.py, read by merge.py.

An index is two byte strings, so 300,000 entries take some 40 MB, and it is its own file format: a layer that has not
changed is not inflated again to be scanned. Fields are checked by the scanner; a packed index is believed as far as
its sha256 holds, so keep it where only the builder writes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import ItemsView, Iterator, Mapping
from dataclasses import dataclass

import zstandard

from rootdisk.errors import BadInput

# Kinds of entries: the type flags of ustar(5); a contiguous file ('7') and an old one (NUL) are FILE.
FILE, LINK, SYMLINK, CHARACTER, BLOCK, DIRECTORY, FIFO = b"0123456"

Segments = tuple[tuple[int, int, int], ...]
Xattrs = dict[bytes, bytes]
# kind, permission bits, uid, gid, mtime in ns, offset of the data or major, size or minor, path, link target, xattrs,
# segments. A plain tuple, as it is unpacked at once, hundreds of thousands of times.
Entry = tuple[int, int, int, int, int, int, int, bytes, bytes, Mapping[bytes, bytes] | None, Segments | None]

_RECORD = struct.Struct("<BxHIIIIIIqQQ")
_HEAD = struct.Struct("<8s32sQQ")
_MAGIC = b"RDTREE2\n"  # the number is the format's version: raise it with any change in meaning of what is stored
_XATTR = struct.Struct("<II")
_SEGMENT = struct.Struct("<QQQ")
_PACKED_MAX_BYTES = 2 << 30
SHARED_MAX_COUNT = 1 << 14
FEW = 8


@dataclass(frozen=True, slots=True)
class TarIndex:
    """The entries of one tar, in its order. Paths have no leading slash and no empty, `.` or `..` component; root is b"".

    `name` says in error messages which layer it is; `whiteouts` whether any path has a `.wh.` component.
    """

    name: str
    records: bytes
    heap: bytes  # per entry: path, link target, xattrs and segments

    def __len__(self) -> int:
        return len(self.records) // _RECORD.size

    @property
    def whiteouts(self) -> bool:
        """Tell whether there may be whiteouts."""
        return b".wh." in self.heap  # may be true without one, which costs a little time and nothing else

    def __iter__(self) -> Iterator[Entry]:
        heap = self.heap
        at = 0
        # Files of one time or size share the number: each is a tenth of what a file takes.
        times: dict[int, int] = {}
        sizes: dict[int, int] = {}
        for kind, mode, uid, gid, nanoseconds, path_end, target_end, end, seconds, first, second in _RECORD.iter_unpack(
            self.records
        ):
            path_end += at
            target_end += path_end
            xattrs = segments = None
            if end:
                xattrs, segments = _unpack_extra(heap[target_end : target_end + end])
            time = seconds * 1_000_000_000 + nanoseconds
            if len(times) == SHARED_MAX_COUNT:
                times.clear()
            if len(sizes) == SHARED_MAX_COUNT:
                sizes.clear()
            yield (
                kind,
                mode,
                uid,
                gid,
                times.setdefault(time, time),
                first,
                sizes.setdefault(second, second),
                heap[at:path_end],
                heap[path_end:target_end],
                xattrs,
                segments,
            )
            at = target_end + end

    def pack(self) -> bytes:
        """The index as bytes for a file in the cache."""
        body = zstandard.ZstdCompressor(level=1).compress(self.records + self.heap)
        return _HEAD.pack(_MAGIC, hashlib.sha256(body).digest(), len(self.records), len(self.heap)) + body

    @classmethod
    def unpack(cls, raw: bytes, name: str) -> TarIndex:
        """The index that pack() wrote; BadInput where it is of another version or damaged: scan the layer again."""
        body = memoryview(raw)[_HEAD.size :]
        if len(raw) < _HEAD.size or raw[:8] != _MAGIC:
            raise BadInput(f"layer {name}: the packed index is of an unknown version", "scan the layer again")
        _, digest, records, heap = _HEAD.unpack_from(raw)
        if hashlib.sha256(body).digest() != digest or records % _RECORD.size or records + heap > _PACKED_MAX_BYTES:
            raise BadInput(f"layer {name}: the packed index is damaged", "scan the layer again")
        try:
            both = zstandard.ZstdDecompressor().decompress(body, max_output_size=records + heap)
        except zstandard.ZstdError as err:
            raise BadInput(f"layer {name}: the packed index is damaged", "scan the layer again") from err
        if len(both) != records + heap:
            raise BadInput(f"layer {name}: the packed index is damaged", "scan the layer again")
        return cls(name, both[:records], both[records:])


class IndexWriter:
    """Collects entries into a TarIndex."""

    def __init__(self) -> None:
        self.count = 0
        self.heap = bytearray()
        self._records = bytearray()

    def add(
        self,
        kind: int,
        mode: int,
        uid: int,
        gid: int,
        mtime_ns: int,
        first: int,
        second: int,
        path: bytes,
        target: bytes = b"",
        extra: bytes = b"",
    ) -> None:
        """Add an entry; `first` and `second` as in Entry, `extra` from pack_extra(). struct.error if a value does not fit."""
        seconds, nanoseconds = divmod(mtime_ns, 1_000_000_000)
        self._records += _RECORD.pack(
            kind, mode, uid, gid, nanoseconds, len(path), len(target), len(extra), seconds, first, second
        )
        self.heap += path
        if target:
            self.heap += target
        if extra:
            self.heap += extra
        self.count += 1

    def finish(self, name: str) -> TarIndex:
        """Return the index."""
        return TarIndex(name, bytes(self._records), bytes(self.heap))


def pack_extra(xattrs: Xattrs | None, segments: Segments | None) -> bytes:
    """Pack the rare fields of an entry, xattrs sorted by name; b"" if there are none. Empty segments differ from none."""
    if not xattrs and segments is None:
        return b""
    parts = [_XATTR.pack(len(xattrs or ()), 0 if segments is None else len(segments) + 1)]
    for name, value in sorted((xattrs or {}).items()):
        parts += (_XATTR.pack(len(name), len(value)), name, value)
    parts += (_SEGMENT.pack(*segment) for segment in segments or ())
    return b"".join(parts)


class FewXattrs(Mapping[bytes, bytes]):
    """A few xattrs as they are packed, at most FEW: a dict and its parts take three times the memory."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def __getitem__(self, name: bytes) -> bytes:
        return self._unpacked()[name]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._unpacked())

    def __len__(self) -> int:
        return int(_XATTR.unpack_from(self._raw)[0])

    def items(self) -> ItemsView[bytes, bytes]:
        """The names and values, unpacked once."""
        return self._unpacked().items()

    def _unpacked(self) -> Xattrs:
        return _unpack_xattrs(self._raw)[0]


def _unpack_extra(raw: bytes) -> tuple[Mapping[bytes, bytes] | None, Segments | None]:
    count, segment_count = _XATTR.unpack_from(raw)
    if 0 < count <= FEW and not segment_count:
        return FewXattrs(raw), None
    xattrs, at = _unpack_xattrs(raw)
    segments = tuple(_SEGMENT.iter_unpack(raw[at:])) if segment_count else None
    return xattrs or None, segments


def _unpack_xattrs(raw: bytes) -> tuple[Xattrs, int]:
    """Return the xattrs, and where they end."""
    at = _XATTR.size
    xattrs: Xattrs = {}
    for _ in range(_XATTR.unpack_from(raw)[0]):
        name_length, length = _XATTR.unpack_from(raw, at)
        at += _XATTR.size
        xattrs[raw[at : at + name_length]] = raw[at + name_length : at + name_length + length]
        at += name_length + length
    return xattrs, at
