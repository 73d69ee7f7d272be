"""Tars: what a layer's tar holds, and where each file's bytes lie in it.

    scan(fd, size, name) -> TarIndex            of a tar in a file
    scan_tar(tar, name) -> TarIndex             of one that may still be on its way: imagetool/tree/tar_stream.py

A parser of our own because it must be fast (a few µs an entry) and wary. It reads v7, ustar, star, PAX and GNU headers with PAX
records, long names, all GNU sparse forms and base 256 numbers, and decides doubtful cases as Go's archive/tar does, since
containerd, Docker and umoci read layers with it: directories, links and devices have no data whatever their size says; a second
PAX header replaces the first; GNU long names win over PAX; `..` in a name is resolved in the text and never leaves the root; what
follows the end-of-archive blocks is not read. Global PAX headers say nothing about a layer, as for all runtimes; in a bare tar
they give defaults for all later entries, as POSIX has it. Names are bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from functools import lru_cache
from zlib import adler32

from imagetool.tree import pax
from imagetool.tree.index import (
    BLOCK,
    CHARACTER,
    DIRECTORY,
    FILE,
    LINK,
    SYMLINK,
    IndexWriter,
    Segments,
    TarIndex,
    pack_extra,
)
from imagetool.tree.pax import Malformed, number
from imagetool.tree.tar_stream import Tar, TarFile
from rootdisk.errors import BadInput, Unsupported
from rootdisk.limits import LONG_PATH_MAX, NAME_MAX, PATH_MAX
from rootdisk.parsing.ids import ID_MAX
from rootdisk.text import printable

WINDOW_BYTES = 128 << 10
ENTRIES_MAX_COUNT = 1 << 22
HEAP_MAX_BYTES = 256 << 20  # all paths, link targets and xattrs of a layer
EXTENDED_MAX_BYTES = 1 << 20  # one extended header
# What global headers set is looked at again for each entry that has records of its own.
GLOBAL_MAX_BYTES = 64 << 10
GLOBAL_MAX_COUNT = 64
TARGET_MAX_BYTES = PATH_MAX - 1  # without its NUL
TIME_MAX_NS = (1 << 62) * 1_000_000_000  # what an index holds

_ZERO = bytes(512)
_NUL = b"\0"


def scan(fd: int, size: int, name: str, *, bare: bool = False) -> TarIndex:
    """Return the entries of the tar of `size` bytes in the file `fd`: `scan_tar`."""
    return scan_tar(TarFile(fd, size), name, bare=bare)


def scan_tar(tar: Tar, name: str, *, bare: bool = False) -> TarIndex:
    """Return the entries of `tar`; `name` says in messages which layer it is.

    A `bare` tar is one that tar(1) made, and not a layer: a volume's label is skipped, a directory of an incremental
    backup is a directory, and global headers count.

    Raises:
        BadInput: An entry is wrong. The message names the layer and the entry.
        Unsupported: An entry is of unknown type.
    """
    return _Scanner(tar, name, bare).run()


@dataclass(slots=True)
class _Extended:
    """The content of extended headers for the next entry; `sparse` has the numbers of GNU's sparse format 0.0."""

    pax: dict[bytes, bytes] = field(default_factory=dict)
    sparse: list[int] = field(default_factory=list)
    path: bytes | None = None
    target: bytes | None = None


class _Scanner:
    def __init__(self, tar: Tar, name: str, bare: bool) -> None:
        self.tar = tar
        self.name = name
        self.bare = bare
        self.out = IndexWriter()
        # Of global PAX headers: only what says something to us and is not empty; its length; its attributes, packed.
        self.defaults: dict[bytes, bytes] = {}
        self.default_bytes = 0
        self.default_extra: bytes | None = None

    def run(self) -> TarIndex:
        """Scan the whole tar."""
        at = start = 0
        window = b""
        extended: _Extended | None = None
        while True:
            if not start <= at <= start + len(window) - 512:
                window, start = self.tar.read(at, WINDOW_BYTES), at
                if not window:
                    break
            index = at - start
            block = window[index : index + 512]
            try:
                if len(block) < 512:
                    raise Malformed("the tar ends within a header")
                checksum = adler32(block[:256], 0) & 0xFFFF  # of 256 bytes: the plain sum, below adler's modulus
                checksum += adler32(block[256:], 0) & 0xFFFF
                if checksum != _sum(block[148:156]):
                    if block == _ZERO:
                        self.end(at)
                        break
                    _check_signed(block, checksum)
                kind = block[156]
                if kind in b"xgXLK":
                    at, extended = self.extend(kind, at, block, extended)
                    continue
                at = self.entry(kind, at, block, extended)
            except (Malformed, struct.error) as err:
                raise BadInput(
                    f"layer {self.name}: entry {_shown(block, extended)} at byte {at}: {err}",
                    "the image is damaged or was made to do harm",
                ) from None
            extended = None
        return self.out.finish(self.name)

    def end(self, at: int) -> None:
        """Check the end of the archive: two zero blocks; as GNU tar and Go do, accept one at the very end, or none."""
        second = self.tar.read(at + 512, 512)
        if len(second) == 512 and second != _ZERO:
            raise Malformed("a lone zero block within the tar")

    def payload(self, at: int, block: bytes) -> tuple[bytes, int]:
        """Return an extended header's data, and where the next header is."""
        length = number(block[124:136])
        if not 0 <= length <= EXTENDED_MAX_BYTES:
            raise Malformed(f"an extended header of {length} bytes")
        data = self.tar.read(at + 512, length)
        if len(data) < length:
            raise Malformed("the tar ends within an extended header")
        return data, at + 512 + (length + 511 & ~511)

    def extend(self, kind: int, at: int, block: bytes, extended: _Extended | None) -> tuple[int, _Extended | None]:
        """Read an extended header at `at`. Return where the next header is, and the extended values for its entry."""
        data, after = self.payload(at, block)
        if kind == 0x67:  # g
            global_records = pax.records(data)
            if self.bare:
                self.set_defaults(global_records)
            return after, extended
        extended = extended or _Extended()
        if kind == 0x4C:  # L
            extended.path = data.partition(_NUL)[0]
        elif kind == 0x4B:  # K
            extended.target = data.partition(_NUL)[0]
        else:
            records = pax.records(data)
            extended.pax = dict(records)
            extended.sparse = [
                pax.decimal(value, "sparse map")
                for key, value in records
                if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
            ]
        return after, extended

    def set_defaults(self, records: list[tuple[bytes, bytes]]) -> None:
        """Take a global header's records. What each costs does not depend on how many came before."""
        for key, value in records:
            if key.startswith(b"GNU.sparse."):
                raise Malformed("a global extended header describes a sparse file")
            if not pax.says_something(key):
                continue
            before = self.defaults.pop(key, None)
            self.default_bytes -= 0 if before is None else len(key) + len(before)
            if value:  # an empty one takes the default back
                self.defaults[key] = value
                self.default_bytes += len(key) + len(value)
            self.default_extra = None
        if len(self.defaults) > GLOBAL_MAX_COUNT or self.default_bytes > GLOBAL_MAX_BYTES:
            raise Malformed(
                f"global extended headers set more than {GLOBAL_MAX_COUNT} values or {GLOBAL_MAX_BYTES} bytes"
            )

    def entry(self, kind: int, at: int, block: bytes, extended: _Extended | None) -> int:
        """Add the entry with the header `block` at byte `at` to the index. Return where the next header is."""
        path = block[:100].partition(_NUL)[0]
        if block[345] and pax.has_prefix(block):
            end = 476 if block[508:512] == b"tar\0" else 500  # star keeps times after a shorter prefix
            path = block[345:end].partition(_NUL)[0] + b"/" + path
        target = block[157:257].partition(_NUL)[0]
        mode = number(block[100:108]) & 0o7777
        uid, gid = number(block[108:116]), number(block[116:124])
        size, mtime_ns = number(block[124:136]), number(block[136:148]) * 1_000_000_000
        values: dict[bytes, bytes] = {}
        sparse = ""
        if extended is not None or self.defaults:
            extended = extended or _Extended()
            values = self.defaults | extended.pax if extended.pax else self.defaults
            sparse = pax.sparse_format(values, extended.sparse, size) if kind in b"0\0007" else ""
            path = (values.get(b"GNU.sparse.name") if sparse else b"") or values.get(b"path") or path
            target = values.get(b"linkpath") or target
            path = extended.path or path
            target = extended.target or target
            if values:
                uid = pax.id_number(values[b"uid"]) if values.get(b"uid") else uid
                gid = pax.id_number(values[b"gid"]) if values.get(b"gid") else gid
                size = pax.decimal(values[b"size"], "size") if values.get(b"size") else size
                mtime_ns = pax.time_ns(values[b"mtime"]) if values.get(b"mtime") else mtime_ns
        if not (0 <= uid <= ID_MAX and 0 <= gid <= ID_MAX):  # is_id(), as fast as can be
            raise Malformed(f"owner {uid}:{gid} is out of range")
        if not -TIME_MAX_NS < mtime_ns < TIME_MAX_NS:
            mtime_ns = TIME_MAX_NS if mtime_ns > 0 else -TIME_MAX_NS  # what no file system holds; merging notes it
        if kind in b"0\0007":
            is_directory = path.endswith(b"/") and (kind == 0 or (self.bare and not size))  # as BSD wrote them
            kind = DIRECTORY if is_directory else FILE
        listed = 0
        if self.bare:
            if kind == 0x56:  # V
                return at + 512 + self.stored(size, at + 512)
            if kind == 0x44:  # D: the names that it had are its data
                kind, listed = DIRECTORY, self.stored(size, at + 512)
        is_sparse = kind == 0x53  # S
        if is_sparse:
            kind = FILE
        if not 0x30 <= kind <= 0x36:
            raise Unsupported(
                f"layer {self.name}: entry {_shown(block, extended)} at byte {at}: unknown type {chr(kind)!r}",
                "make the tar again" if self.bare else "container runtimes refuse it too; make the layer again",
            )
        path = normal(path)

        first, second, segments = 0, 0, None
        at += 512 + listed
        if kind == FILE:
            if is_sparse:
                pairs, size_real, at = self.old_sparse(at, block)
                first, second = at, size_real
                segments = pax.segments(pairs, size_real, size, at)
            elif sparse:
                assert extended is not None
                first, second, segments = self.pax_sparse(at, size, sparse, values, extended.sparse)
            else:
                first, second = at, size
            at += self.stored(size, at, plain=segments is None)
            target = b""
        elif kind in (LINK, SYMLINK):
            if not target or len(target) > (LONG_PATH_MAX if kind == LINK else TARGET_MAX_BYTES) or _NUL in target:
                raise Malformed(f"link target of {len(target)} bytes")
            if kind == LINK:
                target = normal(target)
        else:
            target = b""
            if kind in (CHARACTER, BLOCK):
                first, second = number(block[329:337]), number(block[337:345])
                if values:
                    first = pax.decimal(values.get(b"SCHILY.devmajor") or b"%d" % first, "device")
                    second = pax.decimal(values.get(b"SCHILY.devminor") or b"%d" % second, "device")
                if not (0 <= first < 1 << 12 and 0 <= second < 1 << 20):  # include/linux/kdev_t.h
                    raise Malformed(f"device number {first}:{second}")
        extra = b""
        if values is self.defaults and segments is None:
            if self.default_extra is None:
                self.default_extra = pack_extra(pax.xattrs(values), None)
            extra = self.default_extra
        elif values or segments is not None:
            extra = pack_extra(pax.xattrs(values) if values else None, segments)
        self.out.add(kind, mode, uid, gid, mtime_ns, first, second, path, target, extra)
        if self.out.count > ENTRIES_MAX_COUNT or len(self.out.heap) > HEAP_MAX_BYTES:
            raise Malformed(f"the layer is past {ENTRIES_MAX_COUNT} entries or {HEAP_MAX_BYTES} bytes of names")
        return at

    def stored(self, size: int, at: int, *, plain: bool = False) -> int:
        """Return how many bytes `size` bytes of data at byte `at` take, in whole blocks. `plain`: they are all of a file."""
        if size < 0:
            raise Malformed(f"its data has {size} bytes")
        if (there := self.tar.reach(at, at + size, plain=plain)) < at + size:
            raise Malformed(f"its {size} bytes of data do not fit into the tar of {there}")
        return size + 511 & ~511

    def old_sparse(self, at: int, block: bytes) -> tuple[list[tuple[int, int]], int, int]:
        """Return the map of a GNU 'S' entry, the file's size, and where its data begins; GNU tar manual, "Old GNU Format"."""
        pairs = _old_pairs(block, 386, 4)
        more = block[482]
        real_size = number(block[483:495])
        while more:
            block = self.tar.read(at, 512)
            if len(block) < 512 or len(pairs) > pax.SEGMENTS_MAX_COUNT:
                raise Malformed("sparse map does not end")
            at += 512
            pairs += _old_pairs(block, 0, 21)
            more = block[504]
        return pairs, real_size, at

    def pax_sparse(
        self, at: int, stored: int, sparse: str, values: dict[bytes, bytes], numbers: list[int]
    ) -> tuple[int, int, Segments | None]:
        """Return data offset, file size and segments in GNU's PAX formats; `numbers` are the map of format 0.0."""
        real = values.get(b"GNU.sparse.size") or values.get(b"GNU.sparse.realsize")
        real_size = pax.decimal(real, "size") if real else stored
        data = at
        if sparse == "1.0":
            numbers, length = self.sparse_head(at, stored)
            data += length
            stored -= length
        elif values.get(b"GNU.sparse.map"):
            numbers = [pax.decimal(n, "sparse map") for n in values[b"GNU.sparse.map"].split(b",") if n]
        return data, real_size, pax.segments(pax.sparse_pairs(numbers), real_size, stored, data)

    def sparse_head(self, at: int, stored: int) -> tuple[list[int], int]:
        """Read the map of format 1.0: decimal lines before the data, the number of pairs first, padded to whole blocks."""
        text = b""
        lines: list[bytes] = []
        wanted = 1
        while len(lines) <= wanted:  # the last piece may be cut
            if len(text) + 512 > min(stored, EXTENDED_MAX_BYTES * 2):
                raise Malformed("sparse map does not end")
            piece = self.tar.read(at + len(text), min(max(4096, len(text)), stored - len(text)) & ~511)
            if len(piece) < 512:
                raise Malformed("sparse map does not end")
            text += piece[: len(piece) & ~511]
            lines = text.split(b"\n", wanted)
            if wanted == 1 and len(lines) > 1:
                wanted = 1 + 2 * pax.decimal(lines[0], "sparse map")
                if wanted > 1 + 2 * pax.SEGMENTS_MAX_COUNT:
                    raise Malformed(f"sparse map has {wanted // 2} parts, more than {pax.SEGMENTS_MAX_COUNT}")
                lines = text.split(b"\n", wanted)
        used = len(text) - len(lines[wanted])
        return [pax.decimal(line, "sparse map") for line in lines[1:wanted]], used + 511 & ~511


def normal(path: bytes) -> bytes:
    """Return `path` without leading slash, empty and dot components. `..` removes the component before it, but never leaves the root."""
    path = path.strip(b"/")
    if path.startswith(b"./"):
        path = path[2:]
    if len(path) <= NAME_MAX and not (path.startswith((b".", b"/")) or b"//" in path or b"/." in path):
        if not path or _NUL in path:
            return _empty(path)
        return path
    if len(path) > LONG_PATH_MAX:
        raise Malformed(f"path of {len(path)} bytes, more than {LONG_PATH_MAX}")
    return _joined(path)


@lru_cache(maxsize=64)  # a global header may give the same one to millions of entries
def _joined(path: bytes) -> bytes:
    names: list[bytes] = []
    for name in path.split(b"/"):
        if name == b"..":
            if names:
                names.pop()
        elif name not in (b"", b"."):
            if len(name) > NAME_MAX:
                raise Malformed(f"name of {len(name)} bytes, more than {NAME_MAX}")
            names.append(name)
    path = b"/".join(names)
    return _empty(path) if _NUL in path else path


def _empty(path: bytes) -> bytes:
    if path:
        raise Malformed("a NUL in a path")
    return path


@lru_cache(maxsize=8192)
def _sum(stored: bytes) -> int:
    """Return the sum that the whole block must have, if its checksum field is `stored`; -1 if that is not a number."""
    try:
        return number(stored) + sum(stored) - 8 * 0x20
    except Malformed:
        return -1


def _check_signed(block: bytes, checksum: int) -> None:
    """Old tars added signed chars up."""
    rest = block[:148] + block[156:]
    checksum -= sum(block[148:156]) - 8 * 0x20
    if number(block[148:156]) != checksum - 256 * sum(byte > 127 for byte in rest):
        raise Malformed("header's checksum is wrong")


def _old_pairs(block: bytes, at: int, count: int) -> list[tuple[int, int]]:
    pairs = []
    for position in range(at, at + count * 24, 24):
        if not block[position]:
            break
        pairs.append((number(block[position : position + 12]), number(block[position + 12 : position + 24])))
    return pairs


def _shown(block: bytes, extended: _Extended | None) -> str:
    """The entry's name for a message."""
    path = block[:100].partition(_NUL)[0]
    if extended is not None:
        path = extended.path or extended.pax.get(b"path") or path
    return f"'{printable(path)}'"
