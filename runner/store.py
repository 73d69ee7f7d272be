"""The store: verified content on one host, by digest, shared by all processes of one user.

    ROOT/format            "1"
    ROOT/blobs/HEX         manifests' small blobs: config, kernel, initramfs
    ROOT/disks/HEX.raw     a sparse root disk, HEX its disk digest; HEX.chunks its chunk index
    ROOT/locks/HEX         one lock a digest
    ROOT/sandboxes/NAME/   one sandbox each: overlay, console log, state

A name here means the content is good: files get it by rename, after verifying and syncing. Disks are never written.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
            for folder in ("blobs", "disks", "locks", "sandboxes"):
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

    def blob(self, repository: Repository, descriptor: Descriptor) -> Path:
        """A blob's file, fetched and verified where it is not there yet."""
        path = self.root / "blobs" / descriptor.digest.hex
        if not path.exists():
            atomic_write(path, read_blob(repository, descriptor, BLOB_MAX_BYTES))
        return path

    def indexes(self) -> Iterator[tuple[Path, ChunkIndex]]:
        """Every disk with its index."""
        for path in sorted((self.root / "disks").glob("*.raw")):
            with contextlib.suppress(OSError, RootdiskError):
                yield path, ChunkIndex.parse(path.with_suffix(".chunks").read_bytes())

    def states(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Every sandbox's directory and state, `running` worked out."""
        for folder in sorted(self.sandboxes.iterdir()):
            with contextlib.suppress(OSError, ValueError):
                state = json.loads((folder / "state.json").read_bytes())
                state["running"] = started(state["pid"]) == state["started"]
                yield folder, state

    def sweep(self) -> None:
        """Remove sandboxes whose runner was killed before it could, unless they are to be kept."""
        for folder, state in list(self.states()):
            if not state["running"] and not state["keep"]:
                import shutil  # seldom needed, and slow to load

                shutil.rmtree(folder, ignore_errors=True)

    def prune(self, age_s: float, dry_run: bool) -> list[tuple[Path, int]]:
        """Remove disks and blobs that no sandbox uses and that are older than `age_s`; what and how many bytes."""
        used = {name for _, state in self.states() for name in state["uses"]}
        removed = []
        for path in (*(self.root / "disks").iterdir(), *(self.root / "blobs").iterdir()):
            digest = path.name.partition(".")[0]
            with contextlib.suppress(OSError):
                info = path.stat()
                if digest in used or time.time() - max(info.st_mtime, info.st_atime) < age_s:
                    continue
                removed.append((path, info.st_blocks * 512))
                if not dry_run:
                    with locked(self.root / "locks" / digest):
                        path.unlink()
        return removed


def started(pid: int) -> str:
    """When process `pid` started, in the kernel's ticks; "" where there is none. With the pid it names a process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
