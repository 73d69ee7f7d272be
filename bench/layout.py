"""An OCI layout written from tars: gzip layers without times, so equal tars give equal images."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from isal import igzip

from imagetool.demo.image import write_layer
from rootdisk.oci.documents import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Platform

TAG = "latest"

Writer = Callable[[IO[bytes]], None]  # writes a layer's tar


def make(folder: Path, layers: Sequence[Writer], config: Mapping[str, Any], base: Path | None = None) -> None:
    """An image of `layers` in `folder`, there only when complete; on top of the layers but the last of the image `base`."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    blobs = partial / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    made = _below(base, blobs) if base else []
    for layer in layers:
        descriptor, diff_id = write_layer(blobs, layer)
        made.append((descriptor.to_json(), str(diff_id)))
    platform = Platform.host()
    image = {
        "os": platform.os,
        "architecture": platform.architecture,
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in made]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _blob(blobs, OCI_CONFIG, image),
        "layers": [descriptor for descriptor, _ in made],
    }
    entry = {**_blob(blobs, OCI_MANIFEST, manifest), "annotations": {"org.opencontainers.image.ref.name": TAG}}
    (partial / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    (partial / "index.json").write_text(json.dumps(index))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def copied(folder: Path, number: int, out: IO[bytes]) -> None:
    """The tar of layer `number` of the image in `folder`."""
    manifest, _ = _read(folder)
    name = manifest["layers"][number]["digest"].removeprefix("sha256:")
    gzip: Any = igzip.IGzipFile
    with gzip(folder / "blobs" / "sha256" / name) as tar:
        shutil.copyfileobj(tar, out, 1 << 20)


def _below(base: Path, blobs: Path) -> list[tuple[dict[str, Any], str]]:
    """The layers of `base` but its last, their blobs linked."""
    manifest, config = _read(base)
    kept = list(zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True))[:-1]
    for descriptor, _ in kept:
        name = descriptor["digest"].removeprefix("sha256:")
        os.link(base / "blobs" / "sha256" / name, blobs / name)
    return kept


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and config of the one image in `folder`."""

    def blob(descriptor: Mapping[str, Any]) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((folder / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes())
        return value

    manifest = blob(json.loads((folder / "index.json").read_bytes())["manifests"][0])
    return manifest, blob(manifest["config"])


def _blob(blobs: Path, media_type: str, value: Mapping[str, Any]) -> dict[str, Any]:
    data = json.dumps(value).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}
