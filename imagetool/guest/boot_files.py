"""What boots a disk, as files: the guest's init, a kernel, and the initramfs with that kernel's modules."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagetool.config.images import Image
from imagetool.guest import init as guest
from imagetool.guest import prebuilt
from imagetool.guest.programs import Guest
from imagetool.receipts import Damaged, check_file, made_again, read_receipt, write_receipt
from rootdisk.durable import atomic_write
from rootdisk.oci.documents import Digest, Platform

DAY_S = 86400


def make_init(platform: Platform, out: Path) -> dict[str, Any]:
    """The guest's static init at `out`: the one that came with rootdisk, else made of its sources."""
    data = prebuilt.read_init(platform)
    if data is None:
        return {"digest": str(guest.build_init(out, platform))}
    atomic_write(out, data, 0o755, durable=False)
    return {"digest": str(Digest.of(data))}


def cached_init(platform: Platform, cache: Path) -> Path:
    """The guest's init: the one that came with rootdisk, else built when its sources are newer than it."""
    path = cache / "guest" / platform.architecture / "init"
    path.parent.mkdir(parents=True, exist_ok=True)
    sources = [prebuilt.SOURCE_DIR / name for name in (*guest.SOURCES, *guest.HEADERS)]
    receipt = path.with_name("init.json")
    current = path.exists() and path.stat().st_mtime >= max(source.stat().st_mtime for source in sources)
    if current and not prebuilt.are_built() and receipt.exists():
        try:
            check_init(path.parent)
            return path
        except Damaged as err:
            made_again(err)
    write_receipt(receipt, make_init(platform, path))
    return path


def check_init(directory: Path) -> None:
    """Damaged if the init in `directory` is not what its receipt, init.json, says."""
    check_file(directory / "init", read_receipt(directory / "init.json").get("digest"))


def check_kernel(directory: Path, receipt: Mapping[str, Any]) -> None:
    """Damaged if kernel and initramfs in `directory` are not what `make_kernel` has said."""
    for name, file in (("kernel", "vmlinuz"), ("initramfs", "initramfs")):
        if receipt.get(name) is not None:
            check_file(directory / file, receipt[name])


def make_kernel(image: Image, init: Path, directory: Path, packages: Path) -> dict[str, Any]:
    """Kernel and initramfs in `directory`, and their digests; None for both where the image wants none."""
    if image.kernel == "none":
        return {"kernel": None, "initramfs": None}
    from imagetool.guest.initramfs import Module
    from imagetool.guest.initramfs import build as build_initramfs
    from imagetool.guest.kernel import find

    kernel = find(image.kernel, image.platform, packages)
    modules = [Module(path.name, path.read_bytes(), key) for path, key in kernel.modules]
    initramfs = build_initramfs(init.read_bytes(), modules)
    vmlinuz = kernel.vmlinuz.read_bytes()
    for name, data in (("vmlinuz", vmlinuz), ("initramfs", initramfs)):
        atomic_write(directory / name, data)
    return {"kernel": str(Digest.of(vmlinuz)), "initramfs": str(Digest.of(initramfs)), "version": kernel.version}


def cached_kernel(image: Image, init: Path, cache: Path) -> tuple[Path, dict[str, Any]]:
    """As `make_kernel`, in a directory of the cache; apt is asked for a newer package once a day."""
    what = f"{image.kernel}\0{image.platform}\0{Digest.of(init.read_bytes())}"
    directory = cache / "kernels" / f"boot-{Digest.of(what.encode()).short}"
    receipt = directory / "kernel.json"
    if image.kernel == "debian" and receipt.exists() and time.time() - receipt.stat().st_mtime < DAY_S:
        try:
            found = read_receipt(receipt)
            check_kernel(directory, found)
            return directory, found
        except Damaged as err:
            made_again(err)
    directory.mkdir(parents=True, exist_ok=True)
    made = make_kernel(image, init, directory, cache / "kernels")
    write_receipt(receipt, made)
    return directory, made


def guest_of(init: Path, kernel: Mapping[str, Any]) -> Guest:
    """The digests of what boots a disk: `init`, and what `make_kernel` says."""
    files = (Digest.parse(kernel[name]) if kernel.get(name) else None for name in ("kernel", "initramfs"))
    return Guest(Digest.of(init.read_bytes()), *files)
