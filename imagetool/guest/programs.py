"""The programs that boot a disk, by their digests, and the receipts of the files they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from rootdisk.oci.documents import Digest, canonical_json
from rootdisk.oci.fields import Fields

VMLINUX_KEPT = "vmlinux.zst"  # beside the vmlinux: what it is when it is compressed


def kept_vmlinux(digest: Digest) -> bytes:
    """Return how the data in VMLINUX_KEPT begins, before the compressed vmlinux with this digest."""
    from rootdisk.artifact import zstd_frames  # loads zstandard, which a list of tasks does not need

    return canonical_json({"digest": str(digest), **zstd_frames.versions()})


class Guest(NamedTuple):
    """The programs that boot the disk: its init and, if the artifact has them, kernel, initramfs, and the vmlinux in the kernel."""

    init: Digest
    kernel: Digest | None = None
    initramfs: Digest | None = None
    vmlinux: Digest | None = None

    def to_json(self) -> dict[str, Any]:
        """The digests of what there is."""
        found = {"init": self.init, "kernel": self.kernel, "initramfs": self.initramfs, "vmlinux": self.vmlinux}
        return {name: str(digest) for name, digest in found.items() if digest is not None}


@dataclass(frozen=True, slots=True)
class InitReceipt:
    """init.json: the guest's init beside it."""

    digest: Digest

    FORMAT: ClassVar[int] = 1

    @classmethod
    def parse(cls, value: Fields) -> InitReceipt:
        """Check the fields of `value`; BadInput names the one that is wrong."""
        return cls(Digest.parse(value.value.get("digest")))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value for `parse`."""
        return {"digest": str(self.digest)}


@dataclass(frozen=True, slots=True)
class KernelReceipt:
    """kernel.json: kernel and initramfs beside it, and the kernel as an ELF file; None for all if the artifact carries none."""

    kernel: Digest | None = None
    initramfs: Digest | None = None
    release: str = ""
    vmlinux: Digest | None = None

    FORMAT: ClassVar[int] = 1

    @classmethod
    def parse(cls, value: Fields) -> KernelReceipt:
        """Check the fields of `value`; BadInput names the one that is wrong."""
        texts = (value.value.get(name) for name in ("kernel", "initramfs", "vmlinux"))
        kernel, initramfs, vmlinux = (None if text is None else Digest.parse(text) for text in texts)
        found = cls(kernel, initramfs, value.text("release", ""), vmlinux)
        if (found.kernel is None) != (found.initramfs is None) or (vmlinux is not None and kernel is None):
            raise value.wrong("initramfs", "one without the other")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value for `parse`."""
        digests = {"kernel": self.kernel, "initramfs": self.initramfs, "vmlinux": self.vmlinux}
        return {name: str(digest) if digest else None for name, digest in digests.items()} | {"release": self.release}


class BootFiles(NamedTuple):
    """The files that boot a disk, and their digests."""

    guest: Guest
    init: Path
    kernel: Path | None
    initramfs: Path | None
    vmlinux: Path | None = None

    @classmethod
    def of(cls, init: Path, directory: Path, receipt: KernelReceipt) -> BootFiles:
        """The init at `init`, and what `receipt` has in `directory`."""
        guest = Guest(Digest.of(init.read_bytes()), receipt.kernel, receipt.initramfs, receipt.vmlinux)
        digests = {"vmlinuz": receipt.kernel, "initramfs": receipt.initramfs, "vmlinux": receipt.vmlinux}
        return cls(guest, init, *(directory / name if digest else None for name, digest in digests.items()))
