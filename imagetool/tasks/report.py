"""What the last build made, of each image: for people who read a CI job's page, and for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Built(NamedTuple):
    """One image; sizes are bytes. An empty digest: it is not built or published yet."""

    name: str
    platform: str
    digest: str = ""
    key: str = ""
    targets: tuple[str, ...] = ()
    source: str = ""
    source_digest: str = ""
    found: bool = False  # under its key in a target, so that nothing was built
    disk_size: int = 0
    compressed: int = 0
    chunks_new: int = 0
    chunks_reused: int = 0


def of_receipts(name: str, platform: str, receipts: Mapping[str, Mapping[str, Any]]) -> Built:
    """From the receipts that there are: source, disk, published."""
    source, disk, published = (receipts.get(one) for one in ("source", "disk", "published"))
    if source is None or disk is None or published is None:
        return Built(name, platform)
    chunks = disk.get("chunks", {})
    return Built(
        name,
        platform,
        published["digest"],
        disk["key"],
        tuple(published["targets"]),
        source["reference"],
        source["digest"],
        "published" in disk,
        disk.get("size", 0),
        sum(blob["size"] for blob in disk.get("blobs", ())),
        chunks.get("new", 0),
        chunks.get("reused", 0),
    )


def markdown(images: Iterable[Built]) -> str:
    """A table and the digests, as GitHub and GitLab show them."""
    rows, digests = [], []
    for image in images:
        if not image.digest:
            rows.append(f"| {image.name} | {image.platform} | not built | | | |")
            continue
        how = (
            ("found in the target", "", "", "")
            if image.found
            else (
                "built here",
                f"{image.disk_size / (1 << 20):.0f} MiB",
                f"{image.compressed / 1e6:.1f} MB",
                f"{image.chunks_new} new, {image.chunks_reused} reused",
            )
        )
        rows.append(f"| {' | '.join((image.name, image.platform, *how))} |")
        digests += [f"- `{target}` is `{image.digest}`" for target in image.targets]
    head = "| image | platform | disk | size | compressed | chunks |\n|---|---|---|---|---|---|"
    return "\n".join(("### Root disks", "", head, *rows, *(("", *digests) if digests else ()), ""))
