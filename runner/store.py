"""The store: verified content on one host, by digest, shared by all processes of one user.

    ROOT/format            "1"
    ROOT/blobs/HEX         manifests and their small blobs: config, kernel, initramfs
    ROOT/names/HEX         which manifest a reference named when it was last asked for
    ROOT/disks/HEX.raw     a sparse root disk, HEX its disk digest; HEX.chunks its chunk index
    ROOT/locks/HEX         one lock a digest: exclusive while it is made or removed, shared while it is in use
    ROOT/sandboxes/NAME/   one sandbox each: runner/sandbox.py
    ROOT/kvm.json          whether a guest has started with KVM here
    ROOT/qemu.json         which machine the QEMU here has

A name here means the content is good: files get it by rename, after verifying and syncing. Disks are never written.
Locks are the kernel's (flock), so those of killed processes are gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from runner.artifact import ChunkIndex
from runner.errors import RootdiskError
from runner.files import atomic_write, locked
from runner.oci import Descriptor, Digest
from runner.repository import Repository, read_blob

FORMAT = "1"
BLOB_MAX_BYTES = 512 << 20  # a kernel with everything in it


class Store:
    """One store; `root` is its directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def open(cls) -> Store:
        """The user's store, made where it is missing; RootdiskError where it cannot be used."""
        home = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
        root = Path(os.environ.get("ROOTDISK_STORE") or Path(home, "rootdisk")).absolute()
        try:
            for folder in ("blobs", "disks", "locks", "names", "sandboxes"):
                (root / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
            form = root / "format"
            if not form.exists():
                atomic_write(form, FORMAT.encode())
            found = form.read_text().strip()
        except OSError as err:
            raise RootdiskError(
                f"store {root}: {err.strerror}", "mend its owner and mode, or set ROOTDISK_STORE"
            ) from err
        if found != FORMAT:
            raise RootdiskError(
                f"store {root} has format {found:.20}, not {FORMAT}", "set ROOTDISK_STORE to another place"
            )
        return cls(root)

    def disk(self, digest: Digest) -> Path:
        return self.root / "disks" / f"{digest.hex}.raw"

    def index(self, digest: Digest) -> Path:
        return self.root / "disks" / f"{digest.hex}.chunks"

    @property
    def sandboxes(self) -> Path:
        return self.root / "sandboxes"

    @contextlib.contextmanager
    def lock(self, digest: Digest) -> Iterator[None]:
        """Only one process at a time makes what `digest` names."""
        with locked(self.root / "locks" / digest.hex):
            yield

    def blob_path(self, digest: Digest) -> Path:
        return self.root / "blobs" / digest.hex

    def blob(self, repository: Repository, descriptor: Descriptor) -> Path:
        """A blob's file, fetched and verified where it is not there yet."""
        path = self.blob_path(descriptor.digest)
        if not path.exists():
            atomic_write(path, read_blob(repository, descriptor, BLOB_MAX_BYTES))
        return path

    def indexes(self) -> Iterator[tuple[Path, ChunkIndex]]:
        """Every disk with its index."""
        for path in sorted((self.root / "disks").glob("*.raw")):
            with contextlib.suppress(OSError, RootdiskError):
                yield path, ChunkIndex.parse(path.with_suffix(".chunks").read_bytes())

    def lease(self, digests: Iterable[str]) -> tuple[int, ...]:
        """Descriptors that keep what the hex digests name from being removed, until they are closed everywhere."""
        held = []
        for digest in digests:
            fd = os.open(self.root / "locks" / digest, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_SH)
            held.append(fd)
        return tuple(held)
