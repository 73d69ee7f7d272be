"""Check that the results of a task are still there: doit's `uptodate`. doit passes the task and its saved values first.

A receipt alone is not trusted: files are checked by their digests, published artifacts by asking the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from imagetool.build.receipts import BuiltReceipt, KernelReceipt, PublishedReceipt
from imagetool.config.images import Image
from imagetool.receipts import Damaged, Receipt, load, made_again
from imagetool.tasks.places import Places
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Platform


def init_is_whole(task: object, values: object, places: Places, platform: Platform) -> bool:
    """Return whether the guest's init is unchanged."""
    from imagetool.guest.boot_files import check_init

    return _is_whole(places.init(platform) / "init.json", lambda: check_init(places.init(platform)))


def kernel_is_whole(task: object, values: object, places: Places, image: Image) -> bool:
    """Return whether kernel and initramfs are unchanged."""
    from imagetool.guest.boot_files import check_kernel

    receipt = places.receipt(image, "kernel")
    return _is_whole(receipt, lambda: check_kernel(places.of(image), load(receipt, KernelReceipt)))


def receipt_is_whole(task: object, values: object, path: str, kind: type[Receipt]) -> bool:
    """Return whether a receipt is unchanged and of this version."""
    return _is_whole(Path(path), lambda: load(Path(path), kind))


def disk_is_there(task: object, values: object, places: Places, image: Image) -> bool:
    """Return whether the disk of the last run of `disk` is still there and complete, here or in a target."""
    return _is_whole(places.receipt(image, "disk"), lambda: _check_built(places, image))


def is_published(task: object, values: object, path: Path, images: Sequence[Image]) -> bool:
    """Return whether every target still has what the receipt at `path` says. `images` is one image, or a group."""
    from imagetool.build.published import check_published

    return _is_whole(path, lambda: check_published(images, load(path, PublishedReceipt)))


def _check_built(places: Places, image: Image) -> None:
    from imagetool.build.disk_cache import check_disk
    from imagetool.build.published import find_published

    built = load(places.receipt(image, "disk"), BuiltReceipt)
    if not built.published:
        disk = check_disk(places.disk(image))
        if disk.receipt.key != built.key:
            raise RootdiskError(f"{places.disk(image)} is another disk")
        return
    place = next((place for place in image.publish if str(place.place) == built.published), None)
    if place is None or find_published(place, image, built.artifact) is None:
        raise RootdiskError(f"{built.published} does not have {built.artifact.short} any more")


def _is_whole(receipt: Path, check: Callable[[], object]) -> bool:
    try:
        check()
    except Damaged as err:
        if receipt.exists():
            made_again(err)
        return False
    except RootdiskError:
        return False
    return True
