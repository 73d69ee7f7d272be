"""The store: verified content by digest, shared by all processes of one user on one host.

    ROOT/format            the format of the store: "1"
    ROOT/blobs/HEX         manifests and their small blobs: config, kernel, initramfs, dm-verity tree, vmlinux
    ROOT/names/HEX         the manifest that a reference named at the last request
    ROOT/asked/HEX         the same, while the artifact is being fetched for a sandbox that runs already
    ROOT/disks/HEX.raw     a sparse root disk; HEX is its disk digest. HEX.chunks is its chunk index
    ROOT/disks/HEX.partial a disk that is not complete: runner/store/partial.py
    ROOT/damaged/HEX       the reason why disk or blob HEX must not be used until `verify --repair`
    ROOT/trust/HEX.json    accepted signatures of the manifest HEX: runner/store/trust.py
    ROOT/locks/HEX         lock of a digest: shared while in use, exclusive while it is removed
    ROOT/locks/HEX.make    exclusive while it is fetched or repaired, even if it is in use
    ROOT/lazy/HEX.*        the server of a disk that is still being fetched: runner/store/filling.py
    ROOT/sandboxes/NAME/   a sandbox: runner/sandbox/directory.py
    ROOT/snapshots/NAME/   a saved sandbox: runner/sandbox/snapshots.py
    ROOT/templates/KEY/    a saved machine: runner/template/saved.py
    ROOT/events            what has happened to sandboxes: runner/store/events.py
    ROOT/kvm.json          whether a guest has started with KVM on this host
    ROOT/qemu.json         the machine types of this host's QEMU

A file with its final name is good: it was verified and synced before the rename. Disks are never written. The kernel
releases the locks of killed processes (rootdisk/system/locks.py). If a process is killed during a repair, the old disk and
its mark stay.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rootdisk.durable import atomic_write, read_file
from rootdisk.errors import DigestMismatch, RootdiskError
from rootdisk.system.folders import user_folder
from rootdisk.system.locks import held, take
from rootdisk.system.ownership import make_private, make_private_below
from rootdisk.text import printable

if TYPE_CHECKING:  # and loaded where it is needed: many commands open a store, and read no artifact
    from rootdisk.artifact.format import ArtifactConfig, ChunkIndex
    from rootdisk.oci.documents import Descriptor, Digest
    from rootdisk.oci.repository import Repository
    from runner.store.boot_blobs import BootBlob

FORMAT = "1"
BLOB_MAX_BYTES = 512 << 20  # enough for a kernel with all modules built in


class Damaged(RootdiskError):
    """Content of the store that is marked as damaged, or was damaged when it was read."""

    def __init__(self, digest: str, why: str, what: str = "") -> None:
        where = f"{what}: " if what else ""
        super().__init__(f"{where}{digest[:12]} is damaged in the store: {why}", "runner verify --repair")


class Store:
    """A store; `root` is its directory."""

    FOLDERS = ("blobs", "damaged", "disks", "locks", "names", "sandboxes", "snapshots", "templates")

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def open(cls, place: Path | None = None) -> Store:
        """Open the store at `place`, by default the user's. Create it if it is missing.

        Raises:
            RootdiskError: It cannot be used, has another format, or another user could change it.
        """
        root = place or _place()
        store = cls(root)
        try:
            if _is_trusted():
                root.mkdir(parents=True, exist_ok=True, mode=0o700)
            else:
                make_private(root)
            _check_format(root)
            for folder in cls.FOLDERS:
                store.made_folder(folder)
        except (OSError, ValueError) as err:
            why = err.strerror if isinstance(err, OSError) else f"format {err}"
            raise RootdiskError(
                f"store {printable(root)}: {why}", "fix its owner and permissions, or set ROOTDISK_STORE"
            ) from err
        return store

    def made_folder(self, name: str) -> Path:
        """Return a directory of the store, which is made if it is missing.

        Raises:
            OSError: It cannot be made.
            RootdiskError: Another user could change it.
        """
        folder = self.root / name
        if _is_trusted():
            folder.mkdir(exist_ok=True, mode=0o700)
        else:
            make_private_below(folder)
        return folder

    def disk(self, digest: Digest) -> Path:
        """Return the path of a disk."""
        return self.root / "disks" / f"{digest.hex}.raw"

    def partial(self, digest: Digest) -> Path:
        """Return the path of an incomplete disk: runner/store/partial.py."""
        return self.root / "disks" / f"{digest.hex}.partial"

    def index(self, digest: Digest) -> Path:
        """Return the path of the chunk index of a disk."""
        return self.root / "disks" / f"{digest.hex}.chunks"

    @property
    def sandboxes(self) -> Path:
        """The directory of all sandboxes."""
        return self.root / "sandboxes"

    @contextlib.contextmanager
    def making(self, digest: Digest) -> Iterator[None]:
        """Be the only process that creates or repairs the disk `digest`. Sandboxes may use it meanwhile.

        Waits for another process as long as its disk grows.

        Raises:
            Busy: The other process makes no progress.
        """
        partial = self.partial(digest)

        def progress() -> object:
            """Return a value that changes while the partial file grows."""
            with contextlib.suppress(FileNotFoundError):
                info = partial.lstat()
                return info.st_mtime_ns, info.st_blocks
            return None

        path, what = self._making(digest.hex), f"disk {digest.short}"
        with held(path, what=what, doing=f"fetches disk {digest.short}", moves=progress):
            yield

    @contextlib.contextmanager
    def removing(self, digest: str) -> Iterator[None]:
        """Hold both locks of a hex digest, to remove its content.

        Raises:
            Busy: It is in use or being created.
        """
        with held(self.root / "locks" / digest, timeout_s=0), held(self._making(digest), timeout_s=0):
            yield

    def _making(self, digest: str) -> Path:
        return self.root / "locks" / f"{digest}.make"

    def damage(self, digest: str) -> str:
        """Return why the content of a hex digest is damaged, or "" if it is not, or is missing."""
        try:
            text = printable(read_file(self.root / "damaged" / digest, 4096).strip())
        except FileNotFoundError:
            return ""
        except (OSError, ValueError):
            text = ""
        if not any((self.root / name).exists() for name in (f"disks/{digest}.raw", f"blobs/{digest}")):
            return ""
        return text or "an earlier check has failed"

    def mark(self, digest: str, what: str) -> None:
        """Mark the content of a hex digest as damaged, with the reason `what`. It is not used before `unmark`."""
        atomic_write(self.root / "damaged" / digest, what.encode(errors="replace")[:4096], 0o600)

    def unmark(self, digest: str) -> None:
        """Remove the mark: the content is intact again, or gone."""
        (self.root / "damaged" / digest).unlink(missing_ok=True)

    def unless_made(self, digest: str, doing: str = "") -> contextlib.AbstractContextManager[None]:
        """Hold the lock of `making` for a hex digest, without waiting. Processes that wait for it are shown `doing`.

        Raises:
            Busy: Another process creates or repairs the content.
        """
        return held(self._making(digest), timeout_s=0, doing=doing)

    def blob_path(self, digest: Digest) -> Path:
        """Return the path of a blob."""
        return self.root / "blobs" / digest.hex

    def read_blob(self, digest: str, max_bytes: int) -> bytes:
        """Return a small blob by its hex digest.

        Raises:
            Damaged: It cannot be read, or its content has another digest.
            FileNotFoundError: It is not in the store.
        """
        import hashlib

        path = self.root / "blobs" / digest
        try:
            data = read_file(path, max_bytes)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as err:
            raise Damaged(digest, str(err.strerror if isinstance(err, OSError) else err)) from err
        if hashlib.new("sha256" if len(digest) == 64 else "sha512", data).hexdigest() != digest:
            raise Damaged(digest, "its content does not match its digest")
        return data

    def read_config(self, digest: str) -> ArtifactConfig:
        """Read an artifact's config by its hex digest; raises as `read_blob`, and BadInput if it is not a config."""
        from rootdisk.artifact.format import CONFIG_MAX_BYTES, ArtifactConfig

        return ArtifactConfig.parse(self.read_blob(digest, CONFIG_MAX_BYTES))

    def blob(
        self,
        repository: Repository,
        descriptor: Descriptor,
        max_bytes: int = BLOB_MAX_BYTES,
        *,
        again: bool = False,
        read: Callable[[Descriptor], Iterator[bytes]] | None = None,
    ) -> Path:
        """Return the path of a blob. Fetch and verify it if it is missing or damaged, or if `again` (see possession.py).

        `read` yields the bytes of a blob, not verified, in place of the method of the repository.
        """
        from rootdisk.oci.repository import blame, blob_pieces

        if again or not self.has_blob(descriptor.digest):
            while True:
                try:
                    self.write_blob(descriptor.digest, blob_pieces(repository, descriptor, max_bytes, read))
                    break
                except DigestMismatch:
                    if not blame(repository, descriptor):
                        raise
        return self.blob_path(descriptor.digest)

    def has_blob(self, digest: Digest) -> bool:
        """Return whether a blob is there and not damaged."""
        return self.blob_path(digest).exists() and not self.damage(digest.hex)

    def boot_blob(
        self,
        repository: Repository,
        blob: BootBlob,
        *,
        again: bool = False,
        read: Callable[[Descriptor], Iterator[bytes]] | None = None,
    ) -> Path:
        """Return the path of a blob that boots a disk; as `blob`. A compressed one is kept as QEMU reads it."""
        if not blob.what:
            return self.blob(repository, blob.descriptor, again=again, read=read)
        from rootdisk.artifact.compressed import BLOB_SLACK_BYTES, decompressed
        from rootdisk.oci.repository import blob_pieces

        digest = blob.content.digest
        if again or not self.has_blob(digest):
            pieces = blob_pieces(repository, blob.descriptor, blob.content.size + BLOB_SLACK_BYTES, read)
            self.write_blob(digest, decompressed(pieces, blob.content, blob.what))
        return self.blob_path(digest)

    def write_blob(self, digest: Digest, data: bytes | Iterable[bytes]) -> None:
        """Write a blob. The caller has verified `data`, or it verifies itself while it is read."""
        atomic_write(self.blob_path(digest), data)
        self.unmark(digest.hex)

    def indexes(self) -> Iterator[tuple[Path, ChunkIndex]]:
        """Yield the path and chunk index of every disk with a readable index."""
        for path in sorted((self.root / "disks").glob("*.raw")):
            with contextlib.suppress(OSError, ValueError, RootdiskError):
                yield path, read_index(path)

    def lease(self, digests: Iterable[str]) -> tuple[int, ...]:
        """Return descriptors of shared locks. Content of the hex digests is not removed until all copies are closed."""
        fds: list[int] = []
        try:
            for digest in digests:
                fds.append(take(self.root / "locks" / digest, shared=True, what=digest[:12]))
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return tuple(fds)


def _is_trusted() -> bool:
    """Return whether nobody else can get at the store. In a container, its volumes may be world-writable nevertheless."""
    return os.environ.get("ROOTDISK_STORE_TRUSTED") == "1"


def _place() -> Path:
    """Return the directory of the user's store."""
    if root := os.environ.get("ROOTDISK_STORE"):
        return Path(root).absolute()
    return user_folder("XDG_DATA_HOME", ".local/share", "ROOTDISK_STORE") / "rootdisk"


def _check_format(root: Path) -> None:
    """Read the format of the store, before anything else is created or changed. Write it in a new store."""
    path = root / "format"
    if not os.path.lexists(path):
        atomic_write(path, FORMAT.encode())
    text = printable(read_file(path, 4096).strip(), 20)
    if not text:
        raise RootdiskError(f"store {printable(root)}: its file `format` is empty", f"echo {FORMAT} >{printable(path)}")
    if text != FORMAT:
        is_newer = text.isdecimal() and int(text) > int(FORMAT)
        raise RootdiskError(
            f"store {printable(root)} has format {text}; this rootdisk uses format {FORMAT}",
            f"{'update rootdisk, or ' if is_newer else ''}set ROOTDISK_STORE to another directory",
        )


def read_index(disk: Path) -> ChunkIndex:
    """Read the chunk index of the disk at `disk`.

    Raises:
        OSError, ValueError: It cannot be read.
        RootdiskError: It is damaged or of another version.
    """
    from rootdisk.artifact.format import INDEX_MAX_BYTES, ChunkIndex

    return ChunkIndex.parse(read_file(disk.with_suffix(".chunks"), INDEX_MAX_BYTES))
