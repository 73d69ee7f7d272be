"""Why a build is another one: which inputs have changed, by name, what that changes, and what it costs.

Values of variables are never in it, only their names.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from imagetool.build import derivation
from imagetool.config import schema
from imagetool.look import inspection
from rootdisk.artifact.published import PublishedArtifact, open_artifact
from rootdisk.errors import BadInput
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import Reference, parse_reference
from rootdisk.oci.repository import RegistryOptions

# What inputs change that no key of images.toml decides; the schema says the same of those that keys decide.
OTHER_EFFECTS = {
    "layout": "everything",
    "writer": "everything",
    "compressor": "every compressed chunk",
    "guest.init": "/.rootdisk/init and the initramfs",
    "guest.initramfs": "the initramfs's blob",
    "recipe.spared": "owners of /.rootdisk, which stays root's",
}


def lines(changes: Sequence[derivation.Change], layers: str) -> Iterator[str]:
    """Yield each change and its effect; `layers` is what `compared_layers` says of the source."""
    effects = {**schema.effects(), **OTHER_EFFECTS}
    for change in changes:
        effect = next((words for name, words in effects.items() if f"{change.name}.".startswith(f"{name}.")), "")
        yield f"{change} ({effect})" if effect else str(change)
        if change.name == "source" and layers:
            yield f"  {layers}"


def compared_layers(old: Sequence[str], new: Sequence[str]) -> str:
    """From which layer on two images differ: what comes before costs nothing."""
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    if same == len(new):
        gone = len(old) - same
        return f"its {same} layers are the same" + (
            f", and {gone} above them gone" if gone else ", only its config is not"
        )
    kept = {0: "no layer is the same", 1: "layer 1 is the same"}.get(same, f"layers 1 to {same} are the same")
    others = f"layer {same + 1} is" if same + 1 == len(new) else f"layers {same + 1} to {len(new)} are"
    return f"{kept}, {others} not"


class Between(NamedTuple):
    """From one artifact to another: changed inputs; files and chunks by what has become of them; bytes to fetch."""

    a: str
    b: str
    inputs: list[derivation.Change]
    layers: str  # in words; "" where the source is the same
    files: dict[str, int]  # added, removed, changed
    chunks: dict[str, int]  # new, reused; holes are neither
    pull_bytes: int
    whole_bytes: int  # without anything to reuse


def between(a: str, b: str, platform: Platform, options: RegistryOptions) -> Between:
    """What leads from artifact `a` to `b`; each is a reference, or the name of an image in ./images.toml."""
    first, second = (open_artifact(*_reference(text, platform), options) for text in (a, b))
    with first as old, second as new:
        files = Counter(
            change.kind for change in inspection.compared(inspection.Found.of(old), inspection.Found.of(new))
        )
        have = {chunk.sha256 for chunk in old.index.chunks if not chunk.zero}
        chunks = [chunk for chunk in new.index.chunks if not chunk.zero]
        missing = {chunk.sha256: chunk.blob_length for chunk in chunks if chunk.sha256 not in have}
        fresh = sum(chunk.sha256 in missing for chunk in chunks)
        layers = [_layers_of(side) for side in (old, new)]
        return Between(
            str(old.descriptor.digest),
            str(new.descriptor.digest),
            derivation.explain(old.config.inputs, new.config.inputs),
            compared_layers(*layers) if layers[0] != layers[1] else "",
            {kind: files[kind] for kind in ("added", "removed", "changed")},
            {"new": fresh, "reused": len(chunks) - fresh},
            sum(missing.values()) + _other_bytes(old, new),
            new.roles.disk_bytes + _other_bytes(None, new),
        )


def _layers_of(side: PublishedArtifact) -> list[str]:
    return [layer.diff_id for layer in side.config.layers if not layer.diff_id.startswith("rootdisk:")]


def _other_bytes(old: PublishedArtifact | None, new: PublishedArtifact) -> int:
    """Of manifest, config, chunk index, kernel and initramfs, as far as `old` has not the same."""
    if old is not None and old.descriptor.digest == new.descriptor.digest:
        return 0
    had = _small_blobs(old) if old is not None else {}
    return new.descriptor.size + sum(size for digest, size in _small_blobs(new).items() if digest not in had)


def _small_blobs(side: PublishedArtifact) -> dict[Digest, int]:
    roles = side.roles
    blobs = (roles.config, roles.chunks, roles.kernel, roles.initramfs)
    return {blob.digest: blob.size for blob in blobs if blob is not None}


def words(found: Between) -> Iterator[str]:
    """The same, for people."""
    if found.a == found.b:
        yield f"the same: {found.a}"
        return
    yield from lines(found.inputs, found.layers)
    if not found.inputs:
        yield "no input of the disk differs: the source's name or rootdisk's version does"
    yield "files: " + ", ".join(f"{count} {kind}" for kind, count in found.files.items())
    yield f"chunks: {found.chunks['new']} new, {found.chunks['reused']} reused"
    yield f"to pull: {found.pull_bytes / 1e6:.1f} MB of {found.whole_bytes / 1e6:.1f} MB"


def _reference(text: str, platform: Platform) -> tuple[Reference, Platform]:
    """`text`, or where the image of that name in ./images.toml is published first; and for which platform."""
    from imagetool.config import images as config

    described = config.file_named()
    if ":" in text or "/" in text or not described.exists():
        return parse_reference(text), platform
    images = config.load(described)
    known = {image.group: (image, platform) for image in images if image.group}
    known |= {image.name: (image, image.platform) for image in images}
    if text in known:
        image, wanted = known[text]
        return parse_reference(f"{image.publish[0].place}:{image.version}"), wanted
    near = difflib.get_close_matches(text, known, n=1)
    if near:
        raise BadInput(f"{described.name} has no image {text}", f"did you mean {near[0]}?")
    return parse_reference(text), platform
