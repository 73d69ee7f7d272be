"""The programs that boot a disk, by their digests."""

from __future__ import annotations

from typing import Any, NamedTuple

from rootdisk.oci.documents import Digest


class Guest(NamedTuple):
    """What boots the disk: the init on it and, where the artifact carries them, kernel and initramfs."""

    init: Digest
    kernel: Digest | None = None
    initramfs: Digest | None = None

    def to_json(self) -> dict[str, Any]:
        found = {"init": self.init, "kernel": self.kernel, "initramfs": self.initramfs}
        return {name: str(digest) for name, digest in found.items() if digest is not None}
