"""Explain why two builds differ: changed inputs by name, their effects, and the bytes to pull.

Names of variables are shown, never their values.
"""

from __future__ import annotations

import contextlib
import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from imagetool.build import derivation
from imagetool.config import schema
from imagetool.config.images import Image
from imagetool.look import inspection
from rootdisk.artifact.published import PublishedArtifact, open_artifact
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import Reference, parse_reference
from rootdisk.oci.repository import RegistryOptions

# Effects of inputs that no key of images.toml decides. The schema has the effects of the others.
OTHER_EFFECTS = {
    "layout": "everything",
    "writer": "everything",
    "cmdline": "the artifact's config alone",
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
    """Describe from which layer on two images differ. Layers before that need no work."""
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    if same == len(new):
        removed = len(old) - same
        return f"its {same} layers are the same" + (
            f", and {removed} above them are gone" if removed else ", only its config differs"
        )
    kept = {0: "no layer is the same", 1: "layer 1 is the same"}.get(same, f"layers 1 to {same} are the same")
    others = f"layer {same + 1} is" if same + 1 == len(new) else f"layers {same + 1} to {len(new)} are"
    return f"{kept}, {others} not"


class Between(NamedTuple):
    """The differences between two artifacts: inputs, counts of files and chunks, and bytes to fetch."""

    a: str
    b: str
    inputs: list[derivation.Change]
    layers: str  # as text; "" if the source is unchanged
    files: dict[str, int]  # added, removed, changed
    chunks: dict[str, int]  # new, reused; holes are neither
    pull_bytes: int
    whole_bytes: int  # if nothing can be reused


def between(a: str, b: str, platform: Platform, options: RegistryOptions) -> Between:
    """Compare artifacts `a` and `b`: references, or names of images in ./images.toml."""
    first, second = (open_artifact(*named(text, platform, options)) for text in (a, b))
    with first as old, second as new:
        files = Counter(
            change.kind
            for change in inspection.compared(inspection.InspectedDisk.of(old), inspection.InspectedDisk.of(new))
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
    """Return the size of manifest, config and the blobs beside the disk that `old` does not have."""
    if old is not None and old.descriptor.digest == new.descriptor.digest:
        return 0
    old_blobs = _small_blobs(old) if old is not None else {}
    return new.descriptor.size + sum(size for digest, size in _small_blobs(new).items() if digest not in old_blobs)


def _small_blobs(side: PublishedArtifact) -> dict[Digest, int]:
    return {blob.digest: blob.size for blob in (side.roles.config, *side.roles.extras)}


def words(difference: Between) -> Iterator[str]:
    """Yield the lines for people."""
    if difference.a == difference.b:
        yield f"the same: {difference.a}"
        return
    yield from lines(difference.inputs, difference.layers)
    if not difference.inputs:
        yield "no input of the disk differs: the name of the source or the version of rootdisk does"
    yield "files: " + ", ".join(f"{count} {kind}" for kind, count in difference.files.items())
    yield f"chunks: {difference.chunks['new']} new, {difference.chunks['reused']} reused"
    yield f"to pull: {difference.pull_bytes / 1e6:.1f} MB of {difference.whole_bytes / 1e6:.1f} MB"


def named(text: str, platform: Platform, options: RegistryOptions) -> tuple[Reference, Platform, RegistryOptions]:
    """Parse a reference, or find what the image `text` in images.toml is published as; with how to speak to its registry.

    Raises:
        BadInput: It is not a reference, or images.toml has a name that is nearly the same.
    """
    from imagetool.config import images as config

    described = config.file_named()
    if not described.exists():
        return parse_reference(text), platform, options
    if ":" in text or "/" in text:
        reference = parse_reference(text)
        if reference.kind != "registry":
            return reference, platform, options
        with contextlib.suppress(RootdiskError):  # a file that is wrong says nothing about a reference
            for image in config.load(described):
                if any(place.registry == reference.registry for place in image.publish):
                    return reference, platform, _options(image, options)
        return reference, platform, options
    images = config.load(described)
    known = {image.group: (image, platform) for image in images if image.group}
    known |= {image.name: (image, image.platform) for image in images}
    if text in known:
        image, wanted = known[text]
        return parse_reference(f"{image.publish[0].place}:{image.version}"), wanted, _options(image, options)
    near = difflib.get_close_matches(text, known, n=1)
    if near:
        raise BadInput(f"{described.name} has no image {text}", f"did you mean {near[0]}?")
    return parse_reference(text), platform, options


def _options(image: Image, options: RegistryOptions) -> RegistryOptions:
    """The options of the command line, and what images.toml says where they say nothing."""
    return options._replace(plain_http=options.plain_http or image.plain_http, ca_file=options.ca_file or image.ca_file)
