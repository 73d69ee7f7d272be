"""An artifact's ways: from a registry to a verified raw disk, and from an OCI layout into a registry."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from bench import peers
from bench.link import link
from bench.measure import Contender
from bench.peers import Missing
from bench.rows import Row
from bench.work import TOOL, Bench, Same, clean, compared, same
from tests.support.registry import RunningRegistry

PULL = Row("registry → raw disk", "oras pull + zstd -d", {"wall": 0.35, "peak": 150e6})
SYNCED = replace(
    PULL,
    work="registry → synced raw disk",
    against="oras pull + zstd -d + sync",
    goals={"wall": 0.5, "peak": 150e6},
)
LINKED = replace(PULL, work="registry → raw disk, 100 MB/s", goals={"wall": 0.45, "peak": 150e6})
PUSH = Row("layout → registry", "oras cp", {"wall": 1, "cpu": 4})
LINK_BYTES_PER_S, LINK_LATENCY_S = 100e6, 0.01


def rows(bench: Bench, image: Path) -> list[Row]:
    """All, of the artifact of `image`."""
    try:
        oras = str(bench.peers.oras())
        artifact = artifact_of(bench, image)
        with peers.registry(bench.work / "registry", artifact, "1") as registry:
            with link(registry.name, LINK_BYTES_PER_S, LINK_LATENCY_S) as slow:
                pulls = [
                    _pull(bench, row, f"{name}/app:1", oras)
                    for row, name in ((PULL, registry.name), (SYNCED, registry.name), (LINKED, slow))
                ]
            return [*pulls, _push(bench, artifact, registry, oras)]
    except Missing as err:
        return [replace(row, missing=str(err)) for row in (PULL, SYNCED, LINKED, PUSH)]


def artifact_of(bench: Bench, image: Path, place: Path | None = None, *options: str) -> Path:
    """The artifact of `image` as tag 1 of an OCI layout, built once with the options of `imagetool build`."""
    artifact = place or bench.work / "artifacts" / image.name
    if artifact.exists():
        return artifact
    bench.fresh()()
    command = [*TOOL, "build", *options, f"oci:{image}:latest", f"oci:{artifact}:1"]
    environment = {**os.environ, "ROOTDISK_CACHE": str(bench.cache)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return artifact


def _pull(bench: Bench, row: Row, reference: str, oras: str) -> Row:
    store, peer = bench.work / "store", bench.work / "pulled"
    name = "rootfs.ext4"
    script = f'"$1" pull --plain-http -o "$2" "$3" && cat "$2/{name}".zst* | zstd -dq --sparse -o "$2/{name}"'
    script += f' && sync "$2/{name}"' * (row is SYNCED)
    try:
        bench.peers.installed("zstd")
        return compared(
            bench,
            row,
            Contender(
                "ours",
                [sys.executable, "-m", "runner", "pull", "--plain-http", reference],
                lambda: clean(store),
                {"ROOTDISK_STORE": str(store)},
            ),
            Contender(
                row.against, ["sh", "-c", script, "sh", oras, str(peer), reference], lambda: clean(peer), {"HOME": "/"}
            ),
            lambda: same(next((store / "disks").glob("*.raw")), peer / name),
        )
    finally:
        clean(store, peer)


def _push(bench: Bench, artifact: Path, registry: RunningRegistry, oras: str) -> Row:
    """Into a repository of its own each, emptied before each run."""
    repositories = registry.root / "data/docker/registry/v2/repositories"
    copy = [*TOOL, "copy", "--plain-http", f"oci:{artifact}:1", f"{registry.name}/ours:1"]
    cp = [oras, "cp", "--from-oci-layout", "--to-plain-http", f"{artifact}:1", f"{registry.name}/theirs:1"]

    def check() -> Same:
        tags = [repositories / name / "_manifests/tags/1/current/link" for name in ("ours", "theirs")]
        return Same("yes") if len({tag.read_bytes() for tag in tags}) == 1 else Same("NO: other digests", fault=True)

    return compared(
        bench,
        PUSH,
        Contender("ours", copy, lambda: clean(repositories / "ours")),
        Contender(PUSH.against, cp, lambda: clean(repositories / "theirs"), {"HOME": "/"}),
        check,
    )
