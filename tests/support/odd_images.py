"""OCI layouts piece by piece, for images that are unlike what our own writers make."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rootdisk.oci.documents import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Digest
from tests.support.tars import END

GZIP_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
AMD64: dict[str, object] = {"os": "linux", "architecture": "amd64"}
ARM64: dict[str, object] = {"os": "linux", "architecture": "arm64"}


class Layout:
    """An OCI layout directory. Every method gives a descriptor as JSON; further keys go into it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def blob(self, data: object, media_type: str, **more: object) -> dict[str, Any]:
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()
        digest = Digest.of(raw)
        (self.path / "blobs/sha256" / digest.hex).write_bytes(raw)
        return {"mediaType": media_type, "digest": str(digest), "size": len(raw), **more}

    def image(
        self,
        *layers: bytes,
        top: dict[str, object] | None = None,
        config: dict[str, object] | None = None,
        config_type: str = OCI_CONFIG,
        layer: dict[str, object] | None = None,
        packed: Callable[[bytes], bytes] = gzip.compress,
        **more: object,
    ) -> dict[str, Any]:
        """An image of tars without their ends; `top` and `config` go into its config, `layer` into each descriptor."""
        tars = [tar + END for tar in layers]
        rootfs = {"type": "layers", "diff_ids": [str(Digest.of(tar)) for tar in tars]}
        document = {**AMD64, "config": config or {}, "rootfs": rootfs, **(top or {})}
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.blob(document, config_type),
            "layers": [{**self.blob(packed(tar), GZIP_LAYER), **(layer or {})} for tar in tars],
        }
        return self.blob(manifest, OCI_MANIFEST, **more)

    def index(self, *manifests: dict[str, Any], **more: object) -> dict[str, Any]:
        return self.blob({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(manifests)}, OCI_INDEX, **more)

    def named(self, top: dict[str, Any], name: str = "t") -> str:
        """Give `top` a name in the layout; the reference to it."""
        top = {**top, "annotations": {"org.opencontainers.image.ref.name": name}}
        value = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [top]}
        (self.path / "index.json").write_text(json.dumps(value))
        return f"oci:{self.path}:{name}"
