"""Prepare a sandbox to start: its directory, its disk and its slot.

`create` makes a new sandbox, `reopen` opens a kept one; forks.py makes those from snapshots.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rootdisk import records
from rootdisk.durable import atomic_write
from rootdisk.errors import BadInput
from rootdisk.records import Record
from runner.disk import slot
from runner.disk.clone import Clone, clone, existing
from runner.sandbox import guest_records
from runner.sandbox.directory import Sandbox
from runner.sandbox.state import Spec, State
from runner.store.events import Events
from runner.store.pull import StoredArtifact
from runner.store.store import Store

if TYPE_CHECKING:
    from runner.lazy.served import ServedDisk
    from runner.network.secrets import Secrets
    from runner.sandbox.snapshots import Snapshot


class PreparedSandbox(NamedTuple):
    """A sandbox with its disk, ready to start."""

    sandbox: Sandbox
    artifact: StoredArtifact
    disk: Clone
    slot_digest: str
    spec: Spec  # of this run
    needs: str = ""  # options that an older init does not support
    is_read_only: bool = False
    events: Events | None = None
    is_tied: bool = False  # it ends with the connection of its main client, even if its output goes to a log
    ipv6: bool = False  # whether the guest has IPv6, for a name server
    hosts: tuple[bytes, ...] = ()  # of --add-host
    served: ServedDisk | None = None  # the base, if it is not complete
    is_quiet: bool = False  # no progress is shown
    secrets: Secrets | None = None
    snapshot: Snapshot | None = None  # its programs go on from this one, in place of a boot
    settings: tuple[Record, ...] = ()  # for a guest that goes on from a snapshot


def create(store: Store, artifact: StoredArtifact, spec: Spec, settings: Sequence[Record]) -> PreparedSandbox:
    """Create a sandbox from an artifact. `settings` are records for its slot.

    Raises:
        RootdiskError: It cannot be created; nothing is left of it.
    """
    if guest_records.is_read_only(settings) and spec.verity and spec.disk_size != artifact.config.disk_size:
        raise BadInput(
            "--disk-size with --read-only: dm-verity checks the disk as it was built", "leave out one of the two"
        )
    secrets = read_secrets(spec, settings)
    sandbox = Sandbox.create(store, spec)
    served = None
    try:
        served = _served(store, artifact, spec)
        kept_records = (*settings, *guest_records.identity(), ("first", b"1"))
        atomic_write(sandbox.folder / "records", records.pack(kept_records), 0o600, durable=spec.keep)
        extent = artifact.config.slot()
        slot_records = guest_records.complete(kept_records, spec, secrets)
        filled = slot.pack(slot_records, extent.length)
        patches = slot.clusters(extent, filled)
        if spec.disk_size != artifact.config.disk_size:
            from runner.disk import grow  # seldom needed

            patches = {**grow.patches(artifact.disk, spec.disk_size, served), **patches}
        disk = clone(artifact.disk, spec.disk_size, sandbox.folder, spec.clone, patches, served)
        slot.write(disk.path, extent, filled, sandbox.folder / "slot.json", overlay=disk.overlay, durable=spec.keep)
        sandbox.take_name()
        disk = disk._replace(path=sandbox.folder / disk.path.name)
        created = of_records(sandbox, artifact, disk, filled.digest, spec, kept_records, slot_records)
        return created._replace(served=served, secrets=secrets)
    except BaseException:
        sandbox.remove()
        if served is not None:
            served.close()
        raise


def reopen(
    store: Store, state: State, run: Spec | None = None, replacement: Sequence[Record] | None = None
) -> PreparedSandbox:
    """Prepare a kept sandbox to start again, with a new slot.

    `run` and `replacement` are the specification and the records of this run only, instead of the kept ones.

    Raises:
        Busy: It runs.
        RootdiskError: Its artifact was removed from the store, or its slot has changed.
    """
    for place, _, _ in (run or state.spec).volumes:
        from runner.machine import virtiofsd

        virtiofsd.check(Path(place))
    sandbox = Sandbox.open(state)
    try:
        return prepare_again(store, sandbox, state, run, replacement)
    except BaseException:
        sandbox.release()
        raise


def prepare_again(
    store: Store,
    sandbox: Sandbox,
    state: State,
    run: Spec | None = None,
    replacement: Sequence[Record] | None = None,
    secrets: Secrets | None = None,
) -> PreparedSandbox:
    """Prepare a kept sandbox that this process has locked; see `reopen`. `secrets` are those of its last run, if it had one."""
    artifact = StoredArtifact.kept(store, state.spec)
    try:
        kept_records = [record for record in guest_records.records_of(state) if record[0] != "first"]
        atomic_write(sandbox.folder / "records", records.pack(kept_records), 0o600)
        settings = kept_records if replacement is None else replacement
        secrets = secrets or read_secrets(run or state.spec, settings)
        slot_records = guest_records.complete(settings, run or state.spec, secrets)
        disk, slot_digest = rewrite_slot(sandbox.folder, artifact, slot_records)
        served = _served(store, artifact, state.spec)
        reopened = of_records(sandbox, artifact, disk, slot_digest, run or state.spec, settings, slot_records)
        return reopened._replace(served=served, secrets=secrets)
    except BaseException:
        artifact.release()
        raise


def of_records(
    sandbox: Sandbox,
    artifact: StoredArtifact,
    disk: Clone,
    slot_digest: str,
    spec: Spec,
    settings: Sequence[Record],
    slot_records: Sequence[Record],
) -> PreparedSandbox:
    """Return a prepared sandbox; what its records say about it is read from them.

    Args:
        sandbox: Its directory.
        artifact: The artifact that its disk comes from.
        disk: Its disk.
        slot_digest: Of the slot on the disk.
        spec: That of this run.
        settings: The records of its options.
        slot_records: All records for the guest.
    """
    return PreparedSandbox(
        sandbox,
        artifact,
        disk,
        slot_digest,
        spec,
        guest_records.needed(settings),
        guest_records.is_read_only(settings),
        ipv6=guest_records.has_ipv6(slot_records),
        hosts=guest_records.hosts(settings),
    )


def rewrite_slot(folder: Path, artifact: StoredArtifact, slot_records: Sequence[Record]) -> tuple[Clone, str]:
    """Write the slot of the disk in `folder`, which has one. Return the disk and the slot's digest."""
    extent, disk = artifact.config.slot(), existing(folder)
    filled = slot.pack(slot_records, extent.length)
    slot.rewrite(disk.path, extent, filled, folder / "slot.json", overlay=disk.overlay)
    return disk, filled.digest


def read_secrets(spec: Spec, settings: Sequence[Record]) -> Secrets | None:
    """Read the secrets of a sandbox; RootdiskError if a source has none."""
    if not spec.secrets:
        return None
    from runner.sandbox.secrets import read  # with the maker of certificates, which no other sandbox needs

    return read(spec.secrets, settings)


def _served(store: Store, artifact: StoredArtifact, spec: Spec) -> ServedDisk | None:
    """Connect to the server of a disk that is not complete; None if it is complete.

    Raises:
        BadInput: The sandbox needs a complete disk.
    """
    if artifact.source is None:
        return None
    if spec.backend == "krun":
        raise BadInput("libkrun reads complete disks only", "use --pull missing, or --backend qemu")
    if spec.clone not in (None, "overlay"):
        raise BadInput(f"--clone {spec.clone} copies complete disks only", "use --pull missing, or omit --clone")
    from runner.lazy.served import ServedDisk

    return ServedDisk(store, artifact.source)
