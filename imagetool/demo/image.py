"""The demo's source image, put together as an OCI layout (image-spec image-layout.md)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from imagetool.demo import debian, layers
from imagetool.targets.layout import LayoutTarget
from rootdisk.oci.documents import OCI_CONFIG, OCI_MANIFEST, Descriptor, Digest, Manifest, Platform, canonical_json
from rootdisk.system.scratch import scratch

VERSION = 1  # to bump when the image is made otherwise; the task's recipe
TAG = "latest"
OWNER = 1000  # of the app's files; no user of the image has it

_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_README = b"The demo of rootdisk. This directory shall belong to the user sandbox, which the image does not have.\n"


def make(layout: Path, platform: Platform | None = None) -> Digest:
    """Make the image for `platform` (default: this machine's) in the OCI layout `layout`; its manifest's digest.

    An image that is there is replaced when the new one is complete. Errors as debian.install.
    """
    platform = platform or Platform.host()
    layout.parent.mkdir(parents=True, exist_ok=True)
    with scratch(layout.parent, ".demo-") as work:
        work.chmod(0o755)  # mmdebstrap's user namespace reads it
        new = work / "layout"
        digest = _write(new, work, platform)
        if layout.exists():
            shutil.rmtree(layout)
        new.rename(layout)
    return digest


def _write(layout: Path, work: Path, platform: Platform) -> Digest:
    start = time.time()
    snapshots = debian.install(work, platform.architecture)
    blobs = work / "layers"
    blobs.mkdir()
    app = {"sandbox/app.py": (Path(__file__).parent / "app.py").read_bytes(), "sandbox/data/README": _README}
    with snapshots.base.open("rb") as base, snapshots.python.open("rb") as python:
        clock = layers.Clock.of(python, start)
        written = [
            write_layer(blobs, lambda out: layers.base_layer(_rewound(base), out, clock)),
            write_layer(blobs, lambda out: layers.next_layer(_rewound(base), _rewound(python), out, clock)),
            write_layer(blobs, lambda out: layers.app_layer(app, OWNER, out, clock.newest)),
        ]
    with contextlib.closing(LayoutTarget(layout)) as target:
        for descriptor, _ in written:
            target.push_blob(descriptor, blobs / descriptor.digest.hex)  # a link
        raw = canonical_json(_config(platform, [diff_id for _, diff_id in written]))
        config = Descriptor(OCI_CONFIG, Digest.of(raw), len(raw))
        target.push_blob(config, raw)
        manifest = Manifest(OCI_MANIFEST, "", config, tuple(descriptor for descriptor, _ in written), {})
        return target.push_manifest(canonical_json(manifest.to_json()), OCI_MANIFEST, (TAG,))


def _config(platform: Platform, diff_ids: list[Digest]) -> dict[str, Any]:
    return {
        "os": platform.os,
        "architecture": platform.architecture,
        "config": {
            "Entrypoint": ["python3", "/sandbox/app.py"],
            "Env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "DEMO_IMAGE=a variable of the image",
            ],
            "WorkingDir": "/sandbox",
        },
        "rootfs": {"type": "layers", "diff_ids": [str(diff_id) for diff_id in diff_ids]},
        "history": [
            {"created_by": f"mmdebstrap --variant=minbase {debian.SUITE}"},
            {"created_by": f"apt-get install {debian.PACKAGES}"},
            {"created_by": "the demo's files in /sandbox"},
        ],
    }


def write_layer(blobs: Path, write: Callable[[IO[bytes]], None]) -> tuple[Descriptor, Digest]:
    """A gzip layer of the tar that `write` writes: its descriptor and its diff ID."""
    from isal import igzip

    partial = blobs / "partial"
    with partial.open("wb") as file:
        # No name and no time in gzip's header, so equal tars are equal blobs.
        gzip: Any = igzip.IGzipFile
        with gzip(filename="", mode="wb", compresslevel=2, fileobj=file, mtime=0) as packed:
            tar = _Hashing(packed)
            write(tar)  # type: ignore[arg-type]  # tarfile's stream mode needs write() only
        file.flush()
        os.fsync(file.fileno())
    with partial.open("rb") as file:
        digest = Digest("sha256", hashlib.file_digest(file, "sha256").hexdigest())
    size = partial.stat().st_size
    partial.rename(blobs / digest.hex)
    return Descriptor(_LAYER, digest, size), Digest("sha256", tar.sha256.hexdigest())


class _Hashing:
    """Passes writes on and hashes them."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write, hash and count `data`."""
        self.sha256.update(data)
        return self.file.write(data)


def _rewound(file: IO[bytes]) -> IO[bytes]:
    file.seek(0)
    return file
