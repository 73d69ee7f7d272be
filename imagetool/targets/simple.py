"""Write simple signatures: layers of the manifest that the tag `sha256-HEX.sig` names, as cosign 1 and 2 and skopeo do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from imagetool.sources.content import Content
from imagetool.targets.target import Target, push_blobs
from rootdisk.oci.documents import OCI_CONFIG, OCI_MANIFEST, Descriptor, Digest, Manifest, canonical_json
from rootdisk.oci.referrers import signatures_tag
from rootdisk.trust.simple import SIGNATURE

_NO_TIME = "0001-01-01T00:00:00Z"


def push_simple(
    target: Target,
    subject: Digest,
    added: Sequence[tuple[Descriptor, Content]],
    earlier: Manifest | None = None,
    mount: str = "",
    again: Callable[[Descriptor], bool] = lambda _: False,
) -> None:
    """Add layers to the simple signatures of `subject`; `earlier` is the manifest of those that are there.

    `mount` and `again` are those of `push_blobs`.
    """
    layers = list(earlier.layers) if earlier is not None else []
    known = {_key(layer) for layer in layers}
    layers += [layer for layer, _ in added if _key(layer) not in known]
    config = canonical_json(
        {
            "architecture": "",
            "config": {},
            "created": _NO_TIME,
            "history": [{"created": _NO_TIME} for _ in layers],
            "os": "",
            "rootfs": {"type": "layers", "diff_ids": [str(item.digest) for item in layers]},
        }
    )
    described = Descriptor(OCI_CONFIG, Digest.of(config), len(config))
    annotations = earlier.annotations if earlier is not None else {}
    manifest = Manifest(OCI_MANIFEST, "", described, tuple(layers), annotations)
    push_blobs(target, [(described, config), *added], mount, again=again)
    target.push_manifest(canonical_json(manifest.to_json()), OCI_MANIFEST, (signatures_tag(subject),))


def _key(layer: Descriptor) -> tuple[Digest, str]:
    return layer.digest, layer.annotations.get(SIGNATURE, "")
