"""The store: verified content on one host, by digest, shared by all processes of one user.

    ROOT/format            "1"
    ROOT/blobs/HEX         manifests and their small blobs: config, kernel, initramfs
    ROOT/names/HEX         which manifest a reference named when it was last asked for
    ROOT/disks/HEX.raw     a sparse root disk, HEX its disk digest; HEX.chunks its chunk index
    ROOT/damaged/HEX       why the disk or blob HEX is not to be used before it is whole again: `verify --repair`
    ROOT/trust/HEX.json    what a policy said of the manifest HEX: runner/store/trust.py
    ROOT/locks/HEX         one lock a digest: shared while it is in use, exclusive while it is removed
    ROOT/locks/HEX.make    exclusive while it is made or repaired, whoever uses it meanwhile
    ROOT/sandboxes/NAME/   one sandbox each: runner/sandbox/directory.py
    ROOT/kvm.json          whether a guest has started with KVM here
    ROOT/qemu.json         which machine the QEMU here has

A name here means the content is good: files get it by rename, after verifying and syncing. Disks are never written.
Locks are the kernel's (flock), so those of killed processes are gone; rootdisk/system/locks.py. Who is killed in the middle of a
repair leaves the old disk where it was, and its mark.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from rootdisk.artifact.format import CONFIG_MAX_BYTES, INDEX_MAX_BYTES, ArtifactConfig, ChunkIndex
from rootdisk.durable import atomic_write, read_file
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Descriptor, Digest
from rootdisk.oci.repository import Repository, blob_pieces
from rootdisk.system.folders import user_folder
from rootdisk.system.locks import held, take
from rootdisk.system.ownership import make_private, make_private_below
from rootdisk.text import printable

FORMAT = "1"
BLOB_MAX_BYTES = 512 << 20  # a kernel with everything in it


class Damaged(RootdiskError):
    """Something in the store is marked as damaged, or was found to be so when it was read."""

    def __init__(self, digest: str, why: str, what: str = "") -> None:
        where = f"{what}: " if what else ""
        super().__init__(f"{where}{digest[:12]} is damaged in the store: {why}", "runner verify --repair")


class Store:
    """One store; `root` is its directory."""

    FOLDERS = ("blobs", "damaged", "disks", "locks", "names", "sandboxes")

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def open(cls) -> Store:
        """The user's store, made if it is missing; RootdiskError if it cannot be used, or another user could change it."""
        root = _place()
        # In a container nobody else may be there, and its volumes are open to everybody.
        alone = os.environ.get("ROOTDISK_STORE_TRUSTED") == "1"
        try:
            if alone:
                root.mkdir(parents=True, exist_ok=True, mode=0o700)
            else:
                make_private(root)
            for folder in cls.FOLDERS:
                if alone:
                    (root / folder).mkdir(exist_ok=True, mode=0o700)
                else:
                    make_private_below(root / folder)
            form = root / "format"
            if not os.path.lexists(form):
                atomic_write(form, FORMAT.encode())
            found = printable(read_file(form, 4096).strip(), 20)
        except (OSError, ValueError) as err:
            why = err.strerror if isinstance(err, OSError) else f"format {err}"
            raise RootdiskError(
                f"store {printable(root)}: {why}", "fix its owner and permissions, or set ROOTDISK_STORE"
            ) from err
        if not found:
            raise RootdiskError(f"store {printable(root)}: its file `format` is empty", f"echo {FORMAT} >{form}")
        if found != FORMAT:
            raise RootdiskError(
                f"store {printable(root)} has format {found}, not {FORMAT}", "set ROOTDISK_STORE to another place"
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
    def making(self, digest: Digest) -> Iterator[None]:
        """Be the only process that makes or repairs the disk `digest`. Who uses it is not waited for.

        Another maker is, as long as its disk grows: then Busy.
        """
        partial = self.disk(digest).with_suffix(".partial")

        def grown() -> object:
            with contextlib.suppress(FileNotFoundError):
                info = partial.lstat()
                return info.st_mtime_ns, info.st_blocks
            return None

        path, what = self._making(digest.hex), f"disk {digest.short}"
        with held(path, what=what, doing=f"makes disk {digest.short}", moves=grown):
            yield

    @contextlib.contextmanager
    def removing(self, digest: str) -> Iterator[None]:
        """Nobody uses or makes what the hex digest names; Busy at once if somebody does."""
        with held(self.root / "locks" / digest, timeout_s=0), held(self._making(digest), timeout_s=0):
            yield

    def _making(self, digest: str) -> Path:
        return self.root / "locks" / f"{digest}.make"

    def damage(self, digest: str) -> str:
        """Why what the hex digest names is not to be used; "" if it may be, or is not there."""
        try:
            text = printable(read_file(self.root / "damaged" / digest, 4096).strip())
        except FileNotFoundError:
            return ""
        except (OSError, ValueError):
            text = ""
        if not any((self.root / name).exists() for name in (f"disks/{digest}.raw", f"blobs/{digest}")):
            return ""
        return text or "it was found damaged"

    def mark(self, digest: str, what: str) -> None:
        """Nobody is to use it from now on, before `unmark`."""
        atomic_write(self.root / "damaged" / digest, what.encode(errors="replace")[:4096], 0o600)

    def unmark(self, digest: str) -> None:
        """It is whole, or gone."""
        (self.root / "damaged" / digest).unlink(missing_ok=True)

    def unless_made(self, digest: str) -> contextlib.AbstractContextManager[None]:
        """The lock of `making`; Busy at once if another process makes or repairs what the hex digest names."""
        return held(self._making(digest), timeout_s=0)

    def blob_path(self, digest: Digest) -> Path:
        return self.root / "blobs" / digest.hex

    def read_blob(self, digest: str, max_bytes: int) -> bytes:
        """A small blob by its hex digest; FileNotFoundError if it is not there, Damaged if it cannot be read or is another."""
        path = self.root / "blobs" / digest
        try:
            data = read_file(path, max_bytes)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as err:
            raise Damaged(digest, str(err.strerror if isinstance(err, OSError) else err)) from err
        if hashlib.new("sha256" if len(digest) == 64 else "sha512", data).hexdigest() != digest:
            raise Damaged(digest, "is not what its digest names")
        return data

    def read_config(self, digest: str) -> ArtifactConfig:
        """Read an artifact's config by its hex digest; raises as `read_blob`, and BadInput if it is not a config."""
        return ArtifactConfig.parse(self.read_blob(digest, CONFIG_MAX_BYTES))

    def blob(
        self, repository: Repository, descriptor: Descriptor, max_bytes: int = BLOB_MAX_BYTES, *, again: bool = False
    ) -> Path:
        """A blob's file, fetched and verified if it is not there yet, or damaged, or `again`: runner/store/possession.py."""
        path = self.blob_path(descriptor.digest)
        if again or not path.exists() or self.damage(descriptor.digest.hex):
            self.write_blob(descriptor.digest, blob_pieces(repository, descriptor, max_bytes))
        return path

    def write_blob(self, digest: Digest, data: bytes | Iterable[bytes]) -> None:
        """Keep the verified `data` that `digest` names."""
        atomic_write(self.blob_path(digest), data)
        self.unmark(digest.hex)

    def indexes(self) -> Iterator[tuple[Path, ChunkIndex]]:
        """Every disk with its index."""
        for path in sorted((self.root / "disks").glob("*.raw")):
            with contextlib.suppress(OSError, ValueError, RootdiskError):
                yield path, read_index(path)

    def lease(self, digests: Iterable[str]) -> tuple[int, ...]:
        """Descriptors that keep what the hex digests name from being removed, until they are closed everywhere."""
        leased: list[int] = []
        try:
            for digest in digests:
                leased.append(take(self.root / "locks" / digest, shared=True, what=digest[:12]))
        except BaseException:
            for fd in leased:
                os.close(fd)
            raise
        return tuple(leased)


def _place() -> Path:
    """Where the user's store is."""
    if root := os.environ.get("ROOTDISK_STORE"):
        return Path(root).absolute()
    return user_folder("XDG_DATA_HOME", ".local/share", "ROOTDISK_STORE") / "rootdisk"


def read_index(disk: Path) -> ChunkIndex:
    """The chunk index beside a disk; OSError, ValueError or RootdiskError if it cannot be read."""
    return ChunkIndex.parse(read_file(disk.with_suffix(".chunks"), INDEX_MAX_BYTES))
