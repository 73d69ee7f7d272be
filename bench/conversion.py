"""Measure the way from an OCI image to a disk and to an artifact, against other tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench import peers
from bench.measure import Contender
from bench.peers import Missing
from bench.rows import Row
from bench.work import Bench, Same, clean, compared, same, unpacked

RSS_BYTES = 180_000_000
OURS = (".rootdisk",)  # what we add to a disk that boots


def disk_by_microsandbox(bench: Bench, image: Path) -> Row:
    """Both pull from the same registry on loopback."""
    work, against = "registry → ext4", "microsandbox, flat"
    goals = {"wall": 0.38}
    try:
        msb = bench.peers.microsandbox()
        with peers.registry(bench.work / "registry", image) as registry:
            home, disk = bench.work / "home", bench.work / "ours.ext4"
            reference = f"{registry.name}/app:latest"

            def homeless() -> None:
                clean(home)
                home.mkdir()

            pull = [str(msb), "pull", "--insecure", "--quiet", "--materialize", "flat", reference]
            return compared(
                bench,
                Row(work, against, goals),
                bench.ours("ours", ["disk", "--plain", "--plain-http", reference, str(disk)], disk),
                Contender(against, pull, homeless, {"HOME": str(home)}),
                lambda: same(disk, next(home.glob(".microsandbox/cache/flat/blobs/*.raw"))),
            )
    except Missing as err:
        return Row(work, against, goals, missing=str(err))


def disk_by_umoci(bench: Bench, image: Path) -> Row:
    """umoci unpacks as root, mke2fs makes the file system from the folder."""
    disk, peer = bench.work / "ours.ext4", bench.work / "peer"
    return _by_umoci(
        Row("OCI → ext4", "umoci + mke2fs -d", {"wall": 0.2}),
        bench,
        bench.ours("ours", ["disk", "--plain", f"oci:{image}:latest", str(disk)], disk),
        ["sh", str(peers.UNPACK), f"{image}:latest", str(peer), "disk"],
        lambda: same(disk, peer / "disk.ext4"),
    )


def artifact_by_umoci(bench: Bench, image: Path, work: str, goals: Mapping[str, float]) -> Row:
    """`goals` are those of the time. Ours adds init, kernel, index and manifest to what is compared: disk, compressed, in an OCI layout."""
    artifact, peer = bench.work / "artifact", bench.work / "peer"
    return _by_umoci(
        Row(work, "umoci + mke2fs -d + zstd -3 -T0", {**goals, "peak": RSS_BYTES}),
        bench,
        bench.ours("ours", ["build", f"oci:{image}:latest", f"oci:{artifact}:1"], artifact),
        ["sh", str(peers.UNPACK), f"{image}:latest", str(peer), "zst"],
        lambda: same(unpacked(artifact, bench.work / "ours.ext4"), peer / "disk.ext4", OURS),
    )


def disk_limit(bench: Bench, image: Path) -> Row:
    """Write and sync as many bytes as the image has, from the page cache: who writes as much can not be quicker."""
    blobs = sorted((image / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    out = bench.work / "limit"
    command = ["dd", f"if={blobs[-1]}", f"of={out}", "bs=1M", "conv=fsync", "status=none"]
    (ours,) = bench.measured(Contender("dd", command, lambda: clean(out)))
    clean(out)
    return Row(f"the disk: write and sync {blobs[-1].stat().st_size / 1e6:,.0f} MB", "", {}, ours)


def _by_umoci(row: Row, bench: Bench, ours: Contender, command: Sequence[str], check: Callable[[], Same]) -> Row:
    peer = bench.work / "peer"
    try:
        bench.peers.installed("umoci", "mke2fs", *(("zstd",) if command[-1] == "zst" else ()))
    except Missing as err:
        return replace(row, missing=str(err))
    try:
        return compared(bench, row, ours, Contender(row.against, command, lambda: clean(peer)), check)
    finally:
        clean(peer)
