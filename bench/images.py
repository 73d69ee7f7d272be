"""Source images for measuring, made reproducibly: an OCI layout each, the same bytes on every machine.

    many    300,000 small files in three layers (by `count`)
    big     few large files, `size` bytes of half-compressible data

The application image is the demo's own (./quickstart makes it).
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

from isal import igzip


def many(folder: Path, count: int) -> str:
    """An OCI layout in `folder` of `count` files of 0–8 KiB; its reference."""
    words = random.Random(1)
    text = bytes(words.choices(b"etaoinshrdlu \n{}();=", k=1 << 16))

    def files(layer: int) -> Iterator[tuple[str, bytes]]:
        for number in range(layer, count, 3):
            start = words.randrange(1 << 15)
            yield (
                f"data/{number % 97:02}/{number // 97 % 89:02}/file-{number}.txt",
                text[start : start + words.randrange(8192)],
            )

    return _layout(folder, [files(layer) for layer in range(3)])


def big(folder: Path, size: int) -> str:
    """An OCI layout in `folder` of 32 MiB files, `size` bytes in all, half of each random, half text; its reference."""
    source = random.Random(2)
    part = 32 << 20

    def files() -> Iterator[tuple[str, bytes]]:
        for number in range(max(1, size // part)):
            pages = (source.randbytes(2048) + b"%08d the quick brown fox\n" % number * 80 for _ in range(part >> 12))
            yield f"big/{number:04}.bin", b"".join(page[:4096] for page in pages)

    return _layout(folder, [files()])


def _layout(folder: Path, layers: list[Iterator[tuple[str, bytes]]]) -> str:
    if not (folder / "index.json").exists():
        blobs = folder / "blobs" / "sha256"
        blobs.mkdir(parents=True, exist_ok=True)
        descriptors, diff_ids = [], []
        for files in layers:
            descriptor, diff_id = _layer(blobs, files)
            descriptors.append(descriptor)
            diff_ids.append(diff_id)
        config = {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "config": {"Cmd": ["/x"]},
        }
        config_descriptor = _blob(blobs, "application/vnd.oci.image.config.v1+json", json.dumps(config).encode())
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config_descriptor,
            "layers": descriptors,
        }
        entry = _blob(blobs, manifest["mediaType"], json.dumps(manifest).encode())
        entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return f"oci:{folder}:latest"


def _layer(blobs: Path, files: Iterator[tuple[str, bytes]]) -> tuple[dict[str, object], str]:
    raw = hashlib.sha256()
    path = blobs / "new"

    class Hashed(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            view = bytes(data)  # type: ignore[call-overload]
            raw.update(view)
            return int(compressed.write(view))

    with (
        path.open("wb") as out,
        igzip.IGzipFile(fileobj=out, mode="wb", compresslevel=2, mtime=0) as compressed,
        io.BufferedWriter(Hashed(), 1 << 20) as buffered,
        tarfile.open(fileobj=buffered, mode="w|") as tar,
    ):
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            tar.addfile(info, io.BytesIO(data))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    path.rename(blobs / digest)
    media_type = "application/vnd.oci.image.layer.v1.tar+gzip"
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}, f"sha256:{raw.hexdigest()}"


def _blob(blobs: Path, media_type: str, data: bytes) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}
