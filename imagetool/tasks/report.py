"""Report what the last build of each image made: for people who read the page of a CI job, and for programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from imagetool.build.receipts import BuiltReceipt, PublishedReceipt, SourceReceipt
from imagetool.config.images import Image
from imagetool.receipts import load
from imagetool.tasks.places import Places
from rootdisk.errors import RootdiskError


class Built(NamedTuple):
    """The last build of an image; sizes are bytes. An empty digest means that it is not built or published yet."""

    name: str
    platform: str
    digest: str = ""
    key: str = ""
    targets: tuple[str, ...] = ()
    source: str = ""
    source_digest: str = ""
    found: bool = False  # it was in a target, so nothing was built
    disk_size: int = 0
    compressed: int = 0
    chunks_new: int = 0
    chunks_reused: int = 0

    @classmethod
    def of(cls, places: Places, image: Image) -> Built:
        """Read the image's receipts; what cannot be read counts as not built."""
        try:
            source = load(places.receipt(image, "source"), SourceReceipt)
            disk = load(places.receipt(image, "disk"), BuiltReceipt)
            published = load(places.receipt(image, "published"), PublishedReceipt)
        except RootdiskError:
            return cls(image.name, str(image.platform))
        return cls(
            image.name,
            str(image.platform),
            str(published.digest),
            disk.key,
            published.targets,
            source.reference,
            str(source.digest),
            bool(disk.published),
            disk.size,
            disk.compressed,
            disk.chunks_new,
            disk.chunks_reused,
        )


def markdown(images: Iterable[Built]) -> str:
    """Return a table and the digests, in the Markdown of GitHub and GitLab."""
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
