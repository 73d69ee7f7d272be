"""The files that boot a disk: the guest's init, a kernel, and the initramfs with modules of that kernel."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from imagetool.config.images import Image
from imagetool.guest import init as guest
from imagetool.guest import prebuilt
from imagetool.guest.programs import VMLINUX_KEPT, BootFiles, InitReceipt, KernelReceipt, kept_vmlinux
from imagetool.receipts import Damaged, check_file, load, made_again, save
from rootdisk.durable import atomic_write, opener
from rootdisk.errors import BadInput
from rootdisk.oci.documents import Digest, Platform

DAY_S = 86400


def make_init(platform: Platform, out: Path) -> InitReceipt:
    """Write the guest's static init to `out`: the one that came with rootdisk, else made of its sources."""
    data = prebuilt.read_init(platform)
    if data is None:
        return InitReceipt(guest.build_init(out, platform))
    atomic_write(out, data, 0o755, durable=False)
    return InitReceipt(Digest.of(data))


def cached_init(platform: Platform, cache: Path) -> Path:
    """Find or make the guest's init: the one that came with rootdisk, else one that was built of the same sources."""
    path = cache / "guest" / f"{platform.architecture}-{prebuilt.sources()[:16]}" / "init"
    path.parent.mkdir(parents=True, exist_ok=True)
    receipt = path.with_name("init.json")
    if not prebuilt.are_built() and receipt.exists():
        try:
            check_init(path.parent)
            return path
        except Damaged as err:
            made_again(err)
    save(receipt, make_init(platform, path))
    return path


def check_init(directory: Path) -> None:
    """Compare the init in `directory` with its receipt, init.json; Damaged if they do not agree."""
    check_file(directory / "init", load(directory / "init.json", InitReceipt).digest)


def check_kernel(directory: Path, receipt: KernelReceipt) -> None:
    """Compare the files in `directory` with what `make_kernel` has said; Damaged if they do not agree.

    The vmlinux is not read if it is kept compressed: that is what artifacts get, and it has a digest of its own.
    """
    digests = {"vmlinuz": receipt.kernel, "initramfs": receipt.initramfs, "vmlinux": receipt.vmlinux}
    if receipt.vmlinux is not None and _begins(directory / VMLINUX_KEPT, kept_vmlinux(receipt.vmlinux)):
        del digests["vmlinux"]
    for file, digest in digests.items():
        if digest is not None:
            check_file(directory / file, digest)


def _begins(path: Path, data: bytes) -> bool:
    """Return whether what is kept in `path`, behind its sha256, begins with `data`."""
    try:
        with open(path, "rb", opener=opener) as file:
            file.seek(hashlib.sha256().digest_size)
            return file.read(len(data)) == data
    except OSError:
        return False


def make_kernel(image: Image, init: Path, directory: Path, packages: Path) -> KernelReceipt:
    """Write kernel, initramfs and vmlinux to `directory`, if the image wants them; kernel packages are kept in `packages`."""
    if image.kernel == "none":
        return KernelReceipt()
    from imagetool.guest.initramfs import Module
    from imagetool.guest.initramfs import build as build_initramfs
    from imagetool.guest.kernel import find, has_module

    kernel = find(image.kernel, image.platform, packages)
    if image.verity and not has_module(kernel, "dm_verity"):
        raise BadInput(
            f"verity: the kernel {kernel.version} has no dm-verity", "use another kernel, or leave verity out"
        )
    modules = [
        Module(path.name, path.read_bytes(), key)
        for path, key in kernel.modules
        if image.verity or not key.startswith("verity")
    ]
    initramfs = build_initramfs(init.read_bytes(), modules, signed=kernel.wants_signatures)
    vmlinuz = kernel.vmlinuz.read_bytes()
    vmlinux = _vmlinux(image, vmlinuz)
    for name, data in (("vmlinuz", vmlinuz), ("initramfs", initramfs), ("vmlinux", vmlinux)):
        if data is not None:
            atomic_write(directory / name, data)
    return KernelReceipt(
        Digest.of(vmlinuz), Digest.of(initramfs), kernel.version, None if vmlinux is None else Digest.of(vmlinux)
    )


def _vmlinux(image: Image, vmlinuz: bytes) -> bytes | bytearray | None:
    """Return the ELF file in a kernel; None if the image wants none, or takes what there is and there is none."""
    if image.vmlinux is False or image.platform.architecture != "amd64":
        return None
    from imagetool.guest.vmlinux import NoVmlinux, extract

    try:
        return extract(vmlinuz)
    except NoVmlinux:
        if image.vmlinux:
            raise
        return None


def cached_kernel(image: Image, init: Path, cache: Path) -> tuple[Path, KernelReceipt]:
    """Make a kernel like `make_kernel`, in a directory of the cache, which is returned too. apt is asked for a newer package once a day."""
    from imagetool.guest.kernel import WANTED

    what = f"{image.kernel}\0{image.platform}\0{Digest.of(init.read_bytes())}\0{sorted(WANTED.items())}\0slim"
    what += "\0verity" if image.verity else ""
    what += "" if image.vmlinux is None else f"\0vmlinux {image.vmlinux}"
    directory = cache / "kernels" / f"boot-{Digest.of(what.encode()).short}"
    receipt = directory / "kernel.json"
    if image.kernel == "debian" and receipt.exists() and 0 <= time.time() - receipt.stat().st_mtime < DAY_S:
        try:
            found = load(receipt, KernelReceipt)
            check_kernel(directory, found)
            return directory, found
        except Damaged as err:
            made_again(err)
    directory.mkdir(parents=True, exist_ok=True)
    made = make_kernel(image, init, directory, cache / "kernels")
    save(receipt, made)
    return directory, made


def boot_files(image: Image, cache: Path) -> BootFiles:
    """Find or make the files that boot `image`, in the user's cache."""
    init = cached_init(image.platform, cache)
    return BootFiles.of(init, *cached_kernel(image, init, cache))
