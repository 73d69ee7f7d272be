"""Snapshots in the store: running sandboxes that were saved with their disk.

    ROOT/snapshots/NAME/snapshot.json  what was saved when, of which sandbox, by which QEMU; sizes and digests
    ROOT/snapshots/NAME/disk.*         the disk: an overlay, whose base stays in the store, or a raw file
    ROOT/snapshots/NAME/slot.json      digests of the bytes last written to its slot
    ROOT/snapshots/NAME/records        records for the slot: variables, keys, command
    ROOT/snapshots/NAME/ram, state     memory and devices, as of a template: runner/template/saved.py
    ROOT/snapshots/NAME/users/PID      a keeper whose sandbox goes on from it: runner/template/memory.py
    ROOT/snapshots/.new-HEX/           one that is being taken; its maker holds the lock of the file `lock` in it

A directory gets its name by rename when all of it is on the disk. All files are 0600: secrets of the sandbox are in them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rootdisk.durable import open_file, read_file
from rootdisk.errors import BadInput, Busy, RootdiskError
from rootdisk.system.versions import OtherVersion, read_versioned
from rootdisk.text import describe_error, printable
from runner.disk.clone import Clone, existing
from runner.sandbox import lookup
from runner.sandbox.routing.pause import NEW
from runner.sandbox.state import State, parse
from runner.store.store import Store
from runner.template import saved
from runner.template.saved import Template

VERSION = 1
_FILE_MAX_BYTES = 32 << 20  # the records of a slot are smaller
_NEW_MAX_AGE_S = 60  # a directory without a lock file is left over after this time


class Snapshot(NamedTuple):
    """A snapshot in the store."""

    folder: Path
    created: float  # Unix time
    source: str  # the sandbox that was saved
    state: State  # of that sandbox; its name is the snapshot's
    disk: tuple[int, str]  # bytes of the file, digest of its data
    machine: Mapping[str, Any]  # what has to be the same where it goes on; empty without memory
    memory: Template | None
    files: Mapping[str, str]  # sha256 of slot.json and records; empty in older ones

    @property
    def name(self) -> str:
        """The name of the snapshot."""
        return self.folder.name

    @property
    def disk_bytes(self) -> int:
        """The size on the disk, in bytes; 0 if it was removed meanwhile."""
        with contextlib.suppress(FileNotFoundError):
            return sum(path.lstat().st_blocks * 512 for path in self.folder.iterdir())
        return 0

    @property
    def clone(self) -> Clone:
        """The disk."""
        return existing(self.folder)

    def to_json(self) -> dict[str, Any]:
        """Return the value for `snapshots --json` and `inspect`."""
        spec = self.state.to_json()
        shown = ("reference", "artifact", "disk", "disk_size", "memory_mib", "cpus", "network", "labels")
        return {
            "name": self.name,
            "sandbox": self.source,
            "created": self.created,
            "has_memory": self.memory is not None,
            "size": self.disk_bytes,
            **{key: spec[key] for key in shown},
        }


class Unreadable(NamedTuple):
    """A snapshot that cannot be read. Its needs are unknown, so nothing is pruned while it exists."""

    folder: Path
    reason: str
    other_version: bool = False

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.folder.name

    def to_json(self) -> dict[str, Any]:
        """Return the value for `snapshots --json` and `inspect`."""
        return {"name": self.name, "reason": self.reason}


def read(folder: Path) -> Snapshot:
    """Read the snapshot in `folder`.

    Raises:
        OSError, ValueError: It cannot be read.
    """
    try:
        value = read_versioned(folder / "snapshot.json", VERSION)
    except OtherVersion:
        raise
    except ValueError as err:
        raise ValueError(f"snapshot.json {err}") from err
    if value.get("digest", digest_of(value)) != digest_of(value):
        raise ValueError(f"snapshot.json: {saved.MISMATCH}")
    try:
        state = parse(json.dumps(value["state"]).encode(), folder, False)
        memory = None
        created, what = float(value["created"]), str(value["sandbox"])
        if value["memory"] is not None:
            ram, device_state = value["memory"]["ram"], value["memory"]["state"]
            memory = Template(
                folder,
                created,
                str(value["memory"]["nonce"]),
                what,
                (int(ram[0]), str(ram[1])),
                (int(device_state[0]), str(device_state[1])),
            )
        disk = (int(value["disk"][0]), str(value["disk"][1]))
        machine: Mapping[str, Any] = dict(value["machine"])
        return Snapshot(folder, created, what, state, disk, machine, memory, dict(value.get("files", {})))
    except (KeyError, TypeError, IndexError) as err:
        raise ValueError(f"snapshot.json is damaged: {err}") from err


def digest_of(value: Mapping[str, Any]) -> str:
    """Return the digest of what snapshot.json says, for its key `digest`."""
    said = {key: value[key] for key in value if key != "digest"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def look(folder: Path) -> Snapshot | Unreadable:
    """Read the snapshot in `folder`, or return why it cannot be read. FileNotFoundError if there is none."""
    try:
        return read(folder)
    except (OSError, ValueError) as err:
        os.lstat(folder)
        return Unreadable(folder, printable(describe_error(err), 300), isinstance(err, OtherVersion))


def all_of(store: Store) -> Iterator[Snapshot | Unreadable]:
    """Yield every snapshot that has its name."""
    for folder in sorted((store.root / "snapshots").iterdir()):
        if not folder.name.startswith("."):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                yield look(folder)


def find_any(store: Store, name: str) -> Snapshot | Unreadable | None:
    """Return the snapshot `name`, even if it cannot be read; None if there is none."""
    if not name or "/" in name or "\0" in name or name.startswith("."):
        return None
    with contextlib.suppress(OSError, UnicodeError):
        return look(store.root / "snapshots" / name)
    return None


def find(store: Store, name: str) -> Snapshot:
    """Return the snapshot `name`.

    Raises:
        BadInput: There is none, or it cannot be read.
    """
    snapshot = find_any(store, name)
    if snapshot is None:
        raise BadInput(f"no snapshot {printable(name, 80)!r}", "see runner snapshots")
    if isinstance(snapshot, Unreadable):
        what = f"snapshot {printable(name, 80)} cannot be read: {snapshot.reason}"
        raise BadInput(what, f"to delete it: runner rm --snapshot {printable(name, 80)}")
    return snapshot


def needed(store: Store) -> set[str] | None:
    """Return the hex digests that snapshots use, or None if one is unreadable: it may use anything."""
    digests: set[str] = set()
    for snapshot in all_of(store):
        if isinstance(snapshot, Unreadable):
            return None
        digests |= snapshot.state.uses
    return digests


def needed_by_all(store: Store) -> set[str] | None:
    """Return the hex digests that sandboxes and snapshots use, or None if one is unreadable."""
    of_sandboxes, of_snapshots = lookup.needed(store), needed(store)
    return None if of_sandboxes is None or of_snapshots is None else of_sandboxes | of_snapshots


def remove(store: Store, name: str) -> int:
    """Remove a snapshot; sandboxes that go on from it are not disturbed. Return the bytes that it had on the disk."""
    return saved.remove(store.root / "snapshots" / name)


def check_removable(store: Store, name: str, *, force: bool) -> None:
    """Refuse to remove what is not there, or without `force` what another version of rootdisk has taken; BadInput."""
    snapshot = find_any(store, name)
    if snapshot is None:
        raise BadInput(f"no snapshot {printable(name, 80)!r}", "see runner snapshots")
    if isinstance(snapshot, Unreadable) and snapshot.other_version and not force:
        shown = printable(name, 80)
        raise BadInput(
            f"snapshot {shown} is not removed: {snapshot.reason}", f"to delete it: runner rm --force --snapshot {shown}"
        )


def sweep(store: Store) -> None:
    """Remove what killed makers have left."""
    for folder in (store.root / "snapshots").iterdir():
        if folder.name.startswith(".old-"):
            saved.remove(folder)
        elif folder.name.startswith(NEW):
            with contextlib.suppress(OSError, Busy, RootdiskError):
                if _is_left(folder):
                    saved.remove(folder)


def _is_left(folder: Path) -> bool:
    """Return whether nobody makes the snapshot in a directory without a name."""
    try:
        lock = open_file(folder / "lock", os.O_RDWR)
    except FileNotFoundError:
        return time.time() - folder.stat().st_mtime > _NEW_MAX_AGE_S
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


@contextlib.contextmanager
def unless_removed(snapshot: Snapshot) -> Iterator[None]:
    """Use a snapshot. If it has gone meanwhile, that is what an error in the block says: nothing is damaged then."""
    try:
        yield
    except (OSError, RootdiskError) as err:
        if not _is_still_there(snapshot):
            raise RootdiskError(f"snapshot {printable(snapshot.name, 80)} was removed meanwhile") from err
        raise


def _is_still_there(snapshot: Snapshot) -> bool:
    try:
        found = look(snapshot.folder)
    except FileNotFoundError:
        return False
    return isinstance(found, Unreadable) or found.created == snapshot.created  # not another one with its name


def damage(snapshot: Snapshot) -> str:
    """Read the whole snapshot and return what is wrong with it, or ""."""
    if snapshot.memory is not None and (why := saved.damage(snapshot.memory)):
        return why
    return damage_of_disk(snapshot)


def damage_of_disk(snapshot: Snapshot, most: int | None = None) -> str:
    """Return what is wrong with the disk and with the small files, or "". A disk with more than `most` bytes of data is not read."""
    try:
        for name, digest in snapshot.files.items():
            if file_digest(snapshot.folder / name) != digest:
                return f"{name}: {saved.MISMATCH}"
        path = snapshot.clone.path
        info = path.stat()
        is_read = most is None or info.st_blocks * 512 <= most
        if info.st_size != snapshot.disk[0] or (is_read and data_digest(path) != snapshot.disk):
            return f"disk: {saved.MISMATCH}"
    except RootdiskError as err:  # its hint is for sandboxes
        return f"it cannot be read: {err.message}"
    except (OSError, ValueError) as err:
        return f"it cannot be read: {describe_error(err)}"
    return ""


def file_digest(path: Path) -> str:
    """Return the sha256 of a small file; ValueError if it is a large one."""
    return hashlib.sha256(read_file(path, _FILE_MAX_BYTES)).hexdigest()


def data_digest(path: Path) -> tuple[int, str]:
    """Return the bytes of a file, and the sha256 of its pages that are not zeros, with their places."""
    fd = open_file(path)
    try:
        return os.fstat(fd).st_size, saved.pages_digest(fd)
    finally:
        os.close(fd)
