"""A source image's layers while a disk is built from them: verified, inflated into unnamed files, and scanned, in one pass.

The index of a layer's tar is kept by diff ID. A layer with a known index is inflated only if a chunk of its data is
needed. Two layers are inflated at once.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from imagetool.build.kept_bytes import recall, recall_unchecked, remember, remember_unchecked
from imagetool.build.layer_locks import LayerLocks
from imagetool.ext4.directories import Directories
from imagetool.packing.early_frames import EarlyFrames, LayerFrames
from imagetool.progress import Counted, Report, silent
from imagetool.sources.open import LayerBlob, SourceImage
from imagetool.tree.index import TarIndex
from imagetool.tree.inflate import TarPieces, inflate
from imagetool.tree.layers import FileSource
from imagetool.tree.tar import scan_tar
from imagetool.tree.tar_stream import TarStream
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Digest
from rootdisk.system.crew import Crew
from rootdisk.system.scratch import unnamed_file

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
    crew: Crew
    report: Report = silent
    early: EarlyFrames | None = None
    image_bytes: int = 0  # of all blobs
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _fd: int = -1
    _large: LayerFrames | None = None

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Fill `buffers` from byte `offset` of the tar."""
        tar = self.tar()
        if self._large is None:
            tar.read_into(buffers, offset)
        else:
            self._large.read_into(buffers, offset, tar)

    def tar(self) -> FileSource:
        """Return the layer's tar, inflated and verified. It has holes for large files that were compressed on the way."""
        with self._lock:
            if self._fd < 0:
                fd = unnamed_file(self.work)
                try:
                    expected, diff_id = self.blob.descriptor, self.blob.diff_id
                    inflate(self._blob(), fd, self.crew, expected=expected, diff_id=diff_id, name=self.name)
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
                return str(self.blob.diff_id), TarIndex.unpack(recall_unchecked(path), self.name)
        with self._lock:
            diff_id, tar_index = self._scan()
        remember_unchecked(self._index_path(diff_id), tar_index.pack())
        return str(diff_id), tar_index

    def is_indexed(self) -> bool:
        """Return whether an earlier build has left an index."""
        return self.blob.diff_id is not None and self._index_path(self.blob.diff_id).exists()

    def _scan(self) -> tuple[Digest, TarIndex]:
        """Inflate, verify, scan and write the tar in one pass, and compress its large files."""
        expected, diff_id = self.blob.descriptor, self.blob.diff_id
        pieces = TarPieces(self._blob(), self.crew, expected=expected, diff_id=diff_id, name=self.name)
        large = None
        if self.early is not None and diff_id is not None:
            large = self.early.layer(str(diff_id), lambda: int(self.image_bytes * pieces.growth))
        fd = unnamed_file(self.work)
        try:
            with contextlib.closing(iter(pieces)) as coming:
                stream = TarStream(coming, fd, large)
                try:
                    tar_index = scan_tar(stream, self.name, bare=self.blob.bare)
                except RootdiskError:
                    stream.finish()  # a wrong digest is the better answer: fetching again may help
                    raise
                stream.finish()
                if large is not None:
                    large.finish()
        except BaseException:
            os.close(fd)
            raise
        found = pieces.inflated.diff_id
        self._fd, self._large = fd, large
        return found, tar_index

    def _blob(self) -> Iterator[bytes]:
        return Counted(self.report(f"layer {self.name}"), self.blob.descriptor.size).pieces("", self.blob.open())

    def _index_path(self, diff_id: Digest) -> Path:
        return self.indexes / f"{'tar-' if self.blob.bare else ''}{diff_id.hex}"  # a bare tar is scanned differently

    def read_kept(self, offset: int, size: int) -> bytes:
        """Return a small part of the tar. It is kept like the index, so that the layer need not be inflated for it again."""
        path = self.indexes / f"{self.blob.diff_id.hex if self.blob.diff_id else ''}-{offset}-{size}"
        kept = recall(path) if self.blob.diff_id is not None else None
        if kept is not None and len(kept) == size:
            return kept
        data = bytearray(size)
        self.read_into([memoryview(data)], offset)
        if self.blob.diff_id is not None:
            remember(path, bytes(data))
        return bytes(data)

    def lock_order(self) -> str:
        """Return what decides the order in which locks are taken: the same in all processes."""
        return str(self.blob.diff_id or "")

    def close(self) -> None:
        """Close the tar."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def work_folder(cache: Path) -> Path:
    """Make the folder for files without a name."""
    folder = cache / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def open_layers(
    source: SourceImage,
    cache: Path,
    crew: Crew,
    own: LayerBlob | None = None,
    report: Report = silent,
    early: EarlyFrames | None = None,
) -> Iterator[list[LayerData]]:
    """Open the layers of `source`, base first, and `own` on top. `crew` inflates them, and `early` compresses the large files of new layers.

    `cache` is the project's cache: indexes stay in it, tars do not.
    """
    work, indexes = work_folder(cache), cache / "indexes"
    indexes.mkdir(parents=True, exist_ok=True)
    count = len(source.layers)
    if count > LAYERS_MAX_COUNT:
        raise BadInput(
            f"the image has {count} layers, more than {LAYERS_MAX_COUNT}", "container runtimes take 127 or fewer"
        )
    size = sum(layer.descriptor.size for layer in source.layers)
    layers = [
        LayerData(blob, f"{n} of {count}", work, indexes, crew, report, early, size)
        for n, blob in enumerate(source.layers, 1)
    ]
    if own is not None:
        layers.append(LayerData(own, "of files", work, indexes, crew, report, early, size))
    try:
        yield layers
    finally:
        # In threads, which nobody waits for before the process ends: to free what the kernel has of a tar takes long.
        closing = ThreadPoolExecutor(PARALLEL, "close")
        for layer in layers:
            closing.submit(layer.close)
        closing.shutdown(wait=False)


def scan_layers(
    layers: list[LayerData], locks: LayerLocks | None = None
) -> Generator[tuple[str, TarIndex], None, None]:
    """Yield the diff ID and index of every layer, in order, as soon as it is scanned; close it at the end.

    `locks` are of those that this process has to make.
    """
    if not layers:
        raise BadInput("the image has no layers", "is it an image?")
    entries = heap = 0
    with ThreadPoolExecutor(PARALLEL, "layer") as pool:
        try:
            scans = _submitted(layers, locks, pool)
            for layer in layers:
                diff_id, index = scans.pop(id(layer)).result()
                entries, heap = entries + len(index), heap + len(index.heap)
                if entries > ENTRIES_MAX_COUNT or heap > HEAP_MAX_BYTES:
                    raise BadInput(
                        f"layer {layer.name}: past {ENTRIES_MAX_COUNT} entries or {HEAP_MAX_BYTES} bytes of names",
                        "is the image made to do harm?",
                    )
                yield diff_id, index
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _submitted(
    layers: list[LayerData], locks: LayerLocks | None, pool: ThreadPoolExecutor
) -> dict[int, Future[tuple[str, TarIndex]]]:
    """Have every layer scanned that nobody else makes; those of others when they are made. In the order of locks."""
    scans: dict[int, Future[tuple[str, TarIndex]]] = {}
    locked: set[Digest] = set()
    for layer in sorted(layers, key=LayerData.lock_order):
        diff_id = layer.blob.diff_id
        if locks is not None and diff_id is not None and diff_id not in locked:
            locks.take(diff_id)
            locked.add(diff_id)
            if layer.is_indexed():
                locks.release(diff_id)
        scans[id(layer)] = pool.submit(layer.index)
    return scans


def kept_directories(cache: Path, names: str) -> Directories | None:
    """Return the kept content of the directories for the identity `names`; None if it is not kept."""
    path = cache / "indexes" / f"directories-{names}"
    with contextlib.suppress(OSError, RootdiskError):
        os.utime(path)
        return Directories.unpack(recall_unchecked(path))
    return None


def keep_directories(cache: Path, names: str, directories: Directories) -> None:
    """Keep the content of directories, and remove all but the last few."""
    indexes = cache / "indexes"
    remember_unchecked(indexes / f"directories-{names}", directories.pack())
    with contextlib.suppress(OSError):  # another process may remove the same
        kept = sorted(indexes.glob("directories-*"), key=lambda path: path.stat().st_mtime)
        for path in kept[:-KEPT_DIRECTORIES]:
            path.unlink()
