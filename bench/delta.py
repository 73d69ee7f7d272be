"""Measure the cost of the next version: what `runner pull` of the second of two images fetches if the first is in the store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import peers
from bench.images import Images
from bench.peers import Missing
from bench.table import aligned
from bench.transfer import artifact_of
from bench.work import TOOL, Bench, clean
from rootdisk.artifact.format import ArtifactManifest, ChunkIndex
from rootdisk.artifact.published import open_artifact
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference

FETCHED = 1.15  # of the compressed bytes of the chunks that have changed
HEAD = ("version pair", "chunks", "changed", "fetched MB", "by changed", "reused MB", "new blobs MB", "pull s")


@dataclass(frozen=True, slots=True)
class Delta:
    """Bytes; `changed` of `chunks` with data are not in the first version, `changed_bytes` compressed."""

    pair: str
    goal: float  # of changed by chunks
    chunks: int
    changed: int
    changed_bytes: int
    fetched: int  # of the disk's blobs, with the gaps between chunks; and index and config
    reused: int
    new_blobs: int  # what a publisher sends
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def part(self) -> float:
        return self.changed / self.chunks

    @property
    def ratio(self) -> float:
        return self.fetched / self.changed_bytes


def deltas(bench: Bench, images: Images, small: bool) -> list[Delta]:
    """Every pair; a small one alone where only the shape matters."""
    if small:
        return [_delta(bench, "small", images.files(1, 60), images.files(2, 60), 1.0)]
    pairs = [
        ("top layer of 1 % replaced", images.app(), images.app_changed(), 0.03),
        ("25 of 1,500 files changed, 10 new", images.files(1, 1500), images.files(2, 1500), 0.10),
        ("one file of 1 MB changed", images.files(1, 1500), images.files(3, 1500), 0.03),
    ]
    found = [_delta(bench, *pair) for pair in pairs]
    try:
        older = images.app_older()
    except Missing as err:
        print(f"base bump: missing: {err}", file=sys.stderr)
        return found
    return [*found, _delta(bench, "base: a few packages newer", older, images.app(), 0.12)]


def table(rows: Sequence[Delta]) -> str:
    lines = [HEAD]
    for row in rows:
        lines.append(
            (
                row.pair,
                f"{row.chunks:,}",
                f"{row.changed:,} = {100 * row.part:.1f} % ≤ {100 * row.goal:g}: {_yes(row.part <= row.goal)}",
                f"{row.fetched / 1e6:.2f}",
                f"{row.ratio:.2f} ≤ {FETCHED}: {_yes(row.ratio <= FETCHED)}",
                f"{row.reused / 1e6:.0f}",
                f"{row.new_blobs / 1e6:.2f}",
                f"{row.seconds:.2f}",
            )
        )
    return aligned(lines)


def _yes(met: bool) -> str:
    return "yes" if met else "NO"


def _delta(bench: Bench, pair: str, before: Path, after: Path, goal: float) -> Delta:
    """Both pulled from a registry, one after the other, into a new store."""
    layouts = [_built(bench, image) for image in (before, after)]
    store = bench.work / "store"
    clean(store)
    try:
        with peers.registry(bench.work / "registry", layouts[0], "1") as registry:
            target = f"{registry.name}/app:2"
            command = [*TOOL, "copy", "--plain-http", f"oci:{layouts[1]}:1", target]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            _pull(f"{registry.name}/app:1", store)
            told = _pull(target, store)
    finally:
        clean(store)
    (old_index, old), (index, new) = (_artifact(layout) for layout in layouts)
    known = {chunk.sha256 for chunk in old_index.chunks if not chunk.zero}
    data = [chunk for chunk in index.chunks if not chunk.zero]
    changed = [chunk for chunk in data if chunk.sha256 not in known]
    sent = {blob.digest: blob.size for blob in new.disk}
    return Delta(
        pair,
        goal,
        len(data),
        len(changed),
        sum(chunk.blob_length for chunk in changed),
        told["fetched"] + new.chunks.size + new.config.size,
        told["reused"],
        sum(size for digest, size in sent.items() if digest not in {blob.digest for blob in old.disk}),
        told["seconds"],
    )


def _built(bench: Bench, image: Path) -> Path:
    """The artifact of `image`."""
    place = bench.work / "versions" / image.name
    clean(place)
    return artifact_of(bench, image, place)


def _pull(reference: str, store: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "runner", "pull", "--json", "--plain-http", reference]
    environment = {**os.environ, "ROOTDISK_STORE": str(store)}
    start = os.times().elapsed
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return {**json.loads(done.stdout)[0], "seconds": os.times().elapsed - start}


def _artifact(layout: Path) -> tuple[ChunkIndex, ArtifactManifest]:
    with open_artifact(parse_reference(f"oci:{layout}:1"), Platform.host()) as artifact:
        return artifact.index, artifact.roles
