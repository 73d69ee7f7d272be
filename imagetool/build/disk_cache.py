"""Packed disks by derivation key, under `cache`/disks/KEY/: what has been made once is not made again.

Beside the packed disk (imagetool/packing/reuse.py) lies disk.json, its receipt: all that an artifact's config says of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imagetool.build import derivation
from imagetool.build import disk as build
from imagetool.config.images import Image
from imagetool.packing.reuse import INDEX, KEYS, PARTS, blob_name
from imagetool.progress import Report, silent
from imagetool.receipts import Damaged, check_file, made_again, read_receipt, write_receipt
from imagetool.sources.open import SourceImage
from rootdisk import __version__
from rootdisk.artifact import zstd_frames
from rootdisk.durable import fsync_dir
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Digest

RECEIPT = "disk.json"
CHECKED = (INDEX, KEYS, PARTS)  # whose digests are in the receipt beside those of the blobs


def kept_disk(
    image: Image,
    inputs: Mapping[str, Any],
    init: Path,
    cache: Path,
    source: SourceImage | None = None,
    report: Report = silent,
    threads: int | None = None,
) -> tuple[Path, bool]:
    """The directory of the disk that `inputs` decide, and whether it was made now; `init` is the guest's.

    `source` is opened where it is not given and needed. Two processes may do the same: both get one disk.
    """
    key = derivation.derivation_key(inputs)
    disks = cache / "disks"
    found = disks / key
    if (found / RECEIPT).exists():
        try:
            check_disk(found)
            os.utime(found)
            return found, False
        except Damaged as err:
            made_again(err)
            _remove(found)
    disks.mkdir(parents=True, exist_ok=True)
    with _partial(disks) as work:
        with contextlib.nullcontext(source) if source is not None else build.opened(image) as opened:
            if str(opened.manifest_digest) != inputs["source"]:
                raise RootdiskError(f"{image.source}: changed while it was built", "start the build again")
            data = init.read_bytes()
            if str(Digest.of(data)) != inputs["guest"]["init"]:
                raise Damaged(f"{init} is damaged, or changed while it was built", "start the build again")
            disk = build.make_disk(image, opened, data, work, cache, report, threads)
        files = {name: str(Digest.of((work / name).read_bytes())) for name in CHECKED}
        receipt = {**_receipt(disk), "key": key, "inputs": dict(inputs), "files": files}
        write_receipt(work / RECEIPT, receipt, durable=True)
        try:
            work.rename(found)
        except OSError:
            if not (found / RECEIPT).exists():  # not another process's, but the rest of a removal that was killed
                shutil.rmtree(found)
                work.rename(found)
        fsync_dir(disks)
    return found, True


@contextlib.contextmanager
def _partial(disks: Path) -> Iterator[Path]:
    """A new directory, gone at the end unless it has been renamed; tempfile takes longer to load than this."""
    work = disks / f".partial-{os.urandom(8).hex()}"
    work.mkdir(mode=0o755)
    try:
        yield work
    finally:
        if work.exists():
            shutil.rmtree(work)


def is_kept(cache: Path, key: str) -> bool:
    """Whether there is a disk of that key, damaged or not."""
    return (cache / "disks" / key / RECEIPT).exists()


def check_disk(folder: Path, *, blobs: bool = False) -> dict[str, Any]:
    """The receipt of a kept disk. Damaged if its files are not what it says; what is in `blobs` is read only if asked for.

    Else only their sizes: whoever publishes them reads them anyway.
    """
    receipt = read_receipt(folder / RECEIPT)
    for name in CHECKED:
        check_file(folder / name, receipt.get("files", {}).get(name))
    for number, blob in enumerate(receipt["blobs"]):
        path = folder / blob_name(number)
        if blobs:
            check_file(path, blob["digest"])
        elif not path.exists() or path.stat().st_size != blob["size"]:
            raise Damaged(f"{path} is damaged")
    return receipt


def remove_damaged(cache: Path) -> None:
    """Read every kept disk whole, and remove what is damaged: a blob may be linked into several."""
    for folder in sorted((cache / "disks").glob("[0-9a-f]*")):
        try:
            check_disk(folder, blobs=True)
        except RootdiskError as err:
            made_again(err)
            _remove(folder)


def _remove(folder: Path) -> None:
    """At once, as far as others see."""
    gone = folder.with_name(f".partial-{os.urandom(8).hex()}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def read_disk(folder: Path) -> dict[str, Any]:
    """The receipt of a kept disk."""
    return read_receipt(folder / RECEIPT)


def keep_only(cache: Path, count: int) -> None:
    """Remove all but the `count` disks used last."""
    disks = sorted((cache / "disks").glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in disks[count:]:
        shutil.rmtree(folder, ignore_errors=True)


def _receipt(disk: build.Disk) -> dict[str, Any]:
    return {
        "size": disk.packed.index.disk_size,
        "digest": str(disk.packed.index.disk_digest()),
        "blobs": [{"digest": str(part.digest), "size": part.size} for part in disk.packed.parts],
        "slots": [{"name": slot.name, "offset": slot.offset, "length": slot.length} for slot in disk.slots],
        "layers": [{"diff_id": layer.diff_id, "first_inode": layer.first} for layer in disk.layers],
        "uuid": disk.uuid,
        "process": disk.process.to_json(),
        "labels": dict(disk.labels),
        "source_digest": disk.source_digest,
        "chunks": {"new": disk.packed.new_chunks, "reused": disk.packed.reused_chunks},
        "writer": {"rootdisk": __version__, **zstd_frames.versions()},
    }
