"""Measure the cost of a build by size of the image: in files, and in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.images import Images
from bench.rows import Point
from bench.work import Bench, clean


def points(bench: Bench, images: Images, files: Sequence[int], sizes: Sequence[int]) -> list[Point]:
    """Build each image once, with its pages in the cache."""
    return [_point(bench, "files", count, images.many(count)) for count in files] + [
        _point(bench, "bytes", size, images.big(size)) for size in sizes
    ]


def _point(bench: Bench, unit: str, size: int, image: Path) -> Point:
    for blob in (image / "blobs" / "sha256").iterdir():
        with blob.open("rb") as file:
            while file.read(1 << 20):
                pass
    artifact = bench.work / "artifact"
    command = ["build", f"oci:{image}:latest", f"oci:{artifact}:1"]
    (found,) = bench.measured(bench.ours("ours", command, artifact))
    clean(artifact)
    return Point(unit, size, found.runs[0].wall_s, found.runs[0].cpu_s, found.peak_bytes)
