"""Source images of our own writing, and skopeo."""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard

from imagetool.sources.open import SourceImage
from imagetool.targets.open import open_target
from rootdisk.oci.documents import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Digest,
    Index,
    Manifest,
    Platform,
    canonical_json,
)
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import verified

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")
needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")


def a_tar(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        data = hashlib.sha256(name.encode()).digest() * 5000
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


TARS = [a_tar("one"), a_tar("two"), a_tar("one")]  # a layer that is there twice


def write_image(
    layout: Path,
    tag: str,
    platform: Platform = AMD64,
    *,
    zstd: bool = True,
    layer_type: str = "",
    variant: bool = False,
) -> Descriptor:
    """Layers plain, gzip and zstd; returns the manifest's descriptor. `variant`: the config names the platform's."""
    target = open_target(parse_reference(f"oci:{layout}"))
    packed = [
        ("application/vnd.oci.image.layer.v1.tar", TARS[0]),
        ("application/vnd.oci.image.layer.v1.tar+gzip", gzip.compress(TARS[1], mtime=0)),
        ("application/vnd.oci.image.layer.v1.tar+zstd", zstandard.compress(TARS[2])),
    ]
    if not zstd:
        packed[2] = packed[0]
    layers = []
    for media_type, data in packed:
        layers.append(Descriptor(layer_type or media_type, Digest.of(data), len(data)))
        target.push_blob(layers[-1], lambda data=data: iter([data]))  # type: ignore[misc]
    config_raw = canonical_json(
        {
            "os": platform.os,
            "architecture": platform.architecture,
            **({"variant": platform.variant} if variant else {}),
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(tar)) for tar in TARS]},
            "config": {"Env": ["A=1"], "Cmd": ["/bin/sh"], "WorkingDir": "/w", "User": "5", "Labels": {"l": "x"}},
        }
    )
    config = Descriptor(OCI_CONFIG, Digest.of(config_raw), len(config_raw))
    target.push_blob(config, lambda: iter([config_raw]))
    raw = canonical_json(Manifest(OCI_MANIFEST, "", config, tuple(layers), {}).to_json())
    target.push_manifest(raw, OCI_MANIFEST, (tag,) if tag else ())
    target.close()
    return Descriptor(OCI_MANIFEST, Digest.of(raw), len(raw), platform=platform)


def write_index(layout: Path, tag: str, *, zstd: bool = True) -> Digest:
    manifests = tuple(write_image(layout, "", platform, zstd=zstd) for platform in (AMD64, ARM64))
    target = open_target(parse_reference(f"oci:{layout}"))
    raw = canonical_json(Index(OCI_INDEX, manifests, {}).to_json())
    digest = target.push_manifest(raw, OCI_INDEX, (tag,))
    target.close()
    return digest


def check_content(image: SourceImage) -> None:
    """Each layer's blob is what its descriptor says, and inflates to its tar."""
    assert [layer.diff_id for layer in image.layers] == [Digest.of(tar) for tar in TARS]
    for layer, tar in zip(image.layers, TARS, strict=True):
        blob = b"".join(verified(layer.open(), layer.descriptor))
        if blob[:2] == b"\x1f\x8b":
            blob = gzip.decompress(blob)
        elif blob[:4] == b"\x28\xb5\x2f\xfd":
            blob = zstandard.ZstdDecompressor().decompressobj().decompress(blob)
        assert blob == tar
    assert image.config.env == ("A=1",)
    assert image.config.process.workdir == "/w"
    assert image.config.user == "5"


def skopeo(*arguments: str) -> bytes:
    done = subprocess.run(["skopeo", *arguments], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout
