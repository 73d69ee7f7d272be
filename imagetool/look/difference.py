"""Find the differences between two artifacts that should be equal: JSON keys, chunks, blocks and files.

with open_artifact(a, …) as first, open_artifact(b, …) as second:
    for line in differences(first, second): …          no line: identical
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import islice

from imagetool.build import derivation
from imagetool.look import inspection
from imagetool.packing.manifest import TITLE
from rootdisk.artifact.format import ArtifactManifest, Chunk
from rootdisk.artifact.published import PublishedArtifact
from rootdisk.errors import RootdiskError
from rootdisk.ext4.format import EXT4_EXTENTS_FL
from rootdisk.oci.documents import Descriptor

LINES_MAX_COUNT = 20  # of each kind
BLOCK = 4096
_META = "file-system metadata"


def differences(a: PublishedArtifact, b: PublishedArtifact) -> Iterator[str]:
    """Yield a line for each difference, causes first: files, blocks, compression, config, manifest."""
    if a.descriptor.digest == b.descriptor.digest:
        return
    if a.index.disk_digest() != b.index.disk_digest():
        yield f"disk: {a.index.disk_digest().short} and {b.index.disk_digest().short}"
        yield from _some(
            "files",
            (
                _of_file(change)
                for change in inspection.compared(inspection.InspectedDisk.of(a), inspection.InspectedDisk.of(b))
            ),
        )
        yield from _some("chunks", _of_chunks(a, b))
    else:
        yield from _some("frames", _of_frames(a, b))
    for change in derivation.explain(a.config.to_json(), b.config.to_json()):
        yield f"config: {change}"
    yield from _of_blobs(a.roles, b.roles)
    for change in derivation.explain(
        {key: value for key, value in a.manifest.items() if key not in ("layers", "config")},
        {key: value for key, value in b.manifest.items() if key not in ("layers", "config")},
    ):
        yield f"manifest: {change}"


def _some(what: str, lines: Iterable[str]) -> Iterator[str]:
    rest = iter(lines)
    yield from islice(rest, LINES_MAX_COUNT)
    if count := sum(1 for _ in rest):
        yield f"and {count} more {what}"


def _of_file(change: inspection.Change) -> str:
    words = "; ".join(f"{name} {old or '(none)'} -> {new or '(none)'}" for name, (old, new) in change.what.items())
    return f"file {change.path}: {change.kind}{': ' if words else ''}{words}"


def _of_chunks(a: PublishedArtifact, b: PublishedArtifact) -> Iterator[str]:
    """Yield chunks with different content at the same place, with the first different block and the file in it."""
    if [(c.offset, c.length) for c in a.index.chunks] != [(c.offset, c.length) for c in b.index.chunks]:
        yield f"chunks: cut differently, {len(a.index.chunks)} and {len(b.index.chunks)}"
        return
    starts = _files_by_block(a)
    for number, (old, new) in enumerate(zip(a.index.chunks, b.index.chunks, strict=True)):
        if old.sha256 == new.sha256:
            continue
        first, second = _raw(a, old), _raw(b, new)
        blocks = [at for at in range(0, len(first), BLOCK) if first[at : at + BLOCK] != second[at : at + BLOCK]]
        block = (old.offset + blocks[0]) // BLOCK
        byte = next(n for n in range(blocks[0], len(first)) if first[n] != second[n]) % BLOCK
        yield (
            f"chunk {number}: {len(blocks)} of {len(first) // BLOCK} blocks, the first is block {block} at byte {byte}: "
            f"{_file_at(starts, block)}"
        )


def _of_frames(a: PublishedArtifact, b: PublishedArtifact) -> Iterator[str]:
    """Yield equal chunks with different compressed bytes."""
    for number, (old, new) in enumerate(zip(a.index.chunks, b.index.chunks, strict=True)):
        if old.blob_length != new.blob_length or (not old.zero and _frame(a, old) != _frame(b, new)):
            yield f"chunk {number}: equal, but compressed differently: {old.blob_length} and {new.blob_length} bytes"


def _raw(artifact: PublishedArtifact, chunk: Chunk) -> bytes:
    return artifact.disk().read(chunk.offset, chunk.length)


def _frame(artifact: PublishedArtifact, chunk: Chunk) -> bytes:
    return b"".join(artifact.joined().read(chunk.blob_offset, chunk.blob_end))


def _files_by_block(a: PublishedArtifact) -> list[tuple[int, int, str]]:
    """Return (first block, end block, path) of every extent of every file, sorted."""
    runs = []
    try:
        reader = inspection.InspectedDisk.of(a).reader
        seen: set[int] = set()  # a file with many names may have many extents
        for name, node in reader.walk():
            if node.number in seen or not node.flags & EXT4_EXTENTS_FL:
                continue
            seen.add(node.number)
            for extent in reader.extents(node):
                runs.append((extent.physical, extent.physical + extent.count, inspection.shown(name)))
    except RootdiskError:  # a damaged disk does not tell names
        return []
    return sorted(runs)


def _file_at(runs: list[tuple[int, int, str]], block: int) -> str:
    place = bisect_right(runs, (block, 1 << 62, "")) - 1
    return runs[place][2] if place >= 0 and block < runs[place][1] else _META


def _of_blobs(a: ArtifactManifest, b: ArtifactManifest) -> Iterator[str]:
    def listed(roles: ArtifactManifest) -> dict[str, Descriptor]:
        """Return an artifact's blobs by title."""
        blobs = (*roles.disk, *roles.extras)
        return {blob.annotations.get(TITLE, blob.media_type): blob for blob in blobs} | {"config": roles.config}

    old, new = listed(a), listed(b)
    for title in sorted(old.keys() | new.keys()):
        if old.get(title) != new.get(title):
            digests = (blobs[title].digest.short if title in blobs else "(none)" for blobs in (old, new))
            yield "blob {}: {} -> {}".format(title, *digests)
