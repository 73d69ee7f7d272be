"""The guest's kernel: the distribution's package, unpacked beside the cache and never installed, or a directory of one's own.

The package is what the meta package names today; of another architecture than this machine's too. Modules are those a virtual machine needs, in an order in which each
finds the symbols of those before it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from imagetool.receipts import Damaged, check_file, made_again, read_receipt, write_receipt
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Digest, Platform
from rootdisk.system import process
from rootdisk.system.scratch import scratch

DAY_S = 86400
KEPT_COUNT = 4
RECEIPT = "unpacked.json"  # in an unpacked package: digests of what is used of it
META = {
    ("debian", "amd64"): "linux-image-cloud-amd64",
    ("debian", "arm64"): "linux-image-cloud-arm64",
    ("ubuntu", "amd64"): "linux-image-virtual",
    ("ubuntu", "arm64"): "linux-image-virtual",
}
LATE = "late"  # gets its device after the moment at which a template is saved: it reads what differs between sandboxes
# In load order: virtio needs virtio_ring's symbols, though modules.dep may not say so. What the keys mean is in
# docs/layout-1.md, "Kernel modules".
WANTED = {
    **dict.fromkeys(("virtio_ring", "virtio", "virtio_mmio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev"), ""),
    **dict.fromkeys(("virtio_pci", "virtio_console"), ""),
    "virtio_blk": LATE,
    **dict.fromkeys(("failover", "net_failover", "virtio_net"), "network"),
    **dict.fromkeys(("rng_core", "virtio_rng"), ""),
    # dm-verity: others load it before the disk is mounted. Kernels differ in which of them are built in.
    **dict.fromkeys(("dax", "dm_mod", "dm_bufio", "reed_solomon", "dm_verity"), "verity"),
    **dict.fromkeys(("libsha256", "sha256_generic"), "verity"),
    **dict.fromkeys(("sha256_ssse3", "sha256_arm64", "sha2_ce"), "verity-cpu"),
    "overlay": "read-only",
    "virtio_balloon": "balloon",
    **dict.fromkeys(("fuse", "virtiofs", "netfs", "fscache", "9pnet", "9pnet_virtio", "9p"), "mount"),
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel with the modules that a guest needs."""

    version: str
    vmlinuz: Path
    modules: tuple[tuple[Path, str], ...]  # in load order; with LATE, or the key of the record that wants it, or ""

    @property
    def wants_signatures(self) -> bool:
        """True if it may refuse modules without a signature, also if its configuration is not beside it.

        To check one takes longer than to load it, and the initramfs is as trusted as the kernel.
        """
        config = self.vmlinuz.with_name(f"config-{self.version}")
        text = config.read_text("utf-8", "replace") if config.exists() else ""
        forced = r"^CONFIG_(MODULE_SIG_FORCE|LOCK_DOWN_KERNEL_FORCE_(INTEGRITY|CONFIDENTIALITY))=y"
        return not text or re.search(forced, text, re.MULTILINE) is not None


def find(wanted: str, platform: Platform, cache: Path) -> Kernel:
    """`wanted` is "debian" or a directory with boot/vmlinuz-* and lib/modules/; packages are kept under `cache`."""
    if wanted != "debian":
        return _in(Path(wanted))
    release = Path("/etc/os-release").read_text("utf-8", "replace") if Path("/etc/os-release").exists() else ""
    system = "ubuntu" if re.search(r"^ID=\"?ubuntu", release, re.MULTILINE) else "debian"
    meta = META.get((system, platform.architecture))
    if meta is None or shutil.which("apt-get") is None:
        raise BadInput(f"kernel: no package for {platform} here", 'give a directory: kernel = "PATH"')
    apt = _apt(platform, cache)
    package = _newest(apt, meta, platform.architecture)
    names = [package] if system == "debian" else [package, package.replace("linux-image-", "linux-modules-")]
    place = cache / f"{package}_{platform.architecture}"
    if place.exists():
        try:
            _check(place)
        except Damaged as err:
            made_again(err)
            shutil.rmtree(place)
    if not place.exists():
        _unpack(apt, names, platform.architecture, place)
    os.utime(place)  # when it was last used
    return _in(place)


def has_module(kernel: Kernel, name: str) -> bool:
    """Return whether the kernel has a module, loadable or built in. True if the kernel does not say what is built in."""
    if any(path.name.partition(".ko")[0].replace("-", "_") == name for path, _ in kernel.modules):
        return True
    root = kernel.vmlinuz.parent.parent
    lists = [root / base / kernel.version / "modules.builtin" for base in ("lib/modules", "usr/lib/modules")]
    texts = [path.read_text("utf-8", "replace") for path in lists if path.exists()]
    return not texts or any(f"/{name}.ko" in text.replace("-", "_") for text in texts)


def tidy(packages: Path, now_s: float) -> None:
    """Remove unpacked packages and boot files past KEPT_COUNT of each, those used least lately first, and rests of dead builds.

    What was used in the last day stays: another process may use it.
    """
    for pattern, keep in (("linux-image-*_*", KEPT_COUNT), ("boot-*", KEPT_COUNT), (".kernel-*", 0)):
        found = sorted(((path.stat().st_mtime, path) for path in packages.glob(pattern)), reverse=True)
        for used_s, path in found[keep:]:
            if used_s < now_s - DAY_S:
                shutil.rmtree(path, ignore_errors=True)


def _check(place: Path) -> None:
    """Damaged if what is used of an unpacked package is not what it was when it was unpacked."""
    files = read_receipt(place / RECEIPT).get("files", {}) if (place / RECEIPT).exists() else {}
    if any(str(path.relative_to(place)) not in files for path in _used(place)):  # an older rootdisk used fewer
        _record(place)
        files = read_receipt(place / RECEIPT).get("files", {})
    for path in _used(place):
        check_file(path, files.get(str(path.relative_to(place))))


def _record(root: Path) -> None:
    files = {str(path.relative_to(root)): str(Digest.of(path.read_bytes())) for path in _used(root)}
    write_receipt(root / RECEIPT, {"files": files})


def _used(place: Path) -> list[Path]:
    kernel = _in(place)
    return [kernel.vmlinuz, *(path for path, _ in kernel.modules)]


def _apt(platform: Platform, cache: Path) -> list[str]:
    """Options with which apt works as on a machine of `platform`; none where this is one.

    Another architecture has lists of its own under `cache`, so that this machine's dpkg need not know of it.
    """
    if platform.architecture == Platform.host().architecture:
        return []
    room = cache.absolute() / f"apt-{platform.architecture}"
    for folder in ("lists/partial", "archives/partial"):
        (room / folder).mkdir(parents=True, exist_ok=True)
    (room / "status").touch()
    settings = {
        "APT::Architecture": platform.architecture,
        "APT::Architectures": platform.architecture,
        "Dir::State": str(room),
        "Dir::State::status": str(room / "status"),
        "Dir::Cache": str(room),
        "Acquire::Languages": "none",
    }
    options = [f"-o{name}={value}" for name, value in settings.items()]
    _run(["apt-get", *options, "-qq", "update"], f"the package lists for {platform}")
    return options


def _newest(apt: list[str], meta: str, architecture: str) -> str:
    """The real package behind a meta package."""
    text = _run(["apt-cache", *apt, "depends", "--no-recommends", "--no-suggests", f"{meta}:{architecture}"], meta)
    names = re.findall(r"Depends: (linux-image-[^\s:<>]*\d[^\s:<>]*)", text)
    if not names:
        raise RootdiskError(f"kernel: the package {meta} names no kernel", "apt-get update, then build again")
    return str(names[0])


def _unpack(apt: list[str], packages: list[str], architecture: str, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with scratch(place.parent, ".kernel-") as work:
        for package in packages:
            _run(["apt-get", *apt, "-qq", "download", f"{package}:{architecture}"], package, work)
        for archive in sorted(work.glob("*.deb")):
            _run(["dpkg-deb", "-x", str(archive), str(work / "root")], archive.name)
        _record(work / "root")
        try:
            (work / "root").rename(place)
        except OSError:
            if not place.exists():  # else another process was quicker
                raise


def _in(root: Path) -> Kernel:
    """The kernel in a directory laid out as a root file system."""
    images = sorted(root.glob("boot/vmlinuz-*"))
    if not images:
        raise BadInput(f"kernel: no boot/vmlinuz-* in {root}", "give a directory as a kernel package has it")
    vmlinuz = images[-1]
    version = vmlinuz.name.removeprefix("vmlinuz-")
    found: dict[str, Path] = {}
    for base in ("lib/modules", "usr/lib/modules"):
        for folder, _, files in os.walk(root / base / version):
            for file in files:
                stem, dot, _ = file.partition(".ko")
                if dot:
                    found.setdefault(stem.replace("-", "_"), Path(folder, file))
    # What is not a module is built into the kernel.
    modules = tuple((found[name], key) for name, key in WANTED.items() if name in found)
    return Kernel(version, vmlinuz, modules)


def _run(command: list[str], what: str, cwd: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = process.run(command, cwd=cwd, env=environment)
    if done.status:
        reason = done.complaint.strip().splitlines()[-1:] or ["no reason given"]
        hint = "check the network, then: apt-get update"
        if os.strerror(errno.ENOSPC) in done.complaint:
            hint = "make room where the cache is"
        raise RootdiskError(f"kernel: {command[0]} failed on {what}: {reason[0]}", hint)
    return done.text
