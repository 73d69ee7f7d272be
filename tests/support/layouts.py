"""OCI layouts for tests, made by hand."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

from rootdisk.oci.documents import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Digest

_SUFFIX = {"gzip": "+gzip", "zstd": "+zstd", "plain": ""}


def write_layout(
    folder: Path,
    tag: str,
    layers: list[bytes],
    config: dict[str, Any] | None = None,
    compression: str = "gzip",
    architecture: str = "amd64",
) -> Digest:
    """An image of plain tars `layers` as the OCI layout `folder`; the manifest's digest. `config` is its inner `config`."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def blob(data: bytes, media_type: str) -> dict[str, Any]:
        digest = Digest.of(data)
        (blobs / digest.hex).write_bytes(data)
        return {"mediaType": media_type, "digest": str(digest), "size": len(data)}

    packers: dict[str, Callable[[bytes], bytes]] = {
        "gzip": lambda d: gzip.compress(d, 1, mtime=0),
        "zstd": zstandard.compress,
        "plain": bytes,
    }
    pack = packers[compression]
    document = {
        "architecture": architecture,
        "os": "linux",
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer)) for layer in layers]},
        "history": [{"created_by": f"layer {n}"} for n in range(len(layers))],
    }
    layer_type = "application/vnd.oci.image.layer.v1.tar" + _SUFFIX[compression]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": blob(json.dumps(document).encode(), OCI_CONFIG),
        "layers": [blob(pack(layer), layer_type) for layer in layers],
    }
    entry = blob(json.dumps(manifest).encode(), OCI_MANIFEST)
    digest = Digest.parse(entry["digest"])
    old = folder / "index.json"
    manifests = json.loads(old.read_bytes())["manifests"] if old.exists() else []
    key = "org.opencontainers.image.ref.name"
    manifests = [m for m in manifests if m.get("annotations", {}).get(key) != tag]
    manifests.append({**entry, "annotations": {key: tag}, "platform": {"os": "linux", "architecture": architecture}})
    old.write_text(json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return digest
