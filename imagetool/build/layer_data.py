"""A source image's layers while a disk is built from them: verified, inflated into unnamed files, scanned.

The index of a layer's tar is kept by diff ID. A layer with a known index is inflated only if a chunk of its data is
needed. Two layers are inflated at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from imagetool.ext4.directories import Directories
from imagetool.progress import Counted, Report, silent
from imagetool.sources.open import LayerBlob, SourceImage
from imagetool.tree.index import TarIndex
from imagetool.tree.inflate import Inflated, inflate
from imagetool.tree.layers import FileSource
from imagetool.tree.tar import scan
from rootdisk.durable import opener
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Digest

PARALLEL = 2
ENTRIES_MAX_COUNT = 1 << 23  # of all layers; some 300 bytes of memory each
KEPT_DIRECTORIES = 16
LAYERS_MAX_COUNT = 512  # each may have a file open
HEAP_MAX_BYTES = 512 << 20  # of their names and attributes


@dataclass(eq=False)
class LayerData:
    """A layer as a Source. It is inflated when it is first read. Threads may share it."""

    blob: LayerBlob
    name: str
    work: Path
    indexes: Path
    report: Report = silent
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _fd: int = -1
    _inflated: Inflated | None = None

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from byte `offset` of the tar."""
        self.tar().read_into(buffer, offset)

    def tar(self) -> FileSource:
        """Return the layer's tar, inflated and verified."""
        with self._lock:
            if self._fd < 0:
                fd = _unnamed(self.work)
                try:
                    expected, diff_id = self.blob.descriptor, self.blob.diff_id
                    pieces = Counted(self.report(f"layer {self.name}"), expected.size).pieces("", self.blob.open())
                    self._inflated = inflate(pieces, fd, expected=expected, diff_id=diff_id, name=self.name)
                except BaseException:
                    os.close(fd)
                    raise
                self._fd = fd
        return FileSource(self._fd, self.name)

    def index(self) -> tuple[str, TarIndex]:
        """Return the diff ID and the index of the tar."""
        if self.blob.diff_id is not None:
            path = self._index_path(self.blob.diff_id)
            with contextlib.suppress(OSError, RootdiskError):
                return str(self.blob.diff_id), TarIndex.unpack(_recall(path), self.name)
        self.tar()
        assert self._inflated is not None
        tar_index = scan(self._fd, self._inflated.size, self.name, bare=self.blob.bare)
        _remember(self._index_path(self._inflated.diff_id), tar_index.pack())
        return str(self._inflated.diff_id), tar_index

    def _index_path(self, diff_id: Digest) -> Path:
        return self.indexes / f"{'tar-' if self.blob.bare else ''}{diff_id.hex}"  # a bare tar is scanned differently

    def read_kept(self, offset: int, size: int) -> bytes:
        """Return a small part of the tar. It is kept like the index, so that the layer need not be inflated for it again."""
        path = self.indexes / f"{self.blob.diff_id.hex if self.blob.diff_id else ''}-{offset}-{size}"
        if self.blob.diff_id is not None:
            with contextlib.suppress(OSError):
                kept = _recall(path)
                if len(kept) == size + 32 and hashlib.sha256(kept[32:]).digest() == kept[:32]:
                    return kept[32:]
        data = bytearray(size)
        self.read_into(memoryview(data), offset)
        if self.blob.diff_id is not None:
            _remember(path, hashlib.sha256(data).digest() + data)
        return bytes(data)

    def close(self) -> None:
        """Close the tar."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextlib.contextmanager
def open_layers(
    source: SourceImage, cache: Path, own: LayerBlob | None = None, report: Report = silent
) -> Iterator[list[LayerData]]:
    """Open the layers of `source`, base first, and `own` on top.

    `cache` is the project's cache: indexes stay in it, tars do not.
    """
    work, indexes = cache / "tmp", cache / "indexes"
    for folder in (work, indexes):
        folder.mkdir(parents=True, exist_ok=True)
    count = len(source.layers)
    if count > LAYERS_MAX_COUNT:
        raise BadInput(
            f"the image has {count} layers, more than {LAYERS_MAX_COUNT}", "container runtimes take 127 or fewer"
        )
    layers = [LayerData(blob, f"{n} of {count}", work, indexes, report) for n, blob in enumerate(source.layers, 1)]
    if own is not None:
        layers.append(LayerData(own, "of files", work, indexes, report))
    try:
        yield layers
    finally:
        for layer in layers:
            layer.close()


def scan_layers(layers: list[LayerData]) -> list[tuple[str, TarIndex]]:
    """Return the diff ID and index of every layer, in order."""
    if not layers:
        raise BadInput("the image has no layers", "is it an image?")
    indexes: list[tuple[str, TarIndex]] = []
    entries = heap = 0
    with ThreadPoolExecutor(PARALLEL, "layer") as pool:
        try:
            for layer, (diff_id, index) in zip(layers, pool.map(LayerData.index, layers), strict=True):
                entries, heap = entries + len(index), heap + len(index.heap)
                if entries > ENTRIES_MAX_COUNT or heap > HEAP_MAX_BYTES:
                    raise BadInput(
                        f"layer {layer.name}: past {ENTRIES_MAX_COUNT} entries or {HEAP_MAX_BYTES} bytes of names",
                        "is the image made to do harm?",
                    )
                indexes.append((diff_id, index))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return indexes


def kept_directories(cache: Path, names: str) -> Directories | None:
    """Return the kept content of the directories for the identity `names`; None if it is not kept."""
    path = cache / "indexes" / f"directories-{names}"
    with contextlib.suppress(OSError, RootdiskError):
        os.utime(path)
        return Directories.unpack(_recall(path))
    return None


def keep_directories(cache: Path, names: str, directories: Directories) -> None:
    """Keep the content of directories, and remove all but the last few."""
    indexes = cache / "indexes"
    _remember(indexes / f"directories-{names}", directories.pack())
    with contextlib.suppress(OSError):  # another process may remove the same
        kept = sorted(indexes.glob("directories-*"), key=lambda path: path.stat().st_mtime)
        for path in kept[:-KEPT_DIRECTORIES]:
            path.unlink()


def _unnamed(folder: Path) -> int:
    """Open a file without a name: it is gone when the process ends, however that happens."""
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # a file system without O_TMPFILE
        import tempfile

        fd, name = tempfile.mkstemp(dir=folder)
        os.unlink(name)
        return fd


def _recall(path: Path) -> bytes:
    """Read what `_remember` has written."""
    with open(path, "rb", opener=opener) as file:
        return file.read()


def _remember(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    partial.write_bytes(data)
    partial.replace(path)
