"""Packed disks by derivation key, under `cache`/disks/KEY/: what has been made once is not made again.

Beside the packed disk (imagetool/artifact/reuse.py) lies disk.json, its receipt: all that an artifact's config says of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imagetool import build, recipe
from imagetool.artifact import frames
from imagetool.config import Image
from imagetool.oci.sources import SourceImage
from imagetool.progress import Report, silent
from imagetool.receipts import read_receipt, write_receipt
from runner import __version__
from runner.errors import RootdiskError
from runner.files import fsync_dir

RECEIPT = "disk.json"


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
    key = recipe.derivation_key(inputs)
    disks = cache / "disks"
    found = disks / key
    if (found / RECEIPT).exists():
        os.utime(found)
        return found, False
    disks.mkdir(parents=True, exist_ok=True)
    with _partial(disks) as work:
        with contextlib.nullcontext(source) if source is not None else build.opened(image) as opened:
            if str(opened.manifest_digest) != inputs["source"]:
                raise RootdiskError(f"{image.source}: changed while it was built", "start the build again")
            disk = build.make_disk(image, opened, init.read_bytes(), work, cache, report, threads)
        write_receipt(work / RECEIPT, {**_receipt(disk), "key": key, "inputs": dict(inputs)}, durable=True)
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
        "writer": {"rootdisk": __version__, **frames.versions()},
    }
